"""What may be rounded before it is sent; the rest of models.shards needs ranks (stages/test_parting.py)."""

from __future__ import annotations

import pytest
import torch

from llmtool.core.contracts import Classes, Features, NextToken, Tokens
from llmtool.core.devices import PRECISIONS
from llmtool.models.adapters import LoRAConfig
from llmtool.models.shards import cut_of, entered, may_round, outline, scored
from llmtool.models.tabm import TabMConfig
from llmtool.models.transformer import TransformerConfig


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_blocks_round_as_autocast_does_where_that_rounds_all(architecture: str) -> None:
    shape = TransformerConfig(architecture=architecture, depth=1, heads=2, width=8, context=4)  # type: ignore[arg-type]
    model = shape.build(Tokens(11, None), NextToken(11))
    assert may_round(model.blocks[0], PRECISIONS["bf16"])
    assert not may_round(model.blocks[0], PRECISIONS["fp32"])
    assert not may_round(model.blocks[0], PRECISIONS["fp8"])
    LoRAConfig(kind="lora", rank=2).apply(model, 1)
    assert may_round(model.blocks[0], PRECISIONS["bf16"])


def test_what_looks_at_whole_weights_gets_them() -> None:
    model = TransformerConfig(depth=1, heads=2, width=8, context=4).build(Tokens(11, None), NextToken(11))
    LoRAConfig(kind="lora", rank=2, dora=True).apply(model, 1)
    assert not may_round(model.blocks[0], PRECISIONS["bf16"])
    table = TabMConfig(hidden=[8]).build(Features(4), Classes(3))
    assert cut_of(table) is None
    assert outline(table) is table
    assert entered(table)(torch.add, torch.tensor(1), 2) == scored(table, torch.add, torch.tensor(1), 2) == 3
