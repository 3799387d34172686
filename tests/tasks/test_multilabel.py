"""Several labels a row: the loss, weights, thresholds, and what is refused."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llmtool.core.contracts import Batch, Classes, Labels, Tokens
from llmtool.core.errors import ConfigError
from llmtool.models.encoder import EncoderConfig
from llmtool.tasks import default_task
from llmtool.tasks.classification import ClassificationConfig
from llmtool.tasks.multilabel import MultilabelConfig

NAMES = ["red", "round", "sweet"]
CARD = {"targets": {"kind": "labels", "names": NAMES, "counts": [2, 0, 6], "rows": 8}}
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-0.3, 0.2, 1.0]])
TARGETS = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.uint8)


class Fixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(LOGITS.clone())

    def forward(self, inputs, segments=None):
        return self.logits[: len(inputs)]


def loss(task, rows=slice(None), model=None):
    model = model or Fixed()
    model.logits.data = LOGITS[rows]
    return task.loss(model, Batch(torch.zeros(len(LOGITS[rows]), 1), TARGETS[rows]))


def test_the_loss_is_the_mean_of_binary_cross_entropies():
    task = MultilabelConfig().build(CARD)
    whole = loss(task)
    expected = F.binary_cross_entropy_with_logits(LOGITS, TARGETS.float())
    torch.testing.assert_close(whole.total / whole.count, expected)
    halves = [loss(task, slice(0, 1)), loss(task, slice(1, 2))]
    torch.testing.assert_close(sum(one.total for one in halves), whole.total)
    assert sum(one.count for one in halves) == whole.count == 6


def test_rare_labels_weigh_more():
    balanced = MultilabelConfig(positive_weights="balanced").build(CARD)
    weights = torch.tensor([6 / 2, 8.0, 2 / 6])
    expected = F.binary_cross_entropy_with_logits(
        LOGITS, TARGETS.float(), pos_weight=weights, reduction="sum"
    )
    torch.testing.assert_close(loss(balanced).total, expected)
    assert MultilabelConfig(positive_weights={"sweet": 4.0}).build(CARD)._weights.tolist() == [1, 1, 4]
    with pytest.raises(ConfigError, match="2 weights for 3 labels"):
        MultilabelConfig(positive_weights=[1.0, 2.0]).build(CARD)
    with pytest.raises(ConfigError, match=r"task\.positive_weights: 'swet' .* did you mean"):
        MultilabelConfig(positive_weights={"swet": 4.0}).build(CARD)


def test_thresholds_say_which_labels_are_given():
    batch = Batch(torch.zeros(2, 1), TARGETS)
    for given, thresholds in ((0.7, [0.7] * 3), ({"round": 0.1}, [0.5, 0.1, 0.5]), ("tuned", [0.5] * 3)):
        task = MultilabelConfig(thresholds=given).build(CARD)
        assert task.thresholds == thresholds
        seen = task.measure(Fixed(), batch).seen()
        np.testing.assert_array_equal(seen.given, LOGITS.sigmoid().numpy() >= thresholds)
    assert task.tunes
    tuned = task.tune(task.measure(Fixed(), batch))
    assert tuned.metrics()["f1_micro"] >= task.measure(Fixed(), batch).metrics()["f1_micro"]
    again = {"targets": CARD["targets"] | {"thresholds": task.thresholds}}
    assert MultilabelConfig(thresholds="tuned").build(again).thresholds == task.thresholds
    with pytest.raises(ConfigError, match=r"task\.thresholds: 'square' is not a label .*labels: red"):
        MultilabelConfig(thresholds={"square": 0.5}).build(CARD)


def test_columns_beside_a_text_are_read_when_labels_are_judged():
    model = EncoderConfig(depth=1, heads=1, width=8).build(Tokens(11, 4, features=2), Labels(3)).eval()
    batch = Batch(torch.ones(2, 4, dtype=torch.int64), TARGETS, features=torch.ones(2, 2))
    with torch.no_grad():
        seen = MultilabelConfig().build(CARD).measure(model, batch).seen()
        np.testing.assert_array_equal(seen.logits, model(*batch.arguments).numpy())


def test_tasks_and_targets_that_do_not_go_together_are_refused():
    assert default_task(CARD["targets"]) == MultilabelConfig()
    assert MultilabelConfig().outputs(CARD["targets"]) == Labels(3) != Classes(3)
    with pytest.raises(ConfigError, match="target_kind: labels"):
        MultilabelConfig().outputs({"kind": "classes", "names": ["a", "b"]})
    with pytest.raises(ConfigError, match=r"task\.kind: multilabel"):
        ClassificationConfig().outputs(CARD["targets"])
