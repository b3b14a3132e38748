import json

import numpy as np
import pytest
from PIL import Image

from semanticgan.data.check import check
from semanticgan.errors import UserError


def fill(root, labeled=8, unlabeled=4):
    random = np.random.default_rng(0)
    for name in ("images", "masks", "more"):
        (root / name).mkdir(parents=True)
    for k in range(labeled):
        Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(root / f"images/{k}.png")
        mask = np.zeros((30, 40), np.uint8)
        mask[:15, :10] = 1
        Image.fromarray(mask).save(root / f"masks/{k}.png")
    for k in range(unlabeled):
        Image.fromarray(random.integers(0, 256, (80, 80), dtype=np.uint8)).save(root / f"more/{k}.png")
    return root


@pytest.fixture
def root(tmp_path):
    return fill(tmp_path / "data")


def only(messages, *words):
    found = [m for m in messages if all(word in m for word in words)]
    assert len(found) == 1, messages
    return found[0]


def test_good_folder(root, tmp_path):
    report = check(root, out_sheet=tmp_path / "sheet.png")
    assert report.errors == [] and report.warnings == []
    only(report.lines, "labelled: 8 images (every image with a mask)")
    only(report.lines, "2 of 8 labelled images are held out")
    only(report.lines, "unlabelled: 10 images")
    only(report.lines, "sizes: 40x30 (8), 80x80 (4); shorter side 30 to 80 pixels, median 30")
    only(report.lines, "colours: 8 images in colour, 4 grey")
    only(report.lines, "classes, labelled: class_0 87.50% in 6 images, class_1 12.50% in 6 images")
    only(report.lines, "classes, validation: class_0 87.50% in 2 images")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    # ten cells of 160 pixels in columns of eight; the first has its mask's border in full colour
    assert sheet.shape == (2 * 160 + 2, 8 * 160 + 7 * 2, 3)
    assert (sheet[:160, :160] == (230, 159, 0)).all(axis=2).any()


def test_every_problem_is_named(root):
    (root / "images/0.png").write_text("no image")
    cut = (root / "more/1.png").read_bytes()
    (root / "more/1.png").write_bytes(cut[: len(cut) // 2])
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "masks/1.png")
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(root / "masks/2.png", format="JPEG")
    Image.fromarray(np.full((30, 40), 7, np.uint8)).save(root / "masks/3.png")
    (root / "masks/4.png").write_text("")
    (root / "classes.json").write_text('{"classes": [{"name": "a"}, {"name": "b"}]}')
    (root / "l.txt").write_text("\n".join(f"images/{k}.png" for k in range(6)))
    (root / "v.txt").write_text("images/6.png\nimages/7.png")
    report = check(root, ["l.txt"], ["more"], ["v.txt"])
    only(report.errors, "images/0.png: not an image")
    only(report.errors, "more/1.png: broken or truncated")
    only(report.errors, "masks/1.png: got a mask of 5x5, expected its image's 40x30")
    only(report.errors, "masks/2.png: got a mask in JPEG")
    only(report.errors, "masks/3.png: got class id 7, expected 0 to 1")
    only(report.errors, "masks/4.png: not an image")
    assert len(report.errors) == 6
    assert all("\n" not in message for message in [*report.errors, *report.warnings, *report.lines])


def test_unknown_class_id_in_a_validation_mask(root):
    Image.fromarray(np.full((30, 40), 7, np.uint8)).save(root / "masks/7.png")
    (root / "l.txt").write_text("\n".join(f"images/{k}.png" for k in range(6)))
    (root / "v.txt").write_text("images/7.png")
    assert "such masks hold 0, 1, 7" in only(check(root, ["l.txt"], ["more"], ["v.txt"]).errors, "masks/7.png")
    (root / "classes.json").write_text('{"classes": [{"name": "a"}, {"name": "b"}]}')
    assert "got class id 7, expected 0 to 1" in only(check(root, ["l.txt"], ["more"], ["v.txt"]).errors, "masks/7.png")


def test_masks_without_images_and_lists_without_masks(root):
    (root / "masks/orphan.png").touch()
    (root / "l.txt").write_text("images/1.png\nmore/0.png\nimages/none.png")
    report = check(root)
    only(report.errors, "masks/orphan.png: mask without image")
    report = check(root, ["l.txt"])
    only(report.errors, "l.txt:3: 'images/none.png': no such image")
    only(report.lines, "images: 12 below")
    (root / "l.txt").write_text("images/1.png\nmore/0.png")
    only(check(root, ["l.txt"]).errors, "more/0.png: no folder called images in its path")


def test_no_labels_at_all_still_looks_at_the_images(tmp_path):
    root = fill(tmp_path / "data", labeled=0)
    (root / "more/0.png").write_text("")
    report = check(root, out_sheet=tmp_path / "sheet.png")
    only(report.errors, "no labelled images")
    only(report.errors, "more/0.png: not an image")
    only(report.lines, "sizes: 80x80 (3)")
    assert (tmp_path / "sheet.png").exists()


def test_missing_and_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        check(tmp_path / "none")
    with pytest.raises(UserError, match="no images in this folder"):
        check(tmp_path)


def test_class_never_labelled_and_rare_class(root):
    (root / "classes.json").write_text('{"classes": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}')
    only(check(root).errors, "class 2 (c) is never labelled")
    mask = np.zeros((30, 40), np.uint8)
    mask[:15, :10], mask[0, 0] = 1, 2
    for k in range(6):
        Image.fromarray(mask).save(root / f"masks/{k}.png")
    (root / "l.txt").write_text("\n".join(f"images/{k}.png" for k in range(6)))
    (root / "v.txt").write_text("images/6.png\nimages/7.png")
    report = check(root, ["l.txt"], ["more"], ["v.txt"])
    assert report.errors == []
    only(report.warnings, "class c has 0.083% of the labelled pixels")
    only(report.warnings, "class c occurs in no validation image")
    (root / "l.txt").write_text("images/6.png\nimages/7.png")
    (root / "v.txt").write_text("images/1.png")
    only(check(root, ["l.txt"], ["more"], ["v.txt"]).errors, "class c is never labelled in a training mask")


def test_overlap_of_training_and_validation(root):
    for name in "lv":
        (root / f"{name}.txt").write_text("images/1.png\nimages/2.png\nimages/3.png")
    report = check(root, ["l.txt"], ["more"], ["v.txt"])
    assert report.errors == []
    only(report.warnings, "3 images are both labelled and for validation")
    (root / "v.txt").write_text("images/4.png")
    (root / "more/copy.png").write_bytes((root / "images/4.png").read_bytes())
    assert "same picture as the training image more/copy.png" in only(
        check(root, ["l.txt"], ["more"], ["v.txt"]).warnings, "images/4.png"
    )


def test_odd_images_are_warned_of(root):
    Image.new("RGB", (40, 40), (3, 3, 3)).save(root / "more/black.png")
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40)).save(root / "more/deep.png")
    frames = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (40, 40), dtype=np.uint8)) for k in range(3)]
    frames[0].save(root / "more/stack.tif", save_all=True, append_images=frames[1:])
    report = check(root)
    assert report.errors == []
    only(report.warnings, "more/black.png: near-constant image")
    only(report.warnings, "more/stack.tif: holds 3 pictures, only the first is read")
    only(report.lines, "depth: 1 images have more than 8 bits")


