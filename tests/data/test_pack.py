import errno
import os
import threading

import numpy as np
import pytest
from PIL import Image

from semanticgan.config import DataConfig
from semanticgan.data import pack as pack_module
from semanticgan.data.dataset import read_image, read_mask
from semanticgan.data.pack import detect_channels, pack
from semanticgan.data.sources import mask_path
from semanticgan.data.transforms import fit_image, fit_label
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec

TWO = LabelSpec.unnamed(2)
DATA = DataConfig(resolution=16, channels=3)


def write_images(root, count, size=(24, 20)):
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for k in range(count):
        Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(root / f"images/{k:03}.png")
        Image.fromarray(random.integers(0, 2, size[::-1], dtype=np.uint8)).save(root / f"masks/{k:03}.png")
    return [f"images/{k:03}.png" for k in range(count)]


@pytest.fixture
def files(tmp_path):
    root = tmp_path / "data"
    return root, write_images(root, 40), tmp_path / "cache"


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_packed_equals_each_file_read_and_fitted(files, fit, channels):
    root, paths, cache = files
    data = DataConfig(resolution=16, channels=channels, fit=fit)
    packed = pack(root, paths, data=data, labels=TWO, cache=cache)
    assert packed.paths == tuple(paths) and packed.left_out == ()
    assert packed.images.shape == (40, 16, 16, channels) and packed.images.dtype == np.uint8
    for k in (0, 7, 39):
        assert (packed.images[k] == fit_image(read_image(root / paths[k], channels), 16, fit)).all()
        assert (packed.labels[k] == fit_label(read_mask(mask_path(root / paths[k]), TWO), 16, fit, 2)).all()


def test_second_time_is_found_and_nothing_is_read(files, monkeypatch):
    root, paths, cache = files
    first = pack(root, paths, data=DATA, labels=None, cache=cache)
    monkeypatch.setattr(pack_module, "_read_one", lambda *_: pytest.fail("read again"))
    second = pack(root, paths, data=DATA, labels=None, cache=cache)
    assert (first.images == second.images).all() and first.labels is None
    assert not second.images.flags.writeable
    assert [f.name[:5] for f in cache.iterdir()] == ["pack-"]


def test_what_the_key_depends_on(files):
    root, paths, _ = files

    def key(paths=paths, labels=TWO, **settings):
        return pack_module.pack_key(root, paths, DATA.model_copy(update=settings), labels)

    keys = [
        key(),
        key(labels=None),
        key(resolution=32),
        key(channels=1),
        key(fit="pad"),
        key(paths=paths[:-1]),
        key(paths=paths[::-1]),
    ]
    os.utime(root / paths[0], (1, 1))
    keys.append(key())
    os.utime(root / "masks/001.png", (1, 1))
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key(symmetry="none") == key()


def test_unlabelled_masks_are_not_read(files):
    root, paths, cache = files
    (root / "masks/000.png").write_text("no image")
    (root / "masks/001.png").unlink()
    assert len(pack(root, paths, data=DATA, labels=None, cache=cache).paths) == 40
    with pytest.raises(UserError) as caught:
        pack(root, paths, data=DATA, labels=TWO, cache=cache)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and "000.png: not an image" in lines[1] and "001.png: no such file" in lines[2]


def test_mask_of_another_size_and_with_unknown_ids(files):
    root, paths, cache = files
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "masks/003.png")
    Image.fromarray(np.full((20, 24), 9, np.uint8)).save(root / "masks/004.png")
    with pytest.raises(UserError, match=r"(?s)003\.png: got a mask of 5x5, expected its image's 24x20.*004\.png: got class id 9"):
        pack(root, paths, data=DATA, labels=TWO, cache=cache)


