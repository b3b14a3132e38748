"""What every format is read into and written from: named images with their label maps, the classes, lists and volumes."""

import json
import lzma
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from semanticgan.data.dataset import BROKEN, FORMATS, is_grey, load_picture, num_frames, raise_problems
from semanticgan.data.sources import SUFFIXES, walk
from semanticgan.errors import UserError
from semanticgan.labels import IGNORE_INDEX, LabelSpec, default_colour

MAX_JSON = 2**30  # bytes; the largest annotation file of COCO has half
MAX_ENTRIES = 1_000_000
MAX_SWELLING, SMALL = 10, 4 * 2**30  # an archive may hold ten times its size, or 4 GiB
IGNORE_NAMES = ("ignore", "ignored", "void")  # a class of such a name stands for pixels that do not count
BACKGROUND_NAMES = ("background", "_background_")


@dataclass(frozen=True)
class Options:
    """What the user said beside the format; each format takes some of these."""

    classes: str | None = None  # names with commas between, class 0 first, or a classes.json
    images: str | None = None  # folders, as given or below the source
    masks: str | None = None
    reduce_zero_label: bool = False  # 0 is ignored, 1 is class 0, and so on
    window: tuple[float, float] | None = None  # the values that become black and white
    plane: str | None = None  # axial, coronal, sagittal

    def folder(self, source: Path, which: str) -> Path | None:
        """The folder that --images or --masks names. Raises UserError if there is none."""
        text = getattr(self, which)
        if text is None:
            return None
        for path in (Path(text).expanduser(), source / text):
            if path.is_dir():
                return path
        raise UserError(f"--{which} {text}: no such folder, neither as given nor below {source}; correct the path")


@dataclass(frozen=True)
class Item:
    """An image and its label map (uint8, 255 where ignored), both read when asked for."""

    name: str  # below images/, without suffix: "site_a/001"
    image: Path | Callable[[], np.ndarray]
    label: Callable[[], np.ndarray] | None = None

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 1 or 3]; a file's are always 3. Raises UserError naming the file."""
        return load_picture(self.image, 3).pixels if isinstance(self.image, Path) else self.image()


@dataclass(frozen=True)
class Geometry:
    """Where the slices `NAME/0000`, `NAME/0001`, ... of a volume lie in it."""

    shape: tuple[int, int, int]  # of the file's array
    affine: tuple[tuple[float, ...], ...]  # 4x4, array index -> millimetres
    plane: str


@dataclass(frozen=True)
class ImageSet:
    """A whole set, before anything of it but headers and masks has been read."""

    items: tuple[Item, ...]
    labels: LabelSpec
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)  # list -> names of its items
    volumes: Mapping[str, Geometry] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def num_labeled(self) -> int:
        return sum(item.label is not None for item in self.items)

    @property
    def classes_known(self) -> bool:
        """Whether `labels` says something, and is no mere stand-in of a set without label maps."""
        return self.num_labeled > 0 or self.labels != LabelSpec.unnamed(2)


def read_items(items: Sequence[Item]) -> Iterator[tuple[Item, np.ndarray, np.ndarray | None]]:
    """Each item with its pixels and label map, of one size.

    Bad ones are left out, and at the end a UserError tells of each.
    """
    problems = []
    for item in items:
        try:
            pixels = item.pixels()
            label = None if item.label is None else item.label()
            if label is not None and label.shape != pixels.shape[:2]:
                (h, w), (height, width) = label.shape, pixels.shape[:2]
                raise UserError(
                    f"{item.name}: got a label map of {w}x{h}, expected its image's {width}x{height}; mend the source"
                )
        except UserError as error:
            problems.append(str(error))
            continue
        if not problems:
            yield item, pixels, label
    raise_problems(problems)


def safe_name(text: object, where: str) -> str:
    """A relative path from a file as it may be used below a folder, with forward slashes. Raises UserError for any other."""
    name = str(text).replace("\\", "/")
    parts = name.split("/")
    bad = not isinstance(text, str) or ".." in parts or name.startswith("/") or ":" in parts[0] or not name.isprintable()
    if bad or not PurePosixPath(name).name or any(len(part.encode()) > 240 for part in parts) or len(parts) > 20:
        raise UserError(f"{where}: got the name {str(text)[:100]!r}, expected a plain path below the folder; rename it there")
    return str(PurePosixPath(name))


