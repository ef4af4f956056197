"""A namespace is a tenant: a device of one enrols, renews and shows there and nowhere else."""

import pytest
from tests.e2e.site import Site

pytestmark = pytest.mark.e2e


def test_a_device_lives_in_its_token_s_namespace(site: Site) -> None:
    site.start_hub()
    url = site.skerry("hub", "url", "--state-dir", str(site.directory / "hub")).strip()
    token = site.skerry("hub", "token", "create", "--namespace", "shop").strip()
    state = site.directory / "till"
    site.skerry("agent", "enroll", "--hub", url, "--token", token, "--name", "till", "--state-dir", str(state))
    certificate = (state / "device.pem").read_bytes()
    site.skerry("agent", "renew", "--state-dir", str(state))
    assert (state / "device.pem").read_bytes() != certificate
    assert site.skerry("get", "devices", "--namespace", "shop", "-o", "name").split() == ["device/till"]
    assert site.skerry("get", "devices", "-o", "name") == ""
