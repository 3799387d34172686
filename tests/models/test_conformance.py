"""What holds for every model family; a new member of the union is tested here and needs its cases only."""

import itertools
import typing

import pytest
import torch
from pydantic import TypeAdapter

from llmtool.core.contracts import Batch, Classes, Features, Images, NextToken, Tokens, Values
from llmtool.core.errors import ConfigError
from llmtool.models import ModelConfig, pretrained
from llmtool.models.accounting import account
from llmtool.models.bag import BagConfig
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.convnext import ConvNeXtConfig
from llmtool.models.encoder import EncoderConfig
from llmtool.models.mlp import MLPConfig
from llmtool.models.tabm import TabMConfig
from llmtool.models.transformer import TransformerConfig
from llmtool.models.vit import ViTConfig
from llmtool.tasks.classification import ClassificationConfig

MEMBERS = typing.get_args(typing.get_args(ModelConfig)[0])
ADAPTER = TypeAdapter(ModelConfig)
TOKENS = (Tokens(17), NextToken(17))
ROWS = {"family": "mlp", "hidden": [8]}
TABM = {"family": "tabm", "members": 4, "embedding": 3, "hidden": [8, 6]}
SMALL = {"family": "transformer", "depth": 2, "heads": 4, "width": 16, "context": 12}
FULL, NEAR = "full_attention", "sliding_attention"
CAPS = {"attention_soft_cap": 2.0, "logit_soft_cap": 3.0, "query_scale": 7, "attention_bias": True}
YARN = {"kind": "yarn", "factor": 4.0, "original_context": 6}
LONG = {"kind": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0], "original_context": 6}
PICTURES = Images(3, 16, 20)
PATCHES = {"family": "vit", "depth": 2, "heads": 2, "width": 16, "patch": 4}
DINO = PATCHES | {"architecture": "dinov2"}
RESIDUAL = {"family": "convnet", "stem_width": 4, "widths": [8, 12], "depths": [1, 2]}

BAG = {"family": "bag", "buckets": 40, "width": 6}
TEXTS = {"family": "encoder", "depth": 2, "heads": 4, "width": 16, "context": 12}

