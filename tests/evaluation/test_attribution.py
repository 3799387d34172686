"""Attribution: integrated gradients beside captum's, their sum; shuffled columns beside scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from llmtool.core.contracts import Classes, Features, Images, Tokens, Values
from llmtool.evaluation import attribution
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.regression import RegressionTally
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.encoder import EncoderConfig
from llmtool.models.mlp import MLPConfig
from tests.models.small import stir


def small(config: Any, inputs: Any, outputs: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = stir(config.build(inputs, outputs)).eval()
    return model.requires_grad_(False)


MODELS = {
    "mlp": (MLPConfig(hidden=[16, 8]), Features(5), (5,)),
    "convnet": (
        ConvNetConfig(depths=[1, 1], widths=[8, 8], stem_width=8, stem="small"),
        Images(3, 16, 16),
        (3, 16, 16),
    ),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_integrated_gradients_are_captums(name: str) -> None:
    captum = pytest.importorskip("captum.attr")
    config, inputs, shape = MODELS[name]
    model = small(config, inputs, Classes(3))
    row, baseline = torch.randn(shape), torch.randn(shape) * 0.1
    answer = lambda path: attribution.log_odds(model(path), 1)  # noqa: E731
    found = attribution.integrated_gradients(answer, row, baseline, 40)
    theirs = captum.IntegratedGradients(answer).attribute(row[None], baseline[None], n_steps=40)[0]
    torch.testing.assert_close(found, theirs.float(), rtol=1e-5, atol=1e-5)


def test_so_they_are_at_a_models_token_vectors() -> None:
    captum = pytest.importorskip("captum.attr")
    model: Any = small(EncoderConfig(depth=1, heads=2, width=16, context=12), Tokens(30), Classes(3))
    ids = torch.randint(1, 30, (1, 9))
    table = attribution.token_embedding(model, model.embeddings, ids)
    assert table is model.embed.tokens
    row, baseline = table(ids)[0], table(torch.zeros_like(ids))[0]

    def answer(path: torch.Tensor) -> torch.Tensor:
        with attribution.embedded(table, path):
            return attribution.log_odds(model(ids.expand(len(path), -1), None), 2)

    found = attribution.integrated_gradients(answer, row, baseline, 50)
    model.requires_grad_(True)  # as captum's wants it
    layer = captum.LayerIntegratedGradients(lambda i: attribution.log_odds(model(i, None), 2), table)
    theirs = layer.attribute(ids, torch.zeros_like(ids), n_steps=50)[0]
    torch.testing.assert_close(found, theirs.detach().float(), rtol=1e-5, atol=1e-5)
    assert attribution.token_embedding(model, [model.head], ids) is None
    assert attribution.token_embedding(lambda i, s: table(i + 1), [table], ids - 1) is None  # type: ignore[arg-type]


def test_steps_are_raised_until_the_sum_is_right() -> None:
    sharp = lambda path: torch.tanh(200 * (path.sum(dim=1) - 0.37))  # noqa: E731
    row, baseline = torch.tensor([0.5, 0.25]), torch.zeros(2)
    few = attribution.integrated_gradients(sharp, row, baseline, attribution.FIRST)
    assert abs(float(few.sum()) - 2) > 0.05
    found = attribution.explain(sharp, row, baseline, tolerance=0.001)
    assert attribution.FIRST < found.steps <= attribution.MOST
    assert abs(found.error) <= 0.002
    assert found.values.sum() == pytest.approx(found.output - found.base + found.error, abs=1e-5)
    jump = lambda path: (path.sum(dim=1) > 0.3).float() + 0 * path.sum(dim=1)  # noqa: E731
    lost = attribution.explain(jump, row, baseline, tolerance=0.01)  # no gradient tells of a jump
    assert (lost.steps, lost.error) == (attribution.MOST, -1.0)


def test_a_linear_model_is_shared_out_exactly() -> None:
    weights = torch.tensor([2.0, -3.0, 0.5])
    found = attribution.explain(lambda path: path @ weights, torch.tensor([1.0, 2, 3]), torch.ones(3), 0.01)
    np.testing.assert_allclose(found.values, [0, -3, 1], atol=1e-6)
    assert found.steps == attribution.FIRST


def test_log_odds_are_of_the_probability() -> None:
    logits = torch.randn(5, 4)
    p = logits.softmax(dim=1)[:, 2]
    torch.testing.assert_close(attribution.log_odds(logits, 2), torch.log(p / (1 - p)))


def test_shuffled_columns_cost_what_scikit_learn_says() -> None:
    inspection = pytest.importorskip("sklearn.inspection")
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs = torch.randn(400, 4)
    targets = (2 * inputs[:, 0] + inputs[:, 1] + 0.1 * torch.randn(400))[:, None]
    weights = torch.tensor([2.0, 1.0, 0.0, 0.0])

    def measure(changed: torch.Tensor) -> RegressionTally:
        return RegressionTally((changed @ weights)[:, None], targets, ["y"], [0.0], [1.0])

    given = linear_model.LinearRegression()
    given.coef_, given.intercept_ = weights.numpy(), 0.0
    blocks = {name: slice(at, at + 1) for at, name in enumerate("abcd")}
    whole, found = attribution.permutation_importance(measure, inputs, blocks, "rmse", 30, seed=3)
    assert whole == pytest.approx(0.1, abs=0.02)
    assert [one.column for one in found] == ["a", "b", "c", "d"]
    scoring = "neg_root_mean_squared_error"
    theirs = inspection.permutation_importance(
        given, inputs.numpy(), targets.numpy()[:, 0], scoring=scoring, n_repeats=30, random_state=0
    )
    for at, one in enumerate(found):
        spread = theirs.importances_std[at]
        assert one.mean == pytest.approx(theirs.importances_mean[at], abs=4 * spread / 30**0.5 + 1e-6)
        assert one.low <= one.mean <= one.high
    again = attribution.permutation_importance(measure, inputs, blocks, "rmse", 30, seed=3)
    assert again == (whole, found)


def test_a_columns_features_are_shuffled_together_and_better_is_more() -> None:
    one_hot = torch.eye(3)[torch.arange(300) % 3]
    targets = torch.arange(300) % 3

    def measure(changed: torch.Tensor) -> ClassificationTally:
        assert (changed.sum(dim=1) == 1).all()
        return ClassificationTally(changed * 10, targets, ["a", "b", "c"])

    whole, (found,) = attribution.permutation_importance(
        measure, one_hot, {"x": slice(0, 3)}, "accuracy", 4, 0
    )
    assert whole == 1
    assert found.mean == pytest.approx(2 / 3, abs=0.1)


def test_columns_that_move_together_are_named() -> None:
    first = np.random.default_rng(0).normal(size=(500, 1))
    block = np.concatenate([first, np.zeros((500, 1)), -first + 0.1, np.ones((500, 1))], axis=1)
    names = {"a": slice(0, 2), "b": slice(2, 3), "constant": slice(3, 4)}
    ((one, other, r),) = attribution.together(block, names)
    assert (one, other, round(r, 6)) == ("a", "b", -1.0)


def test_values_are_explained_in_their_order() -> None:
    model = small(MLPConfig(hidden=[8]), Features(3), Values(2))
    row = torch.tensor([1.0, -1, 0.5])
    parts = [
        attribution.explain(lambda p, at=at: model(p)[:, at], row, torch.zeros(3), 0.001) for at in (0, 1)
    ]
    for part, output in zip(parts, model(row[None])[0].tolist(), strict=True):
        assert part.output == pytest.approx(output, abs=1e-6)
        assert part.values.sum() == pytest.approx(part.output - part.base, abs=2e-3)
