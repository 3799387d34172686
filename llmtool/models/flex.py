"""Attention that works on those blocks only in which some token may look: flex attention, its masks, its use.

https://arxiv.org/abs/2412.05496. On CUDA, inside a compiled graph, it is one kernel for documents in a row,
windows and capped scores; the scores are never written out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128  # tokens of a side, the kernel's own
FILLING = 2**30  # above every document's number

off: str | None = None  # why this process does without it; set by whoever saw it fail


def usable(device: torch.device) -> bool:
    """Whether a forward pass on this device, as it runs now, may attend by blocks.

    Outside of a compiled graph flex attention writes every score out, and is worse than a mask.
    """
    return off is None and device.type == "cuda" and torch.compiler.is_dynamo_compiling()


def block_mask(
    segments: Tensor | None,
    tokens: int,
    device: torch.device,
    window: int | None,
    places: Tensor | None = None,
) -> BlockMask:
    """Each token may look at itself and at earlier ones of its document, the newest `window` of these.

    segments: (B, T) document numbers, 0 at filling; None: each row is one. Which blocks have work follows
    from the least and the highest number in each: no T x T mask is made, and nothing is waited for. Blocks of
    filling alone look at nothing, and what they find is 0. places: (Q,) where in the row the tokens that look
    are, whole blocks of it; None: all of them look.
    """
    count = -(-tokens // BLOCK)
    query = torch.arange(count, device=device) if places is None else places[::BLOCK] // BLOCK  # of blocks
    looking, query = query, query[:, None]
    key = torch.arange(count, device=device)
    some = (key <= query)[None]  # (B or 1, Q, S)
    # the last block is ragged: the kernel has to look at its edge
    every = ((key < query) & (query < tokens // BLOCK))[None]
    if window is not None:
        distance = (query - key) * BLOCK  # from -(BLOCK - 1) to BLOCK - 1 more within a block
        some = some & (distance - (BLOCK - 1) < window)
        every = every & (distance + (BLOCK - 1) < window)
    if segments is not None:
        numbers = F.pad(segments, (0, count * BLOCK - tokens))
        numbers = torch.where(numbers == 0, FILLING, numbers).view(len(segments), count, BLOCK)
        low, high = numbers.amin(dim=2), numbers.amax(dim=2)  # (B, Q)
        least, most = low[:, looking, None], high[:, looking, None]  # (B, Q, 1) of those that look
        meet = (least <= high[:, None]) & (low[:, None] <= most)
        some = some & meet & (least < FILLING)
        every = every & some & (least == high[:, None]) & (low[:, None] == most)

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if places is not None:
            query = places[query]
        seen = query >= key
        if window is not None:
            seen = seen & (query - key < window)
        if segments is not None:
            seen = seen & (segments[row, query] == segments[row, key])
        return seen

    return BlockMask.from_kv_blocks(
        *_ordered(some & ~every),
        *_ordered(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(tokens if places is None else len(places), tokens),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, Q, S) bool -> (B, 1, Q) how many of each row, (B, 1, Q, S) their numbers, those first."""
    found = blocks.to(torch.int32)[:, None]
    numbers = found.argsort(dim=3, descending=True, stable=True).to(torch.int32)
    return found.sum(dim=3).to(torch.int32), numbers.contiguous()


def attend_by_blocks(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None, soft_cap: float | None
) -> Tensor:
    """As layers.attend without dropout, on the blocks of `mask`."""
    device = value.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    score = None if soft_cap is None else _capped(soft_cap)
    found = flex_attention(
        query.to(dtype),
        key.to(dtype),
        value.to(dtype),
        score_mod=score,
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, Tensor)
    return found.transpose(1, 2).flatten(2)  # (B, H, T, E) -> (B, T, H * E)


def _capped(cap: float) -> Callable[..., Tensor]:
    """Scores that stay below `cap` (https://arxiv.org/abs/2408.00118)."""
    return lambda score, row, head, query, key: cap * torch.tanh(score / cap)
