"""The README's pictures, all of drawn scenes: `python benchmarks/pictures.py DEMO`, where `semanticgan demo` has written DEMO."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from semanticgan.data.dataset import read_image, read_mask
from semanticgan.data.sources import list_images, mask_path
from semanticgan.data.synthetic import LABELS, write_dataset
from semanticgan.errors import UserError
from semanticgan.figures import draw_rows
from semanticgan.model import SemanticGAN
from semanticgan.suggest import suggest

ROOT = Path(__file__).resolve().parents[1]
RUN, DATA = "runs/first", "my_data"
MOST = 150_000  # bytes of a picture
SIDE = 256  # of the scenes
DESK, PHONE = {"width": 1040, "height": 860}, {"width": 390, "height": 860}
SCALE = 0.65  # of the screenshots
SHOWN = 8


def command(folder: Path, *words: str) -> None:
    """Run it in `folder`, with the names that the README uses. Raises UserError where it fails."""
    done = subprocess.run([sys.executable, "-m", "semanticgan", *words], cwd=folder, check=False)
    if done.returncode:
        raise UserError(f"semanticgan {words[0]}: exit code {done.returncode}")


def save(picture: Image.Image, out: Path) -> None:
    """A PNG of at most 256 colours, or a WebP. Raises UserError where it is too large."""
    if out.suffix == ".png":
        picture = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(out, optimize=True, quality=80)
    require_small(out)


def require_small(out: Path) -> None:
    size = out.stat().st_size
    if size > MOST:
        raise UserError(f"{out}: got {size} bytes, expected at most {MOST}; show less")
    print(f"{out}: {size // 1000} kB")


def beside(pictures: list[Image.Image], gap: int = 16) -> Image.Image:
    """Side by side on white."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(p.height for p in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


# ---------------------------------------------------------------- in a browser


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of `semanticgan serve`."""
    words = [sys.executable, "-m", "semanticgan", "serve", RUN, "--data", DATA, "--port", "0"]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()


@contextmanager
def browser() -> Iterator:
    """Chromium. Raises UserError where it or playwright is missing."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        found = None
    if found is None:
        raise UserError("Chromium and playwright are needed; make chromium installs them")
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def screenshot(page) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.png"
        page.screenshot(path=path)
        picture = Image.open(path).convert("RGB")
    return picture.resize((round(picture.width * SCALE), round(picture.height * SCALE)), Image.Resampling.LANCZOS)


def page_picture(chromium, address: str, scene: Path) -> Image.Image:
    """A scene dropped and refined, and the proposals on a phone."""
    desk = chromium.new_page(viewport=DESK)
    desk.goto(address)
    desk.get_by_role("button", name="Picture", exact=True).click()
    desk.set_input_files("#file", scene)
    desk.locator("#step", has_text="encoder's is shown").wait_for(timeout=120_000)
    desk.evaluate("window.scrollTo(0, 0)")
    phone = chromium.new_page(viewport=PHONE, has_touch=True, is_mobile=True)
    phone.goto(address)
    phone.get_by_role("button", name="Propose images").click()
    phone.get_by_role("status").filter(has_text="proposals out of").wait_for(timeout=120_000)
    return beside([screenshot(desk), screenshot(phone)])


def report_picture(chromium, report: Path) -> Image.Image:
    """Cases with their errors, and whether the distance warns."""
    page = chromium.new_page(viewport={"width": 700, "height": 720})
    page.goto(report.resolve().as_uri())
    parts = []
    for heading in ("The worst and the median cases", "Does the distance warn of bad masks?"):
        page.get_by_role("heading", name=heading).evaluate("element => element.scrollIntoView()")
        parts.append(screenshot(page))
    return beside(parts)


# ---------------------------------------------------------------- figures


def film(gif: Path, out: Path, side: int = 112) -> None:
    """The same film, smaller."""
    with Image.open(gif) as opened:
        frames = [f.convert("RGB").resize((2 * side + 4, side)) for f in ImageSequence.Iterator(opened)]
    palette = beside(frames).quantize(64)  # one for all, without dither: what stays the same costs nothing
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=80, loop=0)
    require_small(out)


