"""`skerry rollout ...`: follow a rollout, approve its next wave, pause it, go on, abort it, take it back."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import typer

from skerry.api import duration
from skerry.api.errors import ConflictError, IntegrityError, InvalidError, NotFoundError, TimedOutError
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.rollout import Rollout, WaveStatus
from skerry.api.meta import find_condition
from skerry.cli import options, output
from skerry.cli.describe import print_wave
from skerry.core import promotion
from skerry.core.deployment import TEMPLATE_FIELDS, same_template
from skerry.drivers.client.api import HubClient

app = typer.Typer(help="Follow a rollout, approve it, pause it, abort it, take it back.", no_args_is_help=True)

Deployment = Annotated[str, typer.Argument(help="deployment/NAME")]
TAKEN_UP_SECONDS = 30.0
BLOCKED_SECONDS = 2.0
_BLOCKED = {"ModelVersionMissing", "ModelVersionBroken"}
_NOBODY = {"NoDevices", "NoVariantFits"}
_ENDED = {"Succeeded", "RolledBack", "Failed", "Superseded"}


@app.command()
def status(
    deployment: Deployment,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end.")] = False,
    revision: Annotated[int, typer.Option(help="An earlier rollout's revision; the newest unless given.")] = 0,
    timeout: Annotated[str, typer.Option(help="Stop following after this long; 0 never.")] = "0s",
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Show how far a rollout has come, wave by wave. Ends with an error if it failed or was rolled back."""
    name = options.reference(deployment, expected="deployment").name
    limit = duration.to_seconds(timeout)
    with options.connect(kubeconfig, namespace) as client:
        if watch:
            rollout = _follow(client, name, revision, limit)
        else:
            rollout = _find(client, name, revision)
            _check_reaches_somebody(client, name, rollout)
            for wave in rollout.status.waves:
                print_wave(wave)
    last = f'rollout "{rollout.metadata.name}" {rollout.status.phase}: {rollout.status.message}'
    if rollout.status.phase in ("RolledBack", "Failed"):
        raise IntegrityError(
            f"{rollout.status.phase}: {rollout.status.message}",
            element=f'rollout "{rollout.metadata.name}"',
            hint=f"see `skerry describe rollout {rollout.metadata.name}`",
        )
    output.say(last)


