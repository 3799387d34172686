"""Runs a function in several processes that have met, as ranks on the CPU."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

from llmtool.core import ranks


def run_ranks(function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns on each of `size` ranks, in their order.

    function: of a module's top level (it is named to new processes); what it returns travels as a pickle.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=_rank, args=(function, arguments, rank, size, port, queue))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    wrong: list[str] = []
    for _ in range(size):
        rank, value, error = queue.get()
        found[rank] = value
        wrong += [f"rank {rank}: {error}"] if error else []
    for process in processes:
        process.join()
    assert not wrong, "\n".join(wrong)
    return [found[rank] for rank in range(size)]


def _rank(
    function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, size: int, port: int, queue: Any
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        ranks.join("cpu", deadline=60)
        queue.put((rank, function(*arguments), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
    ranks.leave()
