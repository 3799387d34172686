"""The training loop on one screen, and what keeps it exact: accumulation, retries, clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llmtool.core import watch
from llmtool.core.contracts import Batch, Loss
from llmtool.core.devices import is_out_of_memory, recover_memory
from llmtool.core.errors import DivergedError
from llmtool.core.seeds import derive
from llmtool.training.augment import Augment
from llmtool.training.average import Average, Statistics
from llmtool.training.feed import Feed, Rows
from llmtool.training.guard import DeviceGuard, Guard, Memory, Why
from llmtool.training.optimizers import Optimizers
from llmtool.training.parts import WeightsMovedError
from llmtool.training.replay import TINY, Refused, refused
from llmtool.training.schedules import Schedule
from llmtool.training.signals import asked_to_stop, caught_signals
from llmtool.training.throughput import Meter
from llmtool.training.together import Together

FP16_SCALE, FP16_GROW = 65536.0, 2000  # first factor of the fp16 loss; good steps before it doubles

Compute = Callable[[Batch], Loss]
Number = Tensor | float  # on a CPU a float at once, elsewhere a float64 scalar that nobody waits for


class Batches(Protocol):
    """The endless training order, as data.batches gives it: a pure function of the index."""

    rows: int
    tokens_per_row: int

    def batch(self, start: int, count: int) -> Batch:
        """Rows start..start+count of the order."""

    def where(self, start: int, count: int) -> list[str]:
        """The same rows by name, for messages."""


@dataclass(frozen=True)
class Plan:
    """Everything the loop decides by, as plain numbers; `steps` or `seconds` ends a run, `session` pauses it.

    An `_every` of None is every tenth of the run. skip, spread, most: as training.guard.GuardConfig says.
    """

    batch: int
    micro_batch: int
    steps: int | None = None
    seconds: float | None = None
    session: float | None = None
    clip: float | None = 1.0
    log_every: int = 10
    validate_every: int | None = None
    checkpoint_every: int | None = None
    mode: str = "min"
    patience: int | None = None
    seed: int = 0
    fp16: bool = False
    skip: bool = False
    spread: float | None = None
    most: int = 10


@dataclass
class State:
    """Where a run stands; with weights and optimizer state, everything that a resumed run needs."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    since: int = 0  # validations since the best one
    total: float = 0.0  # loss and targets summed since the last line of metrics
    count: float = 0.0
    highest: float | None = None  # loss and gradient norm of a step since then
    longest: float | None = None
    scale: float = FP16_SCALE
    good: int = 0  # fp16 steps since the scale last changed
    skipped: int = 0  # updates that were left out
    in_a_row: int = 0  # of these, the last ones without a good one between them
    recent: list[float] = field(default_factory=list)  # what the guard remembers (training.guard.Memory)
    began: float | None = None  # the loss it began with, as the guard has it
    seconds: float = 0.0  # of all sessions


@dataclass
class Verbs:
    """What the loop asks of its caller."""

    validate: Callable[[], tuple[dict[str, float], float | None]] | None  # figures, and the one that selects
    record: Callable[[dict[str, Any]], None]  # a row of metrics
    save: Callable[[State, bool], None]  # a checkpoint; True: it is the best so far
    # an update that was not made, told while weights and optimizer are those before it; True: training ends
    # by it, with these words added to its error
    refuse: Callable[[Refused, State, bool], str] = lambda update, state, ends: ""
    # a step that did not fit into memory: how many rows are to go through the model at once from now on, and
    # the graph for them; MemoryLimitError where there are no fewer. None: memory that runs out is an error
    lower: Callable[[State], tuple[int, Compute | None]] | None = None


