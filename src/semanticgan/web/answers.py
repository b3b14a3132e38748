"""What the model says of a picture, in the form in which the page takes it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semanticgan.data.pieces import with_one_object
from semanticgan.data.transforms import fit_image, to_float, to_u8
from semanticgan.inversion import in_fixed_batches, invert
from semanticgan.model import SemanticGAN, distance_rank
from semanticgan.precision import autocast
from semanticgan.predict import FLOOR, Found, large_enough
from semanticgan.visuals import to_rgb
from semanticgan.web.jobs import Long
from semanticgan.web.pictures import Opened, data_url, png, runs

STEPS = 60  # of inversion, where validation chose none: it is watched, not used
MAX_STEPS = 1000
LIVE_SIDE = 512  # pixels; of the label maps on the way
SECONDS_BETWEEN_STEPS = 0.15
MAP_SIDE = 256  # pixels; of the uncertainty's picture


def distance_words(rank: float | None) -> str:
    """Whether G has seen such images, in plain words; `rank` among the validation images' distances."""
    if rank is None:
        return "This model keeps no validation distances to compare with."
    if rank <= 0.5:
        return "G knows such images well: it explains this one better than half of the validation images."
    if rank <= 0.95:
        return "G has seen such images: it explains this one as it does the validation images."
    if rank < 1:
        return f"Unusual: G explains this image worse than {int(rank * 100)} % of the validation images. Check the mask."
    return "G has not seen such images: it explains this one worse than any validation image. Do not trust the mask."


def about(model: SemanticGAN, name: str) -> dict[str, Any]:
    """What the page must know of the model."""
    config = model.config
    return {
        "model": name,
        "resolution": config.data.resolution,
        "classes": model.labels.classes_file()["classes"],
        "encoder": model.E is not None,
        "student": model.S is not None,
        "chosen_steps": config.steps,
        "steps": config.steps or STEPS,
    }


def answer(model: SemanticGAN, found: Found, steps: int) -> dict[str, Any]:
    """One answer as JSON; maps at the size in `found`.

    Words on the distance only after as many steps of inversion as the validation images' distances, which it is ranked among.
    """
    label, _, uncertainty = found.maps()
    height, width = label.shape
    small = Image.fromarray((uncertainty * 255).round().astype(np.uint8))
    small.thumbnail((MAP_SIDE, MAP_SIDE))
    out = {
        "label": {"width": width, "height": height, "runs": runs(label)},
        "uncertainty": round(float(uncertainty.mean()), 4),
        "uncertainty_map": data_url(png(np.asarray(small))),
    }
    if found.reconstruction is not None and found.distance is not None:
        out |= {"reconstruction": data_url(png(to_rgb(found.reconstruction))), "distance": round(found.distance, 4)}
        if steps == model.config.steps:
            rank = distance_rank(found.distance, model.config.distance_quantiles)
            out |= {"distance_rank": rank, "words": distance_words(rank)}
    elif model.S is not None:
        out["words"] = "A student has no distance: whether such images were seen, its teacher tells."
    return out


@dataclass(frozen=True, eq=False)
class FirstMasks:
    """Pictures -> the encoder's (or the student's) answers, one view, all at once.

    Not in `segment`'s batches of a fixed size, which would make one picture wait as long as eight: rounding differs.
    """

    model: SemanticGAN

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Opened]) -> list[Found]:
        img = torch.cat([_fitted(self.model, picture) for picture in pictures])
        sizes = [picture.pixels.shape[:2] for picture in pictures]
        with autocast(self.model.device):
            if self.model.S is not None:
                return _found(self.model, img, None, self.model.S(img), sizes)
            assert self.model.E is not None
            ws, *features = self.model.E(img)
            out, seg_logits = self.model.G.synthesis(ws, "none", *features)
        return _found(self.model, img, out, seg_logits, sizes)


@dataclass(frozen=True)
class Drawn:
    """A wish for G's samples."""

    seed: int
    truncation_psi: float
    num: int


@dataclass(frozen=True, eq=False)
class Samples:
    """Wishes -> lists of samples: picture and label map as PNG, and the classes in it."""

    model: SemanticGAN

    def __call__(self, wishes: Sequence[Drawn]) -> list[list[dict[str, Any]]]:
        return [[self._one(*pair) for pair in self.model.sample(w.num, w.seed, w.truncation_psi)] for w in wishes]

    def _one(self, img: np.ndarray, label: np.ndarray) -> dict[str, Any]:
        names = [self.model.labels.names[k] for k in np.unique(label)]
        colour = np.dstack([self.model.labels.to_colour(label), (label > 0).astype(np.uint8) * 255])  # class 0 is clear
        return {
            "image": data_url(png(to_rgb(img))),
            "label": data_url(png(colour)),
            "classes": names,
        }


def refine(model: SemanticGAN, picture: Opened, steps: int, job: Long) -> None:
    """Tell `answer` (encoder with the model's views and zoom), then `step` by step what inversion comes to, then `done`.

    Of a student `answer` alone.
    """
    img = _fitted(model, picture)
    job.breathe()
    if model.S is not None:
        job.tell("answer", answer(model, next(model.find([picture.pixels])), 0))
        return
    if model.E is not None:
        job.tell("answer", answer(model, next(model.find([picture.pixels], steps=0)), 0))
        ws0, *features = in_fixed_batches(model.E, img)
    else:
        ws0, *features = [model.G.mapping.w_avg.expand(1, model.G.num_ws, -1)]
    size: tuple[int, int] = picture.pixels.shape[:2]
    scale = min(1.0, LIVE_SIDE / max(size))
    live = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    told = 0.0

    def watch(step: int, out: Tensor, seg_logits: Tensor) -> None:
        nonlocal told
        job.breathe()
        if step in (0, 1, steps) or time.monotonic() - told >= SECONDS_BETWEEN_STEPS:
            told = time.monotonic()
            found = _found(model, img, out, seg_logits, [live])[0]
            job.tell("step", {"step": step, "steps": steps, **answer(model, found, step)})

    best = invert(model.G, model.lpips, img, ws0, model.config.inversion, steps, model.prior, features=features, watch=watch)
    final = _found(model, img, best.img, best.seg_logits, [size])[0]
    job.tell("done", {"step": int(best.steps_used[0]), "steps": steps, **answer(model, final, steps)})


def _fitted(model: SemanticGAN, picture: Opened) -> Tensor:
    data = model.config.data
    return to_float(torch.from_numpy(fit_image(picture.pixels, data.resolution, data.fit))[None].to(model.device))


@torch.no_grad()
def _found(
    model: SemanticGAN, img: Tensor, out: Tensor | None, seg_logits: Tensor, sizes: Sequence[tuple[int, int]]
) -> list[Found]:
    """The answers of one view, for maps of these sizes; a student has no reconstruction `out`."""
    config = model.config
    probs = seg_logits.float().softmax(1).cpu()
    single = config.one_object and probs.shape[1] == 2
    log_probs = (with_one_object(probs, config.convex) if single else probs).clamp_min(FLOOR).log()
    if out is None:
        return [Found(size, config.data.fit, config.temperature, log_probs[n], None, None, None) for n, size in enumerate(sizes)]
    with autocast(model.device):
        distances = model.lpips(large_enough(img), large_enough(out.float().clamp(-1, 1))).float().tolist()
    shown = to_u8(out).cpu().numpy()
    return [
        Found(size, config.data.fit, config.temperature, log_probs[n], None, shown[n], distances[n])
        for n, size in enumerate(sizes)
    ]