def num_pictures(path: Path) -> int:
    """What `num_frames` says of a file; 1 where reading will raise."""
    with (
        suppress(*BROKEN, Image.DecompressionBombError, Image.DecompressionBombWarning),
        Image.open(path, formats=FORMATS) as image,
    ):
        return num_frames(image)
    return 1


def require_one_picture(path: Path) -> None:
    """Raises UserError for a mask file with several pictures."""
    if (count := num_pictures(path)) > 1:
        raise UserError(f"{path}: got {count} pictures in one mask file, expected one; split it and its image")


def notes_on_stacks(items: Sequence[Item]) -> tuple[str, ...]:
    """What to say of image files with several pictures."""
    counts = {item.image: num_pictures(item.image) for item in items if isinstance(item.image, Path)}
    stacks = [path for path, count in counts.items() if count > 1]
    if not stacks:
        return ()
    more = f", and {len(stacks) - 1} more files hold several" if len(stacks) > 1 else ""
    return (f"{stacks[0]}: holds {counts[stacks[0]]} pictures{more}: only the first is converted; split such files",)


def item_name(path: PurePosixPath | Path, suffix: str | None = None) -> str:
    """The name of an item: the path without its suffix and without folders called images or masks, which place masks."""
    stem = path.name.removesuffix(path.suffix if suffix is None else suffix)
    return "/".join([*(part for part in path.parts[:-1] if part not in ("images", "masks")), stem])


