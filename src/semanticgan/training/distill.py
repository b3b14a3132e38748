"""One `distill` command, in order: find and pack the data, ask the teacher, train the student, choose on validation, export."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from semanticgan.config import STUDENT, Config, ModelConfig, build_config, levels, parse_override, require_levels_fit
from semanticgan.data.coding import decide_labels
from semanticgan.data.sources import find_sources, mask_path
from semanticgan.errors import UserError
from semanticgan.evaluation import MARGIN, Choice, choose, evaluate
from semanticgan.files import replacing
from semanticgan.labels import LabelSpec
from semanticgan.model import SemanticGAN
from semanticgan.nn.unet import PretrainedUNet, UNet
from semanticgan.precision import resolved
from semanticgan.predict import Found
from semanticgan.training.export import card, summary
from semanticgan.training.plan import Plan, require_same, versions
from semanticgan.training.run import Interrupted, Run, duration, held, require_new_folder, write_text
from semanticgan.training.stages import pack_data, require_predict_fits, restore, tell_report
from semanticgan.training.student import (
    Samples,
    StudentTrainer,
    load_best,
    load_critics,
    new_student_state,
    train_student,
)
from semanticgan.training.teachers import can_label, lasting, load_teachers, teacher_labels

Say = Callable[[str], None]
SECTIONS = ("student", "predict", "run")  # of the settings, those that are not the teacher's
SECONDS_BETWEEN_LINES = 10
UNASKED = 254  # in the maps of images that the teacher has not labelled; a 255th class would be asked for again, no more


def distill(
    *, model: str, teachers: list[str], data: Path | None, out: Path, labeled: list[str], unlabeled: list[str], val: list[str],
    kimg: float | None, seed: int | None, hours: float | None, device: str, overrides: list[str], resume: bool, say: Say,
) -> None:  # fmt: skip
    """Train a student of `model` in the run folder `out`, or go on with it; exports `out`/model. `teachers`: further ones.

    Raises UserError for whatever the user can mend, and Interrupted when a signal ended the run after its state was saved.
    """
    overrides = [*overrides, *([] if kimg is None else [f"student.kimg={kimg}"])]
    given = {"data": data, "labeled": labeled, "unlabeled": unlabeled, "val": val, "preset": None, "seed": seed,
             "hours": hours, "start_from": model, "teachers": tuple(map(lasting, teachers)), "overrides": overrides}  # fmt: skip
    if resume:
        plan = replace(Plan.read(out), device=device)
        if plan.config.preset != STUDENT:
            raise UserError(f"--out {out}: is a run of train, not of distill; go on with semanticgan train")
        require_same(plan, given)
        teacher = SemanticGAN.load(model, device=device)
    else:
        require_new_folder(out)
        teacher = SemanticGAN.load(model, device=device)
        plan = make_plan(given, teacher, device)
        for note in plan.sources.notes:
            say(note)
    others = load_teachers(plan.teachers, teacher.labels, plan.config, "student", device)
    with held(out, new=not resume):
        if not resume:
            plan.write(out)
        try:
            run_student(plan, teacher, others, model, Run(out, say))
        except (Interrupted, KeyboardInterrupt):
            say(f"go on with: semanticgan distill {shlex.quote(model)} --out {shlex.quote(str(out))} --resume")
            raise


def make_plan(given: dict[str, Any], teacher: SemanticGAN, device: str) -> Plan:
    """Decide what the command left open; data settings and classes are the teacher's."""
    if given["data"] is None:
        raise UserError("--data: missing; name the folder with your images")
    config = student_config(teacher, given["overrides"], given["seed"])
    sources = find_sources(given["data"], given["labeled"], given["unlabeled"], given["val"])
    masks = [mask_path(sources.root / p) for p in (*sources.labeled, *sources.val)]
    labels, notes = decide_labels(sources.root, masks)
    labels = the_teachers(teacher.labels, labels, sources.root)
    sources = replace(sources, notes=(*sources.notes, *notes))
    command = shlex.join(["semanticgan", *sys.argv[1:]])
    return Plan(config, labels, sources, given["hours"], device, lasting(given["start_from"]), command, given["teachers"])


