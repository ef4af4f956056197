"""A neighbour that is asked, and one that is fetched from: real TLS, real files, and what can be wrong with them."""

# ruff: noqa: ASYNC110 - what happens at the other end has no event to wait for
from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.integration.agent.neighbours import enrolled, open_authority

from skerry.agent import neighbourhood, peers, peers_asking, peers_server, peers_tls
from skerry.agent.disk import Disk
from skerry.agent.identity import Identity
from skerry.agent.peers import Peers
from skerry.agent.settings import AgentSettings, PeerSettings
from skerry.api.errors import StorageFullError, UnauthorizedError, UnavailableError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Requirements
from skerry.core import access
from skerry.core.journal import Slot
from skerry.core.messages import WorkloadDesired
from skerry.core.peering import STANDS, Told
from skerry.hub.pki import Authority
from skerry.kit.clock import SystemClock

CONTENT = os.urandom(400_000)
BLOB = Blob(digest=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", size=len(CONTENT))
PATH = f"/v2/default/digits/blobs/{BLOB.digest}"
WAIT = 30.0


def desired(blob: Blob = BLOB) -> WorkloadDesired:
    return WorkloadDesired(
        name="digits",
        rollout="digits-1",
        revision=1,
        model="digits",
        model_version="digits-v1",
        version="v1",
        variant="onnx-fp32",
        format="onnx",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        signature=ModelSignature(inputs=[], outputs=[]),
        repository="default/digits",
        blob=blob,
    )


@dataclasses.dataclass
class Member:
    """One device of the site."""

    disk: Disk
    known: Identity
    peers: Peers
    named: dict[str, list[Slot]]

    def have(self, content: bytes = CONTENT, *, blob: Blob = BLOB) -> None:
        """Have a blob in the cache, and a workload that names it."""
        self.disk.blob(blob).write_bytes(content)
        self.named["digits"] = [Slot(serial=1, desired=desired(blob))]

    @property
    def port(self) -> int:
        assert self.peers.server is not None
        return self.peers.server.port

    @property
    def target(self) -> Path:
        return self.disk.blob(BLOB)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return open_authority(tmp_path_factory.mktemp("hub"))


Make = Callable[..., Awaitable[Member]]


@pytest.fixture
async def make(tmp_path: Path, authority: Authority) -> AsyncIterator[Make]:
    tasks: list[asyncio.Task[None]] = []

    async def made(uid: str, *neighbours: Any, namespace: str = "default", listen: bool = True, **more: Any) -> Member:
        ports = [one.port if isinstance(one, Member) else one for one in neighbours]
        wanted = PeerSettings(
            listen="127.0.0.1:0" if listen else "", neighbours=[f"127.0.0.1:{port}" for port in ports], **more
        )
        directory = tmp_path / uid
        known = enrolled(directory, authority, uid, url="https://127.0.0.1:9", namespace=namespace)
        disk = Disk(directory)
        named: dict[str, list[Slot]] = {}
        hood = neighbourhood.open_neighbourhood(disk, AgentSettings(peers=wanted), known)
        member = Member(disk, known, Peers(disk, SystemClock(), wanted, hood, named=lambda: named), named)
        tasks.append(asyncio.create_task(member.peers.run()))
        async with asyncio.timeout(WAIT):
            while listen and not member.port:
                await asyncio.sleep(0.005)
        return member

    yield made
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def seek(member: Member, *, may_fetch: bool = True, want: WorkloadDesired | None = None) -> tuple[bool, int]:
    """Seek the blob; whether it came from a neighbour, and how many bytes."""
    came: list[int] = []
    async with asyncio.timeout(WAIT):
        with member.peers.seeking(want or desired(), BLOB) as seeking:
            brought = await seeking.brought(member.target, came.append, lambda: may_fetch)
            await asyncio.sleep(0)
    return brought, sum(came)


async def raw(member: Member, context: ssl.SSLContext, request: bytes) -> bytes:
    """Send bytes, and return all that is answered; none where the neighbour hangs up."""
    async with asyncio.timeout(WAIT):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", member.port, ssl=context)
            writer.write(request)
            answer = await reader.read()
            writer.transport.abort()
        except OSError:
            return b""
    return answer


def client(member: Member) -> ssl.SSLContext:
    return peers_tls.asking(member.disk, member.known)


# --- giving ---------------------------------------------------------------------------------------------------------


async def test_a_blob_comes_from_the_neighbour_that_has_it(make: Make) -> None:
    seller = await make("da")
    seller.have()
    buyer = await make("db", seller)
    assert await seek(buyer) == (True, len(CONTENT))
    assert buyer.target.read_bytes() == CONTENT
    assert seller.peers.server is not None
    assert seller.peers.server.sent == len(CONTENT)


async def test_what_came_before_is_not_asked_for_again(make: Make) -> None:
    seller = await make("da")
    seller.have()
    buyer = await make("db", seller)
    buyer.target.with_name(f"{buyer.target.name}.partial").write_bytes(CONTENT[:300_000])
    assert await seek(buyer) == (True, 100_000)
    assert buyer.target.read_bytes() == CONTENT


async def test_what_no_workload_names_is_not_given(make: Make) -> None:
    seller = await make("da")
    seller.have()
    seller.named.clear()
    assert await seek(await make("db", seller)) == (False, 0)


async def test_what_is_under_protection_is_neither_given_nor_sought(make: Make) -> None:
    seller = await make("da")
    seller.have()
    buyer = await make("db", seller)
    secret = msgspec.structs.replace(desired(), protection="encrypted")
    assert await seek(buyer, want=secret) == (False, 0)
    seller.named["digits"] = [Slot(serial=1, desired=secret)]
    assert await seek(buyer) == (False, 0)


async def test_what_is_not_whole_is_not_given(make: Make) -> None:
    seller = await make("da")
    seller.have(CONTENT[:-1])
    assert await seek(await make("db", seller)) == (False, 0)


@pytest.mark.parametrize(
    ("header", "status", "content"),
    [
        ("", b"200", CONTENT),
        ("Range: bytes=399990-\r\n", b"206", CONTENT[399_990:]),
        ("range:bytes=10-19\r\n", b"206", CONTENT[10:20]),
        ("Range: bytes=400000-\r\n", b"416", b""),
        ("Range: bytes=1-2,4-5\r\n", b"200", CONTENT),
        ("Range: bytes=0-1\r\nRange: bytes=4-5\r\n", b"200", CONTENT),
    ],
)
async def test_parts(make: Make, header: str, status: bytes, content: bytes) -> None:
    seller = await make("da")
    seller.have()
    buyer = await make("db")
    answer = await raw(seller, client(buyer), f"GET {PATH} HTTP/1.1\r\n{header}\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == status
    assert body == content


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v2/default/digits/blobs/../../../../device.pem HTTP/1.1\r\n\r\n",
        b"GET /v2/x/blobs/sha256:" + b"A" * 64 + b" HTTP/1.1\r\n\r\n",
        b"PUT " + PATH.encode() + b" HTTP/1.1\r\n\r\n",
        b"GET " + PATH.encode() + b" HTTP/3\r\n\r\n",
        b"\x00\xff\r\n\r\n",
    ],
)
async def test_nothing_but_blobs_by_digest_can_be_asked_for(make: Make, request_: bytes) -> None:
    seller = await make("da")
    seller.have()
    assert (await raw(seller, client(await make("db")), request_)).startswith(b"HTTP/1.1 400 ")


