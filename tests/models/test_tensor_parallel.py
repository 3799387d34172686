"""Two ranks that share a model's weights: loss, outputs and gradients of one process, in half the memory."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from llmtool.core.contracts import IGNORE, Batch, Classes, Features, Images, NextToken, Tokens
from llmtool.core.errors import ConfigError
from llmtool.models.adapters import LoRAConfig
from llmtool.models.chunked import output_of
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.encoder import EncoderConfig
from llmtool.models.mlp import MLPConfig
from llmtool.models.recompute import recompute
from llmtool.models.tensor_parallel import FAMILIES, split
from llmtool.models.transformer import TransformerConfig
from llmtool.models.vit import ViTConfig
from llmtool.tasks.language import LanguageTask
from tests.models.parts import share, whole
from tests.models.small import stir
from tests.two import run_ranks

SIZES = {"depth": 2, "heads": 4, "width": 32, "context": 16}
BIASED = {"attention_bias": True, "mlp_bias": True}
SHARED = {"key_value_heads": 2}
CAPS = {"window": 5, "attention_soft_cap": 2.0, "logit_soft_cap": 3.0}
DECODERS = {
    "gpt2": {},
    "gpt2 untied": {"tie_embeddings": False},
    "llama": SHARED | BIASED,
    "llama untied": {"tie_embeddings": False},
    "mistral": SHARED | {"window": 5, "head_width": 6},
    "qwen2": SHARED,
    "qwen3": SHARED | {"head_width": 6},
    "gemma2": SHARED | CAPS,
    "gemma3_text": SHARED | {"window": 5},
    "phi3": SHARED,
    "olmo2": SHARED,
    "smollm3": {"depth": 4},
}
PICTURES = {
    "vit": {},
    "deit": {},
    "dinov2": {"gated": True, "registers": 2},
}
LORA = {
    "lora gpt2": ("gpt2", "all-linear"),
    "lora llama": ("llama", "all-linear"),
    "lora phi3": ("phi3", ["qkv_proj", "down_proj"]),
}


def decoder(name, **keys):
    torch.manual_seed(0)
    architecture = name.split()[0]
    config = TransformerConfig(architecture=architecture, **SIZES | DECODERS[name] | keys)
    return config.build(Tokens(61), NextToken(61))


def encoder(architecture, outputs=3):
    torch.manual_seed(0)
    return EncoderConfig(architecture=architecture, **SIZES).build(Tokens(61, 16), Classes(outputs))


def updated(name, targets):
    model = decoder(name)
    LoRAConfig(rank=3, targets=targets).apply(model)
    return stir(model)


def perceptron(**keys):
    torch.manual_seed(0)
    return MLPConfig(hidden=[8, 7], **keys).build(Features(5), Classes(3))


def seeing(architecture, **keys):
    torch.manual_seed(0)
    sizes = {"patch": 4, "depth": 2, "heads": 2, "width": 16}
    return ViTConfig(architecture=architecture, **sizes, **keys).build(Images(3, 16, 16), Classes(3))


MODELS = {name: lambda name=name: decoder(name) for name in DECODERS}
MODELS |= {name: lambda name=name: encoder(name) for name in ("bert", "distilbert", "roberta", "modernbert")}
MODELS |= {name: lambda name=name, keys=keys: seeing(name, **keys) for name, keys in PICTURES.items()}
MODELS |= {"mlp": perceptron, "mlp norm": lambda: perceptron(normalization="layer")}
MODELS |= {name: lambda given=given: updated(*given) for name, given in LORA.items()}
MODELS["classes"] = lambda: TransformerConfig(architecture="qwen3", **SIZES).build(Tokens(61), Classes(3))


def batch_of(model):
    draw = torch.Generator().manual_seed(2)
    if isinstance(model.inputs, Tokens):
        inputs = torch.randint(61, (3, 16), generator=draw)
        if isinstance(model.outputs, NextToken):
            targets = torch.randint(61, (3, 16), generator=draw)
            targets[0, :3] = IGNORE
            return Batch(inputs, targets, torch.tensor([1] * 7 + [2] * 9).repeat(3, 1))
        return Batch(inputs, torch.tensor([0, 1, 2]), torch.tensor([1] * 11 + [0] * 5).repeat(3, 1))
    shape = (3, 5) if isinstance(model.inputs, Features) else (3, 3, 16, 16)
    return Batch(torch.randn(shape, generator=draw), torch.tensor([0, 1, 2]))


def loss_of(model, batch):
    if isinstance(model.outputs, NextToken):
        return LanguageTask().loss(model, batch).total
    return F.cross_entropy(model(*batch.arguments), batch.targets, reduction="sum")


def distance(found, expected, least=1e-12):
    """The largest difference, as a share of the largest number, of `least` where that is smaller."""
    return float((found.detach() - expected.detach()).abs().max() / max(float(expected.abs().max()), least))


def mesh_of(tensor, context=1):
    return init_device_mesh("cpu", (1, context, tensor), mesh_dim_names=("data", "context", "tensor"))


def beside_one_process(name, mesh):
    """What two ranks say, beside one: loss, outputs and gradients, and what each keeps."""
    torch.manual_seed(0)
    alone = MODELS[name]().train()
    model = copy.deepcopy(alone)
    split(model, mesh)
    names = [key for key, _ in alone.named_parameters()]
    assert [key for key, _ in model.named_parameters()] == names
    weights = dict(alone.named_parameters())
    kept = all(
        torch.equal(whole(model, key, p.detach()), weights[key]) for key, p in model.named_parameters()
    )
    again = all(
        torch.equal(share(model, key, weights[key].detach(), p).to_local(), p.to_local())
        for key, p in model.named_parameters()
    )
    batch = batch_of(alone)
    found = {"weights": kept, "shares": again, "tied": False, "gradients": {}}
    if "lm_head" in alone._modules:
        found["tied"] = len(list(alone.parameters())) < len(
            list(alone.named_parameters(remove_duplicate=False))
        )
    with torch.no_grad():
        found["outputs"] = distance(model(*batch.arguments), alone(*batch.arguments))
    expected = loss_of(alone, batch)
    expected.backward()
    # some have none but rounding: scores are the same with any bias of the keys
    least = 1e-2 * max(float(p.grad.abs().max()) for p in alone.parameters() if p.grad is not None)
    for blocks in (0, len(model.blocks)):
        recompute(model, blocks)
        model.zero_grad()
        total = loss_of(model, batch)
        total.backward()
        found["loss"] = max(found.get("loss", 0), distance(total, expected))
        for key, parameter in model.named_parameters():
            wanted = weights[key].grad
            assert (parameter.grad is None) == (wanted is None), key
            if wanted is not None:
                far = distance(whole(model, key, parameter.grad), wanted, least)
                found["gradients"][key] = max(found["gradients"].get(key, 0), far)
    found["numbers"] = sum(p.to_local().untyped_storage().nbytes() // 4 for p in model.parameters())
    found["all"] = sum(p.numel() for p in alone.parameters())
    return found


def refusals(mesh):
    """What is said of models that cannot be split."""
    odd = TransformerConfig(depth=1, heads=3, width=12, context=16).build(Tokens(61), NextToken(61))
    shared = decoder("llama", key_value_heads=1)
    pictures = ConvNetConfig(stem_width=4, widths=[8], depths=[1]).build(Images(3, 16, 16), Classes(3))
    directed = decoder("llama")
    LoRAConfig(rank=2, dora=True).apply(directed)
    said = {}
    for name, model in {"heads": odd, "shared": shared, "pictures": pictures, "dora": directed}.items():
        with pytest.raises(ConfigError, match=r"^parallel\.tensor: ") as error:
            split(model, mesh)
        said[name] = str(error.value)
    return said


def after_steps(mesh):
    """How far weights are from those of one process after steps of an ordinary optimizer, clipped.

    eps: without it, Adam would make much of what the gradients have in rounding alone.
    """
    alone = decoder("phi3")
    model = copy.deepcopy(alone)
    split(model, mesh)
    batch = batch_of(alone)
    for each in (alone, model):
        optimizer = torch.optim.AdamW(each.parameters(), lr=1e-2, eps=1e-3, foreach=True)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(each, batch).backward()
            torch.nn.utils.clip_grad_norm_(each.parameters(), 1.0)
            optimizer.step()
    weights = dict(alone.named_parameters())
    return max(distance(whole(model, key, p.detach()), weights[key]) for key, p in model.named_parameters())


def in_chunks(mesh):
    """The same with a vocabulary whose logits are made in chunks, in which some targets are not scored."""
    torch.manual_seed(0)
    sizes = SIZES | {"depth": 1, "logit_soft_cap": 3.0}
    alone = TransformerConfig(architecture="gemma2", **sizes).build(Tokens(4099), NextToken(4099))
    model = copy.deepcopy(alone)
    split(model, mesh)
    inputs = torch.randint(4099, (3, 16))
    targets = torch.randint(4099, (3, 16)).index_fill(1, torch.tensor([2, 3]), IGNORE)
    found = []
    for each in (alone, model):
        output = replace(output_of(each, 10**6), rows=7)
        output.cross_entropy(each.hidden(inputs).flatten(0, 1), targets.flatten()).backward()
        nats, first = output.judged(each.hidden(inputs).flatten(0, 1), targets.flatten())
        found.append((nats, first, {key: whole(model, key, p.grad) for key, p in each.named_parameters()}))
    assert output.weight.shape == (2050 - mesh["tensor"].get_local_rank(), 32)
    (nats, first, gradients), (again, choice, others) = found
    assert torch.equal(first, choice)
    return distance(again, nats), max(distance(others[key], each) for key, each in gradients.items())


class Moved(TorchDispatchMode):
    """Bytes that a rank of N receives: (N - 1) / N of what is gathered or scattered, twice that of a sum."""

    def __init__(self, ranks):
        super().__init__()
        self.ranks, self.bytes = ranks, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **kwargs or {})
        name = str(function).split(".")[1]
        if name in SHARES:
            both = max(each.numel() * each.element_size() for each in (args[0], found))
            self.bytes += SHARES[name] * (self.ranks - 1) * both // self.ranks
        return found


SHARES = {"all_reduce": 2, "all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}


def moved(mesh):
    """Bytes of steps with and without blocks that are made again, and what the module's table says."""
    model = decoder("llama untied").train()
    config, batch, found = model.config, batch_of(model), []
    split(model, mesh)
    tokens, width = batch.inputs.numel(), config.width
    for again in (0, 1, 2):
        recompute(model, again)
        with Moved(2) as seen:
            loss_of(model, batch).backward()
        block, output = tokens * width * 4, tokens * (62 + 2 * width) * 4  # 61 tokens: 31 of each rank
        said = (8 * config.depth + 2 * again + 2) * block // 2 + output // 2
        found.append((seen.bytes, said))
    return found


