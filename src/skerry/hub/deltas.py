"""Deltas between model versions, made when a version comes, so that they are there when it is rolled out.

    from     the same variant of versions of the same model that are deployed in the namespace now; at most MAX_BASES
    made     in a process of its own (`delta_process`), one at a time, within MAKE_SECONDS for all of a version
    kept     when it is at most WORTH of the variant's size and saves LEAST_BYTES, as a referrer of its manifest

Nothing here keeps a version from becoming Ready: what cannot be made is logged, and devices fetch the whole. Must not
live here: how deltas are encoded (`core.delta_encode`), who is told of them (`core.placement`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from skerry.api.errors import InvalidError, NotFoundError, SkerryError, StorageFullError
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.variants import Blob, Delta, Variant
from skerry.core import delta, manifest
from skerry.core.ports import ArtifactStore
from skerry.hub import objects
from skerry.hub.context import HubContext
from skerry.hub.delta_process import TOO_LARGE

T = TypeVar("T", ModelDeployment, ModelVersion)

log = logging.getLogger(__name__)

MAX_BASES = 4
"""Versions from which deltas are made to a new one."""
MAX_BYTES = 1024 * 1024 * 1024
"""Of a model file; there is no delta from or to a larger one."""
MAKE_SECONDS = 60.0
WORTH = 0.9
LEAST_BYTES = 4096
ROOM = 4
"""Times as much as making one takes has to be free: the store and the registry come first."""
SAID_BYTES = 2000
"""Of what the process that makes a delta says, at its end, goes to the log."""
_PREFIX = "making-delta-"
_CHUNK_BYTES = 1024 * 1024


class Deltas:
    """Makes them; one for each hub."""

    def __init__(self, context: HubContext) -> None:
        self._context = context
        self._making = asyncio.Lock()
        for left in context.state_dir.glob(f"{_PREFIX}*"):  # of a hub that was killed
            shutil.rmtree(left, ignore_errors=True)

    async def make(self, item: ModelVersion, variants: Sequence[Variant]) -> list[Delta]:
        """Return the deltas to a version's variants, made and pushed as far as time allows; never raises for them."""
        made: list[Delta] = []
        try:
            async with asyncio.timeout(MAKE_SECONDS), self._making:
                for base in await self._bases(item):
                    for old in base.status.variants:
                        for new in variants:
                            if (old.name, old.format) == (new.name, new.format) and _is_possible(old, new):
                                found = await self._try(base, old, item, new)
                                made += [] if found is None else [found]
        except TimeoutError:
            log.warning("delta.out_of_time name=%s seconds=%d", item.metadata.name, MAKE_SECONDS)
        return made

    async def _bases(self, item: ModelVersion) -> list[ModelVersion]:
        """Find the versions that devices may have, as far as their deployments say."""
        namespace = item.metadata.namespace
        deployed = {one.spec.model_version for one in await self._read(ModelDeployment, namespace)}
        alike = [
            one
            for one in await self._read(ModelVersion, namespace)
            if one.metadata.name in deployed - {item.metadata.name}
            and one.spec.model == item.spec.model
            and _is_of(namespace, one)
            and _is_of(namespace, item)
        ]
        alike.sort(key=lambda one: (one.metadata.creation_timestamp is not None, one.metadata.creation_timestamp))
        return [one for one in alike if one.status.phase == "Ready"][-MAX_BASES:]

    async def _read(self, kind: type[T], namespace: str) -> list[T]:
        """Read all objects of a kind; one that cannot be read is somebody else's business."""
        found: list[T] = []
        for record in (await self._context.objects.store.list(objects.prefix_of(kind, namespace))).records:
            with contextlib.suppress(msgspec.MsgspecError):
                found.append(objects.decode(kind, record))
        return found

    async def _try(self, base: ModelVersion, old: Variant, item: ModelVersion, new: Variant) -> Delta | None:
        try:
            return await self._one(base.spec.artifact.repository, old, item.spec.artifact.repository, new)
        except (SkerryError, OSError) as error:
            log.warning("delta.failed name=%s variant=%s error=%s", item.metadata.name, new.name, error)
            return None

    async def _one(self, old_repository: str, old: Variant, repository: str, new: Variant) -> Delta | None:
        artifacts, most = self._context.artifacts, int(min(new.blob.size * WORTH, new.blob.size - LEAST_BYTES))
        needed = old.blob.size + 2 * new.blob.size
        if shutil.disk_usage(self._context.state_dir).free < ROOM * needed:
            raise StorageFullError(f"{ROOM} times {needed} bytes are not free", element="delta")
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=self._context.state_dir) as directory:
            paths = [Path(directory) / name for name in ("old", "new", "delta")]
            await _copy(artifacts.read_blob(old_repository, old.blob.digest), paths[0])
            await _copy(artifacts.read_blob(repository, new.blob.digest), paths[1])
            arguments = [*map(str, paths), old.blob.digest, new.blob.digest, new.format, str(most)]
            if not await _run(arguments):
                log.info("delta.not_worth variant=%s base=%s target=%s", new.name, old.blob.digest, new.blob.digest)
                return None
            blob = await asyncio.to_thread(_describe, paths[2])
            await _push(artifacts, repository, new, paths[2], blob, base=old.blob.digest)
        log.info("delta.made variant=%s bytes=%d of=%d", new.name, blob.size, new.blob.size)
        return Delta(base=old.blob.digest, target=new.blob.digest, blob=blob, encoding=delta.ENCODING)


