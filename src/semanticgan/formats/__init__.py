"""Image sets in the formats that people have: into this project's layout, out of it, or from one to another."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from semanticgan.errors import UserError
from semanticgan.formats import annotations, dicom, folders, layouts, nnunet, volumes
from semanticgan.formats.sets import (
    ImageSet,
    Options,
    files_below,
    new_folder,
    notes_on_stacks,
    place_image,
    read_items,
    read_json,
    save_label,
    unpack,
    write_json,
)
from semanticgan.labels import IGNORE_INDEX


def write_data(content: ImageSet, out: Path) -> None:
    """This project's layout: images/, masks/, classes.json, and, if the source has them, lists and volumes.json."""
    suffixes: dict[str, str] = {}
    values: set[int] = set()
    for item, pixels, label in read_items(content.items):
        suffixes[item.name] = Path(place_image(item, pixels, out / "images" / item.name)).suffix
        if label is not None:
            save_label(out / "masks" / f"{item.name}.png", label, content.labels)
            values |= set(np.unique(label).tolist())
    if IGNORE_INDEX in values <= {0, IGNORE_INDEX}:
        raise UserError("masks: got none but background and ignored pixels, which would read as class 1; label some pixels")
    if content.classes_known:
        write_json(out / "classes.json", content.labels.classes_file())
    for name, items in content.lists.items():
        lines = "".join(f"images/{i}{suffixes[i]}\n" for i in items)
        (out / f"{name}.txt").write_text(lines, encoding="utf-8", errors="surrogateescape")
    if content.volumes:
        volumes.write_geometries(out / "volumes.json", content.volumes)


@dataclass(frozen=True)
class Format:
    """How to tell a format, what of Options its reader takes, and how to read and write it."""

    found: Callable[[Path], bool]
    takes: tuple[str, ...] = ()
    read: Callable[[Path, Options], ImageSet] | None = None
    write: Callable[[ImageSet, Path], None] | None = None


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda source: all((source / name).is_dir() for name in names)


def _is_data(source: Path) -> bool:
    return any((path.parent / "masks").is_dir() for pattern in ("images", "*/images") for path in source.glob(pattern))


def _is_cvat(source: Path) -> bool:
    return source.name == "annotations.xml" or (source / "annotations.xml").is_file()


def _is_coco(source: Path) -> bool:
    return annotations.find_coco(source) is not None


def _is_stylegan(source: Path) -> bool:
    content = read_json(source / "dataset.json") if (source / "dataset.json").is_file() else None
    return isinstance(content, dict) and isinstance(content.get("labels"), list | None)


def _is_nifti(source: Path) -> bool:
    return source.name.lower().endswith(volumes.NIFTI) if source.is_file() else bool(files_below(source, volumes.NIFTI))


def _is_dicom(source: Path) -> bool:
    if source.is_file():
        return dicom.is_dicom(source)
    return any(dicom.is_dicom(path) for path in list(files_below(source, ("",)).values())[:100])


PAIRS = ("images", "masks", "reduce_zero_label")
# In the order in which they are looked for. `classes` goes with every one.
FORMATS = {
    "nnunet": Format(nnunet.is_nnunet, ("window", "plane"), nnunet.read_nnunet, nnunet.write_nnunet),
    "celebamask": Format(_has(layouts.CELEB_IMAGES, layouts.CELEB_MASKS), (), layouts.read_celebamask),
    "authors": Format(_has("label_data"), ("reduce_zero_label",), layouts.read_authors, layouts.write_authors),
    "voc": Format(_has("SegmentationClass"), ("images", "reduce_zero_label"), layouts.read_voc, layouts.write_voc),
    "cvat": Format(_is_cvat, ("images",), annotations.read_cvat),
    "mmseg": Format(_has("img_dir", "ann_dir"), PAIRS, folders.read_folders, folders.write_mmseg),
    "data": Format(_is_data, ("reduce_zero_label",), folders.read_data, write_data),
    "nifti": Format(_is_nifti, ("images", "masks", "window", "plane"), volumes.read_nifti, volumes.write_nifti),
    "stylegan": Format(_is_stylegan, (), layouts.read_stylegan),
    "coco": Format(_is_coco, ("images",), annotations.read_coco, annotations.write_coco),
    "coco-polygons": Format(lambda _: False, (), None, lambda content, out: annotations.write_coco(content, out, polygons=True)),
    "dicom": Format(_is_dicom, ("window",), dicom.read_dicom),
    "folders": Format(lambda source: source.is_dir(), PAIRS, folders.read_folders),
}  # fmt: skip
READABLE = tuple(name for name, one in FORMATS.items() if one.read)
WRITABLE = tuple(name for name, one in FORMATS.items() if one.write)


