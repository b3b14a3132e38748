import numpy as np
import torch

from semanticgan.data.pieces import (
    SURE,
    are_convex,
    convex_hull,
    have_one_object,
    least_share,
    lesser_pieces,
    pieces,
    with_one_object,
    with_some_object,
)
from semanticgan.data.transforms import view
from semanticgan.labels import IGNORE_INDEX


def mask(*rows):
    return torch.tensor([[c != "." for c in row] for row in rows])[None]


def by_flooding(mask):
    """The definition: pixels that can be reached from each other over sides and corners."""
    out, number = torch.zeros_like(mask, dtype=torch.long), 0
    for start in mask.nonzero().tolist():
        if out[tuple(start)]:
            continue
        number, waiting = number + 1, [start]
        while waiting:
            y, x = waiting.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not out[y, x]:
                out[y, x] = number
                waiting += [[y + dy, x + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return out


def test_pieces_are_what_flooding_finds():
    random = torch.Generator().manual_seed(0)
    masks = torch.rand(20, 17, 23, generator=random) < torch.linspace(0.05, 0.6, 20)[:, None, None]
    for found, expected in zip(pieces(masks), map(by_flooding, masks), strict=True):
        pairs = set(zip(found.flatten().tolist(), expected.flatten().tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) and (0, 0) in pairs


def test_a_long_winding_piece_is_one():
    snake = mask("#####", "....#", "#####", "#....", "#####", ".....", "##...")
    ids = pieces(snake)[0]
    assert len(ids[:5].unique()) == 2 and len(ids.unique()) == 3


def test_the_piece_with_the_highest_sum_is_kept():
    prob = torch.zeros(1, 5, 7)
    prob[0, 0, :3], prob[0, 3:, 4:6] = 0.9, 0.6  # sums 2.7 and 2.4
    assert torch.equal(lesser_pieces(prob), (prob > 0.5) & (prob < 0.7))
    assert not lesser_pieces(torch.zeros(2, 4, 4)).any()


def test_classes_are_exchanged_in_the_other_pieces_alone():
    first = torch.full((1, 5, 7), 0.2)
    first[0, 0, :3], first[0, 3:, 5:] = 0.9, 0.6
    probs = torch.stack([1 - first, first], 1)
    out = with_one_object(probs)
    assert torch.equal(out[0, 1, 3:, 5:], probs[0, 0, 3:, 5:]) and torch.equal(out.sum(1), probs.sum(1))
    changed = (out != probs)[0, 1]
    assert changed.sum() == 4 and (out[0].argmax(0) == 1).sum() == 3


def test_an_image_without_a_sure_object_gets_its_likeliest_pixels():
    random = torch.Generator().manual_seed(0)
    faint = torch.rand(3, 20, 20, generator=random) * 0.3
    faint[2, :4, :5] = 0.99  # 20 of 400 pixels: as they are
    out = with_some_object(torch.stack([1 - faint, faint], 1), 0.05)
    assert torch.allclose(out.sum(1), torch.ones(3, 20, 20)) and torch.allclose(out[2, 1], faint[2], atol=1e-5)
    for before, after in zip(faint[:2], out[:2, 1], strict=True):
        assert torch.equal(before.flatten().argsort(), after.flatten().argsort())
        assert (after >= SURE - 1e-4).sum() == 20
    odds = out[0, 1].logit() - faint[0].clamp_min(1e-6).logit()
    assert odds.std() < 1e-3 and odds.mean() > 1  # the same for every pixel


def test_pixels_that_are_certain_stay_finite():
    out = with_some_object(torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 8, 8), 0.1)
    assert torch.isfinite(out).all()


def test_the_least_share_of_the_object():
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[0, 0], labels[1, 0, :2], labels[2] = 1, 1, 1
    labels[1, 3] = IGNORE_INDEX
    assert least_share(labels) == 2 / 16
    labels[2] = 0
    assert least_share(labels) == 0


def test_the_masks_say_whether_there_is_one_object():
    one, two = np.zeros((2, 9, 9), np.uint8)
    one[2:7, 2:7] = 1
    two[1:4, 1:4] = two[6:8, 6:8] = 1
    crumb = np.pad(np.ones((8, 8), np.uint8), ((0, 1), (0, 1)))
    crumb[7, 6:8] = crumb[6, 7] = 0  # 61 pixels and one apart
    crumb[8, 8] = 1
    empty, ignored = np.zeros((9, 9), np.uint8), np.where(one, one, IGNORE_INDEX).astype(np.uint8)
    assert have_one_object(np.stack([one, one, empty, crumb, ignored]))
    assert not have_one_object(np.stack([one, one, two]))
    assert have_one_object(np.stack([one] * 20 + [two]))  # one odd mask of 21
    assert not have_one_object(np.stack([one, 2 * one]))  # three classes
    assert not have_one_object(np.stack([empty, empty])) and not have_one_object(np.zeros((0, 9, 9), np.uint8))


def test_a_hull_is_the_polygon():
    """Of a triangle's corners: all inside its three edges, and nothing that is farther out than 32 directions can tell."""
    corners = torch.tensor([[3.0, 4.0], [35.0, 10.0], [15.0, 36.0]])
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[0, corners[:, 0].long(), corners[:, 1].long()] = True
    ys, xs = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    depth = torch.full((40, 40), torch.inf)
    for start, end in zip(corners, corners.roll(-1, 0), strict=True):
        (dy, dx), (cy, cx) = end - start, corners.mean(0) - start
        inward = torch.sign(cy * dx - cx * dy) / (end - start).norm()
        depth = torch.minimum(depth, ((ys - start[0]) * dx - (xs - start[1]) * dy) * inward)
    hull = convex_hull(mask)[0]
    assert hull[depth >= 0].all() and not hull[depth < -2].any()  # half of an edge of 38 px times the tangent of 5.6 degrees
    assert torch.equal(convex_hull(hull[None])[0], hull)


def test_hulls_of_a_box_a_pixel_and_nothing():
    mask = torch.zeros(3, 20, 20, dtype=torch.bool)
    mask[0, 4, 6:15] = mask[0, 4:12, 6] = mask[0, 11, 14] = True
    mask[1, 7, 7] = True
    box = torch.zeros(20, 20, dtype=torch.bool)
    box[4:12, 6:15] = True
    corner = box.clone()
    corner[4:12, 6:15] = convex_hull(mask[:1])[0, 4:12, 6:15]
    assert torch.equal(convex_hull(mask), torch.stack([corner, mask[1], mask[2]]))
    assert torch.equal(convex_hull(box[None])[0], box)
    for k in range(8):
        assert torch.equal(convex_hull(view(mask[:1], k))[0], view(corner, k))


def test_dents_are_filled_after_the_other_pieces_are_gone():
    first = torch.full((1, 16, 16), 0.1)
    first[0, 2:10, 2:10] = 0.8
    first[0, 4:8, 5:10] = 0.3  # a bay
    first[0, 14, 14] = 0.9
    out = with_one_object(torch.stack([1 - first, first], 1), convex=True)
    expected = first[0].clone()
    expected[4:8, 5:10], expected[14, 14] = 0.7, 0.1
    torch.testing.assert_close(out[0], torch.stack([1 - expected, expected]))


def test_a_lesser_piece_in_a_dent_stays():
    first = torch.full((1, 16, 16), 0.1)
    first[0, 2:10, 2:10] = 0.8
    first[0, 4:8, 5:10] = 0.3
    first[0, 5, 7] = 0.9
    assert with_one_object(torch.stack([1 - first, first], 1), convex=True)[0, 1, 5, 7] == first[0, 5, 7]


def test_the_masks_say_whether_the_object_is_convex():
    disc = ((np.arange(40)[:, None] - 20) ** 2 + (np.arange(40) - 18) ** 2 < 150).astype(np.uint8)
    bitten, empty = disc.copy(), np.zeros_like(disc)
    bitten[12:28, 18:] = 0
    assert are_convex(np.stack([disc, empty, disc])) and are_convex(np.stack([disc] * 9 + [bitten]))
    assert not are_convex(np.stack([disc, bitten])) and not are_convex(empty[None]) and not are_convex(disc[None][:0])


def test_how_many_masks_may_have_two_pieces_and_how_large_a_crumb_is():
    one, two = np.zeros((2, 9, 9), np.uint8)
    one[2:7, 2:7] = 1
    two[1:4, 1:4] = two[6:8, 6:8] = 1
    assert not have_one_object(np.stack([one] * 9 + [two]))  # one in ten
    one[8, 7:9] = 1  # 2 of 27 pixels
    assert not have_one_object(one[None])
