"""The report of runs and evaluations: what it says, that it stands alone, and what it leaves out."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from semanticgan.config import ModelConfig
from semanticgan.errors import UserError
from semanticgan.evaluation import evaluate
from semanticgan.model import SemanticGAN, build_networks
from semanticgan.report import verdict, worst_and_median, write_report
from semanticgan.scores import Scores
from semanticgan.visuals import ERRORS, error_map, save_png

EVIL = '<script>alert("&amp;")</script>'


class Parsed(HTMLParser):
    """Tags that do not pair, and everything that names another file."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.tags, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag not in ("meta", "img", "polyline", "polygon", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(path):
    """The page as parsed, after it has been found to stand alone."""
    text = path.read_text(encoding="utf-8")
    page = Parsed(text)
    assert not page.open and "script" not in page.tags
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"https?://|@import|url\(", text) and "prefers-color-scheme: dark" in text and "viewport" in text
    assert len(text) < 3_000_000
    return page


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_config, scenes):
    """A run folder as training leaves it, with a model of random weights."""
    folder = tmp_path_factory.mktemp("run")
    config = small_config()
    names = [line for name in ("labeled", "val") for line in (scenes / f"{name}.txt").read_text().splitlines()]
    from semanticgan.data.synthetic import LABELS

    lists = {"labeled": names[:8], "unlabeled": names, "val": names}
    for name, paths in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{p}\n" for p in paths))
    plan = {"command": f"semanticgan train --data {EVIL}", "data": str(scenes), "hours": None, "device": "cpu",
            "start_from": None, "notes": ["colour", EVIL], "labels": LABELS.model_dump(mode="json"),
            "config": config.model_dump(mode="json"),
            "versions": {"semanticgan": "1"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(plan))
    lines = [{"stage": s, "kimg": k / 2, "seconds": 1, "images_per_second": 5, "loss": 1 / (k + 1),
              "val_iou": None if k < 2 else 0.5}
             for s in ("gan", "encoder") for k in range(6)]  # fmt: skip
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "enc')
    for k in range(7):
        save_png(folder / "samples" / f"gan-{k:09d}.png", np.full((20, 30, 3), 30 * k, np.uint8))
    (folder / "samples" / "encoder-000000007.png").write_bytes(b"half")
    settings = ModelConfig(labels=LABELS, data=config.data, networks=config.networks, inversion=config.inversion, views=False)
    model = SemanticGAN(settings, *build_networks(settings))
    model.save(folder / "model", "card")
    scores = evaluate(model.find, scenes, names, LABELS, 3)
    (folder / "validation.json").write_text(json.dumps(scores))
    return folder


def test_a_finished_run(finished, tmp_path):
    page = read(write_report(finished, tmp_path / "a" / "r.html"))
    for words in ("What was trained on what", "Curves", "Samples over time", "Scores", "worst", "median", "distance warn", EVIL):
        assert words in page.text, words
    assert "Without pictures" not in page.text and "Not finished" not in page.text
    assert len(page.sources) == 4 + 8  # samples, cases
    assert page.tags.count("svg") == 2 * 3 + 2
    assert write_report(finished) == finished / "report.html"


def test_an_unfinished_run(finished, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "labeled.txt", "unlabeled.txt", "val.txt"):
        (run / name).write_bytes((finished / name).read_bytes())
    page = read(write_report(run))
    assert "--resume" in page.text and "before its first tick" in page.text and not page.sources


def test_a_run_whose_images_are_gone(finished, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        write_report(finished, tmp_path / "r.html", data=tmp_path / "gone")
    assert not (tmp_path / "r.html").exists()
    plan = json.loads((finished / "config.json").read_text()) | {"data": str(tmp_path / "gone")}
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    for path in (p for p in finished.rglob("*") if p.is_file()):
        (run / path.relative_to(finished)).parent.mkdir(exist_ok=True)
        (run / path.relative_to(finished)).write_bytes(path.read_bytes())
    (run / "config.json").write_text(json.dumps(plan))
    assert "Without pictures" in read(write_report(run)).text


def test_an_evaluation_with_and_without_pictures(finished, scenes, tmp_path):
    path = tmp_path / "scores.json"
    content = json.loads((finished / "validation.json").read_text())
    path.write_text(json.dumps({"model": "owner/name", "list": EVIL, "steps": 0, "views": False, "zoom": False, **content}))
    page = read(write_report(path))
    assert "semanticgan report" in page.text and "evaluate owner/name --data DATA" in page.text and not page.sources
    page = read(write_report(path, tmp_path / "r.html", str(finished), scenes))
    assert len(page.sources) == 8
    named = {"model": str(finished / "model"), "data": str(scenes)}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    assert len(read(write_report(path)).sources) == 8


def test_scores_of_another_model_are_not_shown_with_its_pictures(finished, scenes, tmp_path):
    content = json.loads((finished / "validation.json").read_text())
    for case in content["cases"]:
        case["iou"] = {name: None if value is None else 1 - value / 2 for name, value in case["iou"].items()}
    (tmp_path / "scores.json").write_text(json.dumps({"model": "x", "list": "x", "steps": 0, **content}))
    with pytest.raises(UserError, match=r"miss the IoUs of the file by .* model or images have changed: evaluate again"):
        write_report(tmp_path / "scores.json", tmp_path / "r.html", str(finished), scenes)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"num_images": 1, "mean": 3}', "[" * 100_000, '{"cases": NaN}'])
def test_other_files_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"x\.json: .*evaluate --json$") as error:
        write_report(path)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == [path]
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read as a run") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)


