"""Which ONNX Runtime reads which files: opset and IR version by release.

Source: the version matrix of ONNX Runtime (docs/Versioning.md up to 1.12, then onnxruntime.ai/docs/reference/
compatibility.html, "ONNX opset support"), held against ONNX's own table of opsets and IR versions; 1.9's release notes
(opset 15, IR 8; the matrix says 7 there); its issues 15874 (1.14 refuses IR 9), 15576 and 16904 (1.15 and opset 19) and
20559 (1.17 refuses IR 10). Files made for 1.15, 1.16, 1.17 and 1.18 were run by those releases. Every release reads all
older opsets. Must not live here: rewriting a file for an older release (`passes.opset`).
"""

from __future__ import annotations

from skerry.api.errors import InvalidError, UnsupportedError

RELEASES: tuple[tuple[tuple[int, int], int, int], ...] = (
    ((1, 7), 13, 7),
    ((1, 8), 14, 7),
    ((1, 9), 15, 8),
    ((1, 11), 16, 8),
    ((1, 12), 17, 8),
    ((1, 14), 18, 8),
    ((1, 16), 19, 9),
    ((1, 17), 20, 9),
    ((1, 18), 21, 10),
)
"""(release, newest opset it reads, newest IR version it reads), oldest first; later releases read this much at least.

1.15 claims 19, but has no kernel for Reshape-19 and others; it is left with 18.
"""
CONTRIB = (1, 16)
"""The first release with every operator of its own (`com.microsoft`) that the passes use."""


def newest(release: str) -> tuple[int, int]:
    """Return the newest opset and IR version that a release reads: `1.16` -> (19, 9).

    Raises InvalidError for what is no version, UnsupportedError for one before the table.
    """
    parts = release.split(".")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts[:2]):
        raise InvalidError(f'"{release[:40]}" is not a version', element="oldestOnnxruntime", hint="write it as 1.16")
    version = (int(parts[0]), int(parts[1]))
    known = [(opset, ir_version) for first, opset, ir_version in RELEASES if first <= version]
    if not known:
        hint = f"the oldest that files can be made for is {_text(RELEASES[0][0])}"
        raise UnsupportedError(f"ONNX Runtime {release} is too old", element="oldestOnnxruntime", hint=hint)
    return known[-1]


def oldest(opset: int, ir_version: int, *, contrib: bool = False) -> str | None:
    """Return the oldest release known to read such a file, None when the table knows none."""
    known = [first for first, *most in RELEASES if most[0] >= opset and most[1] >= ir_version]
    if not known:
        return None
    return _text(max(known[0], CONTRIB) if contrib else known[0])


def _text(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]}"
