"""The watchdog of ranks that train together: where each one is, which one fails, is gone or stands still.

In every rank a thread tells the store of the process group each second where its main thread is. The first
rank's thread reads them all, the others' read the first's. What ends the training, one rank's exception or
what a thread sees, is the verdict: the first one stands, every rank comes to know it, and all end by it.

Of a process that is alone nothing here does anything: `phase` and `step` keep a name and a number.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch.distributed as dist

from llmtool.core import ranks
from llmtool.core.errors import Cancelled, ConfigError, DivergedError, Interrupted, LlmtoolError
from llmtool.core.ranks import ALONE, DEADLINE, FirstFailedError, Ranks
from llmtool.core.run import outcome
from llmtool.core.standing import dump, ended, machine, standing

START = 60.0  # seconds that ranks are given to come, however short the deadline: disks that all read at once
LOST = 20.0  # seconds without a word, after which a rank on another machine is taken to be gone
STUCK = 5.0  # seconds that a main thread which waits for others is given to end, once there is a verdict
BROKEN = 5.0  # the same as LOST, where a connection has broken too
ENDING = 20.0  # the same of one that still does something
ECHO = 12.0  # seconds in which the reason of a broken connection becomes known
ALL_ALIKE = (Interrupted, Cancelled, DivergedError)  # the ranks agree on these, and come to them together

_BROKEN = ("gloo", "nccl", "peer", "socket", "store", "timed out", "broken pipe", "process group")
_runs = itertools.count()  # of this process: all ranks count alike


# --- where this process is ----------------------------------------------------------------------------------


@dataclass
class _Place:
    phase: str = "start"
    step: int | None = None
    steps: int = 0  # that were begun in this phase
    patient: bool = False
    since: float = field(default_factory=time.monotonic)


_place = _Place()


@contextlib.contextmanager
def phase(name: str, patient: bool = False) -> Iterator[None]:
    """What the main thread does inside; an exception that leaves it remembers where it came from.

    patient: others may wait for it longer than the deadline.
    """
    before = _place.phase, _place.steps, _place.patient
    _place.phase, _place.steps, _place.patient, _place.since = name, 0, patient, time.monotonic()
    try:
        yield
    except BaseException as error:
        error.__dict__.setdefault("at", (name, _place.step))
        raise
    finally:
        _place.phase, _place.steps, _place.patient = before
        _place.since = time.monotonic()


def step(number: int | None) -> None:
    """The step that begins; None: all are done."""
    _place.step, _place.since = number, time.monotonic()
    _place.steps += 1


Thing = TypeVar("Thing")


def moving(things: Iterable[Thing]) -> Iterator[Thing]:
    """The same, one by one: who takes the next is not standing still, however long all of them take."""
    for thing in things:
        _place.since = time.monotonic()
        yield thing


# --- what ended it ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """Why ranks that train together end: which of them it was, where it was, what happened.

    why: "failed": by an exception; "gone": without a word; "late": it stands still; "absent": never came.
    line: of our code in which it stands. log: the file with its output and its threads' stacks.
    plain: whether the message alone says it all.
    """

    rank: int
    size: int
    host: str
    phase: str
    step: int | None
    why: Literal["failed", "gone", "late", "absent"]
    message: str
    status: str = LlmtoolError.status
    code: int = LlmtoolError.exit_code
    line: str | None = None
    log: str | None = None
    plain: bool = False

    def __str__(self) -> str:
        if self.plain:
            return self.message
        where = f"rank {self.rank} of {self.size}" + (f" on {self.host}" if self.host else "")
        at = f"at step {self.step} ({self.phase})" if self.step is not None else f"in phase {self.phase!r}"
        line = f", {self.line}" if self.line else ""
        said = {
            "failed": f"{where} failed {at}: {self.message}",
            "gone": f"{where} {self.message}, last seen {at}",
            "late": f"{where} {self.message} {at}{line}",
            "absent": f"{where} {self.message}",
        }[self.why]
        stacks = {"failed": "more", "late": "stacks of its threads"}.get(self.why)
        return f"{said}; {stacks}: {self.log}" if stacks and self.log else said


def _of(error: BaseException, here: Ranks, log: Path | None) -> Failure:
    """The failure of this rank by this exception."""
    status, code = outcome(error)
    known = isinstance(error, LlmtoolError | KeyboardInterrupt)
    message = str(error) if known else f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    name, number = error.__dict__.get("at", (_place.phase, _place.step))
    alike = isinstance(error, (*ALL_ALIKE, KeyboardInterrupt)) or message.startswith("rank ")
    return Failure(
        here.rank, here.size, socket.gethostname(), name, number, "failed", message or status, status, code,
        log=None if known or log is None else str(log),
        plain=alike or (here.first and isinstance(error, ConfigError)),
    )  # fmt: skip


# --- the thread ---------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What a rank last said, and when that changed."""

    said: dict[str, Any]
    text: bytes = b""
    since: float = field(default_factory=time.monotonic)

    @property
    def silent(self) -> float:
        return time.monotonic() - self.since

    def age(self, of: str) -> float:
        """Seconds, those since it said so among them: "still" at one place, "waited" for others."""
        return float(self.said[of]) + (self.silent if self.said[of] else 0.0)


