import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from semanticgan.errors import UserError
from semanticgan.labels import COLOURS, IGNORE_COLOUR, IGNORE_INDEX, LabelSpec, default_colour


def test_index_coding_keeps_classes_and_ignored_pixels():
    spec = LabelSpec.unnamed(3)
    values = np.array([[0, 1], [2, 255]])
    label = spec.to_index(values)
    assert label.dtype == np.uint8 and (label == values).all()


def test_binary_coding_has_no_ignored_pixels():
    spec = LabelSpec.unnamed(2, "binary")
    assert (spec.to_index(np.array([[0, 255]], np.uint8)) == [[0, 1]]).all()


@pytest.mark.parametrize(
    ("coding", "values", "message"),
    [
        ("index", [0, 3], "got class id 3, expected 0 to 2, or 255"),
        ("index", [256, 0], "got class id 256"),
        ("index", [-1, 0], "got class id -1"),
        ("binary", [0, 1], "got class id 1, expected 0 or 255"),
    ],
)
def test_unknown_class_ids_are_named(coding, values, message):
    with pytest.raises(UserError, match=message):
        LabelSpec.unnamed(3, coding).to_index(np.array([values], np.int32))


def test_colours_are_the_palette_and_white_where_ignored():
    spec = LabelSpec(names=("a", "b"), palette=((1, 2, 3), (4, 5, 6)))
    label = np.array([[0, 1, IGNORE_INDEX]], np.uint8)
    assert spec.to_colour(label).tolist() == [[[1, 2, 3], [4, 5, 6], list(IGNORE_COLOUR)]]
    assert spec.to_colour(label[None]).shape == (1, 1, 3, 3)


def test_palette_bytes_show_the_same_colours_in_a_png(tmp_path):
    spec = LabelSpec.unnamed(5)
    label = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)
    png = Image.fromarray(label)
    png.putpalette(spec.palette_bytes())
    png.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as back:
        assert (np.asarray(back) == label).all()
        assert (np.asarray(back.convert("RGB")) == spec.to_colour(label)).all()


def test_ignored_pixels_look_like_no_class():
    spec = LabelSpec(names=("a", "b"), palette=((0, 0, 0), (255, 255, 255)))
    assert spec.ignored_colour == default_colour(1) and tuple(spec.palette_bytes()[-3:]) == default_colour(1)
    assert tuple(LabelSpec.unnamed(2).palette_bytes()[-3:]) == (255, 255, 255)


def test_default_colours_differ_and_begin_with_black():
    colours = [default_colour(k) for k in range(254)]
    assert colours[: len(COLOURS)] == list(COLOURS) and colours[0] == (0, 0, 0)
    assert len(set(colours)) == 254 and IGNORE_COLOUR not in colours
    assert all(0 <= v <= 255 for colour in colours for v in colour)


@pytest.mark.parametrize("names", [("a",), ("a", "a"), tuple(map(str, range(255)))])
def test_impossible_specs_are_refused(names):
    with pytest.raises(ValidationError):
        LabelSpec(names=names, palette=((0, 0, 0),) * len(names))


def test_largest_spec():
    spec = LabelSpec.unnamed(254)
    assert spec.num_classes == 254 and LabelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_classes_file(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"classes": [{"name": "skin", "color": [9, 8, 7]}, {"name": "läsion"}], "ignore": 255}))
    spec = LabelSpec.from_file(path, "binary")
    assert spec == LabelSpec(names=("skin", "läsion"), palette=((9, 8, 7), default_colour(1)), coding="binary")
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as some editors save it
    assert LabelSpec.from_file(path, "binary") == spec


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"classes": 5}', "cannot be read"),
        ('{"classes": [{"color": [1, 2, 3]}, {}]}', "cannot be read"),
        ('{"classes": [{"name": "a"}]}', "got 1 classes, expected 2 to 254"),
        ('{"classes": [{"name": "a"}, {"name": "a"}]}', "same name"),
        ('{"classes": [{"name": "a", "color": [1, 2]}, {"name": "b"}]}', "palette: 0"),
        ('{"classes": [{"name": "a", "color": [1, 2, 300]}, {"name": "b"}]}', "in 0..255"),
        ('{"classes": [{"name": "a"}, {"name": "b"}], "ignore": 0}', "got ignore 0, expected 255"),
    ],
)
def test_a_bad_classes_file_is_named_with_the_form(tmp_path, content, message):
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        LabelSpec.from_file(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and message in text and len(text.splitlines()) == 1
