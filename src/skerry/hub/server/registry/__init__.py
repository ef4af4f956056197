"""The artifact store over HTTP: the OCI Distribution Specification 1.1 under `/v2/`.

Lives here: URLs, headers and codes of the specification, and who may call what. Must not live here: how content is
kept (`core.ports.ArtifactStore`), what manifests mean (`core.manifest`), how a certificate's owner was identified
(middleware puts an `Identity` into the scope).

    routes     the table of URLs, and the way every request goes
    callers    who calls, by certificate or Bearer token, and what they may do; the challenge where that is not enough
    devices    what a device may read: what is deployed to it
    tokens     the token endpoint that clients log in at
    blobs, uploads, manifests   the endpoints by theme
    answers    the specification's errors and headers
"""

from skerry.hub.server.registry.answers import RegistrySettings
from skerry.hub.server.registry.routes import routes

__all__ = ["RegistrySettings", "routes"]
