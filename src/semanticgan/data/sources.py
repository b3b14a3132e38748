"""What files are where: images, their masks, and which of them are for training and for validation."""

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from semanticgan.data.dataset import VOLUMES, raise_problems
from semanticgan.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".webp")
OTHERS = (".gif", ".jp2", ".heic", ".avif", ".svs", ".npy", ".mha", ".nrrd", *VOLUMES)  # images, for others
MASKS = frozenset({"masks"})  # folders in which no images are looked for
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

    `spec` is looked up as given, else below `root`; the lines below `root`, else as given. Sorted for a folder, in the file's
    order for a list; each image once. Raises UserError with every line that leads nowhere, and for a `spec` that names one
    place as given and another below `root`.
    """
    path = _look_up(root, spec)
    if path is None:
        raise UserError(f"{spec}: no such file or folder, neither as given nor below {root}; correct the path")
    images = _below(path) if path.is_dir() else _listed(root, path)
    if not images:
        form = f"files ending in {', '.join(SUFFIXES)}" if path.is_dir() else "image paths, one a line"
        found = f"; {other}" if path.is_dir() and (other := passed_over(path)) else ""
        raise UserError(f"{path}: no images in this {'folder' if path.is_dir() else 'list'}, expected {form}{found}")
    return list(dict.fromkeys(_name(root, image) for image in images))


def _look_up(root: Path, text: str) -> Path | None:
    """What a folder's or a list's name means."""
    given, below = _existing(Path(text)), _existing(root / text)
    if given and below and not given.samefile(below) and not text.startswith((".", "/", "~")):
        raise UserError(
            f"{text}: got two such places, {given.absolute()} and {below}; write ./{text} for the first, or the whole path"
        )
    return given or below


def _existing(path: Path) -> Path | None:
    with suppress(OSError, ValueError, RuntimeError):  # a name too long, with a null byte, or of a user who is not there
        if (path := path.expanduser()).exists():
            return path
    return None


def _below(folder: Path) -> list[str]:
    """Every image file below a folder; folders named `masks`, what is hidden and contact sheets left out."""
    images: list[str] = []
    for here, files in walk(folder, MASKS):
        images += [os.path.join(here, f) for f in files if f.lower().endswith(SUFFIXES) and f != CONTACT_SHEET]
    return sorted(images)


def walk(folder: Path, without: frozenset[str] = frozenset()) -> Iterator[tuple[str, list[str]]]:
    """Folders and their files; left out is what is hidden, and folders of the names `without`.

    Each folder comes once, those behind links last: a file that lies below the folder itself has the name that it has there.
    """
    seen, roots = set(), [str(folder)]
    for root in roots:
        for here, folders, files in os.walk(root):
            folders[:] = [] if (real := os.path.realpath(here)) in seen else sorted(
                f for f in folders if f not in without and not f.startswith(".")
            )  # fmt: skip
            if real in seen:
                continue
            seen.add(real)
            roots += [path for f in folders if os.path.islink(path := os.path.join(here, f))]
            yield here, [f for f in files if not f.startswith(".")]


def passed_over(folder: Path) -> str:
    """What is said of the images of other formats below a folder; nothing where there are none."""
    names = (f.lower() for _, files in walk(folder, MASKS) for f in files)
    found = Counter(max((s for s in OTHERS if name.endswith(s)), key=len) for name in names if name.endswith(OTHERS))
    if not found:
        return ""
    advice = "; `semanticgan convert` reads NIfTI and DICOM" if found.keys() & {*VOLUMES} else ""
    kinds = ", ".join(f"{suffix} ({count})" for suffix, count in found.most_common())
    return f"passed over: files that are not read as images, {kinds}{advice}"


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
        image = _existing(root / text) or _existing(Path(text))
        if image is not None and image.is_file():
            images.append(str(image))
        else:
            shown = text if len(text) <= 100 else text[:97] + "..."
            problems.append(f"{path}:{number}: {shown!r}: no such image, neither below {root} nor as given; correct the line")
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
    """A tenth of the labelled images, at least two; which ones depends on their names alone.

    Where ten folders or more hold them, whole folders are drawn: they may be patients or volumes, whose images are alike.
    Ones with more than a tenth are left out, and if no others are enough, single images are drawn.
    """
    count = max(2, round(len(labeled) / 10))
    folders = defaultdict(list)
    for image in labeled:
        folders[os.path.dirname(image)].append(image)
    if len(folders) >= 10:
        drawn: list[str] = []
        for folder in _by_hash(folder for folder, images in folders.items() if len(images) <= count):
            drawn += folders[folder] if len(drawn) < count else []
        if len(drawn) >= count:
            return tuple(sorted(drawn))
    return tuple(sorted(_by_hash(labeled)[:count]))


def _by_hash(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())


def _hold_out(root: Path, labeled: Sequence[str], before: Sources | None) -> tuple[tuple[str, ...], list[str]]:
    """Validation images, and what to say of them: those of the run before, and more of what it was not trained on if they are
    less than a tenth by now; without one drawn from the labelled. Raises UserError for too few.
    """
    held = [image for image in before.val if has_mask(root, image)] if before else []
    if before and held:
        fresh = _by_hash(image for image in labeled if image not in {*held, *before.labeled})
        drawn = tuple(sorted([*held, *fresh[: max(0, round(len({*labeled, *held}) / 10) - len(held))]]))
        notes = [f"validation: {len(drawn)} images, {len(held)} of them those of the run before; none that it was trained on"]
    elif len(labeled) < 3:
        raise UserError(
            f"{root}: got {len(labeled)} labelled images, expected at least 3, as two are held out; add some or give --val"
        )
    else:
        drawn = draw_validation(labeled)
        notes = [f"validation: no --val, so {len(drawn)} of {len(labeled)} labelled images are held out: {_some(drawn)}"]
    folders = {os.path.dirname(image) for image in (*labeled, *drawn)}
    both = {os.path.dirname(image) for image in drawn} & {os.path.dirname(image) for image in labeled if image not in {*drawn}}
    if both and len(folders) > 1:
        notes.append(
            f"warning: {min(both)} has labelled images and images held out: if its images are of one patient or volume, "
            "hold whole ones out with --val"
        )
    return drawn, notes


def find_sources(
    root: Path,
    labeled: Sequence[str] = (),
    unlabeled: Sequence[str] = (),
    val: Sequence[str] = (),
    before: Sources | None = None,  # of the run that this one goes on from
) -> Sources:
    """Which images are labelled, unlabelled and for validation, from folders and lists (see `list_images`).

    Without `labeled`: every image with a mask; without `unlabeled`: every image not in `val`; without `val`: a tenth of
    the labelled, at least two, which then leaves both other sets: those of the run before, and others that it was not trained
    on. Raises UserError with every problem.
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
            f"{root}: no labelled images; expected some with a mask (images/a.jpg with masks/a.png), or --labeled with a list; "
            "`semanticgan convert` reads other layouts"
        )
    notes = [f"labelled: {len(chosen)} images" + ("" if labeled else " (every image with a mask)")]
    overlap = banned & set(chosen)
    if overlap:
        notes.append(
            f"warning: {len(overlap)} images are both labelled and for validation, such as {min(overlap)}: scores will flatter"
        )
    if not val:
        drawn, said = _hold_out(root, chosen, before)
        notes += said
        banned = frozenset(drawn)
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
    notes.append(f"unlabelled: {len(pool)} images, the labelled ones included{_by_folder(pool)}")
    return Sources(root, tuple(chosen), tuple(pool), tuple(val_images), tuple(notes))


