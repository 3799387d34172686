"""Micro-batches as CUDA graphs: forward and backward pass in one call, where launches take longest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import nn

from llmtool.core.contracts import Batch, Loss

# passes before a recording, as https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks
WARM = 3


class Recorded:
    """A loss whose kernels are recorded with those of its backward pass, for micro-batches of one shape.

    Called as the loss is; what it returns needs no `backward`, for the gradients are there already: those of
    a first call are new, those of the next are added. Micro-batches of another shape go through `compute`.

    A recording writes to the same memory each time, its gradients too. Steps set gradients to None, so there
    are two: one that writes them, and one that adds to them.
    """

    def __init__(self, compute: Callable[[Batch], Loss], parameters: list[nn.Parameter], like: Batch) -> None:
        self._compute, self._parameters = compute, parameters
        self._batch = like.each(torch.clone)
        self._shapes = _shapes(like)
        warm_up(self._pass, WARM)
        self._forget()
        self._first, self._first_loss = capture(self._pass)
        self._gradients = [parameter.grad for parameter in parameters]
        self._next, self._next_loss = capture(self._pass)  # the gradients of the first are there: it adds

    def __call__(self, batch: Batch) -> Loss:
        """The loss of a micro-batch, its gradients made or added to."""
        if _shapes(batch) != self._shapes:
            return self._compute(batch)
        for kept, given in zip(self._batch.tensors(), batch.tensors(), strict=True):
            kept.copy_(given)
        if all(parameter.grad is None for parameter in self._parameters):
            self._first()
            loss = self._first_loss
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = gradient
        else:
            self._next()
            loss = self._next_loss
        return Loss(loss.total.clone(), loss.count.clone())

    def _pass(self) -> Loss:
        loss = self._compute(self._batch)
        loss.total.backward()
        return Loss(loss.total.detach(), loss.count)

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def warm_up(run: Callable[[], Loss], times: int) -> None:
    """Run on a stream of its own, so that nothing which is set up once is set up in a recording."""
    now, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(now)
    with torch.cuda.stream(aside):
        for _ in range(times):
            run()
    now.wait_stream(aside)


def capture(run: Callable[[], Loss]) -> tuple[Callable[[], None], Loss]:
    """What runs the same kernels again, and where they leave the loss.

    Where that fails, stream, random numbers and allocator are as before: torch leaves them as they are in a
    recording (https://github.com/ace-step/ACE-Step-1.5/issues/587), and the next dropout would raise.
    """
    graph = torch.cuda.CUDAGraph()
    device = torch.cuda.current_device()
    generator = torch.cuda.default_generators[device]
    state = generator.clone_state()
    try:
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
            loss = run()
    except BaseException:
        generator.graphsafe_set_state(state)
        with suppress(RuntimeError):  # it was left, or never entered
            torch._C._cuda_endAllocateToPool(device, graph.pool())
        raise
    return graph.replay, loss


def _shapes(batch: Batch) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in batch.tensors()]
