"""A certificate that somebody else issues and replaces, shown to those who ask for a name of its own.

Devices trust the hub's own CA and nothing else, so what they connect to always shows the hub's own certificate. A
cluster's API server or a browser, which ask for another name (TLS server name indication), get this one. Lives here:
the files, read again as they change, and the choice. Must not live here: the hub's own certificates (`hub.pki`).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from skerry.api.errors import IntegrityError, InvalidError
from skerry.core.ports import Clock
from skerry.hub.pki import Authority

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Between looks at the files: a mounted Secret is replaced within a minute of its change, and long before its end."""
_HINT = "give a certificate chain and its key, both in PEM and without a passphrase"


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    context: ssl.SSLContext
    names: frozenset[str]
    until: datetime
    digest: bytes


class ServingCertificate:
    """The pair of files, and the context made of it. Raises InvalidError when it cannot be used.

    `told` are the names that devices are told: they stay with the hub's own certificate. `prepare` is called for each
    context that is made, to have it accept the same clients as the hub's own.
    """

    def __init__(
        self,
        certificate_file: Path,
        key_file: Path,
        *,
        authority: Authority,
        told: Sequence[str],
        clock: Clock,
        prepare: Callable[[ssl.SSLContext], None] = lambda _: None,
    ) -> None:
        self._files = (certificate_file, key_file)
        self._authority, self._clock, self._prepare = authority, clock, prepare
        self._told = frozenset(name.lower() for name in told)
        self._loaded = self._load()

    @property
    def context(self) -> ssl.SSLContext:
        """The context with the certificate that is shown now."""
        return self._loaded.context

    def choose(self, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        """Show it to a client that asks for one of its names; what `SSLContext.sni_callback` calls."""
        asked = (name or "").lower().rstrip(".")
        if asked in self._told or not asked:
            return
        parent = f"*.{asked.partition('.')[2]}"
        if asked in self._loaded.names or parent in self._loaded.names:
            tls.context = self.context

    async def check(self) -> None:
        """Return while the certificate that is shown is valid. Raises IntegrityError."""
        if self._clock.now() >= self._loaded.until:
            raise IntegrityError(f"expired at {self._loaded.until.isoformat()}", element=str(self._files[0]))

    def reload(self) -> bool:
        """Read the files again if they changed; return whether there is another certificate now.

        Files that do not fit each other, as in the moment between two writes, are left for the next look.
        """
        try:
            if self._digest() == self._loaded.digest:
                return False
            self._loaded = self._load()
        except (InvalidError, OSError) as error:
            log.warning("serving_certificate.kept cause=%s", error)
            return False
        log.info("serving_certificate.replaced until=%s", self._loaded.until.isoformat())
        return True

    async def run(self, *, look_seconds: float = LOOK_SECONDS) -> None:
        """Look at the files, for ever."""
        while True:
            await asyncio.sleep(look_seconds)
            self.reload()

    def _digest(self) -> bytes:
        return sha256(b"\0".join(file.read_bytes() for file in self._files)).digest()

    def _load(self) -> _Loaded:
        certificate_file, key_file = self._files
        try:
            digest = self._digest()
            leaf = x509.load_pem_x509_certificates(certificate_file.read_bytes())[0]
            names = _names(leaf)
            context = self._authority.server_context(files=(certificate_file, key_file))
            changed = self._digest() != digest
        except OSError as error:  # ssl.SSLError is one
            cause = "does not fit its key, or is none" if isinstance(error, ssl.SSLError) else str(error.strerror)
            raise InvalidError(cause, element=f"{certificate_file} with {key_file}", hint=_HINT) from None
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
            raise InvalidError(
                "is no certificate chain that can be read", element=str(certificate_file), hint=_HINT
            ) from None
        if changed:
            raise InvalidError("changed while it was read", element=str(certificate_file))
        if self._clock.now() >= leaf.not_valid_after_utc:
            raise InvalidError(f"expired at {leaf.not_valid_after_utc.isoformat()}", element=str(certificate_file))
        if not names - self._told:
            raise InvalidError(
                f"is for {', '.join(sorted(names)) or 'no name'}, and devices that are told such a name trust the hub's"
                " own certificate alone",
                element=str(certificate_file),
                hint="have it issued for another name, as of the cluster's Service, or --advertise another to devices",
            )
        self._prepare(context)
        return _Loaded(context=context, names=names, until=leaf.not_valid_after_utc, digest=digest)


def _names(certificate: x509.Certificate) -> frozenset[str]:
    try:
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(name.lower() for name in held.get_values_for_type(x509.DNSName))
