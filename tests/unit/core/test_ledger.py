"""The ledger's sums are those over the samples that are in it."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.roster_world import make_report

from skerry.api.kinds.gates import (
    AccuracyGate,
    AgreementGate,
    ErrorRateGate,
    Gates,
    HealthGate,
    LatencyGate,
    MemoryGate,
    ShadowGate,
)
from skerry.core import gates
from skerry.core.gates import Samples
from skerry.core.ledger import Extract, Ledger
from skerry.core.readings import Sample

ALL = Gates(
    health=HealthGate(),
    accuracy=AccuracyGate(min=0.5, min_samples=10),
    agreement=AgreementGate(min=0.5, max_difference=1.0),
    latency_p95=LatencyGate(max="5ms", max_ratio=1.5),
    peak_memory=MemoryGate(max="100"),
    error_rate=ErrorRateGate(max=0.1),
    shadow_agreement=ShadowGate(min=0.5),
)


def make_sample(random: Random, device: str) -> Sample:
    report = make_report(random, "digits-2")
    return Sample(
        device=device,
        state=random.choice(["Waiting", "Running", "Running", "Failed"]),
        measurement=report.measurement,
        observation=report.observation,
        shadow=report.shadow,
        why=random.choice(["", "it died"]),
        silent=random.random() < 0.3,
        excused=random.random() < 0.3,
    )


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), changes=st.integers(0, 60))
def test_a_ledger_says_what_its_samples_say(seed: int, changes: int) -> None:
    random, ledger = Random(seed), Ledger(ALL)
    known: dict[str, Sample] = {}
    for _ in range(changes):
        device = f"d{random.randrange(20)}"
        if device in known:
            ledger.remove(known.pop(device))
        if random.random() < 0.7:
            known[device] = make_sample(random, device)
            ledger.add(known[device])
    compare(ledger.said(settled=False), Samples(known.values()))
    compare(ledger.said(settled=True), Samples(s for s in known.values() if s.state != "Waiting"))


def compare(found: Extract, right: Samples) -> None:
    assert (found.total, found.running) == (right.total, right.running)
    for silent in (True, False, None):
        assert found.failed(silent=silent) == right.failed(silent=silent)
    for bound in gates.bounds_of(ALL):
        assert found.answers(bound) == right.answers(bound)
    for missing in ("fail", "ignore", "wait"):
        for overdue in (False, True):
            assert found.watched(missing, overdue=overdue) == right.watched(missing, overdue=overdue)
