"""Scales on which numbers are learned in place of their own: logarithms, or a normal distribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
SMALLEST = 1e-300  # the logarithm of what is below 0 in rows that training did not see is taken of this


class _Scale:
    """Numbers that are kept where the targets are: a copy a step would wait for the device."""

    def _there(self, name: str, device: torch.device) -> list[Tensor]:
        """Each target's numbers of one field, float64."""
        kept: dict[tuple[str, torch.device], list[Tensor]] = self.__dict__.setdefault("_kept", {})
        if (name, device) not in kept:
            each = [torch.tensor(one, dtype=torch.float64, device=device) for one in getattr(self, name)]
            kept[name, device] = each
        return kept[name, device]


@dataclass
class LogScale(_Scale):
    """z = (log(y + offset) - mean) / scale; three numbers for each of k targets."""

    offset: list[float]
    mean: list[float]
    scale: list[float]

    def standardise(self, targets: Tensor) -> Tensor:
        """(B, k) in the targets' own units -> (B, k) float32 to learn."""
        offset, mean, scale = (
            torch.stack(self._there(name, targets.device)) for name in ("offset", "mean", "scale")
        )
        return (((targets.double() + offset).clamp_min(SMALLEST).log() - mean) / scale).float()

    def restore(self, standardised: Floats) -> Floats:
        """(n, k) of what was learned -> (n, k) in the targets' own units."""
        with np.errstate(over="ignore"):  # what is infinite is reported as such
            return np.exp(standardised * np.array(self.scale) + np.array(self.mean)) - np.array(self.offset)

    def logarithms(self, values: Floats) -> Floats:
        """(n, k) log(y + offset), NaN where there is none."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = np.log(values + np.array(self.offset))
        return np.where(np.isfinite(found), found, np.nan)


@dataclass
class QuantileScale(_Scale):
    """z goes through points of the train rows' distribution, in straight lines; beyond them it stays.

    values: for each of k targets, rising. normal: where each of them lies in a standard normal distribution.
    """

    values: list[list[float]]
    normal: list[list[float]]

    def standardise(self, targets: Tensor) -> Tensor:
        """(B, k) in the targets' own units -> (B, k) float32 to learn."""
        columns = []
        points = (self._there(name, targets.device) for name in ("values", "normal"))
        for at, (values, normal) in enumerate(zip(*points, strict=True)):
            y = targets[:, at].double().clamp(values[0], values[-1])
            right = torch.searchsorted(values, y.contiguous()).clamp(1, len(values) - 1)
            share = (y - values[right - 1]) / (values[right] - values[right - 1])
            columns.append(torch.lerp(normal[right - 1], normal[right], share))
        return torch.stack(columns, dim=1).float()

    def restore(self, standardised: Floats) -> Floats:
        """(n, k) of what was learned -> (n, k) in the targets' own units."""
        columns = [
            np.interp(standardised[:, at], normal, values)
            for at, (values, normal) in enumerate(zip(self.values, self.normal, strict=True))
        ]
        return np.where(np.isnan(standardised), np.nan, np.stack(columns, axis=1))


TargetScale = LogScale | QuantileScale


def target_scale(said: Mapping[str, Any] | None) -> TargetScale | None:
    """The scale that a card's `transform` describes; None where a number is learned on its own scale."""
    if said is None:
        return None
    given = {key: value for key, value in said.items() if key != "kind"}
    return LogScale(**given) if said["kind"] == "log" else QuantileScale(**given)


def described(scale: TargetScale | None) -> dict[str, Any] | None:
    """The scale as a card's `transform` has it."""
    if scale is None:
        return None
    return {"kind": "log" if isinstance(scale, LogScale) else "quantile", **asdict(scale)}
