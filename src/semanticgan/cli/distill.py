"""`semanticgan distill`: its options."""

from typing import Annotated

import typer

from semanticgan.cli.options import (
    POSITIVE,
    Data,
    Device,
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
    exit_code_of_signals,
    say,
)

Hours = Annotated[float | None, typer.Option(parser=POSITIVE, metavar="H", help="Time for the training. Default: by kimg.")]
Kimg = Annotated[float | None, typer.Option(parser=POSITIVE, metavar="N", help="Length in thousands of images. Default: 30.")]


def distill(
    model: Model,
    out: Run,
    teachers: Teachers = [],  # noqa: B006
    data: Data = None,
    labeled: Labeled = [],  # noqa: B006
    unlabeled: Unlabeled = [],  # noqa: B006
    val: Val = [],  # noqa: B006
    kimg: Kimg = None,
    hours: Hours = None,
    resume: Resume = False,
    seed: RunSeed = None,
    device: Device = "auto",
    overrides: Settings = [],  # noqa: B006
) -> None:
    """Train a student: a plain U-Net that learns from the model and segments in one pass.

    It learns from G's samples (of a run, filtered by its discriminators), from the label maps that the model, and every
    --teacher, give the unlabelled images, and from the labelled images. Exported to RUN/model; segment, evaluate, info, report,
    serve, export and push take it.
    """
    from semanticgan.training.distill import distill as train_student

    device = choose_device(device)
    with exit_code_of_signals():
        train_student(
            model=model, teachers=teachers, data=data, out=out, labeled=labeled, unlabeled=unlabeled, val=val, kimg=kimg,
            seed=seed, hours=hours, device=device, overrides=overrides, resume=resume, say=say,
        )  # fmt: skip
