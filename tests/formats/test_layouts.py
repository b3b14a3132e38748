import io
import json
import os
import re
import zipfile

import numpy as np
import pytest
from drawn import content, converted, names_of, same, scene, write_data
from PIL import Image

from semanticgan.errors import UserError
from semanticgan.formats import Options, convert
from semanticgan.formats.layouts import CELEB_PARTS


def save(path, array, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def voc_palette():
    """VOC's colours: bit j of the colour's byte is bit 3 (7 - j) + channel of the index."""
    return [sum((k >> (3 * j + c) & 1) << (7 - j) for j in range(8)) for k in range(256) for c in range(3)]


def write_voc(root):
    for k in range(3):
        img, label = scene(k)
        save(root / "JPEGImages" / f"2007_{k}.jpg", img)
        if k:
            save(root / "SegmentationClass" / f"2007_{k}.png", label, voc_palette())
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_1\n2007_2\n")
    return root


def test_voc(tmp_path):
    found, said = converted(
        write_voc(tmp_path / "VOC2012"), tmp_path / "out", options=Options(classes="background,aeroplane,bicycle")
    )
    assert ": voc, 3 images, 2 of them" in said[0]
    assert found["2007_0"][1] is None
    np.testing.assert_array_equal(found["2007_2"][1], scene(2)[1])
    assert (tmp_path / "out" / "train.txt").read_text() == "images/2007_1.jpg\nimages/2007_2.jpg\n"
    assert names_of(tmp_path / "out") == ["background", "aeroplane", "bicycle"]


def test_cvat_segmentation_masks(tmp_path):
    """Colours of labelmap.txt, whatever the order and whether background is named; VOC's border is ignored."""
    root = write_voc(tmp_path / "in")
    colours = np.zeros((256, 3), np.uint8)
    colours[[1, 2, 255]] = (250, 50, 83), (51, 221, 255), (224, 224, 192)
    for k in (1, 2):
        save(root / "SegmentationClass" / f"2007_{k}.png", colours[scene(k)[1]])
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nvessel:51,221,255::\nbackground:0,0,0::\ncell:250,50,83::\n"
    )
    found, _ = converted(root, tmp_path / "out")
    assert names_of(tmp_path / "out") == ["background", "vessel", "cell"]
    swapped = np.arange(256)
    swapped[[1, 2]] = 2, 1
    np.testing.assert_array_equal(found["2007_1"][1], swapped[scene(1)[1]])
    found, said = converted(root, tmp_path / "cells", options=Options(classes="else,cell"))
    np.testing.assert_array_equal(found["2007_1"][1], np.where(scene(1)[1] == 2, 0, scene(1)[1]))
    assert "counted as else: vessel, background" in said[1]
    with pytest.raises(UserError, match="--classes: got 'nerve', expected some of"):
        convert(root, tmp_path / "x", options=Options(classes="else,nerve"))
    with pytest.raises(UserError, match="--classes: got 'vessel' first, the place of all pixels outside the objects"):
        convert(root, tmp_path / "x", options=Options(classes="vessel,cell"))
    (root / "labelmap.txt").write_text("cell=1\n")
    with pytest.raises(UserError, match="got 'cell=1', expected name:red,green,blue"):
        convert(root, tmp_path / "x")


def test_lists_of_voc(tmp_path):
    """Their lines may have endings; those of no image are told."""
    root = write_voc(tmp_path / "in")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_0.jpg\n2008_1\n2008_2\n")
    found, said = converted(root, tmp_path / "out")
    assert (tmp_path / "out" / "val.txt").read_text() == "images/2007_0.jpg\n"
    assert said[1] == f"{root / 'ImageSets' / 'Segmentation' / 'val.txt'}: 2 of 3 lines name no image, such as 2008_1"
    (root / "labelmap.txt").write_text("background:0,0,0::\ncell:1,1,1::\nvessel:2,2,2::\n")
    for mask in (root / "SegmentationClass").iterdir():
        Image.fromarray(np.asarray(Image.open(mask))).save(mask)
    same, again = converted(root, tmp_path / "mapped")
    assert said[1] in again
    np.testing.assert_array_equal(same["2007_1"][1], found["2007_1"][1])


