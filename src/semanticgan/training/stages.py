"""The stages of one `train` command, in order: find and pack the data, train G, train E, choose on validation, export."""

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from semanticgan.config import STUDENT, Config, PredictConfig, build_config, choose_preset
from semanticgan.data.coding import decide_labels
from semanticgan.data.dataset import load_picture
from semanticgan.data.pack import Packed, detect_channels, pack
from semanticgan.data.pieces import are_convex, have_one_object, least_share
from semanticgan.data.sources import Sources, find_sources, mask_path
from semanticgan.errors import UserError, first_line
from semanticgan.labels import LabelSpec
from semanticgan.nn.layers import placed
from semanticgan.nn.perceptual import LPIPS
from semanticgan.precision import resolved
from semanticgan.report import write_report
from semanticgan.training.checkpoint import State, load_checkpoint, load_kept, stage_checkpoints
from semanticgan.training.distributed import ALONE, World
from semanticgan.training.encoder import new_encoder_state, train_encoder
from semanticgan.training.export import export_model
from semanticgan.training.gan import TrainingData, ValidationData, new_gan_state, train_gan
from semanticgan.training.plan import Plan, require_same
from semanticgan.training.run import Interrupted, Run, duration, held, require_new_folder
from semanticgan.training.teachers import lasting, load_teachers
from semanticgan.training.warm_start import earlier_config, earlier_run, notes_on_earlier, warm_start

Say = Callable[[str], None]
ASKED = 200  # masks of each kind, at most, that say whether there is one object


def train(
    *,
    data: Path | None,
    out: Path,
    labeled: list[str],
    unlabeled: list[str],
    val: list[str],
    preset: str | None,
    start_from: str | None,
    teachers: Sequence[str] = (),
    resume: bool,
    seed: int | None,
    hours: float | None,
    device: str,
    overrides: list[str],
    dry_run: bool,
    say: Say,
    world: World = ALONE,
) -> None:
    """Train a model from a folder of images, or go on with a run; exports `out`/model.

    `teachers` are models whose label maps of the unlabelled images the encoder learns, instead of its own.

    Several processes do it together, as one would: rank 0 plans, and alone reads and writes the run folder; each reads the
    data, and packs them on its machine.
    Raises UserError for whatever the user can mend, and Interrupted when a signal ended the run after its state was saved.
    """
    given = {"data": data, "labeled": labeled, "unlabeled": unlabeled, "val": val, "preset": preset,
             "seed": seed, "hours": hours, "start_from": start_from, "overrides": overrides,
             "teachers": tuple(map(lasting, teachers))}  # fmt: skip
    plan = replace(world.first(lambda: find_plan(out, given, device, resume, world.size, say)), device=device)
    if dry_run:
        for line in describe(plan):
            say(line)
        return
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(held(out, new=not resume))
            if not resume:
                plan.write(out)

        world.first(begin)
        run = Run(out, say, world)
        try:
            run_stages(plan, run)
        except (Interrupted, KeyboardInterrupt):
            run.log(f"go on with: semanticgan train --out {shlex.quote(str(out))} --resume")
            raise


def find_plan(out: Path, given: dict[str, Any], device: str, resume: bool, processes: int, say: Say) -> Plan:
    """The plan of the run to go on with, or a new one from what the command said."""
    if resume:
        plan = Plan.read(out)
        if plan.config.preset == STUDENT:
            raise UserError(f"--out {out}: is a run of distill, not of train; go on with semanticgan distill")
        require_same(plan, given)
    else:
        require_new_folder(out)
        plan = make_plan(given, device)
        for note in plan.sources.notes:
            say(note)
    require_shares(plan.config, processes)
    return plan


