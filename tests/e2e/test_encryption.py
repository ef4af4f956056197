"""A deployment that is to be kept encrypted, from `skerry apply` to the device's disk."""

from pathlib import Path

import pytest
from tests.e2e.site import Site

from skerry.api.kinds.device import Device
from skerry.api.kinds.rollout import Rollout

pytestmark = pytest.mark.e2e
WINDOW = 64


def plaintext_in(directory: Path, content: bytes) -> list[str]:
    pieces = {content[at : at + WINDOW] for at in range(0, len(content) - WINDOW, len(content) // 20)}
    found = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path) for path in found if any(piece in path.read_bytes() for piece in pieces)]


def test_what_is_to_be_encrypted_never_lies_on_a_device_in_plain(site: Site, package: Path, deployment: Path) -> None:
    model = max(package.glob("*.onnx"), key=lambda path: path.stat().st_size).read_bytes()
    site.start_hub()
    site.add_devices("a", "b")
    site.skerry("model", "push", str(package))
    plain = deployment.read_text()
    deployment.write_text(f"{plain}  protection: encrypted\n")
    site.skerry("apply", "-f", str(deployment))
    site.skerry("rollout", "status", "deployment/digits", "--watch", "--timeout", "60s")
    with site.client() as client:
        assert client.get(Rollout, "digits-1").status.phase == "Succeeded"
        assert {device.status.protection for device in client.list(Device)} == {"identity"}
    for name in ("a", "b"):
        assert list((site.directory / name).rglob("*.sealed"))
        assert plaintext_in(site.directory / name, model) == []
    deployment.write_text(plain)
    site.skerry("apply", "-f", str(deployment))
    site.skerry("rollout", "status", "deployment/digits", "--watch", "--timeout", "60s")
    for name in ("a", "b"):
        assert plaintext_in(site.directory / name, model), "what is looked for is found where it is in plain"
