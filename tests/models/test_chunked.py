"""Cross entropy in chunks: the loss and gradient of the whole, whatever the rows, and far fewer bytes."""

import subprocess
import sys

import pytest
import torch

from llmtool.core.contracts import IGNORE, Batch, NextToken, Tokens
from llmtool.models import chunked
from llmtool.models.accounting import step
from llmtool.models.adapters import LoRAConfig
from llmtool.models.chunked import output_of
from llmtool.models.transformer import TransformerConfig
from llmtool.tasks.language import LanguageTask
from tests.models.small import saved_bytes, transformer

CASES = {
    "llama": {},
    "untied": {"tie_embeddings": False},
    "gpt2": {"architecture": "gpt2"},
    "capped": {"architecture": "gemma2", "logit_soft_cap": 3.0},
}


def built(name):
    return transformer(**{"architecture": "llama"} | CASES[name]).train()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 7 rows, also of a vocabulary of 61."""
    for name, value in (("LARGE_VOCABULARY", 61), ("LARGE", 61), ("CHUNK", 7 * 61)):
        monkeypatch.setattr(chunked, name, value)
    monkeypatch.setattr(chunked, "FEWEST", {"cpu": 1, "cuda": 1})


@pytest.fixture
def whole(monkeypatch):
    """Call it to have all logits at once from then on."""
    return lambda: monkeypatch.setattr(chunked, "LARGE", 10**9)


def batch(ragged=True):
    source = torch.Generator().manual_seed(4)
    inputs, targets = (torch.randint(61, (8, 16), generator=source) for _ in range(2))
    if ragged:
        targets[0, 5:9] = targets[2, :14] = targets[3] = IGNORE
    return Batch(inputs, targets, torch.tensor([1] * 6 + [2] * 10).repeat(8, 1))


def learned(model, parts, dtype=None, scale=1.0, run=None):
    """Loss, count and gradient over micro-batches of so many parts."""
    model.zero_grad()
    total = count = 0.0
    for start in range(0, 8, 8 // parts):
        rows = slice(start, start + 8 // parts)
        given = batch()
        part = Batch(given.inputs[rows], given.targets[rows], given.segments[rows])
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = (run or LanguageTask().loss)(model, part)
        (loss.total * scale).backward()
        total, count = total + loss.total.item(), count + int(loss.count)
    return total, count, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def apart(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_the_whole(name, whole):
    model = built(name)
    assert output_of(model, 128).rows == 7
    found = [learned(model, parts) for parts in (1, 8)]
    whole()
    assert output_of(model, 128) is None
    total, count, gradient = learned(model, 1)
    for one in found:
        assert one[0] == pytest.approx(total, rel=1e-6)
        assert one[1] == count == 128 - 4 - 14 - 16
        assert apart(one[2], gradient) < 1e-6


def test_the_gradient_is_scaled_by_what_comes_in():
    model = built("llama")
    assert torch.equal(learned(model, 1, scale=1024.0)[2], 1024 * learned(model, 1)[2])


@pytest.mark.parametrize("name", CASES)
def test_in_bf16_it_is_no_further_from_the_truth_than_the_whole(name, whole):
    model = built(name)
    loss, _, mine = learned(model, 1, torch.bfloat16)
    whole()
    _, _, truth = learned(model, 1)
    usual, _, theirs = learned(model, 1, torch.bfloat16)
    assert loss == pytest.approx(usual, rel=1e-6)
    assert apart(mine, truth) < 1.05 * apart(theirs, truth)


def test_gradients_that_a_scaled_fp16_loss_keeps_are_kept(whole):
    model = built("untied")
    _, _, found = learned(model, 1, torch.float16, scale=2.0**12)
    whole()
    assert apart(found / 2**12, learned(model, 1)[2]) < 0.01


def test_frozen_output_layers_get_no_gradient(whole):
    model = built("llama")
    LoRAConfig(rank=2).apply(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    total, _, gradient = learned(model, 1)
    assert model.lm_head.weight.grad is None
    whole()
    expected = learned(model, 1)
    assert total == pytest.approx(expected[0], rel=1e-6)
    assert apart(gradient, expected[2]) < 1e-6


def test_nothing_to_learn_from_gives_zero():
    model, given = built("llama"), batch()
    given.targets[:] = IGNORE
    loss = LanguageTask().loss(model, given)
    loss.total.backward()
    assert (loss.total.item(), int(loss.count)) == (0.0, 0)
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["llama", "capped"])
def test_scoring_finds_the_same(name, whole):
    model = built(name).eval()
    with torch.no_grad():
        found = LanguageTask().measure(model, batch()).metrics()
        whole()
        expected = LanguageTask().measure(model, batch()).metrics()
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_a_compiled_graph_holds_it_as_one_operation():
    model = built("llama")
    expected = learned(model, 1)
    nodes = []

    def look(graph, inputs):
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    given = batch()
    graph = torch.compile(lambda: LanguageTask().loss(model, given).total, backend=look, fullgraph=True)
    assert graph().item() == pytest.approx(expected[0], rel=1e-6)
    assert sum("linear_cross_entropy" in node for node in nodes) == 1
    torch._dynamo.reset()
    compiled = torch.compile(LanguageTask().loss, backend="aot_eager", fullgraph=True)
    assert apart(learned(model, 1, run=compiled)[2], expected[2]) < 1e-6


def test_small_vocabularies_and_few_positions_go_through_as_a_whole(monkeypatch):
    monkeypatch.undo()
    with torch.device("meta"):
        large = TransformerConfig(depth=1, heads=4, width=32).build(Tokens(50_257), NextToken(50_257))
    assert output_of(large, 1000) is None
    assert output_of(large, 2048).rows == 2**25 // 50_257
    assert output_of(large, 2048, "cuda").rows == 1024
    assert output_of(built("llama"), 10**7) is None
    assert output_of(torch.nn.Linear(2, 2), 10**9) is None
    whole = 3 * 4 * 4096 * 50_257  # logits, their logarithms and gradients
    assert saved_bytes(large, 32, 128) < whole / 3


CHILD = """
import sys, torch
import torch._dynamo  # which the first use of an operation of ours imports
from llmtool.core.contracts import Batch, NextToken, Tokens
from llmtool.models import chunked
from llmtool.models.transformer import TransformerConfig
from llmtool.tasks.language import LanguageTask
if sys.argv[1] == "whole":
    chunked.LARGE = 10**12
