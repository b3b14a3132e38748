"""The ordinary way: a U-Net from image to label map in one pass."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


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
        self.in_channels, self.num_classes, self.widths = in_channels, num_classes, tuple(widths)
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
