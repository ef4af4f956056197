"""Trust anchors: what follows, what does not, against a plain model of the rules; and parsers that meet anything."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import trusting
from tests.trusting import NOW, Owners

from skerry.api.errors import IntegrityError, InvalidError, SkerryError
from skerry.api.kinds.trust_policy import TrustTerms
from skerry.core import anchor
from skerry.core.anchor import Anchored, Seal, Sealed, SignedPolicy
from skerry.core.messages import TrustDesired
from skerry.drivers import owner_keys

KEYS = [trusting.owner() for _ in range(5)]
"""Who may be owner or policy key, by number."""
verify = owner_keys.verify


def chain(*owners: Owners) -> list[Sealed]:
    return [sealed for one in owners for sealed in one.roots]


def test_each_version_is_signed_by_the_owners_of_both() -> None:
    owners = Owners()
    first = anchor.check_first(owners.roots[0], verify)
    before = list(owners.owners)
    second = owners.rotate(owners=2)
    assert anchor.check_next(first, second, verify).version == 2
    for signers, words in (
        (before, "0 of the 2 signatures it needs of its own owners"),
        (owners.owners, "0 of the 2 signatures it needs of the owners of version 1"),
        ([before[0], *owners.owners], "1 of the 2"),
        ([*before, owners.owners[0]], "1 of the 2"),
    ):
        with pytest.raises(IntegrityError, match=words):
            anchor.check_next(first, trusting.signed(owners.root(version=2), *signers), verify)


def test_a_key_counts_once_however_often_it_signs() -> None:
    owners = Owners()
    sealed = trusting.signed(owners.root(version=1), owners.owners[0])
    twice = msgspec.structs.replace(sealed, signatures=sealed.signatures * 2)
    with pytest.raises(IntegrityError, match="1 of the 2"):
        anchor.check_first(twice, verify)
    # Nor does it count for somebody else: the id is only where to look.
    [mine] = sealed.signatures
    other = anchor.key_id(owner_keys.public_der(owners.owners[1]))
    forged = anchor.add_seal(sealed, Seal(keyid=other, sig=mine.sig))
    with pytest.raises(IntegrityError, match="1 of the 2"):
        anchor.check_first(forged, verify)


def test_a_policy_does_not_pass_for_an_anchor_nor_the_other_way_round() -> None:
    owners = Owners()
    policy = trusting.signed(
        SignedPolicy(v=1, namespace="default", terms=TrustTerms(version=1, issued_at=NOW, expires_at=NOW)),
        *owners.owners,
    )
    with pytest.raises(InvalidError, match="payload type"):
        anchor.read_root(policy)
    renamed = msgspec.structs.replace(policy, payload_type=anchor.ROOT_TYPE)
    with pytest.raises(SkerryError):
        anchor.check_first(renamed, verify)
    root = msgspec.structs.replace(owners.roots[0], payload_type=anchor.POLICY_TYPE)
    with pytest.raises(IntegrityError, match="signatures it needs"):
        anchor.check_policy(root, owners.root(version=1), "default", verify)


def test_an_expired_policy_or_anchor_lets_nothing_new_in_and_a_slow_clock_does_not_help() -> None:
    owners = Owners()
    root = owners.root(version=1, expires_at=NOW + timedelta(days=3))
    policy = anchor.read_policy(owners.policy(expires_at=NOW + timedelta(days=2)))
    anchor.check_current(root, policy, NOW)
    anchor.check_current(root, policy, NOW - timedelta(days=9000))
    for days, who in ((2, "trust policy 1"), (3, "trust anchor 1")):
        with pytest.raises(IntegrityError, match=f"{who}: expired"):
            anchor.check_current(root, policy, NOW + timedelta(days=days))
    # A clock at the beginning of time is taken for the time of what was signed last: this anchor was over by then.
    late = anchor.read_policy(owners.policy(issued_at=NOW + timedelta(days=4), expires_at=NOW + timedelta(days=9)))
    with pytest.raises(IntegrityError, match="trust anchor 1: expired"):
        anchor.check_current(root, late, NOW - timedelta(days=9000))


def test_through_expired_anchors_the_way_leads_on() -> None:
    owners = Owners()
    for _ in range(3):
        owners.rotate(owners=2, expires_at=NOW - timedelta(days=1))
    owners.rotate()
    state = Anchored(namespace="default", root=anchor.write(owners.roots[0]))
    after, problem = anchor.accept(state, owners.desired(owners.policy()), verify)
    assert (problem, after.root) == ("", anchor.write(owners.roots[-1]))
    assert after.policy_version == 1


def test_a_stolen_policy_key_cannot_leave_a_version_that_nobody_exceeds() -> None:
    owners = Owners()
    state = Anchored(namespace="default", root=anchor.write(owners.roots[0]))
    state, _ = anchor.accept(state, owners.desired(owners.policy(version=2**31 - 1)), verify)
    assert state.policy_version == 2**31 - 1
    old = owners.policies[0]
    owners.rotate(policies=True)
    state, problem = anchor.accept(state, owners.desired(owners.policy(version=1)), verify)
    assert (problem, state.policy_version) == ("", 1)
    _, problem = anchor.accept(state, owners.desired(owners.policy(version=2**31 - 1, by=old)), verify)
    assert "0 of the 1 signatures" in problem


def test_a_policy_falls_with_the_keys_that_signed_it() -> None:
    owners = Owners()
    state = Anchored(namespace="default", root=anchor.write(owners.roots[0]))
    state, _ = anchor.accept(state, owners.desired(owners.policy()), verify)
    assert state.policy
    owners.rotate(owners=2)
    state, problem = anchor.accept(state, owners.desired(), verify)
    assert (problem, bool(state.policy), state.policy_version) == ("", True, 1), "they are still the same"
    owners.rotate(policies=True)
    state, problem = anchor.accept(state, owners.desired(), verify)
    assert (problem, state.policy, state.policy_version) == ("", "", 0)


# --- against a plain model ----------------------------------------------------------------------------------------

Roles = tuple[frozenset[int], int, frozenset[int]]
"""Numbers of the owners' keys, their threshold, numbers of the policy keys."""
subsets = st.frozensets(st.sampled_from(range(5)), min_size=1, max_size=3)


