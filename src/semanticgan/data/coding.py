"""What the values in mask files mean: the classes and their coding, decided once over all masks."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64
from PIL import Image

from semanticgan.data.dataset import BROKEN, raise_problems, read_mask_values
from semanticgan.errors import UserError
from semanticgan.labels import IGNORE_INDEX, LabelSpec

Counts = Int64[np.ndarray, "256"]  # pixels of a mask by value
MANY = 32  # different values; where some are no classes and nobody has named any, such masks are blurred


def count_values(path: Path, size: tuple[int, int] | None = None) -> Counts:
    """How many pixels of a mask file have each value; `size` is its image's width and height.

    Raises UserError naming the file.
    """
    values = read_mask_values(path, size)
    if values.max() > 255:
        raise UserError(f"{path}: got class id {int(values.max())}, expected 0 to 253, or 255 for ignored pixels")
    return np.bincount(values.astype(np.uint8).reshape(-1), minlength=256)


def coding_of(counts: Iterable[Counts]) -> Literal["index", "binary"] | None:
    """The coding of masks with these values: "binary" where 255 occurs and nothing else but 0.

    None where there is no value above 0. No further than the first mask that shows a class id.
    """
    seen = False
    for count in counts:
        if count[1:IGNORE_INDEX].any():
            return "index"
        seen = seen or bool(count[IGNORE_INDEX])
    return "binary" if seen else None


def coded_as(labels: LabelSpec, mask_files: Sequence[Path]) -> LabelSpec:
    """A model's classes in the coding of masks that it has not seen. Where there are more than two, 255 is always ignored.

    Raises UserError naming a file that is no mask, or two that contradict each other.
    """
    if labels.num_classes > 2:
        return labels
    counts = {path: count_values(path) for path in mask_files}
    require_one_meaning(values_in(counts))
    return labels.model_copy(update={"coding": coding_of(counts.values()) or labels.coding})


def values_in(counts: Mapping[Path, Counts]) -> dict[Path, set[int]]:
    return {path: {int(v) for v in np.flatnonzero(count)} for path, count in counts.items()}


def require_one_meaning(values: Mapping[Path, set[int]]) -> None:
    """Raises UserError naming two masks in which an object is coded, or a colour numbered, in two ways. From the values in each.

    So it is where some hold 0 and 1, others 0 and 255, and none both: by the rule for all of them 255 would be ignored.
    """
    ones, whites = ([path for path, held in values.items() if value in held] for value in (1, IGNORE_INDEX))
    if ones and whites and not set(ones) & set(whites) and set().union(*values.values()) <= {0, 1, IGNORE_INDEX}:
        raise UserError(
            f"{whites[0]}: got a mask of 0 and 255, but {ones[0]} holds 0 and 1; "
            "store all masks one way, or 255 is taken for pixels to be ignored"
        )
    ids: dict[tuple[int, ...], tuple[int, Path]] = {}
    for path, held in values.items():
        for colour, value in _colours(path, held).items():
            first, other = ids.setdefault(colour, (value, path))
            if first != value:
                raise UserError(
                    f"{path}: the colour {colour} of its palette is class id {value}, but {first} in {other}; "
                    "store all masks with one palette, or as grey levels"
                )


def _colours(path: Path, held: set[int]) -> dict[tuple[int, ...], int]:
    """Colour -> class id, of those that a palette mask holds; nothing where two share a colour. 255 is known by its value."""
    try:
        with Image.open(path) as image:
            palette = image.getpalette("RGB") if image.mode == "P" else None
    except BROKEN:
        return {}
    ids = held - {IGNORE_INDEX}
    if palette is None or 3 * max(ids, default=0) + 3 > len(palette):
        return {}
    colours = {tuple(palette[3 * v : 3 * v + 3]): v for v in ids}
    return colours if len(colours) == len(ids) else {}


def labels_from_values(root: Path, counts: Mapping[Path, Counts]) -> LabelSpec:
    """The classes and the coding of masks with these values.

    The names are those of classes.json in the data folder, if there. Raises UserError when a value is no class, a class
    is never labelled, or masks contradict each other.
    """
    values = values_in(counts)
    require_one_meaning(values)
    holders = {v: path for path in reversed(values) for v in values[path]}
    found = sorted(holders)
    binary = IGNORE_INDEX in found and set(found) <= {0, IGNORE_INDEX}
    used = {1 if binary and v == IGNORE_INDEX else v for v in found} - {IGNORE_INDEX}
    top = max(used, default=0)
    named = (root / "classes.json").exists()
    coding: Literal["index", "binary"] = "binary" if binary else "index"
    labels = LabelSpec.from_file(root / "classes.json", coding) if named else LabelSpec.unnamed(min(254, max(2, top + 1)), coding)
    missing = [f"{k} ({labels.names[k]})" for k in range(labels.num_classes) if k not in used]
    if not named:
        require_plausible(values)
    source = "classes.json" if named else f"the highest class id, in {holders[top]}" if top > 1 else "no classes.json"
    expected = f"0 to {labels.num_classes - 1} ({source}), or 255 for ignored pixels"
    raise_problems([f"{holders[v]}: got class id {v}, expected {expected}" for v in sorted(used) if v >= labels.num_classes])
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UserError(
            f"{root}: class {shown} is never labelled in the masks, expected all {labels.num_classes} classes"
            f" ({source}); label some pixels of each"
        )
    return labels


def require_plausible(values: Mapping[Path, set[int]]) -> None:
    """Raises UserError where the values in masks without named classes look like grey levels, not like class ids."""
    found = sorted(set().union(*values.values()))
    ids = [value for value in found if value != IGNORE_INDEX]
    if not ids or ids == [*range(len(ids))]:
        return
    if len(found) > MANY:
        most = max(values, key=lambda path: len(values[path]))
        raise UserError(
            f"{most}: got {len(values[most])} different values, expected class ids; if its edges are blurred, "
            "threshold it to 0 and 255"
        )
    if ids[-1] + 1 - len(ids) > len(found):  # more ids left out than found
        shown = ", ".join(map(str, found[:6])) + (", ..." if len(found) > 6 else "")
        holder = next(path for path, held in values.items() if ids[-1] in held)
        raise UserError(
            f"{holder}: such masks hold {shown}, expected class ids 0, 1, 2, ... without gaps; "
            "renumber them, or name every class in classes.json"
        )


def decide_labels(root: Path, mask_files: Sequence[Path]) -> tuple[LabelSpec, tuple[str, ...]]:
    """The classes and the coding of the masks, decided once over all of them, and the lines that say so.

    Only 0 and 255 occur: 255 is class 1; else 255 is ignored. Raises UserError with every problem.
    """
    if not mask_files:
        raise UserError(f"{root}: no masks, expected at least one; draw some or give --labeled")
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(mask_files, pool.map(_try_count, mask_files), strict=True))
    raise_problems([result for result in results.values() if isinstance(result, str)])
    counts = {path: result for path, result in results.items() if not isinstance(result, str)}
    labels = labels_from_values(root, counts)
    return labels, label_notes(labels, counts)


def _try_count(path: Path) -> Counts | str:
    try:
        return count_values(path)
    except UserError as error:
        return str(error)


def label_notes(labels: LabelSpec, counts: Mapping[Path, Counts]) -> tuple[str, ...]:
    """What was decided about the masks, to be said aloud."""
    if labels.coding == "binary":
        coding = "only 0 and 255 occur, 255 is class 1"
    else:
        pixels = np.sum([*counts.values()], axis=0)
        coding = f"pixels are class ids, 255 is ignored ({pixels[IGNORE_INDEX] / max(1, pixels.sum()):.1%} of pixels)"
    return (f"masks: {len(counts)}, {coding}; classes: {', '.join(labels.names)}",)
