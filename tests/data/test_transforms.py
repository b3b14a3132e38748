import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semanticgan.data import transforms as tf
from semanticgan.labels import IGNORE_INDEX

SIDES = st.integers(1, 90)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


# ---------------------------------------------------------------- fit and unfit


@given(height=SIDES, width=SIDES, fit=st.sampled_from(["squash", "pad"]))
@settings(deadline=None, max_examples=80)
def test_the_box_lies_in_the_square_and_pad_keeps_the_aspect(height, width, fit):
    top, left, h, w = tf.fitted_box(height, width, 32, fit)
    assert top >= 0 and left >= 0 and h >= 1 and w >= 1 and top + h <= 32 and left + w <= 32
    if fit == "squash":
        assert (h, w) == (32, 32)
    else:
        assert max(h, w) == 32 and abs(top - (32 - h) / 2) <= 0.5 and abs(left - (32 - w) / 2) <= 0.5
        assert abs(h - max(1, 32 * height / max(height, width))) <= 0.5


@given(height=SIDES, width=SIDES, fit=st.sampled_from(["squash", "pad"]), channels=st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=40)
def test_constant_images_and_maps_stay_constant(height, width, fit, channels):
    img = np.full((height, width, channels), 77, np.uint8)
    assert (tf.fit_image(img, 16, fit) == 77).all()
    maps = tf.unfit(torch.full((1, 2, 16, 16), 0.25), (height, width), fit)
    assert maps.shape == (1, 2, height, width) and (maps - 0.25).abs().max() < 1e-6  # bilinear weights add up to 1


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_what_has_the_right_size_is_not_touched(fit):
    random = np.random.default_rng(0)
    img, label = random.integers(0, 256, (16, 16, 3), dtype=np.uint8), random.integers(0, 3, (16, 16), dtype=np.uint8)
    assert (tf.fit_image(img, 16, fit) == img).all() and (tf.fit_label(label, 16, fit, 3) == label).all()
    maps = noise(1, 3, 16, 16)
    assert torch.equal(tf.unfit(maps, (16, 16), fit), maps)


def test_pad_repeats_the_edge_and_ignores_it_in_labels():
    img = np.zeros((16, 8, 1), np.uint8)
    img[:, 0], img[:, -1] = 10, 20
    out = tf.fit_image(img, 16, "pad")
    assert (out[:, :4] == 10).all() and (out[:, 12:] == 20).all()
    label = tf.fit_label(np.ones((16, 8), np.uint8), 16, "pad", 2)
    assert (label[:, 4:12] == 1).all() and (label[:, :4] == IGNORE_INDEX).all() and (label[:, 12:] == IGNORE_INDEX).all()


def test_labels_take_the_class_that_covers_most():
    label = np.random.default_rng(1).integers(0, 3, (48, 32)).astype(np.uint8)
    label[:3, :2] = IGNORE_INDEX
    out = tf.fit_label(label, 16, "squash", 3)
    blocks = label.reshape(16, 3, 16, 2).transpose(0, 2, 1, 3).reshape(16, 16, 6)
    counts = np.stack([(blocks == k).sum(-1) for k in (0, 1, 2, IGNORE_INDEX)], -1)
    best = counts.max(-1)
    taken = np.take_along_axis(counts, np.where(out == IGNORE_INDEX, 3, out)[..., None].astype(int), -1)[..., 0]
    assert (taken == best).all() and out[0, 0] == IGNORE_INDEX


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("size", [(60, 45), (20, 50), (16, 16), (9, 7)])
def test_image_and_label_are_fitted_alike(fit, size):
    label = np.zeros(size, np.uint8)
    label[size[0] // 4 : size[0] // 2, size[1] // 3 :] = 1
    img = np.repeat(label[..., None] * 255, 3, -1).astype(np.uint8)
    fitted, fitted_label = tf.fit_image(img, 32, fit)[..., 0], tf.fit_label(label, 32, fit, 2)
    known = fitted_label != IGNORE_INDEX
    wrong = (fitted > 127) != (fitted_label == 1)
    assert wrong[known].mean() < 0.05  # the two resampling filters differ on the object's outline alone


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("size", [(60, 45), (20, 50), (33, 32)])
def test_unfit_undoes_fit_on_a_smooth_image(fit, size):
    y, x = np.mgrid[: size[0], : size[1]]
    ramp = (40 + 100 * y / size[0] + 60 * x / size[1]).astype(np.uint8)[..., None]
    square = torch.from_numpy(tf.fit_image(ramp, 32, fit)).permute(2, 0, 1)[None].float()
    back = tf.unfit(square, size, fit)[0, 0].numpy()
    assert np.abs(back - ramp[..., 0])[3:-3, 3:-3].max() < 4  # of 255: rounding, and half a pixel of the small square


def test_unfit_leaves_the_padding_out():
    top, left, h, w = tf.fitted_box(20, 50, 32, "pad")
    maps = torch.full((1, 1, 32, 32), math.nan)
    maps[:, :, top : top + h, left : left + w] = 1
    assert (tf.unfit(maps, (20, 50), "pad") - 1).abs().max() < 1e-6


# ---------------------------------------------------------------- bytes, floats, one-hot maps


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_come_back_from_floats(channels):
    img_u8 = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, 16, 16, channels).contiguous()
    img = tf.to_float(img_u8)
    assert img.shape == (2, channels, 16, 16) and img.min() == -1 and img.max() == 1
    assert torch.equal(tf.to_u8(img), img_u8)


