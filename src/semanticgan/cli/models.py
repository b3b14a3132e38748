"""`semanticgan sample` and `semanticgan import`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from semanticgan.cli.output import require_new, write_text
from semanticgan.labels import IGNORE_INDEX, LabelSpec
from semanticgan.model import SemanticGAN
from semanticgan.visuals import grid, save_label_png, save_png, to_rgb

GRID_PAIRS, GRID_COLUMNS = 64, 8
Say = Callable[[str], None]


def write_samples(name: str, num: int, out: Path, *, seed: int, truncation_psi: float, device: str, say: Say) -> None:
    """Write images/, masks/ and classes.json, which together are a data folder, and grid.png of the first pairs."""
    require_new(out, "--out")
    model = SemanticGAN.load(name, device=device)
    digits = max(5, len(str(num - 1)))
    pairs = []
    for k, (img, label) in enumerate(model.sample(num, seed, truncation_psi)):
        save_png(out / "images" / f"{k:0{digits}d}.png", img)
        save_label_png(out / "masks" / f"{k:0{digits}d}.png", label, model.labels)
        if k < GRID_PAIRS:
            pairs.append(np.concatenate([to_rgb(img), model.labels.to_colour(label)]))
        if (k + 1) % 500 == 0:
            say(f"{k + 1} of {num} pairs")
    write_text(out / "classes.json", classes_json(model.labels))
    save_png(out / "grid.png", grid(pairs, GRID_COLUMNS))
    say(f"{num} images with their label maps: {out}/images, {out}/masks, {out}/grid.png")


def classes_json(labels: LabelSpec) -> str:
    classes = [{"name": name, "color": list(colour)} for name, colour in zip(labels.names, labels.palette, strict=True)]
    return json.dumps({"classes": classes, "ignore": IGNORE_INDEX}) + "\n"
