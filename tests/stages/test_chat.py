"""Conversations through the stages: the loss is transformers', and template and tokenizer travel together."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtool import experiment
from llmtool.data.overlap import overlap
from llmtool.data.store import Dataset
from llmtool.evaluation import baselines
from llmtool.models import pretrained
from llmtool.stages import assemble
from llmtool.stages.forecast import rows_of
from tests.conftest import Run
from tests.data import templates

transformers = pytest.importorskip("transformers")

CHAT = """\
data:
  source: {format: jsonl, path: chats.jsonl}
  split: {by: order, train: 0.8, validation: 0.1, test: 0.1}
  encode: {as: chat, tokenizer: {kind: file, path: instruct}, template: auto}
model: {family: transformer, architecture: llama, depth: 2, heads: 2, width: 16, context: 180}
train: {budget: {steps: 1}, batch: 64, log_every: 1}
evaluate: {samples: {prompts: [what is 5 <|im_end|>], tokens: 3}}
device: cpu
precision: fp32
"""


def chats(rows: int = 40, seed: int = 0) -> list[list[dict[str, Any]]]:
    chance = random.Random(seed)
    made = []
    for _ in range(rows):
        chat = [{"role": "system", "content": "count"}] if chance.random() < 0.3 else []
        for _ in range(chance.randint(1, 3)):
            number = chance.randint(0, 99)
            chat.append({"role": "user", "content": f"what is {number} and one?"})
            chat.append({"role": "assistant", "content": f"it is {number + 1}" + "!" * chance.randint(0, 9)})
        made.append(chat)
    return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with conversations, and with the tokenizer and template of a model."""
    monkeypatch.chdir(tmp_path)
    templates.write_model(Path("instruct"), templates.bytes_tokenizer(), templates.MARKED)
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats()))
    Path("chat.yaml").write_text(CHAT)
    return tmp_path


