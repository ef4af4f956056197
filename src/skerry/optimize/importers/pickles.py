"""What a pickle would import if it were run; it never is.

Pickles are programs: they name functions of any module and call them. Reading their instructions tells which, so that
a refusal can say what was found. Must not live here: unpickling.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib

MAX_SCANNED = 64 * 1024**2
MAX_INSTRUCTIONS = 1_000_000
MAX_MEMBERS = 10_000


def imports(stream: bytes) -> list[str]:
    """Return the dotted names that a pickle imports, in order, without repetition; what cannot be read is left out."""
    found: dict[str, None] = {}
    strings: list[str] = []
    memo: list[str] = []
    latest = ""
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_INSTRUCTIONS:
                break
            if opcode.name in ("GLOBAL", "INST"):
                found[str(argument).replace(" ", ".")] = None
            elif opcode.name == "STACK_GLOBAL":
                found[".".join(strings[-2:])] = None
            elif "UNICODE" in opcode.name or opcode.name in ("STRING", "BINSTRING", "SHORT_BINSTRING"):
                strings.append(str(argument))
            elif opcode.name == "MEMOIZE":
                memo.append(strings[-1] if strings and latest != "MEMOIZE" else "")
            elif opcode.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int) and argument < len(memo):
                strings.append(memo[argument])
            latest = opcode.name
    except Exception:  # noqa: BLE001 - it is for the wording of a refusal alone, and the stream may be anything
        return list(found)
    return list(found)


def found_in(content: bytes) -> str:
    """Return ` (it would import a.b, c.d)` for a pickle, or for an archive with pickles in it; else nothing."""
    names: dict[str, None] = {}
    for stream in _streams(content):
        names.update(dict.fromkeys(imports(stream)))
    told = [name for name in names if not name.startswith(_HARMLESS)]
    if not told:
        return ""
    more = f" and {len(told) - 4} more" if len(told) > 4 else ""
    return f" (it would import {', '.join(name[:60] for name in told[:4])}{more})"


_HARMLESS = ("torch._utils._rebuild", "collections.OrderedDict", "torch.FloatStorage", "torch.LongStorage")


def _streams(content: bytes) -> list[bytes]:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return [content]
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [
                archive.read(info)
                for info in archive.infolist()[:MAX_MEMBERS]
                if info.filename.endswith(".pkl") and info.file_size <= MAX_SCANNED
            ]
    except (OSError, RuntimeError, NotImplementedError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
        return []
