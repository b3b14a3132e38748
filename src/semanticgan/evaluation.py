"""A predictor and images with masks -> scores, intervals and cases; and the settings that validation images choose."""

import csv
import io
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from semanticgan.data.dataset import raise_problems, read_image, read_mask
from semanticgan.data.sources import mask_path
from semanticgan.errors import UserError
from semanticgan.labels import IGNORE_INDEX, LabelSpec
from semanticgan.metrics.segmentation import accuracy, bootstrap_interval, confusion, dice, iou
from semanticgan.predict import Found

Find = Callable[[Iterable[np.ndarray]], Iterator[Found]]  # a stream of uint8 images [H, W, C] -> answers in the same order
Progress = Callable[[int, int], None]  # images done, images in all
Work = Callable[[Sequence[str]], list[Any]]  # image names -> a result each
Share = Callable[[Sequence[str], Work], list[Any]]  # has the work done on all of the names, by several processes perhaps


def _alone(images: Sequence[str], work: Work) -> list[Any]:
    return work(images)


# ---------------------------------------------------------------- scores


def evaluate(
    find: Find,
    root: Path,
    images: Sequence[str],  # relative to root or absolute
    labels: LabelSpec,
    channels: int,
    progress: Progress | None = None,
    share: Share = _alone,
) -> dict[str, Any]:
    """Scores per image at its mask's own size, then averaged: the content of `evaluate --json`.

    {"num_images", "mean": {"iou": {CLASS: x}, "dice": {CLASS: x}, "miou", "accuracy"}, "interval95": the same with
    [low, high] (bootstrap over images; None for few), "cases": [{"image", "iou", "dice", "miou", "accuracy", "distance",
    "pixels": {CLASS: of the mask}}]}.
    A class in neither mask nor prediction is None and not counted; so is everything of an image without a labelled pixel.
    `miou` is the mean over all classes, background included. Images are read as they are needed.
    Raises UserError with a line for every image or mask that cannot be used.
    """

    def score(names: Sequence[str]) -> list[dict[str, Any]]:
        cases = []
        for name, mask, found in _answers(find, root, names, labels, channels):
            cases.append(_case(name, _confusion(found, mask, labels), labels, found.distance))
            if progress:
                progress(len(cases), len(names))
        return cases

    cases = share(images, score)
    values = {field: _column(cases, field, labels) for field in ("iou", "dice", "miou", "accuracy")}
    return {
        "num_images": len(cases),
        "mean": _summary(values, lambda v: _or_none(np.nanmean(v) if not np.isnan(v).all() else math.nan)),
        "interval95": _summary(values, lambda v: [_or_none(x) for x in bootstrap_interval(v, seed=0)]),
        "cases": cases,
    }


def to_csv(result: dict[str, Any]) -> str:
    """A line per image, the scores of `evaluate` in columns iou_CLASS, ..., dice_CLASS, ..., miou, accuracy, distance."""
    names = list(result["mean"]["iou"])
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", *(f"iou_{n}" for n in names), *(f"dice_{n}" for n in names), "miou", "accuracy", "distance"])
    for case in result["cases"]:
        scores = [*(case["iou"][n] for n in names), *(case["dice"][n] for n in names)]
        table.writerow([case["image"], *scores, case["miou"], case["accuracy"], case["distance"]])
    return text.getvalue()


