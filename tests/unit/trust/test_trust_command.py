"""`skerry trust sign-policy`: a version is signed once, and further signatures go beside the first."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from skerry.api.errors import AlreadyExistsError, InvalidError
from skerry.cli import trust
from skerry.core import anchor


def test_a_version_is_signed_once_and_a_second_signature_goes_beside_the_first(tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery\n")
    for name in ("anna", "ben"):
        trust.keygen(tmp_path / name, passphrase_file=secret)
    written = tmp_path / "policy.yaml"
    kind = {"apiVersion": "skerry.dev/v1alpha1", "kind": "TrustPolicy"}
    written.write_text(yaml.safe_dump({**kind, "spec": {"mode": "warn"}}))

    def sign(path: Path, out: str, name: str, version: int = 0) -> Path:
        target = tmp_path / out
        trust.sign_policy(path, target, version=version, key=[tmp_path / name], passphrase_file=secret)
        return target

    with pytest.raises(InvalidError, match="has no version"):
        sign(written, "none.yaml", "anna")
    first = sign(written, "first.yaml", "anna", version=1)
    both = yaml.safe_load(sign(first, "both.yaml", "ben").read_text())
    before = yaml.safe_load(first.read_text())
    one, two = (anchor.read(item["spec"]["envelope"], "") for item in (before, both))
    assert (one.payload, len(one.signatures), len(two.signatures)) == (two.payload, 1, 2)
    assert {name: both[name] for name in kind} == kind
    with pytest.raises(AlreadyExistsError):
        sign(first, "both.yaml", "ben")
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump({**both, "spec": {**both["spec"], "mode": "off"}}))
    with pytest.raises(InvalidError, match="was signed as version 1 with other terms; give --version 2"):
        sign(changed, "off.yaml", "anna")
    assert yaml.safe_load(sign(changed, "off.yaml", "anna", version=2).read_text())["spec"]["version"] == 2
