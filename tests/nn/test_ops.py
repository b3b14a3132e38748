"""Every operation against its plain definition, and its first and second derivative in float64."""

import pytest
import torch
from plain import upfirdn
from torch.nn import functional

from semanticgan.nn import ops

EXACT = {"atol": 1e-12, "rtol": 1e-10}  # float64, sums of a few hundred terms of size 1


def randn(*shape, grad=True):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def check_derivatives(f, *inputs):
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


def kernel(gain=1.0):
    return ops.binomial_kernel(gain).double()


def modulated_by_sample(x, weight, style, up_kernel):
    """A filter per sample, demodulated (arXiv 1912.04958, eq. 1 and 3), one sample after the other: the definition."""
    outputs = []
    for sample, scale in zip(x, style, strict=True):
        w = weight * scale[None, :, None, None]
        w = w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up_kernel is None:
            outputs.append(functional.conv2d(sample[None], w, padding=1))
        else:
            spread = functional.conv_transpose2d(sample[None], w.transpose(0, 1), stride=2)
            outputs.append(upfirdn(spread, up_kernel, 1, (1, 1)))
    return torch.cat(outputs)


def test_kernel_is_the_binomial_one_with_the_gain_as_its_sum():
    assert ops.binomial_kernel().sum() == 1
    assert (ops.binomial_kernel(4.0)[1] * 16).tolist() == [3, 9, 9, 3]
    # exact in bfloat16, so the precision of training changes no tap
    assert torch.equal(ops.binomial_kernel(4.0).bfloat16().float(), ops.binomial_kernel(4.0))


@pytest.mark.parametrize("padding", [1, 2])
def test_blur_is_the_plain_filter(padding):
    x = randn(2, 3, 6, 8)
    torch.testing.assert_close(ops.blur(x, kernel(), padding), upfirdn(x, kernel(), 1, (padding, padding)), **EXACT)


def test_strided_blur_keeps_every_second_pixel():
    x = randn(2, 3, 8, 6)
    torch.testing.assert_close(ops.blur(x, kernel(), 1, 2), ops.blur(x, kernel(), 1)[:, :, ::2, ::2], **EXACT)


@pytest.mark.parametrize(("side", "padding", "stride"), [(5, 1, 1), (5, 2, 1), (6, 1, 2), (5, 2, 2)])
def test_blur_derivatives(side, padding, stride):
    check_derivatives(lambda x: ops.blur(x, kernel(), padding, stride), randn(2, 2, side, side))


def test_upsample_is_the_plain_filter_at_the_border_too():
    x = randn(2, 3, 4, 6)
    torch.testing.assert_close(ops.upsample(x), upfirdn(x, kernel(4.0), 2, (2, 1)), **EXACT)
    check_derivatives(ops.upsample, randn(1, 2, 3, 3))


def test_leaky_relu():
    torch.testing.assert_close(ops.leaky_relu(torch.tensor([2.0, -2.0])), torch.tensor([2.0, -0.4]))
    check_derivatives(ops.leaky_relu, randn(2, 3, 2, 2))


@pytest.mark.parametrize("up", [False, True])
def test_modulated_convolution_is_a_filter_per_sample(up):
    x, weight, style = randn(3, 4, 5, 5), randn(6, 4, 3, 3), randn(3, 4)
    up_kernel = kernel(4.0) if up else None

    def fast(x, weight, style):
        return ops.modulated_conv2d(x, weight, style, up_kernel=up_kernel) * ops.demodulation(weight, style)[:, :, None, None]

    expected = modulated_by_sample(x, weight, style, up_kernel)
    torch.testing.assert_close(fast(x, weight, style), expected, **EXACT)
    check_derivatives(fast, randn(2, 2, 3, 3), randn(2, 2, 3, 3), randn(2, 2))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_modulated_projection_is_a_filter_per_sample_and_output(layout):
    x, weight, style = randn(3, 4, 5, 6), randn(2, 4), randn(3, 2, 4)
    expected = torch.stack([torch.einsum("oc,chw->ohw", weight * s, sample) for sample, s in zip(x, style, strict=True)])
    torch.testing.assert_close(ops.modulated_projection(x.contiguous(memory_format=layout), weight, style), expected, **EXACT)
    check_derivatives(ops.modulated_projection, randn(2, 2, 2, 2), randn(2, 2), randn(2, 2, 2))


# ---------------------------------------------------------------- depthwise convolution


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # the second has PyTorch's gradient where the map is large
@pytest.mark.parametrize(
    ("kernel", "stride", "before", "after", "side"),
    [
        (3, 1, 1, 1, 6),
        (5, 1, 2, 2, 4),
        (3, 2, 0, 1, 6),
        (3, 2, 0, 1, 7),
        (5, 2, 1, 2, 8),
        (5, 2, 1, 2, 4),
        (3, 2, 1, 1, 6),
        (3, 2, 0, 0, 7),
    ],
)
def test_depthwise_equals_grouped_convolution_and_its_gradients(kernel, stride, before, after, side, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, side, side, dtype=dtype, requires_grad=True)
    weight = torch.randn(3, 1, kernel, kernel, dtype=dtype, requires_grad=True)
    bias = torch.randn(3, dtype=dtype, requires_grad=True)
    got = ops.depthwise_conv2d(x, weight, bias, stride, before, after)
    wanted = functional.conv2d(functional.pad(x, (before, after) * 2), weight, bias, stride, groups=3)
    torch.testing.assert_close(got, wanted)
    up = torch.randn_like(wanted)
    for mine, theirs in zip(*(torch.autograd.grad(y, (x, weight, bias), up) for y in (got, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs)  # but for the order of sums


def test_instance_norm_is_pytorchs():
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ops.instance_norm(x), functional.instance_norm(x), **EXACT)
    small = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    for divisor in (None, torch.tensor(0.01, dtype=torch.float64, requires_grad=True)):
        assert torch.autograd.gradcheck(ops.instance_norm, (small, divisor))
        assert torch.autograd.gradgradcheck(ops.instance_norm, (small, divisor))


@pytest.mark.parametrize("divisor", [300.0, 0.02, -2.0])
def test_instance_norm_divides_without_dividing(divisor):
    x, divisor = torch.randn(2, 3, 5, 5, dtype=torch.float64), torch.tensor(divisor, dtype=torch.float64)
    torch.testing.assert_close(ops.instance_norm(x, divisor), functional.instance_norm(x / divisor), **EXACT)


def test_instance_norm_in_bfloat16_is_as_exact_as_its_input():
    x = torch.randn(2, 3, 16, 16).bfloat16()
    # a bfloat16 has 8 bits: values up to 4 are rounded by up to 1/64
    torch.testing.assert_close(ops.instance_norm(x).float(), functional.instance_norm(x.float()), atol=2e-2, rtol=0)


@pytest.mark.parametrize(("kernel", "padding"), [(4, 2), (3, 1), (4, 0), (1, 0)])
def test_convolution_to_one_channel(kernel, padding):
    x, weight, bias = randn(2, 3, 6, 5), randn(1, 3, kernel, kernel), randn(1)
    got = ops.conv2d_to_one(x, weight, bias, padding)
    torch.testing.assert_close(got, functional.conv2d(x, weight, bias, padding=padding), **EXACT)
    small = (randn(1, 2, 4, 4), randn(1, 2, 3, 3), randn(1))
    assert torch.autograd.gradgradcheck(lambda *inputs: ops.conv2d_to_one(*inputs, 1).square(), small)
