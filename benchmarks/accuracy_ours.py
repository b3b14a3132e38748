"""Our own rows, by the commands that a user gives: an image GAN once for all draws, then a run a draw, then its student."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from accuracy_cells import SPLITS, STUDENTS, TASKS, Cell, paths
from speed import ROOT

from semanticgan.config import Config, build_config
from semanticgan.data.stream import Stream
from semanticgan.errors import UserError
from semanticgan.files import replacing
from semanticgan.model import SemanticGAN
from semanticgan.predict import Found
from semanticgan.training.checkpoint import load_checkpoint, save_checkpoint, stage_checkpoints
from semanticgan.training.gan import new_gan_state
from semanticgan.training.plan import Plan

# The same for all draws. On draw 0 of 40 labels two stages cost nothing: validation IoU .785, from joint runs .783 and .793.
# Fixed schedules: no run is stopped or chosen by its own validation images. E has a constant rate and the mean of its
# second half's weights. That and 0 steps of inversion were chosen on draw 0 of 40 labels (docs/numerics.md, "Tried").
IMAGE_GAN = ("gan.seg_weight=0", "gan.feature_matching=0", "encoder.kimg=0.5", "predict.steps=0")
RUN = (
    "gan.kimg=10", "run.keep=last", "predict.steps=0", "encoder.lr_end=1", "encoder.average=0.5", "encoder.trunk_lr=0.1",
    "encoder.labeled=0.5", "encoder.weight_decay=0.1",
)  # fmt: skip
PROJECTED = ("networks.d_img=projected", "gan.lr_d_img=0.0005")
PLAIN = ("run.keep=last", "student.pseudo=0", "student.samples=0")  # a student of the labelled images alone
STUDENT = ("run.keep=last",)
ENCODERS = {"encoder-projected": "projected", "encoder-taught": "taught", "student-taught": "taught"}  # what a row's run is
COMMITTEES = {"student-of-two": "two", "student-of-three": "three"}  # E, a plain student, and E on a projected D_img's G
TASK_SETTINGS = {"skin": (), "cxr": ("data.symmetry=flip",)}
TASK_ENCODER = {"skin": (), "cxr": ("networks.encoder_features_stride=2",)}  # finer outlines, on draw 0 of 9 labels


def seconds_file(run: Path) -> Path:
    """Beside a run folder: how long its command has run in all, interrupted or not."""
    return run.with_name(f"{run.name}.seconds")


def spent(run: Path) -> float:
    """What the file says, or 0 where there is none."""
    file = seconds_file(run)
    return float(file.read_text(encoding="utf-8")) if file.is_file() else 0.0


class Ours:
    """Runs commands, and keeps them and the seconds that each took in all. What is finished is not done again."""

    def __init__(self, cell: Cell, root: Path, work: Path, preset: str) -> None:
        self.cell, self.task, self.root, self.preset = cell, TASKS[cell.task], root, preset
        # as what the places are known to others
        self.places = {str(root): f"data/{cell.task}", str(work): "runs/accuracy", f"{ROOT}/": ""}
        self.few = "" if cell.unlabeled == "all" else f"-unlabeled{cell.unlabeled}"
        self.work = work / cell.task
        self.run = self.work / f"{cell.labels}-seed{cell.seed}{self.few}"
        self.commands: list[str] = []
        self.seconds: dict[str, float] = {}

    def find(self, stream: Iterable[np.ndarray], views: bool, zoom: bool) -> Iterator[Found]:
        steps = None if self.cell.method == "semanticgan" else 0  # None: what validation chose
        return self.model.find(stream, steps, views=views, zoom=zoom)

    def train(self) -> None:
        """Whatever is missing of image GANs, plain student, runs and student."""
        method = self.cell.method
        found = self.plain() if method == "self-taught" else self.encoder(ENCODERS.get(method, ""))
        if method in STUDENTS:
            others, count = [], COMMITTEES.get(method, "")
            if count:
                others.append(self.plain())
            if count == "three":
                others.append(self.encoder("projected"))
            out = found.with_name(f"{found.name}{count and f'-of-{count}'}-student")
            options = (str(found), *(word for other in others for word in ("--teacher", str(other))))
            found = self.trained(self.cell, out, "distill", options, (*STUDENT, *self.longer("student")))
        self.model = SemanticGAN.load(found)

    def image_gan(self, kind: str = "") -> Path:
        """Of StyleGAN2's D_img, or "projected", which needs half as long."""
        first = replace(self.cell, labels=self.task.labels[0], seed=0)  # one of them, since train wants some labels
        settings = (*PROJECTED, "gan.kimg=20") if kind else ("gan.kimg=40",)
        out = self.work / f"image-gan{self.few}{kind and f'-{kind}'}"
        return self.trained(first, out, "train", ("--preset", self.preset), (*settings, *IMAGE_GAN))

    def plain(self) -> Path:
        """A student of the labelled images alone, to which the image GAN tells size and classes, no more."""
        options = (str(self.image_gan()), "--kimg", f"{self.task.kimg[self.cell.labels]:g}")
        return self.trained(self.cell, self.run.with_name(f"{self.run.name}-plain"), "distill", options, PLAIN)

    def encoder(self, kind: str) -> Path:
        """A run of GAN and encoder; "taught" by the plain student, or from the "projected" image GAN."""
        projected = kind if kind == "projected" else ""
        start = ("--preset", self.preset, "--from", str(self.without_labels(self.image_gan(projected))))
        teacher = ("--teacher", str(self.plain())) if kind == "taught" else ()
        run = self.run.with_name(f"{self.run.name}{kind and f'-{kind}'}")
        settings = (*(PROJECTED if projected else ()), *RUN, *TASK_ENCODER[self.task.name], *self.longer("encoder"))
        return self.trained(self.cell, run, "train", (*start, *teacher), settings)

    def longer(self, stage: Literal["encoder", "student"]) -> tuple[str, ...]:
        """With more labels than the fewest a stage is longer in the same proportion as a baseline's training."""
        kimg, usual = self.task.kimg, getattr(build_config(self.preset), stage).kimg
        ratio = kimg[self.cell.labels] / kimg[self.task.labels[0]]
        return () if ratio == 1 else (f"{stage}.kimg={usual * ratio:g}",)

    def trained(self, cell: Cell, out: Path, verb: str, options: tuple[str, ...], settings: tuple[str, ...]) -> Path:
        """A finished run folder: found, gone on with, or new, with the labels and the seed of `cell`.

        Raises UserError for a folder that another command began.
        """
        if verb == "train":
            settings = (*TASK_SETTINGS[self.task.name], *settings)
        lists = ["--labeled", str(cell.labeled_list), *self.unlabeled(), "--val", str(SPLITS / self.task.name / "val.txt")]
        words = ["semanticgan", verb, *options, "--data", str(self.root), *lists, "--seed", str(cell.seed)]
        words += [word for setting in settings for word in ("--set", setting)] + ["--device", "cpu", "--out", str(out)]
        command = self.as_known(words)
        if (out / "config.json").is_file():
            begun = json.loads((out / "config.json").read_text(encoding="utf-8"))["command"]
            if (made := self.as_known(shlex.split(begun))) != command:
                raise UserError(f"{out}: got a run of `{made}`, expected one of `{command}`; delete it to begin again")
            words.append("--resume")
        else:
            shutil.rmtree(out, ignore_errors=True)
        if not (out / "model" / "model.safetensors").is_file():
            self.finish(words, out)
        self.seconds[out.name] = spent(out)
        if command not in self.commands:  # several parts of a cell begin with the same image GAN
            self.commands.append(command)
        return out

    def finish(self, words: list[str], out: Path) -> None:
        """Raises UserError where the command fails."""
        said = self.as_known(words)
        print(said, flush=True)
        self.work.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        try:
            done = subprocess.run([sys.executable, "-m", *words], check=False, env=os.environ)
        finally:
            seconds_file(out).write_text(f"{spent(out) + time.monotonic() - started:.1f}\n", encoding="utf-8")
        if done.returncode:
            raise UserError(f"{said}: exit code {done.returncode}; say the same command again to go on")

    def as_known(self, words: list[str]) -> str:
        """The command with the places' usual names."""

        def known_as(word: str) -> str:
            return next((name + word[len(place) :] for place, name in self.places.items() if word.startswith(place)), word)

        return shlex.join(map(known_as, words))

    def unlabeled(self) -> list[str]:
        """The options that name the unlabelled images: the task's lists, or a list of some of them."""
        lists = [SPLITS / self.task.name / name for name in self.task.unlabeled]
        if self.cell.unlabeled != "all":
            images = [path for file in lists for path in paths(file)]
            chosen = Stream(len(images), 0, "unlabeled").indices(0, int(self.cell.unlabeled))
            lists = [self.work / f"unlabeled{self.cell.unlabeled}.txt"]
            with replacing(lists[0]) as temporary:
                temporary.write_text("\n".join(images[k] for k in chosen) + "\n", encoding="utf-8")
        return [word for file in lists for word in ("--unlabeled", str(file))]

    def without_labels(self, run: Path) -> Path:
        """The image GAN to start from: its G and D_img saw no label; its D_seg, which did, is fresh, and there is no E."""
        base = run.with_name(f"{run.name}-base")
        if stage_checkpoints(base, "gan"):
            return base
        plan = Plan.read(run)
        config: Config = plan.config
        saved = load_checkpoint(stage_checkpoints(run, "gan")[-1])["members"]
        fresh = new_gan_state(config, plan.labels.num_classes, config.data.num_channels, "cpu").state_dict()["members"]
        members = {name: saved[name] for name in ("G", "G_ema", "D_img")} | {"D_seg": fresh["D_seg"]}
        (base / "checkpoints").mkdir(parents=True, exist_ok=True)
        save_checkpoint(base / "checkpoints" / "gan-000000000.pt", {"members": members, "numbers": {"nimg": 0}})
        return base
