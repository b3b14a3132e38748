import copy
import dataclasses
import signal

import numpy as np
import pytest
import torch

from semanticgan import losses
from semanticgan.data import transforms
from semanticgan.data.synthetic import LABELS
from semanticgan.labels import IGNORE_INDEX, LabelSpec
from semanticgan.training.checkpoint import load_checkpoint, stage_checkpoints
from semanticgan.training.gan import ADA_LIMIT, GanTrainer, Health, TrainingData, new_gan_state, sample_grid, train_gan
from semanticgan.training.run import Interrupted, Run


def silent(folder):
    return Run(folder, say=lambda text: None)


def trainer(config, data):
    return GanTrainer(config, LABELS, data, new_gan_state(config, 4, 3, "cpu"), "cpu")


def train(config, data, folder, *, saved=None, stop_at=None, with_signal=True):
    """Train in `folder`, from a checkpoint if given; at image `stop_at` the run is stopped."""
    state, run = new_gan_state(config, 4, 3, "cpu"), silent(folder)
    state.augment_p = 0.4  # as if D_img had begun to overfit
    if saved is not None:
        state.load_state_dict(load_checkpoint(saved))
    if stop_at is None:
        train_gan(config, LABELS, data, state, run, None, "cpu")
        return state
    draw = GanTrainer.draw

    def draw_and_stop(self, nimg):
        if nimg == stop_at:
            if not with_signal:
                raise Killed
            signal.raise_signal(signal.SIGTERM)
        return draw(self, nimg)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted if with_signal else Killed):
        patch.setattr(GanTrainer, "draw", draw_and_stop)
        train_gan(config, LABELS, data, state, run, None, "cpu")
    return state


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def config(small_config):
    return small_config("data.symmetry=all")


@pytest.fixture(scope="module")
def whole(config, small_data, tmp_path_factory):
    """An uninterrupted run: eight steps with R1, path length, augmentation, and ticks after the 3rd and 6th."""
    folder = tmp_path_factory.mktemp("whole")
    return train(config, small_data[0], folder), folder


# ---------------------------------------------------------------- the run as a whole


def test_all_parts_of_the_run_were_at_work(whole):
    state, folder = whole
    assert state.nimg == 64 and 0 < state.augment_p < 0.4 and state.pl_mean > 0 and state.real_sign != 0
    assert state.G.mapping.w_avg.any()
    assert [path.name for path in stage_checkpoints(folder, "gan")] == ["gan-000000048.pt", "gan-000000064.pt"]
    assert (folder / "samples" / "gan-000000064.png").is_file()


def test_the_same_seed_gives_the_same_run_and_another_does_not(whole, config, small_config, small_data, tmp_path, assert_same):
    again = train(config, small_data[0], tmp_path / "again")
    assert_same(again.state_dict(), whole[0].state_dict(), but=("seconds",))
    other = new_gan_state(small_config("run.seed=1"), 4, 3, "cpu")
    assert not torch.equal(other.G.synthesis.const, new_gan_state(config, 4, 3, "cpu").G.synthesis.const)


@pytest.mark.parametrize("stop_at", [8, 32])
def test_two_halves_around_a_signal_equal_one_run(whole, config, small_data, tmp_path, assert_same, stop_at):
    train(config, small_data[0], tmp_path, stop_at=stop_at)
    (saved,) = stage_checkpoints(tmp_path, "gan")[-1:]
    assert saved.name == f"gan-{stop_at + 8:09d}.pt"  # the step in which the signal came is in it
    state = train(config, small_data[0], tmp_path, saved=saved)
    assert_same(state.state_dict(), whole[0].state_dict(), but=("seconds",))


def test_a_run_that_was_killed_between_checkpoints_equals_one_run(whole, config, small_data, tmp_path, assert_same):
    train(config, small_data[0], tmp_path, stop_at=40, with_signal=False)
    (saved,) = stage_checkpoints(tmp_path, "gan")
    assert saved.name == "gan-000000024.pt"
    state = train(config, small_data[0], tmp_path, saved=saved)
    assert_same(state.state_dict(), whole[0].state_dict(), but=("seconds",))


