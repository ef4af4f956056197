"""What a device may read: what is deployed to it, and nothing else of its namespace.

    blobs                      of its desired state's workloads and benchmarks, and of what each was just before
    manifests, referrers       of the model versions that those are of: index, variants, and what is attached to them
    blobs of what is attached  to such an index: card, golden samples, SBOM, signatures

Each request reads the device's own record, which is written before the desired state is sent: nobody is told of what he
may not fetch yet. A record that cannot be read is a passing failure, not a refusal: those are final for devices. Must
not live here: what belongs to a workload (`core.desired`).
"""

from __future__ import annotations

from contextlib import suppress

from skerry.api.errors import ForbiddenError, IntegrityError, InvalidError, NotFoundError, SkerryError, UnavailableError
from skerry.api.kinds.model_version import ModelVersion
from skerry.core import access, desired
from skerry.core import manifest as manifests
from skerry.core.ports import Manifest
from skerry.hub.context import HubContext
from skerry.hub.objects import UNREADABLE


class DeviceReach:
    """Looks things up by key: the device's record, and the few model versions in it."""

    def __init__(self, context: HubContext) -> None:
        self._context = context

    async def check_blob(self, device: access.Identity, repository: str, digest: str) -> None:
        """Refuse a blob that is not for this device, whether it exists or not. Raises ForbiddenError."""
        record = await self._record(device)
        if record is not None and desired.may_fetch(record, repository, digest):
            return
        for version in await self._versions(device, record, repository):
            if await self._is_attached(repository, version.spec.artifact.digest, digest):
                return
        raise _denied(device, digest)

    async def get_manifest(self, device: access.Identity, repository: str, reference: str) -> Manifest:
        """Return a manifest of what is deployed to the device. Raises ForbiddenError, also where there is none."""
        try:
            found = await self._context.artifacts.get_manifest(repository, reference)
            subject = manifests.parse(found.raw, found.media_type).subject
        except (NotFoundError, InvalidError):
            raise _denied(device, reference) from None
        known = await self._manifests(device, repository)
        if found.digest not in known and (subject is None or subject.digest not in known):
            raise _denied(device, reference)
        return found

    async def check_referrers(self, device: access.Identity, repository: str, digest: str) -> None:
        """Refuse to list what is attached to anything else. Raises ForbiddenError."""
        if digest not in await self._manifests(device, repository):
            raise _denied(device, digest)

    async def _record(self, device: access.Identity) -> desired.DesiredRecord | None:
        try:
            return await self._context.objects.get_desired(device.name)
        except IntegrityError as error:
            raise UnavailableError(error.cause, element=error.element) from error

    async def _versions(
        self, device: access.Identity, record: desired.DesiredRecord | None, repository: str
    ) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        for name in () if record is None else desired.versions_in(record, repository):
            with suppress(*UNREADABLE):
                version = await self._context.objects.find(ModelVersion, device.namespace, name)
                if version is not None and version.spec.artifact.repository == repository:
                    found.append(version)
        return found

    async def _manifests(self, device: access.Identity, repository: str) -> set[str]:
        known: set[str] = set()
        for version in await self._versions(device, await self._record(device), repository):
            known.add(version.spec.artifact.digest)
            known |= {variant.manifest for variant in version.status.variants if variant.manifest}
        return known

    async def _is_attached(self, repository: str, index: str, digest: str) -> bool:
        with suppress(NotFoundError, InvalidError):
            for referrer in await self._context.artifacts.list_referrers(repository, index):
                document = manifests.parse(referrer.raw, referrer.media_type)
                if digest in {part.digest for part in document.content}:
                    return True
        return False


def _denied(device: access.Identity, what: str) -> SkerryError:
    return ForbiddenError(
        "is not deployed to it", element=f"device {device.name}, {what[:255]}", hint="ask for what is desired of it"
    )
