"""`/metrics`: what the hub counts, in the Prometheus text format, version 0.0.4, for whoever may monitor it.

Must not live here: counting. Names of namespaces are its only labels from outside, and their number is bounded
(`core.shares`).
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from skerry.core.shares import Shed

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHED = "skerry_hub_share_exceeded_total"
_HELP = "What was refused, left out or told together with others because of one namespace's share."


def routes(shed: Shed) -> list[BaseRoute]:
    """Return the route."""

    async def metrics(_: Request) -> Response:
        lines = [f"# HELP {_SHED} {_HELP}", f"# TYPE {_SHED} counter"]
        for (what, namespace), number in sorted(shed.counts.items()):
            lines.append(f'{_SHED}{{what="{_label(what)}",namespace="{_label(namespace)}"}} {number}')
        return Response("\n".join(lines) + "\n", headers={"Content-Type": _TYPE, "Cache-Control": "no-store"})

    return [Route("/metrics", metrics)]


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
