"""Service accounts of a hub that was on its own before it was given to a cluster: the cluster's have the same names."""

from __future__ import annotations

import json

from tests.integration.aggregated.cluster import TOKENS, Cluster
from tests.integration.aggregated.conftest import API, StartHub

ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"
OPEN = ("/.well-known/openid-configuration", "/openid/v1/jwks")
JSON = ("content-type", "application/json")


def test_tokens_from_before_are_nobodys_in_the_cluster(start_hub: StartHub, cluster: Cluster) -> None:
    alone = start_hub(delegated=False).wait_ready()
    for path, body in (
        (ACCOUNTS, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ci"}}),
        (f"{ACCOUNTS}/ci/token", {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}),
    ):
        code, _, made = alone.as_admin.ask("POST", path, [JSON], json.dumps(body).encode())
        assert code == 201, made
    bearer = [("Authorization", f"Bearer {made['status']['token']}")]
    devices, port = f"{API}/namespaces/default/devices", alone.port
    assert alone.as_(None).ask("GET", devices, bearer)[0] == 403, "somebody, and nobody has given him anything"
    assert [alone.as_(None).ask("GET", path)[0] for path in OPEN] == [200, 200]
    alone.end()

    cluster.allows = lambda spec: spec["user"] == "system:serviceaccount:default:ci"
    given = start_hub().wait_ready()
    assert given.port == port, "the tokens' issuer is the same"
    code, _, refused = given.as_(None).ask("GET", devices, bearer)
    assert (code, refused["reason"]) == (401, "Unauthorized")
    assert len(cluster.asked(TOKENS)) == 1, "the cluster is asked whose it is, as of any token"
    assert [given.as_(None).ask("GET", path)[0] for path in OPEN] == [404, 404]
    assert [given.as_admin.ask("GET", path)[0] for path in OPEN] == [404, 404]
