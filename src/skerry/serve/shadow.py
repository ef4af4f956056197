"""Shadow mode: a share of what callers asked is asked of another server too, after they have their answer.

One request is under way at a time, and few wait; when more is due it is dropped and counted. What the other server
answers is compared and thrown away: nothing of it reaches a caller, and none waits for it.
Lives here: taking samples, sending them, the counters. Must not live here: the comparison (`agreement`), which server
it is, or what agreement is enough (the hub's gate).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from skerry.api.errors import BadRequestError, SkerryError
from skerry.core.control import ShadowCounts
from skerry.kit.loopback import Answer, LoopbackClient

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

log = logging.getLogger(__name__)

MAX_WAITING = 32
MAX_WAITING_BYTES = 16 * 1024 * 1024
"""Of all samples that wait or are under way. A larger one is dropped."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
REQUEST_SECONDS = 10.0
QUICK_BYTES = 64 * 1024
"""Outputs up to here are compared on the event loop; larger ones in a thread."""
LENGTH_HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One request that was answered."""

    inputs: Mapping[str, Array]
    outputs: Sequence[tuple[str, Array]]

    @property
    def size(self) -> int:
        """Bytes that it keeps alive, about."""
        return sum(array.nbytes for array in (*self.inputs.values(), *(array for _, array in self.outputs)))


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}


class _Response(msgspec.Struct):
    outputs: list[_Output]


class Totals(NamedTuple):
    """All mirrors since the server's start; see `core.control.ShadowCounts`."""

    mirrored: int = 0
    answered: int = 0
    agreed: int = 0
    errors: int = 0
    dropped: int = 0


class Shadow:
    """Mirrors to one server at a time, or to none. Used from the event loop's thread; `aimed` from any."""

    def __init__(self, model: str) -> None:
        self._path = f"/v2/models/{model}/infer"
        self._mirror: _Mirror | None = None
        self._past = Totals()

    @property
    def aimed(self) -> bool:
        """Whether samples are wanted."""
        return self._mirror is not None

    def aim(self, port: int, share: float) -> None:
        """Mirror this share to the server at this port; counting goes on if it is the same as before."""
        if self._mirror is None or self._mirror.port != port:
            self.stop()
            self._mirror = _Mirror(port, self._path)
            log.info("serve.shadowing port=%s share=%s", port, share)
        self._mirror.share = share

    def stop(self) -> None:
        """Mirror nothing more."""
        if self._mirror is not None:
            self._past = self.totals()
            self._mirror.close()
            self._mirror = None

    def offer(self, sample: Sample) -> None:
        """Take the sample, leave it, or drop it; never wait."""
        if self._mirror is not None:
            self._mirror.offer(sample)

    def counts(self) -> ShadowCounts | None:
        """Return what came of it; None when nothing is mirrored."""
        return None if self._mirror is None else self._mirror.counts()

    def totals(self) -> Totals:
        """Return what came of all mirroring so far; no figure ever falls."""
        now = self.counts()
        if now is None:
            return self._past
        counted = (now.mirrored, now.answered, now.agreed, now.errors, now.dropped)
        return Totals(*(past + one for past, one in zip(self._past, counted, strict=True)))


