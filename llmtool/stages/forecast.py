"""What the real run will take, by what a rehearsal measured: time, memory and disk."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmtool.core import files
from llmtool.core.console import bytes_
from llmtool.core.errors import LlmtoolError, MemoryLimitError
from llmtool.data.packing import is_packed
from llmtool.models.accounting import Memory
from llmtool.models.timing import SHARE
from llmtool.stages.fitting import Proposal, says
from llmtool.stages.settings import resolve
from llmtool.training import TrainConfig

STEP = 3.0  # seconds that a rehearsed step may take; a longer one is rehearsed with fewer rows
SCORING = 1.5  # seconds that scoring a split may take
HEAVY = 3e9  # bytes of weights and optimizer state beyond which writing checkpoints alone takes a minute
LINEAR, NF4 = ("Linear", "Conv1D"), 0.5 + 4 / 64  # what is put into four bits, and bytes of a weight there
KEPT = 2  # checkpoints beside the `keep` newest ones at one moment: the best one, and one being written


@dataclass
class Rows:
    """How much training data the whole source gives, as far as a sample can tell."""

    rows: int
    tokens_per_row: int
    scored: tuple[int, ...] | None = None  # of texts that have targets: their rows have many lengths


class Resolved:
    """A training with every `auto` of its config resolved: its rows as numbers."""

    config: TrainConfig

    @property
    def batch(self) -> int:
        """Rows of an optimizer step."""
        assert isinstance(self.config.batch, int)
        return self.config.batch

    @property
    def micro_batch(self) -> int:
        """Rows at once."""
        assert isinstance(self.config.micro_batch, int)
        return self.config.micro_batch


@dataclass(frozen=True)
class Fitting(Resolved):
    """`train` or `finetune` as it will really be, and as it is rehearsed.

    config: every `auto` resolved for the whole data. steps: in all; None where wall time is the budget.
    rehearsed: rows of a step that this machine does in a few seconds.
    """

    config: TrainConfig
    rows: int
    tokens_per_row: int
    steps: int | None
    rehearsed: int
    expected: float  # seconds of a whole step, as predicted


def rows_of(
    card: dict[str, Any],
    split: str,
    share: float,
    tokens_per_row: int,
    mixture: Mapping[str, float] | None = None,
) -> int:
    """Rows (of text: windows) of a split of the whole data; share: the part of it that the card is of.
    mixture: only the parts that it gives a weight.
    """
    meta = card["splits"].get(split, {})
    if mixture is not None and "parts" in meta:
        drawn = [part for name, part in meta["parts"].items() if mixture.get(name)]
        metas = [{**meta, **part, "documents": part["rows"]} for part in drawn]
        cards = [{**card, "splits": {split: one}} for one in metas]
        return sum(rows_of(one, split, share, tokens_per_row) for one in cards)
    if tokens_per_row == 1 or "targets" in meta.get("arrays", {}):
        return round(meta.get("rows", 0) / share)
    if is_packed(card, split, tokens_per_row):  # best fit leaves next to nothing free
        return max(1, round(meta["tokens"] / share / tokens_per_row))
    if "trained" in meta or "whole" in meta:
        return round(meta["documents"] / share)
    pairs = round(meta.get("tokens", 0) / share) - 1
    return 0 if pairs < tokens_per_row else max(1, pairs // tokens_per_row - 1)


def fitting(
    config: TrainConfig, card: dict[str, Any], share: float, description: dict[str, Any], rate: float
) -> Fitting:
    """Resolve `config` for the whole data. rate: FLOP/s of the device. Raises what training would."""
    flops, tokens = description["flops"], description["flops"]["tokens_per_row"]
    rows = rows_of(card, "train", share, tokens, config.mixture)
    device = torch.device(description["memory"]["training"]["device"])
    each = float(flops["row_forward"] + flops["row_backward"])
    labelled = card.get("encoding") == "text"
    room = DescribedRoom(description, *_method(config))
    resolved = resolve(config, Rows(rows, tokens, () if labelled else None), device, each, room)
    assert isinstance(resolved.batch, int)
    row, update = row_seconds(description, rate)
    fits = max(1, int((STEP - update) / row)) if update < STEP else 1
    batch = min(resolved.batch, fits)
    if batch < resolved.batch and isinstance(resolved.micro_batch, int) and batch > resolved.micro_batch:
        batch -= batch % resolved.micro_batch
    steps = resolved.budget.total_steps(rows, resolved.batch, tokens)
    return Fitting(resolved, rows, tokens, steps, batch, resolved.batch * row + update)


def row_seconds(description: dict[str, Any], rate: float) -> tuple[float, float]:
    """Seconds of a row of a step, and of the update after it, as `describe` predicts them (models.timing).

    rate: FLOP/s of the device, for a model whose training is not described.
    """
    cost = (description.get("cost") or {}).get("here") or {}
    if cost.get("step_seconds"):
        return cost["micro_batch_seconds"] / cost["micro_batch"], cost["update_seconds"]
    flops = description["flops"]
    each = float(flops["row_forward"] + flops["row_backward"])
    return max(each / (SHARE["cpu"] * rate), 1e-6), 0.0


def affordable_rows(description: dict[str, Any], rate: float) -> int:
    """Rows (of text without targets: tokens) that are scored in a second or two."""
    tokens = description["flops"]["tokens_per_row"]
    flops = description["flops"]
    whole = max(1, flops["row_forward"] + flops["row_backward"])
    scored = row_seconds(description, rate)[0] * flops["row_forward"] / whole / tokens
    most = int(SCORING / max(scored, 1e-9))
    if (description["data"] or {}).get("encoding") == "text":
        return max(64, most // tokens)
    return max(256 if tokens == 1 else 4 * tokens, most)


def too_heavy(description: dict[str, Any], rate: float) -> str:
    """Why the model cannot be rehearsed in a minute on this machine; empty where it can."""
    memory = description["memory"]
    state = memory["weights"] + memory["optimizer"]
    if state > HEAVY:
        return f"each checkpoint has {bytes_(state)}, more than can be written and read again in a minute"
    row, _ = row_seconds(description, rate)
    if row > 2 * STEP:
        return f"a step of a single row takes about {row:.0f} s here"
    return ""


def _method(config: TrainConfig) -> tuple[str, bool]:
    """Which weights are trained, and whether linear layers are kept in four bits."""
    method = getattr(config, "method", None)
    return getattr(method, "kind", "full"), getattr(method, "quantise", "none") != "none"


class DescribedRoom:
    """What a step needs by a description of the model.

    method: of fine-tuning; where it trains only a part of the model, this is the least that it needs.
    quantised: whether its linear layers are kept in four bits.
    """

    def __init__(self, description: dict[str, Any], method: str, quantised: bool) -> None:
        self.said, self.full = description["memory"], method == "full"
        self.kept = self.said["activations_by_recomputed"] if method in ("full", "lora") else [0]
        self.norms = description["family"] == "convnet"
        self.blocks, self.device_bytes = len(self.kept) - 1, self.said["device_bytes"]
        self.saved = four_bits_save(description["structure"]) if quantised else 0

    def needs(self, rows: int, recomputed: int) -> Memory:
        """Of a step with so many rows at once, with so many blocks recomputed."""
        return Memory(
            weights=self.said["weights"] - self.saved,
            gradients=self.said["gradients"] if self.full else 0,
            optimizer=self.said["optimizer"] if self.full else 0,
            activations=round(self.kept[recomputed] / self.said["training"]["rows"] * rows),
            held=self.said["held"],
        )


def refuse_memory(
    description: dict[str, Any],
    fit: Fitting,
    section: str,
    changes: Callable[[int], list[Proposal]] = lambda less: [],
) -> dict[str, Any]:
    """What training needs at once; MemoryLimitError where the device has less, with what would fit.

    changes: those with which it fits, of weights that have so many bytes less (in four bits).
    """
    recomputed = fit.config.activation_checkpointing
    assert isinstance(recomputed, int)
    room = DescribedRoom(description, *_method(fit.config))
    memory = room.needs(fit.micro_batch, recomputed)
    activations, needed, there = memory.activations, memory.total, room.device_bytes
    if there is not None and not memory.fits(there):
        raise MemoryLimitError(
            f"{section}: {fit.micro_batch} rows at once, with {bytes_(memory.live - activations)} of "
            f"weights, gradients and optimizer and {bytes_(activations)} of activations: "
            + says(changes(room.saved), needed, there)
        )
    return {"needed": needed, "activations": activations, "device_bytes": there, "rows": fit.micro_batch}


def four_bits_save(structure: dict[str, Any]) -> int:
    """Bytes that a model's weights have less with its linear layers, but the output layer, in four bits."""
    head = structure["parts"][-1]["name"]  # the output layer comes last
    return sum(_four_bits_save(part) for part in structure["parts"] if part["name"] != head)


