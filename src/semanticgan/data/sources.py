"""What files are where: images, their masks, and which of them are for training and for validation."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from semanticgan.data.dataset import raise_problems
from semanticgan.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
CONTACT_SHEET = "contact_sheet.png"  # of `check`: no image of the data, wherever it lies


@dataclass(frozen=True)
class Sources:
    """Image paths, relative to `root` when below it, else absolute, with forward slashes."""

    root: Path
    labeled: tuple[str, ...]  # training images with masks
    unlabeled: tuple[str, ...]  # all training images, `labeled` included; masks are not read
    val: tuple[str, ...]  # with masks
    notes: tuple[str, ...]  # lines to say aloud


def mask_path(image: Path) -> Path:
    """Where the mask of an image lies: the last folder `images` replaced by `masks`, same stem, `.png`.

    Raises UserError when no folder of the path is called `images`.
    """
    for path in (image, image.absolute()):
        parts = list(path.parts)
        for k in range(len(parts) - 2, -1, -1):
            if parts[k] == "images":
                parts[k] = "masks"
                return Path(*parts).with_suffix(".png")
    raise UserError(f"{image}: no folder called images in its path, so its mask cannot be found; put images below images/")


def has_mask(root: Path, image: str) -> bool:
    """Whether the mask file of an image exists."""
    try:
        return mask_path(root / image).is_file()
    except UserError:
        return False


def find_root(root: Path) -> Path:
    """The data folder as an absolute path. Raises UserError when it is missing or not a folder."""
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise UserError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}; expected the folder with your images")
    return root


def list_images(root: Path, spec: str) -> list[str]:
    """The images that `spec` means: a folder (all below it) or a text file of paths, one a line, `#` for remarks.

    `spec` and the lines are looked up as given, else below `root`. Sorted for a folder, in the file's order for a
    list; each image once. Raises UserError with every line that leads nowhere.
    """
    path = _look_up(root, spec)
    if path is None:
        raise UserError(f"{spec}: no such file or folder, neither as given nor below {root}; correct the path")
    images = _below(path) if path.is_dir() else _listed(root, path)
    if not images:
        form = f"files ending in {', '.join(SUFFIXES)}" if path.is_dir() else "image paths, one a line"
        raise UserError(f"{path}: no images in this {'folder' if path.is_dir() else 'list'}, expected {form}")
    return list(dict.fromkeys(_name(root, image) for image in images))


def _look_up(root: Path, text: str) -> Path | None:
    for find in (lambda: Path(text).expanduser(), lambda: root / text):
        with suppress(OSError, ValueError, RuntimeError):  # a name too long, with a null byte, or of a user who is not there
            if (path := find()).exists():
                return path
    return None


def _below(folder: Path) -> list[str]:
    """Every image file below a folder; folders named `masks`, what is hidden and contact sheets left out; links followed once."""
    images, seen = [], set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else sorted(f for f in folders if f != "masks" and not f.startswith("."))
        if real not in seen:
            shown = (f for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(".") and f != CONTACT_SHEET)
            images += [os.path.join(here, f) for f in shown]
        seen.add(real)
    return sorted(images)


def _listed(root: Path, path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"{path}: cannot be read as a list; expected a folder, or a text file of image paths, one a line"
        ) from None
    images, problems = [], []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        image = _look_up(root, text)
        if image is not None and image.is_file():
            images.append(str(image))
        else:
            shown = text if len(text) <= 100 else text[:97] + "..."
            problems.append(f"{path}:{number}: {shown!r}: no such image, neither as given nor below {root}; correct the line")
    raise_problems(problems)
    return images


@lru_cache(maxsize=100_000)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _name(root: Path, image: str) -> str:
    """The path relative to root if below it (through links to either, too), else absolute."""
    path = os.path.abspath(image)
    for base, target in (
        (str(root), path),
        (_real_folder(str(root)), os.path.join(_real_folder(os.path.dirname(path)), os.path.basename(path))),
    ):
        if target.startswith(base.rstrip(os.sep) + os.sep):
            return Path(os.path.relpath(target, base)).as_posix()
    return Path(path).as_posix()


def _gather(root: Path, specs: Sequence[str], banned: frozenset[str] = frozenset()) -> list[str]:
    """The images of several folders and lists; `banned` ones are dropped from folders, kept where a list names them."""
    images: dict[str, None] = {}
    for spec in specs:
        path = _look_up(root, spec)
        found = list_images(root, spec)
        images |= dict.fromkeys(i for i in found if i not in banned or (path is not None and path.is_file()))
    return list(images)


def _need_masks(root: Path, images: Sequence[str], role: str) -> None:
    problems = []
    for image in images:
        if not has_mask(root, image):
            try:
                mask = mask_path(root / image)
                problems.append(
                    f"{root / image}: listed as {role} but has no mask; expected {mask}: add it or take the image off the list"
                )
            except UserError as error:
                problems.append(str(error))
    raise_problems(problems)


def sharing_a_mask(root: Path, images: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Pairs of images with the same place for their masks, and what is wrong with that."""
    first: dict[Path, str] = {}
    for image in images:
        other = first.setdefault(mask_path(root / image), image)
        if other != image:
            problem = (
                f"got one mask for both, {mask_path(Path(image))}; give one of them another name, and a mask of its own or none"
            )
            yield other, image, f"{root / other} and {image}: {problem}"


