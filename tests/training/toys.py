"""Tiny models, data and tasks for the training tests: real gradients, ragged targets, dropout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmtool.core.contracts import IGNORE, Batch, Loss
from llmtool.core.seeds import generator


class ToyMLP(nn.Module):
    """Two hidden layers with dropout for 4 features and 3 classes."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        layers = [
            nn.Linear(4, 8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(8, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        return self.layers(inputs)


class ToyTransformer(nn.Module):
    """One block of attention and MLP over 11 tokens of context 6, with dropout and a tied or own head."""

    def __init__(self, dropout: float = 0.0, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.drop = nn.Dropout(dropout)
        self.lm_head = nn.Linear(8, 11, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        x = self.embed(inputs)
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.drop(functional.scaled_dot_product_attention(query, key, value, is_causal=True))
        x = x + self.drop(self.down(functional.gelu(self.up(self.norm(x)))))
        return self.lm_head(x)


@dataclass
class ToyTally:
    total: float
    count: float
    undefined: dict[str, str] = field(default_factory=dict)

    def add(self, other: ToyTally) -> None:
        self.total += other.total
        self.count += other.count

    def to_host(self) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {"loss": self.total / self.count}


class ToyTask:
    """Cross-entropy over the targets that are not ignored; the loss is a sum with its count."""

    metric = "loss"
    mode = "min"

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        logits = model(batch.inputs, batch.segments).flatten(0, -2)
        targets = batch.targets.flatten()
        total = functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        return Loss(total, (targets != IGNORE).sum())

    def measure(self, model: nn.Module, batch: Batch) -> ToyTally:
        loss = self.loss(model, batch)
        return ToyTally(loss.total.item(), loss.count.item())


@dataclass
class ToyBatches:
    """Rows held in memory; the order is the plan's: a permutation of each epoch."""

    inputs: Tensor
    targets: Tensor
    tokens_per_row: int = 1
    seed: int = 0
    scored: Any = None

    @property
    def rows(self) -> int:
        return len(self.inputs)

    def _index(self, start: int, count: int) -> list[int]:
        orders: dict[int, Any] = {}
        found = []
        for position in range(start, start + count):
            epoch, place = divmod(position, self.rows)
            if epoch not in orders:
                orders[epoch] = generator(self.seed, "order", epoch).permutation(self.rows)
            found.append(int(orders[epoch][place]))
        return found

    def batch(self, start: int, count: int) -> Batch:
        index = self._index(start, count)
        return Batch(self.inputs[index], self.targets[index])

    def where(self, start: int, count: int) -> list[str]:
        return [f"row {row} of train" for row in self._index(start, count)]

    def in_order(self, size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        for start in range(first * size, self.rows, every * size):
            yield Batch(self.inputs[start : start + size], self.targets[start : start + size])


def table(rows: int = 40) -> ToyBatches:
    """Three classes that a small network can learn."""
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(rows, 4, generator=random)
    return ToyBatches(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.3).long())


def tokens(rows: int = 30) -> ToyBatches:
    """Rows of 6 tokens whose targets are ignored in ragged stretches."""
    random = torch.Generator().manual_seed(2)
    inputs = torch.randint(0, 11, (rows, 6), generator=random)
    targets = (inputs + 1) % 11
    for row in range(rows):
        targets[row, : row % 6] = IGNORE
    return ToyBatches(inputs, targets, tokens_per_row=6)
