"""First stage: G against D_img on all images, and against D_seg on the labelled ones (SemanticGAN, arXiv 2104.05833, eq. 2-4)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semanticgan import losses
from semanticgan.config import Config, NetworkConfig
from semanticgan.data import transforms
from semanticgan.data.stream import Stream, generator
from semanticgan.ema import ramped_decay, update_ema
from semanticgan.labels import IGNORE_INDEX, LabelSpec
from semanticgan.memory import keep_freed_memory
from semanticgan.model import build_generator
from semanticgan.nn.discriminators import ImageDiscriminator, MultiScaleDiscriminator, verdict
from semanticgan.nn.layers import placed
from semanticgan.nn.projected import ProjectedDiscriminator
from semanticgan.precision import autocast
from semanticgan.training.checkpoint import State
from semanticgan.training.distributed import ALONE, World
from semanticgan.training.run import Clock, Run, Stage
from semanticgan.visuals import grid, save_png, to_rgb

ADA_EVERY = 4  # steps between two looks at D_img's signs
ADA_LIMIT = 0.8  # beyond it the changes leak into the samples (ADA, section 2.2)
PROJECTED_AUGMENT = 0.5  # probability of each change before a projected D_img, from beginning to end
SIGN_HALF_LIFE_KIMG = 1.0  # of the running mean of D_img's signs on real images


@dataclass(frozen=True)
class TrainingData:
    """Packed bytes: all training images, and the labelled ones with their class maps."""

    images: UInt8[np.ndarray, "n r r c"]
    labeled: UInt8[np.ndarray, "m r r c"]
    labels: UInt8[np.ndarray, "m r r"]

    @property
    def channels(self) -> int:
        return int(self.images.shape[-1])


@dataclass(frozen=True)
class ValidationData:
    """Packed validation images and their class maps."""

    images: UInt8[np.ndarray, "n r r c"]
    labels: UInt8[np.ndarray, "n r r"]


def build_discriminators(
    nets: NetworkConfig, resolution: int, num_classes: int, channels: int
) -> tuple[ImageDiscriminator | ProjectedDiscriminator, MultiScaleDiscriminator]:
    """D_img and D_seg with fresh weights."""
    D_img = (
        ProjectedDiscriminator(resolution)
        if nets.d_img == "projected"
        else ImageDiscriminator(resolution, channels, nets.widths, nets.mbstd_group)
    )
    return D_img, MultiScaleDiscriminator(channels + num_classes, nets.d_seg_filters, nets.d_seg_scales, nets.d_seg_layers)


def new_gan_state(config: Config, num_classes: int, channels: int, device: str) -> State:
    """Networks with fresh weights, drawn from the seed, their optimisers, and the stage's numbers."""
    torch.manual_seed(config.run.seed)
    nets, gan, resolution = config.networks, config.gan, config.data.resolution
    G = build_generator(nets, resolution, num_classes, channels)
    D_img, D_seg = build_discriminators(nets, resolution, num_classes, channels)
    G_ema = build_generator(nets, resolution, num_classes, channels)
    G_ema.load_state_dict(G.state_dict())
    for net in (G, D_img, D_seg, G_ema):
        placed(net, device)
    G_ema.eval().requires_grad_(False)

    def adam(net: torch.nn.Module, lr: float, every: int) -> torch.optim.Adam:
        ratio = every / (every + 1) if every else 1.0  # StyleGAN2, appendix B: one step in `every` counts twice
        return torch.optim.Adam(net.parameters(), lr * ratio, betas=(0.0, 0.99**ratio), eps=1e-8, fused=True)

    members = {
        "G": G, "D_img": D_img, "D_seg": D_seg, "G_ema": G_ema,
        "opt_G": adam(G, gan.lr_g, gan.pl_every if gan.pl_weight else 0),
        "opt_D_img": adam(D_img, gan.lr_d_img, gan.r1_every),
        "opt_D_seg": adam(D_seg, gan.lr_d_seg, gan.r1_every),
    }  # fmt: skip
    return State(members, {"nimg": 0, "seen_before": 0, "seconds": 0.0, "augment_p": 0.0, "real_sign": 0.0, "pl_mean": 0.0})


