"""Drawn scenes with exact labels in two visual domains: cells and yeast under two microscopes, for the demo and tests."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter

from semanticgan.labels import LabelSpec, default_colour

Domain = Literal["a", "b"]
BACKGROUND, CELL, NUCLEUS, YEAST = range(4)
NAMES = ("background", "cell", "nucleus", "yeast")
LABELS = LabelSpec(names=NAMES, palette=tuple(default_colour(k) for k in range(4)))
OVERSAMPLE = 3  # scenes are drawn at this multiple of their side and reduced, so edges in the image are antialiased


@dataclass(frozen=True)
class Look:
    """How one domain looks; colours are RGB in 0..255 by class, lengths are shares of the image's side."""

    colours: tuple[tuple[int, int, int], ...]
    clutter_colour: tuple[int, int, int]
    colour_spread: float  # standard deviation between scenes and between objects of a scene
    rim: float  # how much darker a cell's edge is than its middle; negative: brighter
    relief: float  # strength of the light that falls on objects from one side
    vignette: float  # loss of light at the frame's corners
    blotches: float  # strength of the slow changes of brightness
    grain: float  # strength of the fine structure of background and cells
    grain_cells: int  # fineness of that structure: cells along the side
    blur: float  # standard deviation of the defocus
    noise: int  # standard deviation of the sensor's noise, 0..255


LOOKS: dict[Domain, Look] = {
    "a": Look(
        colours=((240, 228, 224), (222, 132, 168), (116, 52, 124), (44, 104, 168)),
        clutter_colour=(120, 92, 84),
        colour_spread=9.0, rim=0.16, relief=0.14, vignette=0.12, blotches=0.04, grain=0.03, grain_cells=24, blur=0.0, noise=3,
    ),
    "b": Look(
        colours=((206, 212, 184), (164, 160, 150), (104, 76, 104), (62, 88, 100)),
        clutter_colour=(88, 96, 60),
        colour_spread=9.0, rim=-0.08, relief=0.22, vignette=0.22, blotches=0.07, grain=0.06, grain_cells=11, blur=0.015, noise=6,
    ),
}  # fmt: skip


class _Sheet:
    """The drawing: which object lies on top at each point, and how deep inside it (0 at its edge, 1 at its middle)."""

    def __init__(self, side: int) -> None:
        self.objects = np.zeros((side, side), np.uint8)
        self.depth = np.zeros((side, side), np.float32)
        self.slope = np.zeros((side, side), np.complex64)
        self.classes = [BACKGROUND]

    def box(self, centre: complex, reach: float) -> tuple[tuple[slice, slice], np.ndarray]:
        """The part of the sheet within `reach` of `centre`, and its points x + iy relative to the centre."""
        side = len(self.objects)
        (y0, y1), (x0, x1) = (
            np.clip([int((c - reach) * side), int((c + reach) * side) + 2], 0, side) for c in (centre.imag, centre.real)
        )
        y, x = (np.arange(y0, y1, dtype=np.float32) + 0.5) / side, (np.arange(x0, x1, dtype=np.float32) + 0.5) / side
        return (slice(y0, y1), slice(x0, x1)), (x[None] + 1j * y[:, None] - centre).astype(np.complex64)

    def lay(self, where: tuple[slice, slice], depth: np.ndarray, slope: np.ndarray, kind: int) -> None:
        """Put an object on top of what is there: where its depth is positive."""
        inside = depth > 0
        np.copyto(self.objects[where], len(self.classes), where=inside)
        np.copyto(self.depth[where], depth, where=inside)
        np.copyto(self.slope[where], slope, where=inside)
        self.classes.append(kind)


@dataclass(frozen=True)
class _Blob:
    """A rounded outline: radius(angle) = radius (1 + sum of waves_k cos(k angle + phase_k)), k = 2, 3, 4."""

    centre: complex
    radius: float
    waves: np.ndarray  # complex: amplitude and phase

    @classmethod
    def draw(cls, rng: np.random.Generator, centre: complex, radius: float, wobble: float) -> "_Blob":
        turns = np.exp(2j * np.pi * rng.random(3))
        return cls(centre, radius, wobble * rng.uniform(0.3, 1, 3) * turns * np.array([1, 0.6, 0.4]))

    def depth(self, offset: np.ndarray) -> np.ndarray:
        distance = np.abs(offset) + 1e-6
        direction = offset / distance
        power, outline = direction, np.float32(1)
        for wave in self.waves.astype(np.complex64):
            power = power * direction
            outline = outline + (power * wave).real
        return 1 - distance / (self.radius * outline)

    def lay(self, sheet: _Sheet, kind: int) -> None:
        where, offset = sheet.box(self.centre, self.radius * 1.6)
        sheet.lay(where, self.depth(offset), offset / self.radius, kind)


