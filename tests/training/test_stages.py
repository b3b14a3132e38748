import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semanticgan.config import InversionConfig, ModelConfig
from semanticgan.data.synthetic import LABELS
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec
from semanticgan.model import SemanticGAN, named_networks
from semanticgan.training import stages
from semanticgan.training.checkpoint import load_checkpoint, save_checkpoint, stage_checkpoints
from semanticgan.training.encoder import EncoderTrainer
from semanticgan.training.gan import GanTrainer, TrainingData, ValidationData
from semanticgan.training.plan import Plan
from semanticgan.training.run import Interrupted, Run, held
from semanticgan.training.stages import train, with_one_object_decided


@pytest.fixture
def call(scenes, small_settings, tmp_path):
    """Call `train` as the command does; returns what was said."""

    def call(**changes):
        said = []
        given = {
            "data": scenes, "out": tmp_path / "run", "labeled": ["labeled.txt"], "unlabeled": [], "val": ["val.txt"],
            "preset": "tiny32", "start_from": None, "resume": False, "seed": None, "hours": None, "device": "cpu",
            "overrides": list(small_settings), "dry_run": False, "say": said.append,
        }  # fmt: skip
        train(**(given | changes))
        return said

    return call


RESUME = {"data": None, "labeled": [], "val": [], "preset": None, "overrides": [], "resume": True}


@pytest.fixture
def exported(monkeypatch):
    """Leave out the choice on validation images and the export; the stages are what counts here."""
    calls = []
    monkeypatch.setattr(stages, "export_model", lambda *args: calls.append(args))
    return calls


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def stats(folder):
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- the plan


def make_plan(scenes, settings, **changes):
    given = {"data": scenes, "labeled": ["labeled.txt"], "unlabeled": [], "val": ["val.txt"], "preset": "tiny32", "seed": 3,
             "hours": None, "start_from": None, "teachers": (), "overrides": list(settings)}  # fmt: skip
    return stages.make_plan(given | changes, "cpu")


def test_a_plan_comes_back_from_its_folder(scenes, small_settings, tmp_path):
    plan = make_plan(scenes, small_settings, hours=2.5)
    plan.write(tmp_path)
    assert Plan.read(tmp_path) == plan
    assert names(tmp_path) == ["config.json", "labeled.txt", "unlabeled.txt", "val.txt"]
    assert len(plan.sources.labeled) == 8 and len(plan.sources.val) == 4 and len(plan.sources.unlabeled) == 32
    assert plan.config.data.channels == 3 and plan.config.run.seed == 3 and plan.labels.names[1] == "cell"


def test_names_with_odd_characters_come_back(scenes, small_settings, tmp_path):
    from dataclasses import replace

    plan = make_plan(scenes, small_settings)
    odd = ("images/a\u2028b.png", "images/c\x85d.png", "images/\udcff.png", "images/ e .png")
    plan = replace(plan, sources=replace(plan.sources, unlabeled=odd))
    plan.write(tmp_path)
    assert Plan.read(tmp_path).sources.unlabeled == odd


