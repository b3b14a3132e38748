import errno
import json
import math
import os
import signal
import threading

import pytest
import torch

from semanticgan.errors import UserError
from semanticgan.training import run as run_module
from semanticgan.training.checkpoint import State, load_checkpoint, stage_checkpoints
from semanticgan.training.distributed import World
from semanticgan.training.run import Clock, Interrupted, Means, Run, Stage, duration, held, require_new_folder, write_text


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", say=lambda text: None)


def stats(run):
    return [json.loads(line) for line in (run.folder / "stats.jsonl").read_text().splitlines()]


def stage(run, *, kimg=0.1, budget=None, batch=10, minutes=0.0, report=lambda means, last: {}, nimg=0):
    state = State({}, {"nimg": nimg, "seconds": 0.0})
    clock = Clock(kimg, budget)
    return Stage("gan", run, state, clock, batch=batch, tick_kimg=0.02, checkpoint_minutes=minutes, report=report)


# ---------------------------------------------------------------- the folder


def test_a_folder_is_held_by_one_at_a_time_and_nothing_is_left_in_it(tmp_path):
    taken = pytest.raises(UserError, match="another process trains in this run; wait for its end")
    with held(tmp_path, new=True), taken, held(tmp_path, new=False):
        pass
    with held(tmp_path, new=True):  # free again
        assert not list(tmp_path.iterdir())


def test_whoever_comes_second_to_a_new_folder_leaves_it_alone(tmp_path):
    out = tmp_path / "run"
    with held(out, new=True):
        (out / "config.json").touch()
        with pytest.raises(UserError, match="another process trains"), held(out, new=True):
            pass
    with pytest.raises(UserError, match="is not empty"), held(out, new=True):
        pass
    assert (out / "config.json").is_file()


@pytest.mark.parametrize("kind", ["absent", "empty", "link"])
def test_a_new_folder_in_which_nothing_was_saved_is_free_again(tmp_path, kind):
    out, place = tmp_path / "run", tmp_path / "place"
    place.mkdir()
    if kind != "absent":
        out.symlink_to(place) if kind == "link" else out.mkdir()
    with pytest.raises(UserError, match="a wrong setting"), held(out, new=True):
        (Run(out, print).folder / "config.json").touch()
        raise UserError("a wrong setting")
    require_new_folder(out)
    assert out.is_symlink() == (kind == "link") and not list(place.iterdir())


@pytest.mark.parametrize(("kept", "advice"), [("", "say the command again"), ("checkpoints/teacher_labels.npy", "--resume")])
def test_a_full_disk_leaves_what_can_be_gone_on_with(tmp_path, kept, advice):
    out = tmp_path / "run"
    with pytest.raises(UserError, match=rf"No space left on device.; make room, then .*{advice}"), held(out, new=True):
        Run(out, print)
        if kept:
            (out / kept).touch()
        raise OSError(errno.ENOSPC, "No space left on device")
    assert out.exists() == bool(kept)


def test_other_errors_leave_a_new_folder_as_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / "run", new=True):
        (tmp_path / "run" / "log.txt").touch()
        raise ZeroDivisionError
    assert (tmp_path / "run" / "log.txt").is_file()


