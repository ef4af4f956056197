"""Signing by OpenSSF Model Signing's library, and its own command line against ours, both ways."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.signing import bundles, packages
from tests.unit.signing.bundles import NOW, Party, authority, holder

from skerry.api.errors import ExpiredError, IntegrityError, InvalidError, UnavailableError
from skerry.drivers.signing import package, signer
from skerry.drivers.signing.bundle import verify

pytest.importorskip("model_signing", reason="skerry[signing] is not installed")

ENCODING = serialization.Encoding.PEM
ROOT = authority("root", days=(-10, 10_000))
MIDDLE = authority("middle", ROOT, path_length=0, days=(-10, 10_000))
SIGNER = holder("Ada", MIDDLE, days=(-10, 10_000))


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    packages.make(tmp_path / "digits")
    return tmp_path / "digits"


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    """Write a private key and beside it the public one; return the former."""
    none, spki = serialization.NoEncryption(), serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.private_bytes(ENCODING, serialization.PrivateFormat.PKCS8, none))
    path.chmod(0o600)
    path.with_name(f"{path.name}.pub").write_bytes(key.public_key().public_bytes(ENCODING, spki))
    return path


def write_chain(path: Path, *parties: Party) -> Path:
    path.write_bytes(b"".join(one.certificate.public_bytes(ENCODING) for one in parties))
    return path


def run(
    *arguments: object, code: int = 0, module: str = "skerry.cli", environment: Mapping[str, str] | None = None
) -> str:
    """Run a command line as a process; return all it says."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **(environment or {})},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def theirs(*arguments: object, code: int = 0) -> str:
    return run(*arguments, code=code, module="model_signing")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_what_the_library_signs_is_verified_without_it(digits, curve):
    key = bundles.new_key(curve)
    raw = signer.sign_with_key(digits, key)
    found = verify(raw, keys=[key.public_key()], authorities=[], now=NOW)
    assert package.compare(package.digests(digits), found.files, "") == ["provenance.json"]
    assert found.signers[0].key == bundles.spki_digest(key.public_key())


def test_a_certificate_signs_and_its_chain_travels_with_it(digits):
    chain = [SIGNER.certificate, MIDDLE.certificate]
    raw = signer.sign_with_certificate(digits, SIGNER.key, chain, NOW)
    found = verify(raw, keys=[], authorities=[ROOT.certificate], now=NOW)
    assert (found.signers[0].subject, found.signers[0].issuer) == ("CN=Ada", "CN=middle")


def test_a_certificate_that_would_not_be_accepted_does_not_sign(digits):
    with pytest.raises(InvalidError, match="not of that key"):
        signer.sign_with_certificate(digits, bundles.new_key(), [SIGNER.certificate], NOW)
    for moment in (NOW - timedelta(days=11), NOW + timedelta(days=10_001)):
        with pytest.raises(ExpiredError):
            signer.sign_with_certificate(digits, SIGNER.key, [SIGNER.certificate], moment)


def test_a_mutated_signature_of_the_library_is_refused(digits):
    key = bundles.new_key()
    raw = signer.sign_with_key(digits, key)
    made = json.loads(raw)
    payload = made["dsseEnvelope"]["payload"]
    for at in range(0, len(payload) - 4, 97):
        made["dsseEnvelope"]["payload"] = payload[:at] + ("A" if payload[at] != "A" else "B") + payload[at + 1 :]
        with pytest.raises(IntegrityError):
            verify(json.dumps(made).encode(), keys=[key.public_key()], authorities=[], now=NOW)


def test_a_package_with_a_symbolic_link_is_not_signed(digits):
    shutil.move(digits / "golden.npz", digits.parent / "golden.npz")
    (digits / "golden.npz").symlink_to(digits.parent / "golden.npz")
    with pytest.raises(IntegrityError, match="symbolic link"):
        signer.sign_with_key(digits, bundles.new_key())


