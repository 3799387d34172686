"""What ranks tell each other: by several threads at once, alone for a while, where others had them meet."""

from __future__ import annotations

import threading
from typing import Any

import torch.distributed as dist

from llmtool.core import ranks
from tests.two import run_ranks

ROUNDS = 30


def by_threads() -> list[list[Any]]:
    """The main thread and another one exchange at the same time, in different orders."""
    group = ranks.another()
    found: dict[str, list[Any]] = {"main": [], "thread": []}

    def exchange(name: str) -> None:
        for number in range(ROUNDS):
            found[name].append(ranks.gathered((name, ranks.here().rank, number)))

    def beside() -> None:
        with ranks.through(group):
            exchange("thread")
            found["thread"].append(ranks.by_first(lambda: ranks.here().size))

    thread = threading.Thread(target=beside)
    thread.start()
    with ranks.alone():
        assert ranks.gathered("nobody else") == ["nobody else"]
    exchange("main")
    thread.join()
    return [found["main"], found["thread"]]


def test_a_thread_has_its_own_exchange() -> None:
    expected = {
        name: [[(name, rank, number) for rank in (0, 1)] for number in range(ROUNDS)]
        for name in ("main", "thread")
    }
    for main, thread in run_ranks(by_threads, 2):
        assert main == expected["main"]
        assert thread == [*expected["thread"], 1], "what only the first does, it does alone"


def already_met() -> tuple[int, bool]:
    """As a worker of Ray Train finds it."""
    ranks._here = ranks.ALONE
    size = ranks.join("cpu").size
    ranks.leave()
    return size, dist.is_initialized()


def test_who_has_met_already_is_joined_and_left_alone() -> None:
    assert run_ranks(already_met, 2) == [(2, True), (2, True)]
    assert ranks.another() is None
