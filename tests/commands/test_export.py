"""export: what is written loads elsewhere and gives the same; what is there is not overwritten by mistake."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtool.core import files
from llmtool.core.contracts import NextToken, Tokens
from llmtool.data import templates
from llmtool.data.tokenizers import FILE, BytesTokenizer
from llmtool.models import pretrained
from llmtool.models.generation import generate
from llmtool.models.transformer import TransformerConfig
from llmtool.stages import checkpoints
from llmtool.stages import export as stage
from tests.conftest import Run

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """A model of others with a tokenizer of bytes, a chat template and two tokens that end a text."""
    base = tmp_path / "base"
    base.mkdir()
    torch.manual_seed(0)
    config = TransformerConfig(architecture="llama", width=32, heads=2, depth=2, context=16)
    model: Any = config.build(Tokens(260), NextToken(260))
    model.carried = {"eos_token_id": [256, 65]}
    pretrained.save(model, base)
    BytesTokenizer().fit(lambda: iter(())).save(base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    return base


def logits(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    model: Any = checkpoints.from_checkpoint(str(directory)).model.eval()
    with torch.no_grad():
        return model(ids)


def test_a_merged_adapter_loads_in_transformers(
    copy: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy)  # the adapter says where its base lies from there
    transformers = pytest.importorskip("transformers")
    ended = llmtool("export", "text.yaml", "--to", "safetensors", "--json", cwd=copy)
    assert ended.code == 0, ended.err
    best, out = copy / "runs/text/finetune/best", copy / "runs/text/export/safetensors"
    assert ended.json["fingerprints"] == {"weights": checkpoints.fingerprint(best.resolve())}
    kinds = [link["what"] for link in ended.json["lineage"]["links"]]
    assert kinds[-2:] == ["checkpoint", "export"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = tokenizer("the old king", return_tensors="pt")["input_ids"]
    card = checkpoints.from_checkpoint(str(best)).card["encoder"]["tokenizer"]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, logits(best, ids), atol=1e-5, rtol=0)
    ours: Any = checkpoints.from_checkpoint(str(best)).model
    wanted = ids[0].tolist() + generate(ours, ids.tolist(), 4, stop=[card["end"]])[0]
    assert theirs.generation_config.eos_token_id == card["end"]
    mask = torch.ones_like(ids)
    given = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=card["end"]
    )[0].tolist()
    assert tokenizer.decode(given) == tokenizer.decode(wanted)
    # it is a checkpoint of ours too, with everything that evaluate and finetune ask for
    assert torch.equal(logits(out, ids), logits(best, ids))
    ended = llmtool("evaluate", "text.yaml", "--set", f"evaluate.of={out}", cwd=copy)
    assert ended.code == 0, ended.err


def test_it_is_written_once(copy: Path, llmtool: Run) -> None:
    def export(*more: str) -> str:
        ended = llmtool("export", "runs/table", "--to", "safetensors", *more, cwd=copy)
        assert ended.code == 0, ended.err
        return ended.out + ended.err

    weights = copy / "runs/table/export/safetensors/model.safetensors"
    assert "export: runs/table/export/safetensors" in export()
    before = weights.stat()
    assert "nothing has changed" in export()
    assert weights.stat() == before
    assert "dtype: fp32 -> bf16" in export("--dtype", "bf16")
    assert weights.stat().st_size < before.st_size
    assert "nothing has changed" not in export("--dtype", "bf16", "--force")
    assert sorted(path.name for path in weights.parents[1].iterdir()) == ["safetensors"]


def test_a_table_model_keeps_its_outputs(copy: Path, llmtool: Run) -> None:
    ended = llmtool("export", "table.yaml", "--to", "safetensors", "--of", "runs/table/train", cwd=copy)
    assert ended.code == 0, ended.err
    rows = torch.randn(3, checkpoints.from_checkpoint(str(copy / "runs/table/train")).model.inputs.width)  # type: ignore[union-attr, arg-type]
    assert torch.equal(
        logits(copy / "runs/table/export/safetensors", rows), logits(copy / "runs/table/train", rows)
    )


def test_large_weights_go_into_several_files(
    others: Path, tmp_path: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(stage, "SHARD_BYTES", 40_000)
    ended = llmtool("export", "base", "--to", "safetensors", "--out", "out", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    ids = torch.randint(256, (2, 9))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, logits(others, ids), atol=1e-5, rtol=0)
    assert torch.equal(logits(tmp_path / "out", ids), logits(others, ids))
    assert theirs.generation_config.eos_token_id == [256, 65]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "hello"


def test_gguf_says_what_it_was_made_of(others: Path, tmp_path: Path, llmtool: Run) -> None:
    package = pytest.importorskip("gguf")
    ended = llmtool(
        "export", "base", "--to", "gguf", "--dtype", "q8_0", "--out", "out", "--json", cwd=tmp_path
    )
    assert ended.code == 0, ended.err
    fields = package.GGUFReader(tmp_path / "out/model.gguf").fields
    keys = {name: field.contents() for name, field in fields.items()}
    assert keys["llmtool.weights"] == ended.json["fingerprints"]["weights"]
    assert keys["llmtool.chat_template"] == ended.json["template"] == templates.hash_of(TEMPLATE)
    assert keys["tokenizer.chat_template"] == TEMPLATE
    assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"]) == (256, 65)
    assert keys["general.name"] == "base"
    assert len(keys["tokenizer.ggml.tokens"]) == 260


CHAT = """\
data:
  source: {format: jsonl, path: chat.jsonl}
  encode: {as: chat, tokenizer: {kind: bytes}, template: chatml}
