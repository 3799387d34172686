"""Models that others made: started from, scored and described from a plain Hugging Face directory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tokenizers import Tokenizer

from llmtool.core.contracts import Classes
from llmtool.models import peft_files, pretrained
from llmtool.models.adapters import LoRAConfig
from llmtool.models.lora import updates
from llmtool.stages import checkpoints, export, foreign, lineage, speaking
from tests.conftest import Run, others_encoder, others_model, reviews

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
    set_ = ("--set", "evaluate.samples={prompts: [the cat], tokens: 5}")
    ended = llmtool("evaluate", "a.yaml", *set_, "--json", cwd=project)
    report = json.loads((project / "runs/a/evaluate/report.json").read_text())
    assert report["samples"][0]["text"].startswith("t h e   c a t")  # no <s>; a tokenizer without decoder
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


def config_with(base: Path, **keys: object) -> None:
    path = base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def in_shards(base: Path) -> None:
    """The weights in two files, the second of which was cut off while it was copied."""
    tensors = safetensors.torch.load_file(base / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, held in parts.items():
        safetensors.torch.save_file({name: tensors[name] for name in held}, base / file)
    places = {name: file for file, held in parts.items() for name in held}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (base / "model.safetensors").unlink()
    (base / "b.safetensors").write_bytes((base / "b.safetensors").read_bytes()[:-100])


def as_pickle(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch run'\ntR.")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (
        lambda base: os.truncate(base / "model.safetensors", 3000),
        "model.safetensors: not a whole safetensors file",
    ),
    "a pickle": (as_pickle, "pytorch_model.bin: a pickle can run code and is not read"),
    "a pickle by that name": (
        lambda base: (base / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'touch run'\ntR."),
        "model.safetensors: not a whole safetensors file",
    ),
    "a shard cut off": (in_shards, "b.safetensors: not a whole safetensors file"),
    "no JSON": (lambda base: (base / "config.json").write_text("{"), "config.json"),
    "10^9 layers": (lambda base: config_with(base, num_hidden_layers=10**9), "less than or equal to 512"),
    "less than nothing": (lambda base: config_with(base, hidden_size=-16), "hidden_size: expected a whole"),
    "code beside it": (lambda base: config_with(base, auto_map={"AutoModel": "x.Y"}), "auto_map is not"),
    "an unknown kind": (lambda base: config_with(base, model_type="lama"), 'did you mean "llama"?'),
    "no tokenizer": (lambda base: (base / "tokenizer.json").write_text("[]"), "tokenizer.json"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_directories_are_refused_in_words(project: Path, llmtool: Run, case: str) -> None:
    breaks, said = BROKEN[case]
    breaks(project / "base")
    for command in (["finetune", "a.yaml"], ["finetune", "a.yaml", "--rehearse"]):
        ended = llmtool(*command, cwd=project)
        assert ended.code in (2, 4), ended.err
        assert said in ended.err
    assert not (project / "run").exists()


def test_what_is_no_directory_of_a_model_is_refused(project: Path, llmtool: Run) -> None:
    (project / "base/config.json").unlink()
    ended = llmtool("finetune", "a.yaml", cwd=project)
    assert (ended.code, "finetune.start: base: no checkpoint here" in ended.error) == (2, True), ended.error


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
    (base / "special_tokens_map.json").write_text("{}")
    assert foreign.fingerprint(base) != after


def adapter_of(base: Path, directory: Path) -> Path:
    """An adapter of a model for language, in the two files that PEFT writes."""
    model: Any = pretrained.load(base)
    method = LoRAConfig(rank=2, targets=["q_proj", "up_proj"])
    method.apply(model, seed=1)
    for _, update in updates(model):
        torch.nn.init.normal_(update.lora_B.weight, std=0.3)
    directory.mkdir()
    peft_files.save_adapter(model, directory, method, base=str(base))
    return directory


def test_the_link_of_an_adapter_is_of_its_files_and_those_under_it(tmp_path: Path) -> None:
    base = others_model(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    chain = checkpoints.lineage(adapter)
    assert [now.state for now in lineage.check(chain)] == ["ok", "ok"]
    settings = (base / "tokenizer_config.json").read_text()
    (base / "tokenizer_config.json").write_text("{}")
    now = lineage.check(chain)
    assert [one.state for one in now] == ["other", "other"]
    assert now[1].says == f"{adapter}: its files, or those of the model under it, have changed since"
    (base / "tokenizer_config.json").write_text(settings)
    assert [now.state for now in lineage.check(chain)] == ["ok", "ok"]
    form = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(form | {"lora_alpha": 99}))
    assert [now.state for now in lineage.check(chain)] == ["ok", "other"]


CHAT = "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"


def test_what_an_adapter_lacks_lies_beside_its_base(tmp_path: Path) -> None:
    base = others_model(tmp_path / "base")
    (base / "chat_template.jinja").write_text(CHAT)
    adapter = adapter_of(base, tmp_path / "adapter")
    start = checkpoints.from_checkpoint(str(adapter))
    assert start.tokenizer == base
    model: Any = start.model
    speaker = speaking.of(start.card, start.tokenizer, model)
    assert speaker.renderer is not None
    assert speaker.renderer.template.text == CHAT
    (tmp_path / "a").mkdir()
    export.write(start, tmp_path / "a", "safetensors", "fp32")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "a" / name).read_bytes() == (base / name).read_bytes()
    # what it has goes before
    (adapter / "chat_template.jinja").write_text(f" {CHAT}")
    (adapter / "generation_config.json").write_text(json.dumps({"eos_token_id": [7]}))
    start = checkpoints.from_checkpoint(str(adapter))
    assert (start.tokenizer, start.card["encoder"]["template"]["text"]) == (base, f" {CHAT}")
    (tmp_path / "b").mkdir()
    export.write(start, tmp_path / "b", "safetensors", "fp32")
    assert (tmp_path / "b/chat_template.jinja").read_text() == f" {CHAT}"
    assert json.loads((tmp_path / "b/config.json").read_text())["eos_token_id"] == [7, 1]
    shutil.copy(base / "tokenizer.json", adapter)
    assert checkpoints.from_checkpoint(str(adapter)).tokenizer == adapter


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers so
def test_an_adapter_that_peft_made_is_scored_described_and_adapted(
    project: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    ended = llmtool("generate", "adapter", "--prompt", "the cat", "--tokens", "2", cwd=project)
    assert ended.code == 0, ended.err
    for method in ("{kind: full}", "{kind: lora, rank: 2}"):
        set_ = ("--set", "finetune.start=adapter", "--set", f"finetune.method={method}")
        ended = llmtool("finetune", "a.yaml", *set_, "--json", cwd=project)
        assert ended.code == 0, ended.err
    assert ended.json["start"] == {"path": "adapter", "hash": found.hash}
    monkeypatch.chdir(project)  # the new adapter says where its base lies from there
    best, whole = Path("runs/a/finetune/best"), Path("runs/a/finetune/start")
    ours: Any = checkpoints.from_checkpoint(str(best)).model.eval()
    merged = transformers.AutoModelForCausalLM.from_pretrained(whole).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)
        after = peft.PeftModel.from_pretrained(merged, best).eval()(ids).logits
        torch.testing.assert_close(ours(ids), after, atol=1e-5, rtol=1e-5)
    (project / "base").rename(project / "gone")
    ended = llmtool("describe", "adapter", cwd=project)
    assert (ended.code, "is no directory here" in ended.error) == (2, True), ended.error


# --- encoders ---

LABELLED = """\
seed: 1
data:
  source: {format: csv, path: reviews.csv}
  split: {by: stratified, train: 0.7, validation: 0.15, test: 0.15}
  encode: {as: text, text: review, target: sentiment, tokenizer: {kind: file, path: bert}, length: 24}