def test_auto_says_what_it_chose(scenes, small_settings):
    plan = make_plan(scenes, small_settings, preset=None)
    assert plan.config.preset == "tiny32" and "preset: tiny32, for images of 16 px on cpu" in plan.sources.notes
    assert any("symmetry" in note for note in plan.sources.notes) and "images: colour" in plan.sources.notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "--data: missing"),
        ({"data": "nothing"}, "no such folder"),
        ({"hours": -1.0}, "--hours -1.0: expected more than 0"),
        ({"preset": "huge"}, "--preset huge: no such preset"),
        ({"overrides": ["gan.batch=64"]}, "got 32 training images, expected at least a batch of 64"),
        ({"overrides": ["gan.nothing=1"]}, "no field 'nothing' in gan"),
        ({"labeled": ["unlabeled.txt"]}, "has no mask"),
        ({"val": ["nothing.txt"]}, "nothing.txt: no such file"),
        ({"start_from": "nothing"}, "no such model"),
        ({"teachers": ["nothing"]}, "no such model"),
        ({"teachers": ["m"], "overrides": ["encoder.pseudo=0"]}, "--teacher m: got encoder.pseudo=0, with which"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_what_cannot_work_is_refused_before_anything_is_written(call, tmp_path, monkeypatch, changes, message, dry_run):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    if isinstance(changes.get("data"), str):
        changes = {"data": Path(changes["data"])}
    with pytest.raises(UserError, match=message):
        call(dry_run=dry_run, **changes)
    assert names(tmp_path) == []


def test_a_dry_run_writes_nothing_and_says_what_would_be_done(call, tmp_path):
    said = call(dry_run=True, hours=1.0)
    assert names(tmp_path) == [] and said[-1] == "dry run: nothing was written"
    text = "\n".join(said)
    for part in (
        "32 training images, 8 of them labelled, 4 for validation",
        "preset tiny32: 16 px, batch 8",
        "G 0.",
        "55% of 1.0 h",
    ):
        assert part in text


def test_a_folder_that_is_not_empty(call, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"run: is not empty; name a new folder, or go on with --resume"):
        call()
    assert names(tmp_path / "run") == ["notes.txt"]


def test_a_class_that_is_never_labelled(call, scenes, tmp_path):
    root = tmp_path / "data"
    for k in range(10):
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 20 * k, np.uint8)).save(root / "images" / f"{k}.png")
        Image.fromarray(np.full((16, 16), k % 2, np.uint8)).save(root / "masks" / f"{k}.png")
    classes = [{"name": "background"}, {"name": "cat"}, {"name": "unicorn"}]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    with pytest.raises(UserError, match="unicorn"):
        call(data=root, labeled=[], val=[])
    assert names(tmp_path) == ["data"]


def test_a_class_that_is_lost_at_the_models_resolution():
    labels = LabelSpec.unnamed(3)
    with pytest.raises(UserError, match=r"class class_1, class_2 has no pixel in the labelled training images at 4 px"):
        stages.require_all_classes(Path("data"), labels, np.array([0, 255], np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2))
    stages.require_all_classes(Path("data"), labels, np.arange(3, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2))


# ---------------------------------------------------------------- resume


@pytest.fixture
def planned(scenes, small_settings, tmp_path):
    """A run folder in which nothing was trained yet."""
    (tmp_path / "run").mkdir()
    make_plan(scenes, small_settings).write(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "cpu64"}, "--preset: got cpu64, the run has tiny32"),
        ({"overrides": ["gan.kimg=5"]}, "--set gan.kimg: got 5.0, the run has 0.064"),
        ({"seed": 4}, "--seed: got 4, the run has 3"),
        ({"hours": 2.0}, "--hours: got 2.0, the run has None"),
        ({"data": Path("/")}, "--data: got /, the run has"),
        ({"start_from": "x"}, "--from: got x, the run has None"),
        ({"teachers": ["x"]}, "--teacher: got x, the run has none"),
        ({"labeled": ["val.txt"]}, "--labeled: got other images"),
    ],
)
def test_resume_with_another_config_names_the_fields(call, planned, changes, message):
    with pytest.raises(UserError) as caught:
        call(**(RESUME | changes))
    assert message in str(caught.value) and "with --resume give --out alone, or start a new run" in str(caught.value)


def test_resume_with_several_differences_lists_them_all(call, planned):
    with pytest.raises(UserError) as caught:
        call(**(RESUME | {"seed": 9, "hours": 1.0, "overrides": ["gan.batch=4"]}))
    assert len(str(caught.value).splitlines()) == 3


def test_resume_may_repeat_what_the_run_has(call, planned, scenes, small_settings, monkeypatch):
    monkeypatch.chdir(scenes)
    same = {"preset": "tiny32", "seed": 3, "data": Path("../") / scenes.name, "overrides": list(small_settings)}
    same |= {"labeled": ["labeled.txt"], "val": ["val.txt"], "dry_run": True}
    assert call(**(RESUME | same))[-1] == "dry run: nothing was written"


