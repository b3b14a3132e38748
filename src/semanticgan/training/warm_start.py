"""Start from another run's or model's networks, to add labels or images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from semanticgan.config import STUDENT, Config, build_config, choose_preset
from semanticgan.data.sources import Sources
from semanticgan.errors import UserError
from semanticgan.model import SemanticGAN
from semanticgan.nn.layers import misfit
from semanticgan.training.checkpoint import State, load_checkpoint, stage_checkpoints
from semanticgan.training.plan import Plan

TO_TRAIN = ("data", "networks")  # what an exported model says of how it was trained
EXPORTED = 20_000  # images that the networks of an exported model are taken to have seen; it does not say


def earlier_run(source: str) -> Plan | None:
    """What the run `source` was made from; None for a model, for a run of `distill`, and where it cannot be read."""
    try:
        plan = Plan.read(Path(source))
    except UserError:
        return None
    return None if plan.config.preset == STUDENT else plan


def earlier_config(
    source: str, earlier: Plan | None, overrides: Sequence[str], seed: int | None, device: str
) -> tuple[Config, list[str]]:
    """The settings to go on with where no preset is named, and what to say of them: the run's, or those of the model's sizes.

    Raises UserError where `source` is neither.
    """
    if earlier is not None:
        config = build_config(earlier.config.preset, tuple(overrides), seed, earlier.config.model_dump(exclude={"preset"}))
        return config, [f"settings: those of {source}"]
    model = SemanticGAN.load(source).config
    preset = choose_preset(model.data.resolution, device)
    sections = {} if model.kind == "student" else {name: getattr(model, name).model_dump() for name in TO_TRAIN}
    said = f"settings: preset {preset}, data and networks of {source}"
    return build_config(preset, tuple(overrides), seed, sections), [said]


def notes_on_earlier(source: str, earlier: Plan | None, sources: Sources, config: Config) -> list[str]:
    """What in this run contradicts the one that it goes on from."""
    if earlier is None:
        return []
    notes = []
    learnt = sorted(set(sources.val) & set(earlier.sources.labeled)) if sources.root == earlier.sources.root else []
    if learnt:
        notes.append(f"warning: {len(learnt)} validation images taught {source}, such as {learnt[0]}: scores will flatter")
    before, now = earlier.config.data.symmetry, config.data.symmetry
    if before != now:
        notes.append(f"warning: data.symmetry is {now}, that of {source} was {before}; set it so if that is an oversight")
    return notes


def warm_start(source: str, gan: State, encoder: State) -> list[str]:
    """Copy G, D_img, D_seg and E as far as `source` has them (a model folder has no discriminators); says what was taken.

    Optimisers start fresh; the averages go on, as of networks that have seen as many images as the source's. Raises UserError
    when the sizes differ.
    """
    checkpoints = stage_checkpoints(Path(source), "gan")
    taken: list[str] = []
    weights, seen = None, EXPORTED
    if checkpoints:
        content = load_checkpoint(checkpoints[-1])
        saved = entry(content, "members", checkpoints[-1])
        for name in ("G", "G_ema", "D_img", "D_seg"):
            copy_weights(source, name, gan.members[name], entry(saved, name, checkpoints[-1]))
            taken.append(name)
        gan.seen_before = images_seen(content.get("numbers"))
        best = Path(source) / "checkpoints" / "encoder-best.pt"
        if best.is_file():
            content = load_checkpoint(best)
            weights, seen = entry(content, "E", best), images_seen(content)
    else:
        model = SemanticGAN.load(source)
        for name in ("G", "G_ema"):
            copy_weights(source, name, gan.members[name], model.G.state_dict())
        gan.seen_before = EXPORTED
        taken.append("G")
        weights = model.E.state_dict() if model.E is not None else None
    if weights is not None:
        for name in ("E", "E_ema"):
            copy_weights(source, name, encoder.members[name], weights)
        encoder.seen_before = seen
        taken.append("E")
    fresh = [name for name in ("D_img", "D_seg", "E") if name not in taken]
    notes = [f"from {source}: {', '.join(taken)}"]
    return [*notes, f"from {source}: has no {', '.join(fresh)}; they start fresh"] if fresh else notes


def images_seen(numbers: object) -> int:
    """What a checkpoint says of it, runs before its own included; EXPORTED where it says nothing of sense."""
    found = [numbers.get("nimg"), numbers.get("seen_before", 0)] if isinstance(numbers, dict) else [None]
    counts = [n for n in found if isinstance(n, int) and n >= 0]
    return sum(counts) if len(counts) == len(found) else EXPORTED


def entry(content: object, name: str, path: Path) -> dict[str, Any]:
    """A named part of a checkpoint. Raises UserError where there is none."""
    part = content.get(name) if isinstance(content, dict) else None
    if not isinstance(part, dict):
        raise UserError(f"--from {path}: has no {name}; expected a checkpoint of a run of this program")
    return part


def copy_weights(source: str, name: str, net: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raises UserError naming the first tensor whose shape differs."""
    if wrong := misfit({key: value.shape for key, value in weights.items()}, net.state_dict()):
        advice = "use the preset, resolution, classes and sizes of the run it comes from"
        raise UserError(f"--from {source}: {name}.{wrong}; {advice}")
    net.load_state_dict(weights)
