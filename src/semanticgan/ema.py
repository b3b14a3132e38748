"""The moving average of a network's weights."""

import torch
from torch import Tensor, nn


def ema_decay(batch: int, half_life_kimg: float) -> float:
    """The decay of one step of `batch` images with which a weight falls to one half after `half_life_kimg` thousand images.

    A half-life of 0, where a ramp starts, gives 0: the average is the network itself.
    """
    return 0.5 ** (batch / (1000 * half_life_kimg)) if half_life_kimg > 0 else 0.0


def ramped_decay(batch: int, half_life_kimg: float, seen_kimg: float, rampup: float = 0.05) -> float:
    """`ema_decay` of a half-life that grows with what was seen, `rampup` times it, up to `half_life_kimg`."""
    return ema_decay(batch, min(half_life_kimg, seen_kimg * rampup))


@torch.no_grad()
def update_ema(G_ema: nn.Module, G: nn.Module, decay: float) -> None:
    """Move G_ema's parameters towards G's by 1 - decay; copy every buffer. Both have one architecture."""
    averaged: list[Tensor] = list(G_ema.parameters())
    current: list[Tensor] = list(G.parameters())
    torch._foreach_lerp_(averaged, current, 1 - decay)
    for kept, new in zip(G_ema.buffers(), G.buffers(), strict=True):
        kept.copy_(new)
