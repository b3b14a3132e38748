"""Time, memory and operations of the named parts of a step; parts may lie within each other."""

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from counting import Counting, Operation

Part = Callable[[str], AbstractContextManager[None]]  # with part("D_img"): ...
Step = Callable[[Part], None]


class Timer:
    """Seconds of every run of every part."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)


class Memory:
    """Each part's peak of resident memory over what was resident before the step, in bytes.

    Linux keeps the peak (VmHWM in /proc/self/status) and sets it back on demand. Free memory goes back to the system
    first, so that what an earlier step left does not hide this one's need. Nothing is recorded where that is not to be had.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._open: list[list[int]] = []  # base and peak so far of the parts we are in
        try:
            self._trim: Callable[[int], int] | None = ctypes.CDLL(None).malloc_trim
            Path("/proc/self/clear_refs").write_text("5")
        except (OSError, AttributeError):
            self._trim = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if self._trim is None:
            yield
            return
        self._fold()
        self._trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
        now = resident("VmRSS")
        self._open.append([self._open[0][0] if self._open else now, now])
        yield
        self._fold()
        base, peak = self._open.pop()
        self.peaks[name] = peak - base

    def _fold(self) -> None:
        for entry in self._open:
            entry[1] = max(entry[1], resident("VmHWM"))


def resident(field_name: str, process: int | str = "self") -> int:
    """A field of /proc/PID/status in bytes: VmRSS, VmHWM or RssAnon."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field_name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field_name)


class Operations:
    """Each part's operations."""

    def __init__(self, counting: Counting) -> None:
        self.counting = counting
        self.calls: dict[str, Counter[Operation]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        before = self.counting.calls.copy()
        yield
        self.calls[name] = self.counting.calls - before


@dataclass
class Record:
    """One part of a step: median seconds, peak bytes, operations."""

    seconds: float
    peak: int | None
    calls: dict[Operation, float] = field(default_factory=dict)

    def __add__(self, other: "Record") -> "Record":
        """One after the other."""
        calls = {op: self.calls.get(op, 0) + other.calls.get(op, 0) for op in {*self.calls, *other.calls}}
        peaks = [peak for peak in (self.peak, other.peak) if peak is not None]
        return Record(self.seconds + other.seconds, max(peaks, default=None), calls)

    def __mul__(self, share: float) -> "Record":
        """As much as it costs when done only now and then."""
        return Record(self.seconds * share, self.peak, {op: count * share for op, count in self.calls.items()})

    def __sub__(self, other: "Record") -> "Record":
        """What it costs more than `other`; the peak is its own."""
        calls = {op: count - other.calls.get(op, 0) for op, count in self.calls.items()}
        extra = {op: -count for op, count in other.calls.items() if op not in self.calls}
        return Record(self.seconds - other.seconds, self.peak, calls | extra)


def count(step: Step) -> dict[str, Counter[Operation]]:
    """Each part's operations in one run of the step."""
    with Counting() as counting:
        recorder = Operations(counting)
        step(recorder.part)
    return recorder.calls


def measure(steps: dict[str, Step], repeats: dict[str, int]) -> dict[str, dict[str, Record]]:
    """Records of the parts of several designs' steps.

    Each design runs once to warm up and count, once for memory, then `repeats[design]` times; the designs take turns, so
    that a machine whose clock drifts drifts for all.
    """
    calls = {name: count(step) for name, step in steps.items()}
    memories, timers = ({name: kind() for name in steps} for kind in (Memory, Timer))
    for name, step in steps.items():
        step(memories[name].part)
    rounds = max(repeats.values())
    for k in range(rounds):
        for name, step in steps.items():
            if (k + 1) * repeats[name] // rounds > k * repeats[name] // rounds:
                step(timers[name].part)
    return {
        name: {
            part: Record(median(times), memories[name].peaks.get(part), dict(calls[name][part]))
            for part, times in timers[name].seconds.items()
        }
        for name in steps
    }