def test_a_checkpoint_is_the_state_at_its_image(whole, config, small_data, tmp_path, assert_same):
    """What is saved is all there is: going on from the file equals the run that wrote it."""
    state = train(config, small_data[0], tmp_path, saved=stage_checkpoints(whole[1], "gan")[0])
    assert_same(state.state_dict(), whole[0].state_dict(), but=("seconds",))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_both_precisions_train(small_config, small_data, tmp_path, precision, channels):
    config = small_config(f"run.precision={precision}", f"data.channels={channels}", "gan.kimg=0.016", "data.symmetry=flip")
    data = small_data[0]
    data = TrainingData(data.images[..., :channels], data.labeled[..., :channels], data.labels)
    state = new_gan_state(config, 4, channels, "cpu")
    train_gan(config, LABELS, data, state, silent(tmp_path), None, "cpu")
    assert all(parameter.isfinite().all() for parameter in state.G.parameters())


# ---------------------------------------------------------------- one step


def test_no_gradient_from_d_seg_into_the_image_heads(config, small_data):
    this = trainer(config, small_data[0])
    batch = this.draw(0)
    _, real_features = this.update_d_seg(batch)
    features = this.state.D_seg(*batch.fake_pair)
    loss = losses.hinge_g([scale[-1].float() for scale in features]) + losses.feature_matching(real_features, features)
    this.state.G.zero_grad()
    loss.backward()
    for name, parameter in this.state.G.named_parameters():
        used = parameter.grad is not None and bool(parameter.grad.any())
        if "to_img" in name:
            assert not used, name
        if "to_seg" in name:
            assert used, name


def test_the_image_reaches_d_img_with_its_gradient(config, small_data):
    this = trainer(config, small_data[0])
    batch = this.draw(0)
    this.state.D_img(batch.fake_img).sum().backward()
    for name, parameter in this.state.G.named_parameters():
        used = parameter.grad is not None and bool(parameter.grad.any())
        assert used if "to_img" in name and "bias" not in name else not ("to_seg" in name and used), name


def test_ignored_pixels_are_zero_in_real_and_fake(small_config, small_data):
    config = small_config("data.symmetry=none", "gan.seg_augment=0")
    labels = small_data[0].labels.copy()
    labels[:, :, :8] = IGNORE_INDEX
    batch = trainer(config, dataclasses.replace(small_data[0], labels=labels)).draw(0)
    for pair in (batch.real_pair, batch.fake_pair):
        assert pair[1][..., :7].abs().max() < 1e-4  # of 1: the warp's grid is rounded in float32
        assert (pair[1][..., 9:].abs().amax(1) > 0.4).all()


def test_ignored_pixels_stay_zero_when_pairs_are_moved(config, small_data):
    labels = np.full_like(small_data[0].labels, IGNORE_INDEX)
    batch = trainer(config, dataclasses.replace(small_data[0], labels=labels)).draw(0)
    assert not batch.real_pair[1].any() and not batch.fake_pair[1].any()
    assert batch.real_pair[0].any() and batch.fake_pair[0].any()


def test_fake_maps_are_probabilities_from_minus_one_to_one(small_config, small_data):
    batch = trainer(small_config("data.symmetry=none", "gan.seg_augment=0"), small_data[0]).draw(0)
    maps = batch.fake_pair[1]
    assert maps.min() >= -1.001 and maps.max() <= 1.001
    assert torch.allclose(maps.sum(1), torch.tensor(2.0 - 4), atol=0.02)  # bfloat16 softmax


def test_a_draw_depends_on_seed_and_image_number_alone(config, small_data):
    first, second = trainer(config, small_data[0]), trainer(config, small_data[0])
    second.draw(16)
    a, b, other = first.draw(8), second.draw(8), second.draw(24)
    assert torch.equal(a.real_img, b.real_img) and torch.equal(a.fake_img, b.fake_img)
    assert torch.equal(a.real_pair[1], b.real_pair[1]) and not torch.equal(a.fake_img, other.fake_img)


