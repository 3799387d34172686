"""generate: prompts from the command line and from files, of runs, checkpoints and models of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtool.core.contracts import NextToken, Tokens
from llmtool.data.tokenizers import BytesTokenizer
from llmtool.models import pretrained
from llmtool.models.transformer import TransformerConfig
from tests.conftest import Run
from tests.data import templates

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_one_text_comes_as_it_is_and_several_together(finished: Path, llmtool: Run) -> None:
    one = llmtool("generate", "text.yaml", "--prompt", "the", "--tokens", 12, cwd=finished)
    assert one.code == 0, one.err
    several = ("--prompt", "the", "--prompt", "a king", "--tokens", 12, "--count", 2)
    found = llmtool("generate", "text.yaml", *several, "--json", cwd=finished).json
    assert found["model"]["path"].startswith("runs/text/finetune/")
    assert [text["prompt"] for text in found["texts"]] == ["the", "the", "a king", "a king"]
    assert found["texts"][0]["text"] == one.out[:-1]  # the same beside others
    assert found["texts"][0]["text"] != found["texts"][1]["text"]
    assert found["tokens"] == sum(text["tokens"] for text in found["texts"])
    other = llmtool("generate", "text.yaml", "--prompt", "the", "--tokens", 12, "--seed", 5, cwd=finished)
    assert other.out != one.out
    shown = llmtool("generate", "runs/text", *several, cwd=finished)
    assert shown.out.count("--- after 'a king'") == 2
    of = ("--of", "runs/text/train", "--temperature", 0, "--json")
    trained = llmtool("generate", "text.yaml", *several, *of, cwd=finished).json
    assert trained["model"]["path"].startswith("runs/text/train/")
    assert trained["texts"][0]["text"] == trained["texts"][1]["text"]


def test_prompts_from_a_file_and_texts_into_one(copy: Path, llmtool: Run) -> None:
    (copy / "p.txt").write_text("the king\n\n a queen\n")
    (copy / "p.jsonl").write_text('{"prompt": "the king", "id": 7}\n{"prompt": " a queen"}\n')
    made = []
    for name in ("p.txt", "p.jsonl"):
        ended = llmtool(
            "generate", "text.yaml", "--prompts", name, "--out", "o.jsonl", "--tokens", 9, cwd=copy
        )
        assert ended.code == 0, ended.err
        assert "2 texts: o.jsonl" in ended.out
        made.append([json.loads(line) for line in (copy / "o.jsonl").read_text().splitlines()])
    assert made[0] == made[1]
    assert [one["prompt"] for one in made[0]] == ["the king", " a queen"]
    assert made[0][0].keys() == {"prompt", "text", "ended", "tokens", "prompt_tokens"}
    longest = max(made[0], key=lambda one: len(one["text"]))
    stop = longest["text"][-1:]
    cut = ("--prompt", longest["prompt"], "--tokens", 9, "--stop", stop)
    ended = llmtool("generate", "text.yaml", *cut, "--json", cwd=copy)
    text = longest["text"]
    assert ended.json["texts"][0]["text"] == text[: text.index(stop)]
    assert ended.json["texts"][0]["ended"] == "stop"


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """A model of others with a chat template; its turns end in the tokenizer's end token."""
    base = tmp_path / "chat"
    base.mkdir()
    torch.manual_seed(0)
    config = TransformerConfig(architecture="llama", width=32, heads=2, depth=1, context=64)
    model: Any = config.build(Tokens(257), NextToken(257))
    pretrained.save(model, base)
    BytesTokenizer().fit(lambda: iter(())).save(base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    return base


def test_chat_models_are_asked_through_their_template(chat: Path, tmp_path: Path, llmtool: Run) -> None:
    ask = lambda *given: llmtool("generate", "chat", *given, "--tokens", 5, "--json", cwd=tmp_path)  # noqa: E731
    found = ask("--prompt", "Hi <|endoftext|>").json
    assert found["chat"]
    text = found["texts"][0]
    # what a user spells out is no control token: 16 bytes of it
    assert text["prompt_tokens"] == len("[user] Hi <|endoftext|>") + 1 + len("[assistant] ")
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    spoken = ask("--prompts", "m.jsonl").json["texts"][0]
    assert spoken["prompt_tokens"] == len("[system] S[user] Hi[assistant] ") + 2
    assert spoken["messages"] == messages
    raw = ask("--prompt", "Hi", "--raw").json
    assert not raw["chat"]
    assert raw["texts"][0]["prompt_tokens"] == 2
    ended = ask("--prompts", "m.jsonl", "--raw")
    assert (ended.code, "--raw leaves its template out" in ended.error) == (2, True)


def test_calls_and_tools_are_asked_in_the_form_that_is_learned(
    chat: Path, tmp_path: Path, llmtool: Run
) -> None:
    settings = json.loads((chat / "tokenizer_config.json").read_text())
    template = templates.TOOLS.replace("<|im_end|>", "<|endoftext|>")
    (chat / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": "y"}'}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "a"},
    ]
    asked = [
        {"messages": messages},
        {"messages": messages, "tools": tools},
        {"prompt": "Hi", "tools": tools},
        {"prompt": "Hi", "tools": "another column"},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, asked)))
    ended = llmtool("generate", "chat", "--prompts", "m.jsonl", "--tokens", 1, "--json", cwd=tmp_path)
    assert ended.code == 0, ended.err
    system = f"<|im_start|>system\n# Tools\n{json.dumps(tools[0])}\n<|im_end|>\n"
    turn, answer = "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|>assistant\n"
    called = '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"x": "y"}}\n</tool_call>'
    called += "<|im_end|>\n"
    heard = "<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n"
    texts = [turn + called + heard + answer, system + turn + called + heard + answer]
    texts += [system + turn + answer, turn + answer]
    assert [one["prompt_tokens"] for one in ended.json["texts"]] == [
        len(text.replace("<|im_end|>", ".")) for text in texts
    ]
    assert ended.json["texts"][1].items() >= asked[1].items()
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": [{"role": "wizard", "content": "Hi"}]}))
    refused = llmtool("generate", "chat", "--prompts", "m.jsonl", cwd=tmp_path)
    assert (refused.code, "m.jsonl:1: unknown role 'wizard'" in refused.error) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("text.yaml",), 2, "Give --prompt TEXT or --prompts FILE"),
        (("text.yaml", "--prompt", "a", "--tokens", 0), 2, "--tokens 0: must be 1 or more"),
        (("text.yaml", "--prompt", "a", "--top-p", 1.5), 2, "--top-p 1.5: must be above 0, at most 1"),
        (("text.yaml", "--prompt", "a", "--temperature", "nan"), 2, "--temperature nan: must be 0 or more"),
        (("text.yaml", "--prompt", "a", "--stop", ""), 2, "--stop: an empty text stands everywhere"),
        (("text.yaml", "--prompts", "nowhere.txt"), 4, "nowhere.txt: no such file"),
        (("text.yaml", "--prompts", "people.csv"), 4, "people.csv:2: neither a text `prompt` nor `messages`"),
        (("table.yaml", "--prompt", "a"), 2, "is no language model: it writes no text"),
        (("nowhere", "--prompt", "a"), 2, "nowhere: no such file"),
        (("runs/text", "--prompt", "a", "--of", "x"), 2, "--of names another model than a file's run"),
        (("runs/text/prepare", "--prompt", "a"), 2, "no trained model here"),
        (("text.yaml", "--prompt", "a", "--set", "run=runs/new"), 2, "has no trained model yet"),
    ],
)
def test_what_cannot_be_written(
    finished: Path, llmtool: Run, arguments: tuple[Any, ...], code: int, says: str
) -> None:
    ended = llmtool("generate", *arguments, cwd=finished)
    assert (ended.code, says in ended.error) == (code, True), ended.err