def test_no_unprotected_key_is_written_down(digits):
    opened: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    try:
        signer.sign_with_key(digits, bundles.new_key())
    finally:
        watching = False
    assert opened, "the library writes the signature"
    assert all(path.startswith("/proc/self/fd/") for path in opened), opened


def test_keyless_signing_without_a_network_is_refused_in_words(digits, tmp_path):
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "HOME": str(tmp_path)}
    said = run("model", "sign", digits, "--keyless", code=1, environment=nowhere)
    assert "keyless signing: does not work here" in said
    assert "use --key or --certificate" in said
    key = bundles.new_key()
    package.add_signature(digits, signer.sign_with_key(digits, key))
    who = ("--identity", "ada@example.org", "--identity-issuer", "https://example.org")
    said = run("model", "verify", digits, "--keyless", *who, code=1, environment=nowhere)
    assert "keyless verification: does not work here" in said


def test_a_sigstore_instance_of_one_s_own_that_is_none_is_told(digits, tmp_path):
    config = tmp_path / "trust.json"
    config.write_text("{}")
    with pytest.raises(UnavailableError, match="keyless signing"):
        signer.sign_keyless(digits, identity_token="x", trust_config=config)
    with pytest.raises(UnavailableError, match="keyless verification"):
        signer.verify_keyless(digits, tmp_path / "a.sig", identity="a", issuer="b", trust_config=config)


def test_their_command_line_verifies_our_signature_by_key_and_we_theirs(digits, tmp_path):
    key = write_key(tmp_path / "k.pem", bundles.new_key())
    assert "signs 3 files" in run("model", "sign", digits, "--key", key)
    [ours] = (digits / "signatures").glob("*.sig")
    assert "succeeded" in theirs("verify", "key", digits, "--signature", ours, "--public_key", f"{key}.pub")

    other = write_key(tmp_path / "other.pem", bundles.new_key(ec.SECP384R1()))
    their = digits / "signatures" / "theirs.sig"
    theirs("sign", "key", digits, "--private_key", other, "--signature", their)
    said = run("model", "verify", digits, "--key", f"{other}.pub")
    assert "theirs.sig: signed by key sha256:" in said
    assert f"{ours.name}: refused" in said

    (digits / "golden.npz").write_bytes(b"other")
    assert "failed" in theirs("verify", "key", digits, "--signature", ours, "--public_key", f"{key}.pub", code=1)
    assert "changed: golden.npz" in run("model", "verify", digits, "--key", f"{key}.pub", code=1)


def test_their_command_line_verifies_our_signature_by_certificate_and_we_theirs(digits, tmp_path):
    key = write_key(tmp_path / "k.pem", SIGNER.key)
    leaf, middle, root = (
        write_chain(tmp_path / f"{name}.pem", one)
        for name, one in (("leaf", SIGNER), ("middle", MIDDLE), ("root", ROOT))
    )
    run("model", "sign", digits, "--key", key, "--certificate", leaf, "--chain", middle)
    [ours] = (digits / "signatures").glob("*.sig")
    assert "succeeded" in theirs("verify", "certificate", digits, "--signature", ours, "--certificate_chain", root)
    assert "signed by CN=Ada, certified by CN=middle" in run("model", "verify", digits, "--chain", root)
    assert "is by CN=Ada, not CN=Eve" in run("model", "verify", digits, "--chain", root, "--identity", "CN=Eve", code=1)
    run("model", "verify", digits, "--chain", root, "--identity", "CN=Ada")

    ours.unlink()
    their = digits / "signatures" / "theirs.sig"
    with_chain = ("--signing_certificate", leaf, "--certificate_chain", middle)
    theirs("sign", "certificate", digits, "--private_key", key, *with_chain, "--signature", their)
    said = json.loads(run("model", "verify", digits, "--chain", root, "-o", "json"))
    assert said["verified"] is True
    assert said["signatures"][0]["signer"]["subject"] == "CN=Ada"


