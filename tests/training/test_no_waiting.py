"""On CUDA no step between two log lines waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from llmtool.core.contracts import IGNORE, Batch, Classes, Images, Loss, NextToken, Tokens
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.transformer import TransformerConfig
from llmtool.training.augment import Augment, AugmentConfig
from llmtool.training.average import Average
from llmtool.training.loop import Loop, Plan, State, Verbs
from llmtool.training.optimizers import AdamWConfig, MuonConfig, SGDConfig
from llmtool.training.recorded import Recorded
from llmtool.training.schedules import CosineSchedule
from llmtool.training.throughput import Meter

BATCH, MICRO, TOKENS, SIDE = 8, 4, 256, 32


class Watched(Meter):
    """Waiting is an error from a step's first act to its last; what lines and saves do comes after."""

    def step(self, work: float, waited: float = 0.0) -> None:
        torch.cuda.set_sync_debug_mode("default")
        super().step(work, waited)


class Watching(CosineSchedule):
    """The first thing that a step asks for."""

    def factor(self, step: int, steps: int | None, progress: float) -> float:
        if step > 1:  # the first ones take memory and make kernels
            torch.cuda.set_sync_debug_mode("error")
        return super().factor(step, steps, progress)


class Packed:
    """Rows of several documents and some filling."""

    rows, tokens_per_row, scored = 64, TOKENS, None

    def batch(self, start: int, count: int) -> Batch:
        chance = torch.Generator().manual_seed(start)
        ids = torch.randint(61, (count, TOKENS + 1), generator=chance)
        segments = 1 + (torch.rand(count, TOKENS, generator=chance) < 0.02).cumsum(dim=1).int()
        segments[:, TOKENS - 20 :] = 0
        targets = torch.where(segments == 0, IGNORE, ids[:, 1:])
        return Batch(ids[:, :-1].contiguous(), targets, segments)

    def where(self, start: int, count: int) -> list[str]:
        return [f"row {start + index}" for index in range(count)]


class Pictures(Packed):
    """Bytes that are standardised on the device."""

    tokens_per_row = 1

    def batch(self, start: int, count: int) -> Batch:
        chance = torch.Generator().manual_seed(start)
        inputs = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=chance)
        scale = torch.full((3,), 128.0), torch.full((3,), 60.0)
        return Batch(inputs, torch.randint(5, (count,), generator=chance), scale=scale)


def language(model: nn.Module) -> Callable[[Batch], Loss]:
    def loss(batch: Batch) -> Loss:
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(batch.inputs, batch.segments)
        targets = batch.targets.flatten()
        total = functional.cross_entropy(
            logits.flatten(0, 1).float(), targets, ignore_index=IGNORE, reduction="sum"
        )
        return Loss(total, (targets != IGNORE).sum())

    return loss


def classes(model: nn.Module) -> Callable[[Batch], Loss]:
    def loss(batch: Batch) -> Loss:
        total = functional.cross_entropy(model(batch.inputs), batch.targets, reduction="sum")
        return Loss(total, torch.full_like(total, len(batch)))

    return loss


def run(loss: Any, model: nn.Module, data: Any, optimizer: Any, compiled: Any, augment: Any = None) -> Loop:
    rows: list[dict[str, Any]] = []
    loop = Loop(
        model=model,
        loss=loss,
        compiled=None,
        batches=data,
        optimizers=optimizer.build(model),
        schedule=Watching(name="cosine"),
        plan=Plan(BATCH, MICRO, steps=12, log_every=6, checkpoint_every=100),
        device=torch.device("cuda", 0),
        meter=Watched(BATCH),
        verbs=Verbs(None, rows.append, lambda state, better: None),
        augment=augment,
        average=Average(model, 0.99),
    )
    if compiled:
        loop.compiled = compiled
    try:
        loop.run(State())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [row["step"] for row in rows if "loss" in row] == [6, 12]
    assert all(row["loss"] > 0 for row in rows)
    return loop


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "optimizer", [AdamWConfig(name="adamw"), MuonConfig(name="muon")], ids=lambda o: o.name
)
@pytest.mark.parametrize("how", ["eager", "compiled", "recorded"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_packed_text(architecture: str, how: str, optimizer: Any) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = TransformerConfig(
        architecture=architecture, depth=2, heads=4, width=128, context=TOKENS, dropout=0.1
    )
    model = config.build(Tokens(61), NextToken(61)).cuda()
    loss = language(model)
    compute = None
    if how != "eager":
        graph = torch.compile(
            lambda inputs, targets, segments: (lambda found: (found.total, found.count))(
                loss(Batch(inputs, targets, segments))
            ),
            dynamic=False,
        )
        compute = lambda batch: Loss(*graph(batch.inputs, batch.targets, batch.segments))  # noqa: E731
    if how == "recorded":
        assert compute is not None
        batch = Packed().batch(0, MICRO).pinned().to(torch.device("cuda", 0))
        compute(batch).total.backward()
        model.zero_grad()
        compute = Recorded(compute, list(model.parameters()), batch)
        model.zero_grad()
    run(loss, model, Packed(), optimizer, compute)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "keys",
    [
        {"crop": 4, "flip": True, "mixup": 0.2, "cutmix": 1.0, "erase": 0.25},
        {"resized_crop": [0.35, 1.0], "rotate": 10.0, "colour": 0.4},
        {"randaugment": {"operations": 2, "magnitude": 9.0}},
    ],
    ids=["crops", "maps", "randaugment"],
)
def test_changed_pictures(keys: dict[str, Any]) -> None:
    torch.manual_seed(0)
    inputs = Images(3, SIDE, SIDE)
    model = ConvNetConfig(family="convnet").build(inputs, Classes(5)).cuda()
    augment = Augment(AugmentConfig.model_validate(keys), inputs, 0, BATCH)
    run(classes(model), model, Pictures(), SGDConfig(name="sgd"), None, augment)