def files_below(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files with these endings below a folder by their path relative to it, sorted; as `walk` finds them."""
    paths = (Path(here, file) for here, files in walk(folder) for file in files if file.lower().endswith(tuple(suffixes)))
    return dict(sorted((path.relative_to(folder).as_posix(), path) for path in paths))


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with _2, _3, ... after those that came before; upper and lower case count as the same."""
    taken = {name.casefold() for name in names}
    seen: set[str] = set()
    out = []
    for name in names:
        new, number = name, 1
        while new.casefold() in seen or (number > 1 and new.casefold() in taken):
            number += 1
            new = f"{name}_{number}"
        seen.add(new.casefold())
        out.append(new)
    return out


def read_json(path: Path) -> Any:
    """Raises UserError for what is no JSON, or enormous."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise UserError(f"{path}: enormous JSON file, expected at most {MAX_JSON // 2**20} MiB; split it")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({str(error) or type(error).__name__}); mend the file") from None


def make_labels(names: Sequence[str], palette: Sequence[tuple[int, int, int] | None] = ()) -> LabelSpec:
    """The classes of these names; a colour that is not known is the default one. Raises UserError as LabelSpec would."""
    colours = [*palette, *[None] * (len(names) - len(palette))]
    try:
        filled = tuple(default_colour(k) if colour is None else colour for k, colour in enumerate(colours))
        return LabelSpec(names=tuple(names), palette=filled)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"classes {', '.join(names[:12])}: {reason}; say which with --classes") from None


def given_labels(classes: str | None) -> LabelSpec | None:
    """The classes of --classes, if given: names with commas between, or a classes.json."""
    if classes is None:
        return None
    if classes.endswith(".json"):
        return LabelSpec.from_file(Path(classes).expanduser())
    return make_labels([name.strip() for name in classes.split(",")])


def named_labels(
    found: Sequence[tuple[str, tuple[int, int, int] | None]], options: Options, class_0: str | None = None
) -> tuple[LabelSpec, dict[str, int], tuple[str, ...]]:
    """The classes of a source that names them (with colours), the class id of each name, and what to say.

    Class 0 is `class_0`, else the one called background, which is added where there is none. --classes chooses among the
    names: others become background. Raises UserError where it names others, or begins with one that background takes in.
    """
    names = [name for name, _ in found if name.casefold() not in IGNORE_NAMES]
    ids = {name: IGNORE_INDEX for name, _ in found if name not in names}
    labels = given_labels(options.classes)
    if labels is None:
        first = class_0 or next((name for name in names if name.casefold() in BACKGROUND_NAMES), "background")
        names = [first, *(name for name in names if name != first)]
        colours = dict(found)
        labels = make_labels(names, [colours.get(name) for name in names])
        return labels, ids | {name: k for k, name in enumerate(names)}, ()
    first = labels.names[0]
    if class_0 is None and first in names and first.casefold() not in BACKGROUND_NAMES:
        raise UserError(f"--classes: got {first!r} first, the place of all pixels outside the objects; put background first")
    missing = [name for name in labels.names[1:] if name not in names]
    if missing:
        raise UserError(f"--classes: got {missing[0]!r}, expected some of {', '.join(names[:20])}; correct the name")
    ids |= {name: labels.names.index(name) if name in labels.names else 0 for name in names}
    others = [name for name in names if name not in labels.names]
    return labels, ids, (f"counted as {first}: {', '.join(others[:10])}",) if others else ()


def require_counted(names: Sequence[str]) -> None:
    """Raises UserError for a class of a name that stands for ignored pixels when it is read back."""
    bad = next((name for name in names if name.casefold() in IGNORE_NAMES), None)
    if bad is not None:
        raise UserError(f"class {bad!r}: pixels of a class of this name are read as ignored ones; rename it in classes.json")


def place_image(item: Item, pixels: np.ndarray, stem: Path) -> str:
    """Copy the image's file, or write its pixels where it has none or a viewer would turn it; returns the file's name."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(item.image, Path):
        with Image.open(item.image) as image:
            upright = image.getexif().get(0x0112, 1) == 1
        if upright and item.image.suffix.lower() in SUFFIXES:
            target = stem.with_name(stem.name + item.image.suffix.lower())
            shutil.copyfile(item.image, target)
            return target.name
    save_image(stem.with_name(stem.name + ".png"), pixels)
    return stem.name + ".png"


def save_image(path: Path, pixels: np.ndarray, colour: bool | None = None) -> None:
    """Write an image [H, W, 1 or 3] as PNG; without `colour` in one channel if it is grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels if (not is_grey(pixels) if colour is None else colour) else pixels[:, :, 0]).save(
        path, compress_level=1
    )


def save_label(path: Path, label: np.ndarray, labels: LabelSpec) -> None:
    """Write a label map as a palette PNG whose values are the class ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label)
    image.putpalette(labels.palette_bytes())
    image.save(path, compress_level=1)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write to that gets the name `out` (absent or empty so far) when all went well, else goes away.

    Where `out` is a link to a folder, that folder is meant.
    """
    path = Path(os.path.realpath(out))
    temporary = path.parent / f".{path.name[:100]}.{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); choose another place or free space") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unpack(archive: Path, folder: Path) -> Path:
    """The files of a zip below `folder`, and the folder in it that holds the set.

    Raises UserError for names that lead elsewhere, links, and archives that swell or do not fit on the disk.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            entries = [entry for entry in content.infolist() if not entry.is_dir()]
            names = [safe_name(entry.filename, str(archive)) for entry in entries]
            if any(stat.S_ISLNK(entry.external_attr >> 16) for entry in entries):
                raise UserError(f"{archive}: got links in the archive, expected plain files; pack it again without")
            size = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_ENTRIES or size > max(SMALL, MAX_SWELLING * archive.stat().st_size):
                raise UserError(
                    f"{archive}: got {len(entries)} files of {size} bytes, more than such an archive may hold; unpack it"
                )
            folder.mkdir(parents=True)
            if size > shutil.disk_usage(folder).free:
                raise UserError(f"{archive}: {size} bytes when unpacked, more than is free beside --out; free space")
            for entry, name in zip(entries, names, strict=True):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with content.open(entry) as packed, (folder / name).open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError, ValueError) as error:
        raise UserError(f"{archive}: cannot be unpacked ({error}); fetch or pack it again") from None
    inside = [path for path in folder.iterdir() if path.name != "__MACOSX"]
    while len(inside) == 1 and inside[0].is_dir() and inside[0].name not in ("images", "img_dir", "JPEGImages"):
        folder = inside[0]
        inside = list(folder.iterdir())
    return folder
