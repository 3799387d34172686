"""A picture and its mirror image, judged together, beside the same by hand."""

from __future__ import annotations

import torch
from torch import nn

from llmtool.core.contracts import Batch
from llmtool.evaluation.loop import evaluate
from llmtool.evaluation.mirrored import Mirrored
from llmtool.tasks.classification import ClassificationTask


class Looks(nn.Module):
    """A linear map of all pixels, which a mirror changes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(2 * 3 * 4, 3)

    def forward(self, inputs: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(inputs.flatten(1))


def test_the_mean_of_both_probabilities() -> None:
    model, inputs = Looks(), torch.randn(5, 2, 3, 4)
    task = ClassificationTask(["a", "b", "c"], 1, None, 0.0)
    batches = [Batch(inputs, torch.tensor([0, 1, 2, 0, 1]))]
    tally = evaluate(task, Mirrored(model, classes=True), batches, torch.device("cpu"))
    turned = torch.stack([picture[:, :, [3, 2, 1, 0]] for picture in inputs])
    wanted = (model(inputs).softmax(1) + model(turned).softmax(1)) / 2
    found = tally.predictions()
    for at, name in enumerate("abc"):
        torch.testing.assert_close(
            torch.tensor(found[f"probability {name}"]), wanted[:, at].detach().double(), atol=1e-6, rtol=1e-5
        )
    assert not torch.allclose(wanted, model(inputs).softmax(1))


def test_values_have_their_mean() -> None:
    model, inputs = Looks(), torch.randn(5, 2, 3, 4)
    wanted = (model(inputs) + model(inputs.flip(3))) / 2
    torch.testing.assert_close(Mirrored(model, classes=False)(inputs), wanted)