@st.composite
def documents(draw: st.DrawFn) -> tuple[int, Roles, frozenset[int]]:
    """A version, its roles, and who signs it; hypothesis likes to have them right."""
    owners = draw(subsets)
    threshold = draw(st.integers(1, len(owners)))
    everybody = frozenset(range(5))
    return draw(st.integers(1, 4)), (owners, threshold, draw(subsets)), draw(st.sampled_from([everybody]) | subsets)


def build(version: int, roles: Roles, signers: frozenset[int]) -> Sealed:
    owners, threshold, policies = roles
    root = anchor.Root(
        v=1,
        version=version,
        issued_at=NOW,
        expires_at=NOW + timedelta(days=1),
        owners=trusting.role(*[KEYS[n] for n in sorted(owners)], threshold=threshold),
        policies=trusting.role(*[KEYS[n] for n in sorted(policies)]),
    )
    return trusting.signed(root, *[KEYS[n] for n in sorted(signers)])


def enough(signers: frozenset[int], roles: Roles) -> bool:
    return len(signers & roles[0]) >= roles[1]


class Plain:
    """The rules of `core.anchor`, once more, over numbers."""

    def __init__(self, version: int, roles: Roles) -> None:
        self.version, self.roles = version, roles
        self.policy, self.floor = 0, 0
        self._signed_by: frozenset[int] = frozenset()

    def follow(self, roots: list[tuple[int, Roles, frozenset[int]]]) -> None:
        for version, roles, signers in roots:
            if version == self.version and roles != self.roles:
                return
            if version > self.version and not self._follows(version, roles, signers):
                return
            if version > self.version:
                self._take(version, roles)

    def _follows(self, version: int, roles: Roles, signers: frozenset[int]) -> bool:
        return version == self.version + 1 and enough(signers, self.roles) and enough(signers, roles)

    def _take(self, version: int, roles: Roles) -> None:
        if not self.roles[2] & roles[2]:
            self.floor = 0
        if not self._signed_by & roles[2]:
            self.policy = 0
        self.version, self.roles = version, roles

    def offer(self, number: int, by: frozenset[int]) -> None:
        new = number > self.floor or (number == self.floor and not self.policy)
        if number and new and by & self.roles[2]:
            self.policy, self.floor, self._signed_by = number, number, by