def student_config(teacher: SemanticGAN, overrides: list[str], seed: int | None) -> Config:
    """The settings of a student's run. Raises UserError for one that is the teacher's alone."""
    for text in overrides:
        (section,) = parse_override(text)
        if section not in SECTIONS:
            raise UserError(f"--set {text}: a student takes this from its teacher; expected a setting of {', '.join(SECTIONS)}")
    config, theirs = build_config("cpu64", overrides, seed), teacher.config
    if config.predict.steps is not None:
        raise UserError(f"predict.steps: got {config.predict.steps}, but a student has no inversion; leave it out")
    student = config.student
    if "widths" not in student.model_fields_set:  # the usual ones, as many as there can be
        student = student.model_copy(update={"widths": student.widths[: levels(theirs.data, student.trunk)[1]]})
    try:
        require_levels_fit(theirs.data, student.widths, student.trunk)
    except ValueError as error:
        raise UserError(f"student.{error}") from None
    one, convex = config.predict.one_object, config.predict.convex
    one = theirs.one_object if one is None else one
    convex = (one and theirs.convex) if convex is None else convex
    predict = config.predict.model_copy(update={"one_object": one, "convex": convex})
    require_predict_fits(predict, theirs.labels.num_classes)
    return config.model_copy(
        update={
            "preset": STUDENT,
            "student": student,
            "data": theirs.data,
            "networks": theirs.networks,
            "inversion": theirs.inversion,
            "predict": predict,
        }
    )


def the_teachers(teacher: LabelSpec, found: LabelSpec, root: Path) -> LabelSpec:
    """The teacher's classes in the coding of the masks. Raises UserError if the data's classes are others."""
    named = (root / "classes.json").exists()
    if found.num_classes != teacher.num_classes or (named and found.names != teacher.names):
        raise UserError(
            f"{root}: got masks of {', '.join(found.names)}, expected the teacher's classes, {', '.join(teacher.names)}"
        )
    return teacher.model_copy(update={"coding": found.coding})


def run_student(plan: Plan, teacher: SemanticGAN, others: list[SemanticGAN], name: str, run: Run) -> None:
    """From wherever the run folder stands to the exported student."""
    config, device = plan.config, plan.device
    data, val = pack_data(plan, run)
    state = new_student_state(config, plan.labels.num_classes, config.data.num_channels, device)
    how, samples, taught = [], None, None
    if teacher.S is None and config.student.samples > 0:
        critics, about_critics = load_critics(name, teacher)
        means = "D_img and D_seg" if critics else "the sharpness of their label maps"
        run.log(f"{about_critics}; samples are filtered by {means}")
        how.append(f"G's samples were filtered by {means}: the worst {config.student.drop:.0%} of each batch were left out.")
        samples = Samples(teacher.G, critics, config.student.drop)
    teachers = [*([teacher] if can_label(teacher) else []), *others]
    if teachers and config.student.pseudo > 0:
        taught = ask_teachers(teachers, data.images, config, run)
        how += about_teachers(teacher, plan.teachers)
    if config.student.trunk != "none":
        how.append("The U-Net's way down began with weights trained on ImageNet.")
    restore(run, "student", state)
    trainer = StudentTrainer(config, plan.labels, data, samples, taught, state, device)
    run.log(
        f"student: {len(data.labeled)} labelled images, sources {', '.join(trainer.sources)}, "
        f"on {device} in {resolved(config.run.precision, device)}"
    )
    train_student(trainer, val, run, plan.hours * 3600 if plan.hours else None)
    best = load_best(run, state.S_ema)
    lengths = {"student_kimg": state.nimg / 1000, "student_best_kimg": best, "hours": round(state.seconds / 3600, 3)}
    export_student(plan, name, state.S_ema, lengths, how, run)
    tell_report(run, device)
    run.log(f"done in {duration(state.seconds)} of training: {run.folder / 'model'}")


def about_teachers(teacher: SemanticGAN, others: Sequence[str]) -> Iterator[str]:
    """Sentences for the card, on whose label maps of the unlabelled images the student learnt."""
    names = [*(["the teacher"] if can_label(teacher) else []), *(f"`{name}`" for name in others)]
    yield f"Label maps of the unlabelled images were a source, those of {' and '.join(names)}{', averaged' if names[1:] else ''}."
    if teacher.E is not None and teacher.config.networks.encoder_trunk != "residual":
        yield "The teacher's encoder began with weights trained on ImageNet."


