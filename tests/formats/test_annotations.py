import json
import re
import warnings

import numpy as np
import pytest
from drawn import content, converted, names_of, scene, write_data
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFilter

from semanticgan.errors import UserError
from semanticgan.formats import Options, convert
from semanticgan.formats.shapes import mask_to_rle, outlines, pack_counts, polygon_mask, rle_to_mask, unpack_counts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pycocotools import mask as oracle
    from pycocotools.coco import COCO

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools beside NumPy 2
MASKS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(MASKS)
@settings(max_examples=200, deadline=None)
def test_run_lengths_as_pycocotools_has_them(mask):
    packed = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    counts = mask_to_rle(mask)
    assert pack_counts(counts) == packed
    assert unpack_counts(packed) == counts
    np.testing.assert_array_equal(rle_to_mask(counts, *mask.shape), mask)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=9))
@settings(deadline=None)
def test_packing_is_undone_by_unpacking(counts):
    assert unpack_counts(pack_counts(counts)) == counts


@given(MASKS)
@settings(max_examples=200, deadline=None)
def test_outlines_fill_to_the_mask(mask):
    """By our rule and by pycocotools' one; none only for masks with holes."""
    polygons = outlines(mask)
    if polygons is None:
        background = Image.fromarray(np.pad(~mask, 1).astype(np.uint8))
        assert _enclosed(np.asarray(background, bool))
        return
    union = np.zeros(mask.shape, bool)
    for points in polygons:
        union |= polygon_mask(points, *mask.shape)
    np.testing.assert_array_equal(union, mask)
    if polygons:
        theirs = oracle.decode(oracle.merge(oracle.frPyObjects([list(map(float, p)) for p in polygons], *mask.shape)))
        np.testing.assert_array_equal(theirs, mask)


def _enclosed(background):
    """Whether a part of the background touches the rest, in four directions, nowhere."""
    reached = np.zeros_like(background)
    reached[0] = True
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= background | (np.arange(len(background)) == 0)[:, None]
        if (grown == reached).all():
            return bool((background & ~reached).any())
        reached = grown


@given(st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 35)), min_size=3, max_size=8), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_polygons_are_pycocotools_but_for_the_border(corners, digits):
    """pycocotools rounds to fifths of a pixel, so pixels within one of an edge may differ."""
    points = [round(v, digits) for corner in corners for v in corner]
    ours = polygon_mask(points, 30, 40)
    theirs = oracle.decode(oracle.frPyObjects([points], 30, 40))[:, :, 0].astype(bool)
    border = np.zeros((30, 40), bool)
    ends = np.array(points).reshape(-1, 2)
    for a, b in zip(ends, np.roll(ends, -1, axis=0), strict=True):
        steps = np.rint(a + (b - a) * np.linspace(0, 1, 400)[:, None] - 0.5).astype(int)
        x, y = steps[((steps >= 0) & (steps < (40, 30))).all(1)].T
        border[y, x] = True
    near = np.asarray(Image.fromarray(border).convert("L").filter(ImageFilter.MaxFilter(5)), bool)
    edge = np.ones((30, 40), bool)
    edge[1:-1, 1:-1] = False  # what lies beyond the image is clipped to its edge by pycocotools
    assert not ((ours != theirs) & ~near & ~edge).any()


def test_polygon_covers_the_pixels_whose_centres_it_holds():
    square = np.zeros((6, 6), bool)
    square[1:4, 2:5] = True
    np.testing.assert_array_equal(polygon_mask([2, 1, 5, 1, 5, 4, 2, 4], 6, 6), square)
    np.testing.assert_array_equal(polygon_mask([2.4, 1.4, 4.6, 1.4, 4.6, 3.6, 2.4, 3.6], 6, 6), square)
    assert not polygon_mask([10, 10, 20, 10, 20, 20], 6, 6).any()
    assert polygon_mask([-1e8, -1e8, 1e8, -1e8, 1e8, 1e8, -1e8, 1e8], 6, 6).all()
    for bad in ([], [1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, float("nan")], [1e300] * 6, "abcdef", [[1, 2], [3]]):
        with pytest.raises(ValueError):
            polygon_mask(bad, 6, 6)


