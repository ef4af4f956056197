"""Names of models in registries as people write them: `digits:v1` on the hub, `oci://host/repository:tag` elsewhere.

Lives here: their grammar. Must not live here: connections, credentials. Source: OCI distribution specification 1.1
(names, tags); the scheme `oci://` is Helm's and ORAS' habit.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from skerry.api.errors import InvalidError
from skerry.core import manifest as manifests

SCHEME = "oci://"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]{{2,45}}\])(?::([0-9]{{1,5}}))?")
_REFERRERS_TAG = re.compile(r"sha256-[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A place in a registry; with neither tag nor digest it is the whole repository."""

    host: str = ""
    """`host[:port]`; empty is the hub's own registry."""
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """What a registry is asked for: the digest where there is one, else the tag; may be empty."""
        return self.digest or self.tag

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        place = f"{SCHEME}{self.host}/{self.repository}" if self.host else self.repository
        return place + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(text: str, *, namespace: str = "default") -> Reference:
    """Parse a reference; one without a host and without a slash is a model of that namespace. Raises InvalidError."""
    element = f"reference {text[:200]!a}"
    if len(text) > 1024:
        raise InvalidError(f"is {len(text)} characters long", element=element)
    rest, host = text, ""
    if text.startswith(SCHEME):
        host, slash, rest = text.removeprefix(SCHEME).partition("/")
        if not slash or not is_host(host):
            raise InvalidError(
                "does not name a registry", element=element, hint="write oci://host[:port]/repository:tag"
            )
    elif "://" in text:
        raise InvalidError("is not a reference", element=element, hint="write oci://host[:port]/repository:tag")
    rest, at, digest = rest.partition("@")
    repository, colon, tag = rest.partition(":")
    if at:
        manifests.check_digest(digest)
    if colon and not manifests.is_tag(tag):
        raise InvalidError(
            f'"{tag[:128]}" is not a tag', element=element, hint="letters, digits, '_', '.', '-', at most 128"
        )
    if not host and "/" not in repository:
        repository = f"{namespace}/{repository}"
    manifests.check_repository(repository)
    return Reference(host=host, repository=repository, tag=tag, digest=digest)


def is_host(text: str) -> bool:
    """Return whether this is `host` or `host:port`; IPv6 addresses stand in brackets."""
    match = _HOST.fullmatch(text)
    if match is None or (match.group(1) is not None and not 0 < int(match.group(1)) < 65536):
        return False
    if text.startswith("["):
        try:
            ipaddress.IPv6Address(text[1 : text.index("]")])
        except ValueError:
            return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether `host[:port]` is this machine."""
    name = host[1 : host.index("]")] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def referrers_tag(digest: str) -> str:
    """Return the tag under which registries without a referrers API list what refers to a digest."""
    return digest.replace(":", "-", 1)


def is_referrers_tag(tag: str) -> bool:
    """Return whether a tag is such a list, and no name that somebody gave."""
    return _REFERRERS_TAG.fullmatch(tag) is not None