@pytest.mark.parametrize(("target", "name"), [("voc", "Void"), ("voc", "ignore"), ("coco", "void"), ("coco-polygons", "ignored")])
def test_a_class_whose_name_would_ignore_it(tmp_path, target, name):
    data = write_data(tmp_path / "data")
    (data / "classes.json").write_text(json.dumps({"classes": [{"name": n} for n in ("background", name, "vessel")]}))
    with pytest.raises(UserError, match=f"class '{name}': pixels of a class of this name are read as ignored ones; rename it"):
        convert(data, tmp_path / "out", to_format=target)


@pytest.mark.parametrize("target", ["RGB", "L", "1"])
def test_white_masks_beside_a_labelmap(tmp_path, target):
    """Whether in grey or in colours; not as ignored pixels."""
    root = tmp_path / "in"
    save(root / "JPEGImages" / "a.png", scene(0)[0])
    (root / "SegmentationClass").mkdir()
    Image.fromarray(np.eye(12, 17).astype(bool)).convert(target).save(root / "SegmentationClass" / "a.png")
    (root / "labelmap.txt").write_text("background:0,0,0::\nlesion:255,255,255::\n")
    found, _ = converted(root, tmp_path / "out")
    np.testing.assert_array_equal(found["a"][1], np.eye(12, 17))


def test_a_white_class_is_not_what_is_ignored(tmp_path):
    data = write_data(tmp_path / "data")
    classes = json.loads((data / "classes.json").read_text())
    classes["classes"][1]["color"], classes["classes"][2]["color"] = [255, 255, 255], [224, 224, 192]
    (data / "classes.json").write_text(json.dumps(classes))
    convert(data, tmp_path / "voc", to_format="voc", say=print)
    found, _ = converted(tmp_path / "voc", tmp_path / "back")
    np.testing.assert_array_equal(found["s1"][1], scene(1)[1])
    classes["classes"][2]["color"] = [255, 255, 255]
    (data / "classes.json").write_text(json.dumps(classes))
    with pytest.raises(UserError, match="two classes have one colour"):
        convert(data, tmp_path / "other", to_format="voc", say=print)
    labelmap = tmp_path / "voc" / "labelmap.txt"
    labelmap.write_text(labelmap.read_text() + "other:255,255,255::\n")
    with pytest.raises(UserError, match="one colour for other and cell"):
        convert(tmp_path / "voc", tmp_path / "other", say=print)


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("class_0", "cell", "vessel"), (0, 0, 0)),
        (("skin", "cell", "vessel"), (10, 20, 30)),
        (("skin", "background", "vessel"), (10, 20, 30)),
        (("_background_", "cell", "vessel"), (0, 0, 0)),
    ],
)
def test_class_0_keeps_its_place(tmp_path, names, first):
    """Whatever it is called, and whatever its colour; in VOC's colours too, as CVAT writes them."""
    data = write_data(tmp_path / "data")
    classes = json.loads((data / "classes.json").read_text())
    for entry, name in zip(classes["classes"], names, strict=True):
        entry["name"] = name
    classes["classes"][0]["color"] = list(first)
    (data / "classes.json").write_text(json.dumps(classes))
    convert(data, tmp_path / "voc", to_format="voc", say=print)
    for mask in (tmp_path / "voc" / "SegmentationClass").iterdir():
        Image.open(mask).convert("RGB").save(mask)
    found, _ = converted(tmp_path / "voc", tmp_path / "back")
    same(content(data), found)
    assert json.loads((tmp_path / "back" / "classes.json").read_text()) == classes


@pytest.mark.parametrize(
    ("lines", "names", "black", "grey"),
    [
        ("cell:1,1,1::\nskin:0,0,0::\n", ["skin", "cell"], 0, 1),
        ("cell:0,0,0::\nbackground:1,1,1::\n", ["background", "cell"], 1, 0),
        ("void:0,0,0::\ncell:1,1,1::\n", ["background", "cell"], 255, 1),
        ("# class 0: nerve\ncell:1,1,1::\nskin:0,0,0::\n", ["skin", "cell"], 0, 1),
    ],
)
def test_class_0_of_other_labelmaps(tmp_path, lines, names, black, grey):
    root = tmp_path / "in"
    save(root / "JPEGImages" / "a.png", scene(0)[0])
    save(root / "SegmentationClass" / "a.png", np.eye(12, 17).astype(np.uint8)[:, :, None].repeat(3, 2))
    (root / "labelmap.txt").write_text(lines)
    found, _ = converted(root, tmp_path / "out")
    assert names_of(tmp_path / "out") == names
    np.testing.assert_array_equal(found["a"][1], np.where(np.eye(12, 17), grey, black))


