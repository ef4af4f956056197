"""TrustPolicy: whose signatures a namespace's models need before the hub deploys them and its devices take them.

Lives here: the types. Must not live here: verdicts (`core.trust_policy`), signatures over the policy itself
(`core.anchor`), cryptography.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from skerry.api.meta import API_VERSION, Condition, Digest, Name, ObjectMeta, Struct

NAME = "default"
"""The only name a TrustPolicy may have: a namespace has one, so that there is one version to rise."""
MAX_ROOTS = 32
"""Versions of the trust anchor that devices are told of."""
MAX_ROOT_CHARACTERS = 32 * 1024
MAX_ENVELOPE_CHARACTERS = 128 * 1024
MAX_POLICY_VERSION = 2**31 - 1

Mode = Literal["enforce", "warn", "off"]
_Pem = Annotated[str, msgspec.Meta(max_length=16 * 1024)]
_Text = Annotated[str, msgspec.Meta(max_length=1024)]
_Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


class TrustedIdentity(Struct, frozen=True, kw_only=True):
    """A signer known by its certificate; every field that is given must be equal, and one of the first two is."""

    subject: _Text = ""
    """The certificate's subject, as `skerry model verify` shows it."""
    identity: _Text = ""
    """Its subject alternative name, as a keyless signer's e-mail address or workflow."""
    issuer: _Text = ""
    """The subject of the CA that issued the certificate."""
    oidc_issuer: _Text = ""
    """Who vouched for a keyless signer, as `https://accounts.example.com`."""


class TrustRule(Struct, frozen=True, kw_only=True):
    """Who may sign which models."""

    name: Annotated[str, msgspec.Meta(max_length=63)] = ""
    """For people; `rule-<number>` unless given."""
    models: Annotated[list[_Pattern], msgspec.Meta(min_length=1, max_length=64)]
    """Names of models, as served; `*`, `?` and `[...]` as in a shell, upper and lower case count."""
    keys: Annotated[list[_Pem], msgspec.Meta(max_length=32)] = []
    """Public keys: PEM, or `sha256:<hex>` of the SubjectPublicKeyInfo where it is a certificate's key."""
    identities: Annotated[list[TrustedIdentity], msgspec.Meta(max_length=32)] = []
    threshold: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    """How many of these keys and identities must have signed, each by a signer of its own."""


class TrustTerms(Struct, frozen=True, kw_only=True):
    """What is signed of a policy, and obeyed by devices that have a trust anchor."""

    version: Annotated[int, msgspec.Meta(ge=0, le=MAX_POLICY_VERSION)] = 0
    """Rises with every policy that is signed for the namespace; 0: not to be signed."""
    issued_at: datetime | None = None
    """Set when it is signed: a device whose clock is behind it takes this for the time."""
    expires_at: datetime | None = None
    """Devices take nothing new by a signed policy that is older; what serves goes on."""
    mode: Mode = "enforce"
    """Refuse what is not covered, take it with a warning, or do not look."""
    rules: Annotated[list[TrustRule], msgspec.Meta(max_length=128)] = []
    """In order: the first one whose `models` match decides. A model that none matches is not covered."""
    authorities: Annotated[list[_Pem], msgspec.Meta(max_length=32)] = []
    """CA certificates in PEM, from which signers' certificates must come."""
    denied: Annotated[list[Digest], msgspec.Meta(max_length=1024)] = []
    """Files that are not taken any more, whoever signed them: the digests of variants."""


class TrustPolicySpec(TrustTerms, frozen=True, kw_only=True):
    """The policy. `skerry trust sign-policy` fills in the last two fields, which devices with a trust anchor need."""

    envelope: Annotated[str, msgspec.Meta(max_length=MAX_ENVELOPE_CHARACTERS)] = ""
    """These terms, signed by the keys that the trust anchor names: a DSSE envelope in JSON. Empty: the hub alone obeys
    the policy."""
    roots: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=MAX_ROOT_CHARACTERS)]], msgspec.Meta(max_length=MAX_ROOTS)
    ] = []
    """The trust anchor's versions in their order, each signed: what devices with an older one need to follow."""


class TrustPolicyStatus(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What the hub makes of it."""

    covered: int = 0
    """Model versions of the namespace that it covers."""
    refused: int = 0
    """Model versions that it does not cover."""
    conditions: list[Condition] = []


class TrustPolicy(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Whose signatures the models of a namespace need. It is named `default`; without one, none are needed."""

    metadata: ObjectMeta
    spec: TrustPolicySpec = TrustPolicySpec()
    status: TrustPolicyStatus = TrustPolicyStatus()
    api_version: str = API_VERSION
    kind: Literal["TrustPolicy"] = "TrustPolicy"


class TrustVerdict(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What a namespace's policy says of one model version; on its status."""

    policy: Name = NAME
    policy_uid: str = ""
    generation: int = 0
    """Of the policy that was asked."""
    mode: Mode = "enforce"
    covered: bool = False
    message: str = ""
    """One sentence: which signers were found, and which were wanted."""
