"""Which files of a package a signature is over, and whether they are what it says.

    signed      card.json, golden.npz and every variant's file: what a registry carries of a model version
    unsigned    provenance.json and pareto.png, which stay at home: `card.json` has the same origin, signed
    signatures  `signatures/*.sig`, one for each signer

Any other file, a file that is missing, has another name or other content, and every symbolic link is an error. Must not
live here: who signed (`bundle`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from skerry.api.errors import IntegrityError, InvalidError, SkerryError, TooLargeError
from skerry.core import card as cards
from skerry.core import manifest
from skerry.core.messages import MAX_SIGNATURES
from skerry.drivers.signing import statement
from skerry.kit import files

SIGNATURES = "signatures"
SUFFIX = ".sig"
UNSIGNED = ("pareto.png", "provenance.json")
"""What the factory leaves in a package and no registry carries; signed only by who signs all files."""
_MAX_NAMED = 5
_NAME_DIGITS = 12
_MAX_DEPTH = 16


def digests(package: Path) -> Mapping[str, str]:
    """Hash a package's files: path -> `sha256:<hex>`, its signatures left out.

    Raises IntegrityError for symbolic links, devices, sockets and pipes, TooLargeError for too many files, InvalidError
    where something cannot be read.
    """
    found: dict[str, str] = {}
    try:
        for path in _walk(package, package):
            if len(found) == statement.MAX_FILES:
                raise TooLargeError(f"has more than {statement.MAX_FILES} files", element=str(package))
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(package).as_posix()] = f"sha256:{digest}"
    except OSError as error:
        raise InvalidError(f"cannot be read: {error.strerror}", element=str(error.filename or package)) from error
    return found


def carried(card: cards.EvaluationCard, card_text: bytes) -> Mapping[str, str]:
    """Return what a registry carries of a model version: path in the package -> digest of its blob.

    `card_text` is the card byte for byte, as it lies in the package.
    """
    variants = {packaged.file: packaged.variant.blob.digest for packaged in card.variants}
    return {
        cards.CARD_FILE: manifest.digest_of(card_text),
        cards.GOLDEN_FILE: card.golden.blob.digest,
        **variants,
    }


def check_complete(found: Mapping[str, str], card: cards.EvaluationCard, package: Path) -> None:
    """Raise IntegrityError unless a package holds what its card says, and nothing that would not be carried.

    Raises InvalidError for a card that gives a variant the name of what is never signed.
    """
    reserved = {*UNSIGNED, SIGNATURES, cards.CARD_FILE, cards.GOLDEN_FILE}
    for packaged in card.variants:
        if packaged.file in reserved:
            raise InvalidError(f'no variant may have the file "{packaged.file}"', element=cards.CARD_FILE)
    wanted = {**carried(card, b""), cards.CARD_FILE: found.get(cards.CARD_FILE, "")}
    _compare(found, wanted, str(package), "what its card says; make the package again, or take other files out of it")


def compare(found: Mapping[str, str], signed: Mapping[str, str], element: str) -> Sequence[str]:
    """Return the files that are there and not signed, which only `UNSIGNED` may be.

    Raises IntegrityError that names what is missing, added or changed.
    """
    _compare(found, signed, element, "what was signed; take the model from its signer again")
    return sorted(found.keys() - signed.keys())


def signatures(package: Path) -> Sequence[Path]:
    """Return a package's signature files, by name. Raises IntegrityError for what is no file, TooLargeError."""
    directory = package / SIGNATURES
    if directory.is_symlink():
        raise IntegrityError("is a symbolic link", element=str(directory))
    found = sorted(directory.glob(f"*{SUFFIX}")) if directory.is_dir() else []
    if len(found) > MAX_SIGNATURES:
        raise TooLargeError(f"holds {len(found)} signatures, more than {MAX_SIGNATURES}", element=str(directory))
    for path in found:
        if path.is_symlink() or not path.is_file():
            raise IntegrityError("is not a plain file", element=str(path))
    return found


