"""The U-Net: shapes, precisions, and no image's answer depending on another's."""

import pytest
import torch

from semanticgan.nn.unet import UNet


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
