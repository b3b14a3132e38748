"""How fast every stage is, against the plain design and against the machine's limit: `python benchmarks/speed.py --help`."""

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import tables
import torch
from commands import first_step, packing, two_processes, write_scenes
from counting import product_limits
from stages import PARTS, count_preset, preset_bench, preset_results, resolution_results

from semanticgan import __version__
from semanticgan.config import PRESETS
from semanticgan.errors import UserError
from semanticgan.precision import bf16_instructions

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("start", "processes")
STAGES = (*PARTS, "resolution", *OUTSIDE)
SIDES = (32, 64, 128, 256)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/speed.py", description=__doc__)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"of {', '.join(PRESETS)}; default: cpu64 cpu128")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: benchmarks/results/speed-CPU.json for a whole run")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed runs of each stage; default 5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="default: torch's own choice")
    parser.add_argument("--only", action="append", choices=[*STAGES, "count"], help="repeat for several; count: no timing at all")
    parser.add_argument("--images", type=int, default=5000, metavar="N", help="drawn images to pack; default 5000")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, metavar="N", help="of the table of resolutions")
    parser.add_argument("--table", type=Path, metavar="FILE", help="put the tables of a JSON file into docs/speed.md; no timing")
    args = parser.parse_args(argv)
    for name in args.presets:
        if name not in PRESETS:
            parser.error(f"{name}: no such preset; expected {', '.join(PRESETS)}")
    for name in ("repeats", "threads", "images"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: got {getattr(args, name)}, expected at least 1")
    args.presets = args.presets or ["cpu64", "cpu128"]
    return args


def cpu_name() -> str:
    """The model name that /proc/cpuinfo gives."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def revision() -> str:
    """The commit, and whether files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def circumstances(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "bf16": bf16_instructions()},
        "versions": {
            "semanticgan": __version__, "torch": torch.__version__, "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "threads": args.threads, "repeats": args.repeats, "git": revision(),
        "date": datetime.date.today().isoformat(), "load_before": os.getloadavg()[0],
        "command": shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]]),
    }  # fmt: skip


def outside(args: argparse.Namespace, stages: tuple[str, ...]) -> dict[str, Any]:
    """What is measured by running commands on drawn scenes in a temporary folder."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, cache = folder / "scenes", folder / "cache"
        print(f"drawing {args.images} scenes", file=sys.stderr)
        write_scenes(root, args.images)
        if "start" in stages:
            results["packing"] = packing(root, cache, args.threads)
            results["first_step"] = first_step(root, cache, folder, args.threads)
        if "processes" in stages:
            results["processes"] = two_processes(root, cache, folder)
            if results["processes"] is None:
                print("no semanticgan.training.distributed: two processes are not measured", file=sys.stderr)
    return results


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    chosen = tuple(args.only or STAGES)
    results = circumstances(args)
    if "count" in chosen:
        results["counted"] = {name: count_preset(name) for name in args.presets}
    parts = [part for part in PARTS if part in chosen]
    if parts:
        results["limit"], results["presets"] = product_limits(), {}
        for name in args.presets:
            print(f"{name}: {', '.join(parts)}", file=sys.stderr)
            results["presets"][name] = preset_results(preset_bench(name, args.repeats), parts)
    if "resolution" in chosen:
        print("resolutions", file=sys.stderr)
        results["resolution"] = resolution_results(tuple(args.sides), min(2, args.repeats))
    stages = tuple(stage for stage in OUTSIDE if stage in chosen)
    if stages:
        results |= outside(args, stages)
    return results


def write(path: Path, text: str) -> None:
    """By way of a temporary file, so that a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    args = arguments()
    try:
        if args.table:
            page = ROOT / "docs" / "speed.md"
            results = json.loads(args.table.read_text(encoding="utf-8"))
            write(page, tables.put_between(page.read_text(encoding="utf-8"), tables.render(results)))
            return
        results = run(args)
        slug = re.sub(r"[^a-z0-9]+", "-", results["machine"]["cpu"].lower()).strip("-")
        path = args.json or (None if args.only else ROOT / "benchmarks" / "results" / f"speed-{slug}.json")
        print(tables.render(results))
        if path:
            write(path, json.dumps(results, indent=1) + "\n")
            print(f"wrote {path}", file=sys.stderr)
    except (UserError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