@pytest.mark.parametrize("d_img", ["stylegan2", "projected"])
def test_each_update_changes_its_own_network_alone(small_config, small_data, d_img):
    this = trainer(small_config(f"networks.d_img={d_img}"), small_data[0])
    state, names = this.state, ("G", "D_img", "D_seg", "G_ema")

    def changed(update):
        before = {name: [p.clone() for p in state.members[name].parameters()] for name in names}
        result = update()
        return result, {
            name for name in names
            if any(not torch.equal(a, b) for a, b in zip(before[name], state.members[name].parameters(), strict=True))
        }  # fmt: skip

    batch = this.draw(0)
    assert changed(lambda: this.update_d_img(batch))[1] == {"D_img"}
    (_, features), what = changed(lambda: this.update_d_seg(batch))
    assert what == {"D_seg"}
    assert changed(lambda: this.update_g(batch, features))[1] == {"G"}
    assert changed(lambda: this.update_averages(batch))[1] == {"G_ema"}
    learning = (state.D_seg, state.D_img.heads if d_img == "projected" else state.D_img)
    assert all(p.requires_grad for D in learning for p in D.parameters())
    assert not any(p.requires_grad for p in state.G_ema.parameters())


def test_a_projected_d_img_has_hinge_losses_and_no_r1(small_config, small_data):
    this = trainer(small_config("networks.d_img=projected", "gan.seg_weight=0"), small_data[0])
    batch = this.draw(0)
    this.state.D_img.eval()  # so that the power iterations stand still
    with torch.no_grad(), this.autocast():
        real, fake = this.state.D_img(batch.real_img), this.state.D_img(batch.fake_img)
    stats = this.update_d_img(batch)
    assert torch.equal(stats["D_img"], losses.hinge_d(real, fake)) and "r1_img" not in stats
    assert stats["real_sign"] == torch.stack([p.float().mean((1, 2, 3)) for p in real]).mean(0).sign().mean()
    with torch.no_grad(), this.autocast():
        fake = this.state.D_img(batch.fake_img)
    assert torch.equal(this.update_g(batch, [])["G_img"], losses.hinge_g(fake))


def test_a_projected_d_img_goes_on_from_its_state(small_config, small_data, assert_same):
    """Its random mixing is in the state: another seed's goes on as this one's."""
    this, other = (trainer(small_config("networks.d_img=projected", f"run.seed={seed}"), small_data[0]) for seed in (0, 1))
    batch = this.draw(0)
    this.update_d_img(batch)
    other.state.load_state_dict(copy.deepcopy(this.state.state_dict()))
    for one in (this, other):
        one.update_d_img(batch)
    assert_same(this.state.D_img.state_dict(), other.state.D_img.state_dict())


def test_a_projected_d_img_sees_changed_images_from_the_start(small_config, small_data):
    plain, projected = (trainer(small_config(f"networks.d_img={kind}"), small_data[0]) for kind in ("stylegan2", "projected"))
    same = (plain.draw(0).real_img == projected.draw(0).real_img).flatten(1).all(1)
    assert not same.all()
    projected.update_augmentation(1.0)
    assert projected.state.augment_p == 0


def test_penalties_come_every_so_many_steps(small_config, small_data):
    this = trainer(small_config("gan.r1_every=2", "gan.pl_every=3"), small_data[0])
    due = []
    for nimg in range(0, 48, 8):
        batch = this.draw(nimg)
        d_img = this.update_d_img(batch)
        d_seg, features = this.update_d_seg(batch)
        due.append(("r1_img" in d_img, "r1_seg" in d_seg, "path_length" in this.update_g(batch, features)))
    assert due == [(k % 2 == 0, k % 2 == 0, k % 3 == 0) for k in range(6)]


@pytest.mark.parametrize("share", [0, 1])
def test_style_mixing(small_config, small_data, share):
    this = trainer(small_config(f"gan.style_mixing={share}"), small_data[0])
    w, ws = this.draw_ws(16, torch.Generator().manual_seed(0))
    assert torch.equal(ws[:, 0], w)
    mixed = (ws != w[:, None]).any(2).any(1)
    assert mixed.all() if share else not mixed.any()
    assert ((ws == w[:, None]).all(2).int().diff(dim=1) <= 0).all()  # first rows of one w, then of the other