def test_a_file_system_without_locks_keeps_nobody_away(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(run_module.fcntl, "flock", no_locks)
    with held(tmp_path, new=False), held(tmp_path, new=False):
        pass


def test_log_is_said_and_kept_with_the_time(tmp_path):
    said = []
    run = Run(tmp_path / "a" / "run", said.append)
    run.log("überall")
    run.log("a path that is no text: \udcff")
    assert said[0] == "überall"
    first, second = (tmp_path / "a" / "run" / "log.txt").read_text(encoding="utf-8").splitlines()
    assert first.endswith("  überall") and first[4] == "-" and "dcff" in second


def test_nan_and_infinity_become_null(run):
    run.add_stats({"stage": "gan", "kimg": 1.0, "a": math.nan, "b": -math.inf, "c": 2, "d": None})
    assert stats(run) == [{"stage": "gan", "kimg": 1.0, "a": None, "b": None, "c": 2, "d": None}]
    assert "NaN" not in (run.folder / "stats.jsonl").read_text()


def test_statistics_after_the_checkpoint_are_dropped(run):
    for name, kimg in [("gan", 1.0), ("gan", 2.0), ("gan", 3.0), ("encoder", 1.0), ("encoder", 2.0)]:
        run.add_stats({"stage": name, "kimg": kimg})
    with (run.folder / "stats.jsonl").open("a") as file:
        file.write('{"stage": "enc')  # a killed run was writing
    run.drop_stats_after("encoder", 1.0)
    assert [(s["stage"], s["kimg"]) for s in stats(run)] == [("gan", 1), ("gan", 2), ("gan", 3), ("encoder", 1)]
    run.drop_stats_after("gan", 2.0)
    assert [(s["stage"], s["kimg"]) for s in stats(run)] == [("gan", 1), ("gan", 2), ("encoder", 1)]


def test_no_statistics_yet(run):
    run.drop_stats_after("gan", 0.0)
    assert not (run.folder / "stats.jsonl").exists()


def test_text_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "one\n")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module.Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "two\n")
    assert path.read_text() == "one\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0m00s"), (59.4, "0m59s"), (59.6, "1m00s"), (125.0, "2m05s"), (3599.6, "1h00m"), (3725.0, "1h02m")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


# ---------------------------------------------------------------- a new folder


def test_an_absent_or_empty_folder_is_new(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        require_new_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # nothing was left


def test_files_and_full_folders_are_not_new(tmp_path):
    (tmp_path / "file").touch()
    refused = {"": "not empty", "file": "is a file", "file/x": "cannot be written", "x" * 300: "cannot be written"}
    for folder, message in ((tmp_path / name, message) for name, message in refused.items()):
        with pytest.raises(UserError, match=message) as caught:
            require_new_folder(folder)
        assert str(caught.value).startswith(f"--out {folder}: ")


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_module.Path, "touch", denied)
    with pytest.raises(UserError, match="cannot be written"):
        require_new_folder(tmp_path / "run")


# ---------------------------------------------------------------- time


@pytest.fixture
def time(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    return now


def test_a_stage_ends_by_images(time):
    clock = Clock(kimg=2.0)
    assert [clock.ended(nimg, at_tick=False) for nimg in (0, 1999, 2000)] == [False, False, True]
    assert [clock.progress(nimg) for nimg in (0, 500, 2000, 4000)] == [0, 0.25, 1, 1]
    assert clock.left(1000, rate=50.0) == 20 and clock.left(3000, rate=50.0) == 0


def test_a_stage_ends_by_time_at_a_tick(time):
    clock = Clock(kimg=2.0, budget=60.0, spent=20.0)
    time[0] += 10
    assert clock.seconds == 30 and clock.progress(0) == 0.5 and clock.left(0, rate=1.0) == 30
    assert not clock.ended(10**9, at_tick=True)
    time[0] += 30
    assert clock.ended(0, at_tick=True) and not clock.ended(0, at_tick=False)
    assert clock.progress(0) == 1 and clock.left(0, rate=1.0) == 0


def test_means_are_taken_once():
    means = Means()
    means.add(a=1.0, b=2.0)
    means.add(a=3.0)
    assert means.take() == {"a": 2, "b": 2} and means.take() == {}


# ---------------------------------------------------------------- the loop


def test_steps_ticks_and_checkpoints(run):
    lasts = []
    this = stage(run, kimg=0.05, report=lambda means, last: lasts.append(last) or {"more": 1.0})
    for nimg in this.steps():
        this.means.add(loss=float(nimg))
    assert this.state.nimg == 50 and lasts == [False, False, True]
    assert [(s["kimg"], s["loss"], s["more"]) for s in stats(run)] == [(0.02, 5, 1), (0.04, 25, 1), (0.05, 40, 1)]
    assert all({"stage", "images_per_second", "seconds"} <= s.keys() for s in stats(run))
    assert [load_checkpoint(p)["numbers"]["nimg"] for p in stage_checkpoints(run.folder, "gan")] == [40, 50]


def test_a_finished_stage_does_nothing(run):
    assert list(stage(run, kimg=0.05, nimg=50).steps()) == []
    assert not (run.folder / "stats.jsonl").exists()


def test_checkpoints_are_so_many_minutes_apart(run, time):
    this = stage(run, kimg=0.2, minutes=1.0)
    saved = []
    this.save = lambda: saved.append(this.state.nimg)
    for _ in this.steps():
        time[0] += 20
    assert saved == [40, 80, 120, 160, 200]


def test_a_budget_that_ends_between_two_looks_still_saves(run, time):
    """The report takes time too: a stage that ends has saved its last step."""

    def slow_report(means, last):
        time[0] += 8
        return {}

    this = stage(run, budget=30.0, minutes=100.0, report=slow_report)
    for _ in this.steps():
        time[0] += 5
    assert this.state.nimg % 20 == 0
    assert [load_checkpoint(p)["numbers"]["nimg"] for p in stage_checkpoints(run.folder, "gan")] == [this.state.nimg]
    assert this.state.seconds >= 30


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_at_the_next_step(run, signum):
    before = signal.getsignal(signum)
    this = stage(run, minutes=100.0)
    with pytest.raises(Interrupted) as caught:
        for nimg in this.steps():
            if nimg == 30:
                signal.raise_signal(signum)
    assert caught.value.signum == signum
    assert [load_checkpoint(p)["numbers"]["nimg"] for p in stage_checkpoints(run.folder, "gan")] == [40]
    assert signal.getsignal(signum) == before


def test_a_second_signal_ends_at_once(run):
    this = stage(run)
    with pytest.raises(KeyboardInterrupt):
        for _ in this.steps():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)


