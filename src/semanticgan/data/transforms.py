"""Geometry and colour: how images become squares and come back, their symmetries, and paired random changes."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image
from torch import Tensor

from semanticgan.labels import IGNORE_INDEX

# ---------------------------------------------------------------- any size <-> the generator's square


def fitted_box(height: int, width: int, resolution: int, fit: str) -> tuple[int, int, int, int]:
    """Where an image lies in the square: top, left, height, width. The whole square for "squash"."""
    if fit == "squash":
        return 0, 0, resolution, resolution
    scale = resolution / max(height, width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    return (resolution - h) // 2, (resolution - w) // 2, h, w


def fit_image(img: UInt8[np.ndarray, "h w c"], resolution: int, fit: str) -> UInt8[np.ndarray, "r r c"]:
    """The image as a square, antialiased; "pad" keeps the aspect and repeats the edge pixels round it."""
    top, left, h, w = fitted_box(img.shape[0], img.shape[1], resolution, fit)
    if img.shape[:2] != (h, w):
        planes = Image.fromarray(img[:, :, 0] if img.shape[2] == 1 else img)
        out = np.asarray(planes.resize((w, h), Image.Resampling.LANCZOS, reducing_gap=3.0)).reshape(h, w, -1)
    else:
        out = img
    margins = ((top, resolution - top - h), (left, resolution - left - w), (0, 0))
    return np.ascontiguousarray(np.pad(out, margins, mode="edge"))


def fit_label(label: UInt8[np.ndarray, "h w"], resolution: int, fit: str, num_classes: int) -> UInt8[np.ndarray, "r r"]:
    """The class map as a square: each pixel takes the class that covers most of it; the padding is ignored (255)."""
    top, left, h, w = fitted_box(label.shape[0], label.shape[1], resolution, fit)
    out = np.full((resolution, resolution), IGNORE_INDEX, np.uint8)
    if label.shape == (h, w):
        out[top : top + h, left : left + w] = label
        return out
    classes = [k for k in (*range(num_classes), IGNORE_INDEX) if (label == k).any()]
    covered = [Image.fromarray((label == k).astype(np.float32)).resize((w, h), Image.Resampling.BOX) for k in classes]
    out[top : top + h, left : left + w] = np.array(classes, np.uint8)[
        np.argmax(np.stack([np.asarray(c) for c in covered]), axis=0)
    ]
    return out


def unfit(maps: Float[Tensor, "n k r r"], size: tuple[int, int], fit: str) -> Float[Tensor, "n k h w"]:
    """Maps of the square at an image's own size (H, W): padding cut off, bilinear in between."""
    top, left, h, w = fitted_box(size[0], size[1], maps.shape[-1], fit)
    return F.interpolate(maps[:, :, top : top + h, left : left + w], size=size, mode="bilinear", align_corners=False)


