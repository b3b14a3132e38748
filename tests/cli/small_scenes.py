"""Small drawn images with masks, and lists of them, for the tests of the command."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def scene(seed: int, size: tuple[int, int] = (20, 20)) -> tuple[np.ndarray, np.ndarray]:
    """A bright ellipse on noise, and its mask."""
    random = np.random.default_rng(seed)
    w, h = size
    y, x = np.mgrid[:h, :w]
    cy, cx = random.uniform(0.3, 0.7, 2) * (h, w)
    label = ((y - cy) ** 2 / (h / 4) ** 2 + (x - cx) ** 2 / (w / 4) ** 2 < 1).astype(np.uint8)
    img = random.normal(90, 20, (h, w, 3)) + label[:, :, None] * (80, 40, 10)
    return img.clip(0, 255).astype(np.uint8), label


def add_pair(root: Path, name: str, seed: int, masked: bool = True, size: tuple[int, int] = (20, 20)) -> None:
    img, label = scene(seed, size)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(img).save(root / "images" / f"{name}.png")
    if masked:
        Image.fromarray(label).save(root / "masks" / f"{name}.png")


def write_list(path: Path, images: Sequence[str]) -> Path:
    path.write_text("".join(f"{image}\n" for image in images))
    return path


def load(path: Path) -> Image.Image:
    """An image file, read and closed."""
    with Image.open(path) as image:
        image.load()
        return image.copy()
