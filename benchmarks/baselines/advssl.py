"""AdvSSL (Hung et al., arXiv 1802.07934): a discriminator of label maps judges predictions, and says where to trust them.

From the paper: the fully convolutional discriminator of kernels 4 and leaky ReLU .2, its map enlarged to the image's size; its
cross-entropy on label maps and predictions of labelled images (eq. 1); the segmentation loss with adversarial terms weighted
.01 for labelled and .001 for unlabelled images (eq. 2 and 4) and self-taught cross-entropy where the discriminator is above .2,
weighted .1 (eq. 5; the mean over these pixels, as the authors' code has it); Adam for the discriminator. Ours: three strides
instead of five, as 64 px would end in 2 x 2; unlabelled images come in after a quarter of the training for both of their terms;
the segmentation network and its rate are those of the other methods.

Tuned on skin, 40 labels, draw 0, by validation IoU after 4 kimg: `d_lr` 1e-3 gives .714 (one view), the paper's 1e-4, which it
has for twenty times as many steps, .708.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from baselines.batches import Batch
from baselines.supervised import NewNetwork, Settings, Supervised, descend, remember_rates
from semanticgan.data.transforms import onehot_from_label
from semanticgan.labels import IGNORE_INDEX
from semanticgan.training.supervised import mask_loss


@dataclass(frozen=True)
class AdvSSLSettings(Settings):
    adversarial: float = 0.01
    adversarial_unlabeled: float = 0.001
    semi: float = 0.1
    threshold: float = 0.2  # of the discriminator's probability, for a pixel to be trusted
    start: float = 0.25  # share of the training before unlabelled images come in
    d_lr: float = 1e-3


class Discriminator(nn.Module):
    """Class probabilities [N, K, R, R] -> logits that they are a label map's, [N, R, R]."""

    def __init__(self, num_classes: int, filters: int = 64) -> None:
        super().__init__()
        widths = (num_classes, filters, 2 * filters, 4 * filters)
        convs = [nn.Conv2d(i, o, 4, stride=2, padding=1) for i, o in pairwise(widths)]
        self.layers = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.LeakyReLU(0.2))))
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, probs: Float[Tensor, "n k r r"]) -> Float[Tensor, "n r r"]:
        logits = self.head(self.layers(probs)).float()
        return F.interpolate(logits, size=probs.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def judged(logits: Float[Tensor, "n r r"], real: bool, valid: Bool[Tensor, "n r r"] | None = None) -> Float[Tensor, ""]:
    """Cross-entropy with the verdict "label map" (real) or "prediction" in every valid pixel (eq. 1; real alone: eq. 4)."""
    loss = F.softplus(-logits if real else logits)
    return loss.mean() if valid is None else (loss * valid).sum() / valid.sum().clamp(min=1)


def self_taught(
    seg_logits: Float[Tensor, "n k r r"], d_logits: Float[Tensor, "n r r"], threshold: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross-entropy with one's own classes where the discriminator is above `threshold` (eq. 5); that share of pixels."""
    trusted = (d_logits.detach().sigmoid() > threshold).float()
    loss = F.cross_entropy(seg_logits, seg_logits.detach().argmax(1), reduction="none")
    return (loss * trusted).sum() / trusted.sum().clamp(min=1), trusted.mean()


class AdvSSL(Supervised):
    settings_class = AdvSSLSettings
    s: AdvSSLSettings

    def __init__(self, new_network: NewNetwork, settings: AdvSSLSettings, seed: int, channels: int, num_classes: int) -> None:
        super().__init__(new_network, settings, seed, channels, num_classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.D = Discriminator(num_classes).to(memory_format=torch.channels_last)
        self.d_optimizer = remember_rates(torch.optim.Adam(self.D.parameters(), lr=settings.d_lr, betas=(0.9, 0.99)))
        self.members |= {"D": self.D, "d_optimizer": self.d_optimizer}

    def update(self, batch: Batch, progress: float) -> dict[str, float]:
        img, label = batch.labeled
        valid, started = label != IGNORE_INDEX, progress >= self.s.start
        seen = torch.cat([img, batch.recoloured("unlabeled")]) if started else img
        self.D.requires_grad_(False)
        with self.autocast():
            seg_logits = self.net(seen)
            d_logits = self.D(seg_logits.softmax(1))
        count = len(img)
        supervised = mask_loss(seg_logits[:count], label)
        loss = supervised + self.s.adversarial * judged(d_logits[:count], True, valid)
        if started:
            taught, share = self_taught(seg_logits[count:], d_logits[count:], self.s.threshold)
            loss = loss + self.s.adversarial_unlabeled * judged(d_logits[count:], True) + self.s.semi * taught
        descend(self.optimizer, loss)
        verdict = self.update_d(seg_logits[:count].detach(), label, valid)
        self.average(batch)
        return {"loss": supervised.item(), "D": verdict, **({"trusted": share.item()} if started else {})}

    def update_d(self, seg_logits: Float[Tensor, "n k r r"], label: Int[Tensor, "n r r"], valid: Tensor) -> float:
        """The discriminator's step, on labelled images alone."""
        self.D.requires_grad_(True)
        truth = (onehot_from_label(label, seg_logits.shape[1]) + 1) / 2
        with self.autocast():
            real, fake = self.D(torch.cat([truth, seg_logits.softmax(1)])).chunk(2)
        loss = judged(real, True, valid) + judged(fake, False, valid)
        descend(self.d_optimizer, loss)
        return loss.item()
