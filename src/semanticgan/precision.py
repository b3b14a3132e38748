"""In which numbers the networks compute: bfloat16 where the device has instructions for it, else float32."""

from functools import cache
from typing import Literal

import torch

from semanticgan.config import Precision

INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # of x86 processors


@cache
def has_bf16(device_type: str) -> bool:
    """Can a device of this type ("cpu", "cuda") multiply bfloat16 itself?

    A processor that cannot takes eleven times as long for it as for float32 (docs/speed.md). Kinds on which nobody has
    measured it count as such.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in INSTRUCTIONS)


def resolved(precision: Precision, device: torch.device | str) -> Literal["bf16", "fp32"]:
    """What "auto" stands for on the device; the others stand for themselves."""
    if precision == "auto":
        return "bf16" if has_bf16(torch.device(device).type) else "fp32"
    return precision


def autocast(device: torch.device | str, precision: Precision = "auto") -> torch.autocast:
    """bfloat16 inside for "bf16", float32 for "fp32", whatever holds outside."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=resolved(precision, device) == "bf16")
