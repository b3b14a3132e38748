"""What looks like labels beside images without label maps: named before they are converted as unlabelled."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from semanticgan.errors import UserError
from semanticgan.formats.annotations import coco_content
from semanticgan.formats.sets import files_below

MASK_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "label",
    "ann_dir",
    "annotations",
    "segmentationclass",
    "labelstr",
    "gt",
    "ground_truth",
)
# At the beginning or the end of a name they tell a label map: x_seg.nii.gz, mask_01.png, "Ground Truth/01.png".
LABEL_WORDS = frozenset(
    (*MASK_FOLDERS, "seg", "segmentation", "segmentations", "groundtruth", "truth", "annotation", "anno", "contour")
)
LABEL_FILES = (".json", ".xml", ".txt", ".npy", ".npz", ".mat", ".gif")
MAX_JSON_FILES = 100  # that are looked into
APART = "put masks into a folder of their own, with their images' names, and name both with --images and --masks"


def refuse_unread_labels(source: Path, folder: Path, images: Sequence[Path], suffixes: Sequence[str], files: bool = True) -> None:
    """Raises UserError where images below `folder`, none of which has a label map, have something that looks like one.

    That is: folders called masks or the like, images of one name, names such as x_mask beside x; and with `files`, below
    `source`, files of the images' names in forms that are no masks, or COCO's and CVAT's annotations of a part of them.
    """
    stems = {path: _stem(path, suffixes) for path in images}
    folders = {here for path in images for here in path.parents if here.is_relative_to(folder) and here != folder}
    nested = next((here for here in sorted(folders) if here.name.casefold() in LABEL_WORDS), None)
    if nested:
        raise UserError(f"{nested}: got such a folder among the images; convert {nested.parent} alone, or {APART}")
    first: dict[tuple[Path, str], Path] = {}
    for path, stem in stems.items():
        other = first.setdefault((path.parent, stem), path)
        if other != path:
            raise UserError(f"{other} and {path}: got two images of one name, maybe one the other's mask; {APART}, or rename one")
    _refuse_names(folder, stems)
    if files:
        _refuse_files(source, stems)


def _stem(path: Path, suffixes: Sequence[str]) -> str:
    suffix = max((s for s in suffixes if path.name.lower().endswith(s)), key=len, default="")
    return path.name[: len(path.name) - len(suffix)].casefold()


def _words(name: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[\W_]+", name.casefold()) if word)


def _without_label(words: tuple[str, ...]) -> tuple[str, ...] | None:
    """What is left without the word that tells a label map; None where there is no such word."""
    if words and words[-1] in LABEL_WORDS:
        return words[:-1]
    return words[1:] if words and words[0] in LABEL_WORDS else None


def _refuse_names(folder: Path, stems: dict[Path, str]) -> None:
    """Raises UserError for images that by their names, or their folders', are label maps of others."""
    labels: dict[Path, tuple[str, ...]] = {}
    beside: dict[Path, Path] = {}
    named: dict[tuple[str, ...], Path] = {}  # beginnings and ends of the other images' names
    for path, stem in stems.items():
        words = _words(stem)
        rest = _without_label(words)
        if rest is None and any(_without_label(_words(part)) is not None for part in path.relative_to(folder).parts[:-1]):
            rest = words
        if rest is not None:
            labels[path] = rest
            continue
        beside.setdefault(path.parent, path)
        for k in range(len(words)):
            named.setdefault(words[: k + 1], path)
            named.setdefault(words[k:], path)
    for path, rest in labels.items():
        other = named.get(rest) if rest else beside.get(path.parent)
        if other is not None:
            raise UserError(f"{path}: got an image that by its name is the mask of {other}; {APART}, or rename it")


def _refuse_files(source: Path, stems: dict[Path, str]) -> None:
    """Raises UserError for files that look like labels of the images and are none that is read here."""
    known = {name: path for path, stem in stems.items() for name in (stem, path.name.casefold())}
    plain = {words: path for path, stem in stems.items() if (words := _words(stem))}
    for path in files_below(source, LABEL_FILES).values():
        stem = path.stem.casefold()
        image = known.get(stem) or plain.get(_without_label(_words(stem)) or ())
        if image is not None:
            form = "expected masks as PNG, or COCO or CVAT; export them so, or convert a folder with the images alone"
            raise UserError(f"{path}: looks like labels of {image}, which cannot be read, {form}")
    for path in list(files_below(source, (".json", "annotations.xml")).values())[:MAX_JSON_FILES]:
        if _is_annotations(path):
            command = f"semanticgan convert {shlex.quote(str(path))} --out DIR"
            raise UserError(
                f"{path}: got annotations of a part of {source}, expected those of all; convert each part alone: {command}"
            )


def _is_annotations(path: Path) -> bool:
    try:
        return path.name == "annotations.xml" or coco_content(path) is not None
    except UserError:  # broken JSON
        return False
