"""Trains an assembled model: resolves what is `auto`, resumes, and hands the loop its three verbs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor

from llmtool.core import checkpoint, files
from llmtool.core.contracts import Batch, Loss
from llmtool.core.devices import is_out_of_memory
from llmtool.core.environment import environment
from llmtool.core.errors import ConfigError, DataError, MemoryLimitError
from llmtool.data.batches import Batches
from llmtool.evaluation.loop import evaluate
from llmtool.stages.assemble import STATE, Assembled
from llmtool.stages.score import auto_batch
from llmtool.training import TrainConfig
from llmtool.training.loop import Loop, Plan, State, Verbs
from llmtool.training.throughput import Meter

CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"
OPTIMIZER, LOOP = "optimizer.safetensors", "loop.json"
CPU_TOKENS, CUDA_TOKENS = 1024, 32768  # tokens of one optimizer step when `batch` is auto
CPU_RATE = 30e9  # FLOP/s that a core reaches in these models, measured
ONE_THREAD = 3e7  # FLOPs of a micro-batch that a second CPU core makes no faster, measured
COMPILE_PAYS = 600.0  # seconds of CPU training from which 20-60 s of compilation come back


class Progress(Protocol):
    """Who is told how it goes."""

    def row(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl, as soon as it is known."""

    def note(self, text: str) -> None:
        """A sentence a person should read."""


@dataclass
class FitResult:
    """How training ended. `best` and `last` are checkpoint directories (links, replaced by later runs)."""

    best: Path
    last: Path
    step: int
    reason: str  # "budget" or "patience"
    metric: str
    best_step: int
    best_value: float | None
    config: TrainConfig  # with every `auto` resolved
    seconds: float  # of all sessions
    throughput: dict[str, float]
    resumed_from: int | None = None
    notes: list[str] = field(default_factory=list)


def fit(
    assembled: Assembled,
    config: TrainConfig,
    directory: Path,
    *,
    progress: Progress,
    resume: bool = False,
    as_yaml: Callable[[TrainConfig], str] | None = None,
    flops_per_row: float | None = None,
    peak: float | None = None,
) -> FitResult:
    """Train `assembled.model` in place; checkpoints, metrics.jsonl and what was resolved go into `directory`.

    resume: go on from the newest valid checkpoint there; without it, or without one, start anew.
    as_yaml: the whole experiment as YAML with this config in its place, for experiment.yaml.
    flops_per_row: forward and backward of one row. peak: FLOP/s of the device at this precision.
    Raises DivergedError, MemoryLimitError, Interrupted, Cancelled, ConfigError.
    """
    session = _Session(assembled, config, directory, progress)
    session.begin(resume, flops_per_row)
    config = session.config
    if as_yaml is not None:
        files.write_text(directory / "experiment.yaml", as_yaml(config))
    train = session.train
    assert isinstance(config.batch, int)
    assert isinstance(config.micro_batch, int)
    meter = Meter(config.batch, train.tokens_per_row, flops_per_row, peak)
    plan = make_plan(config, train, assembled)
    loss = session.loss()
    small = flops_per_row is not None and flops_per_row * config.micro_batch < ONE_THREAD
    with out_of_memory(config), threads(1 if small and assembled.device.type == "cpu" else None):
        files.write_json(directory / "environment.json", session.environment())
        compiled = session.compile(loss, plan) if config.compile else None
        loop = Loop(
            model=assembled.model,
            loss=loss,
            compiled=compiled,
            batches=train,
            optimizers=session.optimizers,
            schedule=config.schedule,
            plan=plan,
            device=assembled.device,
            meter=meter,
            verbs=Verbs(session.validate if session.validation else None, session.record, session.save),
        )
        reason = loop.run(session.state)
    return session.result(reason, meter)