def test_augmentation_follows_d_imgs_sign(small_config, small_data):
    this = trainer(small_config("gan.ada_target=0.6", "gan.ada_kimg=1"), small_data[0])
    for _ in range(200):
        this.update_augmentation(1.0)
    assert this.state.augment_p == ADA_LIMIT and this.state.real_sign > 0.9
    for _ in range(400):
        this.update_augmentation(0.0)
    assert this.state.augment_p == 0 and abs(this.state.real_sign) < 0.01


def test_augmentation_can_be_off(small_config, small_data):
    this = trainer(small_config("gan.ada_target=0"), small_data[0])
    this.update_augmentation(1.0)
    assert this.state.augment_p == 0
    img = torch.randn(2, 3, 16, 16)
    assert this.augment(img, torch.Generator()) is img


def test_a_picture_does_not_change_the_run(config, small_data, assert_same):
    this = trainer(config, small_data[0])
    before = {name: value.clone() for name, value in this.state.G_ema.state_dict().items()}
    random_state = torch.get_rng_state()
    picture = this.sample_picture()
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert np.array_equal(picture, this.sample_picture())
    assert_same(dict(this.state.G_ema.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), random_state) and not this.state.G_ema.training


# ---------------------------------------------------------------- warnings


def health(tmp_path):
    said = []
    return Health(Run(tmp_path, said.append)), said


GOOD = {"D_seg": 1.0, "real_sign": 0.3, "fake_sign": -0.3}


@pytest.mark.parametrize(
    ("means", "p", "word"),
    [({"D_seg": 0.01}, 0.0, "D_seg"), ({"real_sign": 1.0, "fake_sign": -1.0}, 0.0, "D_img"), ({}, ADA_LIMIT, "by heart")],
)
def test_each_kind_of_trouble_is_told_once(tmp_path, means, p, word):
    this, said = health(tmp_path)
    for _ in range(20):
        this.look(GOOD | means, p)
    assert len(said) == 1 and said[0].startswith("warning: ") and word in said[0]


def test_passing_trouble_is_not_told(tmp_path):
    this, said = health(tmp_path)
    for k in range(20):
        this.look(GOOD | ({"D_seg": 0.01} if k % 5 else {}), 0.5)
    assert said == []


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_grid_shows_image_over_label_map(channels):
    img = torch.tensor([-1.0, 0.0, 1.5]).view(3, 1, 1, 1).expand(3, channels, 8, 8)
    labels = LabelSpec.unnamed(2)
    seg_logits = torch.zeros(3, 2, 8, 8)
    seg_logits[0, 1] = 1
    out = sample_grid(img, seg_logits, labels)
    assert out.shape == (2 * 8, 3 * 8 + 2 * 2, 3)
    assert (out[0, 0] == 0).all() and (out[0, 10] == 128).all() and (out[0, 20] == 255).all()
    assert (out[8, 0] == labels.palette[1]).all() and (out[8, 10] == 0).all()


# ---------------------------------------------------------------- what each update descends


def descended(this, update):
    """The loss of one update, which is left at that."""
    found = []
    this.step = lambda net, optimiser, loss, stats: found.append(loss.detach()) or stats
    update()
    return found[0]


@pytest.fixture
def exact(small_config, small_data):
    """Weights of which none is another, in float32; D_seg's power iterations stand still."""
    this = trainer(
        small_config("run.precision=fp32", "gan.r1_gamma=3", "gan.r1_gamma_seg=5", "gan.r1_every=4", "gan.seg_weight=0.5",
                     "gan.feature_matching=7", "gan.pl_weight=2", "gan.pl_every=3"), small_data[0])  # fmt: skip
    this.state.D_seg.eval()
    return this


