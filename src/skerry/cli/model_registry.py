"""`skerry model push|pull|list|inspect|tag|copy|rm`: model versions between packages, the hub and other registries.

Lives here: what these verbs take and print. Must not live here: requests (`drivers.client`), where references lead
(`places`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from skerry.api import quantity
from skerry.api.errors import ConflictError, InvalidError
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec
from skerry.api.meta import ObjectMeta
from skerry.cli import importing, options, output, package, places
from skerry.core import card as cards
from skerry.core import manifest as manifests
from skerry.core.ports import Manifest
from skerry.core.reference import Reference
from skerry.drivers.client.copy import copy_model
from skerry.drivers.client.pull import FoundModel, find_model, pull_package
from skerry.drivers.client.registry import PushedModel, push_package

Place = Annotated[str, typer.Argument(help="MODEL:VERSION on the hub, or oci://host/repository:tag.")]
_KINDS = {
    manifests.CARD_TYPE: "evaluation card",
    manifests.GOLDEN_TYPE: "golden samples",
    manifests.DELTA_TYPE: "delta",
    "application/vnd.dev.sigstore.bundle.v0.3+json": "signature",
    "application/vnd.cyclonedx+json": "SBOM",
}


def push(
    source: Annotated[
        Path, typer.Argument(help="A package, or a Hugging Face or MLflow directory, which is imported on the way.")
    ],
    target: Annotated[str, typer.Argument(help="oci://host/repository[:tag]; the hub's own registry without it.")] = "",
    namespace: options.Namespace = "",
    username: places.Username = "",
    password_stdin: places.PasswordStdin = False,
    plain_http: places.PlainHttp = False,
    form: places.Form = "text",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Put a package into the hub's registry and create its ModelVersion; or into any OCI registry."""
    as_json = places.check_form(form)
    given = places.access(kubeconfig, namespace, username, password_stdin=password_stdin, plain_http=plain_http)
    with importing.packaged(source) as made:
        _push(made, target, given, as_json=as_json)


def _push(source: Path, target: str, given: places.Access, *, as_json: bool) -> None:
    card = package.read_card(source)
    if target:
        where = given.parse(target)
        if not where.host:
            raise InvalidError(
                "is on the hub", element=target, hint="leave it out: the hub's place follows from the card"
            )
        with places.shown(f"pushing {where}") as progress, places.open_repository(where, given, progress) as place:
            pushed = push_package(place.client, where.repository, source, card, progress, tag=where.tag)
        _print_push(f"{where.host}/{where.repository}", where.tag or card.version, pushed, "", as_json=as_json)
        return
    with options.connect(given.kubeconfig, given.namespace) as client:
        repository = f"{client.namespace}/{card.model}"
        with places.shown(f"pushing {repository}:{card.version}") as progress:
            pushed = push_package(client.http, repository, source, card, progress)
        wanted = model_version_of(card, repository, pushed.index)
        outcome = client.apply(msgspec.to_builtins(wanted))
    _print_push(repository, card.version, pushed, f"modelversion/{wanted.metadata.name} {outcome}", as_json=as_json)


def model_version_of(card: cards.EvaluationCard, repository: str, index: str) -> ModelVersion:
    """Return the ModelVersion of a package that was pushed."""
    return ModelVersion(
        metadata=ObjectMeta(name=f"{card.model}-{card.version}", labels={"skerry.dev/model": card.model}),
        spec=ModelVersionSpec(
            model=card.model,
            version=card.version,
            artifact=Artifact(repository=repository, digest=index),
            signature=card.signature,
            evaluation=card.evaluation,
            golden=card.golden,
            rejected=card.rejected,
        ),
    )


