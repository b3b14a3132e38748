"""Endless data order and random numbers as functions of (seed, name, nimg), so that a resumed run is bit-exact."""

import hashlib

import numpy as np
import torch
from jaxtyping import Int64


def _hash63(*parts: int | str) -> int:
    """A 63-bit number from the parts; the same in every process, unlike Python's hash()."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, name: str, nimg: int) -> torch.Generator:
    """The CPU random generator of purpose `name` at image `nimg`."""
    return torch.Generator().manual_seed(_hash63(seed, name, nimg))


class Stream:
    """The order of an endless pass over n images: one random permutation an epoch.

    Image number i of the sequence depends on (n, seed, name, i) alone, so reading can start anywhere.
    """

    def __init__(
        self,
        n: int,  # number of images
        seed: int,
        name: str,  # streams of different names are independent
    ):
        if n < 1:
            raise ValueError(f"Stream {name}: got {n} images, expected at least 1")
        self.n, self.seed, self.name = n, seed, name
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def _permutation(self, epoch: int) -> Int64[np.ndarray, " n"]:
        if epoch != self._epoch:
            random = np.random.default_rng(_hash63(self.seed, self.name, "epoch", epoch))
            self._epoch, self._order = epoch, random.permutation(self.n).astype(np.int64)
        return self._order

    def indices(self, nimg: int, count: int) -> Int64[np.ndarray, " count"]:
        """The images number nimg, nimg + 1, ..., nimg + count - 1 of the sequence, each in 0..n-1."""
        parts, end = [np.zeros(0, np.int64)], nimg + count
        while nimg < end:
            epoch, start = divmod(nimg, self.n)
            part = self._permutation(epoch)[start : start + end - nimg]
            parts.append(part)
            nimg += len(part)
        return np.concatenate(parts)
