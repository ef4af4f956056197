"""Reading a kubeconfig: which hub, with which credentials, in which namespace.

Lives here: the file's format and the TLS context made of it. Must not live here: requests (`api`), programs and files
that give tokens (`logins`), writing one (`hub.kubeconfig`, `kubeconfig_file`). Keys that are in the file never touch
the disk again: they reach TLS through an anonymous file in memory. Source: Kubernetes `clientcmd/api/v1`.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from skerry.api import documents
from skerry.api.errors import InvalidError, SkerryError, UnsupportedError
from skerry.drivers.client.logins import API_VERSIONS, BearerAuth, Login, Program, may_ask

MAX_BYTES = 1024 * 1024
_FOREIGN = ("auth-provider", "username", "password")
"""Ways to log in that a hub does not know; ignoring one silently would send no credentials at all."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Everything needed to talk to one hub."""

    server: str
    """Base URL without a slash at its end."""
    namespace: str = "default"
    ca: bytes = b""
    """PEM; the system's CAs when empty."""
    certificate: bytes = b""
    """PEM, with its key in `key`."""
    key: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    """Read again and again, for whoever rotates it; its token comes before `token`."""
    program: Program | None = None
    """Gives a token, or a certificate with its key (`exec`)."""
    impersonate: tuple[tuple[str, str], ...] = ()
    """Headers that ask to act as somebody else."""
    source: str = ""
    """The file all this was read from, for messages."""

    @property
    def loopback(self) -> bool:
        """Whether the hub is on this machine."""
        host = urlsplit(self.server).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @cached_property
    def login(self) -> Login:
        """The way to log in; nothing is read or run before it is needed."""
        return Login(token=self.token, token_file=self.token_file, program=self.program)

    @property
    def auth(self) -> BearerAuth | None:
        """What puts a token into requests, or None where there is none."""
        return BearerAuth(self.login) if self.token or self.token_file or self.program else None

    def tls(self) -> ssl.SSLContext:
        """Return the context for connections: TLS 1.2 or later, the hub verified.

        Raises InvalidError; UnsupportedError when a program is to give the certificate that is not installed.
        """
        element = self.source or self.server
        try:
            context = ssl.create_default_context(cadata=self.ca.decode("ascii") if self.ca else None)
        except (ssl.SSLError, UnicodeDecodeError, ValueError):
            raise InvalidError("its certificate authority is not a PEM certificate", element=element) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        certificate, key = (self.certificate, self.key) if self.certificate else self.login.certificate()
        if certificate:
            try:
                _load_pair(context, certificate, key)
            except (ssl.SSLError, ValueError):
                cause = "its client certificate and key are not PEM, or do not belong together"
                raise InvalidError(cause, element=element) from None
        return context


def load_kubeconfig(path: Path, context: str | None = None) -> Connection:
    """Return the connection that a kubeconfig's context (its current one by default) describes.

    Raises InvalidError that names the file and the field, UnsupportedError for ways to log in that hubs do not know.
    """
    return load_kubeconfigs([path], context)


def load_kubeconfigs(paths: Sequence[Path], context: str | None = None) -> Connection:
    """Return the connection that a context describes in files that count as one, as those of $KUBECONFIG do.

    Of what several of them say, the first one's word counts; a file that is not there says nothing, unless none is.
    Raises as `load_kubeconfig`. Source: Kubernetes documentation, "Organizing Cluster Access Using kubeconfig Files".
    """
    there = [path for path in paths if path.exists()] or paths[:1]
    return _Files(tuple((_Reader(path), _read(path)) for path in there)).connection(context)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidError(f"is larger than {MAX_BYTES} bytes, so it is no kubeconfig", element=str(path))
        found = documents.read_yaml(path.read_bytes(), source=str(path))
    except OSError as error:
        raise InvalidError(
            error.strerror or str(error), element=str(path), hint="start a hub with `skerry hub start`, which makes one"
        ) from None
    except SkerryError as error:
        raise InvalidError(error.cause, element=error.element, hint="it must be a kubeconfig") from None
    if len(found) != 1 or not isinstance(found[0], dict) or found[0].get("kind") != "Config":
        raise InvalidError("is not a kubeconfig", element=str(path), hint="it must have kind: Config")
    return found[0]


