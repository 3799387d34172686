"""The training loss as one compiled graph, on CUDA also recorded; what fails is said, and done without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from llmtool.core.contracts import Batch, Loss
from llmtool.core.devices import is_out_of_memory
from llmtool.core.errors import first_line
from llmtool.models import flex
from llmtool.models.causal import Transformer
from llmtool.models.shards import cut_of
from llmtool.training.loop import Compute, Loop
from llmtool.training.recorded import Recorded

How = bool | Literal["graphs"]


def tried(
    loss: Compute, loop: Loop, how: How, even: bool, note: Callable[[str], None]
) -> tuple[Compute | None, How]:
    """The loss compiled, tried on a micro-batch of `loop`, and what it came to: None and False if it failed.

    how: True, or "graphs" to record it too. even: all micro-batches have one shape. note: told what is done
    without, and why. What runs out of memory is raised.
    """
    batch = loop.rows(0, loop.plan.micro_batch)
    graph = _graph(loss, even)
    if (error := _error(graph, batch, loop)) is not None and _may_attend_by_blocks(loop):
        flex.off = first_line(error)
        note(f"flex attention failed, a dense mask keeps documents apart ({flex.off})")
        torch.compiler.reset()
        graph = _graph(loss, even)
        error = _error(graph, batch, loop)
    if error is not None:
        note(f"torch.compile failed, training goes on without it ({first_line(error)})")
        return None, False
    if how == "graphs":
        why = "fp16 scales its loss" if loop.plan.fp16 else "rows are of different lengths"
        why, parted = ("the model is in parts", True) if cut_of(loop.model) else (why, False)
        try:
            if even and not loop.plan.fp16 and not parted:
                return Recorded(graph, loop.optimizers.parameters, batch), "graphs"
        except Exception as failed:  # whatever cannot be recorded, the same graph does call by call
            if is_out_of_memory(failed):
                raise
            why = first_line(failed)
        finally:
            _forget(loop)
        note(f"CUDA graphs are not used ({why})")
    return graph, True


def _graph(loss: Compute, even: bool) -> Compute:
    def tensors(
        inputs: Tensor,
        targets: Tensor,
        segments: Tensor | None,
        mixed: tuple[Tensor, Tensor] | None,
        features: Tensor | None,
        allowed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        result = loss(Batch(inputs, targets, segments, mixed=mixed, features=features, allowed=allowed))
        return result.total, result.count

    graph = torch.compile(tensors, dynamic=False if even else None)

    def compiled(batch: Batch) -> Loss:
        more = batch.mixed, batch.features, batch.allowed
        return Loss(*graph(batch.inputs, batch.targets, batch.segments, *more))

    return compiled


def _error(graph: Compute, batch: Batch, loop: Loop) -> Exception | None:
    """What a forward and a backward pass raise, of which nothing stays; memory that runs out raises."""
    try:
        loop.model.train()
        graph(batch).total.backward()
        return None
    except Exception as error:  # whatever the compiler cannot do, the same model does without it
        if is_out_of_memory(error):
            raise
        return error
    finally:
        _forget(loop)


def _forget(loop: Loop) -> None:
    loop.optimizers.zero_grad()
    loop.statistics.put_back()


def _may_attend_by_blocks(loop: Loop) -> bool:
    return flex.off is None and loop.device.type == "cuda" and isinstance(loop.model, Transformer)
