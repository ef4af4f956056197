"""The demo's story: train, optimise, push, roll out, break, recover. Also the end-to-end test.

Every step checks what it shows and raises when it does not hold. Lives here: the order of things and the checks.
Must not live here: how programs are started (`programs`) or how figures are printed (`report`).
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from skerry.api.errors import SkerryError
from skerry.api.kinds.device import Device
from skerry.cli import output
from skerry.cli.demo import report as reports
from skerry.cli.demo.programs import SKERRY, Programs, run, wait_until
from skerry.cli.demo.proxy import uplink
from skerry.cli.demo.stage import (
    DEPLOYMENT,
    PATIENCE,
    Stage,
    apply,
    chapter,
    check,
    newest_rollout,
    read_card,
    running,
    workload,
)
from skerry.cli.demo.update import update
from skerry.cli.example import copy_out
from skerry.core.journal import State
from skerry.drivers.client.api import HubClient

TEST_IMAGES = 100
INSTALLING = ("Fetching", "Verified", "Installed", "Starting", "Probing")


@dataclass(frozen=True)
class HardwareClass:
    """Devices of one kind, declared through the agent's settings."""

    name: str
    engine: str = "onnxruntime"
    """The only one its devices have."""
    precisions: tuple[str, ...] = ()
    """What its engine runs; empty means everything."""
    tight: bool = False
    """Gives workloads more memory than the fp32 variant needs, and less than the fp16 one does."""


CLASSES = (
    HardwareClass("gateway"),  # all ONNX variants run: the fastest is chosen
    HardwareClass("camera", precisions=("fp32", "fp16"), tight=True),  # two run, one fits
    HardwareClass("kiosk", engine="litert"),  # another engine: TensorFlow Lite
)
VARIANTS = "fp32,fp16,int8,tflite-int8"
FLEET = tuple((f"{kind.name}-{number}", kind) for number in (1, 2) for kind in CLASSES)


def tell(directory: Path, *, keep: bool) -> reports.Report:
    """Tell the whole story in `directory`. Raises a SkerryError when something it claims does not hold."""
    began = time.monotonic()
    with ExitStack() as exits:
        stage = Stage(directory, exits.enter_context(Programs(directory)), exits)
        with chapter(
            "1. Four versions are trained: v1, v1.1 tuned further from it, v2 on shuffled labels, v3 by another seed"
        ):
            train(stage)
        with chapter("2. Each becomes variants, evaluated on the test set and profiled"):
            optimize(stage)
        with chapter("3. A hub starts, and six devices of three classes enrol"):
            start_fleet(stage)
        with chapter("4. v1 is pushed, applied, and rolled out in gated waves"):
            roll_out(stage)
        with chapter(f"5. {TEST_IMAGES} real test images are sent to every device"):
            measure_devices(stage)
        with chapter("6. v1.1 is applied: devices fetch what changed, and make it from what they have"):
            update(stage, {name: kind.name for name, kind in FLEET})
        with chapter("7. v2 is applied: the canary's gate fails on the device, and v1.1 comes back"):
            bad_version(stage)
        with chapter("8. v3 is applied; one agent is killed in mid-install, another loses its hub"):
            faults(stage)
        stage.report.total_seconds = time.monotonic() - began
        (directory / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(stage.report)))
        output.out.print()
        reports.print_summary(stage.report)
        if keep:
            wait_for_interrupt(stage)
    return stage.report


# --- the factory --------------------------------------------------------------------------------------------------