@pytest.mark.parametrize("name", ["cell: dead", "#cell", " cell"])
def test_names_that_a_labelmap_cannot_hold(tmp_path, name):
    data = write_data(tmp_path / "data")
    (data / "classes.json").write_text(json.dumps({"classes": [{"name": n} for n in ("background", name, "vessel")]}))
    with pytest.raises(UserError, match=re.escape(f"class {name!r}: a labelmap holds no name with spaces around it")):
        convert(data, tmp_path / "voc", to_format="voc")


def test_grey_masks_beside_a_labelmap_hold_ids_or_colours(tmp_path):
    root = write_voc(tmp_path / "in")
    (root / "labelmap.txt").write_text("cell:128,128,128::\nvessel:200,200,200::\n")
    greys = np.zeros(256, np.uint8)
    greys[[1, 2]] = 128, 200
    label = scene(1, ignored=False)[1]
    for name, values in (("2007_1", label), ("2007_2", greys[label])):
        save(root / "SegmentationClass" / f"{name}.png", values)
    found, _ = converted(root, tmp_path / "out")
    for name in ("2007_1", "2007_2"):
        np.testing.assert_array_equal(found[name][1], label)


def test_celebamask(tmp_path):
    """Later parts lie over earlier ones; images become as large as their masks; a face without parts is unlabelled."""
    root = tmp_path / "CelebAMask-HQ"
    skin, hair = np.zeros((2, 8, 8), np.uint8)
    skin[2:, 2:], hair[:4] = 255, 255
    save(root / "CelebAMask-HQ-mask-anno" / "0" / "00003_hair.png", hair)
    save(root / "CelebAMask-HQ-mask-anno" / "0" / "00003_skin.png", np.repeat(skin[:, :, None], 3, axis=2))
    for k in (3, 4):
        save(root / "CelebA-HQ-img" / f"{k}.jpg", np.full((16, 16, 3), 77, np.uint8))
    found, said = converted(root, tmp_path / "out")
    assert ": celebamask, 2 images, 1 of them" in said[0]
    expected = np.where(hair > 0, CELEB_PARTS.index("hair"), np.where(skin > 0, CELEB_PARTS.index("skin"), 0))
    np.testing.assert_array_equal(found["00003"][1], expected)
    assert found["00003"][0].shape == (8, 8, 3) and found["00004"][1] is None
    assert names_of(tmp_path / "out") == list(CELEB_PARTS)
    found, _ = converted(root, tmp_path / "hair", options=Options(classes="rest,hair"))
    np.testing.assert_array_equal(found["00003"][1], hair > 0)
    save(root / "CelebAMask-HQ-mask-anno" / "0" / "00003_wig.png", hair)
    with pytest.raises(UserError, match=r"00003_wig\.png: got this name"):
        convert(root, tmp_path / "x")


def test_the_authors_lists(tmp_path):
    root = tmp_path / "in"
    for k in range(3):
        img, label = scene(k, ignored=False)
        save(root / "label_data" / "image" / f"{k}.png", np.repeat(np.repeat(img, 2, 0), 2, 1) if k == 2 else img)
        save(root / "label_data" / "label" / f"{k}.png", label)
        save(root / "unlabel_data" / "image" / f"{k}.png", img)
    (root / "label_data" / "train_full_list.txt").write_text("0.png\n2.png\n")
    (root / "label_data" / "val_full_list.txt").write_text("1.png\n")
    (root / "unlabel_data" / "unlabel_list.txt").write_text("0.png\n1.png\n")
    found, said = converted(root, tmp_path / "out")
    assert ": authors, 6 images, 3 of them" in said[0]
    assert sorted(found) == ["0", "0_2", "1", "1_2", "2", "2_2"]
    assert found["2"][0].shape == (*found["2"][1].shape, 3)
    np.testing.assert_array_equal(found["1"][1], scene(1, ignored=False)[1])
    assert (tmp_path / "out" / "val_full_list.txt").read_text() == "images/1.png\n"
    assert (tmp_path / "out" / "unlabel_list.txt").read_text() == "images/0_2.png\nimages/1_2.png\n"
    for stray in ("1.tif", "3.png", "4.npy"):
        (root / "label_data" / "label" / stray).touch()
        with pytest.raises(UserError, match=rf"label/{stray}: mask without image; expected one of the very same name"):
            convert(root, tmp_path / "x")
        (root / "label_data" / "label" / stray).unlink()
    (root / "label_data" / "val_full_list.txt").write_text("../../x.png\n")
    with pytest.raises(UserError, match="expected a plain path"):
        convert(root, tmp_path / "x")
    (root / "label_data" / "val_full_list.txt").write_text("9.png\n")
    with pytest.raises(UserError, match=r"9\.png: no such file"):
        convert(root, tmp_path / "x")


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(scene(seed)[0]).save(buffer, "PNG")
    return buffer.getvalue()


