"""What stands for a text: the pooled vector of its tokens, or the mean over its chunks."""

import pytest
import torch

from llmtool.core.contracts import Classes, Tokens
from llmtool.models.encoder import EncoderConfig
from llmtool.models.headed import pool
from llmtool.models.transformer import TransformerConfig

MODELS = {
    "bert": EncoderConfig(depth=2, heads=2, width=16, context=6),
    "modernbert mean": EncoderConfig(
        architecture="modernbert", depth=2, heads=2, width=16, context=6, pooling="mean"
    ),
    "gpt2": TransformerConfig(architecture="gpt2", depth=2, heads=2, width=16, context=6),
    "qwen3 mean": TransformerConfig(
        architecture="qwen3", depth=2, heads=2, width=16, context=6, pooling="mean"
    ),
}


def test_what_is_pooled_is_no_padding():
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    segments = torch.tensor([[0, 1, 1], [1, 0, 0]])
    assert pool(hidden, segments, "cls").tolist() == [[2, 3], [6, 7]]
    assert pool(hidden, segments, "last").tolist() == [[4, 5], [6, 7]]
    assert pool(hidden, segments, "mean").tolist() == [[3, 4], [6, 7]]
    assert pool(hidden, None, "last").tolist() == [[4, 5], [10, 11]]
    assert pool(hidden, torch.zeros(2, 3), "mean").tolist() == [[0, 0], [0, 0]]  # an empty chunk: no NaN


@pytest.mark.parametrize("name", MODELS)
def test_chunks_are_averaged_and_those_that_are_not_there_count_nothing(name):
    torch.manual_seed(0)
    model = MODELS[name].build(Tokens(19), Classes(3)).eval()
    inputs = torch.randint(19, (2, 3, 6))
    segments = torch.ones(2, 3, 6, dtype=torch.int32)
    segments[0, 1, 4:] = segments[0, 2] = 0  # a text of a chunk and a half
    found = model(inputs, segments)
    vectors = [model.vectors(inputs[0, :1], None), model.vectors(inputs[0, 1:2, :4], None)]
    head = model.head if hasattr(model, "head") else model.score
    torch.testing.assert_close(found[0], head(torch.cat(vectors).mean(dim=0)), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1], head(model.vectors(inputs[1], None).mean(dim=0)), atol=1e-6, rtol=0)
    alone = model(inputs[1:, :1], segments[1:, :1])
    torch.testing.assert_close(alone, model(inputs[1:, 0], None), atol=1e-6, rtol=0)
