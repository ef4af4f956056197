"""Every engine loads a model from a file that is in memory only, and serves after the server has let go of it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.integration.serving import READY, Served, command
from tests.unit.serve import engine_files as made

from skerry.agent import memory_file


@pytest.mark.parametrize("engine", made.ENGINES)
def test_an_engine_serves_what_was_never_on_a_disk(
    engine: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip(made.MODULES[engine])
    content = made.files(engine, tmp_path_factory.getbasetemp() / f"engine-{engine}")["dense"].read_bytes()
    (tmp_path / "signature.json").write_bytes(msgspec.json.encode(made.DENSE))
    log = tmp_path / "serve.log"
    with memory_file.created("model") as descriptor:
        os.write(descriptor, content)
        memory_file.freeze(descriptor)
        argv = command(tmp_path, "--engine", engine, "--file", str(memory_file.path_of(descriptor)))
        with log.open("wb") as output:
            process = subprocess.Popen(argv, stderr=output, pass_fds=[descriptor])
    with process:
        try:
            served = Served(process, log, READY)
            for count in (1, 3, 2):
                inputs = made.samples(made.DENSE, count, seed=count)
                x = inputs["x"]
                tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
                answer = served.infer(inputs=[tensor])
                assert answer.status == 200, answer.body
                [scores] = json.loads(answer.body)["outputs"]
                np.testing.assert_allclose(
                    np.reshape(scores["data"], scores["shape"]), made.dense(inputs)["scores"], rtol=1e-4, atol=1e-5
                )
            # Both keep the file open themselves: the one maps it, the other reads on.
            links = [os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
            assert any("memfd:model" in link for link in links) == (engine in ("litert", "executorch"))
        finally:
            process.kill()
