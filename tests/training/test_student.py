"""What a student learns from: G's samples without the worst, the teacher's label maps, labelled images; and its steps."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from semanticgan.config import ModelConfig
from semanticgan.data.stream import generator
from semanticgan.data.synthetic import LABELS
from semanticgan.data.transforms import to_float
from semanticgan.labels import IGNORE_INDEX
from semanticgan.model import SemanticGAN, build_networks
from semanticgan.nn.backbone import EfficientNetLite0
from semanticgan.training.checkpoint import load_checkpoint, save_stage
from semanticgan.training.gan import ValidationData, new_gan_state
from semanticgan.training.run import Run
from semanticgan.training.student import (
    Critics,
    Samples,
    StudentTrainer,
    load_critics,
    new_student_state,
    sharpness,
    train_student,
)
from semanticgan.training.supervised import descend
from semanticgan.training.teachers import teacher_labels

PLAIN = ("student.trunk=none", "student.widths=[8, 16]")


@pytest.fixture(scope="module")
def teacher(small_config):
    config = small_config()
    described = ModelConfig(labels=LABELS, data=config.data, networks=config.networks, inversion=config.inversion, views=False)
    torch.manual_seed(0)
    G, E = build_networks(described)
    torch.nn.init.normal_(G.synthesis.blocks[-1].to_seg.weight, std=3)  # label maps with structure
    torch.nn.init.normal_(E.rows.weight, std=0.3)
    return SemanticGAN(described, G, E)


@pytest.fixture
def make(small_config, small_data, teacher):
    """A trainer with a student of its own."""

    def make(*overrides, taught=True, critics=None):
        config = small_config("student.batch=12", "student.ema_half_life_kimg=0.05", *PLAIN, *overrides)
        data = small_data[0]
        labels = np.zeros(data.images.shape[:3], np.uint8) if taught else None
        state = new_student_state(config, 4, 3, "cpu")
        samples = Samples(teacher.G, critics, config.student.drop)
        return StudentTrainer(config, LABELS, data, samples, labels, state, "cpu")

    return make


# ---------------------------------------------------------------- samples and their filter


class Fixed(torch.nn.Module):
    """A critic that knows an image by its mean."""

    def __init__(self, sign, per_scale=False):
        super().__init__()
        self.sign, self.per_scale = sign, per_scale

    def forward(self, img, maps=None):
        score = self.sign * img.mean((1, 2, 3))
        return [[score[:, None, None, None]], [score[:, None, None, None]]] if self.per_scale else score


def test_the_worse_of_two_ranks_counts(teacher):
    img = torch.tensor([3.0, 0, 2, 1])[:, None, None, None].expand(4, 3, 16, 16)
    logits = torch.zeros(4, 4, 16, 16)
    alike = Samples(teacher.G, Critics(Fixed(1), Fixed(1, True)), 0.0).credibility(img, logits)
    assert alike.tolist() == [3, 0, 2, 1]
    apart = Samples(teacher.G, Critics(Fixed(1), Fixed(-1, True)), 0.0).credibility(img, logits)
    assert apart.tolist() == [0, 0, 1, 1]


def test_without_critics_the_sharpness_of_label_maps_counts(teacher):
    logits = torch.zeros(3, 4, 16, 16)
    logits[:, 0] = 1
    for n, sure in enumerate((2, 9, 4)):
        logits[n, 1, :8] = sure
    probs = logits.softmax(1)
    found = Samples(teacher.G, None, 0.0).credibility(torch.zeros(3, 3, 16, 16), logits)
    assert found.argsort().tolist() == [0, 2, 1] and torch.equal(found, sharpness(probs))
    assert float(found[0]) == pytest.approx(-float((1 - probs[0].amax(0)).sum()) / (16 + 4))


def test_sharpness_does_not_ask_how_large_an_object_is():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    away = (x - 31.5).hypot(y - 31.5)

    def disc(radius, width):
        inside = ((radius - away) / width).sigmoid()
        return torch.stack([1 - inside, inside])[None]

    small, large, blurred = (float(sharpness(disc(*form))) for form in ((8, 1), (24, 1), (16, 3)))
    assert abs(small - large) < 0.25 * abs(large)  # what is added to the border, and the steps of the border
    assert blurred < 2 * min(small, large)


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_samples_are_what_g_draws_without_the_worst(teacher, drop):
    samples = Samples(teacher.G, Critics(Fixed(1), Fixed(1, True)), drop)
    img, label = samples.draw(8, torch.Generator().manual_seed(3))
    again = samples.draw(8, torch.Generator().manual_seed(3))
    assert img.shape == (8, 3, 16, 16) and label.shape == (8, 16, 16)
    assert torch.equal(img, again[0]) and torch.equal(label, again[1]) and img.abs().max() <= 1
    random, drawn = torch.Generator().manual_seed(3), 16 if drop else 8
    z = torch.randn(drawn, teacher.G.z_dim, generator=random)
    all_img, logits = teacher.G.synthesis(teacher.G.mapping(z), noise=teacher.G.noise_maps(drawn, random))
    best = all_img.mean((1, 2, 3)).argsort(descending=True)[:8].sort().values
    torch.testing.assert_close(img, all_img[best].clamp(-1, 1))
    assert torch.equal(label, logits[best].argmax(1))


def test_critics_come_from_a_run_alone(small_config, teacher, tmp_path):
    run = Run(tmp_path / "run", say=lambda text: None)
    none, why = load_critics(str(run.folder), teacher)
    assert none is None and "has no discriminators" in why
    state = new_gan_state(small_config(), 4, 3, "cpu")
    save_stage(run.folder, "gan", 64, state.state_dict())
    found, why = load_critics(str(run.folder), teacher)
    assert why == "gan-000000064.pt has D_img and D_seg"
    assert torch.equal(found.D_img.out.weight, state.D_img.out.weight) and not found.D_img.training
    state.D_img.out = torch.nn.Linear(3, 2)
    save_stage(run.folder, "gan", 128, state.state_dict())
    none, why = load_critics(str(run.folder), teacher)
    assert none is None and "D_img" not in why.split("(")[0] and "\n" not in why


# ---------------------------------------------------------------- the teacher's label maps


def test_the_teacher_labels_what_it_is_sure_of(teacher, small_data):
    images = small_data[0].images[:5]
    everything, found = np.stack(list(teacher_labels([teacher], images, 0.0))), teacher.segment(list(images), steps=0, views=True)
    assert everything.shape == (5, 16, 16) and everything.max() < 4
    assert np.array_equal(everything, np.stack([r.label for r in found]))
    sure = np.stack([r.probs.max(0) for r in found])
    middle = float(np.median(sure))
    some = np.stack(list(teacher_labels([teacher], images, middle)))
    clear = np.abs(sure - middle) > 1e-4
    assert (some == np.where(sure < middle, IGNORE_INDEX, everything))[clear].all()
    assert 0.3 < (some == IGNORE_INDEX).mean() < 0.7


def test_several_teachers_label_by_the_mean_of_their_probabilities():
    class Sure(SemanticGAN):  # of class k, this much
        def __init__(self, k, prob, temperature=1.0):
            self.probs = torch.full((3, 2, 2), (1 - prob) / 2)
            self.probs[k], self.config = prob, SimpleNamespace(temperature=temperature)

        def find(self, images, **_):
            yield from (SimpleNamespace(log_probs=self.config.temperature * self.probs.log()) for _ in images)

    image = np.zeros((2, 2, 2, 3), np.uint8)
    for teachers, expected, sureness in (
        ([Sure(0, 0.8), Sure(1, 0.5, temperature=2.0), Sure(1, 0.6)], 0, 0.4167),  # (.8 + .25 + .2) / 3
        ([Sure(0, 0.8), Sure(1, 0.9), Sure(1, 0.9)], 1, 0.6333),
    ):
        for threshold, label in ((sureness - 1e-3, expected), (sureness + 1e-3, IGNORE_INDEX)):
            labels = list(teacher_labels(teachers, image, threshold))
            assert len(labels) == 2 and (np.stack(labels) == label).all()


# ---------------------------------------------------------------- steps


@pytest.mark.parametrize(
    ("overrides", "taught", "sources", "part"),
    [
        ((), True, ["labeled", "pseudo", "samples"], 4),
        ((), False, ["labeled", "samples"], 6),
        (("student.samples=0",), True, ["labeled", "pseudo"], 6),
        (("student.labeled=0", "student.pseudo=0"), True, ["samples"], 12),
    ],
)
def test_sources_share_the_batch(make, overrides, taught, sources, part):
    trainer = make(*overrides, taught=taught)
    assert (trainer.sources, trainer.part, trainer.batch) == (sources, part, 12)
    stats = trainer.update(0, 0.0)
    assert set(stats) == {"loss", "grad_norm", *sources}
    weights = [getattr(trainer.config.student, name) for name in sources]
    mean = sum(w * stats[name] for w, name in zip(weights, sources, strict=True)) / sum(weights)
    assert float(stats["loss"]) == pytest.approx(float(mean), rel=1e-5)


def test_a_step_is_a_function_of_seed_and_nimg(make, assert_same):
    first, second, other = make(), make(), make("run.seed=1")
    first.draw(24)  # leaves nothing behind
    first.picture()
    for trainer in (first, second, other):
        for nimg in (0, 12):
            trainer.update(nimg, 0.5)
    assert_same(first.state.state_dict(), second.state.state_dict())
    assert not torch.equal(first.state.S.head.weight, other.state.S.head.weight)


@pytest.mark.parametrize("setting", ["zoom_out", "texture"])
def test_changes_are_those_of_the_settings(make, setting):
    still = [f"student.{name}=0" for name in ("augment", "zoom_out", "texture")] + ["data.symmetry=none"]
    plain, changed = (make(*still, *more).draw(0)[0] for more in ([], [f"student.{setting}=1"]))
    assert ((plain - changed).abs().amax((1, 2, 3)) > 0.1).sum() >= 4  # of 12; what touches the frame cannot go farther away


def test_validation_sees_one_object_where_the_teacher_does(make):
    logits, label = torch.zeros(1, 2, 16, 16), np.zeros((1, 16, 16), np.uint8)
    logits[:, 0] = 3
    logits[0, 1, 2:8, 2:8] = logits[0, 1, 12:15, 12:15] = 6
    label[0, 2:8, 2:8] = 1
    val = ValidationData(np.zeros((1, 16, 16, 3), np.uint8), label)

    class Says(torch.nn.Linear):
        def forward(self, img):
            return logits

    binary = LABELS.model_copy(update={"names": LABELS.names[:2], "palette": LABELS.palette[:2]})
    for setting, expected in (("true", 1.0), ("false", 36 / 45)):
        trainer = make(f"predict.one_object={setting}")
        trainer.labels = binary
        trainer.state.members["S_ema"] = Says(1, 1)
        assert trainer.validate(val) == pytest.approx(expected)


def test_it_learns(make, small_data):
    trainer = make("student.lr=3e-3", "student.texture=0", "student.zoom_out=0", "student.widths=[16, 32, 32]",
                   "student.pseudo=0", "student.samples=0")  # fmt: skip
    before = trainer.validate(small_data[1])
    for step in range(80):
        trainer.update(12 * step, step / 80)
    assert trainer.validate(small_data[1]) > before + 0.15  # .05 to .1 untrained, about .4 then, by the seed


def test_a_run_keeps_its_best_and_says_how_far_it_is(make, small_data, tmp_path):
    said = []
    trainer = make("student.kimg=0.036")
    train_student(trainer, small_data[1], Run(tmp_path, said.append), None)
    assert trainer.state.nimg == 36
    assert said[-1].startswith("student 0.0 kimg  ") and "0m00s left" in said[-1] and "val_iou" in said[-1]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names[0] == "student-000000024.pt" and names[-1] == "student-best.pt"
    assert list((tmp_path / "samples").iterdir())
    assert trainer.state.best > 0 and math.isfinite(trainer.state.best)


def test_a_pretrained_way_down_starts_from_imagenet_and_learns_more_slowly(small_config):
    config = small_config("student.widths=[8, 16]", "student.trunk_lr=0.25")
    state = new_student_state(config, 4, 3, "cpu")
    published = EfficientNetLite0().load_imagenet().state_dict()
    assert all(torch.equal(value, published[name]) for name, value in state.S.trunk.state_dict().items())
    fast, slow = state.opt.param_groups
    ids = {id(p) for p in state.S.trunk.parameters() if p.requires_grad}
    assert {id(p) for p in slow["params"]} == ids and not ids & {id(p) for p in fast["params"]}
    descend(state.S, state.opt, state.S(torch.randn(2, 3, 16, 16)).square().mean(), 1e-3)
    assert [group["lr"] for group in state.opt.param_groups] == [1e-3, 2.5e-4]
    moved = [not torch.equal(value, published[name]) for name, value in state.S.trunk.state_dict().items()]
    assert any(moved) and not all(moved)  # its first blocks keep their weights


def test_sources_count_by_their_weights(make):
    trainer = make("student.labeled=3", "student.pseudo=0.5")
    stats = trainer.update(0, 0.0)
    assert float(stats["loss"]) == pytest.approx(float((3 * stats["labeled"] + 0.5 * stats["pseudo"] + stats["samples"]) / 4.5))


def test_d_seg_sees_label_maps_as_in_training(teacher):
    """Probabilities from -1 to 1."""
    seen = []

    class Watch(Fixed):
        def forward(self, img, maps=None):
            seen.append(maps)
            return super().forward(img)

    logits = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    Samples(teacher.G, Critics(Fixed(1), Watch(1, True)), 0.0).credibility(torch.zeros(4, 3, 16, 16), logits)
    torch.testing.assert_close(seen[0], 2 * logits.softmax(1) - 1)


def test_the_students_average_is_kept_and_its_half_life_is_a_share_of_the_images_seen(make, small_data, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("semanticgan.ema.ema_decay", lambda batch, half_life: asked.append(half_life) or 0.5)
    trainer = make("student.kimg=0.036", "student.ema_half_life_kimg=0.0015", "run.keep=last")
    train_student(trainer, small_data[1], Run(tmp_path, lambda text: None), None)
    assert asked == [pytest.approx(half_life) for half_life in (0.05 * 0.012, 0.05 * 0.024, 0.0015)]
    saved = load_checkpoint(tmp_path / "checkpoints" / "student-best.pt")["S"]
    assert torch.equal(saved["head.weight"], trainer.state.S_ema.head.weight)
    assert not torch.equal(saved["head.weight"], trainer.state.S.head.weight)


def test_each_source_gives_images_with_their_own_label_maps(make, small_data):
    trainer = make("student.augment=0", "student.zoom_out=0", "student.texture=0", "data.symmetry=none", "run.precision=fp32")
    img, label = trainer.draw(0)
    pairs = {name: trainer.streams[name].indices(0, 4) for name in ("labeled", "pseudo")}
    data, (drawn, drawn_label) = small_data[0], trainer.samples.draw(4, generator(trainer.config.run.seed, "student", 0))
    real = np.concatenate([data.labeled[pairs["labeled"]], data.images[pairs["pseudo"]]])
    expected = torch.cat([to_float(torch.from_numpy(real)), drawn])
    torch.testing.assert_close(img, expected, atol=2e-3, rtol=0)  # the warp's grid is rounded
    assert np.array_equal(label[:4], data.labels[pairs["labeled"]]) and not label[4:8].any()  # taught: background alone
    assert torch.equal(label[8:], drawn_label) and drawn_label.any()
