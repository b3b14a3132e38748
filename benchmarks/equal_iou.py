"""Inversion, ours against the plain design's, at the masks that they find: seconds an image beside mean IoU.

    python -m semanticgan.nn.perceptual vgg        # once: the plain design's LPIPS
    python benchmarks/equal_iou.py --model MODEL --data DATA --list splits/val.txt

One view, no zoom, both from the same encoder. The plain design takes 60 steps, one image at a time, with LPIPS on VGG-16 at the
image's own size, as the released code does; ours takes several numbers of steps, in batches. Leave the machine alone meanwhile.
"""

import argparse
import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plain
import torch
from speed import cpu_name, revision, write
from tables import number, table
from torch import Tensor

from semanticgan import SemanticGAN
from semanticgan.data.sources import find_root, list_images
from semanticgan.errors import UserError
from semanticgan.evaluation import evaluate
from semanticgan.predict import Found, Prediction, Predictor, predict
from semanticgan.scores import Scores

STEPS = (0, 5, 10, 20, 40, 60)  # of ours
PLAIN_STEPS = 60
TIE = 0.005  # of mean IoU


class PlainInversion:
    """E, then the plain design's inversion, then G: image by image, in float32."""

    refines = True

    def __init__(self, model: SemanticGAN, steps: int) -> None:
        self.G, self.E = plain.make_plain(model.G), plain.make_plain(model.E)
        self.lpips, self.prior = plain.vgg_lpips(), model.prior
        self.config, self.steps = model.config.inversion, steps

    def __call__(self, img: Tensor, refine: bool = True) -> Prediction:
        probs = []
        for one in img.contiguous().split(1):
            with torch.no_grad():
                ws, *features = self.E(one)
            ws = plain.invert(self.G, self.lpips, one, ws, self.config, self.steps, self.prior, features, size=lambda x: x)
            with torch.no_grad():
                probs.append(self.G.synthesis(ws, "none", *features)[1].softmax(1))
        return Prediction(torch.cat(probs))


class Timed:
    """A predictor that notes how long it takes."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.refines = predictor, predictor.refines
        self.seconds = 0.0

    def __call__(self, img: Tensor, refine: bool = True) -> Prediction:
        start = time.perf_counter()
        try:
            return self.predictor(img, refine)
        finally:
            self.seconds += time.perf_counter() - start


def measure(predictor: Predictor, model: SemanticGAN, root: Path, images: list[str]) -> dict[str, float]:
    """Mean IoU over images of the mean over the classes after the background, and seconds an image."""
    timed, data = Timed(predictor), model.config.data

    def find(stream: Iterable[np.ndarray]) -> Iterator[Found]:
        return predict(timed, stream, resolution=data.resolution, fit=data.fit)

    scores = Scores.model_validate(evaluate(find, root, images, model.labels, data.num_channels))
    return {"iou": float(np.nanmean([case.foreground_iou for case in scores.cases])), "seconds": timed.seconds / len(images)}


def cheapest(ours: dict[str, dict[str, float]], iou: float) -> str | None:
    """The fewest steps, above none, whose mean IoU is within TIE of `iou`: where inversion costs IoU, fewer still do better."""
    return next((steps for steps, row in ours.items() if int(steps) and abs(row["iou"] - iou) <= TIE), None)


def render(results: dict[str, Any]) -> str:
    plain_row = results["plain"]
    rows = [["plain", str(PLAIN_STEPS), f"{plain_row['iou']:.4f}", number(1000 * plain_row["seconds"]), "1"]]
    for steps, row in results["ours"].items():
        ratio = number(plain_row["seconds"] / row["seconds"]) if int(steps) else "-"
        rows.append(["ours", steps, f"{row['iou']:.4f}", number(1000 * row["seconds"]), ratio])
    return table(["design", "steps", "mean IoU", "ms an image", "plain / ours"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model folder or a run")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--list", required=True, help="labelled images: a text file or a folder")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help=f"of ours; default {' '.join(map(str, STEPS))}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    given = parser.parse_args()
    try:
        if plain.vgg_weights() != "published":
            raise UserError("VGG-16 is missing: fetch it with python -m semanticgan.nn.perceptual vgg")
        root = find_root(given.data)
        images = list_images(root, given.list)
        model = SemanticGAN.load(given.model)
        ours = {str(steps): measure(model.predictor(steps), model, root, images) for steps in sorted(given.steps)}
        results = {
            "command": shlex.join(["python", "benchmarks/equal_iou.py", *sys.argv[1:]]),
            "git": revision(), "date": datetime.date.today().isoformat(), "cpu": cpu_name(),
            "threads": torch.get_num_threads(), "load_before": os.getloadavg()[0], "images": len(images), "ours": ours,
            "plain": measure(PlainInversion(SemanticGAN.load(given.model), PLAIN_STEPS), model, root, images),
        }  # fmt: skip
    except UserError as error:
        sys.exit(f"equal_iou: {error}")
    print(render(results))
    steps = cheapest(ours, results["plain"]["iou"])
    if steps is not None:
        print(f"equal mean IoU (within {TIE}) at {steps} steps: {results['plain']['seconds'] / ours[steps]['seconds']:.1f} times")
    if given.json:
        write(given.json, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
