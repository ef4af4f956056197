"""A simulated fleet at a hub of its own: installations, updates and rollbacks at their real size."""

import json
import subprocess
from pathlib import Path

import pytest

from skerry.cli.demo.programs import SKERRY

pytestmark = pytest.mark.e2e


def simulate(directory: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    """Run a trial to its end; returns the process and the last census."""
    report = directory / "census.json"
    done = subprocess.run(
        [*SKERRY, "sim", "--state-dir", str(directory / "sim"), "--report", str(report), *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    return done, json.loads(report.read_text())


def test_two_thousand_devices_with_the_faults_of_every_day_install_and_update(tmp_path: Path) -> None:
    done, census = simulate(tmp_path, "--devices", "2000", "--profile", "mixed")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "simulated-1: Succeeded" in done.stdout
    assert "simulated-2: Succeeded" in done.stdout
    assert census["devices"] == census["enrolled"] == 2000
    # A device that lost its power in the last moments has not come back; it is not what the rollout waited for.
    assert census["running"]["simulated-v2"] >= 1980
    assert census["boots"] >= 2000
    assert census["refused"] == 0


def test_a_version_that_answers_wrongly_reaches_the_first_wave_only(tmp_path: Path) -> None:
    done, census = simulate(tmp_path, "--devices", "200", "--profile", "ideal", "--spoil", "simulated-v2")
    assert done.returncode == 1
    assert "simulated-1: Succeeded" in done.stdout
    assert "simulated-2: RolledBack" in done.stdout
    assert "accuracy" in done.stdout
    assert census["running"] == {"simulated-v1": 200}
    # Ten devices of the first wave were told twice more: of the new version, and of the old one again.
    assert census["accepted"] == 200 + 2 * 10


def test_devices_on_which_it_answers_wrongly_stop_a_rollout(tmp_path: Path) -> None:
    done, census = simulate(tmp_path, "--devices", "200", "--profile", "failing-gates")
    assert done.returncode == 1
    assert "simulated-1: RolledBack" in done.stdout
    assert "accuracy" in done.stdout
    assert census["running"] == {}


def test_the_power_goes_off_all_the_time_and_the_rollout_arrives(tmp_path: Path) -> None:
    done, census = simulate(tmp_path, "--devices", "60", "--profile", "power-cuts")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert census["boots"] > 60
    assert "simulated-2: Succeeded" in done.stdout


def test_wrong_wishes_are_answered_with_a_sentence(tmp_path: Path) -> None:
    for arguments, said in (
        (("--profile", "perfect"), "is not a profile"),
        (("--devices", "0"), "is not between 1 and"),
        (("--hub", "https://127.0.0.1:1"), "a join token is needed"),
        (("--hub", "https://127.0.0.1:1", "--token", "nonsense"), "is not a join token"),
        (("--hub", "https://127.0.0.1:1", "--token", f"skj1.a.b.{'0' * 64}"), "cannot be reached"),
    ):
        done = subprocess.run(
            [*SKERRY, "sim", "--state-dir", str(tmp_path / "sim"), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_servers_that_die_soon_after_they_answered_stop_a_rollout(tmp_path: Path) -> None:
    done, census = simulate(tmp_path, "--devices", "200", "--profile", "crash-loops")
    assert done.returncode == 1
    assert "simulated-1: RolledBack" in done.stdout
    assert "health" in done.stdout
    assert census["running"] == {}
