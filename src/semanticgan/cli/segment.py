"""`semanticgan segment`: every image in, its results out, in bounded memory."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semanticgan.cli.inputs import Input, Inputs
from semanticgan.cli.output import write_text
from semanticgan.data.dataset import load_picture
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec
from semanticgan.visuals import overlay, save_label_png, save_png

if TYPE_CHECKING:
    from semanticgan.model import Segmentation, SemanticGAN

UNUSUAL = 0.95  # images beyond this share of the validation images' distances are counted aloud
SECONDS_BETWEEN_LINES = 5
WRITERS = 2


class _Reader:
    """Reads images one after the other and keeps each until its result is there; what cannot be read is a problem."""

    def __init__(self, inputs: Inputs, channels: int, say: Callable[[str], None]) -> None:
        self.inputs, self.channels, self.say = inputs, channels, say
        self.waiting: deque[tuple[Input, np.ndarray]] = deque()
        self.stretched = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for item in self.inputs.images:
            try:
                picture = load_picture(item.path, self.channels)
            except UserError as error:
                self.inputs.problems[str(item.path)] = str(error)
                continue
            if picture.stretched and not self.stretched:
                self.say(f"{item.path}: more than 8 bits, stretched between its .1 and 99.9 percentiles; so are others like it")
            self.stretched += picture.stretched
            self.waiting.append((item, picture.pixels))
            yield picture.pixels


def segment_inputs(
    model: "SemanticGAN", name: str, inputs: Inputs, out: Path, *, steps: int | None, batch: int, say: Callable[[str], None]
) -> None:
    """Write the results of every image that can be read, then summary.json, in bounded memory.

    Raises UserError with a line a bad file, after the others are done.
    """
    channels = 3 if model.config.data.channels is None else model.config.data.channels
    reader = _Reader(inputs, channels, say)
    rows: list[dict[str, Any]] = []
    start = said = time.monotonic()
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS) as pool:  # files are written while the next batch is computed
        for found in model.find(reader, steps, batch):
            item, pixels = reader.waiting.popleft()
            result = model.segmentation(found)
            rows.append(_row(model, item, result))
            pending.append(pool.submit(_write_result, model.labels, item, pixels, result, out))
            if len(pending) > 2 * WRITERS:
                pending.popleft().result()
            if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                say(f"{len(rows)} of {len(inputs.images)} images  {len(rows) / (said - start):.1f} images/s")
        for written in pending:
            written.result()
    summary = {
        "model": name,
        "steps": model.config.steps if steps is None else steps,
        "views": model.config.views,
        "zoom": model.config.zoom,
        "classes": list(model.labels.names),
        "images": rows,
        "failed": [{"file": file, "error": error} for file, error in inputs.problems.items()],
    }
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    for line in _last_words(rows, out):
        say(line)
    if inputs.problems:
        raise UserError("\n".join(inputs.problems.values()))


def _write_result(labels: LabelSpec, item: Input, pixels: np.ndarray, result: "Segmentation", out: Path) -> None:
    file = f"{item.name}.png"
    save_label_png(out / "masks" / file, result.label, labels)
    save_png(out / "overlays" / file, overlay(pixels, result.label, labels))
    save_png(out / "reconstructions" / file, result.reconstruction)


def _row(model: "SemanticGAN", item: Input, result: "Segmentation") -> dict[str, Any]:
    counts = np.bincount(result.label.reshape(-1), minlength=model.labels.num_classes)
    shares = {name: round(float(n / result.label.size), 6) for name, n in zip(model.labels.names, counts, strict=True)}
    return {
        "image": item.path.as_posix(),
        "mask": f"masks/{item.name}.png",
        "size": [result.label.shape[1], result.label.shape[0]],
        "shares": shares,
        "uncertainty": round(float(result.uncertainty.mean()), 6),
        "distance": round(float(result.distance), 6),
        "distance_rank": distance_rank(result.distance, model.config.distance_quantiles),
    }


def distance_rank(distance: float, quantiles: Sequence[float]) -> float | None:
    """The share of validation images with a smaller distance; None for a model that keeps no quantiles."""
    if len(quantiles) < 2:
        return None
    return round(float(np.interp(distance, quantiles, np.linspace(0, 1, len(quantiles)))), 4)


def _last_words(rows: Sequence[dict[str, Any]], out: Path) -> Iterable[str]:
    yield f"{len(rows)} images segmented: {out}/masks, {out}/overlays, {out}/reconstructions, {out}/summary.json"
    unusual = [row for row in rows if (row["distance_rank"] or 0) > UNUSUAL]
    if unusual:
        yield (
            f"{len(unusual)} of them are explained worse than {UNUSUAL:.0%} of the validation images, "
            f"such as {unusual[0]['image']}: look at these"
        )