@dataclass(frozen=True)
class _Files:
    """Some files that count as one."""

    each: tuple[tuple[_Reader, Mapping[str, Any]], ...]

    def connection(self, name: str | None) -> Connection:
        first = self.each[0][0]
        told = (reader.text(config, "current-context", "") for reader, config in self.each)
        chosen = name or next((one for one in told if one), "")
        if not chosen:
            raise first.error("current-context", "is not set", "name a context")
        here, context = self.entry("contexts", "context", chosen)
        there, cluster = self.entry("clusters", "cluster", here.text(context, "cluster", f"context {chosen}"))
        login = here.text(context, "user", f"context {chosen}")
        reader, user = self.entry("users", "user", login) if login else (here, dict[str, Any]())
        for way in _FOREIGN:
            if user.get(way):
                raise UnsupportedError(
                    f"logs in by {way}, which a hub does not know",
                    element=f"{reader.path}: user {login}",
                    hint="use the kubeconfig from the hub's state directory",
                )
        if cluster.get("insecure-skip-tls-verify"):
            raise there.error(
                "insecure-skip-tls-verify",
                "is refused",
                "give certificate-authority-data, so that the hub can be verified",
            )
        made = Connection(
            server=there.server(cluster),
            namespace=here.text(context, "namespace", f"context {chosen}") or "default",
            ca=there.content(cluster, "certificate-authority"),
            certificate=reader.content(user, "client-certificate"),
            key=reader.content(user, "client-key"),
            token=reader.text(user, "token", f"user {login}"),
            token_file=reader.file(user, "tokenFile"),
            program=reader.program(user, there.told(cluster), f"user {login}: exec"),
            impersonate=reader.impersonate(user, f"user {login}"),
            source=str(here.path),
        )
        if bool(made.certificate) != bool(made.key):
            raise reader.error(f"user {login}", "has only one of client certificate and client key")
        if made.server.startswith("http://") and not made.loopback:
            raise there.error(
                "server", f'"{made.server}" is not encrypted', "use https://; plain HTTP is for loopback only"
            )
        return made

    def entry(self, listed: str, field: str, name: str) -> tuple[_Reader, Mapping[str, Any]]:
        """Return an entry of a list, and what reads the file that it is in. Raises InvalidError."""
        found = [(reader, entry) for reader, config in self.each for entry in reader.entries(config, listed)]
        for reader, entry in found:
            if entry.get("name") == name:
                content = entry.get(field) or {}
                if not isinstance(content, dict):
                    raise reader.error(f"{listed}, {name}", f"its {field} is not a mapping")
                return reader, content
        known = ", ".join(str(entry.get("name")) for _, entry in found[:20])
        hint = f"there are: {known}" if known else ""
        raise self.each[0][0].error(listed, f'there is no {field} "{name[:80]}"', hint)


