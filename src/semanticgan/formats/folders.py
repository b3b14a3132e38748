"""Folders of images and of masks with the same stem: of any names, this project's own, and mmsegmentation's."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from semanticgan.data.coding import labels_of
from semanticgan.data.dataset import load_picture, raise_problems, read_mask_values
from semanticgan.data.sources import SUFFIXES, find_root, has_mask, list_images, mask_path, sharing_a_mask, stray_masks
from semanticgan.errors import UserError
from semanticgan.formats.sets import (
    ImageSet,
    Item,
    Options,
    distinct,
    files_below,
    given_labels,
    item_name,
    make_labels,
    place_image,
    read_items,
    read_json,
    require_one_picture,
    save_label,
)
from semanticgan.formats.unread import APART, MASK_FOLDERS, refuse_unread_labels
from semanticgan.labels import IGNORE_INDEX, LabelSpec

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "jpegimages", "imagestr", "inputs", "input")
Read = Callable[[Path], np.ndarray]


def stem_of(relative: str, suffixes: Sequence[str]) -> str:
    """The name of an item for a file, for any of these endings (`.nii.gz` is one)."""
    suffix = max((s for s in suffixes if relative.lower().endswith(s)), key=len, default="")
    return item_name(PurePosixPath(relative), relative[len(relative) - len(suffix) :])


def pair_files(images: Path, masks: Path | None, suffixes: Sequence[str]) -> dict[str, tuple[Path, Path | None]]:
    """Name -> image and mask of the same relative stem (or image's full name), each below its folder.

    Where one folder lies in the other, its files are its own alone. Raises UserError without any image or without any
    mask in the folder of masks, for masks that no image has, two masks of one stem, and one mask for two images.
    """
    found, mask_files = _apart(images, masks, suffixes)
    if not found:
        raise UserError(f"{images}: no images, expected files ending in {', '.join(suffixes)}; name their folder with --images")
    if masks is not None and not mask_files:
        expected = f"expected files ending in {', '.join(suffixes)}; export masks so, or convert the images' folder alone"
        raise UserError(f"{masks}: no masks in it, found {_kinds(masks)}, {expected}")
    problems = []
    by_stem: dict[str, Path] = {}
    for name, path in mask_files.items():
        other = by_stem.setdefault(stem_of(name, suffixes), path)
        if other != path:
            problems.append(f"{other} and {path}: got two masks of one name, expected one; take one of them away")
    matched: dict[str, Path] = {}
    owners: dict[Path, Path] = {}
    for name, image in found.items():
        keys = (item_name(PurePosixPath(name), ""), stem_of(name, suffixes))
        mask = next((by_stem[key] for key in keys if key in by_stem), None)
        if mask is not None:
            matched[name] = mask
            owner = owners.setdefault(mask, image)
            if owner != image:
                problems.append(f"{owner} and {image}: got one mask for both, {mask}; give one of them another name")
    stray = [path for path in by_stem.values() if path not in owners]
    problems += [f"{path}: mask without image; expected one of the same stem below {images}" for path in stray]
    raise_problems(problems)
    names = distinct([stem_of(name, suffixes) for name in found])
    return {new: (path, matched.get(name)) for new, (name, path) in zip(names, found.items(), strict=True)}


def _apart(images: Path, masks: Path | None, suffixes: Sequence[str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """The files of the images' folder and of the masks'; what lies in the inner one is not the outer one's."""
    found = files_below(images, suffixes)
    if masks is None:
        return found, {}
    mask_files = files_below(masks, suffixes)
    real_images, real_masks = Path(os.path.realpath(images)), Path(os.path.realpath(masks))
    if real_images in real_masks.parents:
        below = real_masks.relative_to(real_images).as_posix() + "/"
        found = {name: path for name, path in found.items() if not name.startswith(below)}
    if real_masks in real_images.parents:
        below = real_images.relative_to(real_masks).as_posix() + "/"
        mask_files = {name: path for name, path in mask_files.items() if not name.startswith(below)}
    return found, mask_files


def _kinds(folder: Path) -> str:
    """How many files of which endings a folder holds."""
    counts = Counter(path.suffix or "nameless" for path in files_below(folder, ("",)).values())
    return ", ".join(f"{count} {kind} files" for kind, count in counts.most_common(3)) or "no files"


def guess_folders(source: Path, options: Options) -> tuple[Path, Path | None]:
    """The folders of images and masks: as --images and --masks say, else by usual names, else all is images.

    Raises UserError where there is a choice, for masks without a folder of images, and for one folder as both.
    """
    images, masks = options.folder(source, "images"), options.folder(source, "masks")
    below = sorted(path for path in source.iterdir() if path.is_dir()) if source.is_dir() else []
    for which, usual in (("images", IMAGE_FOLDERS), ("masks", MASK_FOLDERS)):
        candidates = [path for path in below if path.name.lower() in usual and files_below(path, ("",))]
        if (images if which == "images" else masks) is None and candidates:
            if len(candidates) > 1:
                raise UserError(f"{source}: got {', '.join(p.name for p in candidates)} for {which}; say which with --{which}")
            images, masks = (candidates[0], masks) if which == "images" else (images, candidates[0])
    if images is None and masks is not None:
        raise UserError(f"{source}: got masks in {masks} but no folder of images beside it; name one with --images")
    if images is not None and masks is not None and images.samefile(masks):
        raise UserError(f"{images}: got one folder for images and masks; {APART}")
    return images or source, masks


def near_labels(source: Path, images: Path, options: Options) -> LabelSpec | None:
    """The classes: --classes, else classes.json or `segment`'s summary.json in the source, else classes.json by the images."""
    labels = given_labels(options.classes)
    for path in (source / "classes.json", source / "summary.json", images.parent / "classes.json"):
        if labels is None and path.is_file():
            if path.name == "classes.json":
                return LabelSpec.from_file(path)
            content = read_json(path)
            names = content.get("classes") if isinstance(content, dict) else None
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                return make_labels(names)
    return labels


def decide_labels(files: Sequence[Path], labels: LabelSpec | None, read: Read, binary: bool) -> tuple[LabelSpec, bool]:
    """The classes over all masks, and whether 255 is class 1 (with `binary`, where only 0 and 255 occur).

    Raises UserError with every mask that cannot be read or has a value that is no class.
    """
    found: dict[Path, set[int]] = {}
    problems = []
    for path in files:
        try:
            found[path] = {int(value) for value in np.unique(read(path))}
        except UserError as error:
            problems.append(str(error))
    raise_problems(problems)
    labels = labels_of(found, labels, binary)
    return labels.model_copy(update={"coding": "index"}), labels.coding == "binary"


def binary_notes(is_binary: bool) -> tuple[str, ...]:
    return ("only 0 and 255 occur in the masks: 255 is class 1",) if is_binary else ()


def index_label(read: Read, path: Path, is_binary: bool) -> Callable[[], np.ndarray]:
    return lambda: ((read(path) == 255) if is_binary else read(path)).astype(np.uint8)


def from_colours(path: Path, palette: Mapping[tuple[int, int, int], int]) -> np.ndarray:
    """The class ids of a mask drawn in colours. Raises UserError for a colour of no class."""
    rgb = load_picture(path, 3).pixels.astype(np.int32)
    code = rgb[:, :, 0] << 16 | rgb[:, :, 1] << 8 | rgb[:, :, 2]
    known = {r << 16 | g << 8 | b: k for (r, g, b), k in palette.items()}
    codes, inverse = np.unique(code, return_inverse=True)
    unknown = [int(c) for c in codes if int(c) not in known]
    if unknown:
        colour = tuple(unknown[0] >> shift & 255 for shift in (16, 8, 0))
        raise UserError(f"{path}: got the colour {colour}, which is no class's; name all classes with their colours")
    return np.array([known[int(c)] for c in codes], np.int64)[inverse].reshape(code.shape)


def mask_reader(labels: LabelSpec | None, options: Options) -> Read:
    """How masks become values: by their colours where a mask is in colour and the classes are of a file, else as stored.

    The file is the one that --classes names, or the source's own. Masks in colour whose pixels are all grey may hold ids too.
    """
    by_file = labels is not None and (options.classes is None or options.classes.endswith(".json"))
    palette = {colour: k for k, colour in enumerate(labels.palette)} if by_file and labels else {}

    def from_colours_or_greys(path: Path) -> np.ndarray:
        try:
            if labels and len(palette) < labels.num_classes:
                raise UserError(f"{path}: got a mask in colours, but two classes have one; give each its own in classes.json")
            return from_colours(path, palette)
        except UserError as error:
            with suppress(UserError):
                return read_mask_values(path)
            raise error

    def read(path: Path) -> np.ndarray:
        require_one_picture(path)
        in_colour = palette and colour_mode(path) in ("RGB", "RGBA")
        values = from_colours_or_greys(path) if in_colour else read_mask_values(path)
        if options.reduce_zero_label:
            values = values.astype(np.int64)
            values = np.where((values == 0) | (values == IGNORE_INDEX), IGNORE_INDEX, values - 1)
        return values

    return read


def colour_mode(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "unreadable"  # which reading the values will explain


def read_folders(source: Path, options: Options) -> ImageSet:
    """Two folders of any names with images and masks of the same stem; without masks all are unlabelled."""
    images, masks = guess_folders(source, options)
    pairs = pair_files(images, masks, SUFFIXES)
    if masks is None:
        refuse_unread_labels(source, images, [image for image, _ in pairs.values()], SUFFIXES)
    labels = near_labels(source, images, options)
    return indexed(pairs, labels, mask_reader(labels, options), binary=not options.reduce_zero_label)


def indexed(
    pairs: Mapping[str, tuple[Path, Path | None]], labels: LabelSpec | None, read: Read, binary: bool,
    lists: Mapping[str, Sequence[str]] | None = None,
) -> ImageSet:  # fmt: skip
    labels, is_binary = decide_labels([mask for _, mask in pairs.values() if mask], labels, read, binary)
    items = [Item(name, image, index_label(read, mask, is_binary) if mask else None) for name, (image, mask) in pairs.items()]
    return ImageSet(tuple(items), labels, lists or {}, notes=binary_notes(is_binary))


def read_data(source: Path, options: Options) -> ImageSet:
    """This project's layout: images/ with masks/ beside it, nested as wanted."""
    source = find_root(source)
    raise_problems(stray_masks(source))
    everything = list_images(source, str(source))
    images = [image for image in everything if "images" in Path(image).parts[:-1]]
    others = len(everything) - len(images)
    labeled = [image for image in images if has_mask(source, image)]
    raise_problems([problem for *_, problem in sharing_a_mask(source, labeled)])
    pairs = {}
    for name, image in zip(distinct([item_name(PurePosixPath(image)) for image in images]), images, strict=True):
        mask = mask_path(source / image)
        pairs[name] = (source / image, mask if mask.is_file() else None)
    if not labeled:
        refuse_unread_labels(source, source, [image for image, _ in pairs.values()], SUFFIXES)
    labels = given_labels(options.classes)
    if labels is None and (source / "classes.json").is_file():
        labels = LabelSpec.from_file(source / "classes.json")
    content = indexed(pairs, labels, mask_reader(labels, options), binary=not options.reduce_zero_label)
    left = (f"left out, since not in a folder called images: {others}, such as sheets of pictures",) if others else ()
    return replace(content, notes=content.notes + left)


def write_mmseg(content: ImageSet, out: Path) -> None:
    """img_dir/train and ann_dir/train; 255 is ignored. Images without label maps go to img_dir/unlabeled."""
    for item, pixels, label in read_items(content.items):
        place_image(item, pixels, out / "img_dir" / ("unlabeled" if label is None else "train") / item.name)
        if label is not None:
            save_label(out / "ann_dir" / "train" / f"{item.name}.png", label, content.labels)
