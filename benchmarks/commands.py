"""What is timed from outside, as a user meets it: packing, the first step of `semanticgan train`, two processes."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from recording import resident

from semanticgan.config import build_config
from semanticgan.data.synthetic import write_dataset

SIDE = 64
DRAWN = 5000  # different scenes at most; further files are copies of them
LABELED, VAL = 40, 20
TICK_STEPS, TICKS = 16, 3  # of the runs of two processes: each tick has one step with R1; the first does not count
PACKING = """
import json, sys, time
from pathlib import Path
from semanticgan.config import DataConfig
from semanticgan.data.pack import pack
from semanticgan.training import stages  # what `train` has loaded by then
root = Path(sys.argv[1])
paths = (root / "unlabeled.txt").read_text().splitlines()
start = time.perf_counter()
pack(root, paths, data=DataConfig(resolution=int(sys.argv[2]), channels=3), labels=None)
print(json.dumps({"images": len(paths), "seconds": time.perf_counter() - start}))
"""


def write_scenes(root: Path, images: int, side: int = SIDE) -> None:
    """A data folder of drawn scenes: `images` without masks, 40 with masks and 20 for validation."""
    drawn = min(images, DRAWN)
    paths = write_dataset(root, size=side, unlabeled=drawn, labeled=LABELED, val=VAL, test=0)["unlabeled"]
    for k in range(drawn, images):
        copy = f"images/copies/{k:07d}.png"
        (root / copy).parent.mkdir(exist_ok=True)
        shutil.copyfile(root / paths[k % drawn], root / copy)
        paths.append(copy)
    (root / "unlabeled.txt").write_text("\n".join(paths) + "\n", encoding="utf-8")


def environment(cache: Path, threads: int) -> dict[str, str]:
    return {**os.environ, "SEMANTICGAN_CACHE": str(cache), "OMP_NUM_THREADS": str(threads)}


def packing(root: Path, cache: Path, threads: int, side: int = SIDE) -> dict[str, float]:
    """Pack the folder's images in a process of its own: images a second, and its peak of anonymous memory in MB.

    The memory is RssAnon, looked up every 20 ms: all that the process holds but the pages of files.
    """
    command = [sys.executable, "-c", PACKING, str(root), str(side)]
    process = subprocess.Popen(command, env=environment(cache, threads), stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        with suppress(KeyError, OSError):  # it has just ended
            peak = max(peak, resident("RssAnon", process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"packing: exit code {process.returncode}")
    assert process.stdout is not None
    done = json.loads(process.stdout.read())
    return {**done, "images_per_second": done["images"] / done["seconds"], "anonymous_mb": peak / 1e6}


@contextmanager
def training(command: list[str], out: Path, env: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A run as a process group of its own, ended when it is no longer needed; its folder goes too."""
    with (out.parent / f"{out.name}.txt").open("w", encoding="utf-8") as said:
        process = subprocess.Popen([*command, "--out", str(out)], env=env, stdout=said, stderr=said, start_new_session=True)
        try:
            yield process
        finally:
            for signum in (signal.SIGTERM, signal.SIGKILL):
                if process.poll() is None:
                    os.killpg(process.pid, signum)
                    try:
                        process.wait(30)
                    except subprocess.TimeoutExpired:
                        continue
            shutil.rmtree(out, ignore_errors=True)


def wait_for_ticks(process: subprocess.Popen, out: Path, ticks: int) -> list[dict[str, Any]]:
    """The first lines of stats.jsonl, as soon as there are so many. Raises RuntimeError if the run ends before."""
    stats = out / "stats.jsonl"
    while True:
        lines = stats.read_text(encoding="utf-8").splitlines(keepends=True) if stats.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        if len(whole) >= ticks:
            return whole[:ticks]
        if process.poll() is not None:
            said = (out.parent / f"{out.name}.txt").read_text(encoding="utf-8", errors="replace").strip()
            raise RuntimeError(f"{out.name}: ended with exit code {process.returncode} before tick {ticks}: {said[-500:]}")
        time.sleep(0.01)


def train_command(root: Path, preset: str, steps: int, larger: int = 1) -> list[str]:
    """With a line of statistics every so many steps, and a batch so many times the preset's."""
    batch = larger * build_config(preset).gan.batch
    tick = steps * batch / 1000
    lists = [option for name in ("labeled", "unlabeled", "val") for option in (f"--{name}", str(root / f"{name}.txt"))]
    options = [
        "--data",
        str(root),
        "--preset",
        preset,
        "--device",
        "cpu",
        *lists,
        "--set",
        f"run.tick_kimg={tick}",
        "--set",
        f"gan.batch={batch}",
    ]
    return ["-m", "semanticgan", "train", *options]


def first_step(root: Path, cache: Path, folder: Path, threads: int, preset: str = "cpu64") -> dict[str, float]:
    """Seconds from the start of `semanticgan train` to its first training step done and written down, data packed."""
    seconds = []
    for k in range(3):  # the first run packs what is not packed yet, and reads the package's files into memory
        out = folder / f"first-step-{k}"
        start = time.perf_counter()
        command = [sys.executable, *train_command(root, preset, steps=1)]
        with training(command, out, environment(cache, threads)) as process:
            wait_for_ticks(process, out, 1)
            seconds.append(time.perf_counter() - start)
    return {"images": len((root / "unlabeled.txt").read_text(encoding="utf-8").splitlines()), "seconds": median(seconds[1:])}


def two_processes(root: Path, cache: Path, folder: Path, preset: str = "cpu64") -> dict[str, float] | None:
    """Images a second of one process of one thread, one of two, and two of one under torchrun; None if that is not to be had.

    Two processes share the preset's batch, or have one of that size each. From the runs' own stats.jsonl: the median of the
    ticks after the first.
    """
    if importlib.util.find_spec("semanticgan.training.distributed") is None:
        return None
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    kinds = {
        "one_thread": ([], 1, 1), "two_threads": ([], 2, 1), "two_processes": (torchrun, 1, 1),
        "two_processes_twice_the_batch": (torchrun, 1, 2),
    }  # fmt: skip
    rates = {}
    for name, (launcher, threads, larger) in kinds.items():
        out, command = folder / name, train_command(root, preset, TICK_STEPS, larger)
        with training([sys.executable, *launcher, *command], out, environment(cache, threads)) as process:
            rates[name] = median(tick["images_per_second"] for tick in wait_for_ticks(process, out, TICKS)[1:])
    return {
        **rates,
        "scaling_one_to_two_processes": rates["two_processes"] / rates["one_thread"],
        "scaling_with_the_batch": rates["two_processes_twice_the_batch"] / rates["one_thread"],
        "two_processes_over_two_threads": rates["two_processes"] / rates["two_threads"],
    }
