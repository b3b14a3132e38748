"""Drawn scenes: exact labels, one geometry in two looks, a data set in the form that `train` reads."""

import numpy as np
import pytest

from semanticgan.data import synthetic
from semanticgan.data.dataset import read_image, read_mask
from semanticgan.data.sources import find_sources, has_mask, mask_path
from semanticgan.data.synthetic import BACKGROUND, CELL, LABELS, LOOKS, NUCLEUS, draw_scene, write_dataset
from semanticgan.labels import LabelSpec


@pytest.mark.parametrize("domain", ["a", "b"])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_scene_is_a_function_of_its_seed(domain, size):
    img, label = draw_scene(3, domain, size)
    again, same_label = draw_scene(3, domain, size)
    assert img.shape == (size, size, 3) and label.shape == (size, size) and label.max() < LABELS.num_classes
    assert np.array_equal(img, again) and np.array_equal(label, same_label)
    assert not np.array_equal(img, draw_scene(4, domain, size)[0])


def test_the_domains_share_the_geometry_and_differ_in_look():
    for seed in range(5):
        (img_a, label_a), (img_b, label_b) = draw_scene(seed, "a", 32), draw_scene(seed, "b", 32)
        assert np.array_equal(label_a, label_b)
        assert np.abs(img_a.astype(float) - img_b).mean() > 8  # of 255; the sensor's noise alone makes about 5


def test_a_scene_is_the_same_at_every_size():
    for seed in range(10):
        small, large = draw_scene(seed, "a", 32)[1], draw_scene(seed, "a", 96)[1]
        blocks = large.reshape(32, 3, 32, 3)
        share = (blocks == small[:, None, :, None]).mean((1, 3))  # of each pixel, under its own class
        assert share.mean() > 0.96  # the rest lies on pixels that a border crosses
        assert share.min() >= 1 / 9


def test_labels_fit_the_pixels():
    """Where a class has the whole neighbourhood, the pixel has the class's colour, but for light, stain and clutter."""
    errors = []
    for seed in range(20):
        img, label = draw_scene(seed, "a", 64)
        inner = np.ones_like(label, bool)
        for shift in (-2, -1, 1, 2):
            inner &= (np.roll(label, shift, 0) == label) & (np.roll(label, shift, 1) == label)
        distance = np.linalg.norm(img[:, :, None].astype(float) - np.array(LOOKS["a"].colours), axis=-1)
        errors.append((distance.argmin(-1) != label)[inner].mean())
    assert np.mean(errors) < 0.1


def test_every_class_occurs_and_no_side_is_favoured():
    labels = np.stack([draw_scene(seed, "a", 16)[1] for seed in range(400)])
    shares = np.bincount(labels.reshape(-1), minlength=4) / labels.size
    assert (shares > 0.03).all() and shares[BACKGROUND] > 0.4
    for kind in (CELL, NUCLEUS):
        where = (labels == kind).mean(0)
        halves = [where[:8].mean(), where[8:].mean(), where[:, :8].mean(), where[:, 8:].mean()]
        assert max(halves) < 1.25 * min(halves)  # 400 scenes: each half's share scatters by about 5 %


def test_write_dataset(tmp_path):
    lists = write_dataset(tmp_path, size=16, unlabeled=6, labeled=4, val=2, test=3)
    assert {name: len(paths) for name, paths in lists.items()} == {
        "unlabeled": 6,
        "labeled": 4,
        "val": 2,
        "test_a": 3,
        "test_b": 3,
    }
    assert len({path for paths in lists.values() for path in paths}) == 18
    labels = LabelSpec.from_file(tmp_path / "classes.json")
    assert labels == LABELS
    assert not any(has_mask(tmp_path, path) for path in lists["unlabeled"])
    for a, b in zip(lists["test_a"], lists["test_b"], strict=True):
        masks = [read_mask(mask_path(tmp_path / path), labels, (16, 16)) for path in (a, b)]
        assert np.array_equal(*masks)
        assert np.array_equal(read_image(tmp_path / a, 3).shape, (16, 16, 3))
    sources = find_sources(tmp_path, *([str(tmp_path / f"{name}.txt")] for name in ("labeled", "unlabeled", "val")))
    assert sources.labeled == tuple(lists["labeled"]) and len(sources.unlabeled) == 10


def test_another_seed_writes_other_scenes(tmp_path):
    counts = {"unlabeled": 0, "labeled": 2, "val": 0, "test": 0}
    for seed in (0, 1):
        write_dataset(tmp_path / str(seed), size=16, seed=seed, **counts)
    images = [read_image(tmp_path / str(seed) / "images/a/00000.png", 3) for seed in (0, 1)]
    assert not np.array_equal(*images)


def test_an_object_beyond_the_edge_draws_nothing():
    sheet = synthetic._Sheet(32)
    where, offset = sheet.box(-0.4 + 0.5j, 0.2)
    assert offset.size == 0 and sheet.objects[where].size == 0
