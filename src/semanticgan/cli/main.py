"""The command `semanticgan`: a verb per stage. It parses, calls the package, and prints; torch loads inside the verbs."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semanticgan import __version__
from semanticgan.cli.convert import convert
from semanticgan.cli.distill import distill
from semanticgan.cli.export import export, push
from semanticgan.cli.options import (
    LIST,
    MORE,
    POSITIVE,
    PSI,
    Data,
    Device,
    Hours,
    Labeled,
    Model,
    Resume,
    Run,
    RunSeed,
    Settings,
    Teachers,
    Unlabeled,
    Val,
    choose_device,
    example,
    exit_code_of_signals,
    say,
    whole,
)
from semanticgan.cli.plot import plot
from semanticgan.cli.report import report as report_verb
from semanticgan.cli.serve import serve
from semanticgan.cli.suggest import suggest
from semanticgan.errors import UserError

if TYPE_CHECKING:
    from semanticgan.training.distributed import World


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code: 2, and a line a problem, for what the user can mend.

    Defects of ours pass through with their traceback.
    """
    if "WORLD_SIZE" in os.environ:  # before torch loads: a lost rank is told in one line, without torch's stack traces
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    usage_error, click_error = typer.BadParameter.__mro__[1:3]
    try:
        code = typer.main.get_command(app).main(list(args) or ["--help"], prog_name="semanticgan", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
    except click_error as error:  # type: ignore[misc]
        message = " ".join(error.format_message().split()).rstrip(".")
        context = getattr(error, "ctx", None) if isinstance(error, usage_error) else None
        path = context.command_path if context else "semanticgan"
        print(f"error: {message}; see {path} --help", file=sys.stderr)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    return 2


@contextmanager
def processes(device: str) -> Iterator[tuple["World", Callable[[str], None]]]:
    """The processes that torchrun started, or this one alone; and `say`, which is rank 0's alone."""
    from semanticgan.training.distributed import join

    with join(device) as world:
        yield world, say if world.main else lambda text: None


PRESETS = "tiny32, cpu64, cpu128, paper256, or auto (default): by images and device."

DataFolder = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of the images.", show_default=False)]
ImageList = Annotated[str, typer.Option("--list", metavar="X", help=LIST.removesuffix(MORE), show_default=False)]
Sheet = Annotated[Path | None, typer.Option(metavar="FILE", help="Where the contact sheet goes; default contact_sheet.png.")]

Preset = Annotated[str | None, typer.Option(metavar="NAME", help=PRESETS)]
FROM = "Start G, D and E from these; a run also gives its settings, unless --preset does, and its --val."
From = Annotated[str | None, typer.Option("--from", metavar="RUN_OR_MODEL", help=FROM)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]

ImagesOrDirs = Annotated[list[Path], typer.Argument(metavar="IMAGE_OR_DIR", help="Images, or folders.", show_default=False)]
Steps = Annotated[
    int | None,
    typer.Option(parser=whole(0), metavar="N", help="Inversion steps; 0: the encoder alone. Default: what validation chose."),
]
Batch = Annotated[int, typer.Option(parser=whole(1), metavar="N", help="Images computed at once; speed and memory only.")]
Views = Annotated[bool | None, typer.Option("--views/--no-views", help="Average over flips and turns. Default: the model's.")]
Zoom = Annotated[bool | None, typer.Option("--zoom/--no-zoom", help="Second pass on a crop. Default: what validation chose.")]
Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.", show_default=False)]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write scores and cases as JSON.")]
CsvFile = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a line per image.")]
ReportFile = Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Write a page: scores, worst cases (HTML).")]
Num = Annotated[int, typer.Option(parser=whole(1), metavar="N", help="How many pairs.", show_default=False)]
Seed = Annotated[int, typer.Option(parser=whole(0), metavar="N", help="Same seed, same pairs.")]
Psi = Annotated[float, typer.Option(parser=PSI, metavar="P", help="Pull towards the mean image: 1 not at all, 0 fully.")]
Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help=".pt or .safetensors.", show_default=False)]
NewModel = Annotated[Path, typer.Option("--out", metavar="MODEL", help="Model folder, new or empty.", show_default=False)]
ModelOrRun = Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", show_default=False)]
Minutes = Annotated[float, typer.Option(parser=POSITIVE, metavar="M", help="Time for the whole job.")]

