"""What benchmarks of two ways to compute the same share: rounds in turn, a training step, the table."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import common
import torch
import torch.nn.functional as F

from llmtool.core.contracts import NextToken, Tokens
from llmtool.models.transformer import TransformerConfig

SECONDS = 2.0  # of a round of long work
ROUNDS = 5

Work = Callable[[], Any]


def effort(options: argparse.Namespace) -> tuple[int, float]:
    """Rounds, and seconds of each; with --short one of three calls."""
    return (1, 0.0) if options.short else (ROUNDS, SECONDS)


def in_turn(
    works: Mapping[str, Work], choose: Callable[[str], None], rounds: int, budget: float
) -> dict[str, Any]:
    """Milliseconds of both works, round by round in turn, and the ratio of the second to the first.

    choose: is told which one comes. A round's time is the median of at least three calls and as many as
    `budget` seconds hold.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            choose(name)
            took: list[float] = []
            end = time.perf_counter() + (budget if number else 0)
            while len(took) < 3 or time.perf_counter() < end:
                began = time.perf_counter()
                work()
                took.append(1000 * (time.perf_counter() - began))
            if number:  # the first round warms up, and compiles
                times[name].append(sorted(took)[len(took) // 2])
    usual, other = times.values()
    spreads = {name: common.spread(some) for name, some in times.items()}
    return spreads | {"ratio": common.ratios(other, usual)}


def step(
    config: TransformerConfig, vocabulary: int, rows: int, compiled: bool, lower: torch.dtype | None = None
) -> Work:
    """A training step (AdamW) of a new model on rows as long as its context. lower: under autocast to it."""
    torch.manual_seed(0)
    model = config.build(Tokens(vocabulary, config.context), NextToken(vocabulary))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    inputs, targets = torch.randint(0, vocabulary, (2, rows, config.context))

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())

    forward = torch.compile(loss) if compiled else loss

    def work() -> None:
        with torch.autocast("cpu", lower, enabled=lower is not None):
            made = forward()
        made.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def show(figures: Mapping[str, Any], kinds: Sequence[str], titles: Mapping[str, str]) -> None:
    """A table of what `in_turn` found, by kind. titles: of the columns, by the ways' names."""
    rows = [
        [f"{kind}: {name}", *(f"{found[way]['mean']:.2f}" for way in (*titles, "ratio"))]
        for kind in kinds
        for name, found in figures[kind].items()
    ]
    common.table("milliseconds", ["", *titles.values(), "ratio"], rows)
