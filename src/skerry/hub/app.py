"""The hub's wiring: the only place where its drivers are chosen and its tasks are started.

`run_hub` opens everything from the inside out (state directory, keys, store, broker, gateway, controllers, API) in one
task group and closes it the other way round. Must not live here: what any of the parts does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import cast

import msgspec
from cryptography import x509

from skerry.api.errors import IntegrityError, InvalidError, SkerryError, UnavailableError
from skerry.api.meta import GROUP
from skerry.core.audit_policy import Reads
from skerry.core.ports import ArtifactStore, Clock
from skerry.core.shares import Shed
from skerry.drivers.link.broker import BrokerSettings, EmbeddedBroker
from skerry.drivers.link.local import LocalHubLink
from skerry.drivers.registry import elsewhere
from skerry.drivers.registry.directory import DirectoryStore
from skerry.drivers.store.sqlite import open_store
from skerry.hub import identity, kubeconfig, listener, namespaces, pki, roles, shared_keys, stores
from skerry.hub.aggregation import MAX_HEAD_BYTES, MAX_HEADERS, Aggregation, Work, open_aggregation
from skerry.hub.audit.log import AuditSettings
from skerry.hub.audit.ranked import RankedLog, open_ranked_log
from skerry.hub.authentication import oidc
from skerry.hub.authentication.chain import Authentication, RequestAuthenticator
from skerry.hub.authentication.forwarded import ForwardedRequests
from skerry.hub.authorization import RoleAuthorizer
from skerry.hub.context import HubContext
from skerry.hub.duties import Duties
from skerry.hub.forwarding import Forwarding
from skerry.hub.gateway import Gateway
from skerry.hub.objects import Objects
from skerry.hub.server.app import build_app
from skerry.hub.serving_certificate import ServingCertificate
from skerry.hub.settings import DEFAULT_API_PORT, DEFAULT_MQTT_PORT, HubSettings, read_registry
from skerry.hub.state import HubRecord, StateDirectory, claim
from skerry.hub.stores import Shared
from skerry.hub.tunnels import Tunnels
from skerry.kit.clock import SystemClock

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HubReady:
    """What there is to know once the hub answers."""

    url: str
    mqtt_host: str
    mqtt_port: int
    kubeconfig: Path
    state_dir: Path
    first_start: bool


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where this hub is: the name devices are told, all names, and the ports (MQTT's may be 0: any)."""

    told: str
    names: tuple[str, ...]
    api_port: int
    mqtt_port: int


