"""Any predictor: a stream of images of any size -> their label maps at their own size."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semanticgan.config import InversionConfig, Precision
from semanticgan.data.pieces import with_one_object
from semanticgan.data.transforms import fit_image, fitted_box, to_float, to_u8, unfit, unview, view, view_indices, with_contrast
from semanticgan.errors import UserError
from semanticgan.inversion import Whitening, in_fixed_batches, invert, whitening
from semanticgan.nn.encoder import Encoder
from semanticgan.nn.generator import Generator
from semanticgan.nn.perceptual import LPIPS
from semanticgan.precision import autocast

Fit = Literal["squash", "pad"]
Symmetry = Literal["none", "flip", "all"]
Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels of the image

HELD_BYTES = 2**28  # images kept at full size at once; a larger one is held alone
FLOOR = 1e-7  # probabilities below it count as it: their logarithm stays finite


@dataclass(frozen=True)
class Prediction:
    """What a predictor says of a batch; the reconstruction (-1..1) and its LPIPS distance only where it makes one."""

    probs: Float[Tensor, "n k r r"]
    reconstruction: Float[Tensor, "n c r r"] | None = None
    distance: Float[Tensor, " n"] | None = None


@runtime_checkable
class Predictor(Protocol):
    """Images [N, C, R, R] in -1..1 -> class probabilities, each image's bit for bit independent of its batch mates
    (inversion on a GPU: up to rounding).

    `refine` marks the images as they are given, worth inverting and reconstructing; without it (turned and flipped
    views) the quickest answer will do. `refines`: whether refined answers are better ones, not the quick ones again.
    """

    @property
    def refines(self) -> bool: ...

    def __call__(self, img: Float[Tensor, "n c r r"], refine: bool = True) -> Prediction: ...


class NetworkPredictor:
    """A plain segmentation network: img -> seg_logits."""

    refines = False

    def __init__(
        self,
        net: Callable[[Tensor], Tensor],  # [N, C, R, R] -> [N, K, R, R], in evaluation mode
        precision: Precision = "auto",
    ) -> None:
        self.net = net
        self.precision = precision

    def __call__(self, img: Float[Tensor, "n c r r"], refine: bool = True) -> Prediction:
        with torch.no_grad(), autocast(img.device, self.precision):
            return Prediction(in_fixed_batches(lambda img: self.net(img).float().softmax(1), img)[0])


class GeneratorPredictor:
    """SemanticGAN: the encoder finds ws, `steps` of inversion improve them, G gives label map and reconstruction.

    Without an encoder inversion starts at w_avg, for turned views too. Raises UserError then if `steps` is 0, and ValueError
    for steps without `lpips`.
    """

    def __init__(
        self,
        G: Generator,
        E: Encoder | None,
        lpips: LPIPS | None,  # None: neither distance nor inversion
        config: InversionConfig,
        steps: int = 0,
        prior: Whitening | None = None,  # of G; None: computed if needed
        precision: Precision = "auto",
    ) -> None:
        if E is None and steps == 0:
            raise UserError("steps: got 0, but this model has no encoder; ask for steps of inversion, such as --steps 200")
        if lpips is None and steps > 0:
            raise ValueError("inversion needs lpips")
        self.G, self.E, self.lpips = G, E, lpips
        self.config, self.steps, self.precision = config, steps, precision
        self.prior = whitening(G) if prior is None and steps > 0 and config.prior > 0 else prior

    @property
    def refines(self) -> bool:
        return self.steps > 0

    @torch.no_grad()
    def __call__(self, img: Float[Tensor, "n c r r"], refine: bool = True) -> Prediction:
        with autocast(img.device, self.precision):
            if self.E is None:
                ws, *features = [self.G.mapping.w_avg.expand(len(img), self.G.num_ws, -1)]
            else:
                ws, *features = in_fixed_batches(self.E, img)
            if self.lpips is not None and self.steps > 0 and (refine or self.E is None):
                found = invert(
                    self.G, self.lpips, img, ws, self.config, self.steps, self.prior, features=features, precision=self.precision
                )
                out, seg_logits = found.img, found.seg_logits
            else:
                out, seg_logits = in_fixed_batches(lambda ws, *rest: self.G.synthesis(ws, "none", *rest), ws, *features)
            probs = in_fixed_batches(lambda logits: logits.softmax(1), seg_logits)[0]
            distance = reconstruction_distance(self.lpips, img, out) if refine and self.lpips is not None else None
            return Prediction(probs, out, distance)


def reconstruction_distance(
    lpips: LPIPS, img: Float[Tensor, "n c r r"], reconstruction: Float[Tensor, "n c r r"]
) -> Float[Tensor, " n"]:
    """LPIPS between images and their reconstructions as they are, `large_enough`."""

    def distance(*pair: Tensor) -> Tensor:
        return lpips(*map(large_enough, pair))

    return in_fixed_batches(distance, img, reconstruction.clamp(-1, 1))[0].float()


def large_enough(img: Float[Tensor, "n c r r"]) -> Float[Tensor, "n c r2 r2"]:
    """For LPIPS: below 32 px, the least that AlexNet takes, pixels are repeated."""
    repeats = max(1, 32 // img.shape[-1])
    return img.repeat_interleave(repeats, -1).repeat_interleave(repeats, -2)


@dataclass(frozen=True)
class Found:
    """One image's answer, kept at G's resolution; the maps at the image's own size are made when asked for."""

    size: tuple[int, int]  # height, width of the image
    fit: Fit
    temperature: float
    log_probs: Float[Tensor, "k r r"]
    crop: tuple[Box, Float[Tensor, "k r r"]] | None  # what was looked at again, and how
    reconstruction: UInt8[np.ndarray, "r r c"] | None
    distance: float | None

    def logits(self) -> Float[Tensor, "k h w"]:
        """Averaged log probabilities, up-sampled to the image's own size, before the temperature."""
        maps = unfit(self.log_probs[None], self.size, self.fit)[0]
        if self.crop is not None:
            (top, left, bottom, right), log_probs = self.crop
            maps[:, top:bottom, left:right] = unfit(log_probs[None], (bottom - top, right - left), self.fit)[0]
        return maps

    def label(self) -> UInt8[np.ndarray, "h w"]:
        return _highest(self.logits()).numpy()

    def maps(self) -> tuple[UInt8[np.ndarray, "h w"], Float[np.ndarray, "k h w"], Float[np.ndarray, "h w"]]:
        """Label, class probabilities, and uncertainty: their entropy over log K, 0..1."""
        logits = self.logits()
        label = _highest(logits)
        probs = logits.div_(self.temperature).softmax(0)
        uncertainty = torch.special.entr(probs).sum(0).div_(math.log(len(probs))).clamp_(0, 1)
        return label.numpy(), probs.numpy(), uncertainty.numpy()


