from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.audit import EXPIRED, AuditEvent, ObjectReference, User
from skerry.core import audit
from skerry.core.audit import Check, Link

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)


def event(number: int, **annotations: str) -> AuditEvent:
    return AuditEvent(
        audit_id=f"id-{number}",
        stage="ResponseComplete",
        verb="create",
        user=User(username="admin"),
        object_ref=ObjectReference(resource="devices", name=f"d-{number}"),
        request_received_timestamp=NOW,
        stage_timestamp=NOW,
        annotations=annotations,
    )


def chain(count: int, after: Link | None = None) -> tuple[list[bytes], list[Link]]:
    lines, links, link = [], [], after or Link()
    for number in range(count):
        line, link = audit.seal(event(number), link)
        lines.append(line)
        links.append(link)
    return lines, links


def problems(lines: Sequence[bytes], kept: Link | None = None) -> list[str]:
    check = Check(kept=kept)
    found = [problem for problem in (check.take(line) for line in lines) if problem]
    return found + check.end()


def test_an_entry_is_kubernetes_event_and_names_the_line_before() -> None:
    lines, _ = chain(2)
    second = msgspec.json.decode(lines[1])
    assert (second["kind"], second["apiVersion"], second["level"]) == ("Event", "audit.k8s.io/v1", "Metadata")
    assert second["auditID"] == "id-1"
    assert second["annotations"]["audit.skerry.dev/sequence"] == "2"
    assert second["annotations"]["audit.skerry.dev/previous"] == sha256(lines[0]).hexdigest()
    assert msgspec.json.decode(lines[1], type=AuditEvent).object_ref == ObjectReference(resource="devices", name="d-1")


def test_a_whole_chain_is_whole() -> None:
    lines, links = chain(5)
    assert problems(lines) == []
    assert problems(lines, kept=links[-1]) == []
    assert problems(lines, kept=links[2]) == []
    assert problems([]) == []


@given(st.data())
def test_no_line_can_be_changed_removed_moved_or_repeated_unseen(data: st.DataObject) -> None:
    lines, links = chain(6)
    at = data.draw(st.integers(0, 5))
    match data.draw(st.sampled_from(["flip", "remove", "repeat", "swap", "insert"])):
        case "flip":
            position = data.draw(st.integers(0, len(lines[at]) - 1))
            changed = bytearray(lines[at])
            changed[position] ^= data.draw(st.integers(1, 255))
            lines[at] = bytes(changed)
        case "remove":
            del lines[at]
        case "repeat":
            lines.insert(at, lines[at])
        case "swap":
            other = data.draw(st.integers(0, 5).filter(lambda n: n != at))
            lines[at], lines[other] = lines[other], lines[at]
        case "insert":
            before = links[at - 1] if at else Link()
            lines.insert(at, audit.seal(event(99), before)[0])
    assert problems(lines, kept=links[-1])


def test_the_problem_is_named() -> None:
    lines, links = chain(5)
    forged, _ = audit.seal(event(77), links[1])
    assert problems([*lines[:2], forged, *lines[3:]]) == [
        "entry 3 is not the one that entry 4 was written after: it was changed"
    ]
    assert problems([*lines[:2], *lines[3:]]) == ["entry 3 is missing"]
    assert problems([lines[0], *lines[4:]]) == ["entries 2 to 4 are missing"]
    assert problems([lines[0], lines[0]]) == ["entry 1 comes after entry 1: entries were repeated or moved"]
    assert problems([lines[0], b"{", *lines[1:]]) == ["what follows entry 1 cannot be read: it was changed or damaged"]


def test_a_missing_end_shows_by_what_was_kept_elsewhere() -> None:
    lines, links = chain(5)
    assert problems(lines[:3]) == []
    assert problems(lines[:3], kept=links[4]) == ["entry 5 is missing: the log ends with entry 3"]
    again, _ = chain(5, Link())
    assert again == lines
    other = [audit.seal(event(50), Link())[0]]
    assert problems(other, kept=links[0]) == ["entry 1 is another one than it was"]


def test_a_missing_beginning_has_to_be_accounted_for() -> None:
    lines, links = chain(5)
    assert "no entry says" in problems(lines[2:])[0]
    told, _ = audit.seal(event(5, **{EXPIRED: links[1].text}), links[4])
    assert problems([*lines[2:], told]) == []
    assert problems([*lines[2:], told], kept=links[0]) == []  # it has expired
    lies, _ = audit.seal(event(5, **{EXPIRED: links[0].text}), links[4])
    assert problems([*lines[2:], lies])


@given(st.binary(max_size=200))
def test_whatever_bytes_are_no_crash(raw: bytes) -> None:
    check = Check()
    assert check.take(raw)
    assert audit.read_link(raw) is None


@given(st.text(max_size=100))
def test_links_are_read_as_they_are_told_and_nothing_else_is(text: str) -> None:
    link = Link(sequence=7, digest="ab" * 32)
    assert audit.parse_link(link.text) == link
    found = audit.parse_link(text)
    assert found is None or found.text.partition(":")[2] == text.partition(":")[2]
