"""Which tokens have a role, by the files beside a tokenizer, and that transformers reads the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from llmtool.data import special_tokens
from llmtool.data.prompts import PromptTokenizer
from llmtool.data.special_tokens import CONFIG, MAP, MODEL
from llmtool.data.tokenizers import FileTokenizer

FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
NAMES: dict[str, Any] = {"bos_token": "<a>", "eos_token": {"content": "<b>", "__type": "AddedToken"}}


def directory_with(directory: Path, contents: dict[str, Any]) -> Tokenizer:
    """A tokenizer with four control tokens, and these files beside it."""
    tokenizer = Tokenizer(models.WordLevel({"word": 0}, unk_token="word"))
    tokenizer.add_special_tokens(["<|endoftext|>", "<a>", "<b>", "<c>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    for name, content in contents.items():
        (directory / name).write_text(json.dumps(content))
    return tokenizer


@pytest.mark.parametrize(
    ("contents", "begin", "end"),
    [
        ({CONFIG: FAST | NAMES}, 2, 3),
        ({CONFIG: FAST, MAP: {"bos_token": "<a>", "eos_token": {"content": "<b>"}}}, 2, 3),
        ({CONFIG: FAST | NAMES, MAP: {"eos_token": "<c>"}}, 2, 4),
        ({CONFIG: FAST | NAMES | {"added_tokens_decoder": {}}, MAP: {"eos_token": "<c>"}}, 2, 3),
    ],
)
def test_names_are_those_of_transformers(
    tmp_path: Path, contents: dict[str, Any], begin: int, end: int
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = directory_with(tmp_path, contents)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (begin, end)
    assert special_tokens.begin_of(tmp_path, tokenizer) == begin
    assert special_tokens.end_of(tmp_path, tokenizer) == end


@pytest.mark.parametrize(
    ("model", "begin", "end"),
    [
        ({"bos_token_id": 2, "eos_token_id": 3}, 2, 3),
        ({"eos_token_id": [4, 3]}, None, 4),
        ({"bos_token_id": 0, "eos_token_id": None}, None, 1),  # a word, nothing: the usual name
        ({"bos_token_id": 99, "eos_token_id": {}}, None, 1),
        ([], None, 1),
    ],
)
def test_what_is_not_named_has_an_id_in_the_models_file(
    tmp_path: Path, model: Any, begin: int | None, end: int
) -> None:
    """As GPT-2's directory on the hub has it: a tokenizer_config.json that names nothing."""
    directory_with(tmp_path, {CONFIG: {"model_max_length": 1024}, MODEL: model})
    found = PromptTokenizer.read(tmp_path)
    assert (found.begin, found.end) == (begin, end)
    assert FileTokenizer(path=str(tmp_path)).fit(lambda: iter(())).end == end


def test_files_are_those_that_are_read(tmp_path: Path) -> None:
    directory_with(tmp_path, {MAP: {}, MODEL: {}})
    assert [path.name for path in special_tokens.files(tmp_path)] == [MAP, MODEL]
    (tmp_path / CONFIG).write_text(json.dumps(NAMES))
    assert [path.name for path in special_tokens.files(tmp_path)] == [CONFIG, MAP]
    (tmp_path / CONFIG).write_text(json.dumps(NAMES | {"added_tokens_decoder": {}}))
    assert [path.name for path in special_tokens.files(tmp_path)] == [CONFIG]
