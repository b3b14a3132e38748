import io
import json
import sys

import nibabel as nib
import numpy as np
import pytest
from drawn import content, converted, write_data
from PIL import Image

from semanticgan.errors import UserError
from semanticgan.formats import Options, convert, volumes
from semanticgan.formats.sets import Geometry
from semanticgan.formats.volumes import from_slices, read_geometry, to_slices

AFFINES = {
    "RAS": np.diag([1.0, 1, 3, 1]),
    "LPS": np.diag([-1.0, -1, 3, 1]),
    "PIR": np.array([[0, 0, 2.5, -9], [-0.8, 0, 0, 4], [0, -0.7, 0, 5], [0, 0, 0, 1.0]]),
    "tilted": np.array([[0.9, 0.2, 0.1, 1], [-0.2, 0.9, 0.3, 2], [0, -0.4, 2.9, 3], [0, 0, 0, 1.0]]),
}
SHAPE = (5, 6, 4)


def volume(path, affine, dtype=np.int16, slope=None, shape=SHAPE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).integers(0, 400, shape).astype(dtype)
    image = nib.Nifti1Image(data, affine)
    if slope:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)
    return data


def labels(path, affine, dtype=np.uint8, seed=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).choice([0, 1, 2, 255], SHAPE, p=[0.5, 0.2, 0.2, 0.1]).astype(dtype)
    nib.save(nib.Nifti1Image(data, affine), path)
    return data


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_lie_as_the_patient_does(affine, plane):
    """As nibabel's canonical order (right, front, head) says, with the patient's right on the left and the head up."""
    data = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    geometry = Geometry(SHAPE, tuple(map(tuple, affine.tolist())), plane)
    slices = to_slices(data, geometry)
    ras = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(data.astype(np.int32), affine)).dataobj)
    lps = ras[::-1, ::-1]
    expected = {
        "axial": lambda k: lps[:, :, k].T,
        "coronal": lambda k: lps[:, k, ::-1].T,
        "sagittal": lambda k: lps[k, :, ::-1].T,
    }[plane]
    for k in range(len(slices)):
        np.testing.assert_array_equal(slices[k], expected(k))
    np.testing.assert_array_equal(from_slices(slices, geometry), data)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("plane", [None, "coronal", "sagittal"])
@pytest.mark.parametrize("target", ["nifti", "nnunet"])
def test_volumes_as_slices_and_back(tmp_path, affine, plane, target):
    """Label volume and affine come back as they were; the image as 8 bits between the window's ends."""
    image = volume(tmp_path / "in" / "images" / "p1.nii.gz", affine)
    label = labels(tmp_path / "in" / "labels" / "p1.nii.gz", affine)
    volume(tmp_path / "in" / "images" / "p2.nii", affine, seed=3)
    options = Options(plane=plane, window=(0.0, 255.0), classes="background,liver,tumour")
    slices, said = converted(tmp_path / "in", tmp_path / "data", options=options)
    assert ": nifti," in said[0] and "p1/0000" in slices and slices["p2/0000"][1] is None
    convert(tmp_path / "data", tmp_path / "out", to_format=target)
    if target == "nifti":
        names = ("images/p1.nii.gz", "labels/p1.nii.gz", 255)
    else:
        names = ("imagesTr/p1_0000.nii.gz", "labelsTr/p1.nii.gz", 3)
        about = json.loads((tmp_path / "out" / "dataset.json").read_text())
        assert about["labels"] == {"background": 0, "liver": 1, "tumour": 2, "ignore": 3}
        assert about["numTraining"] == 1 and about["file_ending"] == ".nii.gz"
        assert (tmp_path / "out" / "imagesTs" / "p2_0000.nii.gz").exists()
    shown, found = (nib.load(tmp_path / "out" / name) for name in names[:2])
    np.testing.assert_array_equal(np.asarray(shown.dataobj), np.minimum(image, 255))
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.where(label == 255, names[2], label))
    for one in (shown, found):
        np.testing.assert_allclose(one.affine, affine, atol=1e-6)
    # Once more as slices: nothing is lost any more.
    again, _ = converted(tmp_path / "out", tmp_path / "again", options=Options(plane=plane, window=(0.0, 255.0)))
    assert sorted(again) == sorted(slices)
    for name, (img, mask) in slices.items():
        np.testing.assert_array_equal(again[name][0], img)
        np.testing.assert_array_equal(again[name][1], mask)


