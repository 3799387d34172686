"""How much of a scored text stands in the training text: runs of tokens that occur in both."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmtool.core import seeds
from llmtool.core.contracts import Tokens
from llmtool.data.batches import unit_edges
from llmtool.data.store import Dataset

# By runs of thirteen words GPT-3's test sets were cleaned (https://arxiv.org/abs/2005.14165, appendix C); of
# characters it takes 50, as for GPT-4 (https://arxiv.org/abs/2303.08774, appendix C).
RUN, CHARACTERS = 13, 50
SMALL = 1000  # tokens of a vocabulary that is likely one of characters or bytes
MOST = 100_000_000  # tokens of the training text that are looked through
CHUNK = 4_000_000
_BASE = np.uint64(0x5851F42D4C957F2D)  # odd: it has an inverse modulo 2**64
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))


def overlap(dataset: Dataset, split: str) -> dict[str, Any]:
    """How many documents (or stretches, data.batches.unit_edges) of a split share a run of tokens with train.

    Of conversations only runs of what is learned count. Returns run (its tokens), units, shared (units with
    at least one such run), share, runs_shared (share of all runs), note, and examples: the first shared run
    of up to five units, as [unit, first token, end].
    """
    inputs = dataset.inputs
    assert isinstance(inputs, Tokens), "overlap is of texts"
    run = CHARACTERS if inputs.vocabulary < SMALL else RUN
    scored, train = dataset.split(split), np.asarray(dataset.split("train").arrays["tokens"])
    edges = unit_edges(scored)
    hashes = _runs(np.asarray(scored.arrays["tokens"]), run)
    unit = np.searchsorted(edges, np.arange(len(hashes)), side="right") - 1
    inside = np.arange(len(hashes)) + run <= edges[unit + 1] if len(hashes) else np.zeros(0, bool)
    if "trained" in scored.arrays and len(hashes):  # system prompts and headings stand in every conversation
        answers = np.cumsum(np.concatenate([[0], np.asarray(scored.arrays["trained"]) > 0]))
        inside &= answers[run:] - answers[:-run] == run
    keys = np.unique(hashes[inside])
    found = np.zeros(len(keys), bool)
    for start in range(0, min(len(train), MOST), CHUNK):
        part = np.unique(_runs(train[start : start + CHUNK + run - 1], run))
        at = np.minimum(np.searchsorted(part, keys), max(len(part) - 1, 0))
        found |= part[at] == keys if len(part) else False
    hit = np.zeros(len(hashes), bool)
    hit[inside] = found[np.searchsorted(keys, hashes[inside])]
    shared, first = np.unique(unit[hit], return_index=True)
    places = np.flatnonzero(hit)[first].tolist()
    return {
        "run": run,
        "units": len(edges) - 1,
        "shared": len(shared),
        "share": len(shared) / max(1, len(edges) - 1),
        "runs_shared": float(hit.sum() / max(1, inside.sum())),
        "note": f"looked for in the first {MOST:,} of {len(train):,} tokens" if len(train) > MOST else "",
        "examples": [[int(u), at, at + run] for u, at in zip(shared.tolist(), places, strict=True)][:5],
    }


def _runs(tokens: np.ndarray, run: int) -> np.ndarray:
    """(n - run + 1,) uint64 hash of each run of tokens: a polynomial modulo 2**64, then scrambled."""
    if len(tokens) < run:
        return np.zeros(0, np.uint64)
    scattered = seeds.scrambled(tokens.astype(np.uint64) + np.uint64(1))
    powers = np.full(len(tokens), _BASE)
    powers[0] = 1
    inverses = np.full(len(tokens) - run + 1, _INVERSE)
    inverses[0] = 1
    sums = np.concatenate(
        [np.zeros(1, np.uint64), np.cumsum(scattered * np.cumprod(powers), dtype=np.uint64)]
    )
    return seeds.scrambled((sums[run:] - sums[:-run]) * np.cumprod(inverses))
