"""Masks as polygons and as run lengths, COCO's compressed form included, and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_CROSSINGS = 50_000_000  # of a polygon's edges with the rows of the image


def polygon_mask(points: Sequence[Any], height: int, width: int) -> np.ndarray:
    """The pixels whose centres lie inside a polygon x0, y0, x1, y1, ... by the even-odd rule; bool [H, W].

    Raises ValueError for what is no polygon.
    """
    xy = np.asarray(points, np.float64)
    if xy.ndim != 1 or xy.size < 6 or xy.size % 2 or not np.isfinite(xy).all() or np.abs(xy).max() > 1e9:
        raise ValueError("expected at least three points as finite numbers x, y")
    x, y = xy[0::2], xy[1::2] - 0.5  # row r has its centres at y = r
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    first = np.clip(np.ceil(np.minimum(y, y2)), 0, height).astype(np.int64)
    stop = np.clip(np.ceil(np.maximum(y, y2)), 0, height).astype(np.int64)
    top, bottom, count = int(first.min()), int(stop.max()), stop - first
    if count.sum() > MAX_CROSSINGS:
        raise ValueError("it crosses the rows of the image millions of times")
    edge = np.repeat(np.arange(len(x)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    crossing = x[edge] + (row - y[edge]) * ((x2 - x)[edge] / (y2 - y)[edge])
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    flips = np.bincount((row - top) * (width + 1) + column, minlength=(bottom - top) * (width + 1)) & 1
    mask = np.zeros((height, width), bool)
    mask[top:bottom] = np.bitwise_xor.accumulate(flips.reshape(-1, width + 1).astype(bool), axis=1)[:, :width]
    return mask


def rle_to_mask(counts: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Lengths of runs of 0, 1, 0, ... down the columns -> bool [H, W]. Raises ValueError unless they fill the image."""
    runs = np.asarray(counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iu" or (runs < 0).any() or sum(map(int, runs)) != height * width:
        raise ValueError(f"expected run lengths that add up to {height} x {width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def mask_to_rle(mask: np.ndarray) -> list[int]:
    """bool [H, W] -> lengths of runs of 0, 1, 0, ... down the columns, the first of which may be 0."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def pack_counts(counts: Sequence[int]) -> str:
    """COCO's compressed form: each count less the one two places before, in digits of 5 bits from low to high.

    Bit 5 says that more follow, and 48 is added to make a printable character; the first three counts stand alone.
    """
    text = []
    for k, count in enumerate(counts):
        value = count - counts[k - 2] if k > 2 else count
        more = True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text.append(chr(digit + 32 * more + 48))
    return "".join(text)


def unpack_counts(text: str) -> list[int]:
    """The inverse of `pack_counts`. Raises ValueError for text that it cannot have written."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError("expected compressed run lengths")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (1 << shift) if digit & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("expected compressed run lengths, got half of one")
    return counts


def outlines(mask: np.ndarray) -> list[list[int]] | None:
    """Polygons x0, y0, x1, y1, ... along the pixels' borders that fill to exactly this mask; None if it has holes."""
    padded = np.pad(mask, 1).astype(np.int8)
    rows, columns = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    # A step along the border, the mask on its right hand: corner (y, x) -> the corners after it.
    after: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (y, x), sign in zip(np.argwhere(rows).tolist(), rows[rows != 0].tolist(), strict=True):
        start, end = ((y, x), (y, x + 1)) if sign > 0 else ((y, x + 1), (y, x))
        after.setdefault(start, []).append(end)
    for (y, x), sign in zip(np.argwhere(columns).tolist(), columns[columns != 0].tolist(), strict=True):
        start, end = ((y + 1, x), (y, x)) if sign > 0 else ((y, x), (y + 1, x))
        after.setdefault(start, []).append(end)
    polygons = []
    while after:
        first = corner = next(iter(after))
        path, step = [first], (0, 0)
        while corner != first or len(path) == 1:
            ends = after[corner]
            # Where two pixels touch at a corner, turn right, which keeps them apart.
            right = (corner[0] + step[1], corner[1] - step[0])
            end = right if right in ends else ends[0]
            ends.remove(end)
            if not ends:
                del after[corner]
            new = (end[0] - corner[0], end[1] - corner[1])
            path[-1:] = [end] if new == step else [corner, end]
            corner, step = end, new
        y, x = np.array(path[:-1]).T
        if (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() < 0:  # runs the other way round: the border of a hole
            return None
        polygons.append(np.stack([x, y], 1).reshape(-1).tolist())
    return polygons
