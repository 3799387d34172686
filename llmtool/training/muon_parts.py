"""Muon for matrices of which each rank holds a part: one rank makes the update of a matrix, for all."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmtool.core import ranks
from llmtool.core.shards import Piece, is_part, local, piece
from llmtool.models.layers import stacks
from llmtool.training.muon import Muon, as_wide, height, is_tall, orthogonalize


class PartsMuon(Muon):
    """Muon whose matrices are cut among ranks: by rows (FSDP), by rows or columns (tensor parallel), by both.

    Momentum is cut like its matrix. Each matrix has an owner, so that all ranks have about as much to
    compute: the parts of its momentum go there, are made orthogonal as a whole, and come back. Per step a
    rank sends 8 (n - 1) / n^2 bytes for each number of all the matrices (float32, there and back), and
    computes an n-th of the products; gathering every matrix at all ranks would send n / 2 times as much.
    """

    def _prepare(self, matrices: list[nn.Parameter]) -> None:
        """Momentum of what is here, an owner for each matrix, and who sends what to whom."""
        assert all(map(is_part, matrices))
        mesh = matrices[0].device_mesh  # type: ignore[attr-defined]
        assert mesh.ndim == 1 or mesh.size() == ranks.here().size, "all ranks, or those along one dimension"
        self.group = mesh.get_group() if mesh.ndim == 1 else None
        among = dist.get_process_group_ranks(self.group or dist.group.WORLD)
        self.rank, self.device = among.index(ranks.here().rank), torch.device(mesh.device_type)
        self.state = {matrix: {"momentum_buffer": _flat_zeros(matrix)} for matrix in matrices}
        own = [piece(state["momentum_buffer"]) for state in self.state.values()]
        every = ranks.gathered(own)
        self.pieces = [every[rank] for rank in among]
        self._route([matrix.shape for matrix in matrices])

    def _route(self, shapes: list[torch.Size]) -> None:
        """Who makes which update, and how many numbers go from whom to whom on its account."""
        every, owner = range(len(self.pieces)), owners(shapes, len(self.pieces))
        self.order = sorted(range(len(shapes)), key=lambda at: owner[at])
        of = [[at for at in self.order if owner[at] == rank] for rank in every]
        holders = [[each[at] for each in self.pieces] for at in range(len(shapes))]

        def gives(rank: int, at: int) -> bool:  # what several ranks hold, the first of them gives
            return holders[at].index(holders[at][rank]) == rank

        self.mine = of[self.rank]
        self.given = [at for at in self.order if gives(self.rank, at)]
        self.parts_from = [[at for at in self.mine if gives(rank, at)] for rank in every]
        own = self.pieces[self.rank]
        self.there = [_numbers(own, [at for at in of[rank] if at in self.given]) for rank in every]
        self.here = [_numbers(self.pieces[rank], self.parts_from[rank]) for rank in every]
        self.back_there = [_numbers(self.pieces[rank], self.mine) for rank in every]
        self.back_here = [_numbers(own, of[rank]) for rank in every]

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix."""
        matrices, lr = self.param_groups[0]["params"], self.param_groups[0]["lr"]
        self.moved = True
        changes = self._shared([self._change(matrix) for matrix in matrices], lr)
        for matrix, change in zip(matrices, changes, strict=True):
            here = local(matrix).flatten(1)
            change = change.to(here.device)
            if self.weight_decay:
                change -= here * (lr * self.weight_decay)
            if self.found_inf is not None:
                change *= 1 - self.found_inf.to(here.device)
            here += change

    def _change(self, matrix: nn.Parameter) -> Tensor:
        """The part of a matrix's momentum that is here, after this step."""
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
        """Parts of momentum, of every matrix the one that is here -> the same parts of its update."""
        shapes = [matrix.shape for matrix in self.param_groups[0]["params"]]
        sent = _flat([parts[at] for at in self.given], parts[0]).to(self.device)
        wholes = {at: sent.new_empty(shapes[at][0], shapes[at][1:].numel()) for at in self.mine}
        came = self._exchanged(sent, self.there, self.here).split(self.here)
        for pieces, those, flat in zip(self.pieces, self.parts_from, came, strict=True):
            for at, part in _parted(flat, pieces, those):
                wholes[at][pieces[at].slices] = part
        made = dict(zip(self.mine, self._orthogonal(list(wholes.values()), lr), strict=True))
        home = [made[at][pieces[at].slices] for pieces in self.pieces for at in self.mine]
        back = self._exchanged(_flat(home, sent), self.back_there, self.back_here)
        changes = dict(_parted(back, self.pieces[self.rank], self.order))
        return [changes[at] for at in range(len(parts))]

    def _exchanged(self, sent: Tensor, to_each: list[int], from_each: list[int]) -> Tensor:
        came = sent.new_empty(sum(from_each))
        dist.all_to_all_single(came, sent, from_each, to_each, group=self.group)
        return came

    def _orthogonal(self, matrices: list[Tensor], lr: float) -> list[Tensor]:
        """The updates of whole matrices, those of a stack in one product."""
        made: dict[int, Tensor] = {}
        for stack in stacks(matrices):
            wide = torch.stack([as_wide(matrix) for matrix in stack])
            updates = orthogonalize(wide, self.ns_steps, self.products)
            for matrix, update in zip(stack, updates, strict=True):
                turned = update.mT if is_tall(matrix) else update
                made[id(matrix)] = turned * (-lr * height(matrix.shape))
        return [made[id(matrix)] for matrix in matrices]


def owners(shapes: list[torch.Size], ranks: int) -> list[int]:
    """Which rank makes the update of each matrix: the costliest first, each to who has least so far."""
    cost = [shape.numel() * min(shape[0], shape[1:].numel()) for shape in shapes]
    load, found = [0] * ranks, [0] * len(shapes)
    for at in sorted(range(len(shapes)), key=lambda at: -cost[at]):
        found[at] = load.index(min(load))
        load[found[at]] += cost[at]
    return found


def _numbers(pieces: list[Piece], those: list[int]) -> int:
    """How many numbers these pieces have."""
    return sum(math.prod(pieces[at].shape) for at in those)


def _flat(parts: list[Tensor], like: Tensor) -> Tensor:
    """One behind the other."""
    return torch.cat([part.flatten() for part in parts]) if parts else like.new_empty(0)


def _parted(flat: Tensor, pieces: list[Piece], those: list[int]) -> list[tuple[int, Tensor]]:
    """The other way: which piece, and its numbers."""
    parts = flat.split([math.prod(pieces[at].shape) for at in those])
    return [(at, part.view(pieces[at].shape)) for at, part in zip(those, parts, strict=True)]


def _flat_zeros(matrix: nn.Parameter) -> Tensor:
    """Zeros for a matrix, of a convolution as (c', c * 9), cut like it."""
    if matrix.ndim == 2:
        return torch.zeros_like(matrix.detach())
    from torch.distributed.tensor import DTensor

    here = torch.zeros_like(local(matrix).flatten(1))
    shape = torch.Size((matrix.shape[0], matrix.shape[1:].numel()))
    mesh, placements = matrix.device_mesh, matrix.placements  # type: ignore[attr-defined]
    return DTensor.from_local(here, mesh, placements, run_check=False, shape=shape, stride=(shape[1], 1))