def work():
    mesh = mesh_of(2)
    found = {name: beside_one_process(name, mesh) for name in MODELS}
    others = {
        "refusals": refusals(mesh),
        "steps": after_steps(mesh),
        "chunks": in_chunks(mesh),
        "moved": moved(mesh),
    }
    return found | others


@pytest.fixture(scope="module")
def told():
    return run_ranks(work, 2)


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_say_what_one_process_says(told, name):
    for found in (rank[name] for rank in told):
        assert found["weights"]
        assert found["shares"]
        assert found["outputs"] < 1e-5
        assert found["loss"] < 1e-5
        assert found["gradients"]
        assert max(found["gradients"].values()) < 1e-5, found["gradients"]
        assert found["numbers"] < 0.75 * found["all"]


@pytest.mark.parametrize("name", [name for name in DECODERS if "untied" not in name])
def test_output_layers_go_on_sharing_the_embedding(told, name):
    assert all(rank[name]["tied"] for rank in told)


def test_optimizers_and_clipping_take_the_steps_of_one_process(told):
    assert all(rank["steps"] < 1e-5 for rank in told)


def test_logits_in_chunks_are_of_a_part_of_the_vocabulary(told):
    assert all(max(rank["chunks"]) < 1e-5 for rank in told)


def test_as_many_bytes_travel_as_the_table_says(told):
    for found, said in told[0]["moved"]:
        assert found == said


def test_what_cannot_be_split_is_refused(told):
    said = told[0]["refusals"]
    assert "2 does not divide model.heads 3" in said["heads"]
    assert "2 does not divide model.key_value_heads 1" in said["shared"]
    assert "no plan for model.family convnet (encoder, mlp, transformer, vit have one)" in said["pictures"]
    assert "finetune.method.dora" in said["dora"]


def test_the_families_named_are_those_with_a_plan():
    models = {
        "transformer": decoder("llama"),
        "encoder": encoder("bert"),
        "mlp": perceptron(),
        "vit": seeing("vit"),
    }
    assert set(FAMILIES) == set(models)
    assert all(model.plan for model in models.values())
