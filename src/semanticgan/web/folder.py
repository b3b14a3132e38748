"""The data folder behind the page: its images, and masks written beside them, the old ones kept."""

import gzip
import hashlib
import itertools
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from semanticgan.data.coding import coding_of, count_values, two_codings, values_in
from semanticgan.data.dataset import palette_of, read_mask
from semanticgan.data.sources import find_root, has_mask, list_images, mask_path, sharing_a_mask
from semanticgan.errors import UserError
from semanticgan.files import replacing
from semanticgan.labels import IGNORE_COLOUR, IGNORE_INDEX, LabelSpec, default_colour
from semanticgan.visuals import save_png
from semanticgan.web import pictures

KEPT = ".kept"  # folder of old masks beside the new: hidden, so that no one takes them for masks
THUMBNAIL = 128  # pixels that the shorter side keeps
KEPT_BYTES = 240  # of a name there, without its number: file systems allow 255


class UnknownError(UserError):
    """A name that is not in the folder."""


class DataFolder:
    """Images are known by the names found in the folder; what is no such name is never looked up as a path."""

    def __init__(
        self,
        root: Path,
        labels: LabelSpec,  # of the model; its coding does not matter, the folder's masks decide theirs
        channels: int,
    ) -> None:
        self.root, self.channels = find_root(root), channels
        _require_classes(self.root, labels)
        self._lock = threading.Lock()
        self.names: list[str] = []
        self._known: set[str] = set()
        self.labeled: set[str] = set()
        self.labels = labels
        self._decided = False  # whether the masks show what their values mean
        self._with_class: str | None = None  # an image whose mask shows a class: the one to ask first
        self._shared: dict[str, str] = {}  # images that have one mask with another -> what is wrong with that
        self._palette: bytes | None = None  # of new masks; unknown before the first is saved
        self.reload()

    def reload(self) -> None:
        """Read again what is there, and what the masks' values mean.

        Raises UserError for a folder without images, and for masks of 0 and 255 alone where the model has more classes; then
        all stays as it was.
        """
        names = [name for name in list_images(self.root, str(self.root)) if _can_be_labeled(self.root, name)]
        if not names:
            raise UserError(f"{self.root}: no images below a folder called images; put them there, as docs/data.md says")
        shared = {name: problem for *both, problem in sharing_a_mask(self.root, names) for name in both}
        with self._lock:  # a mask that is being saved must not be missed
            self._look_at_masks(names)
            self.names, self._known, self._shared = names, set(names), shared

    def _look_at_masks(self, names: Iterable[str]) -> None:
        """Of these images. Under the lock, as whatever changes what is known of the masks."""
        labeled = {name for name in names if has_mask(self.root, name)}
        coding = coding_of(self._counts(labeled))
        if coding == "binary" and self.labels.num_classes > 2:
            expected = f"class ids of the {self.labels.num_classes} classes of the model"
            raise UserError(f"{self.root}: got masks of 0 and 255 alone, expected {expected}")
        self.labels = self.labels.model_copy(update={"coding": coding or "index"})
        self.labeled, self._decided, self._palette = labeled, coding is not None, None

    def _counts(self, names: Iterable[str]) -> Iterator[np.ndarray]:
        """How often each value occurs, of every mask that can be read; one that shows a class comes first if one is known."""
        for name in sorted(names, key=lambda name: (name != self._with_class, name)):
            with suppress(UserError):
                count = count_values(mask_path(self.root / name))
                if count[1:IGNORE_INDEX].any():
                    self._with_class = name
                yield count

    @property
    def ignores(self) -> bool:
        """Whether its masks can hold pixels to be ignored."""
        return self.labels.coding == "index"

    def path(self, name: str) -> Path:
        """Raises UnknownError unless `name` is one of the folder's images."""
        if name not in self._known:
            raise UnknownError("no such image in the folder; reload the page")
        return self.root / name

    def require_place(self, name: str) -> None:
        """Raises UserError for an image that has its mask with another, or whose mask is a link to nothing."""
        mask = mask_path(self.root / name)
        problem = self._shared.get(name)
        if mask.is_symlink() and not mask.exists():
            problem = f"{mask}: link to a mask that is not there; fetch it, or remove the link"
        if problem:
            raise UserError(problem.replace(str(self.root) + os.sep, ""))

    def listing(self, which: str, start: int, count: int) -> dict[str, Any]:
        """A part of the images, `which` of all, labeled, unlabeled."""
        chosen = [n for n in self.names if which == "all" or (n in self.labeled) == (which == "labeled")]
        return {
            "total": len(self.names),
            "labeled": len(self.labeled),
            "ignore": self.ignores,
            "found": len(chosen),
            "images": [{"name": n, "labeled": n in self.labeled} for n in chosen[start : start + count]],
        }

    def open(self, name: str) -> tuple[pictures.Opened, bool]:
        """The image, and whether it has a mask by now. Raises UserError where no mask could be saved, as `require_place`."""
        path = self.path(name)
        self.require_place(name)
        picture, labeled = pictures.open_picture(path, name, self.channels), self.has_mask(name)
        if labeled and not self._decided:
            with self._lock:
                self._look_at_masks(self.names)
        return picture, labeled

    def has_mask(self, name: str) -> bool:
        """Whether an image has a mask by now: not only the page writes and removes them."""
        with self._lock:
            there = has_mask(self.root, name)
            (self.labeled.add if there else self.labeled.discard)(name)
        return there

    def whole(self, name: str) -> tuple[bytes, str]:
        """The image at its own size as a file that any browser shows, and its media type."""
        pixels = pictures.read(self.path(name), name, self.channels).pixels
        if pixels.size > 12_000_000 and max(pixels.shape) <= pictures.MAX_JPEG_SIDE:
            return pictures.jpeg(pixels, 92), "image/jpeg"
        return pictures.png(pixels), "image/png"

    def thumbnail(self, name: str) -> bytes:
        pixels = pictures.read(self.path(name), name, self.channels, at_least=THUMBNAIL).pixels
        return pictures.jpeg(pictures.at_most(pixels, 8 * THUMBNAIL), 80)  # a strip is long still

    def mask(self, name: str) -> tuple[bytes, tuple[int, int]] | None:
        """Class ids row by row, gzipped, with width and height; None without a mask. Raises UserError for a bad one."""
        path = mask_path(self.path(name))
        if not path.is_file():
            return None
        pictures.require_pixels(path, path.name)
        try:
            label = read_mask(path, self.labels)
        except UserError as error:
            raise UserError(str(error).replace(str(self.root) + os.sep, "")) from None
        return gzip.compress(label.tobytes(), 1), (label.shape[1], label.shape[0])

    def save(self, name: str, label: UInt8[np.ndarray, "h w"]) -> dict[str, Any]:
        """Write a mask beside its image, whole or not at all; one that is there is kept under a number first.

        Raises UserError for class ids that the folder's masks cannot hold, for another size than the image's, and as
        `require_place`.
        """
        path = self.path(name)
        self.require_place(name)
        size = pictures.read(path, name, self.channels, at_least=16).size
        if size != (label.shape[1], label.shape[0]):
            raise UserError(f"{name}: got a mask of {label.shape[1]} x {label.shape[0]}, expected {size[0]} x {size[1]}")
        target = mask_path(path)
        with self._lock:
            if not self._decided:
                self._look_at_masks(self.names)  # somebody else may have written the first one
            self._require_readable(name, label)
            kept = keep(target) if target.is_file() else None
            if self.ignores:
                self._write(target, label)
            else:
                save_png(target, (label * 255)[:, :, None])
            self.labeled.add(name)
            if _shows_class(label):
                self._decided, self._with_class = True, name
        shown = [os.path.relpath(p, self.root) if p else None for p in (target, kept)]
        return {"mask": shown[0], "kept": shown[1], "labeled": len(self.labeled), "total": len(self.names)}

    def _require_readable(self, name: str, label: UInt8[np.ndarray, "h w"]) -> None:
        """Raises UserError where a mask, beside the others, would be read as another than it is."""
        good = (label < self.labels.num_classes) | ((label == IGNORE_INDEX) & self.ignores)
        if not good.all():
            also = ", or 255" if self.ignores else "; masks of 0 and 255 have no ignored pixels"
            raise UserError(f"{name}: got class id {int(label[~good][0])}, expected 0 to {self.labels.num_classes - 1}{also}")
        if not self.ignores:
            return
        others, count = self.labeled - {name}, np.bincount(label.reshape(-1), minlength=256)
        if not _shows_class(label) and coding_of(itertools.chain([count], self._counts(others))) == "binary":
            raise UserError(
                f"{name}: with this mask the folder's would hold background and ignored pixels alone, which would be read as two "
                "classes; save one with a class first"
            )
        if _shows_both(count) or not any(map(_shows_both, self._counts({name}))):
            return
        counts = {mask_path(self.root / other): count for other in others for count in self._counts({other})}
        count[IGNORE_INDEX] = 0  # the palette that it is written with tells it from a class
        if two := two_codings(values_in(counts | {mask_path(self.root / name): count})):
            raise UserError(
                f"{name}: its mask is the only one with class 1 and ignored pixels, without which those of "
                f"{os.path.relpath(two[0], self.root)} would be taken for a class; save another such mask first"
            )

    def _write(self, target: Path, label: UInt8[np.ndarray, "h w"]) -> None:
        """Class ids with colours that mean no other class in the masks that are there, else as grey levels."""
        if self._palette is None:
            self._palette = palette_beside(self.labels, (mask_path(self.root / name) for name in sorted(self.labeled)))
        image = Image.fromarray(label)
        if self._palette:
            image.putpalette(self._palette)
        with replacing(target) as temporary:
            image.save(temporary, "PNG", compress_level=1)

    def drawn(self, labeled: bool, most: int) -> list[str]:
        """Up to `most` labelled or unlabelled images that can be opened, the same ones again while they last."""
        chosen = [name for name in self.names if (name in self.labeled) == labeled]
        chosen.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
        good = (name for name in chosen if self.has_mask(name) == labeled and self._can_be_opened(name))
        return list(itertools.islice(good, most))

    def following(self, name: str) -> str | None:
        """The next image without a mask, in the folder's order and round its end; None if there is no other."""
        names = self.names
        start = names.index(name) + 1 if name in names else 0
        others = (other for other in names[start:] + names[:start] if other != name and other not in self.labeled)
        return next((other for other in others if not self.has_mask(other) and self._can_be_opened(other)), None)

    def _can_be_opened(self, name: str) -> bool:
        """As far as can be told without decoding it."""
        try:
            pictures.require_pixels(self.path(name), name)
            self.require_place(name)
        except UserError:
            return False
        return (self.root / name).is_file()


