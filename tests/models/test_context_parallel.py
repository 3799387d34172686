"""Two ranks that share the tokens of each row: loss and gradients of one process, once both are summed."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.attention.flex_attention import create_mask

from llmtool.core.contracts import IGNORE, Batch, Classes, NextToken, Tokens
from llmtool.core.errors import ConfigError
from llmtool.models.context_parallel import Shared, cut, refuse_uneven, share_context
from llmtool.models.encoder import EncoderConfig
from llmtool.models.flex import BLOCK, block_mask
from llmtool.models.layers import document_mask
from llmtool.models.recompute import recompute
from llmtool.models.tensor_parallel import split
from llmtool.models.transformer import TransformerConfig
from llmtool.tasks.language import LanguageTask
from tests.models.parts import share, whole
from tests.models.test_tensor_parallel import DECODERS, SIZES, Moved, distance, mesh_of
from tests.two import run_ranks

LONG = {"kind": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_context": 10}
ROWS = DECODERS | {"phi3 long": {"rope_scaling": LONG}}
PACKED = ("packed", "plain")


def decoder(name):
    torch.manual_seed(0)
    config = TransformerConfig(architecture=name.split()[0], **SIZES | ROWS[name])
    return config.build(Tokens(61), NextToken(61)).train()


def batch_of(packed):
    draw = torch.Generator().manual_seed(2)
    inputs = torch.randint(61, (3, 16), generator=draw)
    targets = torch.randint(61, (3, 16), generator=draw)
    targets[0, :3] = IGNORE
    segments = torch.tensor([[1] * 16, [1] * 3 + [2] * 10 + [3] * 3, [1] * 5 + [2] * 6 + [0] * 5])
    return Batch(inputs, targets, segments.int() if packed else None)


def summed(x):
    x = x.clone()
    dist.all_reduce(x)
    return x


def beside_one_process(name, mesh, packed):
    """Distances from one process: of the loss, of the gradients, and of outputs in eval mode."""
    alone, batch = decoder(name), batch_of(packed)
    model = copy.deepcopy(alone)
    share_context(model, mesh)
    expected = LanguageTask().loss(alone, batch)
    expected.total.backward()
    found = {"loss": 0.0, "gradients": {}}
    for blocks in (0, 2):
        recompute(model, blocks)
        model.zero_grad()
        loss = LanguageTask().loss(model, cut(batch, mesh))
        loss.total.backward()
        assert summed(loss.count) == expected.count
        found["loss"] = max(found["loss"], distance(summed(loss.total.detach()), expected.total))
        for (key, parameter), wanted in zip(model.named_parameters(), alone.parameters(), strict=True):
            far = distance(summed(parameter.grad), wanted.grad)
            found["gradients"][key] = max(found["gradients"].get(key, 0.0), far)
    with torch.no_grad():
        found["whole"] = torch.equal(model.eval()(*batch.arguments), alone.eval()(*batch.arguments))
    return found


def with_tensor_parallel(mesh, name="qwen3"):
    """The same with both kinds on four ranks: gradients are summed over the context alone."""
    alone, batch = decoder(name), batch_of(True)
    model = copy.deepcopy(alone)
    split(model, mesh)
    share_context(model, mesh)
    expected = LanguageTask().loss(alone, batch).total
    expected.backward()
    total = LanguageTask().loss(model, cut(batch, mesh)).total
    total.backward()
    group = mesh["context"].get_group()

    def over(x):
        dist.all_reduce(x, group=group)
        return x

    far = [distance(over(total.detach().clone()), expected)]
    for (key, parameter), wanted in zip(model.named_parameters(), alone.parameters(), strict=True):
        far.append(distance(over(whole(model, key, parameter.grad)), wanted.grad))
    return max(far)


def refusals(mesh):
    """What is said of models and rows that cannot be shared."""
    reading = EncoderConfig(depth=1, heads=2, width=8, context=16).build(Tokens(61, 16), Classes(3))
    classes = TransformerConfig(**SIZES).build(Tokens(61), Classes(3))
    said = []
    for model in (reading, classes):
        with pytest.raises(ConfigError, match=r"^parallel\.context: ") as error:
            share_context(model, mesh)
        said.append(str(error.value))
    odd = Batch(torch.zeros(1, 6, dtype=torch.int64), torch.zeros(1, 6, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"^parallel\.context: ") as error:
        cut(odd, mesh)
    return [*said, str(error.value)]


def moved(mesh):
    """Bytes of steps with and without blocks that are made again, and what the module's table says."""
    model, batch, found = decoder("llama"), batch_of(True), []
    share_context(model, mesh)
    config, tokens = model.config, batch.inputs.numel()
    for again in (0, 1, 2):
        recompute(model, again)
        with Moved(2) as seen:
            LanguageTask().loss(model, cut(batch, mesh)).total.backward()
        keys = tokens * config.key_value_heads * config.head_width * 4
        found.append((seen.bytes, (4 * config.depth + 2 * again) * keys // 2 + 4 * tokens // 2))
    return found


def work():
    mesh = mesh_of(1, context=2)
    found = {
        (name, kind): beside_one_process(name, mesh, kind == "packed") for name in ROWS for kind in PACKED
    }
    return found | {"refusals": refusals(mesh), "moved": moved(mesh)}


@pytest.fixture(scope="module")
def told():
    return run_ranks(work, 2)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", ROWS)
def test_two_ranks_find_what_one_process_finds(told, name, kind):
    for found in (rank[name, kind] for rank in told):
        assert found["loss"] < 1e-5
        assert max(found["gradients"].values()) < 1e-5, found["gradients"]
        assert found["whole"]


def test_as_many_bytes_travel_as_the_table_says(told):
    for found, said in told[0]["moved"]:
        assert found == said


def test_what_cannot_be_shared_is_refused(told):
    reading, classes, odd = told[0]["refusals"]
    assert "is for model.family transformer with task.kind language" in reading
    assert classes == reading
    assert "rows of 6 tokens do not divide into 4 chunks" in odd
    refuse_uneven(6, 1)


def with_fsdp(name="phi3"):
    """Gradients of parts that FSDP cuts again among ranks with other rows."""
    mesh = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("data", "context", "tensor"))
    alone, batch, row = decoder(name), batch_of(True), mesh["data"].get_local_rank()
    model = copy.deepcopy(alone)
    split(model, mesh)
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh["data"])
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other
    rows = lambda where: Batch(batch.inputs[where], batch.targets[where], batch.segments[where])  # noqa: E731
    LanguageTask().loss(alone, rows(slice(0, 2))).total.backward()
    LanguageTask().loss(model, rows(slice(row, row + 1))).total.backward()
    parts = dict(model.named_parameters())
    far = [distance(whole(model, key, parts[key].grad), p.grad) for key, p in alone.named_parameters()]
    for key, p in alone.named_parameters():
        mine = share(model, key, p.detach(), parts[key]).to_local()
        assert torch.equal(mine, parts[key].to_local())
    return max(far)