@pytest.mark.parametrize(("nimg", "times"), [(0, 4), (8, 0)])
def test_d_img_descends_the_logistic_loss_and_r1(exact, nimg, times):
    batch = exact.draw(nimg)
    real_img = batch.real_img.clone().requires_grad_()
    real, fake = exact.state.D_img(real_img), exact.state.D_img(batch.fake_img.detach())
    (slope,) = torch.autograd.grad(real.sum(), real_img, retain_graph=True)
    softplus = torch.nn.functional.softplus
    expected = softplus(-real).mean() + softplus(fake).mean() + times * 3 / 2 * slope.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(descended(exact, lambda: exact.update_d_img(batch)), expected.detach())


@pytest.mark.parametrize(("nimg", "times"), [(0, 4), (8, 0)])
def test_d_seg_descends_the_hinge_loss_and_r1(exact, nimg, times):
    batch = exact.draw(nimg)
    inputs = [x.clone().requires_grad_() for x in batch.real_pair]
    real, fake = ([scale[-1] for scale in exact.state.D_seg(*pair)] for pair in (inputs, [x.detach() for x in batch.fake_pair]))
    verdict = sum(maps.mean((1, 2, 3)) for maps in real) / len(real)
    slopes = torch.autograd.grad(verdict.sum(), inputs, retain_graph=True)
    hinge = sum((1 - r).relu().mean() + (1 + f).relu().mean() for r, f in zip(real, fake, strict=True)) / len(real)
    expected = hinge + times * 5 / 2 * sum(slope.square().sum((1, 2, 3)) for slope in slopes).mean()
    torch.testing.assert_close(descended(exact, lambda: exact.update_d_seg(batch)), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("nimg", "times"), [(0, 3), (8, 0)])
def test_g_descends_both_games_the_features_and_path_length(exact, nimg, times):
    batch = exact.draw(nimg)
    real_features = [[maps.detach() for maps in scale] for scale in exact.state.D_seg(*batch.real_pair)]
    exact.path_length = lambda random: torch.tensor(0.3)
    features = exact.state.D_seg(*batch.fake_pair)
    game = -sum(scale[-1].mean() for scale in features) / len(features)
    matching = losses.feature_matching(real_features, features)
    logits = exact.state.D_img(batch.fake_img)
    expected = torch.nn.functional.softplus(-logits).mean() + 0.5 * (game + 7 * matching) + times * 2 * 0.3
    torch.testing.assert_close(descended(exact, lambda: exact.update_g(batch, real_features)), expected.detach())


def test_optimisers_count_the_steps_that_count_twice(exact):
    """StyleGAN2, appendix B: lr c and beta^c with c = k / (k + 1); no momentum."""
    gan = exact.gan
    for name, lr, c in (("opt_G", gan.lr_g, 3 / 4), ("opt_D_img", gan.lr_d_img, 4 / 5), ("opt_D_seg", gan.lr_d_seg, 4 / 5)):
        (group,) = exact.state.members[name].param_groups
        assert group["lr"] == pytest.approx(lr * c) and group["betas"] == pytest.approx((0, 0.99**c))


def test_real_and_fake_images_are_changed_alike_before_d_img(small_config, small_data):
    """Of one kind alone G would learn the changes (ADA, section 2.2)."""
    plain, changed = (trainer(small_config("data.symmetry=none", "run.precision=fp32"), small_data[0]) for _ in range(2))
    changed.state.augment_p = 0.8
    before, after = plain.draw(0), changed.draw(0)
    for name in ("real_img", "fake_img"):
        one, other = getattr(before, name), getattr(after, name)
        assert ((one - other).abs().amax((1, 2, 3)) > 1e-3).sum() >= 6  # of 8, each with 1 - .2 ** 7


def test_unlabelled_images_come_in_all_their_views(small_config, small_data):
    this = trainer(small_config("data.symmetry=flip"), small_data[0])
    images = transforms.to_float(torch.from_numpy(small_data[0].images[this.unlabeled_stream.indices(0, 8)]))
    plain, mirrored = ((this.draw(0).real_img == x).flatten(1).all(1) for x in (images, images.flip(-1)))
    assert (plain ^ mirrored).all() and plain.any() and mirrored.any()
