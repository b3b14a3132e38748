"""What a run or an evaluation came to, as one HTML file: settings, curves, pictures, scores, the worst cases, the warning."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from semanticgan.charts import Series, chart, thinned
from semanticgan.config import STUDENT
from semanticgan.data.coding import coded_as
from semanticgan.data.dataset import read_image, read_mask
from semanticgan.data.sources import find_root, mask_path
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec
from semanticgan.metrics.risk import risk_coverage, spearman, spearman_interval
from semanticgan.metrics.segmentation import FEWEST, confusion, iou
from semanticgan.model import SemanticGAN
from semanticgan.page import Page
from semanticgan.scores import Case, Interval, Scores
from semanticgan.visuals import ERRORS, error_map, grid, to_rgb

CASES = 4  # worst ones, and as many from the middle
PICTURES = 4  # of each kind over a run's time
CELL = 180  # pixels, the longer side of a case's images
WIDEST = 1000  # pixels of a picture
POINTS = 300  # of a curve
ENOUGH = 10  # images, to say whether the distance warns
APART = 0.05  # IoU: by how much drawn cases may miss their scores on average, since processors round in their own ways
QUALITY = 85  # of JPEGs
CODINGS = {"index": "ignored", "binary": "class 1"}
STATS_KNOWN = {"val_iou": "IoU on validation", "images_per_second": "images a second"}
STATS_HIDDEN = {"stage", "kimg", "seconds", "best_val_iou"}
STAGES = {"gan": "First stage: images with label maps (G, D_img, D_seg)", "encoder": "Second stage: the encoder (E)",
          "student": "The student, a U-Net"}  # fmt: skip


def write_report(
    source: Path,  # a run folder, or a file of `evaluate --json`
    out: Path | None = None,
    model: str | None = None,  # draws the cases; unset: the run's own, or the one that the file names
    data: Path | None = None,
    device: str = "cpu",
) -> Path:
    """Write the report and return its place: RUN/report.html, or the file's with the suffix .html, unless `out` says.

    An unfinished run has one too. Raises UserError when the source is neither, and for a `model` or `data` that cannot
    be used; without them, what cannot be drawn is left out, and the report says so.
    """
    if source.is_dir():
        page, out = _run_page(source, model, data, device), out or source / "report.html"
    else:
        page, out = evaluation_page(Scores.read(source), source, model, data, device), out or source.with_suffix(".html")
    page.write(out)
    return out


# ---------------------------------------------------------------- the two pages


def _run_page(folder: Path, model: str | None, data: Path | None, device: str) -> Page:
    plan = _Plan.read(folder)
    finished = (folder / "model" / "model.safetensors").is_file()
    scores = Scores.read(folder / "validation.json") if (folder / "validation.json").is_file() else None
    page = Page(f"Run {folder.resolve().name}")
    if not finished:
        page.text(f"Not finished. Go on with --resume; the whole command says: semanticgan info {shlex.quote(str(folder))}")
    if scores:
        page.text(_in_a_line(scores, "validation images"))
    _add_plan(page, plan)
    _add_curves(page, _read_stats(folder / "stats.jsonl"))
    _add_samples(page, folder / "samples")
    if scores:
        drawn_by = model or (str(folder) if finished else None)
        _add_scores(page, scores, "validation images")
        _add_cases(page, scores, _Drawn(drawn_by, data or Path(plan.data), device, model is not None or data is not None), folder)
        _add_distance(page, scores)
    page.heading("To repeat it")
    page.code(plan.command, wrapped=True)
    return page


def evaluation_page(scores: Scores, path: Path, model: str | None, data: Path | None, device: str) -> Page:
    """`path` names the evaluation. Raises UserError as `write_report` does."""
    page = Page(f"Evaluation {path.stem}")
    page.text(_in_a_line(scores, "images"))
    settings = {"model": scores.model, "images": scores.list, "data": scores.data, "inversion steps": scores.steps,
                "several views": scores.views, "second pass on a crop": scores.zoom,
                "255 in the masks": CODINGS.get(scores.coding or "")}  # fmt: skip
    page.table((), [(name, _plain(value)) for name, value in settings.items() if value is not None])
    # A file from elsewhere may name a model, but not have one downloaded.
    recorded = scores.model if scores.model and Path(scores.model).is_dir() else None
    root = data or (Path(scores.data) if scores.data else None)
    _add_scores(page, scores, "images")
    _add_cases(page, scores, _Drawn(model or recorded, root, device, model is not None or data is not None), path)
    _add_distance(page, scores)
    if scores.model and scores.list:
        page.heading("To repeat it")
        page.code(_evaluate_command(scores, root), wrapped=True)
    return page


def _evaluate_command(scores: Scores, root: Path | None) -> str:
    words = ["semanticgan", "evaluate", str(scores.model), "--data", str(root or "DATA"), "--list", str(scores.list)]
    words += ["--steps", str(scores.steps)] if scores.steps is not None else []
    for name in ("views", "zoom"):
        value = getattr(scores, name)
        words += [] if value is None else [f"--{name}" if value else f"--no-{name}"]
    return shlex.join(words)


# ---------------------------------------------------------------- what was trained on what


@dataclass(frozen=True)
class _Plan:
    """A run's config.json and the lengths of its lists."""

    command: str
    data: str
    notes: tuple[str, ...]
    labels: LabelSpec
    config: dict[str, Any]
    rows: list[tuple[str, str]]

    @classmethod
    def read(cls, folder: Path) -> "_Plan":
        path = folder / "config.json"
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
            config, labels = plan["config"], LabelSpec.model_validate(plan["labels"])
            counts = {
                name: sum(1 for line in (folder / f"{name}.txt").read_bytes().splitlines() if line)
                for name in ("unlabeled", "labeled", "val")
            }
            stages = ("student",) if config["preset"] == STUDENT else ("gan", "encoder")
            length = " thousand images, then ".join(f"{config[stage]['kimg']:g}" for stage in stages) + " thousand images"
            rows = [
                ("data", plan["data"]),
                ("training images", f"{counts['unlabeled']}, {counts['labeled']} of them labelled"),
                ("validation images", str(counts["val"])),
                ("classes", ", ".join(labels.names)),
                ("resolution", f"{config['data']['resolution']} px"),
                ("preset", config["preset"]),
                ("seed", str(config["run"]["seed"])),
                ("length", f"{plan['hours']:g} hours" if plan["hours"] else length),
                ("device", plan["device"]),
                ("started from", plan["start_from"] or "fresh weights"),
                *(("label maps by", name) for name in plan.get("teachers", ())),
                ("made with", ", ".join(f"{name} {version}" for name, version in plan.get("versions", {}).items()) or "unknown"),
            ]
            rows = [(name, str(value)) for name, value in rows]
            return cls(str(plan["command"]), str(plan["data"]), tuple(map(str, plan["notes"])), labels, config, rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{folder}: cannot be read as a run ({reason}); expected a run folder or a JSON of evaluate"
            ) from None


