"""The ordinary way of training: a U-Net on the labelled images alone, with the care that the GAN path gets."""

import copy
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from semanticgan.data.stream import Stream, generator
from semanticgan.data.transforms import move, recolour, to_float
from semanticgan.ema import ema_decay, update_ema
from semanticgan.labels import IGNORE_INDEX
from semanticgan.losses import cross_entropy, dice_loss
from semanticgan.metrics.segmentation import confusion, iou
from semanticgan.nn.unet import UNet

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
    bf16: bool = True,
    device: str = "cpu",
    say: Callable[[str], None] | None = None,  # hears of progress, twenty times
) -> UNet:
    """The U-Net whose averaged weights scored best on the validation images, in evaluation mode.

    Cross-entropy + Dice on flipped, turned, warped and recoloured images. A function of the arguments and the seed;
    leaves the global random state alone.
    """
    net = _new_unet(images_u8.shape[3], num_classes, widths, seed).to(device, memory_format=torch.channels_last)
    net_ema = copy.deepcopy(net).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    stream = Stream(len(images_u8), seed, "unet")
    best, best_score = copy.deepcopy(net_ema.state_dict()), -math.inf
    started, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        nimg = step * batch
        chosen = stream.indices(nimg, batch)
        img, label = _changed(images_u8[chosen], labels_u8[chosen], num_classes, generator(seed, "unet", nimg), symmetry, augment)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * progress)) / 2
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            seg_logits = net(img.to(device))
        label = label.to(device)
        loss = cross_entropy(seg_logits, label) + dice_loss(seg_logits, label)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        update_ema(net_ema, net, ema_decay(batch, 0.05 * nimg / 1000))
        step += 1
        progress = max(step / steps, (time.monotonic() - started) / seconds if seconds else 0.0)
        if step % max(1, steps // 20) == 0 or progress >= 1:
            score = mean_iou(net_ema, val_images, val_labels, num_classes, bf16)
            if score > best_score:
                best, best_score = copy.deepcopy(net_ema.state_dict()), score
            if say:
                say(f"U-Net step {step} of {steps}: loss {loss.item():.3f}, validation mIoU {score:.3f}")
    net_ema.load_state_dict(best)
    return net_ema


@torch.no_grad()
def mean_iou(
    net: nn.Module,  # img -> seg_logits, in evaluation mode
    images_u8: UInt8[np.ndarray, "n r r c"],
    labels_u8: UInt8[np.ndarray, "n r r"],
    num_classes: int,
    bf16: bool = True,
) -> float:
    """IoU by image and class, averaged over the images that have the class, then over classes; no views averaged."""
    device = next(net.parameters()).device
    scores = []
    for start in range(0, len(images_u8), 64):
        img = to_float(torch.from_numpy(images_u8[start : start + 64]).to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            pred = net(img).argmax(1).cpu()
        labels = torch.from_numpy(labels_u8[start : start + 64])
        scores += [iou(confusion(p, t, num_classes)) for p, t in zip(pred, labels, strict=True)]
    return float(torch.stack(scores).nanmean(0).nanmean())


def _new_unet(channels: int, num_classes: int, widths: tuple[int, ...], seed: int) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(channels, num_classes, widths)


def _changed(
    images_u8: UInt8[np.ndarray, "n r r c"],
    labels_u8: UInt8[np.ndarray, "n r r"],
    num_classes: int,
    gen: torch.Generator,
    symmetry: str,
    strength: float,
) -> tuple[Float[Tensor, "n c r r"], Tensor]:
    """Images and labels after one random change of each pair; a pixel takes the class that covers most of it."""
    label = torch.from_numpy(labels_u8).long()
    kinds = torch.cat([torch.arange(num_classes), torch.tensor([IGNORE_INDEX])])
    shares = (label[:, None] == kinds[:, None, None]).float()
    img = to_float(torch.from_numpy(images_u8))
    both = move(torch.cat([img, shares], 1), gen, symmetry, strength)
    channels = img.shape[1]
    return recolour(both[:, :channels], gen, strength), kinds[both[:, channels:].argmax(1)]
