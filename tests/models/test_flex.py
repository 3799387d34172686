"""Attention by blocks: the same as with a dense mask, forward and backward, and as one graph."""

import pytest
import torch
from torch import nn
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_mask

from llmtool.core.contracts import NextToken, Tokens
from llmtool.models import causal, flex
from llmtool.models.layers import document_mask
from llmtool.models.transformer import TransformerConfig

CUDA = pytest.mark.cuda
# (architecture, keys): heads that share keys, windows, capped scores, both together
FAMILIES = [
    ("gpt2", {}),
    ("llama", {"key_value_heads": 2}),
    ("mistral", {"key_value_heads": 1, "window": 150}),
    ("qwen3", {"key_value_heads": 2}),
    ("gemma2", {"window": 140, "attention_soft_cap": 5.0, "logit_soft_cap": 3.0}),
    ("gemma3_text", {"window": 20, "depth": 6}),
    ("phi3", {}),
    ("smollm3", {}),
]
names = [name for name, _ in FAMILIES]


def documents(tokens=300, rows=3, device="cpu"):
    """Documents of uneven lengths, some of which begin with a block; the last row ends in filling."""
    numbers = torch.zeros(rows, tokens, dtype=torch.int32)
    for row, edges in enumerate(([0, 100, 101, 256], [0, 128, 129], [0, 7, 60])):
        for number, edge in enumerate(edges):
            numbers[row, edge:] = number + 1
    numbers[2, 90:] = 0
    return numbers.to(device)


def model_of(architecture, keys, device="cpu"):
    torch.manual_seed(0)
    sizes = {"depth": 2, "heads": 4, "width": 64, "context": 300} | keys
    return TransformerConfig(architecture=architecture, **sizes).build(Tokens(31), NextToken(31)).to(device)


def scored(model, ids, segments):
    """Logits and gradients, of which those at filling count for nothing."""
    model.zero_grad()
    logits = model(ids, segments)
    kept = logits if segments is None else logits[segments != 0]
    kept.float().square().sum().backward()
    return kept.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.fixture
def _by_blocks(monkeypatch):
    """Flex attention on the CPU, outside of a graph, with gradients: torch has them there but refuses."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *arguments: None)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(causal, "usable", lambda device: True)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize(("architecture", "keys"), FAMILIES, ids=names)
def test_the_same_as_a_dense_mask(architecture, keys, packed, request):
    model = model_of(architecture, keys)
    ids = torch.randint(31, (3, 300), generator=torch.Generator().manual_seed(1))
    segments = documents() if packed else None
    expected = scored(model, ids, segments)
    request.getfixturevalue("_by_blocks")
    found = scored(model, ids, segments)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            found[1][name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max())
        )


@pytest.mark.parametrize("window", [None, 1, 100, 128, 200])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
def test_blocks_have_every_pair_and_little_more(packed, window):
    """Pairs that may look are in blocks with work; a full block has no other; a block of filling has none."""
    segments = documents(tokens=512) if packed else None
    if segments is not None:
        segments[0, 256:] = 9  # a document over two whole blocks
    mask = flex.block_mask(segments, 512, torch.device("cpu"), window)
    rows = 1 if segments is None else len(segments)
    dense = create_mask(mask.mask_mod, rows, 1, 512, 512, device="cpu")  # (B, 1, T, T)
    there = document_mask(torch.ones(1, 512) if segments is None else segments)
    if window is not None:
        there = there & ~torch.ones(512, 512, dtype=torch.bool).tril(-window)
    assert torch.equal(dense, there)
    pairs = dense.view(rows, 4, 128, 4, 128).sum(dim=(2, 4))  # of each block
    full, some = torch.zeros(2, rows, 4, 4, dtype=torch.bool)
    for row in range(rows):
        for query in range(4):
            for table, count, numbers in (
                (some, mask.kv_num_blocks, mask.kv_indices),
                (full, mask.full_kv_num_blocks, mask.full_kv_indices),
            ):
                table[row, query, numbers[row, 0, query, : count[row, 0, query]].long()] = True
    filling = torch.zeros_like(some)
    if packed:
        filling[2, 1:] = True  # the third row is filling from 90 on
    assert torch.equal(full & ~filling, (pairs == 128 * 128) & ~filling)
    assert not (some & full).any()
    assert ((some | full) | filling).equal((pairs > 0) | filling)
    assert not (some | full)[filling].any()


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
@pytest.mark.usefixtures("_by_blocks")
@pytest.mark.parametrize(("architecture", "keys"), FAMILIES, ids=names)
def test_one_graph(architecture, keys):
    """Model and loss, with the block masks made inside: nothing stays outside of the graph."""
    model = model_of(architecture, keys)
    ids, segments = torch.randint(31, (3, 300)), documents()

    def loss(ids, segments):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, segments)
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())

    torch._dynamo.reset()
    seen = torch._dynamo.explain(loss)(ids, segments)
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons
    targets = [str(node.target) for graph in seen.graphs for node in graph.graph.nodes]
    assert targets.count("flex_attention") == model.config.depth


def test_only_compiled_and_on_cuda(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert not flex.usable(cuda)
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
    assert flex.usable(cuda)
    assert not flex.usable(cpu)
    monkeypatch.setattr(flex, "off", "it failed")
    assert not flex.usable(cuda)


def test_dropout_of_attention_needs_a_mask():
    model = model_of("gpt2", {"dropout": 0.1})
    assert model.drops_attention
    assert not model.eval().drops_attention
    assert not model_of("llama", {"dropout": 0.1}).drops_attention


@CUDA
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize(("architecture", "keys"), FAMILIES, ids=names)
def test_compiled_on_cuda(architecture, keys, packed):
    """The kernel gives what the dense mask gives, in fp32 and within bf16's rounding."""
    model = model_of(architecture, keys, "cuda")
    ids = torch.randint(31, (3, 300), generator=torch.Generator().manual_seed(1)).cuda()
    segments = documents(device="cuda") if packed else None
    expected = scored(model, ids, segments)
    torch._dynamo.reset()
    found = scored(torch.compile(model, dynamic=False), ids, segments)
    torch.testing.assert_close(found[0], expected[0], rtol=2e-3, atol=2e-3)
    for name, gradient in expected[1].items():
        found_one = found[1][f"_orig_mod.{name}" if f"_orig_mod.{name}" in found[1] else name]
        error = (found_one - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 1e-2, (name, float(error))
