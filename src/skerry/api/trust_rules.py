"""What the types of a trust policy cannot say; run by `rules` wherever such a struct stands in an object.

Lives here: rules on single structs. Must not live here: whether keys and signatures are good (`core.anchor`, drivers).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

from skerry.api.errors import InvalidError
from skerry.api.kinds import trust_policy
from skerry.api.kinds.trust_policy import TrustedIdentity, TrustPolicy, TrustRule

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PEM = re.compile(r"\s*-----BEGIN (?P<label>[A-Z ]{1,40})-----(?P<body>[A-Za-z0-9+/=\s]*)-----END (?P=label)-----\s*")


def check_policy(item: TrustPolicy, _: str) -> Iterator[InvalidError]:
    """Yield another name than the one there is, and what makes no sense of what is signed."""
    spec, name = item.spec, item.metadata.name
    if item.metadata.generate_name or name not in ("", trust_policy.NAME):
        yield InvalidError(
            f'a namespace has one trust policy, named "{trust_policy.NAME}"',
            element="metadata.name",
            hint="put its rules into that one; the first that matches a model decides",
        )
    for position, pem in enumerate(spec.authorities):
        if not _is_pem(pem, "CERTIFICATE"):
            yield InvalidError("is no certificate in PEM", element=f"spec.authorities[{position}]")
    if spec.issued_at is not None and spec.expires_at is not None and spec.expires_at <= spec.issued_at:
        yield InvalidError("is before issuedAt", element="spec.expiresAt")
    if spec.envelope and spec.version < 1:
        yield InvalidError("is 0 in a signed policy", element="spec.version", hint="sign it again with a version")
    if spec.roots and not spec.envelope:
        yield InvalidError(
            "are for devices, which take signed policies only",
            element="spec.roots",
            hint="sign it with `skerry trust sign-policy`",
        )


def check_rule(rule: TrustRule, path: str) -> Iterator[InvalidError]:
    """Yield keys that are none, and a threshold that nobody could meet."""
    for position, key in enumerate(rule.keys):
        if not _DIGEST.fullmatch(key.strip()) and not _is_pem(key, "PUBLIC KEY"):
            yield InvalidError(
                "is neither a public key in PEM nor its digest",
                element=f"{path}.keys[{position}]",
                hint="paste what begins with -----BEGIN PUBLIC KEY-----, or write sha256:<64 hex digits>",
            )
    entries = len(rule.keys) + len(rule.identities)
    if rule.threshold > entries:
        yield InvalidError(
            f"{rule.threshold} of {entries} keys and identities can never be met",
            element=f"{path}.threshold",
            hint="name more of them, or lower it",
        )


def check_identity(identity: TrustedIdentity, path: str) -> Iterator[InvalidError]:
    """Yield one that names nobody: an issuer alone would let everybody sign whom it vouches for."""
    if not identity.subject and not identity.identity:
        yield InvalidError("names neither subject nor identity", element=path, hint="say who it is")


def _is_pem(text: str, label: str) -> bool:
    match = _PEM.fullmatch(text)
    if match is None or match["label"] != label:
        return False
    try:
        return bool(base64.b64decode("".join(match["body"].split()), validate=True))
    except (binascii.Error, ValueError):
        return False