def test_resume_may_repeat_a_setting_that_needs_others_of_the_run(call, planned):
    """As in a run that went on from another one: the preset alone, without its other settings, could not take this one."""
    content = json.loads((planned / "config.json").read_text())
    content["config"]["data"]["resolution"] = 64
    content["config"]["networks"]["widths"] = dict.fromkeys((4, 8, 16, 32, 64), 8)
    (planned / "config.json").write_text(json.dumps(content))
    assert call(**(RESUME | {"overrides": ["data.resolution=64"], "dry_run": True}))[-1] == "dry run: nothing was written"


def test_resume_beside_another_process_leaves_the_run_alone(call, planned, tmp_path):
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with held(tmp_path / "run", new=False), pytest.raises(UserError, match="another process trains in this run"):
        call(**RESUME)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"config": {"gan": {"kimg": -1}}}', "[" * 100_000])
def test_resume_of_what_is_no_run(call, tmp_path, content):
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "config.json").write_text(content)
        for name in ("labeled", "unlabeled", "val"):
            (tmp_path / "run" / f"{name}.txt").touch()
    with pytest.raises(UserError, match="--resume needs a run folder") as caught:
        call(**RESUME)
    assert len(str(caught.value).splitlines()) == 1


def test_resume_of_a_run_whose_list_was_emptied_is_one_line(call, planned):
    (planned / "val.txt").write_text("")
    with pytest.raises(UserError, match=r"val\.txt names no image") as caught:
        call(**RESUME)
    assert len(str(caught.value).splitlines()) == 1


