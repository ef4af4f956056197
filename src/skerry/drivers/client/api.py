"""The hub's API for programs and the command line: typed objects, synchronous, every wait bounded.

Lives here: requests, pages, watches that reconnect, `apply`, and a server's Status turned back into an `api.errors`
error with its element, cause and hint. Must not live here: printing, arguments.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

import skerry
from skerry.api import codec, errors, patch, rules
from skerry.api.kinds import KINDS, KindInfo, Resource
from skerry.api.meta import API_VERSION
from skerry.core import garbage
from skerry.drivers.client import failures
from skerry.drivers.client.kubeconfig import Connection, load_kubeconfig

__all__ = ["Connection", "HubClient", "Outcome", "load_kubeconfig"]

CONNECT_SECONDS = 5.0
READ_SECONDS = 65.0
"""Longest silence in an answer or a watch; hubs bound their work, and send bookmarks, well within it."""
PAGE = 500
RECONNECT_SECONDS = 60.0
"""How long a watch tries to get its hub back before it gives up."""

T = TypeVar("T", bound=Resource)
R = TypeVar("R", garbage.Report, garbage.Removed)
Outcome = Literal["created", "configured", "unchanged"]
_MERGE = "application/merge-patch+json"
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
_AUDIT = f"/apis/{API_VERSION}/auditevents"
_ATTEMPTS = 5
_INFOS: Mapping[type, KindInfo] = {info.type: info for info in KINDS}
_START_HINT = "is the hub running? start it with `skerry hub start`"


class _Page(msgspec.Struct):
    """What is needed of a page of the audit log."""

    metadata: dict[str, str]


class _Patience:
    """How long a watch tries to get back a hub that it had reached."""

    def __init__(self) -> None:
        self._reached = False
        self._failures = 0
        self._since = 0.0

    def renew(self) -> None:
        """Note that the hub is there."""
        self._reached, self._failures = True, 0

    def wait_or_raise(self, error: errors.UnavailableError, left: float) -> None:
        """Wait before the next attempt, longer each time and with full jitter; raise once it is long enough."""
        self._failures += 1
        self._since = time.monotonic() if self._failures == 1 else self._since
        if not self._reached or time.monotonic() - self._since > RECONNECT_SECONDS:
            raise error
        time.sleep(min(random.uniform(0, 0.2 * 2 ** min(self._failures, 5)), 5.0, max(left, 0)))  # noqa: S311


class _Event(msgspec.Struct):
    """One line of a watch."""

    type: str
    object: dict[str, Any]


class HubClient:
    """One hub, one namespace. Usable as a context manager; `http` is its client for anything else the hub serves.

    All methods raise the server's errors as `api.errors` types, UnavailableError when there is no connection, and
    TimedOutError when no answer came in time.
    """

    def __init__(self, connection: Connection, *, namespace: str | None = None) -> None:
        self.connection = connection
        self.server = connection.server
        self.namespace = namespace or connection.namespace
        self.http = httpx.Client(
            base_url=connection.server,
            verify=connection.tls() if connection.server.startswith("https:") else True,
            auth=connection.auth,
            headers=[("User-Agent", f"skerry/{skerry.__version__}"), *connection.impersonate],
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            trust_env=not connection.loopback,  # proxies are for the world outside
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.http.close()

    def check_ready(self) -> None:
        """Return when the hub answers and its store does."""
        self._request("GET", "/readyz")

    # --- reading --------------------------------------------------------------------------------------------------

    def get(self, kind: type[T], name: str) -> T:
        """Return one object. Raises NotFoundError."""
        return codec.read(self.get_raw(kind, name), kind)

    def get_raw(self, kind: type[Any], name: str) -> dict[str, Any]:
        """Return one object as the hub shows it, defaults included. Raises NotFoundError."""
        return self._json("GET", self._path(kind, name))

    def list(self, kind: type[T], *, labels: str = "", fields: str = "", everywhere: bool = False) -> list[T]:
        """Return all objects of the namespace, or with `everywhere` of all; `labels` and `fields` are selectors."""
        raw = self.list_raw(kind, labels=labels, fields=fields, everywhere=everywhere)
        return [codec.read(item, kind) for item in raw["items"]]

    def list_raw(
        self, kind: type[Any], *, labels: str = "", fields: str = "", everywhere: bool = False
    ) -> dict[str, Any]:
        """Return the whole list as the hub shows it, read page by page at one revision."""
        return self._all_pages(kind, "items", labels=labels, fields=fields, everywhere=everywhere)

    def table(self, kind: type[Any], *, name: str = "", labels: str = "", everywhere: bool = False) -> dict[str, Any]:
        """Return what `get` prints, as a `meta.k8s.io/v1` Table. Raises NotFoundError for a single object's name."""
        if name:
            return self._json("GET", self._path(kind, name), headers={"Accept": _TABLE})
        return self._all_pages(kind, "rows", labels=labels, everywhere=everywhere, accept=_TABLE)

    def call(self, method: str, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Send JSON to a path of the hub's API and return its answer, for what is no verb of an object."""
        return self._json(method, path, content=content)

    # --- the registry ---------------------------------------------------------------------------------------------

    def collect_garbage(self, *, dry_run: bool, grace: str = "") -> garbage.Report:
        """Have the hub remove what nothing needs from its registry, or only say what that is. Raises InvalidError."""
        content = {"dryRun": dry_run, **({"grace": grace} if grace else {})}
        return self._registry("gc", content, garbage.Report)

    def remove_model(self, repository: str, reference: str) -> garbage.Removed:
        """Remove a tag or a model version from the hub. Raises NotFoundError; ConflictError while it is needed."""
        return self._registry("remove", {"repository": repository, "reference": reference}, garbage.Removed)

    def _registry(self, verb: str, content: Any, kind: type[R]) -> R:
        return msgspec.convert(self._json("POST", f"/apis/{API_VERSION}/registry/{verb}", content=content), kind)

    # --- the audit log --------------------------------------------------------------------------------------------

    def audit_pages(self, question: Mapping[str, str]) -> Iterator[bytes]:
        """Yield the pages of the audit log, each an `audit.k8s.io/v1` EventList, to its end. Raises BadRequestError."""
        place = ""
        while True:
            page = self._request("GET", _AUDIT, parameters={**question, "form": "log", "continue": place}).content
            yield page
            with self._translated():
                place = msgspec.json.decode(page, type=_Page).metadata.get("continue", "")
            if not place:
                return

    def follow_audit(self, question: Mapping[str, str], place: str) -> Iterator[dict[str, Any]]:
        """Yield what is added to the audit log from a place on, for ever; connections that break are made again."""
        patience = _Patience()
        while True:
            given = {**question, "form": "log", "resourceVersion": place}
            given |= {"watch": "true", "allowWatchBookmarks": "true"}
            try:
                for event, shown in self._stream(_AUDIT, given, accept="application/json", seconds=READ_SECONDS):
                    patience.renew()
                    if event == "ADDED":
                        yield shown
                    elif event == "BOOKMARK":
                        place = shown["metadata"]["resourceVersion"]
            except errors.TimedOutError:
                continue
            except errors.UnavailableError as error:
                patience.wait_or_raise(error, RECONNECT_SECONDS)

    # --- watching -------------------------------------------------------------------------------------------------

    def watch(self, kind: type[T], name: str = "", *, labels: str = "", deadline: float | None = None) -> Iterator[T]:
        """Yield every object as it is now, then each one as it changes, until the deadline (`time.monotonic`).

        With a name only that object; its deletion raises NotFoundError. Connections that break are made again.
        """
        for event, raw in self.events(kind, name=name, labels=labels, deadline=deadline):
            if event != "DELETED":
                yield codec.read(raw, kind)
            elif name:
                raise errors.NotFoundError("was deleted", element=f'{_INFOS[kind].plural} "{name}"')

    def watch_table(
        self,
        kind: type[Any],
        *,
        name: str = "",
        labels: str = "",
        resource_version: str = "",
        everywhere: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Yield a Table of one row, columns included, for every change after that version; without one, for all."""
        columns: Any = None
        for _, shown in self.events(
            kind,
            name=name,
            labels=labels,
            resource_version=resource_version,
            everywhere=everywhere,
            accept=_TABLE,
        ):
            columns = shown.get("columnDefinitions") or columns
            yield {**shown, "columnDefinitions": columns or []}

    def events(
        self,
        kind: type[Any],
        *,
        name: str = "",
        labels: str = "",
        resource_version: str = "",
        everywhere: bool = False,
        deadline: float | None = None,
        accept: str = "application/json",
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (ADDED, MODIFIED or DELETED, object) from a version on; "" begins with all there is as ADDED.

        A broken connection is made again from the last version seen; a hub that was never reached is an error at
        once. When the hub no longer knows that version, everything there is comes again as ADDED.
        """
        path = self._path(kind, everywhere=everywhere)
        chosen = {"labelSelector": labels, "fieldSelector": f"metadata.name={name}" if name else ""}
        version, patience = resource_version, _Patience()
        while (left := _left(deadline)) > 0:
            parameters = {**chosen, "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
            if not version:
                parameters["sendInitialEvents"] = "true"  # what is there comes by name; a bookmark says up to when
            if deadline is not None:
                parameters["timeoutSeconds"] = str(max(1, round(left)))
            complete = bool(version)
            try:
                for event, shown in self._stream(path, parameters, accept=accept, seconds=left):
                    patience.renew()
                    complete = complete or event == "BOOKMARK"
                    if complete:
                        version = (shown.get("metadata") or {}).get("resourceVersion") or version
                    if event not in ("OPENED", "BOOKMARK"):
                        yield event, shown
            except errors.ExpiredError:
                version = ""
            except errors.TimedOutError:
                continue  # a silent connection may be a dead one
            except errors.UnavailableError as error:
                patience.wait_or_raise(error, _left(deadline))

    # --- writing --------------------------------------------------------------------------------------------------

    def create(self, raw: Mapping[str, Any], kind: type[T]) -> T:
        """Create an object and return it as stored. Raises AlreadyExistsError, InvalidError."""
        path = self._path(kind, namespace=_namespace_of(raw))
        return codec.read(self._json("POST", path, content=raw), kind)

    def replace(self, raw: Mapping[str, Any], kind: type[T]) -> T:
        """Replace an object; its resourceVersion, if there is one, must still be the newest. Raises ConflictError."""
        path = self._path(kind, _name_of(raw), namespace=_namespace_of(raw))
        return codec.read(self._json("PUT", path, content=raw), kind)

    def patch(self, kind: type[T], name: str, change: Mapping[str, Any]) -> T:
        """Merge a change into an object (RFC 7386). Raises NotFoundError, InvalidError, ConflictError."""
        return codec.read(self._merge(self._path(kind, name), change), kind)

    def merge_spec(self, kind: type[T], name: str, spec: Mapping[str, Any]) -> T:
        """Put these fields of the spec in place of the present ones, each as a whole. Raises as `patch` does."""
        for attempt in range(_ATTEMPTS):
            current = self.get_raw(kind, name)
            wanted = {**current["spec"], **msgspec.to_builtins(dict(spec))}
            change: dict[str, Any] = {"spec": patch.diff(current["spec"], wanted)}
            change["metadata"] = {"resourceVersion": current["metadata"]["resourceVersion"]}
            try:
                return self.patch(kind, name, change)
            except errors.ConflictError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError  # the loop returns or raises

    def delete(self, kind: type[Any], name: str) -> None:
        """Delete an object. Raises NotFoundError."""
        self._json("DELETE", self._path(kind, name))

    def apply(self, raw: Mapping[str, Any]) -> Outcome:
        """Make an object what a file says, as `kubectl apply` does: fields set elsewhere stay, dropped ones go.

        Both note what was applied in the same annotation, so either may go on where the other was. Raises
        InvalidError with every problem the hub found.
        """
        info = codec.kind_of(raw)
        namespace = (_namespace_of(raw) or self.namespace) if info.namespaced else ""
        scope = {"namespace": namespace} if info.namespaced else {}
        wanted = patch.with_last_applied({**raw, "metadata": {**(raw.get("metadata") or {}), **scope}})
        path = self._path(info.type, _name_of(raw), namespace=namespace)
        for attempt in range(_ATTEMPTS):
            try:
                live = self._json("GET", path)
            except errors.NotFoundError:
                try:
                    self._json("POST", self._path(info.type, namespace=namespace), content=wanted)
                except errors.AlreadyExistsError:
                    continue  # somebody was quicker
                return "created"
            change = patch.three_way_merge(patch.last_applied_of(live), wanted, live)
            if not change:
                return "unchanged"
            try:
                written = self._merge(path, change)
            except errors.NotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            same = written["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]
            return "unchanged" if same else "configured"
        raise errors.ConflictError(
            "is created and deleted by somebody else at the same time", element=f'{info.plural} "{_name_of(raw)}"'
        )

    # --- asking devices -------------------------------------------------------------------------------------------

    def infer(self, device: str, workload: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send an Open Inference Protocol v2 request to a workload on a device. Raises UnavailableError if offline."""
        path = f"{self._path(_DEVICE, device)}/infer"
        return self._json("POST", path, content=request, parameters={"workload": workload})

    def log(
        self,
        device: str,
        workload: str,
        *,
        tail_lines: int = 200,
        since_seconds: int = 0,
        timestamps: bool = False,
        previous: bool = False,
    ) -> str:
        """Return the last lines of a workload's log on a device. Raises UnavailableError if it is offline."""
        parameters = _log_parameters(workload, tail_lines, since_seconds, timestamps=timestamps) | {
            "previous": "true" if previous else ""
        }
        return self._request("GET", f"{self._path(_DEVICE, device)}/log", parameters=parameters).text

    def follow_log(
        self, device: str, workload: str, *, tail_lines: int = 200, since_seconds: int = 0, timestamps: bool = False
    ) -> Iterator[str]:
        """Yield a workload's log as it grows, from its last lines on, until the device leaves.

        Raises UnavailableError if it is offline.
        """
        parameters = _log_parameters(workload, tail_lines, since_seconds, timestamps=timestamps) | {"follow": "true"}
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, read=None)  # who logs nothing is not dead
        given = {key: value for key, value in parameters.items() if value}
        path = f"{self._path(_DEVICE, device)}/log"
        with self._translated(), self.http.stream("GET", path, params=given, timeout=timeout) as response:
            if not response.is_success:
                raise failures.error_of(response.status_code, response.read(), self.server)
            yield from response.iter_text()

    def reconcile(self, device: str) -> dict[str, Any]:
        """Make the hub's word count again on a device that has accepted something newer; return what was done."""
        return self._json("POST", f"{self._path(_DEVICE, device)}/reconcile", content={})

    def explain(self, deployment: str, device: str) -> dict[str, Any]:
        """Return which variant a device was given, and the verdict on every candidate."""
        path = f"{self._path(_DEPLOYMENT, deployment)}/explain"
        return self._json("GET", path, parameters={"device": device})

    # --- one request ----------------------------------------------------------------------------------------------

    def _all_pages(
        self,
        kind: type[Any],
        entries: str,
        *,
        labels: str = "",
        fields: str = "",
        everywhere: bool = False,
        accept: str = "application/json",
    ) -> dict[str, Any]:
        path = self._path(kind, everywhere=everywhere)
        chosen = {"labelSelector": labels, "fieldSelector": fields, "limit": str(PAGE)}
        whole: dict[str, Any] = {}
        token, began_again = "", False
        while True:
            try:
                page = self._json("GET", path, parameters={**chosen, "continue": token}, headers={"Accept": accept})
            except errors.ExpiredError:
                if began_again or not token:
                    raise
                whole, token, began_again = {}, "", True
                continue
            page[entries] = [*whole.get(entries, []), *(page.get(entries) or [])]
            whole, token = page, (page.get("metadata") or {}).pop("continue", "")
            if not token:
                return whole

    def _merge(self, path: str, change: Mapping[str, Any]) -> dict[str, Any]:
        return self._json("PATCH", path, content=change, headers={"Content-Type": _MERGE})

    def _path(self, kind: type[Any], name: str | None = None, *, namespace: str = "", everywhere: bool = False) -> str:
        info = _INFOS[kind]
        path = f"{info.path}/{info.plural}"
        if info.namespaced and not everywhere:
            path = f"{info.path}/namespaces/{_segment(namespace or self.namespace, 'namespace')}/{info.plural}"
        if name is None:
            return path
        return f"{path}/{_quoted(name) if info.names == 'path' else _segment(name, 'name')}"

    def _json(
        self,
        method: str,
        path: str,
        *,
        content: Any = None,
        parameters: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        response = self._request(method, path, content=content, parameters=parameters, headers=headers)
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise errors.UnavailableError(
                "answered with something else than JSON", element=self.server, hint=failures.OTHER_HINT
            )
        return value

    def _request(
        self,
        method: str,
        path: str,
        *,
        content: Any = None,
        parameters: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        sent = {"Content-Type": "application/json"} if content is not None else {}
        with self._translated():
            response = self.http.request(
                method,
                path,
                content=None if content is None else msgspec.json.encode(content),
                params={key: value for key, value in (parameters or {}).items() if value},
                headers={**sent, **(headers or {})},
            )
        if response.is_success:
            return response
        raise failures.error_of(response.status_code, response.content, self.server)

    def _stream(
        self, path: str, parameters: Mapping[str, str], *, accept: str, seconds: float
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        timeout = httpx.Timeout(min(READ_SECONDS, max(seconds, 0.05)), connect=CONNECT_SECONDS)
        given = {key: value for key, value in parameters.items() if value}
        with (
            self._translated(),
            self.http.stream("GET", path, params=given, headers={"Accept": accept}, timeout=timeout) as response,
        ):
            if not response.is_success:
                raise failures.error_of(response.status_code, response.read(), self.server)
            yield "OPENED", {}
            for line in response.iter_lines():
                event = msgspec.json.decode(line, type=_Event) if line else None
                if event is not None and event.type == "ERROR":
                    raise failures.error_of(500, event.object, self.server)
                if event is not None:
                    yield event.type, event.object

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            if isinstance(error, httpx.ConnectTimeout):
                raise errors.UnavailableError(
                    f"no connection within {CONNECT_SECONDS:g} s", element=self.server, hint=_START_HINT
                ) from None
            raise errors.TimedOutError(element=self.server) from None
        except httpx.ConnectError as error:
            raise self._unreachable(error) from None
        except (httpx.HTTPError, ssl.SSLError) as error:
            raise errors.UnavailableError(
                f"the connection broke ({error})", element=self.server, hint=_START_HINT
            ) from None
        except (ValueError, msgspec.DecodeError, RecursionError) as error:
            raise errors.UnavailableError(
                f"sent what is no answer of a hub ({str(error)[:200]})", element=self.server, hint=failures.OTHER_HINT
            ) from None

    def _unreachable(self, error: httpx.ConnectError) -> errors.UnavailableError:
        text = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return errors.UnavailableError(
                f"its certificate was not issued by the hub this kubeconfig is for ({text[-120:]})",
                element=self.server,
                hint="use the kubeconfig in that hub's state directory",
            )
        return errors.UnavailableError(f"cannot be reached ({text})", element=self.server, hint=_START_HINT)


def _log_parameters(workload: str, tail_lines: int, since_seconds: int, *, timestamps: bool) -> dict[str, str]:
    return {
        "workload": workload,
        "tailLines": str(tail_lines),
        "sinceSeconds": str(since_seconds) if since_seconds else "",
        "timestamps": "true" if timestamps else "",
    }


def _name_of(raw: Mapping[str, Any]) -> str:
    name = (raw.get("metadata") or {}).get("name")
    if not isinstance(name, str) or not name:
        raise errors.InvalidError("is required", element="metadata.name", hint="give the object a name")
    return name


def _namespace_of(raw: Mapping[str, Any]) -> str:
    return str((raw.get("metadata") or {}).get("namespace") or "")


def _segment(text: str, what: str) -> str:
    """Names go into paths: anything that could mean another path is refused before it is sent."""
    if not text or len(text) > 253 or not all(c.isascii() and (c.isalnum() or c in "-.") for c in text) or ".." in text:
        raise errors.InvalidError(f'"{text[:80]}" cannot be a {what}', hint="use a-z, 0-9, '-' and '.'")
    return text


def _quoted(name: str) -> str:
    """Names of roles may hold nearly anything, which a path then says in its own way."""
    if not rules.is_path_segment(name):
        raise errors.InvalidError(f'"{name[:80]}" cannot be a name', hint="use no spaces, '/' and '%'")
    return quote(name, safe="")


def _left(deadline: float | None) -> float:
    return float("inf") if deadline is None else deadline - time.monotonic()


_DEVICE = next(info.type for info in KINDS if info.kind == "Device")
_DEPLOYMENT = next(info.type for info in KINDS if info.kind == "ModelDeployment")