def read_signature(path: Path) -> bytes:
    """Read a signature's file. Raises InvalidError, TooLargeError."""
    try:
        with path.open("rb") as file:
            raw = file.read(statement.MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise InvalidError(f"cannot be read: {error.strerror}", element=str(path)) from error
    if len(raw) > statement.MAX_BUNDLE_BYTES:
        raise TooLargeError(f"has more than {statement.MAX_BUNDLE_BYTES} bytes", element=str(path))
    return raw


def read_signatures(package: Path, wanted: Mapping[str, str]) -> Sequence[bytes]:
    """Return the signatures to send with a package that holds `wanted` (`carried`), each once.

    They are not verified: whoever trusts does that. Raises InvalidError or IntegrityError for one that is none, or
    signs something else than this package, so that it is noticed before a device does.
    """
    found = []
    for path in signatures(package):
        raw = read_signature(path)
        listed = statement.read_statement(statement.read_bundle(raw).payload)
        _compare(wanted, listed, str(path), "this package; sign it again, or remove the signature")
        found.append(raw)
    return list(dict.fromkeys(found))


def add_signature(package: Path, raw: bytes) -> Path:
    """Put a signature into a package, in one step; an older one by the same key or certificate is replaced."""
    found = statement.read_bundle(raw)
    signer = found.certificates[0] if found.certificates else found.hint.encode()
    return _write(package, hashlib.sha256(signer).hexdigest(), raw)


def keep_signatures(package: Path, signed: Sequence[bytes], wanted: Mapping[str, str]) -> None:
    """Put signatures that came from a registry into a package that holds `wanted`; those of something else stay out.

    Each has the name of its own digest, so that none takes the place of one that is there.
    """
    there = [read_signature(path) for path in signatures(package)]
    for raw in signed:
        if raw in there or len(there) == MAX_SIGNATURES:
            continue
        try:
            _compare(wanted, statement.read_statement(statement.read_bundle(raw).payload), "", "")
        except SkerryError:
            continue
        _write(package, hashlib.sha256(raw).hexdigest(), raw)
        there.append(raw)


def count(raw: bytes) -> int:
    """Return how many files a signature that was just made is over."""
    return len(statement.read_statement(statement.read_bundle(raw).payload))


def _write(package: Path, name: str, raw: bytes) -> Path:
    path = package / SIGNATURES / f"{name[:_NAME_DIGITS]}{SUFFIX}"
    if path.parent.is_symlink():
        raise IntegrityError("is a symbolic link", element=str(path.parent))
    try:
        path.parent.mkdir(exist_ok=True)
        files.write_atomic(path, raw)
    except OSError as error:
        raise InvalidError(f"cannot be written: {error.strerror}", element=str(path)) from error
    return path


def _walk(package: Path, directory: Path, depth: int = 0) -> Iterator[Path]:
    if depth > _MAX_DEPTH:
        raise TooLargeError(f"has more than {_MAX_DEPTH} directories in one another", element=str(package))
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = Path(entry.path)
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                if path != package / SIGNATURES:
                    yield from _walk(package, path, depth + 1)
            elif stat.S_ISREG(mode):
                yield path
            else:
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
                raise IntegrityError(f"is {kind}", element=str(path), hint="a package holds nothing but files")


def _compare(found: Mapping[str, str], wanted: Mapping[str, str], element: str, whose: str) -> None:
    kinds = {
        "missing": {name for name in wanted.keys() - found.keys() - {*UNSIGNED} if not _is_signature(name)},
        "added": found.keys() - wanted.keys() - {*UNSIGNED},
        "changed": {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]},
    }
    said = [f"{kind}: {_names(names)}" for kind, names in kinds.items() if names]
    if said:
        cause, _, hint = whose.partition("; ")
        raise IntegrityError(f"is not {cause} ({'; '.join(said)})", element=element, hint=hint)


def _is_signature(name: str) -> bool:
    """Whether it is a signature, which others' tools sign as well; it is judged by itself."""
    return name.startswith(f"{SIGNATURES}/")


def _names(names: set[str]) -> str:
    shown = sorted(names)[:_MAX_NAMED]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return statement.shown(", ".join(name[:120] for name in shown)) + more
