import json
import os

import nibabel as nib
import numpy as np
import pytest
from drawn import NAMES, content, converted, names_of, scene, write_data
from PIL import Image

from semanticgan.cli.main import run
from semanticgan.data.coding import decide_labels
from semanticgan.data.sources import find_sources
from semanticgan.errors import UserError
from semanticgan.formats import Options, convert


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_nnunet(root, labels, ending=".png", channels=1):
    """Two training cases and one test case, as nnU-Net's documentation lays them out."""
    for k, part in enumerate(("Tr", "Tr", "Ts")):
        img, label = scene(k, ignored=False)
        for c in range(channels):
            save(root / f"images{part}" / f"case_{k}_{c:04d}{ending}", img if channels == 1 else img[:, :, c])
        if part == "Tr":
            label[0, 0] = 3
            save(root / "labelsTr" / f"case_{k}{ending}", label)
    about = {"channel_names": {str(c): str(c) for c in range(channels)}, "labels": labels}
    (root / "dataset.json").write_text(json.dumps(about | {"numTraining": 2, "file_ending": ending}))
    return root


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_in(tmp_path, ending, channels):
    labels = {"background": 0, "cell": 1, "vessel": 2, "ignore": 3}
    found, said = converted(write_nnunet(tmp_path / "Dataset007_x", labels, ending, channels), tmp_path / "out")
    assert ": nnunet, 3 images, 2 of them" in said[0]
    assert names_of(tmp_path / "out") == list(NAMES)
    for k in range(2):
        img, label = scene(k, ignored=False)
        label[0, 0] = 255
        np.testing.assert_array_equal(found[f"case_{k}"][0], img)
        np.testing.assert_array_equal(found[f"case_{k}"][1], label)
    assert found["case_2"][1] is None


def test_cases_of_both_parts_are_listed(tmp_path, monkeypatch, capsys):
    """So that test cases can be kept out of training, and be scored."""
    root = write_nnunet(tmp_path / "in", {"background": 0, "cell": 1, "vessel": 2, "ignore": 3})
    save(root / "labelsTs" / "case_2.png", scene(2, ignored=False)[1])
    out = tmp_path / "out"
    found, said = converted(root, out)
    assert found["case_2"][1] is not None
    assert said[1] == "1 cases of imagesTs: keep them out of training with --labeled imagesTr.txt --unlabeled imagesTr.txt"
    chosen = find_sources(out, ["imagesTr.txt"], ["imagesTr.txt"], ["imagesTs.txt"])
    assert chosen.labeled == chosen.unlabeled == ("images/case_0.png", "images/case_1.png")
    assert chosen.val == ("images/case_2.png",)
    monkeypatch.chdir(tmp_path)
    assert run(["check", "out", "--labeled", "imagesTr.txt", "--unlabeled", "imagesTr.txt", "--val", "imagesTs.txt"]) == 0
    assert "unlabelled: 2 images" in capsys.readouterr().out


def test_a_case_with_ignored_pixels_alone(tmp_path):
    """Beside others of 0 and 1 that is no mask of 0 and 255 that means a class."""
    root = write_nnunet(tmp_path / "in", {"background": 0, "cell": 1, "ignore": 3})
    for k, value in enumerate((1, 3)):
        save(root / "labelsTr" / f"case_{k}.png", np.eye(12, 17, dtype=np.uint8) * value)
    converted(root, tmp_path / "out")
    assert decide_labels(tmp_path / "out", sorted((tmp_path / "out" / "masks").iterdir()))[0].coding == "index"
    found, _ = converted(tmp_path / "out", tmp_path / "again")
    np.testing.assert_array_equal(found["case_1"][1], np.eye(12, 17) * 255)


def test_lists_of_names_that_are_no_text(tmp_path):
    root = write_nnunet(tmp_path / "in", {"background": 0, "cell": 1, "vessel": 2, "ignore": 3})
    (root / "imagesTs" / "case_2_0000.png").rename(root / "imagesTs" / os.fsdecode(b"\xe9_0000.png"))
    converted(root, tmp_path / "out")
    assert (tmp_path / "out" / "imagesTs.txt").read_bytes() == b"images/\xe9.png\n"


@pytest.mark.parametrize("channel", ["", "_0000"])
def test_the_decathlon_and_version_1(tmp_path, channel):
    """Classes the other way round, no file ending, and in the Decathlon no channels."""
    root, affine = tmp_path / "in", np.diag([-1.0, -1, 1, 1])
    for case in ("a_0001", "b"):
        for part, name in (("imagesTr", f"{case}{channel}"), ("labelsTr", case), ("imagesTs", f"c{case}{channel}")):
            (root / part).mkdir(parents=True, exist_ok=True)
            values = np.random.default_rng(len(name)).integers(0, 3, (4, 5, 3)).astype(np.uint8)
            nib.save(nib.Nifti1Image(values, affine), root / part / f"{name}.nii.gz")
    labels = {"0": "background", "1": "liver", "2": "tumour"}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "training": [], "test": []}))
    found, said = converted(root, tmp_path / "out")
    assert ": nnunet, 12 images, 6 of them with label maps" in said[0] and "2 cases of imagesTs" in said[1]
    assert names_of(tmp_path / "out") == ["background", "liver", "tumour"]
    assert found["a_0001/0000"][1] is not None and found["ca_0001/0000"][1] is None
    lines = (tmp_path / "out" / "imagesTr.txt").read_text().splitlines()
    assert lines == [f"images/{case}/000{k}.png" for case in ("a_0001", "b") for k in range(3)]


