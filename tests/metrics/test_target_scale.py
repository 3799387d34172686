"""Scales to learn a number on: there and back exactly, ends, rows that training did not see."""

import numpy as np
import pytest
import torch

from llmtool.metrics.regression import RMSE_LOG, RegressionTally
from llmtool.metrics.target_scale import LogScale, QuantileScale, described, target_scale

LOG = LogScale([0.0, 1.0], [12.0, 0.5], [0.4, 2.0])
QUANTILE = QuantileScale([[0.0, 1.0, 10.0], [-5.0, 5.0]], [[-1.5, 0.0, 1.5], [-1.0, 1.0]])
PRICES = torch.tensor([[180_000.0, 0.0], [250_000.0, 7.0], [90_000.5, 0.25]])


def test_logarithms_and_back():
    learned = LOG.standardise(PRICES)
    wanted = (np.log(PRICES.double().numpy() + np.array([0, 1])) - [12, 0.5]) / [0.4, 2.0]
    np.testing.assert_allclose(learned.numpy(), wanted, rtol=1e-6)
    np.testing.assert_allclose(LOG.restore(wanted), PRICES.double().numpy(), rtol=1e-12, atol=1e-12)
    assert bool(torch.isfinite(LOG.standardise(torch.tensor([[-3.0, -1.0]]))).all())


def test_quantiles_and_back():
    targets = torch.tensor([[0.0, -5.0], [0.5, 0.0], [5.5, 2.5], [10.0, 5.0], [99.0, -99.0]])
    learned = QUANTILE.standardise(targets)
    wanted = torch.tensor([[-1.5, -1.0], [-0.75, 0.0], [0.75, 0.5], [1.5, 1.0], [1.5, -1.0]])
    torch.testing.assert_close(learned, wanted)
    inside = targets.double().numpy().clip([0, -5], [10, 5])
    np.testing.assert_allclose(QUANTILE.restore(learned.double().numpy()), inside)
    assert np.isnan(QUANTILE.restore(np.array([[np.nan, 0.0]]))[0, 0])


@pytest.mark.parametrize("scale", [LOG, QUANTILE, None])
def test_a_card_says_it_and_it_comes_back(scale):
    LOG.standardise(PRICES)  # what is kept for a device is not part of it
    assert target_scale(described(scale)) == scale


def test_figures_in_own_units_and_of_logarithms():
    scale = LogScale([0.0], [12.0], [0.4])
    targets = PRICES[:, :1]
    wrong = scale.standardise(targets) + torch.tensor([[0.5], [-0.5], [0.0]])
    tally = RegressionTally(wrong, targets, ["price"], [1.0], [1.0], scale)
    predictions = tally.pairs()[0]
    np.testing.assert_allclose(predictions[:2, 0] / targets[:2, 0].numpy(), np.exp([0.2, -0.2]), rtol=1e-6)
    figures = tally.metrics()
    assert figures[RMSE_LOG] == pytest.approx(0.2 * (2 / 3) ** 0.5, rel=1e-5)
    assert figures["rmse"] == pytest.approx(
        float(np.sqrt(np.mean((predictions - targets.double().numpy()) ** 2)))
    )
    counted = np.array([[1, 1, 1], [2, 0, 0]])
    assert tally.resampled(counted)[RMSE_LOG] == pytest.approx([figures[RMSE_LOG], 0.2], rel=1e-5)
    assert tally.take(np.array([2])).metrics()[RMSE_LOG] == pytest.approx(0, abs=1e-6)
    below = RegressionTally(wrong, targets - 1e6, ["price"], [1.0], [1.0], scale)
    assert below.undefined == {RMSE_LOG: "a target or a prediction has no logarithm"}