def test_predicted_slices_become_a_volume(tmp_path):
    """Masks alone from elsewhere, of some of the slices; the others are ignored."""
    affine = AFFINES["tilted"]
    volume(tmp_path / "ct.nii.gz", affine)
    slices, said = converted(tmp_path / "ct.nii.gz", tmp_path / "data")
    assert ": nifti, 4 images, 0 of them" in said[0]
    random = np.random.default_rng(0)
    masks = {name: random.integers(0, 3, img.shape[:2], np.uint8) for name, (img, _) in list(slices.items())[:3]}
    for name, mask in masks.items():
        path = tmp_path / "found" / "masks" / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    options = Options(images=str(tmp_path / "data" / "images"), masks="masks")
    convert(tmp_path / "found", tmp_path / "out", to_format="nifti", options=options)
    found = nib.load(tmp_path / "out" / "labels" / "ct.nii.gz")
    np.testing.assert_allclose(found.affine, affine, atol=1e-6)
    expected = np.stack([*masks.values(), np.full_like(masks["ct/0000"], 255)])
    np.testing.assert_array_equal(to_slices(np.asarray(found.dataobj), read_geometry(tmp_path / "ct.nii.gz")), expected)


def test_flat_images_become_volumes_of_one_slice(tmp_path):
    data = write_data(tmp_path / "data")
    convert(data, tmp_path / "out", to_format="nifti")
    back, _ = converted(tmp_path / "out", tmp_path / "back", options=Options(window=(0.0, 255.0)))
    for name, (img, label) in content(data).items():
        np.testing.assert_array_equal(back[f"{name}/0000"][0][:, :, 0], np.asarray(Image.fromarray(img).convert("L")))
        assert (back[f"{name}/0000"][1] is None) == (label is None)
        if label is not None:
            np.testing.assert_array_equal(back[f"{name}/0000"][1], label)


def test_scaling_and_window(tmp_path):
    data = volume(tmp_path / "ct.nii", AFFINES["LPS"], slope=(2.0, -100.0))
    stored = np.asarray(nib.load(tmp_path / "ct.nii").dataobj)
    np.testing.assert_allclose(stored, data * 2.0 - 100)
    slices, _ = converted(tmp_path / "ct.nii", tmp_path / "a", options=Options(window=(-10.0, 245.0)))
    np.testing.assert_array_equal(slices["ct/0002"][0][:, :, 0], np.rint(np.clip(stored[:, :, 2].T + 10, 0, 255)))
    slices, _ = converted(tmp_path / "ct.nii", tmp_path / "b")
    low, high = np.percentile(stored, (0.5, 99.5))
    expected = np.clip((stored[:, :, 2].T - low) / (high - low), 0, 1) * 255
    assert np.abs(slices["ct/0002"][0][:, :, 0] - expected).max() <= 0.51  # half a grey level of rounding


@pytest.mark.parametrize(
    ("shape", "affine", "plane"),
    [
        ((5, 6, 4), np.eye(4), "axial"),
        ((5, 6, 4), np.diag([1, 1, 3, 1.0]), "axial"),
        ((5, 6, 4), np.diag([3, 1, 1, 1.0]), "sagittal"),
        ((5, 6, 4), np.diag([1, 3, 1, 1.0]), "coronal"),
        ((5, 6, 4), AFFINES["PIR"], "sagittal"),
        ((5, 1, 4), np.eye(4), "coronal"),
        ((5, 6), np.eye(4), "axial"),
        ((5, 6, 4, 1), np.eye(4), "axial"),
    ],
)
def test_plane_of_acquisition(tmp_path, shape, affine, plane):
    volume(tmp_path / "v.nii", affine, shape=shape)
    assert read_geometry(tmp_path / "v.nii").plane == plane