def make_plan(given: dict[str, Any], device: str) -> Plan:
    """Decide everything that the command left open, from the data."""
    if given["data"] is None:
        raise UserError("--data: missing; name the folder with your images")
    if given["hours"] is not None and given["hours"] <= 0:
        raise UserError(f"--hours {given['hours']}: expected more than 0")
    start_from = lasting(given["start_from"]) if given["start_from"] else ""
    earlier = earlier_run(start_from) if start_from else None
    before = earlier.sources if earlier else None
    sources = find_sources(given["data"], given["labeled"], given["unlabeled"], given["val"], before)
    root, notes = sources.root, list(sources.notes)
    config, said = choose_config(given, sources, start_from, earlier, device)
    notes += said
    notes += notes_on_earlier(start_from, earlier, sources, config)
    labels, label_notes = decide_labels(root, [mask_path(root / p) for p in (*sources.labeled, *sources.val)])
    notes += label_notes
    if config.data.channels is None:
        channels = detect_channels(root, sources.unlabeled, sources.labeled)
        notes.append(f"images: {'grey' if channels == 1 else 'colour'}")
        config = config.model_copy(update={"data": config.data.model_copy(update={"channels": channels})})
    if config.data.symmetry == "all":
        notes.append("symmetry: all eight flips and turns; for images with an up set data.symmetry=flip, or none")
    if len(sources.unlabeled) < config.gan.batch:
        raise UserError(
            f"{root}: got {len(sources.unlabeled)} training images, expected at least a batch of {config.gan.batch}; "
            "add images or lower gan.batch"
        )
    if start_from:
        warm_start(start_from, *new_states(config, labels, "cpu"))  # refuses before anything is written
    load_teachers(given["teachers"], labels, config, "encoder", "cpu")  # so does this
    return Plan(
        config,
        labels,
        replace(sources, notes=tuple(notes)),
        given["hours"],
        device,
        start_from or None,
        shlex.join(["semanticgan", *sys.argv[1:]]),
        given["teachers"],
    )


def choose_config(
    given: dict[str, Any], sources: Sources, start_from: str, earlier: Plan | None, device: str
) -> tuple[Config, list[str]]:
    """The settings, and what to say of them: of the preset that is named, of what training goes on from, or by the images."""
    preset, overrides, seed = given["preset"] or "auto", given["overrides"], given["seed"]
    if start_from and given["preset"] is None:
        return earlier_config(start_from, earlier, overrides, seed, device)
    if preset != "auto":
        return build_config(preset, overrides, seed), []
    side = median_side(sources)
    preset = choose_preset(side, device)
    return build_config(preset, overrides, seed), [f"preset: {preset}, for images of {side} px on {device}"]


