"""The device's protocol decisions: what is accepted, what is refused, what is told."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api.errors import ForbiddenError, IntegrityError, InvalidError, SkerryError, UnsupportedError
from skerry.api.kinds.device import DeviceFacts, Hardware, WorkloadStatus
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Requirements
from skerry.core import messages, trust
from skerry.core.session import MAX_REMEMBERED_COMMANDS, Session

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
KEY = Ed25519PrivateKey.generate()
STRANGER = Ed25519PrivateKey.generate()


def session(**fields: object) -> Session:
    return Session(uid="d1", boot_id="boot", keys={"k1": KEY.public_key()}, **fields)  # type: ignore[arg-type]


def workload(name: str = "digits", rollout: str = "digits-1") -> messages.WorkloadDesired:
    return messages.WorkloadDesired(
        name=name,
        rollout=rollout,
        revision=1,
        model="digits",
        model_version="digits-v1",
        version="v1",
        variant="onnx-fp32",
        format="onnx",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        signature=ModelSignature(inputs=[], outputs=[]),
        repository="default/digits",
        blob=Blob(digest="sha256:" + "0" * 64, size=1),
    )


def desired(
    version: int, *workloads: messages.WorkloadDesired, uid: str = "d1", issued: datetime = NOW
) -> messages.DesiredState:
    return messages.DesiredState(uid=uid, manifest_version=version, issued_at=issued, workloads=list(workloads))


def signed(message: messages.DesiredState | messages.Command, key: Ed25519PrivateKey = KEY, keyid: str = "k1") -> bytes:
    return messages.encode(trust.sign(message, key, keyid))


def take(one: Session, message: messages.DesiredState) -> messages.DesiredState | None:
    offer = one.offer(signed(message))
    return None if offer is None else one.accept(offer)


def reported(one: Session, at: float = 0.0) -> messages.Reported | None:
    return one.poll(now=NOW, monotonic=at)


def command(identity: str, *, expires: datetime = NOW + timedelta(seconds=30)) -> messages.Command:
    return messages.Command(uid="d1", id=identity, expires_at=expires, verb="logs", workload="digits")


def test_a_newer_state_is_offered_and_counts_only_once_accepted() -> None:
    one = session()
    offer = one.offer(signed(desired(3, workload())))
    assert offer is not None
    assert one.floor == 0, "an offer that was not made durable binds nobody"
    assert one.accept(offer).workloads == [workload()]
    assert one.floor == 3
    assert one.offer(signed(desired(3, workload(), issued=NOW + timedelta(hours=1)))) is None


def test_an_older_state_is_refused_and_the_hub_told_why() -> None:
    one = session(floor=7)
    one.connected()
    reported(one)
    with pytest.raises(ForbiddenError, match="older than 7"):
        one.offer(signed(desired(6)))
    report = reported(one)
    assert report is not None
    assert "version 6 is older than 7" in report.refused
    assert report.observed_manifest_version == 7
    take(one, desired(8))
    after = reported(one)
    assert after is not None
    assert (after.refused, after.observed_manifest_version) == ("", 8)


def test_the_same_version_with_other_content_is_refused() -> None:
    one = session()
    take(one, desired(3, workload()))
    with pytest.raises(ForbiddenError, match="other content"):
        one.offer(signed(desired(3, workload(rollout="evil"))))
    assert one.accepted is not None
    assert one.accepted.workloads == [workload()]


def test_the_hub_is_told_which_version_is_contested() -> None:
    one = session()
    one.connected()
    take(one, desired(3, workload()))

    def contested() -> int:
        report = reported(one)
        assert report is not None
        return report.refused_manifest_version

    assert contested() == 0
    with pytest.raises(ForbiddenError) as older:
        one.offer(signed(desired(2)))
    one.refuse(older.value)
    assert contested() == 2
    with pytest.raises(ForbiddenError):
        one.offer(signed(desired(3, workload(rollout="other"))))
    assert contested() == 3
    assert one.offer(signed(desired(3, workload()))) is None
    assert contested() == 0, "what the hub says is what was accepted"
    with pytest.raises(ForbiddenError):
        one.offer(signed(desired(4, workload("a"), workload("a"))))
    assert contested() == 0, "it is refused for another reason"
    with pytest.raises(ForbiddenError):
        one.offer(signed(desired(1)))
    take(one, desired(5))
    assert contested() == 0


def test_a_version_whose_content_was_lost_is_taken_again() -> None:
    one = session(floor=3)
    assert take(one, desired(3, workload())) is not None


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (signed(desired(9), STRANGER), IntegrityError),
        (signed(desired(9), STRANGER, "other"), IntegrityError),
        (signed(desired(9, uid="d2")), ForbiddenError),
        (signed(command("c")), InvalidError),
        (signed(desired(9, workload("a"), workload("a"))), ForbiddenError),
        (signed(msgspec.structs.replace(desired(9), v=2)), UnsupportedError),
        (b"", InvalidError),
        (b"\xff" * 10, InvalidError),
        (b"[" * 100_000, InvalidError),
    ],
)
def test_what_is_not_ours_is_refused_and_reported(raw: bytes, error: type[SkerryError]) -> None:
    one = session(floor=1)
    one.connected()
    with pytest.raises(error) as caught:
        one.offer(raw)
    assert one.floor == 1
    report = reported(one)
    assert report is not None
    assert report.refused == caught.value.sentence[:2000]


def test_a_changed_byte_is_refused() -> None:
    envelope = trust.sign(desired(9), KEY, "k1")
    tampered = envelope.payload.replace(b'"manifestVersion":9', b'"manifestVersion":8')
    assert tampered != envelope.payload
    with pytest.raises(IntegrityError):
        session().offer(messages.encode(msgspec.structs.replace(envelope, payload=tampered)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_only_what_is_promised(raw: bytes) -> None:
    one = session()
    for receive in (one.offer, lambda raw: one.receive_command(raw, NOW)):
        with pytest.raises((InvalidError, IntegrityError, ForbiddenError, UnsupportedError)):
            receive(raw)
    assert one.floor == 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_signed_nonsense_raises_only_what_is_promised(payload: bytes) -> None:
    """Even a hub gone mad, with the right key, cannot break a device."""
    one = session()
    for kind in (trust.DESIRED_TYPE, trust.COMMAND_TYPE):
        sig = KEY.sign(trust.pre_authentication_encoding(kind, payload))
        envelope = messages.Envelope(
            payload_type=kind, payload=payload, signatures=[messages.Signature(keyid="k1", sig=sig)]
        )
        raw = messages.encode(envelope)
        receive = one.offer if kind == trust.DESIRED_TYPE else lambda raw: one.receive_command(raw, NOW)
        with pytest.raises((InvalidError, ForbiddenError, UnsupportedError)):
            receive(raw)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["a", "b"])), max_size=20))
def test_accepted_versions_only_rise(offers: list[tuple[int, str]]) -> None:
    one, taken = session(), []
    for version, rollout in offers:
        with contextlib.suppress(ForbiddenError):
            accepted = take(one, desired(version, workload(rollout=rollout)))
            if accepted is not None:
                taken.append(accepted.manifest_version)
    assert taken == sorted(set(taken))
    assert one.floor == max(taken, default=0)


def test_reports_start_with_the_facts_and_come_on_change_and_as_heartbeat() -> None:
    one = session(heartbeat_seconds=60.0)
    one.update(facts=DeviceFacts(hostname="till"), workloads=[])
    assert reported(one) is None, "nobody is connected"
    one.connected()
    first = reported(one)
    assert first is not None
    assert (first.seq, first.facts) == (1, DeviceFacts(hostname="till"))
    assert reported(one, 59.9) is None
    beat = reported(one, 60.0)
    assert beat is not None
    assert (beat.seq, beat.facts) == (2, None)
    assert one.seconds_to_heartbeat(70.0) == 50.0
    for phase in ("Fetching", "Verified", "Running"):
        one.update(workloads=[WorkloadStatus(name="digits", rollout="r", revision=1, variant="v", phase=phase)])
    third = reported(one, 61.0)
    assert third is not None
    assert [w.phase for w in third.workloads] == ["Running"], "changes that piled up go together"
    assert reported(one, 61.0) is None
    one.update(workloads=third.workloads)
    assert reported(one, 61.0) is None, "no change, no report"


def test_a_new_connection_is_told_everything_again() -> None:
    one = session()
    one.connected()
    one.update(facts=DeviceFacts(hostname="till"))
    assert reported(one) is not None
    one.disconnected()
    one.update(facts=DeviceFacts(hostname="till", hardware=Hardware(cores=4)))
    assert reported(one) is None
    one.connected()
    again = reported(one)
    assert again is not None
    assert again.facts is not None
    assert (again.seq, again.facts.hardware.cores) == (2, 4)


def test_free_space_alone_is_no_news() -> None:
    one = session()
    one.connected()
    one.update(facts=DeviceFacts(hardware=Hardware(cores=4, storage_free_bytes=5)))
    reported(one)
    one.update(facts=DeviceFacts(hardware=Hardware(cores=4, storage_free_bytes=4)))
    assert reported(one) is None
    one.update(facts=DeviceFacts(hardware=Hardware(cores=2, storage_free_bytes=3)))
    report = reported(one)
    assert report is not None
    assert report.facts is not None
    assert report.facts.hardware.storage_free_bytes == 3


def test_a_command_is_taken_once() -> None:
    one = session()
    assert one.receive_command(signed(command("c1")), NOW) is not None
    assert one.receive_command(signed(command("c1")), NOW) is None
    assert one.receive_command(signed(command("c2")), NOW) is not None
    with pytest.raises(ForbiddenError, match="expired"):
        one.receive_command(signed(command("c1")), NOW + timedelta(seconds=31))


def test_a_command_that_was_taken_before_a_restart_is_not_taken_again() -> None:
    one = session()
    for id_ in ("c1", "c2"):
        assert one.receive_command(signed(command(id_)), NOW) is not None
    taken = one.taken_commands(NOW)
    assert list(taken) == ["c1", "c2"]
    heir = session(commands=taken)
    assert heir.receive_command(signed(command("c1")), NOW) is None
    assert heir.receive_command(signed(command("c3")), NOW) is not None
    assert heir.taken_commands(NOW + timedelta(minutes=1)) == {}, "those that expired are refused anyway"
    many = {str(number): NOW + timedelta(seconds=30) for number in range(2 * MAX_REMEMBERED_COMMANDS)}
    assert list(session(commands=many).taken_commands(NOW)) == list(many)[MAX_REMEMBERED_COMMANDS:]


@pytest.mark.parametrize("expires", [NOW - timedelta(seconds=1), NOW + timedelta(days=1), datetime(2026, 11, 23, 12)])  # noqa: DTZ001
def test_a_command_with_an_unfit_expiry_is_refused(expires: datetime) -> None:
    with pytest.raises(ForbiddenError):
        session().receive_command(signed(command("c", expires=expires)), NOW)


def test_remembered_commands_are_bounded() -> None:
    one = session()
    for number in range(MAX_REMEMBERED_COMMANDS):
        one.receive_command(signed(command(str(number))), NOW)
    with pytest.raises(ForbiddenError, match="too many"):
        one.receive_command(signed(command("more")), NOW)
    later = NOW + timedelta(minutes=1)
    assert one.receive_command(signed(command("more", expires=later)), later) is not None
