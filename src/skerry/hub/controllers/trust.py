"""Trust: what each namespace's policy says of its model versions, and whether a signed policy is what it says it is.

A verdict is made anew when the policy, the model version or its signatures change, and now and then besides, for
certificates expire; it is written when it differs. The hub obeys a policy as it is written down; whether devices do is
theirs to say, by the signatures in it, of which the hub has no keys.

Lives here: asking and writing. Must not live here: the rules (`core.trust_policy`, `core.anchor`), what a refusal means
for a rollout (`fleet`), handing the policy to devices (`device`).
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Literal

import msgspec

from skerry.api.errors import IntegrityError, NotFoundError, SkerryError
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.trust_policy import NAME, TrustPolicy, TrustPolicyStatus, TrustTerms, TrustVerdict
from skerry.api.meta import Condition, find_condition, set_condition
from skerry.core import anchor, manifest, trust_policy, trusted
from skerry.core.card import CARD_FILE, MAX_CARD_BYTES
from skerry.core.messages import TrustDesired
from skerry.core.ports import ArtifactStore
from skerry.drivers import owner_keys
from skerry.drivers.signing import policy
from skerry.hub import signatures
from skerry.hub.context import HubContext
from skerry.hub.controllers import informer
from skerry.hub.controllers.reconciler import Reconciler

log = logging.getLogger(__name__)

RECHECK_SECONDS = 600.0
"""A certificate may have expired meanwhile; and a policy that is signed."""

_AGED = (trusted.EXPIRES_SOON, trusted.EXPIRED)

Key = tuple[Literal["policy", "model"], str, str]
"""What is looked at: its kind, namespace and name."""


async def run(context: HubContext) -> None:
    """Write verdicts on model versions, for ever."""
    await TrustVerdicts(context).run()


def terms_of(item: TrustPolicy) -> TrustTerms:
    """Return what is signed of a policy."""
    return TrustTerms(**{name: getattr(item.spec, name) for name in TrustTerms.__struct_fields__})


def check_signed(item: TrustPolicy) -> str:
    """Return what a policy is to devices, in one sentence, expired or not. Raises as `read_signed`."""
    return read_signed(item)[0]


def read_signed(item: TrustPolicy) -> tuple[str, list[trusted.Life]]:
    """Return what a policy is to devices, in one sentence, and how long the policy and its trust anchor are good.

    Raises InvalidError, IntegrityError when it is signed and not what it says it is; devices are not handed such a one.
    """
    spec = item.spec
    if not spec.envelope:
        return "is not signed: the hub alone obeys it", []
    sealed = anchor.read(spec.envelope, "spec.envelope")
    signed = anchor.read_policy(sealed)
    if signed.namespace != item.metadata.namespace:
        raise IntegrityError(f'is signed for namespace "{signed.namespace}"', element="spec.envelope")
    if signed.terms != terms_of(item):
        raise IntegrityError(
            "signs other terms than are written beside it, and devices obey the signed ones",
            element="spec.envelope",
            hint="sign it again with `skerry trust sign-policy` after every change",
        )
    version, issued_at, expires_at = signed.terms.version, signed.terms.issued_at, signed.terms.expires_at
    if issued_at is None or expires_at is None:
        raise AssertionError("`read_policy` has refused it")
    lives = [trusted.Life(element=f"trust policy {version}", issued_at=issued_at, expires_at=expires_at)]
    if not spec.roots:
        return f"version {version} is signed; devices that have its trust anchor obey it", lives
    chain = [anchor.read(text, "spec.roots") for text in spec.roots]
    root = anchor.check_first(chain[0], owner_keys.verify)
    for following in chain[1:]:
        root = anchor.check_next(root, following, owner_keys.verify)
    anchor.check_policy(sealed, root, item.metadata.namespace, owner_keys.verify)
    element = f"trust anchor {root.version}"
    lives.append(trusted.Life(element=element, issued_at=root.issued_at, expires_at=root.expires_at))
    return f"version {version} is signed by the keys of {element}", lives


def handed(item: TrustPolicy | None) -> TrustDesired | None:
    """Return what devices are handed: a policy that is signed, if it is what it says it is."""
    if item is None or not item.spec.envelope:
        return None
    try:
        check_signed(item)
    except SkerryError:  # its condition says so
        return None
    return TrustDesired(roots=item.spec.roots, policy=item.spec.envelope)


class TrustVerdicts:
    """The controller; see `run`."""

    def __init__(self, context: HubContext) -> None:
        self._context = context
        self._work: Reconciler[Key] = Reconciler("trust", self.reconcile, self._failed)
        context.health.workers.add(self._work)
        self._policies = informer.of_kind(context.objects.store, TrustPolicy, self._policy_changed)
        self._models = informer.of_kind(context.objects.store, ModelVersion, self._model_changed)

    async def run(self) -> None:
        """Watch and reconcile."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._policies.run(), name="trust-policies")
            group.create_task(self._models.run(), name="trust-models")
            await self._policies.wait_synced()
            await self._models.wait_synced()
            group.create_task(self._work.run(), name="trust-reconciler")

    async def reconcile(self, key: Key) -> float | None:
        """Look once; returns the seconds until it wants to look again."""
        kind, namespace, name = key
        if kind == "policy":
            return await self._judge_policy(namespace)
        return await self._judge_model(namespace, name)

    # --- model versions ---------------------------------------------------------------------------------------------

    async def _judge_model(self, namespace: str, name: str) -> float | None:
        item = self._models.get(f"{namespace}/{name}")
        place = f"{namespace}/{NAME}"
        if item is None or self._policies.is_unreadable(place):
            return None
        found = self._policies.get(place)
        if found is None:
            await self._write(item, None)
            return None
        if item.status.phase != "Ready":  # its variants are not known yet; it is asked again when they are
            return None
        await self._write(item, await self._verdict(found, item))
        return RECHECK_SECONDS

    async def _verdict(self, item: TrustPolicy, model: ModelVersion) -> TrustVerdict:
        terms, now = terms_of(item), self._context.clock.now()
        made = TrustVerdict(policy_uid=item.metadata.uid, generation=item.metadata.generation, mode=terms.mode)
        try:
            bundles, lost = await _read(self._context.artifacts, model)
            found, failures = policy.verify_all(bundles, terms, now)
            card = await _check_card(self._context.artifacts, model) if found else ""
        except SkerryError as error:  # the policy's own keys, or the card
            return msgspec.structs.replace(made, message=error.sentence[:1000])
        needed = [variant.blob.digest for variant in model.status.variants] + [model.spec.golden.blob.digest]
        verdict = trust_policy.judge(
            terms, model.spec.model, found, needed=needed, card=card, failures=[*failures, *lost]
        )
        return msgspec.structs.replace(made, covered=verdict.covered, message=verdict.message[:1000])

    async def _write(self, item: ModelVersion, verdict: TrustVerdict | None) -> None:
        if item.status.trust == verdict:
            return
        namespace, name, uid = item.metadata.namespace, item.metadata.name, item.metadata.uid

        def change(current: ModelVersion) -> ModelVersion:
            if current.metadata.uid != uid:
                return current  # another one, which is looked at next
            return msgspec.structs.replace(current, status=msgspec.structs.replace(current.status, trust=verdict))

        try:
            written = await self._context.objects.update_status(ModelVersion, namespace, name, change)
        except NotFoundError:  # deleted meanwhile
            return
        self._models.observe(f"{namespace}/{name}", written, int(written.metadata.resource_version))
        if verdict is not None and verdict.mode != "off":
            level = logging.INFO if verdict.covered else logging.WARNING
            event = "trust.covered" if verdict.covered else "trust.not_covered"
            log.log(level, event + " namespace=%s name=%s message=%s", namespace, name, verdict.message)

    # --- policies ---------------------------------------------------------------------------------------------------

    async def _judge_policy(self, namespace: str) -> float | None:
        item = self._policies.get(f"{namespace}/{NAME}")
        if item is None:
            return None
        condition, wait = _accepted(item, self._context.clock.now())
        about = (item.metadata.uid, item.metadata.generation)
        verdicts = [one.status.trust for one in self._models.values(f"{namespace}/") if one.status.trust is not None]
        counted = [one.covered for one in verdicts if (one.policy_uid, one.generation) == about]

        def change(current: TrustPolicy) -> TrustPolicy:
            if (current.metadata.uid, current.metadata.generation) != about:
                return current
            status = TrustPolicyStatus(
                covered=counted.count(True),
                refused=counted.count(False),
                conditions=set_condition(current.status.conditions, condition),
            )
            return msgspec.structs.replace(current, status=status)

        if change(item) == item:
            return wait
        try:
            written = await self._context.objects.update_status(TrustPolicy, namespace, NAME, change)
        except NotFoundError:
            return None
        self._policies.observe(f"{namespace}/{NAME}", written, int(written.metadata.resource_version))
        before = find_condition(item.status.conditions, trusted.ACCEPTED)
        if (before is None or before.reason != condition.reason) and condition.reason in _AGED:
            log.warning(
                "trust.policy_ages namespace=%s reason=%s message=%s", namespace, condition.reason, condition.message
            )
        return wait

    async def _failed(self, key: Key, error: Exception) -> None:
        """Nothing is written: without a verdict nothing is rolled out, and the log has said why there is none."""

    # --- what a change concerns -------------------------------------------------------------------------------------

    def _policy_changed(self, old: TrustPolicy | None, new: TrustPolicy | None) -> None:
        item = new or old
        if item is None or (old and new and (old.metadata.uid, old.spec) == (new.metadata.uid, new.spec)):
            return
        namespace = item.metadata.namespace
        self._work.add(("policy", namespace, NAME))
        for model in self._models.values(f"{namespace}/"):
            self._work.add(("model", namespace, model.metadata.name))

    def _model_changed(self, old: ModelVersion | None, new: ModelVersion | None) -> None:
        item = new or old
        if item is None:
            return
        namespace = item.metadata.namespace
        if old is None or new is None or old.status.trust != new.status.trust:
            self._work.add(("policy", namespace, NAME))
        if new is not None and (old is None or _substance(old) != _substance(new)):
            self._work.add(("model", namespace, new.metadata.name))


