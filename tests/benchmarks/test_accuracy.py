"""The comparison: its cells and their order, a cell from start to file, what is not done twice, tables and intervals."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import accuracy
import accuracy_cells
import accuracy_scores
import accuracy_tables
import numpy as np
import pytest
import torch
from accuracy_cells import METHODS, OURS, TASKS, Cell, Task, queue

from semanticgan.data.sources import list_images
from semanticgan.errors import UserError
from semanticgan.evaluation import evaluate
from semanticgan.labels import LabelSpec
from semanticgan.predict import NetworkPredictor, predict

ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------- cells


def test_the_queue_has_every_cell_once():
    cells = queue()
    assert max(Counter(cells).values()) == 1
    assert len(cells) == 2 * 3 * 3 * (len(METHODS) - 8) + 8 * 2 * 3 + 6  # eight methods with the fewest labels alone
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.method for cell in cells[:18]} == {"unet", "unet-imagenet", "unet-student"} and cells[0].labels == "40"
    assert [cell.method in OURS for cell in cells[18:27]] == [True] * 9


def test_every_cell_has_its_lists():
    for cell in queue():
        assert len(accuracy_cells.paths(cell.labeled_list)) == (1980 if cell.labels == "all" else int(cell.labels))
    for task in TASKS.values():
        assert list(task.sets) == list(task.titles)
        assert all((accuracy_cells.SPLITS / task.name / name).is_file() for name in task.unlabeled)
        lists = [accuracy_cells.SPLITS / task.name / name for name in ("val.txt", "test.txt")]
        outside = {path for file in lists for path in accuracy_cells.paths(file)}
        shown = {p for n in task.unlabeled for p in accuracy_cells.paths(accuracy_cells.SPLITS / task.name / n)}
        assert not outside & shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say which cells"),
        (["--task", "faces"], "invalid choice"),
        (["--method", "magic"], "invalid choice"),
    ],
)
def test_wrong_options_are_told(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        accuracy.arguments(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_other_resolutions_have_their_own_folders():
    args = accuracy.arguments(["--queue", "--resolution", "128"])
    assert (args.work.name, args.results.name) == ("accuracy-128", "accuracy-128")
    assert accuracy.arguments(["--queue"]).results == accuracy_cells.RESULTS


@pytest.mark.parametrize("words", [["--seed", "1"], ["--queue", "--hours", "0"], ["--trial", "far=0", "--seed", "0"]])
def test_data_that_are_not_there_are_asked_for(words, tmp_path, monkeypatch, capsys):
    cell = ["--task", "skin", "--method", "unet", "--labels", "40", "--data", str(tmp_path), "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["accuracy.py", *cell, *words])
    with pytest.raises(SystemExit) as stop:
        accuracy.main()
    assert stop.value.code == 2
    assert f"--data {tmp_path}: no folder skin in it" in capsys.readouterr().err


def test_cells_of_options():
    args = accuracy.arguments(["--task", "skin", "--method", "unet", "--labels", "40", "--seed", "1"])
    assert accuracy.chosen(args) == [Cell("skin", "unet", "40", 1)]
    args = accuracy.arguments(["--task", "skin", "--method", "semanticgan", "--labels", "all", "--unlabeled", "1000"])
    assert accuracy.chosen(args) == [Cell("skin", "semanticgan", "all", 0, "1000")]
    args = accuracy.arguments(["--queue", "--labels", "40", "--unlabeled", "1000", "--unlabeled", "3000"])
    assert [cell.unlabeled for cell in accuracy.chosen(args)] == ["1000", "3000"]
    assert Cell("skin", "semanticgan", "all", 0, "1000").name == "skin-semanticgan-all-seed0-unlabeled1000"
    with pytest.raises(UserError, match="no such cell"):
        accuracy.chosen(accuracy.arguments(["--task", "skin", "--labels", "9"]))
    with pytest.raises(UserError, match="budget of skin"):
        Cell("skin", "unet", "9", 0)


# ---------------------------------------------------------------- a whole cell, on drawn scenes


@pytest.fixture
def tiny(scenes, tmp_path, monkeypatch):
    """A task of drawn scenes, and the options to run it: `tiny(words)` gives the arguments."""
    splits = tmp_path / "splits" / "tiny"
    splits.mkdir(parents=True)
    for seed in range(3):
        (splits / f"train_8_seed{seed}.txt").write_text((scenes / "labeled.txt").read_text())
    for name in ("unlabeled", "val"):
        (splits / f"{name}.txt").write_text((scenes / f"{name}.txt").read_text())
    task = Task("tiny", ("unlabeled.txt",), {"val": "val.txt"}, {"val": "validation"}, {"8": 0.032}, 3, "all", "iou")
    monkeypatch.setitem(TASKS, "tiny", task)
    for module in (accuracy, accuracy_cells, accuracy_scores):
        monkeypatch.setattr(module, "SPLITS", tmp_path / "splits")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tiny").symlink_to(scenes)
    folders = ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    return lambda *words: accuracy.arguments([*words, *folders, "--resolution", "16"])


def test_a_cell_from_start_to_file(tiny, monkeypatch, capsys, tmp_path):
    cell, args = Cell("tiny", "unet-small", "8", 1), tiny("--queue")
    accuracy.run_cell(cell, args)
    results = accuracy_tables.read_results(args.results)
    said = results[cell.name]
    assert said["command"].endswith("--task tiny --method unet-small --labels 8 --seed 1 --resolution 16")
    assert said["settings"]["kimg"] == 0.032 and said["seconds"]["training"] > 0
    assert {"git", "machine", "threads", "versions", "date", "resolution"} <= set(said)
    for sets in said["readings"].values():
        assert sets["val"]["images"] == len(sets["val"]["iou"]) == 4
    lines = (args.results / f"{cell.name}.json").read_text().splitlines()
    assert sum(line.strip().startswith('"val": {"images":4,') for line in lines) == len(accuracy_scores.READINGS)
    assert not (args.work / "baselines" / cell.name).exists()

    # the same again is the same, and what is there is not done again
    accuracy.run_cell(cell, tiny("--queue", "--results", str(tmp_path / "again")))
    assert said["readings"] == accuracy_tables.read_results(args.results)[cell.name]["readings"]
    monkeypatch.setattr(accuracy, "run_cell", lambda cell, args: pytest.fail(f"{cell.name} was done again"))
    accuracy.run_queue([cell], args)
    assert "0 cells to do, 1 done" in capsys.readouterr().out


def test_a_trial_scores_validation_images_alone(tiny, capsys):
    cell = Cell("tiny", "mean-teacher", "8", 0)
    args = tiny("--task", "skin", "--trial", "kimg=0.032", "--trial", "consistency=3", "--trial", "batch=8")
    accuracy.run_trial(cell, args)
    (line,) = (args.results / "trials.jsonl").read_text().splitlines()
    assert json.loads(line)["tried"] == ["kimg=0.032", "consistency=3", "batch=8"]
    assert set(json.loads(line)["val_iou"]) == set(accuracy_scores.READINGS)
    assert not list(args.results.glob("tiny-*.json"))
    with pytest.raises(UserError, match="no such setting of mean-teacher; expected kimg, batch"):
        accuracy.run_trial(cell, tiny("--task", "skin", "--trial", "magic=3"))
    with pytest.raises(UserError, match="expected NAME=NUMBER"):
        accuracy.run_trial(cell, tiny("--task", "skin", "--trial", "batch"))
    with pytest.raises(UserError, match="on draw 0"):
        accuracy.run_trial(Cell("tiny", "mean-teacher", "8", 1), args)


def test_the_queue_keeps_to_its_hours(tiny, capsys, monkeypatch):
    done = []
    monkeypatch.setattr(accuracy, "run_cell", lambda cell, args: done.append(cell))
    monkeypatch.setattr(accuracy, "minutes", lambda cell, known, scored: 60.0)
    cells = [Cell("tiny", "unet-small", "8", seed) for seed in range(3)]
    accuracy.run_queue(cells, tiny("--queue", "--hours", "0"))
    assert not done and "3.0 h    3 cells to do, 0 done" in capsys.readouterr().out
    accuracy.run_queue(cells, tiny("--queue", "--hours", "1.5"))
    assert done == cells  # a cell that takes no time leaves the hours to the next


def test_readings_are_those_of_evaluate(tmp_path):
    """A network that calls the brighter pixels the object, on two discs: "views" is `evaluate` without the second look."""
    from PIL import Image

    for k, radius in enumerate((3, 6)):
        y, x = np.mgrid[:40, :48]
        disc = (x - 15) ** 2 + (y - 20) ** 2 < radius**2
        for folder, values in (("images", np.where(disc, 200, 90 + (x + y) % 40)), ("masks", disc)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / folder / f"{k}.png")

    def net(img):
        return torch.cat([-img, img], 1) * 4

    def find(stream, views, zoom):
        return predict(NetworkPredictor(net), stream, resolution=16, symmetry="flip" if views else "none", zoom=zoom)

    labels = LabelSpec.unnamed(2)
    task = Task("discs", (), {"all": "images"}, {"all": "all"}, {"2": 1}, 1, "flip", "iou")
    found = accuracy_scores.score(find, task, tmp_path, labels, ["all"])
    images = list_images(tmp_path, "images")
    for reading, options in (("one", (False, False)), ("views", (True, False)), ("zoom", (True, True))):
        plain = evaluate(lambda stream, o=options: find(stream, *o), tmp_path, images, labels, 1)
        assert found[reading]["all"]["iou"] == [round(case["iou"]["class_1"], 4) for case in plain["cases"]], reading
    assert found["zoom"]["all"]["iou"] != found["views"]["all"]["iou"]
    assert len({found[reading]["all"]["list"] for reading in found}) == 1


# ---------------------------------------------------------------- tables


def result(cell, iou):
    scores = {"images": len(iou), "list": "abc", "iou": iou}
    readings = {r: {name: scores for name in TASKS[cell.task].sets} for r in accuracy_scores.READINGS}
    return {
        **dataclasses.asdict(cell),
        "settings": {}, "seconds": {"training": 3600.0}, "readings": readings,
        "machine": "X", "precision": "fp32", "versions": {"torch": "2"}, "git": "abc",
    }  # fmt: skip


def test_shared_runs_count_once():
    results = {}
    for method, parts in (("semanticgan", {}), ("student", {"40-seed0-student": 1800.0})):
        cell = Cell("skin", method, "40", 0)
        parts |= {"image-gan": 3600.0, "40-seed0": 1800.0, "scoring": 360.0}
        results[cell.name] = result(cell, [0.5]) | {"seconds": parts}
    assert "2 cells, 2.2 hours" in accuracy_tables.provenance(results)
    known = {method: accuracy_cells.minutes(Cell("skin", method, "40", 1), results, 0) for method in ("semanticgan", "student")}
    assert known == {"semanticgan": 6, "student": 36}


def test_a_baselines_minutes_follow_from_those_with_other_labels():
    cell = Cell("skin", "unet-student", "40", 0)
    results = {cell.name: result(cell, [0.5]) | {"seconds": {"training": 960.0, "scoring": 120.0}}}  # 16 kimg
    assert accuracy_cells.minutes(Cell("skin", "unet-student", "all", 1), results, 0) == pytest.approx(42)  # 40 kimg


def test_tables_from_two_results(tmp_path):
    cells = [Cell("skin", "unet", "40", 0), Cell("skin", "unet", "40", 2)]
    for cell, iou in zip(cells, ([0.5, 0.7], [0.7, 0.9]), strict=True):
        (tmp_path / f"{cell.name}.json").write_text(json.dumps(result(cell, iou)))
    results = accuracy_tables.read_results(tmp_path)
    text = accuracy_tables.render(results)
    assert "| U-Net, ResNet-34 | no | .700 ± .141 (2 of 3) | .700 ± .141 (2 of 3) [.493] |" in text  # sd of .6 and .8
    assert text.count("not run [.714]") == 1  # the paper's SemanticGAN, beside a cell that was not run, where zoom is
    assert text.count("### skin, 200 labels: ") == text.count("### skin, 200 labels: IoU, no cell has been run") == 1
    assert "2 cells, 2.0 hours: X (fp32, torch 2), scored at abc." in text
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    page = tmp_path / "page.md"
    page.write_text("before\n" + "\n".join(accuracy_tables.markers("accuracy.py --table")) + "\nafter\n")
    accuracy_tables.write_page(results, page)
    accuracy_tables.write_page(results, page)
    assert page.read_text().startswith("before") and page.read_text().count("### skin, 40 labels: IoU, one view") == 1
    (tmp_path / "skin-unet-40-seed1.json").write_text("{")
    with pytest.raises(UserError, match=r"seed1\.json"):
        accuracy_tables.read_results(tmp_path)


def test_dice_of_an_image_follows_from_its_iou():
    found = accuracy_scores.values({"iou": [0.0, 0.5, 1.0, None]}, "dice")
    np.testing.assert_allclose(found, [0, 2 / 3, 1, np.nan])


def test_intervals_of_differences():
    rng = np.random.default_rng(0)
    draws = [rng.random(50) for _ in range(3)]
    assert accuracy_tables.difference(draws, draws) == ([0, 0, 0], 0, 0)
    gains, low, high = accuracy_tables.difference([d + 0.1 * k for k, d in enumerate(draws, 1)], draws)
    assert gains == pytest.approx([0.1, 0.2, 0.3]) and low == pytest.approx(0.2) and high == pytest.approx(0.2)
    noisy = [d + 0.02 + 0.1 * rng.standard_normal(50) for d in draws]
    gains, low, high = accuracy_tables.difference(noisy, draws)
    assert low < np.mean(gains) < high
    assert high - low == pytest.approx(3.92 * 0.1 / np.sqrt(150), rel=0.25)  # 3.92 standard errors; the noise's own is estimated
    with pytest.raises(ValueError, match="3 and 2 draws"):
        accuracy_tables.difference(draws, draws[:2])


def test_only_the_same_images_are_compared():
    cells = [Cell("skin", m, "40", 0) for m in ("unet", "deeplab")]
    results = {cell.name: result(cell, [0.5, 0.6 + 0.1 * k]) for k, cell in enumerate(cells)}
    text = accuracy_tables.compare(results, "deeplab", "unet", "skin", ("40", "40"), "zoom")
    assert "| ISIC test | .600 | .550 | +.050 | +.000 to +.100 | +.050 |" in text
    others = {cells[1].name: result(cells[1], [0.4, 0.5])}
    text = accuracy_tables.compare(results, "deeplab", "deeplab", "skin", ("40", "40"), "zoom", others)
    assert "| ISIC test | .600 | .450 | +.150 | +.100 to +.200 | +.150 |" in text  # of the same cell, computed in another way
    results[cells[1].name]["readings"]["zoom"]["ph2"] = {"images": 2, "list": "other", "iou": [0.5, 0.6]}
    with pytest.raises(UserError, match="different images"):
        accuracy_tables.compare(results, "deeplab", "unet", "skin", ("40", "40"), "zoom")
    with pytest.raises(UserError, match="no draw"):
        accuracy_tables.compare(results, "gct", "unet", "skin", ("40", "40"), "zoom")


def test_the_paper_figures_are_found():
    figures = accuracy_tables.paper_figures()
    for task, method, labels, name, value in (
        ("skin", "semanticgan", "40", "dermquest", ".566"), ("skin", "deeplab", "all", "dermis", ".722"),
        ("cxr", "semanticgan", "9", "montgomery", ".946"), ("cxr", "unet", "35", "test", ".849"),
    ):  # fmt: skip
        assert accuracy_tables.paper_cell(figures, TASKS[task], method, labels, name) == f" [{value}]"
    assert accuracy_tables.paper_cell(figures, TASKS["skin"], "unimatch", "40", "test") == ""


def test_the_page_has_its_markers_and_the_command_its_help(capsys):
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert all(marker in page for marker in accuracy_tables.markers("accuracy.py --table"))
    with pytest.raises(SystemExit):
        accuracy.arguments(["--help"])
    shown = "".join(capsys.readouterr().out.split())  # wherever the lines end
    assert all(name in shown for name in METHODS)
