"""The Open Inference Protocol v2 over HTTP: paths to the data plane, errors to statuses. A thin adapter.

Lives here: routing, the JSON around health and metadata, statuses. Must not live here: connections (`http1`), the wire
form of tensors (`protocol`), or anything a second transport would need again (`dataplane`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from skerry.api.errors import BadRequestError, InvalidError, NotFoundError, SkerryError, TooLargeError, UnavailableError
from skerry.serve.dataplane import DataPlane
from skerry.serve.http1 import Request, Response, busy_response, error_response
from skerry.serve.limits import Limits
from skerry.serve.metrics import CONTENT_TYPE, Metrics, Outcome
from skerry.serve.shadow import Sample, Shadow
from skerry.serve.worker import Quick, Worker

log = logging.getLogger(__name__)

_OCTETS = b"application/octet-stream"
_STATUSES: tuple[tuple[type[SkerryError], int, Outcome], ...] = (
    (BadRequestError, 400, "bad_request"),
    (InvalidError, 400, "bad_request"),
    (NotFoundError, 404, "not_found"),
    (TooLargeError, 413, "too_large"),
    (UnavailableError, 503, "unavailable"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """What became of one inference request."""

    response: Response
    outcome: Outcome
    engine_seconds: float | None = None
    cpu_seconds: float = 0.0
    """Of the thread that computed it."""
    sample: Sample | None = None
    """What a shadow may be asked, and what was answered."""


class Rest:
    """The handler of `http1.Server`."""

    def __init__(self, plane: DataPlane, worker: Worker, metrics: Metrics, limits: Limits, shadow: Shadow) -> None:
        self._plane = plane
        self._worker = worker
        self._metrics = metrics
        self._limits = limits
        self._shadow = shadow
        self._quick = Quick(enabled=plane.single_threaded)

    def handle(self, request: Request) -> Response | asyncio.Future[Response]:
        """Answer one request: at once, or when the engine has."""
        begin = time.perf_counter()
        path = request.target.partition(b"?")[0].decode("latin-1")
        segments = [urllib.parse.unquote(s) if "%" in s else s for s in path.strip("/").split("/")]
        try:
            match segments:
                case ["v2", "models", model, "infer"]:
                    return self._infer(request, model, None, begin)
                case ["v2", "models", model, "versions", version, "infer"]:
                    return self._infer(request, model, version, begin)
            return self._get(request, segments)
        except SkerryError as error:
            return _failure(error).response

    def _get(self, request: Request, segments: list[str]) -> Response:
        answer: Callable[[], Response]
        match segments:
            case ["v2"]:
                answer = functools.partial(_json, self._plane.server_metadata())
            case ["v2", "health", "live"]:
                answer = functools.partial(_json, {"live": True})
            case ["v2", "health", "ready"]:
                answer = functools.partial(self._ready, {"ready": self._plane.ready})
            case ["v2", "models", model, *rest] if rest in ([], ["ready"]):
                answer = self._model(model, None, rest)
            case ["v2", "models", model, "versions", version, *rest] if rest in ([], ["ready"]):
                answer = self._model(model, version, rest)
            case ["metrics"]:
                answer = self._render_metrics
            case _:
                raise NotFoundError("no such path", element=request.target.decode("latin-1")[:100])
        if request.method not in (b"GET", b"HEAD"):
            return _not_allowed(b"GET, HEAD")
        return answer()

    def _model(self, model: str, version: str | None, rest: list[str]) -> Callable[[], Response]:
        self._plane.require(model, version)
        if rest:
            return functools.partial(self._ready, {"name": self._plane.name, "ready": self._plane.ready})
        return functools.partial(_json, self._plane.model_metadata())

    def _ready(self, content: Mapping[str, Any]) -> Response:
        return _json(content, status=200 if self._plane.ready else 503)

    def _render_metrics(self) -> Response:
        page = self._metrics.render(
            in_flight=self._worker.pending,
            ready=self._plane.ready,
            load_seconds=self._plane.load_seconds,
            shadow=self._shadow.totals(),
        )
        return Response(content_type=CONTENT_TYPE, body=(page,))

    # --- inference --------------------------------------------------------------------------------------------------

    def _infer(
        self, request: Request, model: str, version: str | None, begin: float
    ) -> Response | asyncio.Future[Response]:
        if request.method != b"POST":
            return _not_allowed(b"POST")
        if request.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            return error_response(415, "Content-Encoding: compressed bodies are not supported")
        try:
            self._plane.require(model, version)
            if not self._plane.ready:
                raise UnavailableError("the model is being loaded", element=self._plane.name, hint="try again")
            length = _header_length(request)
            if self._worker.pending == 0 and self._quick.expects(len(request.body)):
                return self._count(self._compute(request.body, length), begin, len(request.body), at_once=True)
            running = self._worker.submit(functools.partial(self._compute, request.body, length))
        except SkerryError as error:
            return self._count(_failure(error), begin, 0, at_once=False)
        response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        running.add_done_callback(functools.partial(self._settle, response, begin, len(request.body)))
        response.add_done_callback(functools.partial(_withdraw, running))
        return response

    def _compute(self, body: bytes | bytearray, header_length: int | None) -> _Answer:
        """Parse, run, render; in the worker's thread, or in the event loop's if that is quick."""
        from skerry.serve import protocol  # noqa: PLC0415 (NumPy comes in with the engine, while the server is live)

        begin = time.thread_time()
        try:
            request = protocol.decode(body, header_length, self._plane.check, max_json_bytes=self._limits.json_bytes)
            inference = self._plane.infer(request.inputs, request.outputs)
            encoded = protocol.encode(request, inference, model=self._plane.name, version=self._plane.version)
        except SkerryError as error:
            return _failure(error)
        except MemoryError:
            return _failure(UnavailableError("not enough memory for this request", hint="send a smaller batch"))
        if not encoded.binary:
            response = Response(body=(encoded.json,))
        else:
            length = (b"Inference-Header-Content-Length", b"%d" % len(encoded.json))
            response = Response(content_type=_OCTETS, headers=(length,), body=(encoded.json, *encoded.binary))
        return _Answer(
            response=response,
            outcome="ok",
            engine_seconds=inference.engine_seconds,
            cpu_seconds=time.thread_time() - begin,
            sample=Sample(inputs=request.inputs, outputs=inference.outputs) if self._shadow.aimed else None,
        )

    def _count(self, answer: _Answer, begin: float, size: int, *, at_once: bool) -> Response:
        self._metrics.finished(answer.outcome, time.perf_counter() - begin)
        if answer.engine_seconds is not None:
            self._metrics.computed(answer.engine_seconds)
            self._quick.learn(size, answer.cpu_seconds, at_once=at_once)
        if answer.sample is not None:
            self._shadow.offer(answer.sample)
        return answer.response

    def _settle(
        self, response: asyncio.Future[Response], begin: float, size: int, running: asyncio.Future[_Answer]
    ) -> None:
        if running.cancelled() or response.cancelled():
            self._metrics.finished("cancelled", time.perf_counter() - begin)
            return
        error = running.exception()
        if error is not None:
            log.error("serve.infer_failed model=%s", self._plane.name, exc_info=error)
            answer = _Answer(response=error_response(500, "the server failed; see its log"), outcome="failed")
        else:
            answer = running.result()
        response.set_result(self._count(answer, begin, size, at_once=False))


def _withdraw(running: asyncio.Future[_Answer], response: asyncio.Future[Response]) -> None:
    if response.cancelled():
        running.cancel()


def _header_length(request: Request) -> int | None:
    text = request.headers.get(b"inference-header-content-length")
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise BadRequestError("is not a number of bytes", element="Inference-Header-Content-Length")
    return int(text)


def _failure(error: SkerryError) -> _Answer:
    for kind, status, outcome in _STATUSES:
        if isinstance(error, kind):
            response = busy_response(error.sentence) if status == 503 else error_response(status, error.sentence)
            return _Answer(response=response, outcome=outcome)
    log.error("serve.infer_failed error=%s", error.sentence)
    return _Answer(response=error_response(500, error.sentence), outcome="failed")


def _json(content: Mapping[str, Any], *, status: int = 200) -> Response:
    return Response(status=status, body=(msgspec.json.encode(content),))


def _not_allowed(methods: bytes) -> Response:
    return error_response(405, f"only {methods.decode()} is possible here", (b"Allow", methods))