def test_plain_words_about_the_distance():
    random = np.random.default_rng(0)
    score, noise = random.uniform(size=200), random.normal(size=200)
    assert verdict(score, -score + 0.01 * noise).startswith("Yes:")
    assert verdict(score, noise).startswith("Not here:")
    assert verdict(score, score + 0.1 * noise).startswith("No, the other way round:")
    assert verdict(score, -score + 0.5 * noise).startswith("In part:")
    assert verdict(score, np.ones(200)).startswith("Not here:")


@pytest.mark.parametrize(("count", "median"), [(3, []), (5, []), (7, [4]), (8, [4, 5]), (12, [4, 5, 6, 7]), (21, [8, 9, 10, 11])])
def test_the_median_cases_lie_round_the_middle(finished, count, median):
    case = Scores.read(finished / "validation.json").cases[0]
    cases = [case.model_copy(update={"image": str(k), "iou": {"bg": 1.0, "a": k / 100}}) for k in range(count)]
    nothing = case.model_copy(update={"iou": {"bg": 1.0, "a": None}})
    groups = worst_and_median([nothing, *cases[::-1]])
    assert [c.image for c in groups["worst"]] == [str(k) for k in range(min(4, count))]
    assert [c.image for c in groups["median"]] == [str(k) for k in median]


def test_foreground_score_of_a_case(finished):
    scores = Scores.read(finished / "validation.json")
    case = scores.cases[0].model_copy(update={"iou": {"bg": 0.9, "a": 0.5, "b": None, "c": 0.1}})
    assert case.foreground_iou == pytest.approx(0.3)
    assert math.isnan(case.model_copy(update={"iou": {"bg": 1.0, "a": None}}).foreground_iou)
    with pytest.raises(UserError, match="expected one of miou, accuracy, iou:background"):
        scores.of("iou:dragon")


def test_error_map():
    truth = np.array([[0, 0, 1, 1, 2, 255]])
    label = np.array([[0, 1, 0, 1, 1, 0]])
    found = error_map(np.zeros((1, 6, 1), np.uint8), truth, label)[0]
    assert found.tolist() == [[128] * 3, list(ERRORS["too much"]), list(ERRORS["missed"]), [128] * 3,
                              list(ERRORS["another class"]), [255] * 3]  # fmt: skip
