"""Folders and text files that the command writes: checked before the work, whole or not at all."""

import os
from pathlib import Path

from semanticgan.errors import UserError
from semanticgan.files import replacing


def require_writable(path: Path, option: str) -> None:
    """Raises UserError unless a file can be made where `path` is or will be a folder; leaves nothing behind."""
    existing = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not existing.is_dir():
        raise UserError(f"{option} {path}: {existing} is not a folder; name another place")
    probe = existing / f".probe-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror}); name another place") from None


def require_new(folder: Path, option: str) -> None:
    """Raises UserError unless the folder is absent or empty, and can be written."""
    require_writable(folder, option)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{option} {folder}: got a folder with files in it, expected a new or empty one")


def require_file(path: Path, option: str) -> None:
    """Raises UserError unless `path` can become a file."""
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file")
    require_writable(path.parent, option)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8; the names of files may be in another coding, and stay as they are."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write under another name, then rename. Raises UserError when the place cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
