"""A signed policy grows old at the hub: its condition says so in time, and then nothing new is rolled out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from tests import trusting
from tests.integration.controllers.bench import NS, Bench, phase, reason, running
from tests.trusting import Owners

from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.api.kinds.trust_policy import TrustPolicy, TrustPolicySpec, TrustPolicyStatus, TrustRule, TrustVerdict
from skerry.api.meta import Condition, ObjectMeta, find_condition
from skerry.core import anchor
from skerry.hub.controllers import trust

DAY = timedelta(days=1)
RULE = TrustRule(models=["*"], keys=[trusting.pem(trusting.signer())])


@asynccontextmanager
async def judging(bench: Bench) -> AsyncIterator[None]:
    task = asyncio.create_task(trust.run(bench.context))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def policy(owners: Owners, **terms: Any) -> TrustPolicy:
    sealed = owners.policy(RULE, **terms)
    signed = anchor.read_policy(sealed).terms
    spec = TrustPolicySpec(
        **{name: getattr(signed, name) for name in signed.__struct_fields__},
        envelope=anchor.write(sealed),
        roots=[anchor.write(one) for one in owners.roots],
    )
    return TrustPolicy(metadata=ObjectMeta(name="default", namespace=NS), spec=spec)


def says(word: str, text: str) -> Any:
    def holds(item: TrustPolicy) -> bool:
        found = find_condition(item.status.conditions, "Accepted")
        return found is not None and found.reason == word and text in found.message

    return holds


@pytest.mark.parametrize(
    ("issued", "expires", "word", "text"),
    [
        (-10 * DAY, 80 * DAY, "Signed", "is signed by the keys of trust anchor 1"),
        (-60 * DAY, 30 * DAY, "ExpiresSoon", "trust policy 1 expires at"),
        (-200 * DAY, -110 * DAY, "Expired", "trust policy 1 expired at"),
        (-1 * DAY, timedelta(seconds=1), "Expired", "trust policy 1 expired at"),  # while it is looked at
    ],
)
async def test_its_condition_says_how_old_it_is(
    bench: Bench, issued: timedelta, expires: timedelta, word: str, text: str
) -> None:
    now = datetime.now(UTC)
    made = policy(Owners(), issued_at=now + issued, expires_at=now + expires)
    assert trust.handed(made) is not None, "devices are told all the same: they say it, and follow the anchor"
    async with judging(bench):
        await bench.objects.create(made)
        found = await bench.until(TrustPolicy, "default", says(word, text))
    condition = find_condition(found.status.conditions, "Accepted")
    assert condition is not None
    assert condition.status == ("False" if word == "Expired" else "True")


async def test_an_anchor_that_expired_counts_too(bench: Bench) -> None:
    owners = Owners()
    now = datetime.now(UTC)
    owners.rotate(issued_at=now - 9 * DAY, expires_at=now - 8 * DAY)
    owned = policy(owners, issued_at=now - 9 * DAY, expires_at=now + 80 * DAY)
    async with judging(bench):
        await bench.objects.create(owned)
        await bench.until(TrustPolicy, "default", says("Expired", "trust anchor 2 expired at"))


async def test_what_an_expired_policy_covers_waits_until_it_is_signed_anew(bench: Bench) -> None:
    """The verdict on the model is written here by hand: that it is covered is not what this is about."""

    async def age(word: str, status: str) -> None:
        condition = Condition(
            type="Accepted",
            status=status,
            reason=word,
            message=f"it is {word}",
            last_transition_time=datetime.now(UTC),
            observed_generation=made.metadata.generation,
        )
        await bench.objects.update_status(
            TrustPolicy,
            NS,
            "default",
            lambda item: msgspec.structs.replace(item, status=TrustPolicyStatus(conditions=[condition])),
        )

    made = await bench.objects.create(policy(Owners()))
    await age("Expired", "False")
    async with running(bench):
        await bench.push("v1")
        await bench.until(ModelVersion, "v1", phase("Ready"))
        verdict = TrustVerdict(policy_uid=made.metadata.uid, generation=made.metadata.generation, covered=True)
        await bench.objects.update_status(
            ModelVersion,
            NS,
            "v1",
            lambda item: msgspec.structs.replace(item, status=msgspec.structs.replace(item.status, trust=verdict)),
        )
        await bench.add_device("till-0")
        await bench.apply(modelVersion="v1")
        held = await bench.until(ModelDeployment, "digits", reason("NotTrusted"))
        found = find_condition(held.status.conditions, "Progressing")
        assert found is not None
        assert found.message == "it is Expired"
        assert (await bench.objects.list(Rollout, NS)).items == []
        await age("Signed", "True")
        await bench.until(ModelDeployment, "digits", reason("Complete"))
