"""Second stage: E learns to explain images through the finished G (SemanticGAN, arXiv 2104.05833, section 3.3, eq. 5-9)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from semanticgan.config import Config
from semanticgan.data import transforms
from semanticgan.data.pieces import least_share, with_some_object
from semanticgan.data.stream import Stream, generator
from semanticgan.data.zoom_out import zoom_in, zoom_out
from semanticgan.ema import ramped_decay, update_ema
from semanticgan.inversion import enlarge
from semanticgan.labels import IGNORE_INDEX, LabelSpec
from semanticgan.memory import keep_freed_memory
from semanticgan.model import SemanticGAN, build_encoder
from semanticgan.nn.backbone import EfficientNetLite0
from semanticgan.nn.encoder import Encoder
from semanticgan.nn.generator import Generator
from semanticgan.nn.layers import placed
from semanticgan.nn.perceptual import LPIPS
from semanticgan.precision import autocast
from semanticgan.training.checkpoint import State, save_checkpoint, to_keep
from semanticgan.training.distributed import ALONE, World
from semanticgan.training.gan import TrainingData, ValidationData
from semanticgan.training.run import Clock, Run, Stage
from semanticgan.training.supervised import ious_of, mask_loss, parameter_groups
from semanticgan.training.teachers import teacher_labels
from semanticgan.visuals import grid, save_png, to_rgb

WARMUP = 0.03  # share of the stage in which the learning rate rises
VALIDATED = 32  # validation images at once
PSEUDO_RAMP = 0.25  # share of the stage in which the weight of E's own label maps rises


def new_encoder_state(config: Config, G: Generator, channels: int, device: str) -> State:
    """E with fresh weights from the seed, starting at G's mean w; its averages and its optimiser."""
    mean = config.encoder.average > 0
    torch.manual_seed(config.run.seed + 1)
    E, *averages = (build_encoder(config.networks, config.data.resolution, channels) for _ in range(3 if mean else 2))
    E.w_avg.copy_(G.mapping.w_avg)
    if isinstance(E.trunk, EfficientNetLite0):
        E.trunk.load_imagenet()
    placed(E, device)
    for net in averages:
        net.load_state_dict(E.state_dict())
        placed(net, device).eval().requires_grad_(False)
    pretrained = E.trunk if isinstance(E.trunk, EfficientNetLite0) else None
    groups = parameter_groups(E, pretrained, config.encoder.trunk_lr)
    opt = torch.optim.AdamW(
        groups, config.encoder.lr, betas=(0.9, 0.99), weight_decay=config.encoder.weight_decay, foreach=True
    )  # fmt: skip
    members = {"E": E, **dict(zip(("E_ema", "E_mean"), averages, strict=False)), "opt": opt}
    numbers = {"nimg": 0, "seen_before": 0, "seconds": 0.0, "best": -1.0} | ({"averaged": 0} if mean else {})
    return State(members, numbers)


def train_encoder(
    config: Config, labels: LabelSpec, data: TrainingData, val: ValidationData, G: Generator, lpips: LPIPS,
    state: State, run: Run, budget: float | None, device: str, teachers: Sequence[SemanticGAN] = (),
) -> None:  # fmt: skip
    """Train to the end of the stage, from wherever `state` stands; keeps `encoder-best.pt` as `run.keep` says.

    G is frozen. Randomness and the order of the data are functions of (seed, nimg). Raises what `Stage.steps` raises.
    """
    trainer = EncoderTrainer(config, labels, data, G, lpips, state, device, run.world, teachers)
    clock = Clock(config.encoder.kimg, budget, state.seconds, run.world)

    def report(means: dict[str, float], last: bool) -> dict[str, float]:
        score = trainer.validate(val)
        if to_keep(state, score, config.run.keep) and run.world.main:
            best = {"E": trainer.exported.state_dict(), "nimg": state.nimg, "seen_before": state.seen_before}
            save_checkpoint(run.folder / "checkpoints" / "encoder-best.pt", best)
        if run.world.main and (last or round(state.nimg / 1000 / config.run.tick_kimg) % 4 == 0):
            save_png(run.folder / "samples" / f"encoder-{state.nimg:09d}.png", trainer.picture(val))
        return {"val_iou": score, "best_val_iou": state.best}

    stage = Stage("encoder", run, state, clock, batch=trainer.batch, tick_kimg=config.run.tick_kimg,
                  checkpoint_minutes=config.run.checkpoint_minutes, report=report)  # fmt: skip
    for nimg in stage.steps():
        stage.means.add(**trainer.update(nimg, clock.progress(nimg)))


