"""One step of each stage, and segmentation, on a GPU: close to the CPU's, and nothing waits for the GPU within a step."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from semanticgan.config import ModelConfig
from semanticgan.data.synthetic import LABELS
from semanticgan.model import SemanticGAN, build_encoder, build_generator
from semanticgan.nn.perceptual import LPIPS
from semanticgan.training.encoder import EncoderTrainer, new_encoder_state
from semanticgan.training.gan import GanTrainer, new_gan_state

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@contextmanager
def no_waiting():
    """Raises where the CPU would wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=["fp32", "bf16"])
def config(small_config, request):
    return small_config(f"run.precision={request.param}", "data.symmetry=all", "gan.r1_every=2", "gan.pl_every=2")


def tolerance(config):
    """Other orders of summation, and with bfloat16 eight bits of each product."""
    return 0.1 if config.run.precision == "bf16" else 2e-3


@pytest.fixture
def exact_products():
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def gan_step(config, data, device, steps=1):
    state = new_gan_state(config, 4, 3, device)
    state.augment_p = 0.5
    trainer = GanTrainer(config, LABELS, data, state, device)
    means = []
    for step in range(steps):
        with no_waiting() if step else nothing():  # the first step loads kernels and makes the optimisers' state
            batch = trainer.draw(step * config.gan.batch)
            d_img = trainer.update_d_img(batch)
            sign = trainer.fetch(d_img["real_sign"])
            d_seg, features = trainer.update_d_seg(batch)
            g = trainer.update_g(batch, features)
            trainer.update_averages(batch)
        assert sign() == float(d_img["real_sign"])
        means.append({name: float(value) for name, value in {**d_img, **d_seg, **g}.items()})
    return state, means


@contextmanager
def nothing():
    yield


def test_a_gan_step(config, small_data, exact_products):
    (cpu, on_cpu), (gpu, on_gpu) = (gan_step(config, small_data[0], device) for device in ("cpu", "cuda"))
    assert on_gpu[0].keys() == on_cpu[0].keys()
    for name in ("D_img", "D_seg", "G_img", "matching", "r1_img"):
        assert on_gpu[0][name] == pytest.approx(on_cpu[0][name], rel=tolerance(config)), name
    assert gpu.G.synthesis.blocks[-1].conv1.weight.is_cuda
    assert all(p.isfinite().all() for net in (gpu.G, gpu.D_img, gpu.D_seg) for p in net.parameters())
    w_avg = gpu.G.mapping.w_avg.cpu()
    assert torch.allclose(w_avg, cpu.G.mapping.w_avg, atol=1e-4)


def test_nothing_waits_within_gan_steps(config, small_data):
    gan_step(config, small_data[0], "cuda", steps=4)


def test_features_are_channels_last(config, small_data):
    state = new_gan_state(config, 4, 3, "cuda")
    trainer, strides = GanTrainer(config, LABELS, small_data[0], state, "cuda"), []
    for module in (state.G.synthesis.blocks[-1].conv1, state.D_img.blocks[0], state.D_seg.scales[0].first):
        module.register_forward_hook(lambda module, args, out: strides.append(out.stride(1)))
    batch = trainer.draw(0)
    trainer.update_d_img(batch)
    trainer.update_g(batch, trainer.update_d_seg(batch)[1])
    assert len(strides) > 3 and set(strides) == {1}


def test_an_encoder_step(config, small_data, exact_products):
    stats = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        G = build_generator(config.networks, 16, 4, 3).to(device, memory_format=torch.channels_last).requires_grad_(False)
        lpips = LPIPS().to(device, memory_format=torch.channels_last)
        state = new_encoder_state(config, G, 3, device)
        trainer = EncoderTrainer(config, LABELS, small_data[0], G, lpips, state, device)
        stats[device] = {name: float(value) for name, value in trainer.update(0, 0.5).items()}
        if device == "cuda":
            with no_waiting():
                trainer.update(trainer.batch, 0.5)
            assert torch.isfinite(torch.tensor(trainer.validate(small_data[1])))
    for name in ("mse", "lpips", "labeled", "samples"):
        assert stats["cuda"][name] == pytest.approx(stats["cpu"][name], rel=tolerance(config)), name


def test_segmenting(config):
    torch.manual_seed(0)
    settings = ModelConfig(labels=LABELS, data=config.data, networks=config.networks, inversion=config.inversion)
    nets = [build_generator(config.networks, 16, 4, 3), build_encoder(config.networks, 16, 3)]
    images = [np.random.default_rng(k).integers(0, 256, (20 + k, 24, 3), np.uint8) for k in range(5)]
    weights = [{name: value.clone() for name, value in net.state_dict().items()} for net in nets]
    found = {}
    for device, steps in itertools.product(("cpu", "cuda"), (0, 2)):
        for net, saved in zip(nets, weights, strict=True):
            net.load_state_dict(saved)
        found[device, steps] = SemanticGAN(settings, *nets, device).segment(images, steps=steps)
    for steps in (0, 2):
        for ours, theirs in zip(found["cuda", steps], found["cpu", steps], strict=True):
            assert ours.label.shape == theirs.label.shape and np.abs(ours.probs - theirs.probs).max() < 0.1
            assert ours.distance == pytest.approx(theirs.distance, abs=0.05)