def test_bytes_are_clipped():
    assert tf.to_u8(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_onehot_and_its_ignored_pixels():
    label = torch.randint(0, 4, (2, 5, 6), generator=seeded())
    label[0, 0, :3] = IGNORE_INDEX
    onehot = tf.onehot_from_label(label, 4)
    known = label != IGNORE_INDEX
    assert torch.equal(onehot.argmax(1)[known], label[known])
    assert (onehot.sum(1)[known] == 2 - 4).all() and (onehot.abs().sum(1)[known] == 4).all()
    assert (onehot.movedim(1, -1)[~known] == 0).all()


# ---------------------------------------------------------------- symmetries


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4, 4)])
def test_unview_undoes_view_and_view_undoes_unview(index, shape):
    x = noise(*shape)
    assert torch.equal(tf.unview(tf.view(x, index), index), x)
    assert torch.equal(tf.view(tf.unview(x, index), index), x)


def test_the_eight_views_are_a_group():
    x = noise(3, 3)
    views = [tf.view(x, k) for k in range(8)]
    assert torch.equal(views[0], x) and torch.equal(views[1], x.flip(-1)) and torch.equal(views[2], torch.rot90(x, 1, (-2, -1)))
    assert len({tuple(v.flatten().tolist()) for v in views}) == 8
    for v in views:
        for k in range(8):
            assert any(torch.equal(tf.view(v, k), other) for other in views)


def test_which_views_are_allowed():
    assert tf.view_indices("none") == (0,) and tf.view_indices("flip") == (0, 1) and tf.view_indices("all") == tuple(range(8))
    for symmetry in ("none", "flip", "all"):
        assert set(tf.random_views(symmetry, 200, seeded()).tolist()) == set(tf.view_indices(symmetry))


def test_each_image_in_its_own_view():
    x, indices = noise(16, 2, 4, 4), tf.random_views("all", 16, seeded(3))
    out = tf.apply_views(x, indices)
    for k, index in enumerate(indices.tolist()):
        assert torch.equal(out[k], tf.view(x[k], index))


# ---------------------------------------------------------------- warps


def identity(n):
    return torch.eye(2, 3).repeat(n, 1, 1)


def test_no_strength_and_no_probability_are_the_identity():
    for settings_ in ({}, {"rotation": 1.0, "scale": 1.0, "shift": 1.0, "probability": 0.0}):
        assert torch.allclose(tf.random_affine(5, seeded(), **settings_), identity(5))


@pytest.mark.parametrize("padding", ["reflection", "zeros"])
def test_warp_by_the_identity(padding):
    x = noise(2, 3, 16, 16)
    assert torch.allclose(tf.warp(x, identity(2), padding), x, atol=1e-4)  # the grid's float32 rounding times 16 px


def test_warp_by_whole_pixels_and_by_a_quarter_turn():
    x = noise(1, 2, 16, 16).double()
    shift = identity(1).double()
    shift[0, 0, 2] = 2 * 3 / 16  # output pixel j shows input pixel j + 3
    assert torch.allclose(tf.warp(x, shift, "zeros")[..., :13], x[..., 3:], atol=1e-9)
    turn = torch.tensor([[[0.0, -1, 0], [1, 0, 0]]]).double()
    assert any(torch.allclose(tf.warp(x, turn), torch.rot90(x, k, (-2, -1)), atol=1e-9) for k in (1, 3))


def test_reflection_keeps_a_constant_image_constant():
    theta = tf.random_affine(8, seeded(), rotation=1.0, scale=0.5, shift=0.3)
    assert torch.allclose(tf.warp(torch.full((8, 1, 16, 16), 0.7), theta), torch.tensor(0.7))


def test_affine_draws_have_the_set_spread():
    theta = tf.random_affine(20_000, seeded(), rotation=0.3, scale=0.25, shift=0.1)
    zoom = theta[:, :, :2].det().sqrt()
    angle = torch.atan2(theta[:, 1, 0], theta[:, 0, 0])
    assert torch.log2(zoom).std().item() == pytest.approx(0.25, rel=0.03)
    assert angle.std().item() == pytest.approx(0.3, rel=0.03)
    assert (theta[:, :, 2] / 2).std().item() == pytest.approx(0.1, rel=0.03)


