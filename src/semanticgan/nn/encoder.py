"""The encoder E: image -> W+, one row for each layer of G, and an offset to G's feature maps."""

from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semanticgan.nn.backbone import FROZEN, LEAST_SIDE, EfficientNetLite0


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norm; the first may halve the side."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm0 = nn.GroupNorm(8, out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False) if (in_channels, stride) != (out_channels, 1) else None
        self.stride = stride
        nn.init.zeros_(self.norm1.weight)  # each block starts as its skip connection

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        y = F.relu(self.norm0(self.conv0(x)), inplace=True)
        y = self.norm1(self.conv1(y))
        if self.skip is not None:
            x = self.skip(F.avg_pool2d(x, 2) if self.stride == 2 else x)
        return F.relu(x + y, inplace=True)


class ResidualTrunk(nn.Module):
    """A stage for each of `widths`, each halving the side -> the stages' maps."""

    def __init__(self, img_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = widths
        self.stem = nn.Conv2d(img_channels, 32, 3, 1, 1)
        ins = (32, *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(ResidualBlock(i, o, 2), ResidualBlock(o, o, 1)) for i, o in zip(ins, widths, strict=True)
        )
        _start(self)

    def forward(self, img: Float[Tensor, "n c r r"]) -> list[Float[Tensor, "n _ _ _"]]:
        x = F.relu(self.stem(img))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _start(*modules: nn.Module) -> None:
    """He's initial weights: PyTorch's own shrink the signal at every layer."""
    for root in modules:
        for module in root.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class FeatureHead(nn.Module):
    """An offset to G's feature maps from a pyramid of the trunk's (Feature-Style Encoder, arXiv 2202.02183); 0 at first.

    ws say the same to every place, so they can only describe shapes that G has a word for; this says where things are.
    """

    def __init__(self, sides: list[int], channels: list[int], side: int, width: int) -> None:
        super().__init__()
        self.side, hidden = side, 64
        self.first = sum(s > 2 * side for s in sides)  # of the trunk's maps; larger ones would have to be shrunk too much
        self.lateral = nn.ModuleList(nn.Conv2d(c, hidden, 1) for c in channels[self.first :])
        self.conv0 = nn.Conv2d(hidden, hidden, 3, 1, 1)
        self.norm = nn.GroupNorm(8, hidden)
        self.conv1 = nn.Conv2d(hidden, width, 3, 1, 1)
        _start(self.lateral, self.conv0)
        for parameter in self.conv1.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: list[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n width side side"]:
        x = reduce(torch.add, (self.resized(lateral(m)) for lateral, m in zip(self.lateral, maps[self.first :], strict=True)))
        return self.conv1(F.relu(self.norm(self.conv0(F.relu(x)))))

    def resized(self, x: Tensor) -> Tensor:
        if x.shape[-1] > self.side:
            return F.avg_pool2d(x, x.shape[-1] // self.side)
        return F.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)


class Encoder(nn.Module):
    """A trunk whose last maps, with every stage's mean, become an offset from `w_avg` for each row.

    Where the paper's E has a feature pyramid with a head of its own for each row (211 M parameters), this one has about
    6 M at 64 px: place comes from the last maps, colour and texture from the stages' means. With `feature_width` all the
    maps also give an offset to G's feature maps of side resolution / `feature_stride`, for what W+ cannot express.
    """

    def __init__(
        self,
        resolution: int,  # side of the images in pixels
        img_channels: int,  # 1 or 3
        num_ws: int,  # rows of W+
        w_dim: int,
        widths: tuple[int, ...],  # channels of each stage of the residual trunk, multiples of 8
        trunk: Literal["residual", "efficientnet-lite0"] = "residual",
        feature_width: int = 0,  # channels of the feature maps of G that E adds to; 0: W+ alone
        feature_stride: int = 4,  # side of the images over that of these maps
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.num_ws, self.w_dim = num_ws, w_dim
        self.trunk: nn.Module
        if trunk == "residual":
            self.trunk, self.side = ResidualTrunk(img_channels, widths), resolution
            places = [(widths[-1], 64, 4)]
        else:  # made for larger images: at 128 px its last map has 4x4 pixels
            self.trunk, self.side = EfficientNetLite0(FROZEN), max(resolution, LEAST_SIDE)
            places = [(self.trunk.channels[-1], 64, 4), (self.trunk.channels[-2], 24, 8)]
        self.narrow = nn.ModuleList(nn.Conv2d(channels, few, 1) for channels, few, _ in places)
        self.sides = [side for _, _, side in places]
        features, hidden = sum(few * side**2 for _, few, side in places) + sum(self.trunk.channels), 512
        self.norm = nn.LayerNorm(features)
        self.mix = nn.Linear(features, hidden)
        self.mix2 = nn.Linear(hidden, hidden)
        self.rows = nn.Linear(hidden, num_ws * w_dim)
        _start(self.narrow, self.mix, self.mix2, self.rows)
        nn.init.normal_(self.rows.weight, std=0.3 / hidden**0.5)
        sides, side = [self.side >> (k + 1) for k in range(len(self.trunk.channels))], resolution // feature_stride
        self.features = FeatureHead(sides, list(self.trunk.channels), side, feature_width) if feature_width else None
        self.w_avg: Tensor
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, img: Float[Tensor, "n c r r"]) -> tuple[Tensor, ...]:
        """(ws,) or (ws, features), in float32, as `G.synthesis` takes them. Raises ValueError for images of another size."""
        if img.shape[2:] != (self.resolution, self.resolution):
            raise ValueError(f"E: got images of size {tuple(img.shape[2:])}, expected side {self.resolution}")
        if self.side != self.resolution:
            img = F.interpolate(img, size=(self.side, self.side), mode="bilinear", align_corners=False)
        maps = self.trunk(img)
        seen = [
            F.adaptive_avg_pool2d(narrow(x), side).flatten(1)
            for narrow, x, side in zip(self.narrow, reversed(maps), self.sides, strict=False)
        ]
        seen += [x.mean((2, 3)) for x in maps]
        h = F.leaky_relu(self.mix(self.norm(torch.cat(seen, 1))), 0.2)
        h = h + F.leaky_relu(self.mix2(h), 0.2)
        ws = self.w_avg + self.rows(h).float().unflatten(1, (self.num_ws, self.w_dim))
        return (ws,) if self.features is None else (ws, self.features(maps).float())