@dataclass(frozen=True)
class _Reader:
    """Reads fields of one file, strictly, with the file's name in every message."""

    path: Path

    def server(self, cluster: Mapping[str, Any]) -> str:
        text = self.text(cluster, "server", "cluster").rstrip("/")
        try:
            parts = urlsplit(text)
            valid = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0 and not parts.query
        except ValueError:
            valid = False
        if not valid:
            raise self.error("server", f'"{text[:200]}" is not a URL', "write it as in https://127.0.0.1:7443")
        return text

    def entries(self, config: Mapping[str, Any], listed: str) -> list[Mapping[str, Any]]:
        entries = config.get(listed) or []
        if not isinstance(entries, list):
            raise self.error(listed, "is not a list")
        return [entry for entry in entries if isinstance(entry, dict)]

    def text(self, values: Mapping[str, Any], field: str, where: str) -> str:
        value = values.get(field)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.error(f"{where}: {field}" if where else field, "is not text")
        return value

    def content(self, values: Mapping[str, Any], field: str) -> bytes:
        """Return what `<field>-data` holds, or the file that `<field>` names, relative to the kubeconfig."""
        data = self.text(values, f"{field}-data", "")
        if data:
            try:
                return base64.b64decode(data, validate=True)
            except binascii.Error:
                raise self.error(f"{field}-data", "is not base64") from None
        name = self.text(values, field, "")
        if not name:
            return b""
        file = self.path.parent / name
        try:
            return file.read_bytes()
        except OSError as error:
            raise self.error(field, f"{file}: {error.strerror or error}") from None

    def file(self, values: Mapping[str, Any], field: str) -> Path | None:
        """Return the file that a field names, relative to the kubeconfig."""
        name = self.text(values, field, "")
        return self.path.parent / name if name else None

    def program(self, user: Mapping[str, Any], cluster: Mapping[str, Any], where: str) -> Program | None:
        """Return the program that logs the user in, or None; `cluster` is what it is told of the hub if it wants."""
        given = user.get("exec")
        if not given:
            return None
        if not isinstance(given, dict):
            raise self.error(where, "is not a mapping")
        version, command = self.text(given, "apiVersion", where), self.text(given, "command", where)
        if version not in API_VERSIONS:
            raise self.error(
                f"{where}: apiVersion", f'"{version[:80]}" is not known', f"one of: {', '.join(API_VERSIONS)}"
            )
        if not command:
            raise self.error(f"{where}: command", "is required")
        arguments, variables = given.get("args") or [], given.get("env") or []
        if not isinstance(arguments, list) or not all(isinstance(argument, str) for argument in arguments):
            raise self.error(f"{where}: args", "is not a list of texts")
        if not isinstance(variables, list) or not all(isinstance(variable, dict) for variable in variables):
            raise self.error(f"{where}: env", "is not a list of name and value")
        return Program(
            api_version=version,
            # As kubectl has it: a path is relative to the kubeconfig, a bare name is looked up.
            command=str(self.path.parent / command) if "/" in command else command,
            arguments=tuple(arguments),
            environment={
                self.text(v, "name", f"{where}: env"): self.text(v, "value", f"{where}: env") for v in variables
            },
            interactive=may_ask(self.text(given, "interactiveMode", where), element=f"{self.path}: {where}"),
            hint=self.text(given, "installHint", where),
            cluster=dict(cluster) if given.get("provideClusterInfo") is True else {},
            element=f"{self.path}: {where}",
        )

    def told(self, cluster: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a program is told of the hub."""
        ca = base64.b64encode(self.content(cluster, "certificate-authority")).decode()
        return {"server": self.server(cluster), **({"certificate-authority-data": ca} if ca else {})}

    def impersonate(self, user: Mapping[str, Any], where: str) -> tuple[tuple[str, str], ...]:
        """Return the headers of somebody who acts as another user. Source: "User impersonation"."""
        name, uid = self.text(user, "as", where), self.text(user, "as-uid", where)
        groups, extra = user.get("as-groups") or [], user.get("as-user-extra") or {}
        if not isinstance(groups, list) or not isinstance(extra, dict):
            raise self.error(where, "as-groups is not a list, or as-user-extra not a mapping")
        pairs = [("Impersonate-User", name), ("Impersonate-Uid", uid)]
        pairs += [("Impersonate-Group", group) for group in groups]
        pairs += [
            (f"Impersonate-Extra-{quote(str(key), safe='')}", value)
            for key, values in extra.items()
            for value in (values if isinstance(values, list) else [values])
        ]
        given = [(header, value) for header, value in pairs if value]
        if given and not name:
            raise self.error(where, "says as-groups, as-uid or as-user-extra without as")
        if not all(isinstance(value, str) and value.isascii() and value.isprintable() for _, value in given):
            raise self.error(where, "acts as somebody whose name cannot be sent")
        return tuple(given)

    def error(self, field: str, cause: str, hint: str = "") -> InvalidError:
        return InvalidError(cause, element=f"{self.path}: {field}", hint=hint)


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load a certificate with its key; OpenSSL only takes files, so they are given one that exists in memory alone."""
    descriptor = os.memfd_create("skerry-client", os.MFD_CLOEXEC)
    try:
        content = memoryview(certificate + b"\n" + key)
        while content:
            content = content[os.write(descriptor, content) :]
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_password)
    finally:
        os.close(descriptor)


def _no_password() -> bytes:
    raise ValueError("the key is encrypted")
