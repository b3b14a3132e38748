import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from semanticgan.config import ModelConfig
from semanticgan.data import transforms
from semanticgan.data.stream import generator
from semanticgan.data.synthetic import LABELS
from semanticgan.inversion import enlarge
from semanticgan.labels import IGNORE_INDEX
from semanticgan.model import SemanticGAN, build_generator, named_networks
from semanticgan.nn.perceptual import LPIPS
from semanticgan.training import encoder
from semanticgan.training.checkpoint import load_checkpoint, stage_checkpoints
from semanticgan.training.encoder import EncoderTrainer, new_encoder_state, train_encoder
from semanticgan.training.gan import TrainingData, ValidationData
from semanticgan.training.run import Interrupted, Run
from semanticgan.training.supervised import mask_loss
from semanticgan.training.teachers import teacher_labels

IGNORED = ValidationData(np.zeros((2, 16, 16, 3), np.uint8), np.full((2, 16, 16), 255, np.uint8))


@pytest.fixture(scope="module")
def config(small_config):
    return small_config()


@pytest.fixture(scope="module")
def lpips():
    return LPIPS().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def G(config):
    torch.manual_seed(5)
    G = build_generator(config.networks, 16, 4, 3).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    G.mapping.w_avg.copy_(G.mapping.w(torch.randn(1000, 16)).mean(0))
    return G


def silent(folder):
    return Run(folder, say=lambda text: None)


def train(config, data, val, G, lpips, folder, *, saved=None, stop_at=None):
    state = new_encoder_state(config, G, 3, "cpu")
    if saved is not None:
        state.load_state_dict(load_checkpoint(saved))
    draw = EncoderTrainer.draw_samples
    steps = [state.nimg]

    def draw_and_stop(self, random):
        if self.state.nimg == stop_at:
            signal.raise_signal(signal.SIGTERM)
        steps.append(self.state.nimg)
        return draw(self, random)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncoderTrainer, "draw_samples", draw_and_stop)
        if stop_at is None:
            train_encoder(config, LABELS, data, val, G, lpips, state, silent(folder), None, "cpu")
        else:
            with pytest.raises(Interrupted):
                train_encoder(config, LABELS, data, val, G, lpips, state, silent(folder), None, "cpu")
    return state


def trainer(config, data, G, lpips):
    return EncoderTrainer(config, LABELS, data, G, lpips, new_encoder_state(config, G, 3, "cpu"), "cpu")


@pytest.fixture(scope="module")
def whole(config, small_data, G, lpips, tmp_path_factory):
    """An uninterrupted run of four steps, with ticks after the second and the last."""
    folder = tmp_path_factory.mktemp("whole")
    before = {name: value.clone() for name, value in G.state_dict().items()}
    return train(config, *small_data, G, lpips, folder), folder, before


def test_g_stays_as_it_is(whole, G, assert_same):
    assert_same(dict(G.state_dict()), whole[2])
    assert all(parameter.grad is None for parameter in G.parameters())


def test_what_the_stage_leaves(whole):
    state, folder, _ = whole
    assert state.nimg == 48 and state.seconds > 0
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [0.024, 0.048]
    assert all(0 <= line["val_iou"] <= 1 for line in lines)
    assert {"loss", "mse", "lpips", "pseudo", "labeled", "samples", "latent", "grad_norm", "images_per_second"} <= lines[0].keys()
    best = load_checkpoint(folder / "checkpoints" / "encoder-best.pt")
    scores = {line["kimg"]: line["val_iou"] for line in lines}
    assert scores[best["nimg"] / 1000] == max(scores.values()) == state.best
    assert (folder / "samples" / "encoder-000000048.png").is_file()


def test_the_same_seed_gives_the_same_run(whole, config, small_data, G, lpips, tmp_path, assert_same):
    again = train(config, *small_data, G, lpips, tmp_path)
    assert_same(again.state_dict(), whole[0].state_dict(), but=("seconds",))


