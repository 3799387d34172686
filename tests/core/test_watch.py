"""The watchdog: what it says of a rank, who is late, gone or absent for it, and what it leaves alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from llmtool.core import standing, watch
from llmtool.core.errors import Cancelled, ConfigError, DataError, Interrupted, LlmtoolError, Terminated
from llmtool.core.ranks import FirstFailedError, Ranks
from llmtool.core.standing import machine
from llmtool.core.watch import Failure, Watch


def beat(**said: Any) -> str:
    """What a rank says of itself, all well but for `said`."""
    well = {
        "phase": "fit", "step": 7, "steps": 7, "still": 0.0, "waited": 0.0, "patient": False, "line": None,
        "done": False, "host": socket.gethostname(), "machine": machine(), "pid": os.getpid(),
        "log": "ranks/rank-1.log", "clock": 0.0,
    }  # fmt: skip
    return json.dumps({**well, **said})


class Two:
    """One of two ranks with its watchdog, the first by default; the other is what the test says of it."""

    def __init__(self, store: Any, rank: int = 0, beside: int = 2) -> None:
        self.store, self.ended, self.other = store, threading.Event(), 1 - rank
        self.watch = Watch(Ranks(rank, 2, rank, beside), None, lambda _: self.ended.set())
        self.watch.deadline = 5.0

    def says(self, **said: Any) -> None:
        self.store.set(f"{self.watch._prefix}{self.other}", beat(**said))

    def verdict(self, within: float = 10.0) -> Failure | None:
        end = time.monotonic() + within
        while self.watch.verdict is None and time.monotonic() < end:
            time.sleep(0.05)
        return self.watch.verdict


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Two]:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setattr(watch, "START", 1.0)
    monkeypatch.setattr(watch, "_place", watch._Place())  # other tests of this process have left it somewhere
    made = Two(store, *getattr(request, "param", (0,)))
    made.watch.claim()  # this process goes on in any case
    yield made
    made.watch.close()
    made.watch._thread.join(timeout=watch.STUCK + 30)


def test_phases_and_steps_are_remembered_by_what_ends_them() -> None:
    with pytest.raises(DataError) as raised, watch.phase("fit"):  # noqa: PT012 (where it comes from matters)
        watch.step(3)
        with watch.phase("save"):
            raise DataError("a.csv: gone")
    assert raised.value.__dict__["at"] == ("save", 3)
    assert watch._place.phase == "start"


def test_who_takes_the_next_thing_does_not_stand_still() -> None:
    with watch.phase("validate"):
        seen = [watch._place.since, *(watch._place.since for _ in watch.moving(range(3)))]
    assert seen == sorted(set(seen))


def test_what_is_said_of_a_rank() -> None:
    me = Ranks(1, 4, 1, 4)
    with pytest.raises(ValueError, match="odd") as raised, watch.phase("validate"):  # noqa: PT012
        watch.step(12)
        raise ValueError("odd")
    host = socket.gethostname()
    said = watch._of(raised.value, me, Path("ranks/rank-1.log"))
    assert str(said) == (
        f"rank 1 of 4 on {host} failed at step 12 (validate): ValueError: odd; more: ranks/rank-1.log"
    )
    assert (said.status, said.code) == ("failed", 1)
    of_data = watch._of(DataError("a.csv: gone"), me, None)
    assert str(of_data).endswith(": a.csv: gone")
    assert of_data.code == 4
    # what every rank meets is told as it is
    assert str(watch._of(Interrupted("time limit reached"), me, None)) == "time limit reached"
    assert str(watch._of(Cancelled("cancelled"), me, None)) == "cancelled"
    assert str(watch._of(ConfigError("a.yaml:1:1: x"), Ranks(0, 4, 0, 4), None)) == "a.yaml:1:1: x"
    assert watch._of(Terminated("by SIGTERM"), me, None).code == 75


def test_echoes_of_what_befell_others() -> None:
    for error in (
        RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:57068"),
        RuntimeError("NCCL communicator was aborted"), Terminated("x"), FirstFailedError("rank 0: x"),
        LlmtoolError("rank 0 of 2 did not meet the others within 60 s"),
    ):  # fmt: skip
        assert watch._echo(error), error
    for error in (RuntimeError("shapes differ"), ValueError("gloo"), DataError("the store is closed")):
        assert not watch._echo(error), error


def test_a_rank_for_which_others_wait_is_late(two: Two) -> None:
    two.says()
    two.watch._waits = True  # we wait
    assert two.verdict(within=2.5) is None  # nobody longer than the deadline
    two.says(still=9.0, line="in data/feed.py:7 (read)")
    found = two.verdict()
    assert found is not None
    assert str(found).startswith(f"rank 1 of 2 on {socket.gethostname()} has not moved for ")
    assert "(parallel.deadline: 5 s) at step 7 (fit), in data/feed.py:7 (read)" in str(found)
    assert str(found).endswith("stacks of its threads: ranks/rank-1.log")


@pytest.mark.parametrize("said", [{"patient": True}, {"done": True}, {"still": 1.0}])
def test_a_rank_that_takes_its_time_is_left_alone(two: Two, said: dict[str, Any]) -> None:
    two.watch.deadline = 0.5
    two.watch._waits = True
    end = time.monotonic() + 3.5
    while time.monotonic() < end:
        two.says(**{"still": 100.0, "clock": time.monotonic(), **said})
        if said == {"still": 1.0}:
            two.watch.deadline = 5.0
        time.sleep(0.3)
    assert two.watch.verdict is None


def test_a_rank_that_never_comes(two: Two) -> None:
    two.watch.deadline = 0.5
    assert str(two.verdict()) == "rank 1 of 2 has not come within 1 s"


def test_a_rank_that_was_killed(two: Two) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    two.says(pid=gone.pid)
    found = two.verdict()
    assert found is not None
    assert (found.rank, found.why, found.step) == (1, "gone", 7)
    assert two.watch.places() == {"1": ("fit", 7)}
    # and what this rank then runs into is told as that
    assert two.watch.cause(RuntimeError("gloo: Connection closed by peer")) == found
    assert two.watch.cause(ConfigError("a.yaml: x")).message == "a.yaml: x"


@pytest.mark.parametrize("two", [(1,)], indirect=True)
def test_a_first_rank_that_is_stopped_is_late_and_ended(two: Two) -> None:
    """Nobody else judges it, and it cannot end itself."""
    two.watch.deadline = 2.0
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        for _ in range(8):  # it speaks: whatever its main thread does, that is not its own silence
            two.says(pid=stopped.pid, clock=time.monotonic(), still=100.0)
            time.sleep(0.4)
        assert two.watch.verdict is None
        found = two.verdict()
        assert found is not None
        assert (found.rank, found.why) == (0, "late")
        assert "has said nothing for 2 s (parallel.deadline: 2 s), last seen at step 7 (fit)" in str(found)
        assert stopped.wait(timeout=20) == -signal.SIGKILL


def test_machines_may_share_a_name(two: Two) -> None:
    """Their processes have numbers of their own: none here is looked for, none is ended."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    elsewhere = watch._Seen(json.loads(beat(machine="another", pid=gone.pid)))
    assert watch._is_gone(watch._Seen(json.loads(beat(pid=gone.pid))))
    assert not watch._is_gone(elsewhere)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        two.watch._seen[1] = watch._Seen(json.loads(beat(machine="another", pid=other.pid)))
        two.watch.verdict = Failure(1, 2, "b", "fit", 3, "late", "has not moved")
        two.watch._end_stopped()
        assert other.poll() is None
        other.kill()


