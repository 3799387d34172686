"""The rules of choosing: every family has one, what it proposes can be built, and the guide says the same."""

from pathlib import Path

import pytest
import torch

from llmtool.core.contracts import Classes, Features, Images, NextToken, Tokens, Values
from llmtool.models.choice import FAMILIES, GUIDE, RULES, SIZES, Problem, choices, guide

TABLE, TEXT, CHARACTERS = Features(12), Tokens(4096, 256), Tokens(65)
PROBLEMS = [
    Problem(TABLE, Classes(2), 150),
    Problem(TABLE, Classes(26), 20_000),
    Problem(TABLE, Values(2), 5_000_000),
    Problem(TABLE, Values(1), 5_000_000, device="cuda"),
    Problem(TEXT, Classes(2), 500, 100_000),
    Problem(TEXT, Values(1), 25_000, 5_000_000),
    Problem(Tokens(8192, 64), Classes(4), 1_000_000, 60_000_000, device="cuda"),
    Problem(CHARACTERS, NextToken(65), 1, 1_000_000),
    Problem(Tokens(4096), NextToken(4096), 1000, 200_000, 700, whole=True),
    Problem(Tokens(50_257), NextToken(50_257), 10**6, 10**10, device="cuda"),
    Problem(CHARACTERS, NextToken(65), 1, 0),
    Problem(Images(1, 28, 28), Classes(10), 60_000),
    Problem(Images(3, 224, 224), Classes(1000), 1_281_167, device="cuda"),
    Problem(Images(3, 160, 120), Values(1), 240),
    Problem(TEXT, Classes(2000), 50_000, 10_000_000),
]


def first(problem):
    return choices(problem)[0]


def test_every_family_has_a_rule():
    assert set(FAMILIES) <= set(RULES)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_is_proposed_can_be_built(problem):
    found = choices(problem)
    fitting = {
        name
        for name, member in FAMILIES.items()
        if type(problem.inputs) in member.accepts and type(problem.outputs) in member.gives
    }
    assert found
    assert {choice.family for choice in found} <= fitting
    assert [choice.rank for choice in found] == sorted(choice.rank for choice in found)
    for choice in found:
        with torch.device("meta"):
            model = choice.config().build(problem.inputs, problem.outputs)
        assert model.outputs == problem.outputs
        assert choice.why
        assert choice.against
        assert RULES[choice.family].works


def test_training_settings_are_those_of_the_language():
    from llmtool.training import TrainConfig

    for problem in PROBLEMS:
        for choice in choices(problem):
            assert TrainConfig.model_validate(choice.train).budget != TrainConfig().budget or choice.train


def test_few_rows_of_a_table_want_a_small_plain_network():
    small, large = first(PROBLEMS[0]), first(PROBLEMS[1])
    assert small.family == "mlp"
    assert small.model["hidden"] == [64, 64]
    assert "150 training rows" in small.why
    mlp = next(choice for choice in choices(PROBLEMS[1]) if choice.family == "mlp")
    assert mlp.model["hidden"] == [256, 256]
    assert large.family == ("tabm" if "tabm" in FAMILIES else "mlp")


def test_language_models_grow_with_the_text_until_half_an_hour_is_over():
    def width(tokens, device="cpu"):
        return first(Problem(CHARACTERS, NextToken(65), 1, tokens, device=device)).model["width"]

    assert width(0) == width(100_000) == SIZES[0][2]
    assert width(1_000_000) == 96  # what configs/language/shakespeare.yaml found
    assert width(100_000) < width(1_000_000) < width(10_000_000)
    assert width(10**8) == width(10**11)
    assert width(10**11) < width(10**11, "cuda")


def test_the_context_holds_whole_conversations_and_a_usual_document():
    chat = first(Problem(Tokens(4096), NextToken(4096), 100, 20_000, 700, whole=True))
    assert chat.model["context"] == 700
    stories = Problem(Tokens(4096), NextToken(4096), 1000, 100_000)
    assert first(stories).model["context"] == 128
    assert first(Problem(CHARACTERS, NextToken(65), 1, 10**6)).model["context"] == 128


def test_pictures():
    little, large = first(PROBLEMS[11]), first(PROBLEMS[13])
    assert (little.family, little.model["stem"]) == ("convnet", "small")
    assert (large.family, large.model["stem"]) == ("convnet", "large")
    assert "240 pictures" in large.why
    assert first(PROBLEMS[12]).family == "vit"


def test_the_guide_follows_the_rules():
    for line in guide():
        if line.example is not None:
            assert first(line.example).family == line.family, line.problem
            assert f"`family: {line.family}`" in line.choice or line.family == "transformer"


def test_the_readme_of_the_stories_says_what_the_guide_says():
    text = " ".join((Path(__file__).parents[2] / "configs" / "README.md").read_text().split())
    for line in GUIDE:
        assert f"{line.problem[0].upper()}{line.problem[1:]}: {line.choice}." in text
