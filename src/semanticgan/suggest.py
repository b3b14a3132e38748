"""Which unlabelled images to label next: those the model is unsure of, explains badly, and that are unlike the labelled ones."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from semanticgan.data.dataset import is_flat, load_picture
from semanticgan.data.sources import find_root, has_mask, list_images
from semanticgan.data.transforms import fit_image, to_float, unview, view, view_indices
from semanticgan.errors import UserError
from semanticgan.inversion import in_fixed_batches
from semanticgan.model import SemanticGAN
from semanticgan.precision import autocast
from semanticgan.predict import reconstruction_distance

BATCH = 8  # images looked at together; with eight views the networks see eight times as many


@dataclass(frozen=True)
class Look:
    """What the encoder and G say of one image."""

    uncertainty: float  # mean entropy of the views' averaged probabilities, over log K: 0..1
    distance: float  # LPIPS between the image and its reconstruction
    ws: Float[np.ndarray, " d"]  # the image's latent code, all rows


@dataclass(frozen=True)
class Proposal:
    """An image to label, and why: `gain` = (rank of uncertainty + rank of distance) / 2 x novelty, each in 0..1."""

    image: str
    gain: float
    uncertainty: float
    distance: float
    novelty: float  # distance in W+ to the nearest labelled or proposed image over that of two random candidates, at most 1


def look(model: SemanticGAN, images: Iterable[np.ndarray], views: bool = True) -> Iterator[Look]:
    """Look at uint8 images [H, W, C] of any size, by the encoder alone; `views`: average over the flips and turns too.

    No image's answer depends on the others. Raises UserError for a model without encoder.
    """
    if model.S is not None:
        model.G  # noqa: B018  says what a student lacks
    if model.E is None:
        raise UserError("this model has no encoder, so it cannot suggest what to label; train one with semanticgan train")
    data, rest = model.config.data, iter(images)
    while group := list(islice(rest, BATCH)):
        fitted = np.stack([fit_image(img, data.resolution, data.fit) for img in group])
        uncertainty, distance, ws = _look(model, to_float(torch.from_numpy(fitted).to(model.device)), views)
        for n in range(len(group)):
            yield Look(float(uncertainty[n]), float(distance[n]), ws[n].flatten().cpu().numpy())


@torch.no_grad()
def _look(
    model: SemanticGAN, img: Float[Tensor, "n c r r"], views: bool
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, "n num_ws w_dim"]]:
    indices = view_indices(model.config.data.symmetry if views else "none")
    total, plain = torch.zeros(1, device=img.device), None
    with autocast(img.device):
        for k in indices:
            ws, *features = in_fixed_batches(model.E, view(img, k))  # type: ignore[arg-type]
            out, seg_logits = in_fixed_batches(lambda ws, *rest: model.G.synthesis(ws, "none", *rest), ws, *features)
            total = total + unview(seg_logits.float().softmax(1), k)
            plain = (out, ws) if plain is None else plain
        assert plain is not None
        distance = reconstruction_distance(model.lpips, img, plain[0])
    probs = total / len(indices)
    entropy = torch.special.entr(probs).sum(1).mean((1, 2)) / np.log(probs.shape[1])
    return entropy, distance, plain[1]


def propose(looks: dict[str, Look], num: int, labeled: Sequence[Look] = ()) -> list[Proposal]:
    """Up to `num` of the images that were looked at, best first: greedily the largest gain (see `Proposal`), given those before.

    An image like a labelled or a proposed one has hardly any novelty, so ten proposals are not one image ten times (its mirror
    image counts as another).
    """
    names = list(looks)
    if not names:
        return []
    ws = np.stack([looks[name].ws for name in names]).astype(np.float64)
    value = (_ranks([looks[n].uncertainty for n in names]) + _ranks([looks[n].distance for n in names])) / 2
    spread = np.sqrt(2 * ws.var(0).sum()) or 1.0  # root mean square distance of two random candidates
    nearest = np.full(len(names), np.inf)
    for other in labeled:
        nearest = np.minimum(nearest, np.linalg.norm(ws - other.ws, axis=1))
    out: list[Proposal] = []
    left = np.ones(len(names), bool)
    while len(out) < min(num, len(names)):
        novelty = np.minimum(1, nearest / spread)
        best = int(np.argmax(np.where(left, value * novelty, -1)))
        left[best] = False
        seen = looks[names[best]]
        gain = float(value[best] * novelty[best])
        out.append(Proposal(names[best], gain, seen.uncertainty, seen.distance, float(novelty[best])))
        nearest = np.minimum(nearest, np.linalg.norm(ws - ws[best], axis=1))
    return out


def _ranks(values: Sequence[float]) -> Float[np.ndarray, " n"]:
    """The share of the values that are not above each: 1/n..1; equal values have equal ranks."""
    ordered = np.sort(values)
    return np.searchsorted(ordered, values, side="right") / len(values)


def candidates(
    root: Path,
    unlabeled: Sequence[str] = (),
    labeled: Sequence[str] = (),
    held_out: Collection[str] = (),  # names of images that are not to be trained on
) -> tuple[list[str], list[str]]:
    """(images to choose from, labelled images), from folders and lists as `list_images` reads them.

    Without `labeled`: every image with a mask; without `unlabeled`: every image without one. Labelled ones are not chosen from.
    Raises UserError where nothing is left.
    """
    everything = list_images(root, str(root)) if not (unlabeled and labeled) else []
    known = [i for spec in labeled for i in list_images(root, spec)] or [i for i in everything if has_mask(root, i)]
    given = [i for spec in unlabeled for i in list_images(root, spec)]
    free = given or [i for i in everything if not has_mask(root, i)]
    passed = {*known, *held_out}
    chosen = [i for i in dict.fromkeys(free) if i not in passed]
    if given and not chosen:
        raise UserError(
            f"--unlabeled {unlabeled[0]}: every image of it has a mask or is for validation; name the labelled ones by --labeled "
            "if the masks of the others are not to count"
        )
    if not chosen:
        raise UserError(f"{root}: every image is labelled, expected some without a mask; add images")
    return chosen, list(dict.fromkeys(known))


def look_at_files(
    model: SemanticGAN, root: Path, names: Sequence[str], views: bool = True
) -> Iterator[tuple[str, Look | UserError]]:
    """`look` at image files; for one that cannot be read, what is wrong with it."""
    config, rest = model.config.data, iter(names)
    while group := list(islice(rest, BATCH)):
        read: dict[str, np.ndarray | UserError] = {}
        for name in group:
            try:
                pixels = load_picture(root / name, config.num_channels, at_least=config.resolution).pixels
                read[name] = UserError(f"{name}: near-constant image, nothing to label") if is_flat(pixels) else pixels
            except UserError as error:
                read[name] = error
        looks = look(model, [img for img in read.values() if isinstance(img, np.ndarray)], views)
        for name, img in read.items():
            yield name, img if isinstance(img, UserError) else next(looks)


def suggest(
    model: SemanticGAN,
    data: Path,
    num: int,
    unlabeled: Sequence[str] = (),
    labeled: Sequence[str] = (),
    held_out: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,  # told images done, images in all
) -> tuple[list[Proposal], list[str]]:
    """The `num` images to label next, best first, and a message for each file that cannot be read or shows nothing.

    Raises UserError where there is nothing to choose from, and for a model without encoder.
    """
    root = find_root(data)
    chosen, known = candidates(root, unlabeled, labeled, held_out)
    looks: dict[str, Look] = {}
    near: list[Look] = []
    problems: list[str] = []
    for names, views in ((chosen, True), (known, False)):
        for name, found in look_at_files(model, root, names, views):
            if isinstance(found, UserError):
                problems.append(str(found))
            elif views:
                looks[name] = found
            else:
                near.append(found)
            if progress is not None:
                progress(len(looks) + len(near) + len(problems), len(chosen) + len(known))
    return propose(looks, num, near), problems