def train(stage: Stage) -> None:
    """Train the versions, two at a time; v1.1 goes on from v1."""
    copy_out("digits", stage.directory / "digits")
    variations = {
        "v1": ["--seed", "0"],
        "v2": ["--seed", "0", "--shuffle-labels"],
        "v3": ["--seed", "1"],
        "v1.1": ["--seed", "0", "--tune", str(stage.directory / "v1" / "weights.pt"), "--epochs", "3"],
    }

    def one(version: str) -> str:
        script = str(stage.directory / "digits" / "train.py")
        command = [sys.executable, script, "--out", str(stage.directory / version), *variations[version]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        check(done.returncode == 0, f"training of {version}: {done.stderr.strip()[-300:]}")
        return f"{version}: {done.stdout.strip().splitlines()[-1]}"

    with ThreadPoolExecutor(2) as pool:
        for line in [*pool.map(one, ("v1", "v2", "v3")), one("v1.1")]:
            output.out.print(f"  {line}", markup=False)


def optimize(stage: Stage) -> None:
    """Make the packages; v1's table is shown, the others' are made in silence beside it."""

    def one(version: str) -> None:
        trained = stage.directory / version
        run(
            [
                *("model", "optimize", "--torch", f"{stage.directory}/digits/model.py:build_model"),
                *("--weights", f"{trained}/weights.pt", "--data", f"{trained}/data.npz", "--name", "digits"),
                *("--model-version", version, "--variants", VARIANTS),
                *("--out", f"{stage.directory}/packages/{version}"),
            ],
            {},
            show=version == "v1",
        )

    (stage.directory / "packages").mkdir()
    for version in ("v1", "v1.1", "v2", "v3"):
        one(version)
    card = read_card(stage, "v1")
    assert card.evaluation is not None
    check(card.evaluation.baseline >= 0.97, f"v1's test accuracy {card.evaluation.baseline:.4f} is at least 0.97")
    stage.report.baseline_accuracy = card.evaluation.baseline
    stage.report.variants = [msgspec.to_builtins(p.variant) for p in card.variants]
    stage.report.rejected = [msgspec.to_builtins(r) for r in card.rejected]


# --- the fleet ----------------------------------------------------------------------------------------------------


def start_fleet(stage: Stage) -> None:
    """Start the hub, then six agents; two of each class, one of them behind a line that can be cut."""
    hub = stage.directory / "hub"
    stage.programs.start("hub", ["hub", "start", "--state-dir", str(hub), "--api-port", "0", "--mqtt-port", "0"])
    stage.skerry("hub", "wait", "--state-dir", str(hub), show=False)
    url = stage.skerry("hub", "url", "--state-dir", str(hub), show=False).strip()
    token = stage.skerry("hub", "token", "create", "--ttl", "1h", "--uses", "6", "--label", "site=lab").strip()
    ports = msgspec.json.decode((hub / "hub.json").read_bytes())
    stage.uplinks["kiosk-2"] = stage.exits.enter_context(uplink(ports["mqttPort"], ports["apiPort"]))

    def enroll(device: tuple[str, HardwareClass]) -> None:
        name, kind = device
        state = stage.directory / "devices" / name
        state.mkdir(parents=True)
        (state / "agent.toml").write_text(settings(stage, name, kind))
        run(
            ["agent", "enroll", "--hub", url, "--token", token, "--name", name, "--state-dir", str(state)],
            {},
            show=False,
        )
        start_agent(stage, name)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(enroll, FLEET))
    with stage.client() as client:
        wait_until(
            lambda: [d.status.phase for d in client.list(Device)] == ["Online"] * len(FLEET),
            "six devices online",
            seconds=PATIENCE,
        )
    stage.skerry("get", "devices", "-o", "wide")


def settings(stage: Stage, name: str, kind: HardwareClass) -> str:
    """Return a device's agent.toml: its class's memory and engine, and its line to the hub if that can be cut."""
    needs = {p.variant.name: p.variant.needs.memory_bytes for p in read_card(stage, "v1").variants}
    memory = (needs["onnx-fp32"] + needs["onnx-fp16"]) // 2 if kind.tight else 1024**3
    lines = ["[hardware]", f'memory = "{memory // 1024}Ki"', "", "[[engines]]", f'name = "{kind.engine}"']
    if kind.precisions:
        lines.append(f"precisions = {list(kind.precisions)}")
    if name in stage.uplinks:
        mqtt, api = stage.uplinks[name].ports
        lines += ["", "[hub]", f'url = "https://127.0.0.1:{api}"', 'mqtt_host = "127.0.0.1"', f"mqtt_port = {mqtt}"]
    # Servers outlive their agent so that an update of the agent leaves no gap; here the demo's end is their end too.
    lines += ["", "[servers]", "stop_on_exit = true", "", "[link]", 'retry_ceiling = "2s"']
    return "\n".join(lines) + "\n"


def start_agent(stage: Stage, name: str) -> None:
    """Start one device's agent."""
    stage.programs.start(name, ["agent", "run", "--state-dir", str(stage.directory / "devices" / name)])


# --- the good version ---------------------------------------------------------------------------------------------


