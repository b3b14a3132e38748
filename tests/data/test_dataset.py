import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from semanticgan.data import dataset
from semanticgan.data.dataset import load_picture, read_image, read_mask, to_u8
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec

TWO = LabelSpec.unnamed(2)
BINARY = LabelSpec.unnamed(2, "binary")


def gradient(height=20, width=30):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (width + height - 2)], 2).astype(np.uint8)


def saved(path, array, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


def png(path, width, height, bits, kind, pixels):
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(pixels)),
        (b"IEND", b""),
    ]
    packed = (struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


def enormous_png(path, width=60_000, height=60_000):
    """A valid header that promises more pixels than anybody has memory for."""
    return png(path, width, height, 8, 2, bytes(1000))


def deep_png(path, values):
    """16 bits in two, three or four channels, which Pillow does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(path, values.shape[1], values.shape[0], 16, {2: 4, 3: 2, 4: 6}[values.shape[2]], rows)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp", "jpg"])
def test_every_format_in_both_colours(tmp_path, suffix):
    img = gradient()
    exact = suffix in ("png", "tif", "bmp")
    path = saved(
        tmp_path / f"a.{suffix}", img, **({"lossless": True} if suffix == "webp" else {"quality": 95} if suffix == "jpg" else {})
    )
    colour, grey = read_image(path, 3), read_image(path, 1)
    assert colour.shape == (20, 30, 3) and grey.shape == (20, 30, 1)
    # JPEG at quality 95 with halved colour resolution is off by some levels in places
    assert np.abs(colour.astype(int) - img).mean() <= (0 if exact or suffix == "webp" else 4)
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    # a JPEG's own luma channel is not rounded through RGB
    assert np.abs(grey[:, :, 0].astype(int) - luma).max() <= 1


def test_grey_becomes_three_equal_channels(tmp_path):
    path = saved(tmp_path / "a.png", gradient()[:, :, 0])
    assert (read_image(path, 3) == gradient()[:, :, :1]).all()


def test_palette_is_read_as_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]])
    assert (read_image(saved(tmp_path / "a.png", image), 3) == colours).all()


def test_one_bit_is_black_and_white(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(np.array([[True, False]])))
    assert read_image(path, 1).ravel().tolist() == [255, 0]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    image = Image.new(mode, (2, 1), (10, 255) if mode == "LA" else (10, 10, 10, 255))
    image.putpixel((1, 0), (10, 0) if mode == "LA" else (10, 10, 10, 0))
    path = saved(tmp_path / "a.png", image)
    assert read_image(path, 1).ravel().tolist() == [10, 255]
    assert read_image(path, 3)[0, :, 2].tolist() == [10, 255]


def test_transparent_palette_entry_becomes_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([200, 0, 0, 0, 0, 200])
    path = saved(tmp_path / "a.png", image, transparency=1)
    assert read_image(path, 3)[0].tolist() == [[200, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_text_called_transparency_is_none(tmp_path, mode):
    text = PngInfo()
    text.add_text("transparency", "none")
    path = saved(tmp_path / "a.png", Image.new(mode, (2, 1)), pnginfo=text)
    for channels in (1, 3):
        assert read_image(path, channels).tolist() == [[[0] * channels] * 2]


def test_what_cannot_be_converted_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_eight_bits", lambda image, channels: image.convert("no mode"))
    with pytest.raises(UserError, match=r"a\.png: broken or truncated image \(image has wrong mode\)"):
        read_image(saved(tmp_path / "a.png", gradient()), 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_cielab(tmp_path, channels):
    path = saved(tmp_path / "a.tif", Image.new("LAB", (4, 4), (255, 128, 128)))
    assert (read_image(path, channels) >= 250).all()


def test_cmyk(tmp_path):
    path = saved(tmp_path / "a.tif", Image.new("CMYK", (4, 4), (0, 255, 255, 0)))
    assert read_image(path, 3)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_stretched_between_percentiles(tmp_path, suffix):
    values = np.linspace(1000, 3000, 4000).astype(np.uint16).reshape(50, 80)
    values[0, 0] = 65535  # one hot pixel must not darken the rest
    path = saved(tmp_path / f"a.{suffix}", values)
    picture = load_picture(path, 1)
    assert picture.stretched
    low, high = np.percentile(values, (0.1, 99.9))
    expected = np.clip(np.rint((values.astype(np.float64) - low) / (high - low) * 255), 0, 255)
    assert np.abs(picture.pixels[:, :, 0] - expected).max() <= 1  # float32
    assert not load_picture(saved(tmp_path / "b.png", gradient()), 1).stretched


def test_32_bit_and_fractions(tmp_path):
    for values in (
        np.arange(1000, dtype=np.int32).reshape(20, 50) * 70,
        np.linspace(-1, 1, 1000, dtype=np.float32).reshape(20, 50),
    ):
        img = read_image(saved(tmp_path / "a.tif", values), 1)
        assert img.min() == 0 and img.max() == 255 and (np.diff(img.ravel().astype(int)) >= 0).all()


def test_constant_16_bit_image_is_no_division_by_zero(tmp_path):
    assert (read_image(saved(tmp_path / "a.png", np.full((4, 4), 700, np.uint16)), 1) == 0).all()


@pytest.mark.parametrize("bits", [12, 16])
def test_16_bit_colour_is_read_by_its_upper_byte_or_refused(tmp_path, bits):
    """Pillow drops the lower byte; of 12 bits it leaves four."""
    values = (np.linspace(0, 1, 300) * (2**bits - 1)).astype(np.uint16).reshape(10, 10, 3)
    path = deep_png(tmp_path / "a.png", values)
    if bits == 16:
        assert (read_image(path, 3) == values >> 8).all()
    else:
        with pytest.raises(UserError, match=r"a\.png: got 16 bits in colour, .* they reach 15 of 255"):
            read_image(path, 3)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_masks_of_16_bits_a_channel_are_refused(tmp_path, channels):
    """Their class ids are in the lower bytes, which are not read."""
    path = deep_png(tmp_path / "m.png", np.eye(4)[:, :, None].repeat(channels, 2))
    with pytest.raises(
        UserError, match=r"m\.png: got a mask with 16 bits a channel in RGB.*, of which only the upper 8 are read"
    ):
        read_mask(path, TWO)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation, suffix):
    upright = np.zeros((40, 24, 3), np.uint8)
    upright[:8, :8] = 255  # a white corner, top left
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposition that stores the image that way
    image = Image.fromarray(upright)
    if orientation > 1:
        image = image.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = load_picture(saved(tmp_path / f"a.{suffix}", image, exif=exif), 3)
    assert (picture.pixels == upright).all()
    assert picture.size == (24, 40) and picture.turned == (orientation > 1)


def test_at_least_keeps_twice_the_resolution_and_the_size(tmp_path):
    smooth = np.asarray(Image.fromarray(gradient()).resize((800, 600)))
    for path in (saved(tmp_path / "a.jpg", smooth, quality=95), saved(tmp_path / "a.png", smooth)):
        picture = load_picture(path, 3, at_least=128)
        assert picture.size == (800, 600)
        assert 128 <= min(picture.pixels.shape[:2]) < 256
        small = np.asarray(Image.fromarray(smooth).resize(picture.pixels.shape[1::-1], Image.Resampling.BOX))
        assert np.abs(picture.pixels.astype(int) - small).mean() < 2  # JPEG


def test_bad_images_are_named(tmp_path):
    good = saved(tmp_path / "good.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).read_bytes()
    png = saved(tmp_path / "good.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).read_bytes()
    cases = {
        "text.jpg": (b"hello", "not an image"),
        "empty.png": (b"", "not an image"),
        "gif.png": (b"GIF89a" + bytes(20), "not an image"),
        "cut.jpg": (good[: len(good) // 2], "broken or truncated"),
        "cut.png": (png[: len(png) // 2], "broken or truncated"),
        "flipped.png": (png[:200] + bytes([png[200] ^ 255]) + png[201:], "broken or truncated"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            read_image(tmp_path / name, 3)
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png", 3)
    with pytest.raises(UserError, match="broken"):
        read_image(tmp_path, 3)


@pytest.mark.parametrize("side", [15_000, 18_000, 60_000])
def test_enormous_images_are_refused_before_decoding(tmp_path, side):
    with pytest.raises(UserError, match=r"bomb\.png: enormous image, expected at most 200 million pixels"):
        read_image(enormous_png(tmp_path / "bomb.png", side, side), 3)


def test_a_long_chain_of_tiff_pictures_is_not_followed(tmp_path):
    path, count = tmp_path / "chain.tif", 20_000
    pixel = saved(tmp_path / "one.tif", np.zeros((1, 1), np.uint8)).read_bytes()
    start = struct.unpack_from("<I", pixel, 4)[0]
    entries = struct.unpack_from("<H", pixel, start)[0]
    directory = pixel[start : start + 2 + 12 * entries]
    step = len(directory) + 4
    chain = b"".join(directory + struct.pack("<I", len(pixel) + step * (k + 1) if k < count - 1 else 0) for k in range(count))
    path.write_bytes(pixel[:4] + struct.pack("<I", len(pixel)) + pixel[8:] + chain)
    started = time.process_time()
    picture = load_picture(path, 3)
    assert picture.frames == dataset.MAX_FRAMES and picture.pixels.shape == (1, 1, 3)
    assert time.process_time() - started < 1  # all of them would take longer


def test_tiff_pictures_are_counted(tmp_path):
    first, *rest = (Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (1, 2, 3))
    first.save(tmp_path / "three.tif", save_all=True, append_images=rest)
    picture = load_picture(tmp_path / "three.tif", 1)
    assert picture.frames == 3 and (picture.pixels == 1).all()


def test_an_enormous_canvas_of_webp_is_refused(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 255)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    raw = bytearray((tmp_path / "a.webp").read_bytes())
    assert raw[12:16] == b"VP8X"
    raw[24:30] = (8_000_000 - 1).to_bytes(3, "little") + (20 - 1).to_bytes(3, "little")
    (tmp_path / "a.webp").write_bytes(bytes(raw))
    with pytest.raises(UserError, match=r"a\.webp: enormous image"):
        read_image(tmp_path / "a.webp", 3)


def test_big_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "BIG_PIXELS", 100)
    assert read_image(saved(tmp_path / "a.png", gradient()), 3).shape == (20, 30, 3)
    assert not dataset._one_big.locked()


def test_to_u8_equals_reading_the_file(tmp_path):
    img = gradient()
    for image in (
        Image.fromarray(img),
        Image.fromarray(img).convert("RGBA"),
        Image.fromarray(img).convert("P"),
        Image.fromarray(img[:, :, 0]),
    ):
        path = saved(tmp_path / "a.png", image)
        for channels in (1, 3):
            assert (to_u8(image, channels) == read_image(path, channels)).all()
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30) * 50
    assert (to_u8(deep, 1) == read_image(saved(tmp_path / "a.png", deep), 1)).all()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4)])
def test_to_u8_takes_arrays_of_one_to_four_channels(shape):
    img = np.full(shape, 255, np.uint8)
    assert to_u8(img, 3).shape == (5, 7, 3) and to_u8(img, 1).shape == (5, 7, 1)
    assert (to_u8(img, 3) == 255).all()


@pytest.mark.parametrize(
    "img", [np.zeros(5, np.uint8), np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 5), np.uint8), np.zeros((5, 5, 3))]
)
def test_to_u8_refuses_other_arrays(img):
    with pytest.raises(UserError, match="image: got an array of"):
        to_u8(img, 3)


def test_palette_mask_is_read_as_indices_not_luminance(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 255]], np.uint8))
    image.putpalette(TWO.palette_bytes())
    assert read_mask(saved(tmp_path / "m.png", image), TWO, (2, 2)).tolist() == [[0, 1], [1, 255]]


def test_masks_of_all_kinds_mean_the_same(tmp_path):
    index = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    white = index * 255
    for array, labels in (
        (index, TWO),
        (index.astype(np.uint16), TWO),
        (np.repeat(index[:, :, None], 3, 2), TWO),
        (white, BINARY),
        (white.astype(bool), BINARY),
        (np.repeat(white[:, :, None], 3, 2), BINARY),
        (np.stack([white, np.full_like(white, 255)], 2), BINARY),
    ):
        assert (read_mask(saved(tmp_path / "m.png", array), labels, (3, 2)) == index).all()


def test_bad_masks_are_named(tmp_path):
    index = np.array([[0, 1, 2], [1, 0, 0]], np.uint8)
    colour = np.zeros((2, 3, 3), np.uint8)
    colour[0, 0] = (255, 0, 0)
    cases = [
        (saved(tmp_path / "id.png", index), "got class id 2, expected 0 to 1"),
        (saved(tmp_path / "wide.png", index.astype(np.uint16) * 32000), "got class id 32000"),
        (saved(tmp_path / "size.png", index[:1]), "got a mask of 3x1, expected its image's 3x2"),
        (saved(tmp_path / "jpeg.png", index, format="JPEG"), "got a mask in JPEG"),
        (saved(tmp_path / "colour.png", colour), "got a colour mask"),
        (saved(tmp_path / "float.tif", index.astype(np.float32) / 2), "fractions"),
        (saved(tmp_path / "infinite.tif", np.where(index > 1, np.inf, index).astype(np.float32)), "fractions"),
        (saved(tmp_path / "negative.tif", index.astype(np.int32) - 1), "got class id -1"),
        (tmp_path / "none.png", "no such file"),
    ]
    for path, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            read_mask(path, TWO, (3, 2))
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