def test_warp_passes_gradients_to_the_image():
    x = noise(1, 1, 8, 8).double().requires_grad_()
    theta = tf.random_affine(1, seeded(), rotation=0.3, scale=0.2, shift=0.1).double()
    assert torch.autograd.gradcheck(lambda x: tf.warp(x, theta), x)


@pytest.mark.parametrize("symmetry", ["none", "flip", "all"])
def test_image_and_label_map_move_together(symmetry):
    maps = noise(6, 3, 16, 16)
    both = tf.move(torch.cat([maps, maps], 1), seeded(), symmetry, 1.0)
    assert torch.equal(both[:, :3], both[:, 3:]) and not torch.allclose(both[:, :3], maps)


@pytest.mark.parametrize("symmetry", ["none", "flip", "all"])
def test_without_strength_move_is_a_symmetry(symmetry):
    x = noise(8, 2, 16, 16)
    out = tf.move(x, seeded(), symmetry, 0.0)
    for a, b in zip(x, out, strict=True):
        assert any(torch.allclose(tf.view(a, k), b, atol=1e-4) for k in tf.view_indices(symmetry))


def test_the_same_generator_state_gives_the_same_changes():
    x = noise(4, 3, 16, 16)
    for change in (lambda r: tf.move(x, r, "all", 1.0), lambda r: tf.recolour(x, r, 1.0)):
        assert torch.equal(change(seeded(5)), change(seeded(5))) and not torch.equal(change(seeded(5)), change(seeded(6)))


# ---------------------------------------------------------------- colour


def test_colour_of_no_strength_or_probability_is_the_identity():
    x = noise(4, 3, 5, 5)
    assert torch.allclose(tf.recolour(x, seeded(), 0.0), x, atol=1e-6)
    assert torch.allclose(tf.apply_colour(x, tf.random_colour(4, 3, seeded(), probability=0.0)), x, atol=1e-6)


def test_hue_and_saturation_keep_grey_grey_and_brightness_moves_it():
    grey = noise(50, 1, 4, 4).expand(50, 3, 4, 4)
    matrix, offset = tf.random_colour(50, 3, seeded(), brightness=0.0, contrast=0.0)
    assert (offset == 0).all() and torch.allclose(tf.apply_colour(grey, (matrix, offset)), grey, atol=1e-5)
    matrix, offset = tf.random_colour(50, 3, seeded(), contrast=0.0)
    moved = tf.apply_colour(grey, (matrix, offset)) - grey
    assert torch.allclose(moved, offset[:, :, None, None].expand_as(moved), atol=1e-5)


def test_hue_is_a_rotation():
    matrix, _ = tf.random_colour(20, 3, seeded(), contrast=0.0, saturation=0.0, hue=1.0)
    assert torch.allclose(matrix @ matrix.mT, torch.eye(3).expand(20, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(matrix), torch.ones(20), atol=1e-5)


def test_grey_images_have_brightness_and_contrast():
    x = noise(6, 1, 4, 4)
    matrix, offset = tf.random_colour(6, 1, seeded())
    assert torch.allclose(tf.apply_colour(x, (matrix, offset)), x * matrix[:, :, :, None] + offset[:, :, None, None])
    assert tf.recolour(x, seeded(), 1.0).shape == x.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_finer_than_the_square_becomes_its_mean(channels):
    stripes = np.zeros((64, 64, channels), np.uint8)
    stripes[::2, ::2] = stripes[1::2, 1::2] = 200
    assert np.abs(tf.fit_image(stripes, 16, "squash").astype(int) - 100)[2:-2, 2:-2].max() <= 6


def test_contrast_is_about_each_images_mean_colour_and_cut():
    img = torch.tensor([[[0.0, 0.4], [0.8, 0.8]], [[-0.5, 0.9], [0.0, 0.0]]])[:, :, None]  # [2 images, 2 channels, 1, 2]
    expected = torch.tensor([[[-0.2, 0.6], [0.8, 0.8]], [[-1.0, 1.0], [0.0, 0.0]]])[:, :, None]
    torch.testing.assert_close(tf.with_contrast(img, 2.0), expected)


def test_colour_draws_have_the_set_spread():
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    gain, offset = tf.random_colour(20_000, 1, seeded(), contrast=0.4, brightness=0.2)
    assert gain.log2().std().item() == pytest.approx(0.4, rel=0.03) and offset.std().item() == pytest.approx(0.2, rel=0.03)
    vivid, _ = tf.random_colour(20_000, 3, seeded(), **off | {"saturation": 0.6})
    spread = vivid.diagonal(dim1=1, dim2=2).sum(1).sub(1).div(2).log2().std()  # eigenvalues 1, and the factor twice
    assert spread.item() == pytest.approx(0.6, rel=0.03)
    turned, _ = tf.random_colour(20_000, 3, seeded(), **off | {"hue": 0.2})
    angle = turned.diagonal(dim1=1, dim2=2).sum(1).sub(1).div(2).clamp(-1, 1).acos()  # trace of a rotation
    assert angle.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.03)
