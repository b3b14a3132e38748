"""The data folder behind the page: what is written beside the images can be read with what is there already."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the page needs fastapi and uvicorn: pip install 'semanticgan[app]'")

from semanticgan.data.coding import decide_labels
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec
from semanticgan.web.folder import DataFolder, palette_beside

SIDE = 8
TWO = LabelSpec(names=("background", "cell"), palette=((0, 0, 0), (230, 159, 0)))
BLACK, WHITE = [0, 0, 0], [255, 255, 255]


@pytest.fixture
def root(tmp_path) -> Path:
    """Six images without masks."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for k in range(6):
        Image.new("RGB", (SIDE, SIDE), (40 * k, 0, 0)).save(tmp_path / "images" / f"{k}.png")
    return tmp_path


def opened(root: Path) -> DataFolder:
    return DataFolder(root, TWO, 3)


def mask(*values: int) -> np.ndarray:
    """A row of each value, the last one's down to the bottom."""
    return np.array([values[min(k, len(values) - 1)] for k in range(SIDE)], np.uint8)[:, None].repeat(SIDE, 1)


def write(root: Path, name: str, label: np.ndarray, palette: list[int] | None = None) -> None:
    image = Image.fromarray(label)
    if palette:
        image.putpalette(palette)
    image.save(root / "masks" / f"{name}.png")


def read(root: Path, name: str) -> Image.Image:
    with Image.open(root / "masks" / f"{name}.png") as image:
        image.load()
    return image


def masks(root: Path) -> list[Path]:
    return sorted((root / "masks").glob("*.png"))


# ---------------------------------------------------------------- colours


@pytest.mark.parametrize("palette", [BLACK + WHITE, WHITE + BLACK, None])
def test_a_saved_mask_takes_no_colour_of_another_class(root, palette):
    write(root, "0", mask(0, 1), palette)
    opened(root).save("images/1.png", mask(1, 0, 255))
    assert decide_labels(root, masks(root))[0].coding == "index"
    image = read(root, "1")
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), mask(1, 0, 255))
    shown = np.asarray(image.convert("RGB"))
    assert len({tuple(shown[k, 0]) for k in range(3)}) == 3  # ignored pixels look like no class


def test_masks_that_agree_with_no_palette_are_grey(root):
    write(root, "0", mask(0, 1), WHITE + BLACK)
    write(root, "1", mask(0, 0), [*BLACK, 9, 9, 9])
    opened(root).save("images/2.png", mask(0, 1, 255))
    image = read(root, "2")
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), mask(0, 1, 255))


def test_the_models_colours_where_nothing_speaks_against_them(root):
    assert palette_beside(TWO, []) == TWO.palette_bytes()
    write(root, "0", mask(0, 1), [*BLACK, 1, 2, 3])
    (root / "masks" / "1.png").write_text("no image")
    assert palette_beside(TWO, masks(root)) == TWO.palette_bytes()
    write(root, "2", mask(0, 1), BLACK + WHITE)
    assert palette_beside(TWO, masks(root))[:765] == TWO.palette_bytes()[:765]


# ---------------------------------------------------------------- links, and what is kept


def test_a_mask_that_is_not_fetched_is_left_alone(root):
    (root / "masks" / "0.png").symlink_to("../.store/0.png")
    folder = opened(root)
    with pytest.raises(UserError, match=r"^masks/0.png: link to a mask that is not there; fetch it, or remove the link$"):
        folder.save("images/0.png", mask(0, 1))
    assert (root / "masks" / "0.png").is_symlink()


def test_a_linked_mask_is_kept_as_a_file(root):
    write(root, "0", mask(1))
    (root / ".store").mkdir()
    stored = (root / "masks" / "0.png").rename(root / ".store" / "0.png")
    (root / "masks" / "0.png").symlink_to("../.store/0.png")
    before = stored.read_bytes()
    kept = root / opened(root).save("images/0.png", mask(0, 1))["kept"]
    stored.write_bytes(b"another")
    assert not kept.is_symlink() and kept.read_bytes() == before
    assert not (root / "masks" / "0.png").is_symlink()


