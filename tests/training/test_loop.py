"""The loop: exact accumulation, the guard, validation, early stopping, signals and clocks."""

from __future__ import annotations

import copy
import math
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmtool.core.contracts import Batch, Loss
from llmtool.core.errors import Cancelled, DivergedError, Interrupted
from llmtool.training import loop as loop_module
from llmtool.training.average import Average, moving
from llmtool.training.loop import Loop, Plan, State, Verbs
from llmtool.training.optimizers import AdamWConfig, MuonConfig, SGDConfig
from llmtool.training.schedules import ConstantSchedule
from llmtool.training.signals import caught_signals
from llmtool.training.throughput import Meter
from tests.training.toys import ToyBatches, ToyMLP, ToyTask, ToyTransformer, table, tokens

CPU = torch.device("cpu")


class Notes:
    """Verbs that remember."""

    def __init__(
        self, scores: list[float] | None = None, on_save: Callable[[State], None] | None = None
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.saves: list[tuple[int, bool]] = []
        self.scores, self.on_save = list(scores or []), on_save

    def validate(self) -> tuple[dict[str, float], float | None]:
        value = self.scores.pop(0)
        return {"loss": value}, value

    def record(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def save(self, state: State, better: bool) -> None:
        self.saves.append((state.step, better))
        if self.on_save:
            self.on_save(state)


def make(
    model: nn.Module,
    data: ToyBatches,
    notes: Notes,
    optimizer: Any = None,
    device: torch.device = CPU,
    **plan: Any,
) -> Loop:
    full = Plan(**{"batch": 8, "micro_batch": 8, "steps": 6, "log_every": 1, "checkpoint_every": 100, **plan})
    return Loop(
        model=model,
        loss=lambda batch: ToyTask().loss(model, batch),
        compiled=None,
        batches=data,
        optimizers=(optimizer or SGDConfig(name="sgd", lr=0.1)).build(model),
        schedule=ConstantSchedule(name="constant"),
        plan=full,
        device=device,
        meter=Meter(full.batch),
        verbs=Verbs(notes.validate if notes.scores else None, notes.record, notes.save),
    )


@pytest.mark.parametrize(
    "optimizer", [SGDConfig(name="sgd", lr=0.1), AdamWConfig(name="adamw")], ids=lambda o: o.name
)
@pytest.mark.parametrize("micro", [4, 3, 2, 1])
def test_micro_batches_are_exact(micro: int, optimizer: Any) -> None:
    """8x1, 4x2, 2x4, 1x8 (and 3+3+2) with ragged masks: the same loss, norm and weights."""
    torch.manual_seed(0)
    whole, parts = ToyTransformer(), ToyTransformer()
    parts.load_state_dict(whole.state_dict())
    one, other = Notes(), Notes()
    make(whole, tokens(), one, optimizer, steps=4).run(State())
    make(parts, tokens(), other, optimizer, steps=4, micro_batch=micro).run(State())
    for a, b in zip(one.rows, other.rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        assert a["norm"] == pytest.approx(b["norm"], abs=1e-6)
    if optimizer.name == "adamw":  # divides by the gradient's own size: what is 0 but for rounding differs
        return
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.01])
def test_gradient_is_the_clipped_mean_over_all_targets(clip: float | None) -> None:
    """One step of plain SGD against the mean loss of the whole batch, differentiated and clipped by torch."""
    torch.manual_seed(0)
    ours = ToyTransformer()
    theirs = copy.deepcopy(ours)
    notes = Notes()
    sgd = SGDConfig(name="sgd", lr=1.0, momentum=0.0)
    make(ours, tokens(), notes, sgd, steps=1, micro_batch=2, clip=clip).run(State())
    loss = ToyTask().loss(theirs, tokens().batch(0, 8))
    (loss.total / loss.count).backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip or 1e9)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert b.grad is not None
        torch.testing.assert_close(a, b.detach() - b.grad, rtol=0, atol=1e-6)
    assert notes.rows[0]["norm"] == pytest.approx(norm.item(), abs=1e-5)
    assert notes.rows[0]["loss"] == pytest.approx((loss.total / loss.count).item(), abs=1e-6)


