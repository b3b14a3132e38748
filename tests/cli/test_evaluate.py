import csv
import json

import numpy as np
import pytest
from PIL import Image
from small_scenes import load, write_list

from semanticgan.cli import scores
from semanticgan.cli.scores import table
from semanticgan.scores import Scores


def test_json_has_the_agreed_form(command, model_folder, data, tmp_path):
    images = write_list(tmp_path / "list.txt", [f"images/{k:02d}.png" for k in range(5)])
    args = ("evaluate", model_folder, "--data", data, "--list", images, "--steps", 0)
    done = command(*args, "--json", tmp_path / "a" / "scores.json", "--csv", tmp_path / "scores.csv")
    assert (done.code, done.errors) == (0, [])
    result = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert result["num_images"] == 5 == len(result["cases"])
    for group in (result["mean"], result["interval95"]):
        assert set(group) == {"iou", "dice", "miou", "accuracy"}
        assert set(group["iou"]) == set(group["dice"]) == {"background", "blob"}
    assert [case["image"] for case in result["cases"]] == [f"images/{k:02d}.png" for k in range(5)]
    assert result["interval95"]["miou"] == [None, None] and result["coding"] == "index"  # five images are too few
    values = [case["iou"]["background"] for case in result["cases"]]
    assert result["mean"]["iou"]["background"] == pytest.approx(np.mean(values))
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert len(rows) == 5 and float(rows[0]["iou_background"]) == pytest.approx(values[0])
    assert f"{result['mean']['iou']['background']:.4f}" in done.out


def test_evaluate_agrees_with_segment(command, model_folder, data, tmp_path):
    """Scores are those of the mask files that `segment` writes, and a folder is as good as a list."""
    for k in range(8, 20):
        (data / "images" / f"{k:02d}.png").unlink()
    command("evaluate", model_folder, "--data", data, "--list", "images", "--steps", 0, "--json", tmp_path / "s.json")
    command("segment", model_folder, data / "images", "--out", tmp_path / "out", "--steps", 0)
    for case in json.loads((tmp_path / "s.json").read_text())["cases"]:
        name = case["image"].split("/")[-1]
        truth = np.asarray(load(data / "masks" / name)) == 1
        found = np.asarray(load(tmp_path / "out" / "masks" / name)) == 1
        union = (truth | found).sum()
        assert case["iou"]["blob"] == pytest.approx((truth & found).sum() / union)


def test_masks_in_another_coding_than_the_models(command, model_folder, data, tmp_path):
    """0 and 255 where the model learnt from class ids: the same scores, and in the pictures too."""
    images = write_list(tmp_path / "list.txt", [f"images/{k:02d}.png" for k in range(5)])
    args = ("evaluate", model_folder, "--data", data, "--list", images, "--steps", 0, "--json")
    assert "another coding" not in command(*args, tmp_path / "ids.json").out
    for path in (data / "masks").iterdir():
        Image.fromarray((np.asarray(load(path)) == 1).astype(np.uint8) * 255).save(path)
    done = command(*args, tmp_path / "binary.json", "--report", tmp_path / "page.html")
    assert done.code == 0 and "255 is class 1" in done.out and "data:image" in (tmp_path / "page.html").read_text()
    before, after = (json.loads((tmp_path / name).read_text())["mean"] for name in ("ids.json", "binary.json"))
    assert before == after


def test_a_folder_of_which_few_images_have_masks(refused, model_folder, data):
    for k in range(3, 8):
        (data / "masks" / f"{k:02d}.png").unlink()
    said = refused("evaluate", model_folder, "--data", data, "--list", "images")
    assert "17 of 20 images have no mask, such as images/03.png" in said and len(said.splitlines()) == 1


def test_report_of_a_model(refused, model_folder):
    assert "name its run" in refused("report", model_folder)


def test_table_of_an_absent_class():
    none, sure = (None, None), (0.25, 0.75)
    mean = {"iou": {"a": 0.5, "b": None, "c": 0.0}, "dice": {"a": 0.75, "b": None, "c": 0.0}, "miou": 0.5, "accuracy": 1.0}
    interval = {name: {"a": sure, "b": none, "c": none} for name in ("iou", "dice")} | {"miou": none, "accuracy": (0.5, 1.0)}
    case = mean | {"image": "x.png", "distance": None, "pixels": {"a": 9, "b": 0, "c": 0}}
    empty = case | {"iou": {"a": None, "b": None, "c": None}, "miou": None, "pixels": {"a": 0, "b": 0, "c": 0}}
    scores = Scores.model_validate({"num_images": 2, "mean": mean, "interval95": interval, "cases": [case, empty]})
    assert list(table(scores)) == [
        "          IoU                     Dice                    images",
        "a         0.5000  0.2500..0.7500  0.7500  0.2500..0.7500  1",
        "b         not present             not present             0 (in no mask)",
        "c         0.0000                  0.0000                  1 (in no mask)",
        "mean IoU  0.5000                                          1",
        "accuracy  1.0000  0.5000..1.0000                          1",
    ]


def test_files_are_written_before_the_table_is_printed(model_folder, data, tmp_path, monkeypatch, command):
    """So `evaluate --json FILE | head` keeps its result."""

    def broken(scores):
        raise BrokenPipeError

    monkeypatch.setattr(scores, "table", broken)
    images = write_list(tmp_path / "list.txt", ["images/00.png"])
    with pytest.raises(BrokenPipeError):
        command("evaluate", model_folder, "--data", data, "--list", images, "--steps", 0, "--json", tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["num_images"] == 1


def test_two_images_with_one_mask_are_refused(refused, model_folder, data):
    (data / "images" / "00.jpg").write_bytes((data / "images" / "00.png").read_bytes())
    images = write_list(data / "list.txt", ["images/00.jpg", "images/00.png"])
    assert "got one mask for both, " in refused("evaluate", model_folder, "--data", data, "--list", images)
