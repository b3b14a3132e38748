"""The plain design computes the same numbers as ours from the same weights."""

import copy

import plain
import pytest
import torch

from semanticgan.inversion import invert
from semanticgan.labels import LabelSpec
from semanticgan.nn import ops
from semanticgan.nn.discriminators import ImageDiscriminator, MultiScaleDiscriminator
from semanticgan.nn.generator import Generator
from semanticgan.nn.perceptual import LPIPS
from semanticgan.training.encoder import EncoderTrainer, new_encoder_state
from semanticgan.training.gan import new_gan_state

EXACT = {"atol": 1e-10, "rtol": 1e-8}  # float64, sums of a few hundred terms of size 1 through some layers
WIDTHS = {4: 12, 8: 12, 16: 8}
LABELS = LabelSpec(names=("background", "cell", "nucleus", "yeast"), palette=((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def both(net):
    """Ours on its fast path, and the plain one with the same weights; biases and noise strengths are no longer 0."""
    for name, parameter in net.named_parameters():
        if name.endswith(("noise_strength", "bias")):
            parameter.data += 0.3 * torch.randn_like(parameter)
    net = net.double().eval()
    return copy.deepcopy(net).to(memory_format=torch.channels_last), plain.make_plain(net)


@pytest.mark.parametrize("up", [False, True])
def test_grouped_convolution_is_a_filter_per_sample(up):
    x, weight, style = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 4, 5, 5), (6, 4, 3, 3), (3, 4)))
    kernel = ops.binomial_kernel(4.0).double() if up else None
    ours = ops.modulated_conv2d(x, weight, style, up_kernel=kernel) * ops.demodulation(weight, style)[:, :, None, None]
    torch.testing.assert_close(plain.modulated_conv2d(x, weight, style, True, kernel), ours, **EXACT)


def test_generator():
    ours, theirs = both(Generator(16, 4, 3, 10, 12, 2, WIDTHS))
    ws = torch.randn(2, ours.num_ws, 12, dtype=torch.float64, requires_grad=True)
    noise = [m.double() for m in ours.noise_maps(2)]
    outs = [torch.cat(G.synthesis(ws, noise), 1) for G in (ours, theirs)]
    torch.testing.assert_close(*outs, **EXACT)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), ws)[0] for out in outs), **EXACT)


@pytest.mark.parametrize("kind", ["D_img", "D_seg"])
def test_discriminators_and_their_gradients(kind):
    ours, theirs = both(ImageDiscriminator(16, 3, WIDTHS) if kind == "D_img" else MultiScaleDiscriminator(5, 4, 2, 2))
    inputs = [torch.randn(4, c, 16, 16, dtype=torch.float64, requires_grad=True) for c in ((3,) if kind == "D_img" else (3, 2))]
    outs = [D(*inputs) if kind == "D_img" else torch.cat([scale[-1].flatten() for scale in D(*inputs)]) for D in (ours, theirs)]
    torch.testing.assert_close(*outs, **EXACT)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), inputs) for out in outs), **EXACT)


def test_every_changed_layer_keeps_its_weights_and_their_names():
    net = Generator(16, 4, 3, 10, 12, 2, WIDTHS)
    names = list(net.state_dict())
    assert list(plain.make_plain(net).state_dict()) == names
    changed = {type(module) for module in net.modules()} & set(plain.PLAIN.values())
    assert changed == {plain.PlainStyledConv, plain.PlainSynthesisBlock}


def test_inversion_finds_what_ours_finds(small_config):
    config = small_config("data.resolution=32", "networks.widths={4: 16, 8: 16, 16: 16, 32: 16}", "run.precision=fp32")
    G = new_gan_state(config, 4, 3, "cpu").G_ema
    img, ws0, lpips = torch.rand(1, 3, 32, 32) * 2 - 1, torch.randn(1, G.num_ws, G.w_dim), LPIPS()
    found = invert(G, lpips, img, ws0, config.inversion, 2, None, precision="fp32")
    theirs = plain.invert(plain.make_plain(copy.deepcopy(G)), plain.make_plain(lpips), img, ws0, config.inversion, 2, None)
    assert found.steps_used.tolist() == [2]  # ours returns the best step: here the last
    # Adam's first steps hang on the gradients' signs, and the least of those are rounding errors
    assert (found.ws - theirs).abs().mean() < 0.02 * (found.ws - ws0).abs().mean()


def test_a_step_of_everything(small_config, small_data):
    config = small_config("run.precision=fp32")
    gan = plain.PlainGan(config, LABELS, small_data[0], new_gan_state(config, 4, 3, "cpu"))
    gan.state.augment_p = 0.5
    before = {name: copy.deepcopy(gan.state.members[name].state_dict()) for name in ("G", "D_img", "D_seg", "G_ema")}
    reals = gan.draw(0)
    for update in (gan.update_d_img, gan.r1_img, gan.update_d_seg, gan.r1_seg, gan.update_g):
        update(reals)
    gan.path_length()
    gan.update_averages()
    for name, weights in before.items():
        after = gan.state.members[name].state_dict()
        assert all(value.isfinite().all() for value in after.values())
        assert any(not torch.equal(value, after[key]) for key, value in weights.items()), name


def test_encoder_step_has_our_losses(small_config, small_data):
    """Float32 sums of some thousand terms in another order."""
    config, losses = small_config("data.resolution=16", "run.precision=fp32"), []
    for design in ("ours", "plain"):
        G = new_gan_state(config, 4, 3, "cpu").G_ema
        state = new_encoder_state(config, G, 3, "cpu")
        make = plain.plain_encoder_trainer if design == "plain" else lambda *parts: EncoderTrainer(*parts, "cpu")
        losses.append(make(config, LABELS, small_data[0], G, LPIPS(), state).update(0, 0.5)["loss"])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0.0)


def test_segmentation_is_ours_image_by_image(small_config):
    config = small_config("run.precision=fp32", "networks.encoder_features=true")
    G = new_gan_state(config, 4, 3, "cpu").G_ema
    E = new_encoder_state(config, G, 3, "cpu").E_ema
    torch.nn.init.normal_(E.features.conv1.weight, std=0.02)
    img = torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        ws, features = E(img)
        ours = G.synthesis(ws, "none", features)[1].softmax(1)
    theirs = torch.cat(plain.segment(plain.make_plain(G), plain.make_plain(E), img))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)


def test_vgg_without_its_weights_has_random_ones(monkeypatch, tmp_path):
    monkeypatch.setenv("SEMANTICGAN_CACHE", str(tmp_path))
    assert plain.vgg_weights() == "random"
    a = torch.rand(1, 3, 32, 32) * 2 - 1
    assert 0 < float(plain.vgg_lpips()(a, -a)) < float("inf")
    assert not list(tmp_path.iterdir())
