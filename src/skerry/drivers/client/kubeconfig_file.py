"""Writing kubeconfigs: one cluster, one user and one context, as a file of their own or into one that is there.

Lives here: the content, merging, and the care not to lose anybody's file. Must not live here: where credentials come
from (`identities`), reading one (`kubeconfig`). Source: Kubernetes `clientcmd/api/v1`; kubectl's `config` for the lock.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry.api import codec, documents
from skerry.api.errors import AlreadyExistsError, InvalidError, SkerryError, UnavailableError
from skerry.drivers.client.kubeconfig import MAX_BYTES
from skerry.kit import files


@dataclass(frozen=True, kw_only=True)
class Entries:
    """What a kubeconfig gains: a context, and the cluster and the user in it."""

    context: str
    cluster_name: str
    user_name: str
    server: str
    namespace: str
    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)

    @property
    def lists(self) -> dict[str, dict[str, Any]]:
        """The entries as the file has them, by the list that each goes into."""
        cluster: dict[str, Any] = {"server": self.server}
        if self.ca:
            cluster["certificate-authority-data"] = _base64(self.ca)
        user: dict[str, Any] = {"token": self.token} if self.token else {}
        if self.certificate:
            user = {
                "client-certificate-data": _base64(self.certificate),
                "client-key-data": _base64(self.key),
                **user,
            }
        context = {"cluster": self.cluster_name, "user": self.user_name, "namespace": self.namespace}
        return {
            "clusters": {"name": self.cluster_name, "cluster": cluster},
            "users": {"name": self.user_name, "user": user},
            "contexts": {"name": self.context, "context": context},
        }


def render(entries: Entries) -> str:
    """Return a kubeconfig with these entries alone, as YAML."""
    return codec.to_yaml(
        {
            "apiVersion": "v1",
            "kind": "Config",
            **{name: [entry] for name, entry in entries.lists.items()},
            "current-context": entries.context,
        }
    )


def write_new(path: Path, entries: Entries, *, replace: bool) -> None:
    """Write a file of its own, for its owner only. Raises AlreadyExistsError where there is one, unless it may go."""
    with _held(path) as target:
        if target.exists() and not replace:
            raise AlreadyExistsError(
                "is there already", element=str(path), hint="add to it with --merge, or replace it with --force"
            )
        files.write_atomic(target, render(entries).encode(), mode=0o600)


def merge(path: Path, entries: Entries, *, replace: bool) -> bool:
    """Add the entries to a kubeconfig, making the file if there is none; return whether its context is the current one.

    Everything else in it stays. Raises AlreadyExistsError for an entry of the same name and another content, unless it
    may go; InvalidError for a file that is no kubeconfig.
    """
    with _held(path) as target:
        config = _read(target) if target.exists() else {"apiVersion": "v1", "kind": "Config"}
        for name, entry in entries.lists.items():
            _put(config, name, entry, path, replace=replace)
        if not config.get("current-context"):
            config["current-context"] = entries.context
        files.write_atomic(target, codec.to_yaml(config).encode(), mode=0o600)
    return bool(config["current-context"] == entries.context)


def _put(config: dict[str, Any], name: str, entry: dict[str, Any], path: Path, *, replace: bool) -> None:
    listed = config.get(name) or []
    if not isinstance(listed, list):
        raise InvalidError("is not a list", element=f"{path}: {name}")
    same = [each for each in listed if isinstance(each, dict) and each.get("name") == entry["name"]]
    if any(each != entry for each in same) and not replace:
        raise AlreadyExistsError(
            f'there is another "{entry["name"]}"',
            element=f"{path}: {name}",
            hint="name this one with --context, or replace the other with --force",
        )
    place = listed.index(same[0]) if same else len(listed)
    kept = [each for each in listed if each not in same]
    config[name] = [*kept[:place], entry, *kept[place:]]


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidError(error.strerror or str(error), element=str(path)) from None
    if len(raw) > MAX_BYTES:
        raise InvalidError(f"is larger than {MAX_BYTES} bytes, so it is no kubeconfig", element=str(path))
    if not raw.strip():
        return {"apiVersion": "v1", "kind": "Config"}
    try:
        found = documents.read_yaml(raw, source=str(path))
    except SkerryError as error:
        raise InvalidError(error.cause, element=error.element, hint="it must be a kubeconfig") from None
    if len(found) != 1 or not isinstance(found[0], dict) or found[0].get("kind") != "Config":
        raise InvalidError("is not a kubeconfig", element=str(path), hint="it must have kind: Config")
    return found[0]


@contextlib.contextmanager
def _held(path: Path) -> Iterator[Path]:
    """Give the file itself, where links lead to, and keep kubectl from changing it meanwhile by the lock it knows."""
    target = path.resolve()
    lock = target.with_name(f"{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise UnavailableError(
            "is being changed by somebody else", element=str(path), hint=f"if nobody is, remove {lock}"
        ) from None
    except OSError as error:
        raise InvalidError(error.strerror or str(error), element=str(target.parent)) from None
    try:
        yield target
    except OSError as error:
        raise InvalidError(error.strerror or str(error), element=str(path)) from None
    finally:
        lock.unlink(missing_ok=True)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
