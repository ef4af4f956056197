"""kubectl reads: every form of output, selectors, pages, all namespaces, describe, raw paths, watches."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.conformance.objects import deployment, device, text_of
from tests.conformance.program import GROUP, KUBECTL, NO_KUBECTL, HubProgram, Kubectl

pytestmark = pytest.mark.skipif(KUBECTL is None, reason=NO_KUBECTL)


@pytest.fixture(scope="module")
def shop(hub: HubProgram) -> Kubectl:
    """kubectl in a namespace with five devices, that the tests here only read."""
    kubectl = hub.kubectl("shop")
    tiers = {"till-1": "edge", "till-2": "edge", "till-3": "core", "till-4": "core", "till-5": "edge"}
    made = [device(name, cordoned=name == "till-3", tier=tier, site="shop") for name, tier in tiers.items()]
    kubectl("create", "-f", "-", text=text_of(*made))
    kubectl("patch", "device", "till-1", "--subresource=status", "--type=merge", "-p", '{"status":{"phase":"Online"}}')
    return kubectl


NAMES = [f"till-{number}" for number in range(1, 6)]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("name", "".join(f"device.skerry.dev/{name}\n" for name in NAMES)),
        ("jsonpath={.items[*].metadata.name}", " ".join(NAMES)),
        ("jsonpath={.items[?(@.spec.cordoned==true)].metadata.name}", "till-3"),
        ("go-template={{range .items}}{{.metadata.name}},{{end}}", "".join(f"{name}," for name in NAMES)),
        (
            "custom-columns=NAME:.metadata.name,TIER:.metadata.labels.tier,CORDONED:.spec.cordoned",
            None,
        ),
    ],
)
def test_forms_made_from_the_objects(shop: Kubectl, output: str, expected: str | None) -> None:
    said = shop("get", "devices", "-o", output).stdout
    if expected is None:
        assert [line.split() for line in said.splitlines()][:2] == [
            ["NAME", "TIER", "CORDONED"],
            ["till-1", "edge", "false"],
        ]
    else:
        assert said == expected


def test_tables_json_and_yaml(shop: Kubectl) -> None:
    header, *rows = shop("get", "devices").stdout.splitlines()
    wide = shop("get", "devices", "-o", "wide").stdout.splitlines()[0]
    assert set(header.split()) < set(wide.split())
    assert [row.split()[0] for row in rows] == NAMES
    assert rows[0].split()[1] == "Online"
    whole = json.loads(shop("get", "devices", "-o", "json").stdout)
    assert whole["kind"] == "List"
    assert {item["apiVersion"] for item in whole["items"]} == {"skerry.dev/v1alpha1"}
    one = shop("get", "device/till-1", "-o", "yaml").stdout
    assert "kind: Device" in one
    assert "managedFields" not in one
    assert "managedFields" in shop("get", "device/till-1", "-o", "yaml", "--show-managed-fields").stdout
    assert shop("get", "devices", "--no-headers").stdout.splitlines()[0].split()[0] == "till-1"
    labelled = shop("get", "devices", "--show-labels", "-L", "tier").stdout.splitlines()
    assert labelled[1].split()[-1] == "site=shop,tier=edge"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["-l", "tier=core"], ["till-3", "till-4"]),
        (["-l", "tier!=core"], ["till-1", "till-2", "till-5"]),
        (["-l", "tier in (core, edge),site"], NAMES),
        (["-l", "!tier"], []),
        (["--field-selector", "metadata.name=till-2"], ["till-2"]),
        (["--field-selector", "metadata.name!=till-2", "-l", "tier=edge"], ["till-1", "till-5"]),
        (["--field-selector", "status.phase=Online"], ["till-1"]),
        (["--chunk-size=2"], NAMES),
        (["--chunk-size=2", "-l", "tier=edge"], ["till-1", "till-2", "till-5"]),
        (["--sort-by=.metadata.labels.tier", "--chunk-size=1"], ["till-3", "till-4", "till-1", "till-2", "till-5"]),
    ],
)
def test_selections(shop: Kubectl, arguments: list[str], names: list[str]) -> None:
    found = shop("get", "devices", "-o", "name", *arguments).stdout.split()
    if arguments[0].startswith("--sort-by"):
        found_tiers = [name.removeprefix("device.skerry.dev/") for name in found]
        assert set(found_tiers[:2]) == {"till-3", "till-4"}
        assert sorted(found_tiers) == sorted(names)
    else:
        assert [name.removeprefix("device.skerry.dev/") for name in found] == names


def test_what_selects_nothing_or_cannot_be_read(shop: Kubectl) -> None:
    assert "No resources found" in shop("get", "devices", "-l", "tier=none").stderr
    assert "NotFound" in shop("get", "device", "nobody", fails=True).stderr
    assert shop("get", "device", "nobody", "--ignore-not-found").stdout == ""
    wrong = shop("get", "devices", "--field-selector", "spec.cordoned=true", fails=True).stderr
    assert "BadRequest" in wrong
    assert "metadata.name" in wrong, "it says what can be selected by"
    assert "doesn't have a resource type" in shop("get", "tills", fails=True).stderr


def test_several_kinds_names_categories_and_namespaces(shop: Kubectl) -> None:
    shop("create", "-f", "-", text=text_of(deployment("several")))
    both = shop("get", "dev,md", "-o", "name").stdout.split()
    assert both[-1] == "modeldeployment.skerry.dev/several"
    assert "modeldeployment.skerry.dev/several" in shop("get", "skerry", "-o", "name").stdout
    assert shop("get", "dev/till-1", "md/several", "-o", "name").stdout.count("\n") == 2
    everywhere = shop("get", "devices", "-A", "--no-headers").stdout.splitlines()
    assert ["shop", "till-1"] in [row.split()[:2] for row in everywhere]
    assert "shop" in shop("get", "ns", "-o", "name").stdout
    shop("delete", "md", "several")


def test_described(shop: Kubectl) -> None:
    said = shop("describe", "devices", "-l", "tier=core").stdout
    assert said.count("Name:         till-") == 2
    assert "Cordoned:  true" in said


def test_raw_paths(shop: Kubectl) -> None:
    listed = json.loads(shop("get", "--raw", f"{GROUP}/namespaces/shop/devices?limit=2").stdout)
    assert len(listed["items"]) == 2
    assert listed["metadata"]["remainingItemCount"] == 3
    assert shop("get", "--raw", "/healthz").stdout == "ok"
    assert json.loads(shop("get", "--raw", "/version").stdout)["major"] == "1"
    assert "NotFound" in shop("get", "--raw", f"{GROUP}/nothing", fails=True).stderr


def test_explained_to_the_last_field(shop: Kubectl) -> None:
    assert "memoryBytes" in shop("explain", "device.status.hardware", "--recursive").stdout
    assert "wave" in shop("explain", "md.spec.strategy.waves").stdout.lower()
    assert shop("explain", "device.status.nothing", fails=True).stderr.startswith("error: field")


@contextmanager
def following(hub: HubProgram, namespace: str, *arguments: str) -> Iterator[Iterator[str]]:
    """kubectl that goes on, line by line."""
    assert KUBECTL is not None
    command = [KUBECTL, "-n", namespace, *arguments]
    with subprocess.Popen(command, env=hub.environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield iter(process.stdout.readline, "")
        finally:
            process.kill()


def test_watched(hub: HubProgram, namespace: str, kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", text=text_of(device("a", tier="edge")))
    with following(hub, namespace, "get", "devices", "-w", "-l", "tier=edge", "-o", "name") as lines:
        assert next(lines) == "device.skerry.dev/a\n"
        kubectl("create", "-f", "-", text=text_of(device("b", tier="core"), device("c", tier="edge")))
        assert next(lines) == "device.skerry.dev/c\n", "b is not selected"


def test_watched_with_the_kinds_of_events(hub: HubProgram, namespace: str, kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", text=text_of(device("a")))
    arguments = (
        "get",
        "devices",
        "--watch",
        "--output-watch-events",
        "-o",
        "jsonpath={.type} {.object.metadata.name}\n",
    )
    with following(hub, namespace, *arguments) as lines:
        assert next(lines) == "ADDED a\n"
        kubectl("label", "device", "a", "tier=edge")
        assert next(lines) == "MODIFIED a\n"
        kubectl("delete", "device", "a")
        assert next(lines) == "DELETED a\n"


def test_watched_without_what_is_there(hub: HubProgram, namespace: str, kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", text=text_of(device("a"), device("b")))
    seen = threading.Event()

    def change() -> None:
        """Nothing says that the watch has begun, so b is changed until it shows."""
        number = 0
        while not seen.is_set():
            number += 1
            kubectl("label", "--overwrite", "device", "b", f"number={number}")

    with following(hub, namespace, "get", "devices", "--watch-only") as lines:
        changing = threading.Thread(target=change)
        changing.start()
        try:
            header, row = next(lines), next(lines)
        finally:
            seen.set()
            changing.join()
    assert header.startswith("NAME")
    assert row.split()[0] == "b", "a was there before"