def test_of_a_rank_that_says_nothing_no_line_and_no_stacks_are_told(two: Two) -> None:
    two.watch._interval, two.watch.deadline, two.watch._waits = 0.1, 1.0, True
    two.says(machine="another", host="b", still=0.1, line="in training/loop.py:308 (accumulate)")
    assert str(two.verdict()) == (
        "rank 1 of 2 on b has said nothing for 1 s (parallel.deadline: 1 s), last seen at step 7 (fit), "
        "in training/loop.py:308 (accumulate)"
    )


def test_whose_connection_breaks_names_the_rank_on_another_machine_that_is_silent(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "BROKEN", 0.3)
    two.watch._interval = 0.05
    two.says(machine="another", host="b")
    assert str(two.watch.cause(RuntimeError("gloo: Connection closed by peer"))) == (
        "rank 1 of 2 on b is gone without a word (killed, or its machine or the network went down), "
        "last seen at step 7 (fit)"
    )


class Mute:
    """A store behind a network that is cut: who asks it waits until the test is over."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return lambda *asked: self.over.wait()


@pytest.mark.parametrize(
    ("two", "where", "why"),
    [
        ((1, 1), "another", "its process is stopped, or its machine (127.0.0.1) or the network is down"),
        ((1, 2), machine(), "its process is stopped"),  # which has the store
    ],
    indirect=["two"],
)
def test_a_store_that_does_not_answer(two: Two, where: str, why: str) -> None:
    two.says(machine=where, host="a")
    two.watch._interval, two.watch.deadline = 0.05, 0.5
    for _ in range(200):
        if 0 in two.watch._seen:
            break
        time.sleep(0.02)
    two.watch._store = mute = Mute()
    found = two.verdict()
    two.watch.close()
    mute.over.set()
    assert str(found) == f"rank 0 of 2 on a has not answered for 1 s: {why}, last seen at step 7 (fit)"
    assert two.watch.apart == (where == "another")


def test_a_rank_that_reaches_nobody_ends_by_the_deadline_that_it_reads_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "START", 0.5)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "9")
    alone = Watch(Ranks(1, 2, 0, 1), None, lambda _: None)
    alone.claim()
    alone.deadline = 0.5  # it began with that of a file which says none
    for _ in range(500):
        if alone.verdict is not None:
            break
        time.sleep(0.01)
    alone.close()
    assert "reaches nobody at 127.0.0.1:9 within 0.5 s" in str(alone.verdict)


@pytest.mark.parametrize("two", [(1, 1)], indirect=True)
def test_a_store_that_is_gone(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    two.watch.close()
    two.watch._thread.join()
    for machine_, said in (
        ("another", "rank 0 of 2 on a is gone without a word (killed?), last seen at step 7 (fit)"),
        (machine(), f"the launcher of rank 1 of 2 on {socket.gethostname()} is gone (killed?)"),
    ):
        two.watch._seen[0] = watch._Seen(json.loads(beat(machine=machine_, host="a")))
        assert str(two.watch._without_a_store()) == said


def test_the_first_verdict_stands(two: Two) -> None:
    other = Failure(1, 2, "h", "fit", 3, "failed", "no space left", code=4)
    two.store.set(f"{two.watch._prefix}verdict", json.dumps(other.__dict__))
    assert two.watch.cause(DataError("mine")) == other


def test_all_have_done_their_work(two: Two) -> None:
    two.says()
    told: list[bool] = []

    def other() -> None:
        two.store.add(f"{two.watch._prefix}done", 1)
        time.sleep(0.7)  # it reads slowly that all is said, from a store that goes with the first rank
        told.append(two.store.check([f"{two.watch._prefix}told"]))
        two.store.add(f"{two.watch._prefix}off", 1)

    threading.Timer(1.0, other).start()
    assert two.watch.finish() is None
    assert told == [True]


def test_stacks_go_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "rank-1.log"
    standing.dump(log, "fit, step 7")
    assert "test_stacks_go_to_the_log" in log.read_text()
    standing.dump(tmp_path / "nowhere" / "rank-1.log", "fit")  # a disk that is full ends nothing
    standing.trace(tmp_path / "nowhere" / "rank-1.log", ValueError("x"))
