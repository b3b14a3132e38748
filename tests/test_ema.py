"""The moving average: its half-life, and what it does with buffers."""

import pytest
import torch
from torch import nn

from semanticgan.ema import ema_decay, ramped_decay, update_ema


class Net(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3, 2), value, dtype=torch.float64))
        self.register_buffer("w_avg", torch.full((2,), value))
        self.register_buffer("count", torch.tensor(int(value)))


@pytest.mark.parametrize("batch", [1, 16, 50])
def test_weight_is_one_half_after_one_half_life(batch):
    G_ema, G = Net(0.0), Net(1.0)
    decay = ema_decay(batch, half_life_kimg=0.8)
    for _ in range(800 // batch):
        update_ema(G_ema, G, decay)
    torch.testing.assert_close(G_ema.weight.data, torch.full_like(G.weight, 0.5), rtol=1e-10, atol=0)  # float64 rounding


def test_a_ramped_half_life_is_a_share_of_what_was_seen_up_to_its_own():
    assert ramped_decay(16, 5.0, 20.0, 0.1) == ema_decay(16, 2.0)
    assert ramped_decay(16, 5.0, 200.0) == ema_decay(16, 5.0)


def test_a_half_life_of_zero_copies():
    G_ema, G = Net(0.0), Net(1.0)
    update_ema(G_ema, G, ema_decay(16, 0.0))
    assert torch.equal(G_ema.weight, G.weight)


def test_buffers_are_copied_and_the_source_is_left_alone():
    G_ema, G = Net(0.0), Net(4.0)
    update_ema(G_ema, G, 0.75)
    assert torch.equal(G_ema.weight, torch.ones_like(G.weight))
    assert torch.equal(G_ema.w_avg, G.w_avg)
    assert G_ema.count.item() == 4
    assert torch.equal(G.weight, torch.full_like(G.weight, 4))


def test_memory_formats_may_differ():
    G_ema, G = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    expected = (G_ema.weight + G.weight).detach() / 2
    update_ema(G_ema.requires_grad_(False), G, 0.5)
    torch.testing.assert_close(G_ema.weight, expected)
