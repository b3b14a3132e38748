"""The card as the hub's own library reads it."""

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from semanticgan.config import InversionConfig, ModelConfig
from semanticgan.data.sources import Sources
from semanticgan.data.synthetic import LABELS
from semanticgan.evaluation import Choice
from semanticgan.model import SemanticGAN, build_networks
from semanticgan.training import export
from semanticgan.training.export import card, summary
from semanticgan.training.run import Run

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


def test_images_in_the_root_folder_have_a_name_too(write):
    assert ModelCard(write(SCORES, "/")).data.eval_results[0].dataset_type == "data"


@pytest.mark.parametrize("trunk", ["residual", "efficientnet-lite0"])
def test_outside_weights_are_named(write, trunk):
    assert ("ImageNet" in write(SCORES, "/d", f"networks.encoder_trunk={trunk}")) == (trunk != "residual")


@pytest.mark.parametrize(
    ("open_ones", "expected"),
    [(("steps", "zoom"), "; steps, zoom and temperature were chosen"), ((), "; the temperature was chosen")],
)
def test_only_what_validation_chose_is_said_to_be_chosen(write, open_ones, expected):
    assert f"{expected} on the validation images." in write(SCORES, open_ones=open_ones)


TWO = LABELS.model_copy(update={"names": LABELS.names[:2], "palette": LABELS.palette[:2]})


def untrained(config):
    return build_networks(ModelConfig(labels=TWO, data=config.data, networks=config.networks, inversion=config.inversion))


def test_an_exported_model_has_the_settings_of_its_run_and_those_that_were_chosen(small_config, tmp_path, monkeypatch):
    config = small_config("predict.contrast=1.4", "predict.one_object=true", "predict.convex=true", "predict.views=false",
                          "inversion.prior=0.5")  # fmt: skip
    quantiles = tuple(k / 20 for k in range(21))
    monkeypatch.setattr(export, "choose_settings", lambda *_: Choice(20, True, 1.7, quantiles, {"0 steps": 0.5}, np.zeros(0)))
    monkeypatch.setattr(export, "evaluate", lambda *_, **__: SCORES)
    sources, run = Sources(tmp_path, ("a",), ("a",), ("b",), ()), Run(tmp_path / "run", lambda text: None)
    export.export_model(run, config, TWO, sources, *untrained(config), "cpu", "semanticgan train", {"hours": 1.0})
    found = SemanticGAN.load(tmp_path / "run").config
    assert (found.contrast, found.one_object, found.convex, found.views, found.inversion.prior) == (1.4, True, True, False, 0.5)
    assert (found.steps, found.zoom, found.temperature, found.distance_quantiles) == (20, True, 1.7, quantiles)


@pytest.mark.parametrize(("steps", "tried"), [("null", (0, 20, 60)), ("7", (7,))])
def test_fixed_settings_are_not_chosen(small_config, tmp_path, monkeypatch, steps, tried):
    config, asked = small_config(f"predict.steps={steps}", "predict.zoom=false"), []
    model = SemanticGAN(
        ModelConfig(labels=TWO, data=config.data, networks=config.networks, inversion=config.inversion), *untrained(config)
    )

    def choose(find, root, images, labels, channels, *, steps, zoom, share):
        list(find([], 13, True))
        asked.append((root, images, labels, channels, steps, zoom, share))
        return Choice(0, False, 1.0, (), {}, np.zeros(0))

    monkeypatch.setattr(export, "choose", choose)
    monkeypatch.setattr(SemanticGAN, "find", lambda self, images, steps, zoom: asked.append((steps, zoom)) or iter(()))
    export.choose_settings(model, config, Sources(tmp_path, ("a",), ("a",), ("b", "c"), ()), print)
    assert asked == [(13, True), (tmp_path, ("b", "c"), TWO, 3, tried, False, print)]
