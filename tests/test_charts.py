"""Charts: what is drawn where, both ways; and colours that colour-blind readers can tell apart."""

import math
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pytest

from semanticgan import charts, labels
from semanticgan.charts import Series, chart, thinned, ticks

# Viénot, Brettel and Mollon (1999): what linear red, green and blue become for who lacks L or M cones.
SEEN_BY = {
    "all": np.eye(3),
    "protanope": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "deuteranope": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
}


def linear(colour):
    c = np.array(colour) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def cielab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb.clip(0, 1)
    f = [v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz / (0.9505, 1, 1.089)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colours, eyes):
    return min(
        np.linalg.norm(cielab(SEEN_BY[eyes] @ linear(a)) - cielab(SEEN_BY[eyes] @ linear(b))) for a, b in combinations(colours, 2)
    )


@pytest.mark.parametrize("eyes", SEEN_BY)
@pytest.mark.parametrize("colours", [labels.COLOURS, charts.COLOURS])
def test_colours_stay_apart(colours, eyes):
    """A difference of 2 is just noticeable side by side; 10 is seen at a glance."""
    assert nearest(colours, eyes) > 10
    assert nearest([(255, 0, 0), (100, 120, 0)], "protanope") < nearest([(255, 0, 0), (100, 120, 0)], "all") / 2


@pytest.mark.parametrize("ground", [(255, 255, 255), (20, 22, 26)])
def test_lines_stand_out_from_light_and_dark(ground):
    """Contrast as WCAG 2 counts it, 3 for graphics."""

    def luminance(colour):
        return float(np.dot((0.2126, 0.7152, 0.0722), linear(colour))) + 0.05

    for colour in charts.COLOURS:
        low, high = sorted((luminance(colour), luminance(ground)))
        assert high / low >= 3, colour


def parsed(drawing):
    return ET.fromstring(drawing.to_svg(alone=True))


def of_kind(root, kind):
    return [e for e in root if e.tag.endswith("}" + kind)]


@pytest.mark.parametrize("span", [(0, 1), (-3, 1e4), (0.12, 0.121), (5, 7e-3 + 5), (-1e-9, 1e-9)])
@pytest.mark.parametrize("most", [3, 6, 10])
def test_ticks_are_round_few_and_inside(span, most):
    found = ticks(*span, most)
    assert 1 <= len(found) <= most
    assert all(span[0] - 1e-9 * abs(span[0]) <= v <= span[1] + 1e-9 * abs(span[1]) for v in found)
    gaps = np.diff(found)
    assert np.allclose(gaps, gaps[:1])


def test_a_line_goes_through_its_points_and_breaks_where_one_is_missing():
    one = Series("a", [0, 1, 2, 3, 4], [0.0, 1.0, math.nan, 1.0, 0.0])
    root = parsed(chart([one], "title", "x", "y"))
    lines = [e.get("points") for e in of_kind(root, "polyline") if e.get("stroke") != "currentColor"]
    assert len(lines) == 2
    (left, right) = [[tuple(map(float, p.split(","))) for p in line.split()] for line in lines]
    assert left[0][1] == right[1][1] > left[1][1] == right[0][1]  # up is more
    assert left[1][0] - left[0][0] == pytest.approx(right[1][0] - right[0][0], abs=0.2)
    assert 0 < left[0][0] < right[1][0] < 560 and root.get("aria-label") == "title"


def test_logarithmic_axis_puts_doublings_at_equal_distances():
    many = [Series(name, [10, 20, 40], [1.0, y, 2.0], [0.5] * 3, [2.5] * 3) for name, y in (("a", 1.5), ("b", 1.2))]
    root = parsed(chart(many, "t", "labels", "IoU", log_x=True))
    texts = [e.text for e in of_kind(root, "text")]
    assert [t for t in texts if t in ("10", "20", "40")] == ["10", "20", "40"] and {"a", "b", "labels", "IoU"} <= set(texts)
    line = next(e.get("points") for e in of_kind(root, "polyline") if e.get("points").count(" ") == 2)
    x = [float(p.split(",")[0]) for p in line.split()]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)


def test_series_differ_in_colour_or_shape():
    assert len({(charts.COLOURS[n % len(charts.COLOURS)], charts._shape((0.0, 0.0), n)) for n in range(16)}) == 16


def test_names_that_do_not_fit_go_to_the_next_row():
    names = ["by distance", "at random", "if the score were known"]
    root = parsed(chart([Series(name, [0, 1], [k, 2]) for k, name in enumerate(names)], "title", "x", "y", width=400))
    place = {e.text: (float(e.get("x")), float(e.get("y"))) for e in of_kind(root, "text")}
    assert place["title"][1] < place[names[0]][1] == place[names[1]][1] < place[names[2]][1]
    assert all(place[name][0] + 6.6 * len(name) <= 400 for name in names)
    assert place[names[2]][1] < min(float(e.get("points").split()[0].split(",")[1]) for e in of_kind(root, "polyline")[:1])


def test_text_is_escaped():
    text = chart([Series("<script>", [1, 2], [1, 2]), Series("b", [1], [2])], '"><b>', "&", "<i>").to_svg()
    assert "<script>" not in text and "<b>" not in text and "<i>" not in text and "&lt;script&gt;" in text


def test_nothing_to_show():
    for series in ([], [Series("a", [], [])], [Series("a", [1.0], [math.nan])]):
        assert "nothing to show" in chart(series, "t", "x", "y").to_svg()


def test_picture_agrees_with_the_svg():
    drawing = chart([Series("a", [0, 1], [3.0, 3.0])], "t", "x", "y")
    picture = np.asarray(drawing.to_image(2))
    assert picture.shape == (640, 1120, 3) and (picture[0, 0] == 255).all()
    line = next(e for e in of_kind(parsed(drawing), "polyline") if e.get("stroke") != "currentColor")
    (x0, y), (x1, _) = (tuple(map(float, p.split(","))) for p in line.get("points").split())
    assert (picture[round(2 * y), round(x0 + x1)] == charts.COLOURS[0]).all()


def test_thinned_keeps_both_ends():
    assert thinned(range(5), 8) == [0, 1, 2, 3, 4]
    assert thinned(range(101), 5) == [0, 25, 50, 75, 100]