def roll_out(stage: Stage) -> None:
    """Push and apply v1, and follow the rollout to its end."""
    stage.skerry("model", "push", str(stage.directory / "packages" / "v1"))
    applied = apply(stage, "v1")
    stage.skerry("rollout", "status", f"deployment/{DEPLOYMENT}", "--watch")
    stage.report.rollout_seconds = time.monotonic() - applied
    with stage.client() as client:
        rollout = newest_rollout(client)
        check(rollout.status.phase == "Succeeded", f"the rollout of v1 succeeded ({rollout.status.message})")
        devices = client.list(Device)
    stage.report.waves = [msgspec.to_builtins(wave) for wave in rollout.status.waves]
    check(all(running(d) == "digits-v1" for d in devices), "every device runs digits-v1")
    variants = {d.metadata.name.rsplit("-", 1)[0]: workload(d).variant for d in devices}
    check(len(set(variants.values())) == len(CLASSES), f"each class got a variant of its own: {variants}")
    stage.skerry("get", "devices")
    for name in ("camera-1", "kiosk-1"):
        stage.skerry("explain", f"deployment/{DEPLOYMENT}", f"device/{name}")


def measure_devices(stage: Stage) -> None:
    """Ask every device about real test images through the hub, and compare with the true labels."""
    import numpy as np  # noqa: PLC0415 - an extra

    with np.load(stage.directory / "v1" / "data.npz") as data:
        images, labels = data["test_x"][:TEST_IMAGES], data["test_y"][:TEST_IMAGES]
    spec = read_card(stage, "v1").signature.inputs[0]
    request = {
        "inputs": [
            {"name": spec.name, "datatype": spec.datatype, "shape": list(images.shape), "data": images.ravel().tolist()}
        ]
    }
    with stage.client() as client:
        for name, kind in FLEET:
            answer = client.infer(name, DEPLOYMENT, request)
            scores = np.asarray(answer["outputs"][0]["data"]).reshape(answer["outputs"][0]["shape"])
            right = int((scores.argmax(axis=1) == labels).sum())
            status = workload(client.get(Device, name))
            measured = status.measurement
            check(measured is not None and measured.accuracy is not None, f"{name} measured its accuracy")
            assert measured is not None
            assert measured.accuracy is not None
            stage.report.devices.append(
                reports.DeviceResult(
                    name=name,
                    hardware_class=kind.name,
                    engine=kind.engine,
                    variant=status.variant,
                    golden_accuracy=measured.accuracy,
                    test_accuracy=right / len(labels),
                    test_images=len(labels),
                    latency_p95_ms=measured.latency_p95_ms,
                    peak_memory_bytes=measured.peak_memory_bytes,
                    fetched_bytes=status.fetched_bytes,
                    install_seconds=status.install_seconds or 0.0,
                )
            )
            check(right / len(labels) >= 0.95, f"{name} answers at least 95 of 100 test images right ({right})")
    reports.print_devices(stage.report)
    np.save(stage.directory / "sample.npy", images[:1])
    stage.skerry(
        "predict", "device/camera-1", f"deployment/{DEPLOYMENT}", "--input", str(stage.directory / "sample.npy")
    )
    output.out.print(f"  (the true label is {labels[0]})")


# --- the bad version ----------------------------------------------------------------------------------------------


def bad_version(stage: Stage) -> None:
    """Apply v2 and show that its canary's gate stops it and that nobody else was touched."""
    with stage.client() as client:
        before = {d.metadata.name: workload(d).running for d in client.list(Device)}
        stage.skerry("model", "push", str(stage.directory / "packages" / "v2"))
        applied = apply(stage, "v2")
        try:
            stage.skerry("rollout", "status", f"deployment/{DEPLOYMENT}", "--watch")
            failed = False
        except SkerryError as error:
            output.out.print(f"  error: {error.cause}", markup=False)
            failed = True
        restored = time.monotonic() - applied
        check(failed, "`skerry rollout status` ends with an error when a rollout was rolled back")
        rollout, devices = newest_rollout(client), client.list(Device)
    stage.skerry("get", "rollouts")
    touched = [d.metadata.name for d in devices if workload(d).running != before[d.metadata.name]]
    gates = [gate for wave in rollout.status.waves for gate in wave.gates if gate.verdict == "Failed"]
    check(rollout.status.phase == "RolledBack", f"the rollout of v2 was rolled back ({rollout.status.phase})")
    check([g.gate for g in gates] == ["accuracy"], f"the accuracy gate stopped it ({[g.gate for g in gates]})")
    check(all(running(d) == "digits-v1.1" for d in devices), "every device runs digits-v1.1 again")
    check(len(touched) == 1, f"only the canary was touched ({touched})")
    stage.report.bad_version = reports.BadVersion(
        outcome=rollout.status.phase,
        message=rollout.status.message,
        gate=gates[0].gate,
        measured=gates[0].measured if gates[0].measured is not None else float("nan"),
        threshold=gates[0].threshold,
        devices_touched=touched,
        seconds_to_restore=restored,
    )


