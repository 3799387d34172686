"""Requirements on figures, as in `require: {test.f1: ">=0.85"}`: read with the file, checked after."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator

from llmtool.core.config import suggest

SplitName = Literal["train", "validation", "test"]

_COMPARE = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt}
_BOUND = re.compile(r"\s*(>=|<=|==|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%?)\s*", re.ASCII)


@dataclass(frozen=True)
class Outcome:
    """What became of one requirement.

    value: the figure reached, None when there is none. unknown: whether the task has no such figure at all.
    """

    name: str  # "test.f1"
    bound: str  # ">=0.85"
    value: float | None
    met: bool
    reason: str = ""  # why there is no figure
    unknown: bool = False

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name} must be {self.bound}: {self.reason}"
        compare, number = parse(self.bound)
        shown = f"{self.value:.4g}"
        if (
            _COMPARE[compare](float(shown), number) != self.met
        ):  # 0.84999 against 0.85: rounding would hide it
            shown = repr(self.value)
        return f"{self.name} is {shown}{'' if self.met else f', must be {self.bound}'}"


def parse(text: str) -> tuple[str, float]:
    """The comparison and the number of ">=0.85" or ">= 85%". ValueError says what is expected."""
    match = _BOUND.fullmatch(text)
    if not match:
        raise ValueError(
            f'{text!r} is no requirement; write a comparison (>=, >, <=, <, ==) and a number: ">=0.85"'
        )
    number = float(match[2]) / (100 if match[3] else 1)
    if not math.isfinite(number):
        raise ValueError(f"{text!r}: the number is too large")
    return match[1], number


def _checked_bound(text: str) -> str:
    parse(text)
    return text


def _checked_name(name: str) -> str:
    split, dot, metric = name.partition(".")
    if not dot or not metric:
        raise ValueError(f"{name!r} names no figure; write split.metric, as in test.accuracy")
    if split not in get_args(SplitName):
        choices = list(get_args(SplitName))
        raise ValueError(f"{split!r} is not a split{suggest(split, choices)} (splits: {', '.join(choices)})")
    return name


Bound = Annotated[str, AfterValidator(_checked_bound)]
Figure = Annotated[str, AfterValidator(_checked_name)]


def _flat(given: Any) -> Any:
    """`{test: {f1: ...}}`, which is what `--set evaluate.require.test.f1=...` makes, as `{test.f1: ...}`."""
    if not isinstance(given, dict):
        return given
    result: dict[Any, Any] = {}
    for name, value in given.items():
        inner = (
            {f"{name}.{key}": bound for key, bound in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        if twice := result.keys() & inner.keys():
            raise ValueError(f"{min(twice)} stands twice")
        result |= inner
    return result


Requirements = Annotated[dict[Figure, Bound], BeforeValidator(_flat)]


def check(
    requirements: Mapping[str, str],
    metrics: Mapping[str, Mapping[str, float]],
    undefined: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Outcome]:
    """One outcome a requirement, in their order; one whose figure is not there is unmet, with the reason.

    metrics: split -> figure -> value. undefined: split -> figure -> reason.
    """
    return [_outcome(name, bound, metrics, undefined or {}) for name, bound in requirements.items()]


def unmet(outcomes: list[Outcome]) -> str:
    """One line with every requirement that is not met; empty when all are."""
    return "; ".join(str(outcome) for outcome in outcomes if not outcome.met)


def _outcome(
    name: str,
    bound: str,
    metrics: Mapping[str, Mapping[str, float]],
    undefined: Mapping[str, Mapping[str, str]],
) -> Outcome:
    split, _, metric = name.partition(".")
    bound = bound.strip()
    if split not in metrics:
        scored = ", ".join(metrics) or "none"
        return Outcome(name, bound, None, False, f"the split {split!r} was not scored (scored: {scored})")
    if metric in undefined.get(split, {}):
        return Outcome(name, bound, None, False, f"undefined, since {undefined[split][metric]}")
    if metric not in metrics[split]:
        known = list(metrics[split])
        hint = suggest(metric, known)
        reason = f"there is no figure {metric!r}{hint} (figures: {', '.join(known)})"
        return Outcome(name, bound, None, False, reason, unknown=True)
    value = float(metrics[split][metric])
    if not math.isfinite(value):
        return Outcome(name, bound, None, False, "the figure is not a finite number")
    compare, number = parse(bound)
    return Outcome(name, bound, value, bool(_COMPARE[compare](value, number)))
