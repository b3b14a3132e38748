"""Label maps on images, grids of images, and picture files written whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageFilter

from semanticgan.files import replacing
from semanticgan.labels import LabelSpec

BAND = 256  # rows that are blended at once: an image may have 200 million pixels


def to_rgb(img: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """One grey or three colour channels -> three."""
    return np.repeat(img, 3, axis=2) if img.shape[2] == 1 else img


def overlay(
    img: UInt8[np.ndarray, "h w c"], label: Integer[np.ndarray, "h w"], labels: LabelSpec, alpha: float = 0.5
) -> UInt8[np.ndarray, "h w 3"]:
    """The image in colour with its label map over it: alpha of the class's colour inside, all of it on the border.

    Class 0 is left clear; ignored pixels are white.
    """
    out = np.array(to_rgb(img))
    label = label.astype(np.uint8)
    border = _border(label)
    for top in range(0, len(out), BAND):
        rows = slice(top, top + BAND)
        under, colour = out[rows].astype(np.float32), labels.to_colour(label[rows]).astype(np.float32)
        opacity = np.where(label[rows] > 0, np.where(border[rows], 1.0, alpha), 0.0).astype(np.float32)
        out[rows] = np.rint(under + (colour - under) * opacity[:, :, None])
    return out


def _border(label: UInt8[np.ndarray, "h w"]) -> np.ndarray:
    """Pixels with another class among their eight neighbours, on images large enough for a line to help."""
    if min(label.shape) < 48:
        return np.zeros(label.shape, bool)
    image = Image.fromarray(label)
    return np.asarray(image.filter(ImageFilter.MaxFilter(3))) != np.asarray(image.filter(ImageFilter.MinFilter(3)))


# Blue, vermilion and purple: apart for colour-blind readers too.
ERRORS = {"missed": (0, 114, 178), "too much": (213, 94, 0), "another class": (204, 121, 167)}


def error_map(
    img: UInt8[np.ndarray, "h w c"], truth: Integer[np.ndarray, "h w"], label: Integer[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The image in pale grey, its wrong pixels in the colours of ERRORS; pixels that the truth ignores (255) are white.

    Missed: background was found where there is a class; too much: a class where there is background.
    """
    grey = to_rgb(img).mean(2, keepdims=True)
    out = np.repeat(128 + grey / 2, 3, axis=2).round().astype(np.uint8)
    wrong = truth != label
    out[wrong & (label == 0)] = ERRORS["missed"]
    out[wrong & (truth == 0)] = ERRORS["too much"]
    out[wrong & (truth > 0) & (label > 0)] = ERRORS["another class"]
    out[truth == 255] = 255
    return out


def grid(images: Sequence[UInt8[np.ndarray, "_ _ 3"]], columns: int, gap: int = 2) -> UInt8[np.ndarray, "gh gw 3"]:
    """Images row by row on white, each centred in a cell of the largest one's size."""
    if not images or columns < 1:
        raise ValueError(f"grid: got {len(images)} images in {columns} columns, expected at least 1 of each")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell_h, cell_w = max(i.shape[0] for i in images), max(i.shape[1] for i in images)
    out = np.full((rows * (cell_h + gap) - gap, columns * (cell_w + gap) - gap, 3), 255, np.uint8)
    for k, image in enumerate(images):
        h, w = image.shape[:2]
        top = k // columns * (cell_h + gap) + (cell_h - h) // 2
        left = k % columns * (cell_w + gap) + (cell_w - w) // 2
        out[top : top + h, left : left + w] = image
    return out


def _save(path: Path, image: Image.Image) -> None:
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", compress_level=1)  # a fifth of the usual time, an eighth more bytes


def save_png(path: Path, img: UInt8[np.ndarray, "h w c"]) -> None:
    """Write an image of 1 or 3 channels as PNG, whole or not at all. Raises UserError when the place cannot be written."""
    _save(path, Image.fromarray(img[:, :, 0] if img.shape[2] == 1 else img))


def save_label_png(path: Path, label: Integer[np.ndarray, "h w"], labels: LabelSpec) -> None:
    """Write a label map as a palette PNG whose pixel values are the class ids, whole or not at all."""
    image = Image.fromarray(label.astype(np.uint8))
    image.putpalette(labels.palette_bytes())
    _save(path, image)
