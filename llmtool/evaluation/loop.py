"""Scoring: every batch through the model once, its evidence added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from llmtool.core.contracts import Batch, Tally, Task
from llmtool.core.devices import release_memory
from llmtool.core.errors import DataError
from llmtool.models.shards import scored


def evaluate(
    task: Task,
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tally:
    """The evidence of all batches, scored in eval mode; every module's mode is as before afterwards.

    The device is not waited for: the tally's figures do that once. Raises DataError when there is no batch.
    """
    tally: Tally | None = None
    release_memory()  # pieces that training has left are of no use to larger batches
    with eval_mode(model), torch.no_grad(), autocast():
        for batch in batches:
            measured = scored(model, task.measure, model, batch.to(device))
            if tally is None:
                tally = measured
            else:
                tally.add(measured)
    if tally is None:
        raise DataError("there are no rows to score")
    return tally


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; each module gets its own mode back (a frozen part may be in eval mode)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
