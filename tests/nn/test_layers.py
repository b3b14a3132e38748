import pytest
import torch
from torch.nn import functional

from semanticgan.nn import ops
from semanticgan.nn.layers import EqualConv2d, EqualLinear, MinibatchStd, SpectralConv2d, StyledConv

EXACT = {"atol": 1e-12, "rtol": 1e-10}  # float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def bias_act(x, bias):
    """Bias, leaky ReLU, sqrt 2, one after the other: the definition."""
    return functional.leaky_relu(x + bias[:, None, None], 0.2) * 2**0.5


def test_equalised_layers_start_with_unit_variance():
    x = torch.randn(4000, 64)
    # 4,000 x 128 values: the variance of a unit normal is known to a per cent, the draw of the weights to some more
    assert EqualLinear(64, 128, lr_multiplier=0.01)(x).var().item() == pytest.approx(1, abs=0.08)
    assert EqualConv2d(64, 128, 1, gain=1.0, activate=False)(x[:, :, None, None]).var().item() == pytest.approx(1, abs=0.08)


def test_learning_rate_multiplier_scales_the_step_but_not_the_start():
    plain, slow = EqualLinear(8, 8, bias_init=1.0), EqualLinear(8, 8, bias_init=1.0, lr_multiplier=0.01)
    slow.weight.data = plain.weight.data / 0.01
    x = torch.randn(3, 8)
    torch.testing.assert_close(slow(x), plain(x))
    for layer in (plain, slow):
        layer(x).sum().backward()
    torch.testing.assert_close(slow.weight.grad, plain.weight.grad * 0.01)


def test_convolution_gain_goes_through_the_activation():
    conv = EqualConv2d(3, 5, 3, padding=1).double()
    conv.bias.data.normal_()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    plain = functional.conv2d(x, conv.weight / 27**0.5, padding=1)
    torch.testing.assert_close(conv(x), bias_act(plain, conv.bias), **EXACT)


def test_styled_convolution_is_demodulate_noise_bias_activate_in_that_order():
    layer = StyledConv(4, 5, 6, up=True).double()
    for parameter in (layer.noise_strength, layer.bias):
        parameter.data.normal_()
    x, w = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    noise = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    style, weight = layer.affine(w), layer.weight / 36**0.5
    y = ops.modulated_conv2d(x, weight, style, up_kernel=layer.up_kernel)
    y = y * ops.demodulation(weight, style)[:, :, None, None] + noise * layer.noise_strength
    torch.testing.assert_close(layer(x, w, noise), bias_act(y, layer.bias), **EXACT)


def test_noise_none_equals_noise_zero_and_random_differs():
    layer = StyledConv(4, 5, 6)
    layer.noise_strength.data.fill_(1)
    x, w = torch.randn(2, 4, 3, 3), torch.randn(2, 6)
    assert torch.equal(layer(x, w, "none"), layer(x, w, torch.zeros(2, 1, 3, 3)))
    assert not torch.equal(layer(x, w, "random"), layer(x, w, "none"))


@pytest.mark.parametrize(("n", "group", "size"), [(8, 4, 4), (6, 4, 3), (5, 4, 1), (2, 4, 2), (7, 7, 7)])
def test_minibatch_groups_are_the_largest_divisor(n, group, size):
    x = torch.randn(n, 3, 2, 2)
    y = MinibatchStd(group)(x)
    assert torch.equal(y[:, :3], x)
    assert y.shape == (n, 4, 2, 2)
    for first in range(n // size):
        members = x[first :: n // size]
        expected = (members.var(0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[first :: n // size, 3], expected.expand(size, 2, 2))


def test_spectral_norm_finds_the_largest_singular_value():
    conv = SpectralConv2d(4, 6, 4, stride=1, padding=2)
    x = torch.randn(1, 4, 5, 5)
    for _ in range(200):
        conv(x)
    largest = torch.linalg.svdvals(conv.weight.flatten(1))[0]
    torch.testing.assert_close(conv.eval()(x), functional.conv2d(x, conv.weight / largest, padding=2), atol=1e-4, rtol=1e-4)


def test_spectral_norm_moves_its_vectors_in_training_mode_alone_and_resumes_to_the_bit():
    conv, x = SpectralConv2d(4, 6, 4, stride=2, padding=2), torch.randn(1, 4, 8, 8)
    conv(x)
    saved = {key: value.clone() for key, value in conv.state_dict().items()}
    assert set(saved) == {"weight", "u", "v"}
    conv.eval()(x)
    assert all(torch.equal(saved[key], value) for key, value in conv.state_dict().items())
    resumed = SpectralConv2d(4, 6, 4, stride=2, padding=2)
    resumed.load_state_dict(saved)
    assert torch.equal(conv.train()(x), resumed(x))
    assert not torch.equal(saved["u"], conv.u)


def test_spectral_norm_gradient_of_two_forwards_before_one_backward():
    conv = SpectralConv2d(2, 3, 4, stride=1, padding=2).double().eval()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)

    def f(weight):
        return torch.func.functional_call(conv, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(f, conv.weight.detach().requires_grad_())
    assert torch.autograd.gradgradcheck(f, conv.weight.detach().requires_grad_())
    conv.train()
    (conv(x.float().double()).sum() + conv(x).sum()).backward()  # the second forward changes the buffers of the first
    assert conv.weight.grad.isfinite().all()
