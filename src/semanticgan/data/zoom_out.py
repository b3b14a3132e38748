"""Objects seen from farther away: the frame shrinks, and a smooth continuation of its background surrounds it. Or from nearer."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from semanticgan.data.transforms import send
from semanticgan.labels import IGNORE_INDEX

FARTHEST = 3.0  # the frame shrinks to a third of its side at most
NEAREST = 0.5  # share of the side of the smallest piece that is enlarged to the whole
CUT = 0.03  # share of the frame's edge that objects may cover: one that is cut off would end in a straight line
FEATHER = 0.12  # share of half the side over which the frame fades into what surrounds it
CELLS = 6  # the background is the mean colour of so many by so many cells


def zoom_out(
    img: Float[Tensor, "n c r r"],
    label: Int[Tensor, "n r r"],
    generator: torch.Generator,
    probability: float,
    part: tuple[int, int] = (0, 1),  # as in `transforms.move`
) -> tuple[Float[Tensor, "n c r r"], Int[Tensor, "n r r"]]:
    """Some of the images, and their class maps, at 1 to 1/3 of their size somewhere in the square; class 0 round them.

    Round images with an ignored edge nothing is known either. Images whose objects touch the edge of the frame stay as they
    are, and so do all others with 1 - `probability`.
    """
    n, side, (first, every) = label.shape[0], label.shape[-1], part
    draws = send(torch.rand(n * every, 4, generator=generator)[first::every], img.device)
    edge = torch.cat([label[:, 0], label[:, -1], label[:, :, 0], label[:, :, -1]], 1)
    happens = (draws[:, 0] < probability) & (_is_object(edge).float().mean(1) <= CUT)
    factor, grid = _window(draws, happens, FARTHEST, side, img.dtype)  # the whole frame stays in view
    wide = (factor - 1)[:, None, None, None] / (FARTHEST - 1)  # 0..1: averages over as many pixels as become one
    soft = img.lerp(F.avg_pool2d(img, 3, 1, 1, count_include_pad=False), wide)
    inside = ((1 - grid.abs().amax(-1)) / FEATHER).clamp(0, 1)[:, None]
    seen, round_it = (
        F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        for x in (soft, background(img, label))
    )
    outside = ((edge == IGNORE_INDEX).float().mean(1) > CUT)[:, None, None] * float(IGNORE_INDEX)
    far = F.grid_sample((label - outside)[:, None].to(img.dtype), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    far = far[:, 0] + outside
    chosen = happens[:, None, None]
    out = torch.where(chosen[:, None], round_it.lerp(seen, inside), img)
    return out, torch.where(chosen, far.to(label.dtype), label)


def zoom_in(
    img: Float[Tensor, "n c r r"],
    label: Int[Tensor, "n r r"],
    generator: torch.Generator,
    probability: float,
    part: tuple[int, int] = (0, 1),  # as in `transforms.move`
) -> tuple[Float[Tensor, "n c r r"], Int[Tensor, "n r r"]]:
    """Some of the images, and their class maps, as a square piece of 1 to 1/2 of their side, enlarged; the others as they are."""
    n, side, (first, every) = label.shape[0], label.shape[-1], part
    draws = send(torch.rand(n * every, 4, generator=generator)[first::every], img.device)
    happens = draws[:, 0] < probability
    _, grid = _window(draws, happens, NEAREST, side, img.dtype)
    near = F.grid_sample(img, grid, mode="bilinear", padding_mode="border", align_corners=False)
    near_label = F.grid_sample(label[:, None].to(img.dtype), grid, mode="nearest", padding_mode="border", align_corners=False)
    chosen = happens[:, None, None]
    return torch.where(chosen[:, None], near, img), torch.where(chosen, near_label[:, 0].to(label.dtype), label)


def _window(
    draws: Float[Tensor, "n 4"], happens: Bool[Tensor, " n"], extreme: float, side: int, dtype: torch.dtype
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n side side 2"]]:
    """How much wider than the frame, up to `extreme`, each image's view is, and its sampling grid; one holds the other whole."""
    factor = torch.where(happens, extreme ** draws[:, 1], 1.0).to(dtype)
    shift = (2 * draws[:, 2:].to(dtype) - 1) * (factor - 1).abs()[:, None]
    theta = torch.cat([torch.eye(2, dtype=dtype, device=factor.device) * factor[:, None, None], shift[:, :, None]], 2)
    return factor, F.affine_grid(theta, [len(factor), 1, side, side], align_corners=False)


def _is_object(label: Int[Tensor, "*shape"]) -> Tensor:
    return (label != 0) & (label != IGNORE_INDEX)


def background(img: Float[Tensor, "n c r r"], label: Int[Tensor, "n r r"]) -> Float[Tensor, "n c r r"]:
    """The images without their objects and details: coarse means over the pixels of class 0, bilinear in between.

    A cell with hardly any such pixel takes the mean of the others; where there is none at all, of the whole image.
    """
    objects = _is_object(label).to(img.dtype)[:, None]
    weight = 1 - F.max_pool2d(objects, 5, 1, 2) + 1e-3  # away from the objects' soft edges
    share = F.adaptive_avg_pool2d(weight, CELLS)
    sums = F.adaptive_avg_pool2d(img * weight, CELLS)
    mean = sums.sum((2, 3), keepdim=True) / share.sum((2, 3), keepdim=True)
    cells = torch.where(share > 0.25, sums / share, mean)
    return F.interpolate(cells, size=img.shape[-2:], mode="bilinear", align_corners=False)
