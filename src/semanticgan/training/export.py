"""The end of a run: settings chosen on validation images, scores, and the model folder with its card."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from semanticgan.config import Config, ModelConfig
from semanticgan.data.sources import Sources
from semanticgan.evaluation import Choice, Share, choose, evaluate
from semanticgan.labels import LabelSpec
from semanticgan.model import SemanticGAN, settings_in_words
from semanticgan.nn.encoder import Encoder
from semanticgan.nn.generator import Generator
from semanticgan.predict import Found
from semanticgan.training.plan import versions
from semanticgan.training.run import Run, write_text

STEP_CANDIDATES = (0, 20, 60)


def export_model(
    run: Run,
    config: Config,
    labels: LabelSpec,
    sources: Sources,
    G: Generator,
    E: Encoder,
    device: str,
    command: str,
    lengths: dict[str, float],  # kimg of the stages and hours, for the card
    how: Sequence[str] = (),  # sentences on the training, for the card
) -> None:
    """Choose steps, zoom and temperature on the validation images, and write `model/`, and `validation.json` with the scores.

    Processes share the images; rank 0 writes.
    """
    chosen = ModelConfig(
        labels=labels, data=config.data, networks=config.networks, inversion=config.inversion,
        views=config.predict.views, steps=config.predict.steps or 0, zoom=bool(config.predict.zoom),
        one_object=bool(config.predict.one_object), convex=bool(config.predict.convex), contrast=config.predict.contrast,
        versions=versions(),
    )  # fmt: skip
    model = SemanticGAN(chosen, G, E, device)
    shared = run.world.shared
    run.log(f"choosing steps, zoom and temperature on {len(sources.val)} validation images")
    choice = choose_settings(model, config, sources, shared)
    for name, value in choice.scores.items():
        run.log(f"validation IoU: {name}: {value:.4f}")
    model = model.configured(
        steps=choice.steps, zoom=choice.zoom, temperature=choice.temperature, distance_quantiles=choice.distance_quantiles
    )
    scores = evaluate(model.find, sources.root, sources.val, labels, config.data.num_channels, share=shared)
    run.log(summary(scores))

    def write() -> None:
        write_text(run.folder / "validation.json", json.dumps(scores, indent=1) + "\n")
        may_zoom = labels.num_classes == 2 and config.predict.zoom is None
        open_ones = [*(["steps"] if config.predict.steps is None else []), *(["zoom"] if may_zoom else [])]
        text = card(model.config, sources, scores, command, lengths, config.run.seed, open_ones, how)
        model.save(run.folder / "model", text)

    run.world.first(write)


def choose_settings(model: SemanticGAN, config: Config, sources: Sources, share: Share) -> Choice:
    """What `semanticgan.evaluation.choose` says, but for settings that the config fixes."""

    def find(images: Iterable[np.ndarray], steps: int, zoom: bool) -> Iterator[Found]:
        return model.find(images, steps, zoom=zoom)

    steps: Sequence[int] = STEP_CANDIDATES if config.predict.steps is None else (config.predict.steps,)
    return choose(find, sources.root, sources.val, model.labels, config.data.num_channels, steps=steps,
                  zoom=config.predict.zoom, share=share)  # fmt: skip


def summary(scores: dict[str, Any]) -> str:
    """One line: the foreground classes' IoU and Dice, and mIoU."""
    mean = scores["mean"]
    named = [
        f"{name} IoU {mean['iou'][name]:.4f} Dice {mean['dice'][name]:.4f}"
        for name in list(mean["iou"])[1:] if mean["iou"][name] is not None
    ]  # fmt: skip
    if mean["miou"] is not None:
        named.append(f"mIoU {mean['miou']:.4f}")
    return f"validation, {scores['num_images']} images: {'; '.join(named) or 'no pixel that counts'}"


def card(
    config: ModelConfig, sources: Sources, scores: dict[str, Any], command: str, lengths: dict[str, float], seed: int,
    open_ones: Sequence[str],  # settings of prediction that validation chose, beside the temperature
    how: Sequence[str] = (),  # more sentences on the training
) -> str:  # fmt: skip
    """The model folder's README.md: what it is, what it was trained on and how, and its validation scores."""
    classes = ", ".join(config.labels.names)
    imagenet = config.kind != "student" and config.networks.encoder_trunk != "residual"  # a student's `how` says it
    how = [*how, *(["The encoder's trunk began with weights trained on ImageNet."] if imagenet else [])]
    student = config.kind == "student"
    chosen = f"{', '.join(open_ones)} and temperature were" if open_ones else "the temperature was"
    what = f"Segments images into: {classes}."
    what += f" A U-Net, student of `{config.teacher}`; its `reconstruction` and `distance` are None." if student else ""
    unlike = (
        "it does not tell which; the `distance` of a model with a generator does." if student
        else "`distance` beside the quantiles in `config.json` tells how unlike they are."
    )  # fmt: skip
    lines = [
        "---", front_matter(sources, scores) + "---", "",
        f"# SemanticGAN {'student' if student else 'model'}", "",
        f"{what} Works at {config.data.resolution} px, {config.data.channels} channel(s), "
        f"images of any size ({config.data.fit}).", "",
        "```python", "from semanticgan import SemanticGAN", 'model = SemanticGAN.load("this folder")',
        "result = model.segment([image])[0]", "```", "",
        "## Training", "",
        f"{len(sources.labeled)} labelled and {len(sources.unlabeled)} unlabelled images of `{Path(sources.root).name}` "
        f"(labelled ones included); {len(sources.val)} validation images. Seed {seed}. "
        + ", ".join(f"{name} {value:g}" for name, value in lengths.items()) + ".", "",
        "```", command, "```", *(["", " ".join(how)] if how else []), "",
        "## Use", "",
        f"By default: {settings_in_words(config)}; {chosen} chosen on the validation images.", "",
    ]  # fmt: skip
    lines += ["## Validation scores", "", "| class | IoU | 95 % | Dice |", "|---|---|---|---|"]
    for name in config.labels.names:
        iou, dice, interval = (scores[a][b][name] for a, b in (("mean", "iou"), ("mean", "dice"), ("interval95", "iou")))
        if iou is not None:
            low, high = interval
            between = "too few images" if low is None or high is None else f"{low:.4f} to {high:.4f}"
            lines.append(f"| {name} | {iou:.4f} | {between} | {dice:.4f} |")
    lines += [
        "", "## Limits", "",
        f"Images unlike the training images get worse label maps; {unlike} "
        "The terms of the training data apply to this model. Not a medical device.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def front_matter(sources: Sources, scores: dict[str, Any]) -> str:
    """The card's head in YAML, as the Hugging Face hub reads it."""
    about: dict[str, Any] = {
        "pipeline_tag": "image-segmentation", "library_name": "semanticgan",
        "license": "other", "license_name": "terms-of-the-training-data",
        "tags": ["semantic-segmentation", "semi-supervised", "stylegan2"],
    }  # fmt: skip
    if scores["mean"]["miou"] is not None:
        data = Path(sources.root).name or "data"
        result = {
            "task": {"type": "image-segmentation"},
            "dataset": {"type": data, "name": f"{data}, validation images"},
            "metrics": [{"type": "mean_iou", "name": "mIoU", "value": round(scores["mean"]["miou"], 4)}],
        }
        about |= {"metrics": ["mean_iou"], "model-index": [{"name": "SemanticGAN", "results": [result]}]}
    return yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