def _answers(
    find: Find, root: Path, images: Sequence[str], labels: LabelSpec, channels: int
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w"], Found]]:
    """Name, mask and answer of every image; after the first bad file the rest are only looked at, to name all bad ones."""
    waiting: deque[tuple[str, np.ndarray]] = deque()

    def read() -> Iterator[np.ndarray]:
        problems: list[str] = []
        for name in images:
            try:
                img = read_image(root / name, channels)
                mask = read_mask(mask_path(root / name), labels, (img.shape[1], img.shape[0]))
            except UserError as error:
                problems.append(str(error))
                continue
            if not problems:
                waiting.append((name, mask))
                yield img
        raise_problems(problems)

    for found in find(read()):
        yield *waiting.popleft(), found


def _confusion(found: Found, mask: np.ndarray, labels: LabelSpec) -> Int[Tensor, "k k"]:
    return confusion(torch.from_numpy(found.label()), torch.from_numpy(mask), labels.num_classes)


def _case(name: str, conf: Tensor, labels: LabelSpec, distance: float | None) -> dict[str, Any]:
    ious, dices = iou(conf), dice(conf)
    return {
        "image": name,
        "iou": {c: _or_none(x) for c, x in zip(labels.names, ious.tolist(), strict=True)},
        "dice": {c: _or_none(x) for c, x in zip(labels.names, dices.tolist(), strict=True)},
        "miou": _or_none(ious.nanmean()),
        "accuracy": _or_none(accuracy(conf)),
        "distance": distance,
        "pixels": dict(zip(labels.names, conf.sum(1).tolist(), strict=True)),
    }


def _column(cases: list[dict[str, Any]], field: str, labels: LabelSpec) -> Any:
    """A field of all cases as an array, NaN for None; for fields with an entry per class, an array for each."""
    if field in ("iou", "dice"):
        return {c: np.array([case[field][c] for case in cases], np.float64) for c in labels.names}
    return np.array([case[field] for case in cases], np.float64)


def _summary(values: dict[str, Any], of: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    return {f: {c: of(x) for c, x in v.items()} if isinstance(v, dict) else of(v) for f, v in values.items()}


def _or_none(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)


# ---------------------------------------------------------------- what validation images choose

ZOOM_COST = 0.015  # mean IoU that zoom may cost: it gains several times as much where things are smaller than in training
MARGIN = 0.005  # a mean IoU that is better by less is a tie; so is one within its standard error
FEWEST_DISTANCES = 20  # by the quantiles of two images' distances a third of all images would be beyond 95 %
PIXELS = 1_000_000  # of all validation images together, for the temperature


@dataclass(frozen=True)
class Choice:
    """Default settings of a model, and what speaks for them."""

    steps: int
    zoom: bool
    temperature: float
    distance_quantiles: tuple[float, ...]  # of the validation images' distances, at 0, .05, ..., 1
    scores: dict[str, float]  # what was tried -> mean foreground IoU
    ious: Float[np.ndarray, " n"] = field(compare=False)  # of what was chosen, by image; NaN where none counts

    def gain_over(self, other: "Choice") -> float:
        """By how much its foreground IoU is better, in the mean over images in pairs."""
        ours, theirs = _paired(self.ious, other.ious)
        return _mean(ours - theirs)


def choose(
    find: Callable[[Iterable[np.ndarray], int, bool], Iterator[Found]],  # images, steps, zoom -> answers
    root: Path,
    images: Sequence[str],
    labels: LabelSpec,
    channels: int,
    *,
    steps: Sequence[int] = (0, 20, 60),  # candidates, fewest first; one: it is taken
    zoom: bool | None = None,  # None: if it hardly hurts, for tasks with two classes
    most: int = 100,  # images on which steps of inversion are tried
    share: Share = _alone,
) -> Choice:
    """Zoom, inversion steps and softmax temperature by validation images alone.

    Zoom is taken unless it costs more than ZOOM_COST of mean foreground IoU (over images, of the mean over classes 1..).
    More steps are taken only where they gain more than MARGIN and than the standard error of the gain, image by image.
    An image rightly left empty by one of two and not by the other counts as 1 for the one. The temperature minimises the
    negative log likelihood of the masks' pixels. Of fewer than FEWEST_DISTANCES distances no quantiles.
    """
    scores: dict[str, float] = {}
    may_zoom = labels.num_classes == 2 and zoom is not False
    trial = _trial(find, root, images, labels, channels, steps[0], may_zoom, share)
    if may_zoom:
        with_zoom, without = _paired(trial.foreground_iou, trial.without_zoom().foreground_iou)
        scores |= {f"{steps[0]} steps": _mean(without), f"{steps[0]} steps, zoom": _mean(with_zoom)}
        zoom = zoom is True or _mean(with_zoom - without) >= -ZOOM_COST
        trial = trial if zoom else trial.without_zoom()
    else:
        zoom = False
        scores[f"{steps[0]} steps"] = _mean(trial.foreground_iou)
    best, some = trial, slice(None, None, math.ceil(len(images) / most))
    named = (", zoom" if zoom else "") + (f", {len(images[some])} of the images" if len(images) > most else "")
    for more in steps[1:]:
        other = _trial(find, root, images[some], labels, channels, more, zoom, share)
        ours = best.foreground_iou if len(best.found) == len(other.found) else best.foreground_iou[some]
        theirs, ours = _paired(other.foreground_iou, ours)
        scores[f"{more} steps{named}"] = _mean(theirs)
        if _clearly_better(theirs - ours):
            best = other
    distances = [found.distance for found in best.found if found.distance is not None]
    enough = len(distances) >= FEWEST_DISTANCES
    quantiles = np.quantile(distances, np.linspace(0, 1, 21)).tolist() if enough else []
    return Choice(best.steps, zoom, best.temperature(), tuple(quantiles), scores, best.foreground_iou)


@dataclass(frozen=True)
class _Trial:
    """Answers for validation images; they stay at G's resolution, and the masks are read again when needed."""

    steps: int
    found: list[Found]
    masks: list[Path]
    labels: LabelSpec

    def _pairs(self) -> Iterator[tuple[Found, np.ndarray]]:
        for found, path in zip(self.found, self.masks, strict=True):
            yield found, read_mask(path, self.labels, found.size[::-1])

    def without_zoom(self) -> "_Trial":
        return replace(self, found=[replace(found, crop=None) for found in self.found])

    @cached_property
    def foreground_iou(self) -> Float[np.ndarray, " n"]:
        """Per image, the mean over the classes after the background; NaN where none of them is in mask or prediction."""
        confusions = [_confusion(found, mask, self.labels) for found, mask in self._pairs()]
        return torch.stack([iou(conf)[1:].nanmean() for conf in confusions]).numpy()

    def temperature(self) -> float:
        """The one that gives the masks' pixels the highest likelihood, of 201 from .05 to 20."""
        rng = np.random.default_rng(0)
        logits, truth = [], []
        for found, mask in self._pairs():
            pixels = rng.choice(mask.size, min(mask.size, max(1, PIXELS // len(self.found))), replace=False)
            pixels = pixels[mask.reshape(-1)[pixels] != IGNORE_INDEX]
            logits.append(found.logits().flatten(1)[:, torch.from_numpy(pixels)].T)
            truth.append(torch.from_numpy(mask.reshape(-1)[pixels]).long())
        return fit_temperature(torch.cat(logits), torch.cat(truth))


def fit_temperature(logits: Float[Tensor, "n k"], label: Int[Tensor, " n"]) -> float:
    """The softmax temperature of least negative log likelihood (Guo et al., arXiv 1706.04599), of 201 from .05 to 20.

    1 where there is no pixel.
    """
    if len(label) == 0:
        return 1.0
    candidates = np.geomspace(0.05, 20, 201)
    losses = [float(torch.nn.functional.cross_entropy(logits / t, label)) for t in candidates]
    return round(float(candidates[int(np.argmin(losses))]), 4)


def _trial(
    find: Callable[[Iterable[np.ndarray], int, bool], Iterator[Found]],
    root: Path,
    images: Sequence[str],
    labels: LabelSpec,
    channels: int,
    steps: int,
    zoom: bool,
    share: Share,
) -> _Trial:
    found = share(images, lambda names: list(find((read_image(root / name, channels) for name in names), steps, zoom)))
    return _Trial(steps, found, [mask_path(root / name) for name in images], labels)


def _paired(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoUs by image of two settings: where one has left an image rightly empty (NaN), and the other has not, it has 1."""
    either = ~(np.isnan(one) & np.isnan(other))
    return np.where(np.isnan(one) & either, 1.0, one), np.where(np.isnan(other) & either, 1.0, other)


def _mean(values: np.ndarray) -> float:
    """Over the images that count; 0 if none does."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else 0.0


def _clearly_better(gain: np.ndarray) -> bool:
    gain = gain[~np.isnan(gain)]
    return len(gain) > 1 and bool(gain.mean() > max(MARGIN, gain.std(ddof=1) / math.sqrt(len(gain))))
