"""A device's trust anchor: whose word on signatures counts, and how that word changes hands. Pure.

A root names two roles, each a set of keys with a threshold: the owners, who sign roots, and those who sign policies.
Both are made and signed offline; a hub only carries them. The rules, after The Update Framework's root role:

- A root is followed by the one whose version is one higher and which the owners of both sign, by their thresholds.
  Nothing skips a version, nothing goes back, and of one version there is one root.
- Expiry stops nobody from following: whoever has been away goes through expired roots to the newest. It counts when
  something new is to be taken (`check_current`).
- A namespace's policy has a version that only rises. When every key that signed policies has been replaced, it may
  begin anew: what the old keys signed is worth nothing, so a stolen key cannot leave a version that nobody can exceed.
- What is not offered is not forgotten: a hub that leaves root and policy out changes nothing.

Lives here: documents, their codec, these rules. Must not live here: cryptography (the caller brings `verify`), disks,
what a policy says of a model (`core.trust_policy`).

Source of the envelope: DSSE v1; of the rules: TUF specification, 5.3 (update the root role).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from skerry.api.errors import IntegrityError, InvalidError, SkerryError
from skerry.api.kinds.trust_policy import MAX_ENVELOPE_CHARACTERS, MAX_ROOTS, TrustTerms
from skerry.api.meta import Struct
from skerry.core.messages import TrustDesired
from skerry.core.trust import pre_authentication_encoding

ROOT_TYPE = "application/vnd.skerry.trust.root.v1+json"
POLICY_TYPE = "application/vnd.skerry.trust.policy.v1+json"
MAX_KEYS = 16
"""Of one role."""
MAX_VERSION = 2**31 - 1
_MAX_PROBLEM = 1000

Verify = Callable[[bytes, bytes, bytes], bool]
"""`verify(key, signature, data)`: whether the key, a DER SubjectPublicKeyInfo, made that signature. Never raises."""

_KeyBytes = Annotated[bytes, msgspec.Meta(min_length=1, max_length=1024)]
_T = TypeVar("_T")


class Role(Struct, frozen=True, kw_only=True):
    """Keys, and how many of them must sign."""

    keys: Annotated[list[_KeyBytes], msgspec.Meta(min_length=1, max_length=MAX_KEYS)]
    """DER SubjectPublicKeyInfos (RFC 5280), base64 on the wire."""
    threshold: Annotated[int, msgspec.Meta(ge=1, le=MAX_KEYS)]

    @property
    def ids(self) -> set[str]:
        """The keys' ids."""
        return {key_id(key) for key in self.keys}


class Root(Struct, frozen=True, kw_only=True):
    """One version of the trust anchor."""

    v: Literal[1]
    version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
    issued_at: datetime
    expires_at: datetime
    owners: Role
    """Who signs roots: this one and the next."""
    policies: Role
    """Who signs policies."""


class SignedPolicy(Struct, frozen=True, kw_only=True):
    """A namespace's policy as it is signed."""

    v: Literal[1]
    namespace: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    terms: TrustTerms


class Seal(Struct, frozen=True, kw_only=True):
    """One signature."""

    keyid: Annotated[str, msgspec.Meta(max_length=80)]
    sig: Annotated[bytes, msgspec.Meta(max_length=512)]


class Sealed(Struct, frozen=True, kw_only=True):
    """A signed document: a DSSE v1 envelope."""

    payload_type: Annotated[str, msgspec.Meta(max_length=128)]
    payload: bytes
    signatures: Annotated[list[Seal], msgspec.Meta(max_length=2 * MAX_KEYS)]


class Anchored(Struct, frozen=True, kw_only=True):
    """What a device keeps of its anchor and policy."""

    namespace: str
    """The only one whose policies count here."""
    pin: str = ""
    """Digest of the root that may be the first; empty once there is one, or where the first one offered will do."""
    root: str = ""
    """As it was signed; empty: none was seen yet."""
    policy: str = ""
    """As it was signed; empty: none that the root's keys signed was seen yet."""
    policy_version: int = 0
    """The highest that was accepted; it stays when the policy itself is worth nothing any more."""
    former: str = ""
    """The policy that a new root's keys did not sign, as it was signed, until one comes that they did.

    It says what may go on, and nothing new.
    """


# --- documents ----------------------------------------------------------------------------------------------------


def key_id(key: bytes) -> str:
    """Return a key's id: `sha256:<hex>` of its DER SubjectPublicKeyInfo."""
    return f"sha256:{sha256(key).hexdigest()}"


def payload_of(document: Root | SignedPolicy) -> bytes:
    """Return the bytes that are signed."""
    return msgspec.json.encode(document, order="sorted")


def payload_type_of(document: Root | SignedPolicy) -> str:
    """Return the type that is signed with them, so that one kind of document cannot pass for another."""
    return ROOT_TYPE if isinstance(document, Root) else POLICY_TYPE


