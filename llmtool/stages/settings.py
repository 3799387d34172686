"""What a training's `auto` settings mean on this device and data, as the plain numbers the loop goes by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from llmtool.core.devices import is_out_of_memory
from llmtool.core.errors import ConfigError, DataError, MemoryLimitError
from llmtool.data.batches import Batches
from llmtool.experiment import FinetuneConfig
from llmtool.models.recompute import recompute
from llmtool.stages.assemble import Assembled
from llmtool.stages.room import Room, fewest_recomputed, refuse_what_never_fits, room_of
from llmtool.tasks.classification import ClassificationTask
from llmtool.tasks.multilabel import MultilabelTask
from llmtool.training import TrainConfig
from llmtool.training.loop import Plan
from llmtool.training.parts import divisor, most_that_fits

CPU_TOKENS, CUDA_TOKENS = 1024, 32768  # tokens of one optimizer step when `batch` is auto
CPU_RATE = 30e9  # FLOP/s that a core reaches in these models, measured
REACHED = 0.5  # share of a GPU's peak that a training step reaches, about: models.timing has it by the step
ONE_THREAD = 3e7  # FLOPs of a micro-batch that a second CPU core makes no faster, measured
LAUNCHED = 4e12  # FLOPs of a micro-batch that a GPU computes in the time its kernels take to launch, at most
MOST_FLOPS = 1e14  # of a micro-batch on CUDA: a tenth of a second at the least; a larger one gains nothing
COMPILE_PAYS = 600.0  # seconds of CPU training from which 20-60 s of compilation come back


class Amount(Protocol):
    """How much there is to train on."""

    rows: int
    tokens_per_row: int
    scored: Any  # None where rows are of one length


def resolve(
    config: TrainConfig,
    train: Amount,
    device: torch.device,
    flops_per_row: float | None,
    room: Room | None = None,
    replicas: int = 1,
) -> TrainConfig:
    """The config with every `auto` replaced by what it means here; the batch is at most all rows.

    replicas: among how many ranks, or groups of ranks, the rows of a batch are cut.
    room: without it no block is recomputed by itself, and a batch goes through the model at once.
    """
    rows, tokens, cuda = train.rows, train.tokens_per_row, device.type == "cuda"
    if rows == 0:
        raise DataError(
            "the train split has no rows to learn from"
            if tokens == 1
            else f"the train split is too short: the model's context needs {tokens + 1} tokens in a row"
        )
    if config.budget.tokens is not None and tokens == 1:
        raise ConfigError("budget.tokens counts tokens; this dataset has rows: use steps, epochs or time")
    if config.batch != "auto":
        batch = config.batch
    elif tokens > 1:
        batch = _power_of_two((CUDA_TOKENS if cuda else CPU_TOKENS) / tokens, 4, 4096)
    else:
        batch = _power_of_two(rows / 64, 32, 1024)
    batch = min(batch, rows)
    share = share_of(batch, replicas, section_of(config))
    if config.micro_batch == "auto":
        micro = _at_once(config, share, room, flops_per_row if cuda else None)
    else:
        micro = min(config.micro_batch, share)
    steps = config.budget.total_steps(rows, batch, tokens)
    updates: dict[str, Any] = {"batch": batch, "micro_batch": micro}
    updates["activation_checkpointing"] = _recomputed(config, micro, room)
    if config.log_every == "auto":
        updates["log_every"] = 20 if steps is None else max(1, steps // 100)
    epochs = config.budget.epochs
    if config.validate_every == "auto" and steps is not None:
        per_epoch = math.ceil(rows / batch)
        updates["validate_every"] = per_epoch if epochs and 5 <= epochs <= 20 else max(1, steps // 10)
    if config.checkpoint_every == "auto" and steps is not None:
        updates["checkpoint_every"] = updates.get("validate_every", config.validate_every)
    if config.compile == "auto":
        seconds = (flops_per_row or 0.0) * batch * (steps or 0) / (CPU_RATE * torch.get_num_threads())
        even = train.scored is None  # a graph is for one shape, texts have many
        updates["compile"] = even and (cuda or seconds > COMPILE_PAYS)
        if cuda and even and flops_per_row is not None and flops_per_row * micro < LAUNCHED:
            updates["compile"] = "graphs"
    elif config.compile == "graphs" and not cuda:
        raise ConfigError("compile: graphs are CUDA's; on a CPU choose true, false or auto")
    return config.model_copy(update=updates)


def share_of(batch: int, replicas: int, section: str) -> int:
    """Rows of a batch that each rank computes. ConfigError where they cannot be equally many."""
    if batch % replicas:
        near = [replicas * count for count in (batch // replicas, batch // replicas + 1) if count]
        raise ConfigError(
            f"{section}.batch: {batch} rows cannot be cut among {replicas} ranks equally (nearest: "
            f"{' or '.join(map(str, near))})"
        )
    return batch // replicas


def section_of(config: TrainConfig) -> str:
    """Where the file says how to train so."""
    return "finetune" if isinstance(config, FinetuneConfig) else "train"


def settle(
    assembled: Assembled,
    config: TrainConfig,
    train: Amount,
    flops_per_row: float | None,
    replicas: int = 1,
) -> TrainConfig:
    """`resolve` for an assembled model, which from now on recomputes the blocks that it is to."""
    room = room_of(assembled, config, flops_per_row)
    resolved = resolve(config, train, assembled.device, flops_per_row, room, replicas)
    assert isinstance(resolved.activation_checkpointing, int)
    recompute(assembled.model, resolved.activation_checkpointing)
    refuse_what_never_fits(room, resolved, section_of(config))
    return resolved


def refuse_misfits(config: TrainConfig, section: str, task: Any, validated: bool) -> None:
    """ConfigError for what this task, or data without a validation split, cannot do."""
    if not validated and getattr(task, "tunes", False):
        raise ConfigError("task.thresholds: tuned needs scores of validation, and there is no such split")
    if not validated and (config.stop or config.select):
        key = f"{section}.{'stop' if config.stop else 'select'}"
        without = f"; {key}: null trains without" if config.stop else ""  # some families' recipes stop
        raise ConfigError(f"{key}: needs validation scores, but the dataset has no validation split{without}")
    if config.augment.mixes and not isinstance(task, ClassificationTask | MultilabelTask):
        raise ConfigError("augment: mixup and cutmix mix classes or labels; this task has none")


def _at_once(config: TrainConfig, batch: int, room: Room | None, flops_per_row: float | None) -> int:
    """The largest part of a batch that fits into memory: as it is, or else with every block recomputed that
    may be. flops_per_row: where parts that take long enough are to be no larger; None: nowhere."""
    if room is None or (there := room.device_bytes) is None:
        return batch
    asked, most = config.activation_checkpointing, batch
    if flops_per_row and not room.norms:
        most = divisor(batch, int(MOST_FLOPS / flops_per_row))
    first = min(asked, room.blocks) if isinstance(asked, int) else room.blocks if asked == "all" else 0
    for again in dict.fromkeys([first, room.blocks if asked == "auto" else first]):
        fits = lambda rows, again=again: room.needs(rows, again).fits(there)  # noqa: E731
        if found := most if fits(most) else most_that_fits(batch, most, fits):
            return found
    return divisor(batch, 2 if room.norms else 1)


def _recomputed(config: TrainConfig, rows: int, room: Room | None) -> int:
    """How many blocks are recomputed in a step with so many rows at once."""
    asked, there = config.activation_checkpointing, 0 if room is None else room.blocks
    if asked == "none" or room is None:
        return 0
    if asked == "all":
        return there
    if asked == "auto":
        return fewest_recomputed(room, rows)
    if asked > there:
        has = f"{there} blocks that learn" if there else "no blocks that learn one after another"
        key = f"{section_of(config)}.activation_checkpointing"
        raise ConfigError(
            f"{key}: {asked} blocks are to be computed again, and the model has {has}"
            + ("; all takes what there are" if there else "; leave the key out")
        )
    return asked


def make_plan(config: TrainConfig, train: Batches, assembled: Assembled) -> Plan:
    """The plain numbers the loop goes by; an `auto` left (wall time as budget) is every tenth of it."""
    assert isinstance(config.batch, int)
    assert isinstance(config.micro_batch, int)
    assert isinstance(config.log_every, int)
    steps = config.budget.total_steps(train.rows, config.batch, train.tokens_per_row)
    return Plan(
        batch=config.batch,
        micro_batch=config.micro_batch,
        steps=steps,
        seconds=config.budget.seconds if steps is None else None,
        session=config.budget.seconds if steps is not None else None,
        clip=config.clip,
        log_every=config.log_every,
        validate_every=None if config.validate_every == "auto" else config.validate_every,
        checkpoint_every=None if config.checkpoint_every == "auto" else config.checkpoint_every,
        mode=config.select.mode if config.select else assembled.task.mode,
        patience=config.stop.patience if config.stop else None,
        seed=assembled.seed,
        fp16=assembled.precision.scaler,
        skip=config.guard.action == "skip",
        spread=config.guard.spread,
        most=config.guard.most,
    )


def _power_of_two(wanted: float, low: int, high: int) -> int:
    return int(min(high, max(low, 2 ** round(math.log2(max(1.0, wanted))))))


def few_threads(config: TrainConfig, flops_per_row: float | None, device: torch.device) -> int | None:
    """One where a second CPU core makes a micro-batch no faster; None: as many as there are."""
    assert isinstance(config.micro_batch, int)
    small = flops_per_row is not None and flops_per_row * config.micro_batch < ONE_THREAD
    return 1 if small and device.type == "cpu" else None


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """torch's CPU threads within the block; None: as they are. They decide the last bits of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def out_of_memory(rows: Callable[[], int], section: str = "train") -> Iterator[None]:
    """Whatever torch raises for want of memory, as MemoryLimitError with what to do. rows: at once, by now.

    A step that does not fit is made again with fewer rows; what ends here is one of the fewest, or no step.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise no_memory(rows(), section) from None


def no_memory(rows: int, section: str, least: bool = False) -> MemoryLimitError:
    """The error of a training that cannot go on with so many rows at once; least: fewer cannot be."""
    fewer = f"{section}.micro_batch: {max(1, rows // 2)} needs less and gives the same result"
    smaller = (
        "a smaller model or shorter context is needed, or a device with more memory; `llmtool describe` "
        "lists what would fit"
    )
    return MemoryLimitError(
        f"out of memory with {rows} row{'s' if rows > 1 else ''} at once; "
        + (smaller if least or rows == 1 else fewer)
    )
