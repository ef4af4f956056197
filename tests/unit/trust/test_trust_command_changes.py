"""`skerry trust rotate|sign|sign-policy`: nobody signs unseen what others have slipped in, nor one version twice."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml

from skerry.api.errors import IntegrityError, InvalidError, SkerryError
from skerry.cli import trust
from skerry.core import anchor
from skerry.drivers import owner_keys


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    made = tmp_path / "passphrase"
    made.write_text("correct horse battery\n")
    for name in ("anna", "ben", "policies", "evil"):
        trust.keygen(tmp_path / name, passphrase_file=made)
    return made


@pytest.fixture
def first(tmp_path: Path, secret: Path) -> Path:
    """Two owners; Ben has not signed yet."""
    made = tmp_path / "root.1.json"
    trust.init(
        made,
        owner=[tmp_path / "anna.pub", tmp_path / "ben.pub"],
        policy_key=[tmp_path / "policies.pub"],
        threshold=2,
        key=[tmp_path / "anna"],
        passphrase_file=secret,
    )
    return made


def key_id(path: Path) -> str:
    return anchor.key_id(owner_keys.load_public(path))


def test_nothing_is_built_on_an_anchor_that_its_owners_have_not_signed(
    tmp_path: Path, secret: Path, first: Path
) -> None:
    out = tmp_path / "root.2.json"
    forged = tmp_path / "forged.json"
    sealed = anchor.read(first.read_text(), "")
    root = anchor.read_root(sealed)
    policies = anchor.Role(keys=[owner_keys.load_public(tmp_path / "evil.pub")], threshold=1)
    slipped = anchor.seal(msgspec.structs.replace(root, policies=policies))
    forged.write_text(anchor.write(msgspec.structs.replace(slipped, signatures=sealed.signatures)))
    both = [tmp_path / "anna", tmp_path / "ben"]
    for current, found in ((first, 1), (forged, 0)):
        with pytest.raises(IntegrityError, match=f"has {found} of the 2 signatures it needs of its own owners"):
            trust.rotate(current, out, key=both, passphrase_file=secret)
        assert not out.exists()
    trust.sign(first, key=[tmp_path / "ben"], passphrase_file=secret)
    trust.rotate(first, out, key=both, passphrase_file=secret)
    with pytest.raises(IntegrityError, match="has 0 of the 2"):
        trust.sign(out, after=forged, key=[tmp_path / "ben"], passphrase_file=secret)
    with pytest.raises(InvalidError, match="version 2 does not follow version 2; name version 1"):
        trust.sign(out, after=out, key=[tmp_path / "ben"], passphrase_file=secret)


def test_what_changes_is_said_before_it_is_signed(
    tmp_path: Path, secret: Path, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust.sign(first, key=[tmp_path / "ben"], passphrase_file=secret)
    said = capsys.readouterr().out
    assert f"policies: 1 of {key_id(tmp_path / 'policies.pub')}" in said
    out = tmp_path / "root.2.json"
    trust.rotate(
        first, out, policy_key=[tmp_path / "evil.pub"], threshold=1, key=[tmp_path / "anna"], passphrase_file=secret
    )
    expected = [
        "owners: 1 (was 2) of 2, the same keys",
        "policies: 1 of 1",
        f"  - {key_id(tmp_path / 'policies.pub')}",
        f"  + {key_id(tmp_path / 'evil.pub')}",
    ]
    assert capsys.readouterr().out.splitlines()[:4] == expected
    with pytest.raises(SkerryError):  # a passphrase that opens nothing: what changes was said before it
        trust.sign(out, after=first, key=[tmp_path / "ben"], passphrase_file=tmp_path / "anna.pub")
    assert capsys.readouterr().out.splitlines()[1:5] == expected
    trust.sign(out, after=first, key=[tmp_path / "ben"], passphrase_file=secret)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:5] == expected
    assert lines[-1] == "and 2 of 2 of the owners of version 1"


def test_a_version_that_is_given_is_compared_with_what_is_signed(tmp_path: Path, secret: Path) -> None:
    written = tmp_path / "policy.yaml"
    kind = {"apiVersion": "skerry.dev/v1alpha1", "kind": "TrustPolicy"}
    written.write_text(yaml.safe_dump({**kind, "spec": {"mode": "enforce"}}))

    def sign(path: Path, out: str, name: str, version: int = 0) -> Path:
        target = tmp_path / out
        trust.sign_policy(path, target, version=version, key=[tmp_path / name], passphrase_file=secret)
        return target

    first = sign(written, "first.yaml", "policies", version=3)
    document = yaml.safe_load(first.read_text())
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump({**document, "spec": {**document["spec"], "mode": "off"}}))
    for version in (1, 2, 3):
        with pytest.raises(InvalidError, match="was signed as version 3 with other terms; give --version 4"):
            sign(changed, "again.yaml", "policies", version=version)
    beside = yaml.safe_load(sign(first, "beside.yaml", "evil", version=3).read_text())
    one, two = (anchor.read(item["spec"]["envelope"], "") for item in (document, beside))
    assert (one.payload, len(two.signatures)) == (two.payload, 2), "the very same, signed by another one too"
    assert yaml.safe_load(sign(changed, "next.yaml", "policies", version=4).read_text())["spec"]["version"] == 4
