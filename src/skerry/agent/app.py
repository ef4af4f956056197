"""The agent's program: its command line, and the one place where its drivers are chosen.

Lives here: wiring, signals, exit codes. Must not live here: anything that could be tested without a process.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import logging
import os
import secrets
import signal
import ssl
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from skerry.agent import facts, identity, local, neighbourhood, renewal
from skerry.agent import settings as configured
from skerry.agent import trust as trusted
from skerry.agent.disk import Disk
from skerry.agent.ending import Ending
from skerry.agent.engine import Engine, Parts
from skerry.agent.identity import Identity
from skerry.agent.peers import Neighbourhood
from skerry.agent.remote import dial
from skerry.agent.sealed import Vault
from skerry.agent.servers import Servers
from skerry.agent.settings import AgentSettings
from skerry.api import duration, quantity
from skerry.api.errors import SkerryError
from skerry.core import messages, trust
from skerry.core.session import Session
from skerry.drivers.link.mqtt import MqttDeviceLink, MqttSettings
from skerry.drivers.registry.bandwidth import Bandwidth
from skerry.drivers.registry.oci import OciArtifactSource, OciSettings
from skerry.drivers.runtime.process import ProcessRuntime
from skerry.kit import logs
from skerry.kit.clock import SystemClock

log = logging.getLogger(__name__)

STATE_VARIABLE = "SKERRY_AGENT_STATE_DIR"
TOKEN_VARIABLE = "SKERRY_JOIN_TOKEN"  # noqa: S105 - its name, not its value
"""Other users of the machine can read a command line, but not this."""
STOP_SECONDS = 30.0
_ANCHOR_HELP = (
    "a file made by `skerry trust init`, the sha256:... that `skerry trust show` prints of it, or first-use: "
    "whatever the hub offers first"
)


def main(argv: Sequence[str], ending: Ending | None = None) -> int:
    """Run one of the agent's verbs and return the process's exit code; `ending` may hold the signals already."""
    ending = ending or Ending()
    ending.hold()
    options = _parser().parse_args(argv)
    options.ending = ending
    state_dir: Path = options.state_dir.expanduser().absolute()
    try:
        if options.verb is not _run:
            ending.release()
        logs.configure(level=options.log_level)
        if options.request is not None:
            return _ask(state_dir, options)
        settings = configured.load(state_dir / configured.FILE)
        disk = _open(state_dir, settings)
        return int(options.verb(disk, settings, options))
    except SkerryError as error:
        print(f"error: {error.sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _enroll(disk: Disk, settings: AgentSettings, options: argparse.Namespace) -> int:
    from skerry.agent import enroll  # noqa: PLC0415 - X.509 is for this moment only; the agent stays small

    with disk.lock():
        accepted = None
        if options.trust:  # looked at before the hub is asked, so that what is wrong with it costs nothing
            wanted = trusted.plan(disk, options.trust, replace=options.replace)
            accepted = functools.partial(trusted.write, disk, wanted)
        found = enroll.enroll(
            disk,
            settings,
            hub_url=options.hub,
            token=options.token,
            name=options.name,
            again=options.again,
            accepted=accepted,
        )
    print(f'enrolled as "{found.name}" ({found.uid}) at {found.endpoints.hub_url}')
    print(f"next: skerry agent run --state-dir {disk.root}")
    return 0


def _renew(disk: Disk, settings: AgentSettings, options: argparse.Namespace) -> int:  # noqa: ARG001 - a verb's shape
    from skerry.agent import enroll  # noqa: PLC0415 - as above

    found = enroll.renew(disk, settings)
    print(f"certificate renewed until {found.not_after.isoformat()}")
    return 0


def _trust(disk: Disk, settings: AgentSettings, options: argparse.Namespace) -> int:  # noqa: ARG001 - a verb's shape
    with disk.lock():
        trusted.begin(disk, options.anchor, replace=options.replace, namespace=options.namespace)
    print("the trust anchor is set; the agent obeys it from its next start on")
    return 0


def _run(disk: Disk, settings: AgentSettings, options: argparse.Namespace) -> int:
    with disk.lock():
        known = identity.load(disk)
        asyncio.run(run(disk, settings, known, options.ending))
    return 0


def _stop(disk: Disk, settings: AgentSettings, options: argparse.Namespace) -> int:  # noqa: ARG001 - a verb's shape
    async def stop() -> int:
        servers = Servers(ProcessRuntime(disk.root / "runtime"), disk, settings.servers)
        return await servers.stop_strangers([])

    with disk.lock():
        count = asyncio.run(stop())
    print(f"{count} server{'' if count == 1 else 's'} stopped")
    return 0


def _ask(state_dir: Path, options: argparse.Namespace) -> int:
    """Put one question to the running agent; for whoever may open its socket, who need not be its user."""
    path: Path = options.socket or local.path_of(configured.load(state_dir / configured.FILE).hold, state_dir)
    answer = local.ask(path, options.request(options))
    for one in answer.holds:
        print(f"held by {one.holder} until {one.until.isoformat()}{f': {one.reason}' if one.reason else ''}")
    if not answer.holds:
        print("no update hold is in force")
    return 0


async def run(disk: Disk, settings: AgentSettings, known: Identity, ending: Ending) -> None:
    """Run the agent until SIGTERM (servers go on, unless the settings say otherwise) or SIGINT (servers end too)."""
    tls = identity.client_context(disk, known)
    hood = neighbourhood.open_neighbourhood(disk, settings, known)
    engine = _build(disk, settings, known, tls, hood)
    clock = SystemClock()

    def renewed(found: Identity) -> None:
        identity.load_certificate(disk, tls)
        if hood is not None:
            neighbourhood.renewed(disk, hood)
        engine.replace_keys(identity.verifying_keys(found))

    log.info("agent.started uid=%s name=%s state_dir=%s", known.uid, known.name, disk.root)
    gc.collect()
    gc.freeze()  # what start-up made stays for good: no need to look at it again
    await _until_told(ending, engine.run(), renewal.keep_young(disk, clock, renewed=renewed))
    if settings.servers.stop_on_exit or signal.SIGINT in ending.received:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await engine.stop_servers()
        except TimeoutError:
            log.error("servers.not_stopped seconds=%s", STOP_SECONDS)
    log.info("agent.stopped")


async def _until_told(ending: Ending, *work: Coroutine[Any, Any, None]) -> None:
    """Do the work until a signal ends it."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is None:
        raise AssertionError("it runs in a task")
    cancel = task.cancel

    def end() -> None:
        loop.call_soon_threadsafe(cancel)  # from a signal's handler: the loop has to be woken up

    try:
        async with asyncio.TaskGroup() as tasks:
            for one in work:
                tasks.create_task(one)
            ending.tell(end)
    except asyncio.CancelledError:
        if not ending.received:
            raise
        task.uncancel()


