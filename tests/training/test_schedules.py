"""Schedules: their shapes, their ends, and that they depend on the position alone."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from llmtool.training.schedules import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    Schedule,
    ScheduleConfig,
    WSDSchedule,
)

ALL: list[Schedule] = [
    ConstantSchedule(name="constant", warmup=0.1),
    CosineSchedule(name="cosine", warmup=0.1, final=0.1),
    LinearSchedule(name="linear", warmup=0.1, final=0.1),
    WSDSchedule(name="wsd", warmup=0.1, final=0.1),
]


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
def test_warmup_rises_evenly_and_never_from_zero(schedule: Schedule) -> None:
    factors = [schedule.factor(step, 100) for step in range(11)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1.0
    whole = schedule.model_copy(update={"warmup": 10})
    assert [whole.factor(step, 100) for step in range(100)] == [
        schedule.factor(step, 100) for step in range(100)
    ]


@pytest.mark.parametrize("schedule", ALL[1:], ids=lambda s: s.name)
def test_falls_to_its_final_share(schedule: Schedule) -> None:
    factors = [schedule.factor(step, 100) for step in range(10, 101)]
    assert all(a >= b for a, b in pairwise(factors))
    assert factors[-1] == pytest.approx(0.1)
    assert factors[-2] > 0.1  # the last step made is the one before the end


def test_known_points() -> None:
    cosine = CosineSchedule(name="cosine", warmup=0)
    assert [cosine.factor(s, 4) for s in range(5)] == pytest.approx([1, 0.8535534, 0.5, 0.1464466, 0])
    assert [LinearSchedule(name="linear", warmup=0).factor(s, 4) for s in range(4)] == [1, 0.75, 0.5, 0.25]
    wsd = WSDSchedule(name="wsd", warmup=0, decay=0.5)
    assert [wsd.factor(s, 8) for s in range(8)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert ConstantSchedule(name="constant").factor(10**9, 10) == 1.0


@given(
    step=st.integers(0, 10_000),
    total=st.integers(1, 5_000),
    warmup=st.one_of(st.integers(0, 20_000), st.floats(0, 0.99)),
    progress=st.floats(0, 1),
)
def test_always_a_share(step: int, total: int, warmup: float, progress: float) -> None:
    for schedule in ALL:
        moved = schedule.model_copy(update={"warmup": warmup})
        assert 0.0 <= moved.factor(step, total) <= 1.0
        assert 0.0 < moved.factor(step, None, progress) <= 1.0


def test_time_decides_where_steps_are_unknown() -> None:
    linear = LinearSchedule(name="linear", warmup=0.5)
    assert [linear.factor(7, None, share) for share in (0.25, 0.5, 0.75)] == [0.5, 1.0, 0.5]
    assert LinearSchedule(name="linear", warmup=3).factor(0, None, 0.0) == 0.25


@pytest.mark.parametrize(
    "keys", [{"warmup": 1.0}, {"warmup": -1}, {"final": 1.5}, {"name": "step"}, {"decay": 0.1}]
)
def test_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ScheduleConfig).validate_python({"name": "cosine", **keys})
