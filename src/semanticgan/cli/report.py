"""`semanticgan report`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from semanticgan.cli.options import Device, choose_device, say
from semanticgan.cli.output import require_file
from semanticgan.errors import UserError

Source = Annotated[Path, typer.Argument(metavar="RUN_OR_JSON", help="A run, or a file of evaluate --json.", show_default=False)]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Default: RUN/report.html, or the file's name with .html.")]
CasesModel = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Draws the cases. Default: the one scored.")]
CasesData = Annotated[Path | None, typer.Option("--data", metavar="DATA", help="Folder of the images. Default: as recorded.")]


def report(source: Source, out: Out = None, model: CasesModel = None, data: CasesData = None, device: Device = "auto") -> None:
    """Show what a run or an evaluation came to, on one page.

    Settings, curves, pictures, scores, the worst cases, and whether the distance warns of bad masks: one HTML file that needs
    nothing else. It holds some of the images.
    """
    if out is not None:
        require_file(out, "--out")
    if (source / "model.safetensors").is_file():
        raise UserError(f"{source}: a model; name its run, or the file that semanticgan evaluate {source} ... --json FILE writes")
    from semanticgan.report import write_report

    say(f"report: {write_report(source, out, model, data, choose_device(device))}")
