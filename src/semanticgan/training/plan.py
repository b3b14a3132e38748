"""What a run is made from, kept in its folder."""

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from semanticgan import __version__
from semanticgan.config import STUDENT, Config, build_config
from semanticgan.data.sources import Sources, find_sources
from semanticgan.errors import UserError
from semanticgan.labels import LabelSpec
from semanticgan.training.run import write_text


@dataclass(frozen=True)
class Plan:
    """All that a run is made from; kept as the run folder's config.json and three lists."""

    config: Config
    labels: LabelSpec
    sources: Sources
    hours: float | None
    device: str
    start_from: str | None
    command: str
    teachers: tuple[str, ...] = ()  # models, beside the one that `distill` names

    def write(self, folder: Path) -> None:
        for name in ("labeled", "unlabeled", "val"):
            write_text(folder / f"{name}.txt", "".join(f"{path}\n" for path in getattr(self.sources, name)))
        content = {
            "command": self.command, "data": str(self.sources.root), "hours": self.hours, "device": self.device,
            "start_from": self.start_from, "teachers": self.teachers, "notes": self.sources.notes,
            "labels": self.labels.model_dump(mode="json"), "config": self.config.model_dump(mode="json"), "versions": versions(),
        }  # fmt: skip
        write_text(folder / "config.json", json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """Raises UserError when the folder is no run."""
        try:
            content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            lists = {name: read_paths(folder / f"{name}.txt") for name in ("labeled", "unlabeled", "val")}
            if not lists["val"]:
                raise ValueError("val.txt names no image")
            sources = Sources(root=Path(content["data"]), notes=tuple(content["notes"]), **lists)
            return cls(Config.model_validate(content["config"]), LabelSpec.model_validate(content["labels"]), sources,
                       content["hours"], content["device"], content["start_from"], content["command"],
                       tuple(content.get("teachers", ())))  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--out {folder}: --resume needs a run folder, and this one cannot be read as one ({reason})"
            ) from None


def versions() -> dict[str, str]:
    """Of what computes, for a run's and a model's config.json."""
    return {"semanticgan": __version__, "torch": torch.__version__, "python": platform.python_version()}


def read_paths(path: Path) -> tuple[str, ...]:
    """The lines of one of a run's lists, as `Plan.write` wrote them."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    return tuple(line for line in text.split("\n") if line)  # splitlines would cut at rarer characters too


def require_same(plan: Plan, given: dict[str, Any]) -> None:
    """Raises UserError if options given beside --resume ask for another run than the one in the folder."""
    wrong: list[str] = []
    config = plan.config
    if given["preset"] not in (None, "auto", config.preset):
        wrong.append(f"--preset: got {given['preset']}, the run has {config.preset}")
    if given["preset"] or given["overrides"] or given["seed"] is not None:
        preset = "cpu64" if config.preset == STUDENT else config.preset
        asked = build_config(preset, given["overrides"], given["seed"], config.model_dump(exclude={"preset"}))
        for text in given["overrides"]:
            section, field = text.partition("=")[0].strip().split(".", 1)
            ours, theirs = getattr(getattr(config, section), field), getattr(getattr(asked, section), field)
            if ours != theirs:
                wrong.append(f"--set {section}.{field}: got {theirs}, the run has {ours}")
        if given["seed"] not in (None, config.run.seed):
            wrong.append(f"--seed: got {given['seed']}, the run has {config.run.seed}")
    if given["hours"] not in (None, plan.hours):
        wrong.append(f"--hours: got {given['hours']}, the run has {plan.hours}")
    if given["data"] is not None and Path(os.path.abspath(given["data"])) != plan.sources.root:
        wrong.append(f"--data: got {given['data']}, the run has {plan.sources.root}")
    if given["start_from"] and plan.start_from not in (given["start_from"], os.path.abspath(given["start_from"])):
        option = "MODEL" if config.preset == STUDENT else "--from"
        wrong.append(f"{option}: got {given['start_from']}, the run has {plan.start_from}")
    if given["teachers"] and given["teachers"] != plan.teachers:
        wrong.append(f"--teacher: got {', '.join(given['teachers'])}, the run has {', '.join(plan.teachers) or 'none'}")
    if given["labeled"] or given["unlabeled"] or given["val"]:
        asked_sources = find_sources(plan.sources.root, given["labeled"], given["unlabeled"], given["val"])
        for name in ("labeled", "unlabeled", "val"):
            if given[name] and set(getattr(asked_sources, name)) != set(getattr(plan.sources, name)):
                wrong.append(f"--{name}: got other images than the run has")
    if wrong:
        enough = "MODEL and --out" if config.preset == STUDENT else "--out"
        raise UserError("\n".join(f"{w}; with --resume give {enough} alone, or start a new run" for w in wrong))
