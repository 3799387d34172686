"""What a person sees of a training that is under way."""

from __future__ import annotations

import pytest

from llmtool.commands.shown import TrainingDisplay
from llmtool.core import console


def test_a_validation_after_a_resume_says_the_time_left_of_the_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The steps before the resume took this process no time: what the training itself says counts."""
    console.configure()
    with console.progress(1000, "step") as display:
        watch = TrainingDisplay(display, "accuracy")
        row = {"loss": 1.0, "lr": 1e-3}
        watch.row({"step": 900, **row, "time": {"seconds": 90.0, "left": 40.0}})
        watch.row({"step": 950, **row, "time": {"seconds": 95.0, "left": 20.0}})  # too soon to be shown
        watch.row({"step": 950, "validation": {"accuracy": 0.5}, "best": True, "time": {"seconds": 95.0}})
        watch.row({"step": 1000, **row, "time": {"seconds": 99.0, "left": 0.0}})
        watch.row({"step": 1000, "validation": {}, "best": False, "time": {"seconds": 99.0}})
    assert [line.split("  ")[-1] for line in capsys.readouterr().err.splitlines()] == [
        "40.0s left",
        "20.0s left",
        "step 1,000/1,000",
    ]
