"""A trained method -> its scores on every set of its task, by the code of `semanticgan evaluate`."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_cells import SPLITS, Task, paths

from semanticgan.data.sources import list_images
from semanticgan.evaluation import evaluate
from semanticgan.labels import LabelSpec
from semanticgan.predict import Found
from semanticgan.scores import Scores

Answers = Callable[[Iterable[np.ndarray], bool, bool], Iterator[Found]]  # images, views, zoom -> answers in their order
READINGS = {"one": "one view", "views": "all views", "zoom": "all views and zoom"}


def images_of(task: Task, name: str, root: Path) -> list[str]:
    """The images of one of the task's sets. Raises UserError where they are not there."""
    spec = task.sets[name]
    return paths(SPLITS / task.name / spec) if spec.endswith(".txt") else list_images(root, spec)


def score(find: Answers, task: Task, root: Path, labels: LabelSpec, sets: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Every reading of every set: {reading: {set: ...}}. The network runs twice: as it is, and with all views and zoom.

    For each set the number of images, a hash of their names, and in their order the foreground IoU of each in four digits
    (None: in neither mask nor prediction). With one class after the background, Dice is 2 IoU / (1 + IoU), and is not kept.
    """
    out: dict[str, dict[str, Any]] = {reading: {} for reading in READINGS}
    for name in sets:
        images = images_of(task, name, root)
        kept: list[Found] = []

        def keeping(stream: Iterable[np.ndarray], kept: list[Found] = kept) -> Iterator[Found]:
            for found in find(stream, True, True):
                kept.append(found)
                yield found

        def without_zoom(stream: Iterable[np.ndarray], kept: list[Found] = kept) -> Iterator[Found]:
            yield from (replace(found, crop=None) for _, found in zip(stream, kept, strict=True))

        finders = {"one": lambda stream: find(stream, False, False), "zoom": keeping, "views": without_zoom}
        for reading, finder in finders.items():
            result = evaluate(finder, root, images, labels, task.channels)
            out[reading][name] = compact(Scores.model_validate(result), images)
    return out


def compact(scores: Scores, images: list[str]) -> dict[str, Any]:
    values = [case.foreground_iou for case in scores.cases]
    return {
        "images": len(images),
        "list": hashlib.sha256("\n".join(images).encode()).hexdigest()[:12],
        "iou": [None if np.isnan(v) else round(v, 4) for v in values],
    }


def values(scores: dict[str, Any], metric: str) -> np.ndarray:
    """A set's scores by image, "iou" or "dice"; NaN where there is none."""
    iou = np.array([np.nan if v is None else v for v in scores["iou"]], np.float64)
    return iou if metric == "iou" else 2 * iou / (1 + iou)
