"""One pure function per term of the papers: the image game, the segmentation game, regularisation, supervision.

Every loss is computed in float32 (float64 for float64 input), also under autocast.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from semanticgan.labels import IGNORE_INDEX

# Patch logits or feature maps of several scales; each scale has its own channels and size.
Maps = Sequence[Float[Tensor, "_ _ _ _"]]


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


# ---- D_img: the non-saturating logistic game (GAN, arXiv 1406.2661, section 3; SemanticGAN eq. 2) ----


def logistic_d(real_logits: Float[Tensor, " n"], fake_logits: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """-log sigma(D(real)) - log(1 - sigma(D(fake))), each averaged over its batch."""
    return F.softplus(-_at_least_float32(real_logits)).mean() + F.softplus(_at_least_float32(fake_logits)).mean()


def logistic_g(fake_logits: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """-log sigma(D(fake)), averaged over the batch."""
    return F.softplus(-_at_least_float32(fake_logits)).mean()


# ---- D_seg: the hinge game over patches and scales (SemanticGAN eq. 3; pix2pixHD arXiv 1711.11585 eq. 2, 3) ----


def hinge_d(real: Maps, fake: Maps) -> Float[Tensor, ""]:
    """max(0, 1 - D(real)) + max(0, 1 + D(fake)): mean over images and patches, then over scales."""
    terms = [
        F.relu(1 - _at_least_float32(r)).mean() + F.relu(1 + _at_least_float32(f)).mean() for r, f in zip(real, fake, strict=True)
    ]
    return torch.stack(terms).mean()


def hinge_g(fake: Maps) -> Float[Tensor, ""]:
    """-D(fake): mean over images and patches, then over scales."""
    return torch.stack([-_at_least_float32(f).mean() for f in fake]).mean()


def feature_matching(real_features: Sequence[Maps], fake_features: Sequence[Maps]) -> Float[Tensor, ""]:
    """L1 distance between D_seg's features of real and fake pairs (pix2pixHD eq. 4), mean over layers, then over scales.

    One sequence of maps a scale; its last map, the patch logits, is left out. The real features are detached. Real and
    fake batches are of one size.
    """
    scales = [
        torch.stack([_mean_distance(f, r.detach()) for r, f in zip(real[:-1], fake[:-1], strict=True)]).mean()
        for real, fake in zip(real_features, fake_features, strict=True)
    ]
    return torch.stack(scales).mean()


def _mean_distance(a: Tensor, b: Tensor) -> Tensor:
    """L1. A mean's gradient would be a full map, and in the default layout; a sum's is one number and takes any layout."""
    return (_at_least_float32(a) - _at_least_float32(b)).abs().sum() / a.numel()


# ---- Regularisation ----


def r1_penalty(logits: Float[Tensor, " n"], inputs: Sequence[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, " n"]:
    """|grad of each sample's logit with respect to its own inputs|^2 (R1, arXiv 1801.04406 eq. 9, without gamma / 2).

    Per sample, so the size of the batch does not weaken it. Several inputs (image, label map) add up. Differentiable
    once more; every input must require a gradient. For patch logits pass their mean over patches and scales.
    """
    grads = torch.autograd.grad(logits.sum(), list(inputs), create_graph=True)
    return torch.stack([_at_least_float32(g).square().sum(dim=(1, 2, 3)) for g in grads]).sum(0)


def path_length(
    img: Float[Tensor, "n c h w"],
    ws: Float[Tensor, "n l d"],
    noise_img: Float[Tensor, "n c h w"],
    pl_mean: Float[Tensor, ""],
    decay: float = 0.99,
    mean: Callable[[Tensor], Tensor] = torch.mean,  # of the lengths; over all processes where there are several
) -> tuple[Float[Tensor, " n"], Float[Tensor, ""]]:
    """(|J_w^T y| - a)^2 and the new a (StyleGAN2, arXiv 1912.04958, eq. 4): steps in W move images equally far.

    `noise_img` is y, drawn N(0, 1) by the caller and divided by sqrt(h w) here. `img` must come from `ws`. The length is
    averaged over rows of W+. The running mean a (`pl_mean`) is detached.
    """
    _, _, height, width = img.shape
    (grad,) = torch.autograd.grad((img * noise_img).sum() / (height * width) ** 0.5, ws, create_graph=True)
    lengths = _at_least_float32(grad).square().sum(2).mean(1).sqrt()
    new_mean = pl_mean.lerp(mean(lengths.detach()).to(pl_mean.dtype), 1 - decay)
    return (lengths - new_mean).square(), new_mean


# ---- Supervision of label maps (SemanticGAN eq. 9) ----


def cross_entropy(seg_logits: Float[Tensor, "n k h w"], label: Int[Tensor, "n h w"]) -> Float[Tensor, ""]:
    """Cross-entropy: mean over each image's pixels that are not ignored, then over images; 0 for one all ignored."""
    per_pixel = F.cross_entropy(_at_least_float32(seg_logits), label.long(), ignore_index=IGNORE_INDEX, reduction="none")
    valid = (label != IGNORE_INDEX).sum(dim=(1, 2)).clamp(min=1)
    return (per_pixel.sum(dim=(1, 2)) / valid).mean()


def dice_loss(seg_logits: Float[Tensor, "n k h w"], label: Int[Tensor, "n h w"]) -> Float[Tensor, ""]:
    """1 - soft Dice (V-Net, arXiv 1606.04797) of each image's foreground classes, mean over classes and images.

    Ignored pixels count on neither side. A pixel is added above and below, so that a class absent from the label and
    (nearly) from the prediction costs (nearly) nothing.
    """
    valid = (label != IGNORE_INDEX).unsqueeze(1)
    probs = _at_least_float32(seg_logits).softmax(1)[:, 1:] * valid
    classes = torch.arange(1, seg_logits.shape[1], device=label.device)
    truth = (label.unsqueeze(1) == classes[:, None, None]).to(probs.dtype)  # [N, K-1, H, W]; 255 is no class
    overlap = (probs * truth).sum(dim=(2, 3))
    size = probs.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    return 1 - ((2 * overlap + 1) / (size + 1)).mean()
