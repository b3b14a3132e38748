"""The demo: what its table says, what it refuses, and a short run from drawing to page."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from semanticgan import demo
from semanticgan.data.synthetic import LABELS
from semanticgan.errors import UserError


def result(mious):
    """The part of `evaluate`'s answer that the demo reads."""
    return {
        "mean": {"miou": float(np.mean(mious)), "iou": dict.fromkeys(LABELS.names, 0.5) | {"yeast": None}},
        "interval95": {"miou": [min(mious), max(mious)]},
        "cases": [{"miou": m, "iou": dict.fromkeys(LABELS.names, m) | {"yeast": None}} for m in mious],
    }


def test_the_table_names_methods_domains_and_classes():
    scores = {d: {demo.OURS: result([0.4, 0.6]), demo.UNET: result([0.7, 0.9])} for d in demo.DOMAINS}
    lines = demo.table(scores)
    assert len(lines) == 7 and len({len(line) for line in lines if "domain" not in line}) == 1
    assert all(name in lines[0] for name in LABELS.names)
    assert re.fullmatch(r" +SemanticGAN +0\.500 +0\.400 to 0\.600( +0\.500){3} +-", lines[2])


def test_a_difference_within_its_interval_is_no_victory():
    noise = np.random.default_rng(0).normal(0, 0.1, 50)
    same = {demo.OURS: result(0.5 + noise), demo.UNET: result(0.5 + noise[::-1])}
    worse = {demo.OURS: result(0.5 + noise), demo.UNET: result(0.7 + noise)}
    better = {demo.OURS: result(0.8 + noise), demo.UNET: result(0.7 + noise)}
    assert "no clear winner" in demo.verdicts({"a": same})[0]
    assert demo.verdicts({"a": worse, "b": better}) == [
        "domain a, as trained: U-Net wins by 0.200 (95 % interval 0.200 to 0.200)",
        "  class by class: U-Net: background, cell, nucleus; neither clearly: yeast",
        "domain b, never seen: SemanticGAN wins by 0.100 (95 % interval 0.100 to 0.100)",
        "  class by class: SemanticGAN: background, cell, nucleus; neither clearly: yeast",
    ]


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and no earlier demo"):
        demo.run_demo(tmp_path, 6.0, print)
    with pytest.raises(UserError, match=r"thesis\.txt: is a file"):
        demo.run_demo(tmp_path / "thesis.txt", 6.0, print)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_rows_of_pictures():
    picture = demo.draw_rows([("one", [np.full((4, 4, 3), 7, np.uint8)] * 3), ("two", [np.zeros((8, 8, 3), np.uint8)])], side=20)
    assert picture.size == (110 + 3 * 26, 52)
    pixels = np.asarray(picture)
    assert (pixels[:20, 110:130] == 7).all() and (pixels[26:46, 110:130] == 0).all() and (pixels[26:, 136:] == 255).all()


@pytest.mark.slow
def test_a_short_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMANTICGAN_CACHE", str(tmp_path / "cache"))
    out, said = tmp_path / "demo", []
    counts = {"unlabeled": 40, "labeled": 8, "val": 2, "test": 8}
    for _ in range(2):  # the second replaces the first
        demo.run_demo(out, minutes=0.05, say=said.append, counts=counts, overrides=["run.tick_kimg=0.1"])
    content = json.loads((out / "demo.json").read_text())
    assert content["finished"] and content["scores"]["b"][demo.UNET]["num_images"] == 8
    assert sum(line.startswith("domain ") and "win" in line for line in said) == 4
    assert "run/report.html" in (page := (out / "index.html").read_text()) and (out / "run" / "report.html").is_file()
    assert page.count("data:image/png;base64,") == 4 and "http:" not in page and "https:" not in page
    with Image.open(out / "page.png") as picture:
        assert picture.width > 800
    assert (out / "run" / "model" / "model.safetensors").is_file()
