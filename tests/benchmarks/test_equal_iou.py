"""Inversion of both designs at the masks that they find."""

import equal_iou
import plain
import pytest
import torch

from semanticgan.config import InversionConfig, ModelConfig
from semanticgan.data.synthetic import LABELS
from semanticgan.evaluation import evaluate
from semanticgan.model import SemanticGAN, build_networks
from semanticgan.predict import GeneratorPredictor


@pytest.fixture
def model(small_config, tmp_path, monkeypatch):
    """32 px, the least that VGG's five levels take; random weights, in place of the published ones too."""
    monkeypatch.setenv("SEMANTICGAN_CACHE", str(tmp_path))
    config = small_config("data.resolution=32", "networks.widths={4: 16, 8: 16, 16: 16, 32: 16}")
    torch.manual_seed(0)
    described = ModelConfig(labels=LABELS, data=config.data, networks=config.networks, inversion=InversionConfig())
    G, E = build_networks(described)
    torch.nn.init.normal_(E.rows.weight, std=0.3)
    return SemanticGAN(described, G, E)


def test_the_plain_design_inverts_image_by_image(model):
    img = torch.rand(2, 3, 32, 32) * 2 - 1
    ours = GeneratorPredictor(model.G, model.E, None, model.config.inversion, precision="fp32")(img).probs
    plain_model = equal_iou.PlainInversion(model, steps=0)
    assert torch.allclose(plain_model(img).probs, ours, atol=1e-4)
    plain_model.steps = 2
    both, second = plain_model(img).probs, plain_model(img[1:]).probs
    assert torch.allclose(both[1:], second, atol=1e-6) and (both - ours).abs().max() > 1e-3


def test_measured_by_the_code_of_evaluate(model, scenes):
    images = (scenes / "val.txt").read_text().split()
    measured = equal_iou.measure(model.predictor(0), model, scenes, images)
    expected = evaluate(lambda stream: model.find(stream, 0, views=False, zoom=False), scenes, images, LABELS, 3)["cases"]
    ious = [[v for name, v in case["iou"].items() if name != LABELS.names[0] and v is not None] for case in expected]
    assert measured["iou"] == pytest.approx(sum(sum(v) / len(v) for v in ious) / len(ious))
    assert 0 < measured["seconds"] < 60


def test_equal_means_no_more_than_a_tie_apart():
    ours = {"0": {"iou": 0.75}, "5": {"iou": 0.76}, "20": {"iou": 0.746}, "60": {"iou": 0.75}}
    assert equal_iou.cheapest(ours, 0.75) == "20"
    assert equal_iou.cheapest(ours, 0.77) is None


def test_without_published_weights_nothing_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(plain, "vgg_weights", lambda: "random")
    monkeypatch.setattr("sys.argv", ["equal_iou", "--model", "m", "--data", str(tmp_path), "--list", "l"])
    with pytest.raises(SystemExit, match="VGG-16 is missing"):
        equal_iou.main()


def test_table():
    ours = {"0": {"iou": 0.76, "seconds": 0.01}, "20": {"iou": 0.75, "seconds": 0.2}}
    results = {"plain": {"iou": 0.75, "seconds": 5.0}, "ours": ours}
    assert "| ours | 20 | 0.7500 | 200 | 25.0 |" in equal_iou.render(results)