def test_a_batch_without_targets_changes_nothing() -> None:
    data = tokens()
    data.targets.fill_(-100)
    model = ToyTransformer()
    before = copy.deepcopy(model.state_dict())
    notes = Notes()
    make(model, data, notes, steps=2).run(State())
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert [row["loss"] for row in notes.rows] == [0.0, 0.0]


def test_logged_loss_is_the_mean_since_the_last_line() -> None:
    model, twin = ToyMLP(), ToyMLP()
    twin.load_state_dict(model.state_dict())
    fine, coarse = Notes(), Notes()
    make(model, table(), fine, steps=7).run(State())
    make(twin, table(), coarse, steps=7, log_every=3).run(State())
    assert [row["step"] for row in coarse.rows] == [3, 6, 7]
    losses = [row["loss"] for row in fine.rows]
    assert coarse.rows[1]["loss"] == pytest.approx(sum(losses[3:6]) / 3)
    assert coarse.rows[2]["loss"] == pytest.approx(losses[6])


# --- the guard ---


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


OPTIMIZERS = [SGDConfig(name="sgd"), AdamWConfig(name="adamw"), MuonConfig(name="muon")]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_row_is_named_and_never_learned_from(poison: float, optimizer: Any) -> None:
    data = table()
    culprit = data._index(8 * 2 + 5, 1)[0]  # the third step meets it
    data.inputs[culprit, 1] = poison
    model, notes = ToyMLP(), Notes()
    loop = make(model, data, notes, optimizer, micro_batch=4)
    seen: list[dict[str, Tensor]] = []
    loop.verbs.record = lambda row: seen.append(weights(model))
    with pytest.raises(
        DivergedError, match=rf"^step 3: .*not finite at row {culprit} of train; this update"
    ) as error:
        loop.run(State())
    assert error.value.exit_code == 5
    assert len(seen) == 2
    assert all(torch.equal(p, seen[-1][n]) for n, p in model.state_dict().items())
    assert all(torch.isfinite(t).all() for t in loop.optimizers.state().values())
    assert not notes.saves


def test_many_bad_rows_are_counted() -> None:
    data = table()
    for place in range(8, 15):
        data.inputs[data._index(place, 1)[0]] = math.nan
    with pytest.raises(DivergedError, match=r"^step 2: .* and 2 more; "):
        make(ToyMLP(), data, Notes()).run(State())


def test_a_bad_gradient_behind_a_finite_loss() -> None:
    model = ToyMLP()
    model.layers[0].weight.register_hook(lambda g: g * math.inf)
    before = weights(model)
    with pytest.raises(DivergedError, match="no single row is to blame"):
        make(model, table(), Notes()).run(State())
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


