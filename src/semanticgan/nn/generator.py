"""The generator of SemanticGAN (arXiv 2104.05833): StyleGAN2 with skip connections and a second output, the label map."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semanticgan.nn import ops
from semanticgan.nn.layers import EqualLinear, StyledConv, ToOutput, project


class MappingNetwork(nn.Module):
    """z -> w (arXiv 1812.04948, section 2), at a hundredth of the learning rate, and the running mean of w."""

    w_avg: Tensor

    def __init__(self, z_dim: int, w_dim: int, num_layers: int, num_ws: int) -> None:
        super().__init__()
        self.num_ws = num_ws
        sizes = [z_dim] + [w_dim] * num_layers
        self.layers = nn.ModuleList(EqualLinear(i, o, lr_multiplier=0.01, activate=True) for i, o in itertools.pairwise(sizes))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def w(self, z: Float[Tensor, "n z_dim"]) -> Float[Tensor, "n w_dim"]:
        """One w per z; z is scaled to unit mean square first."""
        x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            x = layer(x)
        return x

    @torch.no_grad()
    def update_w_avg(self, w: Float[Tensor, "n w_dim"], decay: float = 0.998) -> None:
        """Moves the running mean towards this batch's."""
        self.w_avg.lerp_(w.detach().mean(0).to(self.w_avg.dtype), 1 - decay)

    def forward(self, z: Float[Tensor, "n z_dim"], truncation_psi: float = 1.0) -> Float[Tensor, "n num_ws w_dim"]:
        """`truncation_psi` below 1 pulls every w towards the mean: fewer odd samples, less variety."""
        w = self.w(z)
        if truncation_psi != 1:
            w = self.w_avg.lerp(w, truncation_psi)
        return w[:, None].expand(-1, self.num_ws, -1)


class SynthesisBlock(nn.Module):
    """One resolution: two styled convolutions (one at 4 px) and the heads to image and label map.

    The first convolution shares its row of ws with the heads of the resolution below.
    """

    def __init__(self, in_channels: int, channels: int, w_dim: int, img_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv0 = StyledConv(in_channels, channels, w_dim, up=True) if in_channels else None
        self.conv1 = StyledConv(channels, channels, w_dim)
        self.to_img = ToOutput(channels, img_channels, w_dim)
        self.to_seg = ToOutput(channels, num_classes, w_dim)

    def forward(
        self,
        x: Float[Tensor, "n i h w"],
        skip: Float[Tensor, "n o h w"] | None,
        ws: Float[Tensor, "n rows w_dim"],
        noise: list[Tensor] | list[str],
    ) -> tuple[Float[Tensor, "n c h2 w2"], Float[Tensor, "n o h2 w2"]]:
        rows = iter(ws.unbind(1))
        maps = iter(noise)
        if self.conv0 is not None:
            x = self.conv0(x, next(rows), next(maps))
        x = self.conv1(x, next(rows), next(maps))
        out = project((self.to_img, self.to_seg), x, next(rows))
        return x, out if skip is None else ops.upsample(skip) + out


class SynthesisNetwork(nn.Module):
    """ws -> image and label map, summed over the resolutions in float32."""

    def __init__(self, resolution: int, num_classes: int, img_channels: int, w_dim: int, widths: dict[int, int]) -> None:
        super().__init__()
        self.img_channels, self.num_classes = img_channels, num_classes
        self.sides = [4 << k for k in range(resolution.bit_length() - 2)]
        self.const = nn.Parameter(torch.randn(widths[4], 4, 4))
        below = [0] + [widths[side] for side in self.sides[:-1]]
        self.blocks = nn.ModuleList(
            SynthesisBlock(i, widths[side], w_dim, img_channels, num_classes) for i, side in zip(below, self.sides, strict=True)
        )
        self.num_ws = 2 * len(self.sides)
        self.noise_sides = [self.sides[0]] + [side for side in self.sides[1:] for _ in range(2)]

    def forward(
        self,
        ws: Float[Tensor, "n num_ws w_dim"],
        noise: list[Float[Tensor, "n 1 _ _"]] | str = "random",  # a map a convolution, "random" or "none"
        features: Float[Tensor, "n f h w"] | None = None,  # added to the feature maps of this side
    ) -> tuple[Float[Tensor, "n c r r"], Float[Tensor, "n k r r"]]:
        """-> img, -1..1 where the data are so but not clipped; seg_logits, linear. Draws from torch's generator if "random"."""
        _, out = self.run(ws, noise, features=features)
        img, seg_logits = out.split([self.img_channels, self.num_classes], 1)
        return img, seg_logits

    def run(
        self,
        ws: Float[Tensor, "n num_ws w_dim"],
        noise: list[Float[Tensor, "n 1 _ _"]] | str,
        start: int = 0,
        stop: int | None = None,
        x: Float[Tensor, "n i h w"] | None = None,  # what the blocks before `start` gave
        out: Float[Tensor, "n o h w"] | None = None,
        features: Float[Tensor, "n f h3 w3"] | None = None,
    ) -> tuple[Float[Tensor, "n i2 h2 w2"], Float[Tensor, "n o h2 w2"]]:
        """Blocks start..stop-1 alone: features, and image and label map summed so far. Block k takes rows 2k-1 to 2k+1."""
        maps = [noise] * len(self.noise_sides) if isinstance(noise, str) else noise
        if x is None:
            x = self.const.expand(ws.shape[0], -1, -1, -1).contiguous(memory_format=torch.channels_last)
        for k in range(start, len(self.blocks) if stop is None else stop):
            first = max(0, 2 * k - 1)
            x, out = self.blocks[k](x, out, ws[:, first : 2 * k + 2], maps[first : 2 * k + 1])
            if features is not None and features.shape[-1] == x.shape[-1]:
                x = x + features.to(x.dtype)
        assert out is not None  # there is a block
        return x, out


class Generator(nn.Module):
    """z -> image and label map of one scene (arXiv 2104.05833, section 3.1)."""

    def __init__(
        self,
        resolution: int,  # side in pixels, a power of two
        num_classes: int,  # background included
        img_channels: int,  # 1 or 3
        z_dim: int,
        w_dim: int,
        mapping_layers: int,
        widths: dict[int, int],  # channels by side in pixels
    ) -> None:
        super().__init__()
        self.resolution, self.num_classes, self.img_channels = resolution, num_classes, img_channels
        self.z_dim, self.w_dim = z_dim, w_dim
        self.synthesis = SynthesisNetwork(resolution, num_classes, img_channels, w_dim, widths)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, w_dim, mapping_layers, self.num_ws)

    def noise_maps(self, n: int, generator: torch.Generator | None = None) -> list[Float[Tensor, "n 1 _ _"]]:
        """Unit normal noise, one float32 map a convolution, drawn on the CPU so that a seed means the same everywhere."""
        device = self.synthesis.const.device
        return [torch.randn(n, 1, side, side, generator=generator).to(device) for side in self.synthesis.noise_sides]

    def forward(
        self,
        z: Float[Tensor, "n z_dim"],
        truncation_psi: float = 1.0,
        noise: list[Float[Tensor, "n 1 _ _"]] | str = "random",
    ) -> tuple[Float[Tensor, "n c r r"], Float[Tensor, "n k r r"]]:
        return self.synthesis(self.mapping(z, truncation_psi), noise)