def test_resume_of_a_foreign_setting_is_one_line(call, planned):
    content = json.loads((planned / "config.json").read_text())
    content["config"]["gan"]["kimg"] = -1
    (planned / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        call(**RESUME)
    assert "kimg" in str(caught.value) and len(str(caught.value).splitlines()) == 1


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def whole(scenes, small_settings, tmp_path_factory):
    """A run of both stages, without its export."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "export_model", lambda *args: None)
        train(data=scenes, out=folder, labeled=["labeled.txt"], unlabeled=[], val=["val.txt"], preset="tiny32", start_from=None,
              resume=False, seed=None, hours=None, device="cpu", overrides=list(small_settings), dry_run=False,
              say=lambda text: None)  # fmt: skip
    return folder


def compare(folder, whole, assert_same):
    for name in ("gan-000000064.pt", "encoder-000000048.pt", "encoder-best.pt"):
        a, b = (load_checkpoint(run / "checkpoints" / name) for run in (folder, whole))
        assert_same(a, b, but=("seconds",))
    ticks = [[(s["stage"], s["kimg"]) for s in stats(run)] for run in (folder, whole)]
    assert ticks[0] == ticks[1]


def test_what_a_run_leaves(whole):
    assert names(whole) == [
        "checkpoints",
        "config.json",
        "labeled.txt",
        "log.txt",
        "report.html",
        "samples",
        "stats.jsonl",
        "unlabeled.txt",
        "val.txt",
    ]
    ticks = [("gan", 0.024), ("gan", 0.048), ("gan", 0.064), ("encoder", 0.024), ("encoder", 0.048)]
    assert [(s["stage"], s["kimg"]) for s in stats(whole)] == ticks
    assert names(whole / "checkpoints") == ["encoder-000000024.pt", "encoder-000000048.pt", "encoder-best.pt",
                                            "gan-000000048.pt", "gan-000000064.pt"]  # fmt: skip
    config = json.loads((whole / "config.json").read_text())
    assert config["config"]["preset"] == "tiny32" and {"torch", "python", "semanticgan"} <= config["versions"].keys()


@pytest.mark.parametrize("stop", [16, 40])
def test_a_stopped_run_goes_on_and_equals_one_run(call, exported, whole, tmp_path, monkeypatch, assert_same, stop):
    draw = GanTrainer.draw

    def draw_and_stop(self, nimg):
        if nimg == stop:
            signal.raise_signal(signal.SIGTERM)
        return draw(self, nimg)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(GanTrainer, "draw", draw_and_stop)
        call()
    assert "go on with: semanticgan train --out" in (tmp_path / "run" / "log.txt").read_text()
    assert exported == []
    call(**RESUME)
    compare(tmp_path / "run", whole, assert_same)
    assert len(exported) == 1


def test_a_run_killed_before_its_first_checkpoint(call, exported, whole, tmp_path, monkeypatch, assert_same):
    """It starts again, and no line of its statistics stands there twice."""

    class Killed(BaseException):
        pass

    def kill(*args):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("semanticgan.training.run.save_stage", kill)
        call()
    assert len(stats(tmp_path / "run")) == 1 and not stage_checkpoints(tmp_path / "run", "gan")
    call(**RESUME)
    compare(tmp_path / "run", whole, assert_same)


def copy_of(whole, folder):
    import shutil

    shutil.copytree(whole, folder)
    return folder


def test_a_finished_run_only_exports_again(call, exported, whole, tmp_path):
    copy_of(whole, tmp_path / "run")
    before = (tmp_path / "run" / "stats.jsonl").read_text()
    call(**RESUME)
    assert (tmp_path / "run" / "stats.jsonl").read_text() == before and len(exported) == 1


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(call, exported, whole, tmp_path, assert_same):
    folder = copy_of(whole, tmp_path / "run")
    newest = folder / "checkpoints" / "encoder-000000048.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    said = call(**RESUME)
    assert any("encoder-000000048.pt: cannot be read as a checkpoint" in line for line in said)
    compare(folder, whole, assert_same)


def test_an_encoder_does_not_go_on_with_another_g(call, exported, whole, tmp_path):
    folder = copy_of(whole, tmp_path / "run")
    (folder / "checkpoints" / "gan-000000064.pt").write_bytes(b"")
    with pytest.raises(UserError, match="the last GAN checkpoint, on which the encoder was trained, is missing or damaged"):
        call(**RESUME)
    assert exported == []


def test_a_checkpoint_of_something_else_is_refused(call, exported, whole, tmp_path):
    folder = copy_of(whole, tmp_path / "run")
    torch.save({"members": {}, "numbers": {}}, folder / "checkpoints" / "gan-000000064.pt")
    with pytest.raises(UserError, match=r"gan-000000064\.pt: is no checkpoint of this run"):
        call(**RESUME)


def test_a_full_disk_is_one_line(call, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("semanticgan.training.run.Run.add_stats", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left on device.*make room"):
        call()


def test_hours_are_shared_and_end_at_a_tick(call, exported, small_settings, tmp_path):
    call(hours=3.0 / 3600, overrides=["run.gan_fraction=0.6", *small_settings])
    spent = {s["stage"]: (s["kimg"], s["seconds"]) for s in stats(tmp_path / "run")}
    for name, share, tick in (("gan", 0.6, 0.024), ("encoder", 0.4, 0.024)):
        kimg, seconds = spent[name]
        assert kimg / tick == pytest.approx(round(kimg / tick)) and seconds >= round(3 * share, 1)
        earlier = [s["seconds"] for s in stats(tmp_path / "run") if s["stage"] == name][:-1]
        assert all(s <= 3 * share + 0.05 for s in earlier)  # it ended at the first tick after its share


def test_a_run_may_start_from_another(call, exported, whole, tmp_path):
    said = call(start_from=str(whole), seed=1)
    assert any("G, G_ema, D_img, D_seg, E" in line for line in said)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["start_from"] == str(whole)


def test_a_run_goes_on_with_the_settings_and_validation_images_of_the_other(scenes, whole, small_settings):
    before = Plan.read(whole)
    plan = make_plan(scenes, (), preset=None, seed=None, labeled=[], val=[], start_from=str(whole))
    assert plan.config == before.config and plan.sources.val == before.sources.val
    assert f"settings: those of {whole}" in plan.sources.notes
    changed = make_plan(scenes, ["gan.kimg=7"], preset=None, labeled=[], val=["labeled.txt"], start_from=str(whole))
    assert changed.config.gan.kimg == 7 and changed.config.networks == before.config.networks and changed.config.run.seed == 3
    assert any("validation images taught" in note and "scores will flatter" in note for note in changed.sources.notes)
    named = make_plan(scenes, [*small_settings, "data.symmetry=none"], start_from=str(whole))
    assert any(note.startswith("warning: data.symmetry is none, that of") for note in named.sources.notes)


def test_a_run_goes_on_with_the_sizes_of_a_model(scenes, whole, tmp_path):
    before = Plan.read(whole)
    described = ModelConfig(labels=before.labels, data=before.config.data, networks=before.config.networks,
                            inversion=InversionConfig(), has_encoder=False)  # fmt: skip
    SemanticGAN(described, named_networks(described)["G"]).save(tmp_path / "model", "# card\n")
    plan = make_plan(scenes, ["gan.batch=8"], preset=None, start_from=str(tmp_path / "model"))
    assert plan.config.networks == before.config.networks and plan.config.data == before.config.data
    assert any(note.startswith("settings: preset tiny32, data and networks of") for note in plan.sources.notes)


def test_another_folder_has_validation_images_of_its_own(scenes, whole, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    for kind in ("images", "masks"):
        (elsewhere / kind).mkdir(parents=True)
        for path in sorted((scenes / kind).rglob("*.png"))[:16]:
            (elsewhere / kind / f"new_{path.name}").write_bytes(path.read_bytes())
    plan = make_plan(elsewhere, (), preset=None, labeled=[], val=[], start_from=str(whole))
    assert any(note.startswith("validation: no --val, so") for note in plan.sources.notes)


def test_a_run_may_be_taught_by_a_model_and_remembers_it(call, exported, whole, tmp_path, monkeypatch):
    plan = Plan.read(whole)
    described = ModelConfig(kind="student", labels=plan.labels, data=plan.config.data, trunk="none", widths=(8, 16), teacher="x")
    SemanticGAN(described, None, S=named_networks(described)["S"]).save(tmp_path / "student", "# student\n")
    name = str(tmp_path / "student")
    monkeypatch.setattr(EncoderTrainer, "guess", None)  # E's own label maps are not asked for
    call(teachers=[name])
    assert exported[0][-1] == [f"The encoder learnt label maps of the unlabelled images from `{name}`."]
    assert Plan.read(tmp_path / "run").teachers == (name,)
    call(**RESUME)
    assert len(exported) == 2
    assert f"label maps by</th><td>{name}</td>" in (tmp_path / "run" / "report.html").read_text()


def test_another_size_to_start_from_is_refused_before_anything_is_written(call, whole, tmp_path, small_settings):
    with pytest.raises(UserError, match=r"--from .*: G\.mapping.*: got .*, expected"):
        call(start_from=str(whole), overrides=[*small_settings, "networks.w_dim=24"])
    assert names(tmp_path) == []


def test_a_started_run_goes_on_without_its_source_once_the_encoder_trains(call, exported, whole, tmp_path):
    folder = copy_of(whole, tmp_path / "run")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"start_from": "/gone"}))
    call(**RESUME)
    assert len(exported) == 1


# ---------------------------------------------------------------- the command, killed


def command(scenes, out, *more):
    arguments = ["train", "--data", scenes, "--out", out, "--labeled", "labeled.txt", "--val", "val.txt", "--preset", "tiny32"]
    return [sys.executable, "-m", "semanticgan", *map(str, arguments), *more]


LONGER = ("gan.kimg=0.16", "encoder.kimg=0.096", "predict.steps=0", "predict.zoom=false")


@pytest.fixture(scope="module")
def whole_command(scenes, small_settings, tmp_path_factory):
    """The command line, and the folder of a run of it that nobody stopped."""
    settings = [part for text in (*small_settings, *LONGER) for part in ("--set", text)]
    folder = tmp_path_factory.mktemp("command") / "run"
    subprocess.run(command(scenes, folder, *settings), check=True, capture_output=True)
    return settings, folder


def kill_after_a_tick(start, stage, signum):
    """Run a command and send a signal a moment after the stage's first tick; returns exit code and what was said then."""
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout:
                if line.startswith(f"{stage} 0."):
                    time.sleep(0.1)
                    break
            process.send_signal(signum)
            rest = process.stdout.read()
            return process.wait(60), rest
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("signals", [(signal.SIGKILL, signal.SIGTERM), (signal.SIGTERM, signal.SIGKILL)])
def test_a_killed_command_goes_on_and_equals_one_run(scenes, whole_command, tmp_path, assert_same, signals):
    """Killed once in each stage, between checkpoints; compared by its last checkpoints and its exported model."""
    settings, whole = whole_command
    out = tmp_path / "run"
    start, resume = command(scenes, out, *settings), [sys.executable, "-m", "semanticgan", "train", "--out", str(out), "--resume"]
    for stage, signum in zip(("gan", "encoder"), signals, strict=True):
        code, rest = kill_after_a_tick(start, stage, signum)
        assert code == -signal.SIGKILL if signum == signal.SIGKILL else code != 0 and "--resume" in rest
        assert "Traceback" not in rest and not (out / "model").exists()
        start = resume
    subprocess.run(resume, check=True, capture_output=True)
    for name in ("gan-000000160.pt", "encoder-000000096.pt", "encoder-best.pt"):
        a, b = (load_checkpoint(run / "checkpoints" / name) for run in (out, whole))
        assert_same(a, b, but=("seconds",))
    assert [s["kimg"] for s in stats(out)] == [s["kimg"] for s in stats(whole)]
    for name in ("model.safetensors", "config.json"):
        a, b = ((run / "model" / name).read_bytes() for run in (out, whole))
        assert a == b


def test_the_averages_are_exported_and_the_encoder_that_scored_best(call, exported, whole, tmp_path, assert_same):
    """With what was decided by the masks."""
    folder = copy_of(whole, tmp_path / "run") / "checkpoints"
    best = load_checkpoint(folder / "encoder-best.pt")
    best["E"]["rows.bias"] += 1  # so that it is no other one
    save_checkpoint(folder / "encoder-best.pt", best)
    call(**RESUME)
    ((_, config, _, _, G, E, *_),) = exported
    gan = load_checkpoint(folder / "gan-000000064.pt")["members"]
    assert_same(dict(G.state_dict()), dict(gan["G_ema"]))
    assert_same(dict(E.state_dict()), dict(best["E"]))
    assert config.predict.one_object is False  # no longer open
    encoder = load_checkpoint(folder / "encoder-000000048.pt")["members"]
    for name in ("E", "E_ema"):  # they began at the mean of the G that they explain
        assert torch.equal(encoder[name]["w_avg"], gan["G_ema"]["mapping.w_avg"]) and encoder[name]["w_avg"].any()


def test_whether_there_is_one_object_is_read_off_the_masks(small_config, tmp_path):
    images, one = np.zeros((3, 16, 16, 3), np.uint8), np.zeros((3, 16, 16), np.uint8)
    one[:, 3:9, 3:9] = 1
    two = one.copy()
    two[:, 12:15, 12:15] = 1
    binary = LABELS.model_copy(update={"names": LABELS.names[:2], "palette": LABELS.palette[:2]})
    run = Run(tmp_path, say=lambda text: None)

    def decided(masks, val, setting="null", labels=binary):
        config, data = small_config(f"predict.one_object={setting}"), TrainingData(images, images, masks)
        return with_one_object_decided(config, labels, data, ValidationData(images, val), run).predict.one_object

    assert decided(one, one) and not decided(one, two) and not decided(two, one)
    assert not decided(one, one, "false") and decided(two, two, "true")
    with pytest.raises(UserError, match=r"predict\.one_object: got true for 4 classes"):
        decided(one, one, "true", LABELS)


def test_whether_the_object_is_convex_is_read_off_the_masks(small_config, tmp_path):
    images, square = np.zeros((3, 16, 16, 3), np.uint8), np.zeros((3, 16, 16), np.uint8)
    square[:, 3:11, 3:11] = 1
    bitten = square.copy()
    bitten[:, 5:9, 5:11] = 0
    binary = LABELS.model_copy(update={"names": LABELS.names[:2], "palette": LABELS.palette[:2]})
    run = Run(tmp_path, say=lambda text: None)

    def decided(masks, *settings):
        config, data = small_config(*settings), TrainingData(images, images, masks)
        return with_one_object_decided(config, binary, data, ValidationData(images[:0], masks[:0]), run).predict.convex

    assert decided(square) and not decided(bitten)
    assert not decided(square, "predict.one_object=false") and not decided(square, "predict.convex=false")
    assert decided(bitten, "predict.convex=true")
    with pytest.raises(UserError, match=r"predict\.convex: got true, but there is not one object"):
        decided(bitten, "predict.one_object=false", "predict.convex=true")
