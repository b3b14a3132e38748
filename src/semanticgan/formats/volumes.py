"""NIfTI volumes as slices, and back into their geometry."""

import gzip
import importlib
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from PIL import Image

from semanticgan.data.dataset import is_grey, raise_problems
from semanticgan.errors import UserError
from semanticgan.formats.folders import binary_notes, decide_labels, guess_folders, near_labels, pair_files, stem_of
from semanticgan.formats.sets import (
    Geometry,
    ImageSet,
    Item,
    Options,
    given_labels,
    read_items,
    read_json,
    write_json,
)
from semanticgan.formats.unread import refuse_unread_labels
from semanticgan.labels import IGNORE_INDEX, LabelSpec

NIFTI = (".nii", ".nii.gz")
# Array axes after turning to L, P, S (the patient's left, back, head), as DICOM has them -> slices [n, rows, columns] with
# the head or the front up, and the way back.
PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
PERCENTILES = (0.5, 99.5)
MAX_BYTES = 2**30  # of a volume or a file's frames, when decoded
MAX_SLICES = 2**16
MAX_HEADER = 2**20  # bytes of a NIfTI header with its extensions
CHUNK = 2**22  # voxels that are scaled and checked at once
FLAT = ((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))  # of an image of no volume
Read = Callable[[Path], np.ndarray]
T = TypeVar("T")


def require(package: str) -> Any:
    """An optional package. Raises UserError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{package} is not installed, but these files need it; pip install 'semanticgan[medical]'") from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what nibabel and pydicom raise on bad files into a UserError that names the file; their warnings are dropped."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, MemoryError):
        raise
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError, zlib.error) as error:
        raise _broken(path, error) from None
    except (RuntimeError, NotImplementedError, LookupError) as error:
        raise _broken(path, error) from None
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("nibabel", "pydicom", "struct"):
            raise _broken(path, error) from None
        raise


def _broken(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{path}: cannot be read ({reason}); replace or remove it")


def _turn(array: np.ndarray, affine: np.ndarray, back: bool = False) -> np.ndarray:
    """An array with this affine -> axes L, P, S, or back."""
    orient = require("nibabel.orientations")
    own, lps = orient.io_orientation(affine), orient.axcodes2ornt(("L", "P", "S"))
    return orient.apply_orientation(array, orient.ornt_transform(lps, own) if back else orient.ornt_transform(own, lps))


def to_slices(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A volume as its file has it -> slices [n, rows, columns] as a radiologist sees them, the patient's right on the left."""
    turned = _turn(array, np.array(geometry.affine))
    turned = turned if geometry.plane == "axial" else turned[:, :, ::-1]
    return turned.transpose(PLANES[geometry.plane])