def signed_bytes(sealed: Sealed) -> bytes:
    """Return what the signatures are over."""
    return pre_authentication_encoding(sealed.payload_type, sealed.payload)


def seal(document: Root | SignedPolicy) -> Sealed:
    """Put a document into an envelope that nobody has signed yet."""
    return Sealed(payload_type=payload_type_of(document), payload=payload_of(document), signatures=[])


def add_seal(sealed: Sealed, signature: Seal) -> Sealed:
    """Return the envelope with a signature, in place of an earlier one by the same key."""
    others = [one for one in sealed.signatures if one.keyid != signature.keyid]
    return msgspec.structs.replace(sealed, signatures=[*others, signature])


def write(sealed: Sealed) -> str:
    """Return the envelope as JSON."""
    return msgspec.json.encode(sealed).decode()


def read(text: str | bytes, element: str) -> Sealed:
    """Parse an envelope. Raises InvalidError, whatever the text."""
    return _decode(text, Sealed, element)


def digest_of(sealed: Sealed) -> str:
    """Return the digest of what is signed: it is the same whoever signs. It pins a device's first root."""
    return f"sha256:{sha256(sealed.payload).hexdigest()}"


def read_root(sealed: Sealed) -> Root:
    """Parse what is in an envelope, signatures aside. Raises InvalidError."""
    root = _content(sealed, Root, ROOT_TYPE, "trust anchor")
    for name, role in (("owners", root.owners), ("policies", root.policies)):
        check_role(role, f"trust anchor {root.version}, {name}")
    _check_times(root.issued_at, root.expires_at, f"trust anchor {root.version}")
    return root


def read_policy(sealed: Sealed) -> SignedPolicy:
    """Parse what is in an envelope, signatures aside. Raises InvalidError."""
    policy = _content(sealed, SignedPolicy, POLICY_TYPE, "trust policy")
    terms = policy.terms
    element = f'trust policy of "{policy.namespace}"'
    if terms.version < 1 or terms.issued_at is None or terms.expires_at is None:
        raise InvalidError("needs a version, and the times of its issue and expiry", element=element)
    _check_times(terms.issued_at, terms.expires_at, element)
    return policy


def check_role(role: Role, element: str) -> None:
    """Refuse a role that could never sign, or that names a key twice. Raises InvalidError."""
    if len(role.ids) != len(role.keys):
        raise InvalidError("names a key twice", element=element)
    if role.threshold > len(role.keys):
        raise InvalidError(
            f"needs {role.threshold} signatures of {len(role.keys)} keys", element=element, hint="lower the threshold"
        )


def _content(sealed: Sealed, kind: type[_T], payload_type: str, element: str) -> _T:
    if sealed.payload_type != payload_type:
        raise InvalidError(f'payload type "{sealed.payload_type}" is not {payload_type}', element=element)
    return _decode(sealed.payload, kind, element)


def _decode(raw: str | bytes, kind: type[_T], element: str) -> _T:
    if len(raw) > MAX_ENVELOPE_CHARACTERS:
        raise InvalidError(f"is larger than {MAX_ENVELOPE_CHARACTERS} bytes", element=element)
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError, OverflowError) as error:
        raise InvalidError(str(error)[:300], element=element) from None


def _check_times(issued: datetime, expires: datetime, element: str) -> None:
    if issued.tzinfo is None or expires.tzinfo is None:
        raise InvalidError("its times have no time zone", element=element)
    if expires <= issued:
        raise InvalidError("expires before it is issued", element=element)


# --- signatures ---------------------------------------------------------------------------------------------------


def signers(sealed: Sealed, role: Role, verify: Verify) -> set[str]:
    """Return the ids of the role's keys that have signed."""
    keys = {key_id(key): key for key in role.keys}
    data = signed_bytes(sealed)
    return {one.keyid for one in sealed.signatures if one.keyid in keys and verify(keys[one.keyid], one.sig, data)}


def check_signed(sealed: Sealed, role: Role, verify: Verify, *, element: str, by: str) -> None:
    """Refuse what fewer keys of a role signed than its threshold. Raises IntegrityError."""
    found = len(signers(sealed, role, verify))
    if found < role.threshold:
        raise IntegrityError(
            f"has {found} of the {role.threshold} signatures it needs of {by}",
            element=element,
            hint="somebody else made it, or not everybody has signed it yet",
        )


def check_first(sealed: Sealed, verify: Verify) -> Root:
    """Return a root that its own owners signed. Raises InvalidError, IntegrityError."""
    root = read_root(sealed)
    check_signed(sealed, root.owners, verify, element=f"trust anchor {root.version}", by="its own owners")
    return root


def check_next(current: Root, sealed: Sealed, verify: Verify) -> Root:
    """Return the root that follows: one version higher, signed by the owners of both. Raises as `check_first`."""
    root = read_root(sealed)
    element = f"trust anchor {root.version}"
    if root.version != current.version + 1:
        raise IntegrityError(f"does not follow version {current.version}", element=element, hint="none may be left out")
    check_signed(sealed, current.owners, verify, element=element, by=f"the owners of version {current.version}")
    check_signed(sealed, root.owners, verify, element=element, by="its own owners")
    return root