def test_regions(tmp_path):
    """Overlapping regions become the classes that nnU-Net would write."""
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": 3}
    root = write_nnunet(tmp_path / "in", labels)
    about = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(about | {"regions_class_order": [1, 2, 3]}))
    converted(root, tmp_path / "out")
    assert names_of(tmp_path / "out") == ["background", "whole", "core", "active"]


@pytest.mark.parametrize("ignored", [True, False])
def test_out(tmp_path, ignored):
    """`ignore` is there only if a pixel is, and is the highest value; label PNGs are grey, as palettes would be expanded."""
    data = write_data(tmp_path / "data", ignored=ignored)
    convert(data, tmp_path / "out", to_format="nnunet")
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["labels"] == {"background": 0, "cell": 1, "vessel": 2} | ({"ignore": 3} if ignored else {})
    assert about["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert about["numTraining"] == 3 and about["file_ending"] == ".png"
    with Image.open(tmp_path / "out" / "labelsTr" / "s1.png") as image:
        assert image.mode == "L"
        label = content(data)["s1"][1]
        np.testing.assert_array_equal(np.asarray(image), np.where(label == 255, 3, label))
    assert sorted(p.name for p in (tmp_path / "out" / "imagesTr").iterdir()) == [f"s{k}_0000.png" for k in range(3)]
    assert [p.name for p in (tmp_path / "out" / "imagesTs").iterdir()] == ["s3_0000.png"]


def test_grey_images_and_class_0(tmp_path):
    data = write_data(tmp_path / "data")
    for path in (data / "images").iterdir():
        Image.open(path).convert("L").save(path)
    convert(data, tmp_path / "out", to_format="nnunet", options=Options(classes="skin,cell,vessel"))
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["channel_names"] == {"0": "gray"} and next(iter(about["labels"])) == "background"
    with Image.open(tmp_path / "out" / "imagesTr" / "s0_0000.png") as image:
        assert image.mode == "L"
    with pytest.raises(UserError, match="rename with --classes"):
        convert(data, tmp_path / "x", to_format="nnunet", options=Options(classes="skin,background,vessel"))


def test_volumes_of_three_channels(tmp_path):
    random = np.random.default_rng(0)
    for c in range(3):
        path = tmp_path / "in" / "imagesTr" / f"a_{c:04d}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(random.integers(0, 99, (4, 5, 3)).astype(np.int16), np.diag([-1.0, -1, 1, 1])), path)
    (tmp_path / "in" / "labelsTr").mkdir()
    nib.save(nib.Nifti1Image(np.eye(4, 5)[:, :, None].repeat(3, 2).astype(np.uint8), np.diag([-1.0, -1, 1, 1])),
             tmp_path / "in" / "labelsTr" / "a.nii.gz")  # fmt: skip
    about = {"channel_names": {}, "labels": {"background": 0, "line": 1}, "numTraining": 1, "file_ending": ".nii.gz"}
    (tmp_path / "in" / "dataset.json").write_text(json.dumps(about))
    found, _ = converted(tmp_path / "in", tmp_path / "out", options=Options(window=(0.0, 255.0)))
    blue = np.asarray(nib.load(tmp_path / "in" / "imagesTr" / "a_0002.nii.gz").dataobj)
    np.testing.assert_array_equal(found["a/0001"][0][:, :, 2], blue[:, :, 1].T)
    np.testing.assert_array_equal(found["a/0001"][1], np.eye(4, 5).T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_ending": ".mha"}, "got files in .mha"),
        ({"labels": {"background": 0, "ignore": 1, "cell": 2}}, "not the highest value"),
        ({"labels": {"background": 0, "cell": 1, "vessel": 2}}, "got class id 3, expected 0 to 2"),
        ({"labels": {"background": 0, "cell": "x"}}, "expected nnU-Net v2's form"),
        ({"labels": {"background": 0, "cell": [1, 2]}}, "expected nnU-Net v2's form"),
        ({"labels": {"background": 0, "cell": 10**9}}, "more than 254 classes"),
        ({"labels": []}, "nnU-Net v2's form"),
        ({"labels": {"background": 0, "cell": float("inf")}}, "nnU-Net v2's form"),
    ],
)
def test_bad_dataset_json(tmp_path, change, message):
    root = write_nnunet(tmp_path / "in", {"background": 0, "cell": 1, "vessel": 2, "ignore": 3})
    about = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(about | change))
    with pytest.raises(UserError, match=message):
        convert(root, tmp_path / "out")


def test_bad_cases(tmp_path):
    root = write_nnunet(tmp_path / "in", {"background": 0, "cell": 1, "vessel": 2, "ignore": 3})
    (root / "labelsTr" / "case_1.png").unlink()
    save(root / "imagesTr" / "case_0_0001.png", scene(0)[0])
    save(root / "imagesTr" / "other.png", scene(0)[0])
    with pytest.raises(UserError) as caught:
        convert(root, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "other.png: got no channel" in lines[0] and "got 2 channels" in lines[1] and "case_1.png: no such file" in lines[2]


def test_labels_without_image(tmp_path):
    root = write_nnunet(tmp_path / "in", {"background": 0, "cell": 1, "vessel": 2, "ignore": 3})
    for name in ("labelsTr/c.png", "labelsTr/case_1.tif", "labelsTs/case_2.tif", "labelsTs/t.nii.gz"):
        save(root / f"{name}.png", scene(0)[1])
        (root / f"{name}.png").rename(root / name)
        with pytest.raises(
            UserError, match=rf"{name}: labels without image; expected CASE.png with an image of that case in images"
        ):
            convert(root, tmp_path / "out")
        (root / name).unlink()
