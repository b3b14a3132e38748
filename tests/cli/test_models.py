import json
import shutil
from pathlib import Path

import numpy as np
from small_scenes import add_pair, load

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_rgb32_weights.safetensors"


def test_samples_make_a_data_folder(command, model_folder, tmp_path):
    out = tmp_path / "drawn"
    done = command("sample", model_folder, "--num", 9, "--out", out, "--seed", 3)
    assert (done.code, done.errors) == (0, [])
    names = [f"{k:05d}.png" for k in range(9)]
    assert sorted(p.name for p in (out / "images").iterdir()) == sorted(p.name for p in (out / "masks").iterdir()) == names
    assert load(out / "images" / names[0]).size == load(out / "masks" / names[0]).size == (16, 16)
    assert load(out / "masks" / names[0]).mode == "P"
    assert load(out / "grid.png").size == (8 * 18 - 2, 2 * 34 - 2)
    classes = json.loads((out / "classes.json").read_text())["classes"]
    assert [c["name"] for c in classes] == ["background", "blob"]
    checked = command("check", out, "--unlabeled", out / "images", "--sheet", tmp_path / "sheet.png")
    assert checked.code == 0, checked.errors


def test_samples_repeat_and_begin_alike(command, model_folder, tmp_path):
    for name, args in {"a": (3, 7), "b": (5, 7), "c": (3, 8)}.items():
        command("sample", model_folder, "--num", args[0], "--seed", args[1], "--out", tmp_path / name)
    images = {n: [np.asarray(load(p)) for p in sorted((tmp_path / n / "images").iterdir())] for n in "abc"}
    assert all(np.array_equal(a, b) for a, b in zip(images["a"], images["b"], strict=False))
    assert not np.array_equal(images["a"][0], images["c"][0])


def test_truncation_to_the_mean(command, model_folder, tmp_path):
    command("sample", model_folder, "--num", 2, "--truncation-psi", 0, "--out", tmp_path / "x")
    first, second = (np.asarray(load(p)).astype(int) for p in sorted((tmp_path / "x" / "images").iterdir()))
    assert abs(first - second).max() <= 1  # one w; the noise maps differ, their strength is 0


def test_samples_need_a_new_folder(refused, model_folder, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "keep.txt").write_text("keep")
    assert "new or empty" in refused("sample", model_folder, "--num", 1, "--out", tmp_path / "old")


def test_imported_model_does_everything_a_model_does(command, refused, tmp_path):
    folder, photos = tmp_path / "theirs", tmp_path / "photos"
    done = command("import", GOLDEN, "--out", folder)
    assert (done.code, done.errors) == (0, []) and "no encoder" in done.out
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    told = command("info", folder)
    assert told.code == 0 and "32 px" in told.out and "no encoder" in told.out
    assert command("sample", folder, "--num", 1, "--out", tmp_path / "drawn").code == 0
    add_pair(photos, "a", 0)
    text = refused("segment", folder, photos, "--out", tmp_path / "out", "--steps", 0)
    assert "no encoder" in text and "--steps" in text
    assert not (tmp_path / "out").exists()
    assert command("segment", folder, photos, "--out", tmp_path / "out", "--steps", 1).code == 0


def test_import_needs_a_new_folder(refused, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    before = (folder / "model.safetensors").read_bytes()
    assert "new or empty" in refused("import", GOLDEN, "--out", folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_info_of_a_model(command, model_folder):
    done = command("info", model_folder)
    assert done.code == 0
    for words in (
        "background, blob",
        "16 px",
        "colour",
        "the encoder",
        "semanticgan 0.1.0",
        "95% below 0.950",
        "semanticgan segment",
    ):
        assert words in done.out, (words, done.out)


def run_folder(tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    config = {
        "gan": {"kimg": 12.0},
        "encoder": {"kimg": 24.0},
        "preset": "tiny32",
        "data": {"resolution": 32},
        "run": {"seed": 4},
    }
    plan = {
        "command": "semanticgan train --data d",
        "data": "/d",
        "hours": None,
        "labels": {"names": ["a", "b"]},
        "config": config,
    }
    (folder / "config.json").write_text(json.dumps(plan))
    for role, count in {"labeled": 3, "unlabeled": 20, "val": 2}.items():
        (folder / f"{role}.txt").write_text("".join(f"images/{k}.png\n" for k in range(count)))
    return folder


def test_info_of_a_run_says_how_to_go_on(command, tmp_path, model_folder):
    folder = run_folder(tmp_path)
    assert "before its first tick" in command("info", folder).out
    lines = [{"stage": "gan", "kimg": 2.0, "G": 1.0}, {"stage": "encoder", "kimg": 3.0, "val_iou": 0.51234, "bad": None}]
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "enc')
    done = command("info", folder)
    assert done.code == 0
    assert "20 training images, 3 of them labelled, 2 for validation" in done.out
    assert "last: stage encoder, kimg 3, val_iou 0.5123\n" in done.out
    assert f"semanticgan train --out '{folder}' --resume" in done.out
    shutil.copytree(model_folder, folder / "model")
    group = {"iou": {"background": 0.9, "cell": 0.5}, "dice": {"background": 0.95, "cell": None}, "miou": 0.7, "accuracy": 0.8}
    spans = {kind: dict.fromkeys(group[kind], (0.1, 0.9)) for kind in ("iou", "dice")}
    spans |= {"miou": (0.1, 0.9), "accuracy": (0.1, 0.9)}
    (folder / "validation.json").write_text(json.dumps({"num_images": 2, "mean": group, "interval95": spans, "cases": []}))
    done = command("info", folder)
    assert "validation, 2 images: iou background 0.9, iou cell 0.5, dice background 0.95, miou 0.7, accuracy 0.8\n" in done.out
    assert "finished" in done.out and "model: " in done.out and "--resume" not in done.out


def test_info_of_a_damaged_run(refused, tmp_path):
    folder = run_folder(tmp_path)
    for content in ("{", "[]", '{"config": 3}'):
        (folder / "config.json").write_text(content)
        assert "config.json" in refused("info", folder)