def ask_teachers(teachers: Sequence[SemanticGAN], images: np.ndarray, config: Config, run: Run) -> np.ndarray:
    """Their class maps of the unlabelled images; kept in the run folder as they come: a resumed run asks for the rest."""
    labels = kept_labels(run.folder / "checkpoints" / "teacher_labels.npy", images.shape[:3])
    start = next((n for n, label in enumerate(labels) if (label == UNASKED).any()), len(images))
    if start == len(images):
        return labels
    run.log(f"{len(teachers)} teacher{'s label' if teachers[1:] else ' labels'} {len(images) - start} images")
    began = said = time.monotonic()
    for n, label in enumerate(teacher_labels(teachers, images[start:], config.student.pseudo_threshold), 1):
        labels[start + n - 1] = label
        if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            rate = n / (said - began)
            left = duration((len(images) - start - n) / rate)
            run.log(f"teacher: {start + n} of {len(images)} images  {rate:.1f} images/s  {left} left")
    labels.flush()
    return labels


def kept_labels(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """The maps in the file, which writes to them change; where there are none of that shape, new ones, UNASKED throughout."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)  # "r+" would make a file whole that was cut off
        if found.shape == shape and found.dtype == np.uint8:
            return np.load(path, mmap_mode="r+", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        pass  # not there yet, or damaged
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for _ in range(shape[0]):  # written, not just made room for: a full disk must say so here
            file.write(np.full(shape[1:], UNASKED, np.uint8).tobytes())
    return np.load(path, mmap_mode="r+", allow_pickle=False)


def export_student(
    plan: Plan, teacher: str, S: UNet | PretrainedUNet, lengths: dict[str, float], how: list[str], run: Run
) -> None:
    """Choose views, zoom and temperature on the validation images, and write `model/` and `validation.json`."""
    config, sources = plan.config, plan.sources
    described = ModelConfig(
        kind="student",
        labels=plan.labels,
        data=config.data,
        trunk=config.student.trunk,
        widths=S.widths,
        teacher=teacher,
        views=False,
        one_object=bool(config.predict.one_object),
        convex=bool(config.predict.convex),
        contrast=config.predict.contrast,
        versions=versions(),
    )
    model = SemanticGAN(described, None, S=S, device=plan.device)
    run.log(f"choosing views, zoom and temperature on {len(sources.val)} validation images")
    views, choice = choose_settings(model, plan, run)
    model = model.configured(views=views, zoom=choice.zoom, temperature=choice.temperature)
    scores = evaluate(model.find, sources.root, sources.val, plan.labels, config.data.num_channels)
    run.log(summary(scores))
    write_text(run.folder / "validation.json", json.dumps(scores, indent=1) + "\n")
    may_look, may_zoom = config.predict.views and config.data.symmetry != "none", plan.labels.num_classes == 2
    open_ones = [*(["views"] if may_look else []), *(["zoom"] if may_zoom and config.predict.zoom is None else [])]
    model.save(run.folder / "model", card(model.config, sources, scores, plan.command, lengths, config.run.seed, open_ones, how))


def choose_settings(model: SemanticGAN, plan: Plan, run: Run) -> tuple[bool, Choice]:
    """Whether to average over views, and the rest as `evaluation.choose` says.

    A student is there for its speed: views are taken only where they gain more than MARGIN of foreground IoU.
    """
    config, sources = plan.config, plan.sources

    def trial(views: bool) -> Choice:
        def find(images: Iterable[np.ndarray], steps: int, zoom: bool) -> Iterator[Found]:
            return model.find(images, steps, views=views, zoom=zoom)

        choice = choose(find, sources.root, sources.val, model.labels, config.data.num_channels, steps=(0,),
                        zoom=config.predict.zoom)  # fmt: skip
        score = choice.scores["0 steps, zoom" if choice.zoom else "0 steps"]
        run.log(f"validation IoU: {'all views' if views else 'one view'}: {score:.4f}")
        return choice

    plain = trial(views=False)
    if not config.predict.views or config.data.symmetry == "none":
        return False, plain
    averaged = trial(views=True)
    gain = averaged.gain_over(plain)
    run.log(f"validation IoU: all views gain {gain:+.4f}, image by image; more than {MARGIN} is taken")
    return (True, averaged) if gain > MARGIN else (False, plain)
