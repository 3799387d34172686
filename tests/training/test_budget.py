"""Budgets: exactly one measure of length, time beside it, and what it comes to in steps."""

import pytest
from pydantic import ValidationError

from llmtool.training.budget import Budget, seconds


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("0.5 s", 0.5)])
def test_times(text: str, expected: float) -> None:
    assert seconds(text) == expected
    assert Budget(time=text).seconds == expected


@pytest.mark.parametrize("text", ["", "10", "m", "-5s", "0s", "1d", "1e3s", "10m 5s", "٣s", "1..5h", "nan s"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValidationError, match="expected a time such as"):
        Budget(time=text)


def test_exactly_one() -> None:
    with pytest.raises(ValidationError, match="needs one of"):
        Budget()
    with pytest.raises(ValidationError, match="steps and epochs exclude each other"):
        Budget(steps=5, epochs=1)
    with pytest.raises(ValidationError, match="epochs and tokens exclude each other"):
        Budget(epochs=1.0, tokens=5, time="5s")
    for key in ("steps", "epochs", "tokens"):
        with pytest.raises(ValidationError, match="greater than 0"):
            Budget(**{key: 0})  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Budget(steps=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Budget(epochs=float("inf")).total_steps(10, 5, 1)


def test_steps_of_every_form() -> None:
    assert Budget(steps=7).total_steps(100, 10, 1) == 7
    assert (
        Budget(epochs=3.0).total_steps(100, 32, 1) == 10
    )  # 300 rows, the last batch reaches into the next epoch
    assert Budget(epochs=0.001).total_steps(100, 32, 1) == 1
    assert Budget(epochs=0.1).total_steps(30, 1, 1) == 3
    assert Budget(tokens=1000).total_steps(100, 8, 16) == 8
    assert Budget(tokens=1025).total_steps(100, 8, 16) == 9
    assert Budget(time="9s").total_steps(100, 8, 16) is None
    both = Budget(steps=7, time="9s")
    assert (both.total_steps(100, 8, 1), both.seconds) == (7, 9.0)
