"""Keras: `.keras` files, read in safe mode, run by TensorFlow, exported by tf2onnx.

A `.keras` file is an archive of a configuration and weights. The configuration can hold Python code (Lambda layers) and
name classes of any module; what it names is looked at before Keras sees it. Lives here: that file format. Must not live
here: how TensorFlow's functions become ONNX (`tensorflow_onnx`).
"""

from __future__ import annotations

import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from skerry.api.errors import ForbiddenError, InvalidError, TooLargeError, UnsupportedError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import SourceKind
from skerry.optimize import user_code
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import UNNAMED, Inputs
from skerry.optimize.foreign import first_line, raise_if_starved
from skerry.optimize.importers import Form, files, tensorflow_onnx
from skerry.optimize.importers.tensors import Reference, freed
from skerry.optimize.recipe import SourceSpec

MAX_CONFIG_BYTES = 64 * 1024**2
MAX_UNPACKED_BYTES = 8 * 1024**3

_HINT = "save it with model.save('model.keras')"
_OWN_MODULES = ("keras", "builtins")
_RUNS_CODE = {"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}
"""Keras' own classes that carry code, or load it from elsewhere."""


class KerasSource:
    """A Keras model in inference mode."""

    kind: SourceKind = "keras"
    forms: frozenset[Form] = frozenset({"keras", "onnx"})

    def __init__(self, model: Any, digests: Mapping[str, str]) -> None:
        self.digests = digests
        self._model = model
        tensors = list(model.inputs)
        self._names = _input_names(model)
        self._shapes = dict(zip(self._names, (tuple(tensor.shape) for tensor in tensors), strict=True))
        self._keys = _input_keys(model, self._names)
        self._outputs = _output_names(model)
        self._free = {
            name: [-1 if size is None else size for size in tensor.shape]
            for name, tensor in zip((*self._names, *self._outputs), (*tensors, *model.outputs), strict=True)
        }
        self._reference = Reference(
            names=self._names,
            run=self._run,
            fixed=tensorflow_onnx.fixed_batch(self._shapes.values()),
            hint="compare the samples in the data with the model's Input layers",
        )

    def signature(self, inputs: Inputs) -> ModelSignature:
        """See `Source`; dimensions that the model leaves free stay free."""
        return freed(self._reference.signature(inputs), self._free)

    def predict(self, inputs: Inputs) -> Sequence[Array]:
        """See `Source`."""
        return list(self._reference.predict(inputs).values())

    def onnx(self, inputs: Inputs, *, opset: int) -> bytes:
        """See `Source`."""
        bound = self._reference.bound(inputs)
        specs = [
            tf.TensorSpec(self._shapes[name], tf.as_dtype(samples.dtype), name=name) for name, samples in bound.items()
        ]
        return tensorflow_onnx.export(
            lambda *tensors: self._call(dict(zip(self._names, tensors, strict=True))),
            specs,
            reference=self._reference,
            signature=self.signature(inputs),
            inputs=bound,
            opset=opset,
        )

    def native(self) -> Any:
        """See `Source`: the keras.Model."""
        return self._model

    def _run(self, batch: Inputs) -> dict[str, Array]:
        outputs = self._call({name: tf.constant(samples) for name, samples in batch.items()})
        return {name: output.numpy() for name, output in outputs.items()}

    def _call(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        arguments: Any = list(tensors.values()) if len(tensors) > 1 else next(iter(tensors.values()))
        if self._keys is not None:
            arguments = {key: tensors[name] for key, name in self._keys.items()}
        output = self._model(arguments, training=False)
        return dict(zip(self._outputs, tf.nest.flatten(output), strict=True))


def open_source(spec: SourceSpec, *, seed: int) -> KerasSource:
    """Read a `.keras` file; see `importers.open_source`."""
    path = Path(spec.path)
    files.check(path, hint=_HINT)
    _check_config(path, _config(path), allow_code=spec.allow_code, has_code=bool(spec.code))
    digests = {path.name: files.digest(path)}
    if spec.code:
        digests[Path(spec.code).name] = user_code.run_file(
            Path(spec.code), hint="name the file with the model's layers"
        )
    keras.utils.set_random_seed(seed)
    try:
        with warnings.catch_warnings(action="ignore"):
            model = keras.saving.load_model(path, compile=False, safe_mode=not spec.allow_code)
    except Exception as error:  # Keras raises whatever a configuration makes it stumble over
        raise_if_starved(error)
        raise InvalidError(f"cannot be loaded ({_innermost(error)})", element=path.name, hint=_HINT) from error
    if not isinstance(model, keras.Model) or not model.built or not getattr(model, "inputs", None):
        hint = "save a built model: one with Input layers, or a Sequential that has been called"
        raise InvalidError("does not say what its inputs are", element=path.name, hint=hint)
    for variable in model.variables:
        if tf.as_dtype(variable.dtype).is_floating and not bool(tf.reduce_all(tf.math.is_finite(variable.value))):
            raise InvalidError(
                f"{variable.path} holds NaN or infinite values", element=path.name, hint="train it again"
            )
    return KerasSource(model, digests)


def _innermost(error: Exception) -> str:
    """Return what went wrong at the bottom: Keras quotes whole configurations on the way up."""
    told = str(error).rpartition("Exception encountered: ")[2]
    return first_line(ValueError(told)) if told else first_line(error)


def _config(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > MAX_UNPACKED_BYTES:
                raise TooLargeError(f"unpacks to {unpacked} bytes, at most {MAX_UNPACKED_BYTES}", element=path.name)
            size = archive.getinfo("config.json").file_size
            if size > MAX_CONFIG_BYTES:
                raise TooLargeError(f"config.json has {size} bytes, at most {MAX_CONFIG_BYTES}", element=path.name)
            return json.loads(archive.read("config.json"))
    except KeyError:
        raise InvalidError("holds no config.json", element=path.name, hint=_HINT) from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise InvalidError(f"is no .keras file ({first_line(error)})", element=path.name, hint=_HINT) from None
    except RecursionError:
        raise InvalidError("config.json is nested too deeply", element=path.name, hint=_HINT) from None


def _check_config(path: Path, config: Any, *, allow_code: bool, has_code: bool) -> None:
    for layer, part in _classes(config):
        name, module = str(part.get("class_name")), str(part.get("module") or "")
        if name in _RUNS_CODE:
            if allow_code:
                continue
            kind = (
                "a Lambda layer with Python code" if "ambda" in name else f"a {name}, which loads code from elsewhere"
            )
            raise ForbiddenError(
                f"layer {layer} is {kind}; it was not run",
                element=path.name,
                hint="write it as a layer class of its own, or agree to run it with --allow-code",
            )
        foreign = module and module.split(".", maxsplit=1)[0] not in _OWN_MODULES
        registered = part.get("registered_name") or ""
        if (foreign or ">" in str(registered)) and not has_code:
            said = registered if ">" in str(registered) else f"{module}.{name}"
            raise UnsupportedError(
                f"layer {layer} is of the class {said[:80]}, which is not Keras' own",
                element=path.name,
                hint="name the Python file that registers it as the source's code",
            )


def _classes(config: Any, layer: str = "model") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Walk everything in a configuration that names a class, with the name of the layer it belongs to."""
    stack = [(config, layer)]
    while stack:
        value, layer = stack.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                inner = value.get("config")
                if isinstance(inner, dict) and isinstance(inner.get("name"), str):
                    layer = inner["name"][:80]
                yield layer, value
            stack.extend((part, layer) for part in value.values())
        elif isinstance(value, list):
            stack.extend((part, layer) for part in value)


def _input_names(model: Any) -> list[str]:
    names = [str(tensor.name) for tensor in model.inputs]
    if all(not name.startswith("keras_tensor") for name in names) and len(set(names)) == len(names):
        return names
    return [UNNAMED] if len(names) == 1 else [f"{UNNAMED}_{index}" for index in range(len(names))]


def _input_keys(model: Any, names: Sequence[str]) -> dict[str, str] | None:
    """Return key -> input name for a model that was built with a dict of inputs, else None."""
    if isinstance(model, keras.Sequential) or not isinstance(model.input, Mapping):
        return None
    by_tensor = {tensor.name: name for tensor, name in zip(model.inputs, names, strict=True)}
    return {str(key): by_tensor[tensor.name] for key, tensor in model.input.items()}


def _output_names(model: Any) -> list[str]:
    count = len(model.outputs)
    names = list(getattr(model, "output_names", None) or [])
    if len(names) != count and count == 1 and model.layers:
        names = [model.layers[-1].name]
    if len(names) != count or len(set(names)) != count:
        names = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
    taken = set(_input_names(model))
    return [f"{name}_output" if name in taken else name for name in names]
