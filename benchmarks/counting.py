"""Counted operations, what they would take alone, and the machine's limit.

Counted are convolutions and matrix products, a multiplication and an addition as two operations. Filters of one channel
at a time (the blurs) are done work too, but no convolution the machine is fast at: they are left out.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from semanticgan.config import Config
from semanticgan.precision import has_bf16

aten = torch.ops.aten
SECONDS, RUNS = 0.02, 5  # spent at least on each shape of which the best time is wanted


@dataclass(frozen=True)
class Convolution:
    """One call: a pass forward, or backward to the input, the weight or both."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    out: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    dtype: torch.dtype
    backward: tuple[bool, bool] | None  # to input and weight; None: forward

    @property
    def operations(self) -> int:
        """Each pass costs what the forward one does: every weight meets every place of the output, or input if transposed."""
        places = math.prod((self.x if self.transposed else self.out)[2:]) * self.x[0]
        return 2 * places * math.prod(self.weight) * (1 if self.backward is None else sum(self.backward))

    @property
    def is_blur(self) -> bool:
        """One channel in, one out, in each group."""
        return self.weight[1] == 1 and self.weight[0] == self.groups

    def call(self, layout: torch.memory_format) -> Callable[[], Any]:
        """The same call on random numbers."""

        def tensor(shape: tuple[int, ...]) -> torch.Tensor:
            t = torch.randn(shape).to(self.dtype)
            return t.contiguous(memory_format=layout) if len(shape) == 4 else t

        x, weight, out = tensor(self.x), tensor(self.weight), tensor(self.out)
        geometry = (self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups)
        if self.backward is None:
            return lambda: aten.convolution(x, weight, None, *geometry)
        return lambda: aten.convolution_backward(out, x, weight, None, *geometry, [*self.backward, False])


@dataclass(frozen=True)
class Product:
    """A matrix product, or a batch of them: [..., n, k] by [..., k, m]."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    dtype: torch.dtype
    is_blur = False

    @property
    def operations(self) -> int:
        return 2 * math.prod(self.a) * self.b[-1]

    def call(self, layout: torch.memory_format) -> Callable[[], Any]:
        a, b = (torch.randn(shape).to(self.dtype) for shape in (self.a, self.b))
        return lambda: torch.matmul(a, b)


Operation = Convolution | Product
# Products by the places of their two factors among the arguments.
PRODUCTS = {aten.mm: (0, 1), aten.bmm: (0, 1), aten.addmm: (1, 2), aten.baddbmm: (1, 2)}


class Counting(TorchDispatchMode):
    """Counts the operations inside by kind and shape, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Operation] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        packet = function.overloadpacket
        if packet in PRODUCTS:
            a, b = (args[k] for k in PRODUCTS[packet])
            self.calls[Product(tuple(a.shape), tuple(b.shape), a.dtype)] += 1
        elif packet in (aten.convolution, aten._convolution):
            x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args[:9]
            self.add(x, weight, result, (stride, padding, dilation, transposed, output_padding, groups), None)
        elif packet is aten.convolution_backward:
            grad, x, weight, _, *geometry, mask = args
            self.add(x, weight, grad, tuple(geometry), (bool(mask[0]), bool(mask[1])))
        return result

    def add(self, x: Any, weight: Any, out: Any, geometry: tuple[Any, ...], backward: tuple[bool, bool] | None) -> None:
        stride, padding, dilation, transposed, output_padding, groups = geometry
        shapes = tuple(x.shape), tuple(weight.shape), tuple(out.shape)
        steps = tuple(stride), tuple(padding), tuple(dilation), bool(transposed), tuple(output_padding), int(groups)
        self.calls[Convolution(*shapes, *steps, x.dtype, backward)] += 1


def operations(calls: dict[Operation, float]) -> float:
    """All but the blurs' operations."""
    return sum(count * op.operations for op, count in calls.items() if not op.is_blur)


def best_seconds(call: Callable[[], Any]) -> float:
    """The quickest of RUNS or more, after a warm-up."""
    call()
    best, runs, began = math.inf, 0, time.perf_counter()
    while runs < RUNS or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        call()
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return best


class Alone:
    """What operations take by themselves: each shape's best time, in the better of both layouts, measured once."""

    def __init__(self) -> None:
        self.times: dict[Hashable, float] = {}

    @torch.no_grad()
    def one(self, op: Operation) -> float:
        if op not in self.times:
            layouts = (
                (torch.channels_last, torch.contiguous_format) if isinstance(op, Convolution) else (torch.contiguous_format,)
            )
            self.times[op] = min(best_seconds(op.call(layout)) for layout in layouts)
        return self.times[op]

    def seconds(self, calls: dict[Operation, float]) -> float:
        """The sum over all calls but the blurs."""
        return sum(count * self.one(op) for op, count in calls.items() if not op.is_blur)


# ---------------------------------------------------------------- the machine's limit


def precisions() -> dict[str, torch.dtype]:
    """Those that the processor multiplies itself: an emulated one is used nowhere, and would take minutes to measure."""
    return ({"bf16": torch.bfloat16} if has_bf16("cpu") else {}) | {"fp32": torch.float32}


def product_limits(side: int = 2048) -> dict[str, float]:
    """Billion operations a second of a large product."""
    rates = {}
    for name, dtype in precisions().items():
        product = Product((side, side), (side, side), dtype)
        rates[f"product_{name}"] = product.operations / best_seconds(product.call(torch.contiguous_format)) / 1e9
    return rates


def convolution_limits(config: Config) -> dict[str, Any]:
    """Billion operations a second of 3x3 convolutions at G's sides, widths and batch, channels-last.

    For each of `precisions`, forward and forward + backward: over all sides together (all operations / all time), and each side.
    """
    n, sides = config.gan.batch, [side for side in sorted(config.networks.widths) if side <= config.data.resolution]
    limits: dict[str, Any] = {}
    for name, dtype in precisions().items():
        for direction in ("forward", "forward_backward"):
            counts, times = [], []
            for side in sides:
                width = config.networks.widths[side]
                x, weight, one = (n, width, side, side), (width, width, 3, 3), (1, 1)
                calls = [Convolution(x, weight, x, one, one, one, False, (0, 0), 1, dtype, None)]
                if direction == "forward_backward":
                    calls.append(Convolution(x, weight, x, one, one, one, False, (0, 0), 1, dtype, (True, True)))
                counts.append(sum(call.operations for call in calls))
                times.append(sum(best_seconds(call.call(torch.channels_last)) for call in calls))
            limits[f"convolution_{name}_{direction}"] = sum(counts) / sum(times) / 1e9
            limits[f"convolution_{name}_{direction}_by_side"] = {
                str(side): count / seconds / 1e9 for side, count, seconds in zip(sides, counts, times, strict=True)
            }
    return limits


def better_limits(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The higher of each two rates: a clock that drifts must not lower the limit."""
    return {key: better_limits(a[key], b[key]) if isinstance(a[key], dict) else max(a[key], b[key]) for key in a}
