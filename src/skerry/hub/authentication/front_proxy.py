"""A front proxy's word: from its certificate and the headers it adds to the user it speaks for.

A Kubernetes API server that passes requests on proves itself by a client certificate of a CA of its own, and says in
headers who asks. Lives here: who may do so, and what the headers say; pure, the caller brings certificate, headers and
time. Must not live here: where the settings come from (`hub.delegation`), or TLS (`hub.listener`).

TLS has proved that the peer holds the certificate's key. That is not enough: the listener accepts certificates of
several CAs, so each request's certificate is held against this CA again; a subject means nothing without its issuer.
Source: Kubernetes documentation, "Authenticating Proxy" and "Configure the Aggregation Layer".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import unquote_to_bytes

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from skerry.api.errors import InvalidError, UnauthorizedError
from skerry.core import access
from skerry.core.access import Identity

MAX_CA_BYTES = 256 * 1024
MAX_AUTHORITIES = 64
MAX_VALUE_BYTES = 1024
"""Of one user name, group, uid or extra value."""
MAX_GROUPS = 512
MAX_EXTRA = 64
"""Values under all extra keys together."""
OWN = "skerry:"
"""Users and groups that only certificates of the hub's own CA can name."""

_HINT = "the request came through a proxy that does not set this header by itself, or sets it twice"
Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI has them: names in lower case."""


@dataclass(frozen=True, kw_only=True)
class RequestHeaders:
    """Whose certificates may speak for others, and in which headers they say for whom."""

    authorities: tuple[x509.Certificate, ...]
    """Any of these must have issued the proxy's certificate itself."""
    allowed_names: tuple[str, ...] = ()
    """Common names of proxies; empty: whatever these CAs issue."""
    username_headers: tuple[str, ...] = ("X-Remote-User",)
    """The first that is there counts."""
    uid_headers: tuple[str, ...] = ("X-Remote-Uid",)
    group_headers: tuple[str, ...] = ("X-Remote-Group",)
    extra_headers_prefixes: tuple[str, ...] = ("X-Remote-Extra-",)

    @property
    def authorities_pem(self) -> str:
        """The CAs as the TLS listener takes them."""
        return b"".join(each.public_bytes(Encoding.PEM) for each in self.authorities).decode()


class _Lists(msgspec.Struct, rename=lambda name: f"requestheader-{name.replace('_', '-')}"):
    """What the ConfigMap `extension-apiserver-authentication` says; lists are JSON in text."""

    client_ca_file: str = ""
    allowed_names: str = "[]"
    username_headers: str = ""
    uid_headers: str = ""
    group_headers: str = ""
    extra_headers_prefix: str = ""


def read_config_map(data: Mapping[str, str], *, element: str) -> RequestHeaders:
    """Return what the cluster's ConfigMap says. Raises InvalidError that names the entry.

    A cluster whose API server has no front proxy has no such entries; without a CA nobody could be believed.
    """
    try:
        found = msgspec.convert(dict(data), _Lists)
    except msgspec.ValidationError as error:
        raise InvalidError(str(error), element=element) from None
    if not found.client_ca_file.strip():
        raise InvalidError(
            "has no requestheader-client-ca-file, so no proxy could be told from anybody else",
            element=element,
            hint="start the cluster's kube-apiserver with --requestheader-client-ca-file and --proxy-client-cert-file",
        )

    def names(entry: str, text: str, default: tuple[str, ...]) -> tuple[str, ...]:
        return _names(text, element=f"{element} requestheader-{entry}") if text else default

    return RequestHeaders(
        authorities=read_authorities(found.client_ca_file, element=f"{element} requestheader-client-ca-file"),
        allowed_names=names("allowed-names", found.allowed_names, ()),
        username_headers=names("username-headers", found.username_headers, ("X-Remote-User",)),
        uid_headers=names("uid-headers", found.uid_headers, ("X-Remote-Uid",)),
        group_headers=names("group-headers", found.group_headers, ("X-Remote-Group",)),
        extra_headers_prefixes=names("extra-headers-prefix", found.extra_headers_prefix, ("X-Remote-Extra-",)),
    )


def read_authorities(pem: str | bytes, *, element: str) -> tuple[x509.Certificate, ...]:
    """Return the certificates of a PEM bundle, at least one. Raises InvalidError."""
    raw = pem.encode(errors="replace") if isinstance(pem, str) else pem
    if len(raw) > MAX_CA_BYTES:
        raise InvalidError(f"is longer than {MAX_CA_BYTES} bytes", element=element)
    try:
        found = tuple(x509.load_pem_x509_certificates(raw))
        for each in found:
            each.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise InvalidError("is no bundle of certificates in PEM that can be read", element=element) from None
    if len(found) > MAX_AUTHORITIES:
        raise InvalidError(f"has more than {MAX_AUTHORITIES} certificates", element=element)
    return found


def issuer_of(
    certificate: x509.Certificate, authorities: Iterable[x509.Certificate], now: datetime
) -> x509.Certificate | None:
    """Return the CA that issued the certificate itself, with both valid at that time; None when there is none."""
    if not _is_valid(certificate, now):
        return None
    return next((each for each in authorities if _is_valid(each, now) and _issued(certificate, each)), None)


def shares_key(authorities: Iterable[x509.Certificate], other: x509.Certificate) -> bool:
    """Return whether one of these CAs has the other's key: who is who could not be told any more."""
    return any(each.public_key() == other.public_key() for each in authorities)


def common_name(certificate: x509.Certificate) -> str:
    """Return the subject's only common name, or ""."""
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        return ""
    return str(names[0].value) if len(names) == 1 else ""


