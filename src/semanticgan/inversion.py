"""Test-time optimisation: the latent code that explains an image (arXiv 2104.05833, section 3.3). Tensors in, tensors out."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from semanticgan.config import InversionConfig, Precision
from semanticgan.errors import UserError
from semanticgan.nn.generator import Generator
from semanticgan.nn.perceptual import LPIPS
from semanticgan.precision import autocast

PERCEPTUAL_SIDE = 128  # pixels; LPIPS sees smaller images enlarged to it
SETTLED = 1e-3  # a loss that falls by less than this share of itself has not fallen
NOISE_WEIGHT = 100.0  # of the noise maps' autocorrelation (the paper's value)


# ---------------------------------------------------------------- batch mates must not matter


def fixed_batch(device: torch.device) -> int:
    """Samples in every batch: places in it are alike if the threads share the samples evenly, else one at a time.

    A batch that the threads cut within samples has its sums in another order at another place; so has one whose size is
    no multiple of four (matrix products) or above 32 (reductions). `tests/test_inversion.py` holds this to the bit.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return next((n for n in range(8, 33, 4) if n % threads == 0 or threads % n == 0), 1)


def fixed_batches(index: Int[Tensor, " n"], size: int) -> Iterator[Int[Tensor, " size"]]:
    """Pieces of `index`, all of the same size: the last repeats its last sample."""
    for piece in index.split(size):
        yield torch.cat([piece, piece[-1:].expand(size - len(piece))])


def in_fixed_batches(f: Callable[..., Tensor | Sequence[Tensor]], *inputs: Tensor) -> list[Tensor]:
    """f over samples (first axis), in batches of one size whatever their number.

    Convolutions and matrix products sum in an order that depends on the batch's size, but not on the place in it: so
    each sample's result depends, bit for bit, on nothing but itself.
    """
    device = inputs[0].device
    n, parts = len(inputs[0]), []
    for index in fixed_batches(torch.arange(n, device=device), fixed_batch(device)):
        outs = f(*(_take(x, index) for x in inputs))
        parts.append([outs] if isinstance(outs, Tensor) else outs)
    return [torch.cat(outs)[:n] for outs in zip(*parts, strict=True)]


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Some samples, maps channels-last."""
    return x.movedim(1, -1).index_select(0, index).movedim(-1, 1) if x.dim() == 4 else x.index_select(0, index)


# ---------------------------------------------------------------- where the mapping network puts ws


def _before_activation(ws: Tensor) -> Tensor:
    """The mapping's last leaky ReLU undone, but for its gain: w is close to normal there (arXiv 2012.09036)."""
    return torch.where(ws < 0, ws * 5, ws)


@dataclass(frozen=True)
class Whitening:
    """The distribution of w as a normal one in the space before the mapping's last activation (arXiv 2012.09036, P_N)."""

    mean: Float[Tensor, " w_dim"]
    matrix: Float[Tensor, "w_dim w_dim"]  # columns: principal axes, each divided by its standard deviation

    def whiten(self, ws: Float[Tensor, "*n w_dim"]) -> Float[Tensor, "*n w_dim"]:
        """Coordinates of mean 0 and variance 1 over the mapping's own ws; their square sum is the Mahalanobis distance."""
        with torch.autocast(ws.device.type, enabled=False):
            return (_before_activation(ws.float()) - self.mean) @ self.matrix


@torch.no_grad()
def whitening(G: Generator, n: int = 10_000) -> Whitening:
    """Estimated from n z, always the same ones. Axes along which w hardly varies count as if by 3 % of the mean deviation."""
    device = G.mapping.w_avg.device
    z = torch.randn(n, G.z_dim, generator=torch.Generator().manual_seed(0))
    w = torch.cat([G.mapping.w(part.to(device)) for part in z.split(1000)])
    v = _before_activation(w).cpu().double()
    variance, axes = torch.linalg.eigh(torch.cov(v.T))
    deviation = variance.clamp_min(1e-3 * variance.mean()).sqrt()
    return Whitening(v.mean(0).float().to(device), (axes / deviation).float().to(device))


# ---------------------------------------------------------------- inversion


@dataclass(frozen=True)
class Inverted:
    """The best that was met, image by image."""

    ws: Float[Tensor, "n num_ws w_dim"]
    noise: list[Float[Tensor, "n 1 _ _"]] | None
    img: Float[Tensor, "n c r r"]
    seg_logits: Float[Tensor, "n k r r"]
    loss: Float[Tensor, " n"]
    steps_used: Int[Tensor, " n"]


