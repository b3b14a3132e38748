"""Memory that a step frees and the next one asks for again."""

import ctypes
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3)
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """From here on this process keeps what it frees, up to 2 GB a piece: the pages of a map need not be made again.

    The C library of Linux hands pieces above 32 MB back at once, and the system fills every page with zeros when it gives
    them out again: a third of a step's time at 256 px. Does nothing where there is no such library.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(MMAP_THRESHOLD, LARGEST)
            mallopt(TRIM_THRESHOLD, LARGEST)