model: {family: transformer, architecture: qwen3, depth: 1, heads: 2, width: 16, context: 96}
train: {budget: {steps: 2}, batch: 4}
"""


def test_a_chats_template_and_its_stop_travel(tmp_path: Path, llmtool: Run) -> None:
    package = pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i + 1}."}]}
        for i in range(30)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "chat.yaml").write_text(CHAT)
    for arguments in (("train",), ("export", "--to", "safetensors"), ("export", "--to", "gguf")):
        ended = llmtool(arguments[0], "chat.yaml", *arguments[1:], "--json", cwd=tmp_path)
        assert ended.code == 0, ended.err
    card = json.loads((tmp_path / "runs/chat/prepare/card.json").read_text())["encoder"]
    assert ended.json["template"] == card["template"]["hash"]
    keys = package.GGUFReader(tmp_path / "runs/chat/export/gguf/model.gguf").fields
    assert keys["tokenizer.chat_template"].contents() == card["template"]["text"]
    assert keys["llmtool.chat_template"].contents() == card["template"]["hash"]
    stop = card["stop"][0]
    assert keys["tokenizer.ggml.tokens"].contents()[stop] == "<|im_end|>"
    assert keys["tokenizer.ggml.eos_token_id"].contents() == stop
    out = tmp_path / "runs/chat/export/safetensors"
    assert transformers.GenerationConfig.from_pretrained(out).eos_token_id[0] == stop
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    said = tokenizer.apply_chat_template(rows[3]["messages"], tokenize=False)
    assert said == "<|im_start|>user\n3?<|im_end|>\n<|im_start|>assistant\n4.<|im_end|>\n"
    # another template beside the weights than the one that was learned
    best = tmp_path / "runs/chat/train/best"
    shutil.copytree(best, tmp_path / "changed")
    (tmp_path / "changed/chat_template.jinja").write_text(TEMPLATE)
    ended = llmtool("export", "changed", "--to", "gguf", "--out", "out", cwd=tmp_path)
    assert (ended.code, "chat_template.jinja" in ended.error) == (1, True), ended.err


def test_onnx_gives_the_same(copy: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    ended = llmtool("export", "table.yaml", "--to", "onnx", "--json", cwd=copy)
    assert ended.code == 0, ended.err
    assert ended.err.count("\n") <= 3, ended.err  # nothing of the exporter's own
    assert len(ended.json["checked"]) == 2
    session = runtime.InferenceSession(copy / "runs/table/export/onnx/model.onnx")
    rows = torch.randn(5, ended.json["graph"]["inputs"]["features"]["shape"][1])
    given = session.run(None, {"features": rows.numpy()})[0]
    np.testing.assert_allclose(given, logits(copy / "runs/table/finetune/best", rows), atol=1e-5)


def test_what_is_refused(copy: Path, others: Path, llmtool: Run) -> None:
    def error(*arguments: str, code: int = 2) -> str:
        ended = llmtool("export", *arguments, cwd=copy)
        assert ended.code == code, ended.out + ended.err
        return ended.err

    assert 'did you mean "gguf"' in error("text.yaml", "--to", "ggfu")
    assert "--to onnx is written in fp32" in error("text.yaml", "--to", "onnx", "--dtype", "q8_0")
    assert "characters without a form" in error("text.yaml", "--to", "gguf")
    assert "no form of mlp" in error("table.yaml", "--to", "gguf")
    assert "say with --out" in error(str(others), "--to", "gguf")
    assert "a directory of its own" in error(str(others), "--to", "gguf", "--out", ".")
    assert "has no trained model yet" in error("text.yaml", "--to", "gguf", "--set", "run=runs/none")
    assert "--set changes a configuration file" in error("runs/text", "--to", "onnx", "--set", "seed=1")
    assert not list((copy / "runs/text/export").iterdir())
    (others / FILE).unlink()
    assert f"no {FILE}" in error(str(others), "--to", "gguf", "--out", "out")


def test_the_weights_are_hashed_once(copy: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: Counter[Path] = Counter()
    hash_file = files.hash_file

    def counted(path: Path) -> str:
        hashed[path.resolve()] += 1
        return hash_file(path)

    monkeypatch.setattr(files, "hash_file", counted)
    assert llmtool("export", "runs/table/train", "--to", "safetensors", "--out", "out", cwd=copy).code == 0
    assert hashed[(copy / "runs/table/train/best/model.safetensors").resolve()] == 1


def test_other_content_is_not_overwritten(copy: Path, llmtool: Run) -> None:
    (copy / "mine").mkdir()
    (copy / "mine/thesis.txt").write_text("years of work")
    arguments = ("export", "runs/table", "--to", "safetensors", "--out", "mine")
    ended = llmtool(*arguments, cwd=copy)
    assert (ended.code, "holds something else" in ended.error) == (2, True)
    ended = llmtool(*arguments, "--force", cwd=copy)
    assert ended.code == 0, ended.err
    assert (copy / "mine.before/thesis.txt").read_text() == "years of work"
    shutil.copy(copy / "mine.before/thesis.txt", copy / "mine/thesis.txt")  # an export that was changed
    ended = llmtool(*arguments, "--force", cwd=copy)
    assert (ended.code, "is there already" in ended.error) == (2, True)
    assert (copy / "mine/thesis.txt").exists()


def test_only_what_a_killed_export_left_is_removed(copy: Path, llmtool: Run) -> None:
    arguments = ("export", "runs/table", "--to", "safetensors", "--force", "--out")
    (copy / "mine.new").mkdir()
    (copy / "mine.new/thesis.txt").write_text("years of work")
    ended = llmtool(*arguments, "mine", cwd=copy)
    assert (ended.code, ended.error) == (
        2, "mine cannot be written: mine.new, where it is made, is there already; move that away, or name "
        "another --out",
    )  # fmt: skip
    assert (copy / "mine.new/thesis.txt").read_text() == "years of work"
    assert llmtool(*arguments, "other.new", cwd=copy).code == 0  # an export of that very name
    assert llmtool(*arguments, "other", cwd=copy).code == 2
    assert (copy / "other.new/result.json").is_file()
    assert llmtool(*arguments, "third", cwd=copy).code == 0
    (copy / "third").rename(copy / "third.new")  # as a kill between its two renames leaves it
    assert llmtool(*arguments, "third", cwd=copy).code == 0
    assert not (copy / "third.new").exists()