class EncoderTrainer:
    """One step on a third each of unlabelled images, labelled images, and G's own samples.

    Of several processes each draws the random numbers of the whole batch and computes its own part of each third.
    """

    def __init__(
        self, config: Config, labels: LabelSpec, data: TrainingData, G: Generator, lpips: LPIPS, state: State, device: str,
        world: World = ALONE, teachers: Sequence[SemanticGAN] = (),  # their label maps of unlabelled images instead of E's own
    ) -> None:  # fmt: skip
        keep_freed_memory()
        self.config, self.weights, self.labels, self.data = config, config.encoder, labels, data
        self.G, self.lpips, self.state, self.device, self.world = G, lpips, state, torch.device(device), world
        self.teachers = teachers
        self.told: dict[int, np.ndarray] = {}  # their label maps, by the image's place
        self.third = config.encoder.batch // 3
        self.batch = 3 * self.third
        self.unlabeled_stream = Stream(len(data.images), config.run.seed, "encoder unlabeled")
        self.labeled_stream = Stream(len(data.labeled), config.run.seed, "encoder labeled")
        # of an image that the object covers at least; 0 where images may be without
        self.least = least_share(data.labels) if config.predict.one_object else 0.0
        random = generator(config.run.seed, "w deviation", 0)
        with torch.no_grad():
            self.w_deviation = G.mapping.w(torch.randn(10_000, G.z_dim, generator=random).to(self.device)).std(0).clamp(min=1e-6)

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.config.run.precision)

    def to_device(self, array: np.ndarray) -> Tensor:
        return transforms.send(torch.from_numpy(array), self.device)

    def update(self, nimg: int, progress: float) -> dict[str, Tensor]:
        n, w, random = self.third // self.world.size, self.weights, generator(self.config.run.seed, "encoder", nimg)
        real_seen, guess, real = self.draw_unlabeled(nimg // 3, random)
        labeled, label = self.draw_labeled(nimg // 3, random)
        sample, sample_label, clean, ws_known = self.draw_samples(random)
        with self.autocast():
            ws, *features = self.state.E(torch.cat([real_seen, labeled, sample]))
            img, seg_logits = self.G.synthesis(ws, "none", *features)
            distance = self.lpips(enlarge(img[:n]), enlarge(real)).mean()
        unmoved = slice(2 * n, 2 * n + len(ws_known))  # G drew these from ws alone
        known = ((ws[unmoved] - ws_known) / self.w_deviation).square().mean() + sum(f[unmoved].square().mean() for f in features)
        terms = {
            "mse": torch.nn.functional.mse_loss(img[:n], real),
            "lpips": distance.float(),
            "pseudo": mask_loss(seg_logits[:n], guess) * min(1.0, progress / PSEUDO_RAMP),
            "labeled": mask_loss(seg_logits[n : 2 * n], label),
            "samples": mask_loss(seg_logits[2 * n :], sample_label),
            "latent": known,
        }
        if features:
            terms["features"] = features[0].square().mean()
        loss = sum(getattr(w, name) * term for name, term in terms.items()) + torch.nn.functional.l1_loss(img[2 * n :], clean)
        return self.step(loss, progress, {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}})

    def step(self, loss: Tensor, progress: float, stats: dict[str, Tensor]) -> dict[str, Tensor]:
        """One update; `stats` come back as those of all processes."""
        state = self.state
        peak = self.weights.lr * (self.weights.warm_lr if state.seen_before else 1.0)
        end = self.weights.lr_end
        lr = peak * min(1.0, progress / WARMUP + 0.01) * (end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2)
        for group in state.opt.param_groups:
            group["lr"] = lr * group["share"]
        state.opt.zero_grad(set_to_none=True)
        loss.backward()
        stats = self.world.average(state.E.parameters(), stats)
        norm = torch.nn.utils.clip_grad_norm_(state.E.parameters(), self.weights.grad_clip)
        state.opt.step()
        seen = (state.seen_before + state.nimg + self.batch) / 1000
        update_ema(state.E_ema, state.E, ramped_decay(self.batch, self.weights.ema_half_life_kimg, seen))
        if self.weights.average and progress >= 1 - self.weights.average:
            update_ema(state.E_mean, state.E, state.averaged / (state.averaged + 1))  # all of them count the same
            state.averaged += 1
        return {"loss": stats["loss"], "grad_norm": norm, **stats}

    def draw_unlabeled(self, position: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Images as E sees them, what their label maps are taken to be, and the same images in their own colours."""
        chosen = self.world.mine(self.unlabeled_stream.indices(position, self.third))
        img = transforms.to_float(self.to_device(self.data.images[chosen]))
        real, guess = self.moved(img, self.taught(chosen) if self.teachers else self.guess(img), random)
        return transforms.recolour(real, random, self.weights.augment, self.world.part), guess, real

    def taught(self, chosen: np.ndarray) -> Int[Tensor, "n r r"]:
        """Pseudo-labels of unlabelled images by the teachers, who are asked once for each: they do not change."""
        new = [n for n in dict.fromkeys(chosen.tolist()) if n not in self.told]
        answers = teacher_labels(self.teachers, self.data.images[new], self.weights.pseudo_threshold)
        self.told.update(zip(new, answers, strict=True))
        return self.to_device(np.stack([self.told[n] for n in chosen.tolist()])).long()

    @torch.no_grad()
    def guess(self, img: Float[Tensor, "n c r r"]) -> Int[Tensor, "n r r"]:
        """Pseudo-labels (FixMatch, arXiv 2001.07685): the averaged E's class where it is sure of it, else 255.

        Sure after averaging with the mirror image, where the data are as plausible that way round. Where every labelled image
        has the one object, every image has: what is likeliest counts as sure, or E would never learn what it missed at first.
        """
        if not self.weights.pseudo:
            return torch.full(img.shape[:1] + img.shape[2:], IGNORE_INDEX, device=img.device)
        views = (0,) if self.config.data.symmetry == "none" else (0, 1)
        with self.autocast():
            looks = [self.explained(self.state.E_ema, transforms.view(img, k))[1] for k in views]
        probs = torch.stack([transforms.unview(x.float().softmax(1), k) for x, k in zip(looks, views, strict=True)]).mean(0)
        sure, label = (with_some_object(probs, self.least) if self.least else probs).max(1)
        return label.masked_fill(sure < self.weights.pseudo_threshold, IGNORE_INDEX)

    def draw_labeled(self, position: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = self.world.mine(self.labeled_stream.indices(position, self.third))
        img = transforms.to_float(self.to_device(self.data.labeled[chosen]))
        moved, label = self.moved(img, self.to_device(self.data.labels[chosen]).long(), random)
        return transforms.recolour(moved, random, self.weights.augment, self.world.part), label

    def draw_samples(self, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """G's samples as E sees them, their label maps, the same images in their own colours, and ws of the unmoved half."""
        G = self.G
        z = torch.randn(self.third, G.z_dim, generator=random)
        noise = [torch.randn(self.third, 1, side, side, generator=random) for side in G.synthesis.noise_sides]
        with torch.no_grad(), self.autocast():
            z, *noise = (transforms.send(self.world.mine(drawn), self.device) for drawn in (z, *noise))
            ws = G.mapping(z)
            img, seg_logits = G.synthesis(ws, noise=noise)
        img, label, still = img.clamp(-1, 1), seg_logits.argmax(1), len(z) // 2
        moved, moved_label = self.moved(img[still:], label[still:], random)
        clean, label = torch.cat([img[:still], moved]), torch.cat([label[:still], moved_label])
        return transforms.recolour(clean, random, self.weights.augment, self.world.part), label, clean, ws[:still]

    def moved(self, img: Tensor, label: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Image and class map in another place and size; pixels that mostly come from ignored ones stay ignored."""
        img, label = zoom_out(img, label, random, self.weights.zoom_out, self.world.part)
        if self.weights.zoom_in:
            img, label = zoom_in(img, label, random, self.weights.zoom_in, self.world.part)
        channels = img.shape[1]
        known = (label != IGNORE_INDEX)[:, None].float()
        onehot = transforms.onehot_from_label(label, self.labels.num_classes)
        both = transforms.move(torch.cat([img, onehot, known], 1), random, self.config.data.symmetry, self.weights.augment,
                               self.world.part)  # fmt: skip
        moved = both[:, channels:-1].argmax(1)
        return both[:, :channels], moved.masked_fill(both[:, -1] < 0.5, IGNORE_INDEX)

    @property
    def exported(self) -> Encoder:
        """The mean of the weights of the stage's last share, once that has begun (SWA, arXiv 1803.05407); until then E_ema."""
        return self.state.E_mean if self.weights.average and self.state.averaged else self.state.E_ema

    def explained(self, E: Encoder, img: Float[Tensor, "n c r r"]) -> tuple[Tensor, Tensor]:
        """What G makes of an encoder's latents: reconstructions and seg_logits."""
        ws, *features = E(img)
        return self.G.synthesis(ws, "none", *features)

    @torch.no_grad()
    def explain(self, images: UInt8[np.ndarray, "n r r c"]) -> tuple[Tensor, Tensor]:
        """Reconstructions and seg_logits by the exported encoder, for images at G's resolution."""
        outs = []
        for start in range(0, len(images), VALIDATED):
            img = transforms.to_float(self.to_device(np.array(images[start : start + VALIDATED])))
            with self.autocast():
                outs.append(self.explained(self.exported, img))
        return torch.cat([img for img, _ in outs]), torch.cat([seg_logits for _, seg_logits in outs])

    def validate(self, val: ValidationData) -> float:
        """Mean over images and foreground classes of IoU at G's resolution; NaN where no image has one."""
        predict = self.config.predict

        def scores(chosen: Sequence[int]) -> list[Tensor]:
            ious: list[Tensor] = []
            for start in range(0, len(chosen), VALIDATED):  # each scored before the next is computed: maps take memory
                some = list(chosen[start : start + VALIDATED])
                seg_logits = self.explain(val.images[some])[1]
                ious += ious_of(seg_logits, val.labels[some], bool(predict.one_object), bool(predict.convex))
            return [of_image[1:] for of_image in ious]

        return float(torch.stack(self.world.shared(range(len(val.images)), scores, chunk=VALIDATED)).nanmean())

    def picture(self, val: ValidationData) -> UInt8[np.ndarray, "h w 3"]:
        """Validation images above their reconstructions and label maps."""
        images = np.asarray(val.images[:16])
        img, seg_logits = self.explain(images)
        label = self.labels.to_colour(seg_logits.argmax(1).byte().cpu().numpy())
        columns = zip(images, transforms.to_u8(img).cpu().numpy(), label, strict=True)
        return grid([np.concatenate([to_rgb(i), to_rgb(r), m]) for i, r, m in columns], columns=8)