def from_slices(slices: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The inverse of `to_slices`."""
    turned = slices.transpose(np.argsort(PLANES[geometry.plane]))
    return _turn(turned if geometry.plane == "axial" else turned[:, :, ::-1], np.array(geometry.affine), back=True)


def read_geometry(path: Path, plane: str | None = None) -> Geometry:
    """A NIfTI file's shape and affine; without `plane` the one in which it was acquired, as far as the voxels tell.

    Raises UserError for what is no volume of at most 1 GiB.
    """
    with naming(path):
        _require_short_header(path)
        image = require("nibabel").load(path)
        shape = tuple(int(n) for n in image.shape)
        affine = np.asarray(image.affine, np.float64)
        kind = image.get_data_dtype()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or kind.kind not in "iuf":
        raise UserError(f"{path}: got an array of shape {shape}, expected one grey volume of 3 axes; split it into volumes")
    if min(shape) < 1 or math.prod(shape) * kind.itemsize > MAX_BYTES or max(shape) > MAX_SLICES:
        most = f"expected at most 1 GiB of them, {MAX_SLICES} along an axis; crop it"
        raise UserError(f"{path}: got {shape} voxels of {kind}, {most}")
    return checked_geometry(
        Geometry(shape, tuple(map(tuple, affine.tolist())), plane or "axial"), str(path), choose=plane is None
    )


def _require_short_header(path: Path) -> None:
    """nibabel reads the extensions of a NIfTI header before the volume's size is known. Raises UserError for enormous ones."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        header = file.read(544)
        order = "<" if header[1:4] in (b"\x01\0\0", b"\x02\0\0") else ">"  # the high bytes of 348 and 540
        if struct.unpack_from(order + "i", header)[0] == 540:  # NIfTI-2
            place, (end,) = 544, struct.unpack_from(order + "q", header, 168)
        else:
            place, (end,) = 352, struct.unpack_from(order + "f", header, 108)
        has_extensions = header[place - 4]
        while has_extensions and end - place >= 16:
            file.seek(place)
            place += max(16, struct.unpack(order + "ii", file.read(8))[0])
            if place > MAX_HEADER:
                most = f"expected at most {MAX_HEADER >> 20} MiB; write the volume again without its extensions"
                raise UserError(f"{path}: got a header of {place} bytes or more, {most}")


def checked_geometry(geometry: Geometry, where: str, choose: bool = False) -> Geometry:
    """The geometry, with `choose` in the plane of the thinnest axis or the thickest slices. Raises UserError if it is none."""
    affine = np.array(geometry.affine)
    good = affine.shape == (4, 4) and bool(np.isfinite(affine).all())
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0).clip(min=1e-12) if good else np.zeros((3, 3))
    if abs(np.linalg.det(axes)) < 1e-6:  # of unit length: voxels may be of any size
        raise UserError(f"{where}: got an affine that turns voxels into no volume; mend its header")
    if not choose:
        return geometry
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = np.where(np.array(geometry.shape) == 1, np.inf, np.round(spacing / spacing.max(), 2))
    order = require("nibabel.orientations").io_orientation(affine)[:, 0].astype(int)
    turned = np.zeros(3)
    turned[order] = size  # for the axes left, back, head; the head's wins where several are the same
    return Geometry(geometry.shape, geometry.affine, ("sagittal", "coronal", "axial")[2 - int(np.argmax(turned[::-1]))])


def _stored(path: Path, geometry: Geometry) -> tuple[np.ndarray, float, float]:
    """The numbers as stored, and what to multiply them by and add."""
    with naming(path):
        proxy = require("nibabel").load(path).dataobj
        return np.asarray(proxy.get_unscaled()).reshape(geometry.shape), float(proxy.slope), float(proxy.inter)


