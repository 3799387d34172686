"""Conversations on the command line: bad ones are counted, bad templates refused, and the mask is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from tests.data import templates

YAML = """\
data:
  source: {format: jsonl, path: chats.jsonl}
  encode: {as: chat, tokenizer: {kind: bytes}, template: chatml}
  max_bad: 0.2
model: {family: transformer, architecture: llama, depth: 1, heads: 2, width: 16, context: 128}
train: {budget: {steps: 4}, batch: 4}
finetune: {start: runs/chat/train, method: {kind: lora, rank: 2}, budget: {steps: 2}, batch: 4}
device: cpu
"""


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


GOOD = [
    chat(("user", f"say {n}"), ("assistant", f"{n}!"), ("user", "again"), ("assistant", f"{n}."))
    for n in range(60)
]
BAD: dict[str, tuple[str, str]] = {
    "broken JSON": ('{"messages": [', "not JSON"),
    "unknown role": (json.dumps(chat(("user", "a"), ("wizard", "b"))), "unknown role 'wizard'"),
    "empty turn": (json.dumps(chat(("user", "a"), ("assistant", " "))), "an empty turn"),
    "two system turns": (
        json.dumps(chat(("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d"))),
        "two system turns",
    ),
    "late system turn": (
        json.dumps(chat(("user", "a"), ("system", "b"), ("assistant", "c"))),
        "a system turn that is not the first",
    ),
    "no answer": (json.dumps(chat(("user", "a"))), "no assistant turn"),
    "no messages": (json.dumps({"messages": None}), "no messages"),
    "not a list": (json.dumps({"messages": "hello"}), "messages are not a list"),
    "a picture": (
        json.dumps(chat(("user", [{"type": "image"}]), ("assistant", "b"))),
        "content that is not text",
    ),
    "NUL": (json.dumps(chat(("user", "a\0"), ("assistant", "b"))), "a NUL character"),
    "half a pair": ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half a surrogate pair"),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "chat.yaml").write_text(YAML)
    write(tmp_path, GOOD)
    return tmp_path


def write(place: Path, rows: list[dict[str, Any]], *more: str) -> None:
    lines = [json.dumps(row) for row in rows]
    (place / "chats.jsonl").write_text("\n".join([*lines, *more]) + "\n")


def sets(**keys: str) -> list[str]:
    return [word for key, value in keys.items() for word in ("--set", f"data.encode.{key}={value}")]


def test_every_bad_row_is_counted_with_its_reason(llmtool: Run, place: Path) -> None:
    write(place, GOOD, *(line for line, _ in BAD.values()))
    ended = llmtool("prepare", "chat.yaml", "--json", cwd=place)
    assert ended.code == 0, ended.err
    ledger = ended.json["ledger"]
    assert sum(ledger["kept"].values()) == 60
    assert sum(ledger["quarantined"].values()) == len(BAD)
    rows = [
        json.loads(line) for line in (place / "runs/chat/prepare/quarantine.jsonl").read_text().splitlines()
    ]
    by_line = {row["line"]: row["reason"] for row in rows}
    for number, (name, (_, reason)) in enumerate(BAD.items(), len(GOOD) + 1):
        assert by_line[number].startswith(reason), name


@pytest.mark.parametrize("name", BAD)
def test_too_many_bad_rows_are_refused(llmtool: Run, place: Path, name: str) -> None:
    line, reason = BAD[name]
    write(place, GOOD, *[line] * 20)
    ended = llmtool("prepare", "chat.yaml", cwd=place)
    assert ended.code == 4
    assert "20 of 80 rows are bad" in ended.error
    assert "chats.jsonl, line 61: " + reason in ended.error


def test_a_template_that_refuses_some_rows_has_them_quarantined(llmtool: Run, place: Path) -> None:
    templates.write_model(place / "gemma", templates.bytes_tokenizer(), templates.GEMMA)
    write(place, [*GOOD, chat(("system", "a"), ("user", "b"), ("assistant", "c"))])
    (place / "chat.yaml").write_text(
        YAML.replace("{kind: bytes}, template: chatml", "{kind: file, path: gemma}")
    )
    ended = llmtool("prepare", "chat.yaml", "--json", cwd=place)
    assert ended.code == 0, ended.err
    assert ended.json["ledger"]["quarantined"] == {"the template refuses it: System role not supported": 1}


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("{% if %}", 2, "the chat template my.jinja, line 1"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", 4, "would never stop"),
        (
            "{{ raise_exception('no') }}",
            4,
            "my.jinja fails on the simplest conversation: no",
        ),
        ("{{ messages[0].nothing.at_all }}", 4, "fails on the simplest conversation: UndefinedError"),
        ("{{ 'x' * 200000000 }}", 4, "makes more than"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            4,
            "come to an end",
        ),
        ("{{ cycler.__init__.__globals__.os.system('touch canary') }}", 4, "SecurityError"),
        (
            "{% for m in messages %}{{ m.role ~ m.content }}{{ '<|endoftext|>' if loop.last }}\n{% endfor %}",
            4,
            r"chats.jsonl, line 1: an assistant's turn does not end in a token to stop at",
        ),
    ],
)
def test_a_bad_template_is_refused(llmtool: Run, place: Path, text: str, code: int, message: str) -> None:
    (place / "my.jinja").write_text(text)
    ended = llmtool("prepare", "chat.yaml", *sets(template="my.jinja"), cwd=place)
    assert ended.code == code, ended.err
    assert message in ended.error
    assert not (place / "canary").exists()
    assert not (place / "runs/chat/prepare/card.json").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"template": "auto"},
            "auto takes the model's own template, but a tokenizer that is made here has none",
        ),
        (
            {"template": "chatlm"},
            "data.encode.template: chatlm: no such file (choices: auto, chatml,",
        ),
        ({"format": "alpaca"}, "data.encode.format: alpaca needs the columns instruction"),
        (
            {"columns": "{messages: message}"},
            "data.encode.columns.messages: the data has no column 'message'; did you mean \"messages\"",
        ),
        ({"long": "cut"}, "long: cut needs length"),
        ({"like": "runs/none"}, "like takes tokenizer and template as they are"),
    ],
)
def test_a_mistake_in_the_file_is_named(
    llmtool: Run, place: Path, keys: dict[str, str], message: str
) -> None:
    ended = llmtool("prepare", "chat.yaml", *sets(**keys), cwd=place)
    assert ended.code == 2, ended.err
    assert message in ended.err


def test_a_tokenizer_without_the_template_s_tokens_is_refused(llmtool: Run, place: Path) -> None:
    tokenizer = templates.blanks_tokenizer()
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = [one for one in made["added_tokens"] if not one["content"].startswith("<|im")]
    (place / "base").mkdir()
    (place / "base/tokenizer.json").write_text(json.dumps(made))
    ended = llmtool("prepare", "chat.yaml", *sets(tokenizer="{kind: file, path: base}"), cwd=place)
    assert ended.code == 4
    assert "the chat template chatml ends an answer with '<|im_end|>\\n'" in ended.error


def test_like_wants_a_template(llmtool: Run, place: Path) -> None:
    (place / "book.txt").write_text("\n".join(f"line {n}" for n in range(60)))
    text = YAML.replace(
        "{format: jsonl, path: chats.jsonl}", "{format: text, path: book.txt, documents: line}"
    )
    text = text.replace("{as: chat, tokenizer: {kind: bytes}, template: chatml}", "{as: tokens}")
    (place / "base.yaml").write_text(text)
    assert llmtool("prepare", "base.yaml", cwd=place).code == 0
    like = YAML.replace("tokenizer: {kind: bytes}, template: chatml", "like: runs/base/prepare")
    (place / "like.yaml").write_text(like)
    ended = llmtool("prepare", "like.yaml", cwd=place)
    assert ended.code == 2
    assert "runs/base/prepare holds tokens, which has no chat template; take its tokenizer" in ended.err
    (place / "like.yaml").write_text(like.replace("runs/base/prepare", "runs/none"))
    ended = llmtool("prepare", "like.yaml", cwd=place)
    assert ended.code == 2
    assert "neither prepared data (no card.json) nor a checkpoint (no llmtool.json)" in ended.err


def test_prepare_shows_what_is_learned(llmtool: Run, place: Path) -> None:
    ended = llmtool("prepare", "chat.yaml", cwd=place)
    assert ended.code == 0, ended.err
    assert (
        "⟦0!<|im_end|>⟧\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n⟦0.<|im_end|>⟧"
        in ended.out
    )
    assert "conversations: messages (messages), found by its columns; the chat template chatml" in ended.out
    assert "% are learned" in ended.out
    shown = (place / "runs/chat/prepare/mask.txt").read_text()
    assert shown.count("---") == 3
    assert shown.count("⟦") == 1 + 2 * 3
    state = json.loads((place / "runs/chat/prepare/card.json").read_text())["encoder"]
    assert state["format"] == {"form": "messages", "columns": {"messages": "messages"}, "found": True}
    assert state["template"]["text"] == (place / "runs/chat/prepare/chat_template.jinja").read_text()


def test_the_whole_chain_of_an_array_of_questions(llmtool: Run, place: Path) -> None:
    pairs = [{"frage": f"what is {n}?", "antwort": f"it is {n}", "id": n} for n in range(80)]
    (place / "pairs.json").write_text(json.dumps(pairs, indent=1))
    text = YAML.replace("{format: jsonl, path: chats.jsonl}", "{format: json, path: pairs.json}")
    text = text.replace("template: chatml", "template: plain, columns: {prompt: frage, completion: antwort}")
    (place / "chat.yaml").write_text(text + "evaluate: {samples: {prompts: [what], tokens: 4}}\n")
    assert llmtool("describe", "chat.yaml", cwd=place).code == 0  # before there is data: it is guessed
    for command in ("train", "finetune", "evaluate", "describe"):
        ended = llmtool(command, "chat.yaml", cwd=place)
        assert ended.code == 0, ended.err
    assert "80" in llmtool("prepare", "chat.yaml", "--force", cwd=place).out
    assert llmtool("describe", "runs/chat/finetune", cwd=place).code == 0
    proof = llmtool("train", "chat.yaml", "--verify", "invariance", cwd=place)
    assert proof.code == 0, proof.err


def test_a_row_that_diverges_is_told_as_text(llmtool: Run, place: Path) -> None:
    asked = ["--set", "train.optimizer={name: sgd, lr: 1.0e+30}", "--set", "train.clip=null"]
    ended = llmtool("train", "chat.yaml", *asked, cwd=place)
    assert ended.code == 5, ended.err
    (rows,) = (place / "runs/chat/train/divergence").rglob("rows.jsonl")
    worst = json.loads(rows.read_text().splitlines()[0])
    assert "<|im_start|>assistant" in json.dumps(worst)
    assert "chats.jsonl:" in json.dumps(worst)
