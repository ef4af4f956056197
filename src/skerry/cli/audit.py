"""`skerry audit`: who asked what of the hub, and whether the log that says so is whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from skerry.api import duration
from skerry.api.audit import AuditEvent, AuditEventList
from skerry.api.errors import IntegrityError, InvalidError, SkerryError
from skerry.cli import options, output
from skerry.core import audit as chains
from skerry.core.audit import Check
from skerry.core.audit_query import COLUMNS, cells_of
from skerry.drivers import audit_files

app = typer.Typer(help="Who asked what of the hub, and what came of it.", invoke_without_command=True)

_WIDTHS = (24, 20, 8, 40, 12, 5)
_MAX_PROBLEMS = 20
_PAGE = "1000"
_DECODER = msgspec.json.Decoder(AuditEvent)
_PAGES = msgspec.json.Decoder(AuditEventList)


@app.callback()
def audit(
    context: typer.Context,
    user: Annotated[str, typer.Option(help="Who asked, or as whom.")] = "",
    verb: Annotated[str, typer.Option(help="create, delete, patch, get ...")] = "",
    resource: Annotated[str, typer.Option(help="devices, devices/exec, roles.rbac.authorization.k8s.io, /v2/...")] = "",
    name: Annotated[str, typer.Option(help="The object's name.")] = "",
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Namespace; all of them unless given.")] = "",
    since: Annotated[str, typer.Option(help="From when on: 2h ago, or 2026-11-23T10:00:00Z.")] = "24h",
    until: Annotated[str, typer.Option(help="Up to when, in the same forms.")] = "",
    outcome: Annotated[str, typer.Option(help="allowed, denied or failed.")] = "",
    form: Annotated[str, typer.Option("--output", "-o", help="json: one entry a line, as it is in the log.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what is added.")] = False,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Show what was asked of the hub in the last day, or since and until when you say; oldest first."""
    if context.invoked_subcommand is not None:
        return
    if form not in ("", "json"):
        raise InvalidError(f'"{form}" is not an output form', element="--output", hint="json, or leave it out")
    asked = {
        "user": user,
        "verb": verb,
        "resource": resource,
        "name": name,
        "namespace": namespace,
        "outcome": outcome,
        "since": _time(since, "--since"),
        "until": _time(until, "--until"),
    }
    if not form:
        _print(tuple(column.upper() for column in COLUMNS))
    with options.connect(kubeconfig) as client:
        place = ""
        for page in client.audit_pages(asked):
            for raw in _PAGES.decode(page).items:
                _show(bytes(raw), form)
            place = _PAGES.decode(page).metadata.get("resourceVersion", "")
        if follow:
            for item in client.follow_audit(asked, place):
                _show(msgspec.json.encode(item), form)


@app.command()
def verify(
    directory: Annotated[
        Path | None, typer.Option(help="Read the log's files here, instead of asking the hub for its log.")
    ] = None,
    newest: Annotated[
        str, typer.Option(help="The newest entry as it was told before, NUMBER:SHA-256: the log must have it still.")
    ] = "",
    newest_bulk: Annotated[str, typer.Option(help="The same of the bulk part, which has the reads.")] = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Check that no entry was changed, removed or moved, and print the newest entry's number and digest.

    What is missing at the very end shows by `--newest` alone: keep what this prints in another place.
    """
    kept = {"main": _link(newest, "--newest"), "bulk": _link(newest_bulk, "--newest-bulk")}
    problems: list[str] = []
    for part, link in kept.items():
        lines = _lines_in(directory, part) if directory is not None else _lines_of_hub(kubeconfig, part)
        problems += _verify(part, lines, Check(kept=link))
    if problems:
        raise IntegrityError("is not what it was:" + "".join(f"\n  - {problem}" for problem in problems), element="log")


def _link(text: str, option: str) -> chains.Link | None:
    kept = chains.parse_link(text) if text else None
    if text and kept is None:
        raise InvalidError(f'"{text[:100]}" is no entry', element=option, hint="NUMBER:SHA-256, as verify prints")
    return kept


def _verify(part: str, lines: Iterator[tuple[bytes, bool]], check: Check) -> list[str]:
    """Go through one chain, say what it is, and return what is wrong with it."""
    problems: list[str] = []
    unfinished, said = False, "" if part == "main" else f"{part}: "
    for line, whole in lines:
        if not whole:
            unfinished = True
            continue
        problem = check.take(line)
        if problem and len(problems) < _MAX_PROBLEMS:
            problems.append(said + problem)
    problems += [said + problem for problem in check.end()]
    if check.entries or part == "main":
        _report(check, part, unfinished=unfinished)
    return problems


def _report(check: Check, part: str, *, unfinished: bool) -> None:
    if not check.entries:
        output.say("The log has no entries.")
        return
    bulk = "" if part == "main" else f" {part}"
    output.say(f"{check.entries}{bulk} entries, from {check.first} to {check.link.sequence}")
    output.say(f"newest{bulk} {check.link.text}")
    if unfinished:
        output.err.print("The last line is unfinished, as a power cut leaves it; the hub takes it off when it starts.")


def _lines_in(directory: Path, part: str) -> Iterator[tuple[bytes, bool]]:
    where = directory if part == "main" else directory / audit_files.BULK
    if part != "main" and not where.is_dir():  # a hub that is older has none
        return
    try:
        found = audit_files.segments(where)
        if not found and part == "main":
            raise InvalidError("has no audit log", element=str(directory), hint="it is in <state-dir>/audit")
        for segment in found:
            with segment.path.open("rb") as file:
                yield from audit_files.lines(file)
    except OSError as error:
        raise SkerryError(error.strerror or "cannot be read", element=str(error.filename or directory)) from None


def _lines_of_hub(kubeconfig: Path | None, part: str) -> Iterator[tuple[bytes, bool]]:
    with options.connect(kubeconfig) as client:
        for page in client.audit_pages({"stage": "all", "limit": _PAGE, "part": part}):
            for raw in _PAGES.decode(page).items:
                yield bytes(raw), True


def _show(line: bytes, form: str) -> None:
    if form:
        text = line.decode()
        # A pipe gets the lines as they are; nobody's name may steer a terminal.
        sys.stdout.write((output.plain(text) if sys.stdout.isatty() else text) + "\n")
        sys.stdout.flush()
        return
    _print(cells_of(_DECODER.decode(line)))


def _print(row: tuple[str, ...]) -> None:
    """One line at a time, for a log has no end; columns are as wide as what is usual in them."""
    cells = [output.cell(value) for value in row]
    output.say("   ".join([*(c.ljust(w) for c, w in zip(cells, _WIDTHS, strict=False)), *cells[len(_WIDTHS) :]]))


def _time(text: str, option: str) -> str:
    """Return a time as the hub reads it, from a time or from how long ago it was."""
    if not text:
        return ""
    try:
        when = msgspec.convert(text, datetime)
    except (msgspec.ValidationError, ValueError):
        try:
            when = datetime.now(UTC) - timedelta(seconds=duration.to_seconds(text.removesuffix("ago").strip()))
        except (InvalidError, OverflowError):
            raise InvalidError(
                f'"{text[:40]}" is not a time', element=option, hint="2h, or 2026-11-23T10:00:00Z"
            ) from None
    if when.tzinfo is None:
        raise InvalidError(f'"{text[:40]}" has no zone', element=option, hint="end it with Z for UTC")
    return when.astimezone(UTC).isoformat().replace("+00:00", "Z")