app = typer.Typer(
    help="Learn images together with their label maps from many unlabelled and a few labelled images, and segment new ones.",
    epilog=example("demo", "check my_data", "train --data my_data --out runs/first", "segment runs/first new_images --out found"),
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def print_version(wanted: bool | None) -> None:
    if wanted:
        print(f"semanticgan {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool | None, typer.Option("--version", callback=print_version, is_eager=True, help="Say which.")] = None,
) -> None:
    pass


@app.command(epilog=example("check my_data", "check skin --labeled splits/train_40_seed0.txt --val splits/val.txt"))
def check(
    data: DataFolder,
    labeled: Labeled = [],  # noqa: B006
    unlabeled: Unlabeled = [],  # noqa: B006
    val: Val = [],  # noqa: B006
    sheet: Sheet = None,
) -> None:
    """Say what is in a folder and what is wrong with it.

    Draws a contact sheet with the masks on the images. Exit code 2 if there are errors; warnings do not count.
    """
    from semanticgan.cli.output import require_file
    from semanticgan.data.check import check as check_data
    from semanticgan.data.sources import CONTACT_SHEET

    sheet = sheet or Path(CONTACT_SHEET)
    require_file(sheet, "--sheet")
    if sheet.name != CONTACT_SHEET and data.resolve() in sheet.resolve().parents:
        raise UserError(f"--sheet {sheet}: would be taken for one of the images of {data}; name a place outside of it")
    report = check_data(data, labeled, unlabeled, val, sheet)
    for line in [*report.lines, *(f"warning: {warning}" for warning in report.warnings)]:
        say(line)
    if report.errors:
        raise UserError("\n".join(report.errors))
    say("no errors")


@app.command(
    epilog=example(
        "train --data my_data --out runs/first",
        "train --data skin --labeled splits/train_40_seed0.txt --unlabeled splits/train_all.txt \\\n"
        "      --unlabeled ham10000 --val splits/val.txt --hours 2.5 --out runs/skin",
        "train --out runs/skin --resume",
    )
)
def train(
    out: Run,
    data: Data = None,
    labeled: Labeled = [],  # noqa: B006
    unlabeled: Unlabeled = [],  # noqa: B006
    val: Val = [],  # noqa: B006
    preset: Preset = None,
    start_from: From = None,
    teachers: Teachers = [],  # noqa: B006
    resume: Resume = False,
    seed: RunSeed = None,
    hours: Hours = None,
    device: Device = "auto",
    overrides: Settings = [],  # noqa: B006
    dry_run: DryRun = False,
) -> None:
    """Train a model: G, its discriminators, then the encoder.

    First stage: p(image, label map); second stage: the encoder, image to latent. The model is exported to RUN/model.
    """
    from semanticgan.training.stages import train as train_stages

    device = choose_device(device)
    with exit_code_of_signals(), processes(device) as (world, tell):
        train_stages(
            data=data, out=out, labeled=labeled, unlabeled=unlabeled, val=val, preset=preset, start_from=start_from,
            teachers=teachers, resume=resume, seed=seed, hours=hours, device=device, overrides=overrides, dry_run=dry_run,
            say=tell, world=world,
        )  # fmt: skip


@app.command(
    epilog=example(
        "segment models/skin-64 photo.jpg --out found", "segment runs/first hospital_a hospital_b --steps 60 --out found"
    )
)
def segment(
    model: Model,
    inputs: ImagesOrDirs,
    out: Folder,
    steps: Steps = None,
    batch: Batch = 32,
    views: Views = None,
    zoom: Zoom = None,
    device: Device = "auto",
) -> None:
    """Write the label map of every image.

    With overlays, reconstructions and summary.json. A folder stands for every image below it; folders named masks are
    left out. Bad files are named, the others done; exit code 2 if there were any.
    """
    from semanticgan.cli.inputs import find_inputs

    found = find_inputs(inputs, out)
    from semanticgan.cli.segment import segment_inputs
    from semanticgan.model import SemanticGAN

    device = choose_device(device)
    loaded = SemanticGAN.load(model, device=device).configured(views=views, zoom=zoom)
    with processes(device) as (world, tell):
        segment_inputs(loaded, model, found, out, steps=steps, batch=batch, say=tell, world=world)


@app.command(
    epilog=example(
        "evaluate models/skin-64 --data skin --list splits/test.txt",
        "evaluate runs/first --data skin --list ph2/images --csv ph2.csv",
    )
)
def evaluate(
    model: Model,
    images: ImageList,
    data: Annotated[Path, typer.Option(metavar="DATA", help="Folder of the images.", show_default=False)],
    steps: Steps = None,
    batch: Batch = 32,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
    report: ReportFile = None,
    views: Views = None,
    zoom: Zoom = None,
    device: Device = "auto",
) -> None:
    """Score a model on images with masks.

    IoU and Dice per image at the mask's own size, then averaged, with 95 % bootstrap intervals.
    """
    from semanticgan.cli.scores import evaluate_model

    device = choose_device(device)
    with processes(device) as (world, tell):
        evaluate_model(
            model, data, images, device, steps=steps, batch=batch, views=views, zoom=zoom,
            json_file=json_file, csv_file=csv_file, report=report, say=tell, world=world,
        )  # fmt: skip


@app.command(
    epilog=example("sample models/skin-64 --num 64 --out drawn", "sample runs/first --num 1000 --truncation-psi 0.7 --out drawn")
)
def sample(model: Model, num: Num, out: Folder, seed: Seed = 0, truncation_psi: Psi = 1.0, device: Device = "auto") -> None:
    """Draw images with their label maps from a model.

    Writes images/, masks/, classes.json and grid.png. To train on them: --data DIR --unlabeled images.
    """
    from semanticgan.cli.models import write_samples

    write_samples(model, num, out, seed=seed, truncation_psi=truncation_psi, device=choose_device(device), say=say)


app.command(
    epilog=example(
        "distill runs/first --data my_data --out runs/small",
        "distill runs/skin --data skin --labeled splits/train_40_seed0.txt --unlabeled splits/train_all.txt \\\n"
        "      --unlabeled ham10000 --val splits/val.txt --out runs/small",
    )
)(distill)
app.command(epilog=example("convert coco_folder --out my_data", "convert my_data --to nnunet --out Dataset101_Skin"))(convert)
app.command(epilog=example("export models/skin-64 --out skin.onnx", "export runs/first --format torch --out first.pt2"))(export)
app.command(epilog=example("push runs/first me/my-model", "push models/skin-64 me/skin-64 --private"))(push)
app.command(epilog=example("report runs/first", "report scores.json --model runs/first --data my_data"))(report_verb)
app.command(
    epilog=example(
        "suggest models/skin-64 --data my_data --num 20", "suggest runs/first --data skin --labeled runs/first/labeled.txt"
    )
)(suggest)
app.command(epilog=example("serve models/skin-64", "serve runs/first --data my_data"))(serve)
app.add_typer(plot, name="plot")


@app.command("import", epilog=example("import checkpoint.pt --out models/theirs"))
def import_checkpoint(checkpoint: Checkpoint, out: NewModel) -> None:
    """Turn a checkpoint of the authors into a model folder.

    The averaged generator is taken, their encoder left. No code in the file is executed.
    """
    from semanticgan.cli.models import import_reference

    import_reference(checkpoint, out, say=say)


@app.command(epilog=example("info models/skin-64", "info runs/first"))
def info(model: ModelOrRun) -> None:
    """Say what a model is, or how far a run has come."""
    from semanticgan.cli.card import describe

    for line in describe(model):
        say(line)


@app.command(epilog=example("demo", "demo --out my_demo"))
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to.")] = Path("demo"),
    minutes: Minutes = 6.0,
) -> None:
    """Do the whole job on drawn scenes in some minutes.

    Trains, then scores both domains beside a small U-Net: a table, and a picture page in --out.
    """
    from semanticgan.cli.output import require_writable

    require_writable(out, "--out")
    from semanticgan.demo import run_demo

    with exit_code_of_signals():
        run_demo(out, minutes, say)