def train_gan(
    config: Config, labels: LabelSpec, data: TrainingData, state: State, run: Run, budget: float | None, device: str
) -> None:
    """Train to the end of the stage, from wherever `state` stands.

    Randomness and the order of the data are functions of (seed, nimg). Raises what `Stage.steps` raises.
    """
    trainer = GanTrainer(config, labels, data, state, device, run.world)
    clock = Clock(config.gan.kimg, budget, state.seconds, run.world)
    health = Health(run)

    def report(means: dict[str, float], last: bool) -> dict[str, float]:
        health.look(means, state.augment_p)
        if run.world.main and (last or round(state.nimg / 1000 / config.run.tick_kimg) % 4 == 0):
            save_png(run.folder / "samples" / f"gan-{state.nimg:09d}.png", trainer.sample_picture())
        return {"augment_p": state.augment_p}

    stage = Stage("gan", run, state, clock, batch=config.gan.batch, tick_kimg=config.run.tick_kimg,
                  checkpoint_minutes=config.run.checkpoint_minutes, report=report)  # fmt: skip
    for nimg in stage.steps():
        batch = trainer.draw(nimg)
        d_img = trainer.update_d_img(batch)
        real_sign = trainer.fetch(d_img["real_sign"]) if batch.step % ADA_EVERY == 0 else None
        d_seg, real_features = trainer.update_d_seg(batch) if config.gan.seg_weight else ({}, [])
        g = trainer.update_g(batch, real_features)
        trainer.update_averages(batch)
        if real_sign is not None:
            trainer.update_augmentation(real_sign())
        stage.means.add(**d_img, **d_seg, **g)


@dataclass
class Batch:
    """One step's real images and pairs (of this process), and one pass of G that serves all three updates."""

    step: int
    random: torch.Generator
    real_img: Float[Tensor, "n c r r"]
    fake_img: Float[Tensor, "n c r r"]  # with its graph
    real_pair: tuple[Tensor, Tensor]  # images and one-hot maps
    fake_pair: tuple[Tensor, Tensor]  # the image detached, the label maps with their graph
    w: Float[Tensor, "n w_dim"]