def learning_rate(step: int, steps: int) -> float:
    """Share of the full rate at step 0..steps-1: linear up in the first 5 %, cosine down in the last 25 %."""
    up = min(1.0, (step + 1) / (0.05 * steps))
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - step / steps) / 0.25))
    return up * down


def enlarge(img: Float[Tensor, "n c r r"]) -> Float[Tensor, "n c s s"]:
    """Doubled until at least PERCEPTUAL_SIDE: LPIPS's first layers are made for larger things than 64 px have."""
    factor = 1
    while img.shape[-1] * factor < PERCEPTUAL_SIDE:
        factor *= 2
    return img if factor == 1 else functional.interpolate(img, scale_factor=factor, mode="bilinear", align_corners=False)


def noise_autocorrelation(maps: Sequence[Float[Tensor, "n 1 _ _"]]) -> Float[Tensor, " n"]:
    """Squared correlation of neighbours at every scale down to 8 px (arXiv 1912.04958, appendix D): noise carries no signal."""
    terms = []
    for noise in maps:
        level = noise
        while True:
            terms += [(level * level.roll(1, axis)).mean((1, 2, 3)).square() for axis in (2, 3)]
            if level.shape[-1] <= 8:
                break
            level = functional.avg_pool2d(level, 2) * 2  # halves the side, keeps the variance
    return torch.stack(terms).sum(0)


