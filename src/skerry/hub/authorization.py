"""What is asked for, who decides, and the decision: the words that all authorizers share.

Lives here: attributes of a request, the port. Must not live here: how a decision is come by (`core.rbac` from stored
roles, `hub.delegation` by asking a cluster), or HTTP (`hub.server.access` makes attributes of paths).
Source: Kubernetes documentation, "Authorization", "Determine the Request Verb".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from skerry.core.access import Identity


@dataclass(frozen=True, kw_only=True, slots=True)
class Attributes:
    """One request, as rules see it: of a resource, or of a path that is none."""

    verb: str
    """get, list, watch, create, update, patch, delete, deletecollection, or one of a rule's own, as bind; for a path
    that is no resource the HTTP method in lower case."""
    group: str = ""
    version: str = ""
    resource: str = ""
    """The plural."""
    subresource: str = ""
    name: str = ""
    namespace: str = ""
    """Empty: all of them, or an object that is in none."""
    path: str = ""
    """Of a request that is for no resource; such a one has nothing else but the verb."""

    @property
    def is_resource(self) -> bool:
        """Whether it is for a resource."""
        return not self.path


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether the request may go on, and why; the reason is shown to whoever asked."""

    allowed: bool
    reason: str = ""


class Authorizer(Protocol):
    """Says who may do what."""

    async def authorize(self, identity: Identity, attributes: Attributes) -> Decision:
        """Return the decision. Raises UnavailableError when none can be come by: the request is refused then."""
        ...
