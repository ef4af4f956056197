"""`skerry apply` and `skerry delete`: bring the hub's objects to what files say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from skerry.api import codec
from skerry.api.errors import InvalidError, SkerryError
from skerry.api.kinds import find_kind
from skerry.cli import options, output

_SUFFIXES = (".yaml", ".yml", ".json")


def apply(
    filename: Annotated[list[Path], typer.Option("--filename", "-f", help="File, directory, or - for standard input.")],
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Create or change objects so that they are what the files say; every file is checked before anything is sent."""
    documents = [document for path in filename for document in read_documents(path)]
    with options.connect(kubeconfig, namespace) as client:
        for element, raw in documents:
            outcome = client.apply(raw)
            info = find_kind(str(raw["kind"]))
            kind = info.singular if info else raw["kind"]
            output.say(f"{kind}/{raw['metadata']['name']} {outcome}")
            del element


def delete(
    what: Annotated[list[str] | None, typer.Argument(help="kind/NAME, or a kind and names.")] = None,
    filename: Annotated[list[Path] | None, typer.Option("--filename", "-f", help="Delete what a file names.")] = None,
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Delete objects; a deleted deployment's workloads are taken off its devices."""
    targets = [
        options.reference(f"{raw['kind']}/{raw['metadata']['name']}")
        for f in filename or []
        for _, raw in read_documents(f)
    ]
    words = what or []
    if words and "/" not in words[0]:
        targets += [options.reference(f"{words[0]}/{name}") for name in words[1:]]
    else:
        targets += [options.reference(word) for word in words]
    if not targets:
        raise InvalidError("nothing to delete was named", hint="write it as in: skerry delete deployment/digits")
    with options.connect(kubeconfig, namespace) as client:
        for target in targets:
            client.delete(target.info.type, target.name)
            output.say(f"{target.info.singular}/{target.name} deleted")


def read_documents(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the valid documents of a file, a directory's files or standard input, each with where it stood.

    Raises InvalidError that names file, document and field.
    """
    if str(path) == "-":
        return _parse("standard input", sys.stdin.buffer.read())
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        if not files:
            raise InvalidError(f"holds no {', '.join(_SUFFIXES)} file", element=str(path))
        return [document for file in files for document in read_documents(file)]
    try:
        return _parse(str(path), path.read_bytes())
    except OSError as error:
        raise InvalidError(error.strerror or str(error), element=str(path)) from None


def _parse(source: str, content: bytes) -> list[tuple[str, dict[str, Any]]]:
    try:
        documents = codec.load_documents(content)
        for document in documents:
            codec.validate(document)
    except SkerryError as error:
        element = f"{source}: {error.element}" if error.element else source
        raise InvalidError(error.cause, element=element, hint=error.hint) from None
    if not documents:
        raise InvalidError("holds no object", element=source)
    return [(source, document) for document in documents]
