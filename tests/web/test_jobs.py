"""Whose turn it is, and what a quick job need not wait for."""

import threading

import pytest

from semanticgan.errors import UserError
from semanticgan.web.jobs import TOGETHER, FullError, GoneError, Line, Quick, Worker


@pytest.fixture
def worker():
    found = Worker()
    yield found
    found.close()


def test_clients_take_turns():
    line = Line(most=10, most_of_one=5)
    for client, job in ("a1", "a2", "a3", "b1", "c1", "b2"):
        line.add(client, client + job)
    assert [line.take() for _ in range(len(line))] == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_lines_are_bounded():
    line = Line(most=3, most_of_one=2)
    line.add("a", 1)
    line.add("a", 2)
    with pytest.raises(FullError):
        line.add("a", 3)
    line.add("b", 4)
    with pytest.raises(FullError):
        line.add("c", 5)
    assert len(line) == 3


def test_jobs_of_a_kind_go_together():
    line, one, two = Line(99, 99), lambda items: items, lambda items: items
    for k in range(TOGETHER + 2):
        line.add("a", Quick(one, k))
    assert [job.item for job in line.take_alike()] == list(range(TOGETHER))
    line.add("b", Quick(two, "x"))
    assert [job.item for job in line.take_alike()] == [TOGETHER]  # then it is b's turn, whose job is another
    assert [job.item for job in line.take_alike()] == ["x"]


def test_quick_jobs_run_between_the_steps_of_a_long_one(worker):
    told, started, ended = [], threading.Event(), threading.Event()

    def tell(kind, content):
        told.append((kind, content))
        (started if kind == "step" else ended).set()

    def work(job):
        job.tell("step", 1)
        answer = None
        while answer is None:
            job.breathe()
            answer = done[0] if done else None
        job.tell("step", answer)

    done = []
    worker.long(work, tell, "a")
    assert started.wait(5)
    worker.quick(lambda items: [2 * item for item in items], 21, "b").add_done_callback(lambda f: done.append(f.result()))
    assert ended.wait(5)
    assert told == [("step", 1), ("step", 42), ("end", None)]


def test_errors_belong_to_those_who_asked(worker):
    def fail(items):
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        worker.quick(fail, 1, "a").result(5)
    told, ended = [], threading.Event()

    def tell(kind, content):
        told.append((kind, content))
        ended.set()

    worker.long(lambda job: fail([]), tell, "a")
    assert ended.wait(5) and told == [("failed", "no")]
    assert worker.quick(lambda items: items, 7, "a").result(5) == 7


def test_who_has_left_is_not_worked_for(worker):
    ran, started, stopped = [], threading.Event(), threading.Event()

    def endless(job):
        try:
            while True:
                job.breathe()
                started.set()
        except GoneError:
            stopped.set()
            raise

    first = worker.long(endless, lambda kind, content: None, "a")
    assert started.wait(5)
    second = worker.long(lambda job: ran.append("second"), lambda kind, content: None, "b")
    second.gone.set()
    first.gone.set()
    assert stopped.wait(5)
    cancelled = worker.quick(lambda items: items, 1, "a")
    assert cancelled.cancel() or cancelled.result(5) == 1
    assert worker.quick(lambda items: items, 2, "a").result(5) == 2
    assert ran == []
