"""One job in a process of its own: `python -m skerry.optimize.worker [SIMPLIFIER] [MODULE...]`, started ahead of it.

It starts a simplifier and imports the modules, as far as they are here, and then reads one line from standard input:
the job's file and the bytes that it may take (`jobs.line`). Events go to standard output as JSON lines, as the
factory's own do; `error` is the last one of a job that failed. Exit codes: 0 the job's files are complete, 1 it failed.
Lives here: the process. Must not live here: the work itself (`importing`, `making`).
"""

from __future__ import annotations

import importlib
import logging
import os
import resource
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from skerry.api.errors import SkerryError
from skerry.optimize import jobs, progress
from skerry.optimize.foreign import first_line, is_out_of_memory, is_out_of_space
from skerry.optimize.standby import Standby


def main(ahead: Sequence[str]) -> int:
    """Get ready, wait for the job and do it with at most so many bytes of its own data; return the exit code."""
    with Standby() as ready:
        return _main(ahead, ready)


def _main(ahead: Sequence[str], ready: Standby) -> int:
    stream = progress.own_stdout()
    tell = progress.json_lines(stream)
    logging.disable(logging.WARNING)  # the exporters warn about what the checks here decide
    if tuple(ahead[:2]) == jobs.SIMPLIFIER:
        ready.start(jobs.SIMPLIFIER)
        ahead = ahead[2:]
    from skerry.optimize import beside, importing, making  # noqa: PLC0415 - heavy: after the simplifier's start

    beside.watch()
    for module in ahead:
        with suppress(Exception):  # the job says what is wrong with it, if it needs it at all
            importlib.import_module(module)
    line = sys.stdin.buffer.readline()
    if not line:  # nobody wants it any more
        return 1
    file, memory = jobs.read_line(line)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    job = msgspec.json.decode(Path(file).read_bytes(), type=jobs.AnyJob)
    try:
        match job:
            case jobs.ImportJob():
                importing.run(job, tell, ready)
            case jobs.VariantJob():
                making.run(job, tell, ready)
    except SkerryError as error:
        tell("error", sentence=error.sentence, element=error.element, cause=error.cause, hint=error.hint)
    except Exception as error:  # noqa: BLE001 - a defect still ends in one sentence
        _tell_why(error, job, tell)
    else:
        return 0
    return 1


def _tell_why(error: Exception, job: jobs.AnyJob, tell: progress.Progress) -> None:
    if is_out_of_space(error):
        full = jobs.no_space(job)
        tell("error", sentence=full.sentence, element=full.element, cause=full.cause, hint=full.hint)
    elif is_out_of_memory(error):
        from skerry.optimize import making  # noqa: PLC0415 - heavy, and loaded by now

        tell("error", sentence=making.too_little_memory(error), element="", cause="", hint="")
    else:
        traceback.print_exc(file=sys.stderr)
        cause = f"unexpected {type(error).__name__}: {first_line(error)}"
        tell("error", sentence=f"{cause}; this is a defect, report it", element="", cause=cause, hint="")


def _end(code: int) -> NoReturn:
    """End at once: all that counts is in files, and frameworks take up to a second to take themselves apart."""
    for stream in (sys.stdout, sys.stderr):  # what a user's code has printed is in one of them
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _end(main(sys.argv[1:]))
