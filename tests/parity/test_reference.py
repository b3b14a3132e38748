"""Our networks with the reference design's weights return the reference design's numbers, on the fast path."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from semanticgan.nn.discriminators import ImageDiscriminator, MultiScaleDiscriminator
from semanticgan.nn.generator import Generator
from semanticgan.reference_weights import convert_generator

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGE, LOGIT = 1e-4, 1e-5  # absolute; float32 sums of some hundred terms of size 1, in another order


_D_IMG = {
    "convs.0.0.weight": "from_img.weight",
    "convs.0.1.bias": "from_img.bias",
    "final_conv.0.weight": "conv.weight",
    "final_conv.1.bias": "conv.bias",
    "final_linear.0.weight": "linear.weight",
    "final_linear.0.bias": "linear.bias",
    "final_linear.1.weight": "out.weight",
    "final_linear.1.bias": "out.bias",
}
_D_IMG_BLOCK = {
    "conv1.0.weight": "conv0.weight",
    "conv1.1.bias": "conv0.bias",
    "conv2.1.weight": "conv1.weight",
    "conv2.2.bias": "conv1.bias",
    "skip.1.weight": "skip.weight",
}


def convert_image_discriminator(state):
    """Their D_img's state -> ours."""
    out = {}
    for key, value in state.items():
        if key.endswith(".kernel"):
            continue
        if key in _D_IMG:
            out[_D_IMG[key]] = value
        else:
            _, number, tail = key.split(".", 2)
            out[f"blocks.{int(number) - 1}.{_D_IMG_BLOCK[tail]}"] = value
    return out


def convert_seg_discriminator(state):
    """Their D_seg's state -> ours; their highest scale number is the full resolution."""
    parsed = {}
    for key, value in state.items():
        match = re.fullmatch(r"scale(\d+)_layer(\d+)\.(?:0\.)*(\w+)", key)
        parsed[int(match[1]), int(match[2]), match[3]] = value
    scales = 1 + max(scale for scale, _, _ in parsed)
    last = max(layer for _, layer, _ in parsed)
    out = {}
    for (scale, layer, tail), value in parsed.items():
        name = "first" if layer == 0 else "last" if layer == last else f"middle.{layer - 1}"
        ours = {"weight_orig": "weight", "weight_u": "u", "weight_v": "v"}.get(tail, tail)
        out[f"scales.{scales - 1 - scale}.{name}.{ours}"] = value
    return out


@pytest.fixture(scope="module")
def values():
    return load_file(GOLDEN / "golden_rgb32_values.safetensors")


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "golden_rgb32_weights.safetensors")


@pytest.fixture(scope="module")
def sizes():
    with safe_open(GOLDEN / "golden_rgb32_weights.safetensors", "pt") as file:
        meta = file.metadata()
    return {
        "z": int(meta["style_dim"]),
        "layers": int(meta["n_mlp"]),
        "widths": {int(k): v for k, v in json.loads(meta["channels"]).items()},
    }


def part(weights, prefix):
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


@pytest.fixture(scope="module")
def G(weights, sizes):
    G = Generator(32, 3, 3, sizes["z"], sizes["z"], sizes["layers"], sizes["widths"])
    missing = G.load_state_dict(convert_generator(part(weights, "g.")), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["mapping.w_avg"], [])
    return G.eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def D_img(weights, sizes):
    D = ImageDiscriminator(32, 3, sizes["widths"])
    D.load_state_dict(convert_image_discriminator(part(weights, "d_img.")))
    return D.eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def noise(values):
    return [values[f"noise_{k}"] for k in range(7)]


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@torch.no_grad()
def test_plain_pass(G, values, noise):
    close(G.mapping(values["z"]), values["ws"], LOGIT)
    img, seg_logits = G(values["z"], noise=noise)
    close(img, values["img"], IMAGE)
    close(seg_logits, values["seg"], IMAGE)


@torch.no_grad()
def test_style_mixing(G, values, noise):
    ws = torch.cat([G.mapping(values["z"])[:, :3], G.mapping(values["z2"])[:, 3:]], 1)
    close(ws, values["mix_ws"], LOGIT)
    img, seg_logits = G.synthesis(ws, noise)
    close(img, values["mix_img"], IMAGE)
    close(seg_logits, values["mix_seg"], IMAGE)


@torch.no_grad()
def test_rows_of_ws(G, values, noise):
    img, seg_logits = G.synthesis(values["wplus"], noise)
    close(img, values["wplus_img"], IMAGE)
    close(seg_logits, values["wplus_seg"], IMAGE)


@torch.no_grad()
def test_no_noise(G, values):
    img, seg_logits = G(values["z"], noise="none")
    close(img, values["nonoise_img"], IMAGE)
    close(seg_logits, values["nonoise_seg"], IMAGE)


def test_image_discriminator_and_its_gradient(D_img, values):
    img = values["d_in"].clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    logits = D_img(img)
    close(logits.detach()[:, None], values["d_img"], LOGIT)
    (gradient,) = torch.autograd.grad(logits.sum(), img)
    close(gradient.square().sum((1, 2, 3)), values["d_img_r1"], LOGIT)


@torch.no_grad()
def test_image_discriminator_groups(D_img, values):
    close(D_img(values["d_in8"])[:, None], values["d_img8"], LOGIT)


@torch.no_grad()
def test_every_map_of_the_seg_discriminator(weights, values):
    D = MultiScaleDiscriminator(6, filters=8, scales=3, layers=3)
    D.load_state_dict(convert_seg_discriminator(part(weights, "d_seg.")))
    maps = D.eval()(*values["dseg_in"].split(3, 1))
    for scale in range(3):
        assert len(maps[scale]) == 5
        for layer in range(5):
            close(maps[scale][layer], values[f"dseg_scale{scale}_layer{layer}"], LOGIT)
