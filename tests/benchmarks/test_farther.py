"""What `benchmarks/farther.py` writes."""

import farther
import numpy as np
import pytest
from PIL import Image

from semanticgan.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A dark disc on a bright ground, and a bar from edge to edge."""
    y, x = np.mgrid[:96, :96]
    masks = {"disc": (y - 48) ** 2 + (x - 48) ** 2 < 30**2, "bar": abs(y - 48) < 20}
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for name, mask in masks.items():
        Image.fromarray(np.where(mask[..., None], 60, 200).repeat(3, 2).astype(np.uint8)).save(
            tmp_path / f"data/images/{name}.png"
        )
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / f"data/masks/{name}.png")
    return tmp_path / "data"


def test_objects_shrink_with_their_masks_and_those_cut_off_stay(folder, tmp_path):
    out = tmp_path / "out"
    assert farther.write(folder, "images", out, 0.0, seed=1) == 2
    bar, disc = (np.asarray(Image.open(out / "masks" / f"0000{k}-{name}.png")) for k, name in enumerate(("bar", "disc")))
    assert bar.mean() == pytest.approx(39 / 96, abs=0.02)
    assert 0.03 < disc.mean() < 0.27  # .31 before; at most 9 times less
    img = np.asarray(Image.open(out / "images" / "00001-disc.png")).astype(float).mean(2)
    assert img[disc == 1].mean() < 110 and img[disc == 0].mean() > 180


def test_nearer_the_object_fills_the_frame(folder, tmp_path):
    assert farther.write(folder, "images", tmp_path / "out", 1.5, seed=1, nearer=True) == 2
    disc, img = (np.asarray(Image.open(tmp_path / "out" / kind / "00001-disc.png")) for kind in ("masks", "images"))
    assert disc.shape == (69, 69) and disc.mean() == pytest.approx(1 / 1.3**2, abs=0.02)  # 1.3 roots of 2,821 pixels
    assert set(img[disc == 1].flatten()) == {60} and set(img[disc == 0].flatten()) == {200}
    assert farther.square_round(np.zeros((5, 7), np.uint8)) == (slice(0, 7), slice(0, 7))


def test_an_existing_folder_is_left_alone(folder, tmp_path):
    with pytest.raises(UserError, match="exists"):
        farther.write(folder, "images", tmp_path, 0.0, seed=1)
