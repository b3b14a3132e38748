"""Layouts of published sets: VOC (and CVAT's masks), CelebAMask-HQ, the SemanticGAN authors' lists, StyleGAN's archives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from semanticgan.data.dataset import load_picture, raise_problems, read_mask_values
from semanticgan.data.sources import OTHERS, SUFFIXES
from semanticgan.errors import UserError
from semanticgan.formats.folders import (
    binary_notes,
    colour_mode,
    decide_labels,
    from_colours,
    index_label,
    indexed,
    mask_reader,
    pair_files,
    stem_of,
)
from semanticgan.formats.sets import (
    BACKGROUND_NAMES,
    IGNORE_NAMES,
    ImageSet,
    Item,
    Options,
    distinct,
    files_below,
    given_labels,
    item_name,
    named_labels,
    place_image,
    read_items,
    require_counted,
    require_one_picture,
    safe_name,
    save_image,
    save_label,
)
from semanticgan.labels import IGNORE_INDEX, LabelSpec

VOC_BORDER = (224, 224, 192)
CLASS_0 = "# class 0: "  # remark of labelmap.txt where class 0 is not called background
# CelebAMask-HQ's parts in its own order: a part lies over those before it, and has the class id of its place.
CELEB_PARTS = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip",
    "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip
CELEB_MASKS, CELEB_IMAGES = "CelebAMask-HQ-mask-anno", "CelebA-HQ-img"


def read_voc(source: Path, options: Options) -> ImageSet:
    """JPEGImages, SegmentationClass (palette indices, or the colours of CVAT's labelmap.txt; 255 ignored), ImageSets."""
    images = options.folder(source, "images") or source / "JPEGImages"
    masks = source / "SegmentationClass"
    pairs = pair_files(images, masks if masks.is_dir() else None, SUFFIXES)
    lists: dict[str, list[str]] = {}
    lost: tuple[str, ...] = ()
    for path in sorted((source / "ImageSets" / "Segmentation").glob("*.txt")):
        names = [safe_name(line, str(path)) for line in _lines(path)]
        names = [name if name in pairs else stem_of(name, SUFFIXES) for name in names]
        lists[path.stem] = [name for name in names if name in pairs]
        if missing := [name for name in names if name not in pairs]:
            lost += (f"{path}: {len(missing)} of {len(names)} lines name no image, such as {missing[0]}",)
    labelmap = source / "labelmap.txt"
    if not labelmap.is_file():
        labels = given_labels(options.classes)
        content = indexed(pairs, labels, mask_reader(labels, options), binary=False, lists=lists)
        return replace(content, notes=content.notes + lost)
    found = []
    for line in _lines(labelmap):
        name, _, rest = line.partition(":")
        try:
            r, g, b = (int(v) for v in rest.split(":")[0].split(","))
        except ValueError:
            raise UserError(f"{labelmap}: got {line[:80]!r}, expected name:red,green,blue:parts:actions; mend the line") from None
        found.append((name.strip(), (r, g, b)))
    twice = next((f"{name} and {other}" for k, (name, c) in enumerate(found) for other, d in found[:k] if c == d), None)
    if twice:
        raise UserError(f"{labelmap}: got one colour for {twice}, expected a colour for each; mend the lines")
    labels, ids, notes = named_labels(found, options, _class_0(labelmap, found))
    palette = {(0, 0, 0): 0, VOC_BORDER: IGNORE_INDEX} | {colour: ids[name] for name, colour in found}
    greys = {r for r, g, b in palette if r == g == b}

    def label(path: Path) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            require_one_picture(path)
            if colour_mode(path) in ("L", "1", "unreadable"):
                values = read_mask_values(path)
                if not (held := {*np.unique(values).tolist()}) <= greys and held <= {*range(labels.num_classes), IGNORE_INDEX}:
                    return values.astype(np.uint8)  # ids; other greys are colours
            return from_colours(path, palette).astype(np.uint8)

        return read

    items = [Item(name, image, label(mask) if mask else None) for name, (image, mask) in pairs.items()]
    return ImageSet(tuple(items), labels, lists, notes=notes + lost)


def _class_0(labelmap: Path, found: Sequence[tuple[str, tuple[int, int, int]]]) -> str | None:
    """The name of class 0 in a labelmap: the one remarked, else the black one; None where one is called background."""
    colours = {name: colour for name, colour in found if name.casefold() not in IGNORE_NAMES}
    remarked = next((line.removeprefix(CLASS_0) for line in _lines(labelmap, remarks=True) if line.startswith(CLASS_0)), None)
    if remarked in colours:
        return remarked
    if any(name.casefold() in BACKGROUND_NAMES for name in colours):
        return None
    return next((name for name, colour in colours.items() if colour == (0, 0, 0)), None)


def read_celebamask(source: Path, options: Options) -> ImageSet:
    """CelebA-HQ-img/N.jpg with CelebAMask-HQ-mask-anno/*/NNNNN_part.png; images become as large as their masks."""
    parts: dict[int, dict[str, Path]] = {}
    for name, path in files_below(source / CELEB_MASKS, (".png",)).items():
        number, _, part = PurePosixPath(name).stem.partition("_")
        if not number.isdecimal() or part not in CELEB_PARTS[1:]:
            raise UserError(
                f"{path}: got this name, expected 00000_PART.png with PART one of {', '.join(CELEB_PARTS[1:])}; rename it"
            )
        parts.setdefault(int(number), {})[part] = path
    images = files_below(source / CELEB_IMAGES, SUFFIXES)
    if not images:
        raise UserError(f"{source}: no images in {CELEB_IMAGES}, expected 0.jpg, 1.jpg, ...; unpack them there")
    labels, ids, notes = named_labels([(name, None) for name in CELEB_PARTS], options)
    items = []
    for name, path in images.items():
        stem = PurePosixPath(name).stem
        mine = parts.get(int(stem)) if stem.isdecimal() else None
        new = f"{int(stem):05d}" if stem.isdecimal() else stem
        items.append(Item(new, resized(path, next(iter(mine.values()))), _merged(mine, ids)) if mine else Item(new, path))
    return ImageSet(tuple(items), labels, notes=notes)


def _merged(parts: Mapping[str, Path], ids: Mapping[str, int]) -> Callable[[], np.ndarray]:
    def label() -> np.ndarray:
        out = None
        for part in CELEB_PARTS:
            if part in parts:
                drawn = read_mask_values(parts[part]) > 0
                out = np.zeros(drawn.shape, np.uint8) if out is None else out
                if drawn.shape != out.shape:
                    raise UserError(f"{parts[part]}: got another size than the other parts of this face; fetch it again")
                out[drawn] = ids[part]
        assert out is not None
        return out

    return label


def resized(image: Path, mask: Path) -> Callable[[], np.ndarray] | Path:
    """The image as it is if it has its mask's size, else fitted to it. Where one cannot be opened, reading will say so."""
    try:
        with Image.open(image) as one, Image.open(mask) as other:
            if one.size == other.size:
                return image
            size = other.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return image
    return lambda: np.asarray(Image.fromarray(load_picture(image, 3).pixels).resize(size, Image.Resampling.LANCZOS))


def read_authors(source: Path, options: Options) -> ImageSet:
    """label_data/{image,label}/FILE and unlabel_data/image/FILE, with lists of file names; labels of the image's own name."""
    files: dict[str, Path] = {}
    lists_of_keys: dict[str, list[str]] = {}
    for part in ("label_data", "unlabel_data"):
        found = files_below(source / part / "image", SUFFIXES)
        files |= {f"{part}/{file}": path for file, path in found.items()}
        for path in sorted((source / part).glob("*list.txt")):
            lines = [safe_name(line, str(path)) for line in _lines(path)]
            raise_problems(
                [f"{path}: {line}: no such file in {part}/image; correct the line" for line in lines if line not in found]
            )
            lists_of_keys[path.stem] = [f"{part}/{line}" for line in lines]
    if not files:
        raise UserError(f"{source}: no images in label_data/image or unlabel_data/image, expected some; correct the folder")
    names = dict(
        zip(files, distinct([item_name(PurePosixPath(key).relative_to(key.split("/")[0])) for key in files]), strict=True)
    )
    masks = {key: source / key.replace("/", "/label/", 1) for key in files if key.startswith("label_data/")}
    masks = {key: mask for key, mask in masks.items() if mask.is_file()}
    stray = {*files_below(source / "label_data" / "label", (*SUFFIXES, *OTHERS)).values()} - {*masks.values()}
    expected = "expected one of the very same name in label_data/image: add it, or rename or remove the mask"
    raise_problems([f"{path}: mask without image; {expected}" for path in sorted(stray)])
    labels = given_labels(options.classes)
    read = mask_reader(labels, options)
    labels, is_binary = decide_labels(list(masks.values()), labels, read, binary=not options.reduce_zero_label)
    items = [
        Item(names[key], resized(path, masks[key]), index_label(read, masks[key], is_binary))
        if key in masks
        else Item(names[key], path)
        for key, path in files.items()
    ]
    lists = {name: [names[key] for key in keys] for name, keys in lists_of_keys.items()}
    return ImageSet(tuple(items), labels, lists, notes=binary_notes(is_binary))


def read_stylegan(source: Path, options: Options) -> ImageSet:
    """The images of a StyleGAN data set; the labels in its dataset.json are of whole images and play no part."""
    found = files_below(source, SUFFIXES)
    names = distinct([stem_of(name, SUFFIXES) for name in found])
    items = [Item(name, path) for name, path in zip(names, found.values(), strict=True)]
    if not items:
        raise UserError(f"{source}: no images, expected PNG files beside dataset.json; correct the archive")
    return ImageSet(tuple(items), given_labels(options.classes) or LabelSpec.unnamed(2))


def _lines(path: Path, remarks: bool = False) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read as text; mend the file") from None
    return [line.strip() for line in lines if line.strip() and line.startswith("#") == remarks]


def write_voc(content: ImageSet, out: Path) -> None:
    """JPEGImages, SegmentationClass, ImageSets and labelmap.txt: CVAT's "Segmentation mask" too.

    Raises UserError where two classes have one colour, or a name cannot stand in a labelmap.
    """
    if len(set(content.labels.palette)) < content.labels.num_classes:
        raise UserError("two classes have one colour, which a labelmap cannot tell apart; give each its own in classes.json")
    require_counted(content.labels.names)
    bad = next((name for name in content.labels.names if name != name.strip() or ":" in name or name.startswith("#")), None)
    if bad is not None:
        raise UserError(f"class {bad!r}: a labelmap holds no name with spaces around it, a colon or # first; rename it")
    for item, pixels, label in read_items(content.items):
        place_image(item, pixels, out / "JPEGImages" / item.name)
        if label is not None:
            save_label(out / "SegmentationClass" / f"{item.name}.png", label, content.labels)
    labeled = [item.name for item in content.items if item.label is not None]
    folder = out / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    for name, names in {"default": labeled, **content.lists}.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in names), encoding="utf-8", errors="surrogateescape")
    colours = [*zip(content.labels.names, content.labels.palette, strict=True), ("ignored", content.labels.ignored_colour)]
    lines = [f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in colours]
    named = content.labels.names[0].casefold() in BACKGROUND_NAMES
    remarks = ["# label:color_rgb:parts:actions\n", *([] if named else [f"{CLASS_0}{content.labels.names[0]}\n"])]
    (out / "labelmap.txt").write_text("".join(remarks + lines), encoding="utf-8")


def write_authors(content: ImageSet, out: Path) -> None:
    """PNG files of the same name in label_data/image and label_data/label, unlabelled ones in unlabel_data/image, and lists."""
    lists: dict[str, list[str]] = {"label_data/train_full_list": [], "unlabel_data/unlabel_list": []}
    for item, pixels, label in read_items(content.items):
        part, names = ("unlabel_data", "unlabel_list") if label is None else ("label_data", "train_full_list")
        save_image(out / part / "image" / f"{item.name}.png", pixels)
        if label is not None:
            save_image(out / part / "label" / f"{item.name}.png", label[:, :, None])  # their reader expands palettes
        lists[f"{part}/{names}"].append(f"{item.name}.png")
    for name, lines in lists.items():
        if lines:
            (out / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
