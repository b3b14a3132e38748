"""Images packed once into uint8 memory maps, which training then reads at any place in microseconds."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from semanticgan.config import DataConfig
from semanticgan.data.dataset import MAX_PROBLEMS, is_grey, load_picture, raise_problems, read_mask
from semanticgan.data.sources import mask_path
from semanticgan.data.transforms import fit_image, fit_label
from semanticgan.errors import UserError
from semanticgan.files import cache_folder
from semanticgan.labels import LabelSpec

VERSION = 1  # part of the key: raise it when the packed bytes change
BROKEN_SHARE = 0.01
_CHUNK = 16  # images a task
_KEEP_DAYS = 30


@dataclass(frozen=True)
class Packed:
    paths: tuple[str, ...]
    images: np.memmap  # uint8 [N, R, R, C]
    labels: np.memmap | None  # uint8 [N, R, R], 255 where ignored
    left_out: tuple[str, ...]  # a message for each image that could not be read
    notes: tuple[str, ...] = ()  # lines to say aloud


def _stat_line(path: Path) -> str:
    try:
        stat = path.stat()
        return f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}"
    except OSError:
        return f"{path}\0missing"


def pack_key(root: Path, paths: Sequence[str], data: DataConfig, labels: LabelSpec | None) -> str:
    """What the packed bytes depend on, as a name: settings, and path, size and time of every file."""
    settings = [VERSION, data.resolution, data.channels, data.fit, labels and [labels.coding, labels.num_classes]]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for path in paths:
        digest.update(_stat_line(root / path).encode("utf-8", "surrogateescape") + b"\n")
        if labels is not None:
            digest.update(_stat_line(mask_path(root / path)).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:32]


def pack(
    root: Path,
    paths: Sequence[str],
    *,
    data: DataConfig,
    labels: LabelSpec | None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Images (and with `labels` their masks) at data.resolution as memory maps, made once and then found again.

    With `labels` every problem is an error; without, masks are not read, and up to 1 % broken images are left out and
    named. Raises UserError with every problem. Two processes may pack the same at once.
    """
    if data.channels is None:
        raise ValueError("data.channels must be decided before packing")
    root = Path(os.path.abspath(root))
    if not paths:
        raise UserError(f"{root}: no images to read, expected at least one")
    cache = cache or cache_folder()
    folder = cache / f"pack-{pack_key(root, paths, data, labels)}"
    try:
        if not (folder / "index.json").exists():
            cache.mkdir(parents=True, exist_ok=True)
            _prune(cache)
            temporary = Path(tempfile.mkdtemp(prefix="new-", dir=cache))
            try:
                _write(temporary, root, paths, data, labels, progress)
                _move(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        os.utime(folder / "index.json")
        return _open(folder, data)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{cache}: packed images cannot be kept there ({reason}); free space or set SEMANTICGAN_CACHE to another folder"
        ) from None


