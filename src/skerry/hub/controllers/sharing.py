"""One copy of what many devices say alike: a fleet has few kinds of machines, and thousands of each.

Lives here: which parts of a Device are shared in memory, and the bound on what is remembered for it. Must not live
here: what the parts mean. Sharing changes nothing that can be seen: the parts are immutable, and equal.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from skerry.api.kinds.device import Device, RunningRevision, WorkloadStatus
from skerry.core.ports import Record
from skerry.hub import objects

MAX_SHARED = 100_000
"""Parts and words that are remembered; beyond, what was remembered is let go, and sharing begins anew."""

V = TypeVar("V")
_ENCODE = msgspec.msgpack.Encoder().encode
_REPLACE = msgspec.structs.replace


class Sharing:
    """Reads Devices so that equal parts of them are one object."""

    def __init__(self, most: int = MAX_SHARED) -> None:
        self._most = most
        self._parts: dict[tuple[str, bytes], object] = {}
        self._words: dict[str, str] = {}

    def read(self, record: Record) -> Device:
        """Return the stored Device. Raises what `objects.decode` raises."""
        item = objects.decode(Device, record)
        if len(self._parts) + len(self._words) > self._most:
            self._parts.clear()
            self._words.clear()
        part, word, status = self._part, self._word, item.status
        hardware, network = status.hardware, status.network
        shared = _REPLACE(
            status,
            hardware=_REPLACE(hardware, arch=word(hardware.arch), cpu_model=word(hardware.cpu_model)),
            os=part("os", status.os),
            engines=part("engines", status.engines),
            runtimes=part("runtimes", status.runtimes),
            limits=part("limits", status.limits),
            network=_REPLACE(network, interface=word(network.interface)),
            agent_version=word(status.agent_version),
            workloads=[self._workload(workload) for workload in status.workloads],
            conditions=[
                _REPLACE(one, type=word(one.type), reason=word(one.reason), message=word(one.message))
                for one in status.conditions
            ],
        )
        return _REPLACE(item, status=shared)

    def _workload(self, workload: WorkloadStatus) -> WorkloadStatus:
        word = self._word
        return _REPLACE(
            workload,
            name=word(workload.name),
            rollout=word(workload.rollout),
            deployment_uid=word(workload.deployment_uid),
            variant=word(workload.variant),
            message=word(workload.message),
            running=None if workload.running is None else self._running(workload.running),
        )

    def _running(self, running: RunningRevision) -> RunningRevision:
        word = self._word
        return _REPLACE(
            running,
            rollout=word(running.rollout),
            model_version=word(running.model_version),
            variant=word(running.variant),
            deployment_uid=word(running.deployment_uid),
        )

    def _part(self, field: str, value: V) -> V:
        """Return what was first seen of this value; those of one field are of one type, so equal bytes are equal."""
        found: V = self._parts.setdefault((field, _ENCODE(value)), value)  # type: ignore[assignment]
        return found

    def _word(self, text: str) -> str:
        return self._words.setdefault(text, text)
