"""Scoring goes through every batch once, in eval mode, and leaves the model as it was."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from llmtool.core.contracts import Batch
from llmtool.core.errors import DataError
from llmtool.evaluation.loop import evaluate
from llmtool.tasks.classification import ClassificationConfig

CARD = {"targets": {"kind": "classes", "names": ["a", "b", "c"], "counts": [1, 1, 1]}}
CPU = torch.device("cpu")


class Model(nn.Module):
    """A classifier whose dropout would show."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5))
        self.head = nn.Linear(16, 3)

    def forward(self, inputs: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return self.head(self.body(inputs))


def batches(sizes: list[int]) -> list[Batch]:
    torch.manual_seed(0)
    inputs, targets = torch.randn(sum(sizes), 4), torch.randint(3, (sum(sizes),))
    return [Batch(x, y) for x, y in zip(inputs.split(sizes), targets.split(sizes), strict=True)]


def test_the_figures_do_not_depend_on_the_batches() -> None:
    task, model = ClassificationConfig().build(CARD), Model()
    whole = evaluate(task, model, batches([30]), CPU).metrics()
    assert evaluate(task, model, batches([7, 1, 22]), CPU).metrics() == pytest.approx(whole, rel=1e-6)


def test_every_module_gets_its_own_mode_back() -> None:
    model = Model().train()
    model.body.eval()
    before = {name: module.training for name, module in model.named_modules()}
    evaluate(ClassificationConfig().build(CARD), model, batches([4]), CPU)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.is_grad_enabled()


def test_the_mode_comes_back_after_an_error_too() -> None:
    model = Model().train()
    with pytest.raises(RuntimeError):
        evaluate(ClassificationConfig().build(CARD), model, [Batch(torch.zeros(2, 5), torch.zeros(2))], CPU)
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


def test_the_precision_of_the_run_is_used() -> None:
    entered = []

    @contextmanager
    def autocast():
        entered.append(True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield

    task, model = ClassificationConfig().build(CARD), Model()
    low = evaluate(task, model, batches([10]), CPU, autocast).metrics()["log_loss"]
    full = evaluate(task, model, batches([10]), CPU).metrics()["log_loss"]
    assert entered == [True]
    assert low != full
    assert low == pytest.approx(full, rel=0.05)


def test_no_rows_are_said() -> None:
    with pytest.raises(DataError, match="no rows to score"):
        evaluate(ClassificationConfig().build(CARD), Model(), [], CPU)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_scoring_never_waits_for_the_device() -> None:
    device = torch.device("cuda")
    task, model = ClassificationConfig(class_weights="balanced").build(CARD), Model().to(device)
    loaded = [batch.to(device) for batch in batches([8, 8])]
    evaluate(task, model, loaded, device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tally = evaluate(task, model, loaded, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tally.metrics()["accuracy"] >= 0
