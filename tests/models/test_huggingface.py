"""Models that transformers runs: its numbers through our files, batches and commands, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.data.tokenizers import BytesTokenizer
from llmtool.models import pretrained
from llmtool.models.accounting import account
from llmtool.models.adapters import HeadConfig
from llmtool.models.forms import huggingface
from llmtool.models.generation import generate
from llmtool.models.huggingface import Through
from tests.conftest import Run

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {"vocab_size": 257, "bos_token_id": 1, "eos_token_id": 2}
SMALL: dict[str, Any] = {**SIZES, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONTEXT = {"max_position_embeddings": 48}
KINDS: dict[str, Any] = {
    # rotary positions, an output layer that files call otherwise than modules
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL, **CONTEXT, intermediate_size=64),
    # learned positions from the mask, projections before and after the body, tied
    "opt": lambda: transformers.OPTConfig(
        **SMALL, **CONTEXT, ffn_dim=64, word_embed_proj_dim=16, dropout=0.0
    ),
    # one head of keys and values, rotary
    "falcon": lambda: transformers.FalconConfig(**SMALL, **CONTEXT),
    # slopes in place of positions
    "bloom": lambda: transformers.BloomConfig(**SIZES, hidden_size=32, n_layer=2, n_head=4, seq_length=48),
    # computed tables that no file has, a bias in the output layer
    "gptj": lambda: transformers.GPTJConfig(
        **SIZES, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=48
    ),
    "stablelm": lambda: transformers.StableLmConfig(
        **SMALL, **CONTEXT, num_key_value_heads=4, intermediate_size=64
    ),
    # scores that are more than the output layer's
    "cohere": lambda: transformers.CohereConfig(
        **SMALL, **CONTEXT, num_key_value_heads=2, intermediate_size=64, logit_scale=0.5, pad_token_id=0
    ),
}


def theirs(kind: str, directory: Path) -> Any:
    """A tiny model with random weights, as transformers leaves it in `directory`."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(KINDS[kind]()).eval()
    model.save_pretrained(directory)
    return model


def ours(directory: Path) -> Any:
    with huggingface.through("transformers"):
        return pretrained.load(directory).eval()


@pytest.mark.parametrize("kind", list(KINDS))
def test_scores_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """Whole rows, filled up on either side, several documents in one; written, and read by transformers."""
    reference, model = theirs(kind, tmp_path / "a"), ours(tmp_path / "a")
    assert model.plain == (kind != "cohere")
    torch.manual_seed(1)
    ids = torch.randint(3, 257, (3, 12))
    documents = torch.tensor([[1] * 5 + [2] * 4 + [0] * 3, [0, 0] + [1] * 10, [1] * 12])
    with torch.no_grad():
        whole = reference(ids).logits
        torch.testing.assert_close(model(ids), whole, rtol=0, atol=1e-6)
        found = model(ids, documents)
        for row, start, stop in ((0, 0, 5), (0, 5, 9), (1, 2, 12), (2, 0, 12)):
            alone = reference(ids[row : row + 1, start:stop]).logits[0]
            torch.testing.assert_close(found[row, start:stop], alone, rtol=1e-5, atol=1e-6)
        filled = model(ids, torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] * 3 + [0] * 9]))
        torch.testing.assert_close(filled[1, :7], whole[1, :7], rtol=1e-5, atol=1e-6)
        (tmp_path / "b").mkdir()
        pretrained.save(model, tmp_path / "b")
        again, about = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "b", output_loading_info=True
        )
        assert not any(about.values())  # nothing missing, nothing unexpected
        assert torch.equal(again.eval()(ids).logits, whole)
    names = [set(safetensors.torch.load_file(tmp_path / d / "model.safetensors")) for d in "ab"]
    assert names[0] == names[1]
    assert torch.equal(pretrained.load(tmp_path / "b").eval()(ids), model(ids))  # by the key in its config
    written = generate(model, [[5, 6, 7], [9]], 4)
    want = reference.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert written[0] == want[0, 3:].tolist()
    assert account(model, rows=2, tokens=12, packed=True).parameters == sum(
        parameter.numel() for parameter in reference.parameters()
    )


def test_gradients_of_documents_in_one_row(tmp_path: Path) -> None:
    """Laid out anew, every document's loss gives the weights what it gives them alone."""
    reference, model = theirs("gpt_neox", tmp_path), ours(tmp_path)
    ids = torch.randint(3, 257, (1, 10))
    weights = torch.randn(10, 257)
    (model(ids, torch.tensor([[1] * 4 + [2] * 6]))[0] * weights).sum().backward()
    parts = [reference(ids[:, :4]).logits[0], reference(ids[:, 4:]).logits[0]]
    (torch.cat(parts) * weights).sum().backward()
    wanted = dict(reference.named_parameters())
    for name, parameter in model.theirs.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-5)


