"""What can be asked of one device or deployment beyond its object: a workload's log, an inference, an explanation."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from skerry.api import codec
from skerry.api.errors import BadRequestError, NotFoundError
from skerry.api.kinds.device import Device
from skerry.core.messages import MAX_TAIL_LINES
from skerry.hub import explain as explaining
from skerry.hub import reconciliation
from skerry.hub.server import logs, status
from skerry.hub.server.call import Call


async def log(call: Call) -> Response:
    """GET devices/x/log?workload=&tailLines=&follow=: the end of a workload's log as text, or as it grows."""
    device = await call.context.objects.get(Device, call.namespace, call.name)
    return await logs.answer(call, device, _workload(call, device), default_tail=200, most_tail=MAX_TAIL_LINES)


async def infer(call: Call) -> Response:
    """POST devices/x/infer?workload=: an Open Inference Protocol v2 request, answered by the device."""
    if call.content_type != "application/json":
        raise BadRequestError("is not JSON", element="the body", hint="send an Open Inference Protocol v2 request")
    request = codec.decode_json(await call.body())
    device = await call.context.objects.get(Device, call.namespace, call.name)
    result = await call.context.gateway.command(
        device.metadata.uid, "infer", _workload(call, device), request=request, timeout_seconds=logs.COMMAND_SECONDS
    )
    return status.respond(result.response)


async def explain(call: Call) -> Response:
    """GET modeldeployments/x/explain?device=: which variant runs there, and why not the others."""
    device = call.text("device")
    if not device:
        raise BadRequestError("is required", element="device", hint="name a device, as in explain?device=till-7")
    return status.respond(await explaining.explain(call.context, call.namespace, call.name, device))


async def reconcile(call: Call) -> Response:
    """POST devices/x/reconcile: what the hub desires counts again, though the device has accepted something newer."""
    device = await call.context.objects.get(Device, call.namespace, call.name)
    done = await reconciliation.reconcile(call.context.objects, device, dry_run=call.dry_run)
    return status.respond(msgspec.to_builtins(done))


def _workload(call: Call, device: Device) -> str:
    named, known = call.text("workload"), [workload.name for workload in device.status.workloads]
    if not named and len(known) == 1:
        return known[0]
    if not named:
        hint = f"name one of: {', '.join(known[:20])}" if known else "nothing runs on this device"
        raise BadRequestError("is required", element="workload", hint=hint)
    if named not in known:
        hint = f"it runs: {', '.join(known[:20])}" if known else "nothing runs on this device"
        raise NotFoundError(f'has no workload "{named[:80]}"', element=f'device "{call.name}"', hint=hint)
    return named
