import json
from pathlib import PurePosixPath

import numpy as np
import pytest
from drawn import COLOURS, NAMES, content, converted, names_of, same, scene, write_data
from PIL import Image

from semanticgan.data.check import check
from semanticgan.errors import UserError
from semanticgan.formats import WRITABLE, Options, convert
from semanticgan.formats.sets import distinct, item_name, safe_name


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.mark.parametrize("target", sorted(set(WRITABLE) - {"nifti"}))
@pytest.mark.parametrize("ignored", [True, False])
def test_round_trip(tmp_path, target, ignored):
    """Out and in again, found without being named: same images, label maps, classes."""
    data = write_data(tmp_path / "data", ignored=ignored)
    convert(data, tmp_path / "out", to_format=target, say=lambda _: None)
    # Names of the classes are not part of these layouts.
    options = Options(classes=str(data / "classes.json")) if target in ("mmseg", "authors") else None
    back, said = converted(tmp_path / "out", tmp_path / "back", options=options)
    assert f": {target.removesuffix('-polygons')}, 4 images, 3 of them with label maps" in said[0]
    back = {name.rpartition("/")[2]: pair for name, pair in back.items()}  # mmseg has train/ and unlabeled/
    same(content(data), back)
    assert names_of(tmp_path / "back") == list(NAMES)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_what_convert_writes_can_be_trained_on(tmp_path):
    write_data(tmp_path / "data", labeled=5)
    convert(tmp_path / "data", tmp_path / "voc", to_format="voc", say=lambda _: None)
    convert(tmp_path / "voc", tmp_path / "back", say=lambda _: None)
    report = check(tmp_path / "back", [], [], [], tmp_path / "sheet.png")
    assert not report.errors
    lines = (tmp_path / "back" / "default.txt").read_text().splitlines()
    assert lines == [f"images/s{k}.png" for k in range(5)]


def test_folders_of_any_names_and_binary_masks(tmp_path):
    img, label = scene(0)
    save(tmp_path / "in" / "photos" / "a.b.png", img)
    save(tmp_path / "in" / "photos" / "deep" / "a.jpg", img)
    save(tmp_path / "in" / "drawn" / "deep" / "a.png", np.where(label == 1, 255, 0).astype(np.uint8))
    with pytest.raises(UserError, match="--masks nowhere: no such folder"):
        convert(tmp_path / "in", tmp_path / "out", options=Options(images="photos", masks="nowhere"))
    found, said = converted(
        tmp_path / "in", tmp_path / "out", options=Options(images="photos", masks="drawn", classes="skin,mole")
    )
    assert sorted(found) == ["a.b", "deep/a"]
    np.testing.assert_array_equal(found["deep/a"][1], label == 1)
    assert names_of(tmp_path / "out") == ["skin", "mole"]
    assert "255 is class 1" in said[1]
    assert (tmp_path / "out" / "images" / "deep" / "a.jpg").read_bytes() == (
        tmp_path / "in" / "photos" / "deep" / "a.jpg"
    ).read_bytes()


@pytest.mark.parametrize("images", ["img", "images"])
def test_a_mask_belongs_to_one_image(tmp_path, images):
    img, label = scene(0)
    for name in ("a.jpg", "a.png"):
        save(tmp_path / "in" / images / name, img)
    save(tmp_path / "in" / "masks" / "a.png", label)
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png: got one mask for both"):
        convert(tmp_path / "in", tmp_path / "out")


