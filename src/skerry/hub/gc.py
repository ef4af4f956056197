"""Garbage collection of the hub's registry, and the removal of a model version that nothing needs.

    survey  ->  what is needed  ->  plan (`core.garbage`)  ->  discard one by one  ->  free bytes without links

The order matters: what comes to be needed after the survey was looked at for it, and `discard` leaves alone what was
looked at since. A crash in the middle leaves content without links, which the next collection frees. Must not live
here: HTTP, what is garbage.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from skerry.api.errors import ConflictError, IntegrityError, InvalidError, NotFoundError, UnsupportedError
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.core import desired, garbage
from skerry.core import manifest as manifests
from skerry.core.garbage import Item, Plan, Removed, Report
from skerry.core.ports import ArtifactStore, StoredRepository
from skerry.hub import needs
from skerry.hub.context import HubContext

log = logging.getLogger(__name__)

GRACE = timedelta(hours=24)
"""As long as an upload may lie unfinished: a push that takes longer has to send again what was removed."""
LEAST_GRACE = timedelta(minutes=1)
MOST_GRACE = timedelta(days=3650)
MAX_ITEMS = 5000
"""Listed in a report, of what stays and of what goes; the bytes are those of all."""


async def collect(context: HubContext, *, dry_run: bool, grace: timedelta = GRACE) -> Report:
    """Remove what nothing needs, or only say it.

    Raises UnsupportedError (the registry collects its own), IntegrityError (a record that cannot be read might need
    anything), ConflictError (it is under way), InvalidError.
    """
    if grace < LEAST_GRACE:
        raise InvalidError(f"is shorter than {LEAST_GRACE}", element="grace", hint="pushes under way need that time")
    if grace > MOST_GRACE:
        raise InvalidError(f"is longer than {MOST_GRACE.days} days", element="grace", hint="then nothing would go")
    if context.collecting.locked():
        raise ConflictError("is under way already", element="garbage collection", hint="wait for it to end")
    async with context.collecting:
        repositories = await context.artifacts.survey()
        found = await needs.read_needs(context.objects)
        fresh_after = int((context.clock.now() - grace).timestamp() * 1e9)
        plans = [
            await asyncio.to_thread(garbage.plan, one, found.of(one.name), fresh_after=fresh_after)
            for one in repositories
        ]
        if dry_run:
            return _report(plans, dry_run=True, freed=_would_free(plans))
        removed, left = await _discard(context.artifacts, {one.name: one for one in repositories}, plans)
        freed = await context.artifacts.free_unlinked()
    log.info("registry.collected removed=%d freed_bytes=%d left_alone=%d", len(removed), freed, len(left))
    report = _report(plans, dry_run=False, freed=freed)
    return Report(
        dry_run=False,
        removed=removed[:MAX_ITEMS],
        kept=report.kept,
        removed_count=len(removed),
        kept_count=report.kept_count,
        freed_bytes=freed,
        left_alone={**report.left_alone, **left},
    )


async def remove_model(context: HubContext, repository: str, reference: str) -> Removed:
    """Remove a tag, or with the last one the ModelVersion that it stands for.

    Its content stays until it is collected. Raises NotFoundError; ConflictError that names what needs it.
    """
    artifacts = context.artifacts
    digest = await _digest_of(artifacts, repository, reference)
    names = await artifacts.list_tags(repository)
    tags = [tag for tag in names if await _stands_for(artifacts, repository, tag, digest)]
    if manifests.is_tag(reference) and tags != [reference]:
        await artifacts.delete_manifest(repository, reference)
        return Removed(names=[f"{repository}:{reference}"])
    versions = [
        version
        async for version in needs.read_all(context.objects, ModelVersion)
        if (version.spec.artifact.repository, version.spec.artifact.digest) == (repository, digest)
    ]
    await _check_idle(context, versions, repository, digest)
    for version in versions:
        if version.metadata.finalizers:
            raise ConflictError("has finalizers", element=f"modelversion/{version.metadata.name}", hint="delete it")
    try:
        for tag in tags:
            await artifacts.delete_manifest(repository, tag)
    except UnsupportedError:  # a registry that removes no tags but with what they name
        await artifacts.delete_manifest(repository, digest)
    gone = [f"{repository}:{tag}" for tag in tags]
    for version in versions:
        namespace, name = version.metadata.namespace, version.metadata.name
        await context.objects.delete(ModelVersion, namespace, name, uid=version.metadata.uid)
        gone.append(f"modelversion/{name}")
    if not tags:  # by digest, and no tag that can be read stands for it
        await artifacts.delete_manifest(repository, digest)
        gone.append(f"{repository}@{digest}")
    log.info("registry.removed repository=%s digest=%s names=%d", repository, digest, len(gone))
    return Removed(names=gone)


async def _check_idle(context: HubContext, versions: list[ModelVersion], repository: str, digest: str) -> None:
    """Raise ConflictError if a deployment, a rollout or a device needs what is to be removed."""
    if not versions:  # something that versions consist of, or what is attached to them
        known = (await needs.read_needs(context.objects)).of(repository)
        for one in (digest, *await _parts(context.artifacts, repository, digest)):
            if one in known:
                raise _needed(f"{repository}@{digest[:19]}", f"{known[one]} consists of it")
        return
    for version in versions:
        await _check_unwanted(context, version)
    blobs = {variant.blob.digest for version in versions for variant in version.status.variants}
    async for record in needs.read_desired(context.objects):
        if any(one.repository == repository and blobs & set(one.digests) for one in desired.contents_of(record)):
            raise _needed(f"{repository}@{digest[:19]}", f"device/{record.device} has it, or goes back to it")


async def _check_unwanted(context: HubContext, version: ModelVersion) -> None:
    """Raise ConflictError if a deployment or a rollout puts a version on devices."""
    namespace, name = version.metadata.namespace, version.metadata.name
    async for deployment in needs.read_all(context.objects, ModelDeployment):
        if (deployment.metadata.namespace, deployment.spec.model_version) == (namespace, name):
            raise _needed(name, f"deployment/{deployment.metadata.name} deploys it")
    for rollout in needs.counting([rollout async for rollout in needs.read_all(context.objects, Rollout)]):
        same = rollout.spec.model_digest in ("", version.spec.artifact.digest)
        if same and (rollout.metadata.namespace, rollout.spec.template.model_version) == (namespace, name):
            raise _needed(name, f"rollout/{rollout.metadata.name} may still put it on devices")


async def _parts(artifacts: ArtifactStore, repository: str, digest: str) -> set[str]:
    try:
        found = await artifacts.get_manifest(repository, digest)
    except IntegrityError:  # damaged: nobody knows them, and nothing can be made of it
        return set()
    return {part.digest for part in manifests.parse(found.raw, found.media_type).content}


async def _stands_for(artifacts: ArtifactStore, repository: str, tag: str, digest: str) -> bool:
    try:
        return (await artifacts.get_manifest(repository, tag)).digest == digest
    except (NotFoundError, IntegrityError):  # a damaged one goes by its digest, with its tags
        return False


async def _digest_of(artifacts: ArtifactStore, repository: str, reference: str) -> str:
    """Return what a reference names, which may be damaged where its digest is given. Raises NotFoundError."""
    try:
        return (await artifacts.get_manifest(repository, reference)).digest
    except IntegrityError:
        if manifests.is_tag(reference):
            raise
        return reference


def _needed(what: str, why: str) -> ConflictError:
    return ConflictError(
        f"is needed: {why}", element=what, hint="deploy another version first, or delete what needs it"
    )


async def _discard(
    artifacts: ArtifactStore, repositories: dict[str, StoredRepository], plans: list[Plan]
) -> tuple[list[Item], dict[str, str]]:
    """Remove what is planned, each repository until something of it was looked at meanwhile."""
    removed: list[Item] = []
    left: dict[str, str] = {}
    for plan in plans:
        repository = repositories[plan.repository]
        for item in plan.garbage:
            links = repository.manifests if item.kind == "manifest" else repository.blobs
            gone = await artifacts.discard(item.repository, item.kind, item.digest, touched=links[item.digest].touched)
            if not gone:
                left[plan.repository] = f"{item.kind} {item.digest} was asked for meanwhile"
                break
            removed.append(item)
    return removed, left


def _would_free(plans: list[Plan]) -> int:
    """Return the bytes of content that no repository would have any more."""
    kept = {item.digest for plan in plans for item in plan.kept}
    return sum({item.digest: item.size for p in plans for item in p.garbage if item.digest not in kept}.values())


def _report(plans: list[Plan], *, dry_run: bool, freed: int) -> Report:
    return Report(
        dry_run=dry_run,
        removed=[item for plan in plans for item in plan.garbage][:MAX_ITEMS],
        kept=[item for plan in plans for item in plan.kept][:MAX_ITEMS],
        removed_count=sum(len(plan.garbage) for plan in plans),
        kept_count=sum(len(plan.kept) for plan in plans),
        freed_bytes=freed,
        left_alone={plan.repository: plan.problem for plan in plans if plan.problem},
    )
