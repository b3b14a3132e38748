"""Labelled images as another camera might have taken them: objects farther away and colours changed, or nearer.

    python benchmarks/farther.py --data DATA --list splits/val.txt --out FOLDER
    python benchmarks/farther.py --data DATA --list splits/val.txt --out FOLDER --nearer
    semanticgan evaluate MODEL --data FOLDER --list images

Where a model's settings must not be chosen on the images of other sources, this shows which are sturdier.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from semanticgan.data import transforms
from semanticgan.data.coding import decide_labels
from semanticgan.data.dataset import read_image, read_mask
from semanticgan.data.sources import find_root, list_images, mask_path
from semanticgan.data.zoom_out import zoom_out
from semanticgan.errors import UserError
from semanticgan.labels import IGNORE_INDEX

NEAR = 1.3  # side of what is seen from nearer, in roots of the object's area
SIDE = 192  # of what is written, in pixels: an object three times smaller must still be one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--list", required=True, help="labelled images: a text file or a folder")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--colours", type=float, default=1.5, help="strength of the change of colours; training has 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nearer", action="store_true", help="instead, the square round each object, in its own colours")
    given = parser.parse_args()
    try:
        images = write(given.data, given.list, given.out, given.colours, given.seed, given.nearer)
        print(f"{images} images in {given.out}")
    except UserError as error:
        sys.exit(f"farther: {error}")


def write(data: Path, spec: str, out: Path, colours: float, seed: int, nearer: bool = False) -> int:
    """Write the changed images and masks below `out`; the number of images. Raises UserError.

    Images whose object touches the frame cannot be moved away: they change in colour alone.
    """
    if out.exists():
        raise UserError(f"--out {out}: exists; name a new folder")
    root = find_root(data)
    names = list_images(root, spec)
    labels, _ = decide_labels(root, [mask_path(root / name) for name in names])
    random = torch.Generator().manual_seed(seed)
    for kind in ("images", "masks"):
        (out / kind).mkdir(parents=True)
    for n, name in enumerate(names):
        img = read_image(root / name, 3)
        label = read_mask(mask_path(root / name), labels, (img.shape[1], img.shape[0]))
        file = f"{n:05d}-{Path(name).stem}.png"
        if nearer:
            rows, columns = square_round(label)
            Image.fromarray(img[rows, columns]).save(out / "images" / file)
            Image.fromarray(label[rows, columns]).save(out / "masks" / file)
            continue
        square = transforms.to_float(torch.from_numpy(transforms.fit_image(img, SIDE, "squash"))[None])
        known = torch.from_numpy(transforms.fit_label(label, SIDE, "squash", labels.num_classes))[None].long()
        far, far_label = zoom_out(square, known, random, 1.0)
        far = transforms.recolour(far, random, colours)
        Image.fromarray(transforms.to_u8(far)[0].numpy()).save(out / "images" / file)
        Image.fromarray(far_label[0].numpy().astype(np.uint8)).save(out / "masks" / file)
    if (root / "classes.json").exists():
        shutil.copyfile(root / "classes.json", out / "classes.json")
    return len(names)


def square_round(label: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the square of NEAR roots of the objects' area round their middle; the whole of an empty mask."""
    ys, xs = ((label != 0) & (label != IGNORE_INDEX)).nonzero()
    side = min(*label.shape, max(24, round(NEAR * len(ys) ** 0.5))) if len(ys) else max(label.shape)
    places = []
    for at, extent in ((ys, label.shape[0]), (xs, label.shape[1])):
        start = int(np.clip(at.mean() - side / 2, 0, max(0, extent - side))) if len(at) else 0
        places.append(slice(start, start + side))
    return places[0], places[1]


if __name__ == "__main__":
    main()
