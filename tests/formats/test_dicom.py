import sys
import warnings

import numpy as np
import pydicom
import pytest
from drawn import converted
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from semanticgan.errors import UserError
from semanticgan.formats import Options, convert


def write_dicom(path, values, **tags):
    """A DICOM file of these values [H, W], [frames, H, W] or [H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=["test"])
    colour = values.ndim == 3 and values.shape[-1] == 3
    frames = values.ndim == 3 and not colour
    data.Rows, data.Columns = values.shape[int(frames) :][:2]
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    if frames:
        data.NumberOfFrames = len(values)
    data.BitsAllocated = data.BitsStored = 8 * values.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path, enforce_file_format=True)
    return data


def ramp(dtype=np.int16, low=-50, high=300):
    return np.random.default_rng(0).integers(low, high, (6, 7)).astype(dtype)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT"])
@pytest.mark.parametrize(("center", "width"), [(100, 200), (40.5, 81), ([120, 9], [60, 3]), (10, 2)])
def test_windows_as_pydicom_has_them(tmp_path, function, center, width):
    tags = {"WindowCenter": center, "WindowWidth": width, "RescaleSlope": 2, "RescaleIntercept": -20}
    data = write_dicom(tmp_path / "a.dcm", ramp(), VOILUTFunction=function, **tags)
    found, said = converted(tmp_path / "a.dcm", tmp_path / "out")
    assert ": dicom, 1 images, 0 of them" in said[0]
    theirs = apply_windowing(apply_modality_lut(ramp(), data), data)
    low, high = (-32768 * 2 - 20, 32767 * 2 - 20)  # the range into which it stretches
    expected = (theirs - low) / (high - low) * 255
    assert np.abs(found["a"][0][:, :, 0] - expected).max() <= 0.51  # half a grey level of rounding


def test_given_window_and_percentiles(tmp_path):
    write_dicom(tmp_path / "a.dcm", ramp(), RescaleSlope=1, RescaleIntercept=0)
    found, _ = converted(tmp_path / "a.dcm", tmp_path / "one", options=Options(window=(0.0, 255.0)))
    np.testing.assert_array_equal(found["a"][0][:, :, 0], np.clip(ramp(), 0, 255))
    found, _ = converted(tmp_path / "a.dcm", tmp_path / "two")
    low, high = np.percentile(ramp(), (0.5, 99.5))
    expected = np.clip((ramp() - low) / (high - low), 0, 1) * 255
    assert np.abs(found["a"][0][:, :, 0] - expected).max() <= 0.51


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_keep_their_range(tmp_path, bits):
    """8-bit pixels whose colours have 16 bits, as in pydicom's own example."""
    indices, lut = ramp(np.uint8, 0, 256), np.arange(256, dtype=np.uint16) * (257 if bits == 16 else 1)
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, values in (("Red", lut), ("Green", lut[::-1]), ("Blue", lut * 0)):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tags[f"{colour}PaletteColorLookupTableData"] = values.astype(f"<u{bits // 8}").tobytes()
    write_dicom(tmp_path / "a.dcm", indices, **tags)
    found, _ = converted(tmp_path / "a.dcm", tmp_path / "out")
    np.testing.assert_array_equal(found["a"][0], np.stack([indices, 255 - indices, 0 * indices], 2))


def test_files_that_would_unpack_to_anything_are_refused(tmp_path, monkeypatch):
    data = write_dicom(tmp_path / "frames.dcm", np.zeros((4, 2, 2), np.uint8))
    monkeypatch.setattr("semanticgan.formats.dicom.MAX_SLICES", 3)
    with pytest.raises(UserError, match="got 4 frames of 2x2, expected at most 1 GiB and 3 of them"):
        convert(tmp_path / "frames.dcm", tmp_path / "out", say=print)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    with pytest.raises(UserError, match="got a deflated file"):
        convert(tmp_path / "deflated.dcm", tmp_path / "out", say=print)


def test_monochrome1_is_inverted(tmp_path):
    options = Options(window=(0.0, 255.0))
    for kind in ("MONOCHROME1", "MONOCHROME2"):
        write_dicom(tmp_path / kind / "a.dcm", ramp(np.uint8, 0, 256), PhotometricInterpretation=kind)
    one, two = (converted(tmp_path / k, tmp_path / f"out{k}", options=options)[0] for k in ("MONOCHROME1", "MONOCHROME2"))
    np.testing.assert_array_equal(one["a"][0], 255 - two["a"][0])
    np.testing.assert_array_equal(two["a"][0][:, :, 0], ramp(np.uint8, 0, 256))


