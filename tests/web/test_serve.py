"""`semanticgan serve`: it starts, says where, and ends; what is wrong is said in one line."""

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
from urllib.request import urlopen

import pytest

pytest.importorskip("fastapi", reason="the page needs fastapi and uvicorn: pip install 'semanticgan[app]'")

from semanticgan.cli.main import run


@pytest.fixture
def folder(model, tmp_path):
    model.save(tmp_path / "model", "card")
    return tmp_path / "model"


def refused(capsys, *args):
    assert run(["serve", *map(str, args)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_wrong_starts(capsys, folder, data, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port}" in refused(capsys, folder, "--port", port)
    assert "got '70000', expected a whole number from 0 to 65535" in refused(capsys, folder, "--port", 70000)
    assert "no such folder" in refused(capsys, folder, "--data", tmp_path / "nowhere")
    (data / "images").rename(data / "pictures")
    assert "images" in refused(capsys, folder, "--data", data)


def test_without_the_extra(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'semanticgan[app]'" in refused(capsys, "model")


@pytest.mark.slow
def test_serves_until_interrupted(folder, data):
    command = [sys.executable, "-m", "semanticgan", "serve", str(folder), "--data", str(data), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        with urlopen(f"{address}/api/about", timeout=30) as response:
            assert json.load(response)["data"]["root"] == str(data)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