def _lay_fibre(sheet: _Sheet, rng: np.random.Generator, centre: complex, length: float, width: float) -> None:
    """A bent thread; `length` and `width` are half of what is seen."""
    axis = np.exp(1j * rng.uniform(0, 2 * np.pi)).astype(np.complex64)
    where, offset = sheet.box(centre, length + 3 * width)
    turned = offset * np.conj(axis)
    across = turned.imag - rng.normal(0, 0.9) * turned.real**2
    beyond = np.maximum(np.abs(turned.real) - length, 0)
    sheet.lay(where, 1 - np.hypot(beyond, across) / width, np.zeros_like(offset), 1)


def _point(rng: np.random.Generator, margin: float) -> complex:
    x, y = rng.uniform(margin, 1 - margin, 2)
    return complex(x, y)


def _draw_objects(rng: np.random.Generator, side: int) -> _Sheet:
    """One or two cells, each with its nucleus, and up to two yeasts near the first: what lies on top hides what lies below."""
    sheet = _Sheet(side)
    centres, radii = [_point(rng, 0.38)], rng.uniform(0.23, 0.33, 2)
    if rng.random() < 0.15:  # a second cell, as far from the first as the frame allows: it overlaps it or is cut by the frame
        away = complex(0.5, 0.5) - centres[0]
        turn = np.exp(1j * rng.normal(0, 0.5)) * away / (abs(away) + 1e-6)
        centres.append(centres[0] + complex(turn) * rng.uniform(0.55, 0.75))
    for centre, radius in zip(centres, radii, strict=False):
        _Blob.draw(rng, centre, radius, 0.12).lay(sheet, CELL)
        shift = 0.2 * radius * rng.random() * complex(np.exp(2j * np.pi * rng.random()))
        _Blob.draw(rng, centre + shift, radius * rng.uniform(0.44, 0.58), 0.1).lay(sheet, NUCLEUS)
    for _ in range(rng.choice(3, p=(0.1, 0.75, 0.15))):
        away = radii[0] * rng.uniform(1.0, 1.4) * complex(np.exp(2j * np.pi * rng.random()))
        _Blob.draw(rng, centres[0] + away, rng.uniform(0.11, 0.14), 0.15).lay(sheet, YEAST)
    return sheet


def _draw_clutter(rng: np.random.Generator, side: int) -> Bool[np.ndarray, "side side"]:
    """Where things lie that belong to no class: grains of dirt, and now and then a fibre over everything."""
    sheet = _Sheet(side)
    for _ in range(rng.integers(0, 5)):
        _Blob.draw(rng, _point(rng, 0.0), rng.uniform(0.012, 0.035), 0.3).lay(sheet, 1)
    if rng.random() < 0.25:
        _lay_fibre(sheet, rng, _point(rng, 0.1), rng.uniform(0.3, 0.7), 0.009)
    return sheet.objects > 0


def _soft_noise(rng: np.random.Generator, cells: int, side: int) -> Float[np.ndarray, "side side"]:
    """Smooth noise of about unit strength that changes `cells` times along the side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def _light(sheet: _Sheet, look: Look, rng: np.random.Generator) -> Float[np.ndarray, "side side"]:
    """Brightness by point: relief and rims of the objects, structure, and the lamp's uneven light."""
    side = len(sheet.objects)
    kinds = np.array(sheet.classes, np.uint8)[sheet.objects]
    lamp = np.exp(2j * np.pi * rng.random()).astype(np.complex64)
    light = 1 + look.relief * (sheet.slope * np.conj(lamp)).real
    light += look.grain * _soft_noise(rng, look.grain_cells, side)
    light -= np.array([0, look.rim, 0, 0], np.float32)[kinds] * np.exp(-10 * sheet.depth)
    light += np.array([0, 0, 0, 0.4], np.float32)[kinds] * (sheet.depth - 0.5)  # yeast is lit from within
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    centre = rng.normal(0, 0.3, 2)
    fall = (axis[:, None] - centre[0]) ** 2 + (axis[None] - centre[1]) ** 2
    return light * (1 - look.vignette * fall / 2 + look.blotches * _soft_noise(rng, 4, side))