def predict(
    predictor: Predictor,
    images: Iterable[UInt8[np.ndarray, "_h _w _c"]],  # of any sizes, with the channels that the predictor knows
    *,
    resolution: int,  # side of the predictor's images
    fit: Fit = "squash",
    symmetry: Symmetry = "none",  # average over these flips and turns; "none": the plain view alone
    zoom: bool = False,  # second look at a crop round the first mask, kept where it is surer; not for more than two classes
    one_object: bool = False,  # keep one piece of the second class alone; not for more than two classes
    convex: bool = False,  # and fill its dents
    contrast: float = 1.0,  # of several views: differences from the image's mean colour times this
    temperature: float = 1.0,
    batch: int = 32,  # images worked on together
    device: torch.device | str = "cpu",
) -> Iterator[Found]:
    """Answers in the images' order; each is the same, as exactly as the predictor's, whatever the other images and their order.

    Images are taken from the iterator as they are needed: at most `batch`, or HELD_BYTES of them, are held at once.
    """
    if batch < 1:
        raise UserError(f"batch: got {batch}, expected at least 1")

    def logs(probs: Tensor) -> list[Tensor]:
        """Logarithms, image by image: how a vectorised one rounds can depend on the place in the tensor."""
        single = one_object and probs.shape[1] == 2
        return [(with_one_object(p[None], convex)[0] if single else p).clamp_min(FLOOR).log() for p in probs]

    for group in _groups(images, batch):
        first = _look([fit_image(img, resolution, fit) for img in group], predictor, symmetry, contrast, device, refine=True)
        log_probs, sizes = logs(first.probs), [img.shape[:2] for img in group]
        boxes: list[Box | None] = [None] * len(group)
        if zoom and first.probs.shape[1] == 2:
            boxes = [zoom_box(m, size, fit) for m, size in zip(log_probs, sizes, strict=True)]
        pieces = [img[b[0] : b[2], b[1] : b[3]] for img, b in zip(group, boxes, strict=True) if b]
        crops: Iterator[Tensor] = iter(())
        if pieces:
            fitted = [fit_image(piece, resolution, fit) for piece in pieces]
            crops = iter(logs(_look(fitted, predictor, symmetry, contrast, device, refine=predictor.refines).probs))
        for n, (size, box) in enumerate(zip(sizes, boxes, strict=True)):
            crop = (box, next(crops)) if box else None
            yield Found(
                size=size,
                fit=fit,
                temperature=temperature,
                log_probs=log_probs[n],
                crop=crop if crop and _sureness(crop[1]) >= _sureness(log_probs[n]) else None,
                reconstruction=None if first.reconstruction is None else to_u8(first.reconstruction[n : n + 1])[0].numpy(),
                distance=None if first.distance is None else float(first.distance[n]),
            )


