"""The whole job on drawn scenes: two domains, a model and a U-Net from the same few labels, a table and a picture page."""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from semanticgan.config import build_config
from semanticgan.data.dataset import read_image, read_mask
from semanticgan.data.sources import mask_path
from semanticgan.data.synthetic import LABELS, write_dataset
from semanticgan.errors import UserError
from semanticgan.evaluation import evaluate
from semanticgan.figures import Rows, draw_rows, font
from semanticgan.metrics.segmentation import bootstrap_interval
from semanticgan.model import SemanticGAN
from semanticgan.page import Page
from semanticgan.predict import Found, NetworkPredictor, predict
from semanticgan.training.stages import train
from semanticgan.training.supervised import train_unet
from semanticgan.visuals import save_png

OURS, UNET = "SemanticGAN", "U-Net"
DOMAINS = {"a": "domain a, as trained", "b": "domain b, never seen"}
SHOWN = 8  # scenes in each picture; the first ones, not chosen
SIZE = 32
MARKER = "demo.json"  # this file says that a folder is a demo's

Say = Callable[[str], None]
Method = Callable[[Iterable[np.ndarray]], Iterator[Found]]


def run_demo(
    out: Path,
    minutes: float,  # for everything, on two cores
    say: Say,
    *,
    counts: dict[str, int] | None = None,  # scenes by list, as `write_dataset` takes them; unset: its defaults
    overrides: Iterable[str] = (),  # of the preset tiny32's settings
) -> None:
    """Draw the scenes, train both methods on the same labelled images of domain a, score both on both domains, show it.

    Writes data/, run/, demo.json, page.png and index.html below `out`; replaces what an earlier demo left there.
    Raises UserError when `out` holds anything else.
    """
    started = time.monotonic()
    _prepare(out)
    data = out / "data"
    lists = write_dataset(data, size=SIZE, **(counts or {}))
    say(f"drew {len(lists['unlabeled'])} unlabelled and {len(lists['labeled'])} labelled scenes of domain a: {data}")
    model = _train_model(out, minutes * 0.68 / 60, tuple(overrides), say)
    unet = _train_unet(data, lists, model, minutes * 0.16 * 60, say)
    methods = {OURS: model.find, UNET: unet}
    scores = {
        domain: {name: evaluate(find, data, lists[f"test_{domain}"], LABELS, 3) for name, find in methods.items()}
        for domain in DOMAINS
    }
    lines = [*table(scores), "", *verdicts(scores)]
    for line in ["", *lines, ""]:
        say(line)
    _write_page(out, lines, lists, model, methods)
    seconds = round(time.monotonic() - started)
    content = {"finished": True, "seconds": seconds, "scores": scores}
    (out / MARKER).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    say(f"done in {seconds // 60} min {seconds % 60} s; the model: {out / 'run' / 'model'}; pictures: {out / 'index.html'}")