def check_policy(sealed: Sealed, root: Root, namespace: str, verify: Verify) -> SignedPolicy:
    """Return a policy that the root's keys signed for that namespace. Raises InvalidError, IntegrityError."""
    check_signed(
        sealed, root.policies, verify, element="trust policy", by=f"the policy keys of trust anchor {root.version}"
    )
    policy = read_policy(sealed)
    if policy.namespace != namespace:
        raise IntegrityError(f'is for namespace "{policy.namespace}", not "{namespace}"', element="trust policy")
    return policy


# --- what a device accepts ----------------------------------------------------------------------------------------


def successors(
    current: Root, known: Sealed, offered: Sequence[Sealed], verify: Verify
) -> Iterator[tuple[Root, Sealed]]:
    """Yield the roots that follow, in their order; what comes before them is passed over.

    Raises InvalidError, IntegrityError at the first one that is not good; those before it are.
    """
    for sealed in offered[:MAX_ROOTS]:
        version = read_root(sealed).version
        if version == current.version and digest_of(sealed) != digest_of(known):
            raise IntegrityError("is another one than was accepted before", element=f"trust anchor {version}")
        if version > current.version:
            current, known = check_next(current, sealed, verify), sealed
            yield current, sealed


def accept(state: Anchored, offered: TrustDesired, verify: Verify) -> tuple[Anchored, str]:
    """Return what a device keeps after it was offered this, and what was wrong with the rest, in one sentence.

    The same offer again changes nothing.
    """
    problem = ""
    try:
        for after in _follow(state, offered, verify):
            state = after
    except SkerryError as error:
        problem = error.sentence[:_MAX_PROBLEM]
    if not state.root:
        return state, problem or "no trust anchor has come yet that this device may begin with"
    try:
        return _take_policy(state, offered, verify), problem
    except SkerryError as error:
        return state, problem or error.sentence[:_MAX_PROBLEM]


def _follow(state: Anchored, offered: TrustDesired, verify: Verify) -> Iterator[Anchored]:
    chain = [read(text, "trust anchor") for text in offered.roots[:MAX_ROOTS]]
    if not state.root:
        fitting = [one for one in chain if state.pin in ("", digest_of(one))]
        if not fitting:
            return
        check_first(fitting[0], verify)
        state = msgspec.structs.replace(state, root=write(fitting[0]), pin="")
        yield state
    known = read(state.root, "trust anchor")
    current = read_root(known)
    for root, sealed in successors(current, known, chain, verify):
        state = _rolled_over(state, current, root, sealed, verify)
        current = root
        yield state


def _rolled_over(state: Anchored, before: Root, root: Root, sealed: Sealed, verify: Verify) -> Anchored:
    """A policy that the new root's keys did not sign is worth nothing from now on."""
    policy, former, floor = state.policy, state.former, state.policy_version
    if policy:
        try:
            check_policy(read(policy, "trust policy"), root, state.namespace, verify)
        except SkerryError:
            policy, former = "", policy
    if not before.policies.ids & root.policies.ids:
        floor = 0
    return msgspec.structs.replace(state, root=write(sealed), policy=policy, former=former, policy_version=floor)


def _take_policy(state: Anchored, offered: TrustDesired, verify: Verify) -> Anchored:
    if not offered.policy:
        return state
    sealed = read(offered.policy, "trust policy")
    policy = check_policy(sealed, read_root(read(state.root, "trust anchor")), state.namespace, verify)
    version = policy.terms.version
    if version < state.policy_version:
        raise IntegrityError(
            f"version {version} is older than {state.policy_version}, which was accepted before", element="trust policy"
        )
    if version == state.policy_version and state.policy:
        if digest_of(sealed) != digest_of(read(state.policy, "trust policy")):
            raise IntegrityError(f"version {version} was accepted before with other content", element="trust policy")
        return state
    return msgspec.structs.replace(state, policy=write(sealed), former="", policy_version=version)


def check_current(root: Root, policy: SignedPolicy, now: datetime) -> None:
    """Refuse to take anything new by what has expired: somebody may hold back what came after it.

    A clock that is behind what was signed counts as being at that time. Raises IntegrityError.
    """
    issued = [root.issued_at, *([policy.terms.issued_at] if policy.terms.issued_at else [])]
    moment = max([now, *issued])
    expiries: list[tuple[str, Any]] = [
        (f"trust anchor {root.version}", root.expires_at),
        (f"trust policy {policy.terms.version}", policy.terms.expires_at),
    ]
    for element, expires in expiries:
        if expires is not None and moment >= expires:
            raise IntegrityError(
                f"expired at {expires.isoformat()}",
                element=element,
                hint="sign a new one, or check the device's clock and whether the hub holds back what is newer",
            )
