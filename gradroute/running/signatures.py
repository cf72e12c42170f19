"""Sign a run's manifest with the user's SSH key, and check who signed one; `ssh-keygen -Y` does both.

The manifest has the checksum of every file of the run, so a signature of it is one of the whole folder.
"""

import shutil
import subprocess
from pathlib import Path

from gradroute.errors import UserError, plain_text
from gradroute.records.safe_reading import read_bytes
from gradroute.running.claims import Claim

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
NAMESPACE = "gradroute-run"  # a signature for another purpose does not count
SECONDS = 120  # for a passphrase or a security key


def _keygen(*arguments: str | Path, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise UserError("ssh-keygen is not installed; signatures need OpenSSH 8.2 or newer")
    try:
        return subprocess.run([program, *arguments], input=given, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"ssh-keygen did not end within {SECONDS} s") from None


def _said(result: subprocess.CompletedProcess[bytes]) -> str:
    lines = (result.stderr or result.stdout).decode(errors="replace").strip().splitlines()
    return plain_text(lines[-1]) if lines else f"exit status {result.returncode}"


def sign(run: Path, key: Path) -> None:
    """Write a signature of a run's manifest beside it. Raises: UserError if the key cannot sign."""
    signature = run / SIGNATURE
    if not key.is_file():
        raise UserError(f"--sign {key}: no such file; give an SSH key, such as ~/.ssh/id_ed25519")
    signature.unlink(missing_ok=True)  # ssh-keygen would ask whether to replace it
    result = _keygen("-Y", "sign", "-f", key, "-n", NAMESPACE, run / MANIFEST)
    if result.returncode or not signature.is_file():
        raise UserError(f"--sign {key}: cannot sign ({_said(result)})")


def signature_claim(run: Path, signers: Path) -> Claim:
    """Return whether one of the signers in a file (`allowed_signers` of ssh-keygen) signed a run's manifest.

    Raises: UserError if there is no such file.
    """
    what = "one of the signers signed the manifest"
    if not signers.is_file():
        raise UserError(
            f"--signers {signers}: no such file; its lines are NAME KEY, see ALLOWED SIGNERS in ssh-keygen(1)"
        )
    if not (run / SIGNATURE).is_file():
        return Claim(what, False, "it has no signature")
    read_bytes(run, SIGNATURE)  # refuses links and what is no file
    found = _keygen("-Y", "find-principals", "-f", signers, "-s", run / SIGNATURE)
    names = found.stdout.decode(errors="replace").split()
    if found.returncode or not names:
        return Claim(what, False, f"by a key of none of them ({_said(found)})")
    checked = _keygen(
        "-Y", "verify", "-f", signers, "-I", names[0], "-n", NAMESPACE, "-s", run / SIGNATURE,
        given=read_bytes(run, MANIFEST),
    )  # fmt: skip
    return Claim(what, checked.returncode == 0, names[0] if checked.returncode == 0 else _said(checked))
