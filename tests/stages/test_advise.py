"""Advice from cards: what is proposed for them, what it costs, what is to be beaten."""

import re

import pytest
import torch
from pydantic import TypeAdapter

from llmtool.core.contracts import Classes, Features, Images, NextToken, Tokens, Values
from llmtool.core.devices import PRECISIONS
from llmtool.models.choice import Problem
from llmtool.stages import advise
from llmtool.tasks import TaskConfig

CPU, FP32 = torch.device("cpu"), PRECISIONS["fp32"]


def card(inputs, targets, **train):
    return {"inputs": inputs, "targets": targets, "splits": {"train": {"arrays": {}, **train}}}


TABLE = card(
    {"kind": "features", "width": 9},
    {"kind": "classes", "names": ["no", "yes"], "counts": [900, 100]},
    rows=1000,
)
NUMBERS = card(
    {"kind": "features", "width": 9},
    {"kind": "values", "names": ["price"], "mean": [7.0], "scale": [115.4]},
    rows=1000,
)
TEXTS = card(
    {"kind": "tokens", "vocabulary": 500, "length": 64},
    {"kind": "classes", "names": ["a", "b", "c"], "counts": [40, 40, 40]},
    rows=120, tokens=6000, longest=64, cut=30,
)  # fmt: skip
LABELS = card(
    {"kind": "tokens", "vocabulary": 500, "length": 64},
    {"kind": "labels", "names": ["a", "b"], "counts": [80, 20], "rows": 120},
    rows=120, tokens=6000, longest=64,
)  # fmt: skip
LANGUAGE = card(
    {"kind": "tokens", "vocabulary": 67},
    {"kind": "next_token", "vocabulary": 67},
    rows=485,
    tokens=10**6,
    documents=1,
)
CHAT = card(
    {"kind": "tokens", "vocabulary": 500}, {"kind": "next_token", "vocabulary": 500},
    rows=90, tokens=20_000, documents=100, trained=9000, longest=310,
)  # fmt: skip


def test_the_problem_of_a_card():
    assert advise.problem_of(TABLE, None, CPU) == Problem(Features(9), Classes(2), 1000)
    assert advise.problem_of(TABLE, Values(1), CPU).outputs == Values(1)
    assert advise.problem_of(TEXTS, None, CPU) == Problem(Tokens(500, 64), Classes(3), 120, 6000, 64)
    assert advise.problem_of(LANGUAGE, None, CPU) == Problem(Tokens(67), NextToken(67), 1, 10**6)
    assert advise.problem_of(CHAT, None, CPU) == Problem(
        Tokens(500), NextToken(500), 100, 20_000, 310, whole=True
    )


def test_a_card_decides_and_another_card_decides_otherwise():
    assert advise.choose(LANGUAGE, None, CPU).model["width"] == 96
    more = {**LANGUAGE, "splits": {"train": {**LANGUAGE["splits"]["train"], "tokens": 10**8}}}
    assert advise.choose(more, None, CPU).model["width"] > 96
    assert advise.choose(CHAT, None, CPU).model["context"] == 310
    assert advise.choose(TABLE, None, CPU) == advise.choose(TABLE, None, CPU)


@pytest.mark.parametrize("of", [TABLE, NUMBERS, TEXTS, LANGUAGE, CHAT])
def test_costs_are_those_of_the_model_that_is_proposed(of):
    problem = advise.problem_of(of, None, CPU)
    families = advise.advise(problem, CPU, FP32, "encoder")
    assert [family["first"] for family in families] == [True] + [False] * (len(families) - 1)
    assert {family["family"]: family["chosen"] for family in families}.get("encoder", True)
    choice = advise.choose(of, None, CPU)
    model = choice.config().build(problem.inputs, problem.outputs)
    costs = families[0]["costs"]
    assert costs["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert costs["state_bytes"] == 16 * costs["parameters"]
    assert costs["epoch_seconds"] > 0
    tokens = {"tokens": 50 if "length" in of["inputs"] else getattr(model, "context", 1)}
    assert costs["flops_per_row"] == model.flops(tokens["tokens"] if of["inputs"]["kind"] == "tokens" else 1)


def test_an_epoch_takes_longer_with_more_rows():
    small = Problem(Images(1, 28, 28), Classes(10), 1000)
    large = Problem(Images(1, 28, 28), Classes(10), 100_000)
    seconds = [advise.advise(problem, CPU, FP32)[0]["costs"]["epoch_seconds"] for problem in (small, large)]
    assert seconds[1] > 50 * seconds[0]


def test_what_is_to_be_beaten():
    assert "no: 90 % of the training rows" in advise.baseline(TABLE)
    assert "gradient-boosted trees" in advise.baseline(TABLE)
    assert "an error of 115.4" in advise.baseline(NUMBERS)
    assert "TF-IDF" in advise.baseline(TEXTS)
    assert "n-grams" in advise.baseline(LANGUAGE)
    assert advise.baseline(LABELS).startswith(
        "for every row the share of the training rows that have a label, logistic regression on TF-IDF of "
    )


def test_hints():
    def hints(of):
        return " ".join(advise.hints(of, advise.problem_of(of, None, CPU)))

    assert "from 100 to 900 training rows" in hints(TABLE)
    assert "uneven" not in hints(TEXTS)
    assert "uneven labels, from 20 to 80 training rows" in hints(LABELS)
    for of, kind in ((TABLE, "classification"), (LABELS, "multilabel")):  # the key that is named is a key
        key = re.findall(r"task\.(\w+): balanced", hints(of))
        assert TypeAdapter(TaskConfig).validate_python({"kind": kind, key[0]: "balanced"})
    assert "30 of 120 training texts are longer" in hints(TEXTS)
    assert "finetune" in hints(LANGUAGE)
    assert hints(NUMBERS) == ""