def _prepare(out: Path) -> None:
    """An empty folder, but for the marker; an earlier demo in it is removed."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give --out a folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise UserError(f"{out}: not empty and no earlier demo; give --out a new or empty folder")
        for folder in ("data", "run"):
            shutil.rmtree(out / folder, ignore_errors=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).write_text('{"finished": false}\n', encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give --out another folder") from None


# ---------------------------------------------------------------- the two methods


def _train_model(out: Path, hours: float, overrides: tuple[str, ...], say: Say) -> SemanticGAN:
    """The command `train` with a time limit. The encoder alone segments: inversion would take longer than all the rest."""
    data = out / "data"
    train(
        data=data, out=out / "run", labeled=[str(data / "labeled.txt")], unlabeled=[str(data / "unlabeled.txt")],
        val=[str(data / "val.txt")], preset="tiny32", start_from=None, resume=False, seed=None, hours=hours, device="cpu",
        overrides=["predict.steps=0", "run.gan_fraction=0.6", *overrides], dry_run=False, say=say,
    )  # fmt: skip
    return SemanticGAN.load(out / "run")


def _train_unet(data: Path, lists: dict[str, list[str]], model: SemanticGAN, seconds: float, say: Say) -> Method:
    """The U-Net on the same labels and validation images, with the same symmetries and changes, as a method to score."""
    symmetry, augment = model.config.data.symmetry, build_config("tiny32").encoder.augment
    (images, labels), (val_images, val_labels) = (_read(data, lists[name]) for name in ("labeled", "val"))
    say(f"U-Net: {len(images)} labelled images, at most {seconds:.0f} s")
    unet = train_unet(
        images, labels, val_images, val_labels,
        num_classes=LABELS.num_classes, symmetry=symmetry, augment=augment, steps=400, seconds=seconds, say=say,
    )  # fmt: skip
    return partial(predict, NetworkPredictor(unet), resolution=SIZE, symmetry=symmetry if model.config.views else "none")


def _read(data: Path, paths: list[str]) -> tuple[UInt8[np.ndarray, "n h w 3"], UInt8[np.ndarray, "n h w"]]:
    images = np.stack([read_image(data / path, 3) for path in paths])
    labels = np.stack([read_mask(mask_path(data / path), LABELS) for path in paths])
    return images, labels


# ---------------------------------------------------------------- what came out, in words


def table(scores: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a plain table: mean IoU with its interval, and IoU by class, of each method on each domain."""
    lines = [f"{'':24}{'mean IoU':>10} {'95 %':>14}" + "".join(f"{name:>12}" for name in LABELS.names)]
    for domain, by_method in scores.items():
        lines.append(DOMAINS[domain])
        for method, result in by_method.items():
            low, high = result["interval95"]["miou"]
            by_class = "".join(f"{_number(result['mean']['iou'][name]):>12}" for name in LABELS.names)
            interval = f"{_number(low)} to {_number(high)}"
            lines.append(f"  {method:22}{_number(result['mean']['miou']):>10} {interval:>14}{by_class}")
    return lines


def verdicts(scores: dict[str, dict[str, Any]]) -> list[str]:
    """Two sentences a domain: who wins on the mean and on each class, by the interval of the difference scene by scene."""
    lines = []
    for domain, by_method in scores.items():
        gain, low, high = _gain(by_method, None)
        winner = _winner(low, high)
        if winner:
            low, high = sorted((abs(low), abs(high)))
            lines.append(f"{DOMAINS[domain]}: {winner} wins by {abs(gain):.3f} (95 % interval {low:.3f} to {high:.3f})")
        else:
            lines.append(f"{DOMAINS[domain]}: no clear winner, {OURS} {gain:+.3f} (95 % interval {low:+.3f} to {high:+.3f})")
        by_class = {name: _winner(*_gain(by_method, name)[1:]) for name in LABELS.names}
        named = {m or "neither clearly": [name for name in LABELS.names if by_class[name] == m] for m in (OURS, UNET, "")}
        lines.append("  class by class: " + "; ".join(f"{m}: {', '.join(names)}" for m, names in named.items() if names))
    return lines


def _gain(by_method: dict[str, Any], name: str | None) -> tuple[float, float, float]:
    """By how much our IoU of a class (None: of all) is higher, averaged over the scenes that have both, with its interval."""

    def column(method: str) -> np.ndarray:
        cases = by_method[method]["cases"]
        return np.array([case["miou"] if name is None else case["iou"][name] for case in cases], np.float64)

    ours, theirs = column(OURS), column(UNET)
    gain = (ours - theirs)[~np.isnan(ours - theirs)]
    low, high = bootstrap_interval(gain)
    return float(gain.mean()) if gain.size else float("nan"), low, high


def _winner(low: float, high: float) -> str:
    """The method that an interval of our gain speaks for; neither if it holds 0 (or nothing was measured)."""
    return OURS if low > 0 else UNET if high < 0 else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# ---------------------------------------------------------------- what came out, in pictures


def _samples(model: SemanticGAN) -> Rows:
    images, labels = zip(*model.sample(2 * SHOWN), strict=True)
    maps = [LABELS.to_colour(label) for label in labels]
    return [
        ("invented", list(images[:SHOWN])), ("its labels", maps[:SHOWN]),
        ("invented", list(images[SHOWN:])), ("its labels", maps[SHOWN:]),
    ]  # fmt: skip