def _by_folder(pool: Sequence[str]) -> str:
    """How many images lie in which folders, so that masks and overlays among them are seen; nothing for one folder."""
    folders = Counter(os.path.dirname(image) or "." for image in pool).most_common()
    if len(folders) == 1:
        return ""
    more = f" and {len(folders) - 5} more folders" if len(folders) > 5 else ""
    return ": " + ", ".join(f"{count} in {folder}" for folder, count in folders[:5]) + more


def stray_masks(root: Path) -> list[str]:
    """A message for each file in a `masks` folder below root that no image will find: no image of its name, or not PNG."""
    problems = []
    for here, files in walk(root):
        parts = list(Path(here).parts)
        below = [k for k in range(len(Path(root).parts), len(parts)) if parts[k] == "masks"]
        if not below:
            continue
        parts[below[-1]] = "images"
        beside = Path(*parts)
        stems = {Path(f).stem for f in os.listdir(beside) if f.lower().endswith(SUFFIXES)} if beside.is_dir() else set()
        for file in sorted(f for f in files if f.lower().endswith(SUFFIXES)):
            stem, suffix = os.path.splitext(file)
            if not os.path.exists(os.path.join(here, file)):
                problems.append(f"{here}/{file}: link to a mask that is not there; fetch it, or remove the link")
            elif stem not in stems:
                same = {unicodedata.normalize("NFC", s) for s in stems}
                why = "its image's name has letters composed in another way (Unicode); rename one of them"
                missing = f"expected {beside / stem}.* beside it: add it or remove the mask"
                problems.append(
                    f"{here}/{file}: mask without image; {why if unicodedata.normalize('NFC', stem) in same else missing}"
                )
            elif suffix != ".png":
                problems.append(f"{here}/{file}: got a mask ending in {suffix}, expected {stem}.png; store masks as PNG")
    return problems


def _some(images: Sequence[str]) -> str:
    return ", ".join(images[:5]) + (f" and {len(images) - 5} more" if len(images) > 5 else "")
