"""Other textures on the same shapes: harder changes than any camera makes, so that a network must go by shape."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from semanticgan.data.transforms import send

KERNEL = 5  # pixels, the largest random convolution


def retexture(img: Float[Tensor, "n c r r"], generator: torch.Generator, probability: float) -> Float[Tensor, "n c r r"]:
    """Each image with `probability` in another texture: half of these by `mix_amplitude`, half by `random_convolution`."""
    draws = torch.rand(len(img), 2, generator=generator)
    happens, half = draws[:, 0] < probability, draws[:, 1] < 0.5
    out = img.clone()
    for change, chosen in ((mix_amplitude, happens & half), (random_convolution, happens & ~half)):
        index = send(chosen.nonzero()[:, 0], img.device)
        out[index] = change(img, generator)[index]
    return out


def mix_amplitude(img: Float[Tensor, "n c r r"], generator: torch.Generator) -> Float[Tensor, "n c r r"]:
    """Phases of each image's Fourier transform with amplitudes on the way to another image's (arXiv 2105.11120).

    How far on the way is drawn, 0..1. The other images are those of the batch, a drawn number of places on.
    """
    n = len(img)
    way = send(torch.rand(n, 1, 1, 1, generator=generator), img.device)
    places = int(torch.randint(1, max(2, n), (), generator=generator))
    spectrum = torch.fft.rfft2(img.float())
    amplitude = spectrum.abs()
    mixed = torch.polar(amplitude.lerp(amplitude.roll(places, 0), way), spectrum.angle())
    return torch.fft.irfft2(mixed, s=img.shape[-2:]).to(img.dtype)


def random_convolution(img: Float[Tensor, "n c r r"], generator: torch.Generator) -> Float[Tensor, "n c r r"]:
    """Each image on the way to its convolution with normal weights, 1, 3 or 5 pixels wide (RandConv, arXiv 2007.13003).

    How far on the way is drawn, 0..1. The convolved image gets the mean and the deviation of the image itself.
    """
    n, channels, side, _ = img.shape
    way, width, weight = (
        torch.rand(n, 1, 1, 1, generator=generator),
        torch.randint(KERNEL // 2 + 1, (n, 1, 1), generator=generator),  # pixels on each side of the middle
        torch.randn(n, channels * channels, KERNEL, KERNEL, generator=generator),
    )
    offset = (torch.arange(KERNEL) - KERNEL // 2).abs()
    inside = torch.maximum(offset[:, None], offset) <= width
    weight = send((weight * inside[:, None]).reshape(n * channels, channels, KERNEL, KERNEL), img.device)
    stacked = F.pad(img.float().reshape(1, n * channels, side, side), [KERNEL // 2] * 4, mode="reflect")
    out = F.conv2d(stacked, weight, groups=n).reshape(n, channels, side, side)
    deviation, mean = torch.std_mean(out, (1, 2, 3), keepdim=True)
    wanted, middle = torch.std_mean(img.float(), (1, 2, 3), keepdim=True)
    out = (out - mean) / (deviation + 1e-6) * wanted + middle
    return img.lerp(out.to(img.dtype), send(way, img.device))
