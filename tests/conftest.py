"""Fixtures that several parts share: a folder of drawn scenes, small settings, and one thread."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests run beside each other, and repeat bit for bit

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SMALL = (
    "data.resolution=16", "networks.z_dim=16", "networks.w_dim=16", "networks.widths={4: 16, 8: 16, 16: 16}",
    "networks.d_seg_filters=8", "networks.encoder_widths=[16, 16]",
    "gan.kimg=0.064", "gan.batch=8", "gan.r1_every=4", "gan.pl_weight=1", "gan.ada_kimg=0.2", "gan.ada_target=0.1",
    "encoder.kimg=0.048", "encoder.batch=12", "run.tick_kimg=0.024", "run.checkpoint_minutes=0",
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Packed images go to a folder of the test session, in child processes too."""
    os.environ["SEMANTICGAN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def small_settings() -> tuple[str, ...]:
    """Changes to tiny32 that make both stages last about a second each."""
    return SMALL


@pytest.fixture(scope="session")
def small_config():
    """Build the small config, with more `section.field=value` changes."""
    from semanticgan.config import build_config

    return lambda *overrides: build_config("tiny32", ["data.channels=3", *SMALL, *overrides])


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: 24 unlabelled, 8 labelled and 4 validation images, their lists, classes.json."""
    from semanticgan.data.synthetic import write_dataset

    root = tmp_path_factory.mktemp("scenes")
    write_dataset(root, size=16, unlabeled=24, labeled=8, val=4, test=0)
    return root


@pytest.fixture(scope="session")
def small_data():
    """The same kind of scenes as arrays: training data and validation data."""
    from semanticgan.data.synthetic import draw_scene
    from semanticgan.training.gan import TrainingData, ValidationData

    images, labels = (np.stack(arrays) for arrays in zip(*(draw_scene(seed, "a", 16) for seed in range(24)), strict=True))
    return TrainingData(images, images[:8], labels[:8]), ValidationData(images[8:12], labels[8:12])


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Any, Any], None]:
    """Compare nested dicts, lists and tensors bit for bit; keys in `but` are left out."""
    import torch

    def compare(a: Any, b: Any, but: tuple[str, ...] = (), where: str = "") -> None:
        assert type(a) is type(b), where
        if isinstance(a, Mapping):
            assert a.keys() == b.keys(), where
            for key in a:
                if key not in but:
                    compare(a[key], b[key], but, f"{where}.{key}")
        elif isinstance(a, list | tuple):
            assert len(a) == len(b), where
            for k, (x, y) in enumerate(zip(a, b, strict=True)):
                compare(x, y, but, f"{where}[{k}]")
        elif isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), where
        else:
            assert a == b, where

    return compare
