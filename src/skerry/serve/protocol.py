"""The Open Inference Protocol v2's inference request and response as bytes: JSON, then the binary tensors.

Lives here: the wire form of a whole request, its bounds, `binary_data_size`, `binary_data`, `binary_data_output`. Must
not live here: HTTP, or running a model.

Source: Open Inference Protocol, HTTP/REST, and its binary tensor data extension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from skerry.api.errors import BadRequestError, TooLargeError
from skerry.serve import tensors
from skerry.serve.dataplane import Inference
from skerry.serve.limits import MAX_ID_CHARACTERS, MAX_PARAMETERS, MAX_RANK, MAX_TENSORS
from skerry.serve.signature import SignatureCheck

_Parameters = Annotated[dict[str, str | int | float | bool | None], msgspec.Meta(max_length=MAX_PARAMETERS)]
_NO_DATA = msgspec.Raw()


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: Annotated[list[int], msgspec.Meta(max_length=MAX_RANK)]
    parameters: _Parameters | None = None
    data: msgspec.Raw = _NO_DATA


class _Output(msgspec.Struct):
    name: str
    parameters: _Parameters | None = None


class _Request(msgspec.Struct):
    """Clients write optional fields that they leave out as null, too; what has to be there may not be null."""

    inputs: Annotated[list[_Input], msgspec.Meta(max_length=MAX_TENSORS)]
    id: Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARACTERS)] | None = None
    parameters: _Parameters | None = None
    outputs: Annotated[list[_Output], msgspec.Meta(max_length=MAX_TENSORS)] | None = None


class _OutputTensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: Sequence[int]
    parameters: Mapping[str, int] = {}
    data: Any = msgspec.UNSET


class _Response(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_OutputTensor]
    id: str = ""


_DECODER = msgspec.json.Decoder(_Request)
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """One request, checked and parsed."""

    id: str
    inputs: Mapping[str, tensors.Array]
    outputs: Sequence[str]
    binary: frozenset[str]
    """The outputs that are to be answered as binary data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One response: the JSON part and the binary tensors after it."""

    json: bytes
    binary: Sequence[bytes | memoryview]


def decode(
    body: bytes | bytearray, header_length: int | None, check: SignatureCheck, *, max_json_bytes: int
) -> InferRequest:
    """Parse a request's body; `header_length` is the length of its JSON part where binary data follows.

    Raises BadRequestError, TooLargeError; never anything else, whatever the bytes.
    """
    if header_length is not None and header_length > len(body):
        raise BadRequestError(
            f"is larger than the body, which has {len(body)}", element="Inference-Header-Content-Length"
        )
    view = memoryview(body)
    head = view if header_length is None else view[:header_length]
    if len(head) > max_json_bytes:
        raise TooLargeError(
            f"is larger than {max_json_bytes} bytes", element="the JSON part", hint="send large tensors as binary data"
        )
    try:
        request = _DECODER.decode(head)
    except RecursionError:
        raise BadRequestError("JSON is nested too deep", element="request") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(str(error)[:300], element="request") from None
    check.accept_inputs([tensor.name for tensor in request.inputs])
    inputs, rest = {}, view[len(head) :]
    for tensor in request.inputs:
        inputs[tensor.name], rest = _tensor(tensor, rest, check)
    if rest:
        raise BadRequestError(f"{len(rest)} bytes of binary data belong to no input", element="request")
    binary = _flag(request.parameters or {}, "binary_data_output", False)
    named = request.outputs or []
    wanted = check.outputs([output.name for output in named])
    flags = {output.name: _output_flag(output, binary) for output in named}
    return InferRequest(
        id=request.id or "",
        inputs=inputs,
        outputs=wanted,
        binary=frozenset(name for name in wanted if flags.get(name, binary)),
    )


def encode(request: InferRequest, inference: Inference, *, model: str, version: str) -> Encoded:
    """Return the response. Raises BadRequestError when an output has no JSON form and was not asked for as binary."""
    outputs: list[_OutputTensor] = []
    binary: list[bytes | memoryview] = []
    for name, array in inference.outputs:
        tensor = _OutputTensor(name=name, datatype=tensors.datatype_of(array), shape=array.shape)
        if name in request.binary:
            data = tensors.to_binary(array)
            tensor.parameters = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            tensor.data = tensors.to_json(array, element=f'output "{name}"')
        outputs.append(tensor)
    response = _Response(model_name=model, model_version=version, outputs=outputs, id=request.id)
    return Encoded(json=_ENCODER.encode(response), binary=binary)


def _tensor(tensor: _Input, rest: memoryview, check: SignatureCheck) -> tuple[tensors.Array, memoryview]:
    """Return one input and the binary data after it."""
    check.accept_input(tensor.name, tensor.datatype, tensor.shape)
    element = f'input "{tensor.name}"'
    size = (tensor.parameters or {}).get("binary_data_size")
    data = bytes(tensor.data)
    if size is None:
        if not data:
            raise BadRequestError("has neither data nor binary_data_size", element=element)
        return tensors.from_json(data, tensor.datatype, tensor.shape, element=element), rest
    if data:
        raise BadRequestError("has both data and binary_data_size", element=element)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
        raise BadRequestError(
            f"binary_data_size {size} is not within the {len(rest)} bytes of binary data that are left",
            element=element,
            hint="is the header Inference-Header-Content-Length sent, and right?",
        )
    return tensors.from_binary(rest[:size], tensor.datatype, tensor.shape, element=element), rest[size:]


def _output_flag(output: _Output, default: bool) -> bool:
    parameters = output.parameters or {}
    if parameters.get("classification"):
        raise BadRequestError("the classification extension is not supported", element=f'output "{output.name}"')
    return _flag(parameters, "binary_data", default)


def _flag(parameters: Mapping[str, object], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequestError("must be true or false", element=f"parameter {name}")
    return value