def pull(
    source: Place,
    directory: Annotated[Path | None, typer.Argument(help="For the package; MODEL-VERSION without it.")] = None,
    namespace: options.Namespace = "",
    username: places.Username = "",
    password_stdin: places.PasswordStdin = False,
    plain_http: places.PlainHttp = False,
    form: places.Form = "text",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Bring a model version back as a package, every digest verified; run it again to go on after a break."""
    as_json = places.check_form(form)
    given = places.access(kubeconfig, namespace, username, password_stdin=password_stdin, plain_http=plain_http)
    where = _named(given, source)
    target = directory or Path(f"{where.repository.rpartition('/')[2]}-{where.tag or where.digest[7:19]}")
    with places.shown(f"pulling {where}") as progress, places.open_repository(where, given, progress) as place:
        pulled = pull_package(place, where.name, target)
    if as_json:
        output.print_json(
            {
                "directory": str(target),
                "digest": pulled.index,
                "model": pulled.card.model,
                "version": pulled.card.version,
                "files": list(pulled.files),
                "fetchedBytes": pulled.fetched,
                "presentBytes": pulled.present,
            }
        )
        return
    output.say(
        f"{where}@{pulled.index[:19]} pulled into {target}, {quantity.human_bytes(pulled.fetched)} fetched, "
        f"{quantity.human_bytes(pulled.present)} already there"
    )


def list_models(
    repository: Annotated[str, typer.Argument(help="List a repository's tags: MODEL, or oci://host/repository.")] = "",
    namespace: options.Namespace = "",
    username: places.Username = "",
    password_stdin: places.PasswordStdin = False,
    plain_http: places.PlainHttp = False,
    form: places.Form = "text",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """List the model versions the hub knows; or the tags of one repository, there or elsewhere."""
    as_json = places.check_form(form)
    given = places.access(kubeconfig, namespace, username, password_stdin=password_stdin, plain_http=plain_http)
    if not repository:
        from skerry.cli.get import show  # noqa: PLC0415

        show("models", namespace=namespace, kubeconfig=kubeconfig, form="json" if as_json else "")
        return
    where = given.parse(repository)
    with places.open_repository(where, given) as place:
        rows = [(tag, place.get_manifest(tag)) for tag in place.list_tags()]
    if as_json:
        output.print_json([{"tag": tag, "digest": m.digest, "mediaType": m.media_type} for tag, m in rows])
        return
    output.print_table(("TAG", "DIGEST", "KIND"), [(tag, m.digest, _kind_of(m)) for tag, m in rows])


def inspect(
    source: Annotated[str, typer.Argument(help="A package's directory, MODEL:VERSION, or oci://host/repository:tag.")],
    namespace: options.Namespace = "",
    username: places.Username = "",
    password_stdin: places.PasswordStdin = False,
    plain_http: places.PlainHttp = False,
    form: places.Form = "text",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Show a model version: its variants as they were measured, and in a registry what is attached to it."""
    as_json = places.check_form(form)
    if Path(source, cards.CARD_FILE).is_file() or Path(source).is_dir():
        card = package.read_card(Path(source))
        if as_json:
            output.print_json(card)
            return
        package.print_card(card)
        return
    given = places.access(kubeconfig, namespace, username, password_stdin=password_stdin, plain_http=plain_http)
    where = _named(given, source)
    with places.open_repository(where, given) as place:
        found = find_model(place, where.name)
    if as_json:
        output.print_json(_described(where, found))
        return
    _print_found(where, found)


def tag(
    source: Place,
    name: Annotated[str, typer.Argument(help="The further tag.")],
    force: Annotated[bool, typer.Option("--force", help="Move the tag where it names something else.")] = False,
    namespace: options.Namespace = "",
    username: places.Username = "",
    password_stdin: places.PasswordStdin = False,
    plain_http: places.PlainHttp = False,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Give a model version one more tag in its repository."""
    given = places.access(kubeconfig, namespace, username, password_stdin=password_stdin, plain_http=plain_http)
    where = _named(given, source)
    if not manifests.is_tag(name):
        raise InvalidError(f'"{name[:128]}" is not a tag', element="tag", hint="letters, digits, '_', '.', '-'")
    with places.open_repository(where, given) as place:
        found = place.get_manifest(where.name)
        before = place.find_manifest(name)
        if before is not None and before.digest != found.digest and not force:
            raise ConflictError(
                f"names {before.digest} already", element=f"{place.name}:{name}", hint="move it with --force"
            )
        if before is not None and before.digest != found.digest and not where.host:
            _check_no_version(given, where.repository, name, before.digest)
        place.put_manifest(name, found)
    output.say(f"{place.name}:{name} is {found.digest}")


def _check_no_version(given: places.Access, repository: str, tag: str, digest: str) -> None:
    """Raise ConflictError where a tag of the hub is a ModelVersion's own, which never comes to name something else."""
    with options.connect(given.kubeconfig, repository.partition("/")[0]) as client:
        for version in client.list(ModelVersion):
            spec = version.spec
            if (spec.artifact.repository, spec.artifact.digest, spec.version) == (repository, digest, tag):
                raise ConflictError(
                    f"is modelversion/{version.metadata.name}'s own",
                    element=f"{repository}:{tag}",
                    hint="model versions are immutable: choose another tag, or remove that version first",
                )


def copy(
    source: Place,
    target: Annotated[str, typer.Argument(help="MODEL[:TAG] on the hub, or oci://host/repository[:tag].")],
    namespace: options.Namespace = "",
    username: places.Username = "",
    password_stdin: places.PasswordStdin = False,
    plain_http: places.PlainHttp = False,
    form: places.Form = "text",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Copy a model version with all that is attached to it between any two registries; what is there is not sent."""
    as_json = places.check_form(form)
    given = places.access(kubeconfig, namespace, username, password_stdin=password_stdin, plain_http=plain_http)
    origin, goal = _named(given, source), given.parse(target)
    if goal.digest:
        raise InvalidError("names a digest", element=target, hint="a copy has the digest of what is copied; name a tag")
    wanted = goal.tag or origin.tag
    if not wanted and not goal.host:
        raise InvalidError(
            "names no tag", element=target, hint=f"write {target}:TAG: what has none is collected as garbage"
        )
    with (
        places.shown(f"copying {origin}") as progress,
        places.open_repository(origin, given, progress) as old,
        places.open_repository(goal, given, progress) as new,
    ):
        done = copy_model(old, new, origin.name, wanted, one_registry=origin.host == goal.host)
    if as_json:
        output.print_json(
            {
                "digest": done.index,
                "manifests": done.manifests,
                "sentBytes": new.sent,
                "presentBytes": new.skipped,
                "mountedBytes": done.mounted,
            }
        )
        return
    output.say(
        f"{new.name}:{wanted}@{done.index[:19]} copied: {done.manifests} manifests, "
        f"{quantity.human_bytes(new.sent)} sent, {quantity.human_bytes(done.mounted)} mounted, "
        f"{quantity.human_bytes(new.skipped)} already there"
    )


def remove(
    source: Place,
    namespace: options.Namespace = "",
    username: places.Username = "",
    password_stdin: places.PasswordStdin = False,
    plain_http: places.PlainHttp = False,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Remove a model version; refused on the hub while anything deploys it. Its bytes go with `skerry registry gc`."""
    given = places.access(kubeconfig, namespace, username, password_stdin=password_stdin, plain_http=plain_http)
    where = _named(given, source)
    if where.host:
        with places.open_repository(where, given) as place:
            place.delete_manifest(where.name)
        output.say(f"{where} removed")
        return
    with options.connect(given.kubeconfig, given.namespace) as client:
        removed = client.remove_model(where.repository, where.name)
    for line in removed.names:
        output.say(f"{line} removed")


def _named(given: places.Access, text: str) -> Reference:
    """Parse a reference that names one thing. Raises InvalidError where it names a whole repository."""
    where = given.parse(text)
    if not where.name:
        raise InvalidError(
            "names no version", element=text, hint=f"write {text}:VERSION; see `skerry model list {text}`"
        )
    return where


def _print_push(repository: str, name: str, pushed: PushedModel, applied: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "repository": repository,
                "tag": name,
                "digest": pushed.index,
                "variants": dict(pushed.manifests),
                "sentBytes": pushed.sent,
                "presentBytes": pushed.skipped,
            }
        )
        return
    output.say(
        f"{repository}:{name}@{pushed.index[:19]} pushed, {quantity.human_bytes(pushed.sent)} sent, "
        f"{quantity.human_bytes(pushed.skipped)} already there"
    )
    if applied:
        output.say(applied)


def _kind_of(manifest: Manifest) -> str:
    kind = manifests.parse(manifest.raw, manifest.media_type).type
    return "model version" if kind == manifests.MODEL_TYPE else _KINDS.get(kind, kind or "index")


def _described(where: Reference, found: FoundModel) -> dict[str, Any]:
    return {
        "reference": str(where),
        "digest": found.index.digest,
        "model": found.model,
        "version": found.version,
        "variants": found.variants,
        "referrers": found.referrers,
        "card": found.card,
    }


def _print_found(where: Reference, found: FoundModel) -> None:
    output.say(f"{found.model} {found.version}, index {found.index.digest} at {where}")
    output.say("")
    if found.card is not None:
        package.print_card(found.card)
    else:
        rows = [(v.name, quantity.human_bytes(v.blob.size), v.blob.digest) for v in found.variants]
        output.print_table(("VARIANT", "SIZE", "FILE"), rows)
        output.say("no evaluation card is attached")
    output.say("")
    output.print_table(("ATTACHED", "DIGEST", "ABOUT"), [_referrer_row(one) for one in found.referrers])


def _referrer_row(one: manifests.Descriptor) -> tuple[str, str, str]:
    about = one.annotations
    said = ""
    if one.artifact_type == manifests.DELTA_TYPE:
        size = about.get(manifests.DELTA_SIZE_ANNOTATION, "")
        said = f"from {about.get(manifests.DELTA_BASE_ANNOTATION, '')[:19]}"
        said += f", {quantity.human_bytes(int(size))}" if size.isascii() and size.isdecimal() and len(size) < 18 else ""
    return _KINDS.get(one.artifact_type, one.artifact_type or one.media_type), one.digest, said