def _groups(images: Iterable[np.ndarray], batch: int) -> Iterator[list[np.ndarray]]:
    group: list[np.ndarray] = []
    for img in images:
        if group and (len(group) == batch or sum(i.nbytes for i in group) + img.nbytes > HELD_BYTES):
            yield group
            group = []
        group.append(img)
    if group:
        yield group


def _look(
    fitted: list[np.ndarray], predictor: Predictor, symmetry: Symmetry, contrast: float, device: torch.device | str, refine: bool
) -> Prediction:
    """What the predictor makes of the images, on the CPU, with probabilities averaged over the views.

    An image that was refined counts as much as all its views together.
    """
    img = to_float(torch.from_numpy(np.stack(fitted)).to(device))
    views = view_indices(symmetry)
    if len(views) == 1:
        return _on_cpu(predictor(img, refine=refine))
    plain = predictor(img, refine=refine) if refine or contrast == 1 else None
    seen = img if contrast == 1 else with_contrast(img, contrast)

    def probs(k: int) -> Tensor:
        if k == 0 and plain is not None and contrast == 1 and not predictor.refines:
            return plain.probs
        return unview(predictor(view(seen, k), refine=False).probs, k)

    mean = reduce(torch.add, map(probs, views)) / len(views)
    if plain is None:
        return _on_cpu(Prediction(mean))
    return _on_cpu(replace(plain, probs=(plain.probs + mean) / 2 if predictor.refines else mean))


def _on_cpu(said: Prediction) -> Prediction:
    reconstruction, distance = (None if x is None else x.cpu() for x in (said.reconstruction, said.distance))
    return Prediction(said.probs.cpu(), reconstruction, distance)


def _sureness(log_probs: Float[Tensor, "2 r r"]) -> float:
    """The mean probability of the foreground where it is the likelier class; 0 where it is nowhere."""
    found = log_probs[1] > log_probs[0]
    return float(log_probs[1][found].exp().mean()) if found.any() else 0.0


def _highest(logits: Float[Tensor, "k h w"]) -> UInt8[Tensor, "h w"]:
    """Each pixel's arg max, the first of equals; `argmax` takes fifteen times as long along the first axis."""
    return logits.max(0).indices.byte()


def zoom_box(log_probs: Float[Tensor, "k r r"], size: tuple[int, int], fit: Fit) -> Box | None:
    """The crop round the foreground: centred at its centre of mass, sides 2 sqrt(its area), at least a quarter of the frame.

    It has the proportions in which the predictor saw the frame: the image's own for "squash", a square for "pad".
    None where there is no foreground or the crop would be the whole frame.
    """
    height, width = size
    resolution = log_probs.shape[-1]
    small = fitted_box(height, width, resolution, fit)[2:]
    foreground = unfit(log_probs[None], small, fit)[0].argmax(0) > 0
    ys, xs = foreground.nonzero(as_tuple=True)
    if len(ys) == 0:
        return None
    side = max(2 * math.sqrt(len(ys)), resolution / 4)  # in pixels of the fitted frame
    if side >= resolution:
        return None
    spans = []
    for centre, extent, length in ((ys, small[0], height), (xs, small[1], width)):
        crop = min(length, max(1, round(side * length / extent)))
        middle = (float(centre.double().mean()) + 0.5) * length / extent
        start = min(max(0, round(middle - crop / 2)), length - crop)
        spans.append((start, start + crop))
    (top, bottom), (left, right) = spans
    return top, left, bottom, right
