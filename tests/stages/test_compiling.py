"""What is done without a compiler, without flex attention and without recordings, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmtool.core.contracts import Batch, Loss, NextToken, Tokens
from llmtool.core.errors import ConfigError
from llmtool.models import flex
from llmtool.models.transformer import TransformerConfig
from llmtool.stages import compiling
from tests.stages.test_fit import resolved
from tests.training.test_loop import Notes, make
from tests.training.toys import ToyMLP, table, tokens


def failing(words: str, times: int) -> Callable[..., Any]:
    """torch.compile whose functions fail the first `times` times."""
    left = [times]

    def compile(function: Any, **keys: Any) -> Any:
        def call(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                raise RuntimeError(words)
            return function(*arguments)

        return call

    return compile


@pytest.fixture(autouse=True)
def _flex_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "off", None)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)


def attempt(
    monkeypatch: pytest.MonkeyPatch, times: int, how: Any = True, **more: Any
) -> tuple[Any, Any, list[str]]:
    monkeypatch.setattr(torch, "compile", failing("no such kernel\nand a long story", times))
    torch.manual_seed(0)
    config = TransformerConfig(depth=1, heads=1, width=8, context=6)
    model = config.build(Tokens(11), NextToken(11)) if more.pop("text", True) else ToyMLP()
    loop = make(model, tokens() if hasattr(model, "blocks") else table(), Notes(), **more)
    said: list[str] = []
    batch = loop.rows(0, 8)
    loop.rows = lambda start, count: batch  # type: ignore[method-assign]
    loop.device = torch.device("cuda")  # nothing is moved there any more
    graph, found = compiling.tried(loop.loss, loop, how, True, said.append)
    assert all(parameter.grad is None for parameter in model.parameters())
    return graph, found, said


def test_a_dense_mask_where_flex_attention_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, how, said = attempt(monkeypatch, 1)
    assert graph is not None
    assert how is True
    assert said == ["flex attention failed, a dense mask keeps documents apart (no such kernel)"]
    assert flex.off == "no such kernel"


def test_eager_where_the_compiler_fails_with_and_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, how, said = attempt(monkeypatch, 2)
    assert (graph, how) == (None, False)
    assert said[1] == "torch.compile failed, training goes on without it (no such kernel)"


def test_a_model_without_attention_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, how, said = attempt(monkeypatch, 1, text=False)
    assert (graph, how) == (None, False)
    assert said == ["torch.compile failed, training goes on without it (no such kernel)"]
    assert flex.off is None


def test_memory_that_runs_out_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "is_out_of_memory", lambda error: True)
    with pytest.raises(RuntimeError, match="no such kernel"):
        attempt(monkeypatch, 1)


@pytest.mark.parametrize(
    ("plan", "why"), [({}, "capture was invalidated"), ({"fp16": True}, "fp16 scales its loss")]
)
def test_what_cannot_be_recorded_is_launched_one_by_one(
    plan: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any) -> None:
        raise RuntimeError("capture was invalidated\nby a copy")

    monkeypatch.setattr(compiling, "Recorded", refused)
    graph, how, said = attempt(monkeypatch, 0, "graphs", **plan)
    assert graph is not None
    assert how is True
    assert said == [f"CUDA graphs are not used ({why})"]


def test_what_is_recorded_takes_the_graphs_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class Same:
        def __init__(self, compute: Any, parameters: Any, like: Batch) -> None:
            self.compute = compute

        def __call__(self, batch: Batch) -> Loss:
            return self.compute(batch)

    monkeypatch.setattr(compiling, "Recorded", Same)
    graph, how, said = attempt(monkeypatch, 0, "graphs")
    assert isinstance(graph, Same)
    assert (how, said) == ("graphs", [])


def test_auto_records_small_models_on_cuda() -> None:
    rows = tokens()
    assert resolved(rows, "cuda", flops=1e9).compile == "graphs"
    assert resolved(rows, "cuda", flops=1e14).compile is True
    assert resolved(rows, "cuda").compile is True
    rows.scored = [0, 1]
    assert resolved(rows, "cuda", flops=1e9).compile is False
    assert resolved(rows, "cuda", flops=1e9, compile="graphs").compile == "graphs"
    with pytest.raises(ConfigError, match="compile: graphs are CUDA's"):
        resolved(tokens(), "cpu", compile="graphs")