def test_a_signal_in_the_last_step_ends_the_run_too(run):
    """What follows the last stage takes minutes and asks nobody."""
    this = stage(run, kimg=0.02)
    with pytest.raises(Interrupted):
        for nimg in this.steps():
            if nimg == 10:
                signal.raise_signal(signal.SIGTERM)
    assert [load_checkpoint(p)["numbers"]["nimg"] for p in stage_checkpoints(run.folder, "gan")] == [20]
    assert list(stage(run, kimg=0.02, nimg=20).steps()) == []


def test_outside_the_main_thread_signals_are_left_alone(run):
    done = []
    thread = threading.Thread(target=lambda: done.extend(stage(run, kimg=0.05).steps()))
    thread.start()
    thread.join()
    assert done == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(run, bad):
    this = stage(run)
    with pytest.raises(UserError, match=r"gan at 0.1 kimg: loss is not finite; .*--resume"):
        for nimg in this.steps():
            this.means.add(loss=bad if nimg == 50 else 1.0)
    assert [load_checkpoint(p)["numbers"]["nimg"] for p in stage_checkpoints(run.folder, "gan")] == [20, 40]


def test_where_nothing_was_saved_nobody_is_told_to_go_on(run):
    this = stage(run)
    with pytest.raises(UserError, match=r"gan at 0.0 kimg: loss is not finite; start again with run.precision=fp32"):
        for _ in this.steps():
            this.means.add(loss=math.nan)


def test_a_signal_does_not_save_what_is_not_finite(run):
    this = stage(run)
    with pytest.raises(UserError, match="not finite"):
        for nimg in this.steps():
            this.means.add(loss=math.nan if nimg >= 20 else 1.0)
            if nimg == 20:
                os.kill(os.getpid(), signal.SIGTERM)
    assert [load_checkpoint(p)["numbers"]["nimg"] for p in stage_checkpoints(run.folder, "gan")] == [20]


def test_weights_that_are_not_finite_end_the_run_before_they_are_saved(run):
    """The last step's losses are those before its update."""
    net = torch.nn.Linear(1, 1)
    this = stage(run)
    this.state.members["G"] = net
    with pytest.raises(UserError, match=r"gan at 0.1 kimg: G is not finite; .*--resume"):
        for nimg in this.steps():
            this.means.add(loss=1.0)
            if nimg == 50:
                net.weight.data.fill_(math.nan)
    assert [load_checkpoint(p)["numbers"]["nimg"] for p in stage_checkpoints(run.folder, "gan")] == [20, 40]


def test_ranks_meet_after_rank_0_has_written(run, monkeypatch):
    """At each tick, so that a disk that is slower than the patience of an all-reduce ends nothing."""
    events = []

    class Watched(World):
        def wait(self):
            events.append("wait")

    run.world = Watched()
    this = stage(run, kimg=0.04, minutes=0.0)
    monkeypatch.setattr(this, "save", lambda: events.append("save"))
    list(this.steps())
    assert events == ["save", "wait", "save", "wait"]
