"""The one training loop of all baselines: a fixed number of images, one schedule, a checkpoint now and then."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from baselines.batches import Batch, Batches
from semanticgan.errors import UserError
from semanticgan.precision import resolved
from semanticgan.training.checkpoint import State, load_checkpoint, save_checkpoint
from semanticgan.training.supervised import learning_rate

SECONDS_BETWEEN_CHECKPOINTS = 300


class Method(Protocol):
    """What is trained: `update` is one step. `members` are remembered; `answer` segments in the end."""

    s: Any  # a dataclass of numbers, its settings
    members: dict[str, Any]  # networks and optimisers
    answer: nn.Module

    def update(self, batch: Batch, progress: float) -> dict[str, float]: ...


def set_rates(method: Method, share: float) -> None:
    for member in method.members.values():
        if isinstance(member, torch.optim.Optimizer):
            for group in member.param_groups:
                group["lr"] = group["initial_lr"] * share


def train(
    method: Method,
    batches: Batches,
    steps: int,
    checkpoint: Path | None = None,  # where the state is kept, and found again
    say: Callable[[str], None] | None = None,  # hears of progress, ten times
) -> tuple[nn.Module, float]:
    """`steps` updates; the network that segments, in evaluation mode, and the seconds that it took.

    Raises UserError where the checkpoint is of other settings, another length, precision or version.

    The last step's weights count: nothing is chosen here. A function of (method, batches, steps), interrupted or not; leaves
    the global random state alone.
    """
    bf16, side = resolved("auto", "cpu") == "bf16", batches.images.labeled.shape[1]
    about = {**asdict(method.s), "steps": steps, "resolution": side, "bf16": float(bf16)}
    state = State(method.members, {"step": 0, "seconds": 0.0, **about})
    if checkpoint is not None and checkpoint.is_file():
        try:
            state.load_state_dict(load_checkpoint(checkpoint))
        except ValueError as error:
            raise UserError(f"{checkpoint}: is of another version ({error}); delete it to begin again") from None
        if other := [f"{k} {state.numbers[k]:g} instead of {v:g}" for k, v in about.items() if state.numbers[k] != v]:
            raise UserError(f"{checkpoint}: was begun with {', '.join(other)}; delete it to begin again")
    last = saved = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        while state.step < steps:
            batch = batches.at(state.step * batches.count)
            torch.manual_seed(batch.random("dropout").initial_seed())  # of networks that have some
            set_rates(method, learning_rate(1.0, state.step, state.step / steps))
            losses = method.update(batch, state.step / steps)
            state.step += 1
            now = time.monotonic()
            state.seconds, last = state.seconds + now - last, now
            if say and (state.step % max(1, steps // 10) == 0 or state.step == steps):
                shown = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
                say(f"step {state.step} of {steps}, {state.seconds / 60:.1f} min: {shown}")
            if checkpoint is not None and (now - saved >= SECONDS_BETWEEN_CHECKPOINTS or state.step == steps):
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
                save_checkpoint(checkpoint, state.state_dict())
                saved = last = time.monotonic()
    return method.answer.eval(), state.seconds
