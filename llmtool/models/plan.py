"""The words in which a family says how its layers are split among ranks (models.tensor_parallel)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

How = Literal[
    "entry",  # a module whose layers are split: its input is the same on all ranks, its gradient their sum
    "columns",  # a linear layer: each rank makes a part of the outputs
    "rows",  # a linear layer: each rank takes a part of the inputs, and the ranks' outputs are summed
    "gathered",  # columns, of which every rank gets all
    "vocabulary",  # an embedding: each rank has the vectors of a part of the ids
    "each",  # whole on each rank, which uses it on its own part of what it works on (a norm of single heads)
    "normalised",  # an RMSNorm over outputs that are split
]


@dataclass(frozen=True)
class Fused:
    """Columns of several matrices in one layer, one after another, with so large shares of its outputs."""

    shares: tuple[int, ...]


# names of modules, with * and [..] as in file names, to how they are split; all others are whole on each rank
Plan = dict[str, How | Fused]
