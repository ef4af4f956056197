"""`skerry model keygen|sign`: signatures of packages, and of model versions in a registry.

Lives here: what these verbs take, ask and print. Must not live here: what a signature is (`drivers.signing`), who may
sign what (`skerry trust`).
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.api.errors import AlreadyExistsError, InvalidError
from skerry.cli import options, output, places
from skerry.cli import package as packages
from skerry.core import reference as references
from skerry.drivers.client.pull import pull_package
from skerry.drivers.client.signatures import attach
from skerry.drivers.signing import keys, package, signer
from skerry.kit.clock import SystemClock

MAX_PASSWORD_BYTES = 4096

Model = Annotated[str, typer.Argument(help="A package's directory; or MODEL:VERSION on the hub, or oci://...:tag.")]
PasswordFile = Annotated[Path | None, typer.Option(help="Its first line is the key's password.")]


def keygen(
    path: Annotated[Path, typer.Argument(help="Of the private key; the public key's gets .pub behind it.")],
    curve: Annotated[str, typer.Option(help="P-256, P-384 or P-521.")] = "P-256",
    password_file: PasswordFile = None,
    no_password: Annotated[bool, typer.Option("--no-password", help="Leave the key file unprotected.")] = False,
) -> None:
    """Make a key to sign models with: a private key that its owner alone can read, and a public one to hand out."""
    curves: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    if curve not in curves:
        raise InvalidError(f'"{curve}" is not one of: {", ".join(curves)}', element="--curve")
    if no_password and password_file:
        raise InvalidError("and --password-file exclude each other", element="--no-password")
    public = path.with_name(f"{path.name}.pub")
    for one in (path, public):
        if one.exists() or one.is_symlink():
            raise AlreadyExistsError(element=str(one), hint="models signed with it could no longer be; choose another")
    password = b"" if no_password else _password(password_file, path, confirm=True)
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    made = ec.generate_private_key(curves[curve])
    private = made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    _write_new(path, private, 0o600)
    try:
        _write_new(public, made.public_key().public_bytes(serialization.Encoding.PEM, spki), 0o644)
    except BaseException:
        path.unlink(missing_ok=True)  # half a pair is none, and would stand in the next one's way
        raise
    output.say(f"{path} (keep it safe) and {public} made: {keys.digest_of(made.public_key())}")


def sign(
    model: Model,
    key: Annotated[Path | None, typer.Option(help="Private key, PEM (PKCS#8 or SEC 1), on an elliptic curve.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="The key's certificate, PEM; its chain may follow.")] = None,
    chain: Annotated[list[Path] | None, typer.Option(help="Authorities between it and the root, PEM.")] = None,
    password_file: PasswordFile = None,
    keyless: Annotated[bool, typer.Option("--keyless", help="With an identity that Sigstore vouches for.")] = False,
    identity_token: Annotated[Path | None, typer.Option(help="Keyless: file with an OIDC token.")] = None,
    trust_config: Annotated[Path | None, typer.Option(help="Keyless: of a Sigstore instance of your own.")] = None,
    namespace: options.Namespace = "",
    username: places.Username = "",
    password_stdin: places.PasswordStdin = False,
    plain_http: places.PlainHttp = False,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Sign a package, or a model version in a registry: each signer's signature is a file of its own."""
    if (key is None) == (not keyless):
        raise InvalidError("give --key FILE, or --keyless", element="skerry model sign")
    if certificate is None and chain:
        raise InvalidError("is of a certificate", element="--chain", hint="give --certificate too")
    if keyless and (certificate or password_file):
        raise InvalidError("is for --key", element="--certificate" if certificate else "--password-file")
    if not keyless and (identity_token or trust_config):
        raise InvalidError("is for --keyless", element="--identity-token" if identity_token else "--trust-config")
    signer.check_available()
    how = _Way(key=key, certificate=certificate, chain=chain or (), password_file=password_file)
    if keyless:
        how = _Way(identity_token=identity_token, trust_config=trust_config)
    if not is_remote(model):
        raw = _sign(Path(model), how)
        path = package.add_signature(Path(model), raw)
        output.say(f"{path} signs {package.count(raw)} files; `skerry model push` sends it")
        return
    given = places.access(kubeconfig, namespace, username, password_stdin=password_stdin, plain_http=plain_http)
    where = parse_version(given, model)
    with places.open_repository(where, given) as place, tempfile.TemporaryDirectory() as directory:
        pulled = pull_package(place, where.name, Path(directory))
        raw = _sign(Path(directory), how)
        attached = attach(place, place.get_manifest(pulled.index), raw)
    output.say(f"{model} signed, {package.count(raw)} files: signature {attached} is attached to {pulled.index}")


