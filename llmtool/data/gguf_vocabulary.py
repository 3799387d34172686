"""A tokenizer.json as llama.cpp knows tokenizers: tokens with their kinds, and merges or scores.

llama.cpp has two that decoders use. "gpt2": bytes merged in the order of a list, after a text was split by a
pattern that has a name there. "llama": characters merged by the score of what they make (SentencePiece's
BPE), other characters as bytes. What is neither is refused: a file that cuts texts otherwise is no help.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import special_tokens
from llmtool.data.special_tokens import CONFIG
from llmtool.data.tokenizers import FILE, PATTERN, read_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # the format's kinds of tokens
BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's
DIGITS = PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")  # Qwen 2's pattern: every digit a token
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# pattern -> llama.cpp's name of it; of the first, Llama 3 takes whole words that are tokens before any merge
PATTERNS = {PATTERN: "dbrx", DIGITS: "qwen2", GPT2: "gpt-2"}


@dataclass
class Vocabulary:
    """What a GGUF file says of a tokenizer. kind: "gpt2" or "llama"; pre: the pattern's name there.

    ends: the ids that end a text or a turn, the first first. notes: where texts may be cut otherwise.
    """

    kind: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    ends: list[int]
    begin: int | None
    add_begin: bool
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    unknown: int | None = None
    padding: int | None = None
    blank_before: bool = False
    template: str | None = None
    notes: list[str] = field(default_factory=list)


def read(directory: Path, size: int, ends: list[int], template: str | None) -> Vocabulary:
    """The tokenizer of a model directory, filled up to `size` tokens, the rows of the model's embedding.

    ends: ids that end a text. ConfigError for a tokenizer that llama.cpp has no form of.
    """
    path = directory / FILE
    try:
        tokenizer = read_tokenizer(path)
    except DataError as error:
        raise ConfigError(f"--to gguf: {error}") from None
    form = json.loads(path.read_bytes())
    model = form["model"]
    if model.get("type") != "BPE":
        raise _refused(path, f"a {model.get('type')} tokenizer")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refused(path, "signs for the parts of a word")
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if max(ids.values()) >= size:
        raise ConfigError(
            f"--to gguf: {path} has the id {max(ids.values())}, and the model only {size} tokens"
        )
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [UNUSED] * size
    for token, number in ids.items():
        tokens[number], kinds[number] = token, NORMAL
    for added in form.get("added_tokens") or []:
        kinds[ids[added["content"]]] = CONTROL if added.get("special") else USER_DEFINED
    begin, add_begin = _begin(tokenizer, directory)
    ends = [end for end in ends if 0 <= end < size and kinds[end] != UNUSED]
    if not ends:
        raise ConfigError(f"--to gguf: no token of {path} is known to end a text (eos_token in {CONFIG})")
    found = Vocabulary("gpt2", "default", tokens, kinds, ends, begin, add_begin, template=template)
    found.padding = ids.get(special_tokens.read(directory, tokenizer).get("pad_token", ""))
    if _has(form.get("pre_tokenizer"), "ByteLevel"):
        found.pre = _pattern(form, path)
        found.merges = [" ".join(pair) for pair in _pairs(model)]
    elif model.get("byte_fallback"):
        _sentencepiece(found, form, ids, path)
    else:
        raise _refused(path, "characters without a form for those that are unknown")
    found.notes += _unsaid(form)
    return found


def _unsaid(form: dict[str, Any]) -> list[str]:
    """What of a tokenizer the format has no words for."""
    notes = []
    if any(step["type"] == "NFC" for step in _parts(form.get("normalizer"), "normalizers")):
        notes.append("llama.cpp does not compose accents (NFC) as this tokenizer does before it cuts")
    stripped = [a["content"] for a in form.get("added_tokens") or [] if a.get("lstrip") or a.get("rstrip")]
    if stripped:
        notes.append(f"llama.cpp keeps the blanks beside {stripped[0]!r}, which this tokenizer takes away")
    return notes


def _refused(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"--to gguf: {path}: llama.cpp has no form of this tokenizer ({what}); it has byte-level BPE with "
        "the patterns of GPT-2, Llama 3, Qwen 2 or SmolLM, and SentencePiece's BPE with bytes"
    )


def _pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    split = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    return [(first, second) for first, second in split]


def _parts(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """A normalizer's or pre-tokenizer's steps."""
    if step is None:
        return []
    return step[inner] if step.get("type") == "Sequence" else [step]


def _has(step: dict[str, Any] | None, kind: str) -> bool:
    return any(part.get("type") == kind for part in _parts(step, "pretokenizers"))


def _pattern(form: dict[str, Any], path: Path) -> str:
    """llama.cpp's name for how a text is split before bytes are merged."""
    steps = _parts(form["pre_tokenizer"], "pretokenizers")
    model = form["model"]
    last = steps[-1]
    other = [part["type"] for part in _parts(form.get("normalizer"), "normalizers") if part["type"] != "NFC"]
    if last.get("add_prefix_space") or last["type"] != "ByteLevel" or other:
        raise _refused(path, "a blank before every text, or changes to it")
    before, splits = steps[:-1], last.get("use_regex", True)
    kinds = [step["type"] for step in before]
    if not before and (splits or not model["merges"]):
        return "gpt-2"
    if kinds == ["Digits"] and before[0].get("individual_digits") and splits:
        return "smollm"
    if kinds == ["Split"] and not splits and before[0].get("behavior") == "Isolated":
        pattern = str((before[0].get("pattern") or {}).get("Regex"))
        name = PATTERNS.get(pattern)
        if name is not None:
            return "llama-bpe" if name == "dbrx" and model.get("ignore_merges") else name
    raise _refused(path, "its pattern has no name there")


