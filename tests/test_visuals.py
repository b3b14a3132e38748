import errno
import os

import numpy as np
import pytest
from PIL import Image

from semanticgan import visuals
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec
from semanticgan.visuals import grid, overlay, save_label_png, save_png

LABELS = LabelSpec.unnamed(3)
ORANGE = (230, 159, 0)


def test_overlay_mixes_the_class_colour_and_leaves_the_background_clear():
    img = np.full((2, 3, 3), 100, np.uint8)
    label = np.array([[0, 1, 2], [0, 1, 255]])
    out = overlay(img, label, LABELS)
    assert out[0].tolist() == [[100, 100, 100], [165, 130, 50], [93, 140, 166]]
    assert out[1, 2].tolist() == [178, 178, 178]
    assert (overlay(img, label, LABELS, alpha=0.0) == img).all()
    assert (overlay(img, label, LABELS, alpha=1.0)[0, 1] == ORANGE).all()


def test_overlay_of_a_large_image_draws_the_border_in_full():
    label = np.zeros((64, 64), np.uint8)
    label[16:48, 16:48] = 1
    out = overlay(np.full((64, 64, 1), 100, np.uint8), label, LABELS)
    assert out.shape == (64, 64, 3)
    assert (out[16, 20] == ORANGE).all() and out[32, 32].tolist() == [165, 130, 50] and (out[15, 20] == 100).all()


def test_overlay_in_bands_is_that_of_the_whole(monkeypatch):
    generator = np.random.default_rng(0)
    img = generator.integers(0, 256, (70, 60, 3)).astype(np.uint8)
    label = generator.integers(0, 3, (7, 6)).repeat(10, 0).repeat(10, 1)
    whole = overlay(img, label, LABELS, 0.3)
    monkeypatch.setattr(visuals, "BAND", 9)
    np.testing.assert_array_equal(overlay(img, label, LABELS, 0.3), whole)


def test_overlay_changes_neither_argument():
    img, label = np.full((4, 4, 3), 7, np.uint8), np.ones((4, 4), np.int64)
    overlay(img, label, LABELS)
    assert (img == 7).all() and (label == 1).all()


def test_grid_places_row_by_row_on_white():
    images = [np.full((2, 2, 3), 10 * k, np.uint8) for k in range(1, 4)]
    out = grid(images, columns=2, gap=1)
    assert out.shape == (5, 5, 3)
    assert out[:, :, 0].tolist() == [[10, 10, 255, 20, 20]] * 2 + [[255] * 5] + [[30, 30, 255, 255, 255]] * 2


def test_grid_centres_smaller_images_and_needs_some():
    out = grid([np.zeros((4, 2, 3), np.uint8), np.zeros((2, 4, 3), np.uint8)], columns=5, gap=0)
    assert out[:, :, 0].tolist() == [
        [255, 0, 0, 255, 255, 255, 255, 255],
        [255, 0, 0, 255, 0, 0, 0, 0],
        [255, 0, 0, 255, 0, 0, 0, 0],
        [255, 0, 0, 255, 255, 255, 255, 255],
    ]
    with pytest.raises(ValueError, match="0 images"):
        grid([], columns=2)


def test_saved_png_reads_back(tmp_path):
    for channels in (1, 3):
        img = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
        save_png(tmp_path / "new/folder/a.png", img)
        assert (np.asarray(Image.open(tmp_path / "new/folder/a.png")).reshape(5, 7, channels) == img).all()
    assert os.listdir(tmp_path / "new/folder") == ["a.png"]


def test_label_png_holds_class_ids_in_the_classes_colours(tmp_path):
    label = np.array([[0, 1], [2, 255]])
    save_label_png(tmp_path / "m.png", label, LABELS)
    image = Image.open(tmp_path / "m.png")
    assert image.mode == "P" and (np.asarray(image) == label).all()
    assert (np.asarray(image.convert("RGB")) == LABELS.to_colour(label.astype(np.uint8))).all()


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    img = np.zeros((4, 4, 3), np.uint8)
    save_png(tmp_path / "a.png", img)
    before = (tmp_path / "a.png").read_bytes()

    def full(self, path, **settings):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"a\.png: cannot be written \(No space left on device\)"):
        save_png(tmp_path / "a.png", img + 9)
    assert (tmp_path / "a.png").read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


def test_unwritable_place_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_png(tmp_path / "file/a.png", np.zeros((4, 4, 3), np.uint8))
