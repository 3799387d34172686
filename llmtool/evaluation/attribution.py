"""Why a model said so: integrated gradients of single rows, and how much worse it is without a column.

Generic over tables, texts and pictures: the caller says how a model's answer follows from a tensor of floats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from llmtool.core import seeds
from llmtool.core.config import Section
from llmtool.core.contracts import Tally
from llmtool.data.sources import SplitName
from llmtool.metrics import direction

FIRST, MOST = 32, 1024  # points of the path: at first, and where the error stays too large
TOGETHER = 32  # of them that go through the model at once
ALIKE = 0.8  # correlation from which on two columns are said to move together


class ExplainConfig(Section):
    """Why the model said so: which columns it leans on, and what in a few rows made the difference."""

    split: SplitName | None = Field(default=None, description="whose rows; default: the last that is scored")
    repeats: int = Field(
        default=5,
        ge=0,
        le=1000,
        description="how often each column of a table, or beside a text, is shuffled; 0: never",
    )
    most_rows: int = Field(
        default=10_000,
        gt=0,
        description="rows whose columns are shuffled; of more, so many by chance",
    )
    examples: int = Field(
        default=2,
        ge=0,
        le=100,
        description="rows explained, of the surest right, the surest wrong and the least sure ones each",
    )
    rows: list[int] | None = Field(
        default=None, min_length=1, description="the rows explained, by their numbers in the split from 1"
    )
    baseline: Literal["auto", "mean", "black", "blur", "padding"] = Field(
        default="auto",
        description="what a row is compared with: the mean of the train rows (tables), grey, black or itself "
        "blurred (pictures), padding (texts; the columns beside them: the mean); auto: mean, or padding",
    )
    tolerance: float = Field(
        default=0.01,
        gt=0,
        description="share of the difference by which the parts of an explanation may miss it",
    )


@dataclass(frozen=True)
class Attribution:
    """values: as the inputs, what each part adds to the answer. output, base: the answer to the row and to
    its baseline. error: by how much the sum of the values misses their difference. steps: points of the path.
    """

    values: np.ndarray
    output: float
    base: float
    error: float
    steps: int


Answer = Callable[[Tensor], Tensor]  # (S, ...) -> (S,)


def explain(answer: Answer, row: Tensor, baseline: Tensor, tolerance: float) -> Attribution:
    """The integrated gradients of one row, with so many points that the sum is right to the tolerance, if
    1,024 are enough.

    row, baseline: of one shape. answer: rows of that shape -> a number each, differentiable.
    Sundararajan, Taly and Yan 2017, https://arxiv.org/abs/1703.01365.
    """
    with torch.no_grad():
        base, output = answer(torch.stack([baseline, row])).double().tolist()
    steps = FIRST
    while True:
        values = integrated_gradients(answer, row, baseline, steps)
        error = float(values.double().sum()) - (output - base)
        if abs(error) <= tolerance * max(1.0, abs(output - base)) or steps >= MOST:
            return Attribution(values.cpu().numpy(), output, base, error, steps)
        steps *= 2


def integrated_gradients(answer: Answer, row: Tensor, baseline: Tensor, steps: int) -> Tensor:
    """(row - baseline) times the mean gradient on the straight path between them, by Gauss and Legendre's
    rule, which is exact for polynomials of degree 2 * steps - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    places = torch.from_numpy((1 + nodes) / 2).to(row)
    shares = torch.from_numpy(weights / 2).to(row)
    total = torch.zeros_like(row)
    for start in range(0, steps, TOGETHER):
        at, share = places[start : start + TOGETHER], shares[start : start + TOGETHER]
        along = [-1] + [1] * row.dim()
        path = (baseline + at.view(along) * (row - baseline)).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(answer(path).sum(), path)
        total += (share.view(along) * gradient).sum(dim=0)
    return total * (row - baseline)


def log_odds(logits: Tensor, index: int) -> Tensor:
    """(B, C) logits -> (B,): log p / (1 - p) of one class. Of probabilities, a sure model's hardly move."""
    others = torch.cat([logits[:, :index], logits[:, index + 1 :]], dim=1)
    return logits[:, index] - others.logsumexp(dim=1)


def token_embedding(
    model: nn.Module, parts: Sequence[nn.Module], ids: Tensor, *beside: Tensor | None
) -> nn.Embedding | None:
    """The table of token vectors among a model's `embeddings`; None where it looks something else up than
    the tokens as they stand (n-grams). ids: (B, T) of some row, or (B, K, T) in chunks. beside: what else the
    model is called with."""
    tables = [module for part in parts for module in part.modules() if isinstance(module, nn.Embedding)]
    seen: list[Tensor] = []
    for table in tables[:1]:
        handle = table.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            with torch.no_grad():
                model(ids, *(beside or (None,)))
        finally:
            handle.remove()
    return tables[0] if seen and torch.equal(seen[0], ids.flatten(0, -2)) else None


@contextlib.contextmanager
def embedded(embedding: nn.Embedding, vectors: Tensor) -> Iterator[None]:
    """Inside, the table gives these vectors (B, T, D), whatever ids it is asked for."""
    handle = embedding.register_forward_hook(lambda module, inputs, output: vectors)
    try:
        yield
    finally:
        handle.remove()


# --- columns ---


@dataclass(frozen=True)
class Importance:
    """How much worse a figure is with a column shuffled: the mean of the repeats, the least and the most."""

    column: str
    mean: float
    low: float
    high: float


def permutation_importance(
    measure: Callable[[Tensor], Tally],
    inputs: Tensor,
    blocks: Mapping[str, slice],
    figure: str,
    repeats: int,
    seed: int,
) -> tuple[float, list[Importance]]:
    """The figure, and what each column is worth to it, the most valuable first.

    inputs: (n, F). blocks: column -> where its features stand, which are shuffled together, so that a row
    gets another row's whole cell. Breiman 2001, https://doi.org/10.1023/A:1010933404324.
    """
    sign = 1.0 if direction(figure) == "max" else -1.0
    whole = measure(inputs).metrics()[figure]
    found = []
    for column, block in blocks.items():
        losses = []
        for repeat in range(repeats):
            order = seeds.generator(seed, "shuffle", column, repeat).permutation(len(inputs))
            changed = inputs.clone()
            changed[:, block] = inputs[torch.from_numpy(order), block]
            losses.append(sign * (whole - measure(changed).metrics()[figure]))
        losses = [round(loss, 12) for loss in losses]  # 0.1 + 0.2 - 0.3 is worth nothing
        found.append(Importance(column, round(float(np.mean(losses)), 12), min(losses), max(losses)))
    return whole, sorted(found, key=lambda one: -one.mean)


def together(inputs: np.ndarray, blocks: Mapping[str, slice]) -> list[tuple[str, str, float]]:
    """Pairs of columns whose first features (the number itself) correlate: where one is shuffled, the model
    still has the other, so each seems worth less than both are."""
    names = list(blocks)
    first = np.stack([inputs[:, blocks[name].start] for name in names], axis=1).astype(np.float64)
    spread = first.std(axis=0)
    scaled = (first - first.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    found = scaled.T @ scaled / max(1, len(scaled))
    pairs = [
        (names[a], names[b], float(found[a, b])) for a in range(len(names)) for b in range(a + 1, len(names))
    ]
    return sorted((pair for pair in pairs if abs(pair[2]) >= ALIKE), key=lambda pair: -abs(pair[2]))
