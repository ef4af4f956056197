"""One job in a process of its own: `python -m skerry.optimize.worker JOB.json MEMORY`.

Events go to standard output as JSON lines, as the factory's own do; `error` is the last one of a job that failed. Exit
codes: 0 the job's files are complete, 1 it failed. Lives here: the process. Must not live here: the work itself
(`importing`, `making`).
"""

from __future__ import annotations

import logging
import resource
import sys
import traceback
from pathlib import Path

import msgspec

from skerry.api.errors import SkerryError
from skerry.optimize import importing, jobs, making, progress
from skerry.optimize.foreign import first_line, is_out_of_memory


def main(file: str, memory: int) -> int:
    """Do the job with at most so many bytes of its own data; return the exit code."""
    stream = progress.own_stdout()
    tell = progress.json_lines(stream)
    logging.disable(logging.WARNING)  # the exporters warn about what the checks here decide
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    job = msgspec.json.decode(Path(file).read_bytes(), type=jobs.AnyJob)
    try:
        match job:
            case jobs.ImportJob():
                importing.run(job, tell)
            case jobs.VariantJob():
                making.run(job, tell)
    except SkerryError as error:
        tell("error", sentence=error.sentence, element=error.element, cause=error.cause, hint=error.hint)
    except Exception as error:  # noqa: BLE001 - a defect still ends in one sentence
        if is_out_of_memory(error):
            tell("error", sentence=making.too_little_memory(error), element="", cause="", hint="")
        else:
            traceback.print_exc(file=sys.stderr)
            cause = f"unexpected {type(error).__name__}: {first_line(error)}"
            tell("error", sentence=f"{cause}; this is a defect, report it", element="", cause=cause, hint="")
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