@dataclass
class Loop:
    """The parts of a run that do not change while it runs."""

    model: nn.Module
    loss: Compute
    compiled: Compute | None  # the same through torch.compile
    batches: Batches
    optimizers: Optimizers
    schedule: Schedule
    plan: Plan
    device: torch.device
    meter: Meter
    verbs: Verbs
    augment: Augment | None = None  # of pictures
    average: Average | None = None  # of the weights
    together: Together = field(default_factory=Together)  # with the other ranks
    total: Number = 0.0  # loss and count since the last line
    count: Number = 0.0
    highest: Number | None = None  # loss and gradient norm of a step since then
    longest: Number | None = None
    guard: Guard | DeviceGuard = field(init=False)
    statistics: Statistics = field(init=False)
    feed: Feed = field(init=False)
    reads_free: bool = field(init=False)  # whether reading a number from the device costs nothing (a CPU)
    work: float = 0.0  # seconds of the current step inside forward, backward, clipping and optimizer

    def __post_init__(self) -> None:
        self.reads_free = self.device.type != "cuda"
        expect = getattr(self.batches, "expect", None)
        self.feed = Feed(self.batches.batch, self._requests, self.device, not self.reads_free, expect)
        self.guard = Guard(self.plan.spread, Memory([], None))
        self.statistics = Statistics(self.model)

    def run(self, state: State) -> str:
        """Train until the budget is spent ("budget") or patience is at its end ("patience"); returns which.

        Raises DivergedError, and after a checkpoint Interrupted (SIGTERM, time limit) or Cancelled (Ctrl-C).
        """
        plan, verbs, started, before = self.plan, self.verbs, time.monotonic(), state.seconds
        self.total, self.count = state.total, state.count
        self.highest, self.longest = (
            None if number is None else self._again(number) for number in (state.highest, state.longest)
        )
        memory = Memory(state.recent, state.began)
        host_knows = (
            self.reads_free or plan.fp16 or plan.skip or self.together.offloads
        )  # each step's numbers
        self.guard = (
            Guard(plan.spread, memory) if host_knows else DeviceGuard(plan.spread, memory, self.device)
        )
        self.model.train()
        with caught_signals() as received, self.feed.running():
            while (reason := _finished(plan, state)) is None:
                progress = _progress(plan, state)
                rate = self.optimizers.set_rate(self.schedule.factor(state.step, plan.steps, progress))
                waited = self.feed.waited
                watch.step(state.step + 1)
                norm = self._update(state)
                self.meter.step(self.work, self.feed.waited - waited)
                state.step += 1
                passed = time.monotonic() - started
                signals, state.seconds, session = self.together.beat(received, before + passed, passed)
                tenth = int(10 * _progress(plan, state) + 1e-9) > int(10 * progress + 1e-9)
                last = _finished(plan, state) is not None
                better = False
                if last or state.step % plan.log_every == 0:
                    verbs.record(self._line(state, norm, rate))
                if verbs.validate and (last or _due(plan.validate_every, state.step, tenth)):
                    with watch.phase("validate"):
                        better = self._validate(state, verbs.validate)
                    last = last or _finished(plan, state) is not None
                stop = asked_to_stop(signals, plan.session is not None and session >= plan.session)
                if better or last or stop or _due(plan.checkpoint_every, state.step, tenth):
                    with watch.phase("save"):
                        self._save(state, better)
                if stop and not last:
                    raise stop
            self.together.settle()
        return reason

    def _update(self, state: State) -> Number:
        """One optimizer step; returns the gradient's norm."""
        return self._in_memory(state, self._attempt)

    def trial(self, state: State) -> None:
        """A step's first parts and an update that changes nothing, to have what does not fit lowered now."""
        self._in_memory(state, self._tried)

    def _tried(self, state: State) -> Number:
        self.statistics.keep()
        self.accumulate(state.step, 1.0, parts=2)  # from the second on, gradients are there beside the rest
        norm = self.norm()
        self._step(state.step, 1.0, torch.tensor(True, device=self.device))
        self.optimizers.zero_grad()
        self.statistics.put_back()
        return norm

    def _in_memory(self, state: State, attempt: Callable[[State], Number]) -> Number:
        """What `attempt` gives. Where it does not fit into memory it is begun again in smaller parts, with
        everything as it was before."""
        while True:
            before = (state.scale, state.good, state.in_a_row, state.skipped)
            try:
                return attempt(state)
            except (MemoryError, RuntimeError) as error:
                if self.verbs.lower is None or not is_out_of_memory(error):
                    raise
            # outside of `except`, whose traceback holds what the step had made
            state.scale, state.good, state.in_a_row, state.skipped = before
            moved = self.optimizers.moved and attempt != self._tried  # whose update changes no number
            self.optimizers.zero_grad()
            self.feed.stop()  # what lies ready is for as many rows as before
            self.compiled = None  # recorded graphs hold memory
            recover_memory()
            if moved:
                raise WeightsMovedError
            self.statistics.put_back()
            self.model.train()  # each row of a refused step is judged in eval mode
            with self.meter.aside():
                rows, self.compiled = self.verbs.lower(state)
            self.plan = replace(self.plan, micro_batch=rows)

    def _attempt(self, state: State) -> Number:
        """One optimizer step, tried once. One that the guard refuses changes nothing."""
        self.statistics.keep()
        total, count = self.accumulate(state.step, state.scale if self.plan.fp16 else 1.0)
        divisor = _at_least(count, TINY)
        loss = total / divisor
        divisor = divisor * (state.scale if self.plan.fp16 else 1.0)
        norm = self.norm() / divisor
        divisor = self.clipped(divisor, norm)
        made = True
        if isinstance(self.guard, DeviceGuard):
            bad = self.guard.judge(state.step, torch.as_tensor(loss), torch.as_tensor(norm))
            self.statistics.put_back(bad)  # before the average looks at them
            self._step(state.step, divisor, bad)
            self.guard.remember(torch.as_tensor(loss))
        elif made := self._may_step(state, float(loss), float(norm)):
            self._step(state.step, divisor)
            self.guard.remember(float(loss))
        else:
            self.statistics.put_back()
        if made:
            self.total, self.count = self.total + total, self.count + count
            self.highest, self.longest = _larger(self.highest, loss), _larger(self.longest, norm)
        self.optimizers.zero_grad()
        return norm

    def _may_step(self, state: State, loss: float, norm: float) -> bool:
        """Whether the update is made; where the guard says no, and training ends by that, its error."""
        if self.plan.fp16 and not self._fits_fp16(state, loss, norm):
            return False
        assert isinstance(self.guard, Guard)
        why = self.guard.judge(loss, norm)
        state.in_a_row = state.in_a_row + 1 if why else 0
        if why:
            state.skipped += 1
            self.statistics.put_back()
            self._refuse(state, state.step, why, loss, norm)
        return not why

    def _refuse(self, state: State, step: int, why: Why, loss: float, norm: float) -> None:
        """Tell of an update that is not made; DivergedError where training ends by it."""
        ends = not self.plan.skip or state.in_a_row >= self.plan.most
        with self.meter.aside(), self.feed.resting():
            update = refused(self, step, why, loss, norm)
            more = self.verbs.refuse(update, state, ends)
        if ends:
            raise DivergedError(update.says + more)

    def accumulate(self, step: int, scale: float, parts: int | None = None) -> tuple[Number, Number]:
        """Gradients of a step's summed loss (in fp16: times `scale`), part by part; the sum and its count.

        All ranks' together. parts: only the first ones of each.
        """
        plan, compute = self.plan, self.compiled or self.loss
        total: Number = 0.0
        count: Number = 0.0
        self.work = 0.0
        mine = self.together.rows(plan.batch)
        starts = mine[:: plan.micro_batch][:parts]
        first = self.together.index * len(starts)
        for index, start in enumerate(starts, first):
            with self.meter.part("data"):
                batch = self.rows(step * plan.batch + start, min(plan.micro_batch, mine.stop - start))
            self._seed(derive(plan.seed, "step", step, index))
            self.together.part(last=start == starts[-1])
            started = time.perf_counter()
            with self.meter.part("forward"):
                loss = compute(batch)
            with self.meter.part("backward"):
                if loss.total.requires_grad:  # a recorded graph has made the gradients already
                    (loss.total * scale if plan.fp16 else loss.total).backward()
            self.work += time.perf_counter() - started
            total, count = total + self._number(loss.total), count + self._number(loss.count)
        with self.meter.part("backward"):
            return self.together.added(total, count)

    def clipped(self, divisor: Number, norm: Number) -> Number:
        """The divisor that makes gradients `clip` long at most; norm: how long they are over `divisor`."""
        return divisor if self.plan.clip is None else divisor * _at_least((norm + 1e-6) / self.plan.clip, 1.0)

    def _number(self, scalar: Tensor) -> Number:
        return scalar.item() if self.reads_free else scalar.detach().double()

    def _again(self, number: float) -> Number:
        """What `_number` had given: to compare a float with a number on the device is to wait for it."""
        return number if self.reads_free else torch.tensor(number, dtype=torch.float64, device=self.device)

    def norm(self) -> Number:
        """The norm of all gradients together."""
        started = time.perf_counter()
        with self.meter.part("clip"):
            norm = self._number(self.together.norm(self.optimizers.gradients()))
        self.work += time.perf_counter() - started
        return norm

    def _seed(self, seed: int) -> None:
        """torch.manual_seed for the device in use alone: for all of them it takes half a millisecond."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _step(self, step: int, divisor: Number, skip: Tensor | None = None) -> None:
        started = time.perf_counter()
        with self.meter.part("optimizer"):
            divisor = torch.as_tensor(divisor, dtype=torch.float32, device=self.device)
            self.optimizers.step(divisor, skip)
            if self.average is not None:
                self.average.update(step, skip)
        self.work += time.perf_counter() - started

    def rows(self, start: int, count: int) -> Batch:
        """Rows start to start + count of the training order, all of one step, on the device."""
        step, first = divmod(start, self.plan.batch)
        batch = self._moved(step, first, count)
        if self.augment is None or not self.augment.mixes:
            return batch
        other = self.plan.batch - first - count  # the rows that these meet, from the end of the batch
        met = batch if other == first else self._moved(step, other, count)
        return self.augment.mixed(batch, met, step, first)

    def _moved(self, step: int, first: int, count: int) -> Batch:
        """Rows from `first` on of a step, on the device, changed if they are to be."""
        change = None if self.augment is None else self.augment.change(step, first)
        return self.feed.take(step * self.plan.batch + first, count).ready(change)

    def _requests(self, start: int) -> Iterator[Rows]:
        """What is asked of the feed from row `start` on."""
        plan, mixes = self.plan, self.augment is not None and self.augment.mixes
        step, first = divmod(start, plan.batch)
        mine = self.together.rows(plan.batch)
        while True:
            while first < mine.stop:
                count = min(plan.micro_batch, mine.stop - first)
                yield step * plan.batch + first, count
                other = plan.batch - first - count
                if mixes and other != first:
                    yield step * plan.batch + other, count
                first += count
            step, first = step + 1, mine.start

    def _fits_fp16(self, state: State, loss: float, norm: float) -> bool:
        """Whether the scaled gradient is finite; moves the scale. The guard has what no scale mends."""
        finite = math.isfinite(norm)
        if not math.isfinite(loss) or (not finite and state.scale < 1e-3):
            return True
        state.good = state.good + 1 if finite else 0
        if not finite:
            state.scale /= 2
        elif state.good == FP16_GROW:
            state.scale, state.good = state.scale * 2, 0
        return finite

    def _line(self, state: State, norm: Number, rate: float) -> dict[str, Any]:
        """The row of metrics since the last line; here the device is waited for.

        loss_max, norm_max: of one step; a mean over many would hide a spike. loss is None where no update
        was made since.
        """
        self._check(state)
        taken, (total, count) = self.highest is not None, (float(self.total), float(self.count))
        row = {
            "step": state.step,
            "epoch": state.step * self.plan.batch / self.batches.rows,
            "loss": total / max(count, TINY) if taken else None,
            "loss_max": float(self.highest) if self.highest is not None else None,
            "norm": float(norm),
            "norm_max": float(self.longest) if self.longest is not None else None,
            "lr": rate,
        }
        if state.skipped:
            row["skipped"] = state.skipped
        self.total = self.count = 0.0
        self.highest = self.longest = None
        return row | {"time": {"seconds": state.seconds, "left": self._left(state), **self.meter.line()}}

    def _left(self, state: State) -> float | None:
        if self.plan.steps is None:
            return max(0.0, (self.plan.seconds or 0.0) - state.seconds)
        return self.meter.left(self.plan.steps - state.step)

    def _validate(self, state: State, validate: Callable[[], tuple[dict[str, float], float | None]]) -> bool:
        """Score, write the figures down, and say whether they are the best so far."""
        self._check(state)
        self._agree()
        with self.meter.aside():
            metrics, value = validate()
        better = value is not None and math.isfinite(value)
        if better and state.best is not None:
            assert value is not None
            better = value < state.best if self.plan.mode == "min" else value > state.best
        if better:
            state.best, state.best_step, state.since = value, state.step, 0
        else:
            state.since += 1
        row: dict[str, Any] = {"step": state.step, "validation": metrics, "best": better}
        self.verbs.record(row | {"time": {"seconds": state.seconds}})
        return better

    def _save(self, state: State, better: bool) -> None:
        self._check(state)
        self._agree()
        state.total, state.count = float(self.total), float(self.count)
        state.highest, state.longest = (None if n is None else float(n) for n in (self.highest, self.longest))
        memory = self.guard.memory()
        state.recent, state.began = memory.recent, memory.began
        with self.meter.aside():
            self.verbs.save(state, better)

    def _agree(self) -> None:
        """Give all ranks the same statistics, of which each has those of its own rows: the model's and the
        average's."""
        averaged = [] if self.average is None else self.average.statistics
        self.together.alike([*self.statistics.live, *averaged])

    def _check(self, state: State) -> None:
        """Read the device's flag: whatever is written or scored next must not come after a bad step."""
        if isinstance(self.guard, DeviceGuard) and (step := int(self.guard.first.item())) >= 0:
            self.guard.forget(state.step - step)
            self._refuse(state, step, "", math.nan, math.nan)


def _at_least(value: Number, low: float) -> Number:
    return value.clamp(min=low) if isinstance(value, Tensor) else max(value, low)


def _larger(before: Number | None, value: Number) -> Number:
    if before is None:
        return value
    return torch.maximum(before, value) if isinstance(before, Tensor) else max(before, value)  # type: ignore[arg-type]


def _due(every: int | None, step: int, tenth: bool) -> bool:
    return tenth if every is None else step % every == 0


def _progress(plan: Plan, state: State) -> float:
    """The share of the budget that is used up."""
    if plan.steps is not None:
        return min(1.0, state.step / plan.steps)
    assert plan.seconds is not None
    return min(1.0, state.seconds / plan.seconds)


def _finished(plan: Plan, state: State) -> str | None:
    if plan.patience is not None and state.since >= plan.patience:
        return "patience"
    return "budget" if _progress(plan, state) >= 1.0 else None
