"""What several verbs of the command share: readers of values, the device, options, examples."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from semanticgan.errors import UserError, first_line

SEED_MAX = 2**63 - 1


def say(text: str) -> None:
    """Progress is plain lines, at once, so that log files can be followed."""
    print(text, flush=True)


def choose_device(name: str) -> str:
    """`auto` is a GPU, else the CPU; of several GPUs the first, or the one that torchrun means for this process.

    Raises UserError for a device that cannot compute here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    elif name.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise UserError(f"--device {name}: got one GPU for all processes of this machine; expected cuda, a GPU for each")
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        raise UserError(f"--device {name}: cannot be used here ({reason}); expected auto, cpu, cuda or cuda:1") from None
    return name


def whole(low: int, high: int = SEED_MAX) -> Callable[[str | int], int]:
    """A reader of whole numbers, and of defaults that are some, which says what it got and what it expected."""

    def parse(text: str | int) -> int:
        with suppress(ValueError):
            if low <= int(text) <= high:
                return int(text)
        raise typer.BadParameter(f"got {str(text)!r}, expected a whole number from {low} to {high}")

    return parse


def number(low: float, high: float, expected: str) -> Callable[[str | float], float]:
    """A reader of numbers above `low` and below `high`."""

    def parse(text: str | float) -> float:
        with suppress(ValueError):
            if low < float(text) < high:
                return float(text)
        raise typer.BadParameter(f"got {str(text)!r}, expected {expected}")

    return parse


def example(*commands: str) -> str:
    """The end of a help text; \\b keeps its lines as they are."""
    return "\b\nExample:\n" + "\n".join(f"  semanticgan {command}" for command in commands)


@contextmanager
def exit_code_of_signals() -> Iterator[None]:
    """A training that Ctrl-C or SIGTERM ended has saved its state; the shell learns the signal, 130 or 143."""
    from semanticgan.training.run import Interrupted

    try:
        yield
    except Interrupted as stop:
        raise typer.Exit(128 + stop.signum) from None


POSITIVE = number(0.0, math.inf, "a number above 0")
PSI = number(-2.0, 2.0, "a number between -2 and 2, usually .5 to 1")
AUTO = "cpu, cuda, cuda:1, ..., or auto: a GPU if there is one."
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a run, or a Hugging Face id.", show_default=False)]
Device = Annotated[str, typer.Option(metavar="D", help=AUTO)]

MORE = " Repeat for several."
LIST = f"A text file of image paths, one a line, or a folder; looked up as given, else below DATA.{MORE}"
Data = Annotated[Path | None, typer.Option(metavar="DATA", help="Folder of the images; may hold classes.json.")]
Labeled = Annotated[list[str], typer.Option(metavar="X", help=f"Images with masks. {LIST} Default: every image with a mask.")]
Unlabeled = Annotated[list[str], typer.Option(metavar="X", help="More images; masks are not read. Default: all but --val's.")]
Val = Annotated[list[str], typer.Option(metavar="X", help="Images with masks to choose by. Default: a tenth of the labelled.")]
Run = Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder, new or empty.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
RunSeed = Annotated[int | None, typer.Option(parser=whole(0), metavar="N", help="Same seed, same run. Default: 0.")]
Hours = Annotated[float | None, typer.Option(parser=POSITIVE, metavar="H", help="Time for all stages. Default: by kimg.")]
TAUGHT = f"A model, such as a student, whose label maps of the unlabelled images teach.{MORE}"
Teachers = Annotated[list[str], typer.Option("--teacher", metavar="MODEL", help=TAUGHT)]
Settings = Annotated[list[str], typer.Option("--set", metavar="SECTION.FIELD=VALUE", help=f"A setting.{MORE}")]