def test_stylegan_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for k in range(2):
            archive.writestr(f"00000/img0000000{k}.png", png(k))
        archive.writestr("dataset.json", json.dumps({"labels": [["00000/img00000000.png", 3], ["00000/img00000001.png", 5]]}))
    found, said = converted(tmp_path / "faces.zip", tmp_path / "out")
    assert ": stylegan, 2 images, 0 of them" in said[0]
    np.testing.assert_array_equal(found["00000/img00000001"][0], scene(1)[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faces.zip", "out"]


def test_any_set_in_a_zip(tmp_path):
    data = write_data(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in data.rglob("*.*"):
            archive.write(path, f"my set/{path.relative_to(data)}")
    found, said = converted(tmp_path / "set.zip", tmp_path / "out")
    assert ": data, 4 images, 3 of them" in said[0] and len(found) == 4


def test_errors_name_the_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("my set/images/a.png", png(0))
        archive.writestr("my set/labels/a.txt", "0 .1 .1")
    with pytest.raises(UserError) as caught:
        convert(tmp_path / "set.zip", tmp_path / "out")
    assert str(caught.value).startswith(f"{tmp_path / 'set.zip'}/labels: no masks in it")


def link(archive):
    entry = zipfile.ZipInfo("images/b.png")
    entry.external_attr = 0o120777 << 16
    archive.writestr(entry, "/etc/passwd")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda a: a.writestr("../evil.png", b"x"), "expected a plain path below the folder"),
        (lambda a: a.writestr("/tmp/evil.png", b"x"), "expected a plain path below the folder"),
        (lambda a: a.writestr("images\\..\\..\\evil.png", b"x"), "expected a plain path below the folder"),
        (link, "got links in the archive"),
        (lambda a: [a.writestr(f"{k}.png", bytes(1000)) for k in range(30)], "files of 30000 bytes, more than"),
        (lambda a: (a.writestr("a", b"x"), a.writestr("a/b", b"x")), "cannot be unpacked"),
    ],
)
def test_hostile_zips(tmp_path, monkeypatch, write, message):
    monkeypatch.setattr("semanticgan.formats.sets.MAX_SWELLING", 2)
    monkeypatch.setattr("semanticgan.formats.sets.SMALL", 1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        write(archive)
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "x.zip", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]


def test_broken_zips(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(UserError, match="cannot be unpacked"):
        convert(tmp_path / "x.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "y.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png(0))
    data = bytearray((tmp_path / "y.zip").read_bytes())
    data[60:70] = bytes(10)
    (tmp_path / "y.zip").write_bytes(data)
    with pytest.raises(UserError, match="cannot be unpacked"):
        convert(tmp_path / "y.zip", tmp_path / "out")


@pytest.mark.parametrize("target", ["voc", "authors"])
def test_names_that_are_no_text_stay_as_they_are(tmp_path, target):
    root = tmp_path / "in"
    write_data(root)
    (root / "images").joinpath(os.fsdecode(b"\xe9.png")).write_bytes(next((root / "images").rglob("*.png")).read_bytes())
    convert(root, tmp_path / "out", to_format=target)
    written = [os.fsencode(path) for path in (tmp_path / "out").rglob("*")]
    assert any(b"\xe9" in name for name in written)
    lists = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*_list.txt"))
    assert (b"\xe9.png\n" in lists) == (target == "authors")  # VOC's lists are of labelled images
