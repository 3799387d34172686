"""Context parallelism: each rank has a part of the tokens of every row, and attends to those of all ranks.

A row is cut into 2 C equal chunks for C ranks, of which rank c has chunks c and 2 C - 1 - c: early tokens see
little and late ones much, so that all ranks have equal work. Keys and values are gathered over the ranks
before attention, their gradients summed and scattered after it, as in Llama 3's training
(https://arxiv.org/abs/2407.21783, section 3.3.2): unlike a ring it works on any device and with any mask.
Loss, count and gradients are sums over a rank's own tokens, to be summed over the ranks.

What a rank receives in a step, in bytes: C ranks, B rows of T tokens (of the whole row) that they go through
together, L blocks, K heads of keys, E the width of one, s bytes a number in attention:

    blocks      4 (C - 1) / C * L * B T K E s    keys and values forward, their gradients backward
    recomputed  2 (C - 1) / C * B T K E s        more for each block that is made again for the backward pass
    documents   4 (C - 1) / C * B T              the numbers of packed documents, once for each micro-batch
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from llmtool.core.contracts import Batch
from llmtool.core.errors import ConfigError
from llmtool.models.cache import Cache, Sight
from llmtool.models.causal import Transformer
from llmtool.models.collectives import gathered
from llmtool.models.flex import BLOCK, block_mask
from llmtool.models.layers import Mask, document_positions


def share_context(model: nn.Module, mesh: DeviceMesh) -> None:
    """Let a model take, in training, rows that `cut` has cut for the mesh's dimension "context".

    In eval mode it takes whole rows as ever, and the ranks need not keep step. Dropout draws for the tokens
    that a rank has as if they were the row. ConfigError for models that do not write the next token.
    """
    mesh = mesh["context"]
    if mesh.size() == 1:
        return
    if not isinstance(model, Transformer) or not model.writes:
        raise ConfigError(
            "parallel.context: more than 1 is for model.family transformer with task.kind language, whose "
            "tokens see those before them: set parallel.context: 1"
        )
    model.shared = Shared(mesh.get_group().group_name, mesh.size(), mesh.get_local_rank())


def refuse_uneven(tokens: int, ranks: int) -> None:
    """ConfigError where rows of so many tokens cannot be cut for so many ranks."""
    if ranks > 1 and tokens % (2 * ranks):
        raise ConfigError(
            f"parallel.context: rows of {tokens:,} tokens do not divide into {2 * ranks} chunks, 2 for each "
            f"of {ranks} ranks: choose a length that is a multiple of {2 * ranks} or other ranks"
        )


def cut(batch: Batch, mesh: DeviceMesh) -> Batch:
    """This rank's tokens of a batch of token rows: (B, T, ...) -> (B, T / C, ...).

    ConfigError where 2 C does not divide T.
    """
    mesh = mesh["context"]
    if mesh.size() == 1:
        return batch
    refuse_uneven(batch.inputs.shape[1], mesh.size())
    places = _places(batch.inputs.shape[1], mesh.size(), mesh.get_local_rank(), batch.inputs.device)
    own = {
        name: tensor[:, places]
        for name in ("inputs", "targets", "segments", "allowed")
        if (tensor := getattr(batch, name)) is not None
    }
    return replace(batch, **own)


class Shared(Cache):
    """The keys and values of all ranks, in place of a cache's: each has those of its own tokens."""

    def __init__(self, group: str, ranks: int, rank: int) -> None:
        super().__init__(rows=0, capacity=0)
        self.group, self.ranks, self.rank = group, ranks, rank

    def extend(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A block's keys and values of this rank's tokens, (B, K, T / C, E) -> of all, (B, K, T, E)."""
        both = self._whole(torch.stack((key, value)), 3)
        return both[0], both[1]

    def look(self, inputs: Tensor, segments: Tensor | None, by_blocks: bool) -> Sight:
        """What (B, T / C) ids, cut as `cut` does, may look at among all T. segments: theirs."""
        tokens, device = inputs.shape[1] * self.ranks, inputs.device
        places = _places(tokens, self.ranks, self.rank, device)
        positions = None
        if segments is not None:
            segments = self._whole(segments, 1)  # (B, T)
            positions = document_positions(segments)
        # a block of the kernel's is of one chunk
        by_blocks = by_blocks and tokens // (2 * self.ranks) % BLOCK == 0
        visible: Mask
        if by_blocks:
            visible = block_mask(segments, tokens, device, None, places)
        else:
            visible = (places.unsqueeze(1) >= torch.arange(tokens, device=device))[None, None]
            if segments is not None:  # (B, 1, T / C, T)
                visible = visible & (segments[:, places, None] == segments[:, None])[:, None]
        return Sight(
            inputs.shape[1],
            0,
            places[None] if positions is None else positions[:, places],
            visible,
            device,
            by_blocks,
            segments,
            places,
            Sight(tokens, 0, positions, None, device),
        )

    def _whole(self, x: Tensor, dim: int) -> Tensor:
        """(..., T / C, ...) of each rank -> (..., T, ...) in the order of the row."""
        chunks = gathered(x, self.group, self.ranks).unflatten(dim + 1, (2, -1))  # (C, ..., 2, T / 2C, ...)
        early, late = chunks.unbind(dim + 1)  # (C, ..., T / 2C, ...): chunks 0 to C - 1, and 2 C - 1 to C
        return torch.cat((early, late.flip(0))).movedim(0, dim).flatten(dim, dim + 1)


def _places(tokens: int, ranks: int, rank: int, device: torch.device) -> Tensor:
    """(T / C,) where a rank's tokens stand in a row."""
    chunk = tokens // (2 * ranks)
    within, last = torch.arange(chunk, device=device), 2 * ranks - 1
    return torch.cat((within + rank * chunk, within + (last - rank) * chunk))
