"""The losses against closed forms, autograd by hand, and the laws they must keep."""

import math

import pytest
import torch
import torch.nn.functional as F

from semanticgan import losses

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64: the same sums in another order


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_logistic_losses_at_zero_are_log_two():
    zero = torch.zeros(3)
    assert losses.logistic_d(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert losses.logistic_g(zero).item() == pytest.approx(math.log(2))


def test_logistic_losses_are_the_binary_cross_entropy():
    real, fake = normal(5), normal(4, seed=1)
    expected = F.binary_cross_entropy_with_logits(real, torch.ones_like(real)) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros_like(fake)
    )
    torch.testing.assert_close(losses.logistic_d(real, fake), expected, **EXACT)
    torch.testing.assert_close(losses.logistic_g(fake), F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake)), **EXACT)


@pytest.mark.parametrize(("real", "fake", "expected"), [(1.0, -1.0, 0.0), (0.0, 0.0, 2.0), (-1.0, 2.0, 5.0), (9.0, -9.0, 0.0)])
def test_hinge_d_by_hand(real, fake, expected):
    def scales(value):
        return [torch.full((2, 1, 5, 5), value), torch.full((2, 1, 3, 3), value)]

    assert losses.hinge_d(scales(real), scales(fake)).item() == expected
    assert losses.hinge_g(scales(fake)).item() == -fake


def test_scales_count_alike_whatever_their_size():
    assert losses.hinge_g([torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 2, 2)]).item() == -0.5


def test_feature_matching_averages_layers_and_scales_and_leaves_the_logits_out():
    sides = [[8, 4, 4], [4, 2]]
    real = [[torch.zeros(2, 4, side, side) for side in scale] for scale in sides]
    fake = [[f + v for f, v in zip(maps, values, strict=True)] for maps, values in zip(real, [[1, 3, 99], [-1, 99]], strict=True)]
    assert losses.feature_matching(real, fake).item() == ((1 + 3) / 2 + 1) / 2


def test_feature_matching_sends_no_gradient_to_the_real_features():
    real, fake = (normal(1, 2, 3, 3, seed=s).requires_grad_() for s in (0, 1))
    losses.feature_matching([[real, real]], [[fake, fake]]).backward()
    assert real.grad is None
    assert fake.grad is not None


def test_r1_of_a_known_function():
    img, onehot = normal(3, 2, 4, 4).requires_grad_(), normal(3, 2, 4, 4, seed=1).requires_grad_()
    logits = (img.square().sum((1, 2, 3)) / 2) + 3 * onehot.sum((1, 2, 3))
    expected = img.square().sum((1, 2, 3)) + 9 * onehot[0].numel()
    torch.testing.assert_close(losses.r1_penalty(logits, (img, onehot)), expected, **EXACT)


def test_r1_is_per_sample_and_unchanged_by_a_duplicated_batch():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.Linear(16, 1)).double()

    def penalty(img):
        img = img.clone().requires_grad_()
        return losses.r1_penalty(net(img).squeeze(1), (img,))

    img = normal(3, 3, 4, 4)
    by_hand = []
    for one in img:
        x = one[None].clone().requires_grad_()
        (grad,) = torch.autograd.grad(net(x).sum(), x)
        by_hand.append(grad.square().sum())
    torch.testing.assert_close(penalty(img), torch.stack(by_hand), **EXACT)
    torch.testing.assert_close(penalty(img.repeat(2, 1, 1, 1)), penalty(img).repeat(2), **EXACT)


def test_r1_can_be_differentiated_again():
    weight = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    img = normal(2, 1, 2, 2).requires_grad_()
    losses.r1_penalty(weight * img.sum((1, 2, 3)), (img,)).mean().backward()
    assert weight.grad.item() == pytest.approx(2 * 3 * 4)  # d/dw of w^2 times four pixels


def test_path_length_of_a_linear_generator():
    """img = scale * ws, one pixel a number: the length is scale * |y| / sqrt(h w), averaged over the rows as a square."""
    ws, y = normal(2, 3, 4).requires_grad_(), normal(2, 3, 2, 2, seed=1)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    img = scale * ws.reshape(2, 3, 2, 2)
    penalty, mean = losses.path_length(img, ws, y, torch.tensor(1.0, dtype=torch.float64), decay=0.9)
    lengths = (scale * (y.square().sum((1, 2, 3)) / 3 / 4).sqrt()).detach()
    torch.testing.assert_close(mean, 0.9 + 0.1 * lengths.mean(), **EXACT)
    torch.testing.assert_close(penalty.detach(), (lengths - mean).square(), **EXACT)
    penalty.mean().backward()  # through the gradient, as training does; the mean is a constant
    torch.testing.assert_close(scale.grad, ((lengths - mean) * lengths).mean(), **EXACT)  # 2 (l - a) dl/ds, l = 2 dl/ds


def test_cross_entropy_is_averaged_per_image_first():
    seg_logits = normal(3, 4, 5, 5)
    label = torch.randint(0, 4, (3, 5, 5), generator=torch.Generator().manual_seed(0))
    label[0, 1:] = 255
    label[2] = 255
    each = [F.cross_entropy(seg_logits[i : i + 1], label[i : i + 1], ignore_index=255) for i in (0, 1)]
    torch.testing.assert_close(losses.cross_entropy(seg_logits, label), (each[0] + each[1] + 0) / 3, **EXACT)


def test_ignored_pixels_get_no_gradient():
    label = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    label[:, :2] = 255
    for loss in (losses.cross_entropy, losses.dice_loss):
        seg_logits = normal(2, 3, 4, 4).requires_grad_()
        loss(seg_logits, label).backward()
        assert not seg_logits.grad[:, :, :2].any()
        assert seg_logits.grad[:, :, 2:].any()


def certain(label, num_classes):
    return 100.0 * F.one_hot(label, num_classes).permute(0, 3, 1, 2).double()


def test_dice_loss_by_hand():
    label = torch.tensor([[[0, 1], [1, 1]]])
    right, empty = certain(label, 2), certain(torch.zeros_like(label), 2)
    assert losses.dice_loss(right, label).item() == pytest.approx(0)
    assert losses.dice_loss(empty, label).item() == pytest.approx(1 - 1 / (3 + 1))
    assert losses.dice_loss(torch.zeros(1, 2, 2, 2), label).item() == pytest.approx(1 - (2 * 1.5 + 1) / (2 + 3 + 1))


def test_dice_loss_of_a_class_absent_from_both_is_zero():
    label = torch.zeros(2, 3, 3, dtype=torch.int64)
    assert losses.dice_loss(certain(label, 4), label).item() == pytest.approx(0)


def test_losses_are_float32_from_bfloat16_inputs():
    x = torch.zeros(2, 2, 4, 4, dtype=torch.bfloat16)
    label = torch.zeros(2, 4, 4, dtype=torch.int64)
    for value in (
        losses.logistic_g(x[:, 0, 0, 0]),
        losses.hinge_d([x], [x]),
        losses.feature_matching([[x, x]], [[x, x]]),
        losses.cross_entropy(x, label),
        losses.dice_loss(x, label),
    ):
        assert value.dtype == torch.float32


def test_a_single_labelled_pixel_counts_whole():
    seg_logits, label = normal(1, 3, 4, 4), torch.full((1, 4, 4), 255)
    label[0, 1, 2] = 1
    torch.testing.assert_close(losses.cross_entropy(seg_logits, label), -seg_logits[0, :, 1, 2].log_softmax(0)[1], **EXACT)
