"""What the command lines of the server and of `once` have in common: numbers within bounds, the signature's file.

Lives here: turning words into values. Must not live here: the options themselves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from skerry.api.errors import InvalidError, NotFoundError
from skerry.api.kinds.tensors import ModelSignature
from skerry.serve.limits import MAX_SIGNATURE_BYTES


def number(low: int, high: int) -> type[int]:
    """Return an argparse type for an integer within bounds."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not within {low} and {high}")
        return value

    parse.__name__ = "number"
    return parse  # type: ignore[return-value]


def read_signature(path: Path) -> ModelSignature:
    """Read a model's signature from JSON. Raises NotFoundError, InvalidError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SIGNATURE_BYTES + 1)
        if len(raw) > MAX_SIGNATURE_BYTES:
            raise InvalidError(f"is larger than {MAX_SIGNATURE_BYTES} bytes", element=str(path))
        return msgspec.json.decode(raw, type=ModelSignature)
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", element=str(path)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"is not a signature: {error}", element=str(path)) from error
