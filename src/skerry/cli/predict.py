"""`skerry predict`: ask a model where it runs, with a `.npy` or `.json` as input."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.api.kinds.device import Device
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.tensors import TensorSpec
from skerry.cli import options, output
from skerry.drivers.client.api import HubClient

MAX_INPUT_BYTES = 2 * 1024 * 1024
_DATATYPES = {
    "float32": "FP32", "float64": "FP64", "float16": "FP16", "bool": "BOOL",
    **{f"{sign}{bits}": f"{sign.upper()}{bits}" for sign in ("int", "uint") for bits in (8, 16, 32, 64)},
}  # fmt: skip


def predict(
    device: Annotated[str, typer.Argument(help="device/NAME")],
    deployment: Annotated[str, typer.Argument(help="deployment/NAME")],
    source: Annotated[Path, typer.Option("--input", "-i", help="A .npy array, or a V2 inference request as .json.")],
    form: Annotated[str, typer.Option("--output", "-o", help="text or json.")] = "text",
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Send one input to the model on a device and print its answer."""
    where = options.reference(device, expected="device")
    workload = options.reference(deployment, expected="deployment")
    with options.connect(kubeconfig, namespace) as client:
        request = (
            _read_json(source) if source.suffix == ".json" else _read_npy(client, source, where.name, workload.name)
        )
        answer = client.infer(where.name, workload.name, request)
    if form == "json":
        output.print_json(answer)
        return
    for tensor in answer.get("outputs", []):
        _print_tensor(tensor)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(_read(path), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InvalidError(str(error), element=str(path), hint="it must be a V2 inference request") from None


def _read_npy(client: HubClient, path: Path, device: str, deployment: str) -> dict[str, Any]:
    try:
        import numpy as np  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise UnsupportedError(
            "reading .npy needs numpy", hint="pip install numpy, or give the request as .json"
        ) from None
    _read(path)
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise InvalidError("is not a .npy array", element=str(path), hint="save it with numpy.save") from None
    if not isinstance(array, np.ndarray) or str(array.dtype) not in _DATATYPES:
        raise InvalidError(f"holds {getattr(array, 'dtype', 'no array')}, which is no tensor", element=str(path))
    spec = _input_of(client, device, deployment)
    return {
        "inputs": [
            {
                "name": spec.name,
                "shape": list(array.shape),
                "datatype": _DATATYPES[str(array.dtype)],
                "data": array.ravel().tolist(),
            }
        ]
    }


def _input_of(client: HubClient, device: str, deployment: str) -> TensorSpec:
    workloads = client.get(Device, device).status.workloads
    running = next((w.running for w in workloads if w.name == deployment), None)
    if running is None:
        raise UnsupportedError(
            f'deployment "{deployment}" does not run there',
            element=f'device "{device}"',
            hint="see `skerry get devices`",
        )
    inputs = client.get(ModelVersion, running.model_version).spec.signature.inputs
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise UnsupportedError(f"the model takes {len(inputs)} tensors ({names})", hint="give the request as .json")
    return inputs[0]


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_INPUT_BYTES:
            raise InvalidError(f"is larger than {MAX_INPUT_BYTES} bytes", element=str(path))
        return path.read_bytes()
    except OSError as error:
        raise InvalidError(error.strerror or str(error), element=str(path)) from None


def _print_tensor(tensor: dict[str, Any]) -> None:
    data, shape = tensor["data"], tensor["shape"]
    shown = ", ".join(output.cell(value) for value in data[:20]) + (", ..." if len(data) > 20 else "")
    output.say(f"{tensor['name']} {tensor['datatype']} {shape}: {shown}")
    if len(shape) == 2 and shape[1] > 1 and shape[0] <= 100:
        rows = [data[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]
        highest = [str(max(range(len(row)), key=row.__getitem__)) for row in rows]
        output.say(f"highest: {', '.join(highest)}")
