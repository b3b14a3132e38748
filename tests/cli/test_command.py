import os
import re
import signal
import subprocess
import sys

import pytest

from semanticgan import __version__, config
from semanticgan.training import run as training_run

VERBS = [
    "check", "train", "segment", "evaluate", "sample", "distill", "convert", "export", "push", "report", "suggest", "serve",
    "import", "info", "demo", "plot",
]  # fmt: skip


def test_help_names_every_verb(command):
    done = command("--help")
    assert done.code == 0
    assert re.findall(r"^  ([a-z]+)  ", done.out.partition("Commands:")[2], re.M) == VERBS
    assert command().out == done.out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_an_example(command, verb):
    done = command(verb, "--help")
    assert done.code == 0
    assert re.search(rf"^  Example:\n    semanticgan {verb}", done.out, re.M)


def test_help_names_every_preset(command):
    text = command("train", "--help").out
    assert all(preset in text for preset in [*config.PRESETS, "auto"])


def test_version(command):
    assert command("--version").out == f"semanticgan {__version__}\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["tran"], ["tran", "train", "semanticgan --help"]),
        (["train"], ["--out", "semanticgan train --help"]),
        (["train", "--out", "x", "--nonsense"], ["--nonsense"]),
        (["train", "--out", "x", "--hours", "0"], ["--hours", "'0'", "above 0"]),
        (["train", "--out", "x", "--hours", "two"], ["--hours", "'two'"]),
        (["train", "--out", "x", "--hours", "inf"], ["--hours", "'inf'"]),
        (["train", "--out", "x", "--seed", "-1"], ["--seed", "'-1'", "from 0 to"]),
        (["train", "--out", "x", "--seed", "1.5"], ["--seed", "'1.5'", "whole number"]),
        (["train", "--out", "x", "--seed", "9" * 30], ["--seed"]),
        (["sample", "m", "--num", "0", "--out", "x"], ["--num", "'0'", "from 1 to"]),
        (["sample", "m", "--num", str(2**63), "--out", "x"], ["--num", f"'{2**63}'", f"from 1 to {2**63 - 1}"]),
        (["sample", "m", "--num", "-3", "--out", "x"], ["--num", "'-3'"]),
        (["sample", "m", "--num", "3", "--out", "x", "--truncation-psi", "nan"], ["--truncation-psi", "'nan'"]),
        (["segment", "m"], ["IMAGE_OR_DIR"]),
        (["segment", "m", "i.png"], ["--out"]),
        (["segment", "m", "i.png", "--out", "x", "--steps", "-1"], ["--steps", "'-1'"]),
        (["segment", "m", "i.png", "--out", "x", "--batch", "0"], ["--batch", "'0'"]),
        (["evaluate", "m", "--data", "d"], ["--list"]),
        (["demo", "--minutes", "-1"], ["--minutes", "'-1'"]),
        (["info"], ["MODEL_OR_RUN"]),
    ],
)
def test_usage_errors_are_one_line(refused, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    text = refused(*args)
    assert all(word in text for word in words), text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "tpu"])
def test_unusable_device(refused, model_folder, tmp_path, device):
    assert device in refused("sample", model_folder, "--num", 1, "--out", tmp_path / "x", "--device", device)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_training_tells_the_shell(command, monkeypatch, signum, code):
    def train(**options):
        raise training_run.Interrupted(signum)

    monkeypatch.setattr("semanticgan.training.stages.train", train)
    assert command("train", "--out", "x").code == code


def test_interrupted_elsewhere(command, monkeypatch):
    def describe(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("semanticgan.cli.card.describe", describe)
    assert command("info", "x").code == 130


def test_defects_keep_their_traceback(command, monkeypatch):
    def describe(name):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("semanticgan.cli.card.describe", describe)
    with pytest.raises(ZeroDivisionError):
        command("info", "x")


def test_exit_code_reaches_the_shell():
    done = subprocess.run([sys.executable, "-m", "semanticgan", "info"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_names_that_are_no_utf8_are_printed(data):
    for folder in ("images", "masks"):
        os.rename(data / folder / "00.png", os.path.join(os.fsencode(data / folder), b"\xe9.png"))
    words = [sys.executable, "-m", "semanticgan", "check", str(data)]
    done = subprocess.run(words, capture_output=True, cwd=data.parent, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert done.returncode == 0 and done.stderr == b""
