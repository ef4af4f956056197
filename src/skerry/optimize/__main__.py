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
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

import msgspec

from skerry.api.errors import InvalidError, SkerryError, UnsupportedError
from skerry.optimize import jobs, progress
from skerry.optimize.foreign import first_line
from skerry.optimize.recipe import Optimization
from skerry.optimize.standby import Standby

DONE, ERROR, USAGE, PARTIAL, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
_COLLECT = "collect"
"""The step that puts the package together from what the others left, failures too."""


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
    stream = progress.own_stdout()
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
        return _optimize(options, tell, stream)
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


def _optimize(options: argparse.Namespace, tell: progress.Progress, stream: TextIO) -> int:
    with Standby(own_groups=True) as ready:
        if len(os.sched_getaffinity(0)) > 1 and not (options.schema or options.list or options.on == "kubernetes"):
            # what takes long to import is imported there while this process reads the recipe
            ready.start(jobs.WORKER, ahead=[*jobs.SIMPLIFIER, *_importers(options)])
        return _carry_out(options, tell, stream, ready)


def _carry_out(options: argparse.Namespace, tell: progress.Progress, stream: TextIO, ready: Standby) -> int:
    try:
        from skerry.optimize import cache, capabilities, factory, package, request  # noqa: PLC0415 - not needed for --help
    except ModuleNotFoundError as error:
        hint = "pip install 'skerry[factory]'"
        raise UnsupportedError(f"{error.name} is not installed", element="factory", hint=hint) from error
    if options.schema or options.list:
        answer = request.json_schema() if options.schema else capabilities.report()
        stream.write(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode() + "\n")
        return DONE
    if options.adopt is not None:
        from skerry.optimize import adopting  # noqa: PLC0415 - not needed otherwise

        adopting.make_package(adopting.read(options.adopt), tell)
        return DONE
    given = {name: getattr(options, _attribute(name)) for name in request.OPTIONS}
    wanted = request.read(options.file, {name: value for name, value in given.items() if value is not None})
    if options.on == "kubernetes":
        return _on_kubernetes(options, wanted, tell, stream)
    tell("started", model=wanted.name, version=wanted.version, variants=[variant.name for variant in wanted.variants])
    if options.step in (None, _COLLECT):
        package.check_target(Path(wanted.out))
    with _cache_root(options, cache.default_root()) as root:
        if options.step not in (None, _COLLECT):
            factory.make_step(wanted, cache.Cache(root), tell, options.step, ready)
            return DONE
        collects = options.step == _COLLECT
        outcome = factory.make_package(wanted, cache.Cache(root), tell, ready, take_failures=collects)
    return PARTIAL if outcome.failed else DONE


def _importers(options: argparse.Namespace) -> list[str]:
    """Return the importer that a source needs, where the options alone tell; the recipe is not read yet."""
    if options.torch:
        return ["skerry.optimize.importers.torch"]
    return ["skerry.optimize.importers.onnx"] if str(options.source).endswith(".onnx") else []


def _on_kubernetes(options: argparse.Namespace, wanted: Optimization, tell: progress.Progress, stream: TextIO) -> int:
    from skerry.optimize import cluster, kubernetes  # noqa: PLC0415 - not needed otherwise

    if not options.repository or not options.image:
        raise InvalidError("is required", element="--repository and --image", hint="see docs/factory.md, Kubernetes")
    place = kubernetes.Cluster(
        repository=options.repository,
        image=options.image,
        namespace=options.namespace,
        secret=options.registry_secret,
        plain_http=options.plain_http,
        attempt=options.attempt,
    )
    if options.dry_run:
        stream.write(cluster.to_yaml(kubernetes.manifests(wanted, place)))
        return DONE
    tell("started", model=wanted.name, version=wanted.version, variants=[variant.name for variant in wanted.variants])
    cluster.run(wanted, place, tell)
    return DONE


@contextmanager
def _cache_root(options: argparse.Namespace, default: Path) -> Iterator[Path]:
    if options.no_cache:
        with tempfile.TemporaryDirectory(prefix="skerry-factory-") as directory:
            yield Path(directory)
    else:
        yield (options.cache or default).absolute()


def _attribute(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m skerry.optimize", description="Turn a trained model into measured variants.", allow_abbrev=False
    )
    add = parser.add_argument
    add("-f", "--file", type=Path, metavar="optimize.yaml", help="the recipe; options override what it says")
    add("--torch", metavar="FILE.py:FUNCTION", help="what builds the torch.nn.Module")
    add("--source", metavar="PATH", help="any other trained model: a file, or a SavedModel directory")
    add("--kind", help="what the source is, where its name does not tell")
    add("--weights", help="the module's state dict, saved with torch.save")
    add("--allow-code", action="store_true", default=None, help="run code that the model's file itself carries")
    add("--data", help="test, calibration and golden samples: data.npz or a directory")
    add("--name", help="name of the model")
    add("--model-version", help="version of the model, as in v1")
    add("--out", help="directory for the package")
    add("--variants", help="which to make, by commas (default: fp32,fp16,int8)")
    add("--allowed-drop", type=float, help="of the metric (default: 0.01)")
    add("--metric", help="a name, or FILE.py:FUNCTION (default: accuracy)")
    add("--golden", type=int, help="golden samples to ship, at most (default: 64)")
    add("--runs", type=int, help="measured runs per variant (default: 200)")
    add("--seed", type=int, help="of every random choice (default: 0)")
    add("--plot", action="store_true", default=None, help="put pareto.png into the package")
    add("--memory", help="for all processes together, as in 4Gi (default: what is free, less a tenth)")
    add("--parallel", type=int, help="variants made at the same time, at most (default: one per processor)")
    add("--timeout", type=int, help="seconds for one variant, at most (default: 3600)")
    add("--cache", type=Path, metavar="DIR", help="where finished steps are kept (default: in the user's cache)")
    add("--no-cache", action="store_true", help="make everything anew, and keep nothing")
    add("--adopt", type=Path, metavar="WISH.json", help="make a package of graphs as they are (`skerry model import`)")
    add("--step", metavar="NAME", help="`import` or a variant: leave it in the cache; `collect`: of these")
    add("--on", choices=("here", "kubernetes"), default="here", help="where to run it (default: %(default)s)")
    add("--repository", default="", help="kubernetes: of an OCI registry, for inputs and results")
    add("--image", default="", help="kubernetes: with skerry and the extras that the variants need")
    add("--namespace", default="default", help="kubernetes: of the Jobs (default: %(default)s)")
    add("--registry-secret", default="", help="kubernetes: Secret (dockerconfigjson) for the repository")
    add("--attempt", default="", metavar="WORD", help="kubernetes: another one makes anew what failed")
    add("--plain-http", action="store_true", help="kubernetes: the registry speaks HTTP")
    add("--dry-run", action="store_true", help="kubernetes: print the manifests, and end")
    add("--schema", action="store_true", help="print the JSON Schema of optimize.yaml, and end")
    add("--list", action="store_true", help="print what can be made here and what is missing, as JSON, and end")
    add("--progress", choices=("text", "json"), default="text", help="default: %(default)s")
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


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


if __name__ == "__main__":
    main()