def suggested(run: Path, data: Path) -> Image.Image:
    """The first proposals, and as many images at random."""
    model = SemanticGAN.load(run)
    proposals, _ = suggest(model, data, SHOWN)
    unlabeled = (data / "unlabeled.txt").read_text(encoding="utf-8").split()
    chance = np.random.default_rng(0).choice(unlabeled, SHOWN, replace=False)
    rows = {"suggested": [p.image for p in proposals], "at random": chance}
    return draw_rows([(title, [read_image(data / name, 3) for name in names]) for title, names in rows.items()])


def converted(folder: Path) -> Image.Image:
    """G's samples, their label maps, and what is left of these after COCO's polygons."""
    command(folder, "sample", RUN, "--num", str(SHOWN), "--seed", "1", "--truncation-psi", "0.8", "--out", "drawn")
    command(folder, "convert", "drawn", "--to", "coco", "--out", "coco")
    command(folder, "convert", "coco", "--out", "back")
    names = list_images(folder / "drawn", "images")
    images = [read_image(folder / "drawn" / name, 3) for name in names]
    rows = [("G's samples", images)]
    for title, root in (("label maps", "drawn"), ("COCO and back", "back")):
        masks = [read_mask(mask_path(folder / root / n), LABELS, i.shape[1::-1]) for n, i in zip(names, images, strict=True)]
        rows.append((title, [LABELS.to_colour(mask) for mask in masks]))
    return draw_rows(rows)


def distilled(folder: Path, demo: Path) -> Image.Image:
    """A short training of a student, and what it and its teacher say of test scenes of both stains."""
    root = demo / "data"
    lists = [word for name in ("labeled", "unlabeled", "val") for word in (f"--{name}", str(root / f"{name}.txt"))]
    settings = ("--set", "student.trunk=none", "--set", "student.widths=[16,32,64,128]", "--seed", "0")
    command(folder, "distill", RUN, "--data", str(root), *lists, *settings, "--out", "runs/small")
    names = [n for d in "ab" for n in (root / f"test_{d}.txt").read_text(encoding="utf-8").split()[: SHOWN // 2]]
    images = [read_image(root / name, 3) for name in names]
    rows = [("image", images), ("truth", [LABELS.to_colour(read_mask(mask_path(root / name), LABELS)) for name in names])]
    for title, run in (("teacher", RUN), ("student", "runs/small")):
        found = SemanticGAN.load(folder / run).segment(images, steps=0)
        rows.append((title, [LABELS.to_colour(result.label) for result in found]))
    return draw_rows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/pictures.py", description=__doc__)
    parser.add_argument("demo", type=Path, metavar="DEMO", help="what `semanticgan demo --out DEMO` wrote")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures", metavar="DIR", help="default docs/pictures")
    args = parser.parse_args()
    try:
        make(args.demo, args.out)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def make(demo: Path, out: Path) -> None:
    """All pictures. Raises UserError where something is missing."""
    run = demo.resolve() / "run"
    if not (run / "model").is_dir():
        raise UserError(f"{run}: no finished run; make demo trains one")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / RUN).parent.mkdir()
        (folder / RUN).symlink_to(run)
        data = folder / DATA
        a, b = write_dataset(data, size=SIDE, unlabeled=60, labeled=4, val=4, test=2, seed=1)["test_a"]
        save(suggested(run, data), out / "suggest.png")
        save(converted(folder), out / "formats.png")
        save(distilled(folder, demo.resolve()), out / "distill.png")
        command(folder, "plot", "inversion", RUN, f"{DATA}/{a}", f"{DATA}/{b}", "--out", "inversion.png")
        save(Image.open(folder / "inversion.png"), out / "inversion.png")
        command(folder, "plot", "interpolation", RUN, f"{DATA}/{a}", f"{DATA}/{b}", "--frames", "16", "--out", "way.gif")
        film(folder / "way.gif", out / "interpolation.gif")
        command(folder, "report", RUN, "--out", "report.html")
        with browser() as chromium, serving(folder) as address:
            save(page_picture(chromium, address, data / a), out / "page.webp")
            save(report_picture(chromium, folder / "report.html"), out / "report.webp")


if __name__ == "__main__":
    main()
