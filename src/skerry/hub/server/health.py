"""`/livez`, `/readyz` and `/healthz`: for kubelets, load balancers and people.

`?verbose` tells each check, `?exclude=<check>` leaves one out, `/readyz/<check>` asks one alone. Why a check failed is
in the hub's log and not in the answer. Must not live here: the checks (`hub.health`).
Source: Kubernetes documentation, "Kubernetes API health endpoints".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from skerry.hub.health import Check, Health
from skerry.hub.server import status

_HEADERS = {"Cache-Control": "no-cache, private", "X-Content-Type-Options": "nosniff"}


def routes(health: Health) -> list[BaseRoute]:
    """Return the routes; `/healthz`, the old one of the three, is `/livez` by another name."""
    sets = (("livez", health.live), ("readyz", health.ready), ("healthz", health.live))
    return [
        route
        for name, checks in sets
        for route in (
            Route(f"/{name}", _all(health, name, checks)),
            Route(f"/{name}/{{check}}", _one(health, name, checks)),
        )
    ]


def _all(health: Health, name: str, checks: Mapping[str, Check]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        left_out = set(request.query_params.getlist("exclude"))
        results = await health.ask(item for item in checks.items() if item[0] not in left_out)
        good = all(result.ok for result in results)
        found = {result.name: result.ok for result in results}
        lines = [_line(check, found.get(check)) for check in checks]
        if unknown := sorted(left_out - {"", *checks}):
            named = ", ".join(f'"{check[:80]}"' for check in unknown[:10])
            lines.append(f"warn: some health checks cannot be excluded: no matches for {named}")
        lines.append(f"{name} check {'passed' if good else 'failed'}")
        if good and "verbose" not in request.query_params:
            return PlainTextResponse("ok", headers=_HEADERS)
        return PlainTextResponse("\n".join(lines) + "\n", status_code=200 if good else 500, headers=_HEADERS)

    return endpoint


def _one(health: Health, name: str, checks: Mapping[str, Check]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        asked = request.path_params["check"]
        check = checks.get(asked)
        if check is None:
            return status.respond_status(
                status.plain(404, "NotFound", f"GET /{name}/{asked[:80]}: there is no such check")
            )
        (result,) = await health.ask([(asked, check)])
        if result.ok:
            return PlainTextResponse("ok", headers=_HEADERS)
        return PlainTextResponse(
            f"internal server error: {asked} failed: reason withheld\n", status_code=500, headers=_HEADERS
        )

    return endpoint


def _line(check: str, ok: bool | None) -> str:
    if ok is None:
        return f"[+]{check} excluded: ok"
    return f"[+]{check} ok" if ok else f"[-]{check} failed: reason withheld"
