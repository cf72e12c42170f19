"""Signatures of run folders with an SSH key: who signed is told, and changed folders are refused."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradroute.errors import UserError
from gradroute.records.seal import sealed
from gradroute.running.signatures import sign, signature_claim

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("alice", "bob")}
    for key in found.values():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    return found


def signers(key: Path) -> Path:
    kind, code, *_ = key.with_suffix(".pub").read_text().split()
    file = key.with_suffix(".signers")
    file.write_text(f"{key.name}@example.org {kind} {code}\n")
    return file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(sealed({"state": "finished", "files": {}})))
    return folder


def test_the_signer_is_told_and_others_are_not_taken_for_him(run: Path, keys: dict[str, Path]) -> None:
    assert signature_claim(run, signers(keys["alice"])).found == "it has no signature"
    sign(run, keys["alice"])
    claim = signature_claim(run, signers(keys["alice"]))
    assert claim.holds and claim.found == "alice@example.org"
    assert not signature_claim(run, signers(keys["bob"])).holds
    sign(run, keys["bob"])  # replaces it
    assert not signature_claim(run, signers(keys["alice"])).holds
    assert signature_claim(run, signers(keys["bob"])).found == "bob@example.org"


def test_a_manifest_that_changed_is_not_signed(run: Path, keys: dict[str, Path]) -> None:
    sign(run, keys["alice"])
    (run / "manifest.json").write_text(json.dumps(sealed({"state": "finished", "files": {"x": "0"}})))
    assert not signature_claim(run, signers(keys["alice"])).holds


def test_a_signature_for_another_purpose_does_not_count(run: Path, keys: dict[str, Path]) -> None:
    given = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(keys["alice"]), "-n", "file", str(run / "manifest.json")]
    subprocess.run(given, check=True)
    assert not signature_claim(run, signers(keys["alice"])).holds


def test_mistakes_are_said_in_one_line(run: Path, keys: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"--sign .*no such file; give an SSH key"):
        sign(run, run / "none")
    with pytest.raises(UserError, match=r"--sign .*: cannot sign \("):
        sign(run, run / "manifest.json")
    with pytest.raises(UserError, match=r"--signers .*no such file; its lines are NAME KEY"):
        signature_claim(run, run / "none")
    (run / "manifest.json.sig").symlink_to(keys["alice"])
    with pytest.raises(UserError, match="is a link that leads out"):
        signature_claim(run, signers(keys["alice"]))


@pytest.mark.slow
def test_the_command_line_signs_and_checks(
    smoke: Path, keys: dict[str, Path], forked: Callable[..., Any], tmp_path: Path
) -> None:
    copy = tmp_path / smoke.name
    shutil.copytree(smoke, copy)
    result = forked("gradroute-verify", str(copy), "--sign", str(keys["alice"]), cwd=tmp_path)
    assert result.returncode == 0 and "the manifest is signed" in result.stdout, result.stdout + result.stderr
    for key, status in (("alice", 0), ("bob", 1)):
        result = forked("gradroute-verify", str(copy), "--signers", str(signers(keys[key])), cwd=tmp_path)
        assert result.returncode == status, result.stdout
