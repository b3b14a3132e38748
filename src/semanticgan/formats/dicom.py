"""DICOM images in: every frame rescaled, windowed and the right way round."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from semanticgan.data.dataset import raise_problems
from semanticgan.errors import UserError
from semanticgan.formats.folders import stem_of
from semanticgan.formats.sets import ImageSet, Item, Options, distinct, files_below, given_labels
from semanticgan.formats.volumes import MAX_BYTES, MAX_SLICES, naming, percentiles, require, windowed
from semanticgan.labels import LabelSpec

LINE = (("Slope", 1), ("Intercept", 0))


def read_dicom(source: Path, options: Options) -> ImageSet:
    """Every frame of every DICOM image below a folder (or of one file), windowed as the file says, else by percentiles."""
    files = {source.name: source} if source.is_file() else {k: p for k, p in files_below(source, ("",)).items() if is_dicom(p)}
    items: list[Item] = []
    problems = []
    names = distinct([stem_of(name, (".dcm", ".dicom")) for name in files])
    for name, path in zip(names, files.values(), strict=True):
        try:
            count = _num_frames(path)
        except UserError as error:
            problems.append(str(error))
            continue
        items += [Item(f"{name}/{k:04d}" if count > 1 else name, partial(_frame, path, k, options.window)) for k in range(count)]
    raise_problems(problems)
    if not items:
        raise UserError(f"{source}: no DICOM files with images, expected some; correct the folder")
    return ImageSet(tuple(items), given_labels(options.classes) or LabelSpec.unnamed(2))


def is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _num_frames(path: Path) -> int:
    """The frames of a DICOM file, 0 if it holds no picture.

    Raises UserError for labels, enormous files, and those packed as a whole.
    """
    with naming(path):
        pydicom = require("pydicom")
        kind = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
        if kind == pydicom.uid.DeflatedExplicitVRLittleEndian:  # it would be unpacked before its size is known
            raise UserError(f"{path}: got a deflated file, expected another transfer syntax; store it uncompressed")
        data = pydicom.dcmread(path, stop_before_pixels=True)
        if (modality := data.get("Modality")) in ("SEG", "RTSTRUCT"):
            advice = "export them as NIfTI, or convert the images' folder alone"
            raise UserError(f"{path}: got labels (modality {modality}), which are not read here; {advice}")
        if "Rows" not in data:
            return 0
        frames = int(data.get("NumberOfFrames") or 1)
        values = int(data.Rows) * int(data.Columns) * int(data.get("SamplesPerPixel", 1)) * frames
        size = values * (int(data.get("BitsAllocated", 16)) // 8 or 1)
    if not 0 < size <= MAX_BYTES or frames > MAX_SLICES:
        most = f"expected at most 1 GiB and {MAX_SLICES} of them; split it"
        raise UserError(f"{path}: got {frames} frames of {data.Columns}x{data.Rows}, {most}")
    return frames


def _frame(path: Path, k: int, window: tuple[float, float] | None) -> np.ndarray:
    """One frame as uint8 [H, W, 1 or 3]: rescaled, windowed, MONOCHROME1 inverted (DICOM PS3.3 C.7.6.3, C.11)."""
    pydicom, pixels = require("pydicom"), require("pydicom.pixels")
    with naming(path):
        data = pydicom.dcmread(path, stop_before_pixels=True)
        values = pixels.pixel_array(path, index=k)  # reads this frame alone
        kind = str(data.PhotometricInterpretation)
        bits = int(data.BitsStored)
        if kind == "PALETTE COLOR":
            values = pixels.apply_color_lut(values, data)
            bits = 8 * values.itemsize  # the palette's, not the pixels'
        top = 255.0 if values.dtype == np.uint8 else 2.0**bits - 1
        if values.ndim == 2:
            slope, inter = (float(_frame_value(data, k, "PixelValueTransformationSequence", f"Rescale{n}", d)) for n, d in LINE)
            values = pixels.apply_modality_lut(values, data) if "ModalityLUTSequence" in data else values * slope + inter
        own = _window(data, k)
    if values.ndim == 3:
        return windowed(values[:, :, :3], 0.0, top)
    grey = windowed(values, *(window or own or percentiles(values)))[:, :, None]
    return 255 - grey if kind == "MONOCHROME1" else grey


def _frame_value(data: Any, k: int, sequence: str, name: str, default: Any) -> Any:
    """A value of frame k: of its own group, of the groups that all frames share, or of the file."""
    groups = data.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*groups[k : k + 1], *(data.get("SharedFunctionalGroupsSequence") or [])]:
        inner = group.get(sequence)
        if inner and name in inner[0]:
            return inner[0][name].value
    return data.get(name, default) if data.get(name) not in (None, "") else default


def _window(data: Any, k: int) -> tuple[float, float] | None:
    """The values that the file's (first) window makes black and white."""
    center, width = (_frame_value(data, k, "FrameVOILUTSequence", f"Window{n}", None) for n in ("Center", "Width"))
    if center is None or width is None:
        return None
    c, w = (float(value[0] if hasattr(value, "__len__") else value) for value in (center, width))
    if str(_frame_value(data, k, "FrameVOILUTSequence", "VOILUTFunction", "LINEAR")) != "LINEAR":
        return c - w / 2, c + w / 2
    return (c - 0.5 - (w - 1) / 2, c - 0.5 + (w - 1) / 2) if w > 1 else (c - 0.5, c - 0.5)
