from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from skerry.api.audit import AuditEvent, ObjectReference, ResponseStatus, Stage, User
from skerry.api.errors import BadRequestError
from skerry.core.audit_query import Question, outcome_of, read_question

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)


def event(*, code: int = 200, stage: Stage = "ResponseComplete", ref: ObjectReference | None = None) -> AuditEvent:
    return AuditEvent(
        audit_id="one",
        stage=stage,
        verb="get",
        request_uri="/v2/default/digits/manifests/v1" if ref is None else "/apis/...",
        user=User(username="alice"),
        impersonated_user=User(username="bob"),
        object_ref=ref,
        response_status=ResponseStatus(code=code) if code else None,
        request_received_timestamp=NOW,
        stage_timestamp=NOW,
    )


EXEC = ObjectReference(resource="devices", name="a", namespace="shop", api_group="skerry.dev", subresource="exec")


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ({}, True),
        ({"user": "alice"}, True),
        ({"user": "bob"}, True),
        ({"user": "ali"}, False),
        ({"verb": "get"}, True),
        ({"verb": "create"}, False),
        ({"resource": "devices"}, True),
        ({"resource": "devices.skerry.dev"}, True),
        ({"resource": "devices.other.dev"}, False),
        ({"resource": "devices/exec"}, True),
        ({"resource": "devices.skerry.dev/exec"}, True),
        ({"resource": "devices/log"}, False),
        ({"resource": "pods"}, False),
        ({"namespace": "shop", "name": "a"}, True),
        ({"namespace": "other"}, False),
        ({"name": "b"}, False),
        ({"outcome": "allowed"}, True),
        ({"outcome": "denied"}, False),
        ({"since": "2026-11-23T10:00:00Z"}, True),
        ({"since": "2026-11-23T10:00:00.000001Z"}, False),
        ({"until": "2026-11-23T12:00:00+02:00"}, True),
        ({"until": "2026-11-23T11:59:59+02:00"}, False),
        ({"auditID": "one"}, True),
        ({"auditID": "two"}, False),
    ],
)
def test_what_is_taken(asked: dict[str, str], taken: bool) -> None:
    assert read_question(asked).takes(event(ref=EXEC)) is taken


def test_what_is_no_object_is_asked_for_by_its_path() -> None:
    assert Question(resource="/v2/default/").takes(event())
    assert not Question(resource="/v2/other/").takes(event())
    assert not Question(resource="devices").takes(event())
    assert not Question(namespace="default").takes(event())


def test_what_is_not_answered_yet_is_left_out_unless_asked_for() -> None:
    begun = event(stage="RequestReceived", code=0)
    assert not Question().takes(begun)
    assert read_question({"stage": "all"}).takes(begun)
    assert outcome_of(begun) == ""
    assert [outcome_of(event(code=code)) for code in (101, 201, 401, 403, 404, 500)] == [
        "allowed",
        "allowed",
        "denied",
        "denied",
        "failed",
        "failed",
    ]


@pytest.mark.parametrize(
    "asked",
    [
        {"since": "yesterday"},
        {"until": "2026-11-23T10:00:00"},
        {"since": "9" * 200},
        {"outcome": "good"},
        {"stage": "Panic"},
        {"user": "x" * 300},
    ],
)
def test_what_cannot_be_read_is_refused_by_name(asked: dict[str, str]) -> None:
    with pytest.raises(BadRequestError) as caught:
        read_question(asked)
    assert caught.value.element in asked


def test_times_with_any_zone_are_the_same() -> None:
    question = read_question({"since": "2026-11-23T13:00:00+02:00"})
    assert question.since == NOW + timedelta(hours=1)
