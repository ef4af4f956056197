"""What a device's `core.ports.ArtifactSource` does when the registry, the line or the disk does not do its part.

The registry is a real socket whose answers are written out byte for byte; that it works with our own one is shown in
tests/integration/registry.
"""

import asyncio
import errno
import fcntl
import hashlib
import itertools
import os
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from skerry.api.errors import (
    BadRequestError,
    ForbiddenError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    SkerryError,
    StorageFullError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from skerry.api.kinds.variants import Blob
from skerry.drivers.registry.oci import OciArtifactSource, OciSettings

WAIT = 20.0
CONTENT = bytes(range(256)) * 4000  # more than three of the source's pieces
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
BLOB = Blob(digest=DIGEST, size=len(CONTENT))

Script = Callable[[int], Iterator[bytes]]  # gets where the device wants to begin, 0 for all of it


@dataclass
class Registry:
    """A registry that says what the test wants it to say."""

    url: str = ""
    script: Script = lambda start: iter(())
    heads: list[str] = field(default_factory=list)


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()

    class Handler(socketserver.StreamRequestHandler):
        timeout = WAIT

        def handle(self) -> None:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = self.rfile.readline()
                if not line:
                    return
                head += line
            registry.heads.append(head.decode())
            asked = head.lower().partition(b"range: bytes=")[2].partition(b"-")[0]
            try:
                for piece in registry.script(int(asked or 0)):
                    self.wfile.write(piece)
                    self.wfile.flush()
            except OSError:
                pass  # the device has hung up

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = False

    with Server(("127.0.0.1", 0), Handler) as server:
        registry.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield registry
        server.shutdown()
        thread.join(WAIT)


def answer(status: str, body: bytes = b"", **headers: object) -> bytes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in named.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def serving_ranges(content: bytes = CONTENT) -> Script:
    def script(start: int) -> Iterator[bytes]:
        rest = content[start:]
        if not start:
            yield answer("200 OK", rest, Content_Length=len(rest))
        else:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            yield answer("206 Partial Content", rest, Content_Length=len(rest), Content_Range=span)

    return script


def fetch(registry: Registry, target: Path, blob: Blob = BLOB, **settings: Any) -> int:
    """Fetch once, and return the bytes that came."""
    counts: list[int] = []
    source = OciArtifactSource(registry.url, None, OciSettings(**settings))

    async def fetched() -> None:
        async with asyncio.timeout(WAIT):
            await source.fetch("default/digits", blob, target, progress=counts.append)

    asyncio.run(fetched())
    return sum(counts)


def partial_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "blob"


def test_a_blob_is_fetched_verified_and_nothing_else_is_left(registry: Registry, target: Path) -> None:
    registry.script = serving_ranges()
    assert fetch(registry, target) == len(CONTENT)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert registry.heads[0].startswith(f"GET /v2/default/digits/blobs/{DIGEST} HTTP/1.1\r\n")
    assert "\r\nAccept-Encoding: identity\r\n" in registry.heads[0]


def test_what_is_there_already_is_not_fetched(registry: Registry, target: Path) -> None:
    target.write_bytes(CONTENT)
    assert fetch(registry, target) == 0
    assert registry.heads == []


def test_an_empty_blob_needs_no_registry(registry: Registry, target: Path) -> None:
    empty = Blob(digest=f"sha256:{hashlib.sha256().hexdigest()}", size=0)
    assert fetch(registry, target, empty) == 0
    assert (target.read_bytes(), registry.heads) == (b"", [])


@pytest.mark.parametrize("wrong", [b"", b"x", CONTENT[:-1] + b"x"])
def test_a_target_with_other_content_is_replaced(registry: Registry, target: Path, wrong: bytes) -> None:
    target.write_bytes(wrong)
    registry.script = serving_ranges()
    fetch(registry, target)
    assert target.read_bytes() == CONTENT


def test_a_fetch_that_broke_off_goes_on_where_it_stopped(registry: Registry, target: Path) -> None:
    registry.script = lambda start: iter([answer("200 OK", CONTENT[:700_000], Content_Length=len(CONTENT))])
    with pytest.raises(UnavailableError, match="after 700000 of 1024000 bytes"):
        fetch(registry, target)
    assert partial_of(target).read_bytes() == CONTENT[:700_000]
    assert not target.exists()
    registry.script = serving_ranges()
    assert fetch(registry, target) == len(CONTENT) - 700_000
    assert "\r\nRange: bytes=700000-\r\n" in registry.heads[1]
    assert target.read_bytes() == CONTENT
    assert not partial_of(target).exists()


def test_what_has_come_survives_a_power_cut_but_for_the_last_part(
    registry: Registry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def sync(descriptor: int) -> None:  # the disk's part, not ours
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fdatasync", sync)
    registry.script = serving_ranges()
    partial_of(target).write_bytes(CONTENT[:1000])
    assert fetch(registry, target, sync_bytes=300_000) == len(CONTENT) - 1000
    assert len(synced) >= 2
    assert all(new - old <= 300_000 + 256 * 1024 for old, new in itertools.pairwise([0, *synced, len(CONTENT)]))


def test_a_partial_file_that_is_complete_needs_no_registry(registry: Registry, target: Path) -> None:
    partial_of(target).write_bytes(CONTENT)
    assert fetch(registry, target) == 0
    assert (target.read_bytes(), registry.heads) == (CONTENT, [])


@pytest.mark.parametrize("damaged", [b"\x00" * 5000, b"\x00" * len(CONTENT), CONTENT + b"more"])
def test_a_partial_file_that_a_power_cut_damaged_is_fetched_anew(
    registry: Registry, target: Path, damaged: bytes
) -> None:
    partial_of(target).write_bytes(damaged)
    registry.script = serving_ranges()
    fetch(registry, target)
    assert target.read_bytes() == CONTENT


def test_a_registry_that_ignores_ranges_is_taken_from_the_start(registry: Registry, target: Path) -> None:
    partial_of(target).write_bytes(CONTENT[:1000])
    registry.script = lambda start: serving_ranges()(0)
    assert fetch(registry, target) == len(CONTENT)
    assert target.read_bytes() == CONTENT


def test_a_registry_that_refuses_the_range_is_asked_for_everything(registry: Registry, target: Path) -> None:
    partial_of(target).write_bytes(CONTENT[:1000])
    registry.script = lambda start: iter([answer("416 No", Content_Length=0)]) if start else serving_ranges()(0)
    assert fetch(registry, target) == len(CONTENT)


@pytest.mark.parametrize("span", ["bytes 0-10/11", f"bytes 999-{len(CONTENT) - 1}/{len(CONTENT)}", "nonsense", ""])
def test_another_part_than_was_asked_for_is_not_taken(registry: Registry, target: Path, span: str) -> None:
    partial_of(target).write_bytes(CONTENT[:1000])
    registry.script = lambda start: iter([answer("206 Partial", b"x" * 11, Content_Length=11, Content_Range=span)])
    with pytest.raises(UnavailableError, match="another part"):
        fetch(registry, target)
    registry.script = serving_ranges()
    fetch(registry, target)
    assert target.read_bytes() == CONTENT


OTHER = CONTENT[:-1] + b"x"


@pytest.mark.parametrize(
    ("script", "match"),
    [
        (serving_ranges(OTHER), hashlib.sha256(OTHER).hexdigest()),
        (serving_ranges(CONTENT + b"x"), "announces 1024001 bytes where 1024000 are due"),
        (serving_ranges(CONTENT[:-1]), "announces 1023999"),
        (lambda start: iter([answer("200 OK", Content_Length="9" * 5000)]), "announces 999999"),
        (lambda start: iter([answer("200 OK", Content_Length="many")]), "announces many"),
        (lambda start: iter([answer("200 OK"), CONTENT, b"x"]), "more than its 1024000 bytes"),
        (
            lambda start: iter(
                [answer("200 OK", Transfer_Encoding="chunked"), b"FFFFF\r\n", b"x" * 0xFFFFF, b"\r\n0\r\n\r\n"]
            ),
            "more than its",
        ),
    ],
)
def test_other_content_is_refused_and_not_kept(registry: Registry, target: Path, script: Script, match: str) -> None:
    registry.script = script
    target.write_bytes(b"older")
    with pytest.raises(IntegrityError, match=match) as caught:
        fetch(registry, target)
    assert caught.value.element == DIGEST
    assert not partial_of(target).exists()
    assert target.read_bytes() == b"older"


@pytest.mark.parametrize(
    "pieces",
    [
        [answer("200 OK"), CONTENT],
        [answer("200 OK", Transfer_Encoding="chunked"), b"FA000\r\n", CONTENT, b"\r\n0\r\n\r\n"],
        [answer("200 OK", CONTENT + b"and more than was announced", Content_Length=len(CONTENT))],
    ],
)
def test_the_content_counts_however_its_length_is_told(registry: Registry, target: Path, pieces: list[bytes]) -> None:
    registry.script = lambda start: iter(pieces)
    assert fetch(registry, target) == len(CONTENT)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("400 Bad", BadRequestError),
        ("401 Who", UnauthorizedError),
        ("403 No", ForbiddenError),
        ("404 Gone", NotFoundError),
        ("418 Teapot", BadRequestError),
        ("429 Later", UnavailableError),
        ("500 Oops", UnavailableError),
        ("503 Busy", UnavailableError),
    ],
)
def test_a_refusal_is_final_or_not(registry: Registry, target: Path, status: str, kind: type[SkerryError]) -> None:
    partial_of(target).write_bytes(CONTENT[:1000])
    registry.script = lambda start: iter([answer(status, Content_Length=0)])
    with pytest.raises(kind, match=status[:3]):
        fetch(registry, target)
    assert len(registry.heads) == 1
    assert partial_of(target).read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"rubbish\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 100_000],
        [b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n"],
        [answer("200 OK", Transfer_Encoding="chunked"), b"no length\r\n"],
        [answer("307 There", Location="http://[1/", Content_Length=0)],
        [answer("200 OK", Transfer_Encoding="chunked"), b"FFFF\r\nabc"],
    ],
)
def test_what_is_no_answer_is_an_error_in_words(registry: Registry, target: Path, pieces: list[bytes]) -> None:
    registry.script = lambda start: iter(pieces)
    with pytest.raises(UnavailableError) as caught:
        fetch(registry, target)
    assert caught.value.element == DIGEST
    assert caught.value.cause
    assert not target.exists()


