"""Options that many verbs share, and the references people type (`deployment/x`).

Lives here: how a verb finds the hub and names an object. Must not live here: a verb.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from skerry.api.errors import InvalidError
from skerry.api.kinds import KINDS, KindInfo, find_kind
from skerry.drivers.client.api import HubClient
from skerry.drivers.client.kubeconfig import Connection, load_kubeconfigs

Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace; the kubeconfig's, or default.")]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(help="Default: $SKERRY_KUBECONFIG, the local hub's kubeconfig, $KUBECONFIG, ~/.kube/config."),
]
StateDir = Annotated[Path | None, typer.Option(help="Where everything is kept.")]


@dataclass(frozen=True)
class Reference:
    """An object as people name it: a kind and a name."""

    info: KindInfo
    name: str


def default_hub_dir() -> Path:
    """Return where a hub on this machine keeps its state unless told otherwise."""
    if chosen := os.environ.get("SKERRY_STATE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "skerry/hub"


def find_kubeconfig(chosen: Path | None) -> Path:
    """Return the kubeconfig to use. Raises InvalidError when there is none."""
    if chosen is not None:
        return chosen
    if named := os.environ.get("SKERRY_KUBECONFIG"):
        return _listed(named)[0]
    candidates = [default_hub_dir() / "kubeconfig", Path.home() / ".kube/config"]
    if listed := os.environ.get("KUBECONFIG"):
        candidates.insert(1, Path(listed.split(os.pathsep)[0]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InvalidError(
        "no kubeconfig was found",
        hint="start a hub with `skerry hub start`, or name its kubeconfig with --kubeconfig or $SKERRY_KUBECONFIG",
    )


def connect(kubeconfig: Path | None, namespace: str = "") -> HubClient:
    """Return a client for the hub that the kubeconfig's context names: its current one, or $SKERRY_CONTEXT.

    Raises InvalidError.
    """
    context = os.environ.get("SKERRY_CONTEXT") or None
    return HubClient(load_connection(kubeconfig, context), namespace=namespace or None)


def load_connection(kubeconfig: Path | None, context: str | None = None) -> Connection:
    """Return the connection of the kubeconfig to use; $SKERRY_KUBECONFIG may list several, as $KUBECONFIG may.

    Raises InvalidError.
    """
    named = os.environ.get("SKERRY_KUBECONFIG")
    if kubeconfig is None and named:
        return load_kubeconfigs(_listed(named), context)
    return load_kubeconfigs([find_kubeconfig(kubeconfig)], context)


def _listed(named: str) -> list[Path]:
    whole = Path(named)
    return [whole] if whole.exists() else [Path(one) for one in named.split(os.pathsep) if one] or [whole]


def kind_of(word: str) -> KindInfo:
    """Return the kind that a word means. Raises InvalidError listing the kinds there are."""
    info = find_kind(word)
    if info is None:
        known = ", ".join(sorted({i.aliases[0] if i.aliases else i.plural for i in KINDS if i.stored}))
        raise InvalidError(f'"{word}" is not a kind of resource', hint=f"one of: {known}")
    return info


def reference(text: str, *, expected: str = "") -> Reference:
    """Parse `kind/name`; with `expected`, a bare name means that kind. Raises InvalidError."""
    word, slash, name = text.partition("/")
    if not slash:
        word, name = expected, text
    if not word or not name:
        raise InvalidError(f'"{text}" does not name an object', hint="write kind/name, as in deployment/digits")
    info = kind_of(word)
    if expected and info is not kind_of(expected):
        raise InvalidError(f'"{text}" is a {info.singular}', hint=f"this takes a {expected}, as in {expected}/{name}")
    return Reference(info, name)
