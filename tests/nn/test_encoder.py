import pytest
import torch

from semanticgan.config import build_config
from semanticgan.model import build_encoder, build_generator
from semanticgan.nn.encoder import Encoder


def build(resolution=16, channels=3, widths=(16, 24), seed=0, feature_width=0):
    torch.manual_seed(seed)
    return Encoder(resolution, channels, 2 * resolution.bit_length() - 4, 12, widths, feature_width=feature_width)


@pytest.mark.parametrize(
    ("resolution", "channels", "widths"),
    [(16, 3, (8, 8)), (32, 1, (16, 24, 32)), (64, 3, (8, 16, 24, 32)), (16, 1, (8, 8, 8, 8)), (128, 3, (8,))],
)
def test_a_row_for_each_layer_of_g(resolution, channels, widths):
    img = torch.randn(2, channels, resolution, resolution)
    (ws,) = build(resolution, channels, widths)(img)
    assert ws.shape == (2, 2 * resolution.bit_length() - 4, 12) and ws.dtype == torch.float32
    same, features = build(resolution, channels, widths, feature_width=10)(img)
    assert features.shape == (2, 10, resolution // 4, resolution // 4) and features.dtype == torch.float32
    assert not features.any() and torch.equal(same, ws)  # it starts in W+


@pytest.mark.parametrize("trunk", ["residual", "efficientnet-lite0"])
def test_features_say_where_things_are(trunk):
    """A change in one corner of the image moves the features there most."""
    torch.manual_seed(0)
    E = Encoder(64, 3, 10, 12, (16, 24, 32), trunk, feature_width=6)
    if trunk != "residual":
        E.trunk.load_imagenet()
    torch.nn.init.normal_(E.features.conv1.weight)
    img = torch.randn(1, 3, 64, 64) * 0.1
    other = img.clone()
    other[:, :, :16, 48:] += 1
    with torch.no_grad():
        change = (E(other)[1] - E(img)[1]).abs().sum(1)[0]
    assert change[:4, 12:].mean() > 2 * change[8:, :8].mean()


def test_starts_near_w_avg_and_follows_it():
    E, img = build(), torch.randn(4, 3, 16, 16)
    before = E(img)[0]
    assert before.abs().mean() < 0.6  # offsets from w_avg = 0; w itself has unit deviation
    E.w_avg += 5
    assert torch.allclose(E(img)[0], before + 5, atol=1e-5)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"got images of size \(32, 32\), expected side 16"):
        build()(torch.randn(1, 3, 32, 32))


def test_float32_out_of_bfloat16():
    E, img = build(feature_width=8), torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        latents = E(img)
    for latent, exact in zip(latents, E(img), strict=True):
        assert latent.dtype == torch.float32
        assert torch.allclose(latent, exact, atol=0.05)  # eight bits of mantissa


def test_every_parameter_learns():
    E = build(feature_width=8)
    torch.nn.init.ones_(E.features.conv1.weight)  # starts at 0: open it
    for block in E.trunk.stages.modules():  # blocks start as their skip connection: open them
        if hasattr(block, "norm1"):
            torch.nn.init.ones_(block.norm1.weight)
    sum(latent.square().sum() for latent in E(torch.randn(4, 3, 16, 16))).backward()
    for name, parameter in E.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_images_do_not_influence_each_other():
    E = build(feature_width=8).double().eval()
    torch.nn.init.normal_(E.features.conv1.weight)
    img = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    for latent, alone in zip(E(img), E(img[2:3]), strict=True):
        assert torch.allclose(latent[2:3], alone, atol=1e-6)  # the output passes through float32


@pytest.mark.parametrize("stride", [2, 4])
def test_the_offset_fits_maps_of_g(stride):
    """E's offset of half or a quarter of the side changes what G draws."""
    config = build_config("cpu64", [f"networks.encoder_features_stride={stride}"])
    torch.manual_seed(0)
    E, G = build_encoder(config.networks, 64, 1), build_generator(config.networks, 64, 2, 1)
    E.trunk.load_imagenet()
    torch.nn.init.normal_(E.features.conv1.weight)
    with torch.no_grad():
        ws, features = E(torch.randn(1, 1, 64, 64))
        with_offset, without = (G.synthesis(ws, "none", *offset) for offset in ((features,), ()))
    assert features.shape == (1, config.networks.widths[64 // stride], 64 // stride, 64 // stride)
    assert not any(torch.equal(a, b) for a, b in zip(with_offset, without, strict=True))


def test_size_at_64_px():
    config = build_config("cpu64")
    with torch.device("meta"):
        E = build_encoder(config.networks, 64, 3)
    assert 3e6 < sum(p.numel() for p in E.parameters()) < 6e6


def test_a_pretrained_trunk_serves_grey_and_small_images():
    torch.manual_seed(0)
    E = Encoder(32, 1, 6, 12, (8,), trunk="efficientnet-lite0", feature_width=8)
    ws, features = E(torch.randn(2, 1, 32, 32))
    assert ws.shape == (2, 6, 12) and features.shape == (2, 8, 8, 8)
    (ws.square().sum() + features.sum()).backward()
    learning = {name.split(".")[0] for name, parameter in E.named_parameters() if parameter.grad is not None}
    assert learning == {"trunk", "narrow", "norm", "mix", "mix2", "rows", "features"}
