"""How near G's samples come to the training images: Frechet distances, and the share of each class in G's label maps.

    python benchmarks/generation.py RUN [RUN ...]

Of each run the last checkpoint of its GAN stage counts, with the averaged G. The features are those of LPIPS (AlexNet), each map
averaged over its positions; the first figure of a run is the distance of two halves of its real images, which no G can beat.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semanticgan.data.pack import pack
from semanticgan.data.transforms import to_float
from semanticgan.errors import UserError
from semanticgan.metrics.generation import frechet_distance
from semanticgan.model import build_generator
from semanticgan.nn.generator import Generator
from semanticgan.nn.perceptual import LPIPS
from semanticgan.training.checkpoint import load_checkpoint, stage_checkpoints
from semanticgan.training.plan import Plan

BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--images", type=int, default=4000, help="of each kind; figures of one number can be compared")
    given = parser.parse_args()
    lpips = LPIPS()
    try:
        for run in given.runs:
            print(measure(run, given.images, lpips), flush=True)
    except UserError as error:
        sys.exit(f"generation: {error}")


@torch.no_grad()
def measure(run: Path, count: int, lpips: LPIPS) -> str:
    """A line. Raises UserError for a folder that is no run, or one without a checkpoint of its GAN stage."""
    plan = Plan.read(run)
    checkpoints = stage_checkpoints(run, "gan")
    if not checkpoints:
        raise UserError(f"{run}: no checkpoint of a GAN stage; expected a run folder of semanticgan train")
    config, labels = plan.config, plan.labels
    G = build_generator(config.networks, config.data.resolution, labels.num_classes, config.data.num_channels).eval()
    G.load_state_dict(load_checkpoint(checkpoints[-1])["members"]["G_ema"])
    packed = pack(plan.sources.root, plan.sources.unlabeled, data=config.data, labels=None).images
    count = min(count, len(packed)) // 2 * 2
    chosen = np.random.default_rng(0).permutation(len(packed))[:count]
    real = features(
        lpips, (to_float(torch.from_numpy(packed[np.sort(part)])) for part in np.split(chosen, range(BATCH, count, BATCH)))
    )
    shares = torch.zeros(labels.num_classes)
    fake = features(lpips, draw(G, count, shares))
    halves, distance = frechet_distance(real[::2], real[1::2]), frechet_distance(real, fake)
    parts = ", ".join(f"{name} {share:.3f}" for name, share in zip(labels.names, shares / count, strict=True))
    return (
        f"{run.name}: {checkpoints[-1].name}: Frechet distance {distance:.4f} (halves of the real {halves:.4f}); classes: {parts}"
    )


def draw(G: Generator, count: int, shares: Tensor) -> Iterator[Tensor]:
    """Samples, -1..1; adds each class's share of every label map to `shares`."""
    random = torch.Generator().manual_seed(0)
    for start in range(0, count, BATCH):
        n = min(BATCH, count - start)
        z = torch.randn(n, G.z_dim, generator=random)
        img, seg_logits = G.synthesis(G.mapping(z), noise=G.noise_maps(n, random))
        label = seg_logits.argmax(1)
        for k in range(len(shares)):
            shares[k] += (label == k).float().mean((1, 2)).sum()
        yield img.clamp(-1, 1)


def features(lpips: LPIPS, batches: Iterator[Tensor]) -> Tensor:
    """[N, 1152]: every map's mean over its positions."""
    return torch.cat(
        [torch.cat([m.mean((2, 3)) * (m.shape[2] * m.shape[3]) ** 0.5 for m in lpips.features(img)], 1) for img in batches]
    )


if __name__ == "__main__":
    main()