class _Session:
    """One run of `fit`: where it stands, and the three verbs the loop calls."""

    def __init__(
        self, assembled: Assembled, config: TrainConfig, directory: Path, progress: Progress
    ) -> None:
        self.assembled, self.directory, self.progress = assembled, directory, progress
        self.train = assembled.batches("train")
        self.validation = (
            assembled.batches("validation") if "validation" in assembled.dataset.splits else None
        )
        self.config = config
        self.metric = config.select.metric if config.select else assembled.task.metric
        self.optimizers = config.optimizer.build(assembled.model)
        self.state = State()
        self.resumed_from: int | None = None
        self.notes: list[str] = []
        if self.validation is None and (config.stop or config.select):
            key = "stop" if config.stop else "select"
            raise ConfigError(f"{key}: needs validation scores, but the dataset has no validation split")

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS

    def begin(self, resume: bool, flops_per_row: float | None) -> None:
        """Resolve the config, then take over the newest valid checkpoint or clear what is there."""
        found = (
            checkpoint.newest_valid(self.checkpoints, self.note)
            if resume and self.checkpoints.is_dir()
            else None
        )
        self.config = resolve(self.config, self.train, self.assembled.device, flops_per_row)
        if self.config.select and self.validation:
            self._refuse_unknown_metric(self.validation)
        if found is None:
            _clear(self.directory)
            return
        saved = files.read_json(found / STATE / LOOP)
        self.config = self.config.model_copy(
            update={"compile": saved["compile"]}
        )  # kernels differ in their last bits
        self.state = State(**saved["state"], seconds=saved["time"]["seconds"])
        self.optimizers.restore(safetensors.torch.load_file(found / STATE / OPTIMIZER))
        self.assembled.goes_on_from(found)
        self.resumed_from = self.state.step
        truncate_metrics(self.directory / METRICS, self.state.step)
        self._point()
        self.note(f"goes on from step {self.state.step}")

    def environment(self) -> dict[str, Any]:
        """What the numbers of this run depend on besides its file."""
        device, precision = self.assembled.device, self.assembled.precision
        return {**environment(), "device": str(device), "precision": precision.name}

    def note(self, text: str) -> None:
        """Say something now and in the result."""
        self.notes.append(text)
        self.progress.note(text)

    def loss(self) -> Callable[[Batch], Loss]:
        """The training loss of a batch at the run's precision."""
        model, task, device = self.assembled.model, self.assembled.task, self.assembled.device
        precision = self.assembled.precision

        def loss(batch: Batch) -> Loss:
            with precision.autocast(device):
                return task.loss(model, batch)

        return loss

    def compile(self, loss: Callable[[Batch], Loss], plan: Plan) -> Callable[[Batch], Loss] | None:
        """Model and loss as one compiled graph, tried on a micro-batch; None, with a note, if that fails."""

        def tensors(inputs: Tensor, targets: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
            result = loss(Batch(inputs, targets, segments))
            return result.total, result.count

        graph = torch.compile(tensors, dynamic=False)

        def compiled(batch: Batch) -> Loss:
            return Loss(*graph(batch.inputs, batch.targets, batch.segments))

        try:
            self.assembled.model.train()
            compiled(self.train.batch(0, plan.micro_batch).to(self.assembled.device)).total.backward()
            return compiled
        except Exception as error:  # whatever the compiler cannot do, the same model does without it
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.note(f"torch.compile failed, training goes on without it ({reason[:200]})")
            self.config = self.config.model_copy(update={"compile": False})
            return None
        finally:
            self.optimizers.zero_grad()

    def validate(self) -> tuple[dict[str, float], float | None]:
        """Figures of the validation split, and the one that selects (None where it is undefined)."""
        assert self.validation is not None
        tally = self._tally(self.validation.in_order(self._scoring_rows()))
        metrics = tally.metrics()
        return metrics, metrics.get(self.metric)

    def _tally(self, batches: Iterator[Batch]) -> Any:
        part = self.assembled
        return evaluate(
            part.task, part.model, batches, part.device, lambda: part.precision.autocast(part.device)
        )

    def _scoring_rows(self) -> int:
        return auto_batch(self.assembled, self.train.tokens_per_row)

    def _refuse_unknown_metric(self, validation: Batches) -> None:
        """A misspelt `select.metric` is an error now, not after the first tenth of the run."""
        first = next(iter(validation.in_order(self._scoring_rows())))
        tally = self._tally(iter([first]))
        known = sorted({*tally.metrics(), *tally.undefined})
        if self.metric not in known:
            raise ConfigError(
                f"select.metric: {self.metric!r} is not a figure of this task (choices: {', '.join(known)})"
            )

    def record(self, row: dict[str, Any]) -> None:
        """A row for metrics.jsonl and for whoever watches."""
        files.append_line(self.directory / METRICS, row)
        self.progress.row(row)

    def save(self, state: State, better: bool) -> None:
        """A checkpoint of this step; the links follow, older ones go."""
        if (self.directory / METRICS).exists():
            files.sync(self.directory / METRICS)  # the rows a resumed run will not write again
        checkpoint.save(self.checkpoints, checkpoint.step_name(state.step), self._write)
        self._point()
        newest = [path.name for path in checkpoint.steps(self.checkpoints)[-self.config.keep :]]
        checkpoint.prune(self.checkpoints, {*newest, checkpoint.step_name(state.best_step)})

    def _write(self, directory: Path) -> None:
        self.assembled.save(directory)
        (directory / STATE).mkdir()
        files.write_bytes(directory / STATE / OPTIMIZER, safetensors.torch.save(self.optimizers.state()))
        state = asdict(self.state)
        seconds = state.pop("seconds")
        about = {"format": 1, "state": state, "compile": self.config.compile, "time": {"seconds": seconds}}
        files.write_json(directory / STATE / LOOP, about)

    def _point(self) -> None:
        """`last` is the newest checkpoint, `best` the best one; the newest where none has been scored."""
        last = self.checkpoints / checkpoint.step_name(self.state.step)
        best = self.checkpoints / checkpoint.step_name(self.state.best_step)
        checkpoint.point(self.directory / "last", last)
        checkpoint.point(self.directory / "best", best if best.is_dir() else last)

    def result(self, reason: str, meter: Meter) -> FitResult:
        """What `fit` returns."""
        state = self.state
        if self.validation is not None and state.best is None:
            self.note(
                f"{self.metric} was undefined at every validation; the last checkpoint stands for the best"
            )
        return FitResult(
            best=self.directory / "best",
            last=self.directory / "last",
            step=state.step,
            reason=reason,
            metric=self.metric,
            best_step=state.best_step or state.step,
            best_value=state.best,
            config=self.config,
            seconds=state.seconds,
            throughput=meter.summary(),
            resumed_from=self.resumed_from,
            notes=self.notes,
        )


class Amount(Protocol):
    """How much there is to train on."""

    rows: int
    tokens_per_row: int


def resolve(
    config: TrainConfig, train: Amount, device: torch.device, flops_per_row: float | None
) -> TrainConfig:
    """The config with every `auto` replaced by what it means here; the batch is at most all rows."""
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
    micro = batch if config.micro_batch == "auto" else min(config.micro_batch, batch)
    steps = config.budget.total_steps(rows, batch, tokens)
    updates: dict[str, Any] = {"batch": batch, "micro_batch": micro}
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
        updates["compile"] = cuda or seconds > COMPILE_PAYS
    return config.model_copy(update=updates)


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
    )


def truncate_metrics(path: Path, step: int) -> None:
    """Drop rows past `step` and a torn last line: a resumed run then writes what a straight one would."""
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= step:
            kept.append(line + "\n")
    files.write_text(path, "".join(kept))


def _clear(directory: Path) -> None:
    files.make_directories(directory)
    for name in ("best", "last", METRICS, CHECKPOINTS):
        files.remove_tree(directory / name)


def _power_of_two(wanted: float, low: int, high: int) -> int:
    return int(min(high, max(low, 2 ** round(math.log2(max(1.0, wanted))))))


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
def out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Whatever torch raises for want of memory, as MemoryLimitError with what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        assert isinstance(config.micro_batch, int)
        half = max(1, config.micro_batch // 2)
        raise MemoryLimitError(
            f"out of memory with {config.micro_batch} rows at once; "
            + (
                f"train.micro_batch: {half} halves what a step needs and gives the same result"
                if config.micro_batch > 1
                else "a smaller model or shorter context is needed, or a device with more memory"
            )
        ) from None