def test_a_key_with_a_password_is_made_and_signs(digits, tmp_path):
    key, password = tmp_path / "k.pem", tmp_path / "password"
    password.write_text("wind and tide\n")
    run("model", "keygen", key, "--curve", "P-384", "--password-file", password)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in key.read_bytes()
    assert "exists" in run("model", "keygen", key, "--no-password", code=1)
    run("model", "sign", digits, "--key", key, "--password-file", password)
    run("model", "verify", digits, "--key", f"{key}.pub")

    (tmp_path / "wrong").write_text("calm\n")
    wrong = run("model", "sign", digits, "--key", key, "--password-file", tmp_path / "wrong", code=1)
    assert "the password is wrong" in wrong
    assert "--password-file" in run("model", "sign", digits, "--key", key, code=1)


def on_terminal(*arguments: object, answers: list[tuple[str, str]]) -> str:
    """Run a command line on a terminal of its own and answer what it asks; return all it says."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "skerry.cli", *map(str, arguments)])
    said, left = "", list(answers)
    with os.fdopen(terminal, "r+b", buffering=0) as file:
        while True:
            if not select.select([file], [], [], 60)[0]:
                os.kill(child, signal.SIGKILL)
                pytest.fail(f"it waits for something else: {said}")
            try:
                piece = file.read(4096)
            except OSError:  # how a terminal says that nobody is there any more
                break
            if not piece:
                break
            said += piece.decode()
            if left and said.endswith(left[0][0]):
                file.write(left.pop(0)[1].encode() + b"\n")
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said
    assert not left, said
    return said


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_password_is_asked_for_on_a_terminal_and_not_shown(digits, tmp_path):
    key = tmp_path / "k.pem"
    asked = [("k.pem: ", "wind and tide"), ("confirmation: ", "wind and tide")]
    said = on_terminal("model", "keygen", key, answers=asked)
    said += on_terminal("model", "sign", digits, "--key", key, answers=[("k.pem: ", "wind and tide")])
    assert "tide" not in said
    assert b"ENCRYPTED" in key.read_bytes()
    run("model", "verify", digits, "--key", f"{key}.pub")


def test_a_key_that_others_may_read_is_warned_of(digits, tmp_path):
    key = write_key(tmp_path / "k.pem", bundles.new_key())
    key.chmod(0o644)
    assert "others may read" in run("model", "sign", digits, "--key", key)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sign", "digits"], "give --key FILE, or --keyless"),
        (["sign", "digits", "--keyless", "--key", "k"], "give --key FILE, or --keyless"),
        (["sign", "digits", "--key", "none.pem"], "cannot be read"),
        (["sign", "digits", "--key", "k.pem", "--chain", "k.pem"], "--chain: is of a certificate"),
        (["sign", "oci://127.0.0.1:1/models/digits", "--key", "k.pem"], "names no version"),
        (["verify", "oci://127.0.0.1:1/models/digits", "--key", "k.pem.pub"], "names no version"),
        (["verify", "oci://127.0.0.1:1/models/digits:v1", "--key", "k.pem.pub", "--plain-http"], "cannot be reached"),
        (["verify", "digits"], "nobody is trusted"),
        (["verify", "digits", "--key", "k.pem.pub"], "is not signed"),
        (["verify", "digits", "--key", "k.pem"], "is not a public key"),
        (["verify", "digits", "--key", "k.pem.pub", "--identity", "CN=Ada"], "--identity: is in a certificate"),
        (["verify", "digits", "--keyless", "--identity", "a"], "needs --identity and --identity-issuer"),
    ],
)
def test_wrong_usage_is_told(digits, tmp_path, monkeypatch, arguments, said):
    write_key(tmp_path / "k.pem", bundles.new_key())
    monkeypatch.chdir(tmp_path)
    assert said in run("model", *arguments, code=1)


def test_a_package_that_the_card_does_not_describe_is_not_signed(digits, tmp_path):
    key = write_key(tmp_path / "k.pem", bundles.new_key())
    (digits / "run.py").write_text("")
    assert "added: run.py" in run("model", "sign", digits, "--key", key, code=1)
    assert not (digits / "signatures").exists()