def require_shares(config: Config, processes: int) -> None:
    """Raises UserError unless processes can share the batches evenly, with D_img's groups and the encoder's thirds whole."""
    if processes == 1:
        return
    batch = config.gan.batch
    most = 1 if config.networks.d_img == "projected" else min(config.networks.mbstd_group, batch)  # that one has no groups
    group = next(size for size in range(most, 0, -1) if batch % size == 0)
    if config.gan.pl_weight:
        group = math.lcm(group, 2)  # path length takes half the batch
    wrong = [
        f"{field}: got {value} on {processes} processes, expected a multiple of {unit * processes}; "
        "set it so, or start fewer processes"
        for field, value, unit in (("gan.batch", batch, group), ("encoder.batch", config.encoder.batch // 3 * 3, 6))
        if value % (unit * processes)
    ]  # fmt: skip
    if wrong:
        raise UserError("\n".join(wrong))


def median_side(sources: Sources) -> int:
    """Median shorter side in pixels of up to 100 training images; broken ones do not count."""
    sides = []
    for path in sources.unlabeled[:: max(1, -(-len(sources.unlabeled) // 100))]:
        try:
            sides.append(min(load_picture(sources.root / path, 3, at_least=64).size))
        except UserError:
            continue
    return int(np.median(sides)) if sides else 64


def describe(plan: Plan) -> list[str]:
    """What the run would do."""
    config, sources = plan.config, plan.sources
    gan, encoder = new_states(config, plan.labels, "cpu")
    sizes = {"G": gan.G, "D_img": gan.D_img, "D_seg": gan.D_seg, "E": encoder.E}
    millions = ", ".join(f"{name} {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M" for name, net in sizes.items())
    length = (
        f"{config.run.gan_fraction:.0%} of {plan.hours} h for the GAN, the rest for the encoder" if plan.hours
        else f"GAN {config.gan.kimg:g} kimg, encoder {config.encoder.kimg:g} kimg"
    )  # fmt: skip
    counts = (
        f"{len(sources.unlabeled)} training images, {len(sources.labeled)} of them labelled, {len(sources.val)} for validation"
    )
    settings = f"{config.data.resolution} px, batch {config.gan.batch}, seed {config.run.seed}, device {plan.device}"
    return [
        f"data: {sources.root}: {counts}",
        f"preset {config.preset}: {settings}",
        f"networks: {millions}",
        f"length: {length}",
        "dry run: nothing was written",
    ]


def new_states(config: Config, labels: LabelSpec, device: str) -> tuple[State, State]:
    """Both stages at their start."""
    channels = config.data.num_channels
    gan = new_gan_state(config, labels.num_classes, channels, device)
    return gan, new_encoder_state(config, gan.G, channels, device)


def run_stages(plan: Plan, run: Run) -> None:
    """From wherever the run folder stands to the exported model."""
    config, device, world = plan.config, plan.device, run.world
    data, val = world.in_turn(lambda: pack_data(plan, run))
    config = with_one_object_decided(config, plan.labels, data, val, run)
    gan, encoder = new_states(config, plan.labels, device)
    gan_finished = world.first(lambda: bool(stage_checkpoints(run.folder, "encoder")))
    if plan.start_from and not gan_finished:
        for note in world.first(lambda: warm_start(plan.start_from or "", gan, encoder)):
            run.log(note)
    budgets: tuple[float | None, float | None] = (None, None)
    if plan.hours:
        seconds = plan.hours * 3600
        budgets = (seconds * config.run.gan_fraction, seconds * (1 - config.run.gan_fraction))

    def restore_gan() -> None:
        restored = restore(run, "gan", gan)
        if gan_finished and [restored] != stage_checkpoints(run.folder, "gan")[-1:]:
            raise UserError(
                f"{run.folder / 'checkpoints'}: the last GAN checkpoint, on which the encoder was trained, is missing or "
                "damaged; delete encoder-*.pt there to go on from an earlier one"
            )

    world.first(restore_gan)
    world.same(gan)
    if not gan_finished:
        precision = resolved(config.run.precision, device)
        run.log(f"GAN: {len(data.images)} images, {len(data.labeled)} labelled, on {device} in {precision}")
        train_gan(config, plan.labels, data, gan, run, budgets[0], device)
    G = gan.G_ema
    encoder.E.w_avg.copy_(G.mapping.w_avg)
    encoder.E_ema.w_avg.copy_(G.mapping.w_avg)
    world.first(lambda: restore(run, "encoder", encoder))
    world.same(encoder)
    lpips = placed(LPIPS(), device)
    teachers = world.in_turn(lambda: load_teachers(plan.teachers, plan.labels, config, "encoder", device))
    train_encoder(config, plan.labels, data, val, G, lpips, encoder, run, budgets[1], device, teachers)

    best = world.first(lambda: load_kept(run.folder, "encoder"))
    encoder.E_ema.load_state_dict(best["E"])
    export_model(
        run, config, plan.labels, plan.sources, G, encoder.E_ema, device, plan.command,
        {"gan_kimg": gan.nimg / 1000, "encoder_kimg": encoder.nimg / 1000, "encoder_best_kimg": best["nimg"] / 1000,
         "hours": round((gan.seconds + encoder.seconds) / 3600, 3)},
        [f"The encoder learnt label maps of the unlabelled images from `{name}`." for name in plan.teachers],
    )  # fmt: skip
    world.first(lambda: tell_report(run, device))
    run.log(f"done in {duration(gan.seconds + encoder.seconds)} of training: {run.folder / 'model'}")


def tell_report(run: Run, device: str) -> None:
    """Write RUN/report.html; without it the run is as good."""
    try:
        run.log(f"report: {write_report(run.folder, device=device)}")
    except UserError as error:
        run.log(f"warning: no report: {error}")


def restore(run: Run, stage: str, state: State) -> Path | None:
    """Load a stage's newest readable checkpoint and return its path; an unreadable one is named and passed over.

    Statistics that were written later are dropped. Raises UserError for a checkpoint of something else.
    """
    for path in reversed(stage_checkpoints(run.folder, stage)):
        try:
            content = load_checkpoint(path)
        except UserError as error:
            run.log(f"warning: {error}; delete it to use an earlier one")
            continue
        try:
            state.load_state_dict(content)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = first_line(error)
            raise UserError(f"{path}: is no checkpoint of this run ({reason}); delete it to use an earlier one") from None
        run.drop_stats_after(stage, state.nimg / 1000)
        run.log(f"{stage}: goes on from {path.name} at {state.nimg / 1000:.1f} kimg")
        return path
    run.drop_stats_after(stage, 0.0)
    return None


def pack_data(plan: Plan, run: Run) -> tuple[TrainingData, ValidationData]:
    """Pack (or find packed) the three sets; says what was left out."""
    config, sources = plan.config, plan.sources

    def packed(name: str, paths: tuple[str, ...], labels: LabelSpec | None) -> Packed:
        def progress(done: int, total: int) -> None:
            if done and done % 2000 == 0:
                run.log(f"packing {name}: {done} of {total}")

        result = pack(sources.root, paths, data=config.data, labels=labels, progress=progress)
        for line in (*result.notes, *result.left_out):
            run.log(f"{name}: {line}")
        return result

    labeled = packed("labelled", sources.labeled, plan.labels)
    unlabeled = packed("unlabelled", sources.unlabeled, None)
    assert labeled.labels is not None
    require_all_classes(sources.root, plan.labels, labeled.labels)
    val = packed("validation", sources.val, plan.labels)
    assert val.labels is not None
    return TrainingData(unlabeled.images, labeled.images, labeled.labels), ValidationData(val.images, val.labels)


def require_predict_fits(predict: PredictConfig, num_classes: int) -> None:
    """Raises UserError where zoom or one object is asked for among more classes, or its hull where there may be several."""
    for name in ("zoom", "one_object"):
        if getattr(predict, name) and num_classes != 2:
            raise UserError(f"predict.{name}: got true for {num_classes} classes, expected two; leave it out")
    if predict.convex and not predict.one_object:
        raise UserError("predict.convex: got true, but there is not one object; set predict.one_object=true too, or leave it out")


def with_one_object_decided(config: Config, labels: LabelSpec, data: TrainingData, val: ValidationData, run: Run) -> Config:
    """The settings with `predict.one_object` and `predict.convex` as the masks say, where they were left open.

    Raises UserError where one is set for more than two classes, or the second without the first.
    """
    one, convex = config.predict.one_object, config.predict.convex
    some = np.concatenate([maps[:: len(maps) // ASKED + 1] for maps in (data.labels, val.labels)])
    if one is None:
        one = have_one_object(some)
        if one:
            run.log("one object: the known masks have one piece each, so label maps will (else set predict.one_object=false)")
            if least_share(data.labels):
                run.log("one object: no labelled image is without it, so unlabelled ones are taken to show it too")
    require_predict_fits(config.predict.model_copy(update={"one_object": one}), labels.num_classes)
    if convex is None:
        convex = one and are_convex(some)
        if convex:
            run.log("one object: the known masks have hardly a dent, so label maps have none (else set predict.convex=false)")
    return config.model_copy(update={"predict": config.predict.model_copy(update={"one_object": one, "convex": convex})})


def require_all_classes(root: Path, labels: LabelSpec, packed: np.ndarray) -> None:
    """Raises UserError if a class has no pixel left in the training masks at G's resolution."""
    seen = np.unique(packed)
    missing = [name for k, name in enumerate(labels.names) if k not in seen]
    if missing:
        raise UserError(
            f"{root}: class {', '.join(missing)} has no pixel in the labelled training images at {packed.shape[-1]} px; "
            "label images that show it, raise data.resolution, or take it out of classes.json"
        )