def test_encoded_content_is_refused(registry: Registry, target: Path) -> None:
    registry.script = lambda start: iter([answer("200 OK", Content_Encoding="gzip", Content_Length=len(CONTENT))])
    with pytest.raises(UnsupportedError, match="encoded"):
        fetch(registry, target)


def test_redirects_are_followed_on_the_same_host_only(registry: Registry, target: Path) -> None:
    def script(start: int) -> Iterator[bytes]:
        if "GET /elsewhere?x=1 " in registry.heads[-1]:
            yield from serving_ranges()(start)
        else:
            yield answer("307 There", Location="/elsewhere?x=1", Content_Length=0)

    registry.script = script
    fetch(registry, target)
    assert target.read_bytes() == CONTENT
    target.unlink()
    registry.script = lambda start: iter([answer("307 There", Location="http://evil.example/", Content_Length=0)])
    with pytest.raises(UnsupportedError, match=r"evil\.example"):
        fetch(registry, target)
    registry.script = lambda start: iter([answer("302 Here", Location="", Content_Length=0)])
    with pytest.raises(UnavailableError, match="in a circle"):
        fetch(registry, target)


def test_a_silent_registry_is_given_up_and_what_came_is_kept(registry: Registry, target: Path) -> None:
    hang_up = threading.Event()

    def script(start: int) -> Iterator[bytes]:
        yield answer("200 OK", CONTENT[:1000], Content_Length=len(CONTENT))
        hang_up.wait(WAIT)

    registry.script = script
    try:
        with pytest.raises(UnavailableError, match="timed out"):
            fetch(registry, target, idle_seconds=0.2)
    finally:
        hang_up.set()
    assert partial_of(target).read_bytes() == CONTENT[:1000]


