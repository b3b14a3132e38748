"""The two discriminators of SemanticGAN (arXiv 2104.05833, section 3.1): of images, and of images with label maps."""

import math
from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from semanticgan.nn import ops
from semanticgan.nn.layers import EqualConv2d, EqualLinear, MinibatchStd, SpectralConv2d


class ResidualBlock(nn.Module):
    """Halves the size: (conv(blur(conv(x))) + skip(x)) / sqrt 2 (arXiv 1912.04958, figure 7c)."""

    kernel: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = EqualConv2d(in_channels, in_channels, 3, padding=1)
        # the division by sqrt 2 is folded into both branches: here it cancels the activation's gain
        self.conv1 = EqualConv2d(in_channels, out_channels, 3, stride=2, gain=1.0)
        self.skip = EqualConv2d(in_channels, out_channels, 1, activate=False, gain=math.sqrt(0.5))
        self.register_buffer("kernel", ops.binomial_kernel(), persistent=False)

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h2 w2"]:
        y = self.conv1(ops.blur(self.conv0(x), self.kernel, padding=2))
        return y + self.skip(ops.blur(x, self.kernel, padding=1, stride=2))


class ImageDiscriminator(nn.Module):
    """Residual discriminator of StyleGAN2: image -> one logit a sample."""

    def __init__(
        self,
        resolution: int,  # side in pixels, a power of two
        img_channels: int,
        widths: dict[int, int],  # channels by side in pixels
        mbstd_group: int = 4,  # images a group of the minibatch standard deviation
    ) -> None:
        super().__init__()
        sides = [4 << k for k in range(resolution.bit_length() - 2)][::-1]
        self.from_img = EqualConv2d(img_channels, widths[resolution], 1)
        self.blocks = nn.Sequential(*(ResidualBlock(widths[side], widths[side // 2]) for side in sides[:-1]))
        self.mbstd = MinibatchStd(mbstd_group)
        self.conv = EqualConv2d(widths[4] + 1, widths[4], 3, padding=1)
        self.linear = EqualLinear(widths[4] * 16, widths[4], activate=True)
        self.out = EqualLinear(widths[4], 1)

    def forward(self, img: Float[Tensor, "n c r r"]) -> Float[Tensor, " n"]:
        x = self.blocks(self.from_img(img))
        with torch.autocast(x.device.type, enabled=False):
            x = self.conv(self.mbstd(x.to(self.conv.weight.dtype)))
            return self.out(self.linear(x.flatten(1))).squeeze(1)


def verdict(logits: Tensor | list[Tensor]) -> Float[Tensor, " n"]:
    """A number an image, higher for one that looks real: its logit, or the mean of its patch logits and then of the scales."""
    return logits if isinstance(logits, Tensor) else torch.stack([patches.float().mean((1, 2, 3)) for patches in logits]).mean(0)


class PatchDiscriminator(nn.Module):
    """One scale: 4x4 convolutions, spectral and instance norm, leaky ReLU; the last map holds a logit a patch."""

    def __init__(self, in_channels: int, filters: int, layers: int) -> None:
        super().__init__()
        widths = [min(filters << k, 512) for k in range(layers + 1)]
        self.first = nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=2)
        self.middle = nn.ModuleList(
            SpectralConv2d(widths[k], widths[k + 1], 4, stride=2 if k + 1 < layers else 1, padding=2) for k in range(layers)
        )
        self.last = nn.Conv2d(widths[-1], 1, 4, padding=2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        features = [ops.leaky_relu_(self.first(x))]
        for conv in cast(Iterable[SpectralConv2d], self.middle):
            features.append(ops.leaky_relu(ops.instance_norm(conv.undivided(features[-1]), conv.sigma())))
        weight, bias = self.last.parameters()
        return [*features, ops.conv2d_to_one(features[-1], weight, bias, padding=2)]


class MultiScaleDiscriminator(nn.Module):
    """D_seg: patch discriminators of image and label map on a pyramid (arXiv 1711.11585, section 3.2)."""

    def __init__(
        self,
        in_channels: int,  # image channels plus classes
        filters: int = 32,  # channels of the first layer; doubled in each further one up to 512
        scales: int = 2,  # full resolution, half of it, ...
        layers: int = 3,  # convolutions with spectral norm in each scale
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(in_channels, filters, layers) for _ in range(scales))

    def forward(self, img: Float[Tensor, "n c r r"], onehot: Float[Tensor, "n k r r"]) -> list[list[Float[Tensor, "n _ _ _"]]]:
        """-> per scale, full resolution first: every layer's features, the last of them patch_logits [N, 1, h, w]."""
        x = torch.cat([img, onehot], 1)
        features = []
        for k, scale in enumerate(self.scales):
            x = x if k == 0 else functional.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            features.append(scale(x))
        return features