def test_mask_size_is_compared_with_the_whole_jpeg(tmp_path):
    """A large JPEG is decoded smaller; its mask still has the full size."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200)).save(tmp_path / "images/a.jpg", exif=exif)
    Image.new("L", (200, 300)).save(tmp_path / "masks/a.png")
    packed = pack(tmp_path, ["images/a.jpg"], data=DATA, labels=TWO, cache=tmp_path / "cache")
    assert packed.labels.shape == (1, 16, 16)


def test_few_broken_images_are_left_out_and_named(tmp_path):
    root, cache = tmp_path / "data", tmp_path / "cache"
    paths = write_images(root, 200)
    for k in (20, 150):
        (root / paths[k]).write_bytes((root / paths[k]).read_bytes()[:100])
    packed = pack(root, paths, data=DATA, labels=None, cache=cache)
    assert packed.paths == tuple(p for k, p in enumerate(paths) if k not in (20, 150)) and len(packed.images) == 198
    assert [paths[20] in packed.left_out[0], paths[150] in packed.left_out[1]] == [True, True]
    assert "left out 2 broken images of 200" in packed.notes
    assert pack(root, paths, data=DATA, labels=None, cache=cache).left_out == packed.left_out
    (root / paths[0]).write_text("")
    with pytest.raises(UserError, match="3 bad images, more than 1 % of 200") as caught:
        pack(root, paths, data=DATA, labels=None, cache=cache)
    assert len(str(caught.value).splitlines()) == 4
    assert not [*cache.glob("new-*")]


def test_many_broken_images_stop_soon(tmp_path):
    paths = write_images(tmp_path, 60)
    for path in paths:
        (tmp_path / path).write_text("no")
    with pytest.raises(UserError, match="21 or more bad images") as caught:
        pack(tmp_path, paths, data=DATA, labels=None, cache=tmp_path / "cache")
    assert len(str(caught.value).splitlines()) == 22


def test_no_images_and_missing_images(tmp_path):
    with pytest.raises(UserError, match="no images"):
        pack(tmp_path, [], data=DATA, labels=None, cache=tmp_path / "cache")
    with pytest.raises(UserError, match="no such file"):
        pack(tmp_path, ["images/a.png"], data=DATA, labels=None, cache=tmp_path / "cache")


def test_16_bit_images_are_said_aloud(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(tmp_path / "images/a.png")
    packed = pack(tmp_path, ["images/a.png"], data=DATA, labels=None, cache=tmp_path / "cache")
    assert packed.notes == ("1 images have more than 8 bits a channel: stretched between their .1 and 99.9 percentiles",)


def test_stacks_are_said_aloud(tmp_path):
    (tmp_path / "images").mkdir()
    first, second = (Image.fromarray(np.full((20, 20), value, np.uint8)) for value in (90, 200))
    first.save(tmp_path / "images/a.tif", save_all=True, append_images=[second])
    packed = pack(tmp_path, ["images/a.tif"], data=DATA, labels=None, cache=tmp_path / "cache")
    assert packed.notes == ("1 files hold several pictures, of which the first is read",) and (packed.images == 90).all()


def test_two_runs_at_once(files):
    root, paths, cache = files
    results, errors = [], []

    def run():
        try:
            results.append(pack(root, paths, data=DATA, labels=TWO, cache=cache))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(results) == 6
    assert all((r.images == results[0].images).all() and (r.labels == results[0].labels).all() for r in results)
    assert len([*cache.iterdir()]) == 1


def test_stopping_leaves_nothing_half_written(files):
    root, paths, cache = files

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(root, paths, data=DATA, labels=None, cache=cache, progress=stop)
    assert not [*cache.iterdir()]


def test_full_disk_and_unwritable_cache_are_user_errors(files, monkeypatch):
    root, paths, cache = files

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "_append", full)
        with pytest.raises(UserError, match=r"No space left.*SEMANTICGAN_CACHE"):
            pack(root, paths, data=DATA, labels=None, cache=cache)
    assert not [*cache.iterdir()]
    (root / "file").touch()
    with pytest.raises(UserError, match="SEMANTICGAN_CACHE"):
        pack(root, paths, data=DATA, labels=None, cache=root / "file" / "cache")


def test_reading_stays_a_few_chunks_ahead(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(pack_module, "_read_one", lambda root, path, *_: read.append(path) or path)
    results = pack_module._read_all(tmp_path, [str(k) for k in range(5000)], DATA, None)
    assert next(results) == "0"
    results.close()
    assert len(read) <= 2 * 16 * pack_module._CHUNK + pack_module._CHUNK


def test_progress_ends_at_the_total(files):
    root, paths, cache = files
    seen = []
    pack(root, paths, data=DATA, labels=None, cache=cache, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (40, 40)


def test_packs_unused_for_a_month_go(files):
    root, paths, cache = files
    pack(root, paths, data=DATA, labels=None, cache=cache)
    (old,) = cache.iterdir()
    os.utime(old / "index.json", (1e9, 1e9))
    pack(root, paths[:5], data=DATA, labels=None, cache=cache)
    assert not old.exists() and len([*cache.iterdir()]) == 1


def test_a_pack_that_another_process_takes_away_meanwhile(files, monkeypatch):
    root, paths, cache = files
    monkeypatch.setattr(type(cache), "glob", lambda self, pattern: [self / pattern.replace("*", "gone")])
    assert len(pack(root, paths, data=DATA, labels=None, cache=cache).images) == 40


def test_channels(tmp_path):
    (tmp_path / "images").mkdir()
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "images/l.png")
    Image.fromarray(grey).convert("RGB").save(tmp_path / "images/rgb.jpg")
    Image.fromarray(grey.astype(np.uint16) * 9).save(tmp_path / "images/deep.png")
    paths = ["images/l.png", "images/rgb.jpg", "images/deep.png"]
    assert detect_channels(tmp_path, paths) == 1
    (tmp_path / "images/broken.png").write_text("")
    assert detect_channels(tmp_path, [*paths, "images/broken.png"]) == 1
    Image.new("RGB", (4, 4), (9, 9, 99)).save(tmp_path / "images/c.png")
    assert detect_channels(tmp_path, [*paths, "images/c.png"]) == 3
    assert detect_channels(tmp_path, ["images/l.png"] * 1000, labeled=["images/c.png"]) == 3


def test_masks_of_another_coding_are_packed_anew(tmp_path):
    """The same files mean something else where another mask has shown that 255 is ignored."""
    paths = write_images(tmp_path, 2)
    for k in range(2):
        Image.fromarray(np.tile(np.array([0, 255], np.uint8), (20, 12))).save(tmp_path / f"masks/{k:03}.png")
    binary, index = (
        pack(tmp_path, paths, data=DATA, labels=LabelSpec.unnamed(2, coding), cache=tmp_path / "cache")
        for coding in ("binary", "index")
    )
    assert set(np.unique(binary.labels)) == {0, 1} and 255 in index.labels and 1 not in index.labels
