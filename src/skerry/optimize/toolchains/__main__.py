"""The toolchains' command line: `python -m skerry.optimize.toolchains install litert-torch [--into DIR]`, `... list`.

Exit codes: 0 done, 1 error, 2 wrong options.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from skerry.api.errors import SkerryError
from skerry.optimize import toolchains


def main(arguments: list[str]) -> int:
    """Carry out one command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m skerry.optimize.toolchains", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    install = verbs.add_parser("install", help="make a toolchain's environment")
    install.add_argument("name", choices=sorted(toolchains.TOOLCHAINS))
    install.add_argument("--into", type=Path, default=None, help="where; the user's data directory by default")
    verbs.add_parser("list", help="say which are there")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "install":
            interpreter = toolchains.install(options.name, _say, place=options.into and options.into.absolute())
            _say(f"{options.name} is ready: {interpreter}")
        else:
            _list()
    except SkerryError as error:
        sys.stderr.write(f"error: {error.sentence}\n")
        return 1
    return 0


def _list() -> None:
    for name, toolchain in toolchains.TOOLCHAINS.items():
        try:
            _say(f"{name} {toolchain.version}: {toolchains.find(name)}")
        except SkerryError as error:
            _say(error.sentence)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
