"""Who one is at a registry: the files that podman, skopeo, docker and oras write, and their credential helpers.

Lives here: where those files are, what they say of a registry. Must not live here: requests (`registry_auth`).
Source: containers-auth.json(5); docker's config.json and its credential helper protocol.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from skerry.api.errors import InvalidError, UnsupportedError

MAX_BYTES = 1024 * 1024
HELPER_SECONDS = 20.0
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DOCKER_HUB = "https://index.docker.io/v1/"
_Text = Annotated[str, msgspec.Meta(max_length=64 * 1024)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """A user's name and password, or token in its place, at one registry."""

    username: str
    password: str

    def __repr__(self) -> str:
        """Show whose they are, never the password."""
        return f"Credentials(username={self.username!r})"

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class _Entry(msgspec.Struct):
    auth: _Text = ""
    identitytoken: _Text = ""


class _File(msgspec.Struct, rename={"helpers": "credHelpers", "store": "credsStore"}):
    auths: dict[str, _Entry] = {}
    helpers: dict[str, str] = {}
    store: str = ""


class _Answer(msgspec.Struct, rename="pascal"):
    username: str
    secret: str


def find_credentials(host: str, repository: str, environment: Mapping[str, str] | None = None) -> Credentials | None:
    """Return what the user's files hold for a registry's repository, the most specific entry first; None if nothing.

    Raises InvalidError for a file that cannot be read, UnsupportedError for identity tokens.
    """
    for path in _files(os.environ if environment is None else environment):
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InvalidError(f"cannot be read: {error.strerror}", element=str(path)) from None
        found = _look_up(raw, str(path), host, repository)
        if found is not None:
            return found
    return None


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    if chosen := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(chosen)
        return
    home = Path(environment.get("HOME") or "/nonexistent")
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers/auth.json"
    yield Path(f"/run/containers/{os.getuid()}/auth.json")
    yield Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json"
    yield Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"


def _look_up(raw: bytes, source: str, host: str, repository: str) -> Credentials | None:
    try:
        if len(raw) > MAX_BYTES:
            raise InvalidError(f"is larger than {MAX_BYTES} bytes", element=source)
        file = msgspec.json.decode(raw, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"is no credentials file: {error}"[:300], element=source) from None
    parts = repository.split("/")
    names = [f"{host}/{'/'.join(parts[:count])}" for count in range(len(parts), 0, -1)] + [host]
    names += [f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/"]
    if host == "docker.io":
        names.append(_DOCKER_HUB)
    for name in names:
        if name in file.helpers:
            return _ask_helper(file.helpers[name], name, source)
        entry = file.auths.get(name)
        if entry is not None and (entry.auth or entry.identitytoken):
            return _decode(entry, name, source)
    # A helper that keeps everything has Docker Hub under the name that docker gave it.
    return _ask_helper(file.store, _DOCKER_HUB if host == "docker.io" else host, source) if file.store else None


def _decode(entry: _Entry, name: str, source: str) -> Credentials:
    if entry.identitytoken:
        raise UnsupportedError(
            "is an identity token, which is not supported", element=f"{source}, {name}", hint="log in with a password"
        )
    try:
        username, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise InvalidError("is not base64 of user:password", element=f"{source}, auths, {name}", hint="log in again")
    return Credentials(username=username, password=password)


def _ask_helper(helper: str, name: str, source: str) -> Credentials | None:
    """Ask a credential helper, a program of the user's own; None where it knows nothing of this registry."""
    element = f"credential helper {helper[:64]!a} of {source}"
    if not _HELPER.fullmatch(helper):
        raise InvalidError("is not a helper's name", element=element)
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=name.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=HELPER_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise UnsupportedError(
            "is not installed", element=element, hint=f"install docker-credential-{helper}"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidError(f"failed: {type(error).__name__}", element=element) from None
    if done.returncode != 0:
        return None
    try:
        answer = msgspec.json.decode(done.stdout[:MAX_BYTES], type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidError("gave an answer that cannot be read", element=element) from None
    if answer.username == "<token>":
        raise UnsupportedError("gives an identity token, which is not supported", element=element)
    return Credentials(username=answer.username, password=answer.secret)
