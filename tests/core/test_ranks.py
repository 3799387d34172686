"""What ranks tell each other: by several threads at once, alone for a while, where others had them meet."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import pytest
import torch.distributed as dist

from llmtool.core import ranks
from llmtool.core.ranks import Ranks
from tests.two import run_ranks

ROUNDS = 30
# What Slurm 22.05 puts into the environment of a job of two nodes with one task each: in the batch script; in
# the shell of `salloc`, which is a step of one task; in a step of one, of two and (overcommitted) of three.
JOB = {"JOB_ID": "7", "JOB_NODELIST": "n[1-2]", "NTASKS": "2", "TASKS_PER_NODE": "1(x2)"}
BATCH = {**JOB, "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
STEP = {**BATCH, "STEP_ID": "1", "STEP_NODELIST": "n[1-2]", "STEP_NUM_TASKS": "2"}
ALONE = {"STEP_NODELIST": "n1", "STEP_NUM_TASKS": "1", "STEP_TASKS_PER_NODE": "1"}
ONE = {**STEP, **ALONE, "NTASKS": "1", "TASKS_PER_NODE": "1"}
SHELL = {**STEP, **ALONE, "STEP_ID": "4294967290"}
TWO = {**STEP, "PROCID": "1", "NODEID": "1", "STEP_TASKS_PER_NODE": "1(x2)"}
THREE = {
    **STEP,
    "PROCID": "2",
    "NODEID": "1",
    "NTASKS": "3",
    "STEP_NUM_TASKS": "3",
    "STEP_TASKS_PER_NODE": "2,1",
}


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


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what Slurm would; nothing else tells of ranks."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name)
    for name in ("MASTER_ADDR", "MASTER_PORT"):  # so that they are taken away again
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return lambda said: [monkeypatch.setenv(f"SLURM_{name}", value) for name, value in said.items()]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (JOB, None), (BATCH, None), (ONE, None), (SHELL, None),
        (TWO, Ranks(1, 2, 0, 1)), (THREE, Ranks(2, 3, 0, 2)),
    ],
)  # fmt: skip
def test_only_what_srun_has_started_is_ranks(slurm: Any, said: dict[str, str], found: Ranks | None) -> None:
    slurm(said)
    assert ranks.told() == found


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n[1-2]", "n1"), ("n1,n2", "n1"), ("gpu[08-11,20],big1", "gpu08"), ("r[2-3]n[04,06]-ib", "r2n04-ib"),
        ("a-1.local,b[1-2]", "a-1.local"),
    ],
)  # fmt: skip
def test_ranks_of_srun_meet_on_its_first_node(slurm: Any, nodes: str, first: str) -> None:
    slurm({**TWO, "STEP_NODELIST": nodes})
    told = ranks.told()
    assert told is not None
    ranks.appoint(told)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == (first, "20071")
    os.environ["MASTER_ADDR"] = "elsewhere"  # somebody has said it
    ranks.appoint(told)
    assert os.environ["MASTER_ADDR"] == "elsewhere"


def test_two_steps_on_one_machine_do_not_meet(slurm: Any) -> None:
    slurm({**TWO, "STEP_NODELIST": "n1", "STEP_TASKS_PER_NODE": "2", "STEP_ID": "2"})
    ranks.appoint(Ranks(1, 2, 1, 2))
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("127.0.0.1", "20072")


def test_gloo_listens_where_other_machines_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks._interface("127.0.0.1") == "lo"
    monkeypatch.setattr(ranks, "_interface", {"a": "lo", "192.0.2.1": "eth1", "10.0.0.1": "eth0"}.get)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    two = ranks.Ranks(1, 2, 0, 1)

    def chosen(name: str, address: str, these: ranks.Ranks = two) -> str | None:
        monkeypatch.setattr(socket, "gethostbyname", lambda host: name)
        monkeypatch.setenv("MASTER_ADDR", address)
        ranks._choose_interface(these)
        return os.environ.pop("GLOO_SOCKET_IFNAME", None)

    assert chosen("127.0.1.1", "10.0.0.1") == "eth0"
    assert chosen("127.0.1.1", "a") == "eth1"  # the first rank's machine, by its own name
    assert chosen("10.0.0.2", "10.0.0.1") is None  # gloo finds it
    assert chosen("127.0.1.1", "10.0.0.1", ranks.Ranks(1, 2, 1, 2)) is None  # all are on one machine
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert chosen("127.0.1.1", "10.0.0.1") == "ib0"  # the user knows better
