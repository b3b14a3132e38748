"""Everything that a stage must remember, as one object with one list of members."""

import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semanticgan.errors import UserError, first_line

# What zipfile, torch and its unpickler raise for files that are truncated, damaged, foreign or hostile.
_UNREADABLE = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError,
    zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip


class State:
    """Named members with `state_dict` (networks, optimisers) and named numbers; saved and loaded whole.

    Attribute access gives both: `state.G`, `state.nimg = 3`. A number may be a tensor, which a GPU need not have ready
    before it is saved.
    """

    members: dict[str, Any]
    numbers: dict[str, int | float | Tensor]

    def __init__(self, members: dict[str, Any], numbers: Mapping[str, int | float]) -> None:
        self.__dict__["members"], self.__dict__["numbers"] = members, dict(numbers)

    def __getattr__(self, name: str) -> Any:
        for group in (self.__dict__["members"], self.__dict__["numbers"]):
            if name in group:
                return group[name]
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.numbers:
            raise AttributeError(f"{name} is not one of the numbers {list(self.numbers)}")
        self.numbers[name] = value

    def state_dict(self) -> dict[str, Any]:
        numbers = {k: float(v) if isinstance(v, Tensor) else v for k, v in self.numbers.items()}
        return {"members": {k: m.state_dict() for k, m in self.members.items()}, "numbers": numbers}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Raises ValueError where members or numbers are missing or foreign."""
        for what, mine in (("members", self.members), ("numbers", self.numbers)):
            if set(mine) != set(saved[what]):
                raise ValueError(f"got {what} {sorted(saved[what])}, expected {sorted(mine)}")
        for name, member in self.members.items():
            member.load_state_dict(saved["members"][name])
        self.numbers.update(saved["numbers"])


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values; the file appears whole or not at all. Raises UserError when the disk is full."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error}); make room, then go on with --resume") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; nothing in the file is executed. Raises UserError for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not compare checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"holds a {type(content).__name__}")
        return content
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot be read as a checkpoint ({first_line(error)})") from None


def to_keep(state: State, score: float, keep: str) -> bool:
    """Are these the weights to export so far? By their validation score, which is remembered; or "last", whatever they score.

    A score that is NaN, as where no validation image or answer has a foreground, speaks for the later weights.
    """
    better = not math.isfinite(score) or score > state.best
    if math.isfinite(score):
        state.best = max(state.best, score)
    return better or keep == "last"


def load_kept(folder: Path, stage: str) -> dict[str, Any]:
    """A stage's weights to export. Raises UserError where they cannot be read."""
    try:
        return load_checkpoint(folder / "checkpoints" / f"{stage}-best.pt")
    except UserError as error:
        raise UserError(f"{error}; delete {stage}-[0-9]*.pt beside it, and --resume trains that stage again") from None


def stage_checkpoints(folder: Path, stage: str) -> list[Path]:
    """Checkpoints of a stage, oldest first (their names hold the images seen)."""
    return sorted((folder / "checkpoints").glob(f"{stage}-[0-9]*.pt"))


def save_stage(folder: Path, stage: str, nimg: int, content: dict[str, Any]) -> Path:
    """Add a checkpoint of a stage and drop all but the last two."""
    path = folder / "checkpoints" / f"{stage}-{nimg:09d}.pt"
    save_checkpoint(path, content)
    for old in stage_checkpoints(folder, stage)[:-2]:
        old.unlink()
    return path
