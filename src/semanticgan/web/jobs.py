"""One thread that computes: quick jobs between the steps of long ones, clients in turn, a bounded number of jobs waiting."""

import threading
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from semanticgan.errors import UserError

TOGETHER = 8  # quick jobs of one kind that are computed at once; the networks' batches are no smaller anyway


class FullError(Exception):
    """Too many jobs wait already."""

    def __init__(self) -> None:
        super().__init__("too much is waiting already; try again in a moment")


class GoneError(Exception):
    """Whoever asked for it has left."""


@dataclass(eq=False)
class Quick:
    """One item for a function of a list of items."""

    work: Callable[[list[Any]], Sequence[Any]]
    item: Any
    future: "Future[Any]" = field(default_factory=Future)


@dataclass(eq=False)
class Long:
    """Work that tells of its progress. `breathe` between two steps, so that quick jobs need not wait for its end."""

    work: Callable[["Long"], None]
    tell: Callable[[str, Any], None]  # kind and content of an event; called by the worker's thread
    breathe: Callable[[], None] = lambda: None  # raises GoneError when `gone` is set
    gone: threading.Event = field(default_factory=threading.Event)


class Line:
    """Jobs that wait: first come first served for each client, the clients in turn."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self.most, self.most_of_one = most, most_of_one
        self._waiting: OrderedDict[str, deque[Any]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, client: str, job: Any) -> None:
        """Raises FullError when too many wait, of all clients or of this one."""
        if len(self) >= self.most or len(self._waiting.get(client, ())) >= self.most_of_one:
            raise FullError
        self._waiting.setdefault(client, deque()).append(job)

    def take(self) -> Any:
        """The next client's first job; that client then stands last."""
        client, jobs = self._waiting.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._waiting[client] = jobs
        return job

    def take_alike(self) -> list[Quick]:
        """Quick jobs in turn, as long as they are of the first one's kind."""
        batch = [self.take()]
        while self._waiting and len(batch) < TOGETHER:
            first = next(iter(self._waiting.values()))[0]
            if first.work is not batch[0].work:
                break
            batch.append(self.take())
        return batch


class Worker:
    """The thread. `close` ends it: what waits is dropped, what runs stops at its next breath."""

    def __init__(self) -> None:
        self._quick, self._long = Line(most=96, most_of_one=64), Line(most=48, most_of_one=16)
        self._change = threading.Condition()
        self._running: Long | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="compute", daemon=True)
        self._thread.start()

    def quick(self, work: Callable[[list[Any]], Sequence[Any]], item: Any, client: str) -> "Future[Any]":
        """`work([..., item, ...])`'s answer for the item; jobs with the same `work` may be done together. Raises FullError."""
        job = Quick(work, item)
        with self._change:
            self._quick.add(client, job)
            self._change.notify()
        return job.future

    def long(self, work: Callable[[Long], None], tell: Callable[[str, Any], None], client: str) -> Long:
        """Start `work` when its turn comes; its last event is `end`, or `failed` with a message. Raises FullError."""
        job = Long(work, tell)
        job.breathe = lambda: self._breathe(job)
        with self._change:
            self._long.add(client, job)
            self._change.notify()
        return job

    @property
    def waiting(self) -> int:
        return len(self._quick) + len(self._long)

    def close(self) -> None:
        with self._change:
            self._closed = True
            if self._running is not None:
                self._running.gone.set()
            self._change.notify()
        self._thread.join(timeout=30)

    def _loop(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or len(self._quick) or len(self._long))
                if self._closed:
                    return
            self._do_quick()  # one batch, so that neither line can hold up the other
            with self._change:
                job = self._running = self._long.take() if len(self._long) else None
            if job is not None:
                self._do_long(job)
                self._running = None

    def _breathe(self, job: Long) -> None:
        if job.gone.is_set():
            raise GoneError
        self._do_quick()

    def _do_quick(self) -> None:
        with self._change:
            batch = self._quick.take_alike() if len(self._quick) else []
        batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            answers = batch[0].work([job.item for job in batch])
        except Exception as error:  # it belongs to those who asked; the thread goes on
            for job in batch:
                job.future.set_exception(error)
        else:
            for job, answer in zip(batch, answers, strict=True):
                job.future.set_result(answer)

    def _do_long(self, job: Long) -> None:
        try:
            if not job.gone.is_set():
                job.work(job)
            job.tell("end", None)
        except GoneError:
            pass
        except UserError as error:
            job.tell("failed", str(error))
        except Exception:
            traceback.print_exc()  # a defect of ours: whoever runs the server sees it
            job.tell("failed", "the server failed at this; its terminal says where")