async def test_a_head_without_end_is_hung_up_on(make: Make) -> None:
    seller = await make("da")
    endless = b"GET " + PATH.encode() + b" HTTP/1.1\r\n" + b"x: y\r\n" * 10_000
    assert await raw(seller, client(await make("db")), endless) == b""


async def test_strangers_are_told_nothing(make: Make, tmp_path: Path) -> None:
    seller = await make("da")
    seller.have()
    request = f"GET {PATH} HTTP/1.1\r\n\r\n".encode()
    elsewhere = await make("dx", namespace="other")
    foreign = open_authority(tmp_path / "foreign")
    known = enrolled(tmp_path / "stranger", foreign, "ds", url="https://127.0.0.1:9")
    stranger = peers_tls.asking(Disk(tmp_path / "stranger"), known)
    stranger.load_verify_locations(cadata=seller.known.ca)
    nobody = ssl.create_default_context(cadata=seller.known.ca)
    nobody.check_hostname = False
    server = ssl.create_default_context(cadata=seller.known.ca)
    server.check_hostname = False
    server.load_cert_chain(seller.disk.root / peers_tls.PEER_PEM_FILE)  # for servers, so not for who asks
    for context in (client(elsewhere), stranger, nobody, server):
        assert await raw(seller, context, request) == b""
    assert (await raw(seller, client(await make("db")), request)).startswith(b"HTTP/1.1 200 ")


