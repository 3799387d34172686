"""Regression: predicted and true values of the rows scored, and the figures that follow."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmtool.metrics.target_scale import LogScale, TargetScale

FIGURES = ("mae", "rmse", "r2")
RMSE_LOG = "rmse_log"  # of targets that are learned as logarithms: the root mean squared error of those

Floats = NDArray[np.float64]


class RegressionTally:
    """The predictions and the targets of the rows scored so far.

    predictions: (n, k) float32, standardised as the model gives them; `value = prediction * scale + mean` is
    taken in float64 on the host. targets: (n, k) in the target's own units. names, mean, scale: k of each.
    transform: what predictions are on in place of mean and scale; None: those. log_scale: the logarithms that
    rmse_log is taken of; None: there is no such figure. That of `transform`, where it is one.
    """

    def __init__(
        self,
        predictions: Tensor,
        targets: Tensor,
        names: list[str],
        mean: list[float],
        scale: list[float],
        transform: TargetScale | None = None,
        log_scale: LogScale | None = None,
    ) -> None:
        # Copies: a compiled model may write its next outputs over these, and a loader its next batch.
        self._predictions = [predictions.detach().to(torch.float32, copy=True)]
        self._targets = [targets.detach().to(torch.float64, copy=True)]
        self.names, self.mean, self.scale = names, np.asarray(mean, np.float64), np.asarray(scale, np.float64)
        self.transform = transform
        self.log_scale = transform if isinstance(transform, LogScale) else log_scale
        self._pairs: tuple[Floats, Floats] | None = None

    def add(self, other: Self) -> None:
        """Take in the rows of another batch, after those already here; nothing waits for the device."""
        self._predictions += other._predictions
        self._targets += other._targets
        self._pairs = None

    def to_host(self) -> None:
        """Everything so far in one piece in the host's memory."""
        self._predictions = [torch.cat([part.cpu() for part in self._predictions])]
        self._targets = [torch.cat([part.cpu() for part in self._targets])]

    def pairs(self) -> tuple[Floats, Floats]:
        """(n, k) predictions and (n, k) targets on the host, both in the target's own units."""
        if self._pairs is None:
            self.to_host()
            standardised = self._predictions[0].double().numpy()
            if self.transform is None:
                predictions = standardised * self.scale + self.mean
            else:
                predictions = self.transform.restore(standardised)
            self._pairs = predictions, self._targets[0].numpy()
        return self._pairs

    def standardised(self) -> NDArray[np.float32]:
        """(n, k) predictions on the host, as the model gave them."""
        self.pairs()
        return self._predictions[0].numpy()

    def metrics(self) -> dict[str, float]:
        """mae, rmse (in the target's units) and r2, of logarithms rmse_log; the mean over several targets."""
        return self._figures()[0]

    @property
    def undefined(self) -> dict[str, str]:
        """Figures these rows leave undefined: name -> reason."""
        return self._figures()[1]

    def details(self) -> dict[str, Any]:
        """`per_target`: mae, rmse, r2 (None where undefined), mean and spread of targets and predictions."""
        predictions, targets = self.pairs()
        if not len(targets) or not np.isfinite(predictions).all():
            return {}
        mae, rmse, r2 = errors(predictions, targets)
        return {
            "per_target": [
                {
                    "target": name,
                    "mae": float(mae[i]),
                    "rmse": float(rmse[i]),
                    "r2": None if np.isnan(r2[i]) else float(r2[i]),
                    "mean": float(targets[:, i].mean()),
                    "spread": float(targets[:, i].std()),
                    "predicted_mean": float(predictions[:, i].mean()),
                    "predicted_spread": float(predictions[:, i].std()),
                }
                for i, name in enumerate(self.names)
            ]
        }

    def predictions(self) -> dict[str, np.ndarray]:
        """Columns `target` and `prediction` in the target's units; `target <name>`, ... for several."""
        predictions, targets = self.pairs()
        if len(self.names) == 1:
            return {"target": targets[:, 0], "prediction": predictions[:, 0]}
        columns = {f"target {name}": targets[:, i] for i, name in enumerate(self.names)}
        return columns | {f"prediction {name}": predictions[:, i] for i, name in enumerate(self.names)}

    @property
    def units(self) -> int:
        """Rows."""
        return len(self.pairs()[1])

    @property
    def width(self) -> int:
        """Sums are all it takes."""
        return len(self.names)

    def resampled(self, weights: np.ndarray, only: str | None = None) -> dict[str, Floats]:
        """The figures with row i counted weights[b, i] times: name -> (B,), NaN where undefined."""
        predictions, targets = self.pairs()
        middle = targets.mean(axis=0)  # squares of what is left lose nothing to a large mean
        error, centred, rows = predictions - targets, targets - middle, weights.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            mae = (weights @ np.abs(error)) / rows[:, None]  # (B, k)
            mse = (weights @ np.square(error)) / rows[:, None]
            mean = (weights @ centred) / rows[:, None]
            spread = (weights @ np.square(centred)) / rows[:, None] - np.square(mean)
            r2 = 1 - mse / np.where(spread > 1e-12 * np.square(centred).mean(axis=0), spread, np.nan)
            found = {"mae": mae, "rmse": np.sqrt(mse), "r2": r2}
            if self.log_scale is not None:
                found[RMSE_LOG] = np.sqrt((weights @ self._log_squares(self.log_scale)) / rows[:, None])
        return {name: values.mean(axis=1) for name, values in found.items()}

    def take(self, units: np.ndarray) -> RegressionTally:
        """The evidence of these rows alone; units: their numbers, or a bool for each."""
        self.pairs()
        rows = torch.from_numpy(np.asarray(units))
        return RegressionTally(
            self._predictions[0][rows],
            self._targets[0][rows],
            self.names,
            list(self.mean),
            list(self.scale),
            self.transform,
            self.log_scale,
        )

    def _log_squares(self, scale: LogScale) -> Floats:
        """(n, k) squared differences of the logarithms; NaN where one is missing."""
        predictions, targets = self.pairs()
        found: Floats = np.square(scale.logarithms(predictions) - scale.logarithms(targets))
        return found

    def _figures(self) -> tuple[dict[str, float], dict[str, str]]:
        predictions, targets = self.pairs()
        broken = int((~np.isfinite(predictions)).any(axis=1).sum())
        if broken or not len(targets):
            reason = f"the model's outputs are not finite in {broken} rows" if broken else "there are no rows"
            names = FIGURES if self.log_scale is None else (*FIGURES, RMSE_LOG)
            return {}, dict.fromkeys(names, reason)
        mae, rmse, r2 = errors(predictions, targets)
        result, undefined = {"mae": float(mae.mean()), "rmse": float(rmse.mean())}, {}
        if self.log_scale is not None:
            logarithmic = float(np.sqrt(self._log_squares(self.log_scale).mean(axis=0)).mean())
            if np.isnan(logarithmic):
                undefined[RMSE_LOG] = "a target or a prediction has no logarithm"
            else:
                result[RMSE_LOG] = logarithmic
        if np.isnan(r2).any():
            constant = ", ".join(
                repr(name) for name, value in zip(self.names, r2, strict=True) if np.isnan(value)
            )
            rows = "this row" if len(targets) == 1 else f"these {len(targets)} rows"
            return result, undefined | {"r2": f"{constant} has one value only in {rows}"}
        return result | {"r2": float(r2.mean())}, undefined


def errors(predictions: Floats, targets: Floats) -> tuple[Floats, Floats, Floats]:
    """(k,) mean absolute error, root mean squared error and R2 of (n, k) pairs; R2 of a constant is NaN.

    The spread of the targets is taken around their mean, never as a difference of large squares.
    """
    error = predictions - targets
    spread = np.square(targets - targets.mean(axis=0)).sum(axis=0)
    varies = (targets != targets[:1]).any(axis=0)
    r2 = 1 - np.divide(np.square(error).sum(axis=0), spread, out=np.full(spread.shape, np.nan), where=varies)
    return np.abs(error).mean(axis=0), np.sqrt(np.square(error).mean(axis=0)), r2