def test_spoiled_weights_blame_no_row() -> None:
    model = ToyMLP()
    with torch.no_grad():
        model.layers[0].bias[0] = math.nan
    with pytest.raises(DivergedError, match="no single row is to blame"):
        make(model, table(), Notes()).run(State())


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_cuda_guard_latches(optimizer: Any) -> None:
    """The way of CUDA (a flag on the device, read at lines and saves), walked on the CPU."""
    data = table()
    data.inputs[data._index(8 * 2 + 5, 1)[0]] = math.nan
    model, notes = ToyMLP(), Notes()
    loop = make(model, data, notes, optimizer, log_every=5)
    loop.reads_free = False
    reference = copy.deepcopy(model)
    make(reference, data, Notes(), optimizer, steps=2).run(State())
    with pytest.raises(DivergedError, match=r"^step 3: .*not finite at row"):
        loop.run(State())
    assert not notes.rows
    assert not notes.saves
    assert all(torch.equal(p, reference.state_dict()[n]) for n, p in model.state_dict().items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_the_way_of_cuda_is_the_same_training(optimizer: Any) -> None:
    """Numbers that stay on the device, and those read at once: the same weights and the same lines."""
    ways = []
    for waits in (True, False):
        torch.manual_seed(0)
        model, notes = ToyMLP(), Notes()
        loop = make(model, table(), notes, optimizer, log_every=2, micro_batch=3)
        loop.reads_free = waits
        loop.run(State())
        ways.append((weights(model), [{k: v for k, v in row.items() if k != "time"} for row in notes.rows]))
    assert ways[0][1] == ways[1][1]
    assert all(torch.equal(tensor, ways[1][0][name]) for name, tensor in ways[0][0].items())


def test_a_resumed_step_on_the_device_is_not_waited_for() -> None:
    """The highest loss before a break is a number of the host: to compare one with it would wait."""
    notes = Notes()
    loop = make(ToyMLP(), table(), notes, log_every=100, steps=2)
    loop.reads_free = False
    kinds: list[type] = []
    step = loop._step
    loop._step = lambda *given: (kinds.extend((type(loop.highest), type(loop.longest))), step(*given))[1]
    loop.run(State(step=1, highest=9.0, longest=0.5, total=3.0, count=8.0))
    assert kinds == [Tensor, Tensor]
    assert notes.rows[0]["loss_max"] == 9.0


def test_a_refused_step_on_the_device_leaves_the_average_alone() -> None:
    """Statistics of norms that the step made infinite are put back before they are averaged."""
    data = table()
    data.inputs[data._index(8 * 2 + 5, 1)[0]] = math.nan
    model = ToyMLP()
    model.layers.insert(1, nn.BatchNorm1d(8))
    loop = make(model, data, Notes(), log_every=5)
    loop.average, loop.reads_free = Average(model, 0.9), False
    with pytest.raises(DivergedError, match=r"^step 3: .*not finite at row"):
        loop.run(State())
    with loop.average.inside():
        assert all(torch.isfinite(tensor).all() for tensor in moving(model).values())


# --- a loss that jumps, and updates that are left out ---


def spoiled(step: int, value: float) -> tuple[ToyBatches, int]:
    """Rows of which one, met first at this step (from 0) in its 40 rows' epoch, holds a wild number.

    The model made next has fixed weights: a quarter of all models happens to guess the wild row's class.
    """
    torch.manual_seed(0)
    data = table(8 * 50)
    culprit = data._index(8 * step + 5, 1)[0]
    data.inputs[culprit, 1] = value
    data.targets[culprit] = 0 if data.targets[culprit] else 2
    return data, culprit


@pytest.mark.parametrize("waits", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_a_jump_stops_before_the_update_and_names_the_row(optimizer: Any, waits: bool) -> None:
    data, culprit = spoiled(45, 1e6)
    model, notes, told = ToyMLP(), Notes(), []
    loop = make(model, data, notes, optimizer, steps=50, log_every=50, spread=20.0)
    loop.reads_free = waits
    reference = copy.deepcopy(model)
    make(reference, data, Notes(), optimizer, steps=45).run(State())
    loop.verbs.refuse = lambda update, state, ends: (told.append((update, ends)), " (kept)")[1]
    message = rf"^step 46: .*\+- .* in the 45 steps before: most of it is the loss of row {culprit} of train"
    with pytest.raises(DivergedError, match=message) as error:
        loop.run(State())
    assert str(error.value).endswith("this update was not made (kept)")
    assert all(torch.equal(p, reference.state_dict()[n]) for n, p in model.state_dict().items())
    ((update, ends),) = told
    assert (update.step, update.why, ends) == (46, "jumped", True)
    assert update.loss == update.again.loss > update.limit
    assert update.norm == update.again.norm
    assert len(update.recent) == 45
    losses = update.again.losses
    assert max(range(8), key=losses.__getitem__) == 5
    assert update.again.norms.keys() == dict(model.named_parameters()).keys()
    assert math.hypot(*update.again.norms.values()) == pytest.approx(update.norm, rel=1e-5)


@pytest.mark.parametrize("poison", [math.nan, 1e6])
def test_skipped_updates_change_nothing_but_their_count(poison: float) -> None:
    """Beside a run whose loss is taken away at that step: the same weights, and lines without it."""
    data, _ = spoiled(45, poison)
    model, notes, state, told = ToyMLP(), Notes(), State(), []
    reference, empty, other = copy.deepcopy(model), copy.deepcopy(data), Notes()
    optimizer = AdamWConfig(name="adamw")
    loop = make(model, data, notes, optimizer, steps=48, skip=True, spread=20.0)
    loop.verbs.refuse = lambda update, state, ends: told.append((update.step, ends)) or ""
    assert loop.run(state) == "budget"
    assert told == [(46, False)]
    assert (state.step, state.skipped, state.in_a_row) == (48, 1, 0)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    straight = make(reference, empty, other, optimizer, steps=48)
    may = straight._may_step
    straight._may_step = lambda state, loss, norm: state.step != 45 and may(state, loss, norm)
    straight.run(State())
    assert all(torch.equal(p, reference.state_dict()[n]) for n, p in model.state_dict().items())
    assert [row["loss"] for row in notes.rows[43:]][2] is None
    assert [row.get("skipped", 0) for row in notes.rows] == [0] * 45 + [1] * 3


def test_an_overflow_is_no_good_update_between_two_that_are_left_out() -> None:
    """fp16: the guard is not asked about it, so that what it has counted stands."""
    loop = make(ToyMLP(), table(), Notes(), fp16=True, skip=True, most=2)
    loop.verbs.refuse = lambda update, state, ends: ""
    state = State()
    assert not loop._may_step(state, math.nan, 1.0)
    assert not loop._may_step(state, 1.0, math.inf)
    assert (state.in_a_row, state.skipped) == (1, 1)
    with pytest.raises(DivergedError):
        loop._may_step(state, math.nan, 1.0)


def test_an_overflow_is_in_no_line_of_metrics() -> None:
    model, notes = ToyMLP(), Notes()
    state = State(scale=8.0)
    model.layers[0].weight.register_hook(lambda g: g * math.inf if state.scale > 4 else g)
    make(model, table(), notes, steps=2, fp16=True, clip=None).run(state)
    assert notes.rows[0]["loss"] is None
    assert notes.rows[0]["norm_max"] is None
    assert math.isfinite(notes.rows[1]["norm_max"])


def test_too_many_in_a_row_end_training_all_the_same() -> None:
    data = table()
    data.inputs[:] = math.nan
    state = State()
    with pytest.raises(DivergedError, match=r"^step 3: "):
        make(ToyMLP(), data, Notes(), skip=True, most=3, steps=9).run(state)
    assert (state.skipped, state.in_a_row) == (3, 3)


def test_a_line_shows_the_highest_step_in_it() -> None:
    losses: list[float] = []
    model, notes = ToyMLP(), Notes()
    loop = make(model, table(), notes, steps=12, log_every=4)
    update = loop._update
    loop._update = lambda state: (norm := update(state), losses.append(float(norm)))[0]
    single = Notes()
    make(copy.deepcopy(model), table(), single, steps=12).run(State())
    loop.run(State())
    for at, row in enumerate(notes.rows):
        part = single.rows[4 * at : 4 * at + 4]
        assert row["loss_max"] == max(one["loss"] for one in part) > row["loss"]
        assert row["norm_max"] == max(one["norm"] for one in part) == max(losses[4 * at : 4 * at + 4])


def test_a_machine_that_does_not_compute_the_same_twice_is_named() -> None:
    model, seen = ToyMLP(), []
    loop = make(model, table(), Notes())
    loss = loop.loss

    def flaky(batch: Batch) -> Loss:
        seen.append(len(batch))
        found = loss(batch)
        return Loss(found.total * math.nan, found.count) if len(seen) == 3 else found

    loop.loss = flaky
    with pytest.raises(
        DivergedError, match=r"step 3: .*made again it gives loss .* does not compute the same"
    ):
        loop.run(State())


def test_fp16_scale_halves_until_it_fits_and_grows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "FP16_GROW", 3)
    model, notes, state = ToyMLP(), Notes(), State(scale=8.0)
    before = weights(model)
    moved: list[bool] = []
    model.layers[0].weight.register_hook(lambda g: g * math.inf if state.scale > 2 else g)
    loop = make(model, table(), notes, steps=6, fp16=True, clip=None)
    loop.verbs.record = lambda row: moved.append(
        not torch.equal(model.layers[0].weight, before["layers.0.weight"])
    )
    loop.run(state)
    assert moved == [False, False, True, True, True, True]
    assert (state.scale, state.good) == (2.0, 0)  # 8, 4: too large; 2 for three steps; 4: too large again


def test_fp16_gives_the_unscaled_step() -> None:
    plain, scaled = ToyMLP(), ToyMLP()
    scaled.load_state_dict(plain.state_dict())
    make(plain, table(), Notes(), steps=3).run(State())
    make(scaled, table(), Notes(), steps=3, fp16=True).run(State())
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_fp16_loss_that_is_not_finite_diverges() -> None:
    data = table()
    data.inputs[data._index(3, 1)[0]] = math.nan
    with pytest.raises(DivergedError, match="not finite at row"):
        make(ToyMLP(), data, Notes(), fp16=True).run(State())


# --- validation, best, early stopping ---


def test_best_and_patience() -> None:
    notes, state = Notes([3.0, 2.0, 2.5, 2.0, 1.0]), State()
    assert make(ToyMLP(), table(), notes, steps=20, validate_every=2, patience=2).run(state) == "patience"
    assert (state.step, state.best, state.best_step) == (8, 2.0, 4)
    assert notes.saves == [(2, True), (4, True), (8, False)]
    assert [row["best"] for row in notes.rows if "validation" in row] == [True, True, False, False]


def test_more_is_better_and_undefined_never_is() -> None:
    notes, state = Notes([0.5, math.nan, 0.6, math.inf, 0.4]), State()
    assert make(ToyMLP(), table(), notes, steps=5, validate_every=1, mode="max").run(state) == "budget"
    assert (state.best, state.best_step, state.since) == (0.6, 3, 2)
    assert notes.saves[-1] == (5, False)


def test_every_tenth_and_the_end() -> None:
    notes = Notes([1.0] * 20)
    make(ToyMLP(), table(), notes, steps=25, checkpoint_every=None, validate_every=None, log_every=100).run(
        State()
    )
    tenths = [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
    assert [row["step"] for row in notes.rows if "validation" in row] == tenths
    assert [step for step, _ in notes.saves] == tenths
    assert [row["step"] for row in notes.rows if "loss" in row] == [25]


def test_a_finished_run_does_nothing() -> None:
    notes = Notes()
    assert make(ToyMLP(), table(), notes, steps=6).run(State(step=6)) == "budget"
    assert make(ToyMLP(), table(), notes, steps=6, patience=2).run(State(step=3, since=2)) == "patience"
    assert not notes.rows
    assert not notes.saves


# --- signals and clocks ---


@pytest.mark.parametrize(
    ("number", "error", "code"), [(signal.SIGTERM, Interrupted, 75), (signal.SIGINT, Cancelled, 130)]
)
def test_signals_finish_the_step_and_save(number: int, error: type[Exception], code: int) -> None:
    model, notes = ToyMLP(), Notes()
    loop = make(model, table(), notes)
    loop.verbs.record = lambda row: os.kill(os.getpid(), number) if row["step"] == 3 else None
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(error) as raised:
        loop.run(State())
    assert raised.value.exit_code == code  # type: ignore[attr-defined]
    assert notes.saves == [(3, False)]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_at_the_very_end_lets_the_run_finish() -> None:
    notes = Notes()
    loop = make(ToyMLP(), table(), notes, steps=3)
    original = loop.loss

    def last(batch: Batch) -> Loss:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(batch)

    state = State(step=2)
    loop.loss = last
    assert loop.run(state) == "budget"
    assert notes.saves == [(3, False)]


def test_second_ctrl_c_aborts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), caught_signals() as received:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)


