"""What `benchmarks/generation.py` says of a run folder."""

import re

import generation
import pytest
import torch

from semanticgan.data.sources import find_sources
from semanticgan.data.synthetic import LABELS
from semanticgan.errors import UserError
from semanticgan.nn.perceptual import LPIPS
from semanticgan.training.checkpoint import save_stage
from semanticgan.training.gan import new_gan_state
from semanticgan.training.plan import Plan


@pytest.fixture
def run(scenes, small_config, tmp_path):
    """A run folder as train writes it, and its GAN's state at 8 images."""
    config = small_config("data.resolution=32", "networks.widths={4: 8, 8: 8, 16: 8, 32: 8}")
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    sources = find_sources(scenes, [], [], [])
    Plan(config, LABELS, sources, None, "cpu", None, "semanticgan train").write(out)
    return out, new_gan_state(config, LABELS.num_classes, 3, "cpu")


def test_a_line_a_run(run):
    out, state = run
    with pytest.raises(UserError, match="no checkpoint of a GAN stage"):
        generation.measure(out, 8, LPIPS())
    save_stage(out, "gan", 8, state.state_dict())
    line = generation.measure(out, 8, LPIPS())
    assert line.startswith("run: gan-000000008.pt: Frechet distance ")
    distance, halves, *shares = map(float, re.findall(r"\d+\.\d+", line))
    assert distance > halves > 0 and len(shares) == LABELS.num_classes and sum(shares) == pytest.approx(1, abs=0.003)


def test_shares_and_samples_come_from_the_averaged_g(run):
    _, state = run
    for head in (block.to_seg for block in state.G_ema.synthesis.blocks if hasattr(block, "to_seg")):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        head.bias.data[1] = 1
    shares = torch.zeros(LABELS.num_classes)
    with torch.no_grad():
        drawn = [len(img) for img in generation.draw(state.G_ema, 130, shares)]
    assert drawn == [100, 30] and shares.tolist() == pytest.approx([0, 130, 0, 0])
