"""Where models come from, one module per framework, behind one shape: `Source`.

Lives here: reading a trained model, running it as its authors meant it, and exporting it to ONNX. Must not live here:
optimisation, or judging what came out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from skerry.optimize.dataset import Array


class Source(Protocol):
    """A trained model as its own framework runs it: the reference that every variant is compared with."""

    @property
    def kind(self) -> Literal["pytorch"]:
        """The framework's name in a card's provenance."""
        ...

    @property
    def digests(self) -> Mapping[str, str]:
        """File name -> sha256 of every file it was read from."""
        ...

    def predict(self, samples: Array) -> Sequence[Array]:
        """Run samples [n, ...]; every output is [n, ...], the first one [n, classes]. Raises InvalidError."""
        ...

    def export(self, samples: Array) -> bytes:
        """Return a serialised ONNX graph that takes any batch size, traced with these samples. Raises InvalidError."""
        ...
