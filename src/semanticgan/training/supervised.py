"""The ordinary way of training: a U-Net on pairs of image and class map, with the care that the GAN path gets."""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from semanticgan.config import Precision
from semanticgan.data.pieces import with_one_object
from semanticgan.data.stream import Stream, generator
from semanticgan.data.texture import retexture
from semanticgan.data.transforms import move, recolour, send, to_float
from semanticgan.data.zoom_out import zoom_in, zoom_out
from semanticgan.ema import ema_decay, update_ema
from semanticgan.labels import IGNORE_INDEX
from semanticgan.losses import cross_entropy, dice_loss
from semanticgan.metrics.segmentation import confusion, iou
from semanticgan.nn.layers import placed
from semanticgan.nn.unet import PretrainedUNet, UNet, build_unet
from semanticgan.precision import autocast

WARMUP = 20  # steps in which the learning rate rises


def train_unet(
    images_u8: UInt8[np.ndarray, "n r r c"],
    labels_u8: UInt8[np.ndarray, "n r r"],  # 255: ignored
    val_images: UInt8[np.ndarray, "m r r c"],
    val_labels: UInt8[np.ndarray, "m r r"],
    *,
    num_classes: int,
    symmetry: str = "all",  # true symmetries of the images: "none", "flip" or "all"
    steps: int = 800,
    seconds: float | None = None,  # ends earlier, the learning rate falling accordingly; not repeatable then
    seed: int = 0,
    batch: int = 16,
    lr: float = 1e-3,  # AdamW, falling to 0 by cosine
    augment: float = 1.0,  # strength of the paired changes, as the GAN path's
    widths: tuple[int, ...] = (32, 64, 96, 128),
    precision: Precision = "auto",
    device: str = "cpu",
    say: Callable[[str], None] | None = None,  # hears of progress, twenty times
) -> UNet | PretrainedUNet:
    """The U-Net whose averaged weights scored best on the validation images, in evaluation mode.

    Cross-entropy + Dice on flipped, turned, warped and recoloured images. A function of the arguments and the seed;
    leaves the global random state alone.
    """
    net = placed(new_unet(images_u8.shape[3], num_classes, widths, seed), device)
    net_ema = copy.deepcopy(net).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    stream = Stream(len(images_u8), seed, "unet")
    best, best_score = copy.deepcopy(net_ema.state_dict()), -math.inf
    started, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        nimg = step * batch
        chosen = stream.indices(nimg, batch)
        img, label = to_float(torch.from_numpy(images_u8[chosen])), torch.from_numpy(labels_u8[chosen]).long()
        img, label = change_pairs(img, label, num_classes, generator(seed, "unet", nimg), symmetry, augment)
        with autocast(device, precision):
            seg_logits = net(img.to(device))
        loss = mask_loss(seg_logits, label.to(device))
        descend(net, optimizer, loss, learning_rate(lr, step, progress))
        update_ema(net_ema, net, ema_decay(batch, 0.05 * nimg / 1000))
        step += 1
        progress = max(step / steps, (time.monotonic() - started) / seconds if seconds else 0.0)
        if step % max(1, steps // 20) == 0 or progress >= 1:
            score = mean_iou(net_ema, val_images, val_labels, precision)
            if score > best_score:
                best, best_score = copy.deepcopy(net_ema.state_dict()), score
            if say:
                say(f"U-Net step {step} of {steps}: loss {loss.item():.3f}, validation mIoU {score:.3f}")
    net_ema.load_state_dict(best)
    return net_ema


def new_unet(
    channels: int, num_classes: int, widths: tuple[int, ...], seed: int, trunk: str = "none", resolution: int = 0
) -> UNet | PretrainedUNet:
    """Fresh weights from the seed, ImageNet's in a pretrained trunk; leaves the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_unet(trunk, channels, num_classes, widths, resolution)
    if isinstance(net, PretrainedUNet):
        net.trunk.load_imagenet()
    return net


def learning_rate(lr: float, step: int, progress: float) -> float:
    """Rising in WARMUP steps, then falling to 0 by cosine."""
    return lr * min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * progress)) / 2


def mask_loss(seg_logits: Float[Tensor, "n k h w"], label: Int[Tensor, "n h w"]) -> Float[Tensor, ""]:
    """Cross-entropy + Dice."""
    return cross_entropy(seg_logits, label) + dice_loss(seg_logits, label)


def parameter_groups(net: nn.Module, pretrained: nn.Module | None, trunk_lr: float) -> list[dict[str, Any]]:
    """What an optimiser takes, for `descend`: the parameters of a pretrained part learn at `trunk_lr` times the rate."""
    slow = {id(p) for p in pretrained.parameters()} if pretrained is not None else set()
    groups = [
        {"params": [p for p in net.parameters() if p.requires_grad and (id(p) in slow) == of_trunk], "share": share}
        for of_trunk, share in ((False, 1.0), (True, trunk_lr))
    ]  # fmt: skip
    return [group for group in groups if group["params"]]


def descend(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, lr: float, grad_clip: float = math.inf) -> Tensor:
    """One step of the optimiser; returns the gradient's norm before it was clipped to `grad_clip`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("share", 1.0)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), grad_clip)
    optimizer.step()
    return norm


def change_pairs(
    img: Float[Tensor, "n c r r"],
    label: Int[Tensor, "n r r"],
    num_classes: int,
    random: torch.Generator,
    symmetry: str,
    strength: float,  # of place, size and colour
    far: float = 0.0,  # share of the pairs that are seen from farther away
    texture: float = 0.0,  # share of the images that get another texture
    near: float = 0.0,  # share of the pairs of which an enlarged piece is seen
) -> tuple[Float[Tensor, "n c r r"], Int[Tensor, "n r r"]]:
    """Images and class maps after one random change of each pair; a pixel takes the class that covers most of it."""
    if far:
        img, label = zoom_out(img, label, random, far)
    if near:
        img, label = zoom_in(img, label, random, near)
    kinds = torch.cat([torch.arange(num_classes), torch.tensor([IGNORE_INDEX])])
    kinds = send(kinds, img.device)
    shares = (label[:, None] == kinds[:, None, None]).to(img.dtype)
    both = move(torch.cat([img, shares], 1), random, symmetry, strength)
    channels = img.shape[1]
    img = recolour(both[:, :channels], random, strength)
    return (retexture(img, random, texture) if texture else img), kinds[both[:, channels:].argmax(1)]


def mean_iou(
    net: nn.Module,  # img -> seg_logits, in evaluation mode
    images_u8: UInt8[np.ndarray, "n r r c"],
    labels_u8: UInt8[np.ndarray, "n r r"],
    precision: Precision = "auto",
) -> float:
    """IoU by image and class, averaged over the images that have the class, then over classes; no views averaged."""
    return float(image_ious(net, images_u8, labels_u8, precision).nanmean(0).nanmean())


@torch.no_grad()
def image_ious(
    net: nn.Module,  # img -> seg_logits, in evaluation mode
    images_u8: UInt8[np.ndarray, "n r r c"],
    labels_u8: UInt8[np.ndarray, "n r r"],
    precision: Precision = "auto",
    one_object: bool = False,  # label maps as `predict` makes them: the likeliest piece alone
    convex: bool = False,  # and without its dents
) -> Float[Tensor, "n k"]:
    """IoU of every image and class; NaN for a class in neither mask nor prediction."""
    device = next(net.parameters()).device
    scores = []
    for start in range(0, len(images_u8), 64):
        img = to_float(torch.from_numpy(np.array(images_u8[start : start + 64])).to(device))
        with autocast(device, precision):
            seg_logits = net(img)
        scores += ious_of(seg_logits, labels_u8[start : start + 64], one_object, convex)
    return torch.stack(scores)


def ious_of(
    seg_logits: Float[Tensor, "n k r r"], labels_u8: UInt8[np.ndarray, "n r r"], one_object: bool, convex: bool
) -> list[Float[Tensor, " k"]]:
    """What `image_ious` says of each of a few images."""
    probs = seg_logits.float().softmax(1)
    pred = (with_one_object(probs, convex) if one_object else probs).argmax(1).cpu()
    labels = torch.from_numpy(np.array(labels_u8))
    return [iou(confusion(p, t, seg_logits.shape[1])) for p, t in zip(pred, labels, strict=True)]
