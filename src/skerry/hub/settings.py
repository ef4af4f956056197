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
SHARED_SCHEME = "postgresql://"
DEFAULT_API_PORT = 7443
DEFAULT_MQTT_PORT = 8883
CLUSTER_CREDENTIALS = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its account's token and the cluster's CA."""


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


def _header(text: str) -> str:
    name = text.strip()
    if not name or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
        raise argparse.ArgumentTypeError(f'"{text}" is not a header\'s name')
    return name


def _registry(text: str) -> str:
    try:
        read_registry(text)
    except InvalidError as error:
        raise argparse.ArgumentTypeError(error.sentence) from None
    return text


def _store(text: str) -> str:
    try:
        check_store(text)
    except InvalidError as error:
        raise argparse.ArgumentTypeError(error.sentence) from None
    return text


def check_store(text: str) -> None:
    """Refuse what is no store, or may not stand on a command line, which everybody on the machine can read.

    Raises InvalidError.
    """
    element = "--store"
    if text != "sqlite" and not text.startswith(SHARED_SCHEME):
        raise InvalidError("is no store that is known", element=element, hint=f"write sqlite, or {SHARED_SCHEME}...")
    place, _, query = text.removeprefix(SHARED_SCHEME).partition("?")
    if ":" in place.partition("/")[0].rpartition("@")[0] or "password=" in query:
        raise InvalidError(
            "a password does not belong on the command line",
            element=element,
            hint="use --store-password-file or $SKERRY_STORE_PASSWORD",
        )


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


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text[:12]) <= most:
            raise argparse.ArgumentTypeError(f'"{text}" is not a whole number from {least} to {most}')
        return int(text)

    return parse


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
    peer_address: str = field(
        default="",
        metadata=about(
            "host name or address at which the other hubs on the store reach this very one; without it --host, or "
            "this machine's name where that is all addresses",
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
    store: str = field(
        default="",
        metadata=about(
            "sqlite, in the state directory, or postgresql://user@host/database, which several hubs may share; "
            "$SKERRY_STORE without it",
            unit="store",
            parse=_store,
        ),
    )
    store_password_file: Path | None = field(
        default=None,
        metadata=about("password for --store; $SKERRY_STORE_PASSWORD without it", unit="file", parse=Path),
    )
    keys_dir: Path | None = field(
        default=None,
        metadata=about(
            "the CA's and the desired states' keys, for hubs that share a store; in the state directory without it",
            unit="directory",
            parse=Path,
        ),
    )
    artifacts_dir: Path | None = field(
        default=None,
        metadata=about("artifacts, where not in the state directory", unit="directory", parse=Path),
    )
    oidc_issuer_url: str = field(
        default="",
        metadata=about("OpenID Connect issuer whose identity tokens count here, https only", unit="url", parse=_name),
    )
    oidc_client_id: str = field(
        default="", metadata=about("client id that its tokens must be for", unit="client id", parse=_name)
    )
    oidc_username_claim: str = field(
        default="sub", metadata=about("claim that is the user's name", unit="claim", parse=_name)
    )
    oidc_username_prefix: str = field(
        default="",
        metadata=about(
            "before users' names; without it the issuer and #, unless the claim is email; - for nothing",
            unit="prefix",
            parse=_name,
        ),
    )
    oidc_groups_claim: str = field(
        default="", metadata=about("claim that holds the user's groups", unit="claim", parse=_name)
    )
    oidc_groups_prefix: str = field(
        default="", metadata=about("before groups' names, as in oidc:", unit="prefix", parse=_name)
    )
    oidc_required_claim: tuple[str, ...] = field(
        default=(), metadata=about("what a token must say; repeat it for more", unit="claim=value", parse=_name)
    )
    oidc_ca_file: Path | None = field(
        default=None,
        metadata=about("CA certificates for the issuer; without it the system's", unit="file", parse=Path),
    )
    oidc_signing_algs: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "signature algorithm that counts; repeat it for more; RS256 without it",
            unit="algorithm",
            parse=_one_of("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"),
        ),
    )
    tls_cert_file: Path | None = field(
        default=None,
        metadata=about(
            "certificate chain shown to those who ask for one of its names; devices always see the hub's own",
            unit="file",
            parse=Path,
        ),
    )
    tls_key_file: Path | None = field(
        default=None, metadata=about("key of --tls-cert-file, without a passphrase", unit="file", parse=Path)
    )
    delegated: bool = field(
        default=False,
        metadata=about(
            "run as a Kubernetes cluster's aggregated API server: the cluster authenticates and authorizes", parse=bool
        ),
    )
    cluster_credentials: Path = field(
        default=CLUSTER_CREDENTIALS,
        metadata=about(
            "token and ca.crt of the service account with which the cluster is asked", unit="directory", parse=Path
        ),
    )
    leader_pod: str = field(
        default="",
        metadata=about(
            "name of the pod this hub runs in, labelled for the cluster's Services while it leads",
            unit="pod",
            parse=_name,
        ),
    )
    requestheader_client_ca_file: Path | None = field(
        default=None,
        metadata=about(
            "CA of the front proxies' client certificates; with --delegated the cluster's ConfigMap says it",
            unit="file",
            parse=Path,
        ),
    )
    requestheader_allowed_names: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "common name of a front proxy; repeat it for more; without it any of that CA", unit="name", parse=_name
        ),
    )
    requestheader_username_headers: tuple[str, ...] = field(
        default=(),
        metadata=about("header with the user's name; X-Remote-User without it", unit="header", parse=_header),
    )
    requestheader_uid_headers: tuple[str, ...] = field(
        default=(), metadata=about("header with the user's uid; X-Remote-Uid without it", unit="header", parse=_header)
    )
    requestheader_group_headers: tuple[str, ...] = field(
        default=(), metadata=about("header with a group; X-Remote-Group without it", unit="header", parse=_header)
    )
    requestheader_extra_headers_prefix: tuple[str, ...] = field(
        default=(),
        metadata=about("prefix of headers with more; X-Remote-Extra- without it", unit="prefix", parse=_header),
    )
    audit_level: str = field(
        default="none",
        metadata=about(
            "writes and refusals are recorded in any case; metadata: reads too; request: what was sent with them too",
            parse=_one_of("none", "metadata", "request"),
        ),
    )
    audit_log_dir: Path | None = field(
        default=None,
        metadata=about("the audit log's own; in the state directory without it", unit="directory", parse=Path),
    )
    audit_log_mib: int = field(
        default=1024,
        metadata=about("kept of the audit log; about a million writes", unit="MiB", parse=_whole(2, 1024 * 1024)),
    )
    audit_log_days: int = field(
        default=90,
        metadata=about("for which the audit log is kept, if that is not too much", unit="days", parse=_whole(1, 36500)),
    )
    event_minutes: int = field(
        default=60,
        metadata=about("for which events are kept; as long as in Kubernetes", unit="minutes", parse=_whole(1, 10080)),
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
