"""Models that others made: started from, scored and described from a plain Hugging Face directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tokenizers import Tokenizer

from llmtool.stages import checkpoints, foreign
from tests.conftest import Run, others_model

FILE = """\
data:
  source: {{format: text, path: text.txt, documents: line}}
  encode: {{as: tokens, tokenizer: {{kind: file, path: {tokenizer}}}}}
finetune:
  start: {start}
  method: {{kind: lora, rank: 2}}
  budget: {{steps: 4}}
  batch: 4
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    others_model(tmp_path / "base")
    lines = [
        f"the {animal} sat on the {place}."
        for animal in ("cat", "dog", "hen", "cow")
        for place in "abcdefghij"
    ]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "a.yaml").write_text(FILE.format(tokenizer="base", start="base"))
    return tmp_path


def test_a_base_of_others_is_finetuned_scored_and_described(project: Path, llmtool: Run) -> None:
    ended = llmtool("finetune", "a.yaml", cwd=project)
    assert ended.code == 0, ended.err
    assert "before" in ended.out
    card = json.loads((project / "runs/a/prepare/card.json").read_text())
    assert card["encoder"]["tokenizer"]["begin"] == 0
    tokens = (project / "runs/a/prepare/train.tokens.bin").read_bytes()
    assert tokens[:2] == b"\0\0"  # <s>, which the tokenizer's own settings put there
    base = json.loads((project / "runs/a/finetune/best/llmtool.json").read_text())["base"]
    assert base == {"path": "base", "hash": foreign.fingerprint(project / "base")}
    for of in ("base", "runs/a/finetune"):
        ended = llmtool("evaluate", "a.yaml", "--set", f"evaluate.of={of}", "--json", cwd=project)
        assert ended.code == 0, ended.err
        assert ended.json["model"]["path"].startswith(of)
    ended = llmtool("describe", "base", "--json", cwd=project)
    assert ended.code == 0, ended.err
    assert ended.json["lineage"]["links"][-1]["now"] == "ok"
    assert llmtool("describe", "runs/a", cwd=project).code == 0


def test_another_base_than_the_adapters_is_refused(project: Path, llmtool: Run) -> None:
    assert llmtool("finetune", "a.yaml", cwd=project).code == 0
    shutil.rmtree(project / "base")
    others_model(project / "base", seed=1)
    ended = llmtool("evaluate", "a.yaml", cwd=project)
    assert ended.code == 1
    assert "is an adapter of base, which has changed since" in ended.error
    ended = llmtool("finetune", "a.yaml", cwd=project)  # and a new base is another start
    assert ended.code == 0
    assert "start" in ended.err


def test_a_tokenizer_of_another_model_is_refused(project: Path, llmtool: Run) -> None:
    other = others_model(project / "other")
    tokenizer = Tokenizer.from_file(str(other / "tokenizer.json"))
    tokenizer.add_tokens(["zz"])
    tokenizer.save(str(other / "tokenizer.json"))
    (project / "b.yaml").write_text(FILE.format(tokenizer="other", start="base"))
    ended = llmtool("finetune", "b.yaml", cwd=project)
    assert ended.code == 2
    assert "set data.encode.tokenizer: {kind: file, path: base}" in ended.error


def test_a_tokenizer_with_more_tokens_than_the_model_knows_is_refused(project: Path, llmtool: Run) -> None:
    others_model(project / "small", vocabulary=20)
    (project / "c.yaml").write_text(FILE.format(tokenizer="small", start="small"))
    ended = llmtool("finetune", "c.yaml", cwd=project)
    assert ended.code == 2
    assert "tokenizer has 31 tokens and small knows 20" in ended.error


def test_without_a_tokenizer_the_vocabulary_decides(project: Path, llmtool: Run) -> None:
    (project / "base/tokenizer.json").rename(project / "tokenizer.json")
    (project / "d.yaml").write_text(FILE.format(tokenizer="tokenizer.json", start="base"))
    ended = llmtool("finetune", "d.yaml", cwd=project)
    assert ended.code == 0, ended.err


def test_broken_directories_are_refused_in_words(project: Path, llmtool: Run) -> None:
    weights = project / "base/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    ended = llmtool("finetune", "a.yaml", cwd=project)
    assert (ended.code, "not a whole safetensors file" in ended.error) == (1, True), ended.error
    weights.unlink()
    (project / "base/pytorch_model.bin").write_bytes(b"\x80\x04")
    ended = llmtool("finetune", "a.yaml", cwd=project)
    assert (ended.code, "a pickle can run code and is not read" in ended.error) == (1, True), ended.error
    (project / "base/config.json").write_text("{")
    assert llmtool("describe", "base", cwd=project).code == 1
    (project / "base/config.json").unlink()
    ended = llmtool("finetune", "a.yaml", cwd=project)
    assert (ended.code, "no checkpoint here" in ended.error) == (2, True), ended.error


def test_the_hash_is_of_what_is_read(tmp_path: Path) -> None:
    base = others_model(tmp_path / "base")
    before = foreign.fingerprint(base)
    (base / "README.md").write_text("words")
    (base / "modeling.py").write_text("raise SystemExit")
    assert foreign.fingerprint(base) == before
    tensors = safetensors.torch.load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    safetensors.torch.save_file(tensors, base / "model.safetensors")
    after = foreign.fingerprint(base)
    assert after != before
    assert checkpoints.lineage(base)[-1].content == after


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers so
def test_an_adapter_that_peft_made_is_scored_and_described(project: Path, llmtool: Run) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(project / "base")
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(project / "adapter")
    form = json.loads((project / "adapter/adapter_config.json").read_text())
    assert Path(form["base_model_name_or_path"]) == project / "base"
    ids = torch.randint(3, 31, (2, 10))
    found = checkpoints.from_checkpoint(str(project / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(found.model.eval()(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    ended = llmtool("evaluate", "a.yaml", "--set", "evaluate.of=adapter", "--json", cwd=project)
    assert ended.code == 0, ended.err
    ended = llmtool("describe", "adapter", "--json", cwd=project)
    assert [link["what"] for link in ended.json["lineage"]["links"]] == ["checkpoint", "checkpoint"]
    ended = llmtool("finetune", "a.yaml", "--set", "finetune.start=adapter", cwd=project)
    assert (ended.code, "is an adapter itself" in ended.error) == (2, True), ended.error
    ended = llmtool(
        "finetune",
        "a.yaml",
        "--set",
        "finetune.start=adapter",
        "--set",
        "finetune.method={kind: full}",
        cwd=project,
    )
    assert ended.code == 0, ended.err
    (project / "base").rename(project / "gone")
    ended = llmtool("describe", "adapter", cwd=project)
    assert (ended.code, "is no directory here" in ended.error) == (2, True), ended.error
