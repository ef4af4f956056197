"""What can be set of a hub: each setting with its unit, its default and the reason for it.

Lives here: the hub's settings, and the defaults that depend on the machine. Must not live here: reading them from the
command line (`hub.__main__`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from skerry.api.errors import InvalidError
from skerry.core import reference as references
from skerry.core.reference import Reference
from skerry.kit.settings import about

PLAIN_SCHEME = "oci+http://"
MAX_PREFIX = 127
"""Characters before a model's own repository, whose name may be as long again."""
DEFAULT_API_PORT = 7443
DEFAULT_MQTT_PORT = 8883


def default_state_dir() -> Path:
    """Return $SKERRY_STATE_DIR, or the XDG place for data of this user."""
    named = os.environ.get("SKERRY_STATE_DIR")
    if named:
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "skerry" / "hub"


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f'"{text}" is not a port; give a number from 0 to 65535, 0 for any free one')
    return int(text)


def _name(text: str) -> str:
    return text.strip()


def _registry(text: str) -> str:
    try:
        read_registry(text)
    except InvalidError as error:
        raise argparse.ArgumentTypeError(error.sentence) from None
    return text


def read_registry(text: str) -> tuple[Reference, bool]:
    """Return the registry and the repository that artifacts lie under, and whether plain HTTP was asked for.

    Raises InvalidError, also for plain HTTP to another machine.
    """
    plain = text.startswith(PLAIN_SCHEME)
    place = references.parse(references.SCHEME + text.removeprefix(PLAIN_SCHEME) if plain else text)
    if not place.host or place.name or len(place.repository) > MAX_PREFIX:
        raise InvalidError(
            "does not name a registry and a repository", element=text[:200], hint="write oci://host[:port]/repository"
        )
    if plain and not references.is_loopback(place.host):
        raise InvalidError("plain HTTP is for registries on this machine only", element=text[:200], hint="use oci://")
    return place, plain


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f'"{text}" is not one of: {", ".join(words)}')
        return text

    return parse


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """Everything that can be set of one hub."""

    state_dir: Path = field(
        default_factory=default_state_dir,
        metadata=about("everything the hub keeps; one hub per directory", unit="directory", parse=Path),
    )
    host: str = field(
        default="127.0.0.1",
        metadata=about("address to listen on; this machine only, until asked to be reachable", parse=_name),
    )
    api_port: int | None = field(
        default=None,
        metadata=about(
            f"HTTPS; 0 takes any free one; without it the one used before, else {DEFAULT_API_PORT}",
            unit="port",
            parse=_port,
        ),
    )
    mqtt_port: int | None = field(
        default=None,
        metadata=about(
            f"MQTT over TLS; 0 takes any free one; without it the one used before, else {DEFAULT_MQTT_PORT}",
            unit="port",
            parse=_port,
        ),
    )
    advertise: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "host name or address by which others reach this hub; repeat it for more, devices are told the first",
            unit="name",
            parse=_name,
        ),
    )
    registry: str = field(
        default="",
        metadata=about(
            "where artifacts are kept instead of on this disk, as in oci://registry.example.org/models",
            unit="registry",
            parse=_registry,
        ),
    )
    log_format: str = field(
        default="plain", metadata=about("plain for people, json for machines", parse=_one_of("plain", "json"))
    )
    log_level: str = field(
        default="warning",
        metadata=about("quiet, so that what is said matters", parse=_one_of("debug", "info", "warning", "error")),
    )
    device_certificate_days: int = field(
        default=90,
        metadata=about("long enough for a month without a connection, short enough for a stolen disk", unit="days"),
    )
    max_connections: int = field(default=4096, metadata=about("HTTPS; a watch holds one", unit="connections"))
    shutdown_seconds: int = field(
        default=10, metadata=about("for an orderly end; afterwards the process ends anyhow", unit="seconds")
    )