@pytest.mark.parametrize("target", ["coco", "coco-polygons"])
def test_coco_out_as_pycocotools_reads_it(tmp_path, target, capsys):
    data = write_data(tmp_path / "data")
    label = scene(0)[1]
    label[7, 9] = 0  # a hole
    Image.fromarray(label).save(data / "masks" / "s0.png")
    convert(data, tmp_path / "out", to_format=target)
    coco = COCO(tmp_path / "out" / "annotations.json")
    kinds = set()
    for image in coco.loadImgs(coco.getImgIds()):
        found = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(annotation)
            found[mask > 0] = annotation["category_id"]
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == oracle.toBbox(oracle.encode(np.asfortranarray(mask))).tolist()
            kinds.add(type(annotation["segmentation"]).__name__)
        label = content(data)[image["file_name"][:-4]][1]
        np.testing.assert_array_equal(found, np.zeros_like(found) if label is None else label)
    assert kinds == ({"dict"} if target == "coco" else {"dict", "list"})
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["cell", "vessel", "ignore"]


def write_coco(root, annotations, name="a.png", size=(12, 17), place="annotations/instances_train.json"):
    (root / "train").mkdir(parents=True)
    Image.fromarray(scene(0)[0]).save(root / "train" / "a.png")
    content = {
        "images": [{"id": 5, "file_name": name, "height": size[0], "width": size[1]}],
        "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [{"id": k, "image_id": 5, "category_id": 90, **a} for k, a in enumerate(annotations)],
    }
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text(json.dumps(content))
    return root


BLOCK = {"segmentation": [[2, 1, 5, 1, 5, 4, 2, 4]], "area": 9}


def test_coco_in(tmp_path):
    """Polygons, both forms of run lengths; large objects first; ids in order of the categories' ids."""
    mask = np.zeros((12, 17), bool)
    mask[2:9, 3:9] = True
    annotations = [
        {"segmentation": [[4, 4, 6, 4, 6, 6, 4, 6], [12, 8, 14, 8, 14, 10, 12, 10]], "area": 8, "category_id": 3},
        {"segmentation": {"size": [12, 17], "counts": mask_to_rle(mask)}, "area": 42, "iscrowd": 1},
        {"segmentation": {"size": [12, 17], "counts": pack_counts(mask_to_rle(np.roll(mask, 8, 1)))}, "area": 42},
    ]
    found, said = converted(write_coco(tmp_path / "in", annotations), tmp_path / "out")
    expected = np.where(mask | np.roll(mask, 8, 1), 2, 0)
    expected[4:6, 4:6] = expected[8:10, 12:14] = 1
    np.testing.assert_array_equal(found["a"][1], expected)
    assert ": coco, 1 images" in said[0] and names_of(tmp_path / "out") == ["background", "cat", "dog"]
    found, said = converted(tmp_path / "in", tmp_path / "dogs", options=Options(classes="background,dog"))
    np.testing.assert_array_equal(found["a"][1], expected == 2)
    assert "counted as background: cat" in said[1]


def test_boxes_without_outlines_are_ignored(tmp_path):
    """Beneath smaller objects, above larger ones; those of classes that were not chosen are background, as these are."""
    annotations = [
        {"segmentation": [[0, 0, 17, 0, 17, 9, 0, 9]], "area": 153},
        {"segmentation": [[3, 3, 5, 3, 5, 5, 3, 5]], "area": 4, "category_id": 3},
        {"bbox": [2.5, 1, 6, 12], "segmentation": []},
        {"bbox": [12, 10, 9, 9]},
        {"segmentation": []},
    ]
    found, said = converted(write_coco(tmp_path / "in", annotations), tmp_path / "out")
    expected = np.zeros((12, 17), np.uint8)
    expected[:9] = 2
    expected[1:, 2:9] = expected[10:, 12:] = 255
    expected[3:5, 3:5] = 1
    np.testing.assert_array_equal(found["a"][1], expected)
    assert said[1] == "2 objects have a box and no outline: their boxes are ignored"
    found, _ = converted(tmp_path / "in", tmp_path / "cats", options=Options(classes="background,cat"))
    np.testing.assert_array_equal(found["a"][1], expected == 1)


@pytest.mark.parametrize(
    "annotation", [{"bbox": [1, 2, 3, 4]}, {"segmentation": [], "bbox": [1, 2, 3, 4]}, {"segments_info": []}]
)
def test_coco_without_any_outline(tmp_path, annotation):
    """Of detection, and of panoptic segmentation."""
    with pytest.raises(UserError, match="got 1 objects without one outline, expected polygons or run lengths"):
        convert(write_coco(tmp_path / "in", [annotation]), tmp_path / "out")


