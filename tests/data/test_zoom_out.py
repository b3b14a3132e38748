import pytest
import torch

from semanticgan.data.zoom_out import background, zoom_in, zoom_out
from semanticgan.labels import IGNORE_INDEX


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def discs(n=64, side=32, radius=9):
    """Bright discs (class 1) in the middle of a dark ground."""
    ys, xs = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2,) * 2, indexing="ij")
    label = (ys.square() + xs.square() < radius**2).long().expand(n, side, side).contiguous()
    return (label[:, None].float() * 1.2 - 0.6).expand(n, 3, side, side).contiguous(), label


def test_image_and_label_shrink_together_and_stay_whole():
    img, label = discs()
    far, far_label = zoom_out(img, label, seeded(), 1.0)
    sure = (far[:, 0].abs() > 0.45) & torch.ones_like(far_label, dtype=torch.bool)
    assert sure.float().mean() > 0.8 and torch.equal((far[:, 0] > 0)[sure], (far_label == 1)[sure])
    areas = (far_label == 1).sum((1, 2)) / (label == 1).sum((1, 2))
    assert areas.min() > 0.08 and areas.max() <= 1  # 1/9 at least, up to the pixel grid, and never cut off
    assert (areas < 0.2).any() and (areas > 0.7).any()  # the whole range is drawn
    middles = torch.stack([(m == 1).nonzero().float().mean(0) for m in far_label])
    assert middles.std(0).min() > 2  # anywhere in the square


def test_a_constant_image_stays_constant():
    img, label = torch.full((8, 1, 16, 16), 0.3), torch.zeros(8, 16, 16, dtype=torch.long)
    assert torch.allclose(zoom_out(img, label, seeded(), 1.0)[0], img, atol=1e-5)


def test_share_of_images_and_the_others_untouched():
    img, label = discs(n=400)
    far, far_label = zoom_out(img, label, seeded(), 0.5)
    changed = (far != img).flatten(1).any(1)
    assert 0.4 < changed.float().mean() < 0.6  # four standard deviations of a fair coin
    assert torch.equal(far_label[~changed], label[~changed])
    same, same_label = zoom_out(img, label, seeded(), 0.0)
    assert torch.equal(same, img) and torch.equal(same_label, label)


def test_objects_that_touch_the_edge_are_left_where_they_are():
    img, label = discs()
    label[:, :, 0] = 1
    far, far_label = zoom_out(img, label, seeded(), 1.0)
    assert torch.equal(far, img) and torch.equal(far_label, label)


def test_ignored_pixels_shrink_as_ignored():
    img, label = discs()
    label[label == 1] = IGNORE_INDEX
    far_label = zoom_out(img, label, seeded(), 1.0)[1]
    assert set(far_label.unique().tolist()) == {0, IGNORE_INDEX}


def test_nothing_is_known_round_an_ignored_edge():
    img, label = discs()
    label[:, :4] = IGNORE_INDEX  # a padded image
    far_label = zoom_out(img, label, seeded(), 1.0)[1]
    changed = (far_label != label).flatten(1).any(1)
    corners = far_label[changed][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert changed.sum() > 50 and (corners == IGNORE_INDEX).float().mean() > 0.7  # the frame itself may end in a corner


def test_the_background_leaves_objects_out():
    img, label = discs()
    ground = background(img, label)
    assert (ground + 0.6).abs().max() < 0.02  # the floor of the weights lets a thousandth through


def test_without_background_its_colour_is_the_images_mean():
    img, label = torch.rand(2, 3, 16, 16, generator=seeded()), torch.ones(2, 16, 16, dtype=torch.long)
    expected = img.mean((2, 3), keepdim=True).expand_as(img)
    assert torch.allclose(background(img, label), expected, atol=0.02)  # cells of 2 and 3 pixels count alike


def test_the_same_generator_state_gives_the_same_images():
    img, label = discs(n=4)
    first, second = (zoom_out(img, label, seeded(3), 0.7) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_kept(dtype):
    img, label = discs(n=2)
    far, far_label = zoom_out(img.to(dtype), label, seeded(), 1.0)
    assert far.dtype == dtype and far_label.dtype == torch.int64


def test_a_piece_is_enlarged_with_its_label():
    img, label = discs()
    near, near_label = zoom_in(img, label, seeded(), 1.0)
    sure = near[:, 0].abs() > 0.45
    assert sure.float().mean() > 0.8 and torch.equal((near[:, 0] > 0)[sure], (near_label == 1)[sure])
    lit = near_label[(near_label == 1).flatten(1).any(1)]
    spans = (lit == 1).any(1).sum(1) / 18  # the discs are 18 pixels wide
    assert 1.2 < spans.float().quantile(0.9) < 32 / 18 + 0.01  # up to twice as wide, or as wide as the frame
    assert (near_label[:, :, 0] == 1).any()  # and cut off


def test_share_of_pieces_and_the_others_untouched():
    img, label = discs(n=400)
    near, near_label = zoom_in(img, label, seeded(), 0.3)
    changed = (near != img).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.4  # four standard deviations
    assert torch.equal(near_label[~changed], label[~changed])


def test_ignored_pixels_grow_as_ignored():
    img, label = discs()
    label[label == 1] = IGNORE_INDEX
    assert set(zoom_in(img, label, seeded(), 1.0)[1].unique().tolist()) == {0, IGNORE_INDEX}


def test_what_is_far_away_has_no_finer_detail():
    """A chequerboard of single pixels is averaged, not sampled, where three pixels become one."""
    _, label = discs()
    ys, xs = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    board = (1 - 2 * ((ys + xs) % 2)).float().expand(64, 1, 32, 32).contiguous()
    far, far_label = zoom_out(board, label, seeded(), 1.0)
    farthest = (far_label == 1).sum((1, 2)) / (label == 1).sum((1, 2)) < 0.15  # factors above 2.5
    assert farthest.sum() > 3 and far[farthest].abs().max() < 0.4


def test_the_frame_fades_at_its_edge_alone():
    img, label = discs()
    far, far_label = zoom_out(img, label, seeded(), 1.0)
    near = (far_label == 1).sum((1, 2)) > 0.5 * (label == 1).sum((1, 2))
    objects = far[near][:, 0][far_label[near] == 1]
    assert near.sum() > 5 and (objects > 0.5).float().mean() > 0.8  # all but soft outlines


def test_the_background_keeps_away_from_soft_edges():
    """Where labels are drawn two pixels too small."""
    img, _ = discs(radius=9)
    _, label = discs(radius=7)
    assert (background(img, label) + 0.6).abs().max() < 0.05
