"""Does a number known without the truth warn of bad masks? Rank correlation, and the risk that is left when the worst go."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """1 for the smallest; equal values share their mean rank."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[where]


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation, -1..1; NaN if either does not vary."""
    x, y = (ranks(v) - (len(v) + 1) / 2 for v in (a, b))
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else float("nan")


def spearman_interval(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Percentile bootstrap interval over pairs, 95 %; (NaN, NaN) if no draw varies. The same pairs give the same interval."""
    rng = np.random.default_rng(0)
    drawn = [spearman(a[k], b[k]) for k in (rng.integers(len(a), size=len(a)) for _ in range(1000))]
    drawn = [r for r in drawn if not np.isnan(r)]
    if not drawn:
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def risk_coverage(score: Float[np.ndarray, " n"], warning: Float[np.ndarray, " n"] | Sequence[float]) -> Float[np.ndarray, " n"]:
    """Mean of 1 - score over the k + 1 cases with the lowest warning, k = 0..n-1 (arXiv 1705.08500, selective risk)."""
    order = np.argsort(np.asarray(warning), kind="stable")
    return np.cumsum(1 - score[order]) / np.arange(1, len(score) + 1)