class GanTrainer:
    """The updates of one step, in the order in which `train_gan` calls them.

    Of several processes each draws the random numbers of the whole batch and computes its own part of the images;
    gradients and statistics are means over all.
    """

    def __init__(
        self, config: Config, labels: LabelSpec, data: TrainingData, state: State, device: str, world: World = ALONE
    ) -> None:
        keep_freed_memory()
        self.config, self.gan, self.labels = config, config.gan, labels
        self.data, self.state, self.device, self.world = data, state, torch.device(device), world
        self.projected = config.networks.d_img == "projected"
        self.unlabeled_stream = Stream(len(data.images), config.run.seed, "unlabeled")
        self.labeled_stream = Stream(len(data.labeled), config.run.seed, "labeled")

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.config.run.precision)

    def to_device(self, array: np.ndarray) -> Tensor:
        return transforms.send(torch.from_numpy(array), self.device)

    def mine(self, drawn: Tensor) -> Tensor:
        """This process's part of what was drawn for the whole batch, on its device."""
        return transforms.send(self.world.mine(drawn), self.device)

    def draw(self, nimg: int) -> Batch:
        n, mine, symmetry = self.gan.batch, self.world.mine, self.config.data.symmetry
        random = generator(self.config.run.seed, "gan", nimg)
        real = transforms.to_float(self.to_device(self.data.images[mine(self.unlabeled_stream.indices(nimg, n))]))
        real = transforms.apply_views(real, mine(transforms.random_views(symmetry, n, random)))
        chosen = mine(self.labeled_stream.indices(nimg, n))
        labeled = transforms.to_float(self.to_device(self.data.labeled[chosen]))
        label = self.to_device(self.data.labels[chosen]).long()
        onehot = transforms.onehot_from_label(label, self.labels.num_classes)
        with self.autocast():
            w, ws = self.draw_ws(n, random)
            img, seg_logits = self.state.G.synthesis(ws, noise=self.noise(n, random))
        maps = (2 * seg_logits.softmax(1) - 1) * (label != IGNORE_INDEX)[:, None]
        return Batch(
            step=nimg // n,
            random=random,
            real_img=self.augment(real, random),
            fake_img=self.augment(img, random),
            real_pair=self.change_pair(labeled, onehot, random),
            fake_pair=self.change_pair(img.detach(), maps, random),
            w=w.detach(),
        )

    def draw_ws(self, n: int, random: torch.Generator) -> tuple[Float[Tensor, "n w_dim"], Float[Tensor, "n num_ws w_dim"]]:
        """w, and ws in which some images take their later rows from a second w (style mixing, StyleGAN section 3.1)."""
        G = self.state.G
        z = torch.randn(2, n, G.z_dim, generator=random)
        w, other = G.mapping.w(torch.cat([self.mine(part) for part in z])).chunk(2)
        crossover = torch.randint(1, G.num_ws, (n,), generator=random)
        crossover[torch.rand(n, generator=random) >= self.gan.style_mixing] = G.num_ws
        mixed = self.mine(torch.arange(G.num_ws) >= crossover[:, None])[:, :, None]
        return w, torch.where(mixed, other[:, None], w[:, None])

    def noise(self, n: int, random: torch.Generator) -> list[Tensor]:
        return [self.mine(torch.randn(n, 1, side, side, generator=random)) for side in self.state.G.synthesis.noise_sides]

    def augment(self, img: Float[Tensor, "n c r r"], random: torch.Generator) -> Float[Tensor, "n c r r"]:
        """ADA's changes of place and colour, each with probability p (ADA, section 2)."""
        p = PROJECTED_AUGMENT if self.projected else min(self.state.augment_p, ADA_LIMIT)
        if p == 0:
            return img
        n, channels, mine = len(img) * self.world.size, img.shape[1], self.world.mine
        theta = transforms.random_affine(n, random, rotation=0.3, scale=0.2, shift=0.125, probability=p)
        matrix, offset = transforms.random_colour(n, channels, random, probability=p)
        return transforms.apply_colour(transforms.warp(img, mine(theta)), (mine(matrix), mine(offset)))

    def change_pair(self, img: Tensor, maps: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """The differentiable augmentation of D_seg's real and fake pairs: place for both, colour for the image."""
        strength, part = self.gan.seg_augment, self.world.part
        both = transforms.move(torch.cat([img, maps], 1), random, self.config.data.symmetry, strength, part)
        channels = img.shape[1]
        return transforms.recolour(both[:, :channels], random, strength, part), both[:, channels:]

    def update_d_img(self, batch: Batch) -> dict[str, Tensor]:
        """Logistic loss, every `r1_every` steps with R1 on the real images; of a projected D_img hinge loss alone."""
        state, due = self.state, batch.step % self.gan.r1_every == 0 and not self.projected
        real_img = batch.real_img.detach().requires_grad_(due)
        with self.autocast():
            real, fake = state.D_img(real_img), state.D_img(batch.fake_img.detach())
        loss = losses.hinge_d(real, fake) if self.projected else losses.logistic_d(real, fake)
        stats = {"D_img": loss.detach(), "real_sign": _mean_sign(real), "fake_sign": _mean_sign(fake)}
        if due and self.gan.r1_gamma:
            penalty = losses.r1_penalty(real, [real_img])
            stats["r1_img"] = penalty.detach().mean()
            loss = loss + penalty.mean() * (self.gan.r1_gamma / 2 * self.gan.r1_every)
        return self.step(state.D_img, state.opt_D_img, loss, stats)

    def update_d_seg(self, batch: Batch) -> tuple[dict[str, Tensor], list[list[Tensor]]]:
        """Hinge loss on pairs; R1 per sample. Also returns the real pairs' features, for G's feature matching."""
        state, n, due = self.state, len(batch.real_pair[0]), batch.step % self.gan.r1_every == 0
        inputs = [x.detach().requires_grad_(due) for x in batch.real_pair]
        with self.autocast():
            features = state.D_seg(*(torch.cat([r, f.detach()]) for r, f in zip(inputs, batch.fake_pair, strict=True)))
        real, fake = ([scale[-1][half].float() for scale in features] for half in (slice(n), slice(n, None)))
        loss = losses.hinge_d(real, fake)
        stats = {"D_seg": loss.detach(), "seg_real": verdict(real).detach().mean(), "seg_fake": verdict(fake).detach().mean()}
        if due and self.gan.r1_gamma_seg:
            penalty = losses.r1_penalty(verdict(real), inputs)
            stats["r1_seg"] = penalty.detach().mean()
            loss = loss + penalty.mean() * (self.gan.r1_gamma_seg / 2 * self.gan.r1_every)
        stats = self.step(state.D_seg, state.opt_D_seg, loss, stats)
        return stats, [[f[:n].detach() for f in scale] for scale in features]

    def update_g(self, batch: Batch, real_features: list[list[Tensor]]) -> dict[str, Tensor]:
        """Fool both; match D_seg's features of real pairs; now and then the path length penalty. D_img alone at seg_weight 0."""
        state, gan = self.state, self.gan
        for D in (state.D_img, state.D_seg):
            D.requires_grad_(False)
        with self.autocast():
            logits_img = state.D_img(batch.fake_img)
            features = state.D_seg(*batch.fake_pair) if gan.seg_weight else []
        loss = losses.hinge_g(logits_img) if self.projected else losses.logistic_g(logits_img)
        stats = {"G_img": loss.detach()}
        if gan.seg_weight:
            g_seg = losses.hinge_g([scale[-1].float() for scale in features])
            matching = losses.feature_matching(real_features, features)
            loss = loss + gan.seg_weight * (g_seg + gan.feature_matching * matching)
            stats |= {"G_seg": g_seg.detach(), "matching": matching.detach()}
        if gan.pl_weight and batch.step % gan.pl_every == 0:
            penalty = self.path_length(batch.random)
            stats["path_length"] = penalty.detach()
            loss = loss + penalty * (gan.pl_weight * gan.pl_every)
        stats = self.step(state.G, state.opt_G, loss, stats)
        for D in (state.D_img, state.D_seg):
            D.requires_grad_(True)
        return stats

    def path_length(self, random: torch.Generator) -> Float[Tensor, ""]:
        """On half a batch of its own (StyleGAN2, appendix B)."""
        n = max(1, self.gan.batch // 2)
        with self.autocast():
            _, ws = self.draw_ws(n, random)
            img, _ = self.state.G.synthesis(ws, noise=self.noise(n, random))
        noise_img = self.mine(torch.randn(n, *img.shape[1:], generator=random))
        pl_mean = torch.as_tensor(self.state.pl_mean, device=self.device)
        penalty, self.state.pl_mean = losses.path_length(
            img, ws, noise_img, pl_mean, mean=lambda lengths: self.world.mean(lengths.mean())
        )
        return penalty.mean()

    def step(
        self, net: torch.nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, stats: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """One update; `stats` come back as those of all processes."""
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        stats = self.world.average(net.parameters(), stats)
        optimiser.step()
        return stats

    def update_averages(self, batch: Batch) -> None:
        """w_avg and G_ema; the average's half-life grows with the images seen, up to its set value."""
        state, gan = self.state, self.gan
        seen = (state.seen_before + state.nimg + gan.batch) / 1000
        state.G.mapping.update_w_avg(self.world.mean(batch.w))
        update_ema(state.G_ema, state.G, ramped_decay(gan.batch, gan.ema_half_life_kimg, seen, gan.ema_rampup))

    def update_augmentation(self, real_sign: float) -> None:
        """p goes up while D_img's mean sign on real images is above the target, else down (ADA, section 3.1)."""
        seen = ADA_EVERY * self.gan.batch / 1000
        keep = 0.5 ** (seen / SIGN_HALF_LIFE_KIMG)
        self.state.real_sign = keep * self.state.real_sign + (1 - keep) * real_sign
        if self.gan.ada_target and not self.projected:
            change = seen / self.gan.ada_kimg
            wanted = self.state.augment_p + (change if self.state.real_sign > self.gan.ada_target else -change)
            self.state.augment_p = min(max(wanted, 0.0), ADA_LIMIT)

    def fetch(self, number: Tensor) -> Callable[[], float]:
        """A number on its way from the device: asked for later, it is there and nothing has waited for it."""
        if self.device.type != "cuda":
            return lambda: float(number)
        here = torch.empty((), pin_memory=True).copy_(number, non_blocking=True)
        (arrived := torch.cuda.Event()).record(torch.cuda.current_stream(self.device))

        def read() -> float:
            arrived.synchronize()
            return float(here)

        return read

    def sample_picture(self) -> UInt8[np.ndarray, "h w 3"]:
        """The same 32 latents every time, as G_ema draws them now."""
        G = self.state.G_ema
        random = generator(self.config.run.seed, "pictures", 0)
        z = torch.randn(32, G.z_dim, generator=random).to(self.device)
        with torch.no_grad(), self.autocast():
            img, seg_logits = G(z, noise="none")
        return sample_grid(img, seg_logits, self.labels)


def sample_grid(
    img: Float[Tensor, "n c h w"], seg_logits: Float[Tensor, "n k h w"], labels: LabelSpec
) -> UInt8[np.ndarray, "gh gw 3"]:
    """Generated images, below each its label map in the classes' colours; eight pairs a row."""
    pixels, label = transforms.to_u8(img).cpu().numpy(), seg_logits.detach().argmax(1).byte().cpu().numpy()
    return grid([np.concatenate([to_rgb(p), labels.to_colour(m)]) for p, m in zip(pixels, label, strict=True)], columns=8)


def _mean_sign(logits: Tensor | list[Tensor]) -> Tensor:
    return verdict(logits).detach().sign().mean()


class Health:
    """Warns, once for each kind, of what a person would see in the curves."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.parted = 0
        self.saturated = 0
        self.warned: set[str] = set()

    def look(self, means: dict[str, float], augment_p: float) -> None:
        self.parted = self.parted + 1 if means.get("D_seg", 1.0) < 0.1 else 0
        self.saturated = self.saturated + 1 if means["real_sign"] > 0.98 and means["fake_sign"] < -0.98 else 0
        if self.parted >= 5:
            self.warn("D_seg tells real from fake pairs without fail for 5 ticks: the label maps learn no more; "
                      "raise gan.seg_augment or gan.r1_gamma_seg, or label more images")  # fmt: skip
        if self.saturated >= 5:
            self.warn(
                "D_img tells real from fake images without fail for 5 ticks; raise gan.r1_gamma (where networks.d_img is "
                "projected, lower gan.lr_d_img) or add images"
            )
        if augment_p >= ADA_LIMIT:
            self.warn("D_img knows the training images by heart in spite of augmentation; more unlabelled images would help")

    def warn(self, text: str) -> None:
        if text not in self.warned:
            self.warned.add(text)
            self.run.log(f"warning: {text}")