def test_image_files_of_other_endings_become_png(tmp_path):
    """And what macOS leaves beside a file is not looked at."""
    root = write_coco(tmp_path / "in", [BLOCK])
    (path,) = [p for p in root.rglob("*.json")]
    coco = json.loads(path.read_text())
    old = next(root.rglob(coco["images"][0]["file_name"]))
    old.rename(old.with_suffix(".jfif"))
    coco["images"][0]["file_name"] = old.with_suffix(".jfif").name
    path.write_text(json.dumps(coco))
    path.with_name("._annotations.json").write_bytes(b"\x00\x05\x16\x07")
    found, _ = converted(root, tmp_path / "out")
    assert list(found) == ["a"] and found["a"][1].any()


def test_an_object_cannot_be_the_background(tmp_path):
    root = write_coco(tmp_path / "in", [BLOCK])
    for classes in ("cat,dog", "dog"):
        with pytest.raises(UserError, match=f"--classes: got '{classes[:3]}' first, .*; put background first"):
            convert(root, tmp_path / "out", options=Options(classes=f"{classes},background"))
    found, _ = converted(root, tmp_path / "out", options=Options(classes="rest,dog"))
    assert found["a"][1].max() == 1


def test_coco_without_annotations_is_unlabelled(tmp_path):
    found, said = converted(write_coco(tmp_path / "in", []), tmp_path / "out")
    assert found["a"][1] is None
    assert said[1] == "without objects, and so counted as unlabelled: 1"


@pytest.mark.parametrize(
    ("annotation", "more", "message"),
    [
        (BLOCK, {"name": "../secret.png"}, "expected a plain path below the folder"),
        (BLOCK, {"name": "/etc/secret.png"}, "expected a plain path below the folder"),
        (BLOCK, {"name": "b.png"}, "no such image in"),
        (BLOCK, {"size": (10**6, 10**6)}, "expected at most 200 million pixels"),
        (BLOCK, {"size": (12, "17")}, "expected at most 200 million pixels"),
        (BLOCK, {"size": (17, 12)}, "got a label map of 12x17, expected its image's 17x12"),
        ({"segmentation": [[1, 2, 3]]}, {}, "expected at least three points"),
        ({"segmentation": [["x"] * 6]}, {}, "an object of class dog"),
        ({"segmentation": [[{"x": 0, "y": 0}] * 6]}, {}, "an object of class dog"),
        ({**BLOCK, "area": 10**400}, {}, "annotation 0: OverflowError"),
        ({"segmentation": "2 3"}, {}, "expected polygons or run lengths"),
        ({"segmentation": {"size": [12, 17], "counts": [10**30]}}, {}, "expected run lengths"),
        ({"segmentation": {"size": [12, 17], "counts": [1, -1, 204]}}, {}, "expected run lengths"),
        ({"segmentation": {"size": [12, 17], "counts": "~~~~"}}, {}, "expected compressed run lengths"),
        ({"segmentation": {"size": [12, 17], "counts": "o" * 5000}}, {}, "expected compressed run lengths"),
        ({"segmentation": {"size": [17, 12], "counts": [204]}}, {}, "got run lengths of size"),
        ({"bbox": [1, 2, 3]}, {}, "annotation 0: ValueError"),
        ({"bbox": [1, 2, float("nan"), 4]}, {}, "expected finite numbers"),
        ({"bbox": "abcd"}, {}, "annotation 0: "),
        ({**BLOCK, "category_id": 1}, {}, "annotation 0: KeyError"),
        ({**BLOCK, "image_id": [1]}, {}, "annotation 0: TypeError"),
    ],
)
def test_bad_coco(tmp_path, annotation, more, message):
    root = write_coco(tmp_path / "in", [annotation], **more)
    with pytest.raises(UserError, match=message):
        convert(root, tmp_path / "out", from_format="coco")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_broken_json(tmp_path, monkeypatch):
    root = write_coco(tmp_path / "in", [BLOCK])
    path = root / "annotations" / "instances_train.json"
    for text in ("{", "[" * 100_000, '{"images": [3], "annotations": [], "categories": []}', "\xff"):
        path.write_bytes(text.encode("latin1"))
        with pytest.raises(UserError, match=str(path)):
            convert(path, tmp_path / "out", from_format="coco")
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}))
    with pytest.raises(UserError, match="no images"):
        convert(path, tmp_path / "out", from_format="coco")
    monkeypatch.setattr("semanticgan.formats.sets.MAX_JSON", 10)
    with pytest.raises(UserError, match="enormous JSON"):
        convert(path, tmp_path / "out", from_format="coco")


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
  <label><name>cell</name><color>#fa3253</color><attributes><attribute><name>size</name></attribute></attributes></label>
  <label><name>vessel</name><color>#33ddff</color></label>
