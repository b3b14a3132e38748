import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from small_scenes import add_pair

from semanticgan.cli.main import run
from semanticgan.config import DataConfig, ModelConfig, NetworkConfig
from semanticgan.labels import LabelSpec


class Done(NamedTuple):
    code: int
    out: str
    errors: list[str]  # lines on stderr


@pytest.fixture
def command(capsys):
    """Run a command line in this process."""

    def call(*args) -> Done:
        capsys.readouterr()
        code = run([str(a) for a in args])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err.splitlines())

    return call


@pytest.fixture
def refused(command):
    """Run a command line that must fail in the user's terms; returns what it said."""

    def call(*args, lines: int | None = 1) -> str:
        done = command(*args)
        text = "\n".join(done.errors)
        assert done.code == 2, (done.code, done.out, text)
        assert done.errors and all(line.startswith("error: ") for line in done.errors), text
        assert "Traceback" not in text
        assert lines is None or len(done.errors) == lines, text
        return text

    return call


@pytest.fixture
def data(tmp_path) -> Path:
    """Eight labelled and twelve unlabelled images with a classes.json."""
    root = tmp_path / "data"
    for k in range(20):
        add_pair(root, f"{k:02d}", k, masked=k < 8)
    classes = [{"name": "background", "color": [0, 0, 0]}, {"name": "blob", "color": [230, 159, 0]}]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": 255}))
    return root


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A 16 px model with random weights."""
    from semanticgan.model import SemanticGAN, build_networks

    config = ModelConfig(
        labels=LabelSpec(names=("background", "blob"), palette=((0, 0, 0), (230, 159, 0))),
        data=DataConfig(resolution=16, channels=3),
        networks=NetworkConfig(z_dim=8, w_dim=8, mapping_layers=1, widths={4: 8, 8: 8, 16: 8}, encoder_widths=(8, 8)),
        inversion={},
        views=False,
        distance_quantiles=tuple(k / 20 for k in range(21)),
        versions={"semanticgan": "0.1.0"},
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "small"
    SemanticGAN(config, *build_networks(config)).save(folder, "# small\n\nRandom weights.\n")
    return folder