@settings(max_examples=150)
@given(
    first=documents(),
    offers=st.lists(st.tuples(st.lists(documents(), max_size=4), st.integers(0, 3), subsets), max_size=4),
)
def test_what_a_device_accepts_is_what_the_plain_rules_say(
    first: tuple[int, Roles, frozenset[int]],
    offers: list[tuple[list[tuple[int, Roles, frozenset[int]]], int, frozenset[int]]],
) -> None:
    state = Anchored(namespace="default", root=anchor.write(build(first[0], first[1], frozenset(range(5)))))
    plain = Plain(first[0], first[1])
    for roots, number, by in offers:
        plain.follow(roots)
        plain.offer(number, by)
        terms = TrustTerms(version=number, issued_at=NOW, expires_at=NOW + timedelta(days=1))
        document = SignedPolicy(v=1, namespace="default", terms=terms)
        sealed = trusting.signed(document, *[KEYS[n] for n in sorted(by)])
        texts = [anchor.write(build(*one)) for one in roots]
        offer = TrustDesired(roots=texts, policy=anchor.write(sealed) if number else "")
        state, _ = anchor.accept(state, offer, verify)
        assert anchor.accept(state, offer, verify)[0] == state, "again it changes nothing"
        root = anchor.read_root(anchor.read(state.root, ""))
        known = plain.roles
        assert (root.version, len(root.owners.keys), root.owners.threshold) == (plain.version, len(known[0]), known[1])
        assert (state.policy_version, bool(state.policy)) == (plain.floor, bool(plain.policy))
        if state.policy:
            anchor.check_policy(anchor.read(state.policy, ""), root, "default", verify)


@given(st.integers(1, 40))
def test_any_number_of_versions_is_followed_in_pieces(count: int) -> None:
    roots = [build(n, (frozenset({0}), 1, frozenset({1})), frozenset({0})) for n in range(1, count + 1)]
    state = Anchored(namespace="default", root=anchor.write(roots[0]))
    for start in range(0, count, 16):
        piece = roots[start : start + 16]
        state, problem = anchor.accept(state, TrustDesired(roots=[anchor.write(one) for one in piece]), verify)
        assert problem == ""
    assert anchor.read_root(anchor.read(state.root, "")).version == count


# --- anything -----------------------------------------------------------------------------------------------------

GOOD = anchor.write(Owners().roots[0]).encode()


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_parsers_refuse_anything_with_a_sentence(raw: bytes) -> None:
    with pytest.raises(InvalidError):
        anchor.read_root(anchor.read(raw, "anchor"))
    payload = Sealed(payload_type=anchor.ROOT_TYPE, payload=raw, signatures=[])
    with pytest.raises(InvalidError):
        anchor.read_root(payload)
    with pytest.raises(InvalidError):
        anchor.read_policy(msgspec.structs.replace(payload, payload_type=anchor.POLICY_TYPE))


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_nothing(position: int, byte: int) -> None:
    changed = GOOD[:position] + bytes([byte]) + GOOD[position + 1 :]
    try:
        root = anchor.check_first(anchor.read(changed, "anchor"), verify)
    except (InvalidError, IntegrityError):
        return
    assert root == anchor.check_first(anchor.read(GOOD, "anchor"), verify)


@given(st.binary(max_size=200), st.binary(max_size=100))
def test_no_key_and_no_signature_makes_verifying_fail_otherwise_than_by_no(key: bytes, signature: bytes) -> None:
    assert not verify(key, signature, b"data")
    assert not verify(owner_keys.public_der(KEYS[0]), signature, b"data")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"owners": trusting.role(KEYS[0], KEYS[0])}, "names a key twice"),
        ({"owners": trusting.role(KEYS[0], threshold=2)}, "needs 2 signatures of 1 keys"),
        ({"issued_at": NOW.replace(tzinfo=None)}, "time zone"),
        ({"expires_at": NOW - timedelta(days=9)}, "expires before"),
        ({"version": 0}, "Expected `int` >= 1"),
    ],
)
def test_an_anchor_that_makes_no_sense_is_refused(changes: dict[str, object], words: str) -> None:
    owners = Owners()
    with pytest.raises(InvalidError, match=words):
        anchor.read_root(trusting.signed(owners.root(**changes), *owners.owners))
