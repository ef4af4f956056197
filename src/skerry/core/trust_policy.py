"""What a trust policy says of a model: which of its signers count, and whether they are enough. Pure.

The first rule whose patterns match the model's name decides; a model that no rule matches is not covered. A signature
counts when it is over every file that matters, the card among them: it says which model that is (`check_card`). Of the
rule's keys and identities, as many as its threshold must each be met by a signer of its own: one signer counts once,
however many entries it meets.

Lives here: verdicts, and their sentences. Must not live here: who made a signature (`drivers.signing`), who may make
policies (`core.anchor`), what follows from a verdict.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from skerry.api.errors import IntegrityError, InvalidError
from skerry.api.kinds.trust_policy import TrustedIdentity, TrustRule, TrustTerms
from skerry.core.anchor import key_id
from skerry.core.card import CARD_FILE, decode

_SHOWN_DIGITS = 12
_MAX_SHOWN = 8
_PEM_BEGIN, _PEM_END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"


class Signer(Protocol):
    """Whoever made a signature that holds; `drivers.signing.bundle.Signer` has this shape."""

    @property
    def key(self) -> str:
        """`sha256:<hex>` of the DER SubjectPublicKeyInfo."""
        ...

    @property
    def subject(self) -> str | None:
        """The certificate's subject; None for a bare key."""
        ...

    @property
    def issuer(self) -> str | None:
        """The subject of the CA that issued it."""
        ...

    @property
    def oidc_issuer(self) -> str | None:
        """Who vouched for a keyless signer."""
        ...

    @property
    def identity(self) -> str | None:
        """The certificate's subject alternative name."""
        ...


class Signed(Protocol):
    """One bundle of signatures that hold; `drivers.signing.bundle.Verified` has this shape."""

    @property
    def signers(self) -> Sequence[Signer]:
        """Who signed."""
        ...

    @property
    def files(self) -> Mapping[str, str]:
        """What: paths in the package and their digests."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a policy covers a model, and why (not), in one sentence."""

    covered: bool
    message: str


def rule_of(terms: TrustTerms, model: str) -> TrustRule | None:
    """Return the rule that decides about a model; None when there is none."""
    return next((r for r in terms.rules if any(fnmatchcase(model, pattern) for pattern in r.models)), None)


def judge(
    terms: TrustTerms,
    model: str,
    found: Iterable[Signed],
    *,
    needed: Collection[str],
    card: str = "",
    failures: Sequence[str] = (),
) -> Verdict:
    """Return what a policy says of a model, whatever its mode.

    `needed` are the digests that a signature must be over to count, `card` that of the package's card, for the name is
    in there; empty: it does not matter. `failures` say why other signatures do not hold, for people.
    """
    denied = sorted(set(needed) & set(terms.denied))
    if denied:
        return Verdict(covered=False, message=f"{_short(denied[0])} is denied by the policy, whoever signed it")
    rule = rule_of(terms, model)
    if rule is None:
        return Verdict(covered=False, message=f'no rule of the policy is about the model "{model}"')
    everything = list(found)
    covering = [one for one in everything if set(needed) <= set(one.files.values()) and is_over(one, card)]
    signers = {signer.key: signer for one in covering for signer in one.signers}
    met = matched(rule, list(signers.values()))
    if met >= rule.threshold:
        return Verdict(covered=True, message=f"signed by {_list(map(describe, signers.values()))}{_by(terms, rule)}")
    why = f"found {_list(map(describe, signers.values()))}" if signers else "found no signature that holds"
    if len(everything) > len(covering):
        why += f" ({len(everything) - len(covering)} of other files)"
    if failures:
        why += f" ({'; '.join(failures[:2])})"
    return Verdict(covered=False, message=f"{why}; wanted {_wanted(rule)}{_by(terms, rule)}")


def is_over(signed: Signed, card: str) -> bool:
    """Return whether something signed is the package of that card."""
    return not card or signed.files.get(CARD_FILE) == card


