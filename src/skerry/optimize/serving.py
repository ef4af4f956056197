"""Peak memory as a device will see it: the real inference server, holding one variant and answering with it.

The server (`python -m skerry.serve`) is reached as a process, over the protocol, exactly as the agent reaches it; that
it serves the variant at all is checked by the way. Must not live here: an import of the server's code.
Source: Open Inference Protocol v2 with the binary tensor data extension; proc(5) for VmHWM.
"""

from __future__ import annotations

import http.client
import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from skerry.api.errors import InvalidError, TimedOutError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Engine
from skerry.kit import processes
from skerry.optimize.dataset import Inputs

START_SECONDS = 60.0
ANSWER_SECONDS = 60.0
STOP_SECONDS = 5.0
REQUESTS = 10
_READY = re.compile(rb"serve\.ready .*url=http://127\.0\.0\.1:(\d+)")
_MODEL = "profiled"
_MOST_OUTPUT = 1 << 20


class Server:
    """The server with one model, while the block runs; `signature_file` holds the signature as JSON."""

    def __init__(self, engine: Engine, model: Path, signature_file: Path) -> None:
        argv = ["-m", "skerry.serve", "--model", _MODEL, "--version", "0", "--engine", engine, "--file", str(model)]
        argv += ["--signature", str(signature_file), "--host", "127.0.0.1", "--port", "0", "--threads", "1"]
        self._argv = processes.python(argv, signal_number=signal.SIGTERM)
        self._port = 0

    def __enter__(self) -> Self:
        """Start it."""
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._deadline = time.monotonic() + START_SECONDS
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Stop it."""
        assert self._process.stderr is not None
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        self._process.stderr.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until it answers. Raises InvalidError with its reason when it ends instead, TimedOutError."""
        assert self._process.stderr is not None
        descriptor, said = self._process.stderr.fileno(), b""
        while len(said) < _MOST_OUTPUT:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise TimedOutError(f"the inference server is not ready within {START_SECONDS:.0f} s")
            part = os.read(descriptor, 65536)
            said += part
            ready = _READY.search(said)
            if ready:
                self._port = int(ready.group(1))
                return
            if not part:
                break
        lines = said.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise InvalidError(f"the inference server does not take it ({lines[-1][:240]})")

    def peak_memory(self, signature: ModelSignature, sample: Inputs) -> int:
        """Return its peak resident memory in bytes after some requests of batch 1, once it is ready.

        `sample` has one array [1, ...] for each input. Raises InvalidError, TimedOutError.
        """
        raws = [sample[tensor.name].tobytes() for tensor in signature.inputs]
        header = msgspec.json.encode(
            {
                "inputs": [
                    {
                        "name": tensor.name,
                        "datatype": tensor.datatype,
                        "shape": list(sample[tensor.name].shape),
                        "parameters": {"binary_data_size": len(raw)},
                    }
                    for tensor, raw in zip(signature.inputs, raws, strict=True)
                ],
                "outputs": [{"name": output.name, "parameters": {"binary_data": True}} for output in signature.outputs],
            }
        )
        for _ in range(REQUESTS):
            _ask(self._port, header, b"".join(raws))
        return _high_water_mark(self.pid)


def _ask(port: int, header: bytes, raw: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    try:
        connection.request("POST", f"/v2/models/{_MODEL}/infer", header + raw, headers)
        response = connection.getresponse()
        body = response.read()
    except TimeoutError:
        raise TimedOutError(f"the inference server does not answer within {ANSWER_SECONDS:.0f} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise InvalidError(f"the inference server fails with it ({error})") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise InvalidError(f"the inference server refuses a sample ({body[:240].decode(errors='replace')})")


def _high_water_mark(pid: int) -> int:
    """Return a process's peak resident memory; getrusage would keep what its parent had when it was started."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise InvalidError("this kernel does not tell a process's peak memory (no VmHWM in /proc/<pid>/status)")
    return int(found.group(1)) * 1024
