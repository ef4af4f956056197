"""`skerry model verify`: who signed a package, or a model version in a registry, and whether it is still that.

Lives here: what the verb takes and prints. Must not live here: what a signature is (`drivers.signing`), who may sign
what (`skerry trust`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from skerry.api.errors import IntegrityError, InvalidError, NotFoundError, SkerryError
from skerry.cli import options, output, places
from skerry.cli.signing import Model, is_remote, parse_version, read_file
from skerry.core import manifest as manifests
from skerry.drivers.client.pull import find_model
from skerry.drivers.client.signatures import fetch
from skerry.drivers.signing import bundle, package, signer
from skerry.kit.clock import SystemClock


def verify(
    model: Model,
    key: Annotated[list[Path] | None, typer.Option(help="Trusted public key, PEM.")] = None,
    chain: Annotated[list[Path] | None, typer.Option(help="Trusted authorities, PEM.")] = None,
    identity: Annotated[str, typer.Option(help="Of the certificate: e-mail address, URI, or whole subject.")] = "",
    signature: Annotated[Path | None, typer.Option(help="Only this signature's file, wherever it lies.")] = None,
    keyless: Annotated[bool, typer.Option("--keyless", help="Verify a Sigstore identity, with its log entry.")] = False,
    identity_issuer: Annotated[str, typer.Option(help="Keyless: who vouched for the identity, a URL.")] = "",
    trust_config: Annotated[Path | None, typer.Option(help="Keyless: of a Sigstore instance of your own.")] = None,
    namespace: options.Namespace = "",
    username: places.Username = "",
    password_stdin: places.PasswordStdin = False,
    plain_http: places.PlainHttp = False,
    form: places.Form = "text",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Verify that somebody you trust signed exactly this package, or this model version in a registry."""
    as_json = places.check_form(form)
    if keyless != bool(identity_issuer) or (keyless and (key or chain or not identity)):
        raise InvalidError("needs --identity and --identity-issuer, but not --key or --chain", element="--keyless")
    if not keyless and not key and not chain:
        raise InvalidError("nobody is trusted", element="skerry model verify", hint="give --key, --chain or --keyless")
    if identity and not chain and not keyless:
        raise InvalidError("is in a certificate", element="--identity", hint="give --chain with the authorities")
    given = places.access(kubeconfig, namespace, username, password_stdin=password_stdin, plain_http=plain_http)
    trusted = [bundle.read_public_key(read_file(path), str(path)) for path in key or ()]
    roots = [one for path in chain or () for one in bundle.read_certificates(read_file(path), str(path))]
    asked = _Trust(trusted, roots, identity, identity_issuer, trust_config)
    with _opened(model, given, signature) as subject:
        results = [_judge(subject, name, raw, asked) for name, raw in subject.signatures]
    _report(model, results, as_json=as_json)


@dataclass(frozen=True)
class _Trust:
    """Who is trusted."""

    keys: Sequence[bundle.PublicKey]
    authorities: Sequence[bundle.Certificate]
    identity: str
    issuer: str
    trust_config: Path | None


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is to be verified: its files, and what claims to sign them."""

    element: str
    files: Mapping[str, str]
    signatures: Sequence[tuple[str, bytes]]
    directory: Path | None = None


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What came of one signature."""

    signature: str
    status: Literal["Verified", "Refused"]
    signer: bundle.Signer | None = None
    unsigned: Sequence[str] = ()
    error: SkerryError | None = None


@contextmanager
def _opened(model: str, given: places.Access, signature: Path | None) -> Iterator[_Subject]:
    chosen = None if signature is None else [(str(signature), package.read_signature(signature))]
    if not is_remote(model):
        directory = Path(model)
        found = package.digests(directory)
        beside = chosen or [(path.name, package.read_signature(path)) for path in package.signatures(directory)]
        yield _Subject(element=model, files=found, signatures=beside, directory=directory)
        return
    where = parse_version(given, model)
    with places.open_repository(where, given) as place:
        version = find_model(place, where.name)
        if version.card is None:
            raise NotFoundError("has no evaluation card, and only with it a model is signed", element=model)
        listed = chosen or [(manifests.digest_of(raw), raw) for raw in fetch(place, version.referrers)]
        yield _Subject(element=model, files=package.carried(version.card, version.card_text), signatures=listed)


def _judge(subject: _Subject, name: str, raw: bytes, trust: _Trust) -> _Result:
    try:
        if trust.issuer:
            who, files = _keyless(subject, raw, trust)
        else:
            found = bundle.verify(raw, keys=trust.keys, authorities=trust.authorities, now=SystemClock().now())
            who, files = found.signers[0], found.files
            if trust.identity and trust.identity not in (who.identity, who.subject):
                other = who.identity or who.subject or "a key alone"
                raise IntegrityError(f"is by {other}, not {trust.identity}", element="signature")
        unsigned = package.compare(subject.files, files, subject.element)
    except SkerryError as error:
        return _Result(signature=name, status="Refused", error=error)
    return _Result(signature=name, status="Verified", signer=who, unsigned=unsigned)


def _keyless(subject: _Subject, raw: bytes, trust: _Trust) -> tuple[bundle.Signer, Mapping[str, str]]:
    if subject.directory is None:
        raise InvalidError("is for packages", element="--keyless", hint="pull the model version first")
    with tempfile.NamedTemporaryFile() as file:
        file.write(raw)
        file.flush()
        files = signer.verify_keyless(
            subject.directory,
            Path(file.name),
            identity=trust.identity,
            issuer=trust.issuer,
            trust_config=trust.trust_config,
        )
    return bundle.Signer(key="", identity=trust.identity, oidc_issuer=trust.issuer), files


def _report(model: str, results: Sequence[_Result], *, as_json: bool) -> None:
    """Print what came of each signature. Raises IntegrityError unless one of them holds."""
    good = [one for one in results if one.status == "Verified"]
    if as_json:
        output.print_json({"model": model, "verified": bool(good), "signatures": [_plain(one) for one in results]})
    else:
        for one in results:
            output.say(f"{one.signature}: {_sentence(one)}")
    if not good:
        cause = "no signature of it is by a trusted signer" if results else "is not signed"
        hint = "sign it with `skerry model sign`" if not results else ""
        raise IntegrityError(cause, element=model, hint=hint)


def _sentence(one: _Result) -> str:
    if one.error is not None or one.signer is None:
        return f"refused, {one.error.sentence if one.error else ''}"
    who = one.signer.identity or one.signer.subject or f"key {one.signer.key}"
    by = f"{who}, certified by {one.signer.issuer}" if one.signer.issuer else who
    return f"signed by {by}" + (f"; not signed: {', '.join(one.unsigned)}" if one.unsigned else "")


def _plain(one: _Result) -> dict[str, Any]:
    who = one.signer
    return {
        "signature": one.signature,
        "status": one.status,
        "signer": {
            "key": who.key,
            "subject": who.subject,
            "issuer": who.issuer,
            "identity": who.identity,
            "oidcIssuer": who.oidc_issuer,
        }
        if who is not None
        else None,
        "unsigned": list(one.unsigned),
        "error": one.error.sentence if one.error is not None else "",
    }
