"""Who may ask what: the whole table of roles, methods and paths."""

import pytest

from skerry.api.errors import ForbiddenError, SkerryError, UnauthorizedError
from skerry.core.access import ANONYMOUS, Identity
from skerry.hub.server import access

ADMIN = Identity(role="admin", name="ada")
DEVICE = Identity(role="device", name="d1", namespace="shop")
OWN = "/apis/skerry.dev/v1alpha1/namespaces/shop/enrollments"
OTHER = "/apis/skerry.dev/v1alpha1/namespaces/default/enrollments"


def verdict(identity: Identity, method: str, path: str, token: str = "") -> type[SkerryError] | None:
    try:
        access.authorize(identity, method=method, path=path, join_token=token)
    except SkerryError as error:
        return type(error)
    return None


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz", "/version", "/cacerts", "/v2/", "/v2", "/v2/a/b"])
@pytest.mark.parametrize("identity", [ADMIN, DEVICE, ANONYMOUS], ids=lambda identity: identity.role)
def test_paths_for_everybody(identity: Identity, path: str) -> None:
    assert verdict(identity, "GET", path) is None


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/apis",
        "/openapi/v3",
        "/healthz/",
        "/v2x",
        "/v3/",
        "/apis/skerry.dev/v1alpha1/devices",
        "/apis/skerry.dev/v1alpha1/namespaces/shop/devices",
        "/apis/skerry.dev/v1alpha1/namespaces/shop/jointokens",
        f"{OWN}/x",
        f"{OWN}/x/status",
        f"{OWN}/",
        "/apis/skerry.dev/v1alpha1/enrollments",
        f"/x{OWN}",
    ],
)
def test_everything_else_is_for_admins(method: str, path: str) -> None:
    assert verdict(ADMIN, method, path) is None
    assert verdict(DEVICE, method, path, "skj1.a.b.c") is ForbiddenError
    assert verdict(ANONYMOUS, method, path, "skj1.a.b.c") is UnauthorizedError


def test_enrolling_takes_a_token_and_renewing_ones_own_namespace() -> None:
    assert verdict(ANONYMOUS, "POST", OTHER, "skj1.a.b.c") is None
    assert verdict(ANONYMOUS, "POST", OTHER) is UnauthorizedError
    assert verdict(DEVICE, "POST", OWN) is None
    assert verdict(DEVICE, "POST", OTHER) is ForbiddenError
    assert verdict(DEVICE, "GET", OWN) is ForbiddenError
    assert verdict(ANONYMOUS, "GET", OTHER, "skj1.a.b.c") is UnauthorizedError


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", ""), ("", ""), ("Bearer", ""), ("abc", "")],
)
def test_the_bearer_header(header: str, token: str) -> None:
    assert access.join_token(header) == token