finetune:
  start: bert
  method: {kind: full}
  budget: {epochs: 12}
  batch: 16
  optimizer: {name: adamw, lr: 3e-3}
  validate_every: 50
evaluate: {baselines: {kind: simple}}
"""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    others_encoder(tmp_path / "bert")
    (tmp_path / "reviews.csv").write_text(reviews())
    (tmp_path / "a.yaml").write_text(LABELLED)
    return tmp_path


def test_an_encoder_of_others_learns_classes_and_transformers_reads_what_is_saved(
    texts: Path, llmtool: Run
) -> None:
    import transformers

    ended = llmtool("finetune", "a.yaml", "--json", cwd=texts)
    assert ended.code == 0, ended.err
    assert ended.json["head"] == "the head is new, the model had none: 2 classes (bad, good)"
    change = ended.json["changes"]["new"]["accuracy"]
    assert change["value"] > 0.2
    assert change["low"] > 0  # the class stands in one word
    best = texts / "runs/a/finetune/best"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(best).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(best)
    assert model.config.id2label == {0: "bad", 1: "good"}
    rows = tokenizer(["the film was great", "a dull story"], padding=True, return_tensors="pt")
    assert model(**rows).logits.argmax(1).tolist() == [1, 0]
    start = checkpoints.from_checkpoint(str(best))
    segments = rows["attention_mask"].to(torch.int32)
    found = start.model.eval()(rows["input_ids"], segments)
    torch.testing.assert_close(found, model(**rows).logits, atol=1e-5, rtol=0)
    for command in ("evaluate", "describe"):
        assert llmtool(command, "a.yaml", cwd=texts).code == 0
    assert llmtool("describe", "bert", cwd=texts).code == 0


@pytest.mark.parametrize("method", ["{kind: head}", "{kind: lora, rank: 2, merge: true}"])
def test_head_and_adapter_go_on_from_each_other(method: str, texts: Path, llmtool: Run) -> None:
    short = ["--set", "finetune.budget={epochs: 2}", "--set", f"finetune.method={method}"]
    ended = llmtool("finetune", "a.yaml", *short, cwd=texts)
    assert ended.code == 0, ended.err
    ended = llmtool("evaluate", "a.yaml", *short, "--json", cwd=texts)
    assert ended.code == 0, ended.err
    merged = texts / "runs/a/finetune/merged"
    start = str(merged.relative_to(texts)) if merged.is_dir() else "runs/a/finetune"
    more = ["--set", f"finetune.start={start}", "--set", "run=runs/b", "--set", "finetune.budget={epochs: 2}"]
    ended = llmtool("finetune", "a.yaml", *more, "--json", cwd=texts)
    assert ended.code == 0, ended.err
    assert ended.json["head"] is None  # the same classes: it stays


def test_a_classifier_of_others_is_scored_as_it_is(texts: Path, llmtool: Run) -> None:
    others_encoder(texts / "sentiment", head=Classes(2))
    ended = llmtool("evaluate", "a.yaml", "--set", "evaluate.of=sentiment", "--json", cwd=texts)
    assert ended.code == 0, ended.err
    assert set(ended.json["metrics"]) == {"validation", "test"}
    ended = llmtool("evaluate", "a.yaml", "--set", "evaluate.of=bert", cwd=texts)
    assert ended.code == 2
    assert "bert has no head for a task yet" in ended.error


def test_what_does_not_fit_an_encoder_is_refused_in_words(texts: Path, llmtool: Run) -> None:
    others_encoder(texts / "small", rows=12)
    tokenizer = "data.encode.tokenizer={kind: file, path: small}"
    ended = llmtool("finetune", "a.yaml", "--set", "finetune.start=small", "--set", tokenizer, cwd=texts)
    assert ended.code == 2
    assert "the data's tokenizer has 22 tokens and small knows 12" in ended.error
    ended = llmtool("finetune", "a.yaml", "--set", "data.encode.length=65", "--set", "run=runs/b", cwd=texts)
    assert ended.code == 2
    assert "texts have up to 65 tokens, the model takes 64 at most" in ended.error
    ended = llmtool("finetune", "a.yaml", "--set", "finetune.pooling=last", "--set", "run=runs/c", cwd=texts)
    assert ended.code == 2
    assert "'last' is not for this model (choices: cls, mean)" in ended.error
    weights = texts / "bert/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    ended = llmtool("finetune", "a.yaml", "--set", "run=runs/d", cwd=texts)
    assert (ended.code, "not a whole safetensors file" in ended.error) == (2, True), ended.error


def pictures_model(directory: Path) -> Path:
    """A small vision transformer of others, with the recipe of its pictures and names of its classes."""
    transformers = pytest.importorskip("transformers")
    names = {0: "cat", 1: "dog", 2: "hen"}
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
        patch_size=4, id2label=names, label2id={name: at for at, name in names.items()},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(directory)
    recipe = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "size": 8}
    (directory / "preprocessor_config.json").write_text(json.dumps(recipe))
    return directory


def test_a_model_for_pictures_is_described_and_kept_from_other_data(fresh: Path, llmtool: Run) -> None:
    base = pictures_model(fresh / "base")
    task, card = foreign.task_and_card(base)
    assert task == {"kind": "classification"}
    assert card["inputs"] == {"kind": "images", "channels": 3, "height": 8, "width": 8}
    assert card["targets"] == {"kind": "classes", "names": ["cat", "dog", "hen"]}
    assert card["encoder"]["standardisation"]["deviation"] == (0.25, 0.25, 0.25)
    ended = llmtool("describe", "base", cwd=fresh)
    assert ended.code == 0, ended.err
    assert "takes pictures of 8 x 8 pixels in 3 channels" in ended.out
    assert "gives one of 3 classes" in ended.out
    before = foreign.fingerprint(base)
    for command, key in (("finetune", "finetune.start=base"), ("evaluate", "evaluate.of=base")):
        ended = llmtool(command, "table.yaml", "--set", key, cwd=fresh)
        assert ended.code == 2
        assert "base takes images; this file's data is encoded as features" in ended.error
    (base / "preprocessor_config.json").write_text("{}")
    assert foreign.fingerprint(base) != before
    ended = llmtool("describe", "base", "--json", cwd=fresh)
    assert ended.json["description"]["inputs"]["pixels"].startswith("(0 to 255) x 0.00392157 less [0.0]")


def test_a_body_for_pictures_has_no_task_yet(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, image_size=32)
    transformers.ConvNextModel(config).save_pretrained(tmp_path)
    task, card = foreign.task_and_card(tmp_path)
    assert task is None
    assert card["targets"] == {"kind": "nothing"}
    assert card["encoder"]["standardisation"] is None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers so
def test_peft_takes_what_was_tuned_of_a_base_of_others(
    project: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    ended = llmtool("finetune", "a.yaml", cwd=project)
    assert ended.code == 0, ended.err
    monkeypatch.chdir(project)  # the adapter says where its base lies from there
    best = Path("runs/a/finetune/best")
    form = json.loads((best / "adapter_config.json").read_text())
    base = transformers.AutoModelForCausalLM.from_pretrained(form["base_model_name_or_path"])
    ids = torch.randint(3, 31, (2, 10))
    with torch.no_grad():
        before = base.eval()(ids).logits
        after = peft.PeftModel.from_pretrained(base, best).eval()(ids).logits
        ours: Any = checkpoints.from_checkpoint(str(best)).model.eval()
        torch.testing.assert_close(ours(ids), after, atol=1e-5, rtol=0)
    assert (before - after).abs().max() > 1e-4  # it learned something
    assert transformers.AutoTokenizer.from_pretrained(best)("the cat")["input_ids"][0] == 0


def test_a_model_for_pictures_is_exported(tmp_path: Path, llmtool: Run) -> None:
    transformers, runtime = pytest.importorskip("transformers"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    base = pictures_model(tmp_path / "base")
    inputs = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        wanted = transformers.ViTForImageClassification.from_pretrained(base)(inputs).logits
        ended = llmtool("export", "base", "--to", "safetensors", "--out", "a", cwd=tmp_path)
        assert "transformers loads it as ViTForImageClassification" in ended.out
        again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "a")
        torch.testing.assert_close(again(inputs).logits, wanted)
    assert again.config.id2label == {0: "cat", 1: "dog", 2: "hen"}
    recipe = [
        json.loads((tmp_path / name / "preprocessor_config.json").read_text()) for name in ("base", "a")
    ]
    assert recipe[0] == recipe[1]
    ended = llmtool("export", "base", "--to", "onnx", "--out", "b", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "pixel_values (batch, 3, 8, 8) float32: pictures" in ended.out
    session = runtime.InferenceSession(tmp_path / "b/model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixel_values": inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-5, rtol=0)