async def run_hub(
    settings: HubSettings, *, stop: asyncio.Event, ready: Callable[[HubReady], None] = lambda _: None
) -> None:
    """Run a hub until `stop` is set or it is cancelled; `ready` is called once, when the API answers.

    Raises what keeps it from starting, as one sentence: UnavailableError (port in use, directory of another hub,
    directory not usable), IntegrityError (keys or database damaged), InvalidError, StorageFullError; later an
    exception group if one of its tasks fails.
    """
    with claim(settings.state_dir) as state:
        before = state.read_record()
        told, names = reachable_as(settings)
        api_port, mqtt_port = choose_ports(settings, before)
        async with contextlib.AsyncExitStack() as stack:
            api = stack.enter_context(listener.bind(settings.host, api_port, purpose="API", option="--api-port"))
            place = _Place(told=told, names=names, api_port=api.getsockname()[1], mqtt_port=mqtt_port)
            context, broker, aggregation, shared = await stack.enter_async_context(_open(settings, state, place))
            tls, tls_work = _server_tls(settings, context, aggregation, told)
            _check_health(context, broker, shared)
            kubeconfig.write(state.kubeconfig, context.authority, context.hub_url)
            record = _record(context, state, place)
            _warn_of_moves(before, record)
            state.write_record(record)
            stack.callback(_sign_off, state, record)
            async with asyncio.TaskGroup() as group:
                gateway = context.gateway.follow_devices() if shared else context.gateway.run()
                tasks = [group.create_task(gateway, name="gateway")]
                # Until the devices are known, every one of them would be taken for a stranger. Whoever else reads them
                # all comes after that: the sooner the hub answers, the better.
                waits = [group.create_task(event.wait()) for event in (context.gateway.ready, stop)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                await namespaces.adopt(context.objects)
                if isinstance(context.authorizer, RoleAuthorizer):
                    await roles.ensure(context.objects)
                    tasks.append(group.create_task(context.authorizer.run(), name="roles"))
                duties = Duties(
                    context=context,
                    broker=broker,
                    state=state,
                    names=names,
                    event_ttl=timedelta(minutes=settings.event_minutes),
                    **({"holder": context.forwarding.holder} if context.forwarding else {}),
                )
                tasks += [
                    *(duties.share(group, shared) if shared else duties.start(group)),
                    *(group.create_task(work(), name="aggregation") for work in (*aggregation.work, *tls_work)),
                    *_label_pod(group, aggregation, shared),
                ]
                app = identity.identify(
                    build_app(context),
                    ca_pem=context.authority.ca_pem,
                    known=context.gateway.known,
                    clock=context.clock,
                    users=not aggregation.delegated,
                )
                async with listener.serve(app, api, tls, _limits(settings, aggregation)):
                    ready(_ready(context, state, first_start=before is None))
                    await stop.wait()
                for task in (*tasks, *waits):
                    task.cancel()


def reachable_as(settings: HubSettings) -> tuple[str, tuple[str, ...]]:
    """Return the name that devices are told, and all names for the certificate besides the local ones.

    Raises InvalidError when it listens everywhere and nobody said under which name.
    """
    everywhere = _is_unspecified(settings.host)
    if everywhere and not settings.advertise:
        raise InvalidError(
            f"listens on all addresses ({settings.host}), and devices must be told one",
            element="--host",
            hint="name it with --advertise, as in --advertise hub.example.org",
        )
    names = settings.advertise if everywhere else (*settings.advertise, settings.host)
    return names[0], names


def choose_ports(settings: HubSettings, before: HubRecord | None) -> tuple[int, int]:
    """Return the ports to bind, API and MQTT: asked for, else known to devices, else any or the default."""

    def choose(asked: int | None, kept: int, default: int) -> int:
        return asked or kept or (default if asked is None else 0)

    kept = (before.api_port, before.mqtt_port) if before else (0, 0)
    return choose(settings.api_port, kept[0], DEFAULT_API_PORT), choose(settings.mqtt_port, kept[1], DEFAULT_MQTT_PORT)


@contextlib.asynccontextmanager
async def _open(
    settings: HubSettings, state: StateDirectory, place: _Place
) -> AsyncIterator[tuple[HubContext, EmbeddedBroker, Aggregation, Shared | None]]:
    """Open keys, store, artifacts and broker, and hand them out; everything is closed again afterwards."""
    clock = SystemClock()
    named = stores.address_of(settings.store)
    async with contextlib.AsyncExitStack() as stack:
        shared = (
            await stack.enter_async_context(stores.open_shared(named, settings.store_password_file)) if named else None
        )
        # The store is made after the keys are complete, so a store without keys means that they were lost.
        empty = await shared.store.revision() == 0 if shared else not state.store.exists()
        authority = await asyncio.to_thread(_open_authority, settings, state, place.names, clock, empty)
        if shared:
            await stores.check_same_keys(shared.store, authority)
        yield await _open_rest(stack, settings, state, place, authority=authority, shared=shared)


async def _open_rest(
    stack: contextlib.AsyncExitStack,
    settings: HubSettings,
    state: StateDirectory,
    place: _Place,
    *,
    authority: pki.Authority,
    shared: Shared | None,
) -> tuple[HubContext, EmbeddedBroker, Aggregation, Shared | None]:
    clock = SystemClock()
    mqtt_port = place.mqtt_port
    if shared and not mqtt_port:
        with listener.bind(settings.host, 0, purpose="MQTT", option="--mqtt-port") as any_port:
            mqtt_port = any_port.getsockname()[1]
    gateways: list[Gateway] = []  # the gateway needs the broker's port, the broker asks the gateway who is known
    broker = EmbeddedBroker(
        BrokerSettings(host=settings.host, port=mqtt_port),
        tls=authority.server_context(client_certificate=ssl.CERT_REQUIRED),
        known=lambda uid, namespace: any(gateway.known(uid, namespace) for gateway in gateways),
    )
    store = shared.store if shared else await stack.enter_async_context(open_store(state.store))
    if not shared:
        await stack.enter_async_context(broker)
    objects = Objects(store, clock)
    led = Objects(shared.led, clock) if shared else objects
    shed = Shed()
    gateway = Gateway(led, LocalHubLink(broker), authority.desired_key, authority.desired_key_id, clock, shed=shed)
    gateways.append(gateway)
    artifacts = await stack.enter_async_context(_open_artifacts(settings, state))
    aggregation = await stack.enter_async_context(open_aggregation(settings, authority, clock))
    hub_url = f"https://{_in_url(place.told)}:{place.api_port}"
    forwarding = _open_forwarding(settings, place, authority, clock, shared)
    if forwarding is not None:
        stack.push_async_callback(forwarding.close)
    context = HubContext(
        objects=objects,
        artifacts=artifacts,
        clock=clock,
        authority=authority,
        gateway=gateway,
        state_dir=state.path,
        hub_url=hub_url,
        mqtt_host=place.told,
        mqtt_port=mqtt_port if shared else broker.port,
        shed=shed,
        tunnels=Tunnels(shed),
        audit=await stack.enter_async_context(_open_audit(settings, state, clock)),
        authorizer=aggregation.authorizer or RoleAuthorizer(objects),
        authentication=_authentication(settings, clock, hub_url, aggregation, _passed_on(forwarding, gateway)),
        forwarding=forwarding,
        groups=frozenset({GROUP}) if aggregation.delegated else None,
    )
    return context, broker, aggregation, shared


def _open_authority(
    settings: HubSettings, state: StateDirectory, names: tuple[str, ...], clock: Clock, empty: bool
) -> pki.Authority:
    def opening(may_create: bool) -> pki.Authority:
        return pki.open_authority(
            state.pki,
            names=names,
            clock=clock,
            device_life=timedelta(days=settings.device_certificate_days),
            may_create=may_create,
        )

    if settings.keys_dir is None:
        if not empty and stores.address_of(settings.store) and not (state.pki / "ca.key").exists():
            raise IntegrityError(
                "belongs to hubs whose keys are not here",
                element="--store",
                hint="name the directory that has them with --keys-dir",
            )
        return opening(empty)
    return shared_keys.open_with(settings.keys_dir, state.pki, opening, clock=clock, may_create=empty)


def _authentication(
    settings: HubSettings,
    clock: Clock,
    hub_url: str,
    aggregation: Aggregation,
    passed_on: Sequence[RequestAuthenticator],
) -> Authentication:
    issuer, more = oidc.open_issuer(settings, clock=clock, audience=hub_url), aggregation.authentication
    return Authentication(requests=(*passed_on, *more.requests), tokens=(*((issuer,) if issuer else ()), *more.tokens))


def _open_forwarding(
    settings: HubSettings, place: _Place, authority: pki.Authority, clock: Clock, shared: Shared | None
) -> Forwarding | None:
    if shared is None:
        return None
    host = socket.gethostname() if _is_unspecified(settings.host) else settings.host
    return Forwarding(
        authority=authority,
        clock=clock,
        leads=lambda: shared.fence.term is not None,
        address=f"{_in_url(settings.peer_address or host)}:{place.api_port}",
    )


def _passed_on(forwarding: Forwarding | None, gateway: Gateway) -> tuple[RequestAuthenticator, ...]:
    if forwarding is None:
        return ()
    return (
        ForwardedRequests(
            ca=x509.load_pem_x509_certificate(forwarding.authority.ca_pem),
            key=forwarding.key,
            holder=forwarding.holder,
            clock=forwarding.clock,
            leads=forwarding.leads,
            known=gateway.known,
        ),
    )


def _server_tls(
    settings: HubSettings, context: HubContext, aggregation: Aggregation, told: str
) -> tuple[ssl.SSLContext, tuple[Work, ...]]:
    """Return what the API's listener shows and whom it lets in, and what has to run for it."""
    tls = context.authority.server_context()
    aggregation.prepare(tls)
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return tls, ()
    shown = ServingCertificate(
        settings.tls_cert_file,
        settings.tls_key_file,
        authority=context.authority,
        told=(told,),
        clock=context.clock,
        prepare=aggregation.prepare,
    )
    tls.sni_callback = shown.choose
    context.health.add("serving-certificate", shown.check)
    return tls, (shown.run,)


def _label_pod(group: asyncio.TaskGroup, aggregation: Aggregation, shared: Shared | None) -> list[asyncio.Task[None]]:
    if aggregation.pod is None:
        return []
    work = aggregation.pod(lambda: shared is None or shared.fence.term is not None)
    return [group.create_task(work(), name="pod")]


def _check_health(context: HubContext, broker: EmbeddedBroker, shared: Shared | None) -> None:
    async def check_broker() -> None:
        leads = shared is None or shared.fence.term is not None
        if leads and not broker.is_serving:
            raise UnavailableError("does not listen", element="embedded broker")

    async def check_store() -> None:
        await context.objects.store.revision()

    async def check_certificates() -> None:
        context.authority.check_certificates()

    context.health.add("store", check_store)
    context.health.add("broker", check_broker)
    context.health.add("certificates", check_certificates)


def _limits(settings: HubSettings, aggregation: Aggregation) -> listener.Limits:
    usual = listener.Limits(max_connections=settings.max_connections)
    if aggregation.proxies is None:
        return usual
    return dataclasses.replace(usual, max_headers=MAX_HEADERS, max_head_bytes=MAX_HEAD_BYTES)


@contextlib.asynccontextmanager
async def _open_artifacts(settings: HubSettings, state: StateDirectory) -> AsyncIterator[ArtifactStore]:
    """Open the artifact store: on this disk, or in the registry that was named, whether or not it answers now."""
    if not settings.registry:
        yield await asyncio.to_thread(DirectoryStore, settings.artifacts_dir or state.artifacts)
        return
    place, plain_http = read_registry(settings.registry)
    store = await asyncio.to_thread(elsewhere.open_store, place, state.artifacts / "uploads", plain_http=plain_http)
    try:
        await store.check()
        yield store
    finally:
        store.close()


def _open_audit(
    settings: HubSettings, state: StateDirectory, clock: Clock
) -> contextlib.AbstractAsyncContextManager[RankedLog]:
    """Return the audit log to be opened."""
    kept = AuditSettings(
        reads=cast(Reads, settings.audit_level),
        total_bytes=settings.audit_log_mib * 1024 * 1024,
        days=settings.audit_log_days,
    )
    return open_ranked_log(settings.audit_log_dir or state.path / "audit", kept, clock)


def _record(context: HubContext, state: StateDirectory, place: _Place) -> HubRecord:
    return HubRecord(
        api_port=place.api_port,
        mqtt_port=context.mqtt_port,
        url=context.hub_url,
        mqtt_host=context.mqtt_host,
        kubeconfig=str(state.kubeconfig),
        ca_fingerprint=context.authority.ca_fingerprint,
        pid=os.getpid(),
        started_at=context.clock.now(),
    )


def _warn_of_moves(before: HubRecord | None, now: HubRecord) -> None:
    if before is not None and (before.url, before.mqtt_host, before.mqtt_port) != (
        now.url,
        now.mqtt_host,
        now.mqtt_port,
    ):
        log.warning(
            "hub.moved from=%s,%s:%d to=%s,%s:%d hint=%r",
            *(before.url, before.mqtt_host, before.mqtt_port),
            *(now.url, now.mqtt_host, now.mqtt_port),
            "devices that enrolled before look for it at the old place",
        )


def _sign_off(state: StateDirectory, record: HubRecord) -> None:
    with contextlib.suppress(SkerryError, OSError):  # a stale pid harms nobody, the lock is what counts
        state.write_record(msgspec.structs.replace(record, pid=0))


def _ready(context: HubContext, state: StateDirectory, *, first_start: bool) -> HubReady:
    return HubReady(
        url=context.hub_url,
        mqtt_host=context.mqtt_host,
        mqtt_port=context.mqtt_port,
        kubeconfig=state.kubeconfig,
        state_dir=state.path,
        first_start=first_start,
    )


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