def test_turned_images_with_masks_are_warned_of(root):
    """Their masks may have been drawn on the picture as it is stored."""
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    for name in ("images/3.png", "images/5.png", "more/turned.jpg"):
        Image.fromarray(np.asarray(Image.open(root / "images/4.png"))).save(root / name, exif=upside_down)
    only(check(root).warnings, "images/", "is turned by its EXIF orientation, as viewers do (2 images with masks are)")


def test_many_classes_without_names_are_warned_of(root):
    numbered = np.repeat(np.arange(12, dtype=np.uint8), 100).reshape(30, 40)
    for k in range(8):
        Image.fromarray(numbered).save(root / f"masks/{k}.png")
    only(check(root).warnings, "12 classes without names", "if the values number objects, make them one class")
    classes = [{"name": f"organ {k}"} for k in range(12)]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    assert check(root).warnings == []


def test_files_of_other_formats_are_told(root):
    (root / "more/a.gif").touch()
    only(check(root).lines, "passed over: files that are not read as images, .gif (1)")


def test_the_sheet_shows_validation_masks_too(root, tmp_path):
    """A mask that is drawn on differs from the bare image."""
    mask = np.zeros((30, 40), np.uint8)
    (root / "v.txt").write_text("images/7.png\nimages/6.png")
    (root / "l.txt").write_text("\n".join(f"images/{k}.png" for k in range(6)))
    pictures = []
    for value in (0, 1):
        mask[5:25, 5:35] = value
        for k in (6, 7):
            Image.fromarray(mask).save(root / f"masks/{k}.png")
        check(root, ["l.txt"], ["more"], ["v.txt"], out_sheet=tmp_path / "sheet.png")
        pictures.append((tmp_path / "sheet.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_binary_masks(root):
    for k in range(8):
        mask = np.zeros((30, 40), np.uint8)
        mask[:15, :10] = 255
        Image.fromarray(mask).save(root / f"masks/{k}.png")
    report = check(root)
    assert report.errors == []
    only(report.lines, "only 0 and 255 occur, 255 is class 1")
    only(report.lines, "classes, labelled: class_0 87.50% in 6 images, class_1 12.50%")


def test_sheet_that_cannot_be_written(root):
    (root / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        check(root, out_sheet=root / "file" / "sheet.png")


def test_no_sheet_of_unreadable_images(root, tmp_path):
    for path in [*root.glob("images/*"), *root.glob("more/*")]:
        path.write_text("no image")
    report = check(root, out_sheet=tmp_path / "sheet.png")
    assert len(report.errors) == 12 and not (tmp_path / "sheet.png").exists()
    assert not [line for line in report.lines if "contact sheet" in line]
