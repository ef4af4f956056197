"""`skerry trust ...`: trust anchors and signed policies, made offline: nothing here talks to a hub.

Lives here: reading, asking for passphrases, writing. Must not live here: the rules (`core.anchor`), keys
(`drivers.owner_keys`), which devices begin with which anchor (`skerry agent enroll --trust`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from skerry.api import codec
from skerry.api.errors import AlreadyExistsError, InvalidError, NotFoundError
from skerry.api.kinds.trust_policy import MAX_ROOT_CHARACTERS, MAX_ROOTS, NAME, TrustPolicy, TrustTerms
from skerry.cli import output
from skerry.core import anchor
from skerry.core.anchor import Role, Root, Seal, Sealed, SignedPolicy
from skerry.drivers import owner_keys
from skerry.kit import files

app = typer.Typer(
    help="Trust anchors and signed policies: made and signed offline, so that no hub holds the owners' keys.",
    no_args_is_help=True,
)

MAX_FILE_BYTES = 1024 * 1024
_MAX_DAYS = 3650

Key = Annotated[list[Path] | None, typer.Option("--key", help="Private key to sign with; may be given several times.")]
PassphraseFile = Annotated[
    Path | None, typer.Option(help="Holds the keys' passphrase in its first line; else it is asked for.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write; it must not be there yet.")]
Days = Annotated[int, typer.Option("--days", min=1, max=_MAX_DAYS, help="How long it is good.")]
Owners = Annotated[list[Path] | None, typer.Option("--owner", help="Public key of an owner: signs trust anchors.")]
Policies = Annotated[list[Path] | None, typer.Option("--policy-key", help="Public key of who signs policies.")]
Threshold = Annotated[int, typer.Option(min=1, max=anchor.MAX_KEYS, help="How many owners must sign.")]
PolicyThreshold = Annotated[int, typer.Option(min=1, max=anchor.MAX_KEYS, help="How many policy keys must sign.")]
Roots = Annotated[list[Path] | None, typer.Option("--root", help="The trust anchor's versions, in their order.")]


@app.command()
def keygen(
    path: Annotated[Path, typer.Argument(help="The key's file.")], passphrase_file: PassphraseFile = None
) -> None:
    """Make a key for owners or policies: PATH, protected by a passphrase, and PATH.pub."""
    passphrase = _read_passphrase(passphrase_file) if passphrase_file else _new_passphrase(path)
    public = path.with_name(f"{path.name}.pub")
    _check_new(public)
    der = owner_keys.public_der(owner_keys.create(path, passphrase))
    files.write_atomic(public, owner_keys.pem_of(der).encode())
    output.say(f"{path} is the key: keep it offline, with a copy. {public} is for others: {anchor.key_id(der)}")


@app.command()
def init(
    out: Out,
    owner: Owners = None,
    policy_key: Policies = None,
    threshold: Threshold = 1,
    policy_threshold: PolicyThreshold = 1,
    days: Days = 365,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make the first version of a trust anchor, and sign it with the owners' keys that are at hand."""
    now = _now()
    root = Root(
        v=1,
        version=1,
        issued_at=now,
        expires_at=now + timedelta(days=days),
        owners=_role(owner, threshold, "--owner"),
        policies=_role(policy_key, policy_threshold, "--policy-key"),
    )
    sealed = _sign(anchor.seal(root), key, passphrase_file)
    anchor.read_root(sealed)
    _write_root(out, sealed, root, [root.owners])


