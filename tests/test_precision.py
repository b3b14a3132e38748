"""bfloat16 only where the machine multiplies it itself."""

import pytest
import torch

from semanticgan.config import build_config
from semanticgan.precision import autocast, has_bf16, resolved


@pytest.fixture
def processor(monkeypatch):
    """Says what the processor is said to have."""
    has_bf16.cache_clear()
    yield lambda **known: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    has_bf16.cache_clear()


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"architecture": "arm64", "bf16": True}, "fp32"),  # not measured
    ],
)
def test_auto_asks_the_processor(processor, known, expected):
    processor(**known)
    assert resolved("auto", "cpu") == expected


def test_a_torch_that_cannot_tell_computes_in_float32(processor, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolved("auto", "cpu") == "fp32"


@pytest.mark.parametrize("supported", [True, False])
def test_auto_asks_the_gpu(processor, monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation)
    assert resolved("auto", "cuda:1") == ("bf16" if supported else "fp32")


@pytest.mark.parametrize(("chosen", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_what_is_asked_for_holds_whatever_the_processor_has(processor, chosen, dtype):
    x, layer = torch.ones(1, 1, 4, 4), torch.nn.Conv2d(1, 1, 3)
    for known in (True, False):
        processor(avx512_bf16=known)
        with autocast("cpu", "bf16"), autocast("cpu", chosen):
            assert layer(x).dtype == dtype
        has_bf16.cache_clear()


def test_every_preset_leaves_it_to_the_machine():
    assert build_config("cpu64").run.precision == "auto"
