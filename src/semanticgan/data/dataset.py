"""Image and mask files -> uint8 arrays."""

import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
VOLUMES = (".nii", ".nii.gz", ".dcm")
MAX_PIXELS = 200_000_000
MAX_PROBLEMS = 20
MAX_WEBP_SIDE = 16_383  # of a still image; an animation's canvas may claim more
MAX_FRAMES = 100
FLAT = 8  # grey levels between the darkest and the brightest pixel, by channel, of a near-constant image
NEW_SUBFILE_TYPE = 254  # TIFF's tag, of which bit 0 marks a smaller copy
# What Pillow raises on bad files.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error)
DARK = 64  # of 255: 16-bit colour that stays below has most of what it shows in the lower bytes, which are not read
BIG_PIXELS = 20_000_000  # images above are decoded one at a time, which bounds the memory
_one_big = threading.Lock()

# Our own limit is checked before decoding; Pillow's warning would only repeat it on a line of its own.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Picture:
    """An image as read: uint8 pixels [H, W, C], and what the file held before."""

    pixels: np.ndarray
    size: tuple[int, int]  # the file's width and height, after EXIF rotation
    stretched: bool  # more than 8 bits a channel, stretched between percentiles
    frames: int = 1  # pictures in the file, of which the first was read
    turned: bool = False  # by its EXIF orientation


