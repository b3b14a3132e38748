"""The run folder: log, statistics, pictures, time, and the signals that end a run."""

import errno
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from semanticgan.errors import UserError
from semanticgan.training.checkpoint import State, save_stage, stage_checkpoints
from semanticgan.training.distributed import ALONE, World

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """SIGINT or SIGTERM arrived; the state has been saved. `signum` says which."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def write_text(path: Path, text: str) -> None:
    """Write by way of a temporary file, so that a reader never meets half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # a path need not be valid UTF-8
    temporary.replace(path)


@contextmanager
def held(out: Path, new: bool) -> Iterator[None]:
    """The run folder for this process alone, made if need be: two would write over each other's checkpoints.

    After a UserError a `new` one in which nothing was saved goes, as the mended command must find a free place. A full disk
    becomes a UserError too. Leaves no lock behind, however the process ends.
    Raises UserError if another process trains there, or if a new one is no longer empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        if new:
            require_new_folder(out)  # asked again: another process may have been quicker
        try:
            yield
        except (UserError, OSError) as error:
            begun = not new or (out / "stats.jsonl").exists() or any((out / "checkpoints").glob("*"))
            full = error.strerror if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) else None
            if not begun and (full or isinstance(error, UserError)):
                _clear(out)
            if not full:
                raise
            again = "go on with --resume" if begun else "say the command again"
            raise UserError(f"--out {out}: cannot be written ({full}); make room, then {again}") from error


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Without effect where the system or the file system knows no locks."""
    if fcntl is None:
        yield
        return
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out}: another process trains in this run; wait for its end, or stop it first") from None
        except OSError:
            pass
        yield
    finally:
        os.close(folder)


def _clear(out: Path) -> None:
    """Remove what is in the folder, and the folder where that is possible: it may be a link, or where a disk is mounted."""
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with suppress(OSError):
        out.rmdir()


class Run:
    """One run folder.

    `log.txt` holds what was said, `stats.jsonl` a line of numbers a tick, `samples/` pictures, `checkpoints/` states.
    Of several processes rank 0 alone writes and speaks.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print, world: World = ALONE) -> None:
        self.folder = folder
        self.world = world
        self._say = say
        self.stopped_by: int | None = None
        for name in ("samples", "checkpoints") if world.main else ():
            (folder / name).mkdir(parents=True, exist_ok=True)

    def log(self, text: str) -> None:
        """Say it, and keep it with the time in log.txt."""
        if not self.world.main:
            return
        self._say(text)
        with (self.folder / "log.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def add_stats(self, values: dict[str, Any]) -> None:
        """One line of stats.jsonl; NaN and infinity become null, so that every reader can parse it."""
        if not self.world.main:
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with (self.folder / "stats.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")

    def drop_stats_after(self, stage: str, kimg: float) -> None:
        """Forget what a run wrote after the checkpoint that it goes on from."""
        path = self.folder / "stats.jsonl"
        if not path.exists() or not self.world.main:
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:  # the line a killed run was writing
                continue
            if values["stage"] != stage or values["kimg"] <= kimg + 1e-9:
                kept.append(line)
        write_text(path, "".join(line + "\n" for line in kept))

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM only set `stopped_by`; the loop ends at the next step. A second Ctrl-C ends at once."""

        def on_signal(signum: int, _frame: FrameType | None) -> None:
            if self.stopped_by is not None:
                raise KeyboardInterrupt
            self.stopped_by = signum

        try:
            before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: its owner handles signals
            yield
            return
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


class Clock:
    """Time spent in a stage over all its sessions, and how far the stage has come.

    A stage ends by `kimg`, or, with a budget in seconds, at the first tick after the budget is spent. Of several
    processes the one that has spent most counts.
    """

    def __init__(self, kimg: float, budget: float | None = None, spent: float = 0.0, world: World = ALONE) -> None:
        self.kimg, self.budget, self._world = kimg, budget, world
        self._spent, self._since = spent, time.monotonic()

    @property
    def seconds(self) -> float:
        return self._spent + time.monotonic() - self._since

    def progress(self, nimg: int) -> float:
        """0 at the start of the stage, 1 at its end."""
        return min(1.0, self._world.highest(self.seconds) / self.budget if self.budget else nimg / (self.kimg * 1000))

    def ended(self, nimg: int, at_tick: bool) -> bool:
        return at_tick and self._world.highest(self.seconds) >= self.budget if self.budget else nimg >= self.kimg * 1000

    def left(self, nimg: int, rate: float) -> float:
        """Seconds to the end at `rate` images a second."""
        return max(0.0, self.budget - self.seconds if self.budget else (self.kimg * 1000 - nimg) / max(rate, 1e-9))


