"""docs/data.md: its recipes work on folders of the makers' layout, and make the names that the lists hold."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_scenes import scene

from semanticgan.data.sources import list_images, mask_path

ROOT = Path(__file__).parents[2]
SPLITS = ROOT / "benchmarks" / "splits"
LISTS = sorted(SPLITS.rglob("*.txt"))


@pytest.fixture(scope="module")
def recipes():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    return names


def save(path: Path, seed: int, kind: str = "image", size: tuple[int, int] = (30, 20)) -> None:
    img, label = scene(seed, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = {"image": img, "grey": img[:, :, 0], "mask": label * 255}[kind]
    Image.fromarray(picture).save(path)


def check(command, data: Path, *images: str, labeled: bool = True) -> None:
    for image in images:
        assert (data / image).is_file(), sorted(p.relative_to(data) for p in data.rglob("*.*"))
        assert mask_path(data / image).is_file() == labeled
    assert not command("check", data, "--sheet", data.parent / "sheet.png").errors


def test_dermoscopy(recipes, command, tmp_path):
    source = tmp_path / "source"
    for k in range(4):
        save(source / "ISIC2018_Task1-2_Training_Input" / f"ISIC_000000{k}.jpg", k)
        save(source / "ISIC2018_Task1_Training_GroundTruth" / f"ISIC_000000{k}_segmentation.png", k, "mask")
        save(source / "HAM10000_images_part_1" / f"ISIC_002430{k + 5}.jpg", k)  # the first is in no list
        save(source / "ISIC2018_Task3_Test_Input" / f"ISIC_003606{k}.jpg", k)
    folder = source / "PH2Dataset" / "PH2 Dataset images" / "IMD002"
    save(folder / "IMD002_Dermoscopic_Image" / "IMD002.bmp", 5)
    save(folder / "IMD002_lesion" / "IMD002_lesion.bmp", 5, "mask")
    recipes["skin_dermoscopy"](source, tmp_path / "skin")
    check(command, tmp_path / "skin", "isic/images/ISIC_0000000.jpg", "ph2/images/IMD002.jpg")
    check(command, tmp_path / "skin", "ham10000/images/ISIC_0024306.jpg", "ham10000/images/ISIC_0036060.jpg", labeled=False)
    assert not (tmp_path / "skin" / "ham10000" / "images" / "ISIC_0024305.jpg").exists()
    with Image.open(tmp_path / "skin" / "isic" / "masks" / "ISIC_0000001.png") as mask:
        assert np.array_equal(np.asarray(mask), scene(1, (30, 20))[1])


def test_photographs(recipes, command, tmp_path):
    names = ("melanoma/dermis/SSM3", "melanoma/dermquest/SSM1_2", "notmelanoma/dermquest/D10_1", "notmelanoma/dermis/7")
    for k, name in enumerate(names):
        save(tmp_path / "source" / "skin_data" / f"{name}_orig.jpg", k)
        save(tmp_path / "source" / "skin_data" / f"{name}_contour.png", k, "mask")
    recipes["skin_photographs"](tmp_path / "source", tmp_path / "skin")
    check(
        command,
        tmp_path / "skin",
        "dermis/images/mel_SSM3.jpg",
        "dermquest/images/mel_SSM1_2.jpg",
        "dermquest/images/non_D10_1.jpg",
    )


def test_x_rays(recipes, command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    source = tmp_path / "source"
    for k in range(3):
        save(source / "ChinaSet_AllFiles" / "CXR_png" / f"CHNCXR_000{k}_0.png", k, "grey")
        save(source / "mask" / f"CHNCXR_000{k}_0_mask.png", k, "mask")
    save(source / "MontgomerySet" / "CXR_png" / "MCUCXR_0001_0.png", 7, "grey")
    for side, seed in (("left", 7), ("right", 8)):
        save(source / "MontgomerySet" / "ManualMask" / f"{side}Mask" / "MCUCXR_0001_0.png", seed, "mask")
    save(source / "images_001" / "images" / "00000061_012.png", 9, "grey")
    save(source / "images_001" / "images" / "00000061_999.png", 9, "grey")
    recipes["cxr"](source, tmp_path / "cxr")
    check(command, tmp_path / "cxr", "shenzhen/images/CHNCXR_0000_0.jpg", "montgomery/images/MCUCXR_0001_0.jpg")
    check(command, tmp_path / "cxr", "nih/images/00000061_012.jpg", labeled=False)
    assert len(list((tmp_path / "cxr" / "nih" / "images").iterdir())) == 1
    with Image.open(tmp_path / "cxr" / "montgomery" / "masks" / "MCUCXR_0001_0.png") as mask:
        assert np.array_equal(np.asarray(mask), scene(7, (30, 20))[1] | scene(8, (30, 20))[1])


def test_faces(recipes, tmp_path):
    source = tmp_path / "source"
    save(source / "CelebA-HQ-img" / "0.jpg", 1, size=(64, 64))
    for part, seed in (("skin", 1), ("hair", 2)):
        save(source / "CelebAMask-HQ-mask-anno" / "0" / f"00000_{part}.png", seed, "mask", size=(512, 512))
    recipes["faces"](source, tmp_path / "faces")
    with Image.open(tmp_path / "faces" / "celebamask" / "masks" / "00000.png") as mask:
        label = np.asarray(mask)
    hair = scene(2, (512, 512))[1] == 1
    assert (label[hair] == 6).all() and set(np.unique(label)) == {0, 1, 6}
    assert (tmp_path / "faces" / "celebamask" / "images" / "00000.jpg").is_file()


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_lists_hold_each_image_once(path):
    lines = path.read_text().splitlines()
    assert lines and len(set(lines)) == len(lines)
    assert all(re.fullmatch(r"(isic|ham10000|shenzhen|nih)/images/\w+\.jpg", line) for line in lines)


@pytest.mark.parametrize("task", ["skin", "cxr"])
def test_lists_keep_training_and_scoring_apart(task):
    lists = {path.stem: set(path.read_text().splitlines()) for path in LISTS if path.parent.name == task}
    assert not lists["val"] & lists["test"]
    for name, images in lists.items():
        if name.startswith("train"):
            assert images <= lists["train_all"] and not images & (lists["val"] | lists["test"])


def test_lists_are_found_below_the_data(tmp_path):
    """A list in this repository names images relative to DATA."""
    first = (SPLITS / "skin" / "val.txt").read_text().splitlines()[0]
    (tmp_path / "list.txt").write_text(first + "\n")
    save(tmp_path / first, 0)
    assert list_images(tmp_path, str(tmp_path / "list.txt")) == [first]