def _build(
    disk: Disk, settings: AgentSettings, known: Identity, tls: ssl.SSLContext, hood: Neighbourhood | None
) -> Engine:
    """Choose the drivers."""
    where = identity.endpoints(known, settings.hub)
    keys = identity.verifying_keys(known)
    floor, accepted = _read_accepted(disk, known, keys)
    reserve = quantity.to_bytes(settings.storage.reserve)
    session = Session(
        uid=known.uid,
        boot_id=secrets.token_hex(16),
        keys=keys,
        heartbeat_seconds=duration.to_seconds(settings.link.heartbeat),
        floor=floor,
        accepted=accepted,
        commands=disk.read_commands(),
    )
    bandwidth, clock = Bandwidth(), SystemClock()
    oci = OciSettings(reserve_bytes=reserve, connections=settings.network.connections)
    trust = trusted.Trust(disk, clock)
    parts = Parts(
        disk=disk,
        link=MqttDeviceLink(known.uid, MqttSettings(host=where.mqtt_host, port=where.mqtt_port, tls=tls)),
        source=OciArtifactSource(where.hub_url, tls, oci, bandwidth),
        limit_bandwidth=bandwidth.limit,
        servers=Servers(ProcessRuntime(disk.root / "runtime"), disk, settings.servers, check_trust=trust.check_slot),
        trust=trust,
        session=session,
        clock=clock,
        settings=settings,
        facts=functools.partial(facts.collect, settings, disk.root),
        neighbourhood=hood,
        dial=dial.towards(where.hub_url, tls),
    )
    return Engine(parts)