def _accepted(item: TrustPolicy, now: datetime) -> tuple[Condition, float | None]:
    """Return a policy's condition, and the seconds until it may be another one; None: not before the policy changes."""
    aged, wait = "", None
    try:
        message, lives = read_signed(item)
        policy.load(terms_of(item))
        accepted, reason = True, "Signed" if item.spec.envelope else "Unsigned"
        if lives:
            aged, left, wake_at = trusted.remaining(lives, now)
            accepted, reason, message = aged != trusted.EXPIRED, aged or reason, left or message
            seconds = RECHECK_SECONDS if wake_at is None else max((wake_at - now).total_seconds(), 1.0)
            wait = min(seconds, RECHECK_SECONDS)
    except SkerryError as error:
        accepted, reason, message = False, "Invalid", error.sentence[:1000]
    condition = Condition(
        type=trusted.ACCEPTED,
        status="True" if accepted else "False",
        reason=reason,
        message=message,
        last_transition_time=now,
        observed_generation=item.metadata.generation,
    )
    return condition, wait


def _substance(item: ModelVersion) -> tuple[object, ...]:
    """What a verdict depends on, and the verdict, should somebody have overwritten it."""
    status = item.status
    return item.metadata.uid, item.spec, status.phase, status.variants, status.signatures, status.card, status.trust


async def _read(artifacts: ArtifactStore, item: ModelVersion) -> tuple[list[bytes], list[str]]:
    """Return the bundles attached to a model version, and why others cannot be had."""
    found, lost = [], []
    for blob in item.status.signatures:
        try:
            found.append(await signatures.read(artifacts, item.spec.artifact.repository, blob))
        except (SkerryError, OSError) as error:
            lost.append(f"a signature cannot be read: {error}"[:300])
    return found, lost


async def _check_card(artifacts: ArtifactStore, item: ModelVersion) -> str:
    """Return the digest of a model version's card, if it is the card of that version."""
    card = item.status.card
    if card is None:
        raise NotFoundError("is not attached to it, and says of which model a signature is", element=CARD_FILE)
    raw = await signatures.read(artifacts, item.spec.artifact.repository, card, most=MAX_CARD_BYTES)
    if manifest.digest_of(raw) != card.digest:
        raise IntegrityError("is not what its digest says", element=CARD_FILE)
    trust_policy.check_card(
        raw,
        model=item.spec.model,
        version=item.spec.version,
        variants={variant.name: variant.blob.digest for variant in item.status.variants},
        golden=item.spec.golden.blob.digest,
    )
    return card.digest