@dataclass(kw_only=True)
class FrontProxies:
    """The proxies that are believed; `settings` may be replaced at any time, as the CA and the names change."""

    settings: RequestHeaders
    _trusted: dict[bytes, tuple[x509.Certificate, x509.Certificate]] = field(default_factory=dict, init=False)
    """Proxies' certificates, each with its issuer."""

    def replace(self, settings: RequestHeaders) -> None:
        """Believe whom these settings name from now on, on connections that are open already, too."""
        self.settings = settings
        self._trusted.clear()

    def is_proxy(self, der: bytes, now: datetime) -> bool:
        """Return whether the certificate is of the proxies' CA, whatever its name."""
        known = self._trusted.get(der)
        if known is not None and all(_is_valid(each, now) for each in known):
            return True
        self._trusted.pop(der, None)
        try:
            certificate = x509.load_der_x509_certificate(der)
        except (ValueError, x509.InvalidVersion):
            return False
        issuer = issuer_of(certificate, self.settings.authorities, now)
        if issuer is None:
            return False
        if len(self._trusted) >= MAX_AUTHORITIES:  # proxies are few
            self._trusted.clear()
        self._trusted[der] = (certificate, issuer)
        return True

    def authenticate(self, der: bytes, headers: Headers, now: datetime) -> Identity | None:
        """Return whom the request is made for; None when a proxy speaks for nobody, or it is no proxy at all.

        Raises UnauthorizedError when a proxy names a user and may not, or not so.
        """
        if not self.is_proxy(der, now):
            return None
        claimed = read_user(self.settings, headers)
        if claimed is None:
            return None
        name = common_name(self._trusted[der][0])
        if self.settings.allowed_names and name not in self.settings.allowed_names:
            raise UnauthorizedError(
                f'a client certificate for "{name[:100]}" may not speak for others',
                element="front proxy",
                hint="allowed names come from --requestheader-allowed-names, or the cluster's ConfigMap",
            )
        return claimed


def read_user(settings: RequestHeaders, headers: Headers) -> Identity | None:
    """Return the user whom the headers name, or None when they name nobody.

    A user or uid that is said twice is refused: a proxy that adds its word to a client's cannot be believed. Raises
    UnauthorizedError.
    """
    name = _single(settings.username_headers, headers)
    if not name:
        return None
    if name == access.ANONYMOUS_USER:
        return access.ANONYMOUS
    return user(
        name,
        uid=_single(settings.uid_headers, headers),
        groups=_all(settings.group_headers, headers),
        extra=_extra(settings.extra_headers_prefixes, headers),
        element="front proxy",
    )


def user(name: str, *, uid: str, groups: Sequence[str], extra: Mapping[str, tuple[str, ...]], element: str) -> Identity:
    """Return the identity of a user whom the cluster vouches for. Raises UnauthorizedError for a name of the hub's.

    The hub's own groups (`skerry:`) are left out: the cluster's users are whom its rules say, and no hub's admins.
    """
    if name.lower().startswith(OWN):
        raise UnauthorizedError(f'"{name[:100]}" is kept for the hub itself', element=element)
    kept = tuple(group for group in groups if not group.lower().startswith(OWN))
    if len(kept) > MAX_GROUPS:
        raise UnauthorizedError(f"more than {MAX_GROUPS} groups", element=element)
    return Identity(role="user", name=name, uid=uid, groups=kept, extra=extra)


def _single(names: Sequence[str], headers: Headers) -> str:
    for wanted in names:
        values = _values(wanted, headers)
        if len(values) > 1:
            raise UnauthorizedError("is there more than once", element=wanted, hint=_HINT)
        if values and values[0]:
            return values[0]
    return ""


def _all(names: Sequence[str], headers: Headers) -> list[str]:
    return [value for wanted in names for value in _values(wanted, headers) if value]


def _extra(prefixes: Sequence[str], headers: Headers) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    count = 0
    for prefix in map(_raw, prefixes):
        for name, value in headers:
            if not name.lower().startswith(prefix):
                continue
            count += 1
            if count > MAX_EXTRA:
                raise UnauthorizedError(f"more than {MAX_EXTRA} extra values", element="front proxy")
            key = _text(unquote_to_bytes(name.lower()[len(prefix) :]), element="an extra header's name")
            found[key] = (*found.get(key, ()), _text(value, element="an extra header"))
    return found


def _values(wanted: str, headers: Headers) -> list[str]:
    raw = _raw(wanted)
    return [_text(value, element=wanted) for name, value in headers if name.lower() == raw]


def _text(value: bytes, *, element: str) -> str:
    if len(value) > MAX_VALUE_BYTES:
        raise UnauthorizedError(f"is longer than {MAX_VALUE_BYTES} bytes", element=element)
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise UnauthorizedError("is not UTF-8", element=element) from None
    if not text.isprintable():
        raise UnauthorizedError("has characters that cannot be shown", element=element)
    return text.strip()


def _raw(name: str) -> bytes:
    return name.lower().encode()


def _names(text: str, *, element: str) -> tuple[str, ...]:
    try:
        found = msgspec.json.decode(text, type=list[str])
    except msgspec.DecodeError as error:
        raise InvalidError(f"is not a JSON list of names ({error})", element=element) from None
    stripped = tuple(name.strip() for name in found)
    if not all(stripped) or len(stripped) > MAX_AUTHORITIES:
        raise InvalidError("has an empty name, or too many", element=element)
    return stripped


def _is_valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
