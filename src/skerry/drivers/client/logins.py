"""How a kubeconfig's user logs in when it is not by a certificate in the file: a token, a file with one, a program.

Lives here: running the program (`exec`), reading the token file again, and the header on each request. Must not live
here: the kubeconfig itself (`kubeconfig`). Tokens are in no message and no representation. Sources: Kubernetes
documentation, "client-go credential plugins"; API reference, `client.authentication.k8s.io/v1`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec

from skerry.api.errors import InvalidError, UnauthorizedError, UnsupportedError

API_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
PROGRAM_SECONDS = 60.0
INTERACTIVE_SECONDS = 300.0
"""Somebody may have to find a second factor."""
MAX_ANSWER = 1024 * 1024
MAX_TOKEN = 32 * 1024
REREAD_SECONDS = 10.0
"""Between two looks at a token file; whoever rotates one leaves more time than that."""
EARLY_SECONDS = 10.0
"""A token is asked for anew this long before it ends, so that it is still good when it arrives."""


class _Status(msgspec.Struct, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None


class _Credential(msgspec.Struct, rename="camel"):
    kind: str
    api_version: str
    status: _Status


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that says who the user is: `users[].user.exec`."""

    api_version: str
    command: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    interactive: bool = False
    """Whether it may ask at the terminal."""
    hint: str = ""
    """What to do when it is not installed."""
    cluster: Mapping[str, Any] = field(default_factory=dict)
    """What it is told of the hub, where the kubeconfig says so."""
    element: str = ""

    def run(self) -> _Status:
        """Return what the program answered. Raises InvalidError, UnsupportedError when it is not installed."""
        info: dict[str, Any] = {
            "kind": "ExecCredential",
            "apiVersion": self.api_version,
            "spec": {"interactive": self.interactive, **({"cluster": self.cluster} if self.cluster else {})},
        }
        told = {"KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode()}
        seconds = INTERACTIVE_SECONDS if self.interactive else PROGRAM_SECONDS
        try:
            done = subprocess.run(  # the user's own kubeconfig names it, as for kubectl
                [self.command, *self.arguments],
                env={**os.environ, **self.environment, **told},
                stdin=None if self.interactive else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=seconds,
                check=False,
            )
        except FileNotFoundError:
            raise UnsupportedError(
                f'"{self.command[:200]}" is not installed', element=self.element, hint=self.hint[:1000]
            ) from None
        except subprocess.TimeoutExpired:
            raise InvalidError(f"gave no answer within {seconds:g} s", element=self.element) from None
        except (OSError, ValueError) as error:
            raise InvalidError(
                f"cannot be run ({getattr(error, 'strerror', None) or type(error).__name__})", element=self.element
            ) from None
        if done.returncode != 0:
            raise InvalidError(f"ended with {done.returncode}", element=self.element, hint="it says why above")
        return self._read(done.stdout)

    def _read(self, raw: bytes) -> _Status:
        try:
            found = msgspec.json.decode(raw, type=_Credential) if len(raw) <= MAX_ANSWER else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            found = None  # not quoted: it may hold half a token
        if found is None or found.kind != "ExecCredential":
            raise InvalidError("gave an answer that is no ExecCredential", element=self.element)
        if found.api_version != self.api_version:
            raise InvalidError(
                f'answered in version "{found.api_version[:80]}", not {self.api_version}', element=self.element
            )
        status = found.status
        if bool(status.client_certificate_data) != bool(status.client_key_data):
            raise InvalidError("gave only one of certificate and key", element=self.element)
        if not status.token and not status.client_certificate_data:
            raise InvalidError("gave neither token nor certificate", element=self.element)
        return status


class Login:
    """One user's way to log in, kept for as long as what it gave is good. May be used from several threads."""

    def __init__(self, *, token: str = "", token_file: Path | None = None, program: Program | None = None) -> None:
        self._token, self._file, self._program = token, token_file, program
        self._given: _Status | None = None
        self._read_at = float("-inf")
        self._lock = threading.Lock()

    def certificate(self) -> tuple[bytes, bytes]:
        """Return certificate and key as the program gave them, or nothing. Raises InvalidError, UnsupportedError."""
        if self._program is None:
            return b"", b""
        with self._lock:
            given = self._answer()
        return given.client_certificate_data.encode(), given.client_key_data.encode()

    def token(self) -> str:
        """Return the token to send now, or "". Raises InvalidError, UnsupportedError."""
        with self._lock:
            if self._file is not None and time.monotonic() - self._read_at >= REREAD_SECONDS:
                self._token = self._read_file(self._file)
                self._read_at = time.monotonic()
            if self._program is None or self._token:
                return self._token
            return _sendable(self._answer().token, self._program.element)

    def refused(self, token: str) -> bool:
        """Note that the hub does not take this token; return whether there may be another one now."""
        with self._lock:
            if self._file is not None:
                self._read_at = float("-inf")
            elif self._program is not None and self._given is not None and self._given.token == token:
                self._given = None
            else:
                return self._program is not None
        return True

    def _answer(self) -> _Status:
        assert self._program is not None  # asked where there is one only
        given = self._given
        until = given.expiration_timestamp if given is not None else None
        if given is None or (until is not None and (until - _now(until)).total_seconds() < EARLY_SECONDS):
            given = self._given = self._program.run()
        return given

    def _read_file(self, file: Path) -> str:
        try:
            with file.open("rb") as opened:
                raw = opened.read(MAX_TOKEN + 2)
        except OSError as error:
            if self._token:
                return self._token
            raise InvalidError(error.strerror or str(error), element=f"token file {file}") from None
        try:
            text = raw.decode("ascii").strip()
        except UnicodeDecodeError:
            text = ""
        if not text:
            if self._token:
                return self._token
            raise InvalidError("holds no token", element=f"token file {file}")
        return _sendable(text, f"token file {file}")


class BearerAuth(httpx.Auth):
    """Puts the token into each request, and tries once more with a newer one when the hub does not take it."""

    def __init__(self, login: Login) -> None:
        self._login = login

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        """Send the request. Raises InvalidError, UnsupportedError when there is no token to be had."""
        token = self._login.token()
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code != 401 or not token or not isinstance(request.stream, httpx.ByteStream):
            return
        if self._login.refused(token) and (newer := self._login.token()) != token:
            request.headers["Authorization"] = f"Bearer {newer}"
            yield request


def may_ask(mode: str, *, element: str) -> bool:
    """Return whether a program may ask at the terminal (`interactiveMode`). Raises InvalidError."""
    terminal = sys.stdin is not None and sys.stdin.isatty()
    match mode:
        case "" | "IfAvailable":
            return terminal
        case "Never":
            return False
        case "Always" if terminal:
            return True
        case "Always":
            raise InvalidError("must ask at a terminal, and there is none", element=element)
    raise InvalidError(f'"{mode[:40]}" is not known', element=element, hint="Never, IfAvailable or Always")


def _sendable(token: str, element: str) -> str:
    """Return a token that can stand in a header. Raises UnauthorizedError, never with the token."""
    if len(token) > MAX_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UnauthorizedError("gave what cannot be a token", element=element)
    return token


def _now(like: datetime) -> datetime:
    return datetime.now(UTC) if like.tzinfo is not None else datetime.now(UTC).replace(tzinfo=None)
