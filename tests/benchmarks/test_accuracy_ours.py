"""Our own rows: which commands are given in which order, none of them twice, and that the image GAN knows no labels."""

import copy
import json
import shlex
from dataclasses import replace

import accuracy_ours
import numpy as np
import pytest
import torch
from accuracy_cells import Cell
from accuracy_ours import Ours

from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec
from semanticgan.training.checkpoint import load_checkpoint
from semanticgan.training.gan import TrainingData, new_gan_state, train_gan
from semanticgan.training.run import Run


@pytest.fixture
def given(monkeypatch):
    """The commands that would be run, each leaving what a finished run leaves as far as it is looked at."""
    commands = []

    class Done:
        returncode = 0

    def run(words, **_):
        commands.append(words[3:])
        out = accuracy_ours.Path(words[words.index("--out") + 1])
        (out / "model").mkdir(parents=True, exist_ok=True)
        (out / "model" / "model.safetensors").touch()
        if "--resume" not in words:
            (out / "config.json").write_text(json.dumps({"command": shlex.join(words[2:])}))
        return Done

    monkeypatch.setattr(accuracy_ours.subprocess, "run", run)
    monkeypatch.setattr(accuracy_ours.SemanticGAN, "load", staticmethod(lambda folder: folder))
    monkeypatch.setattr(Ours, "without_labels", lambda self, run: run.with_name(f"{run.name}-base"))
    return commands


def value(words, option):
    return words[words.index(option) + 1]


def test_commands_in_their_order_and_once(given, tmp_path):
    cell = Cell("cxr", "student", "35", 2)
    ours = Ours(cell, tmp_path / "data", tmp_path, "cpu64")
    ours.train()
    image_gan, run, student = given
    assert [words[0] for words in given] == ["train", "train", "distill"]
    assert value(image_gan, "--labeled").endswith("train_9_seed0.txt") and value(image_gan, "--seed") == "0"
    assert {"gan.seg_weight=0", "gan.feature_matching=0", "data.symmetry=flip"} <= set(image_gan)
    assert value(run, "--labeled").endswith("train_35_seed2.txt") and value(run, "--seed") == "2"
    assert value(run, "--from").endswith("cxr/image-gan-base") and "--teacher" not in run
    assert student[1] == value(run, "--out") == str(tmp_path / "cxr" / "35-seed2")
    assert all(value(words, "--val").endswith("cxr/val.txt") and words.count("--unlabeled") == 2 for words in given)
    said = [shlex.split(line) for line in ours.commands]
    assert [words[1] for words in said] == ["train", "train", "distill"]
    assert not any(str(tmp_path) in line or str(accuracy_ours.ROOT) in line for line in ours.commands)
    assert value(said[1], "--data") == "data/cxr" and value(said[1], "--out") == "runs/accuracy/cxr/35-seed2"
    assert value(said[1], "--labeled") == "benchmarks/splits/cxr/train_35_seed2.txt"
    assert ["networks.encoder_features_stride=2" in words for words in said] == [False, True, False]
    assert ours.model == tmp_path / "cxr" / "35-seed2-student"

    again = Ours(replace(cell, method="semanticgan"), tmp_path / "data", tmp_path, "cpu64")
    again.train()
    assert again.commands == ours.commands[:2] and len(given) == 3
    assert list(ours.seconds) == ["image-gan", "35-seed2", "35-seed2-student"] and list(again.seconds) == list(ours.seconds)[:2]
    Ours(replace(cell, seed=1), tmp_path / "data", tmp_path, "cpu64").train()
    assert [value(words, "--out").rpartition("/")[2] for words in given[3:]] == ["35-seed1", "35-seed1-student"]


