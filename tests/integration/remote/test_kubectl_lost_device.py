"""What clients are told when the device of their conversation is gone: never that all is well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from tests.integration.agent.test_agent_hub import until
from tests.integration.remote.conftest import POD, Lab


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_log_that_breaks_off_is_no_whole_one(lab: Lab, how: signal.Signals) -> None:
    began = "remote.began purpose=logs"
    before = lab.site.log("till-1").count(began)
    followed = lab.start("logs", "-f", POD)
    skerry = subprocess.Popen(
        [sys.executable, "-m", "skerry.cli", "logs", "-f", "device/till-1", "deployment/digits"],
        env=os.environ | {"SKERRY_KUBECONFIG": lab.environment["KUBECONFIG"]},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    lab.programs.append(skerry)
    until(lambda: lab.site.log("till-1").count(began) == before + 2, "both follow")
    lab.site.end("till-1", how)
    try:
        said, _ = followed.communicate(timeout=30)
        assert followed.returncode == 1
        assert b"unexpected EOF" in said.splitlines()[-1]
        _, error = skerry.communicate(timeout=30)
        assert skerry.returncode == 1
        assert b"the connection broke" in error
        assert "Traceback" not in lab.site.log("hub")
    finally:
        lab.restart_agent()
