"""What is timed: each stage of training and prediction, ours and the plain design's, on random images and fresh weights."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import plain
import torch
from counting import Alone, better_limits, convolution_limits, operations
from recording import Part, Record, Step, count, measure

from semanticgan.config import Config, build_config
from semanticgan.data.transforms import to_float
from semanticgan.inversion import in_fixed_batches, invert, whitening
from semanticgan.labels import LabelSpec
from semanticgan.nn.perceptual import LPIPS
from semanticgan.precision import autocast, resolved
from semanticgan.predict import GeneratorPredictor
from semanticgan.training.encoder import EncoderTrainer, new_encoder_state
from semanticgan.training.gan import GanTrainer, TrainingData, new_gan_state

LABELS = LabelSpec(names=("background", "lesion"), palette=((0, 0, 0), (255, 255, 255)))
IMAGES = 256  # random ones; what is in them costs nothing
AUGMENT_P = 0.2  # above 0 every step pays for the augmentation, however often it is visible
PREDICTED = 32  # images given at once to inversion and to the encoder, as by `predict`
STEPS = 10  # of inversion, of which the mean is taken; what is done once before them counts
PLAIN_STEPS, PLAIN_PREDICTED = 3, 4  # the plain design works on one image at a time


@dataclass(frozen=True)
class Bench:
    """A preset, random data for it, and how often to measure."""

    config: Config
    repeats: int
    plain: bool = True  # the plain design too

    @property
    def counts(self) -> dict[str, int]:
        """The plain design's runs are long, and vary less: half as many."""
        return {"ours": self.repeats, "plain": max(1, self.repeats // 2)}

    def data(self) -> TrainingData:
        random, side = np.random.default_rng(0), self.config.data.resolution
        images = random.integers(0, 256, (IMAGES, side, side, 3), dtype=np.uint8)
        return TrainingData(images, images[:40], random.integers(0, 2, (40, side, side), dtype=np.uint8))

    def measure(self, **steps: Step) -> dict[str, dict[str, Record]]:
        steps = {name: step for name, step in steps.items() if name == "ours" or self.plain}
        return measure(steps, {name: self.counts[name] for name in steps})


Rows = dict[str, tuple[Record, int, Record | None, int]]  # stage -> ours, its images, plain, its images


def preset_bench(name: str, repeats: int, *changes: str) -> Bench:
    return Bench(build_config(name, ["data.channels=3", *changes]), repeats)


def changed(config: Config, **changes: dict[str, Any]) -> Config:
    sections = {name: getattr(config, name).model_copy(update=change) for name, change in changes.items()}
    return config.model_copy(update=sections)


# ---------------------------------------------------------------- the GAN's step

# Steps by number: the second has no regularisation, the first R1, the fifth the path length penalty if it is on.
NEITHER, R1, PATH_LENGTH = 1, 0, 4


def gan_step(trainer: GanTrainer, step: int, suffix: str = "") -> Step:
    """One training step of ours, part by part."""

    def run(part: Part) -> None:
        with part(f"whole{suffix}"):
            with part(f"draw{suffix}"):
                batch = trainer.draw(step * trainer.gan.batch)
            with part(f"D_img{suffix}"):
                trainer.update_d_img(batch)
            with part(f"D_seg{suffix}"):
                _, features = trainer.update_d_seg(batch)
            with part(f"G{suffix}"):
                trainer.update_g(batch, features)
            with part(f"averages{suffix}"):
                trainer.update_averages(batch)

    return run


def plain_gan_step(gan: plain.PlainGan) -> Step:
    """The same of the plain design, with every regularisation in parts of its own."""

    def run(part: Part) -> None:
        with part("whole"):
            with part("data"):
                reals = gan.draw(NEITHER * gan.gan.batch)
            for name, update in (("D_img", gan.update_d_img), ("D_seg", gan.update_d_seg), ("G", gan.update_g)):
                with part(name):
                    update(reals)
            with part("averages"):
                gan.update_averages()
        with part("R1 of D_img"):
            gan.r1_img(reals)
        with part("R1 of D_seg"):
            gan.r1_seg(reals)
        with part("path length"):
            gan.path_length()

    return run


def with_path_length(config: Config) -> Config:
    gan = config.gan
    return changed(config, gan={"pl_weight": gan.pl_weight or 2.0, "r1_every": PATH_LENGTH + 1, "pl_every": PATH_LENGTH})


def our_gan_step(config: Config, data: TrainingData) -> Step:
    """A step without regularisation, one with R1, one with the path length, and the real images and pairs alone."""

    def trainer(config: Config) -> GanTrainer:
        state = new_gan_state(config, 2, 3, "cpu")
        state.augment_p = AUGMENT_P
        return GanTrainer(config, LABELS, data, state, "cpu")

    base = trainer(changed(config, gan={"pl_weight": 0.0, "r1_every": max(2, config.gan.r1_every)}))
    penalised = trainer(with_path_length(config))
    reals = new_plain_gan(config, data)

    def run(part: Part) -> None:
        gan_step(base, NEITHER)(part)
        gan_step(base, R1, " with R1")(part)
        gan_step(penalised, PATH_LENGTH, " with path length")(part)
        with part("data"):
            reals.draw(NEITHER * config.gan.batch)

    return run


def new_plain_gan(config: Config, data: TrainingData) -> plain.PlainGan:
    config = changed(with_path_length(config), run={"precision": "fp32"})
    state = new_gan_state(config, 2, 3, "cpu")
    state.augment_p = AUGMENT_P
    return plain.PlainGan(config, LABELS, data, state)


def with_schedule(config: Config, records: dict[str, Record]) -> Record:
    """The mean step of a training run: every penalty as often as it is due."""
    gan = config.gan
    mean = records["whole"] + (records["R1 of D_img"] + records["R1 of D_seg"]) * (1 / gan.r1_every)
    return mean + records["path length"] * (1 / gan.pl_every) if gan.pl_weight else mean


def our_gan_records(config: Config, measured: dict[str, Record]) -> dict[str, Record]:
    """What was measured, the penalties as differences."""
    records = {name: measured[name] for name in ("data", "draw", "D_img", "D_seg", "G", "averages", "whole")}
    records["R1 of D_img"] = measured["D_img with R1"] - measured["D_img"]
    records["R1 of D_seg"] = measured["D_seg with R1"] - measured["D_seg"]
    records["path length"] = measured["G with path length"] - measured["G"]
    records["training step"] = with_schedule(config, records)
    return records


def gan_rows(bench: Bench) -> Rows:
    config, data = bench.config, bench.data()
    steps = {"ours": our_gan_step(config, data)}
    if bench.plain:
        steps["plain"] = plain_gan_step(new_plain_gan(config, data))
    measured = bench.measure(**steps)
    ours, other = our_gan_records(config, measured["ours"]), measured.get("plain", {})
    if other:
        other["training step"] = with_schedule(config, other)
    n = config.gan.batch
    return {name: (record, n, other.get(name), n) for name, record in ours.items() if name != "whole"}


# ---------------------------------------------------------------- the encoder's step, inversion, prediction


def encoder_rows(bench: Bench) -> Rows:
    config, data = bench.config, bench.data()

    def trainer(design: str) -> EncoderTrainer:
        G = new_gan_state(config, 2, 3, "cpu").G_ema
        state = new_encoder_state(config, G, 3, "cpu")
        if design == "ours":
            return EncoderTrainer(config, LABELS, data, G, LPIPS(), state, "cpu")
        exact = changed(config, run={"precision": "fp32"})
        return plain.plain_encoder_trainer(exact, LABELS, data, G, LPIPS(), state)

    def step(trainer: EncoderTrainer) -> Step:
        def run(part: Part) -> None:
            with part("encoder step"):
                trainer.update(0, 0.5)

        return run

    measured = bench.measure(**{design: step(trainer(design)) for design in bench.counts})
    n = 3 * (config.encoder.batch // 3)
    return {"encoder step": (measured["ours"]["encoder step"], n, measured.get("plain", {}).get("encoder step"), n)}


class TestTime:
    """G, E, LPIPS and random images; each design has its own copies."""

    def __init__(self, config: Config) -> None:
        def networks() -> Any:
            G = new_gan_state(config, 2, 3, "cpu").G_ema
            return G, new_encoder_state(config, G, 3, "cpu").E_ema

        # no image leaves early: a step is to be timed, not how many there are
        self.inversion = config.inversion.model_copy(update={"patience": 10**6})
        (self.G, self.E), (self.plain_G, self.plain_E) = networks(), map(plain.make_plain, networks())
        self.lpips, self.vgg = LPIPS().to(memory_format=torch.channels_last), plain.vgg_lpips()
        self.prior = whitening(self.G)
        images = np.random.default_rng(0).integers(
            0, 256, (PREDICTED, config.data.resolution, config.data.resolution, 3), np.uint8
        )
        self.img = to_float(torch.from_numpy(images))
        with torch.no_grad():
            self.ws, *self.features = self.E(self.img)

    def invert(self, part: Part) -> None:
        with part("inversion step"):
            invert(self.G, self.lpips, self.img, self.ws, self.inversion, STEPS, self.prior, features=self.features)

    def plain_invert(self, part: Part) -> None:
        inputs = self.plain_G, self.vgg, self.img[:1].contiguous(), self.ws[:1], self.inversion, PLAIN_STEPS, self.prior
        features = [f[:1] for f in self.features]
        with part("inversion step"):
            plain.invert(*inputs, features)
        with part("inversion step, plain LPIPS at the image's own size"):
            plain.invert(*inputs, features, size=lambda img: img)

    def predict(self, part: Part) -> None:
        predictor = GeneratorPredictor(self.G, self.E, None, self.inversion)
        with part("encoder alone"):
            predictor(self.img, refine=False)
        with part("E alone"), torch.no_grad(), autocast("cpu"):
            in_fixed_batches(self.E, self.img)

    def plain_predict(self, part: Part) -> None:
        img = self.img[:PLAIN_PREDICTED].contiguous()
        with part("encoder alone"):
            plain.segment(self.plain_G, self.plain_E, img)
        with part("E alone"), torch.no_grad():
            for one in img:
                self.plain_E(one[None])


def inversion_rows(bench: Bench) -> Rows:
    setup = TestTime(bench.config)
    measured = bench.measure(ours=setup.invert, plain=setup.plain_invert)
    ours = measured["ours"]["inversion step"] * (1 / STEPS)
    return {
        name: (ours, PREDICTED, record * (1 / PLAIN_STEPS), 1) for name, record in measured["plain"].items()
    } if bench.plain else {"inversion step": (ours, PREDICTED, None, 1)}  # fmt: skip


def predict_rows(bench: Bench) -> Rows:
    setup = TestTime(bench.config)
    measured = bench.measure(ours=setup.predict, plain=setup.plain_predict)
    other = measured.get("plain", {})
    return {name: (record, PREDICTED, other.get(name), PLAIN_PREDICTED) for name, record in measured["ours"].items()}


PARTS = {"gan": gan_rows, "encoder": encoder_rows, "inversion": inversion_rows, "predict": predict_rows}
NO_BACKWARD = ("encoder alone", "E alone")


# ---------------------------------------------------------------- a preset's table, cost against resolution


def figures(record: Record, images: int) -> dict[str, Any]:
    return {
        "ms": record.seconds * 1000,
        "images": images,
        "images_per_second": images / record.seconds,
        "peak_mb": None if record.peak is None else record.peak / 1e6,
        "gflop_per_image": operations(record.calls) / images / 1e9,
    }


def preset_results(bench: Bench, parts: list[str]) -> dict[str, Any]:
    """The limit at the preset's shapes, and for every stage ours, plain, their ratio and the shares of the limit."""
    before, alone, stages = convolution_limits(bench.config), Alone(), {}
    rows = {name: row for part in parts for name, row in PARTS[part](bench).items()}
    limit = better_limits(before, convolution_limits(bench.config))
    for name, (ours, n, other, m) in rows.items():
        stage: dict[str, Any] = {"ours": figures(ours, n)}
        rate = limit[f"convolution_{resolved('auto', 'cpu')}_{'forward' if name in NO_BACKWARD else 'forward_backward'}"]
        stage["ours"]["share_of_limit"] = operations(ours.calls) / ours.seconds / 1e9 / rate
        stage["ours"]["share_alone"] = alone.seconds(ours.calls) / ours.seconds
        if other is not None:
            stage["plain"] = figures(other, m)
            stage["ratio"] = stage["ours"]["images_per_second"] / stage["plain"]["images_per_second"]
        stages[name] = stage
    return {"batch": bench.config.gan.batch, "vgg_weights": plain.vgg_weights(), "limit": limit, "stages": stages}


WIDTHS = {4: 128, 8: 128, 16: 128, 32: 64, 64: 32, 128: 32, 256: 32}


def resolution_results(sides: tuple[int, ...], repeats: int) -> list[dict[str, float]]:
    """The GAN's step at growing sides: cpu64's widths and one more level each time."""
    rows = []
    for side in sides:
        widths = ", ".join(f"{k}: {v}" for k, v in WIDTHS.items() if k <= side)
        bench = preset_bench("cpu64", repeats, f"data.resolution={side}", f"networks.widths={{{widths}}}")
        record, n, *_ = gan_rows(Bench(bench.config, repeats, plain=False))["training step"]
        counted = operations(record.calls) / 1e9
        rows.append(
            {
                "side": side,
                "ms_per_image": record.seconds / n * 1000,
                "gflop_per_image": counted / n,
                "gflop_per_second": counted / record.seconds,
            }
        )
    return rows


def count_preset(name: str) -> dict[str, Any]:
    """Operations of a preset's two training steps an image, from one small batch, and the networks' sizes; no timing."""
    bench = preset_bench(name, 1, "gan.batch=4", "encoder.batch=6")
    config, data = bench.config, bench.data()
    measured = {part: Record(0.0, None, dict(calls)) for part, calls in count(our_gan_step(config, data)).items()}
    gan = our_gan_records(config, measured)
    state = new_gan_state(config, 2, 3, "cpu")
    encoder = new_encoder_state(config, state.G, 3, "cpu")
    trainer = EncoderTrainer(config, LABELS, data, state.G_ema, LPIPS(), encoder, "cpu")

    def encoder_step(part: Part) -> None:
        with part("encoder step"):
            trainer.update(0, 0.5)

    nets = {"G": state.G, "D_img": state.D_img, "D_seg": state.D_seg, "E": encoder.E}
    return {
        "gflop_per_image": {
            **{part: operations(record.calls) / config.gan.batch / 1e9 for part, record in gan.items()},
            "encoder step": operations(count(encoder_step)["encoder step"]) / config.encoder.batch / 1e9,
        },
        "parameters": {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()},
    }
