"""`semanticgan suggest`: its options, and the list that it prints."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from semanticgan.cli.options import Device, Model, choose_device, say, whole
from semanticgan.cli.output import require_file, write_text

Data = Annotated[Path, typer.Option(metavar="DATA", help="Folder of the images.", show_default=False)]
Labeled = Annotated[list[str], typer.Option(metavar="X", help="Labelled images: list or folder. Default: all with a mask.")]
Unlabeled = Annotated[list[str], typer.Option(metavar="X", help="Images to choose from. Default: all without a mask.")]
Num = Annotated[int, typer.Option(parser=whole(1), metavar="N", help="How many images.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write them as JSON.")]

SECONDS_BETWEEN_LINES = 10


def suggest(
    model: Model,
    data: Data,
    unlabeled: Unlabeled = [],  # noqa: B006
    labeled: Labeled = [],  # noqa: B006
    num: Num = 10,
    json_file: JsonFile = None,
    device: Device = "auto",
) -> None:
    """Name images to label next.

    Those that the model is unsure of and explains badly, unlike the labelled ones and unlike each other; of a run's model none
    of its validation images. docs/suggest.md compares them with images at random.
    """
    if json_file is not None:
        require_file(json_file, "--json")
    from semanticgan.model import SemanticGAN
    from semanticgan.suggest import suggest as choose

    loaded = SemanticGAN.load(model, device=choose_device(device))
    said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            say(f"{done} of {total} images")

    val = Path(model, "val.txt")  # of a run
    held_out = val.read_text(encoding="utf-8", errors="surrogateescape").split("\n") if val.is_file() else []
    proposals, problems = choose(loaded, data, num, unlabeled, labeled, held_out, progress)
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    say("   gain  uncertainty  distance  novelty  image")
    for p in proposals:
        say(f"  {p.gain:.3f}        {p.uncertainty:.3f}     {p.distance:.3f}    {p.novelty:.3f}  {p.image}")
    if json_file is not None:
        content = {"model": model, "data": str(data), "images": [asdict(p) for p in proposals], "failed": problems}
        write_text(json_file, json.dumps(content, indent=1) + "\n")
