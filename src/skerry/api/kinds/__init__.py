"""The kinds, one module each, and the table that says how each is named, listed and validated.

Lives here: types with units and meaning, and `KINDS`. Must not live here: what happens to objects of a kind.
"""

from __future__ import annotations

from skerry.api.kinds.table import KINDS, Column, KindInfo, Resource, find_kind

__all__ = ["KINDS", "Column", "KindInfo", "Resource", "find_kind"]
