"""`semanticgan segment`: every image in, its results out, in bounded memory."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semanticgan.cli.inputs import Input, Inputs
from semanticgan.cli.output import write_text
from semanticgan.data.dataset import load_picture
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec
from semanticgan.model import distance_rank
from semanticgan.training.distributed import ALONE, World
from semanticgan.visuals import overlay, save_label_png, save_png

if TYPE_CHECKING:
    from semanticgan.model import Segmentation, SemanticGAN

UNUSUAL = 0.95  # images beyond this share of the validation images' distances are counted aloud
SECONDS_BETWEEN_LINES = 5
WRITERS = 2
MOST_WAITING = 2**28  # bytes of the images whose results are still to be written


@dataclass(frozen=True)
class _Outcome:
    """Of one image: its row of the summary, or what is wrong with it."""

    row: dict[str, Any] | None
    problem: str | None
    stretched: bool
    stacked: bool  # the file has further pictures


class _Reader:
    """Reads images one after the other and keeps each until its result is there; what cannot be read is a problem."""

    def __init__(self, items: Sequence[Input], channels: int) -> None:
        self.items, self.channels = items, channels
        self.waiting: deque[tuple[Input, np.ndarray]] = deque()
        self.problems: dict[Input, str] = {}
        self.stretched: set[Input] = set()
        self.stacked: set[Input] = set()

    def __iter__(self) -> Iterator[np.ndarray]:
        for item in self.items:
            try:
                picture = load_picture(item.path, self.channels)
            except UserError as error:
                self.problems[item] = str(error)
                continue
            if picture.stretched:
                self.stretched.add(item)
            if picture.frames > 1:
                self.stacked.add(item)
            self.waiting.append((item, picture.pixels))
            yield picture.pixels


def segment_inputs(
    model: "SemanticGAN",
    name: str,
    inputs: Inputs,
    out: Path,
    *,
    steps: int | None,
    batch: int,
    say: Callable[[str], None],
    world: World = ALONE,
) -> None:
    """Write the results of every image that can be read, then summary.json, in bounded memory.

    Processes share the images and write their results; rank 0 writes the summary. Raises UserError with a line a bad
    file, after the others are done.
    """
    outcomes = world.shared(inputs.images, lambda items: _segment(model, items, out, steps, batch, say))
    settings = {
        "model": name,
        "steps": model.config.steps if steps is None else steps,
        "views": model.config.views,
        "zoom": model.config.zoom,
        "classes": list(model.labels.names),
    }
    world.first(lambda: _summarise(settings, inputs, outcomes, out, say))


def _summarise(
    settings: dict[str, Any], inputs: Inputs, outcomes: Sequence[_Outcome], out: Path, say: Callable[[str], None]
) -> None:
    rows = [outcome.row for outcome in outcomes if outcome.row is not None]
    problems = dict(inputs.problems)
    for item, outcome in zip(inputs.images, outcomes, strict=True):
        if outcome.problem is not None:
            problems[str(item.path)] = outcome.problem
    failed = [{"file": file, "error": error} for file, error in problems.items()]
    write_text(out / "summary.json", json.dumps({**settings, "images": rows, "failed": failed}, indent=1) + "\n")
    stretched = [item for item, outcome in zip(inputs.images, outcomes, strict=True) if outcome.stretched]
    stacked = [item for item, outcome in zip(inputs.images, outcomes, strict=True) if outcome.stacked]
    for line in _last_words(rows, stretched, stacked, out):
        say(line)
    if problems:
        raise UserError("\n".join(problems.values()))


def _segment(
    model: "SemanticGAN", items: Sequence[Input], out: Path, steps: int | None, batch: int, say: Callable[[str], None]
) -> list[_Outcome]:
    channels = model.config.data.num_channels
    reader = _Reader(items, channels)
    rows: dict[Input, dict[str, Any]] = {}
    start = said = time.monotonic()
    pending: deque[tuple[Future[None], int]] = deque()  # with the bytes of its pixels
    with ThreadPoolExecutor(WRITERS) as pool:  # files are written while the next batch is computed
        for found in model.find(reader, steps, batch):
            item, pixels = reader.waiting.popleft()
            result = model.segmentation(found)
            rows[item] = _row(model, item, result, steps)
            written = pool.submit(_write_result, model.labels, item, pixels, result.label, result.reconstruction, out)
            pending.append((written, pixels.nbytes))
            while len(pending) > 2 * WRITERS or sum(size for _, size in pending) > MOST_WAITING:
                pending.popleft()[0].result()
            if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                say(f"{len(rows)} of {len(items)} images  {len(rows) / (said - start):.1f} images/s")
        for written, _ in pending:
            written.result()
    return [
        _Outcome(rows.get(item), reader.problems.get(item), item in reader.stretched, item in reader.stacked) for item in items
    ]


def _write_result(
    labels: LabelSpec, item: Input, pixels: np.ndarray, label: np.ndarray, reconstruction: np.ndarray | None, out: Path
) -> None:
    file = f"{item.name}.png"
    save_png(out / "overlays" / file, overlay(pixels, label, labels))  # first: by it `segment` knows its own masks
    save_label_png(out / "masks" / file, label, labels)
    if reconstruction is not None:
        save_png(out / "reconstructions" / file, reconstruction)


def _row(model: "SemanticGAN", item: Input, result: "Segmentation", steps: int | None) -> dict[str, Any]:
    counts = np.bincount(result.label.reshape(-1), minlength=model.labels.num_classes)
    shares = {name: round(float(n / result.label.size), 6) for name, n in zip(model.labels.names, counts, strict=True)}
    comparable = steps in (None, model.config.steps)
    return {
        "image": item.path.as_posix(),
        "mask": f"masks/{item.name}.png",
        "size": [result.label.shape[1], result.label.shape[0]],
        "shares": shares,
        "uncertainty": round(float(result.uncertainty.mean()), 6),
        "distance": None if result.distance is None else round(result.distance, 6),
        # among the validation images' distances after as many steps
        "distance_rank": distance_rank(result.distance, model.config.distance_quantiles if comparable else ()),
    }


def _last_words(rows: Sequence[dict[str, Any]], stretched: Sequence[Input], stacked: Sequence[Input], out: Path) -> Iterable[str]:
    kinds = ["masks", "overlays", *(["reconstructions"] if any(row["distance"] is not None for row in rows) else [])]
    yield f"{len(rows)} images segmented: {', '.join(f'{out}/{name}' for name in (*kinds, 'summary.json'))}"
    if stretched:
        yield f"{stretched[0].path}: more than 8 bits, stretched between its .1 and 99.9 percentiles; so are others like it"
    if stacked:
        yield f"{stacked[0].path}: holds several pictures, as {len(stacked)} of the files do; the first of each was segmented"
    compared = [row["distance_rank"] is not None for row in rows if row["distance"] is not None]
    if compared and not any(compared):
        yield "which images are unlike the training images the model cannot tell: it has no distances after as many steps"
    unusual = [row for row in rows if (row["distance_rank"] or 0) > UNUSUAL]
    if unusual:
        yield (
            f"{len(unusual)} of them are explained worse than {UNUSUAL:.0%} of the validation images, "
            f"such as {unusual[0]['image']}: look at these"
        )
