"""`semanticgan evaluate`: the scores as a table, as JSON, as CSV and as a page."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from semanticgan.cli.output import require_file, write_text
from semanticgan.data.coding import coded_as
from semanticgan.data.dataset import raise_problems
from semanticgan.data.sources import find_root, list_images, mask_path, sharing_a_mask
from semanticgan.errors import UserError
from semanticgan.evaluation import evaluate, to_csv
from semanticgan.model import SemanticGAN
from semanticgan.report import evaluation_page
from semanticgan.scores import Interval, Scores
from semanticgan.training.distributed import ALONE, World

SECONDS_BETWEEN_LINES = 5


def evaluate_model(
    name: str,
    data: Path,
    spec: str,  # a list of images or a folder of them
    device: str,
    *,
    steps: int | None,
    batch: int,
    views: bool | None,
    zoom: bool | None,
    json_file: Path | None,
    csv_file: Path | None,
    report: Path | None,
    say: Callable[[str], None],
    world: World = ALONE,
) -> None:
    """Print a table of scores, and write JSON, CSV and report where asked. Raises UserError, before the work where it can.

    Processes share the images; rank 0 writes.
    """
    for path, option in ((json_file, "--json"), (csv_file, "--csv"), (report, "--report")):
        if path is not None:
            require_file(path, option)
    root = find_root(data)
    images = list_images(root, spec)
    model = SemanticGAN.load(name, device=device).configured(views=views, zoom=zoom)
    bare = [image for image in images if (root / image).is_file() and not mask_path(root / image).is_file()]
    if bare:
        counts = f"{len(bare)} of {len(images)} images have no mask, such as {bare[0]}"
        raise UserError(f"--list {spec}: {counts}; name a list of images that have one")
    raise_problems([problem for *_, problem in sharing_a_mask(root, images)])
    labels = coded_as(model.labels, [mask_path(root / image) for image in images if (root / image).is_file()])
    if labels.coding != model.labels.coding:
        meaning = "255 is class 1" if labels.coding == "binary" else "class ids, 255 is ignored"
        say(f"masks: of another coding than those of the training: {meaning}")
    steps = model.config.steps if steps is None else steps
    said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            say(f"{done} of {total} images")

    result = evaluate(
        lambda stream: model.find(stream, steps, batch), root, images, labels, model.config.data.num_channels, progress,
        world.shared,
    )  # fmt: skip
    used = {"steps": steps, "views": model.config.views, "zoom": model.config.zoom, "coding": labels.coding}
    result = {"model": name, "data": str(data), "list": spec, **used, **result}

    def write() -> None:
        _write(result, json_file, csv_file, say)
        if report is not None:
            evaluation_page(Scores.model_validate(result), report, name, data, device).write(report)

    world.first(write)


def _write(result: dict[str, Any], json_file: Path | None, csv_file: Path | None, say: Callable[[str], None]) -> None:
    where = f"{result['num_images']} images of {result['list']}, {result['steps']} steps of inversion"
    if json_file is not None:
        write_text(json_file, json.dumps(result, indent=1, allow_nan=False) + "\n")
    if csv_file is not None:
        write_text(csv_file, to_csv(result))
    say(f"{result['model']} on {where}; mean over the images that count, 95 % interval where they are enough")
    for line in table(Scores.model_validate(result)):
        say(line)


def table(scores: Scores) -> Iterator[str]:
    """A line per class with IoU and Dice and how many images count, then their mean and the accuracy."""
    names = list(scores.mean.iou)
    width = max(map(len, (*names, "mean IoU"))) + 2
    yield f"{'':{width}}{'IoU':24}{'Dice':24}images"
    for name in names:
        iou, dice = (_cell(*scores.of(f"{score}:{name}")) for score in ("iou", "dice"))
        yield f"{name:{width}}{iou:24}{dice:24}{scores.images_with(name)}"
    yield f"{'mean IoU':{width}}{_cell(*scores.of('miou')):48}{scores.images_with()}"
    yield f"{'accuracy':{width}}{_cell(*scores.of('accuracy')):48}{scores.images_with()}"


def _cell(value: float | None, interval: Interval) -> str:
    if value is None:
        return "not present"
    low, high = interval
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f}  {low:.4f}..{high:.4f}"
