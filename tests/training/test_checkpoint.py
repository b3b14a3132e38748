import errno
import math
import os
import pickle
import resource
import signal
import zipfile

import pytest
import torch
from torch import nn

from semanticgan.errors import UserError
from semanticgan.training import checkpoint
from semanticgan.training.checkpoint import State, load_checkpoint, save_checkpoint, save_stage, stage_checkpoints, to_keep


def build(seed=0):
    torch.manual_seed(seed)
    net = nn.Linear(3, 2)
    opt = torch.optim.Adam(net.parameters())
    net(torch.randn(5, 3)).sum().backward()
    opt.step()
    return State({"net": net, "opt": opt}, {"nimg": seed, "seconds": 0.5})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- state


def test_members_and_numbers_are_attributes():
    state = build()
    assert isinstance(state.net, nn.Linear) and state.nimg == 0
    state.nimg += 5
    assert state.numbers["nimg"] == 5
    with pytest.raises(AttributeError, match=r"net is not one of the numbers"):
        state.net = nn.Linear(1, 1)
    with pytest.raises(AttributeError):
        state.kimg = 1
    with pytest.raises(AttributeError, match="kimg"):
        _ = state.kimg


def test_all_of_it_comes_back_from_a_file(tmp_path, assert_same):
    saved, other = build(1), build(2)
    save_checkpoint(tmp_path / "a.pt", saved.state_dict())
    other.load_state_dict(load_checkpoint(tmp_path / "a.pt"))
    assert_same(other.state_dict(), saved.state_dict())
    assert other.nimg == 1


@pytest.mark.parametrize("group", ["members", "numbers"])
@pytest.mark.parametrize("change", ["missing", "foreign"])
def test_missing_and_foreign_entries_are_refused(group, change):
    state = build()
    saved = build(1).state_dict()
    saved[group] = dict(list(saved[group].items())[1:]) if change == "missing" else saved[group] | {"more": 1}
    before = state.net.weight.clone()
    with pytest.raises(ValueError, match=rf"got {group} .*, expected"):
        state.load_state_dict(saved)
    assert torch.equal(state.net.weight, before) and state.nimg == 0


# ---------------------------------------------------------------- files


def test_no_temporary_file_stays(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"a": 1})
    assert names(tmp_path) == ["a.pt"] and load_checkpoint(tmp_path / "a.pt") == {"a": 1}


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"a": 1})

    def half(content, file):
        file.write(b"half a checkpoint")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.torch, "save", half)
    with pytest.raises(UserError, match=r"a\.pt: cannot be written .*No space left.*make room, then go on with --resume"):
        save_checkpoint(path, {"a": 2})
    assert names(tmp_path) == ["a.pt"] and load_checkpoint(path) == {"a": 1}


def test_a_full_disk_at_the_last_moment(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"a": 1})

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(path, {"a": 2})
    assert names(tmp_path) == ["a.pt"] and load_checkpoint(path) == {"a": 1}


def test_a_file_that_may_not_grow_further(tmp_path):
    """The kernel's own refusal, in the middle of torch's writing."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"a": torch.ones(5)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(UserError, match=r"a\.pt: cannot be written"):
            save_checkpoint(path, {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["a.pt"] and torch.equal(load_checkpoint(path)["a"], torch.ones(5))


def test_a_place_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        save_checkpoint(tmp_path / "no" / "a.pt", {})


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["torch", "pickle", "old torch"])
def test_a_hostile_file_is_refused_and_not_executed(tmp_path, form):
    path, marker = tmp_path / "a.pt", tmp_path / "executed"
    content = {"members": {"net": Hostile(marker)}, "numbers": {}}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1 and str(path) in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"x" * 1000, b"PK\x03\x04" + bytes(100)])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pt: cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "a.pt", tmp_path):
        with pytest.raises(UserError, match="cannot be read as a checkpoint"):
            load_checkpoint(path)


def test_truncated_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, build().state_dict())
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            load_checkpoint(path)
    with zipfile.ZipFile(tmp_path / "b.pt", "w"):
        pass
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "b.pt")
    save_checkpoint(path, {"a": torch.ones(1000)})
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(torch.ones(8).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):  # one bit in the weights
        load_checkpoint(path)


def test_the_last_two_of_each_stage_are_kept(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    save_checkpoint(tmp_path / "checkpoints" / "encoder-best.pt", {})
    save_stage(tmp_path, "encoder", 48, {})
    for nimg in (0, 1000, 20_000, 1_000_000):
        path = save_stage(tmp_path, "gan", nimg, {"nimg": nimg})
        assert stage_checkpoints(tmp_path, "gan")[-1] == path
    assert names(tmp_path / "checkpoints") == [
        "encoder-000000048.pt", "encoder-best.pt", "gan-000020000.pt", "gan-001000000.pt",
    ]  # fmt: skip
    assert len(stage_checkpoints(tmp_path, "encoder")) == 1


@pytest.mark.parametrize(("keep", "expected"), [("best", [True, True, False, False, True, True]), ("last", [True] * 6)])
def test_which_weights_are_kept(keep, expected):
    state = State({}, {"best": -1.0})
    assert [to_keep(state, score, keep) for score in (0.0, 0.7, 0.6, 0.7, math.nan, 0.8)] == expected
    assert state.best == 0.8
