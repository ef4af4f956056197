"""From a model package on a user's machine, through the hub's registry, to a file on a device: over real HTTP."""

import asyncio
import datetime
import hashlib
import ipaddress
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.api.errors import (
    ConflictError,
    ForbiddenError,
    IntegrityError,
    InvalidError,
    SkerryError,
    StorageFullError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.core import manifest as manifests
from skerry.core.card import EvaluationCard, PackagedVariant, Provenance
from skerry.core.card import decode as decode_card
from skerry.core.ports import Manifest
from skerry.drivers.client.registry import CHUNK_BYTES, PushedModel, push_package
from skerry.drivers.registry.oci import OciArtifactSource

REPOSITORY = "default/digits"
FILES = {"onnx-fp32": bytes(range(251)) * 40_000, "onnx-int8": b"small model"}  # the first takes several chunks
GOLDEN = b"golden samples"


class Hub(Protocol):
    url: str
    root: Path

    def client(self, role: str = "admin") -> httpx.Client: ...


def blob_of(raw: bytes) -> Blob:
    return Blob(digest=f"sha256:{hashlib.sha256(raw).hexdigest()}", size=len(raw))


def variant(name: str, raw: bytes) -> PackagedVariant:
    measured = Variant(
        name=name,
        format="onnx",
        precision="int8" if name.endswith("int8") else "fp32",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        blob=blob_of(raw),
        metric=0.9,
        metric_drop=0.0,
        error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
        profile=Profile(latency_p50_ms=1, latency_p95_ms=2, peak_memory_bytes=3, runs=4),
    )
    return PackagedVariant(variant=measured, file=f"{name}.onnx")


@pytest.fixture
def card() -> EvaluationCard:
    return EvaluationCard(
        model="digits",
        version="1.0.0",
        signature=ModelSignature(inputs=[], outputs=[]),
        evaluation=Evaluation(metric="accuracy", baseline=0.9, samples=100, allowed_drop=0.01),
        golden=Golden(blob=blob_of(GOLDEN), samples=4),
        variants=[variant(name, raw) for name, raw in FILES.items()],
        provenance=Provenance(source_kind="pytorch"),
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    directory = tmp_path / "package"
    directory.mkdir()
    for name, raw in FILES.items():
        (directory / f"{name}.onnx").write_bytes(raw)
    (directory / "golden.npz").write_bytes(GOLDEN)
    return directory


def push(client: httpx.Client, package: Path, card: EvaluationCard, seen: list[Any] | None = None) -> PushedModel:
    return push_package(
        client, REPOSITORY, package, card, lambda *sent: seen.append(sent) if seen is not None else None
    )


def manifest_at(client: httpx.Client, reference: str) -> Manifest:
    answer = client.get(f"/v2/{REPOSITORY}/manifests/{reference}")
    assert answer.status_code == 200
    return Manifest(
        digest=manifests.digest_of(answer.content), media_type=answer.headers["Content-Type"], raw=answer.content
    )


def nothing_is_tagged(hub: Hub) -> bool:
    with hub.client() as client:
        return not client.get(f"/v2/{REPOSITORY}/tags/list").json().get("tags")


def test_a_pushed_package_is_all_there(hub: Hub, package: Path, card: EvaluationCard) -> None:
    seen: list[tuple[str, int]] = []
    with hub.client() as client:
        pushed = push(client, package, card, seen)
        index = manifest_at(client, "1.0.0")
        assert index.digest == pushed.index
        read = manifests.read_index(index)
        assert (read.model, read.version) == ("digits", "1.0.0")
        variants = [manifests.read_variant(manifest_at(client, entry.digest)) for entry in read.manifests]
        assert {v.name: v.manifest for v in variants} == pushed.manifests
        assert [msgspec.structs.replace(v, manifest=None) for v in variants] == [p.variant for p in card.variants]
        for v in variants:
            assert client.get(f"/v2/{REPOSITORY}/blobs/{v.blob.digest}").content == FILES[v.name]
        referrers = client.get(f"/v2/{REPOSITORY}/referrers/{pushed.index}").json()["manifests"]
        attached = {entry["artifactType"]: entry["digest"] for entry in referrers}
        assert set(attached) == {manifests.GOLDEN_TYPE, manifests.CARD_TYPE, manifests.SBOM_TYPE}
        document = manifests.parse(manifest_at(client, attached[manifests.CARD_TYPE]).raw, manifests.MANIFEST_TYPE)
        *_, layer = document.content
        assert decode_card(client.get(f"/v2/{REPOSITORY}/blobs/{layer.digest}").content) == card
    assert sum(count for _, count in seen) == pushed.sent
    assert sum(count for name, count in seen if name == "onnx-fp32.onnx") == len(FILES["onnx-fp32"])
    assert ("onnx-fp32.onnx", CHUNK_BYTES) in seen
    assert pushed.skipped == 0


def test_pushing_again_sends_nothing(hub: Hub, package: Path, card: EvaluationCard) -> None:
    with hub.client() as client:
        first = push(client, package, card)
        again = push(client, package, card)
    assert (again.index, again.manifests) == (first.index, first.manifests)
    assert (again.sent, again.skipped) == (0, first.sent)


def test_a_new_version_sends_only_what_is_new(hub: Hub, package: Path, card: EvaluationCard) -> None:
    with hub.client() as client:
        first = push(client, package, card)
        second = push(client, package, msgspec.structs.replace(card, version="1.0.1"))
        assert client.get(f"/v2/{REPOSITORY}/tags/list").json()["tags"] == ["1.0.0", "1.0.1"]
    assert second.index != first.index
    assert second.skipped >= sum(map(len, FILES.values()))
    assert second.sent < 10_000


def test_a_version_never_changes(hub: Hub, package: Path, card: EvaluationCard) -> None:
    with hub.client() as client:
        first = push(client, package, card)
        (package / "onnx-int8.onnx").write_bytes(b"another one")
        changed = msgspec.structs.replace(card, variants=[card.variants[0], variant("onnx-int8", b"another one")])
        with pytest.raises(ConflictError, match="immutable") as caught:
            push(client, package, changed)
        assert caught.value.element == f"{REPOSITORY}:1.0.0"
        assert manifest_at(client, "1.0.0").digest == first.index
        assert client.head(f"/v2/{REPOSITORY}/blobs/{blob_of(b'another one').digest}").status_code == 404


@pytest.mark.parametrize("file", ["onnx-fp32.onnx", "golden.npz"])
@pytest.mark.parametrize("damage", ["changed", "shorter", "missing", "directory"])
def test_a_file_that_is_not_what_the_card_says_is_not_sent(
    hub: Hub, package: Path, card: EvaluationCard, file: str, damage: str
) -> None:
    path = package / file
    raw = path.read_bytes()
    path.unlink()
    if damage == "changed":
        path.write_bytes(raw[:-1] + b"?")
    elif damage == "shorter":
        path.write_bytes(raw[:-1])
    elif damage == "directory":
        path.mkdir()
    kind: type[SkerryError] = IntegrityError if damage in ("changed", "shorter") else InvalidError
    with hub.client() as client, pytest.raises(kind, match="make the package again") as caught:
        push(client, package, card)
    assert caught.value.element == str(path)
    assert [p for p in hub.root.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("version", ["", "1 0", "v" * 129, "../x", ".1"])
def test_a_version_that_cannot_be_a_tag_is_refused(hub: Hub, package: Path, card: EvaluationCard, version: str) -> None:
    with hub.client() as client, pytest.raises(InvalidError, match="cannot be a tag"):
        push(client, package, msgspec.structs.replace(card, version=version))


def test_a_package_without_variants_or_with_a_bad_repository_is_refused(
    hub: Hub, package: Path, card: EvaluationCard
) -> None:
    with hub.client() as client:
        with pytest.raises(InvalidError, match="no variants"):
            push(client, package, msgspec.structs.replace(card, variants=[]))
        with pytest.raises(InvalidError, match="not a repository name"):
            push_package(client, "Default/../x", package, card, lambda *_: None)


@pytest.mark.parametrize(("role", "kind"), [("anonymous", UnauthorizedError), ("device", ForbiddenError)])
def test_who_may_not_push_is_told_so(
    hub: Hub, package: Path, card: EvaluationCard, role: str, kind: type[SkerryError]
) -> None:
    with hub.client(role) as client, pytest.raises(kind, match="the registry answers 40"):
        push(client, package, card)


def test_a_hub_that_is_not_there_is_unavailable(package: Path, card: EvaluationCard) -> None:
    with (
        httpx.Client(base_url="http://127.0.0.1:1") as client,
        pytest.raises(UnavailableError, match="is the hub running"),
    ):
        push(client, package, card)


def test_a_hub_without_room_says_so(full_hub: Hub, package: Path, card: EvaluationCard) -> None:
    with full_hub.client() as client, pytest.raises(StorageFullError, match="free some space"):
        push(client, package, card)
    assert nothing_is_tagged(full_hub)


def test_a_blob_the_hub_does_not_want_is_refused(tight_hub: Hub, package: Path, card: EvaluationCard) -> None:
    with tight_hub.client() as client, pytest.raises(TooLargeError, match="larger than a blob may be"):
        push(client, package, card)
    assert nothing_is_tagged(tight_hub)


@contextmanager
def breaking_line(hub: Hub, *, after: int, times: int) -> Iterator[str]:
    """Pass connections on to the hub; the first ones are cut when they have carried that many bytes to it."""
    upstream = httpx.URL(hub.url)
    cuts = [after] * times

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            budget = cuts.pop() if cuts else 2**40
            with socket.create_connection((upstream.host, upstream.port or 0), timeout=20) as outer:
                back = threading.Thread(target=carry, args=(outer, self.request, 2**40))
                back.start()
                carry(self.request, outer, budget)
                back.join(20)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(20)
    assert cuts == []


def carry(source: socket.socket, target: socket.socket, budget: int) -> None:
    """Carry bytes one way until the source ends or the budget is used up; then end both."""
    with suppress(OSError):
        while budget > 0 and (data := source.recv(min(65536, budget))):
            target.sendall(data)
            budget -= len(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def test_a_push_over_a_line_that_breaks_goes_on(hub: Hub, package: Path, card: EvaluationCard) -> None:
    seen: list[tuple[str, int]] = []
    with (
        breaking_line(hub, after=CHUNK_BYTES + CHUNK_BYTES // 2, times=2) as url,
        httpx.Client(base_url=url, headers={"x-role": "admin"}, timeout=20) as client,
    ):
        pushed = push(client, package, card, seen)
        assert client.get(f"/v2/{REPOSITORY}/blobs/{blob_of(FILES['onnx-fp32']).digest}").content == FILES["onnx-fp32"]
    assert sum(count for name, count in seen if name == "onnx-fp32.onnx") == len(FILES["onnx-fp32"])
    assert pushed.skipped == 0


def fetched(source: OciArtifactSource, blob: Blob, target: Path, repository: str = REPOSITORY) -> int:
    counts: list[int] = []
    asyncio.run(source.fetch(repository, blob, target, progress=counts.append))
    return sum(counts)


Serving = Callable[..., AbstractContextManager[Hub]]


def certificates(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for this machine's loopback that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hub")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / "hub.crt", directory / "hub.key"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


def test_a_device_fetches_what_was_pushed(
    serving_hub: Serving, package: Path, card: EvaluationCard, tmp_path: Path
) -> None:
    certificate, key = certificates(tmp_path)
    trusting = ssl.create_default_context(cafile=str(certificate))
    blob, target = card.variants[0].variant.blob, tmp_path / "model.onnx"
    with serving_hub(tmp_path / "artifacts", role="device", ssl_certfile=certificate, ssl_keyfile=key) as hub:
        with httpx.Client(base_url=hub.url, headers={"x-role": "admin"}, verify=trusting) as client:
            push(client, package, card)
        hub.deploy(blob)  # type: ignore[attr-defined]
        source = OciArtifactSource(hub.url, trusting)
        # As a cut connection leaves it: the source asks our registry for the rest.
        target.with_name("model.onnx.partial").write_bytes(FILES["onnx-fp32"][:6_000_000])
        assert fetched(source, blob, target) == len(FILES["onnx-fp32"]) - 6_000_000
        assert target.read_bytes() == FILES["onnx-fp32"]
        assert fetched(source, blob, target) == 0
        with pytest.raises(ForbiddenError):
            fetched(source, card.golden.blob, tmp_path / "golden", "lab/digits")
        stranger = OciArtifactSource(hub.url, ssl.create_default_context())
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            fetched(stranger, card.golden.blob, tmp_path / "golden")
    assert not (tmp_path / "golden").exists()


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_what_we_pushed(open_hub: Hub, package: Path, card: EvaluationCard, tmp_path: Path) -> None:
    with open_hub.client() as client:
        pushed = push(client, package, card)
    policy, target = tmp_path / "policy.json", tmp_path / "copy"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    host = open_hub.url.removeprefix("http://")
    image = f"docker://{host}/{REPOSITORY}:1.0.0"

    def skopeo(*arguments: str) -> bytes:
        command = ["skopeo", "--policy", str(policy), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    assert manifests.digest_of(skopeo("inspect", "--raw", "--tls-verify=false", image)) == pushed.index
    # An older skopeo writes the index anew, without fields it does not know; what it lists stays as it is.
    skopeo("copy", "--all", "--src-tls-verify=false", image, f"oci:{target}:1.0.0")
    copied = {f"sha256:{path.name}" for path in (target / "blobs" / "sha256").iterdir()}
    assert copied > {*pushed.manifests.values(), *(blob_of(raw).digest for raw in FILES.values())}