def _add_plan(page: Page, plan: _Plan) -> None:
    page.heading("What was trained on what")
    page.table((), plan.rows)
    if plan.notes:
        page.code("\n".join(plan.notes), wrapped=True)
    page.legend("Colours of the classes:", dict(zip(plan.labels.names, plan.labels.palette, strict=True)))
    page.folded("all settings", plan.config)


# ---------------------------------------------------------------- how it went


def _read_stats(path: Path) -> list[dict[str, Any]]:
    """The whole lines; a killed run may have left half of one."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("kimg"), int | float):
            lines.append(values)
    return lines


def _add_curves(page: Page, stats: list[dict[str, Any]]) -> None:
    page.heading("Curves")
    if not stats:
        page.text("Nothing yet: the run is before its first tick.")
    for stage, title in STAGES.items():
        rows = thinned([row for row in stats if row.get("stage") == stage], POINTS)
        names = [n for n in dict.fromkeys(key for row in rows for key in row) if n not in STATS_HIDDEN]
        if not rows:
            continue
        page.text(f"{title}; over thousands of images shown.")
        names.sort(key=lambda name: list(STATS_KNOWN).index(name) if name in STATS_KNOWN else len(STATS_KNOWN))
        kimg = [float(row["kimg"]) for row in rows]
        page.charts([
            chart([Series(name, kimg, [_number(row.get(name)) for row in rows])], STATS_KNOWN.get(name, name), "kimg", "",
                  width=300, height=180)
            for name in names
        ])  # fmt: skip


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _add_samples(page: Page, folder: Path) -> None:
    captions = {
        "gan": ("Samples over time", "what G invents, each image over its label map"),
        "encoder": ("Validation pictures over time", "images over their reconstructions and label maps"),
        "student": ("What the student was shown over time", "changed images over their label maps"),
    }
    for stage, (title, caption) in captions.items():
        paths = thinned(sorted(folder.glob(f"{stage}-*.png")), PICTURES)
        if paths:
            page.heading(title)
        for path in paths:
            kimg = path.stem.partition("-")[2].lstrip("0") or "0"
            try:
                picture = Image.fromarray(read_image(path, 3))
            except UserError:
                continue  # a picture that was half-written when the run was killed
            picture.thumbnail((WIDEST, WIDEST))
            larger = max(1, WIDEST // 2 // max(picture.size))  # few small images are enlarged, so that they can be seen
            picture = picture.resize((picture.width * larger, picture.height * larger), Image.Resampling.NEAREST)
            page.picture(picture, f"{title}, {kimg} images", f"After {kimg} images: {caption}.", QUALITY)


# ---------------------------------------------------------------- scores and cases


def _plain(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _cell(mean: float | None, interval: Interval) -> str:
    low, high = interval
    if mean is None:
        return "not present"
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _in_a_line(scores: Scores, what: str) -> str:
    named = [f"{name} {_cell(*scores.of(f'iou:{name}'))}" for name in list(scores.mean.iou)[1:]]
    return f"IoU on {scores.num_images} {what}, with 95 % intervals from {FEWEST} images on: {'; '.join(named)}."


def _add_scores(page: Page, scores: Scores, what: str) -> None:
    page.heading("Scores")
    page.text(f"Per image at the mask's own size, then the mean over those of the {scores.num_images} {what} that show the class "
              f"in mask or prediction; in brackets 95 % intervals (bootstrap over images, from {FEWEST} on).")  # fmt: skip
    rows = [(name, *(_cell(*scores.of(f"{of}:{name}")) for of in ("iou", "dice")), scores.images_with(name))
            for name in scores.mean.iou]  # fmt: skip
    means = (("mean over classes", "miou"), ("share of right pixels", "accuracy"))
    rows += [(title, _cell(*scores.of(name)), "", scores.images_with()) for title, name in means]
    page.table(("", "IoU", "Dice", "images"), rows)


@dataclass(frozen=True)
class _Drawn:
    """With what the cases are drawn; `asked`: somebody named it, so that a failure is theirs to mend."""

    model: str | None
    root: Path | None
    device: str
    asked: bool


def worst_and_median(cases: Sequence[Case]) -> dict[str, Sequence[Case]]:
    """CASES of the lowest foreground IoU, and as many round the median, each case once; those without a score are left out."""
    ordered = sorted((case for case in cases if not math.isnan(case.foreground_iou)), key=lambda c: c.foreground_iou)
    middle = max(0, len(ordered) // 2 - CASES // 2)
    return {"worst": ordered[:CASES], "median": ordered[max(CASES, middle) : middle + CASES]}


def _add_cases(page: Page, scores: Scores, drawn: _Drawn, source: Path) -> None:
    page.heading("The worst and the median cases")
    groups = worst_and_median(scores.cases)
    cases = [case for group in groups.values() for case in group]
    pictures: Sequence[Image.Image] = ()
    try:
        if drawn.model and drawn.root:
            pictures, labels = draw_cases(cases, scores, drawn.model, drawn.root, drawn.device)
            page.text("From left to right: image, truth, prediction, errors.")
            page.legend("Classes:", dict(zip(labels.names, labels.palette, strict=True)))
            page.legend("Errors:", {**ERRORS, "not labelled": (255, 255, 255)})
    except UserError as error:
        if drawn.asked:
            raise
        page.text(f"Without pictures: {error}")
    if not pictures:
        page.text("For pictures, name the model and the images: semanticgan report "
                  f"{shlex.quote(str(source))} --model MODEL --data DATA")  # fmt: skip
        named = [(case.image, _case_line(case, name)) for name, group in groups.items() for case in group]
        page.table(("image", "score"), named)
        return
    kinds = [name for name, group in groups.items() for _ in group]
    for case, kind, picture in zip(cases, kinds, pictures, strict=True):
        page.picture(
            picture, f"{case.image}: image, truth, prediction, errors", f"{case.image}: {_case_line(case, kind)}", QUALITY
        )


def _case_line(case: Case, kind: str) -> str:
    distance = "" if case.distance is None else f", distance {case.distance:.3f}"
    return f"{kind}, IoU {case.foreground_iou:.3f}{distance}"


def draw_cases(cases: Sequence[Case], scores: Scores, name: str, root: Path, device: str) -> tuple[list[Image.Image], LabelSpec]:
    """Image, truth, prediction and errors of every case, side by side, predicted as the scores were; and the classes.

    Raises UserError for a model or an image that cannot be used, or where the masks are not those that were scored.
    """
    root = find_root(root)
    model = SemanticGAN.load(name, device=device).configured(views=scores.views, zoom=scores.zoom)
    if list(model.labels.names) != list(scores.mean.iou):
        got, expected = ", ".join(model.labels.names), ", ".join(scores.mean.iou)
        raise UserError(f"{name}: got a model of {got}, expected one of {expected}, as the scores are")
    images = [read_image(root / case.image, model.config.data.num_channels) for case in cases]
    labels, pictures = coded_as(model.labels, [mask_path(root / case.image) for case in scores.cases]), []
    apart = []
    for case, img, found in zip(cases, images, model.find(images, scores.steps), strict=True):
        truth, label = read_mask(mask_path(root / case.image), labels, img.shape[1::-1]), found.label()
        now = iou(confusion(torch.from_numpy(label), torch.from_numpy(truth), labels.num_classes))[1:].nanmean()
        apart.append(abs(float(now) - case.foreground_iou))
        panels = (to_rgb(img), model.labels.to_colour(truth), model.labels.to_colour(label), error_map(img, truth, label))
        pictures.append(Image.fromarray(grid([_shrunk(panel) for panel in panels], columns=len(panels), gap=4)))
    if cases and not np.mean(apart) < APART:
        raise UserError(
            f"{name}: its masks of {cases[0].image} and others miss the IoUs of the file by {np.mean(apart):.2f} on average; "
            "model or images have changed: evaluate again"
        )
    return pictures, labels


def _shrunk(panel: np.ndarray) -> np.ndarray:
    """Its longer side CELL pixels; small images are enlarged, so that they can be seen."""
    factor = CELL / max(panel.shape[:2])
    size = max(1, round(panel.shape[1] * factor)), max(1, round(panel.shape[0] * factor))
    method = Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(panel).resize(size, method))


# ---------------------------------------------------------------- does the distance warn?


def _add_distance(page: Page, scores: Scores) -> None:
    if scores.cases and all(case.distance is None for case in scores.cases):
        return  # a student has none
    page.heading("Does the distance warn of bad masks?")
    pairs = [(c.foreground_iou, c.distance) for c in scores.cases if c.distance is not None and not math.isnan(c.foreground_iou)]
    if len(pairs) < ENOUGH:
        page.text(f"Too few images to say: {len(pairs)} with a score and a distance, and at least {ENOUGH} are needed.")
        return
    score, distance = np.array(pairs, np.float64).T
    page.text(verdict(score, distance))
    page.text(
        "The distance is LPIPS between an image and what G makes of it. The second curve shows 1 - IoU of the images that are "
        "left when those with the largest distance are set aside; the lower it lies, the better the distance warns."
    )
    share = [float(x) for x in np.arange(1, len(score) + 1) / len(score)]
    random = [float(1 - score.mean())] * len(score)
    curves = {"by distance": risk_coverage(score, distance).tolist(), "at random": random,
              "if the score were known": risk_coverage(score, -score).tolist()}  # fmt: skip
    some = thinned(range(len(score)), POINTS)
    left = Series("images", distance.tolist(), score.tolist(), joined=False)
    right = [Series(name, [share[k] for k in some], [values[k] for k in some]) for name, values in curves.items()]
    page.charts([
        chart([left], "IoU against distance, an image a dot", "distance", "IoU", width=450),
        chart(right, "Risk over coverage", "share of the images kept", "1 - IoU", width=450),
    ])  # fmt: skip


def verdict(score: np.ndarray, distance: np.ndarray) -> str:
    """In plain words, from Spearman's rank correlation and what setting half of the images aside gains."""
    rho, (low, high) = spearman(score, distance), spearman_interval(score, distance)
    if math.isnan(rho) or low <= 0 <= high:
        word = "Not here: images with a large distance are not clearly worse"
    elif rho > 0:
        word = "No, the other way round: images with a large distance have the better masks"
    else:
        word = "Yes" if rho < -0.6 else "In part" if rho < -0.3 else "A little"
        word += ": images with a large distance tend to have worse masks"
    half = len(score) // 2
    kept, best = (1 - float(risk_coverage(score, warning)[half - 1]) for warning in (distance, -score))
    return (
        f"{word} (rank correlation of IoU and distance over {len(score)} images {rho:.2f}, "
        f"95 % interval {low:.2f} to {high:.2f}). The half with the smallest distance has a mean IoU of {kept:.3f}, "
        f"all have {score.mean():.3f}, the best half {best:.3f}."
    )