model = TransformerConfig(depth=1, heads=4, width=32).build(Tokens(50_257), NextToken(50_257))
tokens = torch.randint(50_257, (16, 128))
def peak():  # of this program; getrusage's is that of its parent too
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
LanguageTask().loss(model, Batch(tokens, tokens)).total.backward()
print(peak() - before)
"""


def test_a_process_peaks_where_the_account_says(monkeypatch):
    """2048 tokens of a vocabulary of 50,257: 412 MB of logits at once, 134 MB in chunks."""
    monkeypatch.undo()
    whole, chunks = (
        int(subprocess.run([sys.executable, "-c", CHILD, how], capture_output=True, check=True).stdout)
        for how in ("whole", "chunks")
    )
    logits = 4 * 2048 * 50_257
    assert whole > 2.5 * logits
    assert chunks < 1.2 * logits  # with the gradients
    model = TransformerConfig(depth=1, heads=4, width=32).build(Tokens(50_257), NextToken(50_257))
    counted = saved_bytes(model, 16, 128)
    traced = step(model, 16, 128)
    products = 6 * 2048 * 32 * 50_257  # of hidden and weight, and for the gradients of both
    assert products < traced.flops() < 1.1 * products
    assert chunks == pytest.approx(traced.peak, rel=0.3)
    assert chunks == pytest.approx(counted + 4 * sum(p.numel() for p in model.parameters()), rel=0.3)


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_peak_on_cuda_falls_and_the_loss_stays(compiled, monkeypatch):
    monkeypatch.undo()
    with torch.device("cuda"):
        torch.manual_seed(0)
        model = TransformerConfig(depth=2, heads=4, width=256, context=1024).build(
            Tokens(50_257), NextToken(50_257)
        )
    tokens = torch.randint(50_257, (8, 1024), device="cuda")

    def step(large):
        monkeypatch.setattr(chunked, "LARGE", large)
        torch._dynamo.reset()
        run = torch.compile(LanguageTask().loss) if compiled else LanguageTask().loss
        for _ in range(2):  # the first one compiles
            model.zero_grad()
            torch.cuda.reset_peak_memory_stats()
            with torch.autocast("cuda", torch.bfloat16):
                loss = run(model, Batch(tokens, tokens)).total
            loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return torch.cuda.max_memory_allocated(), loss.item(), gradient

    chunks, loss, gradient = step(2**26)
    whole, usual, expected = step(10**12)
    assert loss == pytest.approx(usual, rel=1e-3)
    assert apart(gradient, expected) < 0.02
    assert chunks < 0.6 * whole
