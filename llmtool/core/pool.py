"""Processes of this machine that do work: one pipe each, one thing at a time; one that dies is named."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Annotated, Any, Literal

from pydantic import Field

from llmtool.core.config import Section
from llmtool.core.engine import THREADS, Engine, Failed, Packed, Work, attempt
from llmtool.core.environment import processors
from llmtool.core.errors import LlmtoolError, MemoryLimitError

END = 5.0  # seconds that a process gets to end by itself


class LocalEngine(Section):
    """Processes of this machine."""

    name: Literal["local"] = Field(default="local", description="Processes of this machine.")
    workers: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        default="auto",
        description="How many processors are used: a process for each, where the source is large (32 MB on); "
        "auto: all of them.",
    )

    def count(self) -> int:
        """The number of workers."""
        return processors() if self.workers == "auto" else self.workers

    def check(self) -> None:
        """Nothing can be wrong with it."""

    def open(self, module: str) -> Engine:
        """The engine. module: where the work is defined, which new processes load before they begin."""
        return Engine() if self.count() == 1 else Pool(self.count(), module)


@dataclass
class _Given:
    """A thing that was given out; `value` when it is back."""

    pool: Pool
    work: int
    thing: Any
    name: str
    value: Packed | Failed | None = None

    def result(self) -> Packed:
        while self.value is None:
            self.pool.turn(block=True)
        if isinstance(self.value, Failed):
            raise self.value.error
        return self.value


@dataclass
class _Member:
    number: int
    process: Any
    connection: Connection
    busy: _Given | None = None
    knows: set[int] = field(default_factory=set)  # the numbers of works that it was sent


class Pool(Engine):
    """`workers` processes; they start with the first work, and end with this one, however it ends."""

    apart = True

    def __init__(self, workers: int, module: str) -> None:
        super().__init__()
        self.workers, self.ahead = workers, 2 * workers
        self._module = module
        self._members: list[_Member] = []
        self._works: list[Work] = []
        self._waiting: deque[_Given] = deque()

    def submit(self, work: Work, thing: Any, name: str = "") -> _Given:
        """Give the thing to the next process that is free."""
        number = next((at for at, one in enumerate(self._works) if one is work), len(self._works))
        if number == len(self._works):
            self._works.append(work)
        given = _Given(self, number, thing, name)
        self._waiting.append(given)
        self.turn(block=False)
        return given

    def turn(self, block: bool) -> None:
        """Take what is done, give out what waits; block: until something is done."""
        if not self._members:
            self._members = [self._start(number) for number in range(1, self.workers + 1)]
        self._give()
        busy = {member.connection: member for member in self._members if member.busy}
        for connection in wait(list(busy), timeout=None if block else 0):
            self._take(busy[connection])  # type: ignore[index]
        self._give()

    def close(self) -> None:
        """End the processes."""
        for member in self._members:
            member.connection.close()
            member.process.terminate()
        for member in self._members:
            member.process.join(END)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
        self._members, self._waiting = [], deque()
        super().close()

    def _start(self, number: int) -> _Member:
        # a server that forks loads the libraries once for all, and has no threads that a fork could break
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([self._module])
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), name=f"llmtool-{number}", daemon=True)
        process.start()
        theirs.close()
        return _Member(number, process, ours)

    def _give(self) -> None:
        """A process gets a thing only while it waits for one, so that no two wait for each other's pipe."""
        for member in self._members:
            if member.busy is not None or not self._waiting:
                continue
            member.busy = given = self._waiting.popleft()
            try:
                if given.work not in member.knows:
                    member.connection.send((given.work, self._works[given.work]))
                    member.knows.add(given.work)
                member.connection.send((given.work, given.thing))
            except OSError:
                raise self._lost(member) from None

    def _take(self, member: _Member) -> None:
        given = member.busy
        assert given is not None
        try:
            given.value = member.connection.recv()
        except (EOFError, OSError):
            raise self._lost(member) from None
        given.thing = member.busy = None

    def _lost(self, member: _Member) -> LlmtoolError:
        """The error that names a process that ended, how, and with what."""
        member.process.join(END)
        code = member.process.exitcode
        who = f"worker {member.number} of {self.workers} (process {member.process.pid})"
        what = f"while it worked on {member.busy.name}" if member.busy and member.busy.name else "at work"
        if code == -signal.SIGKILL:
            return MemoryLimitError(
                f"{who} was killed {what}, most likely because memory ran out: "
                f"data.engine.workers: {max(1, self.workers // 2)} needs less"
            )
        if code is not None and code < 0:
            return LlmtoolError(f"{who} was ended by {signal.Signals(-code).name} {what}")
        return LlmtoolError(f"{who} ended {what} (exit code {code})")


def _serve(connection: Connection) -> None:
    """What each process does: learn works, do them, until nobody is at the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process, which ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ[THREADS] = "false"
    works: dict[int, Work] = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, thing = connection.recv()
            if number not in works:
                works[number] = thing
                continue
            connection.send(attempt(works[number], thing))
