import json
import signal
import subprocess
import sys
import time

import pytest

TINY = (
    "--preset", "tiny32", "--device", "cpu", "--set", "data.resolution=16", "--set", "networks.widths={4: 16, 8: 16, 16: 16}",
    "--set", "networks.encoder_widths=[16, 32]", "--set", "networks.d_seg_filters=8", "--set", "gan.batch=8",
    "--set", "gan.kimg=0.08", "--set", "encoder.kimg=0.06", "--set", "encoder.batch=6", "--set", "run.tick_kimg=0.02",
    "--set", "predict.steps=0",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMANTICGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_dry_run_says_all_and_writes_nothing(command, data, tmp_path):
    done = command("train", "--data", data, "--out", tmp_path / "run", *TINY, "--dry-run")
    assert (done.code, done.errors) == (0, [])
    for words in ("6 of them labelled", "2 for validation", "tiny32", "16 px", "G 0", "kimg", "nothing was written"):
        assert words in done.out, (words, done.out)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_from_images_to_scores(command, refused, data, tmp_path):
    """The commands of the README in a row, and that a run refuses to become another one."""
    run = tmp_path / "run"
    done = command("train", "--data", data, "--out", run, *TINY, "--seed", 1)
    assert (done.code, done.errors) == (0, [])
    assert {"config.json", "log.txt", "stats.jsonl", "samples", "checkpoints", "model"} <= {p.name for p in run.iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= {p.name for p in (run / "model").iterdir()}
    stats = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert {"stage", "kimg", "images_per_second"} <= set(stats[0]) and {s["stage"] for s in stats} == {"gan", "encoder"}
    assert "blob" in command("info", run).out
    assert command("evaluate", run, "--data", data, "--list", run / "val.txt", "--json", tmp_path / "scores.json").code == 0
    assert json.loads((tmp_path / "scores.json").read_text())["num_images"] == 2
    assert command("segment", run, data, "--out", tmp_path / "found", "--steps", 0).code == 0
    assert len(list((tmp_path / "found" / "masks").rglob("*.png"))) == 20
    assert command("sample", run, "--num", 2, "--out", tmp_path / "drawn").code == 0
    for args in (("--set", "gan.kimg=9"), ("--seed", 2), ("--hours", 3), ("--preset", "cpu64"), ("--data", tmp_path)):
        assert args[0] in refused("train", "--out", run, "--resume", "--device", "cpu", *args)
    done = command("train", "--data", data, "--out", tmp_path / "more", *TINY, "--from", run)
    assert (done.code, done.errors) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_run_goes_on(command, data, tmp_path, signum, code):
    run = tmp_path / "run"
    args = ["train", "--data", str(data), "--out", str(run), *TINY, "--set", "gan.kimg=0.3", "--set", "run.checkpoint_minutes=0"]
    with subprocess.Popen(
        [sys.executable, "-m", "semanticgan", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not list(run.glob("checkpoints/gan-*.pt")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signum)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == code, (output, errors)
    assert errors == ""
    assert not (run / "model").exists()
    assert "--resume" in command("info", run).out
    if signum != signal.SIGKILL:
        assert f"semanticgan train --out {run} --resume" in output
    done = command("train", "--out", run, "--resume", "--device", "cpu")
    assert (done.code, done.errors) == (0, []) and "goes on from" in done.out
    assert (run / "model" / "model.safetensors").is_file()
