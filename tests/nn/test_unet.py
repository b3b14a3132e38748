"""The U-Net: shapes, precisions, and no image's answer depending on another's."""

import pytest
import torch

from semanticgan.nn.unet import PretrainedUNet, UNet, build_unet


@pytest.fixture
def net():
    torch.manual_seed(0)
    return UNet(3, 4, (8, 12, 16)).eval()


@pytest.mark.parametrize(
    ("channels", "classes", "widths", "size"),
    [(1, 2, (8,), (5, 7)), (3, 4, (4, 8, 16), (32, 16)), (3, 7, (6, 10), (8, 8))],
)
def test_shapes(channels, classes, widths, size):
    out = UNet(channels, classes, widths)(torch.randn(2, channels, *size))
    assert out.shape == (2, classes, *size) and out.dtype == torch.float32


def test_precisions(net):
    img = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    expected = net(img)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(img)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, atol=0.1, rtol=0)  # bfloat16 keeps eight bits through ten convolutions
    torch.testing.assert_close(net.double()(img.double()), expected.double(), atol=1e-4, rtol=1e-4)


def test_images_do_not_depend_on_their_batch_mates(net):
    net.train()  # group norm knows no running statistics
    img = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(net(img)[1:2], net(img[1:2]), atol=1e-5, rtol=1e-5)


def test_every_weight_gets_a_gradient(net):
    net(torch.randn(2, 3, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_whole_frame_is_seen(net):
    """A change in one corner reaches the other: the coarsest level sees everything."""
    img = torch.zeros(1, 3, 16, 16)
    changed = img.clone()
    changed[:, :, 0, 0] = 1
    assert (net(img) - net(changed))[0, :, -1, -1].abs().max() > 0


def test_a_side_that_cannot_be_halved_is_refused(net):
    with pytest.raises(ValueError, match="got 18 x 16, expected multiples of 4"):
        net(torch.zeros(1, 3, 18, 16))


# ---------------------------------------------------------------- on a pretrained trunk


@pytest.fixture(scope="module")
def pretrained():
    torch.manual_seed(0)
    net = build_unet("efficientnet-lite0", 3, 4, (8, 12, 16), 32)
    net.trunk.load_imagenet()
    return net.eval()


@pytest.mark.parametrize(
    ("channels", "levels", "side"), [(1, 2, 16), (3, 3, 16), (3, 5, 64), (3, 6, 128), (3, 3, 128), (3, 6, 256)]
)
def test_shapes_on_a_trunk(channels, levels, side):
    net = PretrainedUNet(channels, 2, (8,) * levels, side)
    out = net(torch.randn(1, channels, side, side))
    assert out.shape == (1, 2, side, side) and out.dtype == torch.float32
    with pytest.raises(ValueError, match=f"got 8 x 8, expected {side} x {side}"):
        net(torch.zeros(1, channels, 8, 8))


@pytest.mark.parametrize(("levels", "side"), [(1, 64), (6, 64), (4, 16), (7, 128)])
def test_levels_without_a_map_are_refused(levels, side):
    with pytest.raises(ValueError, match=f"widths: got {levels} levels"):
        PretrainedUNet(3, 2, (8,) * levels, side)


def test_a_trunk_in_half_precision(pretrained):
    img = torch.randn(2, 3, 32, 32).clamp(-1, 1).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = pretrained(img)
        with torch.autocast("cpu", torch.bfloat16):
            out = pretrained(img)
    assert out.dtype == torch.float32 and (out - expected).std() < 0.05 * expected.std()  # eight bits, fifty convolutions


def test_every_free_weight_on_a_trunk_gets_a_gradient_and_the_first_blocks_none(pretrained):
    free = [p for p in pretrained.parameters() if p.requires_grad]
    pretrained(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is None for p in pretrained.parameters() if not p.requires_grad)
    beyond = {
        id(p) for block in pretrained.trunk.blocks[11:] for p in block.parameters()
    }  # the coarsest level's map is before them
    assert {id(p) for p in free if p.grad is None} == beyond
    assert all(p.grad.abs().sum() > 0 for p in free if p.grad is not None)


def test_the_images_own_pixels_count_on_a_trunk(pretrained):
    """A pattern that enlarging blurs still changes the answer."""
    img = torch.zeros(1, 3, 32, 32)
    img[:, :, ::2] = 0.5
    with torch.no_grad():
        assert (pretrained(img) - pretrained(img.roll(1, 2))).abs().max() > 1e-3
