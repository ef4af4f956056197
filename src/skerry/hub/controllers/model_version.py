"""ModelVersions: what the registry holds of them. Ready when every manifest and blob is there, Broken when one is not.

A broken one is looked at again, ever later, for what is missing may still be pushed. A Ready one never changes, but for
the signatures attached to it, which are looked for every SIGNATURES_SECONDS. Must not live here: how manifests are read
(`core.manifest`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import msgspec

from skerry.api.errors import ConflictError, IntegrityError, InvalidError, NotFoundError, SkerryError
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.trust_policy import NAME as TRUST_POLICY
from skerry.api.kinds.trust_policy import TrustPolicy
from skerry.api.kinds.variants import Blob, Delta, Variant
from skerry.api.meta import Condition, set_condition
from skerry.core import manifest
from skerry.core.ports import ArtifactStore
from skerry.hub import signatures
from skerry.hub.context import HubContext
from skerry.hub.controllers import informer, reconciler
from skerry.hub.deltas import Deltas

log = logging.getLogger(__name__)

Key = tuple[str, str]
Phase: TypeAlias = Literal["Pending", "Ready", "Broken"]
SIGNATURES_SECONDS = 60.0
"""On average, between two looks at what is attached to a version."""


async def run(context: HubContext) -> None:
    """Fill in the status of every ModelVersion, for ever."""
    await ModelVersions(context).run()


async def inspect(artifacts: ArtifactStore, item: ModelVersion) -> list[Variant]:
    """Return the variants that the registry holds for a model version, by name.

    Raises NotFoundError, InvalidError or IntegrityError that names the digest at fault.
    """
    spec = item.spec
    repository = spec.artifact.repository
    index = manifest.read_index(await artifacts.get_manifest(repository, spec.artifact.digest))
    if (index.model, index.version) != (spec.model, spec.version):
        raise InvalidError(
            f"is of {index.model} {index.version}, not of {spec.model} {spec.version}",
            element=f"index {spec.artifact.digest}",
        )
    await _check_blob(artifacts, repository, spec.golden.blob)
    variants = []
    for entry in index.manifests:
        variant = manifest.read_variant(await artifacts.get_manifest(repository, entry.digest))
        await _check_blob(artifacts, repository, variant.blob)
        variants.append(variant)
    if len({variant.name for variant in variants}) != len(variants):
        raise InvalidError("names one variant twice", element=f"index {spec.artifact.digest}")
    if not variants:
        raise InvalidError("has no variants", element=f"index {spec.artifact.digest}")
    return sorted(variants, key=lambda variant: variant.name)


class ModelVersions:
    """The controller; see `run`."""

    def __init__(self, context: HubContext) -> None:
        self._context = context
        self._deltas = Deltas(context)
        self._work: reconciler.Reconciler[Key] = reconciler.Reconciler("model-version", self.reconcile, self._failed)
        context.health.workers.add(self._work)
        self._items = informer.of_kind(context.objects.store, ModelVersion, self._changed)

    async def run(self) -> None:
        """Watch and reconcile."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._items.run(), name="model-version-informer")
            group.create_task(self._work.run(), name="model-version-reconciler")

    async def reconcile(self, key: Key) -> float | None:
        """Look once. Raises what is wrong, so that it is shown and looked at again."""
        item = self._items.get("/".join(key))
        if item is None:
            return None
        if item.status.phase == "Ready" and item.status.variants:
            await self._look_for_signatures(item)
            return _soon()
        variants = await inspect(self._context.artifacts, item)
        sentence = f"{len(variants)} variants: {', '.join(variant.name for variant in variants)}"
        deltas = await self._deltas.make(item, variants)
        signed, card = await self._signatures(item, variants), await self._card(item)
        await self._write(item, "Ready", "Complete", sentence, (variants, deltas), signed=signed, card=card)
        log.info("model_version.ready namespace=%s name=%s variants=%d signatures=%d", *key, len(variants), len(signed))
        return _soon()

    async def _signatures(self, item: ModelVersion, variants: Sequence[Variant]) -> list[Blob]:
        """Return what devices are told of; where that is not all, first what the namespace's policy asks for."""
        spec, signer_of = item.spec, None
        policy = await self._context.objects.find(TrustPolicy, item.metadata.namespace, TRUST_POLICY)
        if policy is not None:
            needed = [*(variant.blob.digest for variant in variants), spec.golden.blob.digest]
            signer_of = signatures.wanted_signer(policy.spec, spec.model, needed, self._context.clock.now())
        return await signatures.find(
            self._context.artifacts,
            spec.artifact.repository,
            spec.artifact.digest,
            known=item.status.signatures,
            signer_of=signer_of,
        )

    async def _card(self, item: ModelVersion) -> Blob | None:
        artifact = item.spec.artifact
        return await signatures.find_card(self._context.artifacts, artifact.repository, artifact.digest)

    async def _look_for_signatures(self, item: ModelVersion) -> None:
        """Write down which signatures are attached now; a registry that does not answer changes nothing."""
        namespace, name = item.metadata.namespace, item.metadata.name
        try:
            found = await self._signatures(item, item.status.variants)
            card = item.status.card or await self._card(item)
        except (SkerryError, OSError) as error:
            log.warning("model_version.signatures_unknown namespace=%s name=%s error=%s", namespace, name, error)
            return
        if (found, card) == (item.status.signatures, item.status.card):
            return

        def change(current: ModelVersion) -> ModelVersion:
            status = msgspec.structs.replace(current.status, signatures=found, card=card)
            return msgspec.structs.replace(current, status=status)

        await self._update(item, change)
        log.info("model_version.signatures namespace=%s name=%s signatures=%d", namespace, name, len(found))

    async def _failed(self, key: Key, error: Exception) -> None:
        item = self._items.get("/".join(key))
        if item is None:
            return
        known = isinstance(error, NotFoundError | InvalidError | IntegrityError)
        reason = "Incomplete" if isinstance(error, NotFoundError) else "Invalid" if known else "Error"
        phase: Phase = "Broken" if known else item.status.phase
        await self._write(item, phase, reason, str(error)[:1000])

    async def _write(
        self,
        item: ModelVersion,
        phase: Phase,
        reason: str,
        message: str,
        found: tuple[Sequence[Variant], Sequence[Delta]] = ((), ()),
        *,
        signed: Sequence[Blob] = (),
        card: Blob | None = None,
    ) -> None:
        condition = Condition(
            type="Ready",
            status="True" if phase == "Ready" else "False",
            reason=reason,
            message=message,
            last_transition_time=self._context.clock.now(),
            observed_generation=item.metadata.generation,
        )
        status = msgspec.structs.replace(
            item.status,
            phase=phase,
            variants=list(found[0]),
            deltas=list(found[1]),
            signatures=list(signed),
            card=card or item.status.card,
            conditions=set_condition(item.status.conditions, condition),
        )

        await self._update(item, lambda current: msgspec.structs.replace(current, status=status))

    async def _update(self, item: ModelVersion, change: Callable[[ModelVersion], ModelVersion]) -> None:
        """Write what came of looking at that very version. Raises ConflictError if another one has its name now."""
        namespace, name = item.metadata.namespace, item.metadata.name

        def checked(current: ModelVersion) -> ModelVersion:
            if current.metadata.uid != item.metadata.uid:
                raise ConflictError(element=f'modelversions "{name}"')
            return change(current)

        try:
            written = await self._context.objects.update_status(ModelVersion, namespace, name, checked)
        except NotFoundError:  # deleted meanwhile
            return
        self._items.observe(f"{namespace}/{name}", written, int(written.metadata.resource_version))

    def _changed(self, old: ModelVersion | None, new: ModelVersion | None) -> None:
        if new is not None and (old is None or old.spec != new.spec or old.metadata.uid != new.metadata.uid):
            self._work.add((new.metadata.namespace, new.metadata.name))


def _soon() -> float:
    """Seconds until signatures are looked for again; spread, for all versions are looked at when a hub starts."""
    return SIGNATURES_SECONDS * random.uniform(0.75, 1.25)  # noqa: S311


async def _check_blob(artifacts: ArtifactStore, repository: str, blob: Blob) -> None:
    size = await artifacts.stat_blob(repository, blob.digest)
    if size != blob.size:
        raise IntegrityError(f"has {size} bytes, not {blob.size}", element=f"blob {blob.digest}")
