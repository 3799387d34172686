"""Recorded micro-batches: gradients that are written first and then added to, and the same training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmtool.core.contracts import Batch, Loss
from llmtool.training import recorded
from llmtool.training.loop import State
from llmtool.training.recorded import Recorded
from tests.training.test_loop import OPTIMIZERS, Notes, make, weights
from tests.training.toys import ToyMLP, ToyTask, ToyTransformer, table, tokens


class Recorder:
    """In the place of CUDA: what ran once runs again, and writes to the memory it wrote to first."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.runs = 0

    def capture(self, run: Callable[[], Loss]) -> tuple[Callable[[], None], Loss]:
        adds = self.parameters[0].grad is not None
        kept = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        loss = run()
        gradients = [p.grad for p in self.parameters]
        if adds:  # a recording runs nothing
            for gradient, before in zip(gradients, kept, strict=True):
                gradient.copy_(before)
        else:
            for gradient in gradients:
                gradient.fill_(torch.nan)

        def again() -> None:
            self.runs += 1
            for parameter in self.parameters:
                parameter.grad = None
            found = run()
            loss.total.copy_(found.total)
            loss.count.copy_(found.count)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                gradient.add_(parameter.grad) if adds else gradient.copy_(parameter.grad)
                parameter.grad = gradient

        return again, loss


@pytest.fixture
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "warm_up", lambda run, times: [run() for _ in range(times)])


@pytest.mark.usefixtures("_on_the_cpu")
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
@pytest.mark.parametrize("micro", [8, 4, 3])
@pytest.mark.parametrize("kind", [ToyMLP, ToyTransformer])
def test_the_same_training(
    kind: type[torch.nn.Module], micro: int, optimizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit; where the batch is no multiple, the last part of it goes the other way."""
    ways = []
    for records in (False, True):
        torch.manual_seed(0)
        model, notes, data = kind(), Notes(), table() if kind is ToyMLP else tokens()
        loop = make(model, data, notes, optimizer, micro_batch=micro)
        if records:
            fake = Recorder(model)
            monkeypatch.setattr(recorded, "capture", fake.capture)
            loop.compiled = Recorded(loop.loss, loop.optimizers.parameters, loop.rows(0, micro))
            loop.optimizers.zero_grad()
        loop.run(State())
        ways.append((weights(model), [row["loss"] for row in notes.rows]))
    assert fake.runs == 6 * (8 // micro)
    assert ways[0][1] == ways[1][1]
    assert all(torch.equal(tensor, ways[1][0][name]) for name, tensor in ways[0][0].items())


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("micro", [8, 4, 3])
def test_on_cuda(micro: int, compiled: bool) -> None:
    """With dropout, whose seeds are set before each micro-batch: the same as launched one by one."""
    device = torch.device("cuda")
    ways = []
    for records in (False, True):
        torch.manual_seed(0)
        model, notes = ToyTransformer().to(device), Notes()
        model.drop.p = 0.1
        loop = make(model, tokens(), notes, micro_batch=micro, device=device)
        task = ToyTask()

        def loss(inputs: torch.Tensor, targets: torch.Tensor, model: torch.nn.Module = model) -> tuple:
            found = task.loss(model, Batch(inputs, targets))  # noqa: B023
            return found.total, found.count

        graph = torch.compile(loss, dynamic=False) if compiled else loss
        loop.compiled = lambda batch, graph=graph: Loss(*graph(batch.inputs, batch.targets))
        if records:
            loop.compiled(loop.rows(0, micro)).total.backward()
            loop.optimizers.zero_grad()
            loop.compiled = Recorded(loop.compiled, loop.optimizers.parameters, loop.rows(0, micro))
            loop.optimizers.zero_grad()
        loop.run(State())
        ways.append((weights(model), [row["loss"] for row in notes.rows]))
    assert ways[0][1] == pytest.approx(ways[1][1], rel=1e-5)
    for name, tensor in ways[0][0].items():
        torch.testing.assert_close(tensor, ways[1][0][name], rtol=1e-4, atol=1e-6)


@pytest.mark.cuda
def test_what_cannot_be_recorded_leaves_nothing_behind() -> None:
    """Neither a stream nor random numbers nor an allocator that take themselves to be in a recording."""
    stream, ones = torch.cuda.current_stream(), torch.ones(64, device="cuda")

    def waits() -> Loss:
        dropped = torch.nn.functional.dropout(ones)
        return Loss(dropped * dropped.sum().item(), dropped)

    with pytest.raises(RuntimeError):
        recorded.capture(waits)
    assert torch.cuda.current_stream() == stream
    torch.cuda.manual_seed(1)
    first = torch.nn.functional.dropout(ones)
    torch.cuda.manual_seed(1)
    assert torch.equal(first, torch.nn.functional.dropout(ones))
    replay, loss = recorded.capture(lambda: Loss(2 * ones, ones))
    replay()
    assert loss.total.sum() == 128
    held = torch.cuda.memory_allocated()
    aside = torch.cuda.Stream()
    batch = torch.ones(2**20, device="cuda")
    batch.record_stream(aside)  # as rows that were copied beside
    del batch
    torch.cuda.synchronize()
    torch.ones(1, device="cuda")
    assert torch.cuda.memory_allocated() <= held + 512