@app.command()
def undo(
    deployment: Deployment,
    to_revision: Annotated[int, typer.Option(help="The revision to return to; the one before unless given.")] = 0,
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Put an earlier revision's wish back; that is a new rollout, through the same waves and gates."""
    name = options.reference(deployment, expected="deployment").name
    with options.connect(kubeconfig, namespace) as client:
        current = client.get(ModelDeployment, name)
        target = _to_return_to(client, current, to_revision)
        # What to run comes from the old revision; how to roll out stays as it is wished today.
        template = target.spec.template
        fields = {field.name: field.encode_name for field in msgspec.structs.fields(template)}
        patch = {fields[field]: getattr(template, field) for field in TEMPLATE_FIELDS}
        client.merge_spec(ModelDeployment, name, patch)
    output.say(f"deployment/{name} returns to revision {target.spec.revision} ({template.model_version})")


@app.command()
def pause(deployment: Deployment, namespace: options.Namespace = "", kubeconfig: options.Kubeconfig = None) -> None:
    """Start no further wave until it is resumed; what runs stays."""
    _set_paused(deployment, paused=True, namespace=namespace, kubeconfig=kubeconfig)


@app.command()
def resume(deployment: Deployment, namespace: options.Namespace = "", kubeconfig: options.Kubeconfig = None) -> None:
    """Let a paused rollout go on."""
    _set_paused(deployment, paused=False, namespace=namespace, kubeconfig=kubeconfig)


@app.command()
def approve(
    deployment: Deployment,
    wave: Annotated[str, typer.Option(help="Approve it up to this wave; the one that waits unless given.")] = "",
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Let a rollout go on after a wave that is promoted by hand. With --wave also ahead of time."""
    name = options.reference(deployment, expected="deployment").name
    with options.connect(kubeconfig, namespace) as client:
        rollout = _find_underway(client, name, "approve")
        approved = wave or _waiting_wave(rollout)
        _check_wave(rollout, approved)
        _annotate(client, rollout, promotion.APPROVED, approved)
    output.out.print(f'rollout "{rollout.metadata.name}" may go on after wave {approved}', markup=False)


@app.command()
def abort(
    deployment: Deployment,
    reason: Annotated[str, typer.Option(help="Why; shown in the rollout's message.")] = "",
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Roll back now: every device returns to the last revision that succeeded. Nothing waits for a window."""
    name = options.reference(deployment, expected="deployment").name
    with options.connect(kubeconfig, namespace) as client:
        rollout = _find_underway(client, name, "abort")
        _annotate(client, rollout, promotion.ABORT, reason or "by skerry rollout abort")
    output.out.print(f'rollout "{rollout.metadata.name}" is being rolled back', markup=False)


@app.command()
def history(deployment: Deployment, namespace: options.Namespace = "", kubeconfig: options.Kubeconfig = None) -> None:
    """List a deployment's rollouts, oldest first."""
    name = options.reference(deployment, expected="deployment").name
    with options.connect(kubeconfig, namespace) as client:
        rollouts = _of(client, name)
    rows = [(r.spec.revision, r.spec.template.model_version, r.status.phase, r.status.message) for r in rollouts]
    output.print_table(("REVISION", "MODEL", "STATUS", "MESSAGE"), rows)


def _follow(client: HubClient, deployment: str, revision: int, limit: float) -> Rollout:
    """Print each wave's progress as it changes; returns the rollout when it has ended."""
    began, printed = time.monotonic(), set[str]()
    deadline = began + limit if limit else None
    rollout = _find(client, deployment, revision, wait_until=deadline)
    for change in client.watch(Rollout, rollout.metadata.name, deadline=deadline):
        rollout = change
        for line in _progress(rollout):
            if line not in printed:
                printed.add(line)
                output.say(f"{time.monotonic() - began:6.1f}s  {line}")
        if rollout.status.phase in _ENDED:
            return rollout
        _check_reaches_somebody(client, deployment, rollout)
    raise TimedOutError(
        f"is still {rollout.status.phase}: {rollout.status.message}", element=f'rollout "{rollout.metadata.name}"'
    )


def _check_reaches_somebody(client: HubClient, deployment: str, rollout: Rollout) -> None:
    """Raise NotFoundError when a rollout waits for devices that nobody has: following it would never end."""
    if rollout.status.phase in _ENDED or rollout.status.placed:
        return
    current = client.get(ModelDeployment, deployment)
    progressing = find_condition(current.status.conditions, "Progressing")
    if progressing is not None and progressing.reason in _NOBODY and current.status.rollout == rollout.metadata.name:
        hint = (
            f"see `skerry describe rollout {rollout.metadata.name}`"
            if progressing.reason == "NoVariantFits"
            else "correct spec.deviceSelector, or label devices (`kubectl label device NAME key=value`)"
        )
        raise NotFoundError(progressing.message, element=f'deployment "{deployment}" waits', hint=hint)


def _progress(rollout: Rollout) -> list[str]:
    lines = []
    for wave in rollout.status.waves:
        if wave.phase == "Pending" or not wave.assigned:
            continue
        lines.append(f"wave {wave.name}: {wave.phase}, {_counts(wave)}")
        lines += [
            f"wave {wave.name}: gate {g.gate} {g.verdict}: {g.message}" for g in wave.gates if g.verdict != "Pending"
        ]
    if rollout.status.phase in ("RollingBack", "Paused") or not lines:
        lines.append(f"{rollout.status.phase}: {rollout.status.message}")
    return lines


def _counts(wave: WaveStatus) -> str:
    failed = f", {wave.failed} failed" if wave.failed else ""
    return f"{wave.running} of {wave.assigned} running{failed}"


def _of(client: HubClient, deployment: str) -> list[Rollout]:
    return sorted(
        (r for r in client.list(Rollout) if r.spec.deployment == deployment), key=lambda rollout: rollout.spec.revision
    )


def _find(client: HubClient, deployment: str, revision: int, wait_until: float | None = None) -> Rollout:
    """Return the rollout of a revision, or the one that the deployment's present wish is carried out by.

    The hub may take a moment to take a wish up. Raises NotFoundError with its reason when it cannot.
    """
    began = time.monotonic()
    patience = min(began + TAKEN_UP_SECONDS, wait_until or float("inf"))
    while True:
        current = client.get(ModelDeployment, deployment)
        progressing = find_condition(current.status.conditions, "Progressing")
        observed = current.status.observed_generation >= current.metadata.generation
        blocked = progressing is not None and progressing.reason in _BLOCKED
        if revision or (observed and not blocked and current.status.rollout):
            name = f"{deployment}-{revision}" if revision else current.status.rollout
            try:
                return client.get(Rollout, name)
            except NotFoundError:
                if revision:
                    raise NotFoundError(
                        f"has no revision {revision}",
                        element=f'deployment "{deployment}"',
                        hint=f"see `skerry rollout history deployment/{deployment}`",
                    ) from None
        # What was pushed a moment ago may not have been noticed yet, so the first word is not the last.
        if time.monotonic() > (began + BLOCKED_SECONDS if observed and blocked else patience):
            raise NotFoundError(
                progressing.message if progressing else "the hub has not taken it up",
                element=f'deployment "{deployment}" cannot be rolled out' if blocked else f'deployment "{deployment}"',
                hint=f"see `skerry describe deployment {deployment}`",
            )
        time.sleep(0.1)


def _to_return_to(client: HubClient, current: ModelDeployment, revision: int) -> Rollout:
    rollouts = _of(client, current.metadata.name)
    if revision:
        found = next((r for r in rollouts if r.spec.revision == revision), None)
        if found is None:
            known = ", ".join(str(r.spec.revision) for r in rollouts)
            raise NotFoundError(
                f"has no revision {revision}", element=current.metadata.name, hint=f"there are: {known}"
            )
        return found
    earlier = [
        r
        for r in rollouts
        if r.status.phase == "Succeeded"
        and r.spec.revision < current.metadata.generation
        and not same_template(r.spec.template, current.spec)
    ]
    if not earlier:
        raise ConflictError(
            "no earlier revision succeeded, so there is nothing to return to",
            element=f'deployment "{current.metadata.name}"',
        )
    return earlier[-1]


def _find_underway(client: HubClient, deployment: str, verb: str) -> Rollout:
    """Return the rollout that carries out the deployment's present wish. Raises ConflictError when it has ended."""
    rollout = _find(client, deployment, 0)
    if rollout.status.phase in _ENDED:
        hint = f"skerry rollout undo deployment/{deployment}" if rollout.status.phase == "Succeeded" else ""
        raise ConflictError(
            f"is {rollout.status.phase}: there is nothing to {verb}",
            element=f'rollout "{rollout.metadata.name}"',
            hint=hint,
        )
    return rollout


def _waiting_wave(rollout: Rollout) -> str:
    """Return the wave that passed and waits for its approval. Raises ConflictError when none does."""
    found = find_condition(rollout.status.conditions, "Progressing")
    index = rollout.status.current_wave - 1
    if found is None or found.reason != "AwaitingApproval" or not 0 <= index < len(rollout.status.waves):
        raise ConflictError(
            f"waits for no approval: it is {rollout.status.phase}",
            element=f'rollout "{rollout.metadata.name}"',
            hint="approve ahead of time with --wave NAME",
        )
    return rollout.status.waves[index].name


def _check_wave(rollout: Rollout, wave: str) -> None:
    names = [row.name for row in rollout.status.waves]
    if wave not in names:
        raise NotFoundError(
            f'has no wave "{wave}"',
            element=f'rollout "{rollout.metadata.name}"',
            hint=f"its waves are: {', '.join(names)}" if names else "it has not begun",
        )


def _annotate(client: HubClient, rollout: Rollout, key: str, value: str) -> None:
    meta = rollout.metadata
    client.patch(Rollout, meta.name, {"metadata": {"uid": meta.uid, "annotations": {key: value}}})


def _set_paused(deployment: str, *, paused: bool, namespace: str, kubeconfig: options.Kubeconfig) -> None:
    name = options.reference(deployment, expected="deployment").name
    if not name:
        raise InvalidError("no deployment was named")
    with options.connect(kubeconfig, namespace) as client:
        client.merge_spec(ModelDeployment, name, {"paused": paused})
    output.say(f"deployment/{name} {'paused' if paused else 'resumed'}")
