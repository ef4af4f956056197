"""What a server inherits beside its standard streams: the descriptors that were named, within limits or not."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from skerry.core.ports import Launch
from skerry.drivers.runtime.process import ProcessRuntime

CODE = "import os, sys; print(open(sys.argv[1]).read(), sorted(set(map(int, os.listdir('/proc/self/fd'))) - {0, 1, 2}))"


@pytest.mark.parametrize("limit", [0, 512 * 2**20])
async def test_a_server_inherits_what_was_named_and_nothing_else(tmp_path: Path, limit: int) -> None:
    runtime = ProcessRuntime(tmp_path / "runtime")
    given, other = os.memfd_create("given", os.MFD_CLOEXEC), os.memfd_create("other", 0)
    try:
        os.write(given, b"a model")
        launch = Launch(
            name="digits-1",
            argv=[sys.executable, "-c", CODE, f"/proc/self/fd/{given}"],
            directory=tmp_path,
            environment={"PATH": os.environ["PATH"]},
            log=tmp_path / "log",
            memory_limit_bytes=limit,
            descriptors=(given,),
        )
        instance = await runtime.start(launch)
    finally:
        os.close(given)
        os.close(other)
    await runtime.wait(instance)
    said = (tmp_path / "log").read_text()
    await runtime.stop(instance, grace_seconds=0)
    assert said.startswith("a model ")
    inherited = json.loads(said.removeprefix("a model "))
    assert given in inherited
    assert other not in inherited
