"""TrustPolicies as people write them: what is refused, with which sentence; and cards that name their model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import trusting

from skerry.api import codec
from skerry.api.errors import IntegrityError, InvalidError
from skerry.api.kinds.trust_policy import TrustPolicy, TrustRule, TrustVerdict
from skerry.api.meta import ObjectMeta
from skerry.core import trust_policy, trusted
from skerry.core.deployment import PENDING

KEY = trusting.pem(trusting.signer())
RULE = {"models": ["*"], "keys": [KEY]}


def raw(name: str = "default", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "TrustPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def test_a_policy_is_read_as_it_is_written() -> None:
    item = codec.validate(raw(rules=[RULE], mode="warn"))
    assert isinstance(item, TrustPolicy)
    assert item.spec.rules == [TrustRule(models=["*"], keys=[KEY])]
    assert codec.validate(raw()).kind == "TrustPolicy"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (raw("mine"), 'a namespace has one trust policy, named "default"'),
        (raw(rules=[{**RULE, "keys": ["no key"]}]), r"spec.rules\[0\].keys\[0\]: is neither a public key"),
        (raw(rules=[{**RULE, "keys": [KEY.replace("PUBLIC", "PRIVATE")]}]), "is neither a public key"),
        (raw(rules=[{**RULE, "threshold": 2}]), "2 of 1 keys and identities can never be met"),
        (raw(rules=[{"models": ["*"]}]), "1 of 0 keys and identities can never be met"),
        (raw(rules=[{"models": [], "keys": [KEY]}]), r"spec.rules\[0\].models: has 0 entries"),
        (raw(rules=[{"models": ["*"], "identities": [{"issuer": "CN=CA"}]}]), "names neither subject nor identity"),
        (raw(authorities=[KEY]), "is no certificate in PEM"),
        (raw(denied=["sha256:12"]), r"spec.denied\[0\]"),
        (raw(mode="strict"), "is not one of enforce, off, warn"),
        (raw(envelope="{}"), "spec.version: is 0 in a signed policy"),
        (raw(roots=["{}"]), "are for devices"),
        (raw(issuedAt="2026-01-02T00:00:00Z", expiresAt="2026-01-01T00:00:00Z"), "spec.expiresAt: is before issuedAt"),
        (raw(expiresAt="2026-01-01"), "is not a time with its zone"),
    ],
)
def test_what_makes_no_sense_is_refused_at_its_place(written: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        codec.validate(written)


@given(st.binary(max_size=300))
def test_a_card_that_cannot_be_read_is_refused(content: bytes) -> None:
    with pytest.raises((InvalidError, IntegrityError)):
        trust_policy.check_card(content, model="digits", version="v1", variants={}, golden="")


def test_nothing_begins_before_the_present_policy_was_asked() -> None:
    """A verdict of an earlier policy, or of another one, is none."""
    policy = TrustPolicy(metadata=ObjectMeta(name="default", uid="u1", generation=2))

    def hold(**fields: Any) -> str:
        verdict = TrustVerdict(**{"policy_uid": "u1", "generation": 2, "covered": True, **fields}) if fields else None
        found = trusted.hold_of(policy, trusting.model_version(verdict))
        return "" if found is None else found.reason

    assert hold() == PENDING
    assert hold(generation=1) == PENDING
    assert hold(policy_uid="u0") == PENDING
    assert hold(covered=True) == ""
    assert hold(covered=False) == trusted.REFUSED
    for mode in ("warn", "off"):
        lax = trusting.replace_spec(policy, mode=mode)
        assert trusted.hold_of(lax, trusting.model_version(None)) is None
    assert trusted.hold_of(None, trusting.model_version(None)) is None