def check_card(raw: bytes, *, model: str, version: str, variants: Mapping[str, str], golden: str) -> None:
    """Refuse a card of another model than it is said to be of: `variants` are digests by name, `golden` may be empty.

    Raises InvalidError, IntegrityError.
    """
    card = decode(raw)
    if (card.model, card.version) != (model, version):
        raise IntegrityError(f"is of {card.model} {card.version}, not of {model} {version}"[:300], element=CARD_FILE)
    listed = {packaged.variant.name: packaged.variant.blob.digest for packaged in card.variants}
    strange = sorted(name for name, digest in variants.items() if listed.get(name) != digest)
    if strange:
        raise IntegrityError(f'has no variant "{strange[0][:80]}" of that digest', element=CARD_FILE)
    if golden and card.golden.blob.digest != golden:
        raise IntegrityError("has other golden samples", element=CARD_FILE)


def matched(rule: TrustRule, signers: Sequence[Signer]) -> int:
    """Return how many entries of a rule can each be met by a signer of its own (a maximum matching)."""
    keys = {key_of(text) for text in rule.keys}
    entries = [[n for n, s in enumerate(signers) if s.key == key] for key in sorted(keys)]
    entries += [[n for n, s in enumerate(signers) if meets(one, s)] for one in dict.fromkeys(rule.identities)]
    taken: dict[int, int] = {}

    def place(entry: int, seen: set[int]) -> bool:
        for signer in entries[entry]:
            if signer not in seen:
                seen.add(signer)
                if signer not in taken or place(taken[signer], seen):
                    taken[signer] = entry
                    return True
        return False

    return sum(place(entry, set()) for entry in range(len(entries)))


def meets(wanted: TrustedIdentity, signer: Signer) -> bool:
    """Return whether a signer is the one meant: everything that is given is equal."""
    pairs = (
        (wanted.subject, signer.subject),
        (wanted.identity, signer.identity),
        (wanted.issuer, signer.issuer),
        (wanted.oidc_issuer, signer.oidc_issuer),
    )
    named = bool(wanted.subject or wanted.identity)
    return named and all(text == found for text, found in pairs if text)


def key_of(text: str) -> str:
    """Return the id of a key that a rule names by its PEM or by its digest. Raises InvalidError."""
    text = text.strip()
    if text.startswith("sha256:"):
        return text
    return key_id(der_of(text))


def der_of(pem: str) -> bytes:
    """Return a public key's DER. Raises InvalidError."""
    text = pem.strip()
    if not (text.startswith(_PEM_BEGIN) and text.endswith(_PEM_END)):
        raise InvalidError("is no public key in PEM", hint=f'it begins with "{_PEM_BEGIN}"; or write sha256:<hex>')
    try:
        return base64.b64decode("".join(text[len(_PEM_BEGIN) : -len(_PEM_END)].split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError("is no public key in PEM: its base64 is damaged") from None


def describe(signer: Signer) -> str:
    """Return a signer as people read it."""
    name = signer.identity or signer.subject
    if not name:
        return f"key {_short(signer.key)}"
    voucher = signer.oidc_issuer or signer.issuer
    return f"{name[:100]} (by {voucher[:100]})" if voucher else name[:100]


def _wanted(rule: TrustRule) -> str:
    entries = [f"key {_short(key_of(text))}" for text in rule.keys]
    entries += [one.identity or one.subject for one in rule.identities]
    return f"{rule.threshold} of {_list(entries)}" if entries else "a signer, of whom the rule names none"


def _by(terms: TrustTerms, rule: TrustRule) -> str:
    return f' (rule "{rule.name or f"rule-{terms.rules.index(rule) + 1}"}")'


def _list(words: Iterable[str]) -> str:
    listed = list(words)
    rest = len(listed) - _MAX_SHOWN
    return ", ".join(listed[:_MAX_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _short(digest: str) -> str:
    return digest[: len("sha256:") + _SHOWN_DIGITS]
