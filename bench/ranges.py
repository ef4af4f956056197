"""Measure what several connections for one blob gain, on links that bound each connection, or all together.

The device's fetcher against a server in this process that keeps to both bounds, and to a round trip for each answer.
Usage: python bench/ranges.py [--megabytes 24]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.server
import tempfile
import threading
import time
from pathlib import Path

from skerry.api.kinds.variants import Blob
from skerry.drivers.registry.oci import OciArtifactSource, OciSettings

MB = 1_000_000
LINKS = ((1, 8, 0.1), (2, 4, 0.1), (4, 4, 0.05), (8, 8, 0.01), (100, 100, 0.001))
"""MB/s of one connection, MB/s of all together, seconds of a round trip."""
PIECE = 16 * 1024


class Link:
    """Two bounds: who sends waits for both."""

    def __init__(self, each: float, total: float, trip: float) -> None:
        self.each, self.total, self.trip = each * MB, total * MB, trip
        self._lock = threading.Lock()
        self._free = 0.0

    def wait(self, size: int, began: float, sent: int) -> None:
        with self._lock:
            self._free = max(self._free, time.monotonic()) + size / self.total
            free = self._free
        time.sleep(max(began + (sent + size) / self.each - time.monotonic(), free - time.monotonic(), 0))


def serve(content: bytes, link: Link) -> http.server.ThreadingHTTPServer:
    """Serve a blob over such a link, on a port of the system's choice."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(link.trip)
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(content)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            began = time.monotonic()
            for at in range(start, end, PIECE):
                piece = content[at : min(at + PIECE, end)]
                link.wait(len(piece), began, at - start)
                self.wfile.write(piece)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server calls it
            """Nobody reads it."""

    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def fetch(url: str, blob: Blob, connections: int) -> float:
    """Return the seconds that a fetch takes."""
    with tempfile.TemporaryDirectory() as directory:
        source = OciArtifactSource(url, None, OciSettings(connections=connections))
        began = time.monotonic()
        asyncio.run(source.fetch("default/x", blob, Path(directory) / "blob", progress=lambda _: None))
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=24)
    content = bytes(parser.parse_args().megabytes * MB)
    blob = Blob(digest=f"sha256:{hashlib.sha256(content).hexdigest()}", size=len(content))
    for each, total, trip in LINKS:
        server = serve(content, Link(each, total, trip))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        taken = [fetch(url, blob, connections) for connections in (1, 4)]
        print(f"| {each} MB/s, {total} MB/s | {taken[0]:.1f} | {taken[1]:.1f} |", flush=True)
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    main()
