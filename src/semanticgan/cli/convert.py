"""`semanticgan convert`: its options, and what they mean to the formats."""

import math
from pathlib import Path
from typing import Annotated

import typer

from semanticgan.cli.options import say
from semanticgan.cli.output import require_new
from semanticgan.errors import UserError

FORMATS = "nnunet, celebamask, authors, voc, cvat, mmseg, data, nifti, stylegan, coco, dicom, folders"
TARGETS = "data, coco, coco-polygons, voc, mmseg, authors, nnunet, nifti"

Source = Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder, a file, or a zip.", show_default=False)]
From = Annotated[str | None, typer.Option("--from", metavar="FORMAT", help=f"{FORMATS}. Default: found out.")]
To = Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"{TARGETS}.")]
Target = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write, new or empty.", show_default=False)]
Classes = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="a,b,c (class 0 first), or a classes.json. Where classes have names: which to keep."),
]
Images = Annotated[str | None, typer.Option(metavar="DIR", help="Folder of the images, as given or below SOURCE.")]
Masks = Annotated[str | None, typer.Option(metavar="DIR", help="Folder of the masks, as given or below SOURCE.")]
ReduceZero = Annotated[bool, typer.Option("--reduce-zero-label", help="Mask value 0 is ignored, 1 is class 0, and so on.")]
Window = Annotated[str | None, typer.Option(metavar="LOW,HIGH", help="Values that become black and white. Default: see docs.")]
Plane = Annotated[str | None, typer.Option(metavar="P", help="axial, coronal or sagittal slices. Default: as acquired.")]


def convert(
    source: Source,
    out: Target,
    from_format: From = None,
    to_format: To = "data",
    classes: Classes = None,
    images: Images = None,
    masks: Masks = None,
    reduce_zero_label: ReduceZero = False,
    window: Window = None,
    plane: Plane = None,
) -> None:
    """Read images and label maps from other formats, or write them.

    By default into a data folder to train on; with --to into another format. Nothing is written unless all can be read.
    """
    require_new(out, "--out")
    if plane not in (None, "axial", "coronal", "sagittal"):
        raise UserError(f"--plane: got {plane!r}, expected axial, coronal or sagittal")
    values = None if window is None else _window(window)
    from semanticgan import formats

    options = formats.Options(classes, images, masks, reduce_zero_label, values, plane)
    formats.convert(source, out, from_format, to_format, options, say=say)


def _window(text: str) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in text.split(","))
        if -math.inf < low < high < math.inf:
            return low, high
    except ValueError:
        pass
    raise UserError(f"--window: got {text!r}, expected two numbers LOW,HIGH, the lower first, such as -160,240")
