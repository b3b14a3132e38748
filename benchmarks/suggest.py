"""Is `semanticgan suggest` better than chance, when 20 more images are labelled? `python benchmarks/suggest.py --help`."""

import argparse
import datetime
import fnmatch
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import tables
import torch
from speed import ROOT, cpu_name, revision, write

from semanticgan import __version__
from semanticgan.config import Config
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec
from semanticgan.training.checkpoint import load_checkpoint, save_checkpoint, stage_checkpoints
from semanticgan.training.gan import new_gan_state

RESULTS = ROOT / "benchmarks" / "results" / "suggest"
PAGE = ROOT / "docs" / "suggest.md"
BUDGETS, DRAWS, ADDED = (20, 80), (0, 1, 2), 20
WAYS = ("start", "random", "suggest")
LISTS = {"validation": "splits/val.txt", "test": "splits/test.txt"}
POOL = ["splits/train_all.txt", "ham10000"]  # of images; the first list's have masks


@dataclass(frozen=True)
class Cell:
    """A draw of labels, and what comes after it: nothing, or 20 more images by one of two ways."""

    labels: int  # at the start
    draw: int
    way: str

    @property
    def name(self) -> str:
        return f"{self.labels}-seed{self.draw}-{self.way}"

    @property
    def start(self) -> "Cell":
        return Cell(self.labels, self.draw, "start")


CELLS = [Cell(labels, draw, way) for draw in DRAWS for labels in BUDGETS for way in WAYS]


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/suggest.py", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="DATA", help="the skin images, laid out as in docs/data.md")
    parser.add_argument("--run", type=Path, metavar="RUN", help="a finished run; its G is taken without its label side")
    parser.add_argument("--work", type=Path, default=Path("runs/suggest"), metavar="DIR", help="its folder; default runs/suggest")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="a JSON file a cell; those there are kept")
    parser.add_argument("--only", action="append", metavar="CELL", help=f"{CELLS[-1].name}, or '20-*'; repeat for several")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default 1")
    lengths = {"start-gan": 3.0, "start-encoder": 8.0, "gan": 1.5, "encoder": 4.0}
    for name, kimg in lengths.items():
        parser.add_argument(f"--{name}", type=float, default=kimg, metavar="KIMG", help=f"length of the stage; default {kimg:g}")
    parser.add_argument("--table", action="store_true", help=f"put the results into docs/{PAGE.name}; no training")
    args = parser.parse_args(argv)
    if not args.table and not (args.data and args.run):
        parser.error("--data and --run: both are needed")
    unmatched = [p for p in args.only or [] if not fnmatch.filter([cell.name for cell in CELLS], p)]
    if unmatched:
        parser.error(f"--only {unmatched[0]}: no such cell; expected some of {', '.join(cell.name for cell in CELLS)}")
    return args


# ---------------------------------------------------------------- what is labelled


