"""HTTP's `Range` for one part of something of known size (RFC 9110, section 14). Pure.

Lives here: reading the header. Must not live here: conditions on it (`If-Range`), sending parts.
"""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def wanted_part(header: str, size: int) -> tuple[int, int] | None:
    """Return the half-open part of `size` bytes that a `Range` asks for; an empty part where there is no such one.

    None means all of it: also where the header is not understood, or asks for several parts, as section 14.2 allows.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    start, end = int(first), min(size, int(last) + 1 if last else size)
    if last and int(last) < start:
        return None
    return start, end