def test_frames_colour_and_names(tmp_path):
    """Files are told by their content, whatever their names; a frame each; others are passed over."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 5, 4), np.uint8)
    colour = np.random.default_rng(1).integers(0, 256, (5, 4, 3), np.uint8)
    write_dicom(tmp_path / "in" / "case" / "IM0001", frames, WindowCenter=128, WindowWidth=256)
    write_dicom(tmp_path / "in" / "rgb.dcm", colour)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    found, _ = converted(tmp_path / "in", tmp_path / "out")
    assert sorted(found) == ["case/IM0001/0000", "case/IM0001/0001", "case/IM0001/0002", "rgb"]
    np.testing.assert_array_equal(found["rgb"][0], colour)
    np.testing.assert_array_equal(found["case/IM0001/0002"][0][:, :, 1], frames[2])


def test_values_of_each_frame(tmp_path):
    """Enhanced files keep rescaling and window by frame."""

    def group(**sequences):
        item = Dataset()
        for name, values in sequences.items():
            inner = Dataset()
            for key, value in values.items():
                setattr(inner, key, value)
            setattr(item, name, Sequence([inner]))
        return item

    own = [group(FrameVOILUTSequence={"WindowCenter": c, "WindowWidth": 256}) for c in (128, 228)]
    shared = group(PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": 100, "RescaleType": "US"})
    frames = np.random.default_rng(0).integers(0, 150, (2, 5, 4), np.uint8)
    write_dicom(tmp_path / "a", frames, PerFrameFunctionalGroupsSequence=own, SharedFunctionalGroupsSequence=[shared])
    found, _ = converted(tmp_path / "a", tmp_path / "out")
    np.testing.assert_array_equal(found["a/0000"][0][:, :, 0], frames[0] + 100)
    np.testing.assert_array_equal(found["a/0001"][0][:, :, 0], frames[1])


def test_compressed(tmp_path):
    data = write_dicom(tmp_path / "a.dcm", ramp(np.uint8, 0, 256))
    data.compress(RLELossless)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    found, _ = converted(tmp_path / "a.dcm", tmp_path / "out", options=Options(window=(0.0, 255.0)))
    np.testing.assert_array_equal(found["a"][0][:, :, 0], ramp(np.uint8, 0, 256))


def two_valued(raw, element):
    """The file with the two bytes of an element twice."""
    place = raw.index(element + b"\2\0") + len(element)
    return raw[:place] + b"\4\0" + 2 * raw[place + 2 : place + 4] + raw[place + 4 :]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: write_dicom(p, ramp(), Rows=60000, Columns=60000), "expected at most 1 GiB"),
        (lambda p: write_dicom(p, ramp(), NumberOfFrames=10**9), "expected at most 1 GiB"),
        (lambda p: write_dicom(p, ramp(), NumberOfFrames=40), "cannot be read"),
        (lambda p: write_dicom(p, ramp(), Rows=0), "expected at most 1 GiB"),
        (lambda p: write_dicom(p, ramp(), BitsAllocated=7), "cannot be read"),
        (lambda p: p.write_bytes(two_valued(p.read_bytes(), b"\x28\0\0\1US")), "a.dcm: cannot be read"),  # BitsAllocated
        (lambda p: write_dicom(p, ramp(), PhotometricInterpretation="NONSENSE"), "a.dcm"),
        (lambda p: p.write_bytes(p.read_bytes()[:600]), "a.dcm"),
        (lambda p: p.write_bytes(bytes(128) + b"DICM" + b"\xff" * 60), "a.dcm"),
    ],
)
def test_bad_files(tmp_path, spoil, message):
    write_dicom(tmp_path / "in" / "a.dcm", ramp())
    spoil(tmp_path / "in" / "a.dcm")
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "in", tmp_path / "out", from_format="dicom")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_no_pictures_and_no_pydicom(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no DICOM files with images"):
        convert(tmp_path / "in", tmp_path / "out", from_format="dicom")
    write_dicom(tmp_path / "in" / "a", ramp())
    assert pydicom
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pydicom is not installed.*pip install 'semanticgan\[medical\]'"):
        convert(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("modality", ["SEG", "RTSTRUCT"])
def test_labels_are_no_images(tmp_path, modality):
    write_dicom(tmp_path / "in" / "a.dcm", ramp())
    write_dicom(tmp_path / "in" / "b.dcm", ramp(), Modality=modality)
    with pytest.raises(
        UserError, match=rf"b\.dcm: got labels \(modality {modality}\), which are not read here; export them as NIfTI"
    ):
        convert(tmp_path / "in", tmp_path / "out")


def test_a_given_window_goes_before_the_files_own(tmp_path):
    write_dicom(tmp_path / "a.dcm", ramp(), RescaleSlope=1, RescaleIntercept=0, WindowCenter=40, WindowWidth=80)
    found, _ = converted(tmp_path / "a.dcm", tmp_path / "out", options=Options(window=(0.0, 255.0)))
    np.testing.assert_array_equal(found["a"][0][:, :, 0], np.clip(ramp(), 0, 255))