def _sentencepiece(found: Vocabulary, form: dict[str, Any], ids: dict[str, int], path: Path) -> None:
    """Scores in place of merges: what is merged first scores highest."""
    spaces = _parts(form.get("pre_tokenizer"), "pretokenizers")
    steps = _parts(form.get("normalizer"), "normalizers")
    meta = next((step for step in spaces if step["type"] == "Metaspace"), None)
    blanks = meta is not None or any(step.get("content") == BLANK for step in steps)
    if not blanks:
        raise _refused(path, "no sign for blanks")
    found.kind = "llama"
    prepends = any(step["type"] == "Prepend" for step in steps)
    found.blank_before = prepends if meta is None else meta.get("prepend_scheme", "always") != "never"
    found.unknown = ids.get(form["model"].get("unk_token") or "")
    if found.unknown is not None:
        found.kinds[found.unknown] = UNKNOWN
    for number in range(256):
        token = f"<0x{number:02X}>"
        if token not in ids:
            raise _refused(path, f"no token for the byte {number}")
        found.kinds[ids[token]] = BYTE
    pairs = _pairs(form["model"])
    made: dict[str, int] = {}
    for rank, (first, second) in enumerate(pairs):
        made.setdefault(first + second, rank)
    lowest = -float(len(pairs) + 1)
    scores = [lowest if kind == NORMAL else 0.0 for kind in found.kinds]
    for token, rank in made.items():
        if found.kinds[ids[token]] == NORMAL:
            scores[ids[token]] = -float(rank + 1)
    found.scores = scores
    if said := _otherwise(pairs, ids, found.kinds):
        found.notes.append(said)


def _otherwise(pairs: list[tuple[str, str]], ids: dict[str, int], kinds: list[int]) -> str | None:
    """Where merging by scores differs from merging by the list: a pair that makes a token and is not listed,
    or a token whose pairs do not stand together."""
    listed = set(pairs)
    for token, number in ids.items():
        if kinds[number] != NORMAL:
            continue
        for at in range(1, len(token)):
            pair = (token[:at], token[at:])
            if pair[0] in ids and pair[1] in ids and pair not in listed:
                return (
                    f"llama.cpp also makes {token!r} of {pair[0]!r} and {pair[1]!r}: "
                    "some texts may be cut otherwise"
                )
    groups = [token for token, _ in groupby(first + second for first, second in pairs)]
    if len(set(groups)) < len(groups):
        return "its merges are not in the order of what they make: llama.cpp may cut some texts otherwise"
    return None


def _begin(tokenizer: Any, directory: Path) -> tuple[int | None, bool]:
    """The token before every text, and whether the tokenizer puts it there itself."""
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    if len(whole) == len(bare) + 1 and whole[1:] == bare:
        return whole[0], True
    return special_tokens.begin_of(directory, tokenizer), False
