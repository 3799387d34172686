"""The language as a whole: what one section means for another."""

from typing import Any

import pytest
from pydantic import ValidationError

from llmtool.core import config
from llmtool.experiment import Experiment, Loaded
from llmtool.models.tabm import TabMConfig

FILE: dict[str, Any] = {
    "data": {"source": {"format": "csv", "path": "a.csv"}, "encode": {"as": "features", "target": "y"}},
}


def train(model: Any, **keys: Any) -> Any:
    return Experiment.model_validate({**FILE, "model": model, "train": keys}).train


def test_a_family_may_bring_a_recipe_that_the_file_overrides() -> None:
    recipe = TabMConfig.recipe
    found = train({"family": "tabm"})
    assert found.stop.patience == recipe["stop"]["patience"]
    assert found.budget.epochs == recipe["budget"]["epochs"]
    assert found.optimizer.lr == recipe["optimizer"]["lr"]
    found = train(
        {"family": "tabm"}, budget={"steps": 5}, stop=None, optimizer={"name": "adamw", "weight_decay": 0.5}
    )
    assert (found.budget.steps, found.budget.epochs, found.stop) == (5, None, None)
    assert (found.optimizer.lr, found.optimizer.weight_decay) == (recipe["optimizer"]["lr"], 0.5)
    assert train({"family": "tabm"}, optimizer={"name": "sgd"}).optimizer.lr == 0.1


@pytest.mark.parametrize("model", [{"family": "mlp"}, "auto", None])
def test_others_have_the_section_as_it_is(model: Any) -> None:
    found = train(model)
    assert found.stop is None
    assert found.optimizer.lr == 1e-3


@pytest.mark.parametrize("given", ["tabm", "tabn"])
def test_a_family_without_its_section_is_refused_with_what_to_write(given: str) -> None:
    with pytest.raises(ValidationError, match=r"model: expected auto, or a section: .*tabm"):
        train(given)


def test_a_message_is_told_with_the_place_of_its_key() -> None:
    text = "data: {}\ntask:\n  class_weights: {'01': 3}\n  list: [{a: 1}]\n"
    loaded = Loaded(None, config.parse(text, "c.yaml"))  # type: ignore[arg-type]
    said = "task.class_weights.01: no such class"
    assert loaded.locate(said, "task") == f"c.yaml:3:19: {said}"
    assert loaded.locate("class_weights.01: no", "task") == "c.yaml:3:19: task.class_weights.01: no"
    assert loaded.locate("list.0.a: no", "task") == "c.yaml:4:11: task.list.0.a: no"
    assert loaded.locate("task.² is no key", "task") == "c.yaml:2:1: task.² is no key"
    assert loaded.locate("the task: no", "task") == "the task: no"
