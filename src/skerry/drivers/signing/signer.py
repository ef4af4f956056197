"""Sign packages with the `model-signing` library (the extra `skerry[signing]`): by a key, a certificate, or keyless.

The library reads keys from files, and cannot read one with a password beside a certificate: keys are read here, and
handed over in anonymous memory, so that an unprotected key never lies on a disk. What comes out is verified before
anybody gets it. Must not live here: which files are signed (`package`), the format (`statement`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

from cryptography.hazmat.primitives import serialization

from skerry.api.errors import (
    ExpiredError,
    IntegrityError,
    InvalidError,
    SkerryError,
    UnavailableError,
    UnsupportedError,
)
from skerry.drivers.signing import certificates, keys, package, statement

_Use: TypeAlias = Callable[[Any], Any]
"""Chooses the signer of one of the library's signing configurations."""


def check_available() -> None:
    """Raise UnsupportedError where the library is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("model_signing", "OpenSSL")):
        raise UnsupportedError(
            "signing needs the model-signing library",
            element="skerry model",
            hint="install it with: pip install 'skerry[signing]'",
        )


def sign_with_key(directory: Path, key: keys.PrivateKey) -> bytes:
    """Return a package's signature by a key. Raises IntegrityError, UnsupportedError, InvalidError."""
    check_available()
    with _in_memory(_private_pem(key)) as path:
        return _sign(directory, lambda config: config.use_elliptic_key_signer(private_key=path))


def sign_with_certificate(
    directory: Path, key: keys.PrivateKey, chain: Sequence[keys.Certificate], now: datetime
) -> bytes:
    """Return a package's signature by a key and its certificate, the first of the chain.

    Raises InvalidError (another key's certificate), ExpiredError (not valid at `now`), and as `sign_with_key`.
    """
    check_available()
    leaf = chain[0]
    if keys.digest_of(certificates.key_of(leaf)) != keys.digest_of(key.public_key()):
        raise InvalidError("is not of that key", element="certificate", hint="give the certificate of --key")
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise ExpiredError(
            f"is valid from {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc}",
            element="certificate",
            hint="nobody would accept the signature; renew the certificate",
        )
    pems = [one.public_bytes(serialization.Encoding.PEM) for one in chain]
    with ExitStack() as stack:
        private, first, *rest = (stack.enter_context(_in_memory(pem)) for pem in (_private_pem(key), *pems))
        return _sign(
            directory,
            lambda config: config.use_certificate_signer(
                private_key=private, signing_certificate=first, certificate_chain=rest
            ),
        )


def sign_keyless(directory: Path, *, identity_token: str | None = None, trust_config: Path | None = None) -> bytes:
    """Return a package's signature by an identity that a Sigstore instance vouches for; needs its servers.

    The identity is the token's, or the machine's own where it has one (CI), or asked for in a browser. Raises
    UnavailableError, and as `sign_with_key`.
    """
    check_available()
    with _translated("keyless signing"):
        return _sign(
            directory,
            lambda config: config.use_sigstore_signer(
                use_ambient_credentials=identity_token is None,
                identity_token=identity_token,
                trust_config=trust_config,
            ),
            keyless=True,
        )


def verify_keyless(
    directory: Path, signature: Path, *, identity: str, issuer: str, trust_config: Path | None = None
) -> Mapping[str, str]:
    """Return what a keyless signature lists, verified with its log entry and at the log's time.

    Needs the instance's trust root: from its servers, or in `trust_config`. Raises IntegrityError, UnavailableError.
    """
    check_available()
    library = _library()
    with _translated("keyless verification"):
        config = library.verifying.Config().use_sigstore_verifier(
            identity=identity, oidc_issuer=issuer, trust_config=trust_config
        )
    try:
        config.verify(directory, signature)
    except Exception as error:  # sigstore, TUF, pydantic, requests: each has its own
        raise IntegrityError(f"does not hold: {str(error)[:300]}", element=str(signature)) from error
    return statement.read_statement(statement.read_bundle(package.read_signature(signature)).payload)


def _sign(directory: Path, use: _Use, *, keyless: bool = False) -> bytes:
    """Sign all that is signed of a package. The library writes into memory."""
    library = _library()
    before = package.digests(directory)
    ignored = [package.SIGNATURES, *package.UNSIGNED]
    hashing = library.hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)
    with _in_memory(b"") as path:
        try:
            use(library.signing.Config()).set_hashing_config(hashing).sign(directory, path)
        except (ValueError, OSError) as error:
            if keyless:
                raise
            raise InvalidError(f"cannot be signed: {str(error)[:300]}", element=str(directory)) from error
        raw = path.read_bytes()
    package.compare(before, statement.read_statement(statement.read_bundle(raw).payload), str(directory))
    return raw


def _library() -> Any:
    """Import it; whole, for it is typed in part only."""
    import model_signing  # noqa: PLC0415 - 93 MB that only signers have

    return model_signing


def _private_pem(key: keys.PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@contextmanager
def _in_memory(content: bytes) -> Iterator[Path]:
    """Give a path to a file that lies in memory and has no name."""
    descriptor = os.memfd_create("signing", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@contextmanager
def _translated(element: str) -> Iterator[None]:
    try:
        yield
    except SkerryError:
        raise
    except Exception as error:  # sigstore, TUF, pydantic, requests: each has its own
        raise UnavailableError(
            f"does not work here: {str(error)[:300] or type(error).__name__}",
            element=element,
            hint="it needs the servers of a Sigstore instance; without a network, use --key or --certificate",
        ) from error
