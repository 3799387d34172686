"""The same logits as transformers on small random weights: one register for the tests and for the table.

To add a family of checkpoints: a `Family` in a file beside `decoders.py` (or in it), and that file's tuple in
FAMILIES below. A family says the configuration that transformers builds its model from, and its cases: each
takes a `Pair` (their model with random weights, ours read from the directory that theirs saved, that
directory) and returns the largest |difference| of the two. `tests/models/test_parity.py` then checks every
case, `scripts/benchmarks/parity.py` prints and saves the table.
"""

from __future__ import annotations

from tests.models.parity.decoders import DECODERS
from tests.models.parity.encoders import ENCODERS
from tests.models.parity.pair import Family, Pair, pair
from tests.models.parity.vision import VISION

FAMILIES: tuple[Family, ...] = (*DECODERS, *ENCODERS, *VISION)
LIMIT = 1e-5

__all__ = ["FAMILIES", "LIMIT", "Family", "Pair", "pair"]
