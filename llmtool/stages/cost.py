"""What a training will take on a device: memory, time, energy and money, before it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llmtool.core.contracts import Batch, Images, InputSpec
from llmtool.core.devices import PRECISIONS, fastest, figures, products_in
from llmtool.core.errors import first_line
from llmtool.core.hardware import Device
from llmtool.models import accounting, timing
from llmtool.models.tracing import Trace
from llmtool.stages.assemble import Assembled
from llmtool.stages.describe import Subject
from llmtool.stages.forecast import Resolved, Rows, occasions, rows_of
from llmtool.stages.room import ModelRoom, average_bytes, packed, tokens_of
from llmtool.stages.score import rows_at_once
from llmtool.stages.settings import few_threads, resolve, threads
from llmtool.training import TrainConfig
from llmtool.training.augment import Augment
from llmtool.training.average import Average
from llmtool.training.optimizers import NO_RATES, Rates

WORKSPACE = 64 * 2**20  # bytes that cuBLAS takes for itself in both threads of a step, on Hopper
SAVED = 0.25e9  # bytes of a checkpoint written, hashed and synced in a second, about
COPIES = {"cpu": 3, "cuda": 1}  # of the optimizer's state, while a checkpoint is written: clone, bytes, file
UNKNOWN = ("memory", "peak_bytes", "fits", "step_seconds", "steps", "seconds", "kwh", "price")
UNKNOWN_ROWS = 2**40  # of data that is not prepared yet: enough for any batch
LOOP = 1.5e-4  # seconds of a step beside the model's own work: rows, random streams, guards


@dataclass
class Work(Resolved):
    """A training, as far as its cost goes.

    config: every `auto` resolved. inputs: of the model. rows: of the whole data; 0: not known. tokens, mean:
    of the longest row and of a mean one. validation_rows: None: not known, 0: there is no such split. packed:
    documents kept apart by a mask.
    """

    model: nn.Module
    config: TrainConfig
    inputs: InputSpec
    rows: int
    tokens: int = 1
    mean: float = 1.0
    validation_rows: int | None = None
    precision: str = "fp32"
    packed: bool = False
    rates: Rates = field(default_factory=lambda: NO_RATES)

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the whole run; None where wall time is the budget, or the rows are not known."""
        budget = self.config.budget
        if not self.rows and budget.epochs is not None:
            return None
        return budget.total_steps(self.rows, self.batch, self.tokens)


def of_assembled(assembled: Assembled, config: TrainConfig) -> Work:
    """The training that was assembled. config: with every `auto` resolved."""
    train, card = assembled.batches("train"), assembled.dataset.card
    model: Any = assembled.model
    tokens = min(train.tokens_per_row, getattr(model, "context", train.tokens_per_row))
    validation = assembled.batches("validation").rows if "validation" in assembled.dataset.splits else 0
    return Work(
        model,
        config,
        assembled.dataset.inputs,
        train.rows,
        tokens,
        _mean(card, tokens),
        validation,
        assembled.precision.name,
        packed(card, tokens),
        assembled.rates,
    )


def of_file(
    subject: Subject, config: TrainConfig, device: Device, precision: str, rates: Rates = NO_RATES
) -> Work:
    """The training that a file asks for, on a device, in that precision, nothing assembled."""
    model: Any = subject.model
    card, tokens = subject.card, tokens_of(model)
    known = card is not None and bool(card["splits"].get("train"))
    rows, validation = (
        rows_of(card, split, 1.0, tokens, mixture) if known and card is not None else 0
        for split, mixture in (("train", config.mixture), ("validation", None))
    )
    ragged = known and card is not None and card.get("encoding") == "text"
    amount = Rows(rows or UNKNOWN_ROWS, tokens, () if ragged else None)
    flops = float(model.flops(tokens)) if hasattr(model, "flops") else None
    there = None if device.memory is None else int(device.memory)
    how = (precision, device.kind, packed(card, tokens))
    room = ModelRoom(model, config.optimizer.name, config.ema is not None, how, flops, there)
    resolved = resolve(config, amount, torch.device(device.kind), flops, room)
    mean = _mean(card, tokens) if card is not None and known else float(tokens)
    return Work(
        model,
        resolved,
        model.inputs,
        rows,
        tokens,
        mean,
        validation if known else None,
        precision,
        packed(card, tokens),
        rates,
    )


