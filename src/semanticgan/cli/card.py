"""`semanticgan info`: what a model is, and how far a run has come."""

import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from semanticgan.config import STUDENT, read_model_config
from semanticgan.errors import UserError
from semanticgan.model import find_model, settings_in_words
from semanticgan.scores import Scores
from semanticgan.training.plan import read_paths


def describe(name: str) -> Iterator[str]:
    """The lines about a model folder, a run folder or a Hugging Face id. Raises UserError when it is none of them."""
    folder = Path(name)
    if (folder / "config.json").is_file() and (folder / "labeled.txt").is_file():
        yield from _run_lines(folder)
        if not (folder / "model").is_dir():
            return
    yield from _model_lines(find_model(name), name)


def _run_lines(folder: Path) -> Iterator[str]:
    plan = _read(folder / "config.json")
    try:
        config, labels = plan["config"], plan["labels"]
        counts = {role: len(read_paths(folder / f"{role}.txt")) for role in ("labeled", "unlabeled", "val")}
        yield f"run: {folder}"
        yield f"command: {plan['command']}"
        yield (
            f"data: {plan['data']}: {counts['unlabeled']} training images, {counts['labeled']} of them labelled, "
            f"{counts['val']} for validation"
        )
        yield f"classes: {', '.join(labels['names'])}"
        student = config["preset"] == STUDENT
        stages = f"student {config['student']['kimg']:g} kimg" if student else (
            f"GAN {config['gan']['kimg']:g} kimg, encoder {config['encoder']['kimg']:g} kimg"
        )  # fmt: skip
        length = f"{plan['hours']:g} hours" if plan["hours"] else stages
        yield f"preset {config['preset']}: {config['data']['resolution']} px, seed {config['run']['seed']}, length {length}"
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'}: not the config.json of a run ({error!r}); expected a run folder") from None
    last = _last_statistics(folder / "stats.jsonl")
    yield f"last: {_numbers(last)}" if last else "last: nothing yet, the run is before its first tick"
    if (folder / "validation.json").is_file():
        scores = Scores.read(folder / "validation.json")
        yield f"validation, {scores.num_images} images: {_numbers(scores.mean.model_dump())}"
    verb = f"distill {shlex.quote(plan['start_from'])}" if student else "train"
    if (folder / "model").is_dir() and not student:
        yield f"finished; to add labels or images: semanticgan train --data DATA --from {_quoted(folder)} --out NEW"
    elif not (folder / "model").is_dir():
        yield f"not finished; go on with: semanticgan {verb} --out {_quoted(folder)} --resume"


def _model_lines(folder: Path, name: str) -> Iterator[str]:
    config = read_model_config((folder / "config.json").read_text(encoding="utf-8"), str(folder / "config.json"))
    weights = folder / "model.safetensors"
    yield f"model: {folder} ({weights.stat().st_size / 1e6:.3g} MB)"
    yield f"classes: {', '.join(config.labels.names)}"
    if config.teacher:
        yield f"student of: {config.teacher}"
    yield f"images: {config.data.in_words}"
    yield f"networks: {_sizes(weights)}"
    yield f"segments with: {settings_in_words(config)}"
    quantiles = config.distance_quantiles
    if len(quantiles) > 1:
        middle, high = quantiles[len(quantiles) // 2], quantiles[-2]
        yield f"distance of validation images: median {middle:.3f}, {1 - 1 / (len(quantiles) - 1):.0%} below {high:.3f}"
    versions = ", ".join(f"{package} {version}" for package, version in config.versions.items())
    if versions:
        yield f"made with: {versions}"
    card = folder / "README.md"
    if card.is_file():
        yield f"card: {card}"
    start = " --steps 200" if config.steps == 0 and not config.has_encoder and config.kind != "student" else ""
    yield f"use: semanticgan segment {shlex.quote(name)} IMAGES{start} --out DIR"


def _sizes(weights: Path) -> str:
    """Numbers of parameters, from the file's header."""
    counts: dict[str, int] = {}
    try:
        with safe_open(weights, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118
                net = key.partition(".")[0]
                counts[net] = counts.get(net, 0) + math.prod(file.get_slice(key).get_shape())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights}: cannot be read as safetensors ({error}); export or download the model again") from None
    return ", ".join(f"{net} {count / 1e6:.3g} M" for net, count in sorted(counts.items(), key=lambda item: item[0] != "G"))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not JSON ({error}); expected the config.json of a run or a model") from None


def _last_statistics(path: Path) -> dict[str, Any]:
    """The last whole line of stats.jsonl; a killed run may have left half a line after it."""
    if not path.is_file():
        return {}
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            continue
    return {}


def _numbers(values: dict[str, Any], prefix: str = "") -> str:
    parts = []
    for name, value in values.items():
        if isinstance(value, dict):
            parts.append(_numbers(value, f"{prefix}{name} "))
        elif value is not None:
            parts.append(f"{prefix}{name} {value:.4g}" if isinstance(value, float) else f"{prefix}{name} {value}")
    return ", ".join(part for part in parts if part)


def _quoted(folder: Path) -> str:
    return shlex.quote(str(folder))
