"""Teachers: finished models whose label maps of unlabelled images the encoder or a student learns."""

import os
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semanticgan.config import Config
from semanticgan.errors import UserError
from semanticgan.labels import IGNORE_INDEX, LabelSpec
from semanticgan.model import SemanticGAN


def lasting(name: str) -> str:
    """A model's name that is good from any folder: its absolute path, or the Hugging Face id that it is."""
    return os.path.abspath(name) if os.path.exists(name) else name


def can_label(model: SemanticGAN) -> bool:
    """Does it answer without inversion?"""
    return model.E is not None or model.S is not None


def load_teachers(
    names: Sequence[str], labels: LabelSpec, config: Config, stage: Literal["encoder", "student"], device: str
) -> list[SemanticGAN]:
    """Those of a run's stage. Raises UserError for one that answers other questions than the run's, or would not be asked."""
    if names and getattr(config, stage).pseudo == 0:
        raise UserError(f"--teacher {names[0]}: got {stage}.pseudo=0, with which it would teach nothing; leave one out")
    wanted, teachers = {"classes": ", ".join(labels.names), "images": config.data.in_words}, []
    for name in names:
        model = SemanticGAN.load(name, device=device)
        if not can_label(model):
            raise UserError(f"--teacher {name}: got a model without an encoder, expected one with it, or a student")
        got = {"classes": ", ".join(model.labels.names), "images": model.config.data.in_words}
        for what, ours in wanted.items():
            if got[what] != ours:
                raise UserError(f"--teacher {name}: got {what} {got[what]}; expected the run's, {ours}")
        teachers.append(model)
    return teachers


def teacher_labels(
    teachers: Sequence[SemanticGAN],  # each with an encoder, or a student
    images: UInt8[np.ndarray, "n r r c"],
    threshold: float,  # pixels of which they are less sure are 255, ignored
) -> Iterator[UInt8[np.ndarray, "r r"]]:
    """What they say of each of real images at their resolution: the mean of their probabilities, each over all its views."""

    def probs_of(teacher: SemanticGAN) -> Iterator[Float[Tensor, "k r r"]]:
        for found in teacher.find((np.asarray(img) for img in images), steps=0, views=True, zoom=False):
            yield (found.log_probs / teacher.config.temperature).softmax(0)

    for answers in zip(*map(probs_of, teachers), strict=True):
        probs, label = torch.stack(answers).mean(0).max(0)
        yield label.masked_fill(probs < threshold, IGNORE_INDEX).byte().numpy()