def _mean(card: dict[str, Any], tokens: int) -> float:
    """Tokens of a row of training: of texts that have a target the mean, else all are as long."""
    train = card["splits"]["train"]
    if card.get("encoding") != "text" or not train.get("rows"):
        return float(tokens)
    return min(float(tokens), max(1.0, train.get("tokens", tokens) / train["rows"]))


# --- before -----------------------------------------------------------------------------------------------


def predict(work: Work, device: Device, augmentation: float | None = None) -> dict[str, Any]:
    """Peak memory, seconds of a step and of the run, energy and money of `work` on a device.

    augmentation: seconds of a micro-batch's there; None: not known. What the device's figures do not say is
    None, and `missing` says why.
    """
    found: dict[str, Any] = {
        "device": device.name,
        "precision": work.precision,
        "batch": work.batch,
        "micro_batch": work.micro_batch,
        "device_bytes": device.memory,
        "currency": device.currency,
        "figures": device.source,
        **dict.fromkeys(UNKNOWN),
    }
    try:
        step, scored = _traces(work, device.kind)
    except Exception as error:  # whatever a model does that tensors without data cannot; training goes on
        said = f"memory and time: a step could not be followed without data ({first_line(error)})"
        return found | {"missing": [said]}
    found["memory"] = memory(work, step, scored, device.kind)
    found["peak_bytes"] = found["memory"]["total"]
    if device.memory is not None:
        found["fits"] = found["peak_bytes"] <= 0.95 * device.memory
    missing = []
    parts_of_step = _seconds(work, step, scored, device, augmentation or 0.0)
    if parts_of_step is None:
        missing.append(
            f"time: no matrix rate of {device.name} in fp32 is known; `teraflops` in --devices says it"
        )
    else:
        found |= parts_of_step
        found |= _run(work, step, found)
        if augmentation is None and _augments(work):
            missing.append(
                f"augmentation: a step's time on {device.name} leaves it out; it is measured where it runs"
            )
        if found["seconds"] is None:
            missing.append("total: how many steps it will be is known after `llmtool prepare`")
    if found["seconds"] is not None:
        found["kwh"] = timing.kilowatt_hours(found["seconds"], device)
        found["price"] = timing.price(found["seconds"], device)
    if device.kind == "cuda" and device.flops and work.precision not in device.flops:
        missing.append(f"{work.precision} on {device.name}: it may not have it; figures are those of fp32")
    if device.watts is None:
        missing.append(f"energy: the power of {device.name}; `watts` in --devices says it")
    if device.price_per_hour is None:
        missing.append("price: `price_per_hour` in --devices says it")
    return found | {"missing": missing}


def memory(work: Work, step: Trace, scored: Trace, kind: str) -> dict[str, int]:
    """Bytes at the fullest moment, which is in a step, in scoring or in saving; `total` is their sum."""
    model = work.model
    weights = accounting.weight_bytes(model)
    average = 0 if work.config.ema is None else average_bytes(model)
    optimizer = step.state - average
    moment = max(step.peak, scored.forward, COPIES[kind] * optimizer)
    live = weights + step.state + moment
    held = round(live * (accounting.HELD[kind] - 1)) if kind == "cpu" else WORKSPACE
    return {
        "weights": weights,
        "optimizer": optimizer,
        "average": average,
        "step": step.peak,
        "scoring": scored.forward,
        "saving": COPIES[kind] * optimizer,
        "allocator": held,
        "total": live + held,
    }


def _seconds(
    work: Work, step: Trace, scored: Trace, device: Device, augmentation: float
) -> dict[str, float] | None:
    """Seconds of a step, of its parts, and of scoring a row; None where the device's figures do not say."""
    compiled, micros = work.config.compile, math.ceil(work.batch / work.micro_batch)
    whole, one = (timing.step_seconds(step, device, work.precision, n, compiled) for n in (micros, 1))
    none = timing.step_seconds(step, device, work.precision, 0, compiled)
    if whole is None or one is None or none is None:
        return None
    share = work.mean / work.tokens  # rows that are shorter than the longest
    scoring = timing.forward_seconds(scored, device, work.precision) * share
    rows = _scored_rows(work, device.kind)
    return {
        "step_seconds": share * (whole - none) + micros * augmentation + none + LOOP,
        "micro_batch_seconds": share * (one - none) + augmentation,
        "augmentation_seconds": augmentation,  # of a micro-batch, and in its seconds
        "update_seconds": none + LOOP,
        "scored_row_seconds": scoring / max(1, rows),
    }


