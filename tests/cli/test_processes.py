"""segment and evaluate under torchrun give, file for file, what one process gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_scenes import write_list

from semanticgan.cli.main import choose_device
from semanticgan.errors import UserError


def torchrun(*args, program=("-m", "semanticgan")) -> subprocess.CompletedProcess:
    """The command, or another program, on two processes, which find a free port by themselves."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, (*program, *args))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=300, check=False)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def own_errors(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_evaluate_on_two_processes(command, model_folder, data, tmp_path):
    images = write_list(tmp_path / "list.txt", [f"images/{k % 8:02d}.png" for k in range(19)])
    args = ("evaluate", model_folder, "--data", data, "--list", images, "--steps", 0, "--device", "cpu")
    one = command(*args, "--json", tmp_path / "one.json", "--csv", tmp_path / "one.csv")
    two = torchrun(*args, "--json", tmp_path / "two.json", "--csv", tmp_path / "two.csv")
    assert (one.code, two.returncode) == (0, 0), two.stderr
    for suffix in ("json", "csv"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    assert two.stdout == one.out


@pytest.mark.slow
def test_segment_on_two_processes(command, model_folder, data, tmp_path):
    """Twenty images in three shares, one of them broken and one of 16 bits: the same files, the same last words, once."""
    (data / "images" / "09.png").write_bytes(b"no image")
    deep = np.linspace(0, 60000, 400).reshape(20, 20).astype(np.uint16)
    Image.fromarray(deep).save(data / "images" / "11.png")
    args = ("segment", model_folder, data / "images", "--steps", 1, "--device", "cpu", "--out")
    one, two = command(*args, tmp_path / "one"), torchrun(*args, tmp_path / "two")
    assert one.code == 2 and two.returncode != 0  # of torchrun, whose workers end with 2
    assert own_errors(two) == one.errors and "09.png" in one.errors[0]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert two.stdout.replace(str(tmp_path / "two"), str(tmp_path / "one")) == one.out
    assert "11.png: more than 8 bits" in one.out


@pytest.mark.parametrize("name", ["auto", "cuda", "cpu"])
def test_the_device_is_torchruns(monkeypatch, name):
    import torch

    asked = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda n, device: asked.append(device) or torch.zeros(n))
    assert choose_device(name) == ("cpu" if name == "cpu" else "cuda:3") == asked[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_one_gpu_for_several_processes_is_refused(monkeypatch, processes):
    import torch

    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(torch, "ones", lambda n, device: torch.zeros(n))
    if processes == 1:
        assert choose_device("cuda:1") == "cuda:1"
    else:
        with pytest.raises(UserError, match="cuda:1: got one GPU for all processes of this machine; expected cuda,"):
            choose_device("cuda:1")


LEAVING = """
from pathlib import Path
from semanticgan.training.distributed import join

with join("cpu") as world:
    import torch.distributed.nn.functional  # as torch's compiler does; its functions' defaults keep a group that is there
    assert world.gather(world.rank) == [0, 1]
print(*(thread.read_text() for thread in Path("/proc/self/task").glob("*/comm")))
"""


LOST = """
import time
from semanticgan.training import distributed

distributed.PULSE, distributed.LISTEN, distributed.PATIENCE = 0.05, 0.2, 1.0
store = distributed.dist.HashStore()
store.set("pulse/1", "0")  # rank 1 was there
distributed._Pulse(store, 0, 2, ends=True).start()
time.sleep(60)  # as if for a GPU that waits for rank 1
"""


def test_a_rank_that_waits_for_its_gpu_still_ends_when_another_is_lost(tmp_path):
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: rank 1 of 2 stopped answering; what was saved is whole: go on with --resume")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads have names under Linux alone")
def test_no_thread_outlives_the_group(tmp_path):
    """One that wants the interpreter after its end aborts the process."""
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    done = torchrun(program=[script])
    assert done.returncode == 0, done.stderr
    assert "python" in done.stdout and "gloo" not in done.stdout