def test_session_limit_saves_and_interrupts() -> None:
    notes = Notes()
    with pytest.raises(Interrupted, match="time limit reached; run again to go on"):
        make(ToyMLP(), table(), notes, session=1e-9).run(State())
    assert notes.saves == [(1, False)]


def test_time_as_the_budget_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(loop_module.time, "monotonic", lambda: float(next(clock)))
    notes, state = Notes([1.0] * 50), State(seconds=4.0)
    assert (
        make(ToyMLP(), table(), notes, steps=None, seconds=10.0, validate_every=None).run(state) == "budget"
    )
    assert state.seconds >= 10.0
    assert notes.saves[-1][0] == state.step
    assert notes.rows[-1]["step"] == state.step


# --- a trial before the first step ---


def test_a_divisor_goes_to_where_the_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's fused optimizers take no tensor of the host; a trial's divisor is a plain number."""
    loop, seen = make(ToyMLP(), table(), Notes()), []
    monkeypatch.setattr(loop.optimizers, "step", lambda divisor, skip: seen.append(divisor.device.type))
    loop.device = torch.device("meta")
    loop._step(0, 1.0)
    assert seen == ["meta"]


@pytest.mark.cuda
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_a_trial_on_cuda_changes_no_bit(optimizer: Any) -> None:
    model = ToyMLP().to("cuda")
    loop = make(model, table(), Notes(), optimizer, device=torch.device("cuda"))
    before, state = weights(model), loop.optimizers.state()
    loop.trial(State())
    assert all(torch.equal(p, before[n]) for n, p in weights(model).items())
    assert all(torch.equal(t, state[n]) for n, t in loop.optimizers.state().items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_a_trial_changes_no_bit_and_lowers_what_does_not_fit(optimizer: Any) -> None:
    torch.manual_seed(0)
    model, notes = ToyMLP(dropout=0.2), Notes()
    norm = nn.BatchNorm1d(8)
    norm.num_batches_tracked = None
    model.layers.insert(1, norm)
    loop = make(model, table(), notes, optimizer)
    loop.average = Average(model, 0.9)
    straight, most, original = copy.deepcopy(model), [2], loop.loss

    def tight(batch: Batch) -> Loss:
        if len(batch) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(batch)

    loop.loss = tight
    loop.verbs.lower = lambda state: (loop.plan.micro_batch // 2, None)
    before, state, averaged = weights(model), loop.optimizers.state(), State()
    loop.trial(averaged)
    assert loop.plan.micro_batch == 2
    assert averaged == State()
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert all(torch.equal(t, state[n]) for n, t in loop.optimizers.state().items())
    with loop.average.inside():
        assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    loop.run(State())
    other = make(straight, table(), Notes(), optimizer, micro_batch=2)
    other.run(State())
    assert all(torch.equal(p, straight.state_dict()[n]) for n, p in model.state_dict().items())


def test_memory_that_runs_out_in_the_update_of_a_trial_is_lowered_too() -> None:
    """A trial's update changes no number: nothing is half made."""

    class Full(Average):
        def update(self, step: int, skip: Tensor | None = None) -> None:
            if loop.plan.micro_batch > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().update(step, skip)

    model = ToyMLP()
    loop = make(model, table(), Notes(), AdamWConfig(name="adamw"))
    loop.average, before = Full(model, 0.9), weights(model)
    loop.verbs.lower = lambda state: (loop.plan.micro_batch // 2, None)
    loop.trial(State())
    assert loop.plan.micro_batch == 2
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


def test_memory_that_runs_out_is_an_error_where_nobody_lowers() -> None:
    loop = make(ToyMLP(), table(), Notes())

    def full(batch: Batch) -> Loss:
        raise torch.OutOfMemoryError("CUDA out of memory")

    loop.loss = full
    with pytest.raises(torch.OutOfMemoryError):
        loop.run(State())
