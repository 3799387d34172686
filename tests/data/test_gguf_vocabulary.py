"""Tokenizers for GGUF: kinds, merges and scores, and that what cuts texts otherwise is refused or said."""

from __future__ import annotations

import heapq
import json
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmtool.core.errors import ConfigError
from llmtool.data import gguf_vocabulary
from llmtool.data.gguf_vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED
from llmtool.data.tokenizers import PATTERN, BpeTokenizer, BytesTokenizer, CharactersTokenizer
from tests.conftest import story

TEXTS = ["the old king said", " went home.  a red\ncat", "Zug, 2024: ünï", "a", ""]


def sentencepiece(directory: Path) -> Tokenizer:
    """A small tokenizer of SentencePiece's kind, learned here."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+|▁"), "isolated")
    learner.train_from_iterator([story(80)], trainers.BpeTrainer(vocab_size=150, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    ids = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    made = {token: rank for rank, token in enumerate("".join(pair) for pair in learned["merges"])}
    # SentencePiece's own converters list every pair that makes a token, the best tokens first
    pairs = [
        (token[:at], token[at:])
        for token in made
        for at in range(1, len(token))
        if token[:at] in ids and token[at:] in ids
    ]
    model = models.BPE(vocab=ids, merges=pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


def by_scores(words: gguf_vocabulary.Vocabulary, text: str) -> list[int]:
    """SentencePiece's BPE as llama.cpp has it, written anew: the best-scored neighbours merge, then bytes."""
    ids = {token: number for number, token in enumerate(words.tokens)}
    parts: list[str] = list(("▁" if words.blank_before and text else "") + text.replace(" ", "▁"))
    while True:
        found = [
            (-words.scores[ids[a + b]], at)
            for at, (a, b) in enumerate(pairwise(parts))
            if a + b in ids and words.kinds[ids[a + b]] == NORMAL
        ]
        if not found:
            break
        _, at = heapq.nsmallest(1, found)[0]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    result = [words.begin] if words.add_begin else []
    for part in parts:
        result += [ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
    return result


def test_sentencepiece_gives_the_same_ids_by_scores(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    words = gguf_vocabulary.read(tmp_path, 600, [2], None)
    assert (words.kind, words.begin, words.add_begin, words.blank_before, words.notes) == (
        "llama", 1, True, True, [],
    )  # fmt: skip
    assert words.kinds[:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert (words.tokens[-1], words.kinds[-1]) == ("[PAD599]", UNUSED)
    for text in [*TEXTS, *story(20, seed=5).split("\n\n")]:
        assert by_scores(words, text) == tokenizer.encode(text).ids, text


def test_merges_that_scores_cannot_say_are_told(tmp_path: Path) -> None:
    sentencepiece(tmp_path)
    form = json.loads((tmp_path / "tokenizer.json").read_text())
    lost = next(pair for pair in form["model"]["merges"] if len("".join(pair)) > 2)
    form["model"]["merges"].remove(lost)
    (tmp_path / "tokenizer.json").write_text(json.dumps(form))
    assert "some texts may be cut otherwise" in gguf_vocabulary.read(tmp_path, 600, [2], None).notes[0]


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_ours_of_bytes(kind: str, tmp_path: Path) -> None:
    config = BpeTokenizer(vocabulary=300) if kind == "bpe" else BytesTokenizer()
    fitted = config.fit(lambda: iter([story()]))
    fitted.save(tmp_path)
    words = gguf_vocabulary.read(tmp_path, fitted.vocabulary, [fitted.end], "a template")
    assert words.pre == ("dbrx" if kind == "bpe" else "gpt-2")
    assert words.template == "a template"
    assert words.kinds[fitted.end] == CONTROL
    assert (words.begin, words.add_begin) == (None, False)
    # what is in the file is the tokenizer: built again from it, it gives the same ids
    ids = {t: i for i, (t, k) in enumerate(zip(words.tokens, words.kinds, strict=True)) if k == NORMAL}
    again = Tokenizer(models.BPE(vocab=ids, merges=[tuple(pair.split(" ")) for pair in words.merges]))
    again.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    for text in TEXTS:
        assert again.encode(text).ids == fitted.tokenizer.encode(text).ids


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
BARE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
DIGITS = pre_tokenizers.Split(Regex(gguf_vocabulary.DIGITS), "isolated")
LLAMA3 = pre_tokenizers.Split(Regex(PATTERN), "isolated")


@pytest.mark.parametrize(
    ("step", "ignore", "name"),
    [
        (BYTES, False, "gpt-2"),
        (pre_tokenizers.Sequence([DIGITS, BARE]), False, "qwen2"),
        (pre_tokenizers.Sequence([LLAMA3, BARE]), True, "llama-bpe"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]), False, "smollm"),
        (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("a+"), "isolated"), BARE]), False, None),
        (BARE, False, None),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), False, None),
    ],
)
def test_patterns_have_names_or_are_refused(
    step: pre_tokenizers.PreTokenizer, ignore: bool, name: str | None, tmp_path: Path
) -> None:
    ids = {token: number for number, token in enumerate([*sorted(BYTES.alphabet()), "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[("t", "h")], ignore_merges=ignore))
    tokenizer.pre_tokenizer = step
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    if name is None:
        with pytest.raises(ConfigError, match="has no form of this tokenizer"):
            gguf_vocabulary.read(tmp_path, 300, [5], None)
    else:
        assert gguf_vocabulary.read(tmp_path, 300, [5], None).pre == name


def test_what_the_format_cannot_say_is_told(tmp_path: Path) -> None:
    fitted = BytesTokenizer().fit(lambda: iter(()))
    fitted.save(tmp_path)
    form = json.loads((tmp_path / "tokenizer.json").read_text())
    form["normalizer"] = {"type": "NFC"}
    form["added_tokens"][0]["rstrip"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(form))
    words = gguf_vocabulary.read(tmp_path, 300, [50_256, 299, 256], None)
    assert words.ends == [256]  # the others are no tokens of it
    assert [note.split(" ")[:3] for note in words.notes] == [
        ["llama.cpp", "does", "not"],
        ["llama.cpp", "keeps", "the"],
    ]
    form["model"]["end_of_word_suffix"] = "</w>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(form))
    with pytest.raises(ConfigError, match="signs for the parts of a word"):
        gguf_vocabulary.read(tmp_path, 300, [256], None)


def test_what_has_no_form(tmp_path: Path) -> None:
    fitted = CharactersTokenizer().fit(lambda: iter(["abc"]))
    fitted.save(tmp_path)
    with pytest.raises(ConfigError, match="characters without a form"):
        gguf_vocabulary.read(tmp_path, 10, [4], None)
    with pytest.raises(ConfigError, match="the id 4, and the model only 3 tokens"):
        gguf_vocabulary.read(tmp_path, 3, [4], None)
    with pytest.raises(ConfigError, match=r"no token of .* is known to end a text"):
        gguf_vocabulary.read(tmp_path, 10, [], None)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="a WordLevel tokenizer"):
        gguf_vocabulary.read(tmp_path, 10, [4], None)