def remembering(most: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """As lru_cache, and UserErrors too: a broken volume is not unpacked anew for each of its slices."""

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @lru_cache(maxsize=most)
        def outcome(*args: Any) -> tuple[T | None, str | None]:
            try:
                return function(*args), None
            except UserError as error:
                return None, str(error)

        @wraps(function)
        def call(*args: Any) -> T:
            value, problem = outcome(*args)
            if problem is not None:
                raise UserError(problem)
            return cast("T", value)

        return call

    return decorate


@remembering(3)  # red, green, blue
def _load(path: Path, geometry: Geometry) -> tuple[np.ndarray, float, float]:
    stored, slope, inter = _stored(path, geometry)
    return to_slices(stored, geometry), slope, inter


@lru_cache(maxsize=4)
def _range(path: Path, geometry: Geometry) -> tuple[float, float]:
    """The values that become black and white: percentiles of (a million of) the volume's voxels."""
    stored, slope, inter = _load(path, geometry)
    sample = stored.reshape(-1)[:: stored.size // 2**20 | 1].astype(np.float64) * slope + inter
    return percentiles(sample)


def percentiles(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, PERCENTILES).tolist() if finite.size else (0.0, 0.0)
    return low, high


def windowed(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values -> uint8, `low` and below black, `high` and above white, what is no number black."""
    scaled = (np.nan_to_num(values.astype(np.float32), nan=low) - low) * (255 / ((high - low) or 1.0))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def slice_image(paths: Sequence[Path], geometry: Geometry, k: int, options: Options) -> Callable[[], np.ndarray]:
    """Slice k of one grey volume, or of three as red, green and blue."""

    def pixels() -> np.ndarray:
        channels = []
        for path in paths:
            stored, slope, inter = _load(path, geometry)
            low, high = options.window or _range(path, geometry)
            channels.append(windowed(stored[k].astype(np.float32) * slope + inter, low, high))
        return np.stack(channels, 2)

    return pixels


def volume_values(path: Path) -> np.ndarray:
    """A label volume's values as whole numbers, in the file's order of axes. Raises UserError for others."""
    stored, slope, inter = _stored(path, read_geometry(path, "axial"))
    label = np.empty_like(stored, np.uint8)
    source, target = stored.ravel(order="K"), label.ravel(order="K")
    for start in range(0, source.size, CHUNK):  # scaled numbers have eight bytes
        values = source[start : start + CHUNK]
        if values.dtype.kind == "f" or (slope, inter) != (1.0, 0.0):
            values = values * slope + inter
            if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
                raise UserError(f"{path}: got fractions as labels, expected whole class ids; is it an image?")
        if values.min() < 0 or values.max() > IGNORE_INDEX:
            got = f"{values.min():g} to {values.max():g}"
            raise UserError(f"{path}: got class ids from {got}, expected 0 to 253, or 255 for ignored; is it an image?")
        target[start : start + CHUNK] = values
    return label


def binary_values(path: Path) -> np.ndarray:
    """As `volume_values`, of volumes in which 255 is class 1."""
    return volume_values(path) // IGNORE_INDEX


@remembering(1)
def _label_slices(path: Path, geometry: Geometry, read: Read) -> np.ndarray:
    return to_slices(read(path), geometry).astype(np.uint8)


def volume_items(
    name: str, images: Sequence[Path], mask: Path | None, options: Options, read: Read = volume_values
) -> tuple[Geometry, list[Item]]:
    """The geometry and the slices of a volume in one file or three; `read` gives the class ids of its label volume.

    Raises UserError where the files lie differently in space.
    """
    geometry = read_geometry(images[0], options.plane)
    for path in [*images[1:], *([mask] if mask else [])]:
        other = read_geometry(path, geometry.plane)
        if other.shape != geometry.shape or not np.allclose(other.affine, geometry.affine, atol=1e-3):
            raise UserError(f"{path}: got another shape or affine than {images[0]}; resample one to the other")
    items = []
    for k in range(sliced_shape(geometry)[0]):
        label = partial(_label_slice, mask, geometry, read, k) if mask else None
        items.append(Item(f"{name}/{k:04d}", slice_image(images, geometry, k, options), label))
    return geometry, items


def _label_slice(path: Path, geometry: Geometry, read: Read, k: int) -> np.ndarray:
    return _label_slices(path, geometry, read)[k]


def sliced_shape(geometry: Geometry) -> tuple[int, ...]:
    """The number of a volume's slices, their height and width."""
    return to_slices(np.broadcast_to(np.uint8(0), geometry.shape), geometry).shape


def is_slice(name: str, volumes: Mapping[str, Geometry]) -> bool:
    """Whether an item of this name is a slice of one of the volumes."""
    volume, _, number = name.rpartition("/")
    return volume in volumes and number.isdecimal() and int(number) < sliced_shape(volumes[volume])[0]


def read_nifti(source: Path, options: Options) -> ImageSet:
    """Volumes (and label volumes of the same name in another folder) as slices NAME/0000, NAME/0001, ..."""
    if source.is_file():
        pairs: Mapping[str, tuple[Path, Path | None]] = {stem_of(source.name, NIFTI): (source, None)}
        labels = given_labels(options.classes)
    else:
        images, masks = guess_folders(source, options)
        pairs = pair_files(images, masks, NIFTI)
        if masks is None:
            refuse_unread_labels(source, images, [image for image, _ in pairs.values()], NIFTI, files=False)
        labels = near_labels(source, images, options)
    labels, is_binary = decide_labels([mask for _, mask in pairs.values() if mask], labels, volume_values, binary=True)
    read = binary_values if is_binary else volume_values
    found = from_volumes({name: ([image], mask) for name, (image, mask) in pairs.items()}, labels, options, read)
    return replace(found, notes=binary_notes(is_binary))


def from_volumes(
    cases: Mapping[str, tuple[Sequence[Path], Path | None]], labels: LabelSpec, options: Options, read: Read = volume_values
) -> ImageSet:
    """The slices of all these volumes, each with its files and its label volume."""
    items: list[Item] = []
    volumes, problems = {}, []
    for name, (images, mask) in cases.items():
        try:
            volumes[name], slices = volume_items(name, images, mask, options, read)
            items += slices
        except UserError as error:
            problems.append(str(error))
    raise_problems(problems)
    return ImageSet(tuple(items), labels, volumes=volumes)


def reassembled(content: ImageSet) -> Iterator[tuple[str, Geometry, np.ndarray, np.ndarray | None]]:
    """Each volume (an image of none is one slice): name, geometry, uint8 images [n, h, w, c], labels [n, h, w] or None.

    Absent slices are black, and 255 where others of the volume are labelled. Raises UserError for slices of another size.
    """
    groups: dict[str, list[Item]] = {}
    for item in content.items:
        if item.name in content.volumes:
            raise UserError(f"{item.name}: got an image and a volume of one name; rename the image, or take it away")
        member = is_slice(item.name, content.volumes)
        groups.setdefault(item.name.rpartition("/")[0] if member else item.name, []).append(item)
    for name, items in groups.items():
        geometry = content.volumes.get(name)
        images = labels = None
        for item, pixels, label in read_items(items):
            height, width, channels = pixels.shape
            geometry = geometry or Geometry((width, height, 1), FLAT, "axial")
            shape, k = sliced_shape(geometry), int(item.name.rpartition("/")[2]) if name in content.volumes else 0
            if (height, width) != shape[1:]:
                expected = f"expected {shape[2]}x{shape[1]} as a slice of {name}; replace it, or mend volumes.json"
                raise UserError(f"{item.name}: got {width}x{height}, {expected}")
            images = np.zeros((*shape, channels), np.uint8) if images is None else images
            images[k] = pixels
            if label is not None:
                labels = np.full(images.shape[:3], IGNORE_INDEX, np.uint8) if labels is None else labels
                labels[k] = label
        assert geometry is not None and images is not None
        yield name, geometry, images, labels


def save_volume(path: Path, slices: np.ndarray, geometry: Geometry) -> None:
    """Write uint8 slices [n, rows, columns] as a NIfTI volume of this geometry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel = require("nibabel")
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(from_slices(slices, geometry)), np.array(geometry.affine)), path)


def write_nifti(content: ImageSet, out: Path) -> None:
    """labels/NAME.nii.gz and images/NAME.nii.gz (grey), in the place where the slices came from; and classes.json beside them."""
    for name, geometry, images, labels in reassembled(content):
        save_volume(out / "images" / f"{name}.nii.gz", grey(images), geometry)
        if labels is not None:
            save_volume(out / "labels" / f"{name}.nii.gz", labels, geometry)
    if content.classes_known:
        write_json(out / "classes.json", content.labels.classes_file())


def grey(images: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, c] -> [n, h, w], by Rec. 601 where there is colour."""
    if images.shape[3] == 1 or all(is_grey(image) for image in images):
        return images[..., 0]
    return np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])


def write_geometries(path: Path, volumes: Mapping[str, Geometry]) -> None:
    write_json(path, {"volumes": {name: asdict(geometry) for name, geometry in volumes.items()}})


def read_geometries(path: Path) -> dict[str, Geometry]:
    """Raises UserError for a volumes.json of another form."""
    try:
        volumes = {}
        for name, entry in read_json(path)["volumes"].items():
            shape = tuple(int(n) for n in entry["shape"])
            affine = tuple(tuple(float(v) for v in row) for row in entry["affine"])
            if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > MAX_BYTES or entry["plane"] not in PLANES:
                raise ValueError(name)
            volumes[name] = checked_geometry(Geometry(shape, affine, entry["plane"]), str(path))
        return volumes
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        form = "shape, affine and plane for each volume"
        raise UserError(f"{path}: cannot be read ({error}), expected {form}; convert the volumes again") from None
