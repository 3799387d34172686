"""Sampling: seeded, bounded, stoppable, and never past the context."""

import pytest
import torch

from llmtool.core.contracts import NextToken, Tokens
from llmtool.models.generation import generate
from llmtool.models.transformer import TransformerConfig


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = TransformerConfig(depth=1, heads=2, width=16, context=6, dropout=0.5, tie_embeddings=False)
    return config.build(Tokens(11), NextToken(11))


def test_the_same_seed_gives_the_same_tokens_and_leaves_everything_else_alone(model):
    model.train()
    state = torch.get_rng_state()
    first = generate(model, [1, 2], 20, seed=3)
    assert first == generate(model, [1, 2], 20, seed=3)
    assert first != generate(model, [1, 2], 20, seed=4)
    assert first[:2] == [1, 2]
    assert len(first) == 22  # far beyond the context of 6
    assert all(0 <= token < 11 for token in first)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_greedy_is_the_likeliest_token_each_time(model):
    model.eval()
    ids = [4]
    for _ in range(10):
        ids.append(int(model(torch.tensor([ids[-6:]]))[0, -1].argmax()))
    assert generate(model, [4], 10, temperature=0) == ids
    assert generate(model, [4], 10, temperature=1.0, top_k=1) == ids
    assert generate(model, [4], 10, temperature=1e-30) == ids


def test_top_k_and_temperature_shape_the_distribution(model):
    model.eval()
    best = set(model(torch.tensor([[4]]))[0, -1].topk(3).indices.tolist())
    drawn = {generate(model, [4], 1, temperature=5.0, top_k=3, seed=seed)[-1] for seed in range(40)}
    assert drawn == best
    assert (
        len({generate(model, [4], 1, temperature=100.0, top_k=99, seed=seed)[-1] for seed in range(200)})
        == 11
    )


def test_stops_after_a_stop_token(model):
    free = generate(model, [1], 30, seed=1)
    stop = free[5]
    stopped = generate(model, [1], 30, seed=1, stop={stop})
    assert stopped == free[: free.index(stop, 1) + 1]
    assert generate(model, [1], 0) == [1]
    with pytest.raises(AssertionError):
        generate(model, [], 3)
