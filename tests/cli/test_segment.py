import json
import os

import numpy as np
import pytest
from PIL import Image
from small_scenes import add_pair, load, scene

from semanticgan.cli.segment import distance_rank


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_writes_masks_overlays_reconstructions_and_summary(command, model_folder, tmp_path):
    photos = tmp_path / "photos"
    add_pair(photos, "a", 1, size=(30, 20))
    add_pair(photos / "deep", "b", 2, size=(18, 40))
    out = tmp_path / "out"
    done = command("segment", model_folder, photos, "--out", out, "--steps", 0)
    assert (done.code, done.errors) == (0, [])
    assert "2 images segmented" in done.out
    names = ["deep/images/b.png", "images/a.png"]
    assert sorted(contents(out)) == sorted(
        [f"{kind}/{n}" for kind in ("masks", "overlays", "reconstructions") for n in names] + ["summary.json"]
    )
    mask = load(out / "masks" / "images" / "a.png")
    assert (mask.mode, mask.size) == ("P", (30, 20))
    assert mask.getpalette()[:6] == [0, 0, 0, 230, 159, 0]
    assert set(np.unique(np.asarray(mask))) <= {0, 1}
    assert load(out / "overlays" / "deep" / "images" / "b.png").size == (18, 40)
    assert load(out / "reconstructions" / "images" / "a.png").size == (16, 16)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["classes"], summary["failed"]) == (0, ["background", "blob"], [])
    rows = {row["mask"]: row for row in summary["images"]}
    assert sorted(rows) == [f"masks/{n}" for n in names]
    row = rows["masks/images/a.png"]
    assert row["image"].endswith("photos/images/a.png") and row["size"] == [30, 20]
    share = float((np.asarray(mask) == 1).mean())
    assert row["shares"]["blob"] == pytest.approx(share, abs=1e-6) and sum(row["shares"].values()) == pytest.approx(1)
    assert 0 <= row["uncertainty"] <= 1 and row["distance"] >= 0 and 0 <= row["distance_rank"] <= 1


def test_a_distance_after_other_steps_has_no_rank(command, model_folder, tmp_path):
    add_pair(tmp_path / "photos", "a", 1)
    assert command("segment", model_folder, tmp_path / "photos", "--out", tmp_path / "out", "--steps", 1).code == 0
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())["images"]
    assert row["distance"] >= 0 and row["distance_rank"] is None


def test_same_call_same_bytes_whatever_the_batch(command, model_folder, tmp_path):
    for k in range(5):
        add_pair(tmp_path / "photos", f"{k}", k, size=(20 + k, 24))
    results = []
    for batch in (1, 3, 32):
        out = tmp_path / f"out{batch}"
        assert command("segment", model_folder, tmp_path / "photos", "--out", out, "--steps", 1, "--batch", batch).code == 0
        results.append(contents(out))
    assert results[0] == results[1] == results[2]


def test_equal_stems_stay_apart(command, model_folder, tmp_path):
    for folder in ("north", "south"):
        add_pair(tmp_path / folder, "a", len(folder))
        Image.fromarray(scene(9)[0]).save(tmp_path / folder / "images" / "a.jpg")
    done = command("segment", model_folder, tmp_path / "north", tmp_path / "south", "--out", tmp_path / "out", "--steps", 0)
    assert done.code == 0
    masks = [name for name in contents(tmp_path / "out") if name.startswith("masks")]
    assert masks == [f"masks/{folder}/images/a.{suffix}.png" for folder in ("north", "south") for suffix in ("jpg", "png")]


def test_good_files_are_done_and_bad_ones_named(command, model_folder, tmp_path):
    photos = tmp_path / "photos"
    for k in range(3):
        add_pair(photos, f"{k}", k)
    (photos / "images" / "broken.png").write_bytes((photos / "images" / "1.png").read_bytes()[:300])
    (photos / "images" / "text.jpg").write_text("no image")
    done = command("segment", model_folder, photos, tmp_path / "missing.png", "--out", tmp_path / "out", "--steps", 0)
    assert done.code == 2
    assert len(done.errors) == 3 and all(line.startswith("error: ") for line in done.errors)
    for name in ("broken.png", "text.jpg", "missing.png"):
        assert sum(name in line for line in done.errors) == 1
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == 3
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["images"]) == 3 and len(summary["failed"]) == 3


