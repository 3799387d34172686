"""Muon for matrices of which each rank holds some rows: one rank makes the update of a matrix, for all."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmtool.core.shards import is_part, local
from llmtool.training.muon import Muon, height, orthogonalize


class PartsMuon(Muon):
    """Muon whose matrices are cut by rows among the ranks of a mesh of one dimension.

    Momentum is cut like its matrix. Each matrix has an owner, so that all ranks have about as much to
    compute: the rows of its momentum go there, are made orthogonal as a whole, and come back. Per step a rank
    sends 8 (n - 1) / n^2 bytes for each number of all the matrices (float32, there and back), and computes an
    n-th of the products; gathering every matrix at all ranks would send n / 2 times as much.
    """

    def _prepare(self, matrices: list[nn.Parameter]) -> None:
        """Momentum of the rows that are here, and an owner for each matrix."""
        assert all(map(is_part, matrices))
        mesh = matrices[0].device_mesh  # type: ignore[attr-defined]
        assert mesh.ndim == 1, "cut among ranks in one way"
        self.group, self.rank, self.size = mesh.get_group(), mesh.get_local_rank(), mesh.size()
        self.device = torch.device(mesh.device_type)
        self.state = {matrix: {"momentum_buffer": _flat_zeros(matrix)} for matrix in matrices}
        self.owners = owners([matrix.shape for matrix in matrices], self.size)

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix."""
        matrices, lr = self.param_groups[0]["params"], self.param_groups[0]["lr"]
        self.moved = True
        changes = self._shared([self._change(matrix) for matrix in matrices], lr)
        for matrix, change in zip(matrices, changes, strict=True):
            rows = local(matrix).flatten(1)
            change = change.to(rows.device)
            if self.weight_decay:
                change -= rows * (lr * self.weight_decay)
            if self.found_inf is not None:
                change *= 1 - self.found_inf.to(rows.device)
            rows += change

    def _change(self, matrix: nn.Parameter) -> Tensor:
        """The rows of a matrix's momentum that are here, after this step."""
        memory = local(self.state[matrix]["momentum_buffer"])
        gradient = torch.zeros_like(memory)
        if matrix.grad is not None:
            gradient.copy_(local(matrix.grad).flatten(1))
        if self.grad_scale is not None:
            gradient /= self.grad_scale.to(memory.device)
        if self.found_inf is not None:
            gradient = torch.where(self.found_inf.to(memory.device) > 0, memory, gradient)
        memory.lerp_(gradient, 1 - self.momentum)
        return gradient.lerp_(memory, self.momentum) if self.nesterov else memory

    def _shared(self, parts: list[Tensor], lr: float) -> list[Tensor]:
        """Rows of momentum, of every matrix those that are here -> the rows of its update."""
        shapes = [matrix.shape for matrix in self.param_groups[0]["params"]]
        order = sorted(range(len(parts)), key=lambda at: self.owners[at])
        mine = [at for at in order if self.owners[at] == self.rank]
        widths = [shapes[at][1:].numel() for at in mine]
        heights = [[_rows(shapes[at], rank, self.size) for at in mine] for rank in range(self.size)]
        sizes = [parts[at].numel() for at in order]
        there = [0] * self.size  # numbers of mine for each rank's matrices
        for at in order:
            there[self.owners[at]] += parts[at].numel()
        here = [sum(n * width for n, width in zip(rows, widths, strict=True)) for rows in heights]
        sent = torch.cat([parts[at].flatten() for at in order]).to(self.device)
        came = self._exchanged(sent, there, here).split(here)
        wholes: list[list[Tensor]] = [[] for _ in mine]
        for flat, rows in zip(came, heights, strict=True):
            numbers = [n * width for n, width in zip(rows, widths, strict=True)]
            for whole, part, width in zip(wholes, flat.split(numbers), widths, strict=True):
                whole.append(part.view(-1, width))
        made = self._orthogonal([torch.cat(whole) for whole in wholes], lr)
        cut = [m.split([rows[at] for rows in heights]) for at, m in enumerate(made)]
        home = [each[rank].flatten() for rank in range(self.size) for each in cut]
        returned = self._exchanged(torch.cat(home) if home else sent.new_empty(0), here, there).split(sizes)
        changes = {at: part.view_as(parts[at]) for at, part in zip(order, returned, strict=True)}
        return [changes[at] for at in range(len(parts))]

    def _exchanged(self, sent: Tensor, to_each: list[int], from_each: list[int]) -> Tensor:
        came = sent.new_empty(sum(from_each))
        dist.all_to_all_single(came, sent, from_each, to_each, group=self.group)
        return came

    def _orthogonal(self, matrices: list[Tensor], lr: float) -> list[Tensor]:
        """The updates of whole matrices, all of one shape, either way round, in one product."""
        stacks: dict[torch.Size, list[int]] = defaultdict(list)
        wide = [matrix.mT if len(matrix) > matrix.shape[1] else matrix for matrix in matrices]
        for at, matrix in enumerate(wide):
            stacks[matrix.shape].append(at)
        made = list(matrices)
        for those in stacks.values():
            updates = orthogonalize(torch.stack([wide[at] for at in those]), self.ns_steps)
            for at, update in zip(those, updates, strict=True):
                turned = update.mT if wide[at] is not matrices[at] else update
                made[at] = turned * (-lr * height(matrices[at].shape))
        return made


def owners(shapes: list[torch.Size], ranks: int) -> list[int]:
    """Which rank makes the update of each matrix: the costliest first, each to who has least so far."""
    cost = [shape.numel() * min(shape[0], shape[1:].numel()) for shape in shapes]
    load, found = [0] * ranks, [0] * len(shapes)
    for at in sorted(range(len(shapes)), key=lambda at: -cost[at]):
        found[at] = load.index(min(load))
        load[found[at]] += cost[at]
    return found


def _rows(shape: torch.Size, rank: int, size: int) -> int:
    """How many rows of a matrix a rank holds, as torch.chunk cuts them."""
    most = -(-shape[0] // size)
    return max(0, min(shape[0], (rank + 1) * most) - rank * most)


def _flat_zeros(matrix: nn.Parameter) -> Tensor:
    """Zeros for a matrix, of a convolution as (c', c * 9), cut like it."""
    from torch.distributed.tensor import DTensor

    here = torch.zeros_like(local(matrix).flatten(1))
    shape = torch.Size((matrix.shape[0], matrix.shape[1:].numel()))
    mesh, placements = matrix.device_mesh, matrix.placements  # type: ignore[attr-defined]
    return DTensor.from_local(here, mesh, placements, run_check=False, shape=shape, stride=(shape[1], 1))
