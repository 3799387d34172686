"""Requirements on figures, as in `require: {test.f1: ">=0.85"}`: read with the file, checked after.

A figure may also be a bound of its 95 % interval (`test.f1.low`, `test.f1.high`), or how it changed against
the run that `compare` names (`test.f1.change`, `test.f1.change.low`, `test.f1.change.high`).
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator

from llmtool.core.config import suggest
from llmtool.core.errors import ConfigError
from llmtool.data.sources import SplitName
from llmtool.metrics import classification, games, labels, language, regression, suites

BASELINE = "beats_baseline"
BOUNDS = (".low", ".high")
SUITES = "suites."  # begins the figure of a suite: suites.lambada.accuracy

_END = re.compile(r"(\.change)?(\.low|\.high)?$")
_COMPARE = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt}
_BOUND = re.compile(r"\s*(>=|<=|==|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%?)\s*", re.ASCII)


@dataclass(frozen=True)
class Outcome:
    """What became of one requirement.

    value: the figure reached, None when there is none.
    """

    name: str  # "test.f1"
    bound: str  # ">=0.85"
    value: float | None
    met: bool
    reason: str = ""  # why there is no figure

    def __str__(self) -> str:
        if self.name == BASELINE:
            return f"{self.name}: {self.reason}"
        if self.value is None:
            return f"{self.name} must be {self.bound}: {self.reason}"
        compare, number = parse(self.bound)
        shown = f"{self.value:,.0f}" if abs(self.value) >= 10_000 else f"{self.value:.4g}"
        if _COMPARE[compare](float(shown.replace(",", "")), number) != self.met:
            shown = repr(self.value)  # 0.84999 against 0.85: rounding would hide it
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


def _checked_bound(text: str | bool) -> str | bool:
    if not isinstance(text, bool):
        parse(text)
    return text


def _checked_name(name: str) -> str:
    if name == BASELINE:
        return name
    split, metric = parts(name)
    if not metric:
        form = (
            "suites.name.metric, as in suites.lambada"
            if name.startswith("suites")
            else "split.metric, as in test"
        )
        raise ValueError(f"{name!r} names no figure; write {form}.accuracy")
    if split.startswith(SUITES):
        return name
    if split not in get_args(SplitName):
        choices = list(get_args(SplitName))
        raise ValueError(f"{split!r} is not a split{suggest(split, choices)} (splits: {', '.join(choices)})")
    return name


def parts(name: str) -> tuple[str, str]:
    """What is scored and its figure: ("test", "f1.low"), ("suites.lambada", "accuracy")."""
    end = name.find(".", len(SUITES) if name.startswith(SUITES) else 0)
    return (name, "") if end < 0 else (name[:end], name[end + 1 :])


Bound = Annotated[str | bool, AfterValidator(_checked_bound)]
Figure = Annotated[str, AfterValidator(_checked_name)]


def _flat(given: Any) -> Any:
    """`{test: {f1: ...}}`, which is what `--set evaluate.require.test.f1=...` makes, as `{test.f1: ...}`."""
    if not isinstance(given, dict):
        return given
    result: dict[Any, Any] = {}
    for name, value in given.items():
        inner = (
            {f"{name}.{key}": bound for key, bound in _flat(value).items()}
            if isinstance(value, dict)
            else {name: value}
        )
        if twice := result.keys() & inner.keys():
            raise ValueError(f"{min(twice)} stands twice")
        result |= inner
    return result


def _right_kind(requirements: dict[str, str | bool]) -> dict[str, str | bool]:
    for name, bound in requirements.items():
        if isinstance(bound, bool) and name != BASELINE:
            raise ValueError(f'{name}: {bound} is no requirement; write a comparison and a number: ">=0.85"')
        if name == BASELINE and not isinstance(bound, bool):
            raise ValueError(f"{name}: {bound!r} is neither true nor false")
    return requirements


Requirements = Annotated[dict[Figure, Bound], BeforeValidator(_flat), AfterValidator(_right_kind)]


FIGURES = {
    "classes": classification.FIGURES,
    "labels": labels.FIGURES,
    "values": regression.FIGURES,
    "log_values": (*regression.FIGURES, regression.RMSE_LOG),  # those that are learned as logarithms
    "next_token": language.FIGURES,
    "games": games.FIGURES,
}


def refuse_unknown(
    requirements: Mapping[str, str | bool],
    metric: str | None,
    kind: str,
    asked: Mapping[str, str] | None = None,
    parts_: Sequence[str] = (),
) -> None:
    """ConfigError for a name that no evaluation can have a figure of: before an hour is spent on training.

    metric: what `evaluate.metric` names. kind: of the dataset's targets, a key of FIGURES. asked: each
    suite's name and kind. parts_: of a mixture, whose figures are `code.loss`.
    """
    figures = list(FIGURES[kind])
    if metric is not None and metric not in figures:
        raise ConfigError(
            f"evaluate.metric: {metric!r} is not a figure of this task{suggest(metric, figures)} "
            f"(choices: {', '.join(figures)})"
        )
    for name in requirements:
        if name == BASELINE:
            continue
        place, figure = parts(name)
        known, more = figures, ["overlap"] * (kind in ("next_token", "games"))
        part, _, of_part = figure.partition(".")  # of a part there are neither bounds nor changes
        bare = of_part if part in parts_ else _END.sub("", figure)
        if place.startswith(SUITES):
            known, more = list(suites.FIGURES[(asked or {})[place.removeprefix(SUITES)]]), []
        if bare not in known and figure not in more:
            raise ConfigError(
                f"evaluate.require: {name}: there is no figure {bare!r}{suggest(bare, known)} "
                f"(figures: {', '.join([*known, *more])}; of each .low and .high, with evaluate.compare "
                ".change, .change.low and .change.high; a mixture's part has the figures alone)"
            )


def splits_of(requirements: Mapping[str, str | bool]) -> list[str]:
    """The splits whose figures are asked for."""
    places = [parts(name)[0] for name in requirements if name != BASELINE]
    return [place for place in dict.fromkeys(places) if not place.startswith(SUITES)]


def suites_of(requirements: Mapping[str, str | bool]) -> list[str]:
    """The suites whose figures are asked for."""
    places = [parts(name)[0] for name in requirements if name.startswith(SUITES)]
    return [place.removeprefix(SUITES) for place in dict.fromkeys(places)]


def check(
    requirements: Mapping[str, str | bool],
    metrics: Mapping[str, Mapping[str, float]],
    undefined: Mapping[str, Mapping[str, str]] | None = None,
    against: Mapping[str, Any] | None = None,
    why: str = "no baseline was taken",
) -> list[Outcome]:
    """One outcome a requirement, in their order; one whose figure is not there is unmet, with the reason.

    metrics: split -> figure -> value. undefined: split -> figure -> reason. against: what the report says of
    the model beside the strongest baseline; None: there is nothing, for the reason `why`.
    """
    return [
        _beats(against, why) if isinstance(bound, bool) else _outcome(name, bound, metrics, undefined or {})
        for name, bound in requirements.items()
        if bound is not False
    ]


def with_bounds(
    metrics: Mapping[str, Mapping[str, float]],
    undefined: Mapping[str, Mapping[str, str]],
    evidence: Mapping[str, Any],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, str]]]:
    """Figures and reasons, with those that a requirement may name besides: bounds, and changes.

    evidence: the parts of report.json called intervals, no_interval, comparison and overlap.
    """
    found = {split: dict(figures) for split, figures in metrics.items()}
    reasons = {split: dict(undefined.get(split, {})) for split in metrics}
    compared = evidence["comparison"] or {"splits": {}, "says": ["evaluate.compare names no run"]}
    for split, figures in metrics.items():
        if split in evidence["overlap"]:
            found[split]["overlap"] = evidence["overlap"][split]["share"]
        for part, one in evidence.get("parts", {}).get(split, {}).items():
            found[split] |= {f"{part}.{name}": value for name, value in one["metrics"].items()}
        for name in [*figures, *undefined.get(split, {})]:
            why = undefined.get(split, {}).get(name)
            bounds = evidence["intervals"].get(split, {}).get(name)
            no_bounds = why or evidence["no_interval"].get(split, {}).get(name, "")
            _add(found[split], reasons[split], name, bounds, no_bounds)
            change = compared["splits"].get(split, {}).get(name)
            if change:
                found[split][f"{name}.change"] = change["difference"]
                _add(found[split], reasons[split], f"{name}.change", change["interval"], change["says"])
            else:
                why = why or "; ".join(compared["says"])
                reasons[split] |= dict.fromkeys([f"{name}.change{end}" for end in ("", *BOUNDS)], why)
    return found, reasons


def _add(
    found: dict[str, float], reasons: dict[str, str], name: str, bounds: Sequence[float] | None, why: str
) -> None:
    names = [name + end for end in BOUNDS]
    if bounds:
        found |= dict(zip(names, bounds, strict=True))
    else:
        reasons |= dict.fromkeys(names, why)


def _beats(against: Mapping[str, Any] | None, why: str) -> Outcome:
    if not against:
        return Outcome(BASELINE, "true", None, False, why)
    return Outcome(BASELINE, "true", against["difference"], against["beats"], against["says"])


def unmet(outcomes: list[Outcome]) -> str:
    """One line with every requirement that is not met; empty when all are."""
    return "; ".join(str(outcome) for outcome in outcomes if not outcome.met)


def _outcome(
    name: str,
    bound: str,
    metrics: Mapping[str, Mapping[str, float]],
    undefined: Mapping[str, Mapping[str, str]],
) -> Outcome:
    split, metric = parts(name)
    bound = bound.strip()
    if split not in metrics:
        scored = ", ".join(metrics) or "none"
        return Outcome(name, bound, None, False, f"the split {split!r} was not scored (scored: {scored})")
    if metric in undefined.get(split, {}):
        return Outcome(name, bound, None, False, f"undefined, since {undefined[split][metric]}")
    if metric not in metrics[split]:
        known = [name for name in metrics[split] if "." not in name]
        hint = suggest(metric, known)
        reason = f"there is no figure {metric!r}{hint} (figures: {', '.join(known)})"
        return Outcome(name, bound, None, False, reason)
    value = float(metrics[split][metric])
    if not math.isfinite(value):
        return Outcome(name, bound, None, False, "the figure is not a finite number")
    compare, number = parse(bound)
    return Outcome(name, bound, value, bool(_COMPARE[compare](value, number)))
