"""A disk that is full is a sentence with the place and what to do, wherever in a step it is met."""

import errno
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skerry.api.errors import StorageFullError
from skerry.optimize import foreign, jobs, making, progress, worker
from skerry.optimize.recipe import Optimization

PLAIN = {
    "name": "small",
    "version": "v1",
    "source": {"path": "m.onnx"},
    "data": {"path": "data.npz"},
    "out": "package",
}


def job(cache: Path) -> jobs.VariantJob:
    wanted = msgspec.convert(PLAIN, Optimization)
    directory = str(cache / "work" / "1-0")
    return jobs.VariantJob(optimization=wanted, variant=wanted.variants[0], source="", directory=directory)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_the_recipes(number: int, tmp_path: Path) -> None:
    with pytest.raises(StorageFullError) as caught:
        making._raise_if_exhausted(job(tmp_path), OSError(number, "full"))
    assert caught.value.sentence == f"{tmp_path}: no space left on the disk; free some space, or choose another --cache"


def test_other_errors_of_the_system_are_the_recipes_own(tmp_path: Path) -> None:
    making._raise_if_exhausted(job(tmp_path), OSError(errno.EACCES, "denied"))
    assert not foreign.is_out_of_space(ValueError("no space"))


def test_a_worker_says_it_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    worker._tell_why(OSError(errno.ENOSPC, "full"), job(tmp_path), progress.json_lines(stream))
    said: dict[str, Any] = json.loads(stream.getvalue())
    assert (said["element"], said["hint"]) == (str(tmp_path), "free some space, or choose another --cache")
    assert capsys.readouterr().err == ""
