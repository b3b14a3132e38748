"""Figures: what stands at which place, and that inversion can be watched without being changed."""

import math

import numpy as np
import pytest
import torch

from semanticgan.charts import Drawing, Series
from semanticgan.config import ModelConfig
from semanticgan.figures import draw_rows, interpolation, label_efficiency
from semanticgan.inversion import invert
from semanticgan.labels import LabelSpec
from semanticgan.model import SemanticGAN, build_networks
from semanticgan.scores import Scores


def scores(mean, low=None, high=None):
    def group(value):
        return {"iou": {"bg": value, "cell": value}, "dice": {"bg": value, "cell": value}, "miou": value, "accuracy": value}

    return Scores.model_validate({"num_images": 1, "mean": group(mean), "interval95": group([low, high]), "cases": []})


def test_one_file_has_its_interval_and_several_their_range(monkeypatch):
    seen: list[Series] = []

    def chart(series, title, *labels, **options):
        seen.extend(series)
        return Drawing(1, 1, title)

    monkeypatch.setattr("semanticgan.figures.chart", chart)
    points = [(40, "a", scores(0.7, 0.6, 0.8)), (20, "a", scores(0.5)), (20, "a", scores(0.6)), (40, "b", scores(None))]
    label_efficiency(points, "iou:cell")
    a, b = seen
    assert (a.name, list(a.x), list(a.y)) == ("a", [20, 40], pytest.approx([0.55, 0.7]))
    assert (list(a.low), list(a.high)) == (pytest.approx([0.5, 0.6]), pytest.approx([0.6, 0.8]))
    assert b.name == "b" and math.isnan(b.y[0])


@pytest.fixture(scope="module")
def model(small_config):
    config = small_config()
    torch.manual_seed(0)
    labels = LabelSpec.unnamed(3)
    settings = ModelConfig(labels=labels, data=config.data, networks=config.networks, inversion=config.inversion, views=False)
    return SemanticGAN(settings, *build_networks(settings))


def test_watching_changes_nothing_and_ends_with_the_result(model):
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ws = model.G.mapping.w_avg.expand(2, model.G.num_ws, -1)
    told = []

    def watch(step, img, seg_logits):
        told.append((step, img.clone(), seg_logits.clone()))

    watched, alone = (invert(model.G, model.lpips, x, ws, model.config.inversion, 4, model.prior, watch=w) for w in (watch, None))
    assert [step for step, _, _ in told] == [0, 1, 2, 3, 4]
    assert torch.equal(watched.img, alone.img) and torch.equal(watched.seg_logits, alone.seg_logits)
    assert torch.equal(told[-1][1], alone.img) and torch.equal(told[-1][2], alone.seg_logits)


def test_interpolation_between_an_image_and_itself_stands_still(model):
    img = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    frames = [np.asarray(frame) for frame in interpolation(model, img, img, 3)]
    assert len(frames) == 3 and all((frame == frames[0]).all() for frame in frames)


def test_rows_with_heads():
    rows = [("one", [np.full((4, 4, 3), 7, np.uint8)] * 3)]
    plain, headed = draw_rows(rows, side=20), draw_rows(rows, side=20, heads=["a", "b", "c"])
    assert headed.size == (plain.width, plain.height + 24)
    assert (np.asarray(headed)[24:] == np.asarray(plain)).all()
