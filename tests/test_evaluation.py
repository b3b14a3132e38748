import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semanticgan.errors import UserError
from semanticgan.evaluation import Choice, choose, evaluate, fit_temperature, to_csv
from semanticgan.labels import LabelSpec
from semanticgan.predict import Found

LABELS = LabelSpec(names=("background", "cat", "dog"), palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)))
BINARY = LabelSpec(names=("background", "lesion"), palette=((0, 0, 0), (1, 1, 1)), coding="binary")
SIDE = 8


def answer(label, num_classes, confidence=4.0, distance=0.25, size=None, crop=None):
    """What a predictor found, given the label map [SIDE, SIDE]."""
    onehot = torch.nn.functional.one_hot(torch.from_numpy(label.astype(np.int64)), num_classes).permute(2, 0, 1)
    log_probs = (confidence * onehot.float()).log_softmax(0)
    return Found(size or label.shape, "squash", 1.0, log_probs, crop, None, distance)


def write(root: Path, name: str, mask: np.ndarray, img: np.ndarray | None = None):
    for folder, values in (("images", np.zeros((*mask.shape, 3), np.uint8) if img is None else img), ("masks", mask)):
        (root / folder).mkdir(exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(root / folder / f"{name}.png")
    return f"images/{name}.png"


def halves(left, right):
    out = np.full((SIDE, SIDE), left, np.uint8)
    out[:, SIDE // 2 :] = right
    return out


@pytest.fixture
def cats(tmp_path):
    """Three images and a predictor that sees the left half as cat, the right as background."""
    names = [
        write(tmp_path, "right", halves(1, 0)),
        write(tmp_path, "dog", halves(1, 2)),
        write(tmp_path, "ignored", np.full((SIDE, SIDE), 255)),
    ]

    def find(images):
        for img in images:
            yield answer(halves(1, 0), 3, size=img.shape[:2])

    return tmp_path, names, find


def test_scores_a_reader_can_check(cats):
    root, names, find = cats
    result = evaluate(find, root, names, LABELS, 3)
    assert set(result) == {"num_images", "mean", "interval95", "cases"} and result["num_images"] == 3
    assert [case["image"] for case in result["cases"]] == names
    right, dog, ignored = result["cases"]
    assert right == {
        "image": "images/right.png", "iou": {"background": 1.0, "cat": 1.0, "dog": None},
        "dice": {"background": 1.0, "cat": 1.0, "dog": None}, "miou": 1.0, "accuracy": 1.0, "distance": 0.25,
        "pixels": {"background": SIDE * SIDE // 2, "cat": SIDE * SIDE // 2, "dog": 0},
    }  # fmt: skip
    assert dog["iou"] == {"background": 0.0, "cat": 1.0, "dog": 0.0} and dog["miou"] == pytest.approx(1 / 3)
    assert dog["accuracy"] == 0.5
    assert set(ignored["iou"].values()) == {None} and ignored["miou"] is ignored["accuracy"] is None
    # None is not counted
    assert result["mean"]["iou"] == {"background": 0.5, "cat": 1.0, "dog": 0.0}
    assert result["mean"]["miou"] == pytest.approx(2 / 3) and result["mean"]["accuracy"] == 0.75


def test_intervals_hold_the_mean_and_repeat(tmp_path):
    random = np.random.default_rng(0)
    names = [write(tmp_path, f"{k:02d}", random.integers(0, 2, (SIDE, SIDE)) * 255) for k in range(12)]

    def find(images):
        for img in images:
            yield answer(halves(1, 0), 2, size=img.shape[:2])

    result = evaluate(find, tmp_path, names, BINARY, 3)
    for group in ("iou", "dice"):
        for name, mean in result["mean"][group].items():
            low, high = result["interval95"][group][name]
            assert low < mean < high
    assert result["interval95"]["miou"][0] < result["mean"]["miou"] < result["interval95"]["miou"][1]
    assert evaluate(find, tmp_path, names, BINARY, 3) == result


def test_a_class_that_is_nowhere(cats):
    root, names, find = cats
    result = evaluate(find, root, names[:1], LABELS, 3)
    assert result["mean"]["iou"]["dog"] is None and result["interval95"]["iou"]["dog"] == [None, None]


def test_scores_are_taken_at_the_masks_own_size(tmp_path):
    mask = np.zeros((60, 40), np.uint8)
    mask[:, :15] = 255  # no multiple of the predictor's pixels
    name = write(tmp_path, "large", mask)
    result = evaluate(lambda images: (answer(halves(1, 0), 2, size=i.shape[:2]) for i in images), tmp_path, [name], BINARY, 3)
    assert result["cases"][0]["iou"]["lesion"] == 15 / 20


def test_csv_has_a_line_per_image(cats):
    root, names, find = cats
    result = evaluate(find, root, names, LABELS, 3)
    rows = list(csv.DictReader(to_csv(result).splitlines()))
    assert [row["image"] for row in rows] == names
    assert list(rows[0]) == [
        "image", "iou_background", "iou_cat", "iou_dog", "dice_background", "dice_cat", "dice_dog",
        "miou", "accuracy", "distance",
    ]  # fmt: skip
    assert float(rows[1]["iou_cat"]) == 1 and rows[0]["iou_dog"] == "" and float(rows[2]["distance"]) == 0.25


def test_every_bad_file_is_named_and_nothing_more_predicted(cats):
    root, names, find = cats
    done = []

    def counted(images):
        for found in find(images):
            done.append(found)
            yield found

    (root / "masks/dog.png").unlink()
    Image.fromarray(np.full((SIDE, SIDE), 7, np.uint8)).save(root / "masks/ignored.png")
    with pytest.raises(UserError) as error:
        evaluate(counted, root, [*names, "images/none.png", names[0]], LABELS, 3)
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and "masks/dog.png: no such file" in lines[0]
    assert "ignored.png: got class id 7" in lines[1] and "none.png: no such file" in lines[2]
    assert len(done) == 1


# ---------------------------------------------------------------- choosing


@pytest.fixture
def lesions(tmp_path):
    """Twelve images; image k has its number in its pixels, its mask's left half is lesion."""
    mask = halves(255, 0)
    return tmp_path, [write(tmp_path, f"{k:02d}", mask, np.full((SIDE, SIDE, 3), k)) for k in range(12)]


def finder(wrong, asked=None):
    """A predictor whose first wrong(k, steps, zoom) columns of the lesion in image k are missed."""

    def label(k, steps, zoom):
        out = halves(1, 0)
        out[:, : wrong(k, steps, zoom)] = 0
        return out

    return predictor(label, asked)


def predictor(label, asked=None):
    """One that gives image k the label map label(k, steps, zoom)."""

    def find(images, steps, zoom):
        for img in images:
            k = int(img[0, 0, 0])
            if asked is not None:
                asked.append((k, steps, zoom))
            crop = ((0, 0, SIDE, SIDE), answer(label(k, steps, True), 2).log_probs) if zoom else None
            yield answer(label(k, steps, False), 2, distance=k / 11, crop=crop)

    return find


def test_fewer_steps_win_a_tie(lesions):
    choice = choose(finder(lambda k, steps, zoom: 1), *lesions, BINARY, 3)
    assert (choice.steps, choice.zoom) == (0, True)
    assert choice.scores == {"0 steps": 0.75, "0 steps, zoom": 0.75, "20 steps, zoom": 0.75, "60 steps, zoom": 0.75}
    assert choice.distance_quantiles == ()  # twelve images are too few to say what is unusual


def test_distances_of_twenty_images_say_what_is_usual(tmp_path):
    names = [write(tmp_path, f"{k:02d}", halves(255, 0), np.full((SIDE, SIDE, 3), k)) for k in range(21)]
    choice = choose(finder(lambda k, steps, zoom: 1), tmp_path, names, BINARY, 3)
    assert choice.distance_quantiles == pytest.approx(np.linspace(0, 20 / 11, 21))


def test_false_alarms_count_against_a_setting(tmp_path):
    """Where there is no lesion a map without one has no IoU, one with a lesion has 0: both must be compared."""
    masks = [halves(255, 0)] * 3 + [halves(0, 0)] * 30
    names = [write(tmp_path, f"{k:02d}", mask, np.full((SIDE, SIDE, 3), k)) for k, mask in enumerate(masks)]

    def find(alarm):  # 20 steps find a little more of the three lesions
        def label(k, steps, zoom):
            out = halves(1, 0) if k < 3 else halves(0, 0)
            out[:, : k < 3 and steps < 20] = 0
            out[0, SIDE - 1] = k >= 3 and alarm(steps, zoom)
            return out

        return predictor(label)

    choice = choose(find(lambda steps, zoom: steps >= 20), tmp_path, names, BINARY, 3, zoom=False)
    assert choice.steps == 0 and choice.scores["20 steps"] < choice.scores["0 steps"]
    assert choose(find(lambda steps, zoom: False), tmp_path, names, BINARY, 3, zoom=False).steps == 20
    assert not choose(find(lambda steps, zoom: zoom), tmp_path, names, BINARY, 3, steps=(0,)).zoom


def test_two_choices_are_compared_over_the_same_images():
    """With zoom chosen the first counts two images that it leaves rightly empty; so must the other, which leaves them too."""
    one, all_views = (Choice(0, False, 1.0, (), {}, np.array(ious)) for ious in ([0.8, 0.8, 1, 1], [0.82, 0.82, np.nan, np.nan]))
    assert all_views.gain_over(one) == pytest.approx(0.01)
    assert one.gain_over(all_views) == pytest.approx(-0.01)
    nothing = Choice(0, False, 1.0, (), {}, np.full(2, np.nan))
    assert nothing.gain_over(nothing) == 0


def test_work_shared_out_chooses_the_same(lesions):
    def in_halves(images, work):
        return [*work(images[:5]), *work(images[5:])]

    find = finder(lambda k, steps, zoom: k % 3 - (steps >= 20))
    assert choose(find, *lesions, BINARY, 3, share=in_halves) == choose(find, *lesions, BINARY, 3)


def test_steps_are_taken_where_they_clearly_help(lesions):
    better = choose(finder(lambda k, steps, zoom: 1 - (steps >= 20)), *lesions, BINARY, 3)
    assert better.steps == 20 and better.scores["20 steps, zoom"] == 1
    # gains .5 in one image of twelve, loses .25 in another: above the margin on average, within its standard error
    doubtful = finder(lambda k, steps, zoom: {3: 0, 4: 2}.get(k, 1) if steps else {3: 2}.get(k, 1))
    assert choose(doubtful, *lesions, BINARY, 3).steps == 0


def test_zoom_is_left_where_it_hurts(lesions):
    asked = []
    choice = choose(finder(lambda k, steps, zoom: 1 + zoom, asked), *lesions, BINARY, 3)
    assert not choice.zoom and choice.scores["0 steps, zoom"] < choice.scores["0 steps"]
    assert {zoom for _, steps, zoom in asked if steps} == {False}
    assert choose(finder(lambda k, steps, zoom: 1 + zoom), *lesions, BINARY, 3, zoom=True).zoom
    assert not choose(finder(lambda k, steps, zoom: 2 - zoom), *lesions, BINARY, 3, zoom=False).zoom


def test_fixed_settings_are_kept(lesions):
    asked = []
    choice = choose(finder(lambda k, steps, zoom: 0, asked), *lesions, BINARY, 3, steps=(60,), zoom=False)
    assert (choice.steps, choice.zoom) == (60, False) and {a[1:] for a in asked} == {(60, False)}


def test_inversion_is_tried_on_some_images(lesions):
    asked = []
    choice = choose(finder(lambda k, steps, zoom: 1 - (steps == 60), asked), *lesions, BINARY, 3, most=4)
    assert choice.steps == 60 and [k for k, steps, _ in asked if steps == 60] == [0, 3, 6, 9]
    assert "60 steps, zoom, 4 of the images" in choice.scores


def test_more_than_two_classes_never_zoom(cats):
    root, names, find = cats
    choice = choose(lambda images, steps, zoom: find(images), root, names, LABELS, 3)
    assert not choice.zoom and set(choice.scores) == {"0 steps", "20 steps", "60 steps"}


def test_temperature_makes_confidence_honest(lesions):
    """A quarter of the lesion is missed, an eighth of all pixels: the best temperature says 7/8 everywhere."""
    choice = choose(finder(lambda k, steps, zoom: 1), *lesions, BINARY, 3)
    assert choice.temperature == pytest.approx(4 / math.log(7), rel=0.03)  # the grid's step


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_fit_temperature_finds_the_one_that_drew_the_labels(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 4, generator=generator)
    label = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits, label) == pytest.approx(temperature, rel=0.06)  # two steps of the grid
    assert fit_temperature(logits[:0], label[:0]) == 1


def test_pixels_are_those_of_the_mask(cats):
    root, names, find = cats
    _, dog, ignored = evaluate(find, root, names, LABELS, 3)["cases"]
    assert dog["pixels"] == {"background": 0, "cat": SIDE * SIDE // 2, "dog": SIDE * SIDE // 2}
    assert set(ignored["pixels"].values()) == {0}


@pytest.mark.parametrize(("count", "taken"), [(12, False), (20, True)])
def test_what_zoom_may_cost(tmp_path, count, taken):
    """A quarter of one lesion: .021 of the mean of twelve images is too much, .0125 of twenty is not."""
    names = [write(tmp_path, f"{k:02d}", halves(255, 0), np.full((SIDE, SIDE, 3), k)) for k in range(count)]
    wrong = finder(lambda k, steps, zoom: int(zoom and k == 0))
    assert choose(wrong, tmp_path, names, BINARY, 3, steps=(0,)).zoom is taken


@pytest.mark.parametrize(("better", "steps"), [(3, 0), (12, 20)])
def test_gains_below_half_a_hundredth_are_ties(tmp_path, better, steps):
    """A pixel of 64 in three of twelve images is .0039, and twice its standard error; in all of them .0156."""
    names = [write(tmp_path, f"{k:02d}", halves(255, 255), np.full((SIDE, SIDE, 3), k)) for k in range(12)]

    def label(k, steps, zoom):
        out = halves(1, 1)
        out[0, 0] = k >= better or steps > 0
        return out

    assert choose(predictor(label), tmp_path, names, BINARY, 3, steps=(0, 20), zoom=False).steps == steps


def test_inversion_on_some_images_is_compared_with_the_same_images(lesions):
    """Nothing is to gain in the four that are tried, though there is in others."""
    find = finder(lambda k, steps, zoom: int(k % 3 > 0 and steps == 0))
    assert choose(find, *lesions, BINARY, 3, zoom=False, most=4).steps == 0


def test_distances_and_temperature_are_those_of_the_chosen_steps(tmp_path):
    names = [write(tmp_path, f"{k:02d}", halves(255, 0)) for k in range(21)]

    def find(images, steps, zoom):
        for _ in images:
            label = halves(1, 0)
            label[:, : steps == 0] = 0
            yield answer(label, 2, distance=1.0 + steps)

    choice = choose(find, tmp_path, names, BINARY, 3, steps=(0, 20), zoom=False)
    assert choice.steps == 20 and set(choice.distance_quantiles) == {21.0}
    assert choice.temperature == 0.05  # nothing is wrong with 20 steps, so no answer can be too sure


def test_a_zoom_that_is_not_taken_has_no_say_in_the_rest(lesions):
    choice = choose(finder(lambda k, steps, zoom: int(zoom)), *lesions, BINARY, 3)
    assert not choice.zoom and choice.steps == 0 and choice.temperature == 0.05
    assert choice.scores["20 steps"] == choice.scores["0 steps"] == 1
