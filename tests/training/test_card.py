"""The card as the hub's own library reads it."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from semanticgan.config import InversionConfig, ModelConfig
from semanticgan.data.sources import Sources
from semanticgan.data.synthetic import LABELS
from semanticgan.training.export import card, summary

SCORES = {
    "num_images": 2,
    "mean": {"iou": dict.fromkeys(LABELS.names, 0.51234), "dice": dict.fromkeys(LABELS.names, 0.6), "miou": 0.51234},
    "interval95": {"iou": {name: [0.4, 0.6] for name in LABELS.names}},
}


@pytest.fixture
def write(small_config):
    def write(scores, root="/data/skin: new", *overrides, open_ones=("steps", "zoom")):
        config = small_config(*overrides)
        described = ModelConfig(labels=LABELS, data=config.data, networks=config.networks, inversion=InversionConfig())
        sources = Sources(Path(root), ("a",), ("a", "b"), ("c", "d"), ())
        return card(described, sources, scores, "semanticgan train --data skin", {"hours": 1.0}, 3, open_ones)

    return write


def test_front_matter(write):
    found = ModelCard(write(SCORES))
    about = found.data
    assert (about.pipeline_tag, about.library_name, about.license) == ("image-segmentation", "semanticgan", "other")
    assert about.license_name and "semantic-segmentation" in about.tags and about.metrics == ["mean_iou"]
    (result,) = about.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == ("image-segmentation", "mean_iou", 0.5123)
    assert (result.dataset_type, result.dataset_name) == ("skin: new", "skin: new, validation images")
    assert found.text.strip().startswith("# SemanticGAN model")
    for words in ("semanticgan train --data skin", "0.5123", "Seed 3", "1 labelled and 2 unlabelled", "## Limits"):
        assert words in found.text


def test_where_every_validation_pixel_is_ignored(write):
    none = dict.fromkeys(SCORES["mean"]["iou"])
    spans = {"iou": dict.fromkeys(none, (None, None))}
    scores = {"num_images": 2, "mean": {"iou": none, "dice": none, "miou": None, "accuracy": None}, "interval95": spans}
    assert ModelCard(write(scores)).data.eval_results is None
    assert summary(scores) == "validation, 2 images: no pixel that counts"


def test_without_scores(write):
    assert ModelCard(write({}, "/")).data.eval_results is None


@pytest.mark.parametrize("trunk", ["residual", "efficientnet-lite0"])
def test_outside_weights_are_named(write, trunk):
    assert ("ImageNet" in write({}, "/d", f"networks.encoder_trunk={trunk}")) == (trunk != "residual")


@pytest.mark.parametrize(
    ("open_ones", "expected"),
    [(("steps", "zoom"), "; steps, zoom and temperature were chosen"), ((), "; the temperature was chosen")],
)
def test_only_what_validation_chose_is_said_to_be_chosen(write, open_ones, expected):
    assert f"{expected} on the validation images." in write(SCORES, open_ones=open_ones)