</labels></task></meta>
<image id="0" name="a.png" width="17" height="12">
  <polygon label="vessel" occluded="0" points="2.0,1.0;8.0,1.0;8.0,6.0;2.0,6.0" z_order="1"></polygon>
  <mask label="cell" occluded="0" rle="1, 3, 2, 2" left="5" top="4" width="4" height="2" z_order="2">
    <attribute name="s">1</attribute></mask>
  <polygon label="cell" occluded="0" points="0.0,0.0;17.0,0.0;17.0,3.0;0.0,3.0" z_order="0"></polygon>
  <box label="cell" xtl="1" ytl="1" xbr="5" ybr="5"></box>
</image>
<image id="1" name="deep/b.png" width="17" height="12"></image>
</annotations>"""


def write_cvat(root, text=CVAT):
    (root / "images" / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        Image.fromarray(scene(0)[0]).save(root / "images" / name)
    (root / "annotations.xml").write_text(text)
    return root


def test_cvat(tmp_path):
    """By z_order: the low polygon, the vessel, the mask, whose runs go along the rows of its box."""
    found, said = converted(write_cvat(tmp_path / "in"), tmp_path / "out")
    expected = np.zeros((12, 17), np.uint8)
    expected[0:3] = 1
    expected[1:6, 2:8] = 2
    expected[4, 6:9] = expected[5, 7:9] = 1
    np.testing.assert_array_equal(found["a"][1], expected)
    assert found["deep/b"][1] is None
    assert ": cvat, 2 images, 1 of them" in said[0] and "1 objects of kind box are left out" in said
    classes = json.loads((tmp_path / "out" / "classes.json").read_text())["classes"]
    assert [c["name"] for c in classes] == ["background", "cell", "vessel"] and classes[1]["color"] == [0xFA, 0x32, 0x53]


def test_cvat_without_any_outline(tmp_path):
    text = re.sub(r"<(polygon|mask) .*?</(polygon|mask)>", "", CVAT, flags=re.S)
    with pytest.raises(UserError, match=r"got 1 objects \(box\) without one outline, expected polygons or masks"):
        convert(write_cvat(tmp_path / "in", text), tmp_path / "out")


BOMB = "".join(f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' for k in range(1, 10))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<annotations>", f'<!DOCTYPE x [<!ENTITY l0 "lol">{BOMB}]><annotations>&l9;', "document type"),
        ("<annotations>", '<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotations>', "document type"),
        ("</annotations>", "", "ExpatError"),
        ("<meta>", '<track id="0"/><meta>', "tracks of a video"),
        ('name="a.png"', 'name="../../a.png"', "expected a plain path"),
        ('width="17" height="12">\n  <poly', 'width="170000" height="120000">\n  <poly', "expected at most 200 million"),
        ('rle="1, 3, 2, 2"', 'rle="1, 3, 2, 2000000000"', "expected run lengths"),
        ('left="5"', 'left="15"', "reaches beyond the image"),
        ('left="5"', 'left="x"', "invalid literal"),
        ("2.0,1.0;8.0,1.0;8.0,6.0;2.0,6.0", "2.0,1.0;8.0", "expected at least three points"),
        ("#fa3253", "#fa", "not enough values"),
        ('encoding="utf-8"', 'encoding="foo"', "LookupError"),
    ],
)
def test_bad_cvat(tmp_path, old, new, message):
    assert old in CVAT
    root = write_cvat(tmp_path / "in", CVAT.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        convert(root, tmp_path / "out")
    assert "annotations.xml" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_of_cvats_objects_at_one_height_the_later_lies_above(tmp_path):
    text = CVAT.replace('z_order="1"', 'z_order="0"').replace('z_order="2"', 'z_order="0"')
    found, _ = converted(write_cvat(tmp_path / "in", text), tmp_path / "out")
    expected = np.zeros((12, 17), np.uint8)
    expected[1:6, 2:8] = 2
    expected[4, 6:9] = expected[5, 7:9] = 1
    expected[0:3] = 1  # the last
    np.testing.assert_array_equal(found["a"][1], expected)


def test_a_box_is_ignored_as_far_as_it_touches_pixels(tmp_path):
    annotations = [{"segmentation": [[0, 0, 17, 0, 17, 12, 0, 12]], "area": 204}, {"bbox": [2.5, 1.5, 3.25, 4.25]}]
    found, _ = converted(write_coco(tmp_path / "in", annotations), tmp_path / "out")
    expected = np.full((12, 17), 1, np.uint8) * found["a"][1][0, 0]
    expected[1:6, 2:6] = 255
    np.testing.assert_array_equal(found["a"][1], expected)
