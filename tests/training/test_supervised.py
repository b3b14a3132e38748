"""The U-Net's training: it learns, repeats, keeps its best, and treats ignored pixels as unknown."""

import numpy as np
import pytest
import torch
from torch import nn

from semanticgan.data.synthetic import draw_scene
from semanticgan.data.zoom_out import zoom_in, zoom_out
from semanticgan.training import supervised
from semanticgan.training.supervised import mean_iou, train_unet

SMALL = {"num_classes": 4, "batch": 8, "widths": (8, 16), "precision": "fp32"}


@pytest.fixture(scope="module")
def scenes():
    def draw(first, count):
        images, labels = zip(*(draw_scene(first + n, "a", 16) for n in range(count)), strict=True)
        return np.stack(images), np.stack(labels)

    return *draw(0, 8), *draw(8, 6)


def tensors(images, labels):
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(labels).long()


def test_it_learns(scenes):
    said = []
    net = train_unet(*scenes, **SMALL | {"widths": (16, 32, 32)}, steps=100, lr=3e-3, say=said.append)
    assert mean_iou(net, *scenes[2:], precision="fp32") > 0.5  # about .1 untrained; .6 to .8 after so few steps, by the seed
    assert not net.training and isinstance(net, nn.Module)
    assert len(said) == 20 and said[-1].startswith("U-Net step 100 of 100: loss ")


def test_it_repeats_and_leaves_the_global_randomness_alone(scenes):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (train_unet(*scenes, **SMALL, steps=3, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    other = train_unet(*scenes, **SMALL, steps=3, seed=2)
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_the_best_on_validation_is_kept(scenes, monkeypatch):
    scores, seen = iter([0.2, 0.9, 0.1]), []

    def score(net, *_):
        seen.append(net.head.bias.detach().clone())
        return next(scores)

    monkeypatch.setattr(supervised, "mean_iou", score)
    net = train_unet(*scenes, **SMALL, steps=3)
    assert torch.equal(net.head.bias, seen[1]) and not torch.equal(seen[1], seen[2])


def test_the_time_limit_ends_it(scenes):
    said = []
    train_unet(*scenes, **SMALL, steps=10**6, seconds=0.5, say=said.append)
    assert said[-1].startswith("U-Net step ") and "of 1000000" in said[-1]


def test_unchanged_pairs_come_back_as_they_were(scenes):
    images, labels = scenes[0], scenes[1].copy()
    labels[:, :3] = 255
    img, label = supervised.change_pairs(*tensors(images, labels), 4, torch.Generator().manual_seed(0), "none", 0.0)
    # The warp interpolates between pixels with weights that float32 rounds.
    torch.testing.assert_close(img, torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, atol=1e-4, rtol=0)
    assert torch.equal(label, torch.from_numpy(labels).long())


def test_changes_move_image_and_label_together():
    """An image whose red channel is its label keeps being so, border pixels apart."""
    label = np.zeros((4, 32, 32), np.uint8)
    label[:, 8:20, 4:28] = 1
    images = np.repeat(label[..., None] * 255, 3, axis=3).astype(np.uint8)
    for seed in range(5):
        img, moved = supervised.change_pairs(*tensors(images, label), 2, torch.Generator().manual_seed(seed), "all", 1.0)
        bright = img.mean(1) > img.mean(1).flatten(1).quantile(0.5, dim=1)[:, None, None]
        middle = (img.mean(1).amax((1, 2)) + img.mean(1).amin((1, 2)))[:, None, None] / 2
        agree = ((img.mean(1) > middle) == (moved == 1)).float().mean()
        assert bright.any() and agree > 0.97


@pytest.mark.parametrize(("changes", "change"), [({"far": 1.0}, zoom_out), ({"near": 1.0}, zoom_in)])
def test_pairs_from_farther_away_and_from_nearer(scenes, changes, change):
    img, label = tensors(*scenes[:2])
    _, found = supervised.change_pairs(img, label, 4, torch.Generator().manual_seed(0), "none", 0.0, **changes)
    _, expected = change(img, label, torch.Generator().manual_seed(0), 1.0)
    assert torch.equal(found, expected) and not torch.equal(found, label)


def test_mean_iou_counts_by_image_and_class():
    label = np.zeros((2, 4, 4), np.uint8)
    label[0, :2] = 1
    images = np.zeros((2, 4, 4, 3), np.uint8)

    class AlwaysBackground(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, img):
            return torch.stack([torch.ones_like(img[:, 0]), torch.zeros_like(img[:, 0])], 1)

    # Background: 1/2 and 1; class 1: 0 in the first image, absent from the second.
    assert mean_iou(AlwaysBackground(), images, label) == pytest.approx((0.75 + 0) / 2)