@pytest.mark.parametrize("packing", [True, False])
def test_the_loss_at_step_1_is_that_of_transformers(llmtool: Run, place: Path, packing: bool) -> None:
    given = [f"data.encode.packing={str(packing).lower()}"]
    assert llmtool("prepare", "chat.yaml", "--set", given[0], cwd=place).code == 0
    dataset = Dataset.open("runs/chat/prepare")
    made = assemble.from_experiment(experiment.load("chat.yaml", given).experiment, dataset)
    pretrained.save(made.model, place)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained("instruct")
    total = count = 0.0
    for chat in chats()[:32]:  # the train split, as it stands in the file
        out = tokenizer.apply_chat_template(
            chat, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        labels = torch.where(out["assistant_masks"] > 0, out["input_ids"], -100)
        scored = int((labels[:, 1:] != -100).sum())
        total += theirs(input_ids=out["input_ids"], labels=labels).loss.item() * scored
        count += scored
    rows = made.batches("train").rows
    assert rows == (32 if not packing else rows)
    assert dataset.card["splits"]["train"]["trained"] == count
    assert rows % 4 == 0
    for micro in (1, rows // 4, rows // 2, rows):
        asked = [*given, f"train.batch={rows}", f"train.micro_batch={micro}", "train.budget={steps: 1}"]
        ended = llmtool("train", "chat.yaml", "--force", *(w for a in asked for w in ("--set", a)), cwd=place)
        assert ended.code == 0, ended.err
        first = json.loads(Path("runs/chat/train/metrics.jsonl").read_text().splitlines()[0])
        assert first["loss"] == pytest.approx(total / count, rel=1e-5), micro


def test_what_is_saved_speaks_the_template(llmtool: Run, place: Path) -> None:
    assert llmtool("train", "chat.yaml", cwd=place).code == 0
    best = Path("runs/chat/train/best")
    theirs = transformers.AutoTokenizer.from_pretrained(best)
    original = transformers.AutoTokenizer.from_pretrained("instruct")
    for chat in chats()[:5]:
        expected = original.apply_chat_template(chat, tokenize=True, return_dict=False)
        assert theirs.apply_chat_template(chat, tokenize=True, return_dict=False) == expected
    assert (theirs.bos_token, theirs.eos_token) == ("<s>", "</s>")
    ends = json.loads((best / "config.json").read_text())["eos_token_id"]
    assert [theirs.convert_ids_to_tokens(i) for i in ends] == ["<|im_end|>", "</s>"]
    ended = llmtool("evaluate", "chat.yaml", "--json", cwd=place)
    assert ended.code == 0, ended.err
    report = json.loads(Path("runs/chat/evaluate/report.json").read_text())
    assert set(report["metrics"]["test"]) == {"loss", "perplexity", "token_accuracy"}
    assert "bits_per_byte" in report["undefined"]["test"]
    assert report["samples"][0]["text"].startswith(
        "<|im_start|>user\nwhat is 5 <|im_end|><|im_end|>\n<|im_start|>assistant"
    )
    trained = np.asarray(Dataset.open("runs/chat/prepare").split("test").arrays["trained"])
    assert report["details"]["test"]["tokens"] == trained.sum() if "details" in report else True


def test_data_of_another_template_is_refused_by_name(llmtool: Run, place: Path) -> None:
    assert llmtool("train", "chat.yaml", cwd=place).code == 0
    tuned = CHAT.replace("train: {budget", "finetune: {start: runs/chat/train, budget")
    Path("other.yaml").write_text(tuned.replace("template: auto", "template: chatml"))
    ended = llmtool("finetune", "other.yaml", cwd=place)
    assert ended.code == 2
    assert "rendered with the chat template chatml (xxh3:" in ended.err
    assert "speaks another, chat_template.jinja (xxh3:" in ended.err
    assert "like: runs/chat/train" in ended.err
    evaluated = llmtool("evaluate", "other.yaml", "--set", "evaluate.of=runs/chat/train", cwd=place)
    assert evaluated.code == 2
    assert "speaks another, chat_template.jinja" in evaluated.err
    for like in ("runs/chat/train", "runs/chat/prepare"):
        taken = tuned.replace("tokenizer: {kind: file, path: instruct}, template: auto", f"like: {like}")
        Path("like.yaml").write_text(taken)
        assert llmtool("prepare", "like.yaml", cwd=place).code == 0
        ended = llmtool("finetune", "like.yaml", "--force", cwd=place)
        assert ended.code == 0, ended.err
    assert llmtool("evaluate", "like.yaml", cwd=place).code == 0


def test_a_base_model_takes_the_data_s_template(llmtool: Run, place: Path) -> None:
    Path("book.txt").write_text(
        "\n".join(f"what is {number} and one? it is {number + 1}" for number in range(300))
    )
    base = CHAT.replace(
        "{format: jsonl, path: chats.jsonl}", "{format: text, path: book.txt, documents: line}"
    )
    base = base.replace("{as: chat, tokenizer: {kind: file, path: instruct}, template: auto}",
                        "{as: tokens, tokenizer: {kind: bpe, vocabulary: 300}}")  # fmt: skip
    Path("base.yaml").write_text(
        base.replace("samples: {prompts: [what is 5 <|im_end|>], tokens: 3}", "splits: [test]")
    )
    assert llmtool("train", "base.yaml", cwd=place).code == 0
    tuned = CHAT.replace("path: instruct}, template: auto", "path: runs/base/train/best}, template: plain")
    tuned = tuned.replace(
        "model: {family: transformer, architecture: llama, depth: 2, heads: 2, width: 16, context: 180}\n", ""
    )
    Path("tuned.yaml").write_text(
        tuned.replace("train: {budget", "finetune: {start: runs/base/train, budget").replace(
            "context: 180", ""
        )
    )
    ended = llmtool(
        "finetune",
        "tuned.yaml",
        "--set",
        "data.encode.length=160",
        "--set",
        "data.encode.long=cut",
        cwd=place,
    )
    assert ended.code == 0, ended.err
    assert Path("runs/tuned/finetune/best/chat_template.jinja").is_file()


def test_a_longer_conversation_than_the_context_is_an_error_of_the_file(llmtool: Run, place: Path) -> None:
    ended = llmtool("train", "chat.yaml", "--set", "model.context=48", cwd=place)
    assert ended.code == 2
    assert "data.encode.length: a conversation of train has" in ended.err
    assert "chats.jsonl:" in ended.err


@pytest.mark.parametrize("long", ["cut", "split"])
def test_long_conversations_are_shortened_by_whole_exchanges(llmtool: Run, place: Path, long: str) -> None:
    asked = ("--set", "data.encode.length=72", "--set", f"data.encode.long={long}")
    ended = llmtool("prepare", "chat.yaml", *asked, cwd=place)
    assert ended.code == 0, ended.err
    dataset = Dataset.open("runs/chat/prepare")
    ledger = json.loads(Path("runs/chat/prepare/ledger.json").read_text())
    split = dataset.split("train")
    lengths = np.diff(np.concatenate([[0], split.arrays["documents"]]))
    assert lengths.max() <= 72
    stop = dataset.card["encoder"]["stop"]
    ends = np.asarray(split.arrays["documents"]) - 2  # behind it stands the template's line break
    assert np.isin(split.arrays["tokens"][ends], stop).all()
    assert np.asarray(split.arrays["trained"])[ends].all()
    counted = ledger["long"]
    assert counted["longer"] >= counted[long] > 0
    assert (split.meta["documents"] > split.rows) == (long == "split")
    for name, meta in dataset.card["splits"].items():
        assert meta["rows"] == ledger["kept"][name]


def test_answers_of_the_weight_0_are_shown_as_they_are_learned(llmtool: Run, place: Path) -> None:
    bad = {"role": "assistant", "content": "BAD", "weight": 0}
    rows = [
        [{"role": "user", "content": f"{n}"}, bad, {"role": "user", "content": "?"}, bad | {"weight": 1}]
        for n in range(40)
    ]
    lines = [json.dumps({"messages": row}) + "\n" for row in [*rows, rows[0][:2]]]
    Path("chats.jsonl").write_text("".join(lines).replace('"BAD", "weight": 1', '"good", "weight": 1'))
    split = ("--set", "data.encode.length=30", "--set", "data.encode.long=split")
    for given, head in ((), "BAD<|im_end|>"), (split, "<|im_start|>user\n?<|im_end|>"):
        ended = llmtool("prepare", "chat.yaml", "--set", "data.max_bad=0.2", *given, "--json", cwd=place)
        assert ended.code == 0, ended.err
        (reason,) = ended.json["ledger"]["quarantined"]
        assert "no answer that is to be learned" in reason
        shown = Path("runs/chat/prepare/mask.txt").read_text().split("\n\n")[1]
        assert head in shown
        assert ("BAD" in shown) == (not given)
        assert "⟦good<|im_end|>⟧" in shown


def test_long_conversations_are_refused_by_default(llmtool: Run, place: Path) -> None:
    ended = llmtool("prepare", "chat.yaml", "--set", "data.encode.length=72", cwd=place)
    assert ended.code == 4
    assert "chats.jsonl, line" in ended.err
    assert "longer than data.encode.length: 72 tokens" in ended.err
    assert "long: cut or split" in ended.err


def test_whatever_reads_texts_sees_what_is_learned(llmtool: Run, place: Path) -> None:
    assert llmtool("prepare", "chat.yaml", cwd=place).code == 0
    dataset = Dataset.open("runs/chat/prepare")
    split = dataset.split("test")
    trained = np.asarray(split.arrays["trained"]) > 0
    learned = split.meta["trained"]
    found = baselines.baselines(dataset, ["test"], baselines.BaselinesConfig(), positive=1, seed=0)
    for one in found:
        assert one.tallies["test"].tokens == learned == trained.sum()  # type: ignore[attr-defined]
        assert one.tallies["test"].units == split.rows == 4
        assert "bits_per_byte" in one.tallies["test"].undefined
    shared = overlap(dataset, "test")
    runs = sum(bool(trained[at : at + 13].all()) for at in range(len(trained) - 12))
    assert shared["units"] == 4
    assert shared["runs_shared"] <= 1
    assert all(trained[first:end].all() for _, first, end in shared["examples"])
    assert runs > 0
    few = dataset.first(150).split("test")
    assert len(few.arrays["tokens"]) == len(few.arrays["trained"]) == few.arrays["documents"][-1] <= 150
    assert np.array_equal(few.arrays["trained"], split.arrays["trained"][: len(few.arrays["tokens"])])
    assert len(dataset.first(1).split("test").arrays["documents"]) == 1
    card = dataset.card
    assert rows_of(card, "train", 0.5, 180) == round(2 * card["splits"]["train"]["tokens"] / 180)
    card["encoder"]["packing"] = False
    assert rows_of(card, "train", 0.5, 180) == 64


def test_a_model_of_others_is_tuned_with_its_own_template_only(llmtool: Run, place: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained("instruct")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer) + 7, max_position_embeddings=180, num_key_value_heads=2, **sizes, **ends
    )
    transformers.LlamaForCausalLM(config).save_pretrained("instruct")
    tuned = CHAT.replace("train: {budget", "finetune: {start: instruct, method: {kind: lora}, budget")
    tuned = "\n".join(line for line in tuned.splitlines() if not line.startswith("model:"))
    Path("tuned.yaml").write_text(tuned + "\n")
    ended = llmtool("finetune", "tuned.yaml", cwd=place)
    assert ended.code == 0, ended.err
    best = Path("runs/tuned/finetune/best")
    again = transformers.AutoTokenizer.from_pretrained(best)
    chat = chats()[0]
    assert again.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(
        chat, tokenize=False
    )
    assert llmtool("evaluate", "tuned.yaml", cwd=place).code == 0
    Path("other.yaml").write_text(tuned.replace("template: auto", "template: chatml") + "\n")
    ended = llmtool("finetune", "other.yaml", cwd=place)
    assert ended.code == 2
    assert "rendered with the chat template chatml" in ended.err
    assert "instruct speaks another, of instruct" in ended.err
    assert "template: auto" in ended.err


def test_a_chat_model_that_goes_on_with_plain_text_keeps_its_template(llmtool: Run, place: Path) -> None:
    assert llmtool("train", "chat.yaml", cwd=place).code == 0
    Path("book.txt").write_text("\n".join(f"what is {number} and one?" for number in range(300)))
    source = "{format: text, path: book.txt, documents: line}"
    plain = CHAT.replace("{format: jsonl, path: chats.jsonl}", source)
    plain = plain.replace("as: chat", "as: tokens").replace(", template: auto", "")
    plain = plain.replace("train: {budget", "finetune: {start: runs/chat/train, budget")
    Path("plain.yaml").write_text(plain)
    ended = llmtool("finetune", "plain.yaml", cwd=place)
    assert ended.code == 0, ended.err
    before, after = Path("runs/chat/train/best"), Path("runs/plain/finetune/best")
    assert (after / "chat_template.jinja").read_text() == (before / "chat_template.jinja").read_text()
    cards = [json.loads((path / "llmtool.json").read_text())["card"]["encoder"] for path in (before, after)]
    for key in ("template", "special", "stop"):
        assert cards[0][key] == cards[1][key]
    again = CHAT.replace("train: {budget", "finetune: {start: runs/plain/finetune, budget")
    Path("again.yaml").write_text(again)
    assert llmtool("finetune", "again.yaml", cwd=place).code == 0
    Path("again.yaml").write_text(again.replace("template: auto", "template: chatml"))
    assert llmtool("prepare", "again.yaml", cwd=place).code == 0
    ended = llmtool("finetune", "again.yaml", "--force", cwd=place)
    assert ended.code == 2
    assert "runs/plain/finetune" in ended.err
