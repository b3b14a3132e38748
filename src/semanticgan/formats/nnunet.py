"""nnU-Net: dataset.json, imagesTr, labelsTr, imagesTs; PNG, TIFF and BMP images, or NIfTI volumes as slices; v2 both ways."""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from semanticgan.data.dataset import is_grey, load_picture, raise_problems, read_mask_values
from semanticgan.data.sources import OTHERS, SUFFIXES
from semanticgan.errors import UserError
from semanticgan.formats.folders import decide_labels
from semanticgan.formats.sets import (
    ImageSet,
    Item,
    Options,
    distinct,
    files_below,
    given_labels,
    make_labels,
    read_items,
    read_json,
    require_one_picture,
    save_image,
    write_json,
)
from semanticgan.formats.volumes import NIFTI, from_volumes, grey, is_slice, reassembled, save_volume, volume_values
from semanticgan.labels import IGNORE_INDEX, LabelSpec

IGNORE = "ignore"  # nnU-Net's own name for it; its value is the highest


def is_nnunet(source: Path) -> bool:
    """Whether a folder has nnU-Net's dataset.json (or the Medical Segmentation Decathlon's) and images beside it."""
    path = source / "dataset.json"
    if not (path.is_file() and (source / "imagesTr").is_dir()):
        return False
    content = read_json(path)
    return isinstance(content, dict) and "labels" in content and ("file_ending" in content or "training" in content)


