"""How long training lasts: a number of steps, epochs or tokens, or wall time."""

from __future__ import annotations

import math
import re
from typing import Self

from pydantic import Field, model_validator

from llmtool.core.config import Section

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """The seconds in "90s", "10m" or "1.5h". ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip(), re.ASCII)
    if not match or float(match[1]) <= 0:
        raise ValueError(f"expected a time such as 90s, 10m or 1.5h (got {text!r})")
    return float(match[1]) * _UNITS[match[2]]


class Budget(Section):
    """One of steps, epochs, tokens or time; time beside another one limits a session, to be resumed."""

    steps: int | None = Field(default=None, gt=0, description="optimizer steps")
    epochs: float | None = Field(
        default=None, gt=0, description="passes over the training split; 0.5 is half of one"
    )
    tokens: int | None = Field(default=None, gt=0, description="tokens seen, for language models")
    time: str | None = Field(
        default=None,
        description='wall time, such as "90s", "10m" or "1.5h"; beside another key: of one session',
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("steps", "epochs", "tokens") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; keep one (time may stand beside it)")
        if self.time is None and not given:
            raise ValueError("needs one of steps, epochs, tokens or time")
        if self.time is not None:
            seconds(self.time)
        return self

    def total_steps(self, rows: int, batch: int, tokens_per_row: int) -> int | None:
        """Optimizer steps in all for an epoch of `rows` rows; None when wall time is the budget."""
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return max(1, math.ceil(self.epochs * rows / batch - 1e-9))  # 0.1 * 30 is a little more than 3
        if self.tokens is not None:
            return math.ceil(self.tokens / (batch * tokens_per_row))
        return None

    @property
    def seconds(self) -> float | None:
        """The wall time given, in seconds."""
        return None if self.time is None else seconds(self.time)
