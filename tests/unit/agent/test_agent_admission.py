"""Admission: the owner's rules, the temperature, the memory; in that order, each with its kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.agent import settings
from skerry.agent.admission import Admission, RefusedError, available_memory, matches, temperatures
from skerry.agent.settings import PolicySettings, RefusalRule
from skerry.api.errors import InvalidError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Requirements
from skerry.core.messages import WorkloadDesired

MIB = 1024 * 1024
WANTED = WorkloadDesired(
    name="door",
    rollout="door-1",
    revision=1,
    model="face",
    model_version="face-v1",
    version="v1",
    variant="onnx-int8",
    format="onnx",
    needs=Requirements(engine="onnxruntime", precision="int8", memory_bytes=60 * MIB),
    signature=ModelSignature(inputs=[], outputs=[]),
    repository="default/face",
    blob=Blob(digest="sha256:" + "a" * 64, size=1),
)


def machine(root: Path, *, celsius: str = "45000", available: int = 1024) -> Path:
    zone = root / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text(f"{celsius}\n")
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable: {available * 1024} kB\n")
    return root


def refusal(policy: PolicySettings, root: Path, *, memory: int = 100, taken: int = 0) -> RefusedError | None:
    door = Admission(policy, lambda: memory * MIB, lambda _: taken * MIB, root=root)
    try:
        door.check(WANTED)
    except RefusedError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        (RefusalRule(), True),
        (RefusalRule(model="face"), True),
        (RefusalRule(model="face-v*"), True),
        (RefusalRule(model="fac"), False),
        (RefusalRule(model="FACE"), False),
        (RefusalRule(variant="*-int8"), True),
        (RefusalRule(variant="*-fp32"), False),
        (RefusalRule(model="face", workload="window"), False),
        (RefusalRule(workload="d??r"), True),
    ],
)
def test_all_patterns_of_a_rule_must_match(rule: RefusalRule, holds: bool) -> None:
    assert matches(rule, WANTED) is holds


def test_the_owner_comes_first_and_is_quoted(tmp_path: Path) -> None:
    policy = PolicySettings(refuse=[RefusalRule(model="face", reason="no faces here")], max_temperature=1)
    found = refusal(policy, machine(tmp_path), memory=1)
    assert found is not None
    assert (found.refusal, found.cause) == ("Policy", "its owner refuses it: no faces here")


def test_too_hot_is_refused_only_where_a_limit_is_set(tmp_path: Path) -> None:
    root = machine(tmp_path, celsius="91500")
    assert refusal(PolicySettings(), root) is None
    assert refusal(PolicySettings(max_temperature=91.5), root) is None
    found = refusal(PolicySettings(max_temperature=85), root)
    assert found is not None
    assert (found.refusal, found.cause) == ("Thermal", "the device has 91.5 °C, above 85.0 °C")


def test_memory_is_what_the_others_leave_and_what_is_there_just_now(tmp_path: Path) -> None:
    root = machine(tmp_path, available=59)
    found = refusal(PolicySettings(), root, taken=41)
    assert found is not None
    assert (found.refusal, found.cause) == ("Memory", "it needs 60.0 MiB, and 59.0 MiB of 100.0 MiB are left for it")
    found = refusal(PolicySettings(), root, taken=40)
    assert found is not None
    assert found.cause == "it needs 60.0 MiB, and 59.0 MiB are available just now"


def test_a_machine_that_tells_nothing_refuses_nothing(tmp_path: Path) -> None:
    assert list(temperatures(tmp_path)) == []
    assert available_memory(tmp_path) is None
    assert refusal(PolicySettings(max_temperature=1), tmp_path, memory=0) is None
    (tmp_path / "sys/class/thermal/thermal_zone0").mkdir(parents=True)
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").write_text("hot")
    assert list(temperatures(tmp_path)) == []


def test_the_owners_file(tmp_path: Path) -> None:
    file = tmp_path / settings.FILE
    file.write_text('[[policy.refuse]]\nmodel = "x*"\nreason = "mine"\n[policy]\nmax_temperature = 80\n')
    found = settings.load(file).policy
    assert found == PolicySettings(refuse=[RefusalRule(model="x*", reason="mine")], max_temperature=80)
    file.write_text('[[policy.refuse]]\nmodle = "x*"\n')
    with pytest.raises(InvalidError, match="unknown key"):
        settings.load(file)
