"""What ranks do together in a step: each computes its rows, sums and gradients are added, one clock rules."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmtool.core import ranks, watch
from llmtool.core.contracts import Batch, Tally
from llmtool.core.shards import groups, is_part, local
from llmtool.models.shards import Cut
from llmtool.training.parallel import ParallelConfig

BUCKET = 25 * 2**20  # bytes of gradients that travel together, as torch's DDP has it
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Beat = tuple[list[int], float, float]  # signals received, seconds of the run, seconds of this session


class Together:
    """One rank of those that share every step's batch; alone, nothing here does anything.

    index, of: the part of a batch's rows that are computed here. Whatever a rank decides by (loss, norm,
    clock, signals) is the same number on all of them, so that they decide alike. cut: where each rank holds
    a part of the model only. parallel: which ranks share rows. group: those whose losses and gradients are
    added, None for all: ranks that share the matrices of a block (tensor) have the same ones.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter] = (),
        device: torch.device | None = None,
        cut: Cut | None = None,
        parallel: ParallelConfig | None = None,
        group: Any = None,
    ) -> None:
        here = self.ranks = ranks.here()
        self.tensor, self.group = (1 if parallel is None else parallel.tensor), group
        beside = self.tensor * (1 if parallel is None else parallel.context)  # ranks with the same rows
        self.index, self.of = here.rank // beside, here.size // beside
        self.device = device or torch.device("cpu")
        self.cut = cut
        by_us = parameters if cut is None else cut.beside  # the others' gradients FSDP adds up
        adds = here.size > self.tensor and by_us
        self.gradients = Gradients(by_us, group) if adds else None
        self.clock = Clock() if here.size > 1 else None

    @property
    def offloads(self) -> bool:
        """Whether the optimizer works on the host, which then waits for each step's numbers anyway."""
        return self.cut is not None and self.cut.offload

    def rows(self, batch: int) -> range:
        """Which rows of a step's batch are computed here, all ranks equally many."""
        share = batch // self.of
        return range(self.index * share, (self.index + 1) * share)

    def part(self, last: bool) -> None:
        """Said before each part of a step; after the last one gradients are whole, and travel."""
        if self.gradients is not None:
            self.gradients.ready = last
        if self.cut is not None:
            self.cut.sums(last)

    def added(self, total: Any, count: Any) -> tuple[Any, Any]:
        """Loss and count of all ranks; their gradients too are summed from here on."""
        if self.ranks.size == 1:
            return total, count
        on = self.device if isinstance(total, Tensor) else torch.device("cpu")
        sums = torch.stack([torch.as_tensor(n, dtype=torch.float64, device=on) for n in (total, count)])
        dist.all_reduce(sums, group=self.group)
        if self.gradients is not None:
            self.gradients.sum()
        return (sums[0], sums[1]) if isinstance(total, Tensor) else (sums[0].item(), sums[1].item())

    def beat(self, received: list[int], seconds: float, session: float) -> Beat:
        """Signals that any rank has received, and the first rank's seconds: of the run, and of this session.

        Of several ranks they are those of the step before, for which nobody has to wait.
        """
        if self.clock is None:
            return received, seconds, session
        return self.clock.beat(received, seconds, session)

    def evidence(
        self, batches: Callable[[int, int], Iterable[Batch]], judge: Callable[[Iterable[Batch]], Tally]
    ) -> Tally:
        """What `judge` finds in all batches, of which each rank makes and judges every n-th.

        batches(first, every): the batches first, first + every, first + 2 * every and so on, from 0.
        """
        first, every = self.ranks.rank // self.tensor, self.ranks.size // self.tensor
        if every == 1:
            return judge(watch.moving(batches(0, 1)))
        count = 0

        def mine() -> Iterator[Batch]:
            nonlocal count
            for batch in watch.moving(batches(first, every)):
                count += 1
                yield batch

        given = mine()
        begin = list(islice(given, 1))  # there may be fewer than ranks
        found = judge(chain(begin, given)) if begin else None
        if found is not None:
            found.to_host()
        # A model in parts is whole only where all ranks use it: has the first of them one more than this one?
        if self.cut is not None and (spare := list(islice(batches(count * every, every), 1))):
            judge(spare)
        tallies = [tally for tally in ranks.gathered(found)[:: self.tensor] if tally is not None]
        if not tallies:
            return judge(())  # says that there are none
        for tally in tallies[1:]:
            tallies[0].add(tally)
        return tallies[0]

    @torch.no_grad()
    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of all gradients together, of which a rank may hold parts."""
        whole = [gradient for gradient in gradients if not is_part(gradient)]
        if len(whole) == len(gradients):
            return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(whole)))
        found: list[tuple[list[Tensor], list[Any]]] = [(whole, [])] if whole else []
        for gradient in gradients:
            if not is_part(gradient):
                continue
            among = groups(gradient)
            if not found or found[-1][1] != among:
                found.append(([], among))
            found[-1][0].append(local(gradient))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for those, among in found:
            square = torch.stack(torch._foreach_norm(those)).to(self.device).double().square().sum()
            for group in among:
                dist.all_reduce(square, group=group)
            total += square
        return total.sqrt().float()

    def settle(self) -> None:
        """End what is still under way between the ranks."""
        if self.clock is not None:
            self.clock.settle()

    @torch.no_grad()
    def alike(self, statistics: Iterable[Tensor]) -> None:
        """Statistics of norms, each rank's of its own rows, become their mean."""
        if self.ranks.size == 1:
            return
        for tensor in statistics:
            if tensor.is_floating_point():
                dist.all_reduce(tensor)
                tensor /= self.ranks.size