def to_float(img_u8: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n c h w"]:
    """Bytes, channels last -> -1..1, channels first in shape and last in memory."""
    return img_u8.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_u8(img: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n h w c"]:
    """-1..1 -> bytes, rounded and clipped, channels last."""
    return img.detach().float().mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def onehot_from_label(label: Int[Tensor, "n h w"], num_classes: int) -> Float[Tensor, "n k h w"]:
    """Class map -> -1/+1 in K channels; ignored pixels are 0 in every channel."""
    onehot = (label[:, None] == torch.arange(num_classes, device=label.device)[:, None, None]).float() * 2 - 1
    return onehot * (label != IGNORE_INDEX)[:, None]


# ---------------------------------------------------------------- the eight flips and turns


def view_indices(symmetry: str) -> tuple[int, ...]:
    """Which of the eight flips and turns leave images of this kind plausible."""
    return {"none": (0,), "flip": (0, 1), "all": tuple(range(8))}[symmetry]


def view(x: Shaped[Tensor, "*n h w"], index: int) -> Shaped[Tensor, "*n h2 w2"]:
    """Symmetry `index` of 0..7: left-right flip if odd, then index // 2 quarter turns."""
    x = x.flip(-1) if index % 2 else x
    return torch.rot90(x, index // 2, (-2, -1)) if index > 1 else x


def unview(x: Shaped[Tensor, "*n h w"], index: int) -> Shaped[Tensor, "*n h2 w2"]:
    """The inverse of `view`."""
    x = torch.rot90(x, -(index // 2), (-2, -1)) if index > 1 else x
    return x.flip(-1) if index % 2 else x


def with_contrast(img: Float[Tensor, "n c h w"], factor: float) -> Float[Tensor, "n c h w"]:
    """Each image's differences from its mean colour times `factor`, cut to -1..1."""
    mean = torch.stack([one.mean((1, 2), keepdim=True) for one in img])  # one by one: batch mates change no bit
    return (mean + factor * (img - mean)).clamp_(-1, 1)


def random_views(symmetry: str, n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """One allowed symmetry for each of n images."""
    allowed = torch.tensor(view_indices(symmetry))
    return allowed[torch.randint(len(allowed), (n,), generator=generator)]


def apply_views(x: Shaped[Tensor, "n *c r r"], indices: Int[Tensor, " n"]) -> Shaped[Tensor, "n *c r r"]:
    """Each image in its own symmetry. `indices` on the CPU, so that a GPU need not be waited for."""
    out = torch.empty_like(x)
    for index in indices.unique().tolist():
        chosen = send((indices == index).nonzero()[:, 0], x.device)
        out[chosen] = view(x[chosen], index)
    return out


# ---------------------------------------------------------------- random, paired, differentiable changes


def send(x: Tensor, device: torch.device) -> Tensor:
    """From the CPU to the device, from pinned memory, so that neither waits for the other."""
    return x.contiguous().pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def random_affine(
    n: int,
    generator: torch.Generator,
    *,
    rotation: float = 0.0,  # standard deviation, radians
    scale: float = 0.0,  # standard deviation of log2 of the size
    shift: float = 0.0,  # standard deviation, share of the side
    probability: float = 1.0,  # of each of the three, image by image
) -> Float[Tensor, "n 2 3"]:
    """Matrices from output to input coordinates, as `torch.nn.functional.affine_grid` takes them."""
    draws = torch.randn(n, 4, generator=generator)
    happens = torch.rand(n, 3, generator=generator) < probability
    angle = draws[:, 0] * rotation * happens[:, 0]
    zoom = torch.exp2(-draws[:, 1] * scale * happens[:, 1])
    move = draws[:, 2:] * 2 * shift * happens[:, 2:]
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    return torch.stack([torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)], 1)


def warp(x: Float[Tensor, "n c r r"], theta: Float[Tensor, "n 2 3"], padding: str = "reflection") -> Float[Tensor, "n c r r"]:
    """Bilinear affine warp; `padding` is "reflection" or "zeros". Differentiable once (not twice: grid_sample is not)."""
    grid = F.affine_grid(send(theta.to(x.dtype), x.device), list(x.shape), align_corners=False)
    out = F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return out.contiguous(memory_format=torch.channels_last) if x.shape[1] > 1 else out


def random_colour(
    n: int,
    channels: int,
    generator: torch.Generator,
    *,
    brightness: float = 0.2,  # standard deviation, image range is 2
    contrast: float = 0.4,  # standard deviation of log2
    saturation: float = 0.6,  # standard deviation of log2
    hue: float = 0.2,  # standard deviation, radians round the grey axis
    probability: float = 1.0,
) -> tuple[Float[Tensor, "n c c"], Float[Tensor, "n c"]]:
    """Affine changes of colour (ADA, arXiv 2006.06676, appendix B): matrix and offset for each image."""
    draws = torch.randn(n, 4, generator=generator)
    draws = draws * (torch.rand(n, 4, generator=generator) < probability)
    gain = torch.exp2(draws[:, 1] * contrast)[:, None, None]
    offset = (draws[:, 0] * brightness)[:, None].expand(n, channels)
    if channels == 1:
        return gain, offset.contiguous()
    luma = torch.full((3, 3), 1 / 3)
    turn = _turn_about_grey(draws[:, 3] * hue)
    vivid = torch.exp2(draws[:, 2] * saturation)[:, None, None]
    matrix = gain * (luma + vivid * (torch.eye(3) - luma)) @ turn
    return matrix, offset.contiguous()


def _turn_about_grey(angle: Float[Tensor, " n"]) -> Float[Tensor, "n 3 3"]:
    """Rotation matrices round (1, 1, 1) (Rodrigues' formula)."""
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    return cos * torch.eye(3) + sin * cross + (1 - cos) / 3


def apply_colour(
    img: Float[Tensor, "n c h w"], change: tuple[Float[Tensor, "n c c"], Float[Tensor, "n c"]]
) -> Float[Tensor, "n c h w"]:
    """Every pixel's colour times the image's matrix plus its offset; not clipped."""
    matrix, offset = (send(m.to(img.dtype), img.device) for m in change)
    return torch.einsum("ndc,nchw->ndhw", matrix, img) + offset[:, :, None, None]


def move(
    x: Float[Tensor, "n c r r"],
    generator: torch.Generator,
    symmetry: str,
    strength: float,
    part: tuple[int, int] = (0, 1),  # (k, m): x is every m-th image, from the k-th on, of the batch that is drawn for
) -> Float[Tensor, "n c r r"]:
    """A symmetry, then rotation, scale and shift, one draw an image for all its channels: stack images and label maps.

    What comes in from outside the frame mirrors the inside. Differentiable.
    """
    first, every = part
    n = x.shape[0] * every
    views = random_views(symmetry, n, generator)
    turn = 0.2 if symmetry == "all" else 0.1
    theta = random_affine(n, generator, rotation=turn * strength, scale=0.25 * strength, shift=0.06 * strength, probability=0.8)
    return warp(apply_views(x, views[first::every]), theta[first::every])


def recolour(
    img: Float[Tensor, "n c h w"], generator: torch.Generator, strength: float, part: tuple[int, int] = (0, 1)
) -> Float[Tensor, "n c h w"]:
    """Brightness, contrast, saturation and hue of each image, moderately; `part` as in `move`. Differentiable."""
    first, every = part
    n, channels = img.shape[0] * every, img.shape[1]
    matrix, offset = random_colour(n, channels, generator, brightness=0.2 * strength, contrast=0.3 * strength,
                                   saturation=0.4 * strength, hue=0.15 * strength, probability=0.8)  # fmt: skip
    return apply_colour(img, (matrix[first::every], offset[first::every]))