@dataclass(frozen=True, kw_only=True)
class _Way:
    """How to sign."""

    key: Path | None = None
    certificate: Path | None = None
    chain: Sequence[Path] = ()
    password_file: Path | None = None
    identity_token: Path | None = None
    trust_config: Path | None = None


def _sign(directory: Path, how: _Way) -> bytes:
    package.check_complete(package.digests(directory), packages.read_card(directory), directory)
    if how.key is None:
        token = read_file(how.identity_token).decode(errors="replace").strip() if how.identity_token else None
        return signer.sign_keyless(directory, identity_token=token, trust_config=how.trust_config)
    private = _private_key(how.key, how.password_file)
    if how.certificate is None:
        return signer.sign_with_key(directory, private)
    chain = [
        one for path in (how.certificate, *how.chain) for one in keys.read_certificates(read_file(path), str(path))
    ]
    return signer.sign_with_certificate(directory, private, chain, SystemClock().now())


def _private_key(path: Path, password_file: Path | None) -> keys.PrivateKey:
    pem = read_file(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        output.err.print(f"warning: others may read {output.plain(str(path))}; chmod 600 it", markup=False)
    password = _password(password_file, path) if password_file or b"ENCRYPTED" in pem else None
    return keys.read_private_key(pem, password, str(path))


def _password(file: Path | None, key: Path, *, confirm: bool = False) -> bytes:
    """Return the password: of a file's first line, else asked for. Raises InvalidError where nobody can be asked."""
    if file is not None:
        found = read_file(file)[:MAX_PASSWORD_BYTES].partition(b"\n")[0].removesuffix(b"\r")
        if not found:
            raise InvalidError("its first line is empty", element=str(file))
        return found
    if not sys.stdin.isatty():
        raise InvalidError("nobody can be asked for its password here", element=str(key), hint="give --password-file")
    asked: str = typer.prompt(f"Password of {key}", hide_input=True, confirmation_prompt=confirm, err=True)
    return asked.encode()


def read_file(path: Path) -> bytes:
    """Read a key's, a certificate's or a password's file. Raises InvalidError."""
    try:
        with path.open("rb") as file:
            raw = file.read(keys.MAX_PEM_BYTES + 1)
    except OSError as error:
        raise InvalidError(f"cannot be read: {error.strerror}", element=str(path)) from error
    if len(raw) > keys.MAX_PEM_BYTES:
        raise InvalidError(f"has more than {keys.MAX_PEM_BYTES} bytes", element=str(path))
    return raw


def _write_new(path: Path, content: bytes, mode: int) -> None:
    made = False
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as file:
            made = True
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if made:
            path.unlink(missing_ok=True)
        raise InvalidError(f"cannot be written: {error.strerror}", element=str(path)) from error


def parse_version(given: places.Access, model: str) -> references.Reference:
    """Parse a reference to one model version. Raises InvalidError where it names a whole repository."""
    where = given.parse(model)
    if not where.name:
        raise InvalidError("names no version", element=model, hint=f"write {model}:VERSION")
    return where


def is_remote(model: str) -> bool:
    """Whether it names something in a registry: a directory that is there comes first."""
    return model.startswith(references.SCHEME) or (":" in model and not Path(model).exists())