def _four_bits_save(part: dict[str, Any]) -> int:
    if part["kind"] in LINEAR:
        return int(part["parameters"] * (4 - NF4))
    return sum(_four_bits_save(inner) for inner in part["parts"])


def clock(rows: list[dict[str, Any]], saved_at: int) -> tuple[float, float]:
    """Seconds of a step and of a checkpoint, by metrics.jsonl with a line for each step."""
    seconds = {row["step"]: row["time"]["seconds"] for row in rows if "loss" in row}
    between = [seconds[step] - seconds[step - 1] for step in range(2, saved_at + 1)] or [seconds[1]]
    step = statistics.median(between)
    return step, max(0.0, seconds[saved_at + 1] - seconds[saved_at] - step)


def occasions(config: TrainConfig, steps: int) -> tuple[int, int]:
    """How often a run of so many steps is validated and saved."""
    validations, checkpoints = (
        math.ceil(steps / every) if isinstance(every, int) else 10
        for every in (config.validate_every, config.checkpoint_every)
    )
    return validations, checkpoints


def time_of(
    fit: Fitting, measured: tuple[float, float], description: dict[str, Any], validation_rows: int
) -> dict[str, Any]:
    """Steps and seconds of the real training. measured: seconds of a rehearsed step and of a checkpoint."""
    step = measured[0] * fit.batch / fit.rehearsed
    if fit.steps is None:
        return {"steps": None, "step_seconds": step, "seconds": fit.config.budget.seconds, "checkpoints": 10}
    flops = description["flops"]
    forward = flops["row_forward"] / max(1, flops["row_forward"] + flops["row_backward"])
    validations, checkpoints = occasions(fit.config, fit.steps)
    scoring = step / fit.batch * forward * validation_rows
    if not validation_rows:
        validations = 0
    seconds = fit.steps * step + validations * scoring + checkpoints * measured[1]
    return {
        "steps": fit.steps,
        "batch": fit.batch,
        "step_seconds": step,
        "validations": validations,
        "checkpoints": checkpoints,
        "seconds": seconds,
    }


def refuse_disk(run: Path, dataset: int, checkpoints: dict[str, tuple[int, int, int]]) -> dict[str, Any]:
    """Bytes that the run's directory needs; LlmtoolError where fewer are free.

    checkpoints: section -> bytes of one, how many are written, how many newest ones are kept.
    """
    parts = {"dataset": dataset}
    for section, (size, written, keep) in checkpoints.items():
        parts[section] = size * min(written + 1, keep + KEPT)
    needed, free = sum(parts.values()), files.free_bytes(run)
    if needed > free:
        listed = ", ".join(f"{name} {bytes_(size)}" for name, size in parts.items())
        raise LlmtoolError(
            f"{run}: the disk would be full: the run needs about {bytes_(needed)} ({listed}), and "
            f"{bytes_(free)} are free; fewer checkpoints (`keep`, `checkpoint_every`) need less"
        )
    return {"needed": needed, "free": free, **parts}


def size_of(directory: Path) -> int:
    """Bytes of the files below a directory; 0 where there is none."""
    return sum(
        path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink()
    )
