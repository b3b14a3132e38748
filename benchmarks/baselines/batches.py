"""What every baseline is shown: the same images in the same order, changed by the same draws of the same changes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from semanticgan.data.stream import Stream, generator
from semanticgan.data.transforms import move, recolour, to_float
from semanticgan.data.zoom_out import zoom_in, zoom_out
from semanticgan.training.supervised import change_pairs


@dataclass(frozen=True)
class Images:
    """A draw of labels and the unlabelled images, packed; the labelled ones are among the unlabelled."""

    labeled: UInt8[np.ndarray, "n r r c"]
    labels: UInt8[np.ndarray, "n r r"]  # 255: ignored
    unlabeled: UInt8[np.ndarray, "m r r c"]
    num_classes: int
    symmetry: str  # "none", "flip" or "all"


@dataclass(frozen=True)
class Changes:
    """How much images are changed in training, as in our own."""

    strength: float = 1.0  # of place, size and colour
    far: float = 0.0  # share of the images that are seen from farther away, labelled or not
    texture: float = 0.0  # share of the labelled images that get another texture
    near: float = 0.0  # share of the images of which an enlarged piece is seen, labelled or not


class Batches:
    """Endless batches, each a function of (images, seed, nimg): the semi-supervised methods see a supervised one's labels."""

    def __init__(self, images: Images, seed: int, count: int, changes: Changes) -> None:
        self.images, self.seed, self.count, self.changes = images, seed, count, changes
        self.labeled = Stream(len(images.labeled), seed, "labeled")
        self.unlabeled = Stream(len(images.unlabeled), seed, "unlabeled")

    def at(self, nimg: int) -> "Batch":
        return Batch(self, nimg)


class Batch:
    """`count` labelled and as many unlabelled images, from the nimg-th on; made when asked for."""

    def __init__(self, batches: Batches, nimg: int) -> None:
        self.batches, self.nimg = batches, nimg

    def random(self, name: str) -> torch.Generator:
        """The batch's own source of random numbers for a purpose."""
        return generator(self.batches.seed, name, self.nimg)

    @cached_property
    def labeled(self) -> tuple[Float[Tensor, "n c r r"], Int[Tensor, "n r r"]]:
        """Images and their label maps, changed together as in all of the package's training."""
        images, changes = self.batches.images, self.batches.changes
        chosen = self.batches.labeled.indices(self.nimg, self.batches.count)
        img, label = to_float(torch.from_numpy(images.labeled[chosen])), torch.from_numpy(images.labels[chosen]).long()
        random = self.random("labeled changes")
        return change_pairs(
            img, label, images.num_classes, random, images.symmetry, changes.strength, changes.far, changes.texture, changes.near
        )

    @cached_property
    def unlabeled(self) -> Float[Tensor, "n c r r"]:
        """Images moved, in their own colours. Without label maps, objects at the frame's edge come from farther away too."""
        images, changes, random = self.batches.images, self.batches.changes, self.random("unlabeled changes")
        chosen = self.batches.unlabeled.indices(self.nimg, self.batches.count)
        img = to_float(torch.from_numpy(images.unlabeled[chosen]))
        unknown = torch.zeros(len(img), *img.shape[2:], dtype=torch.long)
        img, unknown = zoom_out(img, unknown, random, changes.far)
        img, _ = zoom_in(img, unknown, random, changes.near)
        return move(img, random, images.symmetry, changes.strength)

    def recoloured(self, name: str, times: float = 1.0) -> Float[Tensor, "n c r r"]:
        """The unlabelled images in other colours, `times` as strongly as the labelled ones; each name has its own draw."""
        return recolour(self.unlabeled, self.random(name), times * self.batches.changes.strength)