class _Objective:
    """What each image's variables (rows of its ws, its noise maps) are worth; everything that stays is computed once."""

    def __init__(
        self, G: Generator, lpips: LPIPS, img: Tensor, ws: Tensor, features: Sequence[Tensor], config: InversionConfig
    ) -> None:
        first, last = config.rows or (0, G.num_ws)
        if not 0 <= first < last <= G.num_ws:
            raise UserError(f"inversion.rows: got [{first}, {last}], expected 0 <= first < last <= {G.num_ws}, the rows of W+")
        self.G, self.lpips, self.config = G, lpips, config
        self.rows = slice(first, last)
        self.img, self.ws, self.features = img, ws, features
        self.wanted = in_fixed_batches(lambda x: lpips.features(enlarge(x)), img)
        # The blocks before the first one with a free row give the same features at every step.
        self.done = 0 if config.noise else sum(2 * k + 1 < first for k in range(len(G.synthesis.blocks)))
        self.trunk = in_fixed_batches(self.run_trunk, ws, *features) if self.done else []

    def run_trunk(self, ws: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.G.synthesis.run(ws, "none", stop=self.done, features=features)

    def __call__(self, index: Tensor, variables: list[Tensor], prior: Whitening | None) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of each image, the image and the label map that G makes of it."""
        free, *noise = variables
        fixed = self.ws.index_select(0, index)
        ws = torch.cat([fixed[:, : self.rows.start], free, fixed[:, self.rows.stop :]], 1)
        x, out = (_take(t, index) for t in self.trunk) if self.trunk else (None, None)
        features = _take(self.features[0], index) if self.features else None
        _, out = self.G.synthesis.run(ws, noise or "none", self.done, x=x, out=out, features=features)
        img, seg_logits = out.split([self.G.img_channels, self.G.num_classes], 1)
        target = _take(self.img, index)
        wanted = [_take(f, index) for f in self.wanted]
        loss = self.config.lpips * self.lpips.distance(self.lpips.features(enlarge(img)), wanted).float()
        loss = loss + self.config.mse * (img - target).square().mean((1, 2, 3))
        if prior is not None and self.config.prior > 0:
            loss = loss + self.config.prior * prior.whiten(free).square().mean((1, 2))
        if noise:
            loss = loss + NOISE_WEIGHT * noise_autocorrelation(noise)
        return loss, img, seg_logits


class _Adam:
    """Adam without shared state: every image's moments are its own.

    Its operations are single products, sums, quotients and roots, which round alike in every vector lane; a fused one need not.
    """

    def __init__(self, variables: list[Tensor]) -> None:
        self.first = [torch.zeros_like(v) for v in variables]
        self.second = [torch.zeros_like(v) for v in variables]

    def step(self, k: int, index: Tensor, value: Tensor, grad: Tensor, lr: float, step: int) -> Tensor:
        """Variable k of the images `index` after update number `step` (from 0)."""
        b1, b2 = 0.9, 0.999
        m = self.first[k][index] * b1 + grad * (1 - b1)
        v = self.second[k][index] * b2 + grad * grad * (1 - b2)
        self.first[k][index], self.second[k][index] = m, v
        m, v = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        return value - m * lr / (v.sqrt() + 1e-8)


@torch.no_grad()
def invert(
    G: Generator,
    lpips: LPIPS,
    img: Float[Tensor, "n c r r"],  # -1..1
    ws0: Float[Tensor, "n num_ws w_dim"],  # where each image starts
    config: InversionConfig,
    steps: int,
    prior: Whitening | None = None,  # of G; None: no prior
    *,
    features: Sequence[Float[Tensor, "n f h w"]] = (),  # E's offset to G's feature maps, if it gives one; it stays
    precision: Precision = "auto",
    seed: int = 0,  # of the first noise maps, the same for every image
    watch: Callable[[int, Tensor, Tensor], None] | None = None,  # told step, best img and seg_logits so far; not to change them
) -> Inverted:
    """Adam on LPIPS + MSE + prior over the chosen rows of W+, every image on its own; its best step is what is returned.

    An image whose loss has not fallen for `config.patience` steps leaves. Each image's result is the same, on a CPU bit for
    bit, whatever its batch mates. G is neither changed nor given gradients. Raises UserError for rows that G does not have.
    """
    noise = [m.repeat(len(img), 1, 1, 1) for m in G.noise_maps(1, torch.Generator().manual_seed(seed))] if config.noise else []
    with autocast(img.device, precision):
        objective = _Objective(G, lpips, img, ws0.float(), features, config)
        variables = [ws0[:, objective.rows].float().clone(), *noise]
        adam, search = _Adam(variables), _Search(len(img), img.device, config.patience)
        for step in range(steps + 1):
            active = search.active()
            for index in fixed_batches(active, fixed_batch(img.device)) if len(active) else ():
                here = [v[index].requires_grad_() for v in variables]
                with torch.enable_grad():
                    loss, out, seg_logits = objective(index, here, prior)
                with autocast(img.device, "fp32"):  # the backward pass has its precisions from the forward one
                    grads = torch.autograd.grad(loss, here, torch.ones_like(loss)) if step < steps else ()
                search.record(index, step, loss.detach(), [out.detach(), seg_logits.detach(), *(v.detach() for v in here)])
                for k, grad in enumerate(grads):
                    value = adam.step(k, index, here[k].detach(), grad, config.lr * learning_rate(step, steps), step)
                    variables[k][index] = value if k == 0 else _renormalised(value)
            if watch is not None:
                with autocast(img.device, "fp32"):  # what it computes is its own
                    watch(step, *search.best[:2])
    out, seg_logits, free, *noise = search.best
    ws = torch.cat([ws0[:, : objective.rows.start], free, ws0[:, objective.rows.stop :]], 1)
    return Inverted(ws, noise or None, out, seg_logits, search.loss, search.steps)


def _renormalised(noise: Tensor) -> Tensor:
    """Each map to mean 0 and variance 1."""
    noise = noise - noise.mean((2, 3), keepdim=True)
    return noise / noise.square().mean((2, 3), keepdim=True).sqrt()


class _Search:
    """Each image's best step so far, and whether its loss still falls."""

    def __init__(self, n: int, device: torch.device, patience: int) -> None:
        self.patience = patience
        self.loss = torch.full((n,), math.inf, device=device)
        self.mark = self.loss.clone()  # the loss when it last fell by more than SETTLED
        self.since = torch.zeros(n, dtype=torch.long, device=device)  # the step of that
        self.steps = torch.zeros(n, dtype=torch.long, device=device)
        self.best: list[Tensor] = []

    def active(self) -> Int[Tensor, " m"]:
        return (self.steps - self.since < self.patience).nonzero()[:, 0]

    def record(self, index: Tensor, step: int, loss: Tensor, found: list[Tensor]) -> None:
        """`found` replaces the best where the loss is lower; at step 0 everywhere."""
        if not self.best:
            self.best = [x.new_zeros(len(self.loss), *x.shape[1:]) for x in found]
        better = (loss < self.loss[index]) | (step == 0)
        for best, x in zip(self.best, found, strict=True):
            best[index[better]] = x[better]
        self.loss[index[better]] = loss[better]
        fell = (loss < self.mark[index] * (1 - SETTLED)) | (step == 0)
        self.mark[index[fell]] = loss[fell]
        self.since[index[fell]] = step
        self.steps[index] = step
