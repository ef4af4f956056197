"""The label by which a cluster's Services find the hub that leads: devices and their commands have to come to it.

Lives here: this hub's own pod, labelled `leader` while it leads and `standby` while not. Must not live here: who
leads (`hub.leadership`). A hub that ends leaves its label; what is not ready gets no traffic, and a new one labels
itself anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from skerry.api.errors import InvalidError, SkerryError
from skerry.hub.cluster import Cluster

log = logging.getLogger(__name__)

LABEL = "skerry.dev/role"
LOOK_SECONDS = 1.0
MAX_RETRY_SECONDS = 30.0


def read_namespace(credentials: Path) -> str:
    """Return the namespace this pod is in. Raises InvalidError."""
    try:
        return (credentials / "namespace").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"cannot be read ({error})", element=str(credentials / "namespace")) from None


class PodRole:
    """Keeps the label of one pod true."""

    def __init__(self, cluster: Cluster, *, namespace: str, name: str, leads: Callable[[], bool]) -> None:
        self._cluster, self._leads = cluster, leads
        self._path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"

    async def run(self) -> None:
        """Do it, for ever; what fails is logged and tried again."""
        said, delay = "", LOOK_SECONDS
        while True:
            role = "leader" if self._leads() else "standby"
            if role != said:
                try:
                    await self._cluster.patch(self._path, {"metadata": {"labels": {LABEL: role}}})
                    said, delay = role, LOOK_SECONDS
                    log.info("pod.labelled role=%s", role)
                except SkerryError as error:
                    log.warning("pod.not_labelled role=%s cause=%s", role, error)
                    delay = min(2 * delay, MAX_RETRY_SECONDS)
            await asyncio.sleep(delay)
