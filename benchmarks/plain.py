"""The plain design: our networks and losses, computed as the published StyleGAN2 and SemanticGAN describe them, step by step.

A filter per sample in one grouped convolution, up-sampling by zeros between the pixels, blurs at full size, float32, the
default memory layout, a pass of G for each update, D_seg apart on real and fake pairs, one image at a time in inversion.
"""

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from semanticgan import losses
from semanticgan.config import Config, InversionConfig
from semanticgan.data import transforms
from semanticgan.data.stream import Stream, generator
from semanticgan.ema import ema_decay
from semanticgan.inversion import NOISE_WEIGHT, Whitening, enlarge, learning_rate, noise_autocorrelation
from semanticgan.labels import IGNORE_INDEX, LabelSpec
from semanticgan.nn import discriminators, layers
from semanticgan.nn import generator as generators
from semanticgan.nn.encoder import Encoder
from semanticgan.nn.generator import Generator
from semanticgan.nn.ops import binomial_kernel
from semanticgan.nn.perceptual import LPIPS, weights_path
from semanticgan.training.checkpoint import State
from semanticgan.training.encoder import EncoderTrainer
from semanticgan.training.gan import TrainingData

# ---------------------------------------------------------------- operations


def upfirdn(x: Tensor, kernel: Tensor, up: int, pad: tuple[int, int]) -> Tensor:
    """Zeros between the pixels, zeros around them, then a full filter of each channel (arXiv 1912.04958, appendix B)."""
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, h * up, w * up)
    spread[:, :, ::up, ::up] = x
    spread = functional.pad(spread, (pad[0], pad[1], pad[0], pad[1])).reshape(n * c, 1, h * up + sum(pad), w * up + sum(pad))
    y = functional.conv2d(spread, kernel.flip(0, 1)[None, None])
    return y.reshape(n, c, *y.shape[2:])


