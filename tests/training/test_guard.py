"""The guard: jumps out of the recent spread are seen, mere noise is not, on host and device alike."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch

from llmtool.training.guard import ENOUGH, WINDOW, DeviceGuard, Guard, Memory

EMPTY = Memory([], None)


def meet(guard: Guard, loss: float, norm: float = 1.0) -> str:
    """A step as the loop makes it: judged, and remembered where it is good."""
    why = guard.judge(loss, norm)
    if not why:
        guard.remember(loss)
    return why


def meet_on_device(guard: DeviceGuard, step: int, loss: torch.Tensor) -> torch.Tensor:
    bad = guard.judge(step, loss, number(1.0))
    guard.remember(loss)
    return bad


def host(losses: Sequence[float], spread: float | None = 20.0) -> list[int]:
    """The steps that are refused."""
    guard = Guard(spread, EMPTY)
    return [at for at, loss in enumerate(losses) if meet(guard, loss)]


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def device(losses: Sequence[float], spread: float | None = 20.0) -> int:
    """The first step that is refused, or -1."""
    guard = DeviceGuard(spread, EMPTY, torch.device("cpu"))
    for at, loss in enumerate(losses):
        meet_on_device(guard, at, number(loss))
    return int(guard.first)


def noisy(steps: int, seed: int = 0, level: float = 3.0, deviation: float = 0.05) -> list[float]:
    """A loss that falls from three times its level, then only trembles."""
    chance = random.Random(seed)
    return [level * (1 + 2 * math.exp(-at / 20)) + chance.gauss(0, deviation) for at in range(steps)]


@pytest.mark.parametrize("at", [ENOUGH, 100, 300])
def test_a_jump_is_refused_and_not_remembered(at: int) -> None:
    losses = noisy(400)
    losses[at] *= 12
    losses[at + 2] = losses[at]
    assert host(losses) == [at, at + 2]
    assert device(losses) == at


def test_few_losses_say_nothing() -> None:
    losses = noisy(ENOUGH)
    losses[ENOUGH - 1] = 1e9
    assert host(losses) == []
    assert device(losses) == -1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_always_refused(value: float) -> None:
    losses = [value, *noisy(50)]
    assert host(losses, spread=None) == [0]
    assert device(losses, spread=None) == 0
    guard = Guard(None, EMPTY)
    assert [meet(guard, 1.0, value), meet(guard, 1.0)] == ["not finite", ""]


def test_noise_of_any_kind_is_let_through() -> None:
    chance = random.Random(1)
    for seed in range(5):
        assert host(noisy(3000, seed)) == []
    exponential = [chance.expovariate(1.0) for _ in range(20_000)]
    assert host(exponential) == []
    assert host([0.0] * 200 + [1e-9] + [0.0] * 200) == []  # no loss at all: no scale to go by
    level = [*noisy(300), *noisy(500, level=3.5)[200:]]  # other rows from here on: a level, not a jump
    assert host(level) == []


def test_a_model_that_knows_its_rows_by_heart_may_stumble() -> None:
    """Losses near 0 make any miss many deviations high; one as bad as the beginning is refused."""
    losses = [2.3 * math.exp(-at / 30) + 1e-4 for at in range(1000)]
    losses[700], losses[900] = 0.3, 2.5
    assert host(losses) == [900]
    assert device(losses) == 900


def test_one_wild_loss_at_the_start_does_not_blind_the_guard() -> None:
    losses = noisy(400)
    losses[3] = 1e9
    losses[300] = 100.0
    assert host(losses) == [300]


def test_a_smaller_spread_sees_smaller_jumps() -> None:
    losses = noisy(400)
    losses[300] += 0.6  # twelve deviations
    assert host(losses, spread=20.0) == []
    assert host(losses, spread=8.0) == [300]


@pytest.mark.parametrize("stop", [5, ENOUGH - 1, ENOUGH, 100, WINDOW, WINDOW + 1, 290])
def test_memory_is_all_there_is(stop: int) -> None:
    """Stopped and gone on, on either side: the same memory and the same verdicts."""
    losses = noisy(300)
    whole, there = Guard(20.0, EMPTY), DeviceGuard(20.0, EMPTY, torch.device("cpu"))
    numbers = [number(loss) for loss in losses]
    for at in range(stop):
        meet(whole, losses[at])
        meet_on_device(there, at, numbers[at])
    assert there.memory() == whole.memory()
    again, device_again = Guard(20.0, whole.memory()), DeviceGuard(20.0, there.memory(), torch.device("cpu"))
    for at in range(stop, 300):
        assert meet(again, losses[at]) == meet(whole, losses[at]) == ""
        meet_on_device(device_again, at, numbers[at])
        meet_on_device(there, at, numbers[at])
    assert again.memory() == whole.memory() == there.memory() == device_again.memory()
    assert again.limit() == pytest.approx(there.memory().limit(20.0), rel=1e-12)


@pytest.mark.parametrize("at", [ENOUGH + 3, 200])
def test_on_the_device_later_steps_leave_no_trace(at: int) -> None:
    losses = noisy(at + 7)
    losses[at] = 1000.0
    guard, reference = DeviceGuard(20.0, EMPTY, torch.device("cpu")), Guard(20.0, EMPTY)
    for step, loss in enumerate(losses):
        bad = meet_on_device(guard, step, number(loss))
        assert bool(bad) == (step >= at)  # once bad, all that follows is bad
        if step < at:
            meet(reference, loss)
    guard.forget(len(losses) - at)
    assert guard.memory() == reference.memory()


def test_a_step_that_is_judged_twice_is_remembered_once() -> None:
    """One whose update ran out of memory is made again: judging alone leaves nothing behind."""
    losses = noisy(ENOUGH + 9)
    twice, once = Guard(20.0, EMPTY), Guard(20.0, EMPTY)
    there = DeviceGuard(20.0, EMPTY, torch.device("cpu"))
    for at, loss in enumerate(losses):
        twice.judge(loss, 1.0)
        there.judge(at, number(loss), number(1.0))
        assert meet(twice, loss) == meet(once, loss) == ""
        meet_on_device(there, at, number(loss))
    assert twice.memory() == once.memory() == there.memory()
