"""Files that appear whole or not at all, and the folder of copies that can be made again."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from semanticgan.errors import UserError


def cache_folder() -> Path:
    """$SEMANTICGAN_CACHE, else semanticgan below the user's cache folder."""
    given = os.environ.get("SEMANTICGAN_CACHE")
    return Path(given).expanduser() if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semanticgan"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another name beside `path` to write under; renamed to `path` when all went well, else removed. Makes the folder.

    Raises UserError when the place cannot be written.
    """
    short = os.fsdecode(os.fsencode(path.name)[:100])  # file systems allow 255 bytes, and a character may have four
    temporary = path.with_name(f".{short}.{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another place or free space") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
