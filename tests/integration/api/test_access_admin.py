"""The hub's own admin, as others may ask about him: he is a user with groups like any other, and they say it all."""

from __future__ import annotations

from skerry.drivers.client.api import HubClient

AUTHENTICATION, AUTHORIZATION = "authentication.k8s.io/v1", "authorization.k8s.io/v1"
WANTED = {"verb": "delete", "group": "skerry.dev", "resource": "devices", "namespace": "anywhere"}


def test_a_review_about_the_admin_says_what_he_may(admin: HubClient) -> None:
    asked = {"apiVersion": AUTHENTICATION, "kind": "SelfSubjectReview"}
    found = admin.http.post(f"/apis/{AUTHENTICATION}/selfsubjectreviews", json=asked).json()["status"]["userInfo"]
    assert found == {"username": "admin", "groups": ["skerry:admins", "system:masters", "system:authenticated"]}
    for user, groups, allowed in (
        (found["username"], found["groups"], True),
        (found["username"], ["system:authenticated"], False),
        ("ada", found["groups"], True),
    ):
        review = {
            "apiVersion": AUTHORIZATION,
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": groups, "resourceAttributes": WANTED},
        }
        answer = admin.http.post(f"/apis/{AUTHORIZATION}/subjectaccessreviews", json=review).json()
        assert answer["status"]["allowed"] is allowed, (user, groups)
