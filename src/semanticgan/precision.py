"""In which numbers the networks compute: bfloat16 where the device has instructions for it, else float32."""

from functools import cache
from typing import Literal

import torch

from semanticgan.config import Precision

INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # of x86 processors


def bf16_instructions() -> list[str]:
    """Those for bfloat16 that the processor has, and that pay; none where torch is too old to say."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return [name for name in INSTRUCTIONS if known.get(name)]


@cache
def has_bf16(device_type: str) -> bool:
    """Can a device of this type ("cpu", "cuda") multiply bfloat16 itself?

    A processor that cannot takes nineteen times as long for it as for float32 (docs/speed.md). Kinds on which nobody has
    measured it count as such.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and bool(bf16_instructions())


def resolved(precision: Precision, device: torch.device | str) -> Literal["bf16", "fp32"]:
    """What "auto" stands for on the device; the others stand for themselves."""
    if precision == "auto":
        return "bf16" if has_bf16(torch.device(device).type) else "fp32"
    return precision


def autocast(device: torch.device | str, precision: Precision = "auto") -> torch.autocast:
    """bfloat16 inside for "bf16", float32 for "fp32", whatever holds outside."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=resolved(precision, device) == "bf16")
