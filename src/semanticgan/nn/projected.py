"""D_img of a Projected GAN (arXiv 2111.01007): small discriminators on fixed, randomly mixed features of a pretrained network."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semanticgan.nn.backbone import LEAST_SIDE, EfficientNetLite0
from semanticgan.nn.layers import SpectralConv2d

WIDTHS = (64, 64, 128, 256)  # channels of the mixed maps, of which the largest comes first
END = 4  # side of a head's map of logits


class Features(nn.Module):
    """EfficientNet-lite0's maps of strides 4 to 32, mixed by fixed random convolutions (section 3.2). They never learn.

    Each map's channels are mixed by a 1x1 convolution, and from the smallest map upwards each is enlarged, added to the next
    and mixed by a 3x3 one. A discriminator could else look at the few channels that G is worst at, and at no others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = EfficientNetLite0().load_imagenet()
        self.channels = nn.ModuleList(
            nn.Conv2d(c, w, 1, bias=False) for c, w in zip(self.trunk.channels[1:], WIDTHS, strict=True)
        )
        down = zip(WIDTHS[1:], WIDTHS[:-1], strict=True)
        self.scales = nn.ModuleList(nn.Conv2d(coarse, fine, 3, padding=1, bias=False) for coarse, fine in down)
        for conv in (*self.channels, *self.scales):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
        self.requires_grad_(False)

    def forward(self, img: Float[Tensor, "n c r r"]) -> list[Float[Tensor, "n _ _ _"]]:
        """-> maps of 1/4, 1/8, 1/16 and 1/32 of the side, which is at least 128 px: smaller images are enlarged to it."""
        if img.shape[-1] < LEAST_SIDE:
            img = F.interpolate(img, size=(LEAST_SIDE, LEAST_SIDE), mode="bilinear", align_corners=False)
        mixed = [mix(x) for mix, x in zip(self.channels, self.trunk(img)[1:], strict=True)]
        for k in reversed(range(len(self.scales))):
            coarse = self.scales[k](F.interpolate(mixed[k + 1], scale_factor=2.0, mode="nearest"))
            mixed[k] = mixed[k] + coarse
        return mixed


class Head(nn.Module):
    """Convolutions with spectral norm, group norm and leaky ReLU that halve a map down to 4x4 patch logits."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        while side > END:
            width = min(2 * channels, 128)
            self.blocks.append(nn.Sequential(SpectralConv2d(channels, width, 4, 2, 1), nn.GroupNorm(8, width), nn.LeakyReLU(0.2)))
            channels, side = width, side // 2
        self.mix = nn.Sequential(SpectralConv2d(channels, 128, 3, 1, 1), nn.GroupNorm(8, 128), nn.LeakyReLU(0.2))
        self.out = SpectralConv2d(128, 1, 3, 1, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 4 4"]:
        for block in self.blocks:
            x = block(x)
        return self.out(self.mix(x))


class ProjectedDiscriminator(nn.Module):
    """Image -> patch_logits, a map [N, 1, 4, 4] for each scale of the features, the finest first."""

    def __init__(self, resolution: int) -> None:  # side of the images in pixels, a power of two
        super().__init__()
        self.features = Features()
        side = max(resolution, LEAST_SIDE)
        self.heads = nn.ModuleList(Head(width, side >> (k + 2)) for k, width in enumerate(WIDTHS))

    def requires_grad_(self, requires_grad: bool = True) -> "ProjectedDiscriminator":
        """Of the heads: the features never learn."""
        self.heads.requires_grad_(requires_grad)
        return self

    def forward(self, img: Float[Tensor, "n c r r"]) -> list[Float[Tensor, "n 1 4 4"]]:
        return [head(x) for head, x in zip(self.heads, self.features(img), strict=True)]
