"""Up-sampling, blur, activation and modulated convolution, each as a pure function that can be differentiated twice."""

import math
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

LEAKY_SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2)  # keeps the second moment of a unit normal through the leaky ReLU


def binomial_kernel(gain: float = 1.0) -> Float[Tensor, "4 4"]:
    """The [1,3,3,1] low-pass filter of StyleGAN2 (arXiv 1912.04958), as an outer product of sum `gain`."""
    taps = (1, 3, 3, 1)
    return torch.tensor([[gain / 64 * a * b for a in taps] for b in taps])


def _spread(x: Tensor, size: list[int], stride: int) -> Tensor:
    """Channels-last maps of another size: the pixels of x `stride` apart, zeros between and behind them."""
    shape = (*x.shape[:2], *size)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last).zero_()
    out[:, :, ::stride, ::stride] = x
    return out


class _Blur(torch.autograd.Function):
    """Depthwise filter whose gradient is the same filter again: PyTorch's own is up to a hundred times slower at stride 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, padding: int, stride: int) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.geometry = padding, stride, x.shape
        weight = kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4).contiguous()
        return functional.conv2d(x, weight, padding=padding, stride=stride, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (kernel,) = ctx.saved_tensors
        padding, stride, shape = ctx.geometry
        if stride > 1:  # zeros between the pixels, and below them where the last window left rows over
            size = [side - 3 + 2 * padding for side in shape[2:]]
            grad = _spread(grad, size, stride)
        return _Blur.apply(grad, kernel, 3 - padding, 1), None, None, None


def blur(x: Float[Tensor, "n c h w"], kernel: Float[Tensor, "4 4"], padding: int, stride: int = 1) -> Float[Tensor, "n c h2 w2"]:
    """Filter every channel with the same symmetric kernel, zeros outside; `stride` 2 keeps every second pixel."""
    return _Blur.apply(x, kernel, padding, stride)


class _DepthwiseConv(torch.autograd.Function):
    """Depthwise convolution with a sum for each tap as the filters' gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, before: int, after: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, before, after
        led = with_leading_zeros(weight, after - before).to(x.dtype)
        return functional.conv2d(x, led, bias.to(x.dtype), stride, after, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (stride, before, after), kernel = ctx.geometry, weight.shape[-1]
        rows, columns = (stride * (side - 1) + 1 for side in grad.shape[2:])  # what one tap sees of the padded map
        padded = functional.pad(x, (before, after) * 2) if after else x
        grad_x = grad_weight = None
        grad_bias = grad.sum((0, 2, 3), dtype=weight.dtype) if ctx.needs_input_grad[2] else None
        if ctx.needs_input_grad[1]:
            taps = []
            for top in range(kernel):
                for left in range(kernel):
                    seen = padded[:, :, top : top + rows : stride, left : left + columns : stride]
                    taps.append((seen * grad).sum((0, 2, 3), dtype=weight.dtype))
            grad_weight = torch.stack(taps, 1).view_as(weight)
        if ctx.needs_input_grad[0]:
            if stride > 1:
                size = [side - kernel + 1 for side in padded.shape[2:]]
                grad = _spread(grad, size, stride)
            turned = weight.to(grad.dtype).flip(2, 3).contiguous()
            whole = functional.conv2d(grad, turned, None, 1, kernel - 1 - before, groups=x.shape[1])
            grad_x = whole[:, :, : x.shape[2], : x.shape[3]]
        return grad_x, grad_weight, grad_bias, None, None, None


def with_leading_zeros(weight: Float[Tensor, "o i k k"], zeros: int) -> Float[Tensor, "o i k2 k2"]:
    """A filter that, where the zeros round the map are as many before as after it, sees fewer of them before.

    A few more products cost less than a copy of the map with other zeros round it.
    """
    for axis in (2, 3) if zeros else ():  # of a padded filter torch.onnx makes an invalid file
        weight = torch.cat([torch.zeros_like(weight.narrow(axis, 0, zeros)), weight], axis)
    return weight


def depthwise_conv2d(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "c 1 k k"], bias: Float[Tensor, " c"], stride: int, before: int, after: int
) -> Float[Tensor, "n c h2 w2"]:
    """A filter for each channel, in x's precision, with so many zeros before and after the map; can be differentiated once.

    PyTorch's own gradient is the quicker one in float32 on a processor, but where the filter sees more zeros than map.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu" and x.shape[-1] > weight.shape[-1]:
        led = with_leading_zeros(weight, after - before)
        return functional.conv2d(x, led, bias, stride, after, groups=x.shape[1])
    return _DepthwiseConv.apply(x, weight, bias, stride, before, after)


@cache
def _up_kernel(device: torch.device) -> Float[Tensor, "4 4"]:
    """Kept, since a GPU would be waited for at every copy."""
    return binomial_kernel(4.0).to(device)


class _Upsample(torch.autograd.Function):
    """Bilinear interpolation with the strided blur as its gradient: the framework's takes several times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ringed = functional.pad(x, (1, 1, 1, 1))
        return functional.interpolate(ringed, scale_factor=2, mode="bilinear", align_corners=False)[:, :, 2:-2, 2:-2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Blur.apply(grad, _up_kernel(grad.device).to(grad.dtype), 1, 2)


def upsample(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 2*h 2*w"]:
    """Double the size with the [1,3,3,1] filter, zeros outside.

    Those taps are bilinear interpolation except at the border, which a ring of zeros settles.
    """
    return _Upsample.apply(x)


def leaky_relu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Leaky ReLU of slope .2 without a gain: callers fold the sqrt 2 into what comes before it."""
    return functional.leaky_relu(x, LEAKY_SLOPE)


def conv2d_to_one(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "1 c k k"], bias: Float[Tensor, " 1"], padding: int
) -> Float[Tensor, "n 1 h2 w2"]:
    """Convolution to a single channel: one product gives what each pixel adds through every tap, then the taps are laid on
    top of each other in float32. Libraries' convolutions, made for many channels, take several times as long.
    """
    h, w, k = *x.shape[2:], weight.shape[-1]
    taps = functional.conv2d(x, weight[0].flip(1, 2).flatten(1).t()[:, :, None, None])  # [N, k k, H, W]
    grown = 2 * padding - k + 1
    taps = taps.flatten(2).to(bias.dtype)
    return functional.fold(taps, (h + grown, w + grown), k, padding=k - 1 - padding) + bias[:, None, None]


class _InstanceNorm(torch.autograd.Function):
    """A few plain passes each way; the framework's variance takes ten times as long over the sides of channels-last maps.

    The factor is an output too, so that the backward pass can be differentiated again from what the forward one kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        exact = x.float() if x.dtype == torch.bfloat16 else x
        centred = exact - exact.mean((2, 3), keepdim=True)
        # the norm of x / divisor: epsilon grows instead, and the sign goes along
        epsilon = 1e-5 * divisor.square()
        factor = (centred.square().mean((2, 3), keepdim=True) + epsilon).rsqrt() * divisor.sign()
        y = centred.mul_(factor).to(x.dtype)
        ctx.save_for_backward(y, factor, divisor)
        return y, factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_factor: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        y, factor, divisor = ctx.saved_tensors
        dtype, places = y.dtype, y[0, 0].numel()
        grad = torch.zeros_like(y) if grad is None else grad
        grad, y = grad.to(factor.dtype), y.to(factor.dtype)
        along = (grad * y).mean((2, 3), keepdim=True)
        if grad_factor is not None:
            along = along + grad_factor * factor / places
        grad_x = torch.addcmul(grad - grad.mean((2, 3), keepdim=True), y, along, value=-1) * factor
        grad_divisor = (factor.square() * along).sum() * divisor * (-1e-5 * places) if ctx.needs_input_grad[1] else None
        return grad_x.to(dtype), grad_divisor


def instance_norm(
    x: Float[Tensor, "n c h w"],
    divisor: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "n c h w"]:
    """Zero mean and unit variance over each sample's channel, statistics in at least float32 (arXiv 1607.08022).

    With a divisor, the norm of x / divisor: but for its sign it cancels except in epsilon, so nobody need divide.
    """
    if divisor is None:
        divisor = torch.ones((), dtype=torch.float32 if x.dtype == torch.bfloat16 else x.dtype, device=x.device)
    return _InstanceNorm.apply(x, divisor)[0]


def leaky_relu_(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same in place, for what nobody else needs: half the memory, and its gradient reads the sign off the result."""
    return functional.leaky_relu_(x, LEAKY_SLOPE)


def demodulation(weight: Float[Tensor, "o c kh kw"], style: Float[Tensor, "n c"], epsilon: float = 1e-8) -> Float[Tensor, "n o"]:
    """1 / norm of each sample's modulated filter (arXiv 1912.04958, eq. 3), in the style's own precision."""
    with torch.autocast(weight.device.type, enabled=False):
        return (style.square() @ weight.square().sum((2, 3)).t() + epsilon).rsqrt()


def modulated_conv2d(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "o c kh kw"],
    style: Float[Tensor, "n c"],
    *,
    up_kernel: Float[Tensor, "4 4"] | None = None,
) -> Float[Tensor, "n o h2 w2"]:
    """Convolution with filters scaled by a style per sample and input channel (arXiv 1912.04958, eq. 1).

    The activations are scaled instead of the filters, so that all samples share one convolution. The demodulation of
    eq. 3 is a factor per sample and output channel: multiply by `demodulation(weight, style)`. With `up_kernel` the size
    doubles: a transposed convolution of stride 2, then that blur.
    """
    x = x * style.to(x.dtype)[:, :, None, None]
    if up_kernel is None:
        return functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
    return blur(functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2), up_kernel, padding=1)


def modulated_projection(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "o c"], style: Float[Tensor, "n o c"]
) -> Float[Tensor, "n o h w"]:
    """1x1 modulated convolution without demodulation, a style per output channel, for a handful of outputs.

    Here the filters are so few that scaling them costs nothing, and scaling the activations would be the larger half.
    """
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(n, h * w, c)  # a view where x is channels-last
    filters = (weight * style).to(x.dtype)
    return torch.bmm(pixels, filters.transpose(1, 2)).reshape(n, h, w, -1).permute(0, 3, 1, 2)