def _read_accepted(
    disk: Disk, known: Identity, keys: Mapping[str, trust.VerifyingKey]
) -> tuple[int, messages.DesiredState | None]:
    """Return the floor of the manifest version and the state accepted last, if it still verifies."""
    kept = None
    try:
        kept = disk.read_desired()
        if kept is None:
            return 0, None
        if kept.uid not in ("", known.uid):
            log.info("desired.of_another_uid uid=%s", kept.uid)  # this directory was enrolled again since
            return 0, None
        return kept.manifest_version, trust.open_envelope(
            kept.envelope, messages.DesiredState, uid=known.uid, keys=keys
        )
    except SkerryError as error:
        # The journals still say what runs; the hub's next word replaces what is lost here.
        log.warning("desired.unreadable error=%s", error)
        return 0 if kept is None else kept.manifest_version, None


def _open(state_dir: Path, settings: AgentSettings) -> Disk:
    limit = settings.storage.limit
    return Disk(
        state_dir,
        reserve_bytes=quantity.to_bytes(settings.storage.reserve),
        limit_bytes=None if limit is None else quantity.to_bytes(limit),
        vault=Vault(state_dir, settings.protection),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skerry agent", description="The Skerry agent: runs models on this device.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    default = os.environ.get(STATE_VARIABLE, "~/.local/share/skerry/agent")

    def add(name: str, verb: object, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.add_argument(
            "--state-dir", type=Path, default=Path(default), help=f"where everything is kept (default: {default})"
        )
        # Only what runs for long has a log to keep; the other verbs say what they have to say.
        level = "info" if verb is _run else "warning"
        made.add_argument("--log-level", default=level, choices=("debug", "info", "warning", "error"))
        made.set_defaults(verb=verb, request=None)
        return made

    enroll = add("enroll", _enroll, "Make this device a member of a hub's fleet.")
    enroll.add_argument("--hub", required=True, metavar="URL", help="the hub's API, as in https://hub.example:7443")
    token = os.environ.get(TOKEN_VARIABLE, "")
    enroll.add_argument(
        "--token", default=token, required=not token, help=f"from `skerry hub token create`; or in {TOKEN_VARIABLE}"
    )
    enroll.add_argument("--name", default="", help="name asked for (default: its present one, else the host's)")
    enroll.add_argument("--again", action="store_true", help="also where this device is enrolled already")
    enroll.add_argument("--trust", default="", metavar="ANCHOR", help=_ANCHOR_HELP)
    trust = add("trust", _trust, "Set this device's trust anchor.")
    trust.add_argument("anchor", metavar="ANCHOR", help=_ANCHOR_HELP)
    trust.add_argument("--namespace", default="", help="whose policies count (default: as before, else the device's)")
    for verb in (enroll, trust):
        verb.add_argument(
            "--replace", action="store_true", help="also in place of another trust anchor; its policy is forgotten"
        )
    add("run", _run, "Run the agent in the foreground.")
    add("stop", _stop, "Stop the inference servers that an agent left running.")
    add("renew", _renew, "Renew this device's certificate now.")
    _add_questions(add)
    return parser


def _add_questions(add: Callable[[str, object, str], argparse.ArgumentParser]) -> None:
    """What is asked of the running agent, over its local socket."""
    hold = add("hold", None, "Keep the running agent from updating for a while; it ends by itself.")
    hold.add_argument("--for", dest="lasting", required=True, metavar="DURATION", help="as in 30m")
    hold.add_argument("--holder", default=local.DEFAULT_HOLDER, help="who holds; the same holder renews its hold")
    hold.add_argument("--reason", default="", help="shown wherever something waits for it")
    release = add("release", None, "End a hold that was taken on this device.")
    release.add_argument("--holder", default=local.DEFAULT_HOLDER)
    holds = add("holds", None, "List the update holds in force.")
    for parser, request in (
        (hold, lambda o: local.Request(verb="hold", lasting=o.lasting, holder=o.holder, reason=o.reason)),
        (release, lambda o: local.Request(verb="release", holder=o.holder)),
        (holds, lambda _: local.Request(verb="status")),
    ):
        parser.add_argument("--socket", type=Path, help="where the agent listens (default: as its settings say)")
        parser.set_defaults(request=request)
