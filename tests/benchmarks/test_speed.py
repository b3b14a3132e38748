"""The command: its JSON, its tables, its errors; and docs/speed.md, whose figures come from the JSON."""

import json
import re
import subprocess
import sys
from pathlib import Path

import commands
import counting
import pytest
import speed
import stages
import tables

from semanticgan.errors import UserError

ROOT = Path(__file__).parents[2]
RECORD_KEYS = {"ms", "images", "images_per_second", "peak_mb", "gflop_per_image"}


def python(*args):
    return subprocess.run([sys.executable, "benchmarks/speed.py", *args], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tiny(small_settings):
    """Every stage of the small settings, once, with few steps of inversion and little time for each shape alone."""
    bench = stages.preset_bench("tiny32", 1, *small_settings, "data.resolution=32", "networks.widths={4: 8, 8: 8, 16: 8, 32: 8}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "SECONDS", 0.0)
        patch.setattr(counting, "RUNS", 1)
        for name, few in (("STEPS", 2), ("PLAIN_STEPS", 1), ("PREDICTED", 8), ("PLAIN_PREDICTED", 1)):
            patch.setattr(stages, name, few)
        return stages.preset_results(bench, list(stages.PARTS))


def test_every_stage_has_its_figures(tiny):
    gan = {"data", "draw", "D_img", "D_seg", "G", "averages", "R1 of D_img", "R1 of D_seg", "path length", "training step"}
    assert set(tiny["stages"]) >= {*gan, "encoder step", "inversion step", "encoder alone", "E alone"}
    for name, stage in tiny["stages"].items():
        assert set(stage["ours"]) == {*RECORD_KEYS, "share_of_limit", "share_alone"}
        assert ("plain" in stage) == (name != "draw")
        if "plain" in stage:
            assert set(stage["plain"]) == RECORD_KEYS
            rates = [stage[design]["images_per_second"] for design in ("ours", "plain")]
            assert stage["ratio"] == pytest.approx(rates[0] / rates[1])


def test_the_training_step_is_its_parts_with_the_penalties_as_often_as_due(tiny):
    """Operations, which unlike times repeat: R1 every fourth step, the path length too."""
    counted = {name: stage["ours"]["gflop_per_image"] for name, stage in tiny["stages"].items()}
    parts = sum(counted[name] for name in ("draw", "D_img", "D_seg", "G", "averages"))
    penalties = sum(counted[name] / 4 for name in ("R1 of D_img", "R1 of D_seg", "path length"))
    assert counted["training step"] == pytest.approx(parts + penalties)


def test_the_plain_design_does_more_passes_of_G(tiny):
    ours, plain = (tiny["stages"]["training step"][design]["gflop_per_image"] for design in ("ours", "plain"))
    assert ours < plain < 2 * ours


def test_tables_show_every_stage(tiny):
    rows = [
        {"side": side, "ms_per_image": side * 0.1, "gflop_per_image": side * 0.2, "gflop_per_second": 2.0} for side in (32, 64)
    ]
    results = {
        "machine": {"cpu": "X", "cores": 2, "bf16": []}, "versions": {"torch": "2", "python": "3"}, "threads": 1, "git": "abc",
        "date": "2026-01-01", "command": "speed.py", "limit": {f"product_{name}": 150.0 for name in counting.precisions()},
        "presets": {"tiny32": tiny}, "resolution": rows,
        "packing": {"images": 10, "images_per_second": 2000.0, "anonymous_mb": 100.0},
        "first_step": {"images": 10, "seconds": 5.0}, "processes": None,
    }  # fmt: skip
    text = tables.render(json.loads(json.dumps(results)))
    assert all(tables.NAMES.get(name, name) in text for name in tiny["stages"])
    assert "| 64 px | 6.40 | 12.8 | 2.00 | x 2.00 | x 2.00 |" in text
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_tables_go_between_the_markers():
    page = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter"
    assert tables.put_between(page, "new") == f"before\n{tables.BEGIN}\n\nnew\n{tables.END}\nafter"
    with pytest.raises(UserError, match="markers"):
        tables.put_between("no markers", "new")


def test_docs_hold_the_tables_of_the_json():
    """Of one of the files in benchmarks/results, once there is one."""
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "benchmarks" / "results").glob("speed-*.json"))
    if files:
        written = [tables.put_between(page, tables.render(json.loads(f.read_text(encoding="utf-8")))) for f in files]
        assert page in written, "run: python benchmarks/speed.py --table FILE.json"


@pytest.mark.slow
def test_time_against_resolution():
    rows = stages.resolution_results((16, 32), 1)
    assert [row["side"] for row in rows] == [16, 32]
    assert rows[1]["gflop_per_image"] > rows[0]["gflop_per_image"]


@pytest.mark.slow
def test_command(tmp_path):
    """A whole small run: the keys of the JSON, the printed tables."""
    file = tmp_path / "speed.json"
    done = python("tiny32", "--repeats", "1", "--threads", "1", "--images", "60", "--sides", "32", "--json", str(file),
                  *(word for stage in ("predict", "resolution", "start") for word in ("--only", stage)))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tiny32, batch 8" in done.stdout
    results = json.loads(file.read_text(encoding="utf-8"))
    keys = {
        "machine",
        "versions",
        "threads",
        "repeats",
        "git",
        "date",
        "command",
        "load_before",
        "limit",
        "presets",
        "resolution",
    }
    assert set(results) == {*keys, "packing", "first_step"}
    assert set(results["presets"]["tiny32"]["stages"]) == {"encoder alone", "E alone"}
    assert results["packing"]["images"] == 60
    assert results["packing"]["anonymous_mb"] > 20  # torch alone has more
    assert results["first_step"]["seconds"] > 1


def test_counts_without_timing(monkeypatch):
    results = speed.run(speed.arguments(["tiny32", "--only", "count", "--threads", "1"]))
    counted = results["counted"]["tiny32"]
    assert counted["gflop_per_image"]["training step"] > counted["gflop_per_image"]["draw"] > 0
    assert set(counted["parameters"]) == {"G", "D_img", "D_seg", "E"}
    assert "limit" not in results
    assert "training step" in tables.render(results)


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["cpu65"], "cpu65: no such preset"), (["--repeats", "0"], "--repeats: got 0"), (["--only", "nothing"], "invalid choice")],
)
def test_wrong_arguments(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        speed.arguments(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_copies_fill_a_large_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "DRAWN", 4)
    commands.write_scenes(tmp_path, 10, side=16)
    paths = (tmp_path / "unlabeled.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(paths)) == 10
    assert all((tmp_path / path).is_file() for path in paths)


def test_a_run_that_ends_early_is_said(tmp_path):
    with pytest.raises(RuntimeError, match="exit code 3 before tick 1: no luck"):  # noqa: SIM117
        with commands.training([sys.executable, "-c", "print('no luck'); exit(3)"], tmp_path / "run", {}) as process:
            commands.wait_for_ticks(process, tmp_path / "run", 1)


def test_files_and_functions_stay_short():
    import ast

    for path in (ROOT / "benchmarks").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


def test_scaling_page_has_the_counted_figures():
    counted = json.loads((ROOT / "benchmarks" / "results" / "counted.json").read_text(encoding="utf-8"))["counted"]["paper256"]
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    per_image = counted["gflop_per_image"]
    for name in ("draw", "D_img", "D_seg", "G", "training step", "encoder step"):
        assert re.search(rf"\| \**{per_image[name]:.0f}\** \|", page), f"{name}: {per_image[name]:.0f} GFLOP an image"
    for net, number in counted["parameters"].items():
        assert f"{net} {number / 1e6:.1f}" in page