class _Mirror:
    """One server that is asked too. Its task runs only while samples wait: an idle server does not wake up."""

    def __init__(self, port: int, path: str) -> None:
        self.port = port
        self.share = 0.0
        self._path = path
        self._client = LoopbackClient(port, max_body_bytes=MAX_ANSWER_BYTES, timeout_seconds=REQUEST_SECONDS)
        self._waiting: deque[Sample] = deque()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._mirrored = self._answered = self._agreed = self._errors = self._dropped = 0
        self._worst = 0.0

    def offer(self, sample: Sample) -> None:
        if random.random() >= self.share:  # noqa: S311 - a sample, not a secret
            return
        size = sample.size
        if len(self._waiting) >= MAX_WAITING or self._bytes + size > MAX_WAITING_BYTES:
            self._dropped += 1
            return
        self._mirrored += 1
        self._bytes += size
        self._waiting.append(sample)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def counts(self) -> ShadowCounts:
        return ShadowCounts(
            port=self.port,
            mirrored=self._mirrored,
            answered=self._answered,
            agreed=self._agreed,
            errors=self._errors,
            dropped=self._dropped,
            max_abs_difference=self._worst,
        )

    async def _run(self) -> None:
        try:
            while self._waiting:  # asked anew once the connection is closed: samples may have come meanwhile
                async with self._client:
                    while self._waiting:
                        sample = self._waiting.popleft()
                        try:
                            await self._ask(sample)
                        except SkerryError as error:
                            self._errors += 1
                            log.debug("serve.shadow_failed port=%s error=%s", self.port, error)
                        except Exception:
                            self._errors += 1
                            log.exception("serve.shadow_broke port=%s", self.port)
                        self._bytes -= sample.size
        finally:
            self._task = None

    async def _ask(self, sample: Sample) -> None:
        head, body = encode(sample)
        answer = await self._client.request(
            "POST",
            self._path,
            body=body,
            headers={"Content-Type": "application/octet-stream", LENGTH_HEADER: str(head)},
        )
        if answer.status != 200:
            raise BadRequestError(f"answered {answer.status}", element=f"127.0.0.1:{self.port}")
        if len(answer.body) <= QUICK_BYTES:
            agrees, difference = judge(sample, answer)
        else:
            agrees, difference = await asyncio.to_thread(judge, sample, answer)
        self._answered += 1
        self._agreed += agrees
        self._worst = max(self._worst, difference)


def encode(sample: Sample) -> tuple[int, bytes]:
    """Return the request anew, all tensors as binary data: the length of its JSON part, and the body."""
    from skerry.serve import tensors  # noqa: PLC0415 (NumPy comes in with the engine)

    raw = [tensors.to_binary(array) for array in sample.inputs.values()]
    head = msgspec.json.encode(
        {
            "inputs": [
                {
                    "name": name,
                    "datatype": tensors.datatype_of(array),
                    "shape": array.shape,
                    "parameters": {"binary_data_size": len(data)},
                }
                for (name, array), data in zip(sample.inputs.items(), raw, strict=True)
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name, _ in sample.outputs],
        }
    )
    head += b" " * (-len(head) % 8)
    return len(head), b"".join((head, *raw))


def judge(sample: Sample, answer: Answer) -> tuple[bool, float]:
    """Return whether the other server's outputs agree with ours, and the largest difference. Raises BadRequestError."""
    from skerry.serve import agreement, tensors  # noqa: PLC0415 (as above)

    text = answer.headers.get(LENGTH_HEADER.lower(), "")
    if not (text.isascii() and text.isdigit() and len(text) < 12) or int(text) > len(answer.body):
        raise BadRequestError(f"{LENGTH_HEADER} is wrong", element="the shadow's answer")
    view = memoryview(answer.body)
    try:
        response = msgspec.json.decode(view[: int(text)], type=_Response)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"is no inference response: {str(error)[:200]}", element="the shadow's answer") from None
    rest, found = view[int(text) :], {}
    for output in response.outputs:
        size = output.parameters.get("binary_data_size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
            raise BadRequestError("ends in the middle of a tensor", element="the shadow's answer")
        if any(length < 0 for length in output.shape) or not tensors.is_datatype(output.datatype):
            raise BadRequestError("has no shape, or no datatype of the protocol", element="the shadow's answer")
        found[output.name] = tensors.from_binary(rest[:size], output.datatype, output.shape, element=output.name[:100])
        rest = rest[size:]
    names = [name for name, _ in sample.outputs]
    if set(found) != set(names):
        return False, 0.0
    return agreement.compare([array for _, array in sample.outputs], [found[name] for name in names])
