"""What tokens may look at: positions, masks, and the keys and values of an earlier forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmtool.models.flex import block_mask
from llmtool.models.layers import Mask, document_mask, document_positions


class Cache:
    """Keys and values of the tokens that each row has seen so far, so that the next ones need only their own.

    Give one to `Transformer.hidden` (or the model itself) with the prompts, then again with each next token:

        cache = Cache(rows=2, capacity=prompts.shape[1] + 100)
        logits = model(prompts, segments, cache)         # (B, T, V): the prompts, filled up on the left
        logits = model(next_tokens, cache=cache)         # (B, 1, V): a token for each row, and so on

    Prompts of different lengths are filled up on the LEFT, so that every row ends in its newest token:
    `segments` (B, T) is 0 at filling and another number, the same throughout a row, at tokens. It may be left
    out where all are tokens. Filling is never looked at and takes no position: a row's first token stands at
    position 0. Several documents in a row are not for a cache, nor are gradients: use torch.no_grad().

    capacity: slots for each row, filling included. Memory for all of it, (B, K, capacity, E) twice for each
    block, is taken with the first tokens, where and in the precision that the model computes in.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self.length = 0  # slots that are filled, the same for every row
        self.keys: list[Tensor] = []  # one for each block
        self.values: list[Tensor] = []
        self.real: Tensor | None = None  # (B, capacity): True at tokens; None while no filling was seen

    def extend(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a block's new keys and values (B, K, T, E); returns all so far, (B, K, length + T, E)."""
        if block == len(self.keys):
            shape = (self.rows, key.shape[1], self.capacity)
            self.keys.append(key.new_empty(*shape, key.shape[3]))
            self.values.append(value.new_empty(*shape, value.shape[3]))
        end = self.length + key.shape[2]
        self.keys[block][:, :, self.length : end] = key
        self.values[block][:, :, self.length : end] = value
        return self.keys[block][:, :, :end], self.values[block][:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only, (B',) indices; the same one may come several times."""
        self.rows = len(rows)
        self.keys = [key[rows] for key in self.keys]
        self.values = [value[rows] for value in self.values]
        self.real = None if self.real is None else self.real[rows]

    def note(self, tokens: int, segments: Tensor | None, device: torch.device) -> None:
        """Before the blocks run: which of the next `tokens` slots are filling."""
        end = self.length + tokens
        assert end <= self.capacity, f"{end} tokens in a cache for {self.capacity}"
        if self.real is None and segments is not None:
            self.real = torch.ones(self.rows, self.capacity, dtype=torch.bool, device=device)
        if self.real is not None and segments is not None:
            self.real[:, self.length : end] = segments != 0


@dataclass(frozen=True)
class Sight:
    """Where the tokens of one forward pass stand, and what they may look at.

    start: the position of the first column. positions: (B, T) where rows differ, else None: start, start + 1
    and so on. visible: (B or 1, 1, T, S), True where a query may look among the S keys; None: at itself and
    everything before it. by_blocks: masks are of blocks (models.flex), and `segments` is what they are made
    from. places, row: of tokens that are some of a row whose others are on other ranks
    (models.context_parallel), where in it they are (T,), and what the whole row, whose keys all are here, is.
    """

    tokens: int
    start: int
    positions: Tensor | None
    visible: Mask
    device: torch.device
    by_blocks: bool = False
    segments: Tensor | None = None
    places: Tensor | None = None
    row: Sight | None = None

    def window(self, size: int) -> Mask:
        """`visible` for blocks that see the newest `size` tokens only, a token itself included."""
        # https://arxiv.org/abs/2004.05150
        keys = self.start + self.tokens if self.row is None else self.row.tokens
        if keys <= size and not torch.compiler.is_exporting():  # an exported graph must not choose
            return self.visible
        if self.by_blocks:
            return block_mask(self.segments, keys, self.device, size, self.places)
        assert self.visible is None or isinstance(self.visible, Tensor)
        places = self.places
        if places is None:
            places = torch.arange(self.start, keys, device=self.device)
        distance = places.unsqueeze(1) - torch.arange(keys, device=self.device)  # (T, S)
        near = (distance >= 0) & (distance < size)
        return near[None, None] if self.visible is None else self.visible & near


def look(
    inputs: Tensor,
    segments: Tensor | None,
    cache: Cache | None,
    by_blocks: bool = False,
    capped: bool = False,
) -> Sight:
    """What (B, T) ids may look at: the documents of `segments`, or with a cache each row's earlier tokens.

    by_blocks: masks of blocks, where there is no cache; capped: even where every earlier token is seen, for
    scores that no other kernel caps.
    """
    tokens, device = inputs.shape[1], inputs.device
    if cache is None:
        positions = None if segments is None else document_positions(segments)
        visible: Mask = None
        if by_blocks and (capped or segments is not None):
            visible = block_mask(segments, tokens, device, None)
        elif segments is not None:
            visible = document_mask(segments)
        return Sight(tokens, 0, positions, visible, device, by_blocks, segments)
    cache.note(tokens, segments, device)
    start = cache.length
    keys = start + tokens
    if cache.real is None and (start == 0 or tokens == 1):
        return Sight(tokens, start, None, None, device)
    query = torch.arange(start, keys, device=device).unsqueeze(1)
    key = torch.arange(keys, device=device)
    if cache.real is None:
        return Sight(tokens, start, None, (key <= query)[None, None], device)
    real = cache.real[:, :keys]
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)[:, start:]
    # filling looks at itself: a row of softmax without anything to look at would be NaN
    visible = ((key <= query) & real.unsqueeze(1)) | (key == query)  # (B, T, S)
    return Sight(tokens, start, positions, visible.unsqueeze(1), device)
