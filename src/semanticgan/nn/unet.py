"""The ordinary way: a U-Net from image to label map in one pass."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semanticgan.nn.backbone import FROZEN, LEAST_SIDE, EfficientNetLite0


class UNet(nn.Module):
    """Encoder and decoder with skip connections (U-Net, arXiv 1505.04597); group norm (arXiv 1803.08494), padded convolutions.

    img [N, C, H, W] in -1..1 -> seg_logits [N, K, H, W], float32 also under autocast. H and W are multiples of
    2^(len(widths) - 1), else ValueError.
    """

    def __init__(
        self,
        in_channels: int,  # 1 grey, 3 colour
        num_classes: int,  # K, background included
        widths: tuple[int, ...] = (32, 64, 96, 128),  # channels by level, full resolution first
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        inputs = (in_channels, *widths[:-1])
        self.down = nn.ModuleList(_block(i, w) for i, w in zip(inputs, widths, strict=True))
        coarse_to_fine = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(_block(coarse + fine, fine) for coarse, fine in coarse_to_fine)
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, img: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        multiple = 2 ** (len(self.widths) - 1)
        if img.shape[-2] % multiple or img.shape[-1] % multiple:
            raise ValueError(f"img: got {img.shape[-2]} x {img.shape[-1]}, expected multiples of {multiple}")
        skips: list[Tensor] = []
        x = img
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], 1))
        logits = self.head(x)
        return logits if logits.dtype == torch.float64 else logits.float()


class PretrainedUNet(nn.Module):
    """A U-Net whose way down is EfficientNet-lite0 (U-Net, arXiv 1505.04597; 1905.11946) on images enlarged to 128 px.

    Beside the trunk's map of the image's own side there is a block on the image itself, since no layer of the trunk has seen
    its pixels apart. img [N, C, R, R] in -1..1 -> seg_logits [N, K, R, R], float32 also under autocast. Raises ValueError
    where the trunk has no map for the last of the levels, and for images of another side.
    """

    def __init__(
        self,
        in_channels: int,  # 1 grey, 3 colour
        num_classes: int,  # K, background included
        widths: tuple[int, ...],  # channels by level, full resolution first; two or more
        resolution: int,
    ) -> None:
        super().__init__()
        self.widths, self.resolution = tuple(widths), resolution
        self.trunk = EfficientNetLite0(FROZEN)
        self.scale = max(1, LEAST_SIDE // resolution)
        side = resolution * self.scale
        channels = {side >> (k + 1): c for k, c in enumerate(self.trunk.channels)}
        self.sides = [resolution >> k for k in range(len(widths))]
        if len(widths) < 2 or self.sides[-1] not in channels:
            raise ValueError(f"widths: got {len(widths)} levels, the last of {self.sides[-1]} px, of which the trunk has no map")
        skips = [channels.get(s, 0) for s in self.sides]
        skips[0] += widths[0]
        self.first = _block(in_channels, widths[0])
        self.last = nn.Conv2d(skips[-1], widths[-1], 1)
        self.up = nn.ModuleList(_block(widths[k + 1] + skips[k], widths[k]) for k in reversed(range(len(widths) - 1)))
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, img: Float[Tensor, "n c r r"]) -> Float[Tensor, "n k r r"]:
        if img.shape[-1] != self.resolution or img.shape[-2] != self.resolution:
            raise ValueError(f"img: got {img.shape[-2]} x {img.shape[-1]}, expected {self.resolution} x {self.resolution}")
        large = img if self.scale == 1 else F.interpolate(img, scale_factor=float(self.scale), mode="bilinear")
        maps = {m.shape[-1]: [m] for m in self.trunk(large)}
        x = self.last(maps[self.sides[-1]][0])
        maps[self.resolution] = [*maps.get(self.resolution, []), self.first(img)]
        for block, side in zip(self.up, reversed(self.sides[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), *maps.get(side, [])], 1))
        logits = self.head(x)
        return logits if logits.dtype == torch.float64 else logits.float()


def build_unet(trunk: str, in_channels: int, num_classes: int, widths: tuple[int, ...], resolution: int) -> UNet | PretrainedUNet:
    """With fresh weights: a plain one for the trunk "none", else one on a pretrained trunk whose weights are still 0."""
    if trunk == "none":
        return UNet(in_channels, num_classes, widths)
    return PretrainedUNet(in_channels, num_classes, widths, resolution)


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with group norm and ReLU; groups of at least four channels, at most eight groups."""
    groups = max(g for g in (1, 2, 4, 8) if (out_channels % g == 0 and out_channels >= 4 * g) or g == 1)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.GroupNorm(groups, out_channels),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.GroupNorm(groups, out_channels),
        nn.ReLU(),
    )
