from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from skerry.api.errors import UnavailableError
from skerry.drivers.link.mqtt import MqttDeviceLink, MqttSettings

if TYPE_CHECKING:
    from tests.integration.hub.conftest import HubProcess, RawDevice

NewDevice = Callable[[], "RawDevice"]
API = "/apis/skerry.dev/v1alpha1/namespaces/default"
TIMEOUT = 20


def test_a_device_joins_with_a_token_and_is_known_by_its_certificate(
    shared_hub: HubProcess, new_device: NewDevice
) -> None:
    device, token = new_device(), shared_hub.create_token(test="joins")
    device.pin(token)
    status, enrollment = device.ask(token, "till-7")
    assert status == 201, enrollment
    assert enrollment["status"]["phase"] == "Approved"
    assert enrollment["status"]["ca"] == device.ca
    assert enrollment["status"]["endpoints"] == {
        "mqttHost": "127.0.0.1",
        "mqttPort": shared_hub.record["mqttPort"],
        "hubUrl": shared_hub.record["url"],
    }
    (found,) = shared_hub.items("devices", "?labelSelector=test=joins")
    assert found["metadata"]["uid"] == enrollment["status"]["deviceUid"]
    assert found["metadata"]["name"] == "till-7"
    device.keep(enrollment)
    assert shared_hub.call(device.context(), "GET", f"{API}/devices")[0] == 403
    status, renewed = device.ask()
    assert (status, renewed["status"]["deviceUid"]) == (201, enrollment["status"]["deviceUid"])


def test_a_lost_answer_costs_nothing(shared_hub: HubProcess, new_device: NewDevice) -> None:
    device, token = new_device(), shared_hub.create_token(uses=1, test="lost")
    device.pin(token)
    device.ask_and_hang_up(token)
    status, enrollment = device.ask(token)
    assert status == 201, enrollment
    (found,) = shared_hub.items("devices", "?labelSelector=test=lost")
    assert found["metadata"]["uid"] == enrollment["status"]["deviceUid"]
    _, stored = shared_hub.call(shared_hub.admin, "GET", f"{API}/jointokens/{token.split('.')[1]}")
    assert stored["status"]["used"] == 1


def test_of_eight_at_once_with_seven_uses_one_is_refused(shared_hub: HubProcess, new_device: NewDevice) -> None:
    token = shared_hub.create_token(uses=7, test="eight")
    devices = [new_device() for _ in range(8)]
    devices[0].pin(token)
    for device in devices:
        device.ca = devices[0].ca
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda device: device.ask(token), devices))
    refused = [answer for status, answer in answers if status != 201]
    assert len(refused) == 1, answers
    assert refused[0]["code"] == 403
    assert "is used up (it was good 7 times)" in refused[0]["message"]
    assert "skerry hub token create" in refused[0]["message"]
    assert len({item["metadata"]["name"] for item in shared_hub.items("devices", "?labelSelector=test=eight")}) == 7


@pytest.mark.parametrize("spoil", [lambda t: t.replace("skj1", "skj9"), lambda t: t[:-64] + "0" * 64, lambda _: "x"])
def test_a_spoiled_token_opens_nothing(
    shared_hub: HubProcess, new_device: NewDevice, spoil: Callable[[str], str]
) -> None:
    device, token = new_device(), shared_hub.create_token(test="spoiled")
    device.pin(token)
    status, refused = device.ask(spoil(token))
    assert (status, refused["reason"]) == (401, "Unauthorized")
    assert shared_hub.items("devices", "?labelSelector=test=spoiled") == []


def test_a_deleted_device_is_refused_by_api_and_broker_and_loses_its_connection(
    shared_hub: HubProcess, new_device: NewDevice
) -> None:
    device, token = new_device(), shared_hub.create_token()
    device.pin(token)
    _, enrollment = device.ask(token, "doomed")
    device.keep(enrollment)
    link = MqttDeviceLink(
        enrollment["status"]["deviceUid"],
        MqttSettings(host="127.0.0.1", port=shared_hub.record["mqttPort"], tls=device.context()),
    )

    async def live() -> None:
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises(UnavailableError):  # noqa: PT012 - the end of the connection is what is awaited
                async with link.connect(boot_id="b1") as connection:
                    status, _ = await asyncio.to_thread(
                        shared_hub.call, shared_hub.admin, "DELETE", f"{API}/devices/doomed"
                    )
                    assert status == 200
                    async for _ in connection.incoming():
                        raise AssertionError("nothing was desired of it")
            with pytest.raises(UnavailableError):
                async with link.connect(boot_id="b1"):
                    raise AssertionError("it was let in again")

    asyncio.run(live())
    assert device.ask()[0] == 401


def test_no_certificate_no_mqtt(shared_hub: HubProcess) -> None:
    async def connect(tls: ssl.SSLContext) -> None:
        async with asyncio.timeout(TIMEOUT):
            async with MqttDeviceLink(
                "d1", MqttSettings(host="127.0.0.1", port=shared_hub.record["mqttPort"], tls=tls)
            ).connect(boot_id="b"):
                raise AssertionError("it was let in")

    for tls in (shared_hub.context(), shared_hub.admin):  # an admin's certificate is no device's
        with pytest.raises(UnavailableError):
            asyncio.run(connect(tls))