@app.command()
def rotate(
    current: Annotated[Path, typer.Argument(help="The newest version there is.")],
    out: Out,
    owner: Owners = None,
    policy_key: Policies = None,
    threshold: Annotated[int, typer.Option(min=0, max=anchor.MAX_KEYS, help="0: as it is.")] = 0,
    policy_threshold: Annotated[int, typer.Option(min=0, max=anchor.MAX_KEYS, help="0: as it is.")] = 0,
    days: Days = 365,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make the version that follows: other keys, or the same for longer. Old and new owners must sign it."""
    before = anchor.check_first(anchor.read(_read(current), str(current)), owner_keys.verify)
    now = _now()
    root = Root(
        v=1,
        version=before.version + 1,
        issued_at=now,
        expires_at=now + timedelta(days=days),
        owners=_changed(before.owners, owner, threshold, "--owner"),
        policies=_changed(before.policies, policy_key, policy_threshold, "--policy-key"),
    )
    _say_changes(before, root)
    sealed = _sign(anchor.seal(root), key, passphrase_file)
    anchor.read_root(sealed)
    _write_root(out, sealed, root, [before.owners, root.owners])


@app.command()
def sign(
    path: Annotated[Path, typer.Argument(help="A trust anchor that others have signed, or will.")],
    after: Annotated[Path | None, typer.Option(help="The version before it, to see what changes.")] = None,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Add signatures to a trust anchor; the file is replaced. For owners who are not in one place.

    What is signed is printed first: compare it with what the owners agreed on.
    """
    sealed = anchor.read(_read(path), str(path))
    root = anchor.read_root(sealed)
    if not key:
        raise InvalidError("names no key to sign with", element="--key")
    before = _before(after, root) if after is not None else None
    output.say(f"trust anchor {root.version}, {anchor.digest_of(sealed)}, good until {root.expires_at}")
    if before is not None:
        _say_changes(before, root)
    else:
        _say_roles(root)
    sealed = _sign(sealed, key, passphrase_file)
    files.write_atomic(path, anchor.write(sealed).encode() + b"\n")
    found = anchor.signers(sealed, root.owners, owner_keys.verify)
    output.say(f"{path} has {len(found)} of the {root.owners.threshold} signatures it needs of its own owners")
    if before is not None:
        found = anchor.signers(sealed, before.owners, owner_keys.verify)
        output.say(f"and {len(found)} of {before.owners.threshold} of the owners of version {before.version}")


@app.command()
def sign_policy(
    path: Annotated[Path, typer.Argument(help="A TrustPolicy, in YAML or JSON.")],
    out: Out,
    root: Roots = None,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="The policy's, or default.")] = "",
    version: Annotated[int, typer.Option(min=0, help="0: as written in it.")] = 0,
    days: Annotated[int, typer.Option(min=1, max=_MAX_DAYS, help="How long devices take new models by it.")] = 90,
    key: Key = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Sign a namespace's policy for devices that have the trust anchor; apply what is written to the hub.

    A policy that is signed already, and not changed since, gets another signature beside it.
    """
    item = _read_policy(path)
    space = namespace or item.metadata.namespace or "default"
    sealed = _sealed_terms(item, space, version, days)
    sealed = _sign(sealed, key, passphrase_file)
    signed = anchor.read_policy(sealed)
    chain = [_read(one).decode() for one in root] if root else item.spec.roots
    if len(chain) > MAX_ROOTS:
        raise InvalidError(
            f"{len(chain)} versions are more than {MAX_ROOTS}", element="--root", hint="leave old ones out"
        )
    meta = msgspec.structs.replace(item.metadata, name=NAME, namespace=space)
    terms = {name: getattr(signed.terms, name) for name in TrustTerms.__struct_fields__}
    spec = msgspec.structs.replace(
        item.spec, **terms, envelope=anchor.write(sealed), roots=[one.strip() for one in chain]
    )
    made = TrustPolicy(metadata=meta, spec=spec)
    plain = msgspec.to_builtins(made)
    plain = {name: plain[name] for name in ("apiVersion", "kind", "metadata", "spec")}
    _check_new(out)
    files.write_atomic(out, codec.to_yaml(plain).encode())
    output.say(f"{out}: version {signed.terms.version} for namespace {space}, good until {signed.terms.expires_at}")
    if chain:
        newest = _check_chain([anchor.read(text, "--root") for text in chain])
        found = anchor.signers(sealed, newest.policies, owner_keys.verify)
        output.say(f"it has {len(found)} of the {newest.policies.threshold} signatures it needs")


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A trust anchor, or a signed TrustPolicy.")]) -> None:
    """Print what a trust anchor or a signed policy says, and who has signed it."""
    if path.suffix in (".yaml", ".yml"):
        item = _read_policy(path)
        sealed = anchor.read(item.spec.envelope, str(path)) if item.spec.envelope else None
        output.say(f"policy of {item.metadata.namespace or 'default'}, version {item.spec.version}, {item.spec.mode}")
        output.say(f"good until {item.spec.expires_at or 'it is signed'}")
        for one in sealed.signatures if sealed else []:
            output.say(f"signed by {one.keyid}")
        return
    sealed = anchor.read(_read(path), str(path))
    root = anchor.read_root(sealed)
    output.say(f"trust anchor {root.version}, {anchor.digest_of(sealed)}")
    output.say(f"issued {root.issued_at}, good until {root.expires_at}")
    _say_roles(root)
    for one in sealed.signatures:
        output.say(f"signed by {one.keyid}")


@app.command()
def verify(
    root: Annotated[list[Path], typer.Argument(help="The trust anchor's versions, in their order.")],
    policy: Annotated[Path | None, typer.Option(help="Also check this signed TrustPolicy against the newest.")] = None,
) -> None:
    """Check, as a device would, that each version follows from the one before; and a policy, and that it is current."""
    sealed = [anchor.read(_read(path), str(path)) for path in root]
    newest = _check_chain(sealed)
    output.say(f"trust anchor {newest.version} follows from {anchor.read_root(sealed[0]).version}")
    if policy is not None:
        item = _read_policy(policy)
        space = item.metadata.namespace or "default"
        signed = anchor.check_policy(anchor.read(item.spec.envelope, str(policy)), newest, space, owner_keys.verify)
        if signed.terms != _terms(item):
            raise InvalidError(
                "signs other terms than are written beside it", element=str(policy), hint="sign it again"
            )
        anchor.check_current(newest, signed, _now())
        output.say(f"policy {signed.terms.version} of {space} is signed by its keys")


# --- documents ----------------------------------------------------------------------------------------------------


def _before(path: Path, root: Root) -> Root:
    """Return the version that a root is to follow, if its own owners signed that."""
    before = anchor.check_first(anchor.read(_read(path), str(path)), owner_keys.verify)
    if root.version != before.version + 1:
        raise InvalidError(
            f"version {root.version} does not follow version {before.version}",
            element="--after",
            hint=f"name version {root.version - 1}",
        )
    return before


def _say_roles(root: Root) -> None:
    for name, role in _roles(root):
        output.say(f"{name}: {role.threshold} of {', '.join(sorted(role.ids))}")


def _say_changes(before: Root, root: Root) -> None:
    """Print which keys come and go, and what happens to the thresholds: whoever signs puts that into force."""
    for (name, old), (_, new) in zip(_roles(before), _roles(root), strict=True):
        how = str(new.threshold) if old.threshold == new.threshold else f"{new.threshold} (was {old.threshold})"
        output.say(f"{name}: {how} of {len(new.keys)}{'' if old.ids != new.ids else ', the same keys'}")
        for key, sign in [*((key, "-") for key in old.ids - new.ids), *((key, "+") for key in new.ids - old.ids)]:
            output.say(f"  {sign} {key}")


def _roles(root: Root) -> list[tuple[str, Role]]:
    return [("owners", root.owners), ("policies", root.policies)]


def _check_chain(chain: Sequence[Sealed]) -> Root:
    root = anchor.check_first(chain[0], owner_keys.verify)
    for sealed in chain[1:]:
        root = anchor.check_next(root, sealed, owner_keys.verify)
    return root


def _sealed_terms(item: TrustPolicy, namespace: str, version: int, days: int) -> Sealed:
    """Return the policy to sign; the very one that is signed already, if nothing was changed."""
    if item.spec.envelope:
        sealed = anchor.read(item.spec.envelope, "spec.envelope")
        known = anchor.read_policy(sealed)
        wanted = version or item.spec.version
        if known.namespace == namespace and known.terms == msgspec.structs.replace(_terms(item), version=wanted):
            return sealed
        if wanted <= known.terms.version:
            raise InvalidError(
                f"was signed as version {known.terms.version} with other terms",
                element="spec.version",
                hint=f"give --version {known.terms.version + 1}: devices take no version twice",
            )
    if not (version or item.spec.version):
        raise InvalidError("has no version", element="spec.version", hint="give --version, higher than the last one")
    now = _now()
    terms = msgspec.structs.replace(
        _terms(item), version=version or item.spec.version, issued_at=now, expires_at=now + timedelta(days=days)
    )
    return anchor.seal(SignedPolicy(v=1, namespace=namespace, terms=terms))


def _terms(item: TrustPolicy) -> TrustTerms:
    return TrustTerms(**{name: getattr(item.spec, name) for name in TrustTerms.__struct_fields__})


def _read_policy(path: Path) -> TrustPolicy:
    found = [raw for raw in codec.load_documents(_read(path)) if raw.get("kind") == "TrustPolicy"]
    if len(found) != 1:
        raise InvalidError(f"holds {len(found)} TrustPolicies, not one", element=str(path))
    return _policy_of(found[0])


def _policy_of(raw: dict[str, Any]) -> TrustPolicy:
    meta = {"name": NAME, **(raw.get("metadata") or {})}
    item = codec.validate({**raw, "metadata": meta})
    if not isinstance(item, TrustPolicy):
        raise InvalidError("is no TrustPolicy", element="kind")
    return item


def _write_root(out: Path, sealed: Sealed, root: Root, roles: Sequence[Role]) -> None:
    if len(anchor.write(sealed)) > MAX_ROOT_CHARACTERS:
        raise InvalidError("is too large", element=str(out), hint="name fewer keys")
    _check_new(out)
    files.write_atomic(out, anchor.write(sealed).encode() + b"\n")
    output.say(f"{out}: trust anchor {root.version}, {anchor.digest_of(sealed)}, good until {root.expires_at}")
    missing = [role for role in roles if len(anchor.signers(sealed, role, owner_keys.verify)) < role.threshold]
    if missing:
        output.say("it is not signed by enough owners yet; add signatures with `skerry trust sign`")


# --- keys ---------------------------------------------------------------------------------------------------------


def _role(paths: list[Path] | None, threshold: int, option: str) -> Role:
    if not paths:
        raise InvalidError("names no public key", element=option, hint="`skerry trust keygen` makes one beside its key")
    role = Role(keys=[owner_keys.load_public(path) for path in paths], threshold=threshold)
    anchor.check_role(role, option)
    return role


def _changed(before: Role, paths: list[Path] | None, threshold: int, option: str) -> Role:
    if paths:
        return _role(paths, threshold or before.threshold, option)
    return msgspec.structs.replace(before, threshold=threshold or before.threshold)


def _sign(sealed: Sealed, paths: list[Path] | None, passphrase_file: Path | None) -> Sealed:
    for path in paths or []:
        passphrase = ""
        if owner_keys.needs_passphrase(path):
            passphrase = _read_passphrase(passphrase_file) if passphrase_file else _ask_passphrase(path)
        key = owner_keys.load(path, passphrase)
        signature = owner_keys.sign(key, anchor.signed_bytes(sealed))
        sealed = anchor.add_seal(sealed, Seal(keyid=anchor.key_id(owner_keys.public_der(key)), sig=signature))
    return sealed


def _ask_passphrase(path: Path) -> str:
    return str(typer.prompt(f"Passphrase of {path}", hide_input=True, err=True))


def _new_passphrase(path: Path) -> str:
    return str(typer.prompt(f"Passphrase for {path}", hide_input=True, confirmation_prompt=True, err=True))


def _read_passphrase(path: Path) -> str:
    return next(iter(_read(path).decode(errors="replace").splitlines()), "")


# --- files --------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", element=str(path)) from None
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidError(f"is larger than {MAX_FILE_BYTES} bytes", element=str(path))
    return raw


def _check_new(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise AlreadyExistsError(element=str(path), hint="choose another name")


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
