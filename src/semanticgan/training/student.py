"""A student: a U-Net that learns from the labelled images, from G's samples, and from the teacher's label maps of real images."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from semanticgan.config import Config
from semanticgan.data import transforms
from semanticgan.data.stream import Stream, generator
from semanticgan.ema import ramped_decay, update_ema
from semanticgan.errors import UserError, first_line
from semanticgan.labels import LabelSpec
from semanticgan.model import SemanticGAN
from semanticgan.nn.discriminators import verdict
from semanticgan.nn.generator import Generator
from semanticgan.nn.layers import placed
from semanticgan.nn.unet import PretrainedUNet, UNet
from semanticgan.precision import autocast
from semanticgan.training.checkpoint import State, load_checkpoint, load_kept, save_checkpoint, stage_checkpoints, to_keep
from semanticgan.training.gan import TrainingData, ValidationData, build_discriminators
from semanticgan.training.run import Clock, Run, Stage
from semanticgan.training.supervised import (
    change_pairs,
    descend,
    image_ious,
    learning_rate,
    mask_loss,
    new_unet,
    parameter_groups,
)
from semanticgan.visuals import grid, save_png, to_rgb

GROUP = 4  # samples are drawn in multiples of it, so that D_img's minibatch standard deviation finds whole groups

# ---------------------------------------------------------------- what the teacher gives


@dataclass(frozen=True)
class Critics:
    """The discriminators of the teacher's run, frozen."""

    D_img: nn.Module  # img -> logits
    D_seg: nn.Module  # img, one-hot maps -> per scale features, patch logits last


