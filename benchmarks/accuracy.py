"""Every method of the comparison on the same draws, images and changes: `python benchmarks/accuracy.py --help`."""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shlex
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_cells import (
    BASELINES,
    METHODS,
    OURS,
    RATES,
    RESULTS,
    SEEDS,
    SPLITS,
    TASKS,
    UNLABELED,
    Cell,
    minutes,
    paths,
    queue,
)  # fmt: skip
from accuracy_ours import Ours
from accuracy_scores import READINGS, Answers, images_of, score
from accuracy_tables import compare, read_results, write_page
from baselines.batches import Batches, Changes, Images
from baselines.loop import train
from baselines.networks import new_network
from speed import ROOT, cpu_name, revision, write

from semanticgan import __version__
from semanticgan.config import DataConfig
from semanticgan.data.pack import Packed, pack
from semanticgan.data.pieces import are_convex, have_one_object
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec
from semanticgan.precision import resolved
from semanticgan.predict import NetworkPredictor, predict

CLASSES = {
    "supervised": "Supervised", "mean_teacher": "MeanTeacher", "advssl": "AdvSSL", "gct": "GCT", "unimatch": "UniMatch",
}  # fmt: skip
TRIALS = RESULTS / "trials.jsonl"  # what was tried on draw 0, with validation scores alone


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/accuracy.py", description=__doc__)
    part = parser.add_argument_group("which cells (each may be repeated; default: all)")
    part.add_argument("--task", action="append", choices=list(TASKS))
    part.add_argument("--method", action="append", choices=list(METHODS), metavar="NAME", help=", ".join(METHODS))
    part.add_argument("--labels", action="append", metavar="N", help="40, 200 or all of skin; 9, 35 or 175 of cxr")
    part.add_argument("--seed", action="append", type=int, choices=SEEDS, help="the draw")
    part.add_argument("--unlabeled", action="append", choices=UNLABELED, metavar="N", help="1000 or 3000: of the second table")
    doing = parser.add_argument_group("what to do with them")
    doing.add_argument("--queue", action="store_true", help="print them in order with their minutes, then do them in turn")
    doing.add_argument("--hours", type=float, metavar="H", help="start no cell that would end later; 0: print the queue alone")
    doing.add_argument("--trial", action="append", metavar="NAME=NUMBER", help="a baseline's setting, or kimg; scores val alone")
    doing.add_argument("--table", action="store_true", help="put all results into docs/results.md")
    doing.add_argument("--difference", nargs=2, metavar="METHOD", help="first - second, with intervals; METHOD or METHOD:LABELS")
    doing.add_argument("--against", type=Path, metavar="DIR", help="of --difference: the second's results; default as --results")
    doing.add_argument("--reading", choices=list(READINGS), default="zoom", help="of --difference; default zoom")
    doing.add_argument("--rates", action="store_true", help="measure images a second of the baselines, for the queue's minutes")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="holds skin and cxr, see docs/data.md")
    parser.add_argument("--work", type=Path, metavar="DIR", help="run folders; default runs/accuracy, or accuracy-128 at 128 px")
    parser.add_argument("--results", type=Path, metavar="DIR", help="a JSON file a cell; default benchmarks/results, as --work")
    parser.add_argument("--resolution", type=int, default=64, metavar="N", help="of every method; default 64")
    args = parser.parse_args(argv)
    other = "" if args.resolution == 64 else f"-{args.resolution}"
    args.work = args.work or ROOT / "runs" / f"accuracy{other}"
    args.results = args.results or RESULTS.with_name(f"{RESULTS.name}{other}")
    if not (args.table or args.difference or args.rates or args.queue or args.task or args.method or args.labels):
        parser.error("say which cells, or --queue for all of them; see --help")
    return args


def chosen(args: argparse.Namespace) -> list[Cell]:
    """The cells of the queue that the options leave, in its order. Raises UserError where there are none."""
    unlabeled = args.unlabeled or (["all", *UNLABELED] if args.queue else ["all"])
    cells = [
        cell for cell in queue()
        if cell.task in (args.task or TASKS) and cell.method in (args.method or METHODS)
        and cell.labels in (args.labels or [cell.labels]) and cell.seed in (args.seed or SEEDS)
        and cell.unlabeled in unlabeled
    ]  # fmt: skip
    if not cells:
        raise UserError("no such cell; --queue --hours 0 prints them all")
    return cells


def data_of(task: str, args: argparse.Namespace) -> Path:
    """The task's folder. Raises UserError where there is none."""
    folder = args.data / task
    if not folder.is_dir():
        raise UserError(f"--data {args.data}: no folder {task} in it; name the folder that docs/data.md lays out")
    return folder


# ---------------------------------------------------------------- a baseline's training