CASES = {
    "mlp": ({"family": "mlp", "hidden": [8, 6]}, Features(5), Classes(3)),
    "mlp linear": ({"family": "mlp", "hidden": []}, Features(5), Values(2)),
    "mlp norm, gelu": (ROWS | {"normalization": "layer", "activation": "gelu"}, Features(5), Classes(2)),
    "mlp dropout, silu": (ROWS | {"dropout": 0.3, "activation": "silu"}, Features(1), Values(1)),
    "tabm": (TABM, Features(6, (3, 1, 2)), Classes(3)),
    "tabm one column a number": (TABM | {"dropout": 0.0, "activation": "silu"}, Features(5), Values(2)),
    "tabm without embeddings": (TABM | {"embedding": 0, "hidden": [9]}, Features(5, (2, 3)), Classes(2)),
    "bag": ({"family": "bag", "ngrams": 3, "buckets": 40}, Tokens(17), Classes(3)),
    "bag of single tokens": ({"family": "bag", "ngrams": 1}, Tokens(17), Values(2)),
    "bag vectors": (BAG | {"ngrams": 2}, Tokens(17), Classes(2)),
    "bert": (TEXTS | {"dropout": 0.1}, Tokens(17), Classes(3)),
    "bert mean, relu": (
        TEXTS | {"pooling": "mean", "activation": "relu", "token_types": 0},
        Tokens(17),
        Values(2),
    ),
    "distilbert": (TEXTS | {"architecture": "distilbert", "activation": "gelu_tanh"}, Tokens(17), Classes(2)),
    "roberta": (TEXTS | {"architecture": "roberta", "feed_forward": 10}, Tokens(17), Classes(2)),
    "modernbert": (TEXTS | {"architecture": "modernbert", "window": 4, "depth": 4}, Tokens(17), Classes(2)),
    "vit": (PATCHES | {"dropout": 0.1}, PICTURES, Classes(3)),
    "deit": (PATCHES | {"architecture": "deit", "feed_forward": 24}, PICTURES, Values(2)),
    "dinov2": (DINO | {"drop_path": 0.2}, PICTURES, Classes(3)),
    "dinov2 giant": (DINO | {"gated": True, "registers": 2, "layer_scale": 0.5}, PICTURES, Classes(3)),
    "resnet": (RESIDUAL, PICTURES, Classes(3)),
    "resnet bottleneck": (RESIDUAL | {"block": "bottleneck"}, PICTURES, Values(1)),
    "resnet cifar": (RESIDUAL | {"stem": "small", "shortcut": "padding"}, Images(1, 9, 8), Classes(3)),
    "convnext": (
        {"family": "convnext", "widths": [4, 8], "depths": [1, 2], "layer_scale": 0.1, "drop_path": 0.1},
        PICTURES,
        Classes(3),
    ),
    "convnext plain": (
        {"family": "convnext", "widths": [4], "depths": [1], "layer_scale": 0, "patch": 2},
        PICTURES,
        Values(2),
    ),
    "gpt2": (SMALL | {"architecture": "gpt2", "dropout": 0.1}, *TOKENS),
    "gpt2 untied": (SMALL | {"architecture": "gpt2", "tie_embeddings": False, "feed_forward": 10}, *TOKENS),
    "gpt2 classes": (SMALL | {"architecture": "gpt2", "dropout": 0.1}, Tokens(17), Classes(3)),
    "qwen3 values": (SMALL | {"architecture": "qwen3", "pooling": "mean"}, Tokens(17), Values(2)),
    "llama": (SMALL | {"architecture": "llama", "dropout": 0.1}, *TOKENS),
    "llama shared keys": (SMALL | {"key_value_heads": 2, "tie_embeddings": False}, *TOKENS),
    "llama biases": (SMALL | {"attention_bias": True, "mlp_bias": True, "rope_scaling": YARN}, *TOKENS),
    "mistral": (SMALL | {"architecture": "mistral", "window": 5, "head_width": 6}, *TOKENS),
    "qwen2": (SMALL | {"architecture": "qwen2", "window": 3, "layer_types": [FULL, NEAR]}, *TOKENS),
    "qwen3": (SMALL | {"architecture": "qwen3", "key_value_heads": 1, "head_width": 6}, *TOKENS),
    "gemma2": (SMALL | {"architecture": "gemma2", "window": 5, "key_value_heads": 2} | CAPS, *TOKENS),
    "gemma3_text": (SMALL | {"architecture": "gemma3_text", "window": 5, "depth": 6}, *TOKENS),
    "phi3": (SMALL | {"architecture": "phi3", "rotary_share": 0.5, "key_value_heads": 2}, *TOKENS),
    "phi3 long": (SMALL | {"architecture": "phi3", "window": 9, "rope_scaling": LONG}, *TOKENS),
    "olmo2": (SMALL | {"architecture": "olmo2", "key_value_heads": 2}, *TOKENS),
    "smollm3": (SMALL | {"architecture": "smollm3", "depth": 4, "window": 5}, *TOKENS),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
TOKEN_CASES = {name: case for name, case in CASES.items() if isinstance(case[2], NextToken)}
token_cases = pytest.mark.parametrize("case", TOKEN_CASES.values(), ids=TOKEN_CASES)


def build(case, seed=0):
    keys, inputs, outputs = case
    torch.manual_seed(seed)
    return ADAPTER.validate_python(keys).build(inputs, outputs)


def some_inputs(spec, rows=3, length=12):
    generator = torch.Generator().manual_seed(5)
    if isinstance(spec, Features):
        return torch.randn(rows, spec.width, generator=generator)
    if isinstance(spec, Images):
        return torch.randn(rows, spec.channels, spec.height, spec.width, generator=generator)
    return torch.randint(spec.vocabulary, (rows, length), generator=generator)


def test_every_family_and_option_has_a_case():
    assert {keys["family"] for keys, _, _ in CASES.values()} == {
        m.model_fields["family"].default for m in MEMBERS
    }
    used = [keys.get("architecture", "bert") for keys, _, _ in CASES.values()] + ["vit"]
    for member in (TransformerConfig, EncoderConfig, ViTConfig):
        assert set(typing.get_args(member.model_fields["architecture"].annotation)) <= set(used)
    for member in MEMBERS:
        assert member.suits
        assert member.accepts
        assert member.gives


@every_case
def test_output_shape(case):
    _, inputs, outputs = case
    result = build(case)(some_inputs(inputs))
    assert result.shape == ((3, 12, 17) if isinstance(outputs, NextToken) else (3, outputs.n))
    assert result.dtype == torch.float32
    assert bool(torch.isfinite(result).all())


@every_case
def test_every_parameter_gets_a_gradient(case):
    model = build(case)
    model(some_inputs(case[1], rows=32)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


@every_case
def test_the_same_seed_builds_the_same_model(case):
    first, again, other = build(case), build(case), build(case, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@every_case
def test_builds_on_the_meta_device(case):
    with torch.device("meta"):
        model = build(case)
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in build(case).named_parameters()
    }
    assert all(p.is_meta for p in model.parameters())


@every_case
def test_a_config_survives_being_written_down(case):
    config = ADAPTER.validate_python(case[0])
    assert ADAPTER.validate_python(config.model_dump(mode="json", by_alias=True)) == config


@every_case
def test_save_and_load_give_the_same_outputs(case, tmp_path):
    model = build(case).eval()
    pretrained.save(model, tmp_path)
    inputs = some_inputs(case[1])
    loaded = pretrained.load(tmp_path).eval()
    assert loaded.config == model.config
    assert torch.equal(loaded(inputs), model(inputs))


@every_case
def test_counted_parameters_and_flops_are_the_closed_form(case):
    _, inputs, outputs = case
    model = build(case)
    figures = account(model, rows=4, tokens=12 if isinstance(inputs, Tokens) else 1)
    parameters, forward, backward = closed_form(model.config, inputs, outputs, tokens=12)
    assert figures.parameters == figures.trainable == sum(p.numel() for p in model.parameters()) == parameters
    assert figures.flops_forward == forward
    assert figures.flops_backward == backward
    assert model.flops(12) == forward + backward


def closed_form(config, inputs, outputs, tokens):
    """Parameters, and FLOPs of a row forward and backward: 2 a weight and token, and attention."""
    if isinstance(config, MLPConfig):
        widths = [inputs.width, *config.hidden, outputs.n]
        matrices = [a * b for a, b in itertools.pairwise(widths)]
        norms = 2 * sum(config.hidden) if config.normalization == "layer" else 0
        # the first layer's inputs need no gradient
        return sum(matrices) + sum(widths[1:]) + norms, 2 * sum(matrices), 4 * sum(matrices) - 2 * matrices[0]
    if isinstance(config, TabMConfig):
        return closed_form_of_ensemble(config, inputs, outputs.n)
    if isinstance(config, BagConfig):
        rows, n = inputs.vocabulary + (config.buckets if config.ngrams > 1 else 0), outputs.n
        if config.width is None:  # sums, no matrix products
            return rows * n + n, 0, 0
        return rows * config.width + config.width * n + n, 2 * config.width * n, 4 * config.width * n
    if isinstance(config, EncoderConfig):
        return closed_form_of_encoder(config, inputs.vocabulary, outputs.n, tokens)
    if isinstance(inputs, Images):
        return closed_form_of_pictures(config, inputs, outputs.n)
    d, f, v = config.width, config.feed_forward, inputs.vocabulary
    h, kv = config.heads * config.head_width, config.key_value_heads * config.head_width
    if config.architecture == "gpt2":
        matrices = 4 * d * d + 2 * d * f
        vectors = 4 * d + (3 * d + d) + (f + d)
        outside = v * d + config.context * d + 2 * d
    else:
        matrices = d * (h + 2 * kv) + h * d + 3 * d * f
        vectors = {"gemma2": 4, "gemma3_text": 4}.get(config.architecture, 2) * d  # norms
        normalised = {"qwen3": 2 * config.head_width, "gemma3_text": 2 * config.head_width, "olmo2": h + kv}
        vectors += normalised.get(config.architecture, 0)
        vectors += (h + 2 * kv) * (config.attention_bias or config.architecture == "qwen2")
        vectors += d * config.attention_bias + (2 * f + d) * config.mlp_bias
        outside = v * d + d
    parameters = config.depth * (matrices + vectors) + outside
    if isinstance(outputs, NextToken):
        parameters, head = parameters + (0 if config.tie_embeddings else v * d), tokens * d * v
    else:
        parameters, head = parameters + d * outputs.n, d * outputs.n
    attention = 2 * 2 * tokens * tokens * h  # scores and their weighted sum
    forward = config.depth * (2 * tokens * matrices + attention) + 2 * head
    return parameters, forward, 2 * forward


def closed_form_of_ensemble(config, inputs, n):
    k, d, columns = config.members, config.embedding, len(inputs.columns) or inputs.width
    widths = [columns * d or inputs.width, *config.hidden]
    shared = [a * b for a, b in itertools.pairwise(widths)]
    own = sum(a + 2 * b for a, b in itertools.pairwise(widths))  # both factors and the bias
    head = widths[-1] * n
    embedding = inputs.width * columns * d  # a product with the zeros between the columns
    parameters = (inputs.width + columns) * d + sum(shared) + k * (own + head + n)
    forward = 2 * embedding + 2 * k * (sum(shared) + head)
    return parameters, forward, 2 * embedding + 4 * k * (sum(shared) + head)


def closed_form_of_encoder(config, v, n, tokens):
    d, f = config.width, config.feed_forward
    modern, roberta = config.architecture == "modernbert", config.architecture == "roberta"
    matrices = 4 * d * d + (3 if modern else 2) * d * f
    vectors = 2 * d if modern else 4 * d + (f + d) + 2 * 2 * d  # ModernBERT has norms' weights alone
    embeddings = v * d + (d if modern else 2 * d)
    if not modern:
        embeddings += (config.context + 2 * roberta + config.token_types) * d
    head = d * d + d + d * n + n
    # without its first block's norm, with a last one; its head has a norm in place of a bias
    parameters = config.depth * (matrices + vectors) + embeddings + head
    attention = 2 * 2 * tokens * tokens * d
    forward = config.depth * (2 * tokens * matrices + attention) + 2 * (d * d + d * n)
    return parameters, forward, 2 * forward


def closed_form_of_pictures(config, inputs, n):
    """The same for PICTURES of 16 x 20 pixels, or 9 x 8; sizes after each stride are written out."""
    c = inputs.channels
    if isinstance(config, ViTConfig):
        d, f, patches = config.width, config.inner, 4 * 5
        beside = (2 if config.architecture == "deit" else 1) + config.registers
        matrices = 4 * d * d + (3 if config.gated else 2) * d * f
        vectors = 4 * d + ((2 if config.gated else 1) * f + d) + 4 * d + (2 * d if config.layer_scale else 0)
        features = 2 * d if config.architecture == "dinov2" else d
        first = c * 4 * 4 * d
        embedding = first + d + beside * d + (patches + beside - config.registers) * d
        parameters = config.depth * (matrices + vectors) + embedding + 2 * d + features * n + n
        length = patches + beside
        forward = config.depth * (2 * length * matrices + 4 * length * length * d) + 2 * features * n
        return parameters, forward + 2 * patches * first, 2 * forward + 2 * patches * first
    if isinstance(config, ConvNeXtConfig):
        pixels = [(4 * 5), (2 * 2)] if config.patch == 4 else [8 * 10]
        first = c * config.patch**2 * config.widths[0]
        parameters, forward, before = first + 3 * config.widths[0], 0, config.widths[0]
        for at, (d, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            if at:
                parameters += 2 * before + 4 * before * d + d
                forward += 2 * pixels[at] * 4 * before * d
            block = 49 * d + 8 * d * d
            parameters += depth * (block + d + 2 * d + 4 * d + d + (d if config.layer_scale else 0))
            forward += depth * 2 * pixels[at] * block
            before = d
        parameters, forward = parameters + 2 * before + before * n + n, forward + 2 * before * n
        return parameters, forward + 2 * pixels[0] * first, 2 * forward + 2 * pixels[0] * first
    assert isinstance(config, ConvNetConfig)
    small = config.stem == "small"
    first, start = (9 * c * 4, 9 * 8) if small else (49 * c * 4, 8 * 10)
    pixels = [9 * 8, 5 * 4] if small else [4 * 5, 2 * 3]
    project = 0 if small else 1

    def block(before, after):
        if config.block == "basic":
            return [(9 * before * after, after), (9 * after * after, after)]
        inner = after // 4
        return [(before * inner, inner), (9 * inner * inner, inner), (inner * after, after)]

    one, two, three = block(4, 8), block(8, 12), block(12, 12)
    weights = [[*one, *[(4 * 8, 8)] * project], [*two, *[(8 * 12, 12)] * project, *three]]
    parameters = first + 2 * 4 + sum(w + 2 * d for stage in weights for w, d in stage) + 12 * n + n
    forward = sum(2 * p * w for p, stage in zip(pixels, weights, strict=True) for w, _ in stage) + 2 * 12 * n
    if config.block == "bottleneck":  # its first convolution is before the stride
        forward += 2 * (pixels[0] - pixels[1]) * two[0][0]
    return parameters, forward + 2 * start * first, 2 * forward + 2 * start * first


@token_cases
@torch.no_grad()
def test_no_token_sees_the_future(case):
    model = build(case).eval()
    inputs = some_inputs(case[1])
    changed = inputs.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 17
    for segments in (None, torch.ones(3, 12, dtype=torch.int32)):
        before, after = model(inputs, segments), model(changed, segments)
        torch.testing.assert_close(before[:, :7], after[:, :7], atol=1e-6, rtol=0)
        assert not torch.allclose(before[:, 7:], after[:, 7:])


@token_cases
@torch.no_grad()
def test_packed_documents_are_as_if_alone(case):
    model = build(case).eval()
    inputs = some_inputs(case[1], rows=2)
    segments = torch.tensor([[1] * 5 + [2] * 4 + [3] * 2 + [0], [1] * 12], dtype=torch.int32)
    packed = model(inputs, segments)
    assert bool(torch.isfinite(packed).all())
    for row, begin, end in ((0, 0, 5), (0, 5, 9), (0, 9, 11), (1, 0, 12)):
        alone = model(inputs[row : row + 1, begin:end])
        torch.testing.assert_close(packed[row : row + 1, begin:end], alone, atol=1e-5, rtol=0)
    other = inputs.clone()
    other[0, :5] = (other[0, :5] + 1) % 17
    assert torch.equal(model(other, segments)[0, 5:], packed[0, 5:])


COMPILED = (
    "mlp",
    "tabm",
    "bag",
    "vit",
    "resnet",
    "convnext",
    "gpt2",
    "llama shared keys",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3 long",
    "smollm3",
    "bert",
    "modernbert",
)


@pytest.mark.parametrize("case", [CASES[name] for name in COMPILED])
def test_one_graph_for_the_compiler(case):
    model = build(case)
    model.eval()
    torch.compiler.reset()
    inputs = some_inputs(case[1])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(inputs), model(inputs))
    if isinstance(case[1], Tokens):
        segments = torch.tensor([[1] * 5 + [2] * 7] * 3, dtype=torch.int32)
        torch.testing.assert_close(compiled(inputs, segments), model(inputs, segments))


@every_case
def test_bfloat16_autocast_stays_near(case):
    model = build(case).eval()
    inputs = some_inputs(case[1])
    with torch.autocast("cpu", torch.bfloat16):
        lower = model(inputs)
    torch.testing.assert_close(lower.float(), model(inputs), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__name__)
def test_unsuitable_specs_are_refused_in_one_line(member):
    wrong = (Features(3) if member.accepts[0] is not Features else Tokens(9), Classes(2))
    with pytest.raises(ConfigError, match="takes"):
        member().build(*wrong)
    inputs = Images(3, 32, 32) if Images in member.accepts else member.accepts[0](9)
    outputs = NextToken(8)  # of no family that reads these inputs: it is not their vocabulary
    with pytest.raises(ConfigError, match=r"model\.family"):
        member().build(inputs, outputs)


@pytest.mark.parametrize("name", ["vit", "dinov2", "resnet", "resnet cifar", "convnext"])
def test_pictures_are_learned_by_heart(name):
    keys, inputs, outputs = CASES[name]
    model = build((keys | {"drop_path": 0.0} if "drop_path" in keys else keys, inputs, outputs))
    task = ClassificationConfig().build({"targets": {"kind": "classes", "names": ["a", "b", "c"]}})
    batch = Batch(some_inputs(inputs, rows=12), torch.arange(12) % 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = task.loss(model.train(), batch)
        losses.append(float(loss.total.detach() / loss.count))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert losses[0] > 0.9
    assert losses[-1] < 0.3
    with torch.no_grad():
        assert task.measure(model.eval(), batch).metrics()["accuracy"] == 1.0


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
@pytest.mark.parametrize("name", ["mlp", "tabm", "bag", "vit", "resnet", "convnext", "gpt2"])
def test_the_training_step_is_one_graph(name):
    """Nothing in a model makes the compiler give up and go on in Python."""
    model, inputs = build(CASES[name]).train(), some_inputs(CASES[name][1])
    torch._dynamo.reset()
    seen = torch._dynamo.explain(lambda: model(inputs).float().square().sum())()
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons
