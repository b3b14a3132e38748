"""Classes, their colours, and how mask files code them."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from semanticgan.errors import UserError

IGNORE_INDEX = 255
IGNORE_COLOUR = (255, 255, 255)
# Okabe and Ito's colours, apart for colour-blind readers too; black is kept for the background.
COLOURS = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


def default_colour(index: int) -> tuple[int, int, int]:
    """The colour of class `index`: the fixed list first, then golden-ratio steps round the colour circle."""
    if index < len(COLOURS):
        return COLOURS[index]
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.6, 0.6 + 0.35 * (index % 2))
    return round(red * 255), round(green * 255), round(blue * 255)


class LabelSpec(BaseModel):
    """Names and colours of the K classes, background included, and the coding of the mask files.

    `coding` is "index" (a pixel is its class, 255 is ignored) or "binary" (255 is class 1, nothing is ignored).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    coding: Literal["index", "binary"] = "index"

    @model_validator(mode="after")
    def _consistent(self) -> "LabelSpec":
        if not 2 <= len(self.names) <= 254:
            raise ValueError(f"got {len(self.names)} classes, expected 2 to 254 (background included)")
        if len(self.palette) != len(self.names):
            raise ValueError(f"got {len(self.palette)} colours for {len(self.names)} classes")
        if len(set(self.names)) != len(self.names):
            raise ValueError("two classes have the same name")
        if any(not 0 <= v <= 255 for colour in self.palette for v in colour):
            raise ValueError("colours are red, green, blue in 0..255")
        return self

    @classmethod
    def unnamed(cls, num_classes: int, coding: Literal["index", "binary"] = "index") -> "LabelSpec":
        """class_0, class_1, ... in the default colours."""
        return cls(
            names=tuple(f"class_{k}" for k in range(num_classes)),
            palette=tuple(default_colour(k) for k in range(num_classes)),
            coding=coding,
        )

    @classmethod
    def from_file(cls, path: Path, coding: Literal["index", "binary"] = "index") -> "LabelSpec":
        """Read `{"classes": [{"name": ..., "color": [r, g, b]}, ...], "ignore": 255}`; a colour may be left out.

        Raises UserError for a file of another form.
        """
        form = '{"classes": [{"name": "background", "color": [0, 0, 0]}, ...], "ignore": 255}'
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            classes = content["classes"]
            if content.get("ignore", IGNORE_INDEX) != IGNORE_INDEX:
                raise UserError(f"{path}: got ignore {content['ignore']}, expected 255: store ignored pixels as 255")
            return cls(
                names=tuple(str(c["name"]) for c in classes),
                palette=tuple(tuple(c.get("color", default_colour(k))) for k, c in enumerate(classes)),
                coding=coding,
            )
        except ValidationError as error:
            first = error.errors()[0]
            problem = ": ".join([*map(str, first["loc"]), first["msg"].removeprefix("Value error, ")])
            raise UserError(f"{path}: {problem}; expected {form}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read as classes ({error}); expected {form}") from None

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def classes_file(self) -> dict[str, object]:
        """What classes.json holds."""
        classes = [{"name": name, "color": list(colour)} for name, colour in zip(self.names, self.palette, strict=True)]
        return {"classes": classes, "ignore": IGNORE_INDEX}

    def to_index(self, values: np.ndarray) -> np.ndarray:
        """Raw mask values [H, W] -> class map uint8 [H, W] with 255 where ignored.

        Raises UserError naming the first value that is no class; the caller adds the file.
        """
        if self.coding == "binary":
            return self._checked((values == 255).astype(np.uint8), values, np.isin(values, (0, 255)), "0 or 255")
        label = values.astype(np.uint8)
        good = ((values >= 0) & (values < self.num_classes)) | (values == IGNORE_INDEX)
        return self._checked(label, values, good, f"0 to {self.num_classes - 1}, or 255 for ignored pixels")

    @staticmethod
    def _checked(label: np.ndarray, values: np.ndarray, good: np.ndarray, expected: str) -> np.ndarray:
        if not good.all():
            raise UserError(f"got class id {int(values[~good].flat[0])}, expected {expected}")
        return label

    def to_colour(self, label: np.ndarray) -> np.ndarray:
        """Class map [..., H, W] -> uint8 [..., H, W, 3]; ignored pixels are white."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.palette
        table[IGNORE_INDEX] = IGNORE_COLOUR
        return table[label]

    @property
    def ignored_colour(self) -> tuple[int, int, int]:
        """White, or where a class is white a colour that none has."""
        return next(c for c in (IGNORE_COLOUR, *map(default_colour, range(1, 256))) if c not in self.palette)

    def palette_bytes(self, ignored: tuple[int, int, int] | None = None) -> bytes:
        """The 768 bytes of a palette PNG; `ignored` is the colour of 255, by default one that no class has."""
        colours = self.to_colour(np.arange(256, dtype=np.uint8)[None])
        colours[0, IGNORE_INDEX] = ignored or self.ignored_colour
        return colours.tobytes()
