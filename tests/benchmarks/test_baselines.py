"""The other methods: each loss at its limits, each method for a few steps, interrupted and not; the networks against ours."""

import json
import math

import numpy as np
import pytest
import torch
from baselines import advssl, gct, mean_teacher, unimatch
from baselines.batches import Batches, Changes, Images
from baselines.loop import train
from baselines.networks import SmallUNet, load_imagenet, new_network
from baselines.supervised import Settings, Supervised

from semanticgan.config import StudentConfig
from semanticgan.errors import UserError
from semanticgan.labels import IGNORE_INDEX
from semanticgan.nn.backbone import EfficientNetLite0
from semanticgan.nn.unet import UNet

METHODS = [Supervised, mean_teacher.MeanTeacher, advssl.AdvSSL, gct.GCT, unimatch.UniMatch]
CLASSES, SIDE = 4, 16


def tiny_network(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallUNet(3, CLASSES, (8, 16))


@pytest.fixture(scope="module")
def batches(small_data):
    data, _ = small_data
    return Batches(Images(data.labeled, data.labels, data.images, CLASSES, "all"), 0, 4, Changes())


def new_method(kind, **settings):
    return kind(tiny_network, kind.settings_class(batch=4, **settings), 0, 3, CLASSES)


def logits(seed, n=2):
    return torch.randn(n, CLASSES, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- every method


@pytest.mark.parametrize("kind", METHODS)
def test_a_few_steps_repeat_whether_interrupted_or_not(kind, batches, tmp_path, assert_same):
    whole, _ = train(new_method(kind), batches, 4)
    path, count = tmp_path / "state.pt", 0

    class Stopped(Exception):  # noqa: N818
        pass

    method = new_method(kind)
    update = method.update

    def update_twice(batch, progress):
        nonlocal count
        count += 1
        if count == 3:
            raise Stopped
        return update(batch, progress)

    method.update = update_twice
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("baselines.loop.SECONDS_BETWEEN_CHECKPOINTS", 0)
        train(method, batches, 4, path)
    again = new_method(kind)
    resumed, seconds = train(again, batches, 4, path)
    assert_same(whole.state_dict(), resumed.state_dict())
    assert seconds > 0 and not resumed.training
    assert all(torch.isfinite(p).all() for p in resumed.parameters())


def test_a_state_of_other_settings_is_refused(batches, tmp_path):
    train(new_method(Supervised), batches, 1, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"state\.pt: was begun with steps 1 instead of 2; delete it"):
        train(new_method(Supervised), batches, 2, tmp_path / "state.pt")


@pytest.mark.parametrize("kind", METHODS)
def test_every_network_of_a_method_learns(kind, batches):
    method = new_method(kind)
    before = {name: [p.clone() for p in m.parameters()] for name, m in method.members.items() if isinstance(m, torch.nn.Module)}
    train(method, batches, 4)
    for name, old in before.items():
        changed = [not torch.equal(a, b) for a, b in zip(old, method.members[name].parameters(), strict=True)]
        assert sum(changed) > len(changed) / 2, name


def test_the_labelled_images_are_the_same_for_every_method(batches):
    first, second = batches.at(8), batches.at(8)
    second.unlabeled, second.recoloured("anything")  # what else is drawn does not matter
    assert torch.equal(first.labeled[0], second.labeled[0])
    assert not torch.equal(first.labeled[0], batches.at(12).labeled[0])
    assert not torch.equal(first.recoloured("a"), first.recoloured("b"))


def test_supervised_training_learns(batches):
    method = new_method(Supervised)
    first = method.update(batches.at(0), 0.0)["loss"]
    for step in range(1, 40):
        last = method.update(batches.at(4 * step), 0.0)["loss"]
    assert last < 0.8 * first  # about a third is lost in 40 steps


# ---------------------------------------------------------------- Mean Teacher


def test_consistency_is_zero_between_equals():
    assert mean_teacher.consistency(logits(0), logits(0)) == 0
    assert mean_teacher.consistency(logits(0), logits(1)) > 0
    shifted = logits(0) + 3  # the same probabilities
    torch.testing.assert_close(mean_teacher.consistency(logits(0), shifted), torch.tensor(0.0), atol=1e-12, rtol=0)


def test_the_teacher_gets_no_gradient():
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    mean_teacher.consistency(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


def test_ramp():
    assert mean_teacher.ramp_up(0.0, 0.3) == pytest.approx(math.exp(-5))
    assert mean_teacher.ramp_up(0.15, 0.3) == pytest.approx(math.exp(-5 / 4))
    assert mean_teacher.ramp_up(0.3, 0.3) == mean_teacher.ramp_up(1.0, 0.3) == mean_teacher.ramp_up(0.0, 0.0) == 1


# ---------------------------------------------------------------- AdvSSL


def test_verdicts_of_the_discriminator():
    unsure, sure = torch.zeros(2, SIDE, SIDE), torch.full((2, SIDE, SIDE), 20.0)
    for real in (True, False):
        assert advssl.judged(unsure, real).item() == pytest.approx(math.log(2))
    for right, wrong in ((sure, -sure), (-sure, sure)):  # "label map" of a label map, then "prediction" of a prediction
        real = bool((right > 0).all())
        assert advssl.judged(right, real) < 1e-6
        assert advssl.judged(wrong, real) > 19
    valid = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    assert advssl.judged(sure, False, valid) == 0


def test_only_trusted_pixels_teach():
    doubt = torch.full((2, SIDE, SIDE), -20.0)
    loss, share = advssl.self_taught(logits(0), doubt, 0.2)
    assert loss == share == 0
    doubt[:, :, : SIDE // 2] = 20.0
    half, share = advssl.self_taught(logits(0), doubt, 0.2)
    own = torch.nn.functional.cross_entropy(logits(0), logits(0).argmax(1), reduction="none")
    assert share == 0.5
    torch.testing.assert_close(half, own[:, :, : SIDE // 2].mean())
    assert advssl.self_taught(logits(0) * 1e5, doubt, 0.2)[0] < 1e-3  # sure of its own classes: nothing to learn


def test_each_side_of_the_game_leaves_the_other_alone(batches):
    method = new_method(advssl.AdvSSL)
    img, label = batches.at(0).labeled
    before = [p.clone() for p in method.net.parameters()]
    method.update_d(method.net(img).detach(), label, label != IGNORE_INDEX)
    assert all(torch.equal(a, b) for a, b in zip(before, method.net.parameters(), strict=True))


# ---------------------------------------------------------------- GCT


def test_flaw_maps_are_stretched_before_they_count(batches):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = gct.FlawDetector(3, CLASSES, filters=8)
    found = detector(batches.at(0).labeled[0], logits(0, 4).softmax(1))
    assert found.shape == (4, SIDE, SIDE)
    seen = gct.seen_flaws(found.detach().abs() + 0.2)
    assert seen.amin((1, 2)).tolist() == [0] * 4 and seen.amax((1, 2)).tolist() == [1] * 4
    faint = torch.rand(4, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) / 10
    assert not gct.seen_flaws(faint).any() and not gct.seen_flaws(-faint - 1).any()


def test_flaws_are_where_predictions_are_wrong():
    label = torch.zeros(1, SIDE, SIDE, dtype=torch.long)
    right = torch.nn.functional.one_hot(label, CLASSES).permute(0, 3, 1, 2).float()
    assert gct.flaws(right, label).abs().max() == 0
    wrong = right.clone()
    wrong[:, :, 2:6, 2:6] = torch.tensor([0.0, 1, 0, 0])[:, None, None]
    found = gct.flaws(wrong, label)
    assert found.max().item() == pytest.approx(1) and found[0, 3, 3] > 0.75 and found[0, 15, 15] == 0
    ignored = label.clone()
    ignored[:, 2:6, 2:6] = IGNORE_INDEX
    assert gct.flaws(wrong, ignored).abs().max() == 0
    torch.testing.assert_close(gct.flaws(0.9 * right + 0.1 * wrong, label), found, atol=1e-5, rtol=0)  # where, not how much


def test_two_bad_answers_teach_nothing():
    a, b = torch.rand(2, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    mine, theirs = gct.worse(a, b, 0.6), gct.worse(b, a, 0.6)
    assert not (mine & theirs).any()
    assert not (mine | theirs)[(a > 0.6) & (b > 0.6)].any()
    assert mine[(a > b) & (b < 0.6)].all()


# ---------------------------------------------------------------- UniMatch


def test_threshold_of_pseudo_labels():
    label, sure = unimatch.pseudo_labels(logits(0), 0.6)
    probability = logits(0).softmax(1)
    assert torch.equal(label, probability.argmax(1))
    assert torch.equal(sure, (probability >= 0.6).any(1))
    assert not unimatch.pseudo_labels(logits(0), 1.1)[1].any()
    assert unimatch.sure_cross_entropy(logits(1), label, torch.zeros_like(sure)) == 0
    everywhere = unimatch.sure_cross_entropy(logits(1), label, torch.ones_like(sure))
    torch.testing.assert_close(everywhere, torch.nn.functional.cross_entropy(logits(1), label))


def test_rectangles():
    boxes = unimatch.rectangles(4000, 64, 0.5, torch.Generator().manual_seed(0))
    share = boxes.float().mean((1, 2))
    pasted = share > 0
    assert pasted.float().mean().item() == pytest.approx(0.5, abs=0.03)  # four standard deviations
    assert share[pasted].min() > 0.01 and share.max() < 0.43  # 2 to 40 %, less and more what whole pixels make of it
    rows, columns = boxes.any(2).float().sum(1), boxes.any(1).float().sum(1)
    torch.testing.assert_close(rows * columns, boxes.float().sum((1, 2)))
    assert not unimatch.rectangles(10, 16, 0.0, torch.Generator().manual_seed(0)).any()


def test_dropped_channels():
    ones = [torch.ones(50, 40, 2, 2)]
    (dropped,) = unimatch.drop_channels(ones, 0.5, torch.Generator().manual_seed(0))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.09)  # four standard deviations
    assert torch.equal(dropped, dropped[:, :, :1, :1].expand_as(dropped))
    (kept,) = unimatch.drop_channels(ones, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(kept, ones[0])


# ---------------------------------------------------------------- networks


def test_the_small_unet_is_the_packages():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours, split = UNet(3, 2, (8, 16, 16)), SmallUNet(3, 2, (8, 16, 16))
    split.load_state_dict(ours.state_dict())
    img = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(split(img), ours(img))


def test_a_missing_package_is_said():
    if _has("segmentation_models_pytorch"):
        pytest.skip("segmentation-models-pytorch is installed")
    with pytest.raises(UserError, match=r"semanticgan\[baselines\]"):
        new_network("unet", 3, 2, 0)


def _has(name):
    from importlib.util import find_spec

    return find_spec(name) is not None


@pytest.mark.parametrize("name", ["unet", "deeplab", "unet-imagenet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_the_library(name, channels):
    pytest.importorskip("segmentation_models_pytorch")
    net = new_network(name, channels, 2, 0)
    img = torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    assert net.eval()(img).shape == (2, 2, 64, 64)
    method = Supervised(lambda seed: new_network(name, channels, 2, seed), Settings(batch=2), 0, channels, 2)
    rates = [group["initial_lr"] for group in method.optimizer.param_groups]
    assert rates == ([1e-3, 3e-4] if name == "unet-imagenet" else [1e-3])


def test_every_tap_of_the_atrous_convolutions_sees_the_map():
    pytest.importorskip("segmentation_models_pytorch")
    for resolution in (64, 128):
        net = new_network("deeplab", 3, 2, 0, resolution)
        net(torch.randn(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))).sum().backward()
        dilated = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.dilation[0] > 1 < m.kernel_size[0]]
        assert sorted({m.dilation[0] for m in dilated}) == [2, 3, 4]
        assert all((m.weight.grad.abs().amax((0, 1)) > 0).all() for m in dilated)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_students_own_network(channels):
    net = new_network("unet-student", channels, 2, 0, 32)
    assert net.widths == StudentConfig().widths[:4]  # as many as fit at 32 px, as `distill` takes
    assert net(torch.zeros(1, channels, 32, 32)).shape == (1, 2, 32, 32)
    published = EfficientNetLite0().load_imagenet().state_dict()
    assert all(torch.equal(value, published[name]) for name, value in net.trunk.state_dict().items())
    method = Supervised(lambda seed: net, Settings(batch=2), 0, channels, 2)
    assert [group["initial_lr"] for group in method.optimizer.param_groups] == [1e-3, 3e-4]


def test_unlabelled_images_come_from_farther_away_and_nearer_too(batches):
    plain, far, near = (
        Batches(batches.images, 0, 16, Changes(strength=0.0, **{name: 1.0} if name else {})).at(0).unlabeled
        for name in ("", "far", "near")
    )
    assert not torch.equal(plain, far) and not torch.equal(plain, near) and far.shape == near.shape == plain.shape


def test_imagenet_weights_lie_where_they_belong():
    """The library's encoder gives the maps of our own EfficientNet-lite0, whose weights are the same in half precision."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    encoder = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=2).encoder.eval()
    load_imagenet(encoder)
    ours = EfficientNetLite0().load_imagenet().eval()
    img = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for theirs, mine in zip(encoder(img)[1:], ours(img), strict=True):
            assert (theirs - mine).abs().max() < 0.01 * theirs.abs().max()


def test_settings_are_plain():
    """They go into the results' JSON."""
    import dataclasses

    for kind in METHODS:
        assert json.loads(json.dumps(dataclasses.asdict(kind.settings_class())))["batch"] == 16
    assert np.isclose(Changes().strength, Settings().augment)
