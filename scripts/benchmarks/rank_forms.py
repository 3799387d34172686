"""What one rank of many holds and sends in a training step, in closed form: plain arithmetic, no torch.

The model is a Llama-like decoder whose blocks are alike and whose output layer is of its own; weights,
gradients and optimizer are float32, matrices inside blocks travel and multiply in bf16 (models/shards.py,
models/tensor_parallel.py, models/context_parallel.py say who does what). simulate_ranks.py holds every form
here against a traced step, to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FLOAT, LOW, DOUBLE = 4, 2, 8  # bytes of float32, bf16, float64
CHUNK, FEWEST = 2**25, 1024  # as models/chunked.py has them on a GPU


@dataclass(frozen=True)
class Sizes:
    """A decoder."""

    depth: int
    width: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vocabulary: int

    @property
    def head_width(self) -> int:
        """Numbers of a head."""
        return self.width // self.heads

    @property
    def block(self) -> int:
        """Numbers of a block's matrices."""
        return sum(rows * columns for rows, columns in self.matrices(1))

    @property
    def parameters(self) -> int:
        """All numbers: blocks, norms, embedding and output layer."""
        return self.depth * self.block + self.vectors + 2 * self.vocabulary * self.width

    @property
    def vectors(self) -> int:
        """Numbers of all norms."""
        return (2 * self.depth + 1) * self.width

    def matrices(self, tensor: int) -> list[tuple[int, int]]:
        """Rows and columns of a block's matrices, of each the part of one of so many tensor ranks."""
        queries, keys = (
            self.heads * self.head_width // tensor,
            self.key_value_heads * self.head_width // tensor,
        )
        inner = self.feed_forward // tensor
        return [
            (queries, self.width), (keys, self.width), (keys, self.width), (self.width, queries),
            (inner, self.width), (inner, self.width), (self.width, inner),
        ]  # fmt: skip

    def ends(self, tensor: int) -> list[tuple[int, int]]:
        """The same of the embedding and the output layer, whose vocabulary is shared."""
        return 2 * [(-(-self.vocabulary // tensor), self.width)]

    def flops(self, tokens: int, recomputed: bool = False) -> float:
        """Of a token of a row of so many, forward and backward: 6 for each number that multiplies, and
        attention over the half that causality leaves (https://arxiv.org/abs/2204.02311, appendix B)."""
        matrices = self.depth * self.block
        attention = 2 * self.depth * tokens * self.heads * self.head_width  # forward, half of 2 x 2 T H E
        return (
            (8 if recomputed else 6) * matrices
            + 6 * self.vocabulary * self.width
            + (4 if recomputed else 3) * attention
        )


MODELS = {  # Llama 3.1's, https://arxiv.org/abs/2407.21783, table 3
    "8 B": Sizes(32, 4096, 32, 8, 14_336, 128_256),
    "70 B": Sizes(80, 8192, 64, 8, 28_672, 128_256),
}


@dataclass(frozen=True)
class Layout:
    """A mesh of ranks; rows: of whole rows, that the ranks of one place in `data` go through at once."""

    data: int
    context: int
    tensor: int
    rows: int
    tokens: int  # of a whole row

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.data * self.context * self.tensor

    @property
    def among(self) -> int:
        """Ranks that FSDP cuts each matrix among: all that compute other tokens."""
        return self.data * self.context

    @property
    def here(self) -> int:
        """Tokens that a rank computes at once."""
        return self.rows * self.tokens // self.context


@dataclass(frozen=True)
class Message:
    """Collectives of one kind over one group of ranks.

    group: "rows" are the ranks with other tokens (data x context). payload: bytes of what is gathered, of
    what is reduced, or of what a rank gives to be exchanged, over all calls.
    """

    kind: str
    group: str
    ranks: int
    calls: int
    payload: int

    @property
    def sent(self) -> float:
        """Bytes that a rank sends, in a ring (https://doi.org/10.1016/j.jpdc.2008.09.002)."""
        return (2 if self.kind == "all-reduce" else 1) * self.payload * (self.ranks - 1) / self.ranks


def _cut(matrices: list[tuple[int, int]], among: int) -> int:
    """Numbers of the first of so many ranks, which no other has more of; all have that many in messages."""
    return sum(-(-rows // among) * columns for rows, columns in matrices)


def held(sizes: Sizes, layout: Layout) -> dict[str, int]:
    """Bytes that rank 0 keeps between steps, and of gradients after the backward pass."""
    inner = sizes.depth * _cut(sizes.matrices(layout.tensor), layout.among)
    rest = _cut(sizes.ends(layout.tensor), layout.among) + sizes.vectors
    tables = layout.tokens * sizes.head_width  # cosines and sines, half a head each
    return {
        "weights": FLOAT * (inner + rest + tables),
        "gradients": FLOAT * (inner + rest),
        "adamw": FLOAT * (2 * (inner + rest) + 2),  # two groups count their steps
        "muon": FLOAT * (inner + 2 * rest),
    }


def whole(sizes: Sizes, layout: Layout) -> int:
    """Bytes of weights that are whole at once while a step is computed: two blocks in bf16, both ends."""
    ends = sum(rows * columns for rows, columns in sizes.ends(layout.tensor))
    return 2 * LOW * sizes.block // layout.tensor + FLOAT * ends


def messages(sizes: Sizes, layout: Layout, recomputed: bool) -> list[Message]:
    """What rank 0 takes part in during a step of one micro-batch, but for Muon's updates and the clock."""
    return [each for each in _all(sizes, layout, recomputed) if each.payload and each.ranks > 1]


def _all(sizes: Sizes, layout: Layout, recomputed: bool) -> list[Message]:
    depth, among, tensor, context = sizes.depth, layout.among, layout.tensor, layout.context
    block = among * _cut(sizes.matrices(tensor), among)
    ends = among * _cut(sizes.ends(tensor), among)
    stream = layout.here * sizes.width  # numbers of the vectors of all tokens here
    pairs = 2 * layout.rows * layout.tokens * (sizes.key_value_heads // tensor) * sizes.head_width
    rows = max(FEWEST, CHUNK // -(-sizes.vocabulary // tensor))
    chunks = -(-layout.here // rows)
    again = depth if recomputed else 0
    # blocks: two sums forward in bf16, two backward in float32. Recomputation stops before the last sum, as
    # nothing is saved after it
    summed = depth * (2 * LOW + 2 * FLOAT) + again * LOW
    # the embedding's sum; of each chunk of logits the greatest, the target's and the sum; their inputs'
    ends_summed = stream * (FLOAT + LOW) + 3 * layout.here * FLOAT
    return [
        Message("all-gather", "rows", among, 2 * depth + 1, 2 * depth * LOW * block + FLOAT * ends),
        Message("reduce-scatter", "rows", among, depth + 1, FLOAT * (depth * block + ends)),
        # gradients of norms, loss and count, squares of the norm
        Message("all-reduce", "rows", among, 3, FLOAT * sizes.vectors + 3 * DOUBLE),
        Message(
            "all-reduce",
            "tensor",
            tensor,
            4 * depth + again + 2 + 3 * chunks + 1,
            summed * stream + ends_summed + DOUBLE,
        ),
        Message("all-gather", "context", context, depth + again, (depth + again) * LOW * pairs),
        Message("reduce-scatter", "context", context, depth, depth * LOW * pairs),
    ]


def merged(messages: list[Message]) -> list[Message]:
    """Messages of one kind and group as one."""
    found: dict[tuple[str, str], Message] = {}
    for each in messages:
        before = found.get((each.kind, each.group))
        found[each.kind, each.group] = (
            each
            if before is None
            else replace(before, calls=before.calls + each.calls, payload=before.payload + each.payload)
        )
    return sorted(found.values(), key=lambda each: (each.group, each.kind))