def test_teachers_label_the_unlabelled_images_instead_of_the_encoder(small_config, small_data, G, lpips):
    config = small_config("encoder.pseudo_threshold=0.3")
    described = ModelConfig(kind="student", labels=LABELS, data=config.data, trunk="none", widths=(8, 16), teacher="x")
    torch.manual_seed(1)
    student = SemanticGAN(described, None, S=named_networks(described)["S"])
    torch.nn.init.normal_(student.S.head.weight, std=3)  # label maps with structure
    state = new_encoder_state(config, G, 3, "cpu")
    taught = EncoderTrainer(config, LABELS, small_data[0], G, lpips, state, "cpu", teachers=[student])
    taught.guess = None
    taught.moved = lambda img, label, random: (img, label)
    chosen = taught.unlabeled_stream.indices(0, taught.third)
    _, guess, real = taught.draw_unlabeled(0, generator(0, "test", 0))
    images = small_data[0].images[chosen]
    expected = np.stack(list(teacher_labels([student], images, config.encoder.pseudo_threshold)))
    assert np.array_equal(guess.numpy(), expected) and len(np.unique(expected)) > 2
    assert np.array_equal(transforms.to_u8(real).numpy(), images)
    assert math.isfinite(taught.update(0, 0.5)["pseudo"])


def test_teachers_are_asked_once_for_an_image(config, small_data, G, lpips, monkeypatch):
    taught, asked = trainer(config, small_data[0], G, lpips), []

    def answers(teachers, images, threshold):
        asked.append(len(images))
        return iter(images[..., 0])  # one that tells which image it was

    monkeypatch.setattr(encoder, "teacher_labels", answers)
    for chosen, new in (([3, 1, 3], 2), ([1, 3], 0), ([0, 1], 1)):
        assert np.array_equal(taught.taught(np.array(chosen)).numpy(), small_data[0].images[chosen][..., 0])
        assert asked.pop() == new


@pytest.mark.parametrize("stop_at", [0, 24])
def test_two_halves_around_a_signal_equal_one_run(whole, config, small_data, G, lpips, tmp_path, assert_same, stop_at):
    train(config, *small_data, G, lpips, tmp_path, stop_at=stop_at)
    saved = stage_checkpoints(tmp_path, "encoder")[-1]
    assert saved.name == f"encoder-{stop_at + 12:09d}.pt"
    state = train(config, *small_data, G, lpips, tmp_path, saved=saved)
    assert_same(state.state_dict(), whole[0].state_dict(), but=("seconds",))
    best = [load_checkpoint(folder / "checkpoints" / "encoder-best.pt") for folder in (tmp_path, whole[1])]
    assert_same(*best)


def test_where_every_validation_pixel_is_ignored_the_last_state_is_the_best(config, small_data, G, lpips, tmp_path, assert_same):
    state = train(config, small_data[0], IGNORED, G, lpips, tmp_path)
    best = load_checkpoint(tmp_path / "checkpoints" / "encoder-best.pt")
    assert_same(dict(best["E"]), dict(state.E_ema.state_dict()))
    assert json.loads((tmp_path / "stats.jsonl").read_text().splitlines()[0])["val_iou"] is None


def test_features_learn_and_are_none_where_ws_are_known(small_config, small_data, G, lpips):
    config = small_config("networks.encoder_features=true", "run.precision=fp32")
    this = trainer(config, small_data[0], G, lpips)
    this.update(0, 0.5)
    assert this.state.E.features.conv1.weight.grad.abs().max() > 0
    torch.nn.init.normal_(this.state.E.features.conv1.weight, std=0.1)
    assert this.update(0, 0.5)["latent"] > trainer(config, small_data[0], G, lpips).update(0, 0.5)["latent"]
    img, _ = this.explain(np.array(small_data[0].images[:2]))
    assert img.shape == (2, 3, 16, 16)