def _is_of(namespace: str, item: ModelVersion) -> bool:
    """A delta holds content of both its ends: none may carry it from one namespace's repositories to another's."""
    return item.spec.artifact.repository.split("/", 1)[0] == namespace


def _is_possible(old: Variant, new: Variant) -> bool:
    sizes = (old.blob.size, new.blob.size)
    return old.blob.digest != new.blob.digest and min(sizes) > 0 and max(sizes) <= MAX_BYTES and sizes[1] > LEAST_BYTES


async def _run(arguments: Sequence[str]) -> bool:
    """Run the process to its end; whether there is a delta. It does not outlive who waits for it.

    Raises InvalidError where it failed.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "skerry.hub.delta_process", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said = await _last_words(process)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if said:
        log.warning("delta.process_said code=%d text=%s", code, json.dumps(said))
    if code not in (0, TOO_LARGE):
        raise InvalidError(f"the process that makes it ended with code {code}", element="delta")
    return code == 0


async def _last_words(process: asyncio.subprocess.Process) -> str:
    """Return the end of what the process writes on stderr, which is read to its end so that it never blocks on it."""
    last = b""
    while process.stderr is not None and (piece := await process.stderr.read(SAID_BYTES)):
        last = (last + piece)[-SAID_BYTES:]
    return last.decode(errors="replace").strip()


async def _push(
    artifacts: ArtifactStore, repository: str, variant: Variant, path: Path, blob: Blob, *, base: str
) -> None:
    """Put a delta beside the variant it leads to. Raises what a registry may."""
    subject = await artifacts.get_manifest(repository, variant.manifest or "")
    referrer = manifest.build_delta(subject, blob, base=base, target=variant.blob.digest, encoding=delta.ENCODING)
    await _upload(artifacts, repository, manifest.digest_of(manifest.EMPTY_CONFIG), _once(manifest.EMPTY_CONFIG))
    await _upload(artifacts, repository, blob.digest, _read(path))
    await artifacts.put_manifest(repository, referrer.digest, referrer.media_type, referrer.raw)


async def _upload(artifacts: ArtifactStore, repository: str, digest: str, content: AsyncIterator[bytes]) -> None:
    upload = await artifacts.start_upload(repository)
    try:
        await artifacts.append_upload(upload, content, offset=0)
        await artifacts.finish_upload(upload, digest)
    except BaseException:
        with contextlib.suppress(NotFoundError):  # the next try begins another
            await artifacts.cancel_upload(upload)
        raise


async def _copy(content: AsyncIterator[bytes], path: Path) -> None:
    with path.open("xb") as file:
        async for chunk in content:
            await asyncio.to_thread(file.write, chunk)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk


def _describe(path: Path) -> Blob:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Blob(digest=f"sha256:{digest}", size=file.tell(), media_type=manifest.DELTA_TYPE)
