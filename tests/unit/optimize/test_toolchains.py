"""Toolchains: where they are found, what a failed install leaves, and what their programs say when they fail."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from skerry.api.errors import (
    AlreadyExistsError,
    InvalidError,
    NotFoundError,
    SkerryError,
    TimedOutError,
    UnsupportedError,
)
from skerry.optimize import toolchains
from skerry.optimize.toolchains import __main__ as command
from skerry.optimize.toolchains import litert_torch_program

NAME = "litert-torch"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No toolchain is named or installed."""
    monkeypatch.delenv(toolchains.variable(NAME), raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_one_that_is_not_there_is_a_sentence_with_the_command() -> None:
    with pytest.raises(UnsupportedError) as caught:
        toolchains.find(NAME)
    assert caught.value.sentence == (
        "toolchain litert-torch: is not installed; run skerry model toolchain install litert-torch"
    )


def test_the_environment_names_an_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = program(tmp_path / "python", "exit 0")
    monkeypatch.setenv("SKERRY_TOOLCHAIN_LITERT_TORCH", str(python))
    assert toolchains.find(NAME) == python


def test_a_name_that_leads_nowhere_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SKERRY_TOOLCHAIN_LITERT_TORCH", str(tmp_path / "absent"))
    with pytest.raises(NotFoundError, match="SKERRY_TOOLCHAIN_LITERT_TORCH="):
        toolchains.find(NAME)


def test_an_installed_one_is_found_and_half_of_one_is_not() -> None:
    place = toolchains.default_place(toolchains.TOOLCHAINS[NAME])
    (place / "bin").mkdir(parents=True)
    with pytest.raises(UnsupportedError):
        toolchains.find(NAME)
    (place / "ready").touch()
    assert toolchains.find(NAME) == place / "bin" / "python"


def test_one_that_can_be_imported_here_needs_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "litert_torch.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert toolchains.find(NAME) == Path(sys.executable)


def test_an_install_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    said: list[str] = []
    place = tmp_path / "toolchain"
    with pytest.raises(InvalidError, match="No matching distribution"):
        toolchains.install(NAME, said.append, place=place)
    assert not place.exists()
    assert f"{toolchains.TOOLCHAINS[NAME].size_mb} MB" in said[0]


def test_a_directory_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(AlreadyExistsError):
        toolchains.install(NAME, lambda _line: None, place=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_installed_one_is_not_installed_again(tmp_path: Path) -> None:
    (tmp_path / "ready").touch()
    said: list[str] = []
    assert toolchains.install(NAME, said.append, place=tmp_path) == tmp_path / "bin" / "python"
    assert "already" in said[0]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "echo 'skerry-error: operator aten.foo.default: cannot be converted' >&2; exit 1",
            "operator aten.foo.default:",
        ),
        ("echo one >&2; echo 'ImportError: no module' >&2; exit 1", "toolchain litert-torch: ImportError: no module"),
        ("exit 7", "toolchain litert-torch: ended with code 7"),
        ("kill -9 $$", "killed by signal 9; too little memory?"),
    ],
)
def test_what_a_program_says_at_the_end_is_the_error(tmp_path: Path, script: str, expected: str) -> None:
    with pytest.raises(SkerryError) as caught:
        toolchains.run(NAME, program(tmp_path / "python", script), ["given", "made"])
    assert expected in caught.value.sentence


def test_a_program_that_hangs_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(TimedOutError):
        toolchains.run(NAME, program(tmp_path / "python", "exec sleep 600"), [], seconds=0.2)


def test_programs_get_none_of_our_modules_and_the_libraries_to_borrow(tmp_path: Path) -> None:
    said = tmp_path / "said"
    toolchains.run(NAME, program(tmp_path / "python", f'echo "$PYTHONPATH|$@" > {said}'), ["given", "made"])
    path, _, arguments = said.read_text().strip().partition("|")
    assert path == ""
    assert arguments.startswith("-P -I ")
    assert arguments.endswith("-- given made")
    assert "site-packages" in arguments


def test_the_command_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list"]) == 0
    assert "skerry model toolchain install litert-torch" in capsys.readouterr().out


def test_the_pins_name_one_version_each() -> None:
    pins = Path(toolchains.__file__).with_name("litert_torch.txt").read_text().splitlines()
    assert f"litert-torch=={toolchains.TOOLCHAINS[NAME].version}" in pins
    assert not any(line.startswith("torch==") for line in pins)
    assert all(line.startswith("#") or "==" in line for line in pins)


def test_the_program_needs_nothing_of_ours() -> None:
    text = Path(litert_torch_program.__file__).read_text()
    assert "skerry." not in text.split('"""')[2]


def test_a_program_does_not_outlive_what_started_it(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    interpreter = program(tmp_path / "python", f"echo $$ > {noted}.new; mv {noted}.new {noted}; exec sleep 600")
    code = (
        "import pathlib, sys; from skerry.optimize import toolchains; "
        f"toolchains.run({NAME!r}, pathlib.Path(sys.argv[1]), [])"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(interpreter)]) as process:
        try:
            _until(noted.is_file)
            child = psutil.Process(int(noted.read_text()))
        finally:
            process.kill()
    _, alive = psutil.wait_procs([child], timeout=10)
    for left in alive:
        left.kill()
    assert not alive


def _until(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)
