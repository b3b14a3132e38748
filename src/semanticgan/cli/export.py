"""`semanticgan export` and `semanticgan push`: a model for other programs and other people."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from semanticgan.cli.options import Model, say
from semanticgan.cli.output import require_file, write_bytes
from semanticgan.errors import UserError

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}  # torch.export.load insists on its own

Form = Annotated[Literal["onnx", "torch"], typer.Option("--format", help="onnx, or torch: a program of torch.export (.pt2).")]
File = Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.", show_default=False)]
Repository = Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hugging Face hub.", show_default=False)]
Private = Annotated[bool, typer.Option("--private", help="If the repository is new: for its owner alone.")]


def export(model: Model, out: File, form: Form = "onnx") -> None:
    """Write encoder and generator, or a student, as one file.

    For onnxruntime and other programs, or for torch.export.load. Classes, colours and normalisation are in its metadata.
    """
    require_file(out, "--out")
    if out.suffix != SUFFIXES[form]:
        raise UserError(f"--out {out}: expected a name ending in {SUFFIXES[form]} for --format {form}; rename it")
    from semanticgan.export import outputs, to_onnx, to_torch
    from semanticgan.model import SemanticGAN

    loaded = SemanticGAN.load(model)
    write_bytes(out, to_onnx(loaded) if form == "onnx" else to_torch(loaded))
    data, classes = loaded.config.data, loaded.labels.num_classes
    shape = f"{data.resolution}, {data.resolution}"
    shapes = {"img": f"n, {data.num_channels}, {shape}", "probs": f"n, {classes}, {shape}", "label": f"n, {shape}"}
    shapes["reconstruction"] = shapes["img"]
    given = ", ".join(f"{name} [{shapes[name]}]" for name in outputs(loaded))
    say(f"{out} ({out.stat().st_size / 1e6:.3g} MB): img [{shapes['img']}] -> {given}")


def push(model: Model, repository: Repository, private: Private = False) -> None:
    """Upload a model with its card to the Hugging Face hub.

    Log in first with `hf auth login`, or set HF_TOKEN. Then REPO can be used wherever MODEL stands.
    """
    from semanticgan.model import SemanticGAN

    say(SemanticGAN.load(model).push(repository, private=private))
