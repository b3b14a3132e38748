"""How near generated images come to real ones as a set: the Frechet distance of their features."""

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Between the normal distributions of two sets' features (arXiv 1706.08500, eq. 6), 0 or more; sets of 2 or more each.

    |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)) of the covariances A and B, in float64. It is biased upwards where a set
    has not many times d members: compare figures of equal n and m alone.
    """
    (mean_a, cov_a), (mean_b, cov_b) = ((x.double().mean(0), torch.cov(x.double().T).reshape(x.shape[1], -1)) for x in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # A^(1/2); A B and A^(1/2) B A^(1/2) have the same eigenvalues
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap).clamp(min=0).item()
