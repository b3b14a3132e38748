"""GCT (Ke et al., arXiv 2008.05258): two networks and a flaw detector, which says where each of them is probably wrong.

From the paper and the authors' code: the flaw detector takes image and prediction, and learns on labelled images the
prediction's error after blur, dilation, blur and normalisation, by squared distance. On all images each network follows the
other where that is the more reliable one (dynamic consistency constraint), and has no flaws where both are bad (flaw correction
constraint); what is bad is read off the detector's map after blur and normalisation. The authors' settings for segmentation:
weights 1, 100 and 10, threshold .6, the consistency's weight rising over 3 of 20 epochs, Adam 1e-4 for the detector. Their
consistency is a mean over 21 classes, nearly all of them 0 in a pixel, ours over a few: so 10 weighs here what 100 does there.
Ours, for 64 px: three layers of stride 2 instead of five with layers of stride 1 between them, instance norm throughout instead
of on half of the channels, and square blurs as wide as their Gaussian ones; the two networks differ by their first weights. The
first one answers, fixed beforehand.

Tuned on skin, 40 labels, draw 0, by validation IoU after 4 kimg: `consistency` 10 gives .705 (one view), 100 gives .680; with
`d_lr` 1e-3 it is .703.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from baselines.batches import Batch
from baselines.mean_teacher import ramp_up
from baselines.supervised import NewNetwork, Settings, Supervised, descend, new_optimizer, remember_rates
from semanticgan.data.transforms import onehot_from_label
from semanticgan.labels import IGNORE_INDEX
from semanticgan.training.supervised import mask_loss

WIDEN = 3  # pixels: dilation of the error
BLURS = (7, 11)  # pixels: sides of the averaging windows before and after it
SEEN_BLUR = 5  # of that over what the detector says
FAINT = 0.1  # a map of the detector whose peak is not above it has no flaws


@dataclass(frozen=True)
class GCTSettings(Settings):
    correction: float = 1.0
    consistency: float = 10.0
    threshold: float = 0.6
    ramp: float = 0.15  # share of the training in which the consistency's weight rises
    detector: float = 10.0  # weight of the detector's own loss
    d_lr: float = 1e-4


class FlawDetector(nn.Module):
    """Image and class probabilities -> how wrong they are, [N, R, R], about 0..1."""

    def __init__(self, channels: int, num_classes: int, filters: int = 64) -> None:
        super().__init__()
        widths = (channels + num_classes, filters, 2 * filters, 4 * filters)
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Conv2d(i, o, 4, stride=2, padding=1), nn.InstanceNorm2d(o, affine=True), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, img: Float[Tensor, "n c r r"], probs: Float[Tensor, "n k r r"]) -> Float[Tensor, "n r r"]:
        flaw = self.head(self.layers(torch.cat([img, probs], 1))).float()
        return F.interpolate(flaw, size=img.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def blurred(maps: Float[Tensor, "n r r"], side: int) -> Float[Tensor, "n r r"]:
    return F.avg_pool2d(maps[:, None], side, 1, side // 2, count_include_pad=False)[:, 0]


def stretched(maps: Float[Tensor, "n r r"]) -> Float[Tensor, "n r r"]:
    """Each from 0 to 1; a constant one is 0 throughout."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-9)


def flaws(probs: Float[Tensor, "n k r r"], label: Int[Tensor, "n r r"]) -> Float[Tensor, "n r r"]:
    """What the detector is to say, 0..1: the probability given to wrong classes, blurred, dilated, blurred, stretched.

    Ignored pixels have no flaw.
    """
    truth = (onehot_from_label(label, probs.shape[1]) + 1) / 2
    error = (probs - truth).abs().sum(1) / 2 * (label != IGNORE_INDEX)
    widened = F.max_pool2d(blurred(error, BLURS[0])[:, None], WIDEN, 1, WIDEN // 2)[:, 0]
    return stretched(blurred(widened, BLURS[1]))


def seen_flaws(flaw: Float[Tensor, "n r r"]) -> Float[Tensor, "n r r"]:
    """What the detector said, made ready to be compared with a threshold: 0..1."""
    flaw = blurred(flaw.clamp(min=0), SEEN_BLUR)
    return stretched(flaw) * (flaw.amax((1, 2), keepdim=True) > FAINT)


def worse(mine: Float[Tensor, "n r r"], other: Float[Tensor, "n r r"], threshold: float) -> Bool[Tensor, "n r r"]:
    """Where the other network is the more reliable one; nowhere where both flaws are above the threshold."""
    mine, other = (torch.where(flaw > threshold, 1.0, flaw) for flaw in (mine, other))
    return mine > other


class GCT(Supervised):
    settings_class = GCTSettings
    s: GCTSettings

    def __init__(self, new_network: NewNetwork, settings: GCTSettings, seed: int, channels: int, num_classes: int) -> None:
        super().__init__(new_network, settings, seed, channels, num_classes)
        self.other = new_network(seed + 1_000_000).train()
        self.other_optimizer = new_optimizer(self.other, settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.detector = FlawDetector(channels, num_classes).to(memory_format=torch.channels_last)
        self.d_optimizer = remember_rates(torch.optim.Adam(self.detector.parameters(), lr=settings.d_lr, betas=(0.9, 0.99)))
        self.members |= {"other": self.other, "other_optimizer": self.other_optimizer,
                         "detector": self.detector, "d_optimizer": self.d_optimizer}  # fmt: skip

    def update(self, batch: Batch, progress: float) -> dict[str, float]:
        img, label = batch.labeled
        count, seen = len(img), torch.cat([img, batch.recoloured("unlabeled")])
        self.detector.requires_grad_(False)
        with self.autocast():
            logits = [net(seen) for net in (self.net, self.other)]
            probs = [x.softmax(1) for x in logits]
            flaw = [self.detector(seen, p) for p in probs]
        weight = self.s.consistency * ramp_up(progress, self.s.ramp)
        bad = [seen_flaws(f.detach()) for f in flaw]
        both_bad = (bad[0] > self.s.threshold) & (bad[1] > self.s.threshold)
        supervised = [mask_loss(x[:count], label) for x in logits]
        for k, optimizer in enumerate((self.optimizer, self.other_optimizer)):
            follows = worse(bad[k], bad[1 - k], self.s.threshold)
            followed = ((probs[k] - probs[1 - k].detach()).square().mean(1) * follows).mean()
            corrected = (flaw[k].square() * both_bad).mean()
            descend(optimizer, supervised[k] + self.s.correction * corrected + weight * followed)
        found = self.update_detector(img, [p[:count].detach() for p in probs], label)
        self.average(batch)
        return {"loss": supervised[0].item(), "detector": found, "flaw": flaw[0].mean().item()}

    def update_detector(self, img: Tensor, probs: list[Tensor], label: Tensor) -> float:
        """The flaw detector's step on the labelled images, as both networks answer them."""
        self.detector.requires_grad_(True)
        both = torch.cat(probs)
        with self.autocast():
            said = self.detector(torch.cat([img, img]), both)
        loss = (said - flaws(both.float(), torch.cat([label, label]))).square().mean()
        descend(self.d_optimizer, self.s.detector * loss)
        return loss.item()
