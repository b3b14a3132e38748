"""The command `distill`, and what the other verbs make of a student."""

import json

import pytest
import torch
from small_scenes import add_pair

from semanticgan.config import DataConfig, ModelConfig
from semanticgan.labels import LabelSpec
from semanticgan.model import SemanticGAN, named_networks
from semanticgan.training import distill as distillation
from semanticgan.training.run import Interrupted


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A 16 px student with random weights."""
    config = ModelConfig(
        kind="student", labels=LabelSpec(names=("background", "blob"), palette=((0, 0, 0), (230, 159, 0))),
        data=DataConfig(resolution=16, channels=3), widths=(8, 16), teacher="runs/first", views=False,
        versions={"semanticgan": "0.1.0"},
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "student"
    SemanticGAN(config, None, S=named_networks(config)["S"]).save(folder, "# student\n")
    return folder


def test_options_arrive(command, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(distillation, "distill", lambda **given: seen.update(given))
    done = command("distill", "runs/first", "--teacher", "e", "--data", tmp_path, "--labeled", "a", "--unlabeled", "b",
                   "--unlabeled", "c", "--val", "d", "--kimg", "3", "--hours", "0.5", "--seed", "4", "--device", "cpu",
                   "--set", "student.texture=0", "--out", tmp_path / "out")  # fmt: skip
    assert (done.code, done.errors) == (0, [])
    assert seen.pop("say")("x") is None
    assert seen == {
        "model": "runs/first", "teachers": ["e"], "data": tmp_path, "labeled": ["a"], "unlabeled": ["b", "c"], "val": ["d"],
        "kimg": 3.0, "hours": 0.5, "seed": 4, "device": "cpu", "overrides": ["student.texture=0"],
        "out": tmp_path / "out", "resume": False,
    }  # fmt: skip


def test_a_signal_is_the_exit_code(command, monkeypatch, tmp_path):
    def interrupted(**_):
        raise Interrupted(15)

    monkeypatch.setattr(distillation, "distill", interrupted)
    assert command("distill", "m", "--data", tmp_path, "--out", tmp_path / "out").code == 143


@pytest.mark.parametrize("args", [["--kimg", "0"], ["--hours", "x"], ["--seed", "-1"], ["--device", "cuda:77"]])
def test_bad_values_are_refused(refused, tmp_path, args):
    assert args[1] in refused("distill", "m", "--data", tmp_path, "--out", tmp_path / "out", *args)


def test_segment_and_evaluate(command, student, data, tmp_path):
    done = command("segment", student, data / "images", "--out", tmp_path / "found")
    assert (done.code, done.errors) == (0, []) and "reconstructions" not in done.out
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == ["masks", "overlays", "summary.json"]
    rows = json.loads((tmp_path / "found" / "summary.json").read_text())["images"]
    assert len(rows) == 20 and all(row["distance"] is None and row["distance_rank"] is None for row in rows)
    labelled = tmp_path / "list.txt"
    labelled.write_text("".join(f"images/{k:02d}.png\n" for k in range(8)))
    done = command("evaluate", student, "--data", data, "--list", labelled, "--json", tmp_path / "s.json",
                   "--report", tmp_path / "s.html")  # fmt: skip
    assert (done.code, done.errors) == (0, []) and "8 images" in done.out
    assert "Does the distance warn" not in (tmp_path / "s.html").read_text()


def test_info(command, student):
    done = command("info", student)
    assert done.code == 0
    for words in ("student of: runs/first", "networks: S 0.0", "segments with: the U-Net, ", f"semanticgan segment {student}"):
        assert words in done.out, done.out
    assert "--steps" not in done.out


def test_info_on_a_run(command, tmp_path):
    from semanticgan.config import STUDENT, build_config

    config = build_config("cpu64").model_copy(update={"preset": STUDENT}).model_dump(mode="json")
    plan = {"command": "semanticgan distill runs/first", "data": "d", "hours": None, "start_from": "/runs/first",
            "labels": {"names": ["a", "b"]}, "config": config}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(plan))
    for name in ("labeled", "unlabeled", "val"):
        (tmp_path / f"{name}.txt").write_text("x\n")
    done = command("info", tmp_path)
    assert "length student 30 kimg" in done.out
    assert f"not finished; go on with: semanticgan distill /runs/first --out {tmp_path} --resume" in done.out


@pytest.mark.parametrize(
    "args",
    [
        ["sample", "MODEL", "--num", "2", "--out", "OUT"],
        ["segment", "MODEL", "DATA/images", "--steps", "3", "--out", "OUT"],
        ["evaluate", "MODEL", "--data", "DATA", "--list", "DATA/images/", "--steps", "3"],
        ["plot", "interpolation", "MODEL", "DATA/images/00.png", "DATA/images/01.png", "--out", "OUT.gif"],
        ["plot", "inversion", "MODEL", "DATA/images/00.png", "--out", "OUT.png"],
        ["suggest", "MODEL", "--data", "DATA"],
    ],
)
def test_what_needs_g_is_refused(refused, student, tmp_path, args):
    for k in range(3):
        add_pair(tmp_path / "data", f"{k:02d}", k, masked=k < 2)
    add_pair(tmp_path / "data", "02", 2, masked=args[0] == "evaluate")
    places = {"MODEL": str(student), "DATA": str(tmp_path / "data"), "OUT": str(tmp_path / "out")}
    for name, path in places.items():
        args = [arg.replace(name, path) for arg in args]
    text = refused(*args)
    assert "student" in text and "teacher" in text, text
    assert not (tmp_path / "out").exists() or not any(p.is_file() for p in (tmp_path / "out").rglob("*"))