def load_critics(source: str, teacher: SemanticGAN) -> tuple[Critics | None, str]:
    """D_img and D_seg from the last GAN checkpoint of a run folder, or None and why not."""
    checkpoints = stage_checkpoints(Path(source), "gan")
    if not checkpoints:
        return None, f"{source} has no discriminators, as only a run's checkpoints do"
    nets, data, classes = teacher.config.networks, teacher.config.data, teacher.labels.num_classes
    D_img, D_seg = build_discriminators(nets, data.resolution, classes, data.num_channels)
    try:
        saved = load_checkpoint(checkpoints[-1])["members"]
        for name, net in (("D_img", D_img), ("D_seg", D_seg)):
            net.load_state_dict(saved[name])
            placed(net, teacher.device).eval().requires_grad_(False)
    except (UserError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        return None, f"{checkpoints[-1]} has no discriminators of this version ({first_line(error)})"
    return Critics(D_img, D_seg), f"{checkpoints[-1].name} has D_img and D_seg"


class Samples:
    """Endless pairs of image and class map from G, without the share that its critics find least credible.

    Of each batch an image counts by the lower of its two ranks: among D_img's logits, and among D_seg's mean patch
    logits. Without critics by how sharp the borders in its label map are (`sharpness`).
    """

    def __init__(self, G: Generator, critics: Critics | None, drop: float) -> None:
        self.G, self.critics, self.drop = G, critics, drop

    @torch.no_grad()
    def draw(self, n: int, random: torch.Generator) -> tuple[Float[Tensor, "n c r r"], Int[Tensor, "n r r"]]:
        drawn = math.ceil(n / (1 - self.drop) / GROUP) * GROUP
        device, sides = self.G.synthesis.const.device, self.G.synthesis.noise_sides
        z = torch.randn(drawn, self.G.z_dim, generator=random)
        noise = [torch.randn(drawn, 1, side, side, generator=random) for side in sides]
        z, *noise = (transforms.send(x, device) for x in (z, *noise))
        img, seg_logits = self.G.synthesis(self.G.mapping(z), noise=noise)
        kept = self.credibility(img, seg_logits).argsort(descending=True, stable=True)[:n].sort().values
        return img[kept].float().clamp(-1, 1), seg_logits[kept].argmax(1)

    def credibility(self, img: Float[Tensor, "n c r r"], seg_logits: Float[Tensor, "n k r r"]) -> Tensor:
        """Higher for better samples; comparable within the batch alone."""
        probs = seg_logits.float().softmax(1)
        if self.critics is None:
            return sharpness(probs)
        scales = self.critics.D_seg(img, 2 * probs - 1)
        verdicts = (verdict(self.critics.D_img(img)).float(), verdict([maps[-1] for maps in scales]))
        return torch.stack([v.argsort(stable=True).argsort(stable=True) for v in verdicts]).amin(0)


def sharpness(probs: Float[Tensor, "n k r r"]) -> Float[Tensor, " n"]:
    """Minus the doubt (1 - highest probability, summed over pixels) a pixel of border, so that large objects cost nothing.

    A quarter of the image's side is added to every border's length: maps without a border have one too.
    """
    highest, label = probs.max(1)
    across = (label[:, 1:] != label[:, :-1]).sum((1, 2)) + (label[:, :, 1:] != label[:, :, :-1]).sum((1, 2))
    return -(1 - highest).sum((1, 2)) / (across + probs.shape[-1] / 4)


# ---------------------------------------------------------------- the stage


def new_student_state(config: Config, num_classes: int, channels: int, device: str) -> State:
    """S with fresh weights from the seed, its average and its optimiser."""
    student, resolution = config.student, config.data.resolution
    S = new_unet(channels, num_classes, student.widths, config.run.seed, student.trunk, resolution)
    placed(S, device)
    S_ema = copy.deepcopy(S).eval().requires_grad_(False)
    groups = parameter_groups(S, S.trunk if isinstance(S, PretrainedUNet) else None, student.trunk_lr)
    opt = torch.optim.AdamW(groups, student.lr, weight_decay=student.weight_decay, foreach=True)
    return State({"S": S, "S_ema": S_ema, "opt": opt}, {"nimg": 0, "seconds": 0.0, "best": -1.0})


def train_student(
    trainer: "StudentTrainer", val: ValidationData, run: Run, budget: float | None,  # seconds
) -> None:  # fmt: skip
    """Train to the end of the stage, from wherever the state stands; keeps `student-best.pt` as `run.keep` says.

    Randomness and the order of the data are functions of (seed, nimg). Raises what `Stage.steps` raises.
    """
    config, state = trainer.config, trainer.state
    clock = Clock(config.student.kimg, budget, state.seconds)

    def report(means: dict[str, float], last: bool) -> dict[str, float]:
        score = trainer.validate(val)
        if to_keep(state, score, config.run.keep):
            best = {"S": state.S_ema.state_dict(), "kimg": state.nimg / 1000}
            save_checkpoint(run.folder / "checkpoints" / "student-best.pt", best)
        if last or round(state.nimg / 1000 / config.run.tick_kimg) % 8 == 0:
            save_png(run.folder / "samples" / f"student-{state.nimg:09d}.png", trainer.picture())
        return {"val_iou": score, "best_val_iou": state.best}

    stage = Stage("student", run, state, clock, batch=trainer.batch, tick_kimg=config.run.tick_kimg,
                  checkpoint_minutes=config.run.checkpoint_minutes, report=report)  # fmt: skip
    for nimg in stage.steps():
        stage.means.add(**trainer.update(nimg, clock.progress(nimg)))


class StudentTrainer:
    """One step on equal parts of every source whose weight is not 0, all of them moved, recoloured and retextured."""

    def __init__(
        self, config: Config, labels: LabelSpec, data: TrainingData, samples: Samples | None,
        taught: UInt8[np.ndarray, "n r r"] | None,  # the teacher's class maps of data.images; None: not a source
        state: State, device: str,
    ) -> None:  # fmt: skip
        self.config, self.labels, self.data, self.samples = config, labels, data, samples
        self.state, self.device = state, torch.device(device)
        self.pairs = {"labeled": (data.labeled, data.labels)} | ({} if taught is None else {"pseudo": (data.images, taught)})
        there = (*self.pairs, *([] if samples is None else ["samples"]))
        self.sources = [name for name in there if getattr(config.student, name) > 0]
        if not self.sources:
            raise UserError(
                "student: got no weight above 0 but of what the teacher cannot give: one without an encoder labels no image, "
                "a student draws none; set student.labeled=1"
            )
        self.part = max(1, config.student.batch // len(self.sources))
        self.batch = self.part * len(self.sources)
        self.streams = {name: Stream(len(images), config.run.seed, f"student {name}") for name, (images, _) in self.pairs.items()}

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.config.run.precision)

    def draw(self, nimg: int) -> tuple[Float[Tensor, "n c r r"], Int[Tensor, "n r r"]]:
        """The step's pairs, source after source, changed."""
        student, random = self.config.student, generator(self.config.run.seed, "student", nimg)
        drawn = [self.draw_from(name, nimg // len(self.sources), random) for name in self.sources]
        img, label = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return change_pairs(img, label, self.labels.num_classes, random, self.config.data.symmetry, student.augment,
                            student.zoom_out, student.texture)  # fmt: skip

    def draw_from(self, name: str, position: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.samples and name == "samples":
            with self.autocast():
                return self.samples.draw(self.part, random)
        chosen = self.streams[name].indices(position, self.part)
        img, label = (transforms.send(torch.from_numpy(array[chosen]), self.device) for array in self.pairs[name])
        return transforms.to_float(img), label.long()

    def update(self, nimg: int, progress: float) -> dict[str, Tensor]:
        state, student = self.state, self.config.student
        img, label = self.draw(nimg)
        with self.autocast():
            seg_logits = state.S(img)
        parts = zip(self.sources, seg_logits.split(self.part), label.split(self.part), strict=True)
        terms = {name: mask_loss(logits, truth) for name, logits, truth in parts}
        weights = {name: getattr(student, name) for name in self.sources}
        loss = sum(weights[name] * term for name, term in terms.items()) / sum(weights.values())
        lr = learning_rate(student.lr, nimg // self.batch, progress)
        norm = descend(state.S, state.opt, loss, lr, student.grad_clip)
        seen = (nimg + self.batch) / 1000
        update_ema(state.S_ema, state.S, ramped_decay(self.batch, student.ema_half_life_kimg, seen))
        return {"loss": loss.detach(), "grad_norm": norm, **{name: term.detach() for name, term in terms.items()}}

    def validate(self, val: ValidationData) -> float:
        """Mean over images and foreground classes of IoU at G's resolution, as the encoder's; NaN where no image has one."""
        predict = self.config.predict
        scores = image_ious(self.state.S_ema, val.images, val.labels, self.config.run.precision,
                            bool(predict.one_object), bool(predict.convex))  # fmt: skip
        return float(scores[:, 1:].nanmean())

    def picture(self) -> UInt8[np.ndarray, "h w 3"]:
        """What the student is shown next: images above their label maps, ignored pixels white."""
        img, label = self.draw(self.state.nimg)
        some = torch.arange(0, len(img), max(1, len(img) // 24))[:24]
        images, maps = transforms.to_u8(img[some]).cpu().numpy(), self.labels.to_colour(label[some].byte().cpu().numpy())
        return grid([np.concatenate([to_rgb(i), m]) for i, m in zip(images, maps, strict=True)], columns=8)


def load_best(run: Run, S: UNet | PretrainedUNet) -> float:
    """The weights that were kept, into S; returns after how many kimg they did."""
    best = load_kept(run.folder, "student")
    S.load_state_dict(best["S"])
    return float(best["kimg"])
