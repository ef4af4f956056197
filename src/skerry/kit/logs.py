"""Logs on stderr: one event a line, for people or as JSON, whatever text gets into them.

Lives here: formatting and the set-up that a program's entry point calls once. Libraries and the other modules here only
log. Must not live here: which events there are.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime

MAX_LINE = 8192
"""Characters of one message; what devices send gets into messages."""


_CHATTY = ("httpx", "httpcore")
"""Libraries that tell of each request what whoever made it tells better."""


def configure(*, level: str = "warning", json_lines: bool = False) -> None:
    """Send this process's logs to stderr, in place of whatever was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if json_lines else PlainFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


class PlainFormatter(logging.Formatter):
    """`2026-11-23T10:00:00.123Z WARNING rollout.paused deployment=x (skerry.hub.controllers.rollout)`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the event on one line; a traceback, which is a bug's, follows on lines of its own."""
        line = f"{_time(record)} {record.levelname} {_printable(record.getMessage())} ({record.name})"
        return f"{line}\n{_trace(record)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, message, logger, trace."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the event as JSON; `event` is the message's first word, the constant part."""
        message = record.getMessage()[:MAX_LINE]
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": message.partition(" ")[0],
            "message": message,
            "logger": record.name,
        }
        if record.exc_info:
            entry["trace"] = _trace(record)
        return json.dumps(entry)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _printable(text: str) -> str:
    """Return the text with everything escaped that could forge a line or steer a terminal."""
    shown = text[:MAX_LINE]
    return shown if shown.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def _trace(record: logging.LogRecord) -> str:
    return "".join(traceback.format_exception(*record.exc_info)).rstrip() if record.exc_info else ""