class Gradients:
    """Adds the gradients of all ranks, some while the last backward pass is still computing others.

    A sum and not a mean, as torch's DistributedDataParallel makes it: losses are sums, which the loop divides
    once, by what all ranks have counted. Per step and rank 2 (n - 1) / n times the bytes of all gradients are
    sent (a ring, https://doi.org/10.1016/j.jpdc.2008.09.002).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: Any = None) -> None:
        self.group = group
        self.parameters = [
            p for p in reversed(parameters) if p.requires_grad
        ]  # the last ones are there first
        self.ready = False
        self._buckets: list[list[nn.Parameter]] = []
        self._bucket_of: dict[nn.Parameter, int] = {}
        self._missing: list[int] = []  # of each bucket, gradients that have not come
        self._sent: list[tuple[list[Tensor], Tensor, Any]] = []
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._came)

    def sum(self) -> None:
        """Whatever has not travelled does so now; every gradient is the sum over all ranks afterwards."""
        if not self._buckets:
            self._agree()
        self.ready = False
        while len(self._sent) < len(self._buckets):
            self._send()
        for gradients, flat, work in self._sent:
            work.wait()
            parts = flat.split([g.numel() for g in gradients])
            torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])
        self._begin()

    def _agree(self) -> None:
        """Buckets of those parameters that have a gradient on any rank, in the order of all."""
        has = ranks.gathered([p.grad is not None for p in self.parameters])
        used = [p for p, *there in zip(self.parameters, *has, strict=True) if any(there)]
        room, kind = 0, None
        for parameter in used:
            size = parameter.numel() * parameter.element_size()
            if size > room or parameter.dtype != kind:
                self._buckets.append([])
                room, kind = BUCKET, parameter.dtype
            self._buckets[-1].append(parameter)
            self._bucket_of[parameter] = len(self._buckets) - 1
            room -= size
        self._begin()

    def _begin(self) -> None:
        self._sent = []
        self._missing = [len(bucket) for bucket in self._buckets]

    def _came(self, parameter: Tensor) -> None:
        """Send every bucket that is whole, one after the other: all ranks must send in the same order."""
        if not self.ready or (at := self._bucket_of.get(parameter)) is None:  # type: ignore[call-overload]
            return
        self._missing[at] -= 1
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send()

    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [local(p.grad) for p in bucket if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self._sent.append((gradients, flat, dist.all_reduce(flat, group=self.group, async_op=True)))


class Clock:
    """The time and the signals by which all ranks go: exchanged beside the next step, known a step later."""

    def __init__(self) -> None:
        self.group = ranks.on_host()
        self._under_way: tuple[Tensor, Any] | None = None

    def beat(self, received: list[int], seconds: float, session: float) -> Beat:
        """As Together says."""
        mine = [float(number in received) for number in SIGNALS]
        mine += [seconds, session] if ranks.here().first else [0.0, 0.0]
        if self._under_way is None:  # the first step has none before it: its own are waited for
            self._send(mine)
        *signals, seconds, session = self.settle() or mine
        self._send(mine)
        return [number for number, there in zip(SIGNALS, signals, strict=True) if there], seconds, session

    def settle(self) -> list[float] | None:
        """What the last exchange gave; None where there is none."""
        if self._under_way is None:
            return None
        sent, work = self._under_way
        self._under_way = None
        work.wait()
        found: list[float] = sent.tolist()
        return found

    def _send(self, mine: list[float]) -> None:
        sent = torch.tensor(mine, dtype=torch.float64)
        self._under_way = (sent, dist.all_reduce(sent, dist.ReduceOp.MAX, self.group, async_op=True))
