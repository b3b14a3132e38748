"""Scores of label maps: confusion counts first, every score a function of them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from semanticgan.labels import IGNORE_INDEX

FEWEST = 10  # cases of an interval
RESAMPLES, LEVEL = 1000, 0.95  # of the bootstrap


def confusion(pred: Integer[Tensor, "*shape"], label: Integer[Tensor, "*shape"], num_classes: int) -> Int[Tensor, "k k"]:
    """Pixels counted by class, int64: rows are the truth, columns the prediction; pixels labelled 255 are left out.

    Raises ValueError for another class id outside 0..num_classes - 1.
    """
    valid = label != IGNORE_INDEX
    truth, pred = label[valid].long(), pred[valid].long()
    for name, values in (("label", truth), ("prediction", pred)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            raise ValueError(f"{name}: got class ids {int(values.min())} to {int(values.max())}, expected 0 to {num_classes - 1}")
    return torch.bincount(truth * num_classes + pred, minlength=num_classes**2).reshape(num_classes, num_classes)


def _counts(conf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """True positives, pixels of the truth, pixels predicted, by class."""
    conf = conf.double()
    return conf.diagonal(dim1=-2, dim2=-1), conf.sum(-1), conf.sum(-2)


def iou(conf: Int[Tensor, "*batch k k"]) -> Float[Tensor, "*batch k"]:
    """Intersection over union (Jaccard index) by class, float64; NaN for a class in neither truth nor prediction."""
    hit, truth, pred = _counts(conf)
    return hit / (truth + pred - hit)


def dice(conf: Int[Tensor, "*batch k k"]) -> Float[Tensor, "*batch k"]:
    """Dice coefficient (F1) by class, float64; NaN for a class in neither truth nor prediction."""
    hit, truth, pred = _counts(conf)
    return 2 * hit / (truth + pred)


def accuracy(conf: Int[Tensor, "*batch k k"]) -> Float[Tensor, "*batch"]:
    """Share of pixels with the right class, float64; NaN without pixels."""
    hit, truth, _ = _counts(conf)
    return hit.sum(-1) / truth.sum(-1)


def bootstrap_interval(
    values: Float[Tensor, " n"] | Float[np.ndarray, " n"] | Sequence[float],
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval (Efron 1979) of the mean over cases; NaN cases are left out.

    (NaN, NaN) for fewer than FEWEST cases, of which it would promise more than it holds: of 5 IoUs 82 % instead of 95 %,
    of 10 88 %, of 50 93 %. The same seed gives the same interval.
    """
    cases = np.asarray(values, dtype=np.float64)
    cases = cases[~np.isnan(cases)]
    if cases.size < FEWEST:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [cases[rng.integers(cases.size, size=cases.size)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
