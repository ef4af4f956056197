"""Kubeconfigs: the hub's own, files beside it, and every way in which one can be wrong."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.api import errors
from skerry.api.kinds.device import Device
from skerry.drivers.client import api as client_api
from skerry.drivers.client.api import HubClient, load_kubeconfig
from skerry.drivers.client.kubeconfig import Connection

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub


def config(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:7443"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
        "current-context": "x",
    }
    return {**made, **changes}


def write(path: Path, content: Any) -> Path:
    file = path / "kubeconfig"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def test_the_hub_s_own_works_and_leaves_no_key_behind(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    connection = load_kubeconfig(hub.kubeconfig)
    assert (connection.server, connection.namespace, connection.loopback) == (hub.url, "default", True)
    with HubClient(connection) as client:
        client.check_ready()
        client.list(Device)
    assert list(tmp_path.iterdir()) == []
    assert not [target for target in open_files() if "skerry-client" in target]


def open_files() -> list[str]:
    targets = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(f"/proc/self/fd/{name}"))
    return targets


def test_credentials_in_files_beside_it(hub: Hub, tmp_path: Path) -> None:
    inline = yaml.safe_load(hub.kubeconfig.read_text())
    cluster, user = inline["clusters"][0]["cluster"], inline["users"][0]["user"]
    for holder, name in ((cluster, "certificate-authority"), (user, "client-certificate"), (user, "client-key")):
        (tmp_path / name).write_bytes(base64.b64decode(holder.pop(f"{name}-data")))
        holder[name] = name
    with HubClient(load_kubeconfig(write(tmp_path, inline))) as client:
        client.list(Device)


def test_contexts_are_chosen(tmp_path: Path) -> None:
    two = config()
    two["contexts"].append({"name": "y", "context": {"cluster": "c", "user": "u"}})
    file = write(tmp_path, two)
    assert (load_kubeconfig(file).namespace, load_kubeconfig(file, "y").namespace) == ("shop", "default")
    assert load_kubeconfig(file).token == "t"
    with pytest.raises(errors.InvalidError, match="there are: x, y"):
        load_kubeconfig(file, "z")


@pytest.mark.parametrize(
    ("content", "say"),
    [
        ("", "not a kubeconfig"),
        ("a: [", "line"),
        ("kind: Pod", "not a kubeconfig"),
        (config(contexts="x"), "not a list"),
        (config(contexts=[]), 'no context "x"'),
        (config(clusters=[]), 'no cluster "c"'),
        (config(users=[]), 'no user "u"'),
        (config(**{"current-context": ""}), "current-context"),
        (config(clusters=[{"name": "c", "cluster": {"server": "ftp://x"}}]), "not a URL"),
        (config(clusters=[{"name": "c", "cluster": {"server": "https://x:99999"}}]), "not a URL"),
        (config(clusters=[{"name": "c", "cluster": {}}]), "not a URL"),
        (config(clusters=[{"name": "c", "cluster": {"server": "http://example.org"}}]), "not encrypted"),
        (
            config(clusters=[{"name": "c", "cluster": {"server": "https://x", "insecure-skip-tls-verify": True}}]),
            "refused",
        ),
        (
            config(clusters=[{"name": "c", "cluster": {"server": "https://x", "certificate-authority-data": "*"}}]),
            "base64",
        ),
        (
            config(clusters=[{"name": "c", "cluster": {"server": "https://x", "certificate-authority": "no"}}]),
            "No such file",
        ),
        (config(users=[{"name": "u", "user": {"client-certificate-data": "YQ=="}}]), "only one of"),
        (config(users=[{"name": "u", "user": {"token": 5}}]), "not text"),
        (config(users=[{"name": "u", "user": {"exec": {"command": "x"}}}]), "apiVersion"),
        (config(users=[{"name": "u", "user": {"password": "x"}}]), "logs in by password"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: Any, say: str) -> None:
    file = write(tmp_path, content)
    with pytest.raises((errors.InvalidError, errors.UnsupportedError), match=say) as caught:
        load_kubeconfig(file)
    assert str(file) in caught.value.element


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidError, match="skerry hub start"):
        load_kubeconfig(tmp_path / "none")
    with pytest.raises(errors.InvalidError):
        load_kubeconfig(tmp_path)
    big = tmp_path / "big"
    big.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(errors.InvalidError, match="larger"):
        load_kubeconfig(big)


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "kubeconfig"
    file.write_bytes(content)
    with pytest.raises(errors.InvalidError):
        load_kubeconfig(file)


@pytest.mark.parametrize("part", ["ca", "certificate", "key"])
def test_credentials_that_are_none(hub: Hub, part: str) -> None:
    good = load_kubeconfig(hub.kubeconfig)
    changed = {name: getattr(good, name) for name in ("ca", "certificate", "key")} | {part: b"none"}
    with pytest.raises(errors.InvalidError) as caught:
        Connection(server=hub.url, source=good.source, **changed).tls()
    assert caught.value.element == good.source


def test_an_encrypted_key_does_not_ask_at_the_terminal(hub: Hub) -> None:
    from cryptography.hazmat.primitives import serialization

    good = load_kubeconfig(hub.kubeconfig)
    key = serialization.load_pem_private_key(good.key, None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    with pytest.raises(errors.InvalidError):
        Connection(server=hub.url, ca=good.ca, certificate=good.certificate, key=locked).tls()


def test_another_hub_s_authority_is_told_apart_from_no_hub(hub: Hub, tmp_path: Path) -> None:
    from skerry.hub import pki
    from skerry.kit.clock import SystemClock

    other = pki.open_authority(tmp_path / "pki", names=(), clock=SystemClock())
    with (
        HubClient(Connection(server=hub.url, ca=other.ca_pem)) as client,
        pytest.raises(errors.UnavailableError) as caught,
    ):
        client.list(Device)
    assert "kubeconfig" in caught.value.hint
    assert "is the hub running" not in caught.value.hint


def test_a_server_that_says_nothing_or_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_api, "READ_SECONDS", 0.3)
    answers = [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"nonsense\r\n\r\n", None]
    expected = [errors.UnavailableError, errors.UnavailableError, errors.UnavailableError, errors.TimedOutError]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    if answer is None:
                        connection.recv(65536)  # until the client gives up
                    else:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        for kind in expected:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with HubClient(Connection(server=url)) as client, pytest.raises(kind) as caught:
                client.get_raw(Device, "a")
            assert caught.value.element == url
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("name", ["", "..", "a/b", "a?b", "a%2fb", "a#b", "a\n", "ä", "x" * 254])
def test_a_name_cannot_become_a_path(name: str) -> None:
    with HubClient(Connection(server="http://127.0.0.1:1")) as client:
        with pytest.raises(errors.InvalidError):
            client.get(Device, name)
        with pytest.raises(errors.InvalidError):
            HubClient(Connection(server="http://127.0.0.1:1"), namespace=name or "/").list(Device)


def test_tls_is_1_2_or_later(hub: Hub) -> None:
    context = load_kubeconfig(hub.kubeconfig).tls()
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
