"""Agents as processes, on real disks, enrolled at a hub whose certificates the tests make."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import secrets
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from tests.integration.agent.surroundings import KEY_ID, PATIENCE, UID, Registry, eventually, stop_servers

from skerry.agent import identity
from skerry.agent.disk import AcceptedDesired, Disk
from skerry.agent.identity import Identity
from skerry.api.kinds.enrollment import Endpoints
from skerry.core import access, messages, trust
from skerry.core.messages import DesiredState, WorkloadDesired
from skerry.drivers.runtime.process import ProcessRuntime


@dataclass
class Authority:
    """A hub's CA and signing key."""

    directory: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    signing: Ed25519PrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, name: str, *, days: tuple[float, float] = (-1, 30), organisation: str = "") -> bytes:
        """Key and certificate in one PEM; `days` from now is when it is valid."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self.build(name, key, days=days, organisation=organisation).sign(self.key, hashes.SHA256())
        return private_pem(key) + made.public_bytes(serialization.Encoding.PEM)

    def build(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        days: tuple[float, float] = (-1, 30),
        organisation: str = "",
    ) -> x509.CertificateBuilder:
        built = certificate_builder(name, key, issuer=self.certificate.subject, days=days, organisation=organisation)
        return built.add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )

    def server_context(self, *, days: tuple[float, float] = (-1, 30), clients: bool = False) -> ssl.SSLContext:
        """With `clients` their certificates are asked for, as a broker does."""
        path = self.directory / f"server-{secrets.token_hex(4)}.pem"
        path.write_bytes(self.issue("server", days=days))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(path)
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=self.pem)
        return context


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_builder(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Name,
    days: tuple[float, float] = (-1, 30),
    organisation: str = "",
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)] if organisation else []
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
    )


@dataclass
class Device:
    """A real agent process on its own state directory, enrolled at a hub that is out of reach, unless told where."""

    directory: Path
    authority: Authority
    registry: Registry
    uid: str = UID
    mqtt_port: int = 9
    process: subprocess.Popen[bytes] | None = None
    version: int = 0

    def __post_init__(self) -> None:
        self.disk = Disk(self.directory)
        self.log_file = self.directory.parent / "agent.log"
        public = self.authority.signing.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        now = datetime.datetime.now(datetime.UTC)
        known = Identity(
            uid=self.uid,
            name="till-1",
            endpoints=Endpoints(mqtt_host="127.0.0.1", mqtt_port=self.mqtt_port, hub_url=self.registry.url),
            ca=self.authority.pem,
            desired_keys={KEY_ID: public.decode()},
            not_before=now,
            not_after=now + datetime.timedelta(days=30),
        )
        identity.save(self.disk, known, pem=self.authority.issue(self.uid, organisation=access.DEVICES))

    def sign(self, *wanted: WorkloadDesired) -> bytes:
        """Return the next desired state as the hub would send it."""
        self.version += 1
        state = DesiredState(
            uid=self.uid,
            manifest_version=self.version,
            issued_at=datetime.datetime.now(datetime.UTC),
            workloads=list(wanted),
        )
        return messages.encode(trust.sign(state, self.authority.signing, KEY_ID))

    def accept(self, *wanted: WorkloadDesired) -> None:
        """Put a desired state on the disk, as if the hub had been there once."""
        envelope = self.sign(*wanted)
        self.disk.write_desired(AcceptedDesired(manifest_version=self.version, envelope=envelope))

    def start(self, *launcher: str) -> None:
        """Start the agent, through another program if one is given."""
        log = self.log_file.open("ab")
        with log:
            self.process = subprocess.Popen(
                [sys.executable, *(launcher or ("-m", "skerry.agent")), "run", "--state-dir", str(self.directory)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self.process = None
        return code

    def journal(self) -> dict[str, object]:
        path = self.directory / "workloads" / "digits" / "journal.json"
        try:
            return msgspec.json.decode(path.read_bytes())  # type: ignore[no-any-return]
        except (FileNotFoundError, msgspec.DecodeError):  # none, or one that a test has damaged
            return {}

    def wait(self, condition: Callable[[dict[str, object]], object]) -> dict[str, object]:
        """Wait for the journal to meet the condition."""
        deadline = time.monotonic() + PATIENCE
        while not condition(journal := self.journal()):
            assert self.process is None or self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"{journal}\n{self.log()}"
            time.sleep(0.005)
        return journal

    def log(self) -> str:
        return self.log_file.read_text()

    def wait_log(self, words: str) -> None:
        self.wait(lambda _: words in self.log())

    def wait_servers(self, count: int) -> None:
        async def there() -> bool:
            return len(await ProcessRuntime(self.directory / "runtime").list()) == count

        with asyncio.Runner() as runner:
            runner.run(eventually(there))

    def stop_servers(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(stop_servers(self.directory))

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.stop_servers()
