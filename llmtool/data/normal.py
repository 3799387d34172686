"""The normal distribution, by torch's functions, which take a second and a half to import."""

from __future__ import annotations

import numpy as np


def share_below(values: np.ndarray) -> np.ndarray:
    """Of standard normal numbers, which share is below each of these; float64."""
    import torch

    found: np.ndarray = torch.special.ndtr(torch.from_numpy(values)).numpy()
    return found


def quantile(shares: np.ndarray) -> np.ndarray:
    """The other way: below which value so large a share is."""
    import torch

    found: np.ndarray = torch.special.ndtri(torch.from_numpy(shares)).numpy()
    return found
