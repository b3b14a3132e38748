"""Tasks with one object: which of a mask's connected pieces it is, and how far it reaches."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from semanticgan.labels import IGNORE_INDEX

SHARE = 0.95  # of the known masks, to call it a task with one object
CRUMBS = 0.02  # share of an object's pixels that may lie apart from it
SURE = 0.95  # probability from which a pixel counts as found
CONVEX = 0.9  # mean share of their convex hull that objects cover, to call them convex
DIRECTIONS = 32  # of the hull's sides


def pieces(mask: Bool[Tensor, "n h w"]) -> Int[Tensor, "n h w"]:
    """Connected pieces, over sides and corners: the same number above 0 throughout a piece, 0 outside.

    Each pixel takes its neighbours' highest number, then that of the pixel which had this number at first: few rounds.
    """
    n, h, w = mask.shape
    ids = (torch.arange(1, h * w + 1, device=mask.device).view(1, h, w) * mask).float()  # exact below 2^24 pixels
    while True:
        grown = (F.max_pool2d(ids[:, None], 3, 1, 1)[:, 0] * mask).flatten(1)
        further = (grown.gather(1, (grown.long() - 1).clamp_min(0)) * mask.flatten(1)).view(n, h, w)
        if torch.equal(further, ids):
            return ids.long()
        ids = further


def lesser_pieces(prob: Float[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """Where `prob` is above 1/2, but for the piece with the highest sum of it."""
    ids = pieces(prob > 0.5)
    sums = prob.new_zeros(len(prob), prob.shape[1] * prob.shape[2] + 1).scatter_add_(1, ids.flatten(1), prob.flatten(1))
    sums[:, 0] = -1
    return (ids > 0) & (ids != sums.argmax(1)[:, None, None])


def convex_hull(mask: Bool[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """Pixels on the mask's side of each of its tangents in DIRECTIONS directions; too large by .5 % of its radius at most."""
    angles = torch.arange(DIRECTIONS, device=mask.device) * (2 * math.pi / DIRECTIONS)
    ys, xs = (torch.arange(side, device=mask.device) for side in mask.shape[1:])
    heights = angles.sin()[:, None, None] * ys[:, None] + angles.cos()[:, None, None] * xs
    tangents = torch.where(mask[:, None], heights, -math.inf).amax((2, 3), keepdim=True)
    return (heights <= tangents + 1e-3).all(1)  # sums of rounded products differ by less


def with_one_object(probs: Float[Tensor, "n 2 h w"], convex: bool = False) -> Float[Tensor, "n 2 h w"]:
    """Both classes' probabilities exchanged in all pieces of the second but the likeliest, and in the dents of a `convex` one."""
    lesser = lesser_pieces(probs[:, 1])
    found = (probs[:, 1] > 0.5) & ~lesser
    wrong = lesser ^ (convex_hull(found) & ~found) if convex else lesser  # a lesser piece in a dent is right
    return torch.where(wrong[:, None], probs.flip(1), probs)


def with_some_object(probs: Float[Tensor, "n 2 h w"], share: float) -> Float[Tensor, "n 2 h w"]:
    """The second class's log-odds raised throughout an image until a `share` of its pixels is SURE; else as they are.

    So the likeliest place counts as the object where none is found, and its outline is where the odds fall off.
    """
    odds = probs[:, 1].logit(1e-6)
    count = max(1, round(share * odds[0].numel()))
    found = odds.flatten(1).topk(count).values[:, -1]
    raised = (odds + (math.log(SURE / (1 - SURE)) - found).clamp_min(0)[:, None, None]).sigmoid()
    return torch.stack([1 - raised, raised], 1)


def least_share(labels: UInt8[np.ndarray, "n h w"]) -> float:
    """The share of pixels that class 1 has in the map where it is smallest; 0 where it is missing from one."""
    return float((np.asarray(labels) == 1).mean((1, 2)).min())


def have_one_object(labels: UInt8[np.ndarray, "n h w"]) -> bool:
    """Is class 1 the only one beside background, and in one piece in nearly all of the maps that show it?"""
    if np.isin(labels, (0, 1, IGNORE_INDEX), invert=True).any():
        return False
    objects = _objects(labels)
    lesser = lesser_pieces(objects.float()).flatten(1).sum(1) / objects.flatten(1).sum(1)
    return len(objects) > 0 and float((lesser < CRUMBS).float().mean()) >= SHARE


def are_convex(labels: UInt8[np.ndarray, "n h w"]) -> bool:
    """Does class 1 cover nearly all of its convex hull, on average over the maps that show it?"""
    objects = _objects(labels)
    covered = [float(one.sum() / convex_hull(one).sum()) for one in objects.split(1)]  # a hull takes DIRECTIONS times its memory
    return len(objects) > 0 and float(np.mean(covered)) >= CONVEX


def _objects(labels: UInt8[np.ndarray, "n h w"]) -> Bool[Tensor, "m h w"]:
    """Where class 1 is, in the maps that show it."""
    objects = torch.from_numpy(np.asarray(labels) == 1)
    return objects[objects.flatten(1).any(1)]