def test_a_registry_that_is_not_there_is_unavailable(target: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be fetched"):
        fetch(Registry(url="http://127.0.0.1:1"), target)


@pytest.mark.parametrize("head", [answer("200 OK", Content_Length=len(CONTENT)), answer("200 OK")])
def test_a_cancelled_fetch_ends_at_once_and_can_go_on(registry: Registry, target: Path, head: bytes) -> None:
    hang_up = threading.Event()

    def script(start: int) -> Iterator[bytes]:
        yield head + CONTENT[:1000]
        hang_up.wait(WAIT)

    async def cancelled() -> None:
        came = asyncio.Event()
        source = OciArtifactSource(registry.url, None, OciSettings(idle_seconds=3600))
        fetching = asyncio.ensure_future(
            source.fetch("default/digits", BLOB, target, progress=lambda count: came.set())
        )
        async with asyncio.timeout(WAIT):
            await came.wait()
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetching

    registry.script = script
    try:
        asyncio.run(cancelled())
    finally:
        hang_up.set()
    registry.script = serving_ranges()
    fetch(registry, target)
    assert target.read_bytes() == CONTENT


def test_a_full_disk_is_seen_before_anything_is_fetched(registry: Registry, target: Path) -> None:
    with pytest.raises(StorageFullError, match="1024000 bytes are needed"):
        fetch(registry, target, reserve_bytes=2**62)
    assert registry.heads == []
    assert list(target.parent.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_left_clean(
    registry: Registry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    registry.script = serving_ranges()
    monkeypatch.setattr(os, "pwrite", full)  # the disk's part, not ours
    with pytest.raises(StorageFullError, match="free some space"):
        fetch(registry, target)
    assert list(target.parent.iterdir()) == []


def test_two_fetches_of_one_blob_do_not_mix(registry: Registry, target: Path) -> None:
    with partial_of(target).open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match="being fetched already"):
            fetch(registry, target)
    registry.script = serving_ranges()
    fetch(registry, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("place", ["target", "partial", "parent"])
def test_a_place_that_cannot_be_written_is_an_error_in_words(registry: Registry, target: Path, place: str) -> None:
    registry.script = serving_ranges()
    if place == "parent":
        target = target.parent / "absent" / "blob"
    else:
        (target if place == "target" else partial_of(target)).mkdir()
    with pytest.raises(UnavailableError, match="cannot be fetched"):
        fetch(registry, target)


def test_a_link_in_the_partial_file_s_place_is_not_followed(registry: Registry, target: Path) -> None:
    partial_of(target).symlink_to(target.parent / "elsewhere")
    with pytest.raises(UnavailableError):
        fetch(registry, target)
    assert not (target.parent / "elsewhere").exists()


@pytest.mark.parametrize(
    ("repository", "digest"), [("../x", DIGEST), ("a b", DIGEST), ("default/x", "sha256:x"), ("default/x", "../../x")]
)
def test_names_that_are_none_go_nowhere(registry: Registry, target: Path, repository: str, digest: str) -> None:
    source = OciArtifactSource(registry.url, None)
    with pytest.raises(InvalidError):
        asyncio.run(source.fetch(repository, Blob(digest=digest, size=1), target, progress=lambda count: None))
    assert registry.heads == []


@pytest.mark.parametrize(
    "url",
    [
        "http://hub.example:80",
        "http://10.0.0.1",
        "https://hub.example",
        "ftp://127.0.0.1",
        "http://127.0.0.1:x",
        "http://[1",
        "hub",
        "",
    ],
)
def test_an_address_without_tls_is_refused_unless_it_is_this_machine(url: str) -> None:
    with pytest.raises(InvalidError, match="not a registry's address"):
        OciArtifactSource(url, None)
