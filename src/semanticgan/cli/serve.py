"""`semanticgan serve`: its options."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from semanticgan.cli.options import Device, choose_device, say, whole
from semanticgan.errors import UserError

ModelOrRun = Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", show_default=False)]
Data = Annotated[Path | None, typer.Option(metavar="DATA", help="Folder of images to label; masks are written into it.")]
Port = Annotated[int, typer.Option(parser=whole(0, 65535), metavar="N", help="Of 127.0.0.1; 0: any that is free.")]


def serve(model: ModelOrRun, data: Data = None, port: Port = 8765, device: Device = "auto") -> None:
    """Open a page for looking, correcting and labelling in the browser.

    Drop an image and see its label map; with --data, correct masks, save them beside their images, and see which image to
    label next. For this machine alone: http://127.0.0.1:8765.
    """
    missing = [package for package in ("fastapi", "uvicorn") if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"{missing[0]} is not installed, but the page needs it; pip install 'semanticgan[app]'")
    from semanticgan.model import SemanticGAN
    from semanticgan.web.app import serve as serve_page

    serve_page(SemanticGAN.load(model, device=choose_device(device)), model, data, port, say)
