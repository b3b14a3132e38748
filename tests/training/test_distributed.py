"""Two processes on gloo give what one gives, go on from each other's checkpoints, and end when one of them is lost."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from semanticgan.config import Config
from semanticgan.data import transforms
from semanticgan.data.synthetic import LABELS
from semanticgan.data.zoom_out import zoom_out
from semanticgan.errors import UserError
from semanticgan.nn.layers import MinibatchStd
from semanticgan.nn.perceptual import LPIPS
from semanticgan.training import distributed, stages
from semanticgan.training.checkpoint import load_checkpoint, stage_checkpoints
from semanticgan.training.distributed import ALONE, World, join
from semanticgan.training.encoder import EncoderTrainer, new_encoder_state
from semanticgan.training.gan import GanTrainer, TrainingData, new_gan_state
from semanticgan.training.run import Clock, Interrupted, Run, Stage


def part(rank: int, size: int) -> World:
    """A world whose ranks say nothing to each other: only who has what."""
    world = distributed.Ranks.__new__(distributed.Ranks)
    world.rank, world.size = rank, size
    return world


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def set_environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun sets, for one of two processes."""
    return {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


# ---------------------------------------------------------------- what each process computes, and both together


def phases(config: Config, data: TrainingData, world: World) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients and statistics of every phase in two steps, with and without the regularisations, and the averages.

    The learning rates are 0: Adam would turn the sign of a gradient that is 0 but for rounding into a whole step.
    """
    torch.set_num_threads(1)
    out = {}
    gan = new_gan_state(config, 4, 3, "cpu")
    gan.augment_p = 0.5
    encoder = new_encoder_state(config, gan.G_ema, 3, "cpu")
    for group in itertools.chain(*(gan.members[f"opt_{name}"].param_groups for name in ("G", "D_img", "D_seg"))):
        group["lr"] = 0.0
    trainer = GanTrainer(config, LABELS, data, gan, "cpu", world)
    encoder_trainer = EncoderTrainer(config, LABELS, data, gan.G_ema, LPIPS(), encoder, "cpu", world)

    def keep(name, net, stats):
        out[name] = {f"grad {key}": p.grad.clone() for key, p in net.named_parameters() if p.grad is not None}
        out[name] |= {f"stat {key}": torch.as_tensor(value).clone() for key, value in stats.items()}

    for step in range(2):
        batch = trainer.draw(step * config.gan.batch)
        keep(f"D_img {step}", gan.D_img, trainer.update_d_img(batch))
        stats, features = trainer.update_d_seg(batch)
        keep(f"D_seg {step}", gan.D_seg, stats)
        keep(f"G {step}", gan.G, trainer.update_g(batch, features))
        trainer.update_averages(batch)
        keep(
            f"E {step}", encoder.E, encoder_trainer.update(step * config.encoder.batch, progress=1.0)
        )  # rate 0 at the end of the stage
    out["averages"] = {"w_avg": gan.G.mapping.w_avg.clone(), "pl_mean": torch.as_tensor(gan.pl_mean).clone()}
    return out


def both(rank: int, port: int, folder: Path, given: dict, phase_config: Config, data: TrainingData) -> None:
    """What one of two processes does for the tests below: all phases, then a whole run, then a run that one began."""
    os.environ |= set_environment(rank, port)
    stages.export_model = lambda *args: None
    with join("cpu") as world:
        torch.save(phases(phase_config, data, world), folder / f"phases-{rank}.pt")
        stages.train(**given, out=folder / "two", say=lambda text: None, world=world)
        resume = given | {"data": None, "labeled": [], "val": [], "preset": None, "overrides": [], "resume": True}
        said = []
        stages.train(**resume, out=folder / "one-then-two", say=said.append, world=world)
        scores = world.shared(range(21), lambda items: [10 * k for k in items])
        agreed = [world.highest(float(rank)), world.first(lambda: f"from {rank}"), scores, said if rank == 0 else None]
        torch.save(agreed, folder / f"agreed-{rank}.pt")
        with pytest.raises(UserError) as caught:
            world.shared(range(16), lambda items: refuse(rank))
        assert str(caught.value) == ("rank 0 has a bad file\nrank 1 has a bad file" if rank == 0 else "")


def refuse(rank: int) -> list[int]:
    raise UserError(f"rank {rank} has a bad file")


@pytest.fixture(scope="module")
def given(scenes, small_settings):
    return {
        "data": scenes, "labeled": ["labeled.txt"], "unlabeled": [], "val": ["val.txt"], "preset": "tiny32",
        "start_from": None, "resume": False, "seed": None, "hours": None, "device": "cpu",
        "overrides": [*small_settings, "run.precision=fp32"], "dry_run": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def phase_config(small_config):
    return small_config("data.symmetry=all", "run.precision=fp32", "gan.r1_every=2", "gan.pl_every=2", "gan.style_mixing=0.5")


@pytest.fixture(scope="module")
def two(given, phase_config, small_data, tmp_path_factory):
    """The folder in which two processes have worked, beside the run of one process and what that run was half-way."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "export_model", lambda *args: None)
        stages.train(**given, out=folder / "one", say=lambda text: None)
    half(folder / "one", folder / "one-then-two")
    mp.spawn(both, (free_port(), folder, given, phase_config, small_data[0]), nprocs=2)
    return folder


def half(run: Path, to: Path) -> None:
    """A copy of a run that ended with its first GAN checkpoint."""
    shutil.copytree(run, to)
    first, *later = stage_checkpoints(to, "gan")
    for path in (*later, *(to / "checkpoints").glob("encoder-*")):
        path.unlink()
    assert first.name == "gan-000000048.pt"


def stats(folder):
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_phase_has_the_gradients_and_statistics_of_one_process(two, phase_config, small_data):
    """To 1e-5 of each tensor's norm, and of the network's for the few whose gradients cancel to rounding."""
    one = phases(phase_config, small_data[0], ALONE)
    found = torch.load(two / "phases-0.pt", weights_only=True)
    assert found.keys() == one.keys()
    assert {"stat r1_img", "stat real_sign"} <= one["D_img 0"].keys() and "stat r1_img" not in one["D_img 1"]
    assert "stat r1_seg" in one["D_seg 0"] and "stat path_length" in one["G 0"] and "stat path_length" not in one["G 1"]
    for phase, tensors in one.items():
        assert found[phase].keys() == tensors.keys()
        largest = max(t.norm() for t in tensors.values())
        for name, tensor in tensors.items():
            error = (found[phase][name] - tensor).norm()
            assert error <= 1e-5 * max(tensor.norm(), 1e-2 * largest), (phase, name, error / tensor.norm())


@pytest.mark.slow
def test_all_ranks_have_the_same_to_the_bit(two, assert_same):
    assert_same(*(torch.load(two / f"phases-{rank}.pt", weights_only=True) for rank in (0, 1)))


@pytest.mark.slow
def test_a_whole_run_of_two_is_that_of_one(two, assert_same):
    """Statistics of the global batch; one folder, written once. Two steps of Adam from the same start differ by rounding."""
    ours, theirs = stats(two / "two"), stats(two / "one")
    assert [(s["stage"], s["kimg"]) for s in ours] == [(s["stage"], s["kimg"]) for s in theirs]
    for name in ("D_img", "real_sign", "r1_img", "D_seg", "G_img", "matching", "path_length"):
        assert ours[0][name] == pytest.approx(theirs[0][name], rel=1e-3), name
    assert {"val_iou", "best_val_iou"} <= ours[-1].keys()
    for name in ("config.json", "labeled.txt", "unlabeled.txt", "val.txt"):
        if name != "config.json":
            assert (two / "two" / name).read_bytes() == (two / "one" / name).read_bytes()
    assert sorted(p.name for p in (two / "two").rglob("*")) == sorted(p.name for p in (two / "one").rglob("*"))


@pytest.mark.slow
def test_a_checkpoint_of_one_resumes_in_two(two):
    said = torch.load(two / "agreed-0.pt", weights_only=True)[3]
    assert any("gan: goes on from gan-000000048.pt at 0.0 kimg" in line for line in said)
    one, resumed = (load_checkpoint(stage_checkpoints(two / name, "gan")[-1]) for name in ("one", "one-then-two"))
    assert resumed["numbers"]["nimg"] == one["numbers"]["nimg"] == 64
    assert resumed["numbers"]["pl_mean"] == pytest.approx(one["numbers"]["pl_mean"], rel=1e-3)
    assert stats(two / "one-then-two")[-1]["stage"] == "encoder"


@pytest.mark.slow
def test_a_checkpoint_of_two_resumes_in_one(two, given, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "export_model", lambda *args: None)
    half(two / "two", tmp_path / "run")
    resume = {"data": None, "labeled": [], "val": [], "preset": None, "overrides": [], "resume": True}
    stages.train(**(given | resume), out=tmp_path / "run", say=lambda text: None)
    ours, theirs = stats(tmp_path / "run"), stats(two / "two")
    assert ours[:2] == theirs[:2] and len(ours) == len(theirs)
    assert ours[2]["D_img"] == pytest.approx(theirs[2]["D_img"], rel=1e-3)


@pytest.mark.slow
def test_what_ranks_agree_on(two):
    ours, theirs = (torch.load(two / f"agreed-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert ours[:3] == theirs[:3] == [1.0, "from 0", [10 * k for k in range(21)]]


# ---------------------------------------------------------------- who has which part


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_are_the_batch_and_keep_minibatch_groups_whole(size):
    x = torch.randn(16, 3, 2, 2)
    whole = MinibatchStd(4)(x)
    worlds = [part(rank, size) for rank in range(size)]
    assert sorted(k for world in worlds for k in world.mine(list(range(16)))) == list(range(16))
    for world in worlds:
        assert torch.equal(MinibatchStd(4)(world.mine(x)), world.mine(whole))


def test_random_changes_of_a_part_are_those_of_the_whole():
    """Draws are the batch's; so is what is done with them, image by image, up to the order of sums in another batch."""
    img, label = torch.randn(8, 3, 16, 16), torch.randint(0, 3, (8, 16, 16))
    label[:, 0] = label[:, -1] = label[:, :, 0] = label[:, :, -1] = 0

    def changed(img, label, part):
        random = torch.Generator().manual_seed(0)
        far, label = zoom_out(img, label, random, 0.5, part)
        return transforms.recolour(transforms.move(far, random, "all", 1.0, part), random, 1.0, part), label

    whole = changed(img, label, (0, 1))
    for rank in range(2):
        found = changed(img[rank::2], label[rank::2], (rank, 2))
        for a, b in zip(found, whole, strict=True):
            torch.testing.assert_close(a, b[rank::2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "processes", "message"),
    [
        ([], 2, None),
        ([], 1, None),
        (["gan.batch=5", "encoder.batch=9"], 1, None),
        (["gan.batch=12"], 2, "gan.batch: got 12 on 2 processes, expected a multiple of 8"),
        (
            ["gan.batch=4", "networks.mbstd_group=1"],
            4,
            "gan.batch: got 4 on 4 processes, expected a multiple of 8",
        ),  # path length
        (["gan.batch=4", "networks.mbstd_group=1", "gan.pl_weight=0", "encoder.batch=24"], 4, None),
        (["encoder.batch=18"], 2, "encoder.batch: got 18 on 2 processes, expected a multiple of 12"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(small_config, overrides, processes, message):
    config = small_config(*overrides)
    if message is None:
        stages.require_shares(config, processes)
    else:
        with pytest.raises(UserError, match=message):
            stages.require_shares(config, processes)


def test_one_process_has_nothing_to_do(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cpu") as world:
        assert world is ALONE and world.main and world.part == (0, 1)
    x = torch.ones(2)
    assert ALONE.mean(x) is x and ALONE.mine(x) is x and ALONE.average([], stats := {}) is stats
    assert ALONE.first(lambda: 3) == 3 and ALONE.shared([1, 2], lambda items: items) == [1, 2]
    assert not dist.is_initialized()


def test_an_environment_that_is_not_torchruns_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="start them with torchrun"), join("cpu"):
        pass


# ---------------------------------------------------------------- the loop


class Told(World):
    """A second rank that hears what the others know."""

    rank, size, waits = 1, 2, 0

    def __init__(self, signum: int, seconds: float) -> None:
        self.signum, self.seconds = signum, seconds

    def highest(self, number: float) -> float:
        return max(number, self.signum if number < 1 else self.seconds)

    def wait(self) -> None:
        self.waits += 1


def test_a_signal_to_any_rank_ends_all_and_only_rank_0_writes(tmp_path, small_config):
    world = Told(signal.SIGTERM, 0.0)
    run = Run(tmp_path / "run", say=pytest.fail, world=world)
    state = new_gan_state(small_config(), 4, 3, "cpu")
    loop = Stage("gan", run, state, Clock(kimg=1.0), batch=8, tick_kimg=0.008, checkpoint_minutes=0.0, report=lambda *_: {})
    with pytest.raises(Interrupted) as caught:
        list(loop.steps())
    assert caught.value.signum == signal.SIGTERM and state.nimg == 8
    assert world.waits == 2  # for the files of the tick, and before the end
    assert not (tmp_path / "run").exists()


def test_time_is_that_of_the_rank_that_spent_most():
    clock = Clock(kimg=1.0, budget=100.0, spent=50.0, world=Told(0, 80.0))
    assert clock.progress(0) == pytest.approx(0.8) and not clock.ended(0, at_tick=True)
    assert Clock(kimg=1.0, budget=100.0, spent=50.0, world=Told(0, 100.0)).ended(0, at_tick=True)


# ---------------------------------------------------------------- a rank that is lost


def start(scenes: Path, run: Path, settings: tuple[str, ...], kind: str) -> list[subprocess.Popen]:
    """Two training processes, by hand as on two machines, or one torchrun that starts both."""
    changes = [text for setting in (*settings, "gan.kimg=100") for text in ("--set", setting)]
    args = ["-m", "semanticgan", "train", "--data", scenes, "--labeled", "labeled.txt", "--val", "val.txt", "--out", run,
            "--preset", "tiny32", "--device", "cpu", *changes]  # fmt: skip
    if kind == "torchrun":
        commands = [(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *args], {})]
    else:
        port = free_port()
        commands = [(args, set_environment(rank, port)) for rank in range(2)]
    return [
        subprocess.Popen([sys.executable, *map(str, words)], env=os.environ | environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for words, environment in commands
    ]  # fmt: skip


def wait_for_checkpoint(run: Path, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 180
    while not stage_checkpoints(run, "gan"):
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes), [p.communicate() for p in processes]
        time.sleep(0.1)


def require_whole(run: Path) -> None:
    """The last checkpoint is whole, and no file is there under its own name that is not."""
    assert [load_checkpoint(path)["numbers"]["nimg"] for path in stage_checkpoints(run, "gan")][-1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_ends_the_other_within_a_minute(scenes, small_settings, tmp_path, lost):
    run = tmp_path / "run"
    processes = start(scenes, run, small_settings, "by hand")
    try:
        wait_for_checkpoint(run, processes)
        processes[lost].kill()
        since = time.monotonic()
        _, errors = processes[1 - lost].communicate(timeout=120)
        assert time.monotonic() - since < 60
        assert processes[1 - lost].returncode == 2
        expected = f"error: rank {lost} of 2 stopped answering; what was saved is whole: go on with --resume, or start again\n"
        assert errors == expected
        require_whole(run)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_torchrun_ends_when_a_worker_is_killed_and_one_process_goes_on(given, scenes, small_settings, tmp_path, monkeypatch):
    run = tmp_path / "run"
    (torchrun,) = start(scenes, run, small_settings, "torchrun")
    try:
        wait_for_checkpoint(run, [torchrun])
        children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children")
        if not children.exists():
            pytest.skip("this system does not list a process's children")
        os.kill(int(children.read_text().split()[1]), signal.SIGKILL)
        since = time.monotonic()
        torchrun.communicate(timeout=120)
        assert time.monotonic() - since < 60 and torchrun.returncode != 0
    finally:
        torchrun.kill()
        torchrun.communicate()
    require_whole(run)
    saved = load_checkpoint(stage_checkpoints(run, "gan")[-1])["numbers"]["nimg"]
    steps = []
    monkeypatch.setattr(stages, "train_gan", lambda config, labels, data, state, *args: steps.append(state.nimg))
    monkeypatch.setattr(stages, "train_encoder", lambda *args: None)
    monkeypatch.setattr(stages, "export_model", lambda *args: None)
    (run / "checkpoints" / "encoder-best.pt").unlink(missing_ok=True)
    resume = {"data": None, "labeled": [], "val": [], "preset": None, "overrides": [], "resume": True}
    with pytest.raises(UserError, match="encoder-best"):  # there is none yet
        stages.train(**(given | resume), out=run, say=lambda text: None)
    assert steps == [saved]
