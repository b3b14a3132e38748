"""Layers with equalised learning rate (arXiv 1710.10196, section 4.1): the weight used is the stored one / sqrt(fan in)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from semanticgan.nn import ops

Net = TypeVar("Net", bound=nn.Module)


def placed(net: Net, device: torch.device | str) -> Net:
    """The network itself, now on the device and in the layout that convolutions are fastest in."""
    return net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


class EqualLinear(nn.Module):
    """Linear layer; always in the parameters' own precision, since its inputs are a vector per sample."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,  # learning rate relative to the other layers, for weight and bias
        activate: bool = False,  # leaky ReLU times sqrt 2
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier
        self.activate = activate

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weight.dtype)
            y = torch.addmm(self.bias, x, self.weight.t(), beta=self.bias_gain, alpha=self.weight_gain)
            return ops.leaky_relu(y) * ops.LEAKY_GAIN if self.activate else y


class EqualConv2d(nn.Module):
    """Convolution, optionally with bias and leaky ReLU; `gain` multiplies what comes out."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        activate: bool = True,  # adds a bias and the leaky ReLU
        gain: float = ops.LEAKY_GAIN,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if activate else None
        self.stride, self.padding = stride, padding
        self.gain, self.weight_gain = gain, gain / math.sqrt(in_channels * kernel**2)

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h2 w2"]:
        # leaky_relu(y) * gain == leaky_relu(y * gain): the gain costs nothing on the weight
        bias = None if self.bias is None else self.bias * self.gain
        y = functional.conv2d(x, self.weight * self.weight_gain, bias, self.stride, self.padding)
        return y if self.bias is None else ops.leaky_relu_(y)


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU (arXiv 1912.04958, figure 2c); `up` doubles the size."""

    up_kernel: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, up: bool = False) -> None:
        super().__init__()
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.epsilon = 1e-8 * in_channels * 9  # demodulation cancels the weight's gain, 1 / sqrt(9 in_channels), but for this
        self.register_buffer("up_kernel", ops.binomial_kernel(4.0) if up else None, persistent=False)

    def forward(
        self,
        x: Float[Tensor, "n i h w"],
        w: Float[Tensor, "n w_dim"],
        noise: Float[Tensor, "n 1 h2 w2"] | str,  # a map, "random" or "none"
    ) -> Float[Tensor, "n o h2 w2"]:
        style = self.affine(w)
        y = ops.modulated_conv2d(x, self.weight, style, up_kernel=self.up_kernel)
        # sqrt 2 of the activation is folded into the three terms below: full-size passes are what costs here
        demod = ops.demodulation(self.weight, style, self.epsilon)
        demod = (demod * ops.LEAKY_GAIN).to(y.dtype)[:, :, None, None]
        y = torch.addcmul((self.bias * ops.LEAKY_GAIN).to(y.dtype)[None, :, None, None], y, demod)
        if isinstance(noise, Tensor) or noise == "random":
            if not isinstance(noise, Tensor):
                noise = torch.randn(y.shape[0], 1, *y.shape[2:], dtype=y.dtype, device=y.device)
            y = y + (noise * (self.noise_strength * ops.LEAKY_GAIN)).to(y.dtype)
        return ops.leaky_relu_(y)


class ToOutput(nn.Module):
    """Head of one resolution: modulated 1x1 convolution without demodulation, and bias."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels)


def project(heads: tuple[ToOutput, ...], x: Float[Tensor, "n c h w"], w: Float[Tensor, "n w_dim"]) -> Float[Tensor, "n o h w"]:
    """Outputs of several heads on the same features, one after the other along the channels, in the parameters' precision."""
    weight = torch.cat([head.weight * head.weight_gain for head in heads])
    style = torch.cat([head.affine(w)[:, None].expand(-1, len(head.weight), -1) for head in heads], 1)
    bias = torch.cat([head.bias for head in heads])
    return ops.modulated_projection(x, weight, style).to(bias.dtype) + bias[:, None, None]


class MinibatchStd(nn.Module):
    """Appends the mean standard deviation over groups of images as one more channel (arXiv 1710.10196, section 3).

    Groups have `group` images, or the largest divisor of the batch below it; image i shares one with i + N / group.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c+1 h w"]:
        n, _, h, w = x.shape
        size = next(size for size in range(min(self.group, n), 0, -1) if n % size == 0)
        groups = x.reshape(size, n // size, -1)  # [size, N / size, C H W]
        variance = (groups - groups.mean(0)).square().mean(0)  # the framework's own is slow along a short first axis
        std = (variance + 1e-8).sqrt().mean(1)
        return torch.cat([x, std.repeat(size)[:, None, None, None].expand(n, 1, h, w)], 1)


class SpectralConv2d(nn.Module):
    """Convolution without bias whose weight is divided by its largest singular value sigma (arXiv 1802.05957).

    In training mode each look at sigma does one step of power iteration on the buffers; in evaluation mode they stay.
    """

    u: Tensor
    v: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel, bias=False)
        self.weight = conv.weight
        self.stride, self.padding = stride, padding
        self.register_buffer("u", functional.normalize(torch.randn(out_channels), dim=0))
        self.register_buffer("v", functional.normalize(torch.randn(in_channels * kernel**2), dim=0))

    def sigma(self) -> Float[Tensor, ""]:
        """The largest singular value as far as the power iteration has come."""
        _, i, k, _ = self.weight.shape
        with torch.autocast(self.weight.device.type, enabled=False):
            # rows in the order [kh, kw, i], a view where the weight is channels-last; v has [i, kh, kw]
            matrix = self.weight.permute(0, 2, 3, 1).flatten(1)
            u = self.u.clone()  # the next look changes the buffer before this one's backward pass reads it
            if self.training:
                right = functional.normalize(matrix.detach().t().mv(u), dim=0)
                self.v.copy_(right.view(k, k, i).permute(2, 0, 1).flatten())
            else:
                right = self.v.view(i, k, k).permute(1, 2, 0).flatten()
            image = matrix.mv(right)
            if self.training:
                u = functional.normalize(image.detach(), dim=0)
                self.u.copy_(u)
            return u.dot(image)

    def undivided(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h2 w2"]:
        """The convolution without the division."""
        return functional.conv2d(x, self.weight, None, self.stride, self.padding)

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h2 w2"]:
        return functional.conv2d(x, self.weight / self.sigma(), None, self.stride, self.padding)


def misfit(found: Mapping[str, Sequence[int]], wanted: Mapping[str, Tensor]) -> str:
    """The first of the shapes found that is not that of the tensor wanted under its name, with both; "" where all fit."""
    for key in sorted(found.keys() | wanted.keys()):
        got = tuple(found[key]) if key in found else "nothing"
        expected = tuple(wanted[key].shape) if key in wanted else "no such tensor"
        if got != expected:
            return f"{key}: got {got}, expected {expected}"
    return ""


class Undrawn(TorchFunctionMode):
    """Leaves initial weights as they are allotted: on the meta device, drawing them loads torch's compiler, for 1.7 s."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if function in (nn.init.normal_, Tensor.normal_, Tensor.div):
            return args[0] if args else given["tensor"]
        return (torch.empty if function is torch.randn else function)(*args, **given)