def test_starts_at_gs_mean_w(config, G):
    state = new_encoder_state(config, G, 3, "cpu")
    assert torch.equal(state.E.w_avg, G.mapping.w_avg) and torch.equal(state.E_ema.w_avg, G.mapping.w_avg)
    assert not any(p.requires_grad for p in state.E_ema.parameters()) and not state.E_ema.training


def test_gradients_reach_all_of_e_and_are_clipped(config, small_data, G, lpips):
    this = trainer(config, small_data[0], G, lpips)
    this.update(0, 0.5)
    assert all(p.grad is not None for p in this.state.E.parameters())
    norm = torch.stack([p.grad.norm() for p in this.state.E.parameters()]).norm()
    assert norm <= config.encoder.grad_clip * 1.001


@pytest.mark.parametrize(
    ("end", "progress", "share"), [(0, 0.0, 0.01), (0, 0.5, 0.5), (0, 1.0, 0.0), (0.2, 0.5, 0.6), (1, 1.0, 1.0)]
)
def test_the_learning_rate_rises_and_falls(small_config, small_data, G, lpips, end, progress, share):
    config = small_config(f"encoder.lr_end={end}")
    this = trainer(config, small_data[0], G, lpips)
    this.update(0, progress)
    assert this.state.opt.param_groups[0]["lr"] == pytest.approx(config.encoder.lr * share, abs=1e-12)


def test_exported_weights_are_the_mean_of_the_last_share(small_config, small_data, G, lpips, assert_same):
    this = trainer(small_config("encoder.average=0.5"), small_data[0], G, lpips)
    seen = []
    for step, progress in enumerate((0.0, 0.25, 0.5, 0.75, 0.9)):
        assert (this.exported is this.state.E_ema) == (step < 3)  # nothing to average before half of the stage
        this.update(12 * step, progress)
        seen.append({name: p.detach().clone() for name, p in this.state.E.named_parameters()})
    assert this.exported is this.state.E_mean and not this.state.E_mean.training
    for name, p in this.exported.named_parameters():
        assert torch.allclose(p, sum(weights[name] for weights in seen[2:]) / 3, atol=1e-6)  # float32 sums
    again = new_encoder_state(this.config, G, 3, "cpu")
    again.load_state_dict(this.state.state_dict())
    assert again.averaged == 3
    assert_same(dict(again.E_mean.state_dict()), dict(this.exported.state_dict()))


def test_batches_that_are_no_multiple_of_three(small_config, small_data, G, lpips, tmp_path):
    state = train(small_config("encoder.batch=8", "encoder.kimg=0.008"), *small_data, G, lpips, tmp_path)
    assert state.nimg == 12  # twice a third of 2 each


# ---------------------------------------------------------------- what it learns from


