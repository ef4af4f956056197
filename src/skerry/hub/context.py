"""What the hub's parts are handed: one value, made in `app`, instead of globals."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from skerry.core.ports import ArtifactStore, Clock
from skerry.core.shares import Shed
from skerry.hub.audit.ranked import RankedLog
from skerry.hub.authentication.chain import Authentication
from skerry.hub.authorization import AdminsOnly, Authorizer
from skerry.hub.health import Health
from skerry.hub.objects import Objects
from skerry.hub.tunnels import Tunnels

if TYPE_CHECKING:
    from skerry.hub.forwarding import Forwarding
    from skerry.hub.gateway import Gateway
    from skerry.hub.pki import Authority


@dataclass(frozen=True, kw_only=True)
class HubContext:
    """The hub's parts, as controllers and HTTP handlers use them."""

    objects: Objects
    artifacts: ArtifactStore
    clock: Clock
    authority: Authority
    gateway: Gateway
    state_dir: Path
    hub_url: str
    mqtt_host: str
    mqtt_port: int
    authentication: Authentication = field(default_factory=Authentication)
    """Ways to log in that this hub was set up with, besides its own certificates and service accounts' tokens."""
    authorizer: Authorizer = field(default_factory=AdminsOnly)
    """Says what users may do."""
    groups: frozenset[str] | None = None
    """API groups that are served here, where the others are somebody else's; None: all."""
    claim_locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    """Uses of one token are taken one after the other; the store's revisions make it right, this makes it quick."""
    collecting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the registry's garbage is collected: one at a time."""
    shed: Shed = field(default_factory=Shed)
    """What was refused or left out for one namespace's share."""
    tunnels: Tunnels = field(default_factory=Tunnels)
    """Conversations with devices' workloads."""
    audit: RankedLog | None = None
    """Where it is recorded what is asked of the hub; None: nowhere."""
    forwarding: Forwarding | None = None
    """The way to the hub that leads, where several share a store."""
    health: Health = field(default_factory=Health)
    """Whether the hub's parts are alive and ready."""
