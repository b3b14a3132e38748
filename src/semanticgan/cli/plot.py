"""`semanticgan plot`: figures for papers and talks, as SVG, PNG or GIF by the suffix of --out."""

import io
from pathlib import Path
from typing import Annotated

import typer

from semanticgan.cli.options import Device, Model, choose_device, example, say, whole
from semanticgan.cli.output import require_file, write_bytes
from semanticgan.errors import UserError

plot = typer.Typer(
    help="Draw figures for papers and talks.\n\nIn colours and shapes that colour-blind readers can tell apart.",
    short_help="Draw figures for papers and talks.",
    epilog=example("plot labels a.json:20:ours b.json:80:ours --out curves.svg", "plot inversion runs/first photo.jpg"),
    rich_markup_mode=None,
    no_args_is_help=True,
)

Points = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE:N:METHOD", help="A file of evaluate --json, from how many labels, by what method.", show_default=False
    ),
]
Score = Annotated[str, typer.Option(metavar="S", help="miou, accuracy, iou:CLASS or dice:CLASS.")]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Images.", show_default=False)]
FirstImage = Annotated[Path, typer.Argument(metavar="IMAGE_A", help="Where the way begins.", show_default=False)]
SecondImage = Annotated[Path, typer.Argument(metavar="IMAGE_B", help="Where it ends.", show_default=False)]
Steps = Annotated[int, typer.Option(parser=whole(0), metavar="N", help="Inversion steps.")]
Frames = Annotated[int, typer.Option(parser=whole(2), metavar="N", help="Pictures from one image to the other.")]
Columns = Annotated[int, typer.Option(parser=whole(2), metavar="N", help="How many of the steps are shown.")]
Chart = Annotated[Path, typer.Option("--out", metavar="FILE", help=".svg or .png.")]
Picture = Annotated[Path, typer.Option("--out", metavar="FILE", help=".png.")]
Film = Annotated[Path, typer.Option("--out", metavar="FILE", help=".gif.")]


@plot.command(
    epilog=example("plot labels a20.json:20:ours a80.json:80:ours b20.json:20:U-Net b80.json:80:U-Net --score iou:lesion")
)
def labels(points: Points, score: Score = "miou", out: Chart = Path("labels.svg")) -> None:
    """Draw a score over the number of labels, a line a method.

    With 95 % intervals over images; several files of one point are repeated trainings: their mean, lowest and highest.
    """
    _require_suffix(out, ".svg", ".png")
    from semanticgan.figures import label_efficiency
    from semanticgan.scores import Scores

    found = []
    for point in points:
        file, count, method = (["", "", "", *point.rsplit(":", 2)])[-3:]
        if not (file and count.isdecimal() and 0 < int(count) < 10**9 and method):
            raise UserError(f"{point}: expected FILE:N:METHOD, such as scores.json:20:ours")
        found.append((int(count), method, Scores.read(Path(file))))
    drawing = label_efficiency(found, score)
    if out.suffix == ".svg":
        write_bytes(out, drawing.to_svg(alone=True).encode())
    else:
        _write_picture(out, drawing.to_image())
    say(f"{len(found)} points: {out}")


@plot.command(epilog=example("plot inversion runs/first a.jpg b.jpg --steps 100 --out strip.png"))
def inversion(
    model: Model,
    images: Images,
    steps: Steps = 60,
    columns: Columns = 8,
    out: Picture = Path("inversion.png"),
    device: Device = "auto",
) -> None:
    """Draw how inversion explains images, step by step.

    The reconstruction and its label map, from the encoder's (step 0) to the last step's.
    """
    _require_suffix(out, ".png")
    from semanticgan.figures import film_strip
    from semanticgan.model import SemanticGAN

    loaded = SemanticGAN.load(model, device=choose_device(device))
    read = [(path.stem[:12], _read(path, loaded.config.data.num_channels)) for path in images]
    _write_picture(out, film_strip(loaded, read, steps, columns))
    say(f"{len(read)} images, {steps} steps: {out}")


@plot.command(epilog=example("plot interpolation runs/first a.jpg b.jpg --out way.gif"))
def interpolation(
    model: Model,
    first: FirstImage,
    second: SecondImage,
    frames: Frames = 30,
    steps: Steps = 0,
    out: Film = Path("interpolation.gif"),
    device: Device = "auto",
) -> None:
    """Draw the way from one image to another, with the label map.

    A GIF that goes there and back, straight in the space of latent codes.
    """
    _require_suffix(out, ".gif")
    from semanticgan import figures
    from semanticgan.model import SemanticGAN

    loaded = SemanticGAN.load(model, device=choose_device(device))
    a, b = (_read(path, loaded.config.data.num_channels) for path in (first, second))
    there = figures.interpolation(loaded, a, b, frames, steps)
    _write_picture(out, there[0], append_images=[*there[1:], *there[-2:0:-1]], save_all=True, duration=80, loop=0)
    say(f"{frames} pictures there, and back: {out}")


def _require_suffix(out: Path, *suffixes: str) -> None:
    if out.suffix not in suffixes:
        raise UserError(f"--out {out}: got a file ending in {out.suffix or 'nothing'}, expected {' or '.join(suffixes)}")
    require_file(out, "--out")


def _read(path: Path, channels: int):  # type: ignore[no-untyped-def]  # an array, whose package loads later
    from semanticgan.data.dataset import read_image

    return read_image(path, channels)


def _write_picture(out: Path, picture, **options) -> None:  # type: ignore[no-untyped-def]
    stream = io.BytesIO()
    picture.save(stream, out.suffix[1:].upper(), **options)
    write_bytes(out, stream.getvalue())