def modulated_conv2d(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up_kernel: Tensor | None = None) -> Tensor:
    """A filter per sample, all of them in one grouped convolution (arXiv 1912.04958, eq. 1 and 3, and its appendix B)."""
    n, c, h, w = x.shape
    o, _, k, _ = weight.shape
    filters = weight * style[:, None, :, None, None]  # [N, O, C, k, k]
    if demodulate:
        filters = filters * (filters.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    grouped = x.reshape(1, n * c, h, w)
    if up_kernel is None:
        y = functional.conv2d(grouped, filters.reshape(n * o, c, k, k), padding=k // 2, groups=n)
        return y.reshape(n, o, h, w)
    y = functional.conv_transpose2d(grouped, filters.transpose(1, 2).reshape(n * c, o, k, k), stride=2, groups=n)
    return upfirdn(y.reshape(n, o, *y.shape[2:]), up_kernel, 1, (1, 1))


def biased_activation(x: Tensor, bias: Tensor) -> Tensor:
    return functional.leaky_relu(x + bias[:, None, None], 0.2) * 2**0.5


# ---------------------------------------------------------------- the networks' layers: the same weights, another forward


class PlainStyledConv(layers.StyledConv):
    def forward(self, x: Tensor, w: Tensor, noise: Tensor | str) -> Tensor:
        weight = self.weight / (self.weight[0].numel()) ** 0.5
        y = modulated_conv2d(x, weight, self.affine(w), True, self.up_kernel)
        if isinstance(noise, Tensor) or noise == "random":
            noise = noise if isinstance(noise, Tensor) else torch.randn(y.shape[0], 1, *y.shape[2:])
            y = y + noise * self.noise_strength
        return biased_activation(y, self.bias)


class PlainSynthesisBlock(generators.SynthesisBlock):
    def forward(self, x: Tensor, skip: Tensor | None, ws: Tensor, noise: list[Any]) -> tuple[Tensor, Tensor]:
        rows, maps = iter(ws.unbind(1)), iter(noise)
        if self.conv0 is not None:
            x = self.conv0(x, next(rows), next(maps))
        x = self.conv1(x, next(rows), next(maps))
        w = next(rows)
        out = torch.cat([self.project(head, x, w) for head in (self.to_img, self.to_seg)], 1)
        return x, out if skip is None else upfirdn(skip, binomial_kernel(4.0).to(skip), 2, (2, 1)) + out

    @staticmethod
    def project(head: layers.ToOutput, x: Tensor, w: Tensor) -> Tensor:
        weight = head.weight[:, :, None, None] / head.weight.shape[1] ** 0.5
        return modulated_conv2d(x, weight, head.affine(w), False) + head.bias[:, None, None]


class PlainEqualConv2d(layers.EqualConv2d):
    def forward(self, x: Tensor, stride: int | None = None) -> Tensor:
        weight = self.weight / self.weight[0].numel() ** 0.5
        y = functional.conv2d(x, weight, None, self.stride if stride is None else stride, self.padding)
        return y if self.bias is None else biased_activation(y, self.bias)


class PlainResidualBlock(discriminators.ResidualBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(upfirdn(self.conv0(x), self.kernel, 1, (2, 2)))
        return (y + self.skip(upfirdn(x, self.kernel, 1, (1, 1)), stride=2)) / 2**0.5


class PlainPatchDiscriminator(discriminators.PatchDiscriminator):
    def forward(self, x: Tensor) -> list[Tensor]:
        features = [functional.leaky_relu(self.first(x), 0.2)]
        for conv in self.middle:
            features.append(functional.leaky_relu(functional.instance_norm(conv(features[-1])), 0.2))
        return [*features, self.last(features[-1])]


PLAIN = {plain.__mro__[1]: plain for plain in (
    PlainStyledConv, PlainSynthesisBlock, PlainEqualConv2d, PlainResidualBlock, PlainPatchDiscriminator,
)}  # fmt: skip


def make_plain(net: nn.Module) -> nn.Module:
    """Change a network to the plain operations and the default layout, in place; its weights and their names stay."""
    for module in net.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    net.to(memory_format=torch.contiguous_format)
    net.register_forward_pre_hook(_in_default_layout)
    return net


def _in_default_layout(_net: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


def without_foreach(optimiser: torch.optim.Optimizer) -> None:
    for group in optimiser.param_groups:
        group["foreach"] = False


# ---------------------------------------------------------------- the GAN's step


@dataclass
class Reals:
    """One step's real images and labelled pairs, augmented."""

    img: Tensor
    pair: tuple[Tensor, Tensor]
    known: Tensor  # [N, 1, R, R], False where the label is ignored


class PlainGan:
    """The updates of one step; each draws its own fakes. Regularisation has passes and optimiser steps of its own."""

    def __init__(self, config: Config, labels: LabelSpec, data: TrainingData, state: State) -> None:
        self.config, self.gan, self.labels, self.data, self.state = config, config.gan, labels, data, state
        for net in (state.G, state.D_img, state.D_seg, state.G_ema):
            make_plain(net)
        for optimiser in (state.opt_G, state.opt_D_img, state.opt_D_seg):
            without_foreach(optimiser)
        self.unlabeled = Stream(len(data.images), config.run.seed, "unlabeled")
        self.labeled = Stream(len(data.labeled), config.run.seed, "labeled")
        self.random = generator(config.run.seed, "plain", 0)

    def draw(self, nimg: int) -> Reals:
        n, symmetry = self.gan.batch, self.config.data.symmetry
        real = transforms.to_float(torch.from_numpy(self.data.images[self.unlabeled.indices(nimg, n)]))
        real = transforms.apply_views(real, transforms.random_views(symmetry, n, self.random))
        chosen = self.labeled.indices(nimg, n)
        label = torch.from_numpy(self.data.labels[chosen]).long()
        onehot = transforms.onehot_from_label(label, self.labels.num_classes)
        pair = self.change_pair(transforms.to_float(torch.from_numpy(self.data.labeled[chosen])), onehot)
        return Reals(self.augment(real), pair, (label != IGNORE_INDEX)[:, None])

    def augment(self, img: Tensor) -> Tensor:
        p, (n, channels) = self.state.augment_p, img.shape[:2]
        if p == 0:
            return img
        theta = transforms.random_affine(n, self.random, rotation=0.3, scale=0.2, shift=0.125, probability=p)
        colour = transforms.random_colour(n, channels, self.random, probability=p)
        return transforms.apply_colour(transforms.warp(img, theta), colour)

    def change_pair(self, img: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        strength = self.gan.seg_augment
        both = transforms.move(torch.cat([img, maps], 1), self.random, self.config.data.symmetry, strength)
        channels = img.shape[1]
        return transforms.recolour(both[:, :channels], self.random, strength), both[:, channels:]

    def draw_ws(self, n: int) -> tuple[Tensor, Tensor]:
        G = self.state.G
        w, other = (G.mapping.w(torch.randn(n, G.z_dim, generator=self.random)) for _ in range(2))
        crossover = torch.randint(1, G.num_ws, (n,), generator=self.random)
        crossover[torch.rand(n, generator=self.random) >= self.gan.style_mixing] = G.num_ws
        mixed = (torch.arange(G.num_ws) >= crossover[:, None])[:, :, None]
        return w, torch.where(mixed, other[:, None], w[:, None])

    def fakes(self, reals: Reals) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Augmented images for D_img and pairs for D_seg, from one pass of G."""
        self.w, ws = self.draw_ws(self.gan.batch)
        img, seg_logits = self.state.G.synthesis(ws, "random")
        maps = (2 * seg_logits.softmax(1) - 1) * reals.known
        return self.augment(img), self.change_pair(img.detach(), maps)

    def update_d_img(self, reals: Reals) -> None:
        with torch.no_grad():
            fake, _ = self.fakes(reals)
        real_logits, fake_logits = self.state.D_img(reals.img), self.state.D_img(fake)
        self.step(self.state.opt_D_img, losses.logistic_d(real_logits, fake_logits))

    def r1_img(self, reals: Reals) -> None:
        img = reals.img.detach().requires_grad_()
        penalty = losses.r1_penalty(self.state.D_img(img), [img]).mean()
        self.step(self.state.opt_D_img, penalty * (self.gan.r1_gamma / 2 * self.gan.r1_every))

    def update_d_seg(self, reals: Reals) -> None:
        with torch.no_grad():
            _, pair = self.fakes(reals)
        real, fake = self.state.D_seg(*reals.pair), self.state.D_seg(*pair)
        self.step(self.state.opt_D_seg, losses.hinge_d([maps[-1] for maps in real], [maps[-1] for maps in fake]))

    def r1_seg(self, reals: Reals) -> None:
        inputs = [x.detach().requires_grad_() for x in reals.pair]
        per_sample = torch.stack([maps[-1].mean((1, 2, 3)) for maps in self.state.D_seg(*inputs)]).mean(0)
        penalty = losses.r1_penalty(per_sample, inputs).mean()
        self.step(self.state.opt_D_seg, penalty * (self.gan.r1_gamma_seg / 2 * self.gan.r1_every))

    def update_g(self, reals: Reals) -> None:
        state, gan = self.state, self.gan
        for D in (state.D_img, state.D_seg):
            D.requires_grad_(False)
        img, pair = self.fakes(reals)
        features = state.D_seg(*pair)
        with torch.no_grad():
            real_features = state.D_seg(*reals.pair)
        seg = losses.hinge_g([maps[-1] for maps in features])
        seg = seg + gan.feature_matching * losses.feature_matching(real_features, features)
        self.step(state.opt_G, losses.logistic_g(state.D_img(img)) + gan.seg_weight * seg)
        for D in (state.D_img, state.D_seg):
            D.requires_grad_(True)

    def path_length(self) -> None:
        _, ws = self.draw_ws(max(1, self.gan.batch // 2))
        img, _ = self.state.G.synthesis(ws, "random")
        penalty, _ = losses.path_length(img, ws, torch.randn(img.shape, generator=self.random), torch.tensor(self.state.pl_mean))
        self.step(self.state.opt_G, penalty.mean() * (self.gan.pl_weight * self.gan.pl_every))

    @torch.no_grad()
    def update_averages(self) -> None:
        state = self.state
        state.G.mapping.update_w_avg(self.w)
        decay = ema_decay(self.gan.batch, self.gan.ema_half_life_kimg)
        for kept, new in zip(state.G_ema.parameters(), state.G.parameters(), strict=True):
            kept.mul_(decay).add_(new, alpha=1 - decay)

    @staticmethod
    def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


# ---------------------------------------------------------------- the encoder's step, and test time


def plain_encoder_trainer(
    config: Config, labels: LabelSpec, data: TrainingData, G: Generator, lpips: LPIPS, state: State
) -> EncoderTrainer:
    """The trainer of E in the plain design; `config.run.precision` is fp32. Changes G, E and `lpips` in place."""
    for net in (G, state.E, state.E_ema, lpips):
        make_plain(net)
    without_foreach(state.opt)
    return EncoderTrainer(config, labels, data, G, lpips, state, "cpu")


@contextmanager
def _cache(folder: str):
    before = os.environ.get("SEMANTICGAN_CACHE")
    os.environ["SEMANTICGAN_CACHE"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["SEMANTICGAN_CACHE"]
        else:
            os.environ["SEMANTICGAN_CACHE"] = before


def vgg_weights() -> str:
    """Whose weights `vgg_lpips` has: "published" if they were fetched, else "random" ones, which cost the same."""
    return "published" if weights_path("vgg").is_file() else "random"


def vgg_lpips() -> LPIPS:
    """LPIPS on VGG-16."""
    if vgg_weights() == "published":
        return make_plain(LPIPS("vgg"))
    random = torch.Generator().manual_seed(0)
    widths, tensors = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6], {}
    for k, (i, o) in enumerate(itertools.pairwise(widths)):
        tensors[f"weight{k}"] = torch.randn(o, i, 3, 3, generator=random) * (2 / (9 * i)) ** 0.5
        tensors[f"bias{k}"] = torch.zeros(o)
    for k, c in enumerate((64, 128, 256, 512, 512)):
        tensors[f"head{k}"] = torch.rand(1, c, 1, 1, generator=random)
    with tempfile.TemporaryDirectory() as folder, _cache(folder):
        save_file({name: tensor.half() for name, tensor in tensors.items()}, weights_path("vgg"))
        return make_plain(LPIPS("vgg"))


def invert(
    G: Generator, lpips: LPIPS, img: Tensor, ws0: Tensor, config: InversionConfig, steps: int, prior: Whitening | None,
    features: Sequence[Tensor] = (),
    size: Callable[[Tensor], Tensor] = enlarge,  # what LPIPS sees of an image
) -> Tensor:  # fmt: skip
    """Adam on the same objective for one image; LPIPS computes the target's features anew at every step."""
    ws = ws0.clone().requires_grad_()
    noise = [m.requires_grad_() for m in G.noise_maps(1)] if config.noise else []
    optimiser = torch.optim.Adam([ws, *noise], config.lr, foreach=False)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = config.lr * learning_rate(step, steps)
        out, _ = G.synthesis(ws, noise or "none", *features)
        loss = config.lpips * lpips(size(out), size(img)).sum() + config.mse * (out - img).square().mean()
        if prior is not None and config.prior > 0:
            loss = loss + config.prior * prior.whiten(ws).square().mean()
        if noise:
            loss = loss + NOISE_WEIGHT * noise_autocorrelation(noise).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for m in noise:
            m.data = (m.data - m.data.mean()) / m.data.std(correction=0)
    return ws.detach()


@torch.no_grad()
def segment(G: Generator, E: Encoder, img: Tensor) -> list[Tensor]:
    """Class probabilities by E and G, one image at a time."""
    latents = (E(one[None]) for one in img)
    return [G.synthesis(ws, "none", *features)[1].softmax(1) for ws, *features in latents]