class Watch:
    """This rank's watchdog; begins at once.

    deadline: seconds that ranks wait for one (may be set later). log: the file for this rank's stacks.
    end: called by the thread with the verdict, where the main thread does not end by itself in time; the
    process ends after it.
    """

    def __init__(self, here: Ranks, log: Path | None, end: Callable[[Failure], None]) -> None:
        self.ranks, self.log, self.end = here, log, end
        self.deadline = DEADLINE
        self.verdict: Failure | None = None
        self._store: Any = None
        self._prefix = f"watch/{next(_runs)}/"
        self._seen: dict[int, _Seen] = {}
        self._began = time.monotonic()
        _place.step = None
        self._main = threading.main_thread().ident
        self._claim = threading.Lock()
        self._stop = threading.Event()
        self._done = self._waits = False  # with its work; for the others to be done with theirs
        self._waiting: tuple[float, tuple[int | None, float]] = (0.0, (None, 0.0))  # since when, where
        self._interval = 1.0 + here.size / 1000  # the first reads what all say
        self._answers = 0  # of the store
        self.apart = False  # cut off from the first rank's machine, and so are those beside this one
        self._lost = LOST
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        # the store may be in another machine's hands, or in those of the first rank, which may be stopped
        if not here.first and (here.beside < here.size or not _has_agent()):
            threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def claim(self) -> bool:
        """Whether the caller is the one of the threads that ends this process."""
        return self._claim.acquire(blocking=False)

    def close(self) -> None:
        """Watch no longer."""
        self._stop.set()

    def finish(self) -> Failure | None:
        """This rank has done its work: wait until all have. Returns the verdict if there is one instead."""
        self._reach()
        with contextlib.suppress(RuntimeError):  # the store is gone with the first rank, or with the launcher
            if self._store is not None:
                self._store.add(self._prefix + "done", 1)
            if self.ranks.first:
                self._waits = True
                while self._thread.is_alive() and self._look_up() is None:
                    if self._store is None or self._store.add(self._prefix + "done", 0) >= self.ranks.size:
                        self.told()
                        self._see_off()
                        break
                    time.sleep(0.02)
            else:
                self._done = True
                self.wait_told()
                if self._store is not None:
                    self._store.add(self._prefix + "off", 1)
        if self.verdict is None:
            self._stop.set()
        return self.verdict

    def _see_off(self) -> None:
        """The first rank: go last, for the store may go with it, and who has not read yet that all is said
        would take it to be gone."""
        end = time.monotonic() + STUCK
        while self._store.add(self._prefix + "off", 0) < self.ranks.size - 1 and time.monotonic() < end:
            time.sleep(0.02)

    def told(self) -> None:
        """The first rank: all is said, the others may go. A rank beside it that cannot end is ended."""
        with contextlib.suppress(RuntimeError):
            if self._store is not None:
                self._store.set(self._prefix + "told", "1")
        self._end_stopped()

    def _end_stopped(self) -> None:
        """End the process of a late rank on this machine: its own thread would have, so it is stopped."""
        if self.verdict is not None and self.verdict.why == "late":
            seen = self._seen.get(self.verdict.rank)
            if seen is not None and seen.said["machine"] == machine() and not _is_gone(seen):
                with contextlib.suppress(OSError):
                    os.kill(seen.said["pid"], signal.SIGKILL)

    def wait_told(self, limit: float | None = None) -> None:
        """The others: until the first rank is through; without a limit also until there is a verdict."""
        end = time.monotonic() + (limit or float("inf"))
        with contextlib.suppress(RuntimeError):
            while self._store is not None and time.monotonic() < end and (limit or self._thread.is_alive()):
                if self._store.check([self._prefix + "told"]) or (limit is None and self._look_up()):
                    return
                time.sleep(0.1)

    def cause(self, error: BaseException) -> Failure:
        """Why this rank ends with `error`: that itself, or what befell another rank, of which it is the echo.

        Makes its own failure known unless there is a verdict already.
        """
        own = _of(error, self.ranks, self.log)
        if isinstance(error, ALL_ALIKE):
            return own
        self._reach()
        if _echo(error):  # who broke the connection may be known in a moment
            self._lost = LOST if isinstance(error, KeyboardInterrupt) else BROKEN
            end = time.monotonic() + (3.0 if isinstance(error, KeyboardInterrupt) else ECHO)
            while self._thread.is_alive() and self._look_up() is None and time.monotonic() < end:
                time.sleep(0.1)
        known = self._look_up()
        if known is not None and known.rank != self.ranks.rank and (_echo(error) or not own.plain):
            return known
        self._publish(own)
        return own

    def places(self) -> dict[str, tuple[str, int | None]]:
        """Phase and step of the other ranks that this one hears, as it last saw them."""
        return {str(rank): (seen.said["phase"], seen.said["step"]) for rank, seen in self._seen.items()}

    # --- inside ---

    def _reach(self) -> None:
        """Give the thread, which may have begun just now, a moment to reach the store."""
        end = time.monotonic() + STUCK
        while self._store is None and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.02)

    def _run(self) -> None:
        if (unreached := self._connect()) is not None:
            self._publish(unreached)
            self._finish()
        while self._store is not None and not self._stop.is_set():
            try:
                said = json.dumps({**self._mine(), "clock": time.monotonic()})
                self._store.set(f"{self._prefix}{self.ranks.rank}", said)
                found = self._look_up() or self._judge()
                self._answers += 1
            except RuntimeError:
                found = self._without_a_store()
            if found is not None and not self._stop.is_set():
                self._publish(found)
                self._finish()
                return
            self._stop.wait(self._interval)

    def _listen(self) -> None:
        """A thread of its own: a network that is cut blocks whoever asks the store, as long as TCP tries.
        Turns count, not the clock, which goes on while this process is stopped."""
        turns, before, limit = 0, -1, self.deadline
        while turns * self._interval <= limit:
            if self._stop.wait(self._interval):
                return
            limit = self.deadline if self._is_near() else min(self.deadline, LOST)
            mute = self._answers == before and self._store is not None and self.verdict is None
            turns, before = turns + 1 if mute else 0, self._answers
        said = f"has not answered for {turns * self._interval:.0f} s: its process is stopped"
        if not self._is_near():
            said += f", or its machine ({os.environ['MASTER_ADDR']}) or the network is down"
        unseen = {**self._mine(), "host": "", "phase": "start", "step": None}
        there = self._seen[0].said if 0 in self._seen else unseen
        self.apart = not self._is_near()
        self.verdict = self.verdict or replace(self._found(0, there, "gone", said), line=None, log=None)
        self._store = None  # so that nobody else is blocked by it
        self._finish()
        if not self._stop.is_set():
            os._exit(self.verdict.code)  # the main thread, which would have, is blocked already

    def _connect(self) -> Failure | None:
        """Reach the store by a line of our own, which no exchange of the main thread blocks."""
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        while True:
            limit = max(START, self.deadline)  # which this rank may have read only now
            left = self._began + limit - time.monotonic()
            wait = timedelta(seconds=min(START, max(left, 1.0)))
            try:
                self._store = dist.TCPStore(*where, is_master=False, timeout=wait)
                return None
            except RuntimeError:
                if left <= wait.total_seconds():
                    said = f"reaches nobody at {where[0]}:{where[1]} within {limit:g} s"
                    return self._found(self.ranks.rank, self._mine(), "absent", said)

    def _mine(self) -> dict[str, Any]:
        """What this rank says of itself."""
        now, here = time.monotonic(), (_place.step, _place.since)
        waits, line = (True, None) if self._waits else standing(self._main)
        if not waits or self._waiting[1] != here:
            self._waiting = (now, here)
        # the first works for itself, on what the others have no part in
        apart = ranks.here() is ALONE and _place.phase != "start"
        return {
            "phase": _place.phase, "step": _place.step, "steps": _place.steps, "still": now - _place.since,
            "waited": now - self._waiting[0], "patient": _place.patient or apart, "line": line,
            "done": self._done, "host": socket.gethostname(), "machine": machine(), "pid": os.getpid(),
            "log": str(self.log) if self.log else None,
        }  # fmt: skip

    def _look_up(self) -> Failure | None:
        """The verdict, if there is one."""
        if self.verdict is None and self._store is not None:
            with contextlib.suppress(RuntimeError):
                if self._store.check([self._prefix + "verdict"]):
                    self.verdict = Failure(**json.loads(self._store.get(self._prefix + "verdict")))
        return self.verdict

    def _is_near(self) -> bool:
        """Whether the first rank is on this machine."""
        first = self._seen.get(0)
        return self.ranks.beside == self.ranks.size if first is None else first.said["machine"] == machine()

    def _publish(self, found: Failure) -> None:
        """Make it the verdict, unless there is one already."""
        if self.verdict is not None:
            return
        stands: str | bytes = json.dumps(asdict(found))
        with contextlib.suppress(RuntimeError):
            if self._store is not None:
                stands = self._store.compare_set(self._prefix + "verdict", "", stands)
        self.verdict = Failure(**json.loads(stands))

    def _judge(self) -> Failure | None:
        """Who is gone, absent or late: the first rank hears all of them, the others hear the first."""
        whom = range(1, self.ranks.size) if self.ranks.first else range(1)
        keys = {rank: f"{self._prefix}{rank}" for rank in whom}
        there = [rank for rank in whom if rank in self._seen or self._store.check([keys[rank]])]
        texts = self._store.multi_get([keys[rank] for rank in there]) if there else []
        for rank, text in zip(there, texts, strict=True):
            if rank not in self._seen or self._seen[rank].text != text:
                self._seen[rank] = _Seen(json.loads(text), text)
        absent = [rank for rank in whom if rank not in self._seen]
        limit = max(START, self.deadline)
        if absent and time.monotonic() - self._began > limit:
            said = f"has not come within {limit:g} s"
            return Failure(absent[0], self.ranks.size, "", "start", None, "absent", said)
        for rank, seen in self._seen.items():
            if not seen.said["done"] and seen.silent > 3 * self._interval and _is_gone(seen, self._lost):
                said = "is gone without a word (killed, or its machine or the network went down)"
                return self._found(rank, seen.said, "gone", said)
        return self._late() if self.ranks.first else self._silent()

    def _silent(self) -> Failure | None:
        """The first rank, of which the others hear nothing for longer than the deadline: it judges them, they
        judge it. Its thread speaks whatever its main thread does, so that its process must be stopped."""
        seen = self._seen.get(0)
        if seen is None or seen.silent <= self.deadline:
            return None
        return self._unheard(self._found(0, seen.said, "late", ""), seen.silent)

    def _late(self) -> Failure | None:
        """The rank for which others wait longer than the deadline; where nobody is seen to wait (a GPU's
        kernel may), that none moves in the middle of its steps."""
        all_ = {0: _Seen(self._mine()), **self._seen}
        busy = {rank: seen for rank, seen in all_.items() if not seen.said["done"]}
        waiting = [rank for rank, seen in busy.items() if seen.age("waited") > self.deadline]
        still = [rank for rank, seen in busy.items() if seen.age("still") > self.deadline]
        suspects = [rank for rank in still if rank not in waiting and not busy[rank].said["patient"]]
        stand = len(suspects) == len(busy) and all(seen.said["steps"] > 2 for seen in busy.values())
        if len(waiting) == len(busy) > 1:
            suspects = waiting  # each for another
        elif not waiting and not stand:
            return None
        if not suspects:
            return None
        lines = Counter(busy[rank].said["line"] for rank in suspects)
        first = min(suspects, key=lambda rank: (busy[rank].said["step"] or 0, lines[busy[rank].said["line"]]))
        also = [f"rank {rank} {busy[rank].said['line'] or ''}".strip() for rank in suspects if rank != first]
        said = f"has not moved for {busy[first].age('still'):.0f} s (parallel.deadline: {self.deadline:g} s)"
        if also:
            said += f", nor has {' nor '.join(also[:3])}{' nor others' if len(also) > 3 else ''},"
        found = self._found(first, busy[first].said, "late", said)
        silent = busy[first].silent  # stopped, or cut off: it can write no stacks either
        return self._unheard(found, silent) if silent > 3 * self._interval else found

    def _unheard(self, found: Failure, silent: float) -> Failure:
        said = f"has said nothing for {silent:.0f} s (parallel.deadline: {self.deadline:g} s), last seen"
        return replace(found, message=said, log=None)

    def _found(
        self, rank: int, said: dict[str, Any], why: Literal["gone", "late", "absent"], message: str
    ) -> Failure:
        return Failure(
            rank, self.ranks.size, said["host"], said["phase"], said["step"], why, message,
            line=said["line"], log=said["log"],
        )  # fmt: skip

    def _without_a_store(self) -> Failure | None:
        """The verdict when nobody answers any more: the launcher or the first rank, which have the store."""
        first = self._seen.get(0)
        if first is None or (self._is_near() and _has_agent()):
            said = f"the launcher of {self.ranks} is gone (killed?)"
            return replace(self._found(self.ranks.rank, self._mine(), "gone", said), plain=True)
        return self._found(0, first.said, "gone", "is gone without a word (killed?)")

    def _finish(self) -> None:
        """There is a verdict: see to it that this process ends, by its main thread if that can."""
        assert self.verdict is not None
        late, stuck, spent = False, 0.0, 0.0
        if self.verdict.why == "late":
            dump(self.log, f"{_place.phase}, step {_place.step}")
            late = self.verdict.rank == self.ranks.rank
            if not self.ranks.first and self._silent() is not None:  # which cannot end it itself
                self._end_stopped()
        while not late and stuck < STUCK and spent < ENDING and not self._stop.is_set():
            time.sleep(0.25)
            spent += 0.25
            stuck = stuck + 0.25 if standing(self._main)[0] else 0.0
        if not self._stop.is_set() and self.claim():
            with contextlib.suppress(Exception):
                self.end(self.verdict)
            os._exit(self.verdict.code)


def _echo(error: BaseException) -> bool:
    """Whether an exception may well come of what befell another rank: a broken connection, our launcher's
    signal."""
    if isinstance(error, KeyboardInterrupt | FirstFailedError):
        return True
    said = str(error).lower()
    if isinstance(error, LlmtoolError):
        return "did not meet" in said
    return isinstance(error, RuntimeError) and any(word in said for word in _BROKEN)


def _has_agent() -> bool:
    """Whether torch's launcher, on each machine one, has the store rather than the first rank."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _is_gone(seen: _Seen, lost: float = LOST) -> bool:
    """Whether a silent rank has ended: known of this machine's own processes, taken to be of others'."""
    return ended(seen.said["pid"]) if seen.said["machine"] == machine() else seen.silent > lost