def raise_problems(problems: Sequence[str], summary: str = "") -> None:
    """Raise one UserError with a line a problem, 20 of them at most; nothing if there are none."""
    if problems := list(dict.fromkeys(problems)):
        lines = [*([summary] if summary else []), *problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            lines.append(f"and {len(problems) - MAX_PROBLEMS} more")
        raise UserError("\n".join(lines))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what Pillow raises on bad files into a UserError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct the list or the path") from None
    except UnidentifiedImageError:
        advice = "`semanticgan convert` reads NIfTI and DICOM" if path.name.lower().endswith(VOLUMES) else "replace or remove it"
        if path.suffix.lower() in (".tif", ".tiff"):
            advice = "a TIFF may hold 8 or 16 bits in grey, or 8 in colour; save it so, or remove it"
        raise UserError(f"{path}: not an image, expected PNG, JPEG, TIFF, BMP or WebP; {advice}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{MAX_PIXELS // 10**6} million pixels"
        raise UserError(f"{path}: enormous image, expected at most {limit}; make it smaller or remove it") from None
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: broken or truncated image ({reason}); replace or remove it") from None


@contextmanager
def _decoded(path: Path, at_least: int | None = None) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
    """The file's first picture, upright, and its full width and height.

    With `at_least`, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, no side becoming shorter than that.
    """
    with _naming(path):
        image = Image.open(path, formats=FORMATS)
    with image:
        with _naming(path):
            size = image.size
            if size[0] * size[1] > MAX_PIXELS or (image.format == "WEBP" and max(size) > MAX_WEBP_SIDE):
                raise Image.DecompressionBombError
        with _one_big if size[0] * size[1] > BIG_PIXELS else nullcontext():
            with _naming(path):
                if at_least is not None and image.format in ("JPEG", "MPO"):
                    image.draft(None, (at_least, at_least))
                frames = num_frames(image)
                cut = not is_deep(image) and any(";16" in str(tile[3]) for tile in image.tile)  # Pillow drops the lower bytes
                turned = 2 <= image.getexif().get(0x0112, 1) <= 8  # asked first, as Pillow turns a TIFF when it is loaded
                image.load()
                image.info |= {"frames": frames, "cut": cut, "turned": turned}
                orientation = image.getexif().get(0x0112, 1)
                ImageOps.exif_transpose(image, in_place=True)
            yield image, (size[1], size[0]) if 5 <= orientation <= 8 else size


def num_frames(image: Image.Image) -> int:
    """Pictures in an opened TIFF, WebP or PNG. In TIFF, where a chain of them can be long and slow to follow, they are counted to
    MAX_FRAMES, and smaller copies do not count.
    """
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1) if image.format in ("WEBP", "PNG") else 1
    found = 1
    with suppress(*BROKEN):
        for k in range(1, MAX_FRAMES):
            image.seek(k)
            found += not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1  # type: ignore[attr-defined]
    image.seek(0)
    return found


def _stretched(values: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """More than 8 bits -> 0..255 between the .1 and 99.9 percentiles; of a large image, of a million of its values."""
    values = values.astype(np.float32)
    sample = values.reshape(-1)[:: values.size // 2**20 | 1]  # an odd step, so as not to keep to a few columns
    sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, (0.1, 99.9)) if sample.size else (0.0, 0.0)
    np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)  # in place, as there may be 200 million
    values -= low
    values *= 255 / max(high - low, 1e-12)
    np.rint(values, out=values)
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """A Pillow image of any mode -> mode L or RGB; what is transparent becomes white, as viewers show it."""
    mode = "L" if channels == 1 else "RGB"
    if is_deep(image):
        return Image.fromarray(_stretched(np.asarray(image))).convert(mode)
    if not isinstance(image.info.get("transparency"), int | bytes | tuple):
        image.info.pop("transparency", None)  # a PNG's text of that name
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        image = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image.alpha_composite(clear)
    return image.convert("RGB").convert(mode) if image.mode in ("P", "LAB") else image.convert(mode)


def _array(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def is_deep(image: Image.Image) -> bool:
    """Whether the image has more than 8 bits a channel and is stretched to 8 when read."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    """Darkest and brightest value of each channel."""
    found: Any = image.getextrema()
    return list(found) if isinstance(found[0], tuple) else [found]


def load_picture(path: Path, channels: int, at_least: int | None = None) -> Picture:
    """Read an image with what the file held before; `at_least` lets it be halved while both sides stay so long.

    Raises UserError naming the file.
    """
    with _decoded(path, at_least) as (image, size):
        stretched, frames, turned = is_deep(image), image.info["frames"], image.info["turned"]
        if image.info["cut"] and (brightest := max(high for _, high in _extrema(image))) < DARK:
            raise UserError(
                f"{path}: got 16 bits in colour, of which the upper 8 are read, and they reach {brightest} of 255; "
                "stretch it and save it in 8 bits"
            )
        with _naming(path):
            pixels = _eight_bits(image, channels)
        if at_least is not None and (factor := min(pixels.size) // at_least) >= 2:
            pixels = pixels.reduce(factor)
        return Picture(_array(pixels), size, stretched, frames, turned)


def is_grey(pixels: UInt8[np.ndarray, "h w c"]) -> bool:
    """Whether the channels are equal, up to the rounding of JPEG."""
    wide = pixels.astype(np.int16)
    return all(int(np.abs(wide[:, :, k] - wide[:, :, 0]).max()) <= 2 for k in range(1, pixels.shape[2]))


def is_flat(pixels: UInt8[np.ndarray, "h w c"]) -> bool:
    """Whether the image is near-constant."""
    return all(np.ptp(pixels[:, :, k]) < FLAT for k in range(pixels.shape[2]))


def read_image(path: Path, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Read an image upright in 1 or 3 channels: PNG, JPEG, TIFF, BMP or WebP of any mode.

    More than 8 bits in grey are stretched between the .1 and 99.9 percentiles; of 16 in colour the upper 8 are read. Raises
    UserError naming the file when it is missing, not an image, broken, above 200 million pixels, or too dark for that.
    """
    return load_picture(path, channels).pixels


def to_u8(image: Image.Image | np.ndarray, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """The conversions of `read_image` for a Pillow image or an array [H, W] or [H, W, 1 to 4] of uint8 or uint16.

    Raises UserError for another shape or type.
    """
    if isinstance(image, Image.Image):
        return _array(_eight_bits(ImageOps.exif_transpose(image), channels))
    values = np.asarray(image)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 2, 3, 4) or 0 in values.shape:
        raise UserError(f"image: got an array of shape {np.shape(image)}, expected [H, W] or [H, W, C] with 1 to 4 channels")
    if values.dtype == np.uint16:
        values = _stretched(values)
    if values.dtype != np.uint8:
        raise UserError(f"image: got an array of {values.dtype}, expected uint8 (0 to 255) or uint16")
    values = values[:, :, 0] if values.shape[2] == 1 else values
    return _array(_eight_bits(Image.fromarray(np.ascontiguousarray(values)), channels))


def read_mask_values(path: Path, size: tuple[int, int] | None = None) -> Shaped[np.ndarray, "h w"]:
    """The values of a mask file as stored: palette indices, or grey levels (a 1-bit mask holds 0 and 255).

    Raises UserError naming the file: JPEG, colour, or another size than `size` (width, height).
    """
    with _decoded(path) as (image, full):
        if image.format in ("JPEG", "MPO"):
            raise UserError(f"{path}: got a mask in JPEG, which blurs class ids; store masks as PNG")
        if size is not None and full != size:
            turned = ", or if its image has an EXIF orientation turn it likewise" if full == size[::-1] else ""
            expected = f"expected its image's {size[0]}x{size[1]}; redraw it at that size{turned}"
            raise UserError(f"{path}: got a mask of {full[0]}x{full[1]}, {expected}")
        if image.info["cut"]:
            got = f"got a mask with 16 bits a channel in {image.mode}, of which only the upper 8 are read"
            raise UserError(f"{path}: {got}; store class ids in one channel of 8 bits")
        values = np.asarray(image.convert("L") if image.mode == "1" else image)
    if values.ndim == 3:
        grey = image.mode in ("LA", "PA") or (values[:, :, :3] == values[:, :, :1]).all()
        if not grey:
            raise UserError(
                f"{path}: got a colour mask ({image.mode}), expected class ids in one grey or palette channel; "
                "`semanticgan convert --classes classes.json` reads colours"
            )
        values = values[:, :, 0]
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise UserError(f"{path}: got a mask of fractions, expected whole class ids")
    if values.min() < 0:
        raise UserError(f"{path}: got class id {int(values.min())}, expected 0 or above")
    return values


def palette_of(path: Path) -> tuple[tuple[int, ...], ...]:
    """The colours of a palette file by their index; none of any other."""
    with suppress(*BROKEN, Image.DecompressionBombError), Image.open(path, formats=FORMATS) as image:
        values = iter((image.getpalette("RGB") or []) if image.mode == "P" else [])
        return tuple(zip(values, values, values, strict=True))
    return ()


def read_mask(path: Path, labels: LabelSpec, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w"]:
    """Read a mask as a class map, 255 where ignored; `size` is its image's width and height.

    Raises UserError naming the file: JPEG, colour, another size, an unknown class id.
    """
    values = read_mask_values(path, size)
    try:
        return labels.to_index(values)
    except UserError as error:
        raise UserError(f"{path}: {error}; correct the mask or classes.json") from None
