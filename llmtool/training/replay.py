"""A step made again, up to its update, and what that says of an update that was not made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from llmtool.core.seeds import derive
from llmtool.training.guard import Why, mean_and_deviation, verdict

if TYPE_CHECKING:
    from llmtool.training.loop import Loop

NAMED = 5  # rows named in a message
TINY = 1e-12  # a batch in which nothing is scored has count 0 and gradient 0: it changes nothing
HALF = 0.5  # share of the batch's loss from which a single row is blamed


@dataclass(frozen=True)
class Replayed:
    """What a step sees. loss, norm: of the batch, as training saw them but for what is not deterministic.

    norms: parameter -> norm of its gradient. losses: (batch,) mean loss of each row alone, without dropout;
    0 where none of its targets is scored. seeds: of torch's generators, one for each micro-batch.
    count: the targets scored, by which the gradients that are left behind are still to be divided.
    """

    loss: float
    norm: float
    count: float
    norms: dict[str, float]
    losses: list[float]
    seeds: list[int]


@dataclass(frozen=True)
class Refused:
    """An update that was not made.

    step: its number, from 1. recent: the losses before it. limit: what the loss had to stay below.
    again: the same step once more. says: all of it in a sentence.
    """

    step: int
    why: Why
    loss: float
    norm: float
    recent: list[float]
    limit: float
    again: Replayed
    says: str


def refused(loop: Loop, step: int, why: Why, loss: float, norm: float) -> Refused:
    """The evidence against step `step` (from 0), made once more: the weights are still those before it.

    why "", loss and norm NaN: only the device knew, and what the step gives again is taken for it.
    """
    again, memory = replay(loop, step), loop.guard.memory()
    recent, most = memory.recent, memory.limit(loop.plan.spread)
    judged = verdict(again.loss, again.norm, most)
    if not why:
        why, loss, norm = judged, again.loss, again.norm
    figures = f"loss {loss:.4g}, gradient norm {norm:.4g}"
    if why == "jumped":
        mean, deviation = mean_and_deviation(recent)
        figures += f", after {mean:.4g} +- {deviation:.2g} in the {len(recent)} steps before"
    blame = _blame(loop, step, again)
    if judged != why or not why:
        blame = f"made again it gives loss {again.loss:.4g}: this machine does not compute the same twice"
    says = f"step {step + 1}: {figures}: {blame}; this update was not made"
    return Refused(step + 1, why, loss, norm, recent, most, again, says)


def replay(loop: Loop, step: int) -> Replayed:
    """Step `step` (from 0) of a loop whose weights are those before it; gradients are left behind."""
    plan, model = loop.plan, loop.model
    loop.optimizers.zero_grad()
    model.train()
    loop.statistics.keep()
    total, count = (float(number) for number in loop.accumulate(step, 1.0))
    loop.statistics.put_back()
    divisor = max(count, TINY)
    norms = {
        name: float(loop.together.norm([parameter.grad])) / divisor
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    starts = range(0, plan.batch, plan.micro_batch)
    return Replayed(
        loss=total / divisor,
        norm=float(loop.norm()) / divisor,
        count=count,
        norms=norms,
        losses=row_losses(loop, step),
        seeds=[derive(plan.seed, "step", step, index) for index in range(len(starts))],
    )


@torch.no_grad()
def row_losses(loop: Loop, step: int) -> list[float]:
    """(batch,) the mean loss of each row of a step alone, without dropout; 0 where nothing is scored."""
    found = []
    loop.model.eval()
    for index in range(step * loop.plan.batch, (step + 1) * loop.plan.batch):
        loss = loop.loss(loop.rows(index, 1))
        found.append(loss.total.item() / max(loss.count.item(), TINY))
    loop.model.train()
    return found


def worst(losses: list[float]) -> list[int]:
    """The rows of a step, those without a finite loss first, then the highest."""
    return sorted(range(len(losses)), key=lambda at: -losses[at] if math.isfinite(losses[at]) else -math.inf)


def _blame(loop: Loop, step: int, again: Replayed) -> str:
    """Which rows it comes from, by name, or that it comes from none of them."""
    first, losses = step * loop.plan.batch, again.losses
    where = lambda at: loop.batches.where(first + at, 1)[0]  # noqa: E731
    guilty = [at for at, loss in enumerate(losses) if not math.isfinite(loss)]
    if guilty and len(guilty) < len(losses):
        more = f" and {len(guilty) - NAMED} more" if len(guilty) > NAMED else ""
        return f"the loss is not finite at {', '.join(map(where, guilty[:NAMED]))}{more}"
    finite = "" if math.isfinite(again.loss) and math.isfinite(again.norm) else "not finite, and "
    top = worst(losses)[0]
    if not guilty and losses[top] > HALF * math.fsum(losses) and len(losses) > 1:
        return f"{finite}most of it is the loss of {where(top)}, {losses[top]:.4g}"
    rows = " to ".join(dict.fromkeys([where(0), where(len(losses) - 1)]))
    return f"{finite}no single row is to blame ({rows}); a lower lr or a longer warmup may help"
