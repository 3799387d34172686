"""What a training took, beside what was predicted: measured, written to result.json, read again."""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmtool.core import files
from llmtool.core.devices import release_memory
from llmtool.core.errors import LlmtoolError
from llmtool.core.run import RESULT
from llmtool.models.accounting import weight_bytes
from llmtool.models.fake import loaded
from llmtool.stages import cost
from llmtool.stages.assemble import Assembled
from llmtool.training import TrainConfig


@dataclass
class Peak:
    """What a training needed at most, in bytes; None where this system does not say."""

    bytes: int | None = None


@contextmanager
def watched(model: nn.Module, device: torch.device) -> Iterator[Peak]:
    """Measures the most memory that the block needed, the weights of `model` counted in.

    On CUDA what torch had allocated; on a CPU what the process held, beside what stood before the model and
    beside files that are mapped into memory.
    """
    peak = Peak()
    weights = weight_bytes(model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = int(torch.cuda.max_memory_allocated(device))
        return
    release_memory()
    with contextlib.suppress(OSError):  # begins the high-water mark anew; not Linux, or not allowed
        Path("/proc/self/clear_refs").write_text("5")
    before, most_before, known = _status(), _most(), loaded.cache_info().currsize
    yield peak
    after, most = _status(), _most()
    more = 0 if known or not loaded.cache_info().currsize else loaded()  # to look ahead, not to train
    if not before or not after:
        peak.bytes = most - most_before + weights if most > most_before else None
        return
    mapped = max(0, after["RssFile"] - before["RssFile"])
    peak.bytes = max(0, after["VmHWM"] - before["VmRSS"] - mapped - more) + weights


def _status() -> dict[str, int]:
    """Bytes that this process has in memory, by Linux; empty elsewhere."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return {}
    found = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return found if {"VmHWM", "VmRSS", "RssFile"} <= found.keys() else {}


def _most() -> int:
    """The most bytes this process ever had (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compared(
    predicted: dict[str, Any], peak: Peak, step_seconds: float | None, seconds: float
) -> dict[str, Any]:
    """What result.json says: predicted, actual, and `error`: the share it was more than that."""
    kept = ("device", "peak_bytes", "step_seconds", "seconds", "kwh", "memory", "micro_batch", "batch")
    actual = {"peak_bytes": peak.bytes, "step_seconds": step_seconds, "seconds": seconds}
    errors = {
        name: None if real is None or not predicted[name] else real / predicted[name] - 1
        for name, real in actual.items()
    }
    return {"predicted": {name: predicted[name] for name in kept}, "actual": actual, "error": errors}


def seconds_of_step(throughput: dict[str, float], batch: int, tokens: int) -> float | None:
    """Seconds of a step by what the meter saw; None where it saw too few."""
    if rate := throughput.get("rows_per_second"):
        return batch / rate
    rate = throughput.get("tokens_per_second", 0.0)
    return batch * tokens / rate if rate else None


def result(
    assembled: Assembled, config: TrainConfig, peak: Peak, throughput: dict[str, float], seconds: float
) -> dict[str, Any]:
    """`cost` of result.json, after a training with this config, every `auto` of it resolved."""
    work = cost.of_assembled(assembled, config)
    device = assembled.device
    predicted = cost.predict(work, cost.here(work, device), cost.augmentation(work, device))
    tokens = assembled.batches("train").tokens_per_row
    return compared(predicted, peak, seconds_of_step(throughput, work.batch, tokens), seconds)


def last(root: Path) -> dict[str, dict[str, Any]]:
    """`cost` of the run's last train and finetune, where these are done."""
    found = {}
    for section in ("train", "finetune"):
        with contextlib.suppress(LlmtoolError, ValueError):
            done = files.read_json(root / section / RESULT)
            if done.get("status") == "done" and isinstance(done.get("cost"), dict):
                found[section] = done["cost"]
    return found