def _shows_class(label: UInt8[np.ndarray, "h w"]) -> bool:
    """Whether the class ids show that they are class ids, as 1 and above do."""
    return bool(((label > 0) & (label < IGNORE_INDEX)).any())


def _shows_both(count: np.ndarray) -> bool:
    """Whether a mask holds class 1 and ignored pixels, and so shows what 255 means in others."""
    return bool(count[1] and count[IGNORE_INDEX])


def keep(mask: Path) -> Path:
    """Give a mask file a second name, `.kept/NAME.1.png` or the first free number; never over a file. Of a link, a copy.

    Raises UserError where that cannot be.
    """
    folder = mask.parent / KEPT
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}), so the mask stays as it is; make the folder writable"
        ) from None
    short = os.fsencode(mask.stem)[:KEPT_BYTES].decode(errors="ignore")
    number = 0
    while True:
        number += 1
        place = folder / f"{short}.{number}.png"
        with suppress(OSError):  # a file system without links
            if not mask.is_symlink():  # a second name for the link would lead elsewhere from its folder
                os.link(mask, place)
                return place
        if not os.path.lexists(place):
            with replacing(place) as temporary:
                shutil.copyfile(mask, temporary)
            return place


def palette_beside(labels: LabelSpec, masks: Iterable[Path]) -> bytes:
    """A palette in which no colour is one of another class in these masks: the model's, or that of the first of them.

    Empty where neither will do. Pixels to be ignored have a colour of their own.
    """
    found = dict.fromkeys(colours for mask in masks if (colours := palette_of(mask)[: labels.num_classes]))
    for chosen in (labels.palette, *list(found)[:1]):
        if len(chosen) == labels.num_classes and all(_agree(chosen, other) for other in (chosen, *found)):
            used = set(chosen).union(*found)
            ignored = next(c for c in (IGNORE_COLOUR, *map(default_colour, range(256))) if c not in used)
            return labels.model_copy(update={"palette": chosen}).palette_bytes(ignored)
    return b""


def _agree(one: Sequence[tuple[int, ...]], other: Sequence[tuple[int, ...]]) -> bool:
    """Whether no colour has two ids."""
    return all(j == k for j, colour in enumerate(one) for k, also in enumerate(other) if colour == also)


def _can_be_labeled(root: Path, name: str) -> bool:
    """Not what lies outside a folder called images, nor under a name that is no text."""
    try:
        name.encode()
        mask_path(root / name)
    except (UserError, UnicodeEncodeError):
        return False
    return True


def _require_classes(root: Path, labels: LabelSpec) -> None:
    """Raises UserError when classes.json names other classes than the model's."""
    if (root / "classes.json").exists():
        names = LabelSpec.from_file(root / "classes.json").names
        if names != labels.names:
            raise UserError(
                f"{root / 'classes.json'}: got {', '.join(names)}, expected the model's classes, {', '.join(labels.names)}; "
                "use a model of these classes"
            )
