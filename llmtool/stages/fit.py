"""Trains an assembled model: resumes, and hands the loop its verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from llmtool.core import checkpoint, files, joint, ranks
from llmtool.core.contracts import Batch, Images, Loss
from llmtool.core.devices import is_out_of_memory, products_in, recover_memory
from llmtool.core.environment import environment
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.data.batches import Batches
from llmtool.data.mixing import MixedBatches
from llmtool.evaluation.loop import evaluate
from llmtool.models import fp8
from llmtool.models.recompute import recompute
from llmtool.models.shards import entered
from llmtool.stages import by_part, compiling, divergence, history
from llmtool.stages.assemble import Assembled
from llmtool.stages.history import METRICS
from llmtool.stages.lowering import AtOnce, half_made
from llmtool.stages.parting import arrange, own_tokens, part, summed_over
from llmtool.stages.saving import Saver
from llmtool.stages.score import auto_batch, in_parts
from llmtool.stages.settings import (
    few_threads,
    make_plan,
    out_of_memory,
    refuse_misfits,
    section_of,
    settle,
    threads,
)
from llmtool.training import TrainConfig
from llmtool.training.augment import Augment
from llmtool.training.average import Average
from llmtool.training.loop import Compute, Loop, Plan, State, Verbs
from llmtool.training.parallel import ParallelConfig
from llmtool.training.parts import WeightsMovedError
from llmtool.training.profile import Profile
from llmtool.training.replay import Refused
from llmtool.training.throughput import Meter
from llmtool.training.together import Together


class Progress(Protocol):
    """Who is told how it goes. kill_at: of a rehearsal, the step after which `row` kills the process."""

    kill_at: int | None

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
    skipped: int = 0  # updates that the guard left out
    # micro-batches that did not fit (stages.lowering)
    lowered: list[dict[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    profile: dict[str, Any] | None = None  # as training.profile says
    seen: dict[str, float] | None = None  # how often each part of a mixture was gone through


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
    command: str | None = None,
    profile: Profile | None = None,
    parallel: ParallelConfig | None = None,
) -> FitResult:
    """Train `assembled.model` in place; checkpoints, metrics.jsonl and what was resolved go into `directory`.

    resume: go on from the newest valid checkpoint there; without it, or without one, start anew.
    as_yaml: the whole experiment as YAML with this config in its place, for experiment.yaml.
    flops_per_row: forward and backward of one row. peak: FLOP/s of the device at this precision.
    command: the one that trains, as it was given, for what is left behind of an update that was not made;
    None: only the error tells of it. profile: records a few steps. parallel: how several ranks share it.
    Raises DivergedError, MemoryLimitError, Interrupted, Cancelled, ConfigError.
    """
    session = _Session(assembled, config, directory, progress, command, as_yaml, flops_per_row, parallel)
    session.begin(resume)
    config = session.config
    session.write_down()
    assert isinstance(config.batch, int)
    all_peaks = None if peak is None else peak * ranks.here().size
    meter = Meter(config.batch, session.train.tokens_per_row, flops_per_row, all_peaks, profile)
    session.plan = make_plan(config, session.train, assembled)
    with (
        out_of_memory(lambda: session.plan.micro_batch, session.section),
        threads(few_threads(config, flops_per_row, assembled.device)),
    ):
        if ranks.here().first:
            files.write_json(directory / "environment.json", session.environment())
        with session.saver.settled():
            reason = session.run(meter)
    recompute(assembled.model, 0)
    result = session.result(reason, meter)
    if profile is not None:
        result.profile = profile.result(result.throughput, (flops_per_row or 0.0) * config.batch, peak)
    return result


def at_checkpoint(
    assembled: Assembled, config: TrainConfig, saved: Path, progress: Progress, flops_per_row: float | None
) -> tuple[Loop, TrainConfig]:
    """The loop that `fit` would run, with weights and optimizer of a checkpoint, and the resolved config.

    Nothing is compiled, nothing is written.
    """
    session = _Session(assembled, config, saved, progress, flops_per_row=flops_per_row)
    session.config = settle(assembled, config, session.train, flops_per_row)
    session.take_over(saved)
    session.plan = make_plan(session.config, session.train, assembled)
    return session.loop(Meter(session.plan.batch), None), session.config


class _Session:
    """One run of `fit`: where it stands, and the verbs the loop calls."""

    plan: Plan

    def __init__(
        self,
        assembled: Assembled,
        config: TrainConfig,
        directory: Path,
        progress: Progress,
        command: str | None = None,
        as_yaml: Callable[[TrainConfig], str] | None = None,
        flops_per_row: float | None = None,
        parallel: ParallelConfig | None = None,
    ) -> None:
        self.notes: list[str] = []
        self.assembled, self.directory, self.progress = assembled, directory, progress
        self.command, self.as_yaml, self.flops_per_row = command, as_yaml, flops_per_row
        if assembled.precision.eight:
            fp8.use(assembled.model)
        self.train = assembled.batches("train")
        self.validation = (
            assembled.batches("validation") if "validation" in assembled.dataset.splits else None
        )
        self.config, self.at_once = config, AtOnce.of(config)
        self.usual_threads = torch.get_num_threads()
        self.metric = config.select.metric if config.select else assembled.task.metric
        self.figure = self.metric.rpartition(".")[2]  # of `code.loss`, a part's
        parallel = parallel or ParallelConfig()
        self.mesh = arrange(assembled, parallel, self.train.tokens_per_row)
        self.cut = part(assembled, config, parallel, self.mesh, self.note)
        self.optimizers = config.optimizer.build(assembled.model, assembled.rates)
        self.optimizers.multiply_in(products_in(assembled.precision.name, assembled.device.type))
        self.average = Average(assembled.model, config.ema) if config.ema else None
        self.saver = Saver(directory, assembled, self.optimizers, self.average, self.at_once, self.cut)
        self.together = Together(
            self.optimizers.parameters, assembled.device, self.cut, parallel, summed_over(self.mesh)
        )
        self.state = State()
        self.resumed_from: int | None = None
        self.tunes = getattr(assembled.task, "tunes", False)
        refuse_misfits(config, self.section, assembled.task, self.validation is not None)

    @property
    def section(self) -> str:
        """Where the file says how to train."""
        return section_of(self.config)

    def begin(self, resume: bool) -> None:
        """Resolve the config, then take over the newest valid checkpoint or clear what is there."""
        found = ranks.by_first(self._newest) if resume else None
        replicas = self.together.of
        self.config = settle(self.assembled, self.config, self.train, self.flops_per_row, replicas)
        if self.config.select and self.validation:
            self._refuse_unknown_metric(self.validation)
        if found is None:
            ranks.by_first(lambda: history.clear(self.directory))
            self._count()
            return
        self._go_on_from(found)
        self.resumed_from = self.state.step

    def _newest(self) -> Path | None:
        there = self.saver.checkpoints.is_dir()
        return checkpoint.newest_valid(self.saver.checkpoints, self.note) if there else None

    def _go_on_from(self, found: Path) -> None:
        joint.refuse_others(found)
        self.take_over(found)
        ranks.by_first(self._forget_later)
        self.note(f"goes on from step {self.state.step}")

    def _forget_later(self) -> None:
        history.forget_after(self.directory, self.state.step)
        self.saver.point(self.state)

    def write_down(self) -> None:
        """The experiment with what was resolved, as a file."""
        if self.as_yaml is not None and ranks.here().first:
            files.write_text(self.directory / "experiment.yaml", self.as_yaml(self.config))

    def _count(self) -> None:
        """Let a family whose weights build on counts see every train row once, before any is learned."""
        model: Any = self.assembled.model
        if getattr(model, "wants_counts", False):
            device = self.assembled.device
            model.count(batch.to(device) for batch in self.train.in_order(self._scoring_rows()))

    def take_over(self, found: Path) -> None:
        """Weights, optimizer and place in the run from a checkpoint."""
        self.state, self.config = self.saver.restore(found, self.config)

    def run(self, meter: Meter) -> str:
        """Run the loop to its end; returns the reason for it."""
        compiled = self.compile() if self.config.compile else None
        tries = self.at_once.asked["micro_batch"] == "auto" and self.assembled.device.type == "cuda"
        tries = tries and ranks.here().size == 1
        while True:
            # what was recorded is let go where it has to be lowered
            loop, compiled = self.loop(meter, compiled), None
            try:
                if tries and not self.state.step:
                    loop.trial(self.state)
                return loop.run(self.state)
            except WeightsMovedError:
                rows, lowered = self.config.micro_batch, self.at_once.lowered
            self.saver.wait()
            if (found := self._newest()) is None:
                raise half_made(self.plan.micro_batch, self.section)
            self._go_on_from(found)
            self.config = self.config.model_copy(update={"micro_batch": rows})
            self.at_once.lowered = lowered
            _, compiled = self.lower(self.state)

    def lower(self, state: State) -> tuple[int, Compute | None]:
        """Fewer rows at once from the next step on, and the graph for them."""
        self._fewer(state.step + 1)
        if not self.config.compile:
            return self.plan.micro_batch, None
        torch.compiler.reset()  # what was compiled for more rows holds memory
        return self.plan.micro_batch, self.compile()

    def _fewer(self, step: int) -> None:
        self.config, said = self.at_once.fewer(self.config, self.assembled.model, step, self.section)
        self.plan = make_plan(self.config, self.train, self.assembled)
        # a run that began with so few rows has as many threads, on which the last bits depend
        few = few_threads(self.config, self.flops_per_row, self.assembled.device)
        torch.set_num_threads(few or self.usual_threads)
        self.note(said)
        self.write_down()

    def loop(self, meter: Meter, compiled: Compute | None) -> Loop:
        """The loop over this run's parts."""
        inputs, augment = self.assembled.dataset.inputs, self.config.augment
        changes = None
        if isinstance(inputs, Images) and augment.active:
            changes = Augment(augment, inputs, self.plan.seed, self.plan.batch)
        return Loop(
            model=self.assembled.model,
            loss=self.loss(),
            compiled=compiled,
            batches=self.train,
            optimizers=self.optimizers,
            schedule=self.config.schedule,
            plan=self.plan,
            device=self.assembled.device,
            meter=meter,
            verbs=Verbs(
                self.validate if self.validation else None,
                self.record,
                lambda state, better: self.saver.save(state, self.config),
                self.refuse,
                self.lower if ranks.here().size == 1 else None,  # a rank alone cannot take fewer rows
            ),
            augment=changes,
            average=self.average,
            together=self.together,
        )

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
        precision, mesh = self.assembled.precision, self.mesh

        def loss(batch: Batch) -> Loss:
            with precision.autocast(device):
                return entered(model)(task.loss, model, own_tokens(batch, model, mesh))

        return loss

    def compile(self) -> Compute | None:
        """Model and loss as one compiled graph, tried on a micro-batch; None, with a note, if that fails.

        A micro-batch that does not fit is lowered.
        """
        while True:
            try:
                return self._graph()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            recover_memory()
            torch.compiler.reset()
            self._fewer(self.state.step + 1)

    def _graph(self) -> Compute | None:
        """The same, once; what runs out of memory is raised."""
        loop, even = self.loop(Meter(self.plan.batch), None), self.train.scored is None
        assert self.config.compile in (True, "graphs")
        graph, how = compiling.tried(self.loss(), loop, self.config.compile, even, self.note)
        if how != self.config.compile:
            self.config = self.config.model_copy(update={"compile": how})
            self.write_down()
        return graph

    def validate(self) -> tuple[dict[str, float], float | None]:
        """Figures of the validation split, and the one that selects (None where it is undefined)."""
        assert self.validation is not None
        with self.saver.averaged():
            tally = self._scored(self.validation)
        if self.tunes:  # what a checkpoint says of its labels from now on
            part, tally = self.assembled, self.assembled.task.tune(tally)  # type: ignore[attr-defined]
            part.targets = {**part.targets, "thresholds": part.task.thresholds}  # type: ignore[attr-defined]
        metrics, figures = tally.metrics(), (self.assembled.task.metric, self.figure)
        among = self.validation, self._scoring_rows(), self.together.of
        metrics |= by_part.flat(self.assembled.dataset, "validation", tally, *among, figures)
        return metrics, metrics.get(self.metric)

    def _scored(self, split: Batches, batches: int | None = None) -> Any:
        """The evidence of a split, or of its first batches; rows that do not fit at once are halved."""
        part, before = self.assembled, self._scoring_rows()

        def scored(rows: int) -> Any:
            def dealt(first: int, every: int) -> Iterator[Batch]:
                most = batches if batches is None else len(range(first, batches, every))
                return islice(split.in_order(rows, first, every), most)

            return self.together.evidence(dealt, lambda mine: evaluate(
                part.task, part.model, mine, part.device, lambda: part.precision.autocast(part.device)
            ))  # fmt: skip

        if ranks.here().size > 1:
            return scored(before)
        tally, rows = in_parts(scored, before, "scoring validation")
        if rows < before:
            self.at_once.scoring = rows
            self.note(f"validation does not fit into memory with {before} rows at once: {rows} from here on")
        return tally

    def _scoring_rows(self) -> int:
        return self.at_once.scoring or auto_batch(self.assembled, self.train.tokens_per_row)

    def _refuse_unknown_metric(self, validation: Batches) -> None:
        """A misspelt `select.metric` is an error now, not after the first tenth of the run."""
        tally = self._scored(validation, batches=1)
        known = by_part.with_parts(self.assembled.dataset, sorted({*tally.metrics(), *tally.undefined}))
        if self.metric not in known:
            raise ConfigError(
                f"select.metric: {self.metric!r} is not a figure of this task (choices: {', '.join(known)})"
            )

    def record(self, row: dict[str, Any]) -> None:
        """A row for metrics.jsonl and for whoever watches."""
        if "epoch" in row and isinstance(self.train, MixedBatches):
            row["seen"] = self.train.seen(row["step"] * self.plan.batch)
        if ranks.here().first:
            files.append_line(self.directory / METRICS, row)
            if self.progress.kill_at == row["step"]:
                self.saver.wait()  # a rehearsal's power cut comes when the disk has the checkpoint before
            self.progress.row(row)

    def refuse(self, update: Refused, state: State, ends: bool) -> str:
        """Write down an update that was not made; returns what its error should say beside the facts."""
        about = {key: getattr(update, key) for key in ("why", "loss", "norm", "limit", "says")}
        before = State(step=update.step - 1, scale=state.scale, seconds=state.seconds)
        place: Path | None = None
        try:
            if self.command is not None and ranks.here().first and self.cut is None:
                place = divergence.write(
                    self.directory / divergence.DIRECTORY,
                    update,
                    self.plan,
                    before,
                    self.assembled,
                    self.train,
                    lambda directory: self.saver.write(directory, before, self.config),
                    self.command,
                )
            self.record({"step": update.step, "refused": {**about, "bundle": place and str(place)}})
        except LlmtoolError as error:  # a full disk must not hide why training ends
            if not ends:
                raise
            self.progress.note(f"nothing is kept of this step: {error}")
        if not ends:
            self.progress.note(f"{update.says} (left out, {state.skipped} so far)")
            return ""
        words = f"\n{state.in_a_row} updates in a row were refused" if self.plan.skip else ""
        if place is not None:
            words += f"\nmake this step again: {self.command} --replay {place}"
        if self.command is not None and not self.plan.skip:
            words += (
                f"\nleave such updates out: {self.command} --resume --set {self.section}.guard.action=skip"
            )
        return words

    def result(self, reason: str, meter: Meter) -> FitResult:
        """What `fit` returns."""
        state = self.state
        if self.validation is not None and state.best is None:
            self.note(
                f"{self.metric} was undefined at every validation; the last checkpoint stands for the best"
            )
        if state.skipped:
            self.note(f"{state.skipped} updates were left out (guard.action: skip); metrics.jsonl names each")
        seen = None
        if isinstance(self.train, MixedBatches):
            seen = self.train.seen(state.step * self.plan.batch)
            self.note(
                "gone through: " + ", ".join(f"{name} {times:.3g} times" for name, times in seen.items())
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
            skipped=state.skipped,
            lowered=self.at_once.lowered,
            notes=self.notes,
            seen=seen,
        )