def _run(work: Work, step: Trace, found: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the whole run: steps, validations, checkpoints."""
    config, steps = work.config, work.steps
    if steps is None:
        return {"steps": None, "seconds": config.budget.seconds}
    validations, checkpoints = occasions(config, steps)
    scoring = validations * (work.validation_rows or 0) * found["scored_row_seconds"]
    size = found["memory"]["weights"] + step.state
    saving = checkpoints * size / SAVED
    return {
        "steps": steps,
        "seconds": steps * found["step_seconds"] + scoring + saving,
        "scoring_seconds": scoring,
        "saving_seconds": saving,
    }


def here(work: Work, device: torch.device) -> Device:
    """This machine's figures for `work`: of a CPU with the threads that the training will have."""
    with _threads_of(work, device):
        return figures(device, PRECISIONS[work.precision])


def augmentation(work: Work, device: torch.device) -> float:
    """Seconds in which the pictures of a micro-batch are changed on this machine, measured on noise; of large
    ones on some of the rows. 0 where nothing is changed."""
    if not _augments(work):
        return 0.0
    config, inputs = work.config.augment, work.inputs
    assert isinstance(inputs, Images)
    rows = min(work.micro_batch, rows_at_once(inputs, device.type, 1))
    shape = (rows, inputs.channels, inputs.height, inputs.width)
    noise = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scale = torch.zeros(inputs.channels), torch.ones(inputs.channels)
    batch = Batch(noise, torch.zeros(rows, dtype=torch.int64), scale=scale).on(device)
    times = 2 if config.mixes and work.micro_batch < work.batch else 1  # those mixed in are of other rows

    def change() -> None:
        augment = Augment(config, inputs, 0, rows)
        changed = [batch.ready(augment.change(0, 0)) for _ in range(times)]
        if augment.mixes:
            augment.mixed(changed[0], changed[-1], 0, 0)

    with _threads_of(work, device):
        return fastest(device, change) * work.micro_batch / rows


def _augments(work: Work) -> bool:
    return isinstance(work.inputs, Images) and work.config.augment.active


def _threads_of(work: Work, device: torch.device) -> AbstractContextManager[None]:
    model: Any = work.model
    flops = float(model.flops(work.tokens)) if hasattr(model, "flops") else None
    return threads(few_threads(work.config, flops, device))


def _traces(work: Work, kind: str) -> tuple[Trace, Trace]:
    """A step, and the forward pass of scoring, on a device of that kind."""
    model, tokens, accumulate = work.model, work.tokens, work.batch > work.micro_batch
    how = (work.precision, kind, work.packed)
    recomputed = work.config.activation_checkpointing
    assert isinstance(recomputed, int)
    step = accounting.step(
        model,
        work.micro_batch,
        tokens,
        *how,
        update=_update(work, kind),
        accumulate=accumulate,
        recomputed=recomputed,
    )
    rows = _scored_rows(work, kind)
    return step, accounting.step(model, rows, tokens, *how, scored=True) if rows else Trace()


def _scored_rows(work: Work, kind: str) -> int:
    """Rows that are scored at once; 0 where there is no validation split."""
    there = UNKNOWN_ROWS if work.validation_rows is None else work.validation_rows
    return min(rows_at_once(work.inputs, kind, work.tokens), there)


def _update(work: Work, kind: str) -> Callable[[nn.Module], Callable[[], None]]:
    """The end of a step as the loop makes it: norm, optimizer, average."""

    def build(model: nn.Module) -> Callable[[], None]:
        optimizers = work.config.optimizer.build(model, work.rates)
        optimizers.multiply_in(products_in(work.precision, kind))
        average = Average(model, work.config.ema) if work.config.ema else None
        place = next(model.parameters()).device
        skip: Tensor | None = None
        if kind == "cuda":  # the guard's flag stays on the device
            skip = torch.zeros((), dtype=torch.bool, device=place)

        def update() -> None:
            torch.stack(torch._foreach_norm(optimizers.gradients()))
            optimizers.step(torch.ones((), device=place), skip)
            if average is not None:
                average.update(0, skip)

        return update

    return build
