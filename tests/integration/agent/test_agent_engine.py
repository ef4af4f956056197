"""The engine over real parts: servers, a registry over HTTP, a link; what the hub is told, what the device runs."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skerry.agent.settings import EngineSettings
from skerry.api.kinds.device import WorkloadStatus
from skerry.api.quantity import human_bytes
from skerry.core.messages import Reported


def predict(port: int, row: list[float]) -> dict[str, Any]:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": row}]}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/digits/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())  # type: ignore[no-any-return]


def port_of(status: WorkloadStatus) -> int:
    assert status.running is not None
    return status.running.port


async def test_installs_measures_and_serves(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        status = await world.hub.running("digits-v1")
        assert status.measurement is not None
        assert (status.measurement.samples, status.measurement.accuracy, status.measurement.agreement) == (20, 1.0, 1.0)
        assert status.measurement.max_abs_error < 1e-4
        assert 0 < status.measurement.latency_p50_ms <= status.measurement.latency_p95_ms
        assert status.measurement.peak_memory_bytes > 1024**2
        assert status.fetched_bytes == len(models["v1"].model) + len(models["v1"].golden)
        assert status.install_seconds is not None
        assert status.install_seconds > 0
        answer = await asyncio.to_thread(predict, port_of(status), [1, 0, 0, 0])
        assert answer["model_version"] == "v1"
    first = world.hub.reports[0]
    assert first.facts is not None
    assert first.facts.hardware.cores > 0
    assert [r.seq for r in world.hub.reports] == sorted({r.seq for r in world.hub.reports})
    assert world.hub.reports[-1].observed_manifest_version == 1


async def test_updates_without_a_gap_and_reports_the_accuracy_it_found(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        old = port_of(await world.hub.running("digits-v1"))
        gaps: list[str] = []
        done = asyncio.Event()

        async def use() -> None:
            """A local application: it asks where the workload serves, and asks there."""
            while not done.is_set():
                last = [w for r in world.hub.reports[-1:] for w in r.workloads if w.running is not None]
                if not last:
                    gaps.append(str(world.hub.reports[-1]))
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(use())
            await world.hub.want(models["v2"].desired())
            status = await world.hub.running("digits-v2")
            done.set()
        assert gaps == []
        assert status.measurement is not None
        assert (status.measurement.accuracy, status.measurement.agreement) == (0.75, 1.0)
        answer = await asyncio.to_thread(predict, port_of(status), [1, 0, 0, 0])
        assert answer["model_version"] == "v2"
        await world.until_servers(1)
        # The hub's gate does not like it and assigns the first one again: nothing is fetched twice.
        await world.hub.want(models["v1"].desired())
        back = await world.hub.running("digits-v1")
        assert back.fetched_bytes == 0
        assert port_of(status) == port_of(back) == old, "applications find it where it was"
    phases = [w.phase for r in world.hub.reports for w in r.workloads]
    assert "Fetching" in phases


@pytest.mark.parametrize(
    ("bad", "phase", "words"),
    [
        ("no-model", "Starting", "the inference server failed"),
        ("wrong-golden", "Probing", 'the probe failed for "golden samples": "output.scores" is FP32 [7]'),
    ],
)
async def test_what_does_not_work_is_not_taken(world: Any, models: Any, bad: str, phase: str, words: str) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        before = port_of(await world.hub.running("digits-v1"))
        await world.hub.want(models[bad].desired(rollout="bad"))
        status = await world.hub.status(lambda one: one.rollout == "bad" and one.phase == "Running")
        assert status.message.startswith(f"While {phase}, ")
        assert words in status.message
        assert status.running is not None
        assert (status.running.rollout, status.running.port) == ("digits-v1", before)
        assert (await asyncio.to_thread(predict, before, [1, 0, 0, 0]))["model_version"] == "v1"
        await world.until_servers(1)


async def test_a_first_install_that_fails_is_failed(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["no-model"].desired())
        status = await world.hub.status(lambda one: one.phase == "Failed")
        assert status.running is None
        await world.until_servers(0)


async def test_a_wrong_digest_never_reaches_the_engine(world: Any, models: Any) -> None:
    digest = models["v2"].desired().blob.digest
    world.registry.lies[digest] = bytes(len(models["v2"].model))
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        await world.hub.want(models["v2"].desired())
        status = await world.hub.status(lambda one: one.rollout == "digits-v2" and one.phase == "Running")
        assert digest in status.message
        assert status.running is not None
        assert status.running.rollout == "digits-v1"
    assert not list(world.directory.rglob(digest.removeprefix("sha256:") + "*"))


async def test_missing_content_is_final_and_a_registry_away_is_waited_for(world: Any, models: Any) -> None:
    async with world.agent():
        world.registry.down = True
        await world.hub.want(models["v1"].desired())
        waiting = await world.hub.status(lambda one: "trying again" in one.message)
        assert waiting.phase == "Fetching"
        assert "503" in waiting.message
        world.registry.down = False
        await world.hub.running("digits-v1")
        missing = msgspec.structs.replace(
            models["v2"].desired(),
            blob=msgspec.structs.replace(models["v2"].desired().blob, digest="sha256:" + "0" * 64),
        )
        await world.hub.want(missing)
        status = await world.hub.status(lambda one: one.rollout == "digits-v2" and one.phase == "Running")
        assert status.message.startswith('While Fetching, the registry failed for "sha256:000')


async def test_a_full_disk_is_a_sentence_and_the_old_version_stays(world: Any, models: Any) -> None:
    world.disk._limit = 6 * 1024
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        big = msgspec.structs.replace(
            models["v2"].desired(), blob=msgspec.structs.replace(models["v2"].desired().blob, size=100_000)
        )
        await world.hub.want(big)
        status = await world.hub.status(lambda one: one.rollout == "digits-v2" and one.phase == "Running")
        assert f"{human_bytes(100_000 + big.golden.size)} do not fit: " in status.message, "model and golden samples"
        assert "there was nothing left to remove" in status.message
        assert "of the limit of 6.0 KiB are in use" in status.message
        assert status.running is not None
        assert status.running.rollout == "digits-v1"


async def test_an_engine_that_is_not_there_is_said_before_anything_is_fetched(world: Any, models: Any) -> None:
    desired = models["v1"].desired()
    other = msgspec.structs.replace(desired, needs=msgspec.structs.replace(desired.needs, engine="litert"))
    world.settings = msgspec.structs.replace(world.settings, engines=[EngineSettings(name="onnxruntime")])
    async with world.agent():
        await world.hub.want(other)
        status = await world.hub.status(lambda one: one.phase == "Failed")
        assert "the engine litert is not on this device" in status.message
    assert world.registry.requests == []


async def test_removal_leaves_nothing(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired(), models["v2"].desired(name="other"))
        await world.hub.running("digits-v1")
        await world.hub.running("other-v2", "other")
        await world.hub.want()
        await world.hub.until(lambda: world.hub.reports[-1].workloads == [])
    assert world.disk.workloads() == []
    assert await world.instances() == []
    assert list((world.directory / "blobs/sha256").iterdir()) == []


async def test_older_and_tampered_states_are_refused_and_change_nothing(world: Any, models: Any) -> None:
    hub = world.hub
    async with world.agent():
        await hub.publish(hub.sign(models["v1"].desired(), version=5))
        await hub.running("digits-v1")
        await hub.publish(hub.sign(models["v2"].desired(), version=4))
        await hub.until(lambda: "version 4 is older than 5" in hub.reports[-1].refused)
        await hub.publish(hub.sign(models["v2"].desired(), version=9, key=Ed25519PrivateKey.generate()))
        await hub.until(lambda: "not signed by a key this device trusts" in hub.reports[-1].refused)
        last: Reported = hub.reports[-1]
        assert last.observed_manifest_version == 5
        assert [w.rollout for w in last.workloads] == ["digits-v1"]
        await hub.publish(hub.sign(models["v2"].desired(), version=6))
        await hub.running("digits-v2")
        assert hub.reports[-1].refused == ""
    async with world.agent():  # the version is remembered beyond the agent's life
        await hub.publish(hub.sign(models["v1"].desired(), version=5))
        await hub.until(lambda: "version 5 is older than 6" in hub.reports[-1].refused)


async def test_a_dead_server_is_started_again_and_counted(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        port = port_of(await world.hub.running("digits-v1"))
        await world.kill_server()
        status = await world.hub.status(lambda one: one.restarts == 1 and one.phase == "Running")
        assert port_of(status) == port, "local applications find it where it was"
        assert any("signal" in w.message.lower() or "kill" in w.message.lower() for w in all_statuses(world))


def all_statuses(world: Any) -> list[WorkloadStatus]:
    return [one for report in world.hub.reports for one in report.workloads]


async def test_a_wish_that_comes_while_another_is_fetched_replaces_it(world: Any, models: Any) -> None:
    world.registry.hold.clear()
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        assert await asyncio.to_thread(world.registry.holding.wait, 20)
        await world.hub.want(models["v2"].desired())
        await world.hub.status(lambda one: one.rollout == "digits-v2")
        world.registry.hold.set()
        await world.hub.running("digits-v2")
        await world.until_servers(1)
    assert not any(one.running is not None and one.running.rollout == "digits-v1" for one in all_statuses(world))


async def test_servers_outlive_the_agent_and_are_adopted_without_a_hub(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        port = port_of(await world.hub.running("digits-v1"))
    before = await world.instances()
    assert (await asyncio.to_thread(predict, port, [1, 0, 0, 0]))["model_version"] == "v1"
    world.hub.carrier.down = True
    count = len(world.hub.reports)
    async with world.agent() as engine:
        await world.until_phase(engine, "Running")
        assert await world.instances() == before, "adopted, not restarted"
        world.hub.carrier.down = False
        status = await world.hub.status(lambda one: len(world.hub.reports) > count and one.phase == "Running")
        assert port_of(status) == port
    assert world.hub.reports[count].workloads[0].phase == "Running", "the first report already knows"


async def test_servers_nobody_wants_are_stopped(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
    (world.directory / "desired.json").unlink()
    world.disk.delete_workload("digits")
    assert len(await world.instances()) == 1
    async with world.agent():
        await world.until_servers(0)


async def test_odd_entries_among_the_workloads_stop_nothing(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
    workloads = world.directory / "workloads"
    (workloads / ".DS_Store").write_text("x")
    (workloads / "lost+found").mkdir()
    (workloads / "odd" / "journal.json").mkdir(parents=True)
    (workloads / "odd" / "journal.damaged").touch()
    world.hub.carrier.down = True
    async with world.agent() as engine:
        await world.until_phase(engine, "Running")
    assert (workloads / "lost+found").is_dir(), "what is nobody's is let lie"


async def test_damaged_files_are_fetched_again(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        [model] = world.directory.glob("workloads/digits/slots/*/model.onnx")
        raw = model.read_bytes()
        model.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        await world.kill_server()
        await world.hub.status(lambda one: one.phase == "Running" and len(world.registry.requests) == 3)
        [healed] = world.directory.glob("workloads/digits/slots/*/model.onnx")
        assert healed.read_bytes() == raw


async def test_damaged_without_a_network_the_previous_version_serves(world: Any, models: Any) -> None:
    async with world.agent():
        for version in ("v1", "v2"):
            await world.hub.want(models[version].desired())
            await world.hub.running(f"digits-{version}")
        await world.until_servers(1)
        [model] = [
            found
            for found in world.directory.glob("workloads/digits/slots/*/model.onnx")
            if found.read_bytes() == models["v2"].model
        ]
        model.write_bytes(model.read_bytes()[::-1])
        world.registry.down = True
        await world.kill_server()
        status = await world.hub.status(lambda one: one.running is not None and one.running.rollout == "digits-v1")
        assert (status.phase, status.rollout) == ("Fetching", "digits-v2")
        assert (await asyncio.to_thread(predict, port_of(status), [1, 0, 0, 0]))["model_version"] == "v1"
        world.registry.down = False
        healed = await world.hub.running("digits-v2")
        assert (await asyncio.to_thread(predict, port_of(healed), [1, 0, 0, 0]))["model_version"] == "v2"


async def test_a_fixed_port_is_kept_across_an_update(world: Any, models: Any, tmp_path: Path) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with world.agent():
        for version in ("v1", "v2"):
            await world.hub.want(models[version].desired(port=port))
            status = await world.hub.running(f"digits-{version}")
            assert port_of(status) == port
            assert (await asyncio.to_thread(predict, port, [1, 0, 0, 0]))["model_version"] == version


async def test_a_fixed_port_that_another_program_holds_replaces_nothing(world: Any, models: Any) -> None:
    import socket

    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        async with world.agent():
            await world.hub.want(models["v1"].desired())
            old = port_of(await world.hub.running("digits-v1"))
            await world.hub.want(models["v2"].desired(port=port))
            status = await world.hub.status(lambda one: one.rollout == "digits-v2" and one.phase == "Running")
            assert f'"127.0.0.1:{port}": port {port} is taken: Address already in use' in status.message
            assert port_of(status) == old
            assert (await asyncio.to_thread(predict, old, [1, 0, 0, 0]))["model_version"] == "v1"
    seen = [one for one in all_statuses(world) if one.rollout == "digits-v2"]
    assert all(one.running is not None and not one.served for one in seen)
    assert "RollingBack" in {one.phase for one in seen}


async def test_logs_and_inference_by_command(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.until(lambda: world.hub.reports)
        nowhere = await world.hub.ask("logs")
        assert "is not on this device" in nowhere.error
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 0, 0, 0]}]}
        answer = await world.hub.ask("infer", request=body)
        assert answer.error == ""
        assert answer.response["outputs"][0]["shape"] == [1, 3]
        wrong = await world.hub.ask("infer", request={"inputs": []})
        assert wrong.error
        logs = await world.hub.ask("logs", tail_lines=5)
        assert (logs.error, len(logs.text.splitlines()) <= 5) == ("", True)


async def test_a_connection_that_breaks_comes_back_and_tells_everything(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        count = len(world.hub.reports)
        world.hub.carrier.cut("d1")
        await world.hub.until(lambda: len(world.hub.reports) > count)
        again: Reported = world.hub.reports[count]
        assert again.facts is not None
        assert [w.phase for w in again.workloads] == ["Running"]
