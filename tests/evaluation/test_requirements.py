"""Requirements: how they are written, and when they are met."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llmtool.core import config
from llmtool.core.config import Section
from llmtool.core.errors import ConfigError, ConfigErrors
from llmtool.evaluation import EvaluateConfig
from llmtool.evaluation.requirements import (
    FIGURES,
    check,
    parse,
    refuse_unknown,
    splits_of,
    unmet,
    with_bounds,
)


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        (">=0.85", (">=", 0.85)),
        ("  >= 0.85 ", (">=", 0.85)),
        ("<1.7", ("<", 1.7)),
        ("<=-3", ("<=", -3.0)),
        ("==1", ("==", 1.0)),
        (">.5", (">", 0.5)),
        (">1.", (">", 1.0)),
        ("<1e-4", ("<", 1e-4)),
        (">= 90%", (">=", 0.9)),
        (">=12.5 %", (">=", 0.125)),
    ],
)
def test_a_bound_is_a_comparison_and_a_number(text: str, bound: tuple[str, float]) -> None:
    assert parse(text) == bound


@pytest.mark.parametrize(
    "text",
    ["", "0.9", ">=", "=>0.9", "=0.9", "!=0.9", ">=0.9.1", ">=1,5", ">=nan", "<inf", ">=1e999", ">=0.9 or so",
     ">=0x10", ">=1_0", ">=٣", ">>1", ">=0.9\n>1", ">= -"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize(
    ("bound", "below", "equal", "above"),
    [
        (">=0.5", False, True, True),
        (">0.5", False, False, True),
        ("<=0.5", True, True, False),
        ("<0.5", True, False, False),
        ("==0.5", False, True, False),
    ],
)
def test_truth_table(bound: str, below: bool, equal: bool, above: bool) -> None:
    for value, met in ((0.25, below), (0.5, equal), (0.75, above)):
        (outcome,) = check({"test.f1": bound}, {"test": {"f1": value}})
        assert outcome.met is met
        assert outcome.value == value
        assert bool(unmet([outcome])) is not met


METRICS = {"validation": {"f1": 0.7}, "test": {"f1": 0.8, "accuracy": 0.9}}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("train.f1", "train.f1 must be >=0.1: the split 'train' was not scored (scored: validation, test)"),
        (
            "test.acuracy",
            "test.acuracy must be >=0.1: there is no figure 'acuracy'; did you mean \"accuracy\"? "
            "(figures: f1, accuracy)",
        ),
        ("test.roc_auc", "test.roc_auc must be >=0.1: undefined, since only class 'a' occurs"),
    ],
)
def test_a_figure_that_is_not_there_is_unmet_and_says_why(name: str, line: str) -> None:
    outcomes = check({name: ">=0.1"}, METRICS, {"test": {"roc_auc": "only class 'a' occurs"}})
    assert not outcomes[0].met
    assert outcomes[0].value is None
    assert unmet(outcomes) == line


@pytest.mark.parametrize("bound", [">=0", "<=0", "<1", ">-1", "==0"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_number_meets_nothing(bound: str, value: float) -> None:
    assert not check({"test.f1": bound}, {"test": {"f1": value}})[0].met


def test_several_unmet_stand_in_one_line() -> None:
    outcomes = check({"test.f1": ">=0.85", "test.accuracy": ">=0.85", "validation.f1": ">=75%"}, METRICS)
    assert [outcome.met for outcome in outcomes] == [False, True, False]
    assert unmet(outcomes) == "test.f1 is 0.8, must be >=0.85; validation.f1 is 0.7, must be >=75%"
    assert str(outcomes[1]) == "test.accuracy is 0.9"


def test_rounding_never_hides_why_a_figure_is_unmet() -> None:
    (outcome,) = check({"test.f1": ">=0.85"}, {"test": {"f1": 0.84999999}})
    assert str(outcome) == "test.f1 is 0.84999999, must be >=0.85"


# --- in the file --------------------------------------------------------------------------------------------


class _File(Section):
    evaluate: EvaluateConfig = EvaluateConfig()


def read(text: str, *overrides: str) -> EvaluateConfig:
    document = config.parse(f"evaluate: {text}", "t.yaml")
    for override in overrides:
        config._override(document, override)
    return config.validate(document, _File).evaluate


def test_the_section_and_its_defaults() -> None:
    section = read(
        '{of: runs/a, splits: [test], require: {test.f1: ">=0.85"}, batch: 64, samples: {prompts: ["a"]}}'
    )
    assert section.require == {"test.f1": ">=0.85"}
    assert section.samples is not None
    assert section.samples.tokens == 200
    assert read("{}").splits is None


def test_set_reaches_a_requirement() -> None:
    assert read("{}", 'evaluate.require.test.f1=">=0.9"').require == {"test.f1": ">=0.9"}
    assert read("{require: {validation.f1: '>1'}}", 'evaluate.require.test.f1=">=0.9"').require == {
        "validation.f1": ">1",
        "test.f1": ">=0.9",
    }


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("{require: {test.f1: 0.9}}", "t.yaml:1:22: evaluate.require.test.f1: ", "expected text"),
        ("{require: {tets.f1: '>=0.9'}}", "t.yaml:1:22: evaluate.require.tets.f1: ", 'did you mean "test"?'),
        ("{require: {f1: '>=0.9'}}", "t.yaml:1:22: evaluate.require.f1: ", "write split.metric"),
        ("{require: {test.: '>=0.9'}}", "t.yaml:1:22: evaluate.require.test.: ", "write split.metric"),
        (
            "{require: {test.f1: '=0.9'}}",
            "t.yaml:1:22: evaluate.require.test.f1: ",
            "'=0.9' is no requirement",
        ),
        (
            "{require: {test: {f1: '>1'}, test.f1: '>2'}}",
            "t.yaml:1:22: evaluate.require.test: ",
            "test.f1 stands twice",
        ),
        ("{require: {test: {f1: '1'}}}", "t.yaml:1:12: evaluate.require: ", "'1' is no requirement"),
        ("{splits: [test, test]}", "t.yaml:1:12: evaluate.splits: ", "names a split twice"),
        (
            "{splits: [test], require: {validation.f1: '>1'}}",
            "t.yaml:1:28: evaluate.require: ",
            "validation is a split that",
        ),
        ("{splits: [tst]}", "t.yaml:1:21: evaluate.splits.0: ", 'did you mean "test"?'),
        (
            "{samples: {temperature: -1}}",
            "t.yaml:1:22: evaluate.samples.temperature: ",
            "greater than or equal",
        ),
        ("{samples: {prompts: []}}", "t.yaml:1:22: evaluate.samples.prompts: ", "at least 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, place: str, message: str) -> None:
    with pytest.raises(ConfigErrors) as error:
        read(text)
    assert str(error.value).startswith(place)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_key_is_described() -> None:
    assert all(field.description for field in EvaluateConfig.model_fields.values())


EVIDENCE: dict[str, Any] = {
    "overlap": {"test": {"share": 0.25}},
    "intervals": {"test": {"f1": [0.7, 0.9]}},
    "no_interval": {"test": {"loss": "2 units cannot be drawn from"}},
    "comparison": {
        "splits": {"test": {"f1": {"difference": 0.01, "interval": [-0.01, 0.03], "says": ""}}},
        "says": [],
    },
}


@pytest.mark.parametrize(
    ("name", "bound", "met", "says"),
    [
        ("test.f1.low", ">=0.7", True, "test.f1.low is 0.7"),
        ("test.f1.high", "<0.9", False, "test.f1.high is 0.9, must be <0.9"),
        ("test.f1.change", ">0", True, "test.f1.change is 0.01"),
        ("test.f1.change.low", ">=0", False, "test.f1.change.low is -0.01, must be >=0"),
        ("test.overlap", "<=0.01", False, "test.overlap is 0.25, must be <=0.01"),
        ("test.loss.low", ">0", False, "test.loss.low must be >0: undefined, since 2 units cannot"),
        ("test.auc.low", ">0", False, "test.auc.low must be >0: undefined, since one class"),
        ("test.loss.change", "<0", False, "test.loss.change must be <0: undefined, since"),
        ("test.f2.low", ">0", False, "test.f2.low must be >0: there is no figure 'f2.low'"),
    ],
)
def test_bounds_and_changes_can_be_required(name: str, bound: str, met: bool, says: str) -> None:
    figures, reasons = with_bounds(
        {"test": {"f1": 0.8, "loss": 1.0}}, {"test": {"auc": "one class"}}, EVIDENCE
    )
    outcome = check({name: bound}, figures, reasons)[0]
    assert outcome.met is met
    assert str(outcome).startswith(says)


def test_a_change_without_a_run_to_compare_with_says_so() -> None:
    found = with_bounds({"test": {"f1": 0.8}}, {}, {**EVIDENCE, "comparison": None})
    outcome = check({"test.f1.change.low": ">0"}, *found)[0]
    assert not outcome.met
    assert "evaluate.compare names no run" in str(outcome)


def test_beating_the_baseline_can_be_required() -> None:
    against = {"difference": 0.02, "beats": True, "says": "test accuracy 0.9 against 0.88"}
    assert check({"beats_baseline": True}, {}, against=against)[0].met
    lost = check({"beats_baseline": True}, {}, against={**against, "beats": False})
    assert unmet(lost) == "beats_baseline: test accuracy 0.9 against 0.88"
    assert not check({"beats_baseline": True}, {})[0].met
    assert check({"beats_baseline": False}, {}) == []
    assert splits_of({"beats_baseline": True, "test.f1": ">0", "test.f1.low": ">0"}) == ["test"]


def test_requirements_of_the_wrong_kind_are_named() -> None:
    assert read("{require: {beats_baseline: true, test.f1.low: '>0'}}").require["beats_baseline"] is True
    for text, message in (
        ("{require: {beats_baseline: '>1'}}", "neither true nor false"),
        ("{require: {test.f1: true}}", "True is no requirement"),
    ):
        with pytest.raises(ConfigErrors) as error:
            read(text)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("classes", "test.acuracy.low", "there is no figure 'acuracy'; did you mean \"accuracy\"?"),
        ("classes", "test.f1.lower", "there is no figure 'f1.lower'"),
        ("classes", "test.overlap", "there is no figure 'overlap'"),
        ("next_token", "test.overlap.low", "there is no figure 'overlap'"),
        ("values", "test.f1.change.low", "there is no figure 'f1' (figures: mae, rmse, r2; of each .low"),
    ],
)
def test_a_name_that_no_evaluation_has_is_refused(kind: str, name: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        refuse_unknown({name: ">0"}, None, kind)
    assert str(error.value).startswith(f"evaluate.require: {name}: ")
    assert says in str(error.value)


def test_a_mixtures_part_has_figures_but_no_bounds() -> None:
    refuse_unknown({"test.code.loss": "<2"}, None, "next_token", parts_=["code"])
    for name in ("test.code.loss.low", "test.code.loss.change"):
        with pytest.raises(ConfigError, match="a mixture's part has the figures alone"):
            refuse_unknown({name: "<2"}, None, "next_token", parts_=["code"])


def test_every_name_that_an_evaluation_has_is_known() -> None:
    for kind, figures in FIGURES.items():
        for name in figures:
            for end in ("", ".low", ".high", ".change", ".change.low", ".change.high"):
                refuse_unknown({f"test.{name}{end}": ">0"}, name, kind)
    refuse_unknown({"test.overlap": "<0.1", "beats_baseline": True}, None, "next_token")
    with pytest.raises(ConfigError, match=r"evaluate.metric: 'los' .*did you mean \"loss\""):
        refuse_unknown({}, "los", "next_token")


def test_a_change_needs_a_run_to_compare_with() -> None:
    with pytest.raises(ConfigErrors) as error:
        read("{require: {test.f1.change.low: '>0'}}")
    assert "`compare` names no run" in str(error.value)
    assert read("{require: {test.f1.change.low: '>0'}, compare: runs/x}").compare == "runs/x"