@pytest.mark.parametrize("letter", ["a", "ä"])
def test_long_names_are_kept_too(root, letter):
    stem = letter * (251 // len(letter.encode()))
    (root / "images" / "0.png").rename(root / "images" / f"{stem}.png")
    folder = opened(root)
    kept = [folder.save(f"images/{stem}.png", mask(0, 1))["kept"] for _ in range(3)]
    assert kept[0] is None and kept[1] != kept[2]
    for k, name in enumerate(kept[1:], 1):
        assert name.endswith(f"{letter}.{k}.png") and (root / name).is_file()


# ---------------------------------------------------------------- what the values mean


def ids(folder: DataFolder, name: str) -> np.ndarray:
    content, (width, height) = folder.mask(name)
    return np.frombuffer(gzip.decompress(content), np.uint8).reshape(height, width)


def test_the_coding_is_decided_again_when_the_folder_is_read_again(root):
    folder = opened(root)
    assert folder.listing("all", 0, 1)["ignore"]
    write(root, "0", mask(0, 255))
    folder.reload()
    assert not folder.listing("all", 0, 1)["ignore"]
    np.testing.assert_array_equal(ids(folder, "images/0.png"), mask(0, 1))
    folder.save("images/1.png", mask(0, 1))
    np.testing.assert_array_equal(np.asarray(read(root, "1")), mask(0, 255))


def test_the_first_mask_is_saved_as_another_one_has_been_meanwhile(root):
    folder = opened(root)
    write(root, "0", mask(0, 255))
    folder.save("images/1.png", mask(0, 1))
    np.testing.assert_array_equal(np.asarray(read(root, "1")), mask(0, 255))
    assert decide_labels(root, masks(root))[0].coding == "binary"


def test_a_coding_that_the_model_has_not_changes_nothing(root):
    three = LabelSpec.unnamed(3)
    folder = DataFolder(root, three, 3)
    write(root, "0", mask(0, 255))
    (root / "images" / "1.png").unlink()
    with pytest.raises(UserError, match="got masks of 0 and 255 alone, expected class ids of the 3 classes"):
        folder.reload()
    assert folder.listing("all", 0, 1)["total"] == 6 and folder.labels == three and not folder.labeled


def test_the_last_mask_that_shows_a_class_stays_so(root):
    folder = opened(root)
    folder.save("images/1.png", mask(0, 1))
    folder.save("images/2.png", mask(0, 255))
    for label in (mask(0), mask(255)):
        with pytest.raises(UserError, match=r"images/1.png: with this mask .* save one with a class first"):
            folder.save("images/1.png", label)
    folder.save("images/3.png", mask(1))
    folder.save("images/1.png", mask(0))
    np.testing.assert_array_equal(ids(opened(root), "images/2.png"), mask(0, 255))


def test_what_is_saved_can_be_trained_on_together(root):
    folder = opened(root)
    for k, label in enumerate((mask(0, 1), mask(0, 255), mask(1))):
        folder.save(f"images/{k}.png", label)
        assert decide_labels(root, masks(root))[0].coding == "index" if k else True
    np.testing.assert_array_equal(ids(opened(root), "images/1.png"), mask(0, 255))


def test_the_last_mask_that_shows_what_255_means_stays_so(root):
    """Where no palette tells it."""
    for k, label in enumerate((mask(0, 1), mask(0, 255), mask(0, 1, 255))):
        write(root, str(k), label)
    folder = opened(root)
    for label in (mask(0), mask(1), mask(0, 255)):
        with pytest.raises(UserError, match=r"^images/2.png: its mask is the only one .* those of masks/1.png would be taken"):
            folder.save("images/2.png", label)
    folder.save("images/3.png", mask(1, 255))
    folder.save("images/2.png", mask(0))
    assert decide_labels(root, masks(root))[0].coding == "index"


# ---------------------------------------------------------------- what others do meanwhile, and what cannot be labelled


def test_a_mask_that_somebody_else_has_written_is_seen(root):
    folder = opened(root)
    write(root, "0", mask(0, 255))
    assert "images/0.png" not in folder.drawn(False, 6) and folder.listing("labeled", 0, 9)["found"] == 1
    write(root, "1", mask(0, 255))
    assert folder.open("images/1.png")[1] and folder.listing("labeled", 0, 9)["found"] == 2
    np.testing.assert_array_equal(ids(folder, "images/1.png"), mask(0, 1))
    (root / "masks" / "0.png").unlink()
    assert folder.drawn(True, 6) == ["images/1.png"]
    assert not folder.open("images/0.png")[1]


def test_what_cannot_be_labelled_is_not_proposed(root, monkeypatch):
    Image.new("RGB", (SIDE, SIDE)).save(root / "images" / "0.jpg")  # one mask for both
    (root / "masks" / "1.png").symlink_to("nowhere.png")
    Image.new("1", (100, 100)).save(root / "images" / "2.png")
    monkeypatch.setattr("semanticgan.web.pictures.MAX_PIXELS", 5000)
    folder = opened(root)
    (root / "images" / "3.png").unlink()
    assert sorted(folder.drawn(False, 9)) == ["images/4.png", "images/5.png"]
    assert folder.following("images/4.png") == "images/5.png"
    assert folder.following("images/5.png") == "images/4.png"
    assert folder.following("") == "images/4.png"
    write(root, "4", mask(0, 1))
    assert folder.following("images/5.png") is None
    for name in ("images/0.jpg", "images/0.png", "images/1.png", "images/2.png", "images/3.png"):
        with pytest.raises(UserError):
            folder.open(name)