def test_a_plain_student_teaches_an_encoder_or_itself(given, tmp_path):
    cell = Cell("cxr", "student-taught", "35", 2)
    taught = Ours(cell, tmp_path / "data", tmp_path, "cpu64")
    taught.train()
    image_gan, plain, run, student = given
    assert plain[:4] == ["distill", value(image_gan, "--out"), "--kimg", "16"]
    assert {"student.pseudo=0", "student.samples=0"} <= set(plain)
    assert value(run, "--from").endswith("cxr/image-gan-base") and value(run, "--teacher") == value(plain, "--out")
    assert student[:2] == ["distill", value(run, "--out")]
    runs = ["image-gan", "35-seed2-plain", "35-seed2-taught", "35-seed2-taught-student"]
    assert list(taught.seconds) == runs and taught.model.name == runs[-1]
    encoder = Ours(replace(cell, method="encoder-taught"), tmp_path / "data", tmp_path, "cpu64")
    encoder.train()
    assert encoder.commands == taught.commands[:3] and len(given) == 4
    alone = Ours(replace(cell, method="self-taught"), tmp_path / "data", tmp_path, "cpu64")
    alone.train()
    assert len(given) == 5 and given[4][:2] == ["distill", value(plain, "--out")]
    assert list(alone.seconds) == ["image-gan", "35-seed2-plain", "35-seed2-plain-student"]
    two = Ours(replace(cell, method="student-of-two"), tmp_path / "data", tmp_path, "cpu64")
    two.train()
    encoder, student = given[5:]  # an encoder of its own label maps, and the plain student that is there
    assert encoder[0] == "train" and "--teacher" not in encoder and value(encoder, "--out").endswith("35-seed2")
    assert student[:2] == ["distill", value(encoder, "--out")] and value(student, "--teacher") == value(plain, "--out")
    assert two.model.name == "35-seed2-of-two-student"


def test_a_committee_of_two_gans(given, tmp_path):
    cell = Cell("cxr", "student-of-three", "9", 2)
    three = Ours(cell, tmp_path / "data", tmp_path, "cpu64")
    three.train()
    runs = ["image-gan", "9-seed2", "9-seed2-plain", "image-gan-projected", "9-seed2-projected", "9-seed2-of-three-student"]
    assert list(three.seconds) == runs and len(three.commands) == len(given) == 6 and three.model.name == runs[-1]
    _, run, plain, projected, other, student = given
    assert all("networks.d_img=projected" in words for words in (projected, other)) and "networks.d_img=projected" not in run
    assert value(other, "--from").endswith("image-gan-projected-base") and value(run, "--from").endswith("image-gan-base")
    assert student[:2] == ["distill", value(run, "--out")]
    teachers = [student[k + 1] for k, word in enumerate(student) if word == "--teacher"]
    assert teachers == [value(plain, "--out"), value(other, "--out")]
    alone = Ours(replace(cell, method="encoder-projected"), tmp_path / "data", tmp_path, "cpu64")
    alone.train()
    assert len(given) == 6 and alone.model.name == "9-seed2-projected"


def test_an_interrupted_run_goes_on(given, tmp_path):
    cell = Cell("skin", "semanticgan", "40", 0)
    ours = Ours(cell, tmp_path / "data", tmp_path, "cpu64")
    ours.train()
    for name in ("image-gan", "40-seed0"):
        (tmp_path / "skin" / name / "model" / "model.safetensors").unlink()
    (tmp_path / "skin" / "40-seed0.seconds").write_text("1000.0\n")
    ours.train()
    assert given[2:] == [[*words, "--resume"] for words in given[:2]]
    assert 1000 <= ours.seconds["40-seed0"] < 1100 and ours.seconds["image-gan"] < 100  # of both together


def test_a_run_of_other_settings_is_refused(given, tmp_path):
    Ours(Cell("skin", "semanticgan", "40", 0), tmp_path / "data", tmp_path, "cpu64").train()
    with pytest.raises(UserError, match=r"image-gan: got a run of .*--preset cpu64.*expected one of .*--preset cpu128"):
        Ours(Cell("skin", "semanticgan", "40", 0), tmp_path / "data", tmp_path, "cpu128").train()
    assert len(given) == 2


def test_schedules_are_fixed(given, tmp_path):
    for labels in ("40", "all"):
        Ours(Cell("skin", "student", labels, 0), tmp_path / "data", tmp_path, "cpu64").train()
    _, few, student, many, longer = given
    assert all({"run.keep=last", "predict.steps=0"} <= set(words) for words in (few, many)) and "run.keep=last" in student
    assert all("encoder.lr_end=1" in words for words in (few, many))
    # the baselines are shown 16 and 40 kimg: 2.5 times the 24 of E and the 30 of the student
    assert "encoder.kimg=60" in many and "student.kimg=75" in longer
    assert not any("kimg=" in word and not word.startswith("gan.") for word in (*few, *student))


