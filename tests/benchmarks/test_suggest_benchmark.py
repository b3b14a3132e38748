"""The comparison of `suggest` with chance: which images each cell labels, what G forgets, what stands in the table."""

import json
from pathlib import Path

import pytest
import suggest
import tables
import torch

from semanticgan.labels import LabelSpec
from semanticgan.training.checkpoint import load_checkpoint, save_stage
from semanticgan.training.gan import new_gan_state

LABELS = LabelSpec(names=("background", "blob"), palette=((0, 0, 0), (230, 159, 0)))


@pytest.fixture
def data(tmp_path) -> Path:
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "train_all.txt").write_text("".join(f"images/{k}.jpg\n" for k in range(300)))
    for draw in suggest.DRAWS:
        (splits / f"train_200_seed{draw}.txt").write_text("".join(f"images/{k}.jpg\n" for k in range(draw, 200 + draw)))
    return tmp_path


def test_what_each_cell_labels(data):
    seen = set()
    for cell in suggest.CELLS:
        known, free = suggest.labeled_at_start(data, cell), suggest.pool(data, cell)
        assert len(set(known)) == cell.labels and len(free) == 300 - cell.labels and not set(known) & set(free)
        assert set(known) <= set((data / f"splits/train_200_seed{cell.draw}.txt").read_text().split())
        chosen = suggest.at_random(data, cell)
        assert len(set(chosen)) == suggest.ADDED and set(chosen) <= set(free) and chosen == suggest.at_random(data, cell)
        assert known == suggest.labeled_at_start(data, cell.start)
        seen.add(tuple(chosen))
    assert len(seen) == len(suggest.BUDGETS) * len(suggest.DRAWS)
    first, more = (suggest.labeled_at_start(data, suggest.Cell(n, 0, "start")) for n in suggest.BUDGETS)
    assert set(first) < set(more)


def test_g_forgets_the_labels_alone(small_config, tmp_path):
    config = small_config()
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(
        json.dumps({"config": config.model_dump(mode="json"), "labels": LABELS.model_dump(mode="json")})
    )
    state = new_gan_state(config, 2, 3, "cpu")
    with torch.no_grad():
        for net in ("G", "G_ema", "D_img", "D_seg"):
            for parameter in state.members[net].parameters():
                parameter.add_(1)
    path = save_stage(run, "gan", 64, state.state_dict())
    suggest.write_base(run, tmp_path / "base")
    old = load_checkpoint(path)["members"]
    new = load_checkpoint(tmp_path / "base" / "checkpoints" / "gan-000000000.pt")["members"]
    for net in ("G", "G_ema", "D_img"):
        differs = {key for key in old[net] if not torch.equal(old[net][key], new[net][key])}
        assert differs == {key for key in old[net] if ".to_seg." in key}
    assert not any(torch.equal(new["D_seg"][key], old["D_seg"][key]) for key, _ in state.D_seg.named_parameters())


def result(iou: float) -> dict:
    return {"scores": {name: {"mean": {"iou": {"background": 0.9, "lesion": iou}}} for name in suggest.LISTS}}


def test_table_shows_whole_draws():
    ious = {"start": 0.5, "random": 0.6, "suggest": 0.65}
    results = {suggest.Cell(20, d, way): result(iou + 0.1 * d * (way == "suggest")) for d in (0, 1) for way, iou in ious.items()}
    results[suggest.Cell(20, 2, "start")] = results[suggest.Cell(80, 0, "start")] = result(0.1)  # not whole
    lines = suggest.render(results).splitlines()
    assert len(lines) == 2 + 4
    assert lines[2] == "| 20 | 0.500 (0.500, 0.500) | 0.500 (0.500, 0.500) |"
    assert lines[5].startswith("| suggested - random | +0.100 ± 0.050 (+0.050, +0.150) |")
    assert suggest.render({}) == ""


def test_page_holds_the_results():
    """docs/suggest.md has its markers, and between them what the results say, once there are any."""
    page = suggest.PAGE.read_text(encoding="utf-8")
    text = suggest.render(suggest.read_results(suggest.RESULTS))
    if text:
        assert tables.put_between(page, text, *tables.markers("suggest.py --table"), suggest.PAGE.name) == page
    else:
        assert all(marker in page for marker in tables.markers("suggest.py --table"))


@pytest.mark.parametrize("argv", [[], ["--data", "x"], ["--data", "x", "--run", "y", "--only", "nothing"]])
def test_wrong_options(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        suggest.arguments(argv)
    assert stop.value.code == 2 and capsys.readouterr().err