def four_ranks():
    return with_tensor_parallel(mesh_of(2, context=2)), with_fsdp()


def test_tensor_parallel_with_context_parallel_and_with_fsdp():
    assert all(max(far) < 1e-5 for far in run_ranks(four_ranks, 4))


@pytest.mark.parametrize("window", [None, 100, 200])
@pytest.mark.parametrize("kind", PACKED)
def test_blocks_of_a_part_are_those_of_the_row(monkeypatch, kind, window):
    tokens, ranks = 8 * BLOCK, 2
    segments = None
    if kind == "packed":
        segments = torch.ones(2, tokens, dtype=torch.int32)
        segments[0, 150:] = 2
        segments[0, 700:] = 3
        segments[1, 512:] = 0
    expected = document_mask(torch.ones(1, tokens) if segments is None else segments)
    if window is not None:
        at = torch.arange(tokens)
        expected = expected & (at[:, None] - at < window)
    monkeypatch.setattr(Shared, "_whole", lambda self, x, dim: segments)
    for rank in range(ranks):
        shared = Shared("", ranks, rank)
        inputs = torch.zeros(2, tokens // ranks, dtype=torch.int64)
        mine = None if segments is None else inputs
        sight = shared.look(inputs, mine, by_blocks=True)
        mask = sight.visible if window is None else sight.window(window)
        dense = shared.look(inputs, mine, by_blocks=False)
        wanted = expected[:, :, sight.places]
        assert torch.equal(wanted, dense.visible if window is None else dense.window(window))
        rows = 1 if segments is None else 2
        seen = create_mask(mask.mask_mod, rows, 1, tokens // ranks, tokens, device="cpu")
        filling = torch.zeros(1) if segments is None else segments[:, None, sight.places, None] == 0
        assert torch.equal(seen & (filling == 0), wanted & (filling == 0))
        worked = mask.to_dense().bool().repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
        assert not bool((wanted & (filling == 0) & ~worked).any())
        whole_row = block_mask(segments, tokens, inputs.device, window)
        assert torch.equal(mask.to_dense(), whole_row.to_dense()[:, :, sight.places[::BLOCK] // BLOCK])
