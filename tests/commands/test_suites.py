"""Suites through the commands: asked, kept, required, compared, before and after fine-tuning, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run

SUITES = """[
  {kind: last_word, path: words.jsonl},
  {kind: multiple_choice, path: choices.json, name: choice},
  {kind: exact_match, path: sums.csv, tokens: 4, stop: [q]},
  {kind: perplexity, path: story.txt, documents: lines, limit: 5, name: tale}]"""
CHAT = """
data:
  source: {format: jsonl, path: chats.jsonl}
  split: {by: random, train: 0.6, validation: 0.2, test: 0.2}
  encode: {as: chat, template: plain, tokenizer: {kind: bytes}}
model: {family: transformer, depth: 1, heads: 2, width: 16, context: 96}
train: {budget: {steps: 2}, batch: 2}
"""
LIKE = ("--set", f"evaluate.suites={SUITES}", "--set", "evaluate.samples=null")


@pytest.fixture
def asked(copy: Path) -> Path:
    words = "".join(json.dumps({"text": f"the king went {way}"}) + "\n" for way in ("home", "away") * 6)
    (copy / "words.jsonl").write_text(words)
    choices = [{"question": "who", "choices": ["king", "zzz"], "answer": n % 2} for n in range(8)]
    (copy / "choices.json").write_text(json.dumps(choices))
    (copy / "sums.csv").write_text("question,answer\none,#### 1\ntwo,#### 2\n")
    return copy


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_evaluate_asks_keeps_and_recalls(asked: Path, llmtool: Run) -> None:
    require = ("--set", 'evaluate.require={suites.words.perplexity: ">1", suites.choice.accuracy.low: ">=0"}')
    ended = llmtool("evaluate", "text.yaml", *LIKE, *require, cwd=asked)
    assert ended.code == 0, ended.err
    assert "suites.words.perplexity is" in ended.out
    place = asked / "runs/text/evaluate"
    report, result = read(place / "report.json"), read(place / "result.json")
    assert {name: one["questions"] for name, one in report["suites"].items()} == {
        "words": 12, "choice": 8, "sums": 2, "tale": 5,
    }  # fmt: skip
    assert result["suites"] == report["suites"]
    lines = [json.loads(line) for line in (place / "suites/words.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert lines[0].keys() == {"question", "line", "word", "right", "nats"}
    assert 'suites="' not in (place / "report.html").read_text()
    assert "<h2>Suites</h2>" in (place / "report.html").read_text()
    links = [link for link in report["lineage"]["links"] if link["what"] == "questions"]
    assert [link["where"] for link in links] == ["words.jsonl", "choices.json", "sums.csv", "story.txt"]
    # Nothing has changed; another requirement asks nothing again; another file does.
    assert "nothing has changed" in llmtool("evaluate", "text.yaml", *LIKE, *require, cwd=asked).out
    again = llmtool("evaluate", "text.yaml", *LIKE, cwd=asked)
    assert "words and choice and sums and tale: these weights answered before" in again.err
    assert read(place / "report.json")["suites"] == report["suites"]
    with (asked / "words.jsonl").open("a") as file:
        file.write('{"text": "the old cat"}\n')
    more = llmtool("evaluate", "text.yaml", *LIKE, cwd=asked)
    assert "choice and sums and tale: these weights answered before" in more.err
    assert read(place / "report.json")["suites"]["words"]["questions"] == 13
    assert llmtool("describe", "runs/text", cwd=asked).code == 0
    (place / "suites/tale.jsonl").write_text("")
    ended = llmtool("describe", "runs/text", cwd=asked)
    assert "suites/tale.jsonl: the content has changed since it was written" in ended.out


def test_evaluations_are_compared_and_gated_by_their_change(asked: Path, llmtool: Run) -> None:
    text = (asked / "text.yaml").read_text().replace("steps: 12", "steps: 60").replace("finetune:", "#")
    (asked / "other.yaml").write_text(text)
    for command in ("train", "evaluate"):
        assert llmtool(command, "other.yaml", *LIKE, cwd=asked).code == 0
    gate = 'evaluate.require={suites.tale.bits_per_byte.change: "<0"}'
    set_ = (*LIKE, "--set", "evaluate.compare=runs/other", "--set", gate)
    ended = llmtool("evaluate", "text.yaml", *set_, cwd=asked)
    assert ended.code == 3
    assert "tale bits_per_byte: worse by" in ended.out
    beside = read(asked / "runs/text/evaluate/report.json")["suites"]["tale"]["comparison"]
    theirs = read(asked / "runs/other/evaluate/report.json")["suites"]["tale"]["metrics"]
    assert beside["figures"]["bits_per_byte"]["there"] == theirs["bits_per_byte"]
    ended = llmtool("report", "runs/text", "runs/other", cwd=asked)
    assert ended.code == 0, ended.err
    assert "suites.tale bits_per_byte" in ended.out
    found = llmtool("describe", "runs/text", "runs/other", "--json", cwd=asked).json["metrics"]
    values = next(
        one["values"] for one in found if one["split"] == "suites.tale" and one["name"] == "bits_per_byte"
    )
    assert values[1] == theirs["bits_per_byte"]


def test_finetune_shows_what_was_forgotten(asked: Path, llmtool: Run) -> None:
    sets = (*LIKE, "--set", "finetune.budget.steps=4")
    ended = llmtool("finetune", "text.yaml", *sets, cwd=asked)
    assert ended.code == 0, ended.err
    assert "tale" in ended.out
    found = read(asked / "runs/text/finetune/result.json")["suites"]
    assert found.keys() == {"before", "after", "changes"}
    change = found["changes"]["tale"]["bits_per_byte"]
    values = [found[when]["tale"]["metrics"]["bits_per_byte"] for when in ("after", "before")]
    assert change["difference"] == pytest.approx(values[0] - values[1])
    assert change["interval"] is not None
    # evaluate knows the answers already, and they are these
    ended = llmtool("evaluate", "text.yaml", *sets, cwd=asked)
    assert "words and choice and sums and tale: these weights answered before" in ended.err
    assert (
        read(asked / "runs/text/evaluate/report.json")["suites"]["tale"]["metrics"]
        == found["after"]["tale"]["metrics"]
    )
    # another question is no reason to train again
    fewer = ("--set", "evaluate.suites.0.limit=3")
    assert "nothing has changed" in llmtool("finetune", "text.yaml", *sets, *fewer, cwd=asked).out


def test_chat_models_are_asked_through_their_template(asked: Path, llmtool: Run) -> None:
    chats = [{"prompt": f"who is {n}", "completion": "king" if n % 2 else "cat"} for n in range(40)]
    (asked / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (asked / "chat.yaml").write_text(CHAT)
    assert llmtool("train", "chat.yaml", cwd=asked).code == 0
    found = {}
    for chat in ("false", "auto", "true"):
        suites = f"[{{kind: multiple_choice, path: choices.json, chat: {chat}}}]"
        ended = llmtool("evaluate", "chat.yaml", "--set", f"evaluate.suites={suites}", cwd=asked)
        assert ended.code == 0, ended.err
        lines = (asked / "runs/chat/evaluate/suites/choices.jsonl").read_text().splitlines()
        found[chat] = [json.loads(line)["log_likelihoods"] for line in lines]
    assert found["auto"] == found["true"] != found["false"]
    suites = "evaluate.suites=[{kind: multiple_choice, path: choices.json, chat: true}]"
    ended = llmtool("evaluate", "text.yaml", "--set", suites, cwd=asked)
    assert ended.code == 2
    assert "`chat: true`, but runs/text/finetune" in ended.error


def test_what_cannot_be_asked(asked: Path, llmtool: Run) -> None:
    def error(project: str, suites: str) -> tuple[int, str]:
        ended = llmtool("evaluate", f"{project}.yaml", "--set", f"evaluate.suites={suites}", cwd=asked)
        return ended.code, ended.error

    code, said = error("table", "[{kind: last_word, path: words.jsonl}]")
    assert (code, "evaluate.suites: are for language models; this model writes no text" in said) == (2, True)
    code, said = error("text", "[{kind: last_word, path: nowhere.jsonl}]")
    assert (code, "evaluate.suites: nowhere.jsonl: no such file" in said) == (2, True)
    code, said = error("text", "[{kind: last_word, path: choices.json}]")
    assert (code, said) == (4, "choices.json:1: no 'text' (its fields: question, choices, answer)")
    code, said = error("text", "[{kind: exact_match, path: sums.csv, tokens: 16}]")
    assert code == 2
    assert "sums: `tokens: 16` leave no room for a prompt: the model's context is 16" in said
