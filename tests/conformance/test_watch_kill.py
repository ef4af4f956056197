"""Two watchers through `kill -9`, one from a revision, one from a streamed list; neither misses nor repeats anything.

What they saw is judged by what writers were told (every acknowledged write is there), by order (revisions only rise),
and by replaying it into a plain dictionary that must end as the hub's own list.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conformance.objects import device
from tests.conformance.program import GROUP, HubProgram, until

WHERE = f"{GROUP}/namespaces/default/devices"
MERGE = {"content-type": "application/merge-patch+json"}
LAST = "the-last"
WRITERS = 3
EACH = 60
KILLS = 2


class Worker(threading.Thread):
    """A thread whose failure the test sees."""

    failure: BaseException | None = None


class Watcher(Worker):
    """Reads events, and goes on from the last revision it was told whenever the connection ends."""

    def __init__(self, hub: HubProgram, revision: str) -> None:
        super().__init__()
        self.hub, self.revision, self.begins = hub, revision, revision
        self.events: list[tuple[str, str, int]] = []
        self.connections = 0

    def run(self) -> None:
        try:
            with self.hub.client() as client:
                while not self._read(client):
                    pass
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.failure = error

    def _read(self, client: httpx.Client) -> bool:
        parameters = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": self.revision}
        if not self.revision:
            self.events.clear()  # a list that broke off begins anew
            parameters |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        with suppress(httpx.TransportError), client.stream("GET", WHERE, params=parameters) as answer:
            self.connections += 1
            for line in answer.iter_lines():
                if self._take(json.loads(line)):
                    return True
        return False

    def _take(self, event: dict[str, Any]) -> bool:
        kind, metadata = event["type"], event["object"]["metadata"]
        assert kind in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"), event
        if kind != "BOOKMARK":
            self.events.append((kind, metadata["name"], int(metadata["resourceVersion"])))
        if kind == "BOOKMARK" and metadata.get("annotations"):
            assert not self.begins, "initial events end once"
            self.begins = metadata["resourceVersion"]
        if kind == "BOOKMARK" or self.begins:  # revisions of a streamed list count once it is whole
            self.revision = metadata["resourceVersion"]
        elif not self.begins:
            assert kind == "ADDED"
        return metadata.get("name") == LAST


class Writer(Worker):
    """Makes, changes and removes devices of its own; keeps the revisions of what it was told is written."""

    def __init__(self, hub: HubProgram, number: int) -> None:
        super().__init__()
        self.hub, self.number = hub, number
        self.random = random.Random(number)
        self.acknowledged: list[int] = []
        self.done = 0

    def run(self) -> None:
        try:
            with self.hub.client() as client:
                for step in range(EACH):
                    self._write(client, step)
                    self.done = step + 1
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.failure = error

    def _write(self, client: httpx.Client, step: int) -> None:
        name = f"w{self.number}-{self.random.randrange(4)}"
        verb = self.random.choice(["put", "put", "change", "remove"])
        while True:
            try:
                if verb == "put":
                    answer = client.post(WHERE, json=device(name, step=str(step)))
                elif verb == "change":
                    change = {"metadata": {"labels": {"step": str(step)}}}
                    answer = client.patch(f"{WHERE}/{name}", json=change, headers=MERGE)
                else:
                    answer = client.delete(f"{WHERE}/{name}")
            except httpx.TransportError:
                continue  # the hub is down; whether that was written is not known, so it is done again
            assert answer.status_code in (200, 201, 404, 409), answer.text
            if answer.is_success and verb != "remove":
                self.acknowledged.append(int(answer.json()["metadata"]["resourceVersion"]))
            return


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProgram]:
    program = HubProgram(tmp_path)
    program.start()
    try:
        yield program
    finally:
        program.kill()


def test_nothing_is_missed_and_nothing_comes_twice(hub: HubProgram) -> None:
    with hub.client() as client:
        for name in ("old-1", "old-2"):
            assert client.post(WHERE, json=device(name)).status_code == 201
        start = client.get(WHERE).json()["metadata"]["resourceVersion"]
        watchers = [Watcher(hub, start), Watcher(hub, "")]
        writers = [Writer(hub, number) for number in range(WRITERS)]
        for thread in (*watchers, *writers):
            thread.start()
        for kill in range(1, KILLS + 1):
            until(partial(_written, writers, EACH * kill // (KILLS + 1)), "writing")
            hub.kill()
            hub.start()
        for writer in writers:
            writer.join(60)
        assert client.post(WHERE, json=device(LAST)).status_code == 201
        for watcher in watchers:
            watcher.join(60)
        workers: list[Worker] = [*watchers, *writers]
        assert [worker.failure for worker in workers] == [None] * (2 + WRITERS)
        found = {
            item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in client.get(WHERE).json()["items"]
        }
    for watcher in watchers:
        assert watcher.connections > KILLS
        later = [event for event in watcher.events if event[2] > int(watcher.begins)]
        revisions = [revision for *_, revision in later]
        assert revisions == sorted(set(revisions)), "no event twice, none out of order"
        acknowledged = {revision for writer in writers for revision in writer.acknowledged}
        assert {revision for revision in acknowledged if revision > int(watcher.begins)} <= set(revisions)
        before = {"old-1", "old-2"} if watcher is watchers[0] else set()
        assert _replayed(watcher.events, before).keys() == found.keys() - before
    assert watchers[0].events == [event for event in watchers[0].events if event[2] > int(start)]
    shared = max(int(watcher.begins) for watcher in watchers)
    one, other = ([event for event in watcher.events if event[2] > shared] for watcher in watchers)
    assert one == other, "both saw the same history"


def _written(writers: list[Writer], share: int) -> bool:
    return all(writer.done >= share or writer.failure is not None for writer in writers)


def _replayed(events: list[tuple[str, str, int]], unseen: set[str]) -> dict[str, int]:
    """Return what there is after these events. Raises AssertionError for one that cannot follow on those before it."""
    state: dict[str, int] = {}
    for kind, name, revision in events:
        assert (name in state) == (kind != "ADDED") or name in unseen, (kind, name, revision)
        if kind == "DELETED":
            state.pop(name, None)
        else:
            state[name] = revision
    return state
