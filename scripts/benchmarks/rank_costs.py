"""What ranks cost on the host, measured where there is no GPU: meeting, the clock, sockets, checkpoints.

    python scripts/benchmarks/rank_costs.py --save      2 to 8 processes on this machine (about 2 minutes)

Each number of processes meets as ranks do (core/ranks.py, gloo over loopback); `hop` is the
clock's exchange (training/together.py; the quickest tenth of them, as the machine may have other work) over
the 2 (n - 1) steps of gloo's ring. Eight processes on few cores wait for each other more than they would on
machines of their own: the hop of two is the least. A checkpoint is one of tensors of 1 GB in all, as one
writer makes it: written, hashed, synced, renamed; training waits until it is handed to the
system (`handed`; of a model on a GPU, until it is in memory, which takes less).
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

COUNTS, ROUNDS, BYTES = (2, 4, 8), 200, 10**9


def rank() -> None:
    """One process among others: meets them, counts its sockets, exchanges; the first prints what it saw."""
    import torch
    import torch.distributed as dist

    from llmtool.core import ranks
    from llmtool.training.together import SIGNALS

    torch.set_num_threads(1)
    began = time.perf_counter()
    here = ranks.join("cpu", deadline=120)
    met = time.perf_counter() - began
    links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    sockets = sum(link.startswith("socket:") for link in links)
    said = torch.zeros(len(SIGNALS) + 2, dtype=torch.float64)
    for _ in range(ROUNDS // 4):
        dist.all_reduce(said, dist.ReduceOp.MAX)
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        dist.all_reduce(said, dist.ReduceOp.MAX)
        rounds.append(time.perf_counter() - began)
    exchange = sorted(rounds)[ROUNDS // 10]
    met = max(ranks.gathered(met))
    if here.first:
        print(json.dumps({"met": met, "sockets": sockets, "exchange": exchange}))
    ranks.leave()


def meeting(count: int) -> dict[str, float]:
    """What the first of so many processes saw."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for number in range(count):
        names = {
            "RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
            "PYTHONPATH": common.search_path(),
        }  # fmt: skip
        env = os.environ | {name: str(value) for name, value in names.items()}
        command = [sys.executable, __file__, "--rank"]
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{count} processes: one of them failed")
    found: dict[str, float] = json.loads(said[0])
    return found


def checkpoint(size: int) -> dict[str, float]:
    """Bytes a second of one writer: until training goes on, until all is durable; and of who verifies it."""
    import safetensors.torch
    import torch

    from llmtool.core import checkpoint, files

    tensors = {str(n): torch.full((size // 40,), float(n)) for n in range(10)}
    with tempfile.TemporaryDirectory(dir=common.ROOT) as place:
        began = time.perf_counter()
        finish = checkpoint.begin(
            Path(place),
            checkpoint.step_name(1),
            lambda directory: files.write_bytes(directory / "w.safetensors", safetensors.torch.save(tensors)),
        )
        handed = time.perf_counter() - began
        final = finish()
        written = time.perf_counter() - began
        began = time.perf_counter()
        checkpoint.verify(final)
        verified = time.perf_counter() - began
    return {"handed": size / handed, "written": size / written, "verified": size / verified}


def piece_bytes() -> float:
    """Bytes of one tensor's piece in what ranks tell each other before they save (core/tensor_files.py)."""
    from llmtool.core.shards import Piece

    pieces = [Piece((n, 0), (n + 1, 8192)) for n in range(1000)]
    return len(pickle.dumps(pieces)) / len(pieces)


def main() -> None:
    """Measure, show, save."""
    options = common.parser(__doc__ or "").parse_args()
    repeats = 1 if options.short else 3
    figures: dict[str, Any] = {"ranks": {}, "checkpoint": [], "piece_bytes": piece_bytes()}
    for count in COUNTS[:2] if options.short else COUNTS:
        found = meeting(count)
        found["hop"] = found["exchange"] / (2 * (count - 1))
        figures["ranks"][str(count)] = found
    figures["checkpoint"] = [checkpoint(BYTES // 10 if options.short else BYTES) for _ in range(repeats)]
    rows = [
        (count, found["met"], int(found["sockets"]), 1e6 * found["hop"])
        for count, found in figures["ranks"].items()
    ]
    common.table("processes that meet", ["processes", "seconds", "sockets", "hop, us"], rows)
    speeds = [
        [f"{one[key] / 1e9:.2f}" for key in ("handed", "written", "verified")]
        for one in figures["checkpoint"]
    ]
    columns = ["handed over, GB/s", "durable, GB/s", "verified, GB/s"]
    common.table("a checkpoint by one writer", columns, speeds)
    common.save(options, "rank_costs", figures, common.versions("llmtool", "torch"))


if __name__ == "__main__":
    rank() if sys.argv[1:] == ["--rank"] else main()
