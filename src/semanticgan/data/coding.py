"""What the values in mask files mean: the classes and their coding, decided once over all masks."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from semanticgan.data.dataset import palette_of, raise_problems, read_mask_values
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
    """Raises UserError naming two masks in which an object is coded, or a colour numbered, in two ways. From their values."""
    if two := two_codings(values):
        raise UserError(
            f"{two[0]}: got a mask of 0 and 255, but {two[1]} holds 0 and 1; "
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


def two_codings(values: Mapping[Path, set[int]]) -> tuple[Path, Path] | None:
    """A mask of 0 and 255 and one of 0 and 1, where no mask holds all three: by the rule for all of them 255 would be ignored.

    Where it is ignored indeed, a palette with a colour of its own for 255 says so.
    """
    ones, whites = ([path for path, held in values.items() if value in held] for value in (1, IGNORE_INDEX))
    if not ones or set(ones) & set(whites) or not set().union(*values.values()) <= {0, 1, IGNORE_INDEX}:
        return None
    return next(((path, ones[0]) for path in whites if not _shows_ignored(path)), None)


def _shows_ignored(path: Path) -> bool:
    """Whether a palette gives 255 another colour than class 1, and is no mere ramp of greys."""
    palette = palette_of(path)
    return len(palette) > IGNORE_INDEX and palette[1] not in (palette[IGNORE_INDEX], (1, 1, 1))


def _colours(path: Path, held: set[int]) -> dict[tuple[int, ...], int]:
    """Colour -> class id, of those that a palette mask holds; nothing where two share a colour. 255 is known by its value."""
    palette, ids = palette_of(path), held - {IGNORE_INDEX}
    colours = {palette[v]: v for v in ids if v < len(palette)}
    return colours if len(colours) == len(ids) else {}


def labels_from_values(root: Path, counts: Mapping[Path, Counts]) -> LabelSpec:
    """The classes and the coding of masks with these values, as `labels_of`.

    The names are those of classes.json in the data folder, if there. Raises UserError also when a class is never labelled.
    """
    values, file = values_in(counts), root / "classes.json"
    labels = labels_of(values, LabelSpec.from_file(file) if file.exists() else None)
    used = set().union(*values.values()) | ({1} if labels.coding == "binary" else set())
    missing = [f"{k} ({labels.names[k]})" for k in range(labels.num_classes) if k not in used]
    if missing:
        top = labels.num_classes - 1
        highest = next((f"the highest class id, in {path}" for path, held in values.items() if top in held), "no classes.json")
        source = "classes.json" if file.exists() else highest
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UserError(
            f"{root}: class {shown} is never labelled in the masks, expected all {labels.num_classes} classes"
            f" ({source}); label some pixels of each"
        )
    return labels


def labels_of(values: dict[Path, set[int]], named: LabelSpec | None, binary: bool = True) -> LabelSpec:
    """The classes, `named` or class_0, class_1, ..., in the coding of masks with these values; without `binary` 255 is ignored.

    Raises UserError when a value is no class, or masks contradict each other.
    """
    if binary:
        require_one_meaning(values)
    if named is None:
        require_plausible(values)
    holders = {value: path for path in reversed(values) for value in values[path]}
    ids = sorted(holders.keys() - {IGNORE_INDEX})
    labels = named or LabelSpec.unnamed(min(254, max([1, *ids]) + 1))
    expected = f"0 to {labels.num_classes - 1}, or 255 for ignored pixels; mend the mask or the classes"
    raise_problems([f"{holders[k]}: got class id {k}, expected {expected}" for k in ids if k >= labels.num_classes])
    is_binary = binary and IGNORE_INDEX in holders and not any(ids)
    return labels.model_copy(update={"coding": "binary" if is_binary else "index"})


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
