"""What ranks do together: evidence of all batches, statistics that are the same on all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmtool.core import ranks
from llmtool.core.contracts import Batch
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.language import LanguageTally
from llmtool.training.average import Average, moving
from llmtool.training.loop import State
from llmtool.training.together import Together
from tests.training.test_loop import Notes, make
from tests.training.toys import ToyBatches, ToyMLP
from tests.two import run_ranks

NAME = "layers.1.running_mean"


class Found:
    """Evidence that remembers what it was of, and whether it could travel."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers, self.travels = numbers, False

    def add(self, other: Found) -> None:
        assert other.travels
        self.numbers += other.numbers

    def to_host(self) -> None:
        self.travels = True


def evidence(count: int, cut: bool) -> tuple[list[int], list[int], int]:
    """What all ranks found, which batches were made here, how often the model was used."""
    made: list[int] = []
    used = 0

    def batches(first: int, every: int) -> Iterator[Batch]:
        for number in range(first, count, every):
            made.append(number)
            yield Batch(torch.tensor([number]), torch.tensor([0]))

    def judge(those: Iterable[Batch]) -> Any:
        nonlocal used
        numbers = [int(batch.inputs) for batch in those]
        used += len(numbers)
        return Found(numbers)

    together = Together()
    together.cut = object() if cut else None  # type: ignore[assignment]
    found: Any = together.evidence(batches, judge)
    return sorted(found.numbers), made, used


@pytest.mark.parametrize("cut", [False, True])
def test_a_rank_makes_only_the_batches_that_it_judges(cut: bool) -> None:
    for count in (1, 2, 5):
        one, other = run_ranks(evidence, 2, count, cut)
        assert one[0] == other[0] == list(range(count))
        assert one[1] == list(range(0, count, 2))
        assert other[1][: count // 2] == list(range(1, count, 2))
        assert one[2] == (count + 1) // 2
        # where the model is in parts, all use it equally often
        assert other[2] == (one[2] if cut else count // 2)


def with_norms() -> tuple[list[float], list[float]]:
    """A training with averaged weights: the statistics of the model and of the average after three steps."""
    torch.manual_seed(0)
    inputs = torch.randn(24, 4)
    data = ToyBatches(inputs, (inputs[:, 0] > 0).long())
    model = ToyMLP()
    model.layers.insert(1, nn.BatchNorm1d(8))
    loop = make(model, data, Notes(), steps=3, micro_batch=4)
    loop.average = Average(model, 0.9)
    loop.together = Together(list(model.parameters()))
    loop._save = lambda state, better: loop._agree()  # type: ignore[method-assign]
    loop.run(State())
    live = moving(model)[NAME].tolist()
    with loop.average.inside():
        return live, moving(model)[NAME].tolist()


def test_statistics_of_all_ranks_are_the_same_in_the_average_too() -> None:
    (live, averaged), other = run_ranks(with_norms, 2)
    assert other == (live, averaged)
    assert live != averaged


def on_device(count: int, device: torch.device) -> list[Any]:
    def some(*shape: int) -> Tensor:
        return torch.zeros(*shape, device=device)

    language = [
        LanguageTally(some(2), some(2), some(2), units=torch.tensor([2 * number, 2 * number + 1]))
        for number in range(count)
    ]
    classes = [ClassificationTally(some(3, 2), some(3).long(), ["a", "b"]) for _ in range(count)]
    return [language, classes]


@pytest.mark.cuda
def test_evidence_travels_by_the_host() -> None:
    """What was on a device would come as on the sender's; with more than 64 parts it is joined."""
    both = (on_device(40, torch.device(name)) for name in ("cuda", "cpu"))
    for mine, theirs in zip(*both, strict=True):
        for tallies in (mine, theirs):
            for more in tallies[1:]:
                tallies[0].add(more)
        mine[0].to_host()
        mine[0].add(theirs[0])
        assert mine[0].metrics()


def test_alone_evidence_is_what_is_found() -> None:
    assert ranks.here() is ranks.ALONE
    assert evidence(3, False) == ([0, 1, 2], [0, 1, 2], 3)