def test_grey_deep_and_rotated_images(command, model_folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    grey = scene(1, (24, 16))[0][:, :, 0]
    Image.fromarray(grey).save(photos / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 200).save(photos / "deep.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6  # a quarter turn
    Image.fromarray(grey).save(photos / "turned.jpg", exif=rotated)
    done = command("segment", model_folder, photos, "--out", tmp_path / "out", "--steps", 0)
    assert done.code == 0 and "deep.png: more than 8 bits" in done.out
    sizes = {p.name: load(p).size for p in (tmp_path / "out" / "masks").iterdir()}
    assert sizes == {"grey.png": (24, 16), "deep.png": (24, 16), "turned.png": (16, 24)}


def test_masks_of_others_are_not_written_over(command, model_folder, tmp_path):
    add_pair(tmp_path / "data", "a", 0)
    before = (tmp_path / "data/masks/a.png").read_bytes()
    done = command("segment", model_folder, tmp_path / "data/images/a.png", "--out", tmp_path / "data", "--steps", 0)
    assert done.code == 2 and len(done.errors) == 1
    assert "data: holds masks that `segment` did not write and would write over; name another folder" in done.errors[0]
    assert (tmp_path / "data/masks/a.png").read_bytes() == before
    for _ in range(2):  # its own it does write again, those of a run that was stopped too
        assert command("segment", model_folder, tmp_path / "data", "--out", tmp_path / "out", "--steps", 0).code == 0
        (tmp_path / "out" / "summary.json").unlink()


def test_stacks_are_told(command, model_folder, tmp_path):
    first, *others = (Image.fromarray(scene(k)[0]) for k in range(3))
    first.save(tmp_path / "stack.tif", save_all=True, append_images=others)
    done = command("segment", model_folder, tmp_path / "stack.tif", "--out", tmp_path / "out", "--steps", 0)
    assert (
        done.code == 0 and "stack.tif: holds several pictures, as 1 of the files do; the first of each was segmented" in done.out
    )


def test_images_unlike_the_validation_images_are_pointed_out(command, model_folder, tmp_path):
    config = json.loads((model_folder / "config.json").read_text())
    config["distance_quantiles"] = [k / 1e6 for k in range(21)]
    strict = tmp_path / "strict"
    strict.mkdir()
    (strict / "config.json").write_text(json.dumps(config))
    os.link(model_folder / "model.safetensors", strict / "model.safetensors")
    add_pair(tmp_path / "photos", "a", 0)
    done = command("segment", strict, tmp_path / "photos", "--out", tmp_path / "out", "--steps", 0)
    assert "1 of them are explained worse than 95% of the validation images" in done.out


def test_a_model_of_few_validation_images_says_that_it_cannot_tell(command, model_folder, tmp_path):
    config = json.loads((model_folder / "config.json").read_text()) | {"distance_quantiles": []}
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "config.json").write_text(json.dumps(config))
    os.link(model_folder / "model.safetensors", tmp_path / "few" / "model.safetensors")
    add_pair(tmp_path / "photos", "a", 0)
    done = command("segment", tmp_path / "few", tmp_path / "photos", "--out", tmp_path / "out", "--steps", 0)
    assert done.code == 0 and "which images are unlike the training images the model cannot tell" in done.out


@pytest.mark.parametrize(("distance", "rank"), [(0.0, 0.0), (0.1, 0.0), (0.15, 0.25), (0.2, 0.5), (0.3, 0.75), (9.0, 1.0)])
def test_distance_rank(distance, rank):
    assert distance_rank(distance, (0.1, 0.2, 0.4)) == rank


def test_no_rank_without_quantiles():
    assert distance_rank(0.2, ()) is None