# --- faults -------------------------------------------------------------------------------------------------------


def faults(stage: Stage) -> None:
    """Kill one agent while it installs v3 and cut another's line; both must end on v3."""
    stage.skerry("model", "push", str(stage.directory / "packages" / "v3"))
    victim, cut_off = "gateway-2", "kiosk-2"
    stage.uplinks[cut_off].cut()
    with stage.client() as client:
        wait_until(
            lambda: client.get(Device, cut_off).status.phase == "Offline", f"{cut_off} offline", seconds=PATIENCE
        )
        output.out.print(f"  {cut_off}'s hub is unreachable")
        apply(stage, "v3")
        state = kill_installing(stage, victim)
        output.out.print(f"  {victim}'s agent was killed with SIGKILL while {state}")
        start_agent(stage, victim)
        seconds = wait_until(
            lambda: running(client.get(Device, victim)) == "digits-v3", f"{victim} on v3", seconds=PATIENCE
        )
        add_fault(stage, client, victim, "agent killed", state, seconds)
        others = [name for name, _ in FLEET if name != cut_off]
        wait_until(
            lambda: all(running(d) == "digits-v3" for d in client.list(Device) if d.metadata.name in others),
            "everybody who is connected on v3",
            seconds=PATIENCE,
        )
        check(running(client.get(Device, cut_off)) == "digits-v1.1", f"{cut_off} still serves v1.1 while it is cut off")
        stage.uplinks[cut_off].mend()
        seconds = wait_until(
            lambda: running(client.get(Device, cut_off)) == "digits-v3", f"{cut_off} on v3", seconds=PATIENCE
        )
        add_fault(stage, client, cut_off, "hub unreachable", "Running v1.1", seconds)
    stage.skerry("rollout", "status", f"deployment/{DEPLOYMENT}", "--watch")
    stage.skerry("get", "devices")
    with stage.client() as client:
        for fault in stage.report.faults:
            fault.runs = running(client.get(Device, fault.device))


def add_fault(stage: Stage, client: HubClient, device: str, fault: str, state: str, seconds: float) -> None:
    """Note a fault and what the device serves after it."""
    runs = running(client.get(Device, device))
    stage.report.faults.append(
        reports.Fault(device=device, fault=fault, state_at_fault=state, runs=runs, seconds=seconds)
    )


def kill_installing(stage: Stage, name: str) -> str:
    """Kill an agent while it installs v3, and return where it had got to, as the journal on its disk says."""

    def installing() -> bool:
        state = read_journal(stage, name)
        return state.phase in INSTALLING and state.desired is not None and state.desired.model_version == "digits-v3"

    wait_until(installing, f"{name} installing v3", seconds=PATIENCE, every=0.002)
    stage.programs.kill(name)
    phase = read_journal(stage, name).phase
    check(phase in INSTALLING, f"{name}'s agent was killed in mid-install ({phase})")
    return phase


def read_journal(stage: Stage, name: str) -> State:
    """Return a device's journal of the demo's workload, which is replaced atomically and so can be read any time."""
    journal = stage.directory / "devices" / name / "workloads" / DEPLOYMENT / "journal.json"
    return msgspec.json.decode(journal.read_bytes(), type=State)


def wait_for_interrupt(stage: Stage) -> None:
    """Keep the fleet running until Ctrl-C, saying what can be tried."""
    output.out.print("\nThe fleet keeps running until Ctrl-C. In another terminal:")
    output.out.print(f"  export SKERRY_KUBECONFIG={stage.environment['SKERRY_KUBECONFIG']}", markup=False)
    for line in ("get devices -o wide", "describe rollout digits-4", "explain deployment/digits device/kiosk-1"):
        output.out.print(f"  {' '.join(SKERRY[:1])} -m skerry.cli {line}", markup=False)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        output.out.print("stopping")