def read_nnunet(source: Path, options: Options) -> ImageSet:
    """Cases of imagesTr with labelsTr, and imagesTs (labelled where labelsTs says so) after them; `ignore` becomes 255.

    Where there are test cases both become lists. Version 1 and the Medical Segmentation Decathlon, whose dataset.json names
    no file ending, have NIfTI volumes.
    """
    content = read_json(source / "dataset.json")
    try:
        ending = str(content.get("file_ending", ".nii.gz")).lower()
        names, ignored = _names(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{source / 'dataset.json'}: {type(error).__name__} {error}; expected nnU-Net v2's form") from None
    if ending not in (*NIFTI, *SUFFIXES):
        raise UserError(
            f"{source / 'dataset.json'}: got files in {ending}, expected {', '.join((*NIFTI, *SUFFIXES))}; convert them"
        )
    cases, tests = _cases(source, ending, "file_ending" in content)
    labels = given_labels(options.classes) or names
    flat = ending not in NIFTI

    def read(path: Path) -> np.ndarray:
        if flat:
            require_one_picture(path)
        stored = read_mask_values(path) if flat else volume_values(path)
        return stored if ignored is None else np.where(stored == ignored, IGNORE_INDEX, stored)

    masks = [mask for _, mask in cases.values() if mask]
    labels, _ = decide_labels(masks, labels, read, binary=False)
    if not flat:
        return _with_lists(from_volumes(cases, labels, options, read), tests)
    items = []
    for name, (images, mask) in cases.items():
        image = images[0] if len(images) == 1 else _merged(images)
        items.append(Item(name, image, (lambda mask=mask: read(mask).astype(np.uint8)) if mask else None))  # type: ignore[misc]
    return _with_lists(ImageSet(tuple(items), labels), tests)


def _with_lists(content: ImageSet, tests: Set[str]) -> ImageSet:
    """With lists of the training and the test cases, if there are any of these."""
    if not tests:
        return content
    lists: dict[str, list[str]] = {"imagesTr": [], "imagesTs": []}
    for item in content.items:
        lists["imagesTs" if item.name in tests or item.name.rpartition("/")[0] in tests else "imagesTr"].append(item.name)
    how = "--labeled imagesTr.txt --unlabeled imagesTr.txt"
    return replace(content, lists=lists, notes=(f"{len(tests)} cases of imagesTs: keep them out of training with {how}",))


def _names(content: Mapping[str, Any]) -> tuple[LabelSpec, int | None]:
    """The classes by their values, and the value of ignored pixels; of regions, those that `regions_class_order` writes."""
    values = dict(content["labels"])
    if "file_ending" in content:
        ignored = values.pop(IGNORE, None)
        if any(isinstance(value, list) for value in values.values()):
            regions = [name for name, value in values.items() if value not in (0, [0])]
            values = {"background": 0} | dict(zip(regions, content["regions_class_order"], strict=True))
        named = {int(value): str(name) for name, value in values.items()}
    else:  # version 1 has {"0": "background", ...}
        ignored, named = None, {int(value): str(name) for value, name in values.items()}
    if ignored is not None and (not isinstance(ignored, int) or ignored <= max(named)):
        raise ValueError(f"ignore is {ignored}, which is not the highest value")
    if len(named) > 254 or max(named) > 253:
        raise ValueError("more than 254 classes")
    return make_labels([named.get(k, f"class_{k}") for k in range(max(named) + 1)]), ignored


def _cases(source: Path, ending: str, version_2: bool) -> tuple[dict[str, tuple[Sequence[Path], Path | None]], Set[str]]:
    """Case -> its files, a channel each, and its labels; and the names of the test cases.

    The Decathlon's files have no channels in their names, and their labels the same names. Raises UserError unless there is
    one channel, or three.
    """
    cases: list[tuple[str, Sequence[Path], Path | None]] = []
    problems = []
    train = files_below(source / "imagesTr", (ending,)).values()
    plain = not version_2 and any((source / "labelsTr" / path.name).is_file() for path in train)
    for images, labels in (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs")):
        channels: dict[str, list[Path]] = {}
        for path in files_below(source / images, (ending,)).values():
            match = re.fullmatch(r"(.+)" if plain else r"(.+)_\d{4}", path.name[: -len(ending)])
            if match is None:
                problems.append(f"{path}: got no channel in the name, expected CASE_0000{ending}; rename it")
            else:
                channels.setdefault(match[1], []).append(path)
        for case, files in channels.items():
            if len(files) not in (1, 3):
                problems.append(f"{files[0]}: got {len(files)} channels, expected 1 or 3; take those away that are not needed")
            mask = source / labels / f"{case}{ending}"
            cases.append((case, files, mask if mask.is_file() else None))
            if not mask.is_file() and labels == "labelsTr":
                problems.append(f"{mask}: no such file; label the case or move it to imagesTs")
        own = {f"{case}{ending}" for case in channels}
        stray = [path for name, path in files_below(source / labels, (*SUFFIXES, *OTHERS)).items() if name not in own]
        expected = f"expected CASE{ending} with an image of that case in {images}: add it, or rename or remove the labels"
        problems += [f"{path}: labels without image; {expected}" for path in stray]
    raise_problems(problems)
    if not cases:
        raise UserError(f"{source}: no images in imagesTr ending in {ending}, expected some; correct the folder")
    names = distinct([case for case, _, _ in cases])
    tests = {name for name, (_, files, _) in zip(names, cases, strict=True) if source / "imagesTs" in files[0].parents}
    return {name: (files, mask) for name, (_, files, mask) in zip(names, cases, strict=True)}, tests


def _merged(files: Sequence[Path]) -> Callable[[], np.ndarray]:
    def pixels() -> np.ndarray:
        channels = [load_picture(path, 1).pixels for path in files]
        if len({channel.shape for channel in channels}) > 1:
            raise UserError(f"{files[0]}: its channels have different sizes; export them again")
        return np.concatenate(channels, axis=2)

    return pixels


def write_nnunet(content: ImageSet, out: Path) -> None:
    """A folder DatasetNNN_NAME: volumes as NIfTI where all images are slices of some, else PNG; 255 becomes `ignore`."""
    names = ["background", *content.labels.names[1:]]
    if len(set(names) | {IGNORE}) != len(names) + 1:
        raise UserError(
            f"classes {', '.join(names)}: nnU-Net calls class 0 background and has its own {IGNORE}; rename with --classes"
        )
    ending = ".nii.gz" if content.volumes and all(is_slice(i.name, content.volumes) for i in content.items) else ".png"
    writer = _write_volumes if ending == ".nii.gz" else _write_images
    cases = dict(zip([i.name for i in content.items], distinct([i.name.replace("/", "_") for i in content.items]), strict=True))
    channels, count, any_ignored = writer(content, out, cases)
    values = {name: k for k, name in enumerate(names)} | ({IGNORE: len(names)} if any_ignored else {})
    about = {"channel_names": {str(k): name for k, name in enumerate(channels)}, "labels": values}
    write_json(out / "dataset.json", about | {"numTraining": count, "file_ending": ending})


def _stored(label: np.ndarray, content: ImageSet) -> np.ndarray:
    return np.where(label == IGNORE_INDEX, content.labels.num_classes, label).astype(np.uint8)


def _write_images(content: ImageSet, out: Path, cases: Mapping[str, str]) -> tuple[list[str], int, bool]:
    """Channels, labelled cases, and whether any pixel is ignored. In colour if any image is, as all must have the same form."""
    colour = any(not is_grey(pixels) for _, pixels, _ in read_items(content.items))
    count, any_ignored = 0, False
    for item, pixels, label in read_items(content.items):
        case = cases[item.name]
        shown = np.repeat(pixels, 3, axis=2) if colour and pixels.shape[2] == 1 else pixels
        save_image(out / ("imagesTs" if label is None else "imagesTr") / f"{case}_0000.png", shown, colour)
        if label is not None:
            save_image(out / "labelsTr" / f"{case}.png", _stored(label, content)[:, :, None])  # its reader expands palettes
            count, any_ignored = count + 1, any_ignored or bool((label == IGNORE_INDEX).any())
    return ["R", "G", "B"] if colour else ["gray"], count, any_ignored


def _write_volumes(content: ImageSet, out: Path, cases: Mapping[str, str]) -> tuple[list[str], int, bool]:
    count, any_ignored = 0, False
    names = dict(zip(content.volumes, distinct([name.replace("/", "_") for name in content.volumes]), strict=True))
    for name, geometry, images, labels in reassembled(content):
        case = names[name]
        save_volume(out / ("imagesTs" if labels is None else "imagesTr") / f"{case}_0000.nii.gz", grey(images), geometry)
        if labels is not None:
            save_volume(out / "labelsTr" / f"{case}.nii.gz", _stored(labels, content), geometry)
            count, any_ignored = count + 1, any_ignored or bool((labels == IGNORE_INDEX).any())
    return ["gray"], count, any_ignored
