"""Copy a model version, or any other artifact, between registries: manifests byte for byte, with all that refers to it.

What is there is not sent again; within one registry blobs are mounted. Every digest is checked on its way. Must not
live here: requests (`repository`), what is printed.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from skerry.api.errors import InvalidError, StorageFullError, TooLargeError
from skerry.api.kinds.variants import Blob
from skerry.core import manifest as manifests
from skerry.core.ports import Manifest
from skerry.drivers.client.registry import check_tag
from skerry.drivers.client.repository import Content, Repository

MAX_MANIFESTS = 4096
MAX_DEPTH = 8


@dataclass(kw_only=True)
class CopiedModel:
    """What a copy did."""

    index: str = ""
    manifests: int = 0
    mounted: int = 0
    """Bytes of blobs that the registry took over from its other repository."""


def copy_model(
    source: Repository, target: Repository, reference: str, tag: str, *, one_registry: bool = False
) -> CopiedModel:
    """Copy what `reference` names, and set `tag` in the target last (empty: no tag).

    `one_registry` says that both lie in the same registry. Raises ConflictError where the tag names something else.
    """
    root = source.get_manifest(reference)
    if tag:
        check_tag(target, tag, root)
    copying = _Copying(source, target, one_registry=one_registry)
    copying.copy(root, 0)
    if tag:
        check_tag(target, tag, root)
        target.put_manifest(tag, root)
    copying.done.index = root.digest
    return copying.done


class _Copying:
    def __init__(self, source: Repository, target: Repository, *, one_registry: bool) -> None:
        self._source = source
        self._target = target
        self._mounts = one_registry
        self._seen: set[str] = set()
        self.done = CopiedModel()

    def copy(self, manifest: Manifest, depth: int) -> None:
        """Copy a manifest: first what it needs, then itself, then what refers to it."""
        if manifest.digest in self._seen:
            return
        self._seen.add(manifest.digest)
        if len(self._seen) > MAX_MANIFESTS or depth > MAX_DEPTH:
            raise TooLargeError(
                f"has more than {MAX_MANIFESTS} manifests, or deeper than {MAX_DEPTH}", element=self._source.name
            )
        document = manifests.parse(manifest.raw, manifest.media_type)
        for part in document.content:
            if isinstance(document, manifests.ImageIndex):
                self.copy(self._source.get_manifest(part.digest), depth + 1)
            else:
                self._copy_blob(Blob(digest=part.digest, size=part.size))
        self._target.put_manifest(manifest.digest, manifest)
        self.done.manifests += 1
        for referrer in self._source.list_referrers(manifest.digest):
            attached = self._source.find_manifest(referrer.digest)
            if attached is not None:  # a list may still have what was removed
                self.copy(attached, depth + 1)

    def _copy_blob(self, blob: Blob) -> None:
        if blob.digest in self._seen:
            return
        self._seen.add(blob.digest)
        if self._target.has_blob(blob.digest):
            self._target.skipped += blob.size
            return
        if self._mounts and self._target.mount_blob(blob.digest, source=self._source.name):
            self.done.mounted += blob.size
            return
        try:
            with tempfile.TemporaryDirectory(prefix="skerry-copy-") as directory:
                if shutil.disk_usage(directory).free < blob.size:
                    raise StorageFullError(f"{blob.size} bytes are needed", element=directory, hint="set $TMPDIR")
                path = Path(directory) / "blob"
                self._source.pull_blob(blob.digest, blob, path)
                self._target.push_blob(Content(name=blob.digest, blob=blob, path=path))
        except OSError as error:
            kind = StorageFullError if error.errno == 28 else InvalidError
            raise kind(f"cannot be kept on its way: {error.strerror}", element=f"blob {blob.digest}") from error
