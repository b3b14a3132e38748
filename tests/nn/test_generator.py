import pytest
import torch

from semanticgan.nn.generator import Generator

WIDTHS = {4: 12, 8: 12, 16: 8, 32: 8}


def build(resolution=16, num_classes=3, img_channels=3, seed=0):
    torch.manual_seed(seed)
    G = Generator(resolution, num_classes, img_channels, 10, 12, 2, WIDTHS)
    for name, parameter in G.named_parameters():
        if name.endswith(("noise_strength", "bias")):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return G


@pytest.mark.parametrize(("resolution", "num_classes", "img_channels"), [(16, 2, 1), (16, 5, 3), (32, 3, 3)])
def test_shapes(resolution, num_classes, img_channels):
    G = build(resolution, num_classes, img_channels)
    img, seg_logits = G(torch.randn(2, 10))
    assert img.shape == (2, img_channels, resolution, resolution)
    assert seg_logits.shape == (2, num_classes, resolution, resolution)
    levels = resolution.bit_length() - 1
    assert G.num_ws == 2 * levels - 2
    assert len(G.noise_maps(2)) == 2 * levels - 3


def test_image_does_not_depend_on_the_label_heads():
    G, z = build(), torch.randn(2, 10)
    img, seg_logits = G(z, noise="none")
    for name, parameter in G.named_parameters():
        if "to_seg" in name:
            parameter.data.normal_()
    changed_img, changed_seg = G(z, noise="none")
    assert torch.equal(img, changed_img)
    assert not torch.equal(seg_logits, changed_seg)


def test_no_gradient_from_the_label_map_into_the_image_heads():
    G = build()
    _, seg_logits = G(torch.randn(2, 10))
    seg_logits.square().sum().backward()
    for name, parameter in G.named_parameters():
        used = parameter.grad is not None and bool(parameter.grad.any())
        assert used != ("to_img" in name), name


def test_every_row_of_ws_is_used_and_the_last_by_the_heads_alone():
    G = build()
    ws = G.mapping(torch.randn(1, 10)).detach().clone().requires_grad_()
    img, seg_logits = G.synthesis(ws, "none")
    (gradient,) = torch.autograd.grad(img.square().sum() + seg_logits.square().sum(), ws)
    assert gradient.abs().sum(2).gt(0).all()


@pytest.mark.parametrize("start", [0, 1, 2])
def test_features_are_added_once_to_maps_of_their_side(start):
    """Wherever the synthesis is cut in two, and zeros change nothing."""
    G, side = build().double(), 8
    ws, features = G.mapping(torch.randn(2, 10, dtype=torch.float64)), torch.randn(2, 12, side, side, dtype=torch.float64)
    img, seg_logits = G.synthesis(ws, "none", features)
    x, out = G.synthesis.run(ws, "none", stop=start, features=features) if start else (None, None)
    _, whole = G.synthesis.run(ws, "none", start, x=x, out=out, features=features)
    torch.testing.assert_close(whole, torch.cat([img, seg_logits], 1))
    plain = G.synthesis(ws, "none")[0]
    assert torch.equal(G.synthesis(ws, "none", torch.zeros_like(features))[0], plain) and not torch.allclose(img, plain)


def test_truncation_pulls_to_the_mean():
    G, z = build(), torch.randn(4, 10)
    G.mapping.w_avg.normal_()
    ws = G.mapping(z)
    assert torch.equal(ws[:, 0], ws[:, -1])
    torch.testing.assert_close(G.mapping(z, 0.0), G.mapping.w_avg.expand_as(ws))
    torch.testing.assert_close(G.mapping(z, 0.5), (ws + G.mapping.w_avg) / 2)


def test_mapping_ignores_the_length_of_z():
    G, z = build(), torch.randn(4, 10)
    torch.testing.assert_close(G.mapping(3 * z), G.mapping(z))


def test_w_avg_moves_by_its_decay():
    G, w = build(), torch.randn(6, 12)
    G.mapping.update_w_avg(w, decay=0.75)
    torch.testing.assert_close(G.mapping.w_avg, w.mean(0) / 4)
    assert not G.mapping.w_avg.requires_grad


def test_noise_is_a_function_of_its_generator():
    G, z = build(), torch.randn(2, 10)
    first, again = (G.noise_maps(2, torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(G(z, noise=first)[0], G(z, noise=again)[0])
    torch.manual_seed(3)
    img = G(z)[0]
    assert not torch.equal(G(z)[0], img)
    torch.manual_seed(3)
    assert torch.equal(G(z)[0], img)


def test_results_are_float32_and_close_under_bfloat16():
    G, z = build(32).to(memory_format=torch.channels_last), torch.randn(4, 10)
    exact, exact_seg = G(z, noise="none")
    with torch.autocast("cpu", torch.bfloat16):
        img, seg_logits = G(z, noise="none")
    assert img.dtype == seg_logits.dtype == torch.float32
    # seven layers of 8-bit numbers: a few hundredths of the spread
    assert (img - exact).std() < 0.05 * exact.std()
    assert (seg_logits - exact_seg).std() < 0.05 * exact_seg.std()


def test_layout_changes_nothing():
    G, z = build().double(), torch.randn(2, 10, dtype=torch.float64)
    plain = G(z, noise="none")
    last = G.to(memory_format=torch.channels_last)(z, noise="none")
    for a, b in zip(plain, last, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)  # float64


def test_path_length_can_be_differentiated():
    """The penalty on the length of d img / d ws needs every operation of the synthesis to be differentiable twice."""
    G = build().double()
    ws = G.mapping(torch.randn(2, 10, dtype=torch.float64)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(G.synthesis(ws, "none")[0].square().sum(), ws, create_graph=True)
    gradient.square().sum().backward()
    direction = torch.randn_like(ws)
    step = 1e-6

    def length(ws):
        ws = ws.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(G.synthesis(ws, "none")[0].square().sum(), ws)
        return gradient.square().sum()

    numeric = (length(ws + step * direction) - length(ws - step * direction)) / (2 * step)
    # central differences: relative error of the order of step plus rounding / step
    torch.testing.assert_close((ws.grad * direction).sum(), numeric, rtol=1e-5, atol=1e-5)
