"""Debian's docker-registry (the CNCF distribution project), started for a test on a port of the system's choice."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER, PASSWORD = "ada", "correct horse"
_HASH = "$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2"  # bcrypt of that password
_CONFIG = """
version: 0.1
log: {{level: info}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: '{address}'}}
"""
_AUTH = "auth: {{htpasswd: {{realm: test, path: {path}}}}}\n"

needs_docker_registry = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="docker-registry is not installed"
)


@contextmanager
def serving(directory: Path, *, login: bool = False, address: str = "127.0.0.1:0") -> Iterator[str]:
    """Run one that keeps its content in a directory; gives `host:port`. With `login` it asks for USER and PASSWORD."""
    directory.mkdir(parents=True, exist_ok=True)
    config = _CONFIG.format(root=directory / "content", address=address)
    if login:
        (directory / "htpasswd").write_text(f"{USER}:{_HASH}\n")
        config += _AUTH.format(path=directory / "htpasswd")
    (directory / "config.yml").write_text(config)
    command = ["docker-registry", "serve", str(directory / "config.yml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        drain: threading.Thread | None = None
        try:
            assert process.stderr is not None
            lines: list[str] = []
            host = ""
            for line in process.stderr:
                lines.append(line)
                if match := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                    host = match.group(1)
                    break
            assert host, "".join(lines)
            drain = threading.Thread(target=process.stderr.read)
            drain.start()
            yield host
        finally:
            process.kill()
            process.wait(10)
            if drain is not None:
                drain.join(10)