def paths(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split()


def labeled_at_start(data: Path, cell: Cell) -> list[str]:
    """The draw's images: a part of the published draw of 200, by its seed."""
    drawn = paths(data / f"splits/train_200_seed{cell.draw}.txt")
    return sorted(np.random.default_rng(cell.draw).permutation(drawn)[: cell.labels].tolist())


def pool(data: Path, cell: Cell) -> list[str]:
    """The images that may be labelled next: those with masks that training may use, less the labelled ones."""
    known = set(labeled_at_start(data, cell))
    return [path for path in paths(data / POOL[0]) if path not in known]


def at_random(data: Path, cell: Cell) -> list[str]:
    return sorted(np.random.default_rng([cell.labels, cell.draw]).choice(pool(data, cell), ADDED, replace=False).tolist())


def write_list(path: Path, images: list[str]) -> str:
    write(path, "\n".join(images) + "\n")
    return path.name


# ---------------------------------------------------------------- what is run


def write_base(run: Path, out: Path) -> None:
    """`run`'s G and D_img as a run to start from; G's heads to the label map and D_seg are fresh, and there is no E.

    So no label is known, but what they did to the layers that image and label map share cannot be taken back.
    """
    content = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config, labels = Config.model_validate(content["config"]), LabelSpec.model_validate(content["labels"])
    found = stage_checkpoints(run, "gan")
    if not found:
        raise UserError(f"--run {run}: has no checkpoint of G; name a finished run folder")
    saved = load_checkpoint(found[-1])["members"]
    fresh = new_gan_state(config, labels.num_classes, config.data.num_channels, "cpu").state_dict()["members"]
    for name in ("G", "G_ema"):
        saved[name] |= {key: value for key, value in fresh[name].items() if ".to_seg." in key}
    members = {"G": saved["G"], "G_ema": saved["G_ema"], "D_img": saved["D_img"], "D_seg": fresh["D_seg"]}
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_checkpoint(out / "checkpoints" / "gan-000000000.pt", {"members": members, "numbers": {"nimg": 0}})


class Bench:
    """Runs commands in the work folder, where the data are seen as `skin`, and keeps what they were."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / "skin").unlink(missing_ok=True)
        (self.work / "skin").symlink_to(args.data.resolve())
        self.data = args.data
        self.base = self.work / f"{args.run.name}-without-labels"
        if not stage_checkpoints(self.base, "gan"):
            write_base(args.run, self.base)
        self.commands: list[dict[str, Any]] = []

    def command(self, *words: str) -> None:
        """Raises UserError where the command fails."""
        line = shlex.join(["semanticgan", *words])
        print(line, flush=True)
        start = time.perf_counter()
        env = {**os.environ, "OMP_NUM_THREADS": str(self.args.threads)}
        done = subprocess.run([sys.executable, "-m", "semanticgan", *words], cwd=self.work, env=env, check=False)
        if done.returncode:
            raise UserError(f"{line}: exit code {done.returncode}")
        self.commands.append({"command": line, "seconds": round(time.perf_counter() - start, 1)})

    def train(self, cell: Cell, labeled: list[str]) -> None:
        """The quick training: from the finished G, or from the start's networks with more labels."""
        first = cell.way == "start"
        gan, encoder = (self.args.start_gan, self.args.start_encoder) if first else (self.args.gan, self.args.encoder)
        settings = {"gan.kimg": f"{gan:g}", "encoder.kimg": f"{encoder:g}", "run.tick_kimg": "0.5",
                    "predict.steps": "0", "predict.zoom": "false"}  # fmt: skip
        shutil.rmtree(self.work / cell.name, ignore_errors=True)  # what an earlier try left half-done
        self.command(
            "train", "--data", "skin", "--labeled", write_list(self.work / f"{cell.name}.txt", labeled),
            *(word for name in POOL for word in ("--unlabeled", name)), "--val", LISTS["validation"], "--preset", "cpu64",
            *(word for pair in settings.items() for word in ("--set", "=".join(pair))),
            "--seed", str(cell.draw), "--from", self.base.name if first else cell.start.name, "--out", cell.name,
        )  # fmt: skip

    def proposals(self, cell: Cell) -> list[str]:
        known = write_list(self.work / f"{cell.name}-known.txt", labeled_at_start(self.data, cell))
        free = write_list(self.work / f"{cell.name}-pool.txt", pool(self.data, cell))
        found = self.work / f"{cell.name}.json"
        self.command("suggest", cell.start.name, "--data", "skin", "--labeled", known, "--unlabeled", free,
                     "--num", str(ADDED), "--json", found.name)  # fmt: skip
        return sorted(image["image"] for image in json.loads(found.read_text(encoding="utf-8"))["images"])

    def score(self, cell: Cell) -> dict[str, Any]:
        scores = {}
        for name, images in LISTS.items():
            file = self.work / f"{cell.name}-{name}.json"
            self.command("evaluate", cell.name, "--data", "skin", "--list", images, "--json", file.name)
            said = json.loads(file.read_text(encoding="utf-8"))
            scores[name] = {key: said[key] for key in ("num_images", "mean", "interval95", "steps", "views", "zoom")}
        return scores

    def cell(self, cell: Cell) -> None:
        """Train and score one cell, its start first where that is missing, and write its JSON file."""
        if cell.way != "start" and not (self.work / cell.start.name / "model").is_dir():
            self.cell(cell.start)
        self.commands = []
        added = {"start": list, "random": lambda: at_random(self.data, cell), "suggest": lambda: self.proposals(cell)}[cell.way]()
        self.train(cell, sorted([*labeled_at_start(self.data, cell), *added]))
        result = {
            "cell": cell.name, "labels": cell.labels, "draw": cell.draw, "way": cell.way, "added": added,
            "scores": self.score(cell), "commands": self.commands, **self.circumstances(),
        }  # fmt: skip
        write(self.args.results / f"{cell.name}.json", json.dumps(result, indent=1) + "\n")
        if cell.way != "start":
            shutil.rmtree(self.work / cell.name)

    def circumstances(self) -> dict[str, Any]:
        versions = {"semanticgan": __version__, "torch": torch.__version__, "python": platform.python_version()}
        saved = stage_checkpoints(self.args.run, "gan")[-1]
        return {
            "run": f"{self.args.run.name}/{saved.stem}", "machine": cpu_name(), "threads": self.args.threads,
            "versions": versions, "git": revision(), "date": datetime.date.today().isoformat(),
        }  # fmt: skip


# ---------------------------------------------------------------- the table


def render(results: dict[Cell, dict[str, Any]]) -> str:
    """Mean foreground IoU over the draws of which every way is there, each draw's, and what the proposals gain over chance."""
    out = []
    for labels in BUDGETS:
        whole = [draw for draw in DRAWS if all(Cell(labels, draw, way) in results for way in WAYS)]
        if not whole:
            continue
        ious = {
            (way, name): [foreground_iou(results[Cell(labels, draw, way)]["scores"][name]["mean"]) for draw in whole]
            for way in WAYS
            for name in LISTS
        }
        titles = {"start": f"{labels}", "random": f"{labels} + {ADDED} at random", "suggest": f"{labels} + {ADDED} suggested"}
        out += [[title, *(spread(ious[way, name]) for name in LISTS)] for way, title in titles.items()]
        gains = [[a - b for a, b in zip(ious["suggest", n], ious["random", n], strict=True)] for n in LISTS]
        out.append(["suggested - random", *map(gain, gains)])
    return tables.table(["labels", *(f"{name}: IoU (draw by draw)" for name in LISTS)], out) if out else ""


def foreground_iou(scores: dict[str, Any]) -> float:
    """Of the classes after the background."""
    return mean(list(scores["iou"].values())[1:])


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})"


def gain(values: list[float]) -> str:
    """The mean with its standard error, and each."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{mean(values):+.3f}{error} ({', '.join(f'{v:+.3f}' for v in values)})"


def read_results(folder: Path) -> dict[Cell, dict[str, Any]]:
    files = {cell: folder / f"{cell.name}.json" for cell in CELLS}
    return {cell: json.loads(file.read_text(encoding="utf-8")) for cell, file in files.items() if file.is_file()}


def main() -> None:
    args = arguments()
    try:
        if not args.table:
            wanted = [cell for cell in CELLS if any(fnmatch.fnmatch(cell.name, p) for p in args.only or ["*"])]
            for cell in wanted:
                if (args.results / f"{cell.name}.json").is_file():
                    print(f"{cell.name}: is there", flush=True)
                else:
                    Bench(args).cell(cell)
        text = render(read_results(args.results))
        if args.table:
            write(
                PAGE, tables.put_between(PAGE.read_text(encoding="utf-8"), text, *tables.markers("suggest.py --table"), PAGE.name)
            )
        print(text)
    except (UserError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
