"""Training on the labelled images alone, and what every other method starts from.

The schedule, cross-entropy + Dice and averaged weights are those of the package's own U-Net, for every method and whatever its
paper had (the papers' own have not been compared). A pretrained trunk's share of the rate is that of the encoder. To be tuned
on draw 0 by validation: `lr`, `near`, and the task's length in accuracy_cells.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from baselines.batches import Batch
from semanticgan.ema import ema_decay, update_ema
from semanticgan.precision import autocast
from semanticgan.training.supervised import mask_loss

NewNetwork = Callable[[int], nn.Module]  # seed -> network with `features`, `decode` and `trunk`
AVERAGED = 0.05  # share of the images seen after which an average has forgotten half


@dataclass(frozen=True)
class Settings:
    """Those of all methods."""

    batch: int = 16  # labelled images; semi-supervised methods see as many unlabelled ones
    lr: float = 1e-3
    trunk_lr: float = 0.3  # of a pretrained trunk, relative to lr
    weight_decay: float = 0.01
    augment: float = 1.0  # the changes, see batches.Changes
    far: float = 0.5  # as our encoder; on draw 0 it costs nothing in one view, and with zoom gains .008
    texture: float = 0.0
    near: float = 0.0  # not tried yet; E has .3


def new_optimizer(net: nn.Module, s: Settings) -> torch.optim.Optimizer:
    """AdamW for segmentation networks: the papers' SGD rates are for ImageNet's ResNets at 320 px and more."""
    trunk = list(net.trunk.parameters()) if net.trunk is not None else []
    known = {id(parameter) for parameter in trunk}
    rest = [parameter for parameter in net.parameters() if id(parameter) not in known]
    groups = [{"params": rest, "lr": s.lr}, *([{"params": trunk, "lr": s.lr * s.trunk_lr}] if trunk else [])]
    return remember_rates(torch.optim.AdamW(groups, weight_decay=s.weight_decay))


def remember_rates(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """`initial_lr`, of which the schedule takes a share."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def descend(optimizer: torch.optim.Optimizer, loss: Float[Tensor, ""]) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


class Supervised:
    """A network on labelled images; its averaged weights answer, as they do for ours."""

    settings_class: type[Settings] = Settings

    def __init__(self, new_network: NewNetwork, settings: Settings, seed: int, channels: int, num_classes: int) -> None:
        self.s = settings
        self.net = new_network(seed).train()
        self.answer = copy.deepcopy(self.net).requires_grad_(False).eval()
        self.optimizer = new_optimizer(self.net, settings)
        self.members: dict[str, Any] = {"net": self.net, "answer": self.answer, "optimizer": self.optimizer}

    def autocast(self) -> torch.autocast:
        return autocast("cpu")

    def update(self, batch: Batch, progress: float) -> dict[str, float]:
        img, label = batch.labeled
        with self.autocast():
            seg_logits = self.net(img)
        loss = mask_loss(seg_logits, label)
        descend(self.optimizer, loss)
        self.average(batch)
        return {"loss": loss.item()}

    def average(self, batch: Batch) -> None:
        update_ema(self.answer, self.net, ema_decay(self.s.batch, AVERAGED * batch.nimg / 1000))
