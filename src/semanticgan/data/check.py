"""What is in a data folder and what is wrong with it, before anything is trained on it."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from semanticgan.data.coding import count_values, label_notes, labels_from_values
from semanticgan.data.dataset import MAX_FRAMES, is_flat, is_grey, load_picture, read_mask
from semanticgan.data.sources import Sources, find_root, find_sources, list_images, mask_path, passed_over, stray_masks
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec
from semanticgan.visuals import grid, overlay, save_png, to_rgb

_SHEET_LABELED, _SHEET_OTHERS, _SHEET_COLUMNS, _SHEET_SIDE = 24, 16, 8, 160
_RARE = 0.001  # share of pixels
MOST_UNNAMED = 8  # classes; more of them may be numbers of objects


@dataclass
class Report:
    """What `check` found; `lines` are facts, the other two name a file or a class each."""

    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Finding:
    """One image file and, where it was asked for, its mask."""

    path: str
    error: str | None = None
    size: tuple[int, int] = (0, 0)
    grey: bool = False
    deep: bool = False
    turned: bool = False
    frames: int = 1
    flat: bool = False
    digest: bytes = b""
    counts: np.ndarray | None = None  # pixels of the mask by value
    mask_error: str | None = None


def _inspect(root: Path, path: str, with_mask: bool) -> _Finding:
    try:
        picture = load_picture(root / path, 3, at_least=64)
    except UserError as error:
        return _Finding(path, str(error))
    pixels = picture.pixels
    counts, mask_error = None, None
    if with_mask:
        try:
            counts = count_values(mask_path(root / path), picture.size)
        except UserError as error:
            mask_error = str(error)
    return _Finding(
        path,
        size=picture.size,
        grey=is_grey(pixels),
        deep=picture.stretched,
        turned=picture.turned,
        frames=picture.frames,
        flat=is_flat(pixels),
        digest=hashlib.sha256(np.ascontiguousarray(pixels).tobytes() + str(pixels.shape).encode()).digest(),
        counts=counts,
        mask_error=mask_error,
    )


def _inspect_all(root: Path, sources: Sources) -> Iterator[_Finding]:
    masked = {*sources.labeled, *sources.val}
    paths = list(dict.fromkeys([*sources.labeled, *sources.val, *sources.unlabeled]))
    with ThreadPoolExecutor(4) as pool:
        yield from pool.map(lambda path: _inspect(root, path, path in masked), paths)


def check(
    root: Path,
    labeled: Sequence[str] = (),
    unlabeled: Sequence[str] = (),
    val: Sequence[str] = (),
    out_sheet: Path | None = None,
) -> Report:
    """Read every file that a training with these folders and lists would read, and report; see `find_sources`.

    Writes a contact sheet with masks drawn on to `out_sheet`. Raises UserError only when there is no data folder or no
    image in it at all, or the sheet cannot be written; every other problem is in the report's `errors` and `warnings`.
    """
    root = find_root(root)
    report = Report()
    report.errors += stray_masks(root)
    sources = _sources(root, labeled, unlabeled, val, report)
    findings = {finding.path: finding for finding in _inspect_all(root, sources)}
    _report_files(report, findings)
    _report_turned(report, sources, findings)
    report.lines += [other] if (other := passed_over(root)) else []
    _report_copies(report, sources, findings)
    labels = _report_masks(report, root, sources, findings)
    if out_sheet is not None and _write_sheet(out_sheet, root, sources, findings, labels):
        report.lines.append(f"contact sheet: {out_sheet}")
    return report


def _sources(root: Path, labeled: Sequence[str], unlabeled: Sequence[str], val: Sequence[str], report: Report) -> Sources:
    """As for training; where that is an error, it is reported and every image is looked at without its mask."""
    try:
        sources = find_sources(root, labeled, unlabeled, val)
    except UserError as error:
        report.errors += [line for line in str(error).splitlines() if line not in report.errors]
        images = list_images(root, str(root))
        report.lines.append(f"images: {len(images)} below {root}, looked at without their masks because of the errors")
        return Sources(root, (), tuple(images), (), ())
    for note in sources.notes:
        warned = note.startswith("warning: ")
        (report.warnings if warned else report.lines).append(note.removeprefix("warning: "))
    return sources


def _report_files(report: Report, findings: dict[str, _Finding]) -> None:
    good = [f for f in findings.values() if f.error is None]
    report.errors += [f.error for f in findings.values() if f.error is not None]
    if not good:
        return
    sizes = Counter(f.size for f in good)
    common = ", ".join(f"{w}x{h} ({n})" for (w, h), n in sizes.most_common(4))
    sides = [min(f.size) for f in good]
    more = f" and {len(sizes) - 4} other sizes" if len(sizes) > 4 else ""
    report.lines.append(
        f"sizes: {common}{more}; shorter side {min(sides)} to {max(sides)} pixels, median {int(np.median(sides))}"
    )
    grey = sum(f.grey for f in good)
    report.lines.append(f"colours: {len(good) - grey} images in colour, {grey} grey")
    deep = sum(f.deep for f in good)
    if deep:
        report.lines.append(f"depth: {deep} images have more than 8 bits; each is stretched between its .1 and 99.9 percentiles")
    for f in good:
        if f.flat:
            report.warnings.append(f"{f.path}: near-constant image; remove it if it shows nothing")
        if f.frames > 1:
            more = " or more" if f.frames == MAX_FRAMES else ""
            report.warnings.append(
                f"{f.path}: holds {f.frames} pictures{more}, only the first is read; split it if you want the others"
            )


def _report_turned(report: Report, sources: Sources, findings: dict[str, _Finding]) -> None:
    """Warn of masks whose images are turned when read: they may have been drawn on the picture as it is stored."""
    turned = [path for path in dict.fromkeys([*sources.labeled, *sources.val]) if findings[path].turned]
    if turned:
        report.warnings.append(
            f"{turned[0]}: is turned by its EXIF orientation, as viewers do ({len(turned)} images with masks are); "
            "their masks must be drawn on the turned picture: look at them on the contact sheet"
        )


def _report_copies(report: Report, sources: Sources, findings: dict[str, _Finding]) -> None:
    """Warn of the same picture under two names, once for training and once for validation."""
    training: dict[bytes, str] = {}
    for path in sources.unlabeled:
        training.setdefault(findings[path].digest, path)
    for path in sources.val:
        twin = training.get(findings[path].digest)
        if findings[path].error is None and twin not in (None, path):
            report.warnings.append(f"{path}: validation image is the same picture as the training image {twin}; remove one")


def _report_masks(report: Report, root: Path, sources: Sources, findings: dict[str, _Finding]) -> LabelSpec | None:
    """Problems of masks, the classes and their shares."""
    masked = list(dict.fromkeys([*sources.labeled, *sources.val]))
    report.errors += [error for path in masked if (error := findings[path].mask_error) is not None]
    counts = {path: c for path in masked if (c := findings[path].counts) is not None}
    if not counts:
        return None
    by_mask = {mask_path(root / path): c for path, c in counts.items()}
    try:
        labels = labels_from_values(root, by_mask)
    except UserError as error:
        report.errors += str(error).splitlines()
        return None
    report.lines += label_notes(labels, by_mask)
    if labels.num_classes > MOST_UNNAMED and not (root / "classes.json").exists():
        report.warnings.append(
            f"{labels.num_classes} classes without names: give them names in classes.json, "
            "or if the values number objects, make them one class"
        )
    for role, paths in (("labelled", sources.labeled), ("validation", sources.val)):
        _report_shares(report, role, [counts[path] for path in paths if path in counts], labels)
    return labels


def _report_shares(report: Report, role: str, counts: list[np.ndarray], labels: LabelSpec) -> None:
    if not counts:
        return
    table = np.array(counts, np.int64)  # [images, 256]
    values = [255 if labels.coding == "binary" and k == 1 else k for k in range(labels.num_classes)]
    pixels = max(1, int(table[:, values].sum()))
    shares = []
    for name, value in zip(labels.names, values, strict=True):
        share, images = table[:, value].sum() / pixels, int((table[:, value] > 0).sum())
        shares.append(f"{name} {share:.2%} in {images} images")
        if images == 0 and role == "labelled":
            report.errors.append(
                f"class {name} is never labelled in a training mask, only in validation; label some pixels of it"
            )
        elif images == 0:
            report.warnings.append(f"class {name} occurs in no {role} image; its score there will be empty")
        elif share < _RARE:
            report.warnings.append(
                f"class {name} has {share:.3%} of the {role} pixels: expect it to be learned badly; label more of it"
            )
    report.lines.append(f"classes, {role}: {', '.join(shares)}")


def _write_sheet(path: Path, root: Path, sources: Sources, findings: dict[str, _Finding], labels: LabelSpec | None) -> bool:
    """Whether there was an image to draw."""
    masked = dict.fromkeys([*sources.labeled, *sources.val])
    labeled = [p for p in masked if labels is not None and findings[p].counts is not None]
    known = set(labeled)
    others = [p for p in sources.unlabeled if p not in known and findings[p].error is None]
    cells = [_cell(root, p, labels) for p in _spread(labeled, _SHEET_LABELED)]
    cells += [_cell(root, p, None) for p in _spread(others, _SHEET_OTHERS)]
    if cells:
        save_png(path, grid(cells, _SHEET_COLUMNS))
    return bool(cells)


def _spread(items: Sequence[str], count: int) -> list[str]:
    """At most `count` of the items, evenly taken."""
    return [items[k * len(items) // count] for k in range(count)] if len(items) > count else list(items)


def _cell(root: Path, path: str, labels: LabelSpec | None) -> np.ndarray:
    """An image of the contact sheet, with its mask drawn on where there are labels."""
    picture = load_picture(root / path, 3, at_least=_SHEET_SIDE)
    scale = _SHEET_SIDE / max(picture.size)
    size = max(1, round(picture.size[0] * scale)), max(1, round(picture.size[1] * scale))
    img = to_rgb(np.asarray(Image.fromarray(picture.pixels).resize(size, Image.Resampling.BICUBIC)))
    if labels is None:
        return img
    try:
        label = read_mask(mask_path(root / path), labels)
    except UserError:  # already reported
        return img
    return overlay(img, np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST)), labels)
