"""Two servers asked the same: agreement, differences, and what is said when the older one cannot be asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.unit.agent.test_agent_probes import INPUTS, OUTPUTS, SIGNATURE, binary, server

from skerry.agent import compare
from skerry.agent.compare import Side
from skerry.api.errors import InvalidError, UnavailableError
from skerry.api.kinds.device import Comparison
from skerry.kit.loopback import Answer, LoopbackClient


async def run(tmp_path: Path, new: list[Answer], old: list[Answer], *, max_seconds: float = 60.0) -> Comparison:
    golden = tmp_path / "golden.npz"
    np.savez(golden, **{"input.x": INPUTS, "output.y": OUTPUTS})
    async with (
        server(*new) as (ours, asked),
        server(*old) as (theirs, also_asked),
        LoopbackClient(ours, max_body_bytes=10_000, timeout_seconds=10) as client,
        LoopbackClient(theirs, max_body_bytes=10_000, timeout_seconds=10) as other,
    ):
        found = await compare.run(
            Side(client=client, model="m"),
            Side(client=other, model="m"),
            golden,
            signature=SIGNATURE,
            replaced="digits-v1",
            max_samples=100,
            max_seconds=max_seconds,
        )
        if found.samples:
            assert asked == also_asked, "both get the very same"
            assert len(asked) == found.samples + 1
        return found


async def test_the_same_answers_agree(tmp_path: Path) -> None:
    found = await run(tmp_path, [binary([3, 2, 1])], [binary([3, 2, 1])])
    assert (found.replaced, found.samples, found.agreement, found.max_abs_difference) == ("digits-v1", 4, 1.0, 0.0)
    assert found.latency_p95_ms is not None
    assert found.latency_p95_ms > 0


async def test_other_answers_do_not(tmp_path: Path) -> None:
    warm_up = binary([0, 0, 9])
    new = [warm_up, binary([3, 2, 1]), binary([3, 2, 1]), binary([3, 2, 1]), binary([3, 2, 1])]
    old = [binary([9, 0, 0]), binary([3, 2, 1]), binary([1, 2, 3]), binary([3.5, 2, 1]), binary([1, 3, 2])]
    found = await run(tmp_path, new, old)
    assert (found.samples, found.agreement, found.max_abs_difference) == (4, 0.5, 2.0)


async def test_outputs_of_another_form_agree_with_nothing(tmp_path: Path) -> None:
    found = await run(tmp_path, [binary([3, 2, 1])], [binary([3, 2])])
    assert (found.samples, found.agreement) == (4, 0.0)
    found = await run(tmp_path, [binary([3, 2, 1])], [binary([3, 2, 1], name="other")])
    assert (found.samples, found.agreement) == (4, 0.0)


async def test_an_older_version_that_takes_something_else_is_a_reason(tmp_path: Path) -> None:
    refuses = Answer(400, {}, b'{"error": "input x: shape [1, 2] does not fit"}')
    found = await run(tmp_path, [binary([3, 2, 1])], [refuses])
    assert (found.replaced, found.samples, found.agreement) == ("digits-v1", 0, None)
    assert "does not fit" in found.reason


async def test_an_older_version_that_breaks_off_is_a_reason(tmp_path: Path) -> None:
    found = await run(tmp_path, [binary([3, 2, 1])], [binary([3, 2, 1]), binary([3, 2, 1]), Answer(200, {}, b"no")])
    assert found.samples == 0
    assert "no inference response" in found.reason


@pytest.mark.parametrize("answer", [Answer(500, {}, b"{}"), Answer(200, {}, b"nonsense")])
async def test_the_new_version_has_to_answer(tmp_path: Path, answer: Answer) -> None:
    with pytest.raises((InvalidError, UnavailableError)):
        await run(tmp_path, [answer], [binary([3, 2, 1])])


async def test_time_that_is_up_leaves_it_at_what_was_asked(tmp_path: Path) -> None:
    assert (await run(tmp_path, [binary([3, 2, 1])], [binary([3, 2, 1])], max_seconds=0.0)).samples == 1
