import pytest
import torch

from semanticgan.nn.discriminators import ImageDiscriminator, MultiScaleDiscriminator

WIDTHS = {4: 12, 8: 12, 16: 8, 32: 8}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def squared_gradients(logits, *inputs):
    """R1 (arXiv 1801.04406) of each sample: a sum over its logits, so that its batch mates do not enter."""
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return sum(g.square().sum((1, 2, 3)) for g in gradients)


def seg_r1(D, img, onehot):
    img, onehot = img.clone().requires_grad_(), onehot.clone().requires_grad_()
    logits = torch.stack([maps[-1].mean((1, 2, 3)) for maps in D(img, onehot)]).sum(0)
    return squared_gradients(logits, img, onehot)


@pytest.mark.parametrize(("resolution", "channels"), [(16, 1), (32, 3)])
def test_one_logit_a_sample(resolution, channels):
    D = ImageDiscriminator(resolution, channels, WIDTHS)
    assert D(torch.randn(5, channels, resolution, resolution)).shape == (5,)


def test_image_r1_unchanged_when_duplicates_keep_their_groups():
    """Eight images in groups of stride two: doubling the batch and the stride gives every group its twin."""
    D, img = ImageDiscriminator(16, 3, WIDTHS).double(), torch.randn(8, 3, 16, 16, dtype=torch.float64)
    twice = img.repeat_interleave(2, 0)  # 16 images, stride 4: groups (0, 4, 8, 12) are the old (0, 2, 4, 6)
    single, double = (squared_gradients(D(x), x) for x in (img.requires_grad_(), twice.detach().requires_grad_()))
    torch.testing.assert_close(double[::2], single)


def test_image_r1_trains_every_parameter_that_shapes_the_gradient():
    D, img = ImageDiscriminator(16, 3, WIDTHS), torch.randn(4, 3, 16, 16, requires_grad=True)
    squared_gradients(D(img), img).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for name, p in D.named_parameters() if name.endswith("weight"))


def test_image_discriminator_under_bfloat16():
    D, img = ImageDiscriminator(32, 3, WIDTHS).to(memory_format=torch.channels_last), torch.randn(8, 3, 32, 32)
    exact = D(img)
    with torch.autocast("cpu", torch.bfloat16):
        logits = D(img.contiguous(memory_format=torch.channels_last))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, atol=0.05, rtol=0.05)  # 8-bit activations through eight layers


@pytest.mark.parametrize(("scales", "layers"), [(1, 2), (2, 3), (3, 3)])
def test_maps_of_each_scale(scales, layers):
    D = MultiScaleDiscriminator(5, filters=4, scales=scales, layers=layers)
    features = D(torch.randn(2, 3, 32, 32), torch.randn(2, 2, 32, 32))
    assert [len(maps) for maps in features] == [layers + 2] * scales
    assert all(maps[-1].shape[:2] == (2, 1) for maps in features)
    assert [maps[0].shape[-1] for maps in features] == [17, 9, 5][:scales]


def test_seg_r1_unchanged_when_the_batch_is_duplicated():
    D = MultiScaleDiscriminator(5, filters=4, scales=2).double().eval()
    img, onehot = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.randn(3, 2, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(seg_r1(D, torch.cat([img, img]), torch.cat([onehot, onehot]))[:3], seg_r1(D, img, onehot))


def test_seg_discriminator_sees_each_sample_alone():
    D = MultiScaleDiscriminator(5, filters=4).double().eval()
    img, onehot = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.randn(3, 2, 32, 32, dtype=torch.float64)
    for batch, alone in zip(D(img, onehot), D(img[1:2], onehot[1:2]), strict=True):
        torch.testing.assert_close(batch[-1][1:2], alone[-1])


def test_seg_r1_can_be_differentiated_in_training_mode_under_bfloat16():
    D = MultiScaleDiscriminator(5, filters=4).to(memory_format=torch.channels_last)
    img, onehot = torch.randn(4, 3, 32, 32), torch.randn(4, 2, 32, 32)
    exact = seg_r1(D.eval(), img, onehot)
    with torch.autocast("cpu", torch.bfloat16):
        penalty = seg_r1(D, img, onehot)
    # squares of sums of 8-bit products
    torch.testing.assert_close(penalty, exact, rtol=0.15, atol=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        penalty = seg_r1(D.train(), img, onehot)
    penalty.sum().backward()
    assert all(p.grad.isfinite().all() for p in D.parameters() if p.grad is not None)


def test_training_forwards_repeat_to_the_bit_from_saved_state():
    D, other = MultiScaleDiscriminator(5, filters=4), MultiScaleDiscriminator(5, filters=4)
    img, onehot = torch.randn(2, 3, 32, 32), torch.randn(2, 2, 32, 32)
    D(img, onehot)
    other.load_state_dict(D.state_dict())
    for _ in range(2):
        for a, b in zip(D(img, onehot), other(img, onehot), strict=True):
            assert torch.equal(a[-1], b[-1])
