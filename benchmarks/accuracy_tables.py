"""The results as tables: mean and spread over draws, the paper's figures beside, and intervals of differences."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_cells import METHODS, RESULTS, SEEDS, SMALLEST, TASKS, UNLABELED, Cell, Task
from accuracy_scores import READINGS, values
from speed import ROOT, write
from tables import markers, put_between, table

from semanticgan.errors import UserError

PAGE = ROOT / "docs" / "results.md"
PAPER = ROOT / "benchmarks" / "paper.csv"  # task, metric, method, number of labels, set, value: as the paper's tables have them
PAPER_SETS = {"test": "ISIC", "ph2": "PH2", "dermis": "IS", "dermquest": "Quest", "montgomery": "NLM"}
PAPER_LABELS = {("skin", "all"): "2000"}
RESAMPLES = 2000
Results = dict[str, dict[str, Any]]  # by the cell's name


def read_results(folder: Path = RESULTS) -> Results:
    """Raises UserError for a file that is no cell's."""
    found: Results = {}
    for path in sorted(folder.glob("*-seed*.json")):
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            found[path.stem]["readings"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: no cell's result ({error}); delete it and compute the cell again") from None
    return found


# ---------------------------------------------------------------- figures of several draws


def scores_of(results: Results, cells: Iterable[Cell], reading: str, name: str) -> list[np.ndarray]:
    """By draw, as far as they are there: a set's scores by image, in the task's metric."""
    return [
        values(results[c.name]["readings"][reading][name], TASKS[c.task].metric)
        for c in cells
        if c.name in results and name in results[c.name]["readings"][reading]
    ]


def shown(value: float, sign: bool = False) -> str:
    """Three decimals, without the zero before the point."""
    return (f"{value:+.3f}" if sign else f"{value:.3f}").replace("0.", ".", 1)


def spread(draws: list[np.ndarray], expected: int = len(SEEDS)) -> str:
    """Mean of the draws' means and their standard deviation; how many draws there are where some are missing."""
    if not draws:
        return "not run"
    means = [float(np.nanmean(draw)) for draw in draws]
    text = shown(float(np.mean(means)))
    if len(means) > 1:
        text += f" ± {shown(float(np.std(means, ddof=1)))}"
    return text if len(means) == expected else f"{text} ({len(means)} of {expected})"


def difference(first: list[np.ndarray], second: list[np.ndarray], seed: int = 0) -> tuple[list[float], float, float]:
    """first - second of each draw, and the 95 % bootstrap interval over images of these draws' mean (Efron 1979).

    Pairs are the same image after training on the same draw; an image counts where both have a score. The interval says
    nothing of other draws: three are too few to resample (their extremes would be its ends, which cover some 75 %). Raises
    ValueError unless the draws pair up.
    """
    if not first or [len(a) for a in first] != [len(b) for b in second]:
        raise ValueError(f"got {len(first)} and {len(second)} draws, expected as many, of the same images")
    gains = np.stack(first) - np.stack(second)  # [draws, images]
    rng = np.random.default_rng(seed)
    images = gains.shape[1]
    means = [np.nanmean(np.nanmean(gains[:, rng.integers(images, size=images)], 1)) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(means, [0.025, 0.975])
    return np.nanmean(gains, 1).tolist(), float(low), float(high)


def compare(
    results: Results, a: str, b: str, task: str, labels: tuple[str, str], reading: str, others: Results | None = None
) -> str:
    """The difference of two methods on every set, in the draws that both have; each may have its own number of labels.

    `others` are the second's results, where they lie apart.
    """
    rows, found = [], (results, results if others is None else others)
    for name in TASKS[task].sets:
        cells = [[Cell(task, method, k, seed) for seed in SEEDS] for method, k in ((a, labels[0]), (b, labels[1]))]
        both = [pair for pair in zip(*cells, strict=True) if all(c.name in of for c, of in zip(pair, found, strict=True))]
        if not both:
            raise UserError(f"{a} and {b} on {task}, {' and '.join(labels)} labels: no draw that both were trained on; run it")
        require_same_images(found, both, reading, name)
        scores = [scores_of(of, column, reading, name) for of, column in zip(found, zip(*both, strict=True), strict=True)]
        gains, low, high = difference(*scores)
        numbers = [shown(float(np.mean(gains)), True), f"{shown(low, True)} to {shown(high, True)}"]
        each = " ".join(shown(gain, True) for gain in gains)
        rows.append([TASKS[task].titles[name], *(spread(s, len(both)) for s in scores), *numbers, each])
    return table(["set", f"{a}, {labels[0]}", f"{b}, {labels[1]}", "difference", "95 % over images", "by draw"], rows)


def require_same_images(found: tuple[Results, Results], pairs: list[tuple[Cell, Cell]], reading: str, name: str) -> None:
    lists = {of[c.name]["readings"][reading][name]["list"] for pair in pairs for c, of in zip(pair, found, strict=True)}
    if len(lists) > 1:
        raise UserError(f"{name}: the results are of different images; compute the cells again on the same data")


# ---------------------------------------------------------------- the page


def paper_figures(path: Path = PAPER) -> dict[tuple[str, str, str, str], float]:
    """(task, method, labels, set) -> what the paper has, by its own names."""
    with path.open(encoding="utf-8", newline="") as file:
        return {(r["task"], r["method"], r["n_labels"], r["test_set"]): float(r["value"]) for r in csv.DictReader(file)}


def paper_cell(figures: dict[tuple[str, str, str, str], float], task: Task, method: str, labels: str, name: str) -> str:
    theirs = METHODS[method].paper
    column = "SZ" if (task.name, name) == ("cxr", "test") else PAPER_SETS.get(name, "")
    value = figures.get((task.name, theirs or "", PAPER_LABELS.get((task.name, labels), labels), column))
    return "" if value is None else f" [{shown(value)}]"


def task_table(results: Results, task: Task, labels: str, reading: str) -> str:
    """A row a method, a column a set; in brackets the paper's figure. What is not run stands in the table of zoom alone."""
    figures, rows = paper_figures(), []
    for method, entry in METHODS.items():
        if method in SMALLEST and labels != task.labels[0]:
            continue
        cells = [Cell(task.name, method, labels, seed) for seed in SEEDS]
        if reading != "zoom" and not any(c.name in results for c in cells):
            continue
        columns = [
            spread(scores_of(results, cells, reading, name)) + paper_cell(figures, task, method, labels, name)
            for name in task.sets
        ]
        title = f"**{entry.title}**" if entry.title.startswith("SemanticGAN") else entry.title
        steps = {results[c.name]["settings"].get("steps") for c in cells if c.name in results} - {None}
        if method == "semanticgan" and steps:
            title += f", {'/'.join(map(str, sorted(steps)))} steps"
        rows.append([title, "yes" if entry.imagenet else "no", *columns])
    return table(["method", "ImageNet", *task.titles.values()], rows)


def unlabeled_table(results: Results, reading: str = "zoom") -> str:
    """The paper's second table: labelled against unlabelled images, draw 0."""
    task, rows = TASKS["skin"], []
    for labels in task.labels:
        for unlabeled in (*UNLABELED, "all"):
            cell = Cell("skin", "semanticgan", labels, 0, unlabeled)
            rows.append([labels, unlabeled, *(spread(scores_of(results, [cell], reading, name), 1) for name in task.sets)])
    return table(["labels", "unlabelled images", *task.titles.values()], rows)


def render(results: Results) -> str:
    """All tables, as Markdown; where no cell of a number of labels has been run, one for all readings."""
    text = ""
    for task in TASKS.values():
        metric = {"iou": "IoU", "dice": "Dice"}[task.metric]
        for labels in task.labels:
            any_run = any(Cell(task.name, method, labels, seed).name in results for method in METHODS for seed in SEEDS)
            for reading, title in READINGS.items() if any_run else [("zoom", "no cell has been run")]:
                text += f"\n### {task.name}, {labels} labels: {metric}, {title}\n\n{task_table(results, task, labels, reading)}"
    text += f"\n### skin: labelled and unlabelled images (SemanticGAN, draw 0, IoU, {READINGS['zoom']})\n\n"
    return text + unlabeled_table(results) + "\n" + provenance(results)


def provenance(results: Results) -> str:
    """Which revisions and machines the cells come from."""
    if not results:
        return "No cell has been run.\n"
    revisions: defaultdict[str, set[str]] = defaultdict(set)
    for r in results.values():
        revisions[f"{r['machine']} ({r['precision']}, torch {r['versions']['torch']})"].add(r["git"])
    kinds = [f"{machine}, scored at {', '.join(sorted(found))}" for machine, found in sorted(revisions.items())]
    runs = {  # a run of ours that several cells share counts once
        (name if part in ("training", "scoring") else r["task"], part): seconds
        for name, r in results.items() for part, seconds in r["seconds"].items()
    }  # fmt: skip
    return f"{len(results)} cells, {sum(runs.values()) / 3600:.1f} hours: " + "; ".join(kinds) + ".\n"


def write_page(results: Results, page: Path = PAGE) -> None:
    text = put_between(page.read_text(encoding="utf-8"), render(results), *markers("accuracy.py --table"), page.name)
    write(page, text)
