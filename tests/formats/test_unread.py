"""Labels in forms or places that are not read: told of, never converted to none."""

import json
import shlex

import numpy as np
import pytest
from drawn import converted, scene
from PIL import Image
from test_annotations import BLOCK, CVAT, write_coco

from semanticgan.cli.main import run
from semanticgan.errors import UserError
from semanticgan.formats import Options, convert


def save(root, *names):
    """An image for every name that ends in .png or .jpg, something for any other."""
    for k, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg", ".gif"):
            Image.fromarray(scene(k)[0]).save(path)
        elif path.suffix == ".npy":
            np.save(path, scene(k)[1])
        else:
            path.write_text("{}")
    return root


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["JPEGImages/a.jpg", "Annotations/a.xml"], {}, "Annotations: no masks in it, found 1 .xml files, expected"),
        (["images/a.jpg", "labels/a.txt"], {}, "labels: no masks in it, found 1 .txt files, expected"),
        (["img/a.jpg", "masks/a.npy"], {}, "masks: no masks in it, found 1 .npy files, expected"),
        (["images/a.jpg", "masks/a.npy"], {"images": "images", "masks": "masks"}, "masks: no masks in it, found 1 .npy"),
        (["images/a.jpg", "masks/a.npy"], {}, "masks/a.npy: looks like labels of"),
        (["a.jpg", "a.json"], {}, "a.json: looks like labels of"),
        (["img/a.jpg", "ann/a.jpg.json"], {}, "a.jpg.json: looks like labels of"),
        (["train/images/a.jpg", "train/labels/a.txt"], {}, "a.txt: looks like labels of"),
        (["images/a.jpg", "fov/a_mask.gif"], {}, "a_mask.gif: looks like labels of"),
        (["s/a.jpg", "s/a.png"], {}, "s/a.jpg and .*s/a.png: got two images of one name"),
        (["a.jpg", "a_mask.png"], {}, "a_mask.png: got an image that by its name is the mask of .*a.jpg"),
        (["a_1.jpg", "a_1_seg.png"], {}, "a_1_seg.png: got an image that by its name is the mask of .*a_1.jpg"),
        (["img_01.png", "label_01.png"], {}, "label_01.png: got an image that by its name is the mask of .*img_01.png"),
        (["p0/img.png", "p0/mask.png"], {}, "p0/mask.png: got an image that by its name is the mask of .*p0/img.png"),
        (["Original/1.png", "Ground Truth/1.png"], {}, "Ground Truth/1.png: got an image that by its name is the mask of"),
        (["train/1.png", "train_masks/1.png"], {}, "train_masks/1.png: got an image that by its name is the mask of"),
        (["p0/photo/a.png", "p0/seg/b.png"], {}, "p0/seg: got such a folder among the images; convert .*p0 alone"),
        (["a/images/a.png", "a/images/a_label.png", "a/masks/.keep"], {}, "a_label.png: got an image that by its name"),
    ],
)
def test_labels_are_never_left_out_unsaid(tmp_path, names, options, message):
    root = save(tmp_path / "in", *names)
    with pytest.raises(UserError, match=message) as caught:
        convert(root, tmp_path / "out", options=Options(**options))
    assert len(str(caught.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "b/c.png", "b/a.png"],
        ["site_a/001.jpg", "site_b/001.jpg"],
        ["images/a.jpg", "labels/.keep"],
        ["images/a.jpg", "masks/.keep"],
        ["images/train_01.jpg", "train.txt", "labels.txt", "metadata.json"],
        ["man_with_mask.jpg", "hat.jpg"],
        ["with_mask/1.jpg", "without_mask/1.jpg"],
        ["ann_01.jpg", "bob_01.jpg"],
    ],
)
def test_images_alone_are_unlabelled(tmp_path, names):
    root = save(tmp_path / "in", *names)
    (root / "notes").mkdir()
    (root / "notes" / "broken.json").write_text("{")
    found, said = converted(root, tmp_path / "out")
    count = sum(name.endswith((".jpg", ".png")) for name in names)
    assert len(found) == count and f"{count} images, 0 of them with label maps" in said[0]


@pytest.mark.parametrize("part", ["train", "my train"])
def test_annotations_of_a_part_are_named_with_the_command(tmp_path, capsys, monkeypatch, part):
    """As Roboflow lays out COCO."""
    monkeypatch.chdir(tmp_path)
    for split in ("other", part):
        write_coco(tmp_path / "in" / split, [BLOCK], place="train/_annotations.coco.json")
    (tmp_path / "in" / "other" / "train" / "_annotations.coco.json").unlink()
    assert run(["convert", "in", "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert f"in/{part}/train/_annotations.coco.json: got annotations of a part of in" in error
    command = shlex.split(error.rpartition("alone: semanticgan ")[2])
    assert run([*command[:-1], "out"]) == 0
    assert ": coco, 1 images, 1 of them with label maps" in capsys.readouterr().out


def test_cvat_of_a_part(tmp_path):
    root = save(tmp_path / "in", "job/images/a.png", "job/images/deep/b.png")
    (root / "job" / "annotations.xml").write_text(CVAT)
    with pytest.raises(UserError, match=r"job/annotations\.xml: got annotations of a part of"):
        convert(root, tmp_path / "out")
    converted(root / "job", tmp_path / "out")


def test_one_folder_for_images_and_masks(tmp_path):
    root = save(tmp_path / "in", "a.jpg", "a.png")
    with pytest.raises(UserError, match="got one folder for images and masks"):
        convert(root, tmp_path / "out", options=Options(images=str(root), masks=str(root)))


@pytest.mark.parametrize(("images", "masks"), [("", "drawn"), ("photos", "")])
def test_one_folder_in_the_other(tmp_path, images, masks):
    """Masks are no images as well, nor images masks."""
    root = tmp_path / "in"
    save(root / images, "a.jpg", "deep/a.jpg")
    for name in ("a.png", "deep/a.png"):
        (root / masks / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(0)[1]).save(root / masks / name)
    found, said = converted(root, tmp_path / "out", options=Options(images=str(root / images), masks=str(root / masks)))
    assert sorted(found) == ["a", "deep/a"] and "2 images, 2 of them with label maps" in said[0]


def test_labels_that_were_drawn_from_other_files_count(tmp_path):
    """Beside masks, the files that they were made from are no matter."""
    root = save(tmp_path / "in", "images/a.jpg", "images/a.json")
    (root / "masks").mkdir()
    Image.fromarray(scene(0)[1]).save(root / "masks" / "a.png")
    (root / "coco.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    _, said = converted(root, tmp_path / "out")
    assert "1 images, 1 of them with label maps" in said[0]