def _tests(data: Path, paths: list[str], methods: dict[str, Method]) -> Rows:
    images, truth = _read(data, paths)
    rows: Rows = [("image", list(images)), ("truth", [LABELS.to_colour(label) for label in truth])]
    for name, find in methods.items():
        answers = list(find(iter(images)))
        rows.append((name, [LABELS.to_colour(found.label()) for found in answers]))
        seen = [found.reconstruction for found in answers if found.reconstruction is not None]
        if seen:
            rows.append(("its image", seen))
    return rows


def _draw_legend() -> Image.Image:
    picture = Image.new("RGB", (700, 26), "white")
    pen = ImageDraw.Draw(picture)
    x = 0
    for name, colour in zip(LABELS.names, LABELS.palette, strict=True):
        pen.rectangle((x, 4, x + 18, 20), colour, "black")
        pen.text((x + 26, 3), name, "black", font(15))
        x += 60 + round(pen.textlength(name, font(15)))
    return picture


@dataclass(frozen=True)
class _Part:
    """A piece of page and picture: "h1", "h2", "p" or "pre" with a text, or "img" with a picture and its description."""

    kind: str
    text: str
    picture: Image.Image | None = None

    def add_to(self, page: Page) -> None:
        if self.picture is not None:
            page.picture(self.picture, self.text)
        else:
            {"h2": page.heading, "p": page.text, "pre": page.code}[self.kind](self.text)

    def to_picture(self) -> Image.Image:
        return self.picture or _draw_text(self.text, {"h1": 28, "h2": 20}.get(self.kind, 15), columns=self.kind == "pre")


def _write_page(out: Path, lines: list[str], lists: dict[str, list[str]], model: SemanticGAN, methods: dict[str, Method]) -> None:
    told = (
        f"Drawn scenes of cells and yeast. Both methods learnt from the same {len(lists['labeled'])} labelled images of\n"
        f"domain a; {OURS} also saw {len(lists['unlabeled'])} images without labels. Domain b shows scenes of the same kind in\n"
        "another stain under another microscope; nothing was trained or chosen on it."
    )
    parts = [_Part("h1", "SemanticGAN demo"), _Part("p", told), _Part("pre", "\n".join(lines))]
    parts.append(_Part("img", "colours of the classes", _draw_legend()))
    pictures = {"What the model invents: images with their label maps": _samples(model)}
    for domain, title in DOMAINS.items():
        pictures[f"Test scenes of {title}"] = _tests(out / "data", lists[f"test_{domain}"][:SHOWN], methods)
    for title, rows in pictures.items():
        parts += [_Part("h2", title), _Part("img", title, draw_rows(rows))]
    page = Page(parts[0].text)
    for part in parts[1:]:
        part.add_to(page)
    page.link("How the model was trained: curves, samples over time, validation images", "run/report.html")
    page.write(out / "index.html")
    save_png(out / "page.png", np.asarray(_stacked([part.to_picture() for part in parts])))


def _stacked(blocks: list[Image.Image], gap: int = 12, margin: int = 20) -> Image.Image:
    width, height = max(b.width for b in blocks), sum(b.height + gap for b in blocks)
    picture = Image.new("RGB", (width + 2 * margin, height + 2 * margin), "white")
    top = margin
    for block in blocks:
        picture.paste(block, (margin, top))
        top += block.height + gap
    return picture


def _draw_text(text: str, size: int, columns: bool) -> Image.Image:
    """Lines of text; with `columns` every character takes the same width, so that tables stay straight."""
    letters, lines = font(size), text.split("\n")
    pitch, height = round(size * 0.6), round(size * 1.4)
    width = max(len(line) for line in lines) * pitch if columns else max(round(letters.getlength(line)) for line in lines)
    picture = Image.new("RGB", (width + 4, height * len(lines)), "white")
    pen = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        if not columns:
            pen.text((0, row * height), line, "black", letters)
            continue
        for column, character in enumerate(line):
            pen.text((column * pitch + pitch // 2, row * height), character, "black", letters, anchor="ma")
    return picture