class Means:
    """Means of named numbers between two ticks; tensors stay where they are until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def add(self, **values: Any) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        out = {name: float(self._sums[name]) / self._counts[name] for name in self._sums}
        self._sums, self._counts = {}, {}
        return out


class Stage:
    """What the training loops share: `steps` counts, reports, saves and ends.

    `report` is called at every tick with the stage's mean numbers and returns more of them (scores, say).
    """

    def __init__(
        self,
        name: str,  # "gan", "encoder" or "student": the stage in statistics and checkpoints
        run: Run,
        state: State,  # has the numbers nimg and seconds
        clock: Clock,
        *,
        batch: int,
        tick_kimg: float,
        checkpoint_minutes: float,
        report: Callable[[dict[str, float], bool], dict[str, Any]],  # (means, last tick of the stage) -> more
    ) -> None:
        self.name, self.run, self.state, self.clock = name, run, state, clock
        self.batch = batch
        self.means = Means()
        self._tick = max(1, round(tick_kimg * 1000 / batch)) * batch
        self._checkpoint_seconds = checkpoint_minutes * 60
        self._report = report

    def steps(self) -> Iterator[int]:
        """Yield the images seen so far, once a step, to the end of the stage.

        Raises Interrupted after a signal, and UserError when a loss is not finite; both leave a good checkpoint.
        """
        saved_at = tick_at = time.monotonic()
        tick_nimg = self.state.nimg
        last = self.clock.ended(self.state.nimg, self.state.nimg % self._tick == 0)
        with self.run.catching_signals():
            while not last:  # asked once a step: a budget may end between two looks, and the last step must be saved
                yield self.state.nimg
                self.state.nimg += self.batch
                at_tick = self.state.nimg % self._tick == 0
                last = self.clock.ended(self.state.nimg, at_tick)
                if at_tick or last:
                    self._end_tick((self.state.nimg - tick_nimg) / (time.monotonic() - tick_at), last)
                    if last or time.monotonic() - saved_at >= self._checkpoint_seconds:
                        self.save()
                        saved_at = time.monotonic()
                    self.run.world.wait()  # rank 0 alone writes: a slow disk must not look like a rank that is gone
                    tick_at, tick_nimg = time.monotonic(), self.state.nimg
                stopped_by = int(self.run.world.highest(float(self.run.stopped_by or 0)))
                if stopped_by:
                    if not last:
                        self._require_finite(self.means.take())
                        self.save()
                    self.run.world.wait()  # a rank that ended earlier might have the others ended before they have saved
                    raise Interrupted(stopped_by)

    def save(self) -> None:
        if not self.run.world.main:
            return
        self.state.seconds = self.clock.seconds
        save_stage(self.run.folder, self.name, self.state.nimg, self.state.state_dict())

    def _end_tick(self, rate: float, last: bool) -> None:
        seconds, kimg = round(self.clock.seconds, 1), self.state.nimg / 1000  # as the clock saw the tick, before the report
        means = self.means.take()
        self._require_finite(means)
        values = {**means, **self._report(means, last)}
        numbers = "  ".join(f"{k} {v:.3g}" for k, v in values.items() if isinstance(v, float))
        left = duration(self.clock.left(self.state.nimg, rate))
        self.run.log(f"{self.name} {kimg:.1f} kimg  {rate:.1f} images/s  {left} left  {numbers}")
        self.run.add_stats({"stage": self.name, "kimg": kimg, "images_per_second": round(rate, 2), "seconds": seconds, **values})

    def _require_finite(self, means: dict[str, float]) -> None:
        """Of the means since the last tick and of all that a checkpoint holds: the last step's losses come before its update."""
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        bad += [name for name, member in self.state.members.items() if not _is_finite(member.state_dict())]
        if bad:
            begun = bool(stage_checkpoints(self.run.folder, self.name))
            raise UserError(
                f"{self.name} at {self.state.nimg / 1000:.1f} kimg: {bad[0]} is not finite; "
                + ("go on from the last checkpoint with --resume, or " if begun else "")
                + "start again with run.precision=fp32 or smaller learning rates"
            )


def _is_finite(content: Any) -> bool:
    """All floating-point tensors in nested containers."""
    if isinstance(content, Tensor):
        return not content.is_floating_point() or bool(content.isfinite().all())
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return all(map(_is_finite, inside))


def duration(seconds: float) -> str:
    """3725 -> "1h02m"; 125 -> "2m05s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"


def require_new_folder(folder: Path) -> None:
    """Raises UserError unless `folder` is absent or an empty folder that can be written."""
    try:
        if folder.is_file():
            raise UserError(f"--out {folder}: is a file; name a new or empty folder")
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"--out {folder}: is not empty; name a new folder, or go on with --resume")
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        probe = existing / f".{folder.name}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror}); name another folder") from None
