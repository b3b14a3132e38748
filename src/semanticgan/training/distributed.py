"""Several processes that train or segment as one: who is there, who has which part, and what they tell each other."""

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from semanticgan.errors import UserError, first_line
from semanticgan.training.checkpoint import State

PATIENCE = 40  # seconds that a rank may take to answer within a step
JOINING = 600  # seconds that ranks may start apart
PULSE = 1.0  # seconds between two signs of life
LISTEN = 5.0  # seconds in which a rank that lives is sure to give one
PIECE = 2**26  # bytes of a message
GO_ON = "what was saved is whole: go on with --resume, or start again"

T = TypeVar("T")
R = TypeVar("R")


class World:
    """One process alone: every method gives back what it was given. `Ranks` is the same for several processes.

    Every rank calls the methods in the same order. Where a rank is lost, they raise UserError on all others.
    """

    rank, size = 0, 1
    local = 0  # the rank on its own machine

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which alone writes and speaks."""
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        return self.rank, self.size

    def mine(self, batch: T) -> T:
        """This rank's part of a batch: every size-th place, so that groups (i, i + N / group, ...) stay together."""
        return batch

    # ------------------------------------------------------------ within a step: an answer comes soon or never

    def mean(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Place by place over the ranks."""
        return x

    def average(self, parameters: Iterable[Tensor], stats: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients (in place) and statistics become their means over the ranks, all in one message."""
        return stats

    def highest(self, number: float) -> float:
        return number

    # ------------------------------------------------------------ between steps: ranks wait as long as the others live

    def wait(self) -> None:
        """For all ranks to come here."""

    def first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank; also the UserError that it raises, which rank 0 alone puts in words."""
        return make()

    def in_turn(self, make: Callable[[], T]) -> T:
        """What every rank makes, after one rank a machine has filled the machine's cache."""
        return make()

    def same(self, state: State) -> None:
        """Gives every rank the state of rank 0."""

    def shared(self, items: Sequence[T], work: Callable[[Sequence[T]], list[R]], chunk: int = 8) -> list[R]:
        """work(items), a result an item, with the items dealt out in chunks; UserErrors of all ranks come as one."""
        return work(items)


ALONE = World()


class Ranks(World):
    """The processes of torch.distributed's environment variables: gloo between CPUs, NCCL between GPUs for gradients."""

    def __init__(self, device: torch.device) -> None:
        """Raises UserError when not all ranks meet."""
        try:
            self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            self.local = int(os.environ.get("LOCAL_RANK", "0"))
            self.store, *_ = next(dist.rendezvous("env://", timeout=timedelta(seconds=JOINING)))
            self.pulse = _Pulse(self.store, self.rank, self.size, ends=device.type == "cuda")
            here = [f"here/{rank}" for rank in range(self.size)]
            self.store.set(here[self.rank], "")
            self.store.wait(here, timedelta(seconds=JOINING))
            # Its functions' default arguments would keep a group that is there when something loads it, and with the group
            # threads, one of which may want the interpreter after its end: the process would abort.
            import_module("torch.distributed.nn.functional")
            store, patience = dist.PrefixStore("gloo", self.store), timedelta(seconds=PATIENCE)
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=patience)
            # A thread that waits for a GPU hears of no lost rank: the pulse does, before NCCL's own end, which says nothing.
            late = timedelta(seconds=JOINING)
            self.gradients = dist.new_group(backend="nccl", timeout=late) if device.type == "cuda" else None
        except (RuntimeError, ValueError, KeyError) as error:
            reason = first_line(error)
            raise UserError(f"the processes cannot meet ({reason}); start them with torchrun, or set what it sets") from error
        self.waits, self.lost = 0, False
        self.store.set_timeout(patience)
        self.pulse.start()

    def mine(self, batch: Any) -> Any:
        return batch[self.rank :: self.size]

    def mean(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return self._mean_(x.detach().float().clone(memory_format=torch.contiguous_format))

    def _mean_(self, x: Tensor) -> Tensor:
        with self._answered():
            dist.all_reduce(x, group=self.gradients)
        return x.div_(self.size)

    def average(self, parameters: Iterable[Tensor], stats: dict[str, Tensor]) -> dict[str, Tensor]:
        grads = [p.grad for p in parameters if p.grad is not None]
        message = [*grads, *stats.values()]
        flat = self._mean_(torch.cat([x.detach().reshape(-1) for x in message]))
        means = [part.view(x.shape) for part, x in zip(flat.split([x.numel() for x in message]), message, strict=True)]
        torch._foreach_copy_(grads, means[: len(grads)])
        return dict(zip(stats, means[len(grads) :], strict=True))

    def highest(self, number: float) -> float:
        out = torch.tensor(number, dtype=torch.float64)
        with self._answered():
            dist.all_reduce(out, dist.ReduceOp.MAX)
        return out.item()

    def wait(self) -> None:
        self.waits += 1
        here = [f"wait/{self.waits}/{rank}" for rank in range(self.size)]
        with self._answered():
            self.store.set(here[self.rank], "")
            while not self.store.check(here):
                if self.pulse.silent(PATIENCE):
                    raise RuntimeError("no sign of life")
                time.sleep(0.02)
            dist.barrier()  # so that none goes on, and away, while another still asks rank 0's store

    def gather(self, x: T) -> list[T]:
        """Every rank's x, on every rank."""
        self.wait()
        out: list[Any] = [None] * self.size
        with self._answered():
            dist.all_gather_object(out, x)
        return out

    def first(self, make: Callable[[], T]) -> T:
        made: list[Any] = [None, None]  # what came out, or the UserError
        if self.main:
            try:
                made[0] = make()
            except UserError as error:
                made[1] = error
        self.wait()
        with self._answered():
            dist.broadcast_object_list(made, 0)
        if made[1] is not None:
            raise made[1] if self.main else UserError("")
        return made[0]

    def in_turn(self, make: Callable[[], T]) -> T:
        made, problem = None, ""
        if self.local:
            self.wait()
        try:
            made = make()
        except UserError as error:
            problem = str(error)
        if not self.local:
            self.wait()
        self._raise(self.gather(problem))
        return cast(T, made)

    def same(self, state: State) -> None:
        file = io.BytesIO()
        if self.main:
            torch.save(state.state_dict(), file)
        size = self.first(file.tell)
        content = bytearray(file.getvalue() if self.main else size)
        with self._answered():
            for piece in torch.frombuffer(content, dtype=torch.uint8).split(PIECE):
                dist.broadcast(piece, 0)
        if not self.main:
            state.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))

    def shared(self, items: Sequence[T], work: Callable[[Sequence[T]], list[R]], chunk: int = 8) -> list[R]:
        mine = [k for k in range(len(items)) if k // chunk % self.size == self.rank]
        done, problem = [], ""
        try:
            done = work([items[k] for k in mine])
        except UserError as error:
            problem = str(error)
        parts = self.gather((mine, done, problem))
        self._raise([problem for *_, problem in parts])
        found = {k: result for places, results, _ in parts for k, result in zip(places, results, strict=True)}
        return [found[k] for k in range(len(items))]

    def _raise(self, problems: Sequence[str]) -> None:
        """UserError with all ranks' problems, each once, on every rank, if there are any; rank 0 alone has the words."""
        if any(problems):
            raise UserError("\n".join(dict.fromkeys(p for p in problems if p)) if self.main else "")

    # ------------------------------------------------------------ the end

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Raises UserError, naming the ranks that are lost, when the others do not answer."""
        try:
            yield
        except RuntimeError as error:
            reason = first_line(error)
            who = self._find_lost()
            what = f"rank {who} of {self.size} stopped answering" if who else f"a rank took over {PATIENCE} s ({reason})"
            raise UserError(f"{what}; {GO_ON}") from error

    def _find_lost(self) -> str:
        """Who gives no sign of life. The first to notice finds out and hangs up, so that the others notice, and hear who."""
        self.lost = True
        try:
            if not self.store.check(["lost"]):
                self.pulse.silent(0)
                time.sleep(LISTEN)
                self.store.compare_set("lost", "", ", ".join(map(str, self.pulse.silent(LISTEN - PULSE))))
            who = self.store.get("lost").decode()
        except RuntimeError:  # the store is gone, and with it the process that keeps it
            who = "0"
        self._hang_up()
        if self.main:
            time.sleep(LISTEN)  # keeps the store until the others have heard
        return who

    def _hang_up(self) -> None:
        self.pulse.stop()
        if dist.is_initialized() and self.gradients is None:  # NCCL would wait for the lost rank
            dist.destroy_process_group()

    def leave(self) -> None:
        """After the last word: together, so that none takes a parting rank for a lost one."""
        self.wait()
        self.pulse.stop()
        dist.destroy_process_group()


class _Pulse(threading.Thread):
    """Says every second that this process lives, and knows since when each of the others has not.

    With `ends` it ends the process when another is lost, since the main thread may wait for the GPU, and that for the lost.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, ends: bool = False) -> None:
        super().__init__(name="pulse", daemon=True)
        self.ends, self.size = ends, size
        self.store, self.keys, self.mine = store, [f"pulse/{r}" for r in range(size)], f"pulse/{rank}"
        self.store.set(self.mine, "0")
        self.heard = [(b"", time.monotonic())] * size
        self.stopped = threading.Event()

    def run(self) -> None:
        beat = 0
        lost: list[int] = []
        try:
            while not self.stopped.wait(PULSE) and not lost:
                beat += 1
                self.store.set(self.mine, str(beat))
                lost = self.silent(PATIENCE) if self.ends else []
        except RuntimeError:  # the store is gone, and with it the process that keeps it
            lost = [0]
        if self.ends and lost and not self.stopped.wait(LISTEN):  # in which the main thread may say it, or be at its end
            who = ", ".join(map(str, lost))
            print(f"error: rank {who} of {self.size} stopped answering; {GO_ON}", file=sys.stderr, flush=True)
            os._exit(2)

    def stop(self) -> None:
        self.stopped.set()
        self.join(LISTEN)

    def silent(self, seconds: float) -> list[int]:
        """The ranks of which nothing was heard for so long."""
        now = time.monotonic()
        for rank, beat in enumerate(self.store.multi_get(self.keys)):
            if beat != self.heard[rank][0]:
                self.heard[rank] = (beat, now)
        return [rank for rank, (_, since) in enumerate(self.heard) if now - since >= seconds]


@contextmanager
def join(device: str) -> Iterator[World]:
    """The world that torchrun made (its environment variables are set), or this process alone. Leaves it at the end.

    Raises UserError when not all ranks meet.
    """
    if (chosen := torch.device(device)).type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)  # streams, events and pinned memory are the current one's
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    world = Ranks(chosen)
    try:
        yield world
        world.leave()
    except BaseException as error:
        if world.lost and chosen.type == "cuda":
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(2)  # NCCL's threads would keep the process until the lost rank answers
        if not world.lost:
            world._hang_up()
        raise
