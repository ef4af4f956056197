"""Errors over the wire: every type arrives as itself, with element, cause and hint."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api import errors
from skerry.drivers.client import failures
from skerry.hub.server import status

LOSSY = (errors.IntegrityError,)  # one reason, Invalid, stands for two types


def every_type() -> list[type[errors.SkerryError]]:
    return [kind for kind in errors.SkerryError.__subclasses__() if kind.__module__ == errors.__name__]


def test_every_error_type_has_a_code() -> None:
    more = {errors.FieldConflictError, errors.DivergedError, errors.UnreadableError}
    assert {*every_type()} | more == set(status.CODES)
    reasons = {reason for kind, (_, reason) in status.CODES.items() if kind not in LOSSY}
    assert reasons == set(failures.REASONS)


@pytest.mark.parametrize("kind", every_type(), ids=lambda kind: kind.__name__)
def test_an_error_arrives_as_it_was(kind: type[errors.SkerryError]) -> None:
    sent = kind("it is so; really", element="spec.a", hint="do this; then that")
    raw = json.dumps(status.status_of(sent, kind="Device", plural="devices", name="a")).encode()
    got = failures.error_of(status.code_and_reason(sent)[0], raw, "https://hub")
    assert type(got) is (errors.InvalidError if kind in LOSSY else kind)
    assert (got.cause, got.element, got.hint) == (sent.cause, sent.element, sent.hint)


def test_every_field_that_others_set_arrives() -> None:
    sent = errors.FieldConflictError.of_fields([('conflict with "ci"', ".spec.a"), ('conflict with "ops"', ".spec.b")])
    raw = json.dumps(status.status_of(sent, kind="Device", plural="devices", name="a")).encode()
    got = failures.error_of(409, raw, "https://hub")
    assert isinstance(got, errors.FieldConflictError)
    assert (got.sentence, [error.element for error in got.each]) == (sent.sentence, [".spec.a", ".spec.b"])


texts = st.text(max_size=20)


@given(st.lists(st.tuples(texts.filter(bool), texts, texts), min_size=1, max_size=4))
def test_every_problem_arrives(given_problems: list[tuple[str, str, str]]) -> None:
    problems = [errors.InvalidError(cause, element=element, hint=hint) for cause, element, hint in given_problems]
    sent = status.status_of(errors.InvalidError.of(problems), kind="Device", plural="devices")
    got = failures.error_of(422, sent, "https://hub")
    assert isinstance(got, errors.InvalidError)
    assert [(p.cause, p.element, p.hint) for p in got.each] == [(p.cause, p.element, p.hint) for p in problems]


def test_a_status_is_kubernetes() -> None:
    sent = status.status_of(errors.NotFoundError(element='devices "a"'), kind="Device", plural="devices", name="a")
    assert (sent["apiVersion"], sent["kind"], sent["status"], sent["code"]) == ("v1", "Status", "Failure", 404)
    assert (sent["details"]["kind"], sent["details"]["name"], sent["details"]["group"]) == (
        "devices",
        "a",
        "skerry.dev",
    )
    invalid = status.status_of(
        errors.InvalidError("is wrong", element="spec.a"), kind="Device", plural="devices", name="a"
    )
    assert invalid["details"]["kind"] == "Device"
    assert invalid["message"] == 'Device "a" is invalid: spec.a: is wrong'
    assert status.success(plural="devices", name="a", uid="u")["status"] == "Success"
    away = status.respond_status(status.status_of(errors.UnavailableError()))
    assert (away.status_code, away.headers["retry-after"]) == (503, "1")
    assert status.respond_status(status.status_of(errors.UnauthorizedError())).headers["www-authenticate"] == "Bearer"
    assert status.status_of(errors.SkerryError("odd"))["code"] == 500


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"{}", b'{"kind": "Status"', b"[" * 100_000, b"\xff"])
def test_an_answer_that_is_no_status(content: bytes) -> None:
    got = failures.error_of(502, content, "https://hub")
    assert isinstance(got, errors.UnavailableError)
    assert "HTTP 502" in got.cause
    assert got.element == "https://hub"


@given(
    st.dictionaries(
        st.sampled_from(["kind", "reason", "message", "details"]),
        st.one_of(
            st.just("Status"),
            st.just("Invalid"),
            st.none(),
            st.integers(),
            texts,
            st.lists(st.integers(), max_size=2),
            st.fixed_dictionaries(
                {
                    "causes": st.one_of(
                        st.none(),
                        texts,
                        st.lists(st.one_of(st.none(), st.dictionaries(texts, st.integers())), max_size=2),
                    )
                }
            ),
        ),
    )
)
def test_any_answer_is_some_error(content: dict[str, object]) -> None:
    assert isinstance(
        failures.error_of(500, json.dumps({"kind": "Status", **content}).encode(), "hub"), errors.SkerryError
    )
