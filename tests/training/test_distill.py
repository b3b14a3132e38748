"""`distill` from the command line's arguments to the exported student."""

import json
import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from semanticgan.data.sources import Sources
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec
from semanticgan.model import SemanticGAN
from semanticgan.scores import Scores
from semanticgan.training import distill as module
from semanticgan.training.checkpoint import load_checkpoint, stage_checkpoints
from semanticgan.training.distill import choose_settings, distill
from semanticgan.training.plan import Plan
from semanticgan.training.run import Interrupted, Run
from semanticgan.training.stages import train
from semanticgan.training.student import StudentTrainer, new_student_state

SETTINGS = ["student.batch=12", "student.widths=[8, 16]", "run.tick_kimg=0.024",
            "run.checkpoint_minutes=0", "predict.zoom=false"]  # fmt: skip


@pytest.fixture(scope="module")
def teacher(scenes, small_settings, tmp_path_factory):
    """A run of `train` with discriminators, encoder and model."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    train(
        data=scenes, out=out, labeled=["labeled.txt"], unlabeled=[], val=["val.txt"], preset="tiny32", start_from=None,
        resume=False, seed=None, hours=None, device="cpu",
        overrides=[*small_settings, "predict.steps=0", "predict.zoom=false"], dry_run=False, say=lambda text: None,
    )  # fmt: skip
    return out


@pytest.fixture
def call(teacher, scenes, tmp_path):
    """Call `distill` as the command does; returns what was said."""

    def call(**changes):
        said = []
        given = {
            "model": str(teacher), "teachers": [], "data": scenes, "out": tmp_path / "student", "labeled": ["labeled.txt"],
            "unlabeled": [], "val": ["val.txt"], "kimg": 0.072, "seed": None, "hours": None, "device": "cpu",
            "overrides": SETTINGS, "resume": False, "say": said.append,
        }  # fmt: skip
        distill(**(given | changes))
        return said

    return call


RESUME = {"data": None, "labeled": [], "val": [], "kimg": None, "overrides": [], "resume": True}


@pytest.mark.parametrize(("setting", "expected"), [(None, True), ("predict.one_object=false", False)])
def test_one_object_is_the_teachers_unless_said(teacher, setting, expected):
    source = SemanticGAN.load(teacher).configured(one_object=True, convex=True, labels=LabelSpec.unnamed(2))
    overrides = [*SETTINGS, *([setting] if setting else [])]
    predict = module.student_config(source, overrides, None).predict
    assert predict.one_object is predict.convex is expected


@pytest.mark.parametrize(("trunk", "expected"), [("none", 5), ("efficientnet-lite0", 3)])
def test_the_usual_widths_are_as_many_as_fit(teacher, trunk, expected):
    config = module.student_config(SemanticGAN.load(teacher), [f"student.trunk={trunk}"], None)  # at 16 px
    assert config.student.widths == (24, 32, 64, 96, 128)[:expected]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_from_a_run_to_a_student(call, teacher, scenes, tmp_path):
    said = call()
    out = tmp_path / "student"
    assert "gan-000000064.pt has D_img and D_seg; samples are filtered by D_img and D_seg" in said
    assert "1 teacher labels 32 images" in said
    assert names(out / "model") == ["README.md", "config.json", "model.safetensors"]
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["kimg"]) for line in lines] == [("student", 0.024), ("student", 0.048), ("student", 0.072)]
    assert all({"loss", "labeled", "pseudo", "samples", "val_iou", "images_per_second"} <= line.keys() for line in lines)

    tensors = load_file(out / "model" / "model.safetensors")
    assert all(name.startswith("S.") and value.dtype == torch.float16 for name, value in tensors.items())
    model, source = SemanticGAN.load(out), SemanticGAN.load(teacher)
    config = json.loads((out / "model" / "config.json").read_text())
    assert (config["kind"], config["teacher"], config["widths"]) == ("student", str(teacher), [8, 16])
    assert not {"networks", "inversion", "has_encoder", "steps"} & config.keys()
    assert model.config.data == source.config.data and model.labels == source.labels

    scores = Scores.read(out / "validation.json")
    assert scores.num_images == 4 and all(case.distance is None for case in scores.cases)
    card = ModelCard((out / "model" / "README.md").read_text())
    assert card.data.pipeline_tag == "image-segmentation"
    for words in ("# SemanticGAN student", str(teacher), "D_img and D_seg", "were a source", "8 labelled and 32 unlabelled"):
        assert words in card.text
    assert "steps of inversion" not in card.text
    report = (out / "report.html").read_text()
    assert "The student, a U-Net" in report and "0.072 thousand images" in report


def test_a_model_folder_has_no_discriminators_and_says_so(call, teacher, tmp_path):
    said = call(model=str(teacher / "model"), overrides=[*SETTINGS, "student.pseudo=0"], kimg=0.024)
    assert any("has no discriminators" in line and "the sharpness of their label maps" in line for line in said)
    assert any(line.startswith("student: 8 labelled images, sources labeled, samples") for line in said)
    assert "sharpness of their label maps" in (tmp_path / "student" / "model" / "README.md").read_text()


def test_a_student_can_be_a_second_teacher(call, teacher, tmp_path):
    call(overrides=[*SETTINGS, "student.pseudo=0", "student.samples=0"], kimg=0.024, out=tmp_path / "plain")
    plain, out = str(tmp_path / "plain"), tmp_path / "student"
    everything = [*SETTINGS, "student.pseudo_threshold=0"]
    said = call(teachers=[plain], overrides=everything)
    assert "2 teachers label 32 images" in said
    assert f"those of the teacher and `{plain}`, averaged." in (out / "model" / "README.md").read_text()
    taught = np.load(out / "checkpoints" / "teacher_labels.npy")
    call(out=tmp_path / "alone", overrides=everything)
    assert not np.array_equal(taught, np.load(tmp_path / "alone" / "checkpoints" / "teacher_labels.npy"))
    call(**RESUME)  # it is remembered
    call(**RESUME | {"teachers": [plain]})
    with pytest.raises(
        UserError, match=r"--teacher: got other, .*plain, the run has .*plain; with --resume give MODEL and --out alone"
    ):
        call(**RESUME | {"teachers": ["other", plain]})


def test_without_an_encoder_the_others_label(call, teacher, tmp_path):
    call(overrides=[*SETTINGS, "student.pseudo=0", "student.samples=0"], kimg=0.024, out=tmp_path / "plain")
    source = SemanticGAN.load(teacher)
    SemanticGAN(source.config.model_copy(update={"has_encoder": False, "steps": 1}), source.G).save(tmp_path / "G", "# G\n")
    said = call(model=str(tmp_path / "G"), teachers=[str(tmp_path / "plain")], kimg=0.024)
    assert "1 teacher labels 32 images" in said and any("sources labeled, pseudo, samples" in line for line in said)
    card = (tmp_path / "student" / "model" / "README.md").read_text()
    assert f"those of `{tmp_path / 'plain'}`." in card and "ImageNet" in card  # its own way down
    with pytest.raises(UserError, match="got a model without an encoder, expected one with it, or a student"):
        call(teachers=[str(tmp_path / "G")], out=tmp_path / "other")


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("data", {"symmetry": "none"}, "got images 16 px, colour, fit squash, symmetry none; expected the run's, 16 px, colour"),
        ("labels", {"names": ("a", "b", "c", "d")}, "got classes a, b, c, d; expected the run's, "),
    ],
)
def test_other_questions_than_the_models_are_refused(call, teacher, tmp_path, section, changes, message):
    source = SemanticGAN.load(teacher)
    changed = getattr(source.config, section).model_copy(update=changes)
    source.configured(**{section: changed}).save(tmp_path / "other", "# other\n")
    with pytest.raises(UserError, match=message):
        call(teachers=[str(tmp_path / "other")])
    assert names(tmp_path) == ["other"]


def test_a_resumed_run_is_the_run(call, tmp_path, monkeypatch, assert_same):
    call(out=tmp_path / "whole")
    update = StudentTrainer.update

    def signalled(self, nimg, progress):
        if nimg == 36:
            signal.raise_signal(signal.SIGINT)
        return update(self, nimg, progress)

    monkeypatch.setattr(StudentTrainer, "update", signalled)
    with pytest.raises(Interrupted):
        call()
    monkeypatch.setattr(StudentTrainer, "update", update)
    out = tmp_path / "student"
    assert not (out / "model").exists() and stage_checkpoints(out, "student")[-1].name == "student-000000048.pt"
    monkeypatch.setattr(module, "teacher_labels", None)  # need not be asked again
    said = call(**RESUME)
    assert any(line.startswith("student: goes on from student-000000048.pt") for line in said)
    ends = [load_checkpoint(stage_checkpoints(folder, "student")[-1]) for folder in (tmp_path / "whole", out)]
    assert_same(*ends, but=("seconds",))
    models = [(folder / "model" / "model.safetensors").read_bytes() for folder in (tmp_path / "whole", out)]
    assert models[0] == models[1]


@pytest.mark.parametrize("torn", [False, True])
def test_a_teacher_that_was_interrupted_is_asked_for_the_rest(teacher, small_config, small_data, tmp_path, monkeypatch, torn):
    model, images, said, asked = SemanticGAN.load(teacher), small_data[0].images, [], []
    runs = [Run(tmp_path / name, said.append) for name in ("whole", "parts")]
    whole, teacher_labels = np.array(module.ask_teachers([model], images, small_config(), runs[0])), module.teacher_labels

    def counted(model, images, threshold):
        asked.append(len(images))
        for n, label in enumerate(teacher_labels(model, images, threshold)):
            if n == 5 and len(asked) == 1:
                raise KeyboardInterrupt
            yield label

    monkeypatch.setattr(module, "teacher_labels", counted)
    with pytest.raises(KeyboardInterrupt):
        module.ask_teachers([model], images, small_config(), runs[1])
    path = tmp_path / "parts" / "checkpoints" / "teacher_labels.npy"
    if torn:  # killed within a map
        np.load(path, mmap_mode="r+")[4, -1] = module.UNASKED
    assert np.array_equal(module.ask_teachers([model], images, small_config(), runs[1]), whole)
    assert asked == [len(images), len(images) - (4 if torn else 5)] and np.array_equal(np.load(path), whole)


def test_damaged_answers_of_the_teacher_are_asked_for_again(teacher, small_config, small_data, tmp_path):
    model, images, said = SemanticGAN.load(teacher), small_data[0].images, []
    ask = partial(module.ask_teachers, [model], images, small_config(), Run(tmp_path, said.append))
    path = tmp_path / "checkpoints" / "teacher_labels.npy"
    first = np.array(ask())  # a copy: the file is about to be damaged
    assert np.array_equal(ask(), first) and np.array_equal(np.load(path), first) and len(said) == 1
    for damaged in (path.read_bytes()[:200], b"", b"not numpy's"):
        path.write_bytes(damaged)
        assert np.array_equal(ask(), first) and np.array_equal(np.load(path), first)
    assert len(said) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "--data: missing"),
        ({"model": "nothing"}, "no such model"),
        ({"teachers": ["nothing"]}, "nothing: no such model"),
        (
            {"teachers": ["m"], "overrides": ["student.pseudo=0"]},
            "--teacher m: got student.pseudo=0, with which it would teach nothing",
        ),
        ({"labeled": ["unlabeled.txt"]}, "has no mask"),
        ({"overrides": ["gan.kimg=3"]}, "--set gan.kimg=3: a student takes this from its teacher"),
        ({"overrides": ["student.kimh=3"]}, "no field 'kimh' in student"),
        ({"overrides": ["student.widths=[8, 8, 8, 8, 8, 8]"]}, "student.widths: got 6 levels, expected 2 to 3"),
        ({"overrides": ["student.trunk=none", "student.widths=[8, 8, 8, 8, 8, 8]"]}, "got 6 levels, expected 1 to 5"),
        ({"overrides": ["predict.steps=20"]}, "predict.steps: got 20, but a student has no inversion"),
        ({"overrides": ["predict.one_object=true"]}, "predict.one_object: got true for 4 classes"),
        ({"overrides": ["predict.convex=true"]}, "predict.convex: got true, but there is not one object"),
        ({"overrides": ["student.labeled=0", "student.samples=0", "student.pseudo=0"]}, "expected one above 0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(call, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        call(**changes)
    assert names(tmp_path) == []


def test_other_classes_are_refused(call, scenes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    content = json.loads((data / "classes.json").read_text())
    content["classes"][1]["name"] = "other"
    (data / "classes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected the teacher's classes"):
        call(data=data)
    assert not (tmp_path / "student").exists()


def test_a_student_can_teach(call, teacher, tmp_path):
    call(kimg=0.024)
    first, second = tmp_path / "student", tmp_path / "second"
    said = call(model=str(first), out=second, kimg=0.024)
    assert "1 teacher labels 32 images" in said and not any("filtered" in line for line in said)
    assert any(line.startswith("student: 8 labelled images, sources labeled, pseudo, on") for line in said)
    card = (second / "model" / "README.md").read_text()
    assert "those of the teacher. The U-Net's way down" in card and "samples were filtered" not in card
    with pytest.raises(UserError, match="student: got no weight above 0 but of what the teacher cannot give"):
        call(model=str(first), out=tmp_path / "third", overrides=[*SETTINGS, "student.labeled=0", "student.pseudo=0"])


def test_runs_are_kept_apart(call, teacher, scenes, small_settings, tmp_path):
    call(kimg=0.024)
    out = tmp_path / "student"
    with pytest.raises(UserError, match="is a run of train, not of distill"):
        call(**RESUME, out=teacher)
    with pytest.raises(UserError, match="with --resume give MODEL and --out alone"):
        call(**RESUME | {"model": str(out)})
    for changes, word in (({"kimg": 3.0}, "student.kimg: got 3.0"), ({"seed": 4}, "--seed: got 4")):
        with pytest.raises(UserError, match=word):
            call(**RESUME | changes)
    assert any("done in" in line for line in call(**RESUME | {"kimg": 0.024, "overrides": SETTINGS, "seed": 0}))
    with pytest.raises(UserError, match="is not empty"):
        call()
    with pytest.raises(UserError, match="is a run of distill, not of train"):
        train(
            data=None, out=out, labeled=[], unlabeled=[], val=[], preset=None, start_from=None, resume=True, seed=None,
            hours=None, device="cpu", overrides=[], dry_run=False, say=lambda text: None,
        )  # fmt: skip


def test_views_are_taken_where_they_gain(call, tmp_path, monkeypatch):
    call(kimg=0.024)
    model, plan = SemanticGAN.load(tmp_path / "student"), Plan.read(tmp_path / "student")
    run = Run(tmp_path / "quiet", lambda text: None)
    for gain, taken in ((0.004, False), (0.006, True)):

        def choose(find, *_, gain=gain, **options):
            assert options == {"steps": (0,), "zoom": False}
            used = []
            monkeypatch.setattr(SemanticGAN, "find", lambda self, images, steps, views, zoom: used.append(views) or iter(()))
            list(find([], 0, False))
            ious = np.array([0.5 + 2 * gain * used[0], 0.5])
            return module.Choice(0, False, 1.0, (), {"0 steps": ious.mean()}, ious)

        monkeypatch.setattr(module, "choose", choose)
        assert choose_settings(model, plan, run)[0] is taken


def test_the_exported_student_has_the_settings_of_its_run(small_config, tmp_path):
    config = small_config("student.trunk=none", "student.widths=[8, 16]", "predict.contrast=1.4", "predict.one_object=true",
                          "predict.convex=true")  # fmt: skip
    for folder, pixels in (("images", np.zeros((16, 16, 3), np.uint8)), ("masks", np.eye(16, dtype=np.uint8))):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    sources = Sources(tmp_path, ("images/a.png",), ("images/a.png",), ("images/a.png",), ())
    plan = Plan(config, LabelSpec.unnamed(2), sources, None, "cpu", "teacher", "semanticgan distill teacher")
    S = new_student_state(config, 2, 3, "cpu").S_ema
    module.export_student(plan, "teacher", S, {"hours": 1.0}, [], Run(tmp_path / "run", lambda text: None))
    found = SemanticGAN.load(tmp_path / "run").config
    assert (found.contrast, found.one_object, found.convex, found.data) == (1.4, True, True, config.data)
