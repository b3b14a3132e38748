"""Charts drawn by hand: lines with intervals, and dots, as SVG or as a PIL image from the same few marks."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Number = int | float
Point = tuple[Number, Number]
T = TypeVar("T")

# Of Okabe and Ito's colours those that stand out from white and from near black alike (contrast 3 or more).
COLOURS: tuple[Colour, ...] = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 102, 153))
INK: Colour = (17, 17, 17)  # in SVG it is the text colour of the page around it
FAINT = 0.25  # opacity of grid lines and intervals
MARKERS = 8  # shapes on a line, so that lines differ by more than colour


@dataclass(frozen=True)
class Mark:
    """One thing on a drawing, in pixels from its upper left corner."""

    kind: str  # "line", "area" or "text"
    points: tuple[Point, ...]  # of a text: where it stands
    colour: Colour = INK
    opacity: float = 1.0
    text: str = ""
    anchor: str = "middle"  # of a text: "start", "middle" or "end"
    turned: bool = False  # a text that reads upwards


@dataclass
class Drawing:
    """Marks in their order, and what they show in words."""

    width: int
    height: int
    title: str
    marks: list[Mark] = field(default_factory=list)

    def to_svg(self, alone: bool = False) -> str:
        """For a page, in its ink; `alone`: a file of its own on white."""
        parts = [_SVG[mark.kind](mark) for mark in self.marks]
        ground = f'<rect width="{self.width}" height="{self.height}" fill="#fff"/>' if alone else ""
        own = ' xmlns="http://www.w3.org/2000/svg" color="#111"' if alone else ""
        return (
            f'<svg{own} viewBox="0 0 {self.width} {self.height}" width="{self.width}" role="img" '
            f'aria-label="{html.escape(self.title)}" font-family="sans-serif" font-size="12">{ground}{"".join(parts)}</svg>'
        )

    def to_image(self, scale: int = 2) -> Image.Image:
        """On white, `scale` pixels a unit; drawn twice as large, then reduced, so that edges are smooth."""
        large = 2 * scale
        picture = Image.new("RGB", (self.width * large, self.height * large), "white")
        pen = ImageDraw.Draw(picture)
        for mark in self.marks:
            colour = tuple(round(255 + (c - 255) * mark.opacity) for c in mark.colour)
            points = [(x * large, y * large) for x, y in mark.points]
            if mark.kind == "line":
                pen.line(points, colour, round(1.6 * large), joint="curve")
            elif mark.kind == "area":
                pen.polygon(points, colour)
            else:
                _write(picture, mark, points[0], colour, ImageFont.load_default(12 * large))
        return picture.resize((self.width * scale, self.height * scale), Image.Resampling.BOX)


def _write(picture: Image.Image, mark: Mark, at: Point, colour: tuple[int, ...], font: Any) -> None:
    if not mark.turned:
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[mark.anchor]
        ImageDraw.Draw(picture).text(at, mark.text, colour, font, anchor)
        return
    width, height = math.ceil(font.getlength(mark.text)), math.ceil(font.size * 1.4)
    stencil = Image.new("L", (width, height))
    ImageDraw.Draw(stencil).text((0, font.size), mark.text, 255, font, "ls")
    corner = (round(at[0] - font.size), round(at[1] - width / 2))
    stencil = stencil.transpose(Image.Transpose.ROTATE_90)
    picture.paste(colour, (*corner, corner[0] + stencil.width, corner[1] + stencil.height), stencil)


def _paint(mark: Mark) -> str:
    colour = "currentColor" if mark.colour == INK else "#{:02x}{:02x}{:02x}".format(*mark.colour)
    return f'"{colour}"' + (f' opacity="{mark.opacity:g}"' if mark.opacity < 1 else "")


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _svg_text(mark: Mark) -> str:
    (x, y), turn = mark.points[0], ""
    if mark.turned:
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"'
    text = html.escape(mark.text)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{mark.anchor}"{turn} fill={_paint(mark)}>{text}</text>'


_SVG = {
    "line": lambda m: f'<polyline points="{_path(m.points)}" fill="none" stroke-width="1.6" stroke={_paint(m)}/>',
    "area": lambda m: f'<polygon points="{_path(m.points)}" fill={_paint(m)}/>',
    "text": _svg_text,
}


# ---------------------------------------------------------------- charts


@dataclass(frozen=True)
class Series:
    """Points in the order of x; one that is not finite breaks the line. `low` and `high`: the ends of intervals, if any."""

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()
    joined: bool = True  # False: dots alone

    def runs(self) -> list[list[int]]:
        """Indices of the points, cut where one is missing."""
        parts: list[list[int]] = [[]]
        for k, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            if math.isfinite(x) and math.isfinite(y):
                parts[-1].append(k)
            elif parts[-1]:
                parts.append([])
        return [part for part in parts if part]


@dataclass(frozen=True)
class _Axis:
    """Values -> pixels."""

    low: Number
    high: Number
    start: Number
    end: Number
    log: bool = False

    def __call__(self, value: Number) -> float:
        low, high = (math.log(v) if self.log else v for v in (self.low, self.high))
        here = (math.log(value) if self.log else value) - low
        return self.start + here / (high - low) * (self.end - self.start)


def ticks(low: Number, high: Number, most: int = 6) -> list[float]:
    """Round values within low..high, 1, 2 or 5 times a power of ten apart, at most `most` of them."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for unit in (1, 2, 5, 10, 20):
        step = power * unit
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [k * step for k in range(first, last + 1)]


def chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,  # x above 0; its ticks are the points' own values
    width: int = 560,
    height: int = 320,
) -> Drawing:
    """Axes, series in colours and shapes that stay apart without colour vision, a legend if there are several."""
    drawing = Drawing(width, height, title)
    shown = [(s, k) for s in series for run in s.runs() for k in run]
    if not shown:
        drawing.marks.append(Mark("text", ((width / 2, height / 2),), text="nothing to show yet"))
        return drawing
    xs = [s.x[k] for s, k in shown]
    ys = [v for s, k in shown for v in (s.y[k], *((s.low[k], s.high[k]) if s.low else ())) if math.isfinite(v)]
    several = len(series) > 1
    legend, rows = _legend(series, width) if several else ([], 0)
    across = _Axis(*_range(xs, log_x), 58, width - 14, log_x)
    up = _Axis(*_range(ys), height - 42, 26 + 18 * rows)
    drawing.marks += _frame(drawing, across, up, sorted(set(xs)) if log_x else ticks(across.low, across.high), x_label, y_label)
    for number, one in enumerate(series):
        drawing.marks += _series(one, number, across, up, several)
    drawing.marks += [Mark("text", ((58, 16),), text=title, anchor="start"), *legend]
    return drawing


def _range(values: Sequence[Number], log: bool = False) -> tuple[Number, Number]:
    low, high = min(values), max(values)
    if log:
        return low / 1.15, high * 1.15
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _frame(drawing: Drawing, across: _Axis, up: _Axis, x_ticks: Sequence[Number], x_label: str, y_label: str) -> list[Mark]:
    marks = []
    for value in ticks(up.low, up.high, 4 + drawing.height // 100):
        y = up(value)
        marks.append(Mark("line", ((across.start, y), (across.end, y)), opacity=FAINT))
        marks.append(Mark("text", ((across.start - 6, y + 4),), text=f"{value:.4g}", anchor="end"))
    free = -math.inf
    for value in x_ticks:
        x, text = across(value), f"{value:g}"
        marks.append(Mark("line", ((x, up.start), (x, up.start + 4))))
        if x - 4 * len(text) > free:
            marks.append(Mark("text", ((x, up.start + 18),), text=text))
            free = x + 4 * len(text)
    marks.append(Mark("line", ((across.start, up.start), (across.end, up.start))))
    marks.append(Mark("text", (((across.start + across.end) / 2, drawing.height - 6),), text=x_label))
    if y_label:
        marks.append(Mark("text", ((14, (up.start + up.end) / 2),), text=y_label, turned=True))
    return marks


def _series(one: Series, number: int, across: _Axis, up: _Axis, several: bool) -> list[Mark]:
    """Intervals, the line, and shapes on it where there are several lines or few points."""
    colour, marks = COLOURS[number % len(COLOURS)], []
    at = {k: (across(one.x[k]), up(one.y[k])) for run in one.runs() for k in run}
    for run in one.runs():
        if one.low:
            marks += _interval(one, run, colour, across, up)
        if one.joined and len(run) > 1:
            marks.append(Mark("line", tuple(at[k] for k in run), colour))
    places = list(at.values())
    if one.joined:
        some = thinned(places, MARKERS) if several or len(places) <= MARKERS else []
        return marks + [Mark("area", _shape(place, number), colour) for place in some]
    return marks + [Mark("area", _shape(place, number, 2.6), colour, 0.6) for place in places]


def _interval(one: Series, run: list[int], colour: Colour, across: _Axis, up: _Axis) -> list[Mark]:
    """A bar at every point."""
    marks = []
    for k in run:
        if math.isfinite(one.low[k]) and math.isfinite(one.high[k]):
            x, low, high = across(one.x[k]), up(one.low[k]), up(one.high[k])
            marks.append(Mark("line", ((x, low), (x, high)), colour, 0.6))
            marks += [Mark("line", ((x - 3, y), (x + 3, y)), colour, 0.6) for y in (low, high)]
    return marks


def _shape(at: Point, number: int, radius: float = 4.0) -> tuple[Point, ...]:
    """A disc, square, triangle or diamond by the series' number: the fifth has the first one's colour and another shape."""
    corners, turn = ((12, 0.0), (4, math.pi / 4), (3, -math.pi / 2), (4, 0.0))[(number + number // len(COLOURS)) % 4]
    angles = (turn + 2 * math.pi * k / corners for k in range(corners))
    return tuple((at[0] + radius * math.cos(a), at[1] + radius * math.sin(a)) for a in angles)


def _legend(series: Sequence[Series], width: int) -> tuple[list[Mark], int]:
    """Names side by side below the title, and in how many rows they stand."""
    marks, x, row = [], 58.0, 1
    for number, one in enumerate(series):
        colour, needed = COLOURS[number % len(COLOURS)], 28 + 6.6 * len(one.name)
        if x > 58 and x + needed > width:
            x, row = 58.0, row + 1
        y = 14 + 18 * row
        if one.joined:
            marks.append(Mark("line", ((x, y), (x + 22, y)), colour))
        marks.append(Mark("area", _shape((x + 11, y), number), colour))
        marks.append(Mark("text", ((x + 28, y + 4),), text=one.name, anchor="start"))
        x += needed + 18
    return marks, row


def thinned(values: Sequence[T], most: int) -> list[T]:
    """At most `most` of the values, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]