def images(cell: Cell, root: Path, resolution: int) -> Images:
    """The cell's labelled and unlabelled images at the networks' resolution."""
    task, labeled = TASKS[cell.task], pack_labeled(cell, root, resolution, cell.labeled_list)
    listed = [path for name in task.unlabeled for path in paths(SPLITS / task.name / name)]
    unlabeled = pack(
        root, list(dict.fromkeys(listed)), data=DataConfig(resolution=resolution, channels=task.channels), labels=None
    )
    classes = LabelSpec.from_file(root / "classes.json").num_classes
    return Images(labeled.images, labeled.labels, unlabeled.images, classes, task.symmetry)


def pack_labeled(cell: Cell, root: Path, resolution: int, file: Path) -> Packed:
    """The images of a list with their masks."""
    data = DataConfig(resolution=resolution, channels=TASKS[cell.task].channels)
    return pack(root, paths(file), data=data, labels=LabelSpec.from_file(root / "classes.json"))


def new_method(
    method: str, seed: int, channels: int, num_classes: int, resolution: int, settings: dict[str, float]
) -> Any:  # fmt: skip
    """A baseline with fresh weights. Raises UserError for a setting that it has not."""
    entry = METHODS[method]
    kind = getattr(import_module(f"baselines.{entry.method}"), CLASSES[entry.method])
    fields = {field.name: field.type for field in dataclasses.fields(kind.settings_class)}
    for name in settings:
        if name not in fields:
            raise UserError(f"--trial {name}: no such setting of {method}; expected kimg, {', '.join(fields)}")
    typed = kind.settings_class(**{name: fields[name](value) for name, value in (entry.settings | settings).items()})
    return kind(lambda s: new_network(entry.network, channels, num_classes, s, resolution), typed, seed, channels, num_classes)


def batches(method: Any, data: Images, seed: int) -> Batches:
    return Batches(data, seed, method.s.batch, Changes(method.s.augment, method.s.far, method.s.texture, method.s.near))


def train_baseline(cell: Cell, args: argparse.Namespace, settings: dict[str, float]) -> tuple[Answers, dict[str, Any]]:
    """The trained network's answers, and what is worth keeping of how it came to them. Goes on where it was interrupted."""
    task, root = TASKS[cell.task], data_of(cell.task, args)
    kimg = settings.get("kimg", task.kimg[cell.labels])
    data = images(cell, root, args.resolution)
    others = {name: value for name, value in settings.items() if name != "kimg"}
    method = new_method(cell.method, cell.seed, task.channels, data.num_classes, args.resolution, others)
    state = None if args.trial else args.work / "baselines" / cell.name / "state.pt"
    steps = round(kimg * 1000 / method.s.batch)
    net, seconds = train(method, batches(method, data, cell.seed), steps, state, lambda line: print(f"  {line}", flush=True))

    masks = np.concatenate([data.labels, pack_labeled(cell, root, args.resolution, SPLITS / cell.task / "val.txt").labels])
    shape = {"one_object": have_one_object(masks)}  # for all methods alike: `train` reads it off the same masks
    shape["convex"] = shape["one_object"] and are_convex(masks)

    def find(stream: Any, views: bool, zoom: bool) -> Any:
        symmetry = task.symmetry if views else "none"
        return predict(NetworkPredictor(net), stream, resolution=args.resolution, symmetry=symmetry, zoom=zoom, **shape)

    kept = {"kimg": kimg, **dataclasses.asdict(method.s)}
    return find, {"settings": kept, "seconds": {"training": round(seconds, 1)}}


def train_ours(cell: Cell, args: argparse.Namespace) -> tuple[Answers, dict[str, Any]]:
    preset = {64: "cpu64", 128: "cpu128"}.get(args.resolution)
    if preset is None:
        raise UserError(f"--resolution {args.resolution}: got no preset of ours, expected 64 or 128")
    ours = Ours(cell, data_of(cell.task, args), args.work, preset)
    ours.train()
    config = ours.model.config
    settings = {"steps": config.steps if cell.method == "semanticgan" else 0, "zoom_chosen": config.zoom}
    return ours.find, {"settings": settings, "seconds": ours.seconds, "commands": ours.commands}


# ---------------------------------------------------------------- cells


def run_cell(cell: Cell, args: argparse.Namespace) -> None:
    """Train and score a cell, and write its file; it appears whole."""
    task, root = TASKS[cell.task], data_of(cell.task, args)
    find, said = train_ours(cell, args) if cell.method in OURS else train_baseline(cell, args, {})
    started = time.monotonic()
    readings = score(find, task, root, LabelSpec.from_file(root / "classes.json"), task.sets)
    said["seconds"]["scoring"] = round(time.monotonic() - started, 1)
    command = shlex.join(["python", "benchmarks/accuracy.py", *cell.words(), "--resolution", str(args.resolution)])
    result = {**dataclasses.asdict(cell), "resolution": args.resolution, "command": command, **circumstances(), **said}
    write(args.results / f"{cell.name}.json", compact_json({**result, "readings": readings}))
    shutil.rmtree(args.work / "baselines" / cell.name, ignore_errors=True)