def convert(
    source: Path,
    out: Path,
    from_format: str | None = None,
    to_format: str = "data",
    options: Options | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Read a set and write it to the folder `out`, new or empty, whole or not at all.

    `source` is a folder, a file or a zip of them; without `from_format` its format is found out. Raises UserError with
    a line for everything that is wrong.
    """
    options = options or Options()
    for option, name, known, possible in (
        ("--from", from_format, READABLE, "written"),
        ("--to", to_format, WRITABLE, "read"),
    ):
        if name is not None and name not in known:
            why = f"can only be {possible}" if name in FORMATS else "no such format"
            raise UserError(f"{option} {name}: {why}, expected {', '.join(known)}; correct the name")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; correct the path")
    with ExitStack() as stack:
        place = source
        if source.is_file() and source.suffix.lower() == ".zip":
            near = next(path for path in out.absolute().parents if path.is_dir())
            place = unpack(source, Path(stack.enter_context(TemporaryDirectory(prefix=".unpacked-", dir=near))) / "set")
        stack.enter_context(_naming(place, source))
        given = [f.name for f in fields(options) if f.name != "classes" and getattr(options, f.name)]
        name = from_format or _detect(place, given)
        chosen = FORMATS[name]
        assert chosen.read is not None
        useless = [option for option in given if option not in chosen.takes]
        if useless:
            takes = ", ".join(f"--{o.replace('_', '-')}" for o in ("classes", *chosen.takes))
            raise UserError(f"--{useless[0].replace('_', '-')}: means nothing for {name}, which takes {takes}; leave it out")
        content = _with_volumes(chosen.read(place, options), place, options)
        classes = ", ".join(content.labels.names[:12]) + (", ..." if content.labels.num_classes > 12 else "")
        counts = f"{len(content.items)} images, {content.num_labeled} of them with label maps"
        say(f"{source}: {name}, {counts}" + (f"; classes: {classes}" if content.classes_known else ""))
        for note in (*content.notes, *notes_on_stacks(content.items)):
            say(note.replace(str(place), str(source)))
        write = FORMATS[to_format].write
        assert write is not None
        with new_folder(out) as folder:
            write(content, folder)
    say(f"{out}: written as {to_format}")


@contextmanager
def _naming(place: Path, source: Path) -> Iterator[None]:
    """UserErrors name the archive, not the place where it was unpacked."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(place), str(source))) from None


def _detect(source: Path, given: list[str]) -> str:
    """The first format that the source looks like and that takes the options given."""
    for name, one in FORMATS.items():
        if set(given) <= set(one.takes) and one.read and one.found(source):
            return name
    raise UserError(f"{source}: no format that is known here, expected one of {', '.join(READABLE)}; say which with --from")


def _with_volumes(content: ImageSet, source: Path, options: Options) -> ImageSet:
    """With the volumes that the slices come from, where a volumes.json lies beside the images."""
    images = options.folder(source, "images") or source
    for folder in (source, images, images.parent):
        if not content.volumes and (folder / "volumes.json").is_file():
            return replace(content, volumes=volumes.read_geometries(folder / "volumes.json"))
    return content
