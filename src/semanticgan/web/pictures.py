"""Pictures that are open in the page: read from files within bounds, kept small, and coded for the way to the page."""

import base64
import io
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from semanticgan.data.dataset import FORMATS, Picture, load_picture
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec

MAX_PIXELS = 36_000_000  # more than a browser's canvas holds
MAX_JPEG_SIDE = 65_500  # Pillow's limit
COPY_SIDE = 1024  # pixels; of what is kept and segmented
KEPT = 64  # pictures; the ones that were used longest ago are forgotten


class TooLargeError(UserError):
    """The picture or the upload is larger than what the page takes."""


@dataclass(frozen=True)
class Opened:
    """A picture in the page: its own size, and a copy that is no larger than what a model sees of it by far."""

    name: str
    size: tuple[int, int]  # width, height
    pixels: UInt8[np.ndarray, "h w c"]
    stretched: bool = False  # the file has more than 8 bits a channel, which browsers show in their own way


class Pictures:
    """The pictures that are open, by a random id."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Opened] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, picture: Opened) -> str:
        key = secrets.token_urlsafe(12)
        with self._lock:
            self._kept[key] = picture
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> Opened | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)


def read(path: Path, name: str, channels: int, at_least: int | None = None) -> Picture:
    """As `load_picture`; `name` stands for the path in what is said of it.

    Raises UserError for a file that is no image or broken, TooLargeError before an enormous one is decoded.
    """
    require_pixels(path, name)
    try:
        return load_picture(path, channels, at_least)
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from None


def require_pixels(path: Path, name: str) -> None:
    """Raises TooLargeError for an image file whose header promises more than MAX_PIXELS."""
    large = False
    try:
        with Image.open(path, formats=FORMATS) as header:
            large = header.size[0] * header.size[1] > MAX_PIXELS
    except Image.DecompressionBombError:
        large = True
    except Exception:  # whatever else is wrong with it is said by whoever reads it
        return
    if large:
        raise TooLargeError(f"{name}: enormous image, expected at most {MAX_PIXELS // 10**6} million pixels; make it smaller")


def open_picture(path: Path, name: str, channels: int) -> Opened:
    """As `read`."""
    picture = read(path, name, channels)
    return Opened(name, picture.size, at_most(picture.pixels, COPY_SIDE), picture.stretched)


def at_most(pixels: UInt8[np.ndarray, "h w c"], longest: int) -> UInt8[np.ndarray, "_ _ c"]:
    """The picture, made smaller where a side is longer."""
    side = max(pixels.shape[:2])
    if side <= longest:
        return pixels
    width, height = (max(1, round(n * longest / side)) for n in (pixels.shape[1], pixels.shape[0]))
    planes = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(planes.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)).reshape(height, width, -1)


def runs(label: UInt8[np.ndarray, "h w"]) -> list[int]:
    """Class ids in reading order as value, length, value, length ..."""
    flat = label.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.append(starts, flat.size))
    return np.stack([flat[starts].astype(np.int64), lengths], 1).reshape(-1).tolist()


def png(pixels: Integer[np.ndarray, "h w *c"]) -> bytes:
    """Grey or colour bytes as a PNG file."""
    stream = io.BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def label_png(label: UInt8[np.ndarray, "h w"], labels: LabelSpec) -> bytes:
    """A palette PNG whose pixel values are the class ids."""
    stream = io.BytesIO()
    image = Image.fromarray(label)
    image.putpalette(labels.palette_bytes())
    image.save(stream, "PNG")
    return stream.getvalue()


def jpeg(pixels: UInt8[np.ndarray, "h w c"], quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def data_url(content: bytes) -> str:
    """Of a PNG."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
