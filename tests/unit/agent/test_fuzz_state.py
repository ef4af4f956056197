"""Files of the state directory, and lines on the local socket, that are not what they should be.

A disk that dies writes anything; whoever may open the socket says anything. An agent starts all the same, and what
cannot be read counts as lost, with the one error that is promised for it.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.test_fuzz_documents import AWKWARD, changed, cut
from tests.unit.core.test_trial import wish

from skerry.agent import identity, local
from skerry.agent.disk import AcceptedDesired, Disk
from skerry.agent.hold import Holds
from skerry.agent.local import Answer, LocalSocket, Request
from skerry.agent.settings import HoldSettings
from skerry.api.errors import InvalidError, TimedOutError, UnavailableError
from skerry.core.journal import Slot, State
from skerry.core.lease import Lease
from skerry.kit.clock import SystemClock

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOURNAL = msgspec.json.encode(
    State(name="digits", desired=wish("v1"), current=Slot(serial=1, desired=wish("v1")), phase="Running", serial=1)
)
DESIRED = msgspec.json.encode(AcceptedDesired(manifest_version=3, envelope=b"{}", uid="d1"))
COMMANDS = msgspec.json.encode({"c1": NOW})
HOLD = b'{"verb":"hold","holder":"till","for":"5m","reason":"open"}'


@contextmanager
def disk() -> Iterator[Disk]:
    with tempfile.TemporaryDirectory() as place:
        yield Disk(Path(place) / "state")


def anything(original: bytes) -> st.SearchStrategy[bytes]:
    return changed(original) | cut(original) | st.binary(max_size=200) | st.sampled_from(AWKWARD)


@settings(max_examples=150, deadline=None)
@given(anything(JOURNAL), anything(JOURNAL))
def test_a_journal_is_read_or_set_aside(raw: bytes, spare: bytes) -> None:
    with disk() as found:
        directory = found.root / "workloads" / "digits"
        directory.mkdir()
        (directory / "journal.json").write_bytes(raw)
        (directory / "journal.previous").write_bytes(spare)
        states, damaged = found.read_journals()
        assert [one.name for one in states] in ([], ["digits"])
        assert damaged in ([], ["digits"])
        assert states or damaged
        again, _ = found.read_journals()
        assert again == states
        for state in states:
            found.write_journal(state)
            assert found.read_journals() == ([state], [])


@settings(max_examples=100, deadline=None)
@given(anything(DESIRED), anything(COMMANDS))
def test_what_was_accepted_is_read_or_lost(desired: bytes, commands: bytes) -> None:
    with disk() as found:
        (found.root / "desired.json").write_bytes(desired)
        (found.root / "commands.json").write_bytes(commands)
        try:
            kept = found.read_desired()
        except InvalidError:
            kept = None
        if kept is not None:
            found.write_desired(kept)
            assert found.read_desired() == kept
        taken = found.read_commands()
        assert all(expiry.tzinfo is not None for expiry in taken.values())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_an_identity_is_read_or_named(data: st.DataObject) -> None:
    good = msgspec.json.encode(
        {
            "uid": "d1",
            "name": "till-1",
            "endpoints": {"mqttHost": "h", "mqttPort": 1, "hubUrl": "https://h:1"},
            "ca": "pem",
            "desired_keys": {"k1": "pem"},
            "not_before": NOW,
            "not_after": NOW,
        }
    )
    with disk() as found:
        (found.root / identity.FILE).write_bytes(good)
        known = identity.load(found)
        (found.root / identity.FILE).write_bytes(data.draw(anything(good)))
        with suppress(InvalidError):
            known = identity.load(found)
        with pytest.raises(InvalidError):
            identity.verifying_keys(msgspec.structs.replace(known, desired_keys={"k": "pem"}))


LEASES = msgspec.json.encode([Lease(holder="till", reason="open", seconds=60, wall=NOW, monotonic=1.0, boot="b")])


def holds(found: Disk, boot: str = "b") -> Holds:
    return Holds(found, SystemClock(), boot=boot, max_seconds=3600, changed=lambda: None)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_holds_are_taken_up_or_lost(data: st.DataObject) -> None:
    with disk() as found:
        (found.root / "holds.json").write_bytes(data.draw(anything(LEASES)))
        again = holds(found, data.draw(st.sampled_from(["b", "after it"])))
        again.load()
        assert len(again.in_force()) <= 17


@pytest.mark.parametrize(
    "change",
    [{"wall": "2026-01-01T00:00:00"}, {"seconds": 1e300}, {"seconds": -1}, {"wall": "0001-01-01T00:00:00+14:00"}],
)
@pytest.mark.parametrize("boot", ["b", "after it"])
def test_times_that_cannot_be_end_no_agent(change: dict[str, object], boot: str) -> None:
    [lease] = msgspec.json.decode(LEASES)
    with disk() as found:
        (found.root / "holds.json").write_bytes(msgspec.json.encode([{**lease, "monotonic": 1e18, **change}]))
        again = holds(found, boot)
        again.load()
        assert all(one.until.tzinfo is not None for one in again.in_force())


@settings(max_examples=200, deadline=None)
@given(anything(HOLD) | anything(b'{"verb":"release","holder":"till"}'))
def test_every_line_on_the_socket_gets_an_answer(line: bytes) -> None:
    with disk() as found:
        agent = LocalSocket(holds(found), HoldSettings(), found.root)
        answer = agent.answer(line)
        assert answer.ok == (not answer.error)
        assert msgspec.json.decode(msgspec.json.encode(answer), type=Answer) == answer
        assert len(answer.error) < 2000


@settings(max_examples=30, deadline=None)
@given(anything(msgspec.json.encode(Answer(ok=True))).map(lambda raw: raw[:70_000] + b"\n"))
def test_whatever_the_agent_answers_the_asker_says_what_is_wrong(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "s")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen()

            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    try:
                        connection.sendall(raw)
                    except OSError:
                        return  # it has read as much as it wanted

            server = threading.Thread(target=serve)
            server.start()
            try:
                answer: Any = local.ask(Path(path), Request(verb="status"))
                assert answer.ok
            except (InvalidError, UnavailableError, TimedOutError):
                pass
            finally:
                server.join()