def test_masks_of_images_full_names(tmp_path):
    img, label = scene(0)
    for name in ("a.jpg", "a.png"):
        save(tmp_path / "in" / "img" / name, img)
    save(tmp_path / "in" / "masks" / "a.jpg.png", label)
    save(tmp_path / "in" / "masks" / "a.png", label * 0)
    found, _ = converted(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(found["a"][1], label)
    np.testing.assert_array_equal(found["a_2"][1], label * 0)


def test_an_image_has_one_mask(tmp_path):
    img, label = scene(0)
    save(tmp_path / "in" / "img" / "a.jpg", img)
    for name in ("a.png", "a.tif"):
        save(tmp_path / "in" / "gt" / name, label)
    with pytest.raises(UserError, match=r"gt/a\.png and .*gt/a\.tif: got two masks of one name"):
        convert(tmp_path / "in", tmp_path / "out")


def test_usual_names_are_found(tmp_path):
    img, label = scene(0)
    save(tmp_path / "in" / "imgs" / "a.png", img)
    save(tmp_path / "in" / "labels" / "a.tif", label)
    found, said = converted(tmp_path / "in", tmp_path / "out")
    assert "folders, 1 images, 1 of them" in said[0] and names_of(tmp_path / "out") == ["class_0", "class_1", "class_2"]
    np.testing.assert_array_equal(found["a"][1], label)


@pytest.mark.parametrize(
    "options",
    [
        lambda data: Options(classes=str(data / "classes.json")),
        lambda data: Options(),
        lambda data: Options(images="images", masks="masks"),
    ],
    ids=["given", "its own", "folders"],
)
def test_colour_masks_with_a_classes_file(tmp_path, options):
    data = write_data(tmp_path / "data", labeled=1, unlabeled=0, ignored=False)
    label = content(data)["s0"][1]
    save(data / "masks" / "s0.png", np.array(COLOURS, np.uint8)[label])
    with pytest.raises(UserError, match="colour mask"):
        convert(data, tmp_path / "out", options=Options(classes=",".join(NAMES)))
    found, _ = converted(data, tmp_path / "out", options=options(data))
    np.testing.assert_array_equal(found["s0"][1], label)
    save(data / "masks" / "s0.png", np.full((*label.shape, 3), 7, np.uint8) * np.array([1, 2, 3], np.uint8))
    with pytest.raises(UserError, match=r"s0\.png: got the colour \(7, 14, 21\)"):
        convert(data, tmp_path / "out2", options=options(data))
    classes = [{"name": name, "color": [7, 14, 21]} for name in NAMES]
    (data / "classes.json").write_text(json.dumps({"classes": classes}))
    with pytest.raises(UserError, match=r"s0\.png: got a mask in colours, but two classes have one"):
        convert(data, tmp_path / "out2", options=options(data))


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 255, 255)])
def test_grey_masks_in_three_channels_hold_ids(tmp_path, values):
    """Beside a classes.json too, whose colours they are not drawn in."""
    data = write_data(tmp_path / "data", ignored=False)
    label = content(data)["s0"][1]
    for path in (data / "masks").iterdir():
        save(path, np.array(values, np.uint8)[np.asarray(Image.open(path))][:, :, None].repeat(3, axis=2))
    found, _ = converted(data, tmp_path / "out")
    np.testing.assert_array_equal(found["s0"][1], label if 2 in values else label > 0)


