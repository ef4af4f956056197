"""Settings as frozen dataclasses: each field states its unit, its default and the reason for that default.

Lives here: the field that carries unit and reason, and argparse options made from such fields. Must not live here: any
program's settings.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any


def about(reason: str, *, unit: str = "", parse: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Return a dataclass field's metadata: why this default, and in which unit.

    `parse` turns an option's text into the value, raising ValueError or argparse.ArgumentTypeError; without it the
    field is not offered on the command line.
    """
    return {"reason": reason, "unit": unit, "parse": parse}


def add_options(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """Add one option for each field that can be parsed from text; tuples take the option repeatedly.

    One that is False by default is a switch, without a value.
    """
    for field in dataclasses.fields(settings):
        parse = field.metadata.get("parse")
        if parse is None:
            continue
        unit, shown = field.metadata["unit"], _default_of(field)
        if shown is False:
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(flag, action="store_true", default=None, help=field.metadata["reason"])
            continue
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=parse,
            action="append" if isinstance(shown, tuple) else "store",
            default=None,
            metavar=unit.upper().replace(" ", "-") or "VALUE",
            help=f"{field.metadata['reason']} (default: {_render(shown)})".replace("%", "%%"),
        )


def from_options(settings: type[Any], options: argparse.Namespace) -> Any:
    """Return settings with what the command line gave, and defaults for the rest."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(options, field.name, None)
        if value is not None:
            given[field.name] = tuple(value) if isinstance(value, list) else value
    return settings(**given)


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _render(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return str(value)
