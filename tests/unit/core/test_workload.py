"""The workload's state machine: every way through it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.workload_world import (
    DISAGREES,
    MEASURED,
    OBSERVED,
    SHADOWED,
    drive,
    running,
    tried,
    wish,
)

from skerry.api.kinds.device import Observation, ShadowReport
from skerry.core import candidate, current, journal, slots, workload
from skerry.core.journal import (
    Endpoint,
    Exited,
    Faulted,
    Fetch,
    Fetched,
    Laid,
    Launched,
    Moment,
    Observed,
    Probed,
    Ready,
    Resumed,
    Serve,
    Shadowed,
    State,
    Switch,
    Switched,
    Tidied,
    Tidy,
    Unwanted,
    Wanted,
)
from skerry.core.messages import WorkloadDesired


def offline(serial: int) -> Faulted:
    return Faulted(serial=serial, component="the registry", element="blob", cause="no route", hint="wait", final=False)


def test_tables_name_existing_rules() -> None:
    named = {*workload.WISHES.values(), *workload.INSTALLING.values(), *workload.SERVING.values()}
    assert named == set(workload._RULES)


def test_a_fetch_without_network_is_tried_for_ever_ever_slower() -> None:
    state, actions = drive(running(), Wanted(wish("v2")))
    ceilings = []
    for _ in range(40):
        state, actions = drive(state, offline(2))
        assert state.phase == "Fetching"
        [fetch] = actions
        assert isinstance(fetch, Fetch)
        ceilings.append(fetch.delay_ceiling)
    assert ceilings == sorted(ceilings)
    assert ceilings[-1] == candidate.FETCH_CEILING_SECONDS
    assert state.message == 'While Fetching, the registry failed for "blob": no route; wait; trying again'
    assert workload.report(state).running is not None


def test_the_sentence_of_a_failure_is_kept_and_the_old_version_named() -> None:
    state, _ = drive(
        running(),
        Wanted(wish("v2")),
        Faulted(serial=2, component="the registry", element="blob", cause="digest mismatch", hint="push it again"),
        Tidied(),
    )
    status = workload.report(state)
    assert status.phase == "Running"
    assert (status.rollout, status.running and status.running.rollout) == ("digits-2", "digits-1")
    assert status.message == 'While Fetching, the registry failed for "blob": digest mismatch; push it again'
    again, actions = drive(state, Wanted(wish("v2")))
    assert (again, actions) == (state, []), "what failed for good is not tried again by itself"
    back, _ = drive(state, Wanted(wish("v1")))
    assert workload.report(back).message == ""
    assert workload.report(back).measurement == MEASURED


def test_a_new_rollout_of_the_same_content_installs_nothing() -> None:
    state, actions = drive(running(), Wanted(wish("v1", rollout="digits-9")))
    assert state.phase == "Running"
    assert [type(a) for a in actions] == [Tidy]
    status = workload.report(state)
    assert status.running is not None
    assert status.running.rollout == "digits-9"
    assert (status.measurement, status.install_seconds, status.fetched_bytes) == (MEASURED, 0.0, 0)


def test_a_wish_that_supersedes_one_being_installed_drops_it_and_its_late_events() -> None:
    state, _ = drive(running(), Wanted(wish("v2")), Fetched(serial=2, network_bytes=5), Laid(serial=2))
    state, actions = drive(state, Wanted(wish("v3")))
    tidy, fetch = actions
    assert isinstance(tidy, Tidy)
    assert (set(tidy.running), set(tidy.files)) == ({1}, {1, 3})
    assert isinstance(fetch, Fetch)
    assert fetch.slot.desired.version == "v3"
    for late in (Launched(serial=2, port=9), Ready(serial=2), Exited(serial=2, cause="x", uptime_seconds=1)):
        assert drive(state, late) == (state, [])


def test_a_crash_loop_falls_back_to_the_previous_version() -> None:
    state, _ = drive(
        running(),
        Wanted(wish("v2")),
        Fetched(serial=2, network_bytes=5),
        Laid(serial=2),
        Launched(serial=2, port=4002),
        Ready(serial=2),
        Probed(serial=2, measurement=None),
        Switched(serial=2, endpoint=4000),
        Tidied(),
    )
    for crash in range(1, current.MAX_CRASHES):
        state, [serve] = drive(state, Exited(serial=2, cause="it ended by signal 11", uptime_seconds=1))
        assert isinstance(serve, Serve)
        assert (state.phase, state.restarts) == ("Starting", crash)
        assert workload.report(state).running is None
        state, _ = drive(state, Launched(serial=2, port=4002), Ready(serial=2))
        assert state.phase == "Running"
    state, actions = drive(state, Exited(serial=2, cause="it ended by signal 11", uptime_seconds=1))
    assert state.phase == "RollingBack"
    assert [type(a) for a in actions] == [Tidy, Serve]
    state, _ = drive(state, Tidied(), Launched(serial=1, port=4001), Ready(serial=1))
    status = workload.report(state)
    assert (status.phase, status.rollout) == ("Running", "digits-2")
    assert status.running is not None
    assert status.running.rollout == "digits-1"
    assert "signal 11" in status.message


def test_a_crash_loop_with_nothing_to_fall_back_to_fails_and_still_tries() -> None:
    state = running()
    for _ in range(current.MAX_CRASHES + 3):
        state, [serve] = drive(state, Exited(serial=1, cause="it ended", uptime_seconds=1))
        assert isinstance(serve, Serve)
    assert state.phase == "Failed"
    assert "it ended" in workload.report(state).message
    state, _ = drive(state, Launched(serial=1, port=1), Ready(serial=1))
    assert state.phase == "Running"


def test_a_server_that_settled_has_a_clean_record() -> None:
    state = running()
    for _ in range(3 * current.MAX_CRASHES):
        state, _ = drive(state, Exited(serial=1, cause="it ended", uptime_seconds=current.SETTLED_SECONDS))
        assert state.crashes == 1
    assert state.restarts == 3 * current.MAX_CRASHES


def test_the_current_server_is_restarted_while_a_candidate_is_being_fetched() -> None:
    state, _ = drive(running(), Wanted(wish("v2")))
    state, [serve] = drive(state, Exited(serial=1, cause="it ended", uptime_seconds=1))
    assert isinstance(serve, Serve)
    assert (state.phase, serve.slot.serial) == ("Fetching", 1)
    state, _ = drive(state, Launched(serial=1, port=4009), Ready(serial=1))
    status = workload.report(state)
    assert status.phase == "Fetching"
    assert status.running is not None
    assert status.running.port == 4000, "applications find it where it was"
    assert state.current is not None
    assert state.current.port == 4009


def test_damaged_files_are_fetched_again() -> None:
    bad = Faulted(serial=1, component="the disk", element="model", cause="digest", final=False, damaged=True)
    state, actions = drive(running(), bad)
    assert state.phase == "Fetching"
    assert state.current is None
    assert [type(a) for a in actions] == [Tidy, Fetch]
    assert state.candidate is not None
    assert state.candidate.desired == wish("v1")


def test_damaged_files_of_the_previous_version_too_are_no_loop() -> None:
    state, _ = drive(
        running(),
        Wanted(wish("v2")),
        Fetched(serial=2, network_bytes=5),
        Laid(serial=2),
        Launched(serial=2, port=4002),
        Ready(serial=2),
        Probed(serial=2, measurement=None),
        Switched(serial=2, endpoint=30000),
        Tidied(),
    )
    bad = Faulted(serial=2, component="the disk", element="model", cause="digest", final=False, damaged=True)
    state, actions = drive(state, bad)
    assert [type(a) for a in actions] == [Tidy, Serve, Fetch]
    assert state.current is not None
    assert (state.current.serial, state.previous) == (1, None)
    ceilings = []
    for _ in range(3):
        state, [again] = drive(state, replace(bad, serial=1))
        assert isinstance(again, Serve)
        ceilings.append(again.delay_ceiling)
    assert ceilings == [0.5, 1.0, 2.0]
    assert state.phase == "Fetching"


def test_an_agent_that_dies_with_every_start_gives_the_candidate_up() -> None:
    state, _ = drive(running(), Wanted(wish("v2")), Fetched(serial=2, network_bytes=5), Laid(serial=2))
    state, _ = drive(state, Launched(serial=2, port=4002))
    for _ in range(workload.MAX_INTERRUPTIONS - 1):
        state, _ = drive(state, Resumed())
        assert state.phase == "Starting"
    state, _ = drive(state, Resumed())
    assert state.phase == "RollingBack"
    assert "interrupted" in state.failure
    state, _ = drive(state, Tidied(), Launched(serial=1, port=4001), Ready(serial=1))
    assert state.phase == "Running"


def test_the_same_content_on_a_server_that_is_down_has_not_served_for_the_new_rollout() -> None:
    down, _ = drive(running(), Exited(serial=1, cause="it ended", uptime_seconds=1))
    assert workload.report(down).served
    state, _ = drive(down, Wanted(wish("v1", rollout="digits-9")))
    assert (state.phase, workload.report(state).served) == ("Starting", False)
    state, _ = drive(state, Launched(serial=1, port=4001), Ready(serial=1))
    assert workload.report(state).served


def test_install_seconds_need_the_same_boot() -> None:
    state, _ = drive(State(name="digits"), Wanted(wish("v1")), at=100.0)
    events: list[journal.Event] = [
        Fetched(serial=1, network_bytes=10),
        Laid(serial=1),
        Launched(serial=1, port=4001),
        Ready(serial=1),
        Probed(serial=1, measurement=None),
        Switched(serial=1, endpoint=4000),
        Tidied(),
    ]
    same, _ = drive(state, *events, at=102.5)
    assert same.install_seconds == 2.5
    after = state
    for event in events:
        stepped, _ = workload.step(
            after, event, Moment(wall=datetime(2026, 1, 1, tzinfo=UTC), monotonic=3.0, boot="another")
        )
        assert stepped is not None
        after = stepped
    assert after.phase == "Running"
    assert after.install_seconds is None


EVENTS = st.one_of(
    st.builds(Wanted, st.sampled_from([wish("v1"), wish("v2"), wish("v2", port=8080), tried("v1"), tried("v3")])),
    st.just(Unwanted()),
    st.just(Resumed()),
    st.just(Tidied()),
    st.builds(Fetched, serial=st.integers(1, 4), network_bytes=st.integers(0, 9)),
    st.builds(Laid, serial=st.integers(1, 4)),
    st.builds(Launched, serial=st.integers(1, 4), port=st.integers(1, 9)),
    st.builds(Ready, serial=st.integers(1, 4)),
    st.builds(Probed, serial=st.integers(1, 4), measurement=st.sampled_from([None, MEASURED])),
    st.builds(Switched, serial=st.integers(1, 4), endpoint=st.integers(1, 9)),
    st.builds(
        Faulted,
        serial=st.integers(1, 4),
        component=st.just("c"),
        element=st.just("e"),
        cause=st.text(max_size=3000),
        final=st.booleans(),
        damaged=st.booleans(),
    ),
    st.builds(Exited, serial=st.integers(1, 4), cause=st.just("x"), uptime_seconds=st.sampled_from([0.0, 100.0])),
    st.builds(Shadowed, serial=st.integers(1, 4), report=st.sampled_from([SHADOWED, DISAGREES, ShadowReport()])),
    st.builds(Observed, serial=st.integers(1, 4), observation=st.just(OBSERVED)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_no_order_of_events_breaks_it(events: list[journal.Event]) -> None:
    state = State(name="digits")
    for event in events:
        after, actions = workload.step(
            state, event, Moment(wall=datetime(2026, 1, 1, tzinfo=UTC), monotonic=1, boot="b")
        )
        if after is None:
            state = State(name="digits")
            continue
        named = {slot.serial for slot in after.slots}
        for action in actions:
            assert action.files == named if isinstance(action, Tidy) else action.slot.serial in named
        assert msgspec.json.decode(msgspec.json.encode(after), type=State) == after
        status = workload.report(after)
        assert len(status.message) <= slots.MAX_MESSAGE
        if after.phase == "Running":
            assert status.running is not None
        state = after


def test_the_endpoint_stays_where_it_is_unless_another_is_asked_for() -> None:
    measured = [Fetched(serial=2, network_bytes=5), Laid(serial=2), Launched(serial=2, port=4002), Ready(serial=2)]
    for wanted, endpoint in (
        (wish("v2"), Endpoint(port=4000, strict=False)),
        (wish("v2", port=8080), Endpoint(port=8080, strict=True)),
    ):
        state, [switch] = drive(running(), Wanted(wanted), *measured, Probed(serial=2, measurement=MEASURED))
        assert isinstance(switch, Switch)
        assert switch.endpoint == endpoint
        serving = workload.report(state).running
        assert serving is not None
        assert (serving.model_version, serving.port) == ("digits-v1", 4000), "until the new one accepts there"
        taken = Faulted(serial=2, component="the endpoint", element="8080", cause="is taken")
        refused, [tidy] = drive(state, taken)
        assert (refused.phase, tidy) == ("RollingBack", Tidy(running=frozenset({1}), files=frozenset({1})))
        promoted, [tidy] = drive(state, Switched(serial=2, endpoint=endpoint.port))
        assert tidy == Tidy(running=frozenset({2}), files=frozenset({1, 2}))
        assert workload.report(promoted).phase == "Probing", "until the old one accepts nothing more"
        promoted, _ = drive(promoted, Tidied())
        assert workload.report(promoted).phase == "Running"
        serving = workload.report(promoted).running
        assert serving is not None
        assert (serving.model_version, serving.port) == ("digits-v2", endpoint.port)
        _, [_, serve] = drive(promoted, Resumed())
        assert isinstance(serve, Serve)
        assert serve.endpoint == endpoint


def test_only_what_names_other_slots_must_be_durable() -> None:
    before = running()
    down, _ = drive(before, Exited(serial=1, cause="it ended", uptime_seconds=1))
    resumed, _ = drive(before, Resumed())
    moved, _ = drive(resumed, Launched(serial=1, port=4010), Ready(serial=1))
    assert not any(workload.must_be_durable(before, after) for after in (before, down, resumed, moved))
    wanted, _ = drive(before, Wanted(wish("v2")))
    fetched, _ = drive(wanted, Fetched(serial=2, network_bytes=1))
    assert workload.must_be_durable(before, wanted)
    assert not workload.must_be_durable(wanted, fetched)
    failed, _ = drive(wanted, Faulted(serial=2, component="the disk", element="e", cause="full"))
    assert not workload.must_be_durable(wanted, failed), "or nobody could be told that the disk is full"
    probing, _ = drive(fetched, Laid(serial=2), Launched(serial=2, port=4002), Ready(serial=2))
    switching, _ = drive(probing, Probed(serial=2, measurement=None))
    assert workload.must_be_durable(probing, switching)
    promoted, _ = drive(switching, Switched(serial=2, endpoint=4000))
    assert workload.must_be_durable(switching, promoted)
    assert workload.must_be_durable(before, drive(before, Unwanted())[0])


# --- deployments that are made again ------------------------------------------------------------------------------


def of(uid: str, desired: WorkloadDesired) -> WorkloadDesired:
    return msgspec.structs.replace(desired, deployment_uid=uid)


def watched(uid: str) -> State:
    """A version that was tried in the shadow and watched, for the deployment of that uid."""
    state = msgspec.structs.replace(running("v1"), observation=OBSERVED, shadow=SHADOWED)
    assert state.current is not None
    desired = of(uid, tried("v1"))
    return msgspec.structs.replace(
        state, desired=desired, current=msgspec.structs.replace(state.current, desired=desired)
    )


def test_what_was_seen_for_an_earlier_deployment_of_that_name_is_not_told_of_the_new_one() -> None:
    assert workload.report(watched("a")).observation == OBSERVED
    after, actions = drive(watched("a"), Wanted(of("b", tried("v1"))))
    said = workload.report(after)
    assert (said.deployment_uid, said.phase, said.rollout) == ("b", "Running", "digits-1")
    assert said.running is not None
    assert said.running.deployment_uid == "b", "equal content serves on"
    assert (said.observation, said.shadow) == (Observation(), ShadowReport())
    assert any(isinstance(action, journal.Observe) for action in actions), "it is watched again"


def test_another_version_of_a_deployment_made_again_goes_through_its_shadow() -> None:
    after, _ = drive(
        watched("a"),
        Wanted(of("b", tried("v2", rollout="digits-1"))),
        Fetched(serial=2, network_bytes=10),
        Laid(serial=2),
        Launched(serial=2, port=4002),
        Ready(serial=2),
    )
    after, actions = drive(after, Probed(serial=2, measurement=MEASURED))
    assert after.phase == "Shadowing"
    assert any(isinstance(action, journal.ShadowBeside) for action in actions)
    said = workload.report(after)
    assert said.running is not None
    assert (said.deployment_uid, said.running.deployment_uid) == ("b", "a")


def test_a_journal_of_an_older_agent_keeps_what_was_seen() -> None:
    plain = msgspec.json.decode(msgspec.json.encode(watched("")))
    assert "deploymentUid" not in plain["desired"]
    kept = msgspec.convert(plain, State)
    after, _ = drive(kept, Wanted(of("b", tried("v1"))))
    assert (after.observation, after.shadow is not None) == (OBSERVED, True)
    assert workload.report(after).deployment_uid == "b"
