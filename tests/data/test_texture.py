"""Other textures: who gets one, what stays as it was, and that a seed means the same again."""

import pytest
import torch

from semanticgan.data.texture import mix_amplitude, random_convolution, retexture


def drawn(n=6, channels=3, side=16):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(5)) * 2 - 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_some_images_change_and_a_seed_repeats_it(channels, memory):
    img = drawn(40, channels).contiguous(memory_format=memory)
    before = img.clone()
    first, again, other = (retexture(img, seeded(seed), 0.5) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(img, before)
    changed = (first != img).flatten(1).any(1).float().mean()
    assert 0.25 < changed < 0.75  # 40 draws of one half: three standard deviations
    assert torch.equal(retexture(img, seeded(), 0.0), img)
    assert (retexture(img, seeded(), 1.0) != img).flatten(1).any(1).all()


def test_amplitudes_mix_and_phases_stay():
    img = drawn()
    out = mix_amplitude(img, seeded())
    before, after = (torch.fft.rfft2(x.double()) for x in (img, out))
    turned = (after / before).angle().abs()[before.abs() > 1e-3]
    assert turned.quantile(0.99) < 1e-3  # float32; an amplitude near 0 has hardly a phase
    lowest, highest = (before.abs().amin(0), before.abs().amax(0))
    assert (after.abs() >= lowest - 1e-4).all() and (after.abs() <= highest + 1e-4).all()


def test_alike_images_have_nothing_to_mix():
    img = drawn(1).expand(5, -1, -1, -1)
    torch.testing.assert_close(mix_amplitude(img, seeded()), img, atol=1e-5, rtol=0)
    torch.testing.assert_close(mix_amplitude(img[:1], seeded()), img[:1], atol=1e-5, rtol=0)


def test_a_convolution_keeps_mean_and_even_images():
    img = drawn()
    out = random_convolution(img, seeded())
    torch.testing.assert_close(out.mean((1, 2, 3)), img.mean((1, 2, 3)), atol=1e-5, rtol=0)
    assert (out.std((1, 2, 3)) <= img.std((1, 2, 3)) + 1e-5).all()  # a mean of two of the same deviation
    even = torch.full((3, 3, 8, 8), 0.25)
    assert (random_convolution(even, seeded()) - 0.25).abs().max() < 1e-3  # what rounding leaves of their deviation, 0


def test_a_convolution_sees_its_own_image_alone():
    img = drawn()
    other = img.clone()
    other[1:] = 0.5 * other[1:]
    assert torch.equal(random_convolution(img, seeded())[:1], random_convolution(other, seeded())[:1])


def all_the_way(change, img):
    """No mixture with the image itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *size, generator: torch.ones(size))
        return change(img, seeded())


def test_all_the_way_the_amplitudes_are_anothers():
    img = drawn()
    before, after = (torch.fft.rfft2(x.double()).abs() for x in (img, all_the_way(mix_amplitude, img)))
    assert any(torch.allclose(after, before.roll(places, 0), atol=1e-3) for places in range(1, len(img)))


def test_all_the_way_a_convolution_keeps_the_deviation():
    img = drawn()
    torch.testing.assert_close(all_the_way(random_convolution, img).std((1, 2, 3)), img.std((1, 2, 3)), atol=1e-3, rtol=0)


def test_convolutions_are_one_three_and_five_pixels_wide():
    dot = torch.zeros(40, 1, 15, 15)
    dot[:, :, 7, 7] = 1
    out = all_the_way(random_convolution, dot)[:, 0]
    widths = ((out - out[:, :1, :1]).abs() > 1e-6).any(1).sum(1)
    assert set(widths.tolist()) == {1, 3, 5}
