"""A tiny model, a data folder of drawn scenes, and the page's server: in this process, or on a port of its own."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from semanticgan.config import DataConfig, ModelConfig, NetworkConfig
from semanticgan.data.synthetic import LABELS, draw_scene
from semanticgan.model import SemanticGAN, build_networks

SIDE = 48


@pytest.fixture(scope="session")
def model() -> SemanticGAN:
    """16 px, random weights, the scenes' four classes."""
    config = ModelConfig(
        labels=LABELS,
        data=DataConfig(resolution=16, channels=3),
        networks=NetworkConfig(
            z_dim=8, w_dim=8, mapping_layers=1, widths={4: 8, 8: 8, 16: 8}, encoder_trunk="residual", encoder_widths=(8, 8)
        ),
        inversion={"patience": 1000},
        views=True,
        distance_quantiles=tuple(k / 20 for k in range(21)),
        versions={"semanticgan": "0.1.0"},
    )
    torch.manual_seed(0)
    return SemanticGAN(config, *build_networks(config))


@pytest.fixture
def data(tmp_path) -> Path:
    """Ten scenes below images/, four of them with masks."""
    root = tmp_path / "data"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for k in range(10):
        img, label = draw_scene(k, "a", SIDE)
        Image.fromarray(img).save(root / "images" / f"{k:02d}.png")
        if k < 4:
            mask = Image.fromarray(label)
            mask.putpalette(LABELS.palette_bytes())
            mask.save(root / "masks" / f"{k:02d}.png")
    classes = [{"name": name, "color": colour} for name, colour in zip(LABELS.names, LABELS.palette, strict=True)]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": 255}))
    return root


@pytest.fixture
def app(model, data):
    from semanticgan.web.app import build_app
    from semanticgan.web.folder import DataFolder

    return build_app(model, "tiny", DataFolder(data, model.labels, 3))


@contextmanager
def _visiting(app, base_url="http://localhost"):
    from fastapi.testclient import TestClient

    with TestClient(app, base_url=base_url) as found:
        found.headers["x-start"] = found.get("/api/about").json()["start"]
        yield found


@pytest.fixture
def visiting():
    """An app -> a client that has read of which start its server is, as the page does."""
    return _visiting


@pytest.fixture
def client(app):
    with _visiting(app, "http://127.0.0.1:8765") as found:
        yield found


@pytest.fixture
def server(app):
    """The page on a port of its own: http://127.0.0.1:PORT."""
    import uvicorn

    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [place]})
        thread.start()
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
        running.should_exit = True
        thread.join()