def _paint(sheet: _Sheet, look: Look, rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The image of the drawn objects in one domain's look."""
    side = len(sheet.objects)
    stain = rng.normal(0, look.colour_spread, 3)  # the same for the whole scene
    colours = np.array(look.colours)[sheet.classes] + stain + rng.normal(0, look.colour_spread / 2, (len(sheet.classes), 3))
    img = colours.astype(np.float32)[sheet.objects]
    img *= _light(sheet, look, rng)[..., None]
    clutter = _draw_clutter(rng, side)
    img[clutter] = 0.25 * img[clutter] + 0.75 * (np.array(look.clutter_colour) + stain)
    picture = Image.fromarray(np.clip(img, 0, 255, out=img).astype(np.uint8)).reduce(OVERSAMPLE)
    if look.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(look.blur * size * rng.uniform(0.7, 1.3)))
    noise = look.noise * rng.standard_normal((size, size, 3), dtype=np.float32)
    return (np.asarray(picture) + noise + 0.5).clip(0, 255).astype(np.uint8)


def _majority(sheet: _Sheet) -> UInt8[np.ndarray, "size size"]:
    """The class that covers most of each pixel; of two with equal shares the lower index."""
    kinds = np.array(sheet.classes, np.uint8)[sheet.objects]
    covered = ((kinds == k) * np.uint8(OVERSAMPLE**2) for k in range(len(NAMES)))
    counts = [np.asarray(Image.fromarray(c).reduce(OVERSAMPLE)) for c in covered]  # the mean of 0 and 9 over 3 x 3 points
    return np.argmax(counts, axis=0).astype(np.uint8)


def draw_scene(seed: int, domain: Domain, size: int) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]:
    """Scene number `seed` as (img_u8, label): the same seed has the same label in both domains, only the look differs.

    Every turn and flip of a scene is as likely as the scene itself. Any two seeds are independent draws.
    """
    sheet = _draw_objects(np.random.default_rng([seed, 0]), size * OVERSAMPLE)
    img = _paint(sheet, LOOKS[domain], np.random.default_rng([seed, 1, ord(domain)]), size)
    return img, _majority(sheet)


def write_dataset(
    root: Path,
    *,
    size: int = 32,
    unlabeled: int = 2000,  # images of domain a without masks
    labeled: int = 30,  # images of domain a with masks
    val: int = 20,  # the same, for choices made while training
    test: int = 200,  # the same again, and as many of domain b: the same scenes in the other look
    seed: int = 0,
) -> dict[str, list[str]]:
    """Write images, masks, classes.json and a list of images by name: unlabeled, labeled, val, test_a, test_b.

    Returns the lists: paths relative to `root`. No scene stands in two lists, but for those of test_a and test_b.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps(LABELS.classes_file(), indent=1) + "\n", encoding="utf-8")
    counts = {"labeled": labeled, "val": val, "test_a": test, "unlabeled": unlabeled}
    firsts = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist(), strict=False))
    lists: dict[str, list[str]] = {}
    for name, first in (*firsts.items(), ("test_b", firsts["test_a"])):
        domain: Domain = "b" if name == "test_b" else "a"
        numbers = range(first, first + (test if name == "test_b" else counts[name]))
        lists[name] = [f"images/{domain}/{n:05d}.png" for n in numbers]
        for number, path in zip(numbers, lists[name], strict=True):
            img, label = draw_scene(seed * 1_000_000 + number, domain, size)
            _save(Image.fromarray(img), root / path)
            if name != "unlabeled":
                mask = Image.fromarray(label)
                mask.putpalette(LABELS.palette_bytes())
                _save(mask, root / path.replace("images", "masks", 1))
        (root / f"{name}.txt").write_text("\n".join(lists[name]) + "\n", encoding="utf-8")
    return lists


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