def save_stack(path, arrays, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = map(Image.fromarray, arrays)
    first.save(path, save_all=True, append_images=others, **options)


def test_only_the_first_picture_of_a_file_is_converted_aloud(tmp_path):
    """A stack of slices, say, that came as one file."""
    data = write_data(tmp_path / "data")
    images = [scene(k)[0] for k in range(3)]
    save_stack(data / "images" / "t.tif", images)
    said: list[str] = []
    convert(data, tmp_path / "one", say=said.append)
    assert said[1] == f"{data / 'images' / 't.tif'}: holds 3 pictures: only the first is converted; split such files"
    save_stack(data / "images" / "u.webp", images, lossless=True)
    save_stack(data / "images" / "v.png", images)
    convert(data, tmp_path / "more", say=said.append)
    assert "t.tif: holds 3 pictures, and 2 more files hold several: only the first" in said[-2]


@pytest.mark.parametrize(
    ("image", "mask", "more"),
    [
        ("img/a.png", "gt/a.tif", {}),
        ("images/a.png", "masks/a.png", {}),
        ("JPEGImages/a.png", "SegmentationClass/a.tif", {}),
        ("JPEGImages/a.png", "SegmentationClass/a.tif", {"labelmap.txt": "skin:0,0,0::\nmole:1,1,1::"}),
        (
            "imagesTr/a_0000.tif",
            "labelsTr/a.tif",
            {"dataset.json": '{"labels": {"background": 0, "x": 1}, "file_ending": ".tif"}'},
        ),
    ],
)
def test_masks_of_several_pictures_are_refused(tmp_path, image, mask, more):
    img, label = scene(0)
    save(tmp_path / "in" / image, img)
    save_stack(tmp_path / "in" / mask, [label, label])
    for name, text in more.items():
        (tmp_path / "in" / name).write_text(text)
    with pytest.raises(UserError, match=r"a\.(tif|png): got 2 pictures in one mask file, expected one"):
        convert(tmp_path / "in", tmp_path / "out")


def test_smaller_copies_are_no_pictures(tmp_path):
    """Pyramids and thumbnails in a TIFF."""
    img, label = scene(0, ignored=False)
    save(tmp_path / "in" / "img" / "a.png", img)
    thumbnail = Image.fromarray(label[::2, ::2])
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    (tmp_path / "in" / "gt").mkdir()
    Image.fromarray(label).save(tmp_path / "in" / "gt" / "a.tif", save_all=True, append_images=[thumbnail])
    found, _ = converted(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(found["a"][1], label)


def test_reduce_zero_label(tmp_path):
    img, label = scene(0, ignored=False)
    save(tmp_path / "in" / "img_dir" / "train" / "a.png", img)
    save(tmp_path / "in" / "ann_dir" / "train" / "a.png", label)
    found, said = converted(tmp_path / "in", tmp_path / "out", options=Options(reduce_zero_label=True))
    assert ": mmseg," in said[0]
    np.testing.assert_array_equal(found["train/a"][1], np.array([255, 0, 1])[label])


def test_links_in_a_circle_are_followed_once(tmp_path):
    data = write_data(tmp_path / "in" / "set", labeled=1, unlabeled=1)
    for link in (data / "images" / "up", data / "images" / "here", data / "images" / "again"):
        link.symlink_to("." if link.name != "up" else "../images")
    convert(data, tmp_path / "out", from_format="folders")
    assert sorted(content(tmp_path / "out")) == ["s0", "s1"]


def test_nested_folders_of_images(tmp_path):
    for site in ("a", "b"):
        write_data(tmp_path / "in" / site, labeled=1, unlabeled=1)
    found, said = converted(tmp_path / "in", tmp_path / "out")
    assert ": data, 4 images, 2 of them" in said[0]
    assert sorted(found) == ["a/s0", "a/s1", "b/s0", "b/s1"]
    assert found["a/s0"][1] is not None and found["a/s1"][1] is None


def test_predictions(tmp_path):
    """What `segment` writes, with the images that it was given."""
    data = write_data(tmp_path / "data", ignored=False)
    found = tmp_path / "found"
    for name, (_, label) in content(data).items():
        if label is not None:
            save(found / "masks" / "images" / f"{name}.png", label)
        save(found / "overlays" / "images" / f"{name}.png", scene(0)[0])
    (found / "summary.json").write_text(json.dumps({"classes": list(NAMES)}))
    with pytest.raises(UserError, match="no folder of images beside it; name one with --images"):
        convert(found, tmp_path / "out")
    pairs, _ = converted(found, tmp_path / "out", options=Options(images=str(data / "images")))
    same(content(data), pairs)
    assert names_of(tmp_path / "out") == list(NAMES)


def test_turned_photos_stay_with_their_masks(tmp_path):
    """A photo that viewers turn is written upright, as tools that do not turn it would lay the mask wrongly."""
    img, label = scene(0)
    (tmp_path / "in" / "images").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(img)).save(tmp_path / "in" / "images" / "a.png", exif=exif)
    save(tmp_path / "in" / "masks" / "a.png", label)
    found, _ = converted(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(found["a"][0], img)


def test_names():
    assert item_name(PurePosixPath("x/images/a.b.png")) == "x/a.b"
    assert distinct(["a", "A", "a_2", "b"]) == ["a", "A_3", "a_2", "b"]
    assert safe_name("x\\y.png", "here") == "x/y.png"
    for bad in ("../a.png", "a/../../b", "/a", "\\a", "C:/a", "a\0b", "", ".", "x" * 300, "a\nb", 3, None, "a/" * 30 + "b"):
        with pytest.raises(UserError, match="here: got the name"):
            safe_name(bad, "here")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "images" / "s1.png").write_bytes(b"no image"), "s1.png: not an image"),
        (
            lambda d: (d / "images" / "s1.png").write_bytes((d / "images" / "s1.png").read_bytes()[:300]),
            "s1.png: broken or truncated",
        ),
        (lambda d: (d / "masks" / "s1.png").write_bytes(b"no image"), "masks/s1.png: not an image"),
        (lambda d: save(d / "masks" / "s1.png", np.full((12, 17), 9, np.uint8)), "got class id 9, expected 0 to 2"),
        (
            lambda d: save(d / "masks" / "s1.png", np.zeros((5, 5), np.uint8)),
            "s1: got a label map of 5x5, expected its image's",
        ),
        (lambda d: save(d / "masks" / "x.png", np.zeros((5, 5), np.uint8)), "x.png: mask without image"),
        (lambda d: (d / "classes.json").write_text("{"), "cannot be read as classes"),
    ],
)
def test_nothing_is_written_when_something_is_wrong(tmp_path, spoil, message):
    data = write_data(tmp_path / "data")
    spoil(data)
    with pytest.raises(UserError) as caught:
        convert(data, tmp_path / "out", to_format="coco", say=lambda _: None)
    assert message in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_every_bad_file_has_a_line(tmp_path):
    data = write_data(tmp_path / "data", labeled=3)
    for k in (0, 2):
        (data / "images" / f"s{k}.png").write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        convert(data, tmp_path / "out", say=lambda _: None)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"from_format": "tarot"}, "--from tarot: no such format"),
        ({"to_format": "dicom"}, "--to dicom: can only be read"),
        ({"from_format": "data", "options": Options(plane="axial")}, "--plane: means nothing for data"),
        ({"options": Options(classes="a,b")}, "got class id 2, expected 0 to 1"),
        ({"options": Options(classes="a,a,b")}, "two classes have the same name"),
        ({"options": Options(classes="a")}, "got 1 classes"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    data = write_data(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        convert(data, tmp_path / "out", say=lambda _: None, **arguments)


def test_no_such_source_and_an_empty_one(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        convert(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        convert(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(UserError, match="no format that is known"):
        convert(tmp_path / "text.txt", tmp_path / "out")


def test_only_ignored_pixels_are_refused(tmp_path):
    """Masks of 0 and 255 alone would be read as two classes."""
    save(tmp_path / "in" / "images" / "a.png", scene(0)[0])
    save(tmp_path / "in" / "masks" / "a.png", (scene(0)[1] > 0).astype(np.uint8))
    with pytest.raises(UserError, match="none but background and ignored pixels"):
        convert(tmp_path / "in", tmp_path / "out", options=Options(reduce_zero_label=True))


@pytest.mark.parametrize(("values", "said"), [((1, 255), "holds 0 and 1"), ((128, 255), "expected class ids 0, 1, 2")])
def test_masks_that_mean_two_things_are_refused(tmp_path, values, said):
    for k, value in enumerate(values):
        save(tmp_path / f"pictures/{k}.png", np.zeros((4, 4, 3), np.uint8))
        save(tmp_path / f"drawn/{k}.png", np.array([[0, value]], np.uint8).repeat(4, 0).repeat(2, 1))
    with pytest.raises(UserError, match=said):
        convert(tmp_path, tmp_path / "out", options=Options(images="pictures", masks="drawn"))


def test_reduce_zero_label_leaves_ignored_pixels_ignored(tmp_path):
    img, label = scene(0)
    assert 255 in label
    save(tmp_path / "in" / "img_dir" / "train" / "a.png", img)
    save(tmp_path / "in" / "ann_dir" / "train" / "a.png", label)
    found, _ = converted(tmp_path / "in", tmp_path / "out", options=Options(reduce_zero_label=True))
    np.testing.assert_array_equal(found["train/a"][1], np.where(label == 255, 255, np.array([255, 0, 1, *[0] * 253])[label]))