def draw_validation(labeled: Sequence[str]) -> tuple[str, ...]:
    """A tenth of the labelled images, at least two; which ones depends on their names alone."""
    count = max(2, round(len(labeled) / 10))
    by_hash = sorted(labeled, key=lambda image: hashlib.sha256(os.fsencode(image)).digest())
    return tuple(sorted(by_hash[:count]))


def find_sources(root: Path, labeled: Sequence[str] = (), unlabeled: Sequence[str] = (), val: Sequence[str] = ()) -> Sources:
    """Which images are labelled, unlabelled and for validation, from folders and lists (see `list_images`).

    Without `labeled`: every image with a mask; without `unlabeled`: every image not in `val`; without `val`: a tenth of
    the labelled, at least two, which then leaves both other sets. Raises UserError with every problem.
    """
    root = find_root(root)
    val_images = _gather(root, val)
    _need_masks(root, val_images, "validation")
    everything = list_images(root, str(root)) if not (labeled and unlabeled) else []
    banned = frozenset(val_images)
    if labeled:
        chosen = _gather(root, labeled, banned)
        _need_masks(root, chosen, "labelled")
    else:
        raise_problems(stray_masks(root))
        chosen = [image for image in everything if image not in banned and has_mask(root, image)]
    if not chosen:
        raise UserError(
            f"{root}: no labelled images; expected some with a mask (images/a.jpg with masks/a.png), or --labeled with a list"
        )
    notes = [f"labelled: {len(chosen)} images" + ("" if labeled else " (every image with a mask)")]
    overlap = banned & set(chosen)
    if overlap:
        notes.append(
            f"warning: {len(overlap)} images are both labelled and for validation, such as {min(overlap)}: scores will flatter"
        )
    if not val:
        if len(chosen) < 3:
            raise UserError(
                f"{root}: got {len(chosen)} labelled images, expected at least 3, as two are held out; add some or give --val"
            )
        drawn = draw_validation(chosen)
        banned = frozenset(drawn)
        notes.append(f"validation: no --val, so {len(drawn)} of {len(chosen)} labelled images are held out: {_some(drawn)}")
        chosen = [image for image in chosen if image not in banned]
        val_images = list(drawn)
    else:
        notes.append(f"validation: {len(val_images)} images")
    raise_problems([problem for *_, problem in sharing_a_mask(root, sorted({*chosen, *val_images}))])
    pool = _gather(root, unlabeled, banned) if unlabeled else [i for i in everything if i not in banned]
    if not val:
        pool = [image for image in pool if image not in banned]
    seen = banned & set(pool) - overlap
    if seen:
        notes.append(f"warning: {len(seen)} validation images are also unlabelled training images, such as {min(seen)}")
    pool = list(dict.fromkeys([*chosen, *pool]))
    notes.append(f"unlabelled: {len(pool)} images, the labelled ones included")
    return Sources(root, tuple(chosen), tuple(pool), tuple(val_images), tuple(notes))


def stray_masks(root: Path) -> list[str]:
    """A message for each file in a `masks` folder below root that no image will find: no image of its name, or not PNG."""
    problems = []
    for here, folders, files in os.walk(root, followlinks=False):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        parts = list(Path(here).parts)
        below = [k for k in range(len(Path(root).parts), len(parts)) if parts[k] == "masks"]
        if not below:
            continue
        parts[below[-1]] = "images"
        beside = Path(*parts)
        stems = {Path(f).stem for f in os.listdir(beside) if f.lower().endswith(SUFFIXES)} if beside.is_dir() else set()
        for file in sorted(f for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(".")):
            stem, suffix = os.path.splitext(file)
            if stem not in stems:
                problems.append(
                    f"{here}/{file}: mask without image; expected {beside / stem}.* beside it: add it or remove the mask"
                )
            elif suffix != ".png":
                problems.append(f"{here}/{file}: got a mask ending in {suffix}, expected {stem}.png; store masks as PNG")
    return problems


def _some(images: Sequence[str]) -> str:
    return ", ".join(images[:5]) + (f" and {len(images) - 5} more" if len(images) > 5 else "")