def _move(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not (folder / "index.json").exists():  # else another process was first: its files hold the same
            raise


def _open(folder: Path, data: DataConfig) -> Packed:
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    n, side, channels = len(index["paths"]), data.resolution, data.num_channels
    images = np.memmap(folder / "images.u8", np.uint8, "r", shape=(n, side, side, channels))
    labels = np.memmap(folder / "labels.u8", np.uint8, "r", shape=(n, side, side)) if index["labels"] else None
    return Packed(tuple(index["paths"]), images, labels, tuple(index["left_out"]), tuple(index["notes"]))


def _prune(cache: Path) -> None:
    """Remove packs unused for a month, and what killed runs left half-written."""
    now = time.time()
    for folder in [*cache.glob("pack-*"), *cache.glob("new-*")]:
        mark = folder / "index.json" if folder.name.startswith("pack-") else folder / "images.u8"
        with suppress(FileNotFoundError):  # another process was first
            days = (now - (mark if mark.exists() else folder).stat().st_mtime) / 86400
            if days > (_KEEP_DAYS if folder.name.startswith("pack-") else 1):
                shutil.rmtree(folder, ignore_errors=True)


Result = tuple[np.ndarray, np.ndarray | None, tuple[bool, bool]] | str


def _read_one(root: Path, path: str, data: DataConfig, labels: LabelSpec | None) -> Result:
    """One image and its label at the packed size, whether it was stretched and is the first of several; or what is wrong."""
    try:
        picture = load_picture(root / path, data.num_channels, at_least=2 * data.resolution)
        image, about = fit_image(picture.pixels, data.resolution, data.fit), (picture.stretched, picture.frames > 1)
        if labels is None:
            return image, None, about
        label = read_mask(mask_path(root / path), labels, picture.size)
        return image, fit_label(label, data.resolution, data.fit, labels.num_classes), about
    except UserError as error:
        return str(error)


def _read_all(root: Path, paths: Sequence[str], data: DataConfig, labels: LabelSpec | None) -> Iterator[Result]:
    """Read by all threads, in order, a few chunks ahead of the consumer and no more."""

    def read_chunk(chunk: Sequence[str]) -> list[Result]:
        return [_read_one(root, path, data, labels) for path in chunk]

    threads = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    chunk = _CHUNK if data.resolution <= 256 else 1
    chunks = iter([paths[k : k + chunk] for k in range(0, len(paths), chunk)])
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = deque(pool.submit(read_chunk, c) for c in islice(chunks, 2 * threads))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(pool.submit(read_chunk, c) for c in islice(chunks, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _write(
    folder: Path,
    root: Path,
    paths: Sequence[str],
    data: DataConfig,
    labels: LabelSpec | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    good, problems, deep, stacked = [], [], 0, 0
    allowed = 0 if labels is not None else int(BROKEN_SHARE * len(paths))
    with open(folder / "images.u8", "wb") as images, open(folder / "labels.u8", "wb") as label_maps:
        for done, (path, result) in enumerate(zip(paths, _read_all(root, paths, data, labels), strict=False), 1):
            if isinstance(result, str):
                problems.append(result)
                if len(problems) > max(allowed, MAX_PROBLEMS):
                    break
            else:
                _append(images, result[0])
                if result[1] is not None:
                    _append(label_maps, result[1])
                good.append(path)
                deep += result[2][0]
                stacked += result[2][1]
            if progress is not None and (done % 50 == 0 or done == len(paths)):
                progress(done, len(paths))
    if len(problems) > allowed:
        kind = "images or masks" if labels is not None else f"images, more than 1 % of {len(paths)}"
        raise_problems(problems, f"{root}: {len(problems)}{' or more' if done < len(paths) else ''} bad {kind}:")
    notes = [f"{deep} images have more than 8 bits a channel: stretched between their .1 and 99.9 percentiles"] if deep else []
    if stacked:
        notes.append(f"{stacked} files hold several pictures, of which the first is read")
    if problems:
        notes.append(f"left out {len(problems)} broken images of {len(paths)}")
    index = {"paths": good, "labels": labels is not None, "left_out": problems, "notes": notes}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    for file in folder.iterdir():  # on the disk before the folder gets its name
        with open(file, "rb") as written:
            os.fsync(written.fileno())


def _append(file: BinaryIO, array: np.ndarray) -> None:
    file.write(np.ascontiguousarray(array).data)


def detect_channels(root: Path, paths: Sequence[str], labeled: Sequence[str] = ()) -> Literal[1, 3]:
    """1 if all of `labeled` and up to 200 of `paths`, evenly taken, are grey; else 3. Files that are broken do not count."""
    step = max(1, -(-len(paths) // 200))
    for path in dict.fromkeys([*labeled, *paths[::step]]):
        try:
            grey = is_grey(load_picture(root / path, 3, at_least=64).pixels)
        except UserError:
            continue
        if not grey:
            return 3
    return 1
