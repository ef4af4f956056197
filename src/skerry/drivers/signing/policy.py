"""Verify a model's signatures with what a trust policy trusts: its keys and its authorities. No I/O, no clock.

Must not live here: whether the signers found are enough (`core.trust_policy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from skerry.api.errors import SkerryError
from skerry.api.kinds.trust_policy import TrustTerms
from skerry.core.trust_policy import Signed
from skerry.drivers.signing import bundle


def verify_all(bundles: Sequence[bytes], terms: TrustTerms, now: datetime) -> tuple[list[Signed], list[str]]:
    """Return what the bundles say whose signatures hold at `now`, and why the others do not, in their order.

    Raises InvalidError, UnsupportedError for a policy whose keys or authorities cannot be used.
    """
    keys, authorities = load(terms)
    found: list[Signed] = []
    failures: list[str] = []
    for raw in bundles:
        try:
            found.append(bundle.verify(raw, keys=keys, authorities=authorities, now=now))
        except SkerryError as error:
            failures.append(error.cause[:300])
    return found, failures


def load(terms: TrustTerms) -> tuple[list[bundle.PublicKey], list[bundle.Certificate]]:
    """Return the public keys and CA certificates that a policy names. Raises InvalidError, UnsupportedError."""
    texts = dict.fromkeys(key for rule in terms.rules for key in rule.keys if not key.strip().startswith("sha256:"))
    keys = [bundle.read_public_key(text.encode(), "a key of the trust policy") for text in texts]
    authorities: list[bundle.Certificate] = []
    for text in dict.fromkeys(terms.authorities):
        authorities += bundle.read_certificates(text.encode(), "an authority of the trust policy")
    return keys, authorities