def header_of(path, **fields):
    """A NIfTI file whose header promises something else than the file holds."""
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header.from_fileobj(io.BytesIO(bytes(raw)), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    path.write_bytes(bytes(raw))


def with_extensions(path, *sizes, kind=nib.Nifti1Image):
    image = nib.load(path)
    image = kind(np.asarray(image.dataobj), image.affine)
    image.header.extensions.extend(nib.nifti1.Nifti1Extension("comment", b"x" * size) for size in sizes)
    nib.save(image, path)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_short_extensions_do_no_harm(tmp_path, kind):
    for name in ("plain.nii.gz", "more.nii.gz"):
        volume(tmp_path / name, AFFINES["RAS"])
    with_extensions(tmp_path / "more.nii.gz", 500, 2000, kind=kind)
    plain, more = (read_geometry(tmp_path / name) for name in ("plain.nii.gz", "more.nii.gz"))
    assert plain == more
    with_extensions(tmp_path / "more.nii.gz", 2**20, kind=kind)
    with pytest.raises(UserError, match="expected at most 1 MiB"):
        read_geometry(tmp_path / "more.nii.gz")


def test_a_truncated_volume_is_unpacked_once_and_named_once(tmp_path, monkeypatch):
    for name in ("a.nii.gz", "b.nii.gz"):
        volume(tmp_path / "in" / name, np.eye(4), shape=(40, 40, 30))
        raw = (tmp_path / "in" / name).read_bytes()
        (tmp_path / "in" / name).write_bytes(raw[: len(raw) // 2])
    read, count = volumes._stored, []
    monkeypatch.setattr(volumes, "_stored", lambda *args: count.append(args) or read(*args))
    with pytest.raises(UserError) as caught:
        convert(tmp_path / "in", tmp_path / "out", from_format="nifti")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(count) == 2 and "a.nii.gz" in lines[0] and "b.nii.gz" in lines[1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.write_bytes(b"no volume"), "cannot be read"),
        (lambda p: p.write_bytes(p.read_bytes()[:400]), "cannot be read"),
        (lambda p: header_of(p, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "expected at most 1 GiB"),
        (lambda p: header_of(p, dim=[4, 5, 6, 4, 9, 1, 1, 1]), "expected one grey volume of 3 axes"),
        (lambda p: header_of(p, dim=[3, -5, 6, 4, 1, 1, 1, 1]), "v.nii"),
        (lambda p: header_of(p, datatype=128, bitpix=24), "expected one grey volume"),
        (lambda p: header_of(p, srow_x=[0, 0, 0, 0]), "affine that turns voxels into no volume"),
        (lambda p: header_of(p, srow_x=[np.nan, 0, 0, 0]), "affine that turns voxels into no volume"),
        (lambda p: header_of(p, magic=b"xx"), "cannot be read"),
        (lambda p: with_extensions(p, 2**20), "got a header of .* bytes or more, expected at most 1 MiB"),
        (lambda p: with_extensions(p, 2**19, 2**19), "got a header of .* bytes or more, expected at most 1 MiB"),
    ],
)
def test_bad_volumes(tmp_path, spoil, message):
    path = tmp_path / "v.nii"
    volume(path, AFFINES["RAS"])
    spoil(path)
    with pytest.raises(UserError, match=message) as caught:
        convert(path, tmp_path / "out")
    assert "v.nii" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["v.nii"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: nib.save(nib.Nifti1Image(np.full(SHAPE, 0.5, np.float32), np.eye(4)), p), "got fractions as labels"),
        (lambda p: nib.save(nib.Nifti1Image(np.full(SHAPE, -1, np.int16), np.eye(4)), p), "got class ids from -1 to -1"),
        (lambda p: nib.save(nib.Nifti1Image(np.full(SHAPE, 400, np.int16), np.eye(4)), p), "got class ids from 400"),
        (lambda p: nib.save(nib.Nifti1Image(np.zeros((5, 6, 3), np.uint8), np.eye(4)), p), "another shape or affine"),
        (lambda p: nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.diag([1, 1, 2, 1.0])), p), "another shape or affine"),
    ],
)
def test_bad_label_volumes(tmp_path, spoil, message):
    volume(tmp_path / "in" / "images" / "v.nii", np.eye(4))
    (tmp_path / "in" / "labels").mkdir()
    spoil(tmp_path / "in" / "labels" / "v.nii")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"shape": [5, 6], "affine": np.eye(4).tolist(), "plane": "axial"}, "cannot be read"),
        ({"shape": [10**6] * 3, "affine": np.eye(4).tolist(), "plane": "axial"}, "cannot be read"),
        ({"shape": SHAPE, "affine": np.zeros((4, 4)).tolist(), "plane": "axial"}, "got an affine"),
        ({"shape": SHAPE, "affine": [[1], [2]], "plane": "axial"}, "got an affine"),
        ({"shape": SHAPE, "affine": np.eye(4).tolist(), "plane": "x"}, "cannot be read"),
        ({"shape": [50, 60, 4], "affine": np.eye(4).tolist(), "plane": "axial"}, "expected 50x60 as a slice of v"),
        ({"shape": [6, 5, 4], "affine": np.eye(4).tolist(), "plane": "axial"}, r"got 5x6, expected 6x5 as a slice of v"),
        ({"shape": [1, 1, 2**30], "affine": np.eye(4).tolist(), "plane": "axial"}, "expected 1x1 as a slice of v"),
    ],
)
def test_bad_geometry_files(tmp_path, entry, message):
    volume(tmp_path / "v.nii", np.eye(4))
    convert(tmp_path / "v.nii", tmp_path / "data")
    (tmp_path / "data" / "volumes.json").write_text(json.dumps({"volumes": {"v": entry}}))
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "data", tmp_path / "out", to_format="nifti")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "written"), [("nifti", "images/v/overview.nii.gz"), ("nnunet", "imagesTs/v_overview_0000.png")]
)
def test_a_picture_beside_the_slices(tmp_path, target, written):
    volume(tmp_path / "v.nii", np.eye(4))
    convert(tmp_path / "v.nii", tmp_path / "data")
    Image.new("RGB", (9, 7)).save(tmp_path / "data" / "images" / "v" / "overview.png")
    convert(tmp_path / "data", tmp_path / "out", to_format=target)
    assert (tmp_path / "out" / written).is_file()
    Image.new("RGB", (9, 7)).save(tmp_path / "data" / "images" / "v.png")
    with pytest.raises(UserError, match="v: got an image and a volume of one name"):
        convert(tmp_path / "data", tmp_path / "named", to_format="nifti")


