"""A freshly started hub for each module, and kubectl in a namespace of each test's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from tests.conformance.program import HubProgram, Kubectl


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProgram]:
    program = HubProgram(tmp_path_factory.mktemp("hub"))
    program.start()
    try:
        yield program
    finally:
        program.kill()


_numbers = itertools.count(1)


@pytest.fixture
def namespace() -> str:
    return f"conf-{next(_numbers)}"


@pytest.fixture
def kubectl(hub: HubProgram, namespace: str) -> Kubectl:
    return hub.kubectl(namespace)