async def test_those_beyond_the_bound_are_sent_away_and_the_rest_go_on(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(peers_server, "MAX_CONNECTIONS", 3)
    seller = await make("da")
    seller.have()
    buyer = await make("db", seller)
    idle = [await asyncio.open_connection("127.0.0.1", seller.port) for _ in range(3)]
    assert await raw(seller, client(buyer), f"GET {PATH} HTTP/1.1\r\n\r\n".encode()) == b""
    for _, writer in idle:
        writer.transport.abort()
    async with asyncio.timeout(WAIT):
        while not (await raw(seller, client(buyer), f"GET {PATH} HTTP/1.1\r\n\r\n".encode())):
            await asyncio.sleep(0.01)


async def test_who_says_nothing_is_hung_up_on(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(peers_server, "HEAD_SECONDS", 0.2)
    seller = await make("da")
    reader, writer = await asyncio.open_connection("127.0.0.1", seller.port)
    async with asyncio.timeout(WAIT):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.transport.abort()


async def test_a_device_that_gives_as_much_as_it_may_says_so(make: Make, monkeypatch: Any) -> None:
    seller = await make("da", max_transfers=1, max_bandwidth="64Ki")
    seller.have()
    buyer = await make("db", seller)
    reader, writer = await asyncio.open_connection("127.0.0.1", seller.port, ssl=client(buyer))
    writer.write(f"GET {PATH} HTTP/1.1\r\n\r\n".encode())
    async with asyncio.timeout(WAIT):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        told = await buyer.peers.ask("default/digits", BLOB)
        assert told == {"da": Told(stand="has", came=len(CONTENT), busy=True)}
        monkeypatch.setattr(peers_server, "QUEUE_SECONDS", 0.05)
        refused = await raw(seller, client(buyer), f"GET {PATH} HTTP/1.1\r\n\r\n".encode())
        assert refused.startswith(b"HTTP/1.1 503 ")
        writer.transport.abort()
        while (await buyer.peers.ask("default/digits", BLOB))["da"].busy:
            await asyncio.sleep(0.01)


# --- taking ---------------------------------------------------------------------------------------------------------


async def test_a_neighbour_that_lies_is_found_out_and_left_alone(make: Make) -> None:
    liar = await make("da")
    liar.have(os.urandom(len(CONTENT)))
    honest = await make("db")
    honest.have()
    alone = await make("dc", liar)
    brought, came = await seek(alone)
    assert (brought, came) == (False, len(CONTENT))
    assert not alone.target.exists()
    assert await alone.peers.ask("default/digits", BLOB) == {}
    both = await make("dd", liar, honest)
    assert (await seek(both))[0]
    assert both.target.read_bytes() == CONTENT


async def test_a_dead_neighbour_holds_nobody_up(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    seller = await make("da")
    seller.have()
    assert await seek(await make("db", port, seller)) == (True, len(CONTENT))
    assert await seek(await make("dc", port)) == (False, 0)


async def test_one_that_accepts_and_says_nothing_holds_nobody_up(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(peers_asking, "ASK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert await seek(await make("db", silent.getsockname()[1])) == (False, 0)


async def test_one_that_crawls_is_left_for_another_and_what_came_is_kept(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(peers, "SPEED_SECONDS", 0.5)
    slow = await make("da", max_bandwidth="4Ki")
    slow.have()
    buyer = await make("db", slow)
    brought, came = await seek(buyer)
    assert not brought
    partial = buyer.target.with_name(f"{buyer.target.name}.partial")
    assert 0 < came == partial.stat().st_size
    assert partial.read_bytes() == CONTENT[:came]


async def test_one_of_another_namespace_is_no_neighbour(make: Make) -> None:
    other = await make("dx", namespace="other")
    other.have()
    buyer = await make("db", other)
    assert await seek(buyer) == (False, 0)
    source = peers.Peers.source
    assert source(buyer.peers, "dx") is None


async def test_another_device_behind_the_same_address_is_not_fetched_from(make: Make) -> None:
    seller = await make("da")
    seller.have()
    buyer = await make("db", seller)
    assert list(await buyer.peers.ask("default/digits", BLOB)) == ["da"]
    hood = buyer.peers._hood
    assert hood is not None
    with pytest.raises(UnauthorizedError, match="another device"):
        await hood.source(("127.0.0.1", seller.port), "dz").fetch(
            "default/digits", BLOB, buyer.target, progress=lambda _: None
        )


async def test_its_own_address_among_the_neighbours_is_passed_over(make: Make) -> None:
    alone = await make("da")
    alone.peers._addresses = [("127.0.0.1", alone.port)]
    assert await seek(alone) == (False, 0)
    assert await alone.peers.ask("default/digits", BLOB) == {}


async def test_a_full_disk_is_the_device_s_own_matter(make: Make, monkeypatch: Any) -> None:
    seller = await make("da")
    seller.have()
    buyer = await make("db", seller)
    free = os.statvfs(buyer.disk.root)
    full = dataclasses.make_dataclass("Usage", ["total", "used", "free"])(free.f_blocks, 0, 0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)  # the disk's part, not ours
    with pytest.raises(StorageFullError):
        await seek(buyer)


async def test_whoever_may_not_fetch_takes_what_there_is_and_waits_for_nobody(make: Make) -> None:
    seller = await make("da")
    buyer = await make("db", seller)
    assert await seek(buyer, may_fetch=False) == (False, 0)
    assert await buyer.peers.offered(desired(), [BLOB]) == set()
    seller.have()
    assert await buyer.peers.offered(desired(), [BLOB]) == {BLOB.digest}
    assert await seek(buyer, may_fetch=False) == (True, len(CONTENT))


async def test_small_blobs_are_not_worth_asking_for(make: Make, monkeypatch: Any) -> None:
    seller = await make("da")
    seller.have()
    buyer = await make("db", seller)
    monkeypatch.setattr(peers, "LEAST_BYTES", BLOB.size + 1)
    assert await seek(buyer) == (False, 0)


async def test_of_two_one_fetches_and_the_other_waits_and_then_takes_it(make: Make) -> None:
    first = await make("da")
    second = await make("db", first)
    first.peers._addresses = [("127.0.0.1", second.port)]
    with first.peers.seeking(desired(), BLOB) as leading:
        assert not await leading.brought(first.target, lambda _: None, lambda: True)
        assert leading.stand == "fetches"
        waiting = asyncio.ensure_future(seek(second))
        async with asyncio.timeout(WAIT):
            while second.peers.stand(BLOB.digest).stand != "wants":
                await asyncio.sleep(0.005)
            leading.note(1234)
            assert (await second.peers.ask("default/digits", BLOB))["da"] == Told(stand="fetches", came=1234)
            assert not waiting.done()
            first.have()
    assert await waiting == (True, len(CONTENT))


async def test_one_that_fetches_for_all_and_comes_to_nothing_is_not_waited_for_without_end(make: Make) -> None:
    first = await make("da")
    second = await make("db", first, patience="1s")
    with first.peers.seeking(desired(), BLOB) as leading:
        leading.stand = "fetches"
        assert await seek(second) == (False, 0)


async def test_progress_is_waited_for_and_next_to_none_is_none(make: Make) -> None:
    buyer = await make("db", patience="1s")
    ticks = [0.0]

    class Clock(SystemClock):
        def monotonic(self) -> float:
            return ticks[0]

    buyer.peers._clock = Clock()
    with buyer.peers.seeking(desired(), BLOB) as seeking:

        def waited(seconds: float, **told: Told) -> bool:
            ticks[0] += seconds
            return seeking._has_waited_enough(told)

        assert not waited(0.9, da=Told(stand="fetches"))
        assert not waited(0.9, da=Told(stand="fetches", came=8000))
        assert not waited(0.9, da=Told(stand="fetches", came=8001))
        assert waited(0.9, da=Told(stand="fetches", came=8002))
        assert not waited(0.9, da=Told(stand="has", busy=True))
        assert waited(1.1, da=Told(stand="none"))
        assert waited(0.1, da=Told(stand="fetches", came=8003)), "to begin anew is no progress"


async def test_without_a_certificate_to_serve_with_it_only_asks(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    known = enrolled(tmp_path / "old", authority, "do", url="https://127.0.0.1:9", peer=False)
    wanted = PeerSettings(listen="127.0.0.1:0", neighbours=["127.0.0.1:1"])
    hood = neighbourhood.open_neighbourhood(Disk(tmp_path / "old"), AgentSettings(peers=wanted), known)
    assert hood is not None
    alone = Peers(Disk(tmp_path / "old"), SystemClock(), wanted, hood, named=dict)
    assert alone.server is None
    assert alone.asks
    assert "peers.no_certificate" in caplog.text


def test_a_device_that_wants_no_neighbours_has_none(tmp_path: Path, authority: Authority) -> None:
    known = enrolled(tmp_path, authority, "da", url="https://127.0.0.1:9")
    assert neighbourhood.open_neighbourhood(Disk(tmp_path), AgentSettings(), known) is None


@pytest.mark.parametrize(
    "subject",
    [
        (),
        ((("commonName", "da"),),),
        ((("organizationName", access.PEERS),), (("commonName", "da"),)),
        ((("organizationName", access.DEVICES),), (("organizationalUnitName", "default"),), (("commonName", "da"),)),
        ((("organizationName", access.PEERS),), (("organizationalUnitName", "other"),), (("commonName", "da"),)),
        ((("organizationName", access.PEERS),), (("organizationalUnitName", "default"),), (("commonName", ""),)),
        (
            (("organizationName", access.PEERS),),
            (("organizationalUnitName", "default"),),
            (("commonName", "da"),),
            (("commonName", "db"),),
        ),
    ],
)
def test_a_subject_of_any_other_form_is_no_neighbour(subject: tuple[Any, ...]) -> None:
    with pytest.raises(UnauthorizedError):
        peers_tls.neighbour({"subject": subject}, organisation=access.PEERS, namespace="default")


async def test_an_address_where_nobody_is_cannot_be_asked() -> None:
    with pytest.raises(UnavailableError, match="neighbour"):
        await peers_asking.ask("127.0.0.1", 1, PATH, ssl.create_default_context(), identify=lambda _: "")


@given(st.one_of(st.binary(max_size=300), st.from_regex(rb"HTTP/1.1 [0-9]{3} .{0,9}\r\n(Skerry-Stand: .{0,40}\r\n)*")))
def test_whatever_is_answered_is_a_stand(head: bytes) -> None:
    told = peers_asking.read_answer(head)
    assert told.stand in STANDS
    assert 0 <= told.came < 10**18


@pytest.mark.parametrize(
    ("head", "stand"),
    [
        (b"HTTP/1.1 200 OK\r\nSkerry-Stand: has 5\r\n", "has"),
        (b"HTTP/1.1 404 No\r\nskerry-stand:fetches 5\r\n", "fetches"),
        (b"HTTP/1.1 404 No\r\nSkerry-Stand: has 5\r\n", "none"),
        (b"HTTP/1.1 200 OK\r\nSkerry-Stand: wants 0\r\n", "none"),
        (b"HTTP/1.1 200 OK\r\n", "none"),
        (b"HTTP/1.1 503 Busy\r\nSkerry-Stand: fetches 5\r\n", "none"),
        (b"HTTP/1.1 404 No\r\nSkerry-Stand: rules 5\r\n", "none"),
    ],
)
def test_answers(head: bytes, stand: str) -> None:
    assert peers_asking.read_answer(head).stand == stand
