"""What every peer's driver measures, in the same way: marks at the end of each step, memory, validation loss.

This file runs in the peers' own environments too: it needs torch and numpy, and nothing of llmtool.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

WINDOWS = 64  # of the validation text, that are scored at once


class Job:
    """What `run.py` asks of a driver, one JSON object on its command line."""

    def __init__(self) -> None:
        given = json.loads(sys.argv[1])
        self.setting: dict[str, Any] = given["setting"]
        self.data, self.out = Path(given["data"]), Path(given["out"])
        self.variant: str = given["variant"]  # "" or "compile"
        self.began: float = given["began"]  # time.perf_counter() of whoever started this process
        self.program: str | None = given.get("program")  # where the peer's own source is
        self.device: str = self.setting["device"]
        sys.argv = sys.argv[:1]

    @property
    def accumulate(self) -> int:
        """Micro-batches of a step."""
        return self.setting["batch"] // self.setting["micro"]

    def ids(self, split: str) -> np.ndarray:
        """The token ids of "train" or "val", mapped from the file."""
        return np.memmap(self.data / f"{split}.bin", dtype=np.uint16, mode="r")

    def windows(self, split: str = "train") -> Windows:
        """The text cut into pieces of context + 1 tokens, as litgpt and transformers read one."""
        return Windows(self.ids(split), self.setting["context"] + 1)


class Windows(torch.utils.data.Dataset):
    """Pieces of a text, each (size,) int64."""

    def __init__(self, ids: np.ndarray, size: int) -> None:
        self.ids, self.size = ids, size

    def __len__(self) -> int:
        return len(self.ids) // self.size

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.ids[index * self.size : (index + 1) * self.size].astype(np.int64))


class Marks:
    """The clock at the end of every optimizer step.

    The device is waited for twice only, after the first `warm` steps and after the last one; memory is read
    at the last one, before anything is scored.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.times = job, []
        self.warm, self.steps = job.setting["warm"], job.setting["steps"]
        self.peak = 0

    def step(self, *ignored: Any) -> None:
        """A step has ended."""
        cuda = self.job.device == "cuda"
        if cuda and len(self.times) + 1 in (self.warm, self.steps):
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        if len(self.times) == self.steps:
            kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            self.peak = torch.cuda.max_memory_allocated() if cuda else kib * 1024

    def hook(self) -> None:
        """Have every optimizer of torch call `step`."""
        register_optimizer_step_post_hook(self.step)

    def figures(self) -> dict[str, Any]:
        """Tokens a second and seconds of a step over the steps after the first ones; seconds to each end."""
        assert len(self.times) == self.steps, f"{len(self.times)} steps were made, not {self.steps}"
        setting, times = self.job.setting, self.times
        passed = times[-1] - times[self.warm - 1]
        tokens = setting["batch"] * setting["context"] * (self.steps - self.warm)
        each = np.diff(times[self.warm - 1 :])
        return {
            "tokens_per_second": tokens / passed,
            "step_seconds": passed / (self.steps - self.warm),
            "median_step_seconds": float(np.median(each)),
            "peak_bytes": self.peak,
            "seconds_to_first_step": times[0] - self.job.began,
            "seconds_to_end": times[-1] - self.job.began,
        }


def validation_loss(job: Job, logits: Callable[[Tensor], Tensor], most: int = 400_000) -> float:
    """The mean loss of a token over the validation text in windows that do not overlap.

    logits: (B, T) ids on the device -> (B, T, V). most: tokens scored.
    """
    context, ids = job.setting["context"], job.ids("val")[: most + 1].astype(np.int64)
    count = (len(ids) - 1) // context
    inputs = torch.from_numpy(ids[: count * context].reshape(count, context))
    targets = torch.from_numpy(ids[1 : count * context + 1].reshape(count, context))
    at_once = max(1, min(WINDOWS, 2**24 // (context * job.setting["vocabulary"])))
    total = 0.0
    with torch.no_grad():
        for x, y in zip(inputs.split(at_once), targets.split(at_once), strict=True):
            scores = logits(x.to(job.device)).float().flatten(0, 1)
            wanted = y.to(job.device).flatten()
            total += torch.nn.functional.cross_entropy(scores, wanted, reduction="sum").item()
    return total / (count * context)


def answer(figures: dict[str, Any]) -> None:
    """The figures as the last line that a driver prints."""
    print("\n" + json.dumps(figures), flush=True)
