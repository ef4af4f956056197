"""Answers to the hub's commands: the tail of a workload's log, an inference through its local server.

Lives here: one function a verb, each bounded in time and size. Must not live here: whether a command is genuine
(`core.session`).
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from skerry.agent import inference
from skerry.api.errors import InvalidError, NotFoundError, SkerryError, UnavailableError
from skerry.core import logs, messages
from skerry.core.messages import Command, CommandResult, LogQuery
from skerry.kit.loopback import LoopbackClient

MAX_LOG_BYTES = 512 * 1024
MAX_LOG_CHARACTERS = 900_000
"""With their times, many short lines become more than a message may have; the newest are kept."""
MAX_RESPONSE_BYTES = messages.MAX_MESSAGE_BYTES - 64 * 1024
"""What fits into one message, with its frame."""
INFER_SECONDS = 30.0


async def answer(command: Command, *, log: Path | None, model: str, port: int) -> CommandResult:
    """Carry a command out and return its result; a failure is a sentence in it.

    `log` is None when the workload is unknown, `port` 0 when it does not serve now.
    """
    try:
        if log is None:
            raise NotFoundError("is not on this device", element=f"deployment {command.workload[:253]}")
        if command.verb == "logs":
            text = await asyncio.to_thread(read_log, log, command.log, command.tail_lines)
            return CommandResult(uid=command.uid, id=command.id, text=text)
        response = await infer(command, model=model, port=port)
        result = CommandResult(uid=command.uid, id=command.id, response=response)
        messages.encode(result)  # TooLargeError here, not when it is sent
    except SkerryError as error:
        reason = type(error).__name__.removesuffix("Error")
        return CommandResult(uid=command.uid, id=command.id, error=error.sentence[:4000], reason=reason)
    return result


def read_log(path: Path, query: LogQuery, lines: int) -> str:
    """Return what a query wants of the end of a log, of which at most so many bytes are looked at.

    "" when there is none yet. Raises UnavailableError.
    """
    raw, at = read_end(path)
    raw = logs.tail(logs.previous(raw) if query.previous else raw, lines)
    text = logs.Lines(query, fallback=at).take(raw, last=True).decode(errors="replace")
    return text if len(text) <= MAX_LOG_CHARACTERS else text[-MAX_LOG_CHARACTERS:]


def read_end(path: Path) -> tuple[bytes, datetime]:
    """Return the end of a log, at most so many bytes of it, and when it was written to last."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_LOG_BYTES))
            return file.read(MAX_LOG_BYTES), datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
    except FileNotFoundError:
        return b"", datetime.now(UTC)
    except OSError as error:
        raise UnavailableError(f"cannot be read: {error.strerror}", element=str(path)) from None


async def infer(command: Command, *, model: str, port: int) -> dict[str, object]:
    """Forward an inference request to the local server. Raises UnavailableError, InvalidError with its sentence."""
    if not port:
        raise UnavailableError("does not serve at the moment", element=f"deployment {command.workload[:253]}")
    client = LoopbackClient(port, max_body_bytes=MAX_RESPONSE_BYTES, timeout_seconds=INFER_SECONDS)
    async with client:
        answered = await client.request(
            "POST",
            f"/v2/models/{model}/infer",
            body=msgspec.json.encode(command.request),
            headers={"Content-Type": "application/json"},
        )
    if answered.status != 200:
        cause = inference.read_error(answered.body)
        raise (InvalidError if answered.status < 500 else UnavailableError)(cause, element=f"model {model}")
    try:
        return msgspec.json.decode(answered.body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnavailableError("answered something that is no JSON object", element=f"model {model}") from None
