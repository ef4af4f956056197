"""Verdicts of trust policies, against a plain model that tries every way to give signers to entries."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import InvalidError
from skerry.api.kinds.trust_policy import TrustedIdentity, TrustRule, TrustTerms
from skerry.core import trust_policy

FILES = {"model.onnx": "sha256:" + "a" * 64, "golden.npz": "sha256:" + "b" * 64}
NEEDED = list(FILES.values())


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


@dataclass(frozen=True)
class Signer:
    key: str
    subject: str | None = None
    issuer: str | None = None
    identity: str | None = None
    oidc_issuer: str | None = None


@dataclass(frozen=True)
class Signed:
    signers: tuple[Signer, ...]
    files: dict[str, str]


names = st.sampled_from(["", "anna", "ben"])
keys = st.integers(1, 4).map(digest)
signers = st.builds(
    Signer,
    key=keys,
    subject=names.map(lambda name: name or None),
    identity=names.map(lambda name: name or None),
    issuer=st.sampled_from([None, "CA"]),
)
identities = st.builds(TrustedIdentity, subject=names, identity=names, issuer=st.sampled_from(["", "CA", "other"]))
rules = st.builds(
    TrustRule,
    models=st.lists(st.sampled_from(["*", "dig*", "brake", "[a-c]*"]), min_size=1, max_size=2),
    keys=st.lists(keys, max_size=3),
    identities=st.lists(identities, max_size=3),
    threshold=st.integers(1, 4),
)


def most(rule: TrustRule, found: list[Signer]) -> int:
    """The plain model: every way to hand signers, each once, to entries, each once."""
    entries: list[object] = [*set(rule.keys), *set(rule.identities)]

    def meets(entry: object, one: Signer) -> bool:
        if isinstance(entry, str):
            return one.key == entry
        assert isinstance(entry, TrustedIdentity)
        if not (entry.subject or entry.identity):
            return False
        given = {"subject": entry.subject, "identity": entry.identity, "issuer": entry.issuer}
        return all(getattr(one, field) == value for field, value in given.items() if value)

    best = 0
    for size in range(min(len(entries), len(found)), 0, -1):
        for chosen in itertools.permutations(found, size):
            if any(
                all(meets(e, s) for e, s in zip(some, chosen, strict=True))
                for some in itertools.combinations(entries, size)
            ):
                return size
    return best


@given(st.lists(rules, max_size=3), st.lists(signers, max_size=4), st.sampled_from(["digits", "brake", "zebra"]))
def test_a_model_is_covered_when_the_first_rule_about_it_has_enough_signers(
    listed: list[TrustRule], found: list[Signer], model: str
) -> None:
    fits = {"digits": {"*", "dig*"}, "brake": {"*", "brake", "[a-c]*"}, "zebra": {"*"}}[model]
    rule = next((one for one in listed if fits & set(one.models)), None)
    unique = list({one.key: one for one in found}.values())
    bundles = [Signed(signers=(one,), files=FILES) for one in found]
    verdict = trust_policy.judge(TrustTerms(rules=listed), model, bundles, needed=NEEDED)
    assert verdict.covered == (rule is not None and most(rule, unique) >= rule.threshold)
    assert verdict.message


@given(rules, st.lists(signers, max_size=4, unique_by=lambda one: one.key))
def test_as_many_entries_are_met_as_the_plain_model_finds(rule: TrustRule, found: list[Signer]) -> None:
    assert trust_policy.matched(rule, found) == most(rule, found)


def test_one_signer_counts_once_and_finds_the_entry_that_is_left() -> None:
    anna = TrustedIdentity(subject="anna")
    rule = TrustRule(models=["*"], keys=[digest(1)], identities=[anna], threshold=2)
    both = Signer(key=digest(1), subject="anna")
    assert trust_policy.matched(rule, [both]) == 1
    assert trust_policy.matched(rule, [both, Signer(key=digest(2), subject="anna")]) == 2
    assert (
        trust_policy.matched(rule, [Signer(key=digest(2), subject="anna"), Signer(key=digest(3), subject="anna")]) == 1
    )


def test_only_signatures_over_every_file_that_matters_count() -> None:
    terms = TrustTerms(rules=[TrustRule(models=["*"], keys=[digest(1), digest(2)], threshold=2)])
    whole = Signed(signers=(Signer(key=digest(1)),), files=FILES)
    part = Signed(signers=(Signer(key=digest(2)),), files={"model.onnx": NEEDED[0]})
    verdict = trust_policy.judge(terms, "digits", [whole, part], needed=NEEDED)
    assert not verdict.covered
    assert verdict.message == (
        "found key sha256:000000000000 (1 of other files); wanted 2 of key sha256:000000000000, "
        'key sha256:000000000000 (rule "rule-1")'
    )
    assert trust_policy.judge(terms, "digits", [whole, part], needed=NEEDED[:1]).covered


def test_what_is_denied_is_not_taken_whoever_signed_it() -> None:
    terms = TrustTerms(rules=[TrustRule(models=["*"], keys=[digest(1)])], denied=[NEEDED[0]])
    verdict = trust_policy.judge(
        terms, "digits", [Signed(signers=(Signer(key=digest(1)),), files=FILES)], needed=NEEDED
    )
    assert not verdict.covered
    assert "denied by the policy" in verdict.message


def test_the_weaker_rule_behind_a_stronger_one_does_not_help() -> None:
    strong = TrustRule(name="brakes", models=["brake*"], keys=[digest(1)])
    weak = TrustRule(models=["*"], keys=[digest(2)])
    bundles = [Signed(signers=(Signer(key=digest(2)),), files=FILES)]
    terms = TrustTerms(rules=[strong, weak])
    assert not trust_policy.judge(terms, "brake-control", bundles, needed=NEEDED).covered
    assert trust_policy.judge(terms, "digits", bundles, needed=NEEDED).covered


@given(st.text(max_size=100))
def test_a_key_that_is_none_is_refused_with_a_sentence(text: str) -> None:
    if text.strip().startswith("sha256:"):
        return
    with pytest.raises(InvalidError):
        trust_policy.key_of(text)
