import pytest
import torch

from semanticgan.nn.projected import Features, ProjectedDiscriminator


@pytest.fixture(scope="module")
def D():
    torch.manual_seed(0)
    return ProjectedDiscriminator(32)


def images(n, channels=3, side=32):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_patch_logits_of_four_scales_for_each_image_alone(D):
    D.eval()
    logits = D(images(3))
    assert [tuple(x.shape) for x in logits] == [(3, 1, 4, 4)] * 4
    for all_three, first in zip(logits, D(images(3)[:1]), strict=True):
        torch.testing.assert_close(all_three[:1], first, atol=1e-4, rtol=1e-4)  # sums in another order


@pytest.mark.parametrize(("side", "sides"), [(64, [32, 16, 8, 4]), (256, [64, 32, 16, 8])])
def test_small_images_are_enlarged_to_128_px(side, sides):
    features = Features()
    assert [m.shape[-1] for m in features(images(1, side=side))] == sides
    assert [m.shape[1:] for m in ProjectedDiscriminator(side)(images(1, side=side))] == [(1, 4, 4)] * 4


def test_a_grey_image_is_one_of_three_equal_channels(D):
    D.eval()
    grey = images(2, channels=1)
    for a, b in zip(D(grey), D(grey.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)  # sums in another order; logits are some tens


def test_mixing_keeps_the_scale_and_reaches_every_map_from_the_smallest():
    """A change of the smallest map alone is seen in all of them: what G does wrong at large it cannot hide at small."""
    torch.manual_seed(0)
    features, maps = Features(), [torch.randn(2, c, s, s) for c, s in ((16, 64), (24, 32), (40, 16), (112, 8), (320, 4))]
    features.trunk.forward = lambda img: maps  # type: ignore[method-assign]
    before = features(images(2, side=128))
    # each map's variance of 1 comes on top of what the smaller ones bring
    assert [round(m.var().item()) for m in before] == [4, 3, 2, 1]
    maps[-1] = maps[-1] + 1
    assert all(not torch.equal(a, b) for a, b in zip(before, features(images(2, side=128)), strict=True))


def test_the_heads_learn_and_the_features_never(D):
    D.train().requires_grad_(False)
    assert not any(p.requires_grad for p in D.parameters())
    D.requires_grad_(True)
    assert all(p.requires_grad for p in D.heads.parameters()) and not any(p.requires_grad for p in D.features.parameters())
    img = images(2).requires_grad_()
    sum(x.mean() for x in D(img)).backward()
    assert img.grad.isfinite().all() and img.grad.any()
    assert all(p.grad.isfinite().all() for p in D.heads.parameters()) and all(p.grad is None for p in D.features.parameters())


def test_under_bfloat16(D):
    D.eval().to(memory_format=torch.channels_last)
    exact = D(images(4))
    with torch.autocast("cpu", torch.bfloat16):
        rough = D(images(4).contiguous(memory_format=torch.channels_last))
    for a, b in zip(exact, rough, strict=True):
        assert (a - b).abs().mean() < 0.1 * a.std()  # 8-bit activations through fifty layers
