"""A variant run as a device will run it: in a process of its own, through the inference server's engine port.

Lives here: calling that process, for answers and for latencies, whatever the format. Must not live here: an engine, or
judging the answers. The process is `python -m skerry.serve.once`; it is never imported.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from skerry.api.errors import InvalidError, TimedOutError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Engine
from skerry.optimize.arrays import Array
from skerry.optimize.foreign import shortened
from skerry.optimize.standby import Standby

ANSWER_SECONDS = 1800.0
"""For all answers on the test set; beyond that the process is stopped."""


class Costs(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What that process measured of itself."""

    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    runs: int = 0
    peak_memory_bytes: int = 0
    engine_version: str = ""


def arguments(engine: Engine) -> list[str]:
    """Return the interpreter's arguments for a process that has an engine ready for its model (`Standby.start`)."""
    return ["-m", "skerry.serve.once", "--ready", engine]


class Trial:
    """One engine with one model file; the signature's batch dimension is -1. `ready` may have a process for it."""

    def __init__(
        self,
        engine: Engine,
        model: Path,
        signature_file: Path,
        signature: ModelSignature,
        *,
        ready: Standby | None = None,
    ) -> None:
        self._arguments = arguments(engine)
        self._ready = ready or Standby()
        self._given = ["--engine", engine, "--model", str(model), "--signature", str(signature_file)]
        self._outputs = [spec.name for spec in signature.outputs]
        self._scratch = model.parent

    def answers(self, inputs: Path) -> tuple[list[Array], Costs]:
        """Run all samples of an `.npz`; return every output [n, ...] in the signature's order. Raises InvalidError."""
        outputs = self._scratch / ".answers.npz"
        try:
            costs = self._run(["--inputs", str(inputs), "--outputs", str(outputs)], ANSWER_SECONDS)
            with np.load(outputs, allow_pickle=False) as stored:
                return [stored[name] for name in self._outputs], costs
        except KeyError as error:
            raise InvalidError(f"its engine gives no output {error}") from error
        finally:
            outputs.unlink(missing_ok=True)

    def latencies(self, inputs: Path, *, runs: int, seconds: float, grace: float) -> Costs:
        """Measure single runs of batch 1 on one thread, fewer than asked for once the seconds are over."""
        outputs = self._scratch / ".answers.npz"
        given = ["--inputs", str(inputs), "--outputs", str(outputs), "--runs", str(runs), "--seconds", str(seconds)]
        try:
            return self._run(given, seconds + grace)
        finally:
            outputs.unlink(missing_ok=True)

    def _run(self, arguments: Sequence[str], limit: float) -> Costs:
        line = msgspec.json.encode([*self._given, *arguments]) + b"\n"
        with self._ready.take(self._arguments) as process:
            try:
                answer, errors = process.communicate(line, timeout=limit)
            except subprocess.TimeoutExpired:
                hint = "a model this slow cannot be judged here"
                raise TimedOutError(f"no answer from its engine within {limit:.0f} s", hint=hint) from None
            finally:
                process.kill()
        if process.returncode != 0:
            said = errors.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            reason = shortened(said[-1].removeprefix("skerry serve once: "))
            raise InvalidError(f"its engine does not run it ({reason})")
        try:
            return msgspec.json.decode(answer.strip().rpartition(b"\n")[2], type=Costs)
        except msgspec.DecodeError as error:
            raise InvalidError(f"the process that runs it answered nonsense ({error})") from error
