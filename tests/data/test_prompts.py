"""The tokenizer of a checkpoint as prompts are encoded with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from llmtool.core.errors import ConfigError, DataError
from llmtool.data.prompts import PromptTokenizer
from llmtool.data.tokenizers import BytesTokenizer


def with_begin(directory: Path) -> None:
    """A tokenizer of words that puts <s> before every text."""
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Fuse()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))


def test_begin_end_and_control_tokens(tmp_path: Path) -> None:
    with_begin(tmp_path)
    found = PromptTokenizer.read(tmp_path)
    assert (found.begin, found.end, found.prefix) == (1, 2, 1)
    assert found.encode(["a b a", "c </s>", ""]) == [[1, 3, 4, 3], [1, 0, 2], [1]]
    assert found.encode(["a"], special=False) == [[3]]
    assert found.decode([1, 3, 4, 2]) == "ab"


def test_a_tokenizer_of_ours_has_an_end_only(tmp_path: Path) -> None:
    BytesTokenizer(kind="bytes").fit(lambda: iter(())).save(tmp_path)
    found = PromptTokenizer.read(tmp_path)
    assert (found.begin, found.end, found.prefix) == (None, 256, 256)
    assert found.encode(["é"]) == [[0xC3, 0xA9]]
    assert found.decode([0xC3, 0xA9, 256]) == "é"
    (tmp_path / "tokenizer_config.json").write_text("[")
    assert PromptTokenizer.read(tmp_path).prefix == 256  # by its name


def test_a_vocabulary_without_a_begin_and_an_end(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 0}))
    with pytest.raises(ConfigError, match="names no token that begins or ends a text"):
        print(PromptTokenizer.read(tmp_path).prefix)  # that id is a word's


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this model reads no text"):
        PromptTokenizer.read(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="no usable tokenizer"):
        PromptTokenizer.read(tmp_path)