def test_samples_come_with_their_label_maps_and_latents(small_config, small_data, G, lpips):
    this = trainer(small_config("run.precision=fp32", "encoder.augment=0", "data.symmetry=none"), small_data[0], G, lpips)
    seen, label, clean, ws = this.draw_samples(torch.Generator().manual_seed(0))
    assert len(seen) == len(clean) == len(label) == 4 and len(ws) == 2
    assert torch.allclose(seen, clean, atol=1e-5) and seen.abs().max() <= 1 + 1e-4  # the warp's grid is rounded
    plain = G.mapping(torch.randn(4, G.z_dim, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(ws, plain[:2])


def test_labelled_image_and_label_move_together(config, small_data, G, lpips):
    """An image that is its own label map still is after moving."""
    labels = np.random.default_rng(0).integers(0, 2, (4, 4, 4)).repeat(4, 1).repeat(4, 2)
    this = trainer(config, small_data[0], G, lpips)
    label = torch.from_numpy(labels)
    img = (label[:, None].float() * 2 - 1).expand(-1, 3, -1, -1).contiguous()
    moved, moved_label = this.moved(img, label, torch.Generator().manual_seed(1))
    sure = moved[:, 0].abs() > 0.2
    assert sure.float().mean() > 0.5 and torch.equal((moved[:, 0] > 0)[sure], (moved_label == 1)[sure])
    assert not torch.equal(moved_label, label)


def test_ignored_pixels_move_too_and_stay_ignored(config, small_data, G, lpips):
    this = trainer(config, small_data[0], G, lpips)
    label = torch.full((4, 16, 16), IGNORE_INDEX)
    moved = this.moved(torch.zeros(4, 3, 16, 16), label, torch.Generator().manual_seed(1))[1]
    assert (moved == IGNORE_INDEX).all()
    label[:, :, 8:] = 2
    moved = this.moved(torch.zeros(4, 3, 16, 16), label, torch.Generator().manual_seed(1))[1]
    assert set(moved.unique().tolist()) == {2, IGNORE_INDEX}


def test_pseudo_labels_are_the_averaged_es_own_where_it_is_sure(small_config, small_data, G, lpips):
    images = np.array(small_data[0].images[:4])
    img = transforms.to_float(torch.from_numpy(images))
    same = ("run.precision=fp32", "data.symmetry=none")
    this = trainer(small_config(*same, "encoder.pseudo_threshold=0"), small_data[0], G, lpips)
    logits = this.explain(images)[1]
    assert torch.equal(this.guess(img), logits.argmax(1))
    median = float(logits.softmax(1).amax(1).median())
    some = trainer(small_config(*same, f"encoder.pseudo_threshold={median}"), small_data[0], G, lpips).guess(img)
    known = some != IGNORE_INDEX
    assert torch.equal(some[known], logits.argmax(1)[known]) and 0.4 < known.float().mean() < 0.6
    off = trainer(small_config(*same, "encoder.pseudo=0"), small_data[0], G, lpips)
    assert (off.guess(img) == IGNORE_INDEX).all() and off.update(0, 1.0)["pseudo"] == 0


def test_where_every_labelled_image_has_the_one_object_pseudo_labels_have_it_too(small_config, small_data, G, lpips, monkeypatch):
    img = transforms.to_float(torch.from_numpy(np.array(small_data[0].images[:4])))
    labels = np.zeros((8, 16, 16), np.uint8)
    labels[:, :4, :4] = 1  # 16 of 256 pixels
    logits = torch.zeros(4, 2, 16, 16)
    logits[:, 1] = -6 - torch.arange(256.0).view(16, 16) / 100  # nowhere found, likeliest on top
    for one_object, expected in ((True, 16), (False, 0)):
        config = small_config("data.symmetry=none", f"predict.one_object={one_object}", "encoder.pseudo_threshold=0.95")
        this = trainer(config, replace(small_data[0], labels=labels), G, lpips)
        monkeypatch.setattr(this, "explained", lambda E, img: (img, logits))
        found = this.guess(img) == 1
        assert (found.flatten(1).sum(1) == expected).all() and (found[:, 0].all() or not expected)


def test_mirrored_images_get_mirrored_pseudo_labels(small_config, small_data, G, lpips):
    img = transforms.to_float(torch.from_numpy(np.array(small_data[0].images[:4])))
    this = trainer(
        small_config("run.precision=fp32", "data.symmetry=flip", "encoder.pseudo_threshold=0"), small_data[0], G, lpips
    )
    assert (this.guess(img.flip(-1)) == this.guess(img).flip(-1)).float().mean() > 0.999  # but for rounding of ties


def test_pseudo_labels_count_more_as_e_learns(config, small_data, G, lpips):
    start, ramp, end = (float(trainer(config, small_data[0], G, lpips).update(0, share)["pseudo"]) for share in (0.0, 0.125, 1.0))
    assert start == 0 and ramp == pytest.approx(end / 2, rel=1e-6)


def test_labels_that_are_all_ignored_leave_a_finite_loss(config, small_data, G, lpips):
    data = TrainingData(small_data[0].images, small_data[0].labeled, np.full_like(small_data[0].labels, IGNORE_INDEX))
    stats = trainer(config, data, G, lpips).update(0, 0.5)
    assert all(math.isfinite(float(value)) for value in stats.values())


# ---------------------------------------------------------------- validation


def test_validation_scores_foreground_images_by_iou(config, small_data, G, lpips, monkeypatch):
    this = trainer(config, small_data[0], G, lpips)
    label = torch.zeros(2, 16, 16, dtype=torch.long)
    label[0, :8], label[1, :, :4] = 1, 2
    pred = label.clone()
    pred[0, :4] = 0  # half of the first object is missed
    logits = torch.nn.functional.one_hot(pred, 4).permute(0, 3, 1, 2).float()
    monkeypatch.setattr(this, "explain", lambda images: (None, logits))
    val = ValidationData(np.zeros((2, 16, 16, 3), np.uint8), label.numpy().astype(np.uint8))
    assert this.validate(val) == pytest.approx((0.5 + 1) / 2)
    assert math.isnan(this.validate(IGNORED))


def test_validation_holds_the_maps_of_a_few_images_at_once(config, small_data, G, lpips, monkeypatch):
    this = trainer(config, small_data[0], G, lpips)
    numbered = np.arange(7, dtype=np.uint8).repeat(16 * 16 * 3).reshape(7, 16, 16, 3)
    val = ValidationData(numbered, np.ones((7, 16, 16), np.uint8))
    held = []

    def explain(images):
        held.append(len(images))
        found = torch.from_numpy(images[:, :, :, 0]).long() % 2  # every other image is right
        return None, torch.nn.functional.one_hot(found, 4).permute(0, 3, 1, 2).float()

    monkeypatch.setattr(this, "explain", explain)
    monkeypatch.setattr(encoder, "VALIDATED", 3)
    assert this.validate(val) == pytest.approx(3 / 7)
    assert held == [3, 3, 1]


def test_validation_sees_one_object_where_the_data_have_one(small_config, small_data, G, lpips, monkeypatch):
    logits, label = torch.zeros(1, 2, 16, 16), np.zeros((1, 16, 16), np.uint8)
    logits[:, 0] = 3
    logits[0, 1, 2:8, 2:8] = logits[0, 1, 12:15, 12:15] = 6
    label[0, 2:8, 2:8] = 1
    val = ValidationData(np.zeros((1, 16, 16, 3), np.uint8), label)
    for setting, expected in (("true", 1.0), ("false", 36 / 45)):
        config = small_config(f"predict.one_object={setting}")
        net = trainer(config, small_data[0], G, lpips)
        monkeypatch.setattr(net, "explain", lambda images: (images, logits))
        assert net.validate(val) == pytest.approx(expected)


def test_evaluation_changes_nothing(config, small_data, G, lpips, assert_same):
    this = trainer(config, small_data[0], G, lpips)
    this.update(0, 0.5)
    before = {name: value.clone() for name, value in this.state.E.state_dict().items()}
    random_state = torch.get_rng_state()
    score = this.validate(small_data[1])
    assert this.picture(small_data[1]).dtype == np.uint8
    assert this.validate(small_data[1]) == score
    assert_same(dict(this.state.E.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), random_state) and this.state.E.training and not this.state.E_ema.training


@pytest.mark.slow
def test_it_learns_to_explain_what_g_can_draw(small_config, G, lpips, tmp_path):
    """On images that G drew itself, the loss falls and the validation IoU rises."""
    drawer = build_generator(small_config().networks, 16, 4, 3).eval().requires_grad_(False)
    drawer.load_state_dict(G.state_dict())
    with torch.no_grad():
        z = torch.randn(72, G.z_dim, generator=torch.Generator().manual_seed(0))
        drawer.synthesis.blocks[-1].to_seg.bias -= drawer(z, noise="none")[1].mean((0, 2, 3))  # all classes occur
        img, seg_logits = drawer(z, noise="none")
    images, labels = transforms.to_u8(img.clamp(-1, 1)).numpy(), seg_logits.argmax(1).byte().numpy()
    data, val = TrainingData(images[:64], images[:64], labels[:64]), ValidationData(images[64:], labels[64:])
    settings = ("encoder.zoom_out=0", "encoder.augment=0.2", "encoder.kimg=1.6", "encoder.batch=12", "encoder.lr=0.002")
    config = small_config(*settings, "data.symmetry=none", "run.tick_kimg=0.2", "encoder.ema_half_life_kimg=0.05")
    train(config, data, val, drawer, lpips, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert lines[-1]["val_iou"] > lines[0]["val_iou"] + 0.04


def test_e_descends_its_terms_with_their_weights(small_config, small_data, G, lpips):
    """SemanticGAN, eq. 5 to 9, and pseudo-labels: images in their own colours are wanted, whatever colours E sees."""
    weights = {"mse": 2, "lpips": 3, "pseudo": 5, "labeled": 7, "samples": 11, "latent": 13}
    config = small_config("run.precision=fp32", "networks.encoder_features=false", "encoder.pseudo_threshold=0",
                          *(f"encoder.{name}={weight}" for name, weight in weights.items()))  # fmt: skip
    this, random, n = trainer(config, small_data[0], G, lpips), generator(config.run.seed, "encoder", 0), 4
    seen, guess, real = this.draw_unlabeled(0, random)
    labeled, label = this.draw_labeled(0, random)
    sample, sample_label, clean, known = this.draw_samples(random)
    with torch.no_grad():
        (ws,) = this.state.E(torch.cat([seen, labeled, sample]))
        img, logits = G.synthesis(ws, "none")
    terms = {
        "mse": (img[:n] - real).square().mean(),
        "lpips": lpips(enlarge(img[:n]), enlarge(real)).mean(),
        "pseudo": 0.4 * mask_loss(logits[:n], guess),  # a tenth of the way, of a quarter in which it grows
        "labeled": mask_loss(logits[n : 2 * n], label),
        "samples": mask_loss(logits[2 * n :], sample_label),
        "latent": ((ws[2 * n : 2 * n + len(known)] - known) / this.w_deviation).square().mean(),
    }
    expected = sum(weights[name] * term for name, term in terms.items()) + (img[2 * n :] - clean).abs().mean()
    found = []
    this.step = lambda loss, progress, stats: found.append(loss.detach()) or stats
    this.update(0, 0.1)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    assert (seen - real).abs().max() > 0.1 and (sample - clean).abs().max() > 0.1


def test_pseudo_labels_do_not_follow_e_at_once(small_config, small_data, G, lpips):
    config = small_config("run.precision=fp32", "encoder.pseudo_threshold=0")
    this, img = trainer(config, small_data[0], G, lpips), transforms.to_float(torch.from_numpy(small_data[0].images[:4]))
    before = this.guess(img)
    for name, same in (("E", True), ("E_ema", False)):
        this.state.members[name].rows.bias.data += 3 * torch.randn(len(this.state.E.rows.bias))
        assert torch.equal(this.guess(img), before) is same


def test_the_averages_half_life_is_a_share_of_all_images_seen(small_config, small_data, G, lpips, monkeypatch):
    asked = []
    monkeypatch.setattr("semanticgan.ema.ema_decay", lambda batch, half_life: asked.append((batch, half_life)) or 0.5)
    this = trainer(small_config("encoder.ema_half_life_kimg=5"), small_data[0], G, lpips)
    for seen_before in (0, 40_000, 400_000):
        this.state.seen_before = seen_before
        this.update(0, 0.5)
    assert asked == [(12, pytest.approx(half_life)) for half_life in (0.05 * 0.012, 0.05 * 40.012, 5)]
