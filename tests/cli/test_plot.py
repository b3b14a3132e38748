import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image, ImageSequence

from semanticgan.model import SemanticGAN


def scores(path, mean, low=None, high=None):
    def group(value):
        return {"iou": {"background": value, "blob": value}, "dice": {"background": value, "blob": value}, "miou": value,
                "accuracy": value}  # fmt: skip

    path.write_text(json.dumps({"num_images": 3, "mean": group(mean), "interval95": group([low, high]), "cases": []}))
    return path


def test_label_efficiency(command, refused, tmp_path):
    a, b, c = (scores(tmp_path / f"{n}.json", m, m - 0.1, m + 0.1) for n, m in (("a", 0.5), ("b", 0.7), ("c", 0.6)))
    points = (f"{a}:10:ours", f"{b}:20:ours", f"{c}:20:ours", f"{c}:10:U-Net <b>")
    out = tmp_path / "curves.svg"
    done = command("plot", "labels", *points, "--score", "iou:blob", "--out", out)
    assert (done.code, done.errors) == (0, [])
    texts = [e.text for e in ET.fromstring(out.read_text()).iter() if e.text]
    assert {"10", "20", "ours", "U-Net <b>", "IoU of blob"} <= set(texts)
    assert command("plot", "labels", *points, "--out", tmp_path / "curves.png").code == 0
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1120, 640)
    for bad in (f"{a}:10", f"{a}:0:x", f"{a}:x:y", f"{a}:10:", ":10:x"):
        assert "FILE:N:METHOD" in refused("plot", "labels", bad, "--out", tmp_path / "x.svg")
    assert "no/file" in refused("plot", "labels", "no/file:1:x", "--out", tmp_path / "x.svg")
    assert "iou:blob" in refused("plot", "labels", points[0], "--score", "iou:cat", "--out", tmp_path / "x.svg")
    assert ".svg or .png" in refused("plot", "labels", points[0], "--out", tmp_path / "x.pdf")
    assert not (tmp_path / "x.svg").exists()


def test_film_strip(command, model_folder, data, tmp_path):
    images = [data / "images" / f"{k:02d}.png" for k in range(2)]
    done = command("plot", "inversion", model_folder, *images, "--steps", 6, "--columns", 3, "--out", tmp_path / "s.png")
    assert (done.code, done.errors) == (0, [])
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size == (110 + 4 * 102, 24 + 4 * 102)
        first = np.asarray(picture)[24:120, 110 + 102 : 110 + 102 + 96][::6, ::6]  # step 0: pixels enlarged six times
    with Image.open(images[0]) as image:
        found = SemanticGAN.load(model_folder).segment([image], steps=0)[0]
    assert np.abs(first.astype(int) - found.reconstruction).max() <= 2  # the encoder runs in float32 here


def test_interpolation(command, refused, model_folder, data, tmp_path):
    a, b = (data / "images" / f"{k:02d}.png" for k in range(2))
    out = tmp_path / "way.gif"
    done = command("plot", "interpolation", model_folder, a, b, "--frames", 4, "--steps", 1, "--out", out)
    assert (done.code, done.errors) == (0, [])
    with Image.open(out) as film:
        assert film.size == (520, 256) and film.info.get("loop", 0) == 0
        lasting = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert sum(lasting) == 6 * 80  # equal pictures in a row are one that lasts longer
    assert "no such file" in refused("plot", "interpolation", model_folder, a, data / "none.png", "--out", tmp_path / "x.gif")
    assert "'1'" in refused("plot", "interpolation", model_folder, a, b, "--frames", 1)
    assert not (tmp_path / "x.gif").exists()


def test_report_of_an_evaluation(command, refused, model_folder, data, tmp_path):
    """`evaluate --report` and `report` of its JSON are the same page."""
    for k in range(8, 20):
        (data / "images" / f"{k:02d}.png").unlink()
    args = ("evaluate", model_folder, "--data", data, "--list", "images", "--steps", 0)
    assert command(*args, "--json", tmp_path / "s.json", "--report", tmp_path / "s.html").code == 0
    done = command("report", tmp_path / "s.json", "--out", tmp_path / "again.html")
    assert (done.code, done.out) == (0, f"report: {tmp_path / 'again.html'}\n")
    page = (tmp_path / "s.html").read_text()
    assert page == (tmp_path / "again.html").read_text()
    assert page.count("data:image/jpeg") == 6  # of eight images the four worst, and two others round the median
    assert "no such" in refused("report", tmp_path / "s.json", "--model", tmp_path / "none")


@pytest.mark.parametrize("verb", ["labels", "inversion", "interpolation"])
def test_help(command, verb):
    assert f"semanticgan plot {verb}" in command("plot", verb, "--help").out
