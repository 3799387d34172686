"""GGUF files: every architecture's tensors read back by llama.cpp's own package, and by transformers."""

from pathlib import Path

import pytest
import torch

from llmtool.core.contracts import Features, NextToken, Tokens, Values
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.data.gguf_vocabulary import CONTROL, NORMAL, Vocabulary
from llmtool.models import gguf, pretrained
from llmtool.models.mlp import MLPConfig
from llmtool.models.transformer import TransformerConfig

package = pytest.importorskip("gguf")
SIZE = 70
SMALL = {"depth": 2, "heads": 4, "width": 32, "context": 24, "feed_forward": 48}
CAPS = {"attention_soft_cap": 50.0, "logit_soft_cap": 30.0}
CASES = {
    "llama": {"key_value_heads": 2},
    "llama untied": {"tie_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "mistral": {"key_value_heads": 1, "window": 8},
    "qwen2": {"key_value_heads": 2},
    "qwen3": {"key_value_heads": 2, "head_width": 16},
    "gemma2": CAPS | {"window": 8, "head_width": 16},
    "gemma3_text": {"window": 8, "depth": 7, "rope_theta_window": 500.0},
    "phi3": {"key_value_heads": 2},
    "olmo2": {"key_value_heads": 2},
    "smollm3": {"depth": 4},
    "gpt2": {},
}


def build(name: str, **keys: object) -> torch.nn.Module:
    torch.manual_seed(0)
    form = SMALL | CASES.get(name, {}) | {"architecture": name.partition(" ")[0]} | keys
    model = TransformerConfig.model_validate(form).build(Tokens(SIZE), NextToken(SIZE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def words() -> Vocabulary:
    tokens = [f"word{number}" for number in range(SIZE)]
    kinds = [NORMAL] * (SIZE - 1) + [CONTROL]
    return Vocabulary("gpt2", "gpt-2", tokens, kinds, [SIZE - 1, 5], 3, True, template="{{ messages }}")


def written(model: torch.nn.Module, directory: Path, kind: gguf.Kind = "fp32") -> object:
    gguf.write(model, directory / gguf.FILE, words(), kind, "a model", {"llmtool.weights": "xxh3:1"})
    return package.GGUFReader(directory / gguf.FILE)


def values(reader: object) -> dict[str, torch.Tensor]:
    return {  # copies: the reader's own are the file, mapped into memory
        t.name: torch.from_numpy(package.quants.dequantize(t.data, t.tensor_type).copy())
        for t in reader.tensors
    }


def keys_of(reader: object) -> dict[str, object]:
    return {name: field.contents() for name, field in reader.fields.items()}


def halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Neighbours become halves again: row 2i + h of a head was row h * E/2 + i."""
    width = len(tensor) // heads
    order = [
        head * width + 2 * (row % (width // 2)) + row // (width // 2)
        for head in range(heads)
        for row in range(width)
    ]
    return tensor[order]


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_there_under_llama_cpps_name(name: str, tmp_path: Path) -> None:
    model = build(name)
    reader = written(model, tmp_path)
    layout, found = gguf.layout_of(model), values(reader)
    arch = next(arch for arch, its in package.MODEL_ARCH_NAMES.items() if its == layout.name)
    known = {package.TENSOR_NAMES[tensor] for tensor in package.MODEL_TENSORS[arch]}
    stems = {stored.rpartition(".")[0] for stored in found}
    blocks = {stem.format(bid=block) for stem in known for block in range(model.config.depth)}
    assert stems <= blocks
    ours = pretrained.file_tensors(model)
    copies = {"output.weight"} if name == "olmo2" else set()  # llama.cpp wants it there, tied or not
    assert len(found) == len(ours) + len(copies)
    for hf, exact in ours.items():
        stored = package.get_tensor_name_map(arch, model.config.depth).get_name(hf, (".weight", ".bias"))
        back = found.pop(stored)
        if name.startswith(("llama", "mistral", "smollm3")) and ".q_proj." in hf:
            back = halves(back, model.config.heads)
        if name.startswith(("llama", "mistral", "smollm3")) and ".k_proj." in hf:
            back = halves(back, model.config.key_value_heads)
        if name.startswith("gemma") and "norm" in hf:
            back = back - 1
        if name == "gpt2" and hf.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            back = back.T
        torch.testing.assert_close(back, exact, atol=1e-6 if name.startswith("gemma") else 0, rtol=0)
    assert set(found) == copies
    keys = keys_of(reader)
    assert keys["general.architecture"] == layout.name
    assert keys[f"{layout.name}.block_count"] == model.config.depth
    assert keys[f"{layout.name}.attention.head_count"] == 4
    assert keys[f"{layout.name}.context_length"] == (8 if name == "mistral" else 24)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_transformers_reads_the_same_model(name: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    transformers = pytest.importorskip("transformers")
    model = build(name)
    written(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file=gguf.FILE, dtype=torch.float32
    ).eval()
    ids = torch.randint(SIZE, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-5, rtol=0)


def test_what_is_said_of_the_model_and_its_words(tmp_path: Path) -> None:
    scaling = {"kind": "yarn", "factor": 4.0, "original_context": 6}
    keys = keys_of(written(build("llama", rope_scaling=scaling, rope_theta=500.0), tmp_path))
    wanted = {
        "general.name": "a model",
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 500.0,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 6,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 69,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ messages }}",
        "llmtool.weights": "xxh3:1",
    }
    assert {key: keys.get(key) for key in wanted} == wanted
    assert keys["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert keys["tokenizer.ggml.tokens"] == words().tokens


def test_llama_3s_scaling_is_a_factor_for_each_angle(tmp_path: Path) -> None:
    scaling = {"kind": "llama3", "factor": 4.0, "original_context": 16}
    found = values(written(build("llama", rope_scaling=scaling, rope_theta=500.0), tmp_path))
    # by hand, of angles 500 ^ (-i / 4): turns in 16 tokens 2.55, 0.54, 0.11, 0.02; from 4 fast, up to 1 slow
    share = (16 / (2 * torch.pi) - 1) / 3
    wanted = torch.tensor([1 / ((1 - share) / 4 + share), 4.0, 4.0, 4.0])
    torch.testing.assert_close(found["rope_freqs.weight"], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "step"), [("fp16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 127)])
def test_precisions(kind: gguf.Kind, step: float, tmp_path: Path) -> None:
    model = build("llama", feed_forward=40)  # no multiple of a block of q8_0
    exact, reader = values(written(model, tmp_path)), written(model, tmp_path, kind)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    name = {"fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}[kind]
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == name
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert types["blk.0.ffn_down.weight"] == ("F16" if kind == "q8_0" else name)
    for stored, tensor in values(reader).items():
        assert (tensor - exact[stored]).abs().max() <= step * exact[stored].abs().max()


def test_too_large_for_fp16(tmp_path: Path) -> None:
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 70_000
    with pytest.raises(LlmtoolError, match=r"token_embd.weight has values up to 7e\+04, too large for"):
        written(model, tmp_path, "fp16")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"architecture": "qwen3", "attention_bias": True}, "no attention_bias"),
        ({"architecture": "gemma2"}, "no models without soft caps"),
        ({"architecture": "gemma3_text", "query_scale": 9}, "query_scale but 8 here"),
        (
            {"architecture": "gemma3_text", "window": 8, "layer_types": ["full_attention"] * 2},
            "blocks with a window but",
        ),
        (
            {"architecture": "qwen2", "rope_scaling": {"kind": "llama3", "factor": 2.0}},
            "rope_scaling of the kind llama3",
        ),
        (
            {"architecture": "llama", "rope_scaling": {"kind": "yarn", "factor": 2.0, "beta_fast": 3.0}},
            "other numbers than the factor",
        ),
        ({"architecture": "smollm3", "unrotated": [0]}, "no unrotated"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(keys: dict[str, object], says: str) -> None:
    model = TransformerConfig.model_validate(SMALL | keys).build(Tokens(SIZE), NextToken(SIZE))
    with pytest.raises(ConfigError, match=says):
        gguf.layout_of(model)


def test_the_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"gguf: not installed.*llmtool\[export\]"):
        written(build("llama"), tmp_path)


def test_no_form_of_other_families() -> None:
    with pytest.raises(ConfigError, match=r"no form of mlp \(there is one of llama, mistral"):
        gguf.layout_of(MLPConfig().build(Features(3), Values(1)))
