"""A tiny drawn set, and what a data folder holds, for the tests of the formats."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from semanticgan.formats import convert

NAMES = ("background", "cell", "vessel")
COLOURS = ((0, 0, 0), (230, 159, 0), (86, 180, 233))


def scene(seed: int, size: tuple[int, int] = (12, 17), ignored: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """An image of noise and a label map with a block of each class, touching blocks and a line of ignored pixels."""
    random = np.random.default_rng(seed)
    h, w = size
    img = random.integers(0, 256, (h, w, 3), np.uint8)
    label = np.zeros((h, w), np.uint8)
    label[1 : h // 2, 2 : w // 2] = 1
    label[h // 2 - 2 : h - 1, w // 2 - 3 : w - 2] = 2
    label[h - 2, 1 : 1 + seed % 3] = 1
    if ignored:
        label[0, :3] = 255
    return img, label


def write_data(root: Path, labeled: int = 3, unlabeled: int = 1, ignored: bool = True) -> Path:
    """A data folder as docs/data.md describes it."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for k in range(labeled + unlabeled):
        img, label = scene(k, ignored=ignored)
        Image.fromarray(img).save(root / "images" / f"s{k}.png")
        if k < labeled:
            Image.fromarray(label).save(root / "masks" / f"s{k}.png")
    classes = [{"name": n, "color": c} for n, c in zip(NAMES, COLOURS, strict=True)]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": 255}))
    return root


def content(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Name -> RGB image and label map of a data folder (without nested images folders)."""
    found = {}
    for path in sorted((root / "images").rglob("*.*")):
        name = path.relative_to(root / "images").with_suffix("").as_posix()
        mask = root / "masks" / f"{name}.png"
        label = np.asarray(Image.open(mask)) if mask.exists() else None
        found[name] = (np.asarray(Image.open(path).convert("RGB")), label)
    return found


def names_of(root: Path) -> list[str]:
    return [c["name"] for c in json.loads((root / "classes.json").read_text())["classes"]]


def converted(source: Path, out: Path, **options) -> tuple[dict, list[str]]:
    """Convert to a data folder; its content and what was said."""
    said: list[str] = []
    convert(source, out, say=said.append, **options)
    return content(out), said


def same(one: dict, other: dict, images: bool = True) -> None:
    """Both have the same names, images and label maps."""
    assert sorted(one) == sorted(other)
    for name, (img, label) in one.items():
        if images:
            np.testing.assert_array_equal(img, other[name][0])
        assert (label is None) == (other[name][1] is None), name
        if label is not None:
            np.testing.assert_array_equal(label, other[name][1])
