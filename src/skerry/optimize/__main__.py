"""The factory's command line: options in, progress and an exit code out.

Exit codes: 0 done (variants may have been rejected), 1 error and nothing was published, 2 wrong options, 3 published
without a variant that could not be made, 130 and 143 stopped by a signal. With `--progress json` standard output holds
JSON lines and nothing else (see `progress`), errors included.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from skerry.api.errors import InvalidError, SkerryError, UnsupportedError
from skerry.optimize import progress
from skerry.optimize.foreign import first_line

DONE, ERROR, USAGE, PARTIAL, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong with the options instead of printing it."""

    def error(self, message: str) -> NoReturn:
        """Raise InvalidError."""
        raise InvalidError(message, element="options", hint="see python -m skerry.optimize --help")


def main() -> None:
    """Run and exit."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        _parser().print_help()
        sys.exit(DONE)
    stream = _own_stdout()
    logging.disable(logging.WARNING)  # the exporters warn about what the checks here decide
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = run(sys.argv[1:], stream)
        stream.flush()
    except BrokenPipeError:  # nobody reads any more; what is still buffered must go somewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = ERROR
    sys.exit(code)


def run(arguments: Sequence[str], stream: TextIO) -> int:
    """Carry out one command line, telling the stream; return the exit code."""
    tell = progress.json_lines(stream) if _wants_json(arguments) else progress.text_lines(stream)
    options: argparse.Namespace | None = None
    try:
        options = _parser().parse_args(arguments)
        return _optimize(options, tell)
    except SkerryError as error:
        tell("error", sentence=error.sentence, element=error.element, cause=error.cause, hint=error.hint)
        return ERROR if options is not None else USAGE
    except KeyboardInterrupt as stopped:
        tell("error", sentence="stopped; nothing was published")
        return TERMINATED if isinstance(stopped, _Terminated) else INTERRUPTED
    except BrokenPipeError:
        raise
    except (OSError, MemoryError) as error:
        tell("error", sentence=_environment(error))
        return ERROR
    except Exception as error:  # noqa: BLE001 - a defect still ends in one sentence, for programs too
        traceback.print_exc(file=sys.stderr)
        tell("error", sentence=f"unexpected {type(error).__name__}: {first_line(error)}; this is a defect, report it")
        return ERROR


def _optimize(options: argparse.Namespace, tell: progress.Progress) -> int:
    started = time.monotonic()
    try:
        from skerry.optimize import dataset, factory, package  # noqa: PLC0415 - heavy, and not needed for --help
        from skerry.optimize.request import Request  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    request = Request(
        torch=options.torch,
        weights=options.weights,
        data=options.data,
        out=options.out.absolute(),  # before the builder can change the directory
        name=options.name,
        version=options.model_version,
        variants=tuple(dict.fromkeys(filter(None, (part.strip() for part in options.variants.split(","))))),
        allowed_drop=options.allowed_drop,
        metric=options.metric,
        golden=options.golden,
        runs=options.runs,
        seed=options.seed,
    )
    tell("started", model=request.name, version=request.version, variants=list(request.variants))
    package.check_target(request.out)
    data = dataset.load(request.data)
    try:
        from skerry.optimize.importers import torch as pytorch  # noqa: PLC0415 - only once it is worth its seconds
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    source = pytorch.load(request.torch, request.weights, seed=request.seed)
    tell("source.loaded", kind=source.kind, seconds=round(time.monotonic() - started, 2))
    outcome = factory.make_package(request, source, data, tell)
    return PARTIAL if outcome.failed else DONE


def _missing(error: ModuleNotFoundError) -> UnsupportedError:
    return UnsupportedError(f"{error.name} is not installed", element="factory", hint="pip install 'skerry[torch]'")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m skerry.optimize", description="Turn a trained model into measured variants.", allow_abbrev=False
    )
    parser.add_argument("--torch", required=True, metavar="PATH.py:FUNCTION", help="what builds the torch.nn.Module")
    parser.add_argument("--weights", required=True, type=Path, help="its state dict, saved with torch.save")
    parser.add_argument("--data", required=True, type=Path, help="data.npz: test, calibration and golden samples")
    parser.add_argument("--name", required=True, help="name of the model")
    parser.add_argument("--model-version", required=True, help="version of the model, as in v1")
    parser.add_argument("--out", required=True, type=Path, help="directory for the package")
    parser.add_argument("--variants", default="fp32,fp16,int8", help="which to make (default: %(default)s)")
    parser.add_argument("--allowed-drop", type=float, default=0.01, help="of the metric (default: %(default)s)")
    parser.add_argument("--metric", default="accuracy", help="accuracy or f1-macro (default: %(default)s)")
    parser.add_argument("--golden", type=int, default=64, help="golden samples to ship, at most (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=200, help="measured runs per variant (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (default: %(default)s)")
    parser.add_argument("--progress", choices=("text", "json"), default="text", help="default: %(default)s")
    return parser


def _wants_json(arguments: Sequence[str]) -> bool:
    """Tell how to report, also when the options themselves are wrong; the last one counts, as with argparse."""
    wanted = False
    for flag, value in itertools.pairwise((*arguments, "")):
        if flag == "--progress":
            wanted = value == "json"
        elif flag.startswith("--progress="):
            wanted = flag == "--progress=json"
    return wanted


def _environment(error: OSError | MemoryError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"not enough memory: {first_line(error)}"


def _own_stdout() -> TextIO:
    """Keep standard output for progress alone: what libraries and the builder print goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


if __name__ == "__main__":
    main()