def test_a_command_that_fails_is_said(given, tmp_path, monkeypatch):
    class Failed:
        returncode = 143

    monkeypatch.setattr(accuracy_ours.subprocess, "run", lambda words, **_: Failed)
    with pytest.raises(UserError, match="exit code 143; say the same command again"):
        Ours(Cell("skin", "semanticgan", "40", 0), tmp_path / "data", tmp_path, "cpu64").train()


def test_few_unlabelled_images(given, tmp_path):
    ours = Ours(Cell("skin", "semanticgan", "40", 0, "1000"), tmp_path / "data", tmp_path, "cpu64")
    ours.train()
    assert {value(words, "--unlabeled") for words in given} == {str(tmp_path / "skin" / "unlabeled1000.txt")}
    images = (tmp_path / "skin" / "unlabeled1000.txt").read_text().split()
    assert len(set(images)) == 1000
    assert [value(words, "--out").rpartition("/")[2] for words in given] == ["image-gan-unlabeled1000", "40-seed0-unlabeled1000"]


def test_the_image_gan_knows_no_labels(small_config, small_data, tmp_path):
    """Other label maps, the same networks, bit for bit; D_seg stays as it began, and costs nothing."""
    config = small_config("gan.seg_weight=0", "gan.feature_matching=0")
    assert {"gan.seg_weight=0", "gan.feature_matching=0"} <= set(accuracy_ours.IMAGE_GAN)
    data, _ = small_data
    names = ("G", "G_ema", "D_img", "D_seg")
    states = [{name: copy.deepcopy(new_gan_state(config, 4, 3, "cpu").members[name].state_dict()) for name in names}]
    for k, labels in enumerate((data.labels, np.zeros_like(data.labels))):
        gan = new_gan_state(config, 4, 3, "cpu")
        run = Run(tmp_path / str(k), lambda text: None)
        train_gan(config, LabelSpec.unnamed(4), TrainingData(data.images, data.labeled, labels), gan, run, None, "cpu")
        states.append({name: gan.members[name].state_dict() for name in names})

    def same(first: dict, second: dict) -> bool:
        return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))

    for name, (start, one, other) in {name: [s[name] for s in states] for name in names}.items():
        assert same(one, other), name
        assert same(start, one) == (name == "D_seg"), name


def test_what_is_taken_over_has_a_fresh_d_seg_and_no_encoder(scenes, tmp_path, small_settings):
    """A short run of the command's own stages, then the folder to start from."""
    from semanticgan.training.stages import train

    settings = [s for s in small_settings if not s.startswith("encoder.kimg")] + ["encoder.kimg=0.012", "predict.steps=0"]
    run = tmp_path / "tiny" / "image-gan"
    lists = {name: [str(scenes / f"{name}.txt")] for name in ("labeled", "unlabeled", "val")}
    train(data=scenes, out=run, **lists, preset="tiny32", start_from=None, resume=False, seed=0, hours=None, device="cpu",
          overrides=settings, dry_run=False, say=lambda text: None)  # fmt: skip
    ours = Ours(Cell("skin", "semanticgan", "40", 0), scenes, tmp_path, "tiny32")
    base = ours.without_labels(run)
    assert sorted(path.name for path in (base / "checkpoints").iterdir()) == ["gan-000000000.pt"]
    taken = load_checkpoint(base / "checkpoints" / "gan-000000000.pt")["members"]
    saved = load_checkpoint(sorted((run / "checkpoints").glob("gan-*.pt"))[-1])["members"]
    assert set(taken) == {"G", "G_ema", "D_img", "D_seg"}
    for name in taken:
        same = all(torch.equal(taken[name][key], saved[name][key]) for key in taken[name])
        assert same == (name != "D_seg"), name
    assert ours.without_labels(run) == base
    train(data=scenes, out=tmp_path / "next", **lists, preset="tiny32", start_from=str(base), resume=False, seed=1, hours=None,
          device="cpu", overrides=settings, dry_run=True, say=lambda text: None)  # fmt: skip