def test_volumes_in_small_units(tmp_path):
    data = np.linspace(0, 1e-9, 120, dtype=np.float32).reshape(SHAPE)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "v.nii")
    found, _ = converted(tmp_path / "v.nii", tmp_path / "out")
    shown = np.concatenate([image.ravel() for image, _ in found.values()])
    assert shown.min() == 0 and shown.max() == 255 and len(np.unique(shown)) > 100
    assert (volumes.windowed(np.full(3, 7.0), 7.0, 7.0) == 0).all()


def test_without_nibabel(tmp_path, monkeypatch):
    volume(tmp_path / "v.nii", np.eye(4))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(UserError, match=r"nibabel is not installed.*pip install 'semanticgan\[medical\]'"):
        convert(tmp_path / "v.nii", tmp_path / "out")


def test_label_volumes_of_0_and_255_have_two_classes(tmp_path):
    affine = np.diag([0.0005, 0.0005, 0.0005, 1])  # half a micrometre
    volume(tmp_path / "in" / "images" / "a.nii.gz", affine)
    label = np.random.default_rng(0).choice([0, 255], SHAPE).astype(np.uint8)
    (tmp_path / "in" / "labels").mkdir()
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "in" / "labels" / "a.nii.gz")
    found, said = converted(tmp_path / "in", tmp_path / "out")
    assert any("255 is class 1" in line for line in said)
    assert sum(int(pair[1].sum()) for pair in found.values()) == (label > 0).sum()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["P0/images/scan", "P0/labels/scan"], "P0/labels: got such a folder among the images; convert .*P0 alone"),
        (["P0/P0_flair", "P0/P0_seg"], r"P0_seg\.nii\.gz: got an image that by its name is the mask of .*P0_flair"),
        (["P0/image", "P0/label"], r"label\.nii\.gz: got an image that by its name is the mask of .*image"),
        (["volume-0", "segmentation-0"], r"segmentation-0\.nii\.gz: got an image that by its name is the mask of .*volume-0"),
    ],
)
def test_label_volumes_are_no_images(tmp_path, names, message):
    for name in names:
        volume(tmp_path / "in" / f"{name}.nii.gz", np.eye(4))
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "in", tmp_path / "out")


def test_volumes_alone_are_unlabelled(tmp_path):
    """With what dcm2niix writes beside them."""
    for name in ("P0/P0_flair", "P0/P0_t1", "P1/P1_flair"):
        volume(tmp_path / "in" / f"{name}.nii.gz", np.eye(4))
        (tmp_path / "in" / f"{name}.json").write_text("{}")
    _, said = converted(tmp_path / "in", tmp_path / "out")
    assert "12 images, 0 of them with label maps" in said[0]
