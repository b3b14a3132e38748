import json

import numpy as np
import pytest
from PIL import Image

from semanticgan.data.coding import coded_as, coding_of, decide_labels, two_codings
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec

TWO = LabelSpec.unnamed(2)
BINARY = LabelSpec.unnamed(2, "binary")


def saved(path, array):
    Image.fromarray(array).save(path)
    return path


def write_masks(folder, *arrays):
    return [saved(folder / f"{k}.png", np.array(a, np.uint8)) for k, a in enumerate(arrays)]


def test_only_0_and_255_over_all_masks_is_binary(tmp_path):
    labels, notes = decide_labels(tmp_path, write_masks(tmp_path, [[0, 255]], [[0, 0]]))
    assert labels == BINARY
    assert "255 is class 1" in notes[0]


def test_1_bit_masks_are_binary(tmp_path):
    path = saved(tmp_path / "m.png", np.array([[True, False]]))
    assert decide_labels(tmp_path, [path])[0] == BINARY


def test_255_beside_other_ids_is_ignored(tmp_path):
    labels, notes = decide_labels(tmp_path, write_masks(tmp_path, [[0, 255, 0]], [[0, 1, 255]], [[0, 1, 1]]))
    assert labels == TWO
    assert "255 is ignored" in notes[0]


def test_classes_file_names_the_classes(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"classes": [{"name": "sky"}, {"name": "ship", "color": [1, 2, 3]}]}))
    labels, notes = decide_labels(tmp_path, write_masks(tmp_path, [[0, 1]]))
    assert labels.names == ("sky", "ship") and labels.palette[1] == (1, 2, 3)
    assert "sky, ship" in notes[0]


@pytest.mark.parametrize("masks", [([[0, 0]],), ([[0, 2]], [[0, 0]]), ([[1, 1]],)])
def test_a_class_never_labelled_is_an_error(tmp_path, masks):
    with pytest.raises(UserError, match="never labelled"):
        decide_labels(tmp_path, write_masks(tmp_path, *masks))


def test_unknown_class_ids_name_the_file(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"classes": [{"name": "a"}, {"name": "b"}]}))
    with pytest.raises(UserError, match=r"1\.png: got class id 7, expected 0 to 1, .* mend the mask or the classes"):
        decide_labels(tmp_path, write_masks(tmp_path, [[0, 1]], [[0, 7]]))
    (tmp_path / "classes.json").unlink()
    with pytest.raises(UserError, match=r"1\.png: such masks hold 0, 1, 254, expected class ids 0, 1, 2, \.\.\. without gaps"):
        decide_labels(tmp_path, write_masks(tmp_path, [[0, 1]], [[0, 254]]))


def test_all_bad_masks_are_listed_up_to_twenty(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(30)]
    for path in paths:
        path.write_text("no")
    with pytest.raises(UserError) as caught:
        decide_labels(tmp_path, paths)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and lines[0].startswith(str(paths[0])) and lines[-1] == "and 10 more"
    with pytest.raises(UserError, match="no masks"):
        decide_labels(tmp_path, [])


def test_the_coding_of_masks():
    zeros, ids, whites = (np.bincount(np.array(values), minlength=256) for values in ([0], [0, 1], [0, 255]))
    for counts, expected in (
        ([], None), ([zeros], None), ([zeros, whites], "binary"), ([whites, ids], "index"), ([zeros, ids], "index")
    ):  # fmt: skip
        assert coding_of(iter(counts)) == expected


def test_masks_of_two_codings_are_refused(tmp_path):
    """The object of those of 0 and 255 would otherwise be ignored, unsaid."""
    masks = write_masks(tmp_path, [[0, 1]], [[0, 0]], [[0, 255]])
    for decide in (lambda: decide_labels(tmp_path, masks), lambda: coded_as(TWO, masks)):
        with pytest.raises(UserError, match=r"2\.png: got a mask of 0 and 255, but .*0\.png holds 0 and 1; store all"):
            decide()
    assert coded_as(TWO, masks[1:]) == BINARY and coded_as(BINARY, masks[:2]) == TWO
    assert coded_as(LabelSpec.unnamed(3), masks) == LabelSpec.unnamed(3)


def in_palette(path, array, *colours):
    mask = Image.fromarray(np.array(array, np.uint8), "P")
    mask.putpalette([v for colour in colours for v in colour])
    mask.save(path)
    return path


def test_palettes_that_number_a_colour_in_two_ways_are_refused(tmp_path):
    black, white = (0, 0, 0), (250, 250, 250)
    one = in_palette(tmp_path / "one.png", [[0, 1]], black, white)
    same = in_palette(tmp_path / "same.png", [[1, 1]], black, white)
    other = in_palette(tmp_path / "other.png", [[0, 1]], white, black)
    assert decide_labels(tmp_path, [one, same])[0] == TWO
    with pytest.raises(UserError, match=r"other\.png: the colour \(250, .*\) of its palette is class id 0, but 1 in .*one\.png"):
        decide_labels(tmp_path, [one, same, other])
    useless = in_palette(tmp_path / "useless.png", [[0, 1]], black, black)
    assert decide_labels(tmp_path, [one, useless])[0] == TWO


def test_a_palette_tells_what_255_is(tmp_path):
    """Beside masks of 0 and 1 it is ignored where its colour is not that of class 1, and the colours are no ramp of greys."""
    ids = in_palette(tmp_path / "ids.png", [[0, 1]], (0, 0, 0), (9, 9, 9))
    orange, white, black = (230, 159, 0), (255, 255, 255), (0, 0, 0)
    for rest, ignored in (([orange] + 253 * [black], True), (255 * [white], False), ([(k, k, k) for k in range(1, 255)], False)):
        mask = in_palette(tmp_path / "mask.png", [[0, 255]], black, *[*rest, white][:255])
        assert (two_codings({ids: {0, 1}, mask: {0, 255}}) is None) == ignored
        if ignored:
            assert decide_labels(tmp_path, [ids, mask])[0] == coded_as(BINARY, [ids, mask]) == TWO
    assert (
        decide_labels(tmp_path, [in_palette(tmp_path / "mask.png", [[0, 255]], black, orange, *253 * [black], white)])[0]
        == BINARY
    )


def test_blurred_masks_are_recognised(tmp_path):
    ramp = np.arange(0, 256, 5, dtype=np.uint8)[None]
    with pytest.raises(UserError, match=r"0\.png: got 52 different values, expected class ids; if its edges are blurred"):
        decide_labels(tmp_path, write_masks(tmp_path, ramp, [[0, 255]]))


def test_a_trimap_is_to_be_renumbered(tmp_path):
    with pytest.raises(UserError, match=r"0\.png: such masks hold 0, 128, 255, expected class ids 0, 1, 2"):
        decide_labels(tmp_path, write_masks(tmp_path, [[0, 128, 255]]))


def test_masks_of_ignored_pixels_alone_stand_beside_ones_of_many_classes(tmp_path):
    """With a third class the values are class ids beyond doubt."""
    labels, notes = decide_labels(tmp_path, write_masks(tmp_path, [[0, 255]], [[0, 1]], [[0, 2]]))
    assert labels == LabelSpec.unnamed(3) and "255 is ignored" in notes[0]
