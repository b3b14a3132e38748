"""Figures that papers and talks need: scores over labels, an inversion step by step, the way between two images."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from semanticgan.charts import Drawing, Series, chart, thinned
from semanticgan.data.dataset import to_u8
from semanticgan.data.transforms import fit_image, to_float
from semanticgan.data.transforms import to_u8 as tensor_to_u8
from semanticgan.inversion import invert
from semanticgan.model import SemanticGAN
from semanticgan.scores import Scores
from semanticgan.visuals import overlay, to_rgb

Picture = UInt8[np.ndarray, "_h _w 3"]
Rows = list[tuple[str, list[Picture]]]  # caption and images


# ---------------------------------------------------------------- scores over labels


def label_efficiency(points: Sequence[tuple[int, str, Scores]], score: str) -> Drawing:
    """A line a method over the number of labels; `score` as `Scores.of` takes it.

    One file at a point: its 95 % interval over images. Several, of repeated trainings: their mean, lowest and highest.
    Raises UserError for a score that a file does not have.
    """
    series = []
    for method in dict.fromkeys(name for _, name, _ in points):
        by_count: dict[int, list[Scores]] = {}
        for count, name, scores in points:
            if name == method:
                by_count.setdefault(count, []).append(scores)
        counts = sorted(by_count)
        means, lows, highs = zip(*(_together(by_count[count], score) for count in counts), strict=True)
        series.append(Series(method, counts, means, lows, highs))
    kind, _, which = score.partition(":")
    label = {"miou": "mean IoU", "accuracy": "share of right pixels", "iou": "IoU", "dice": "Dice"}[kind]
    label += f" of {which}" if which else ""
    return chart(series, f"{label} over the number of labels", "labelled images", label, log_x=True)


def _together(files: Sequence[Scores], score: str) -> tuple[float, float, float]:
    """Mean, low and high; NaN for what is not there."""
    found = [file.of(score) for file in files]
    means = [mean for mean, _ in found if mean is not None]
    if len(found) > 1 and means:
        return sum(means) / len(means), min(means), max(means)
    mean, (low, high) = found[0]
    return tuple(math.nan if value is None else value for value in (mean, low, high))  # type: ignore[return-value]


# ---------------------------------------------------------------- latent codes


@torch.no_grad()
def _encoded(model: SemanticGAN, img: np.ndarray) -> tuple[Float[Tensor, "1 c r r"], list[Tensor]]:
    """The image at G's resolution, and what the encoder makes of it: ws (else w_avg), and features if it gives them."""
    data = model.config.data
    fitted = fit_image(to_u8(img, data.num_channels), data.resolution, data.fit)
    x = to_float(torch.from_numpy(fitted)[None]).to(model.device)
    return x, [model.G.mapping.w_avg.expand(1, model.G.num_ws, -1)] if model.E is None else list(model.E(x))


def _drawn(model: SemanticGAN, img: Float[Tensor, "1 c r r"], seg_logits: Float[Tensor, "1 k r r"]) -> tuple[Picture, Picture]:
    """Tensors of G as an image and its label map in colour."""
    label = seg_logits.argmax(1)[0].byte().cpu().numpy()
    return to_rgb(tensor_to_u8(img.detach().float())[0].cpu().numpy()), model.labels.to_colour(label)


def film_strip(model: SemanticGAN, images: Sequence[tuple[str, np.ndarray]], steps: int, shown: int = 8) -> Image.Image:
    """Two rows an image, with its name: the best reconstruction so far and its label map at `shown` of the steps 0..N.

    In the first column the image, and below it the image with the last label map.
    """
    places = thinned(range(steps + 1), shown)
    rows: Rows = []
    for name, img in images:
        x, (ws, *features) = _encoded(model, img)
        kept: dict[int, tuple[Picture, Picture]] = {}
        last: list[Tensor] = []

        def watch(step: int, img: Tensor, seg_logits: Tensor, kept: Any = kept, last: Any = last) -> None:
            last[:] = [seg_logits]
            if step in places:
                kept[step] = _drawn(model, img, seg_logits)

        invert(model.G, model.lpips, x, ws, model.config.inversion, steps, model.prior, features=features, watch=watch)
        fitted = to_rgb(tensor_to_u8(x)[0].cpu().numpy())
        final = overlay(fitted, last[0].argmax(1)[0].byte().cpu().numpy(), model.labels)
        rows.append((name, [fitted, *(kept[step][0] for step in places)]))
        rows.append(("label map", [final, *(kept[step][1] for step in places)]))
    return draw_rows(rows, heads=["image", *(f"step {step}" for step in places)])


@torch.no_grad()
def interpolation(model: SemanticGAN, a: np.ndarray, b: np.ndarray, frames: int, steps: int = 0) -> list[Image.Image]:
    """The straight way from one image's latents to the other's: the image beside its label map, `frames` of them.

    `steps` of inversion improve both ws first.
    """
    ends = []
    for img in (a, b):
        x, (ws, *features) = _encoded(model, img)
        if steps > 0:
            inversion = model.config.inversion.model_copy(update={"noise": False})  # nothing between two images' noise maps
            ws = invert(model.G, model.lpips, x, ws, inversion, steps, model.prior, features=features).ws
        ends.append([ws, *features])
    side = max(256, model.config.data.resolution)
    pictures = []
    for k in range(frames):
        share = 0.5 - 0.5 * math.cos(math.pi * k / max(1, frames - 1))  # slow at the ends
        ws, *features = (a.lerp(b, share) for a, b in zip(*ends, strict=True))
        pair = _drawn(model, *model.G.synthesis(ws, "none", *features))
        picture = Image.new("RGB", (2 * side + 8, side), "white")
        for column, panel in enumerate(pair):
            method = Image.Resampling.NEAREST if column else Image.Resampling.BICUBIC
            picture.paste(Image.fromarray(panel).resize((side, side), method), (column * (side + 8), 0))
        pictures.append(picture)
    return pictures


# ---------------------------------------------------------------- rows of pictures


@cache
def font(size: int) -> Any:
    return ImageFont.load_default(size)


def draw_rows(rows: Rows, side: int = 96, gap: int = 6, margin: int = 110, heads: Sequence[str] = ()) -> Image.Image:
    """Rows of images, all `side` pixels large, with their captions on the left and `heads` over the columns, on white."""
    head = 24 if heads else 0
    width = margin + max(len(images) for _, images in rows) * (side + gap)
    picture = Image.new("RGB", (width, head + len(rows) * (side + gap)), "white")
    pen = ImageDraw.Draw(picture)
    for c, text in enumerate(heads):
        pen.text((margin + c * (side + gap) + side / 2, head - 8), text, "black", font(15), anchor="ms")
    for r, (caption, images) in enumerate(rows):
        top = head + r * (side + gap)
        pen.text((0, top + side // 2 - 8), caption, "black", font(15))
        for c, image in enumerate(images):
            picture.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (margin + c * (side + gap), top))
    return picture