def circumstances() -> dict[str, Any]:
    versions = {"semanticgan": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return {
        "git": revision(), "machine": cpu_name(), "threads": torch.get_num_threads(), "precision": resolved("auto", "cpu"),
         "versions": versions,
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def compact_json(result: dict[str, Any]) -> str:
    """Indented, but each set's scores on one line."""
    readings = {
        reading: {name: json.dumps(scores, separators=(",", ":")) for name, scores in sets.items()}
        for reading, sets in result["readings"].items()
    }
    text = json.dumps({**result, "readings": readings}, indent=1)
    for sets in readings.values():
        for line in sets.values():
            text = text.replace(json.dumps(line), line)
    return text + "\n"


def tried_setting(text: str) -> tuple[str, float]:
    """Raises UserError for anything but NAME=NUMBER."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise UserError(f"--trial {text}: expected NAME=NUMBER, such as lr=0.002") from None


def run_trial(cell: Cell, args: argparse.Namespace) -> None:
    """Train a baseline with other settings on draw 0, score it on the validation images alone, and note it."""
    if cell.seed != 0 or cell.method in OURS:
        raise UserError(f"--trial: got {cell.name}; settings are tried on draw 0 of a baseline, ours with semanticgan train")
    task, root = TASKS[cell.task], data_of(cell.task, args)
    find, said = train_baseline(cell, args, dict(map(tried_setting, args.trial)))
    readings = score(find, task, root, LabelSpec.from_file(root / "classes.json"), ["val"])
    known = [(reading, [v for v in sets["val"]["iou"] if v is not None]) for reading, sets in readings.items()]
    means = {reading: round(sum(v) / len(v), 4) for reading, v in known}
    about = {"tried": args.trial, "settings": said["settings"], "val_iou": means, "seconds": said["seconds"]["training"]}
    tried = {"cell": cell.name, **about, **circumstances()}
    print(json.dumps(tried))
    args.results.mkdir(parents=True, exist_ok=True)
    with (args.results / TRIALS.name).open("a", encoding="utf-8") as file:
        file.write(json.dumps(tried) + "\n")


def run_queue(cells: list[Cell], args: argparse.Namespace) -> None:
    """In turn, what has a result already left out; a list with minutes first."""
    known = read_results(args.results)
    sizes = {name: sum(len(images_of(task, s, data_of(name, args))) for s in task.sets) for name, task in TASKS.items()
             if any(cell.task == name for cell in cells)}  # fmt: skip
    left = [(cell, minutes(cell, known, sizes[cell.task])) for cell in cells if cell.name not in known]
    for cell, length in left:
        print(f"{length:7.0f} min  {cell.name}")
    print(f"{sum(m for _, m in left) / 60:7.1f} h    {len(left)} cells to do, {len(cells) - len(left)} done", flush=True)
    started = time.monotonic()
    for cell, length in left:
        if args.hours is not None and (time.monotonic() - started) / 3600 + length / 60 > args.hours:
            print(f"{cell.name}: would end after --hours {args.hours:g}")
            return
        print(f"{cell.name}: begins", flush=True)
        run_cell(cell, args)


def measure_rates(args: argparse.Namespace, steps: int = 4) -> dict[str, Any]:
    """Labelled images a second in training, and views a second in scoring, by processor time, of the skin task's networks."""
    side, rates = args.resolution, {}
    random = torch.Generator().manual_seed(0)
    shown = torch.randint(256, (64, side, side, 3), generator=random).byte().numpy()
    labels = torch.randint(2, (64, side, side), generator=random).byte().numpy()
    data = Images(shown, labels, shown, 2, "all")
    for name in BASELINES:
        method = new_method(name, 0, 3, 2, side, {})
        stream = batches(method, data, 0)
        train(method, stream, 1)  # the first step is slower
        before = time.process_time()
        train(method, stream, steps)
        middle = time.process_time()
        list(predict(NetworkPredictor(method.answer), shown, resolution=side, symmetry="none"))
        after = time.process_time()
        trained = steps * method.s.batch / (middle - before)
        rates[name] = {"training": round(trained, 2), "scoring": round(len(shown) / (after - middle), 1)}
        print(f"{name}: {rates[name]}", flush=True)
    return {"resolution": side, **circumstances(), "rates": rates}


def main() -> None:
    args = arguments()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    try:
        if args.rates:
            write(args.results / RATES.name, json.dumps(measure_rates(args), indent=1) + "\n")
        elif args.difference:
            names, given = zip(*(text.partition(":")[::2] for text in args.difference), strict=True)
            for task in args.task or TASKS:
                for labels in args.labels or TASKS[task].labels[:1]:
                    budgets = tuple(k or labels for k in given)
                    others = read_results(args.against) if args.against else None
                    print(compare(read_results(args.results), *names, task, budgets, args.reading, others))
        elif args.table:
            write_page(read_results(args.results))
        elif args.queue:
            run_queue(chosen(args), args)
        else:
            for cell in chosen(args):
                if args.trial:
                    run_trial(cell, args)
                elif (args.results / f"{cell.name}.json").is_file():
                    print(f"{cell.name}: is there")
                else:
                    run_cell(cell, args)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
