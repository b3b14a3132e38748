"""The file that `evaluate --json` writes, and a run's validation.json: read back and checked."""

import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semanticgan.errors import UserError

Interval = tuple[float | None, float | None]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Means(_Part):
    """None for what no image shows; `miou` is over all classes."""

    iou: dict[str, float | None] = Field(min_length=2)  # by class, the background first
    dice: dict[str, float | None]
    miou: float | None
    accuracy: float | None


class Intervals(_Part):
    """95 %, bootstrap over images; None for few of them."""

    iou: dict[str, Interval]
    dice: dict[str, Interval]
    miou: Interval
    accuracy: Interval


class Case(Means):
    """One image's scores."""

    image: str
    distance: float | None
    pixels: dict[str, int] = {}  # of the mask, by class; not in older files

    @property
    def foreground_iou(self) -> float:
        """Mean over the classes after the background; NaN where none of them is in mask or prediction."""
        values = [value for value in list(self.iou.values())[1:] if value is not None]
        return sum(values) / len(values) if values else math.nan


class Scores(_Part):
    """A whole evaluation; what was evaluated is there in `evaluate`'s own files alone."""

    num_images: int
    mean: Means
    interval95: Intervals
    cases: list[Case]
    model: str | None = None
    data: str | None = None
    list: str | None = None
    steps: int | None = Field(None, ge=0)
    views: bool | None = None
    zoom: bool | None = None
    coding: str | None = None  # of the masks: "index" (255 is ignored) or "binary" (255 is class 1)

    def images_with(self, name: str | None = None) -> str:
        """How many images count for a class (None: for the mean over classes), and whether no mask shows it."""
        counted = sum((case.miou if name is None else case.iou[name]) is not None for case in self.cases)
        unseen = name is not None and all(case.pixels.get(name) == 0 for case in self.cases)
        return f"{counted} (in no mask)" if unseen else str(counted)

    @classmethod
    def read(cls, path: Path) -> "Scores":
        """Raises UserError for a file of another form."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); expected a file of evaluate --json") from None
        except ValidationError as error:
            first = error.errors()[0]
            problem = ": ".join([".".join(map(str, first["loc"])), first["msg"]]).removeprefix(": ")
            raise UserError(f"{path}: {problem}; expected a file of evaluate --json") from None

    def of(self, name: str) -> tuple[float | None, Interval]:
        """Mean and interval of "miou", "accuracy", "iou:CLASS" or "dice:CLASS". Raises UserError for anything else."""
        kind, _, which = name.partition(":")
        if name in ("miou", "accuracy"):
            return getattr(self.mean, name), getattr(self.interval95, name)
        if kind in ("iou", "dice") and which in getattr(self.mean, kind):
            return getattr(self.mean, kind)[which], getattr(self.interval95, kind).get(which, (None, None))
        known = ["miou", "accuracy", *(f"{k}:{c}" for k in ("iou", "dice") for c in getattr(self.mean, k))]
        raise UserError(f"score: got {name!r}, expected one of {', '.join(known)}")