def test_an_output_layer_that_is_tied_no_more(tmp_path: Path) -> None:
    """`method: head` on a tied model: transformers reads two tables then."""
    theirs("falcon", tmp_path)
    model = ours(tmp_path)
    assert model.config.tie_embeddings
    HeadConfig().apply(model)
    with torch.no_grad():
        model.theirs.lm_head.weight.mul_(2)
    (tmp_path / "b").mkdir()
    pretrained.save(model, tmp_path / "b")
    ids = torch.arange(3, 12).unsqueeze(0)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    assert torch.equal(again(ids).logits, model(ids))
    assert torch.equal(pretrained.load(tmp_path / "b").eval()(ids), model(ids))
    assert not torch.equal(ours(tmp_path)(ids), model(ids))


def changed(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "auto_map is not supported"),
        ({"auto_map": {"AutoTokenizer": ["a", "b"]}, "architectures": ["Evil"]}, "architectures is"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is not supported"),
        ({"_attn_implementation": "owner/kernel"}, "_attn_implementation is not supported"),
        ({"trust_remote_code": True}, "trust_remote_code is not supported"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: at most 1,024"),
        ({"hidden_size": 10**12}, "hidden_size: at most 2,147,483,647"),
        ({"hidden_size": 2**31 - 1}, "transformers does not take it"),
        ({"max_position_embeddings": 10**9}, "max_position_embeddings: at most 1,048,576"),
        ({"layer_types": [{"attention_types": [["global"], 10**9]}]}, "attention_types: at most 1,024"),
        ({"num_labels": 10**9}, "num_labels: at most 100,000"),
        ({"num_attention_heads": 0}, "transformers does not take it"),
        ({"layer_norm_eps": None}, "transformers "),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "x"}}, "transformers "),
        ({"vocab_size": None}, "vocab_size: expected a whole number"),
        (
            {"model_type": "gpt_neoxx"},
            "no language model of model_type 'gpt_neoxx'; did you mean \"gpt_neox\"",
        ),
        ({"model_type": "vit"}, "no language model of model_type 'vit'"),
        ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}, "in other parts"),
        ({"llmtool_through": "tf"}, "llmtool_through: 'tf' is not known"),
    ],
)
def test_what_is_refused_before_weights_are_read(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    theirs("gpt_neox", tmp_path)
    changed(tmp_path, **values)
    (tmp_path / "evil.py").write_text("raise SystemExit('this was run')")
    with pytest.raises(ConfigError, match=says):
        ours(tmp_path)


def test_weights_of_other_sizes_and_pickles_are_refused(tmp_path: Path) -> None:
    theirs("gpt_neox", tmp_path)
    changed(tmp_path, intermediate_size=2**20)
    with pytest.raises(LlmtoolError, match=r"has the shape \(32, 64\); config.json says \(32, 1048576\)"):
        ours(tmp_path)
    changed(tmp_path, intermediate_size=64)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(LlmtoolError, match="a pickle can run code"):
        ours(tmp_path)


def test_transformers_is_run_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs("gpt_neox", tmp_path)
    with pytest.raises(ConfigError, match=r"'gpt_neox' is not known.*finetune\.through: transformers"):
        pretrained.load(tmp_path)
    changed(tmp_path, llmtool_through="transformers")
    assert isinstance(pretrained.load(tmp_path), Through)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'llmtool\[huggingface\]'"):
        pretrained.load(tmp_path)


FILE = """\
data:
  source: {format: text, path: story.txt, documents: blank}
  split: {by: random, train: 0.7, validation: 0.15, test: 0.15}
  encode: {as: tokens, tokenizer: {kind: file, path: base}}
finetune: {start: base, through: transformers, method: {kind: lora, rank: 2, targets: [query_key_value]},
  budget: {steps: 2}, batch: 4}
evaluate:
  samples: {prompts: [the], tokens: 4}
  suites: [{kind: multiple_choice, path: choices.json, name: choice}]
device: cpu
"""


@pytest.fixture
def project(fresh: Path) -> Path:
    theirs("gpt_neox", fresh / "base")
    BytesTokenizer().fit(lambda: iter(())).save(fresh / "base")
    (fresh / "foreign.yaml").write_text(FILE)
    choices = [{"question": "a king", "choices": [" is", " was not"], "answer": at} for at in (0, 1)]
    (fresh / "choices.json").write_text(json.dumps(choices))
    return fresh


@pytest.mark.parametrize(
    "method", ["lora", "{kind: full}", "{kind: freeze, blocks: 1}", "{kind: head}"], ids=lambda text: text
)
def test_the_commands(project: Path, llmtool: Run, method: str) -> None:
    """A Pythia through every command: what comes of it needs no word of transformers any more."""
    other = () if method == "lora" else ("--set", f"finetune.method={method}")
    commands = (
        ("prepare", "describe", "finetune", "evaluate") if method == "lora" else ("prepare", "finetune")
    )
    for command in commands:
        ended = llmtool(command, "foreign.yaml", *other, cwd=project)
        assert ended.code == 0, ended.err
        assert "transformers" not in ended.err
    again = llmtool("finetune", "foreign.yaml", *other, cwd=project)
    assert "nothing has changed" in again.out + again.err
    if method != "lora":
        made = pretrained.load(project / "runs/foreign/finetune/best").state_dict()
        before = ours(project / "base").state_dict()
        moved = {name for name in made if not torch.equal(made[name], before[name])}
        frozen = {"{kind: full}": (), "{kind: freeze, blocks: 1}": ("embed_in", "layers.0.")}
        if method == "{kind: head}":
            assert moved == {"theirs.lm_head.weight"}
        else:
            assert moved == {name for name in made if not any(x in name for x in frozen[method])}
        return
    asked = ("--prompt", "the", "--tokens", 4, "--temperature", 0)
    told = llmtool("generate", "foreign.yaml", *asked, cwd=project)
    assert told.code == 0, told.err
    assert "every token reads the whole text" in told.err
    described = llmtool("describe", "runs/foreign", cwd=project)
    assert described.code == 0, described.err
    assert "GPTNeoXForCausalLM" in described.out
    ended = llmtool("export", "runs/foreign", "--to", "safetensors", "--out", "out", cwd=project)
    assert ended.code == 0, ended.err
    assert "transformers loads it as GPTNeoXForCausalLM" in ended.out
    merged = transformers.AutoModelForCausalLM.from_pretrained(project / "out").eval()
    ids = torch.tensor([list(b"the king")])
    assert torch.equal(merged(ids).logits, pretrained.load(project / "out").eval()(ids))
    assert not torch.equal(merged(ids).logits, ours(project / "base")(ids))  # the adapter is in it
    shown = llmtool("generate", "out", *asked, cwd=project)
    assert shown.out == told.out
    for to in ("gguf", "onnx"):
        ended = llmtool("export", "runs/foreign", "--to", to, cwd=project)
        assert ended.code == 2
        assert "only --to safetensors" in ended.error


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own
def test_the_adapter_is_pefts(project: Path, llmtool: Run) -> None:
    """PEFT loads it beside the base as transformers has it, with the same scores."""
    import peft

    for command in ("prepare", "finetune"):
        assert llmtool(command, "foreign.yaml", cwd=project).code == 0
    best = (project / "runs/foreign/finetune/best").resolve()
    base = transformers.AutoModelForCausalLM.from_pretrained(project / "base")
    theirs_ = peft.PeftModel.from_pretrained(base, best).eval()
    export = llmtool("export", "runs/foreign", "--to", "safetensors", "--out", "out", cwd=project)
    assert export.code == 0, export.err
    ids = torch.tensor([list(b"the king")])
    with torch.no_grad():
        merged = pretrained.load(project / "out").eval()
        torch.testing.assert_close(theirs_(ids).logits, merged(ids), rtol=1e-5, atol=1e-6)


def test_the_proofs_hold(project: Path, llmtool: Run) -> None:
    """`--verify invariance` reads the start by a way of its own."""
    ended = llmtool("finetune", "foreign.yaml", "--verify", "invariance", cwd=project)
    assert ended.code == 0, ended.err


def test_without_the_word_the_error_says_it(project: Path, llmtool: Run) -> None:
    assert llmtool("prepare", "foreign.yaml", cwd=project).code == 0
    ended = llmtool("finetune", "foreign.yaml", "--set", "finetune.through=null", cwd=project)
    assert ended.code == 2
    assert "'gpt_neox' is not known" in ended.error
    assert "finetune.through: transformers" in ended.error


@pytest.mark.parametrize(("kind", "prefix"), [("bloom", "transformer."), ("gpt_neox", "gpt_neox.")])
def test_files_as_they_lie_on_the_hub(kind: str, prefix: str, tmp_path: Path) -> None:
    """Half precision, a body's names without their prefix, and tables that older versions stored."""
    reference = theirs(kind, tmp_path).half().float()
    file = tmp_path / "model.safetensors"
    stored = {
        name.removeprefix(prefix): tensor.half() for name, tensor in safetensors.torch.load_file(file).items()
    }
    stored |= {
        "layers.0.attention.bias": torch.ones(1, 1, 8, 8).half(),
        "layers.0.rotary_emb.inv_freq": torch.ones(4),
    }
    safetensors.torch.save_file(stored, file)
    changed(tmp_path, dtype="float16", torch_dtype="float16")
    model, ids = ours(tmp_path), torch.arange(3, 12).unsqueeze(0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(ids), reference(ids).logits, rtol=0, atol=1e-6)
