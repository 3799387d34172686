"""Tokenizers: bytes, characters, words, BPE trained here, a given tokenizer.json; saved as Hugging Face does.

Text never forges a control token: an end-of-text mark written out in the data is encoded as ordinary text.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmtool.core import checkpoint, files, hub
from llmtool.core.config import Section
from llmtool.core.errors import ConfigError, DataError, LlmtoolError
from llmtool.data import special_tokens
from llmtool.data.special_tokens import CONFIG, MAX_BYTES

END = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
FILE = "tokenizer.json"
TRAINING_BYTES = 100_000_000  # the most text that a vocabulary is learned from
GROUP_CHARACTERS = 1 << 16
# How GPT-4 splits text before merging (cl100k_base, https://github.com/openai/tiktoken): on English prose a
# tenth fewer tokens than GPT-2's pattern at the same vocabulary, and at most three digits of a number in one.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Scripts that put no blank between words: each of their characters is a word of its own.
_SIGNS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# Words with what an apostrophe ties to them, numbers, single marks; blanks go.
WORD = rf"[{_SIGNS}]|[[\p{{L}}\p{{M}}\p{{N}}]&&[^{_SIGNS}]]+(?:['’]\p{{L}}+)*|[^\s\p{{L}}\p{{M}}\p{{N}}]"
ROLES = ("cls_token", "sep_token", "pad_token", "mask_token")

Texts = Callable[[], Iterator[str]]  # each call reads the train texts again


@dataclass
class FittedTokenizer:
    """A tokenizer ready to use. Ids lie below `vocabulary`; `end` closes a document; `unknown`: text lost;
    `begin` opens a document, where the tokenizer's own settings put one there."""

    kind: str
    tokenizer: Tokenizer
    vocabulary: int
    end: int | None
    unknown: int | None = None
    source: dict[str, str] = field(default_factory=dict)  # of a file: its path and hash
    begin: int | None = None
    roles: dict[str, str] = field(default_factory=dict)  # what encoders have besides: cls_token and so on
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokenizer.encode_special_tokens = (
            True  # the name says it: special tokens are encoded like any text
        )
        self._table = _character_table(self.tokenizer, self.unknown) if self.kind == "characters" else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As it was, in another process; the library does not send how special tokens are encoded."""
        self.__dict__ |= state
        self.tokenizer.encode_special_tokens = True

    def encode(self, texts: list[str]) -> list[Any]:
        """A sized thing for each text, which `ids` turns into numbers: the slow part, off the main thread."""
        if self.kind == "bytes":
            return [text.encode() for text in texts]
        if self._table is not None:
            return texts
        with readable_errors("the tokenizer failed on a text", lambda: unknown_word(self.tokenizer, texts)):
            return self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    def ids(self, encoded: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """(n,) ids of all the texts in one row, and (texts,) how many each has."""
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        if self.kind == "bytes":
            return np.frombuffer(b"".join(encoded), dtype=np.uint8), lengths
        if self._table is not None:
            points = np.frombuffer("".join(encoded).encode("utf-32-le"), dtype="<u4")
            return self._table[points], lengths
        merged: list[int] = []
        for encoding in encoded:
            merged += encoding.ids
        return np.fromiter(merged, dtype=np.uint32, count=len(merged)), lengths

    def around(self) -> tuple[list[int], list[int]]:
        """Ids before and after a text that its model reads whole: those that the file's post-processor adds
        ([CLS] and [SEP] of BERT); where it adds none, the end token in front, if there is one."""
        with readable_errors("the tokenizer failed on a text"):
            encoded = self.tokenizer.encode("a", add_special_tokens=True)
        added = np.array(encoded.special_tokens_mask, dtype=bool)
        if not added.any():
            return ([] if self.end is None else [self.end]), []
        own = np.flatnonzero(~added)  # of the text itself
        first, last = (int(own[0]), int(own[-1]) + 1) if len(own) else (len(added), len(added))
        return encoded.ids[:first], encoded.ids[last:]

    def say_around(self) -> None:
        """Have the file put the end token in front of a text itself, where it puts nothing around: others'
        tools then make the ids that the model reads."""
        if self.end is None or self.tokenizer.num_special_tokens_to_add(is_pair=False):
            return
        token = {"id": "end", "ids": [self.end], "tokens": [self.tokenizer.id_to_token(self.end)]}
        self.tokenizer.post_processor = processors.TemplateProcessing(
            single="end $A", pair="end $A end $B", special_tokens=[token]
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, control tokens written out; bytes that are no UTF-8 become U+FFFD."""
        with readable_errors("the tokenizer failed on these tokens"):
            return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def decode_all(self, rows: list[list[int]]) -> list[str]:
        """The same for many texts at once."""
        with readable_errors("the tokenizer failed on these tokens"):
            return self.tokenizer.decode_batch(rows, skip_special_tokens=False)

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, as transformers' AutoTokenizer reads them."""
        name = self.tokenizer.id_to_token
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        if self.end is not None:
            config["eos_token"] = name(self.end)
        if self.unknown is not None:
            config["unk_token"] = name(self.unknown)
        if self.begin is not None:
            config["bos_token"] = name(self.begin)
        config |= self.roles
        files.write_bytes(directory / FILE, self._bytes())
        files.write_json(directory / CONFIG, config)

    def _bytes(self) -> bytes:
        return self.tokenizer.to_str(pretty=True).encode()

    def state(self) -> dict[str, Any]:
        """What the card keeps; the vocabulary itself is in tokenizer.json, which `hash` names."""
        state = {
            "kind": self.kind,
            "vocabulary": self.vocabulary,
            "end": self.end,
            "unknown": self.unknown,
            "hash": files.hash_bytes(self._bytes()),
        }
        begin = {} if self.begin is None else {"begin": self.begin}
        return {**state, **begin, **({"source": self.source} if self.source else {})}

    @classmethod
    def from_state(cls, state: dict[str, Any], directory: Path) -> FittedTokenizer:
        """The tokenizer saved in `directory`; DataError when its file is not the one the state names."""
        path = directory / FILE
        tokenizer = read_tokenizer(path)
        if files.hash_file(path) != state["hash"]:
            raise DataError(
                f"{path}: is not the tokenizer that this data was prepared with (its hash differs)"
            )
        parts = (state["vocabulary"], state["end"], state["unknown"], state.get("source", {}))
        roles = _roles(directory, tokenizer)
        return cls(state["kind"], tokenizer, *parts, begin=state.get("begin"), roles=roles)

    @cached_property
    def is_local(self) -> bool:
        """Whether a text cut where a word ends has the ids of the whole: not so where a tokenizer puts a
        blank before every text (SentencePiece's in Llama 2, Gemma ...)."""
        ids = [self.ids(self.encode([text]))[0].tolist() for text in ("a b", "a", " b")]
        return ids[0] == ids[1] + ids[2]


class BytesTokenizer(Section):
    """Every UTF-8 byte is a token: 256 and the end. Nothing to learn, nothing unknown, long sequences."""

    kind: Literal["bytes"] = Field(default="bytes", description="A token for each UTF-8 byte.")

    def fit(self, texts: Texts) -> FittedTokenizer:
        """Reads no text."""
        alphabet = _byte_characters()
        tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END])
        return FittedTokenizer(self.kind, tokenizer, 257, end=256)


class CharactersTokenizer(Section):
    """Every character of the train text is a token; one that training did not see is unknown."""

    kind: Literal["characters"] = Field(default="characters", description="A token for each character.")

    def fit(self, texts: Texts) -> FittedTokenizer:
        """Reads all train texts once."""
        seen = np.zeros(0x110000, dtype=bool)
        for text in texts():
            seen[np.frombuffer(text.encode("utf-32-le"), dtype="<u4")] = True
        characters = [chr(point) for point in np.flatnonzero(seen)]
        vocabulary = {character: i for i, character in enumerate([*characters, UNKNOWN])}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens([UNKNOWN, END])
        size = len(vocabulary)
        return FittedTokenizer(self.kind, tokenizer, size + 1, end=size, unknown=size - 1)


class BpeTokenizer(Section):
    """Bytes merged by how often they stand together in the train text; nothing is unknown."""

    kind: Literal["bpe"] = Field(default="bpe", description="Byte pair encoding, trained on the train split.")
    vocabulary: int = Field(
        default=8192, ge=257, le=1_000_000, description="Tokens, bytes and the end included."
    )

    def fit(self, texts: Texts) -> FittedTokenizer:
        """Reads all train texts once; learns from at most TRAINING_BYTES of them, evenly taken."""
        sample = _Sample(texts())
        tokenizer = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
        join = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, join])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            special_tokens=[END],
            initial_alphabet=_byte_characters(),
            show_progress=False,
        )
        with readable_errors("training the tokenizer failed"):
            tokenizer.train_from_iterator(sample.groups(), trainer)
        size = tokenizer.get_vocab_size()
        notes = sample.notes()
        if size < self.vocabulary:
            notes.append(
                f"tokenizer: the train text gives {size:,} tokens, fewer than the {self.vocabulary:,} asked"
            )
        return FittedTokenizer(self.kind, tokenizer, size, end=tokenizer.token_to_id(END), notes=notes)


class WordsTokenizer(Section):
    """Words and marks, counted in the train text; in scripts without blanks each character is a word."""

    kind: Literal["words"] = Field(
        default="words",
        description="A token for each word and mark; of Chinese, Japanese and Thai for each character.",
    )
    vocabulary: int = Field(
        default=100_000, ge=2, le=10_000_000, description="The most words, the unknown one included."
    )
    minimum: int = Field(
        default=2, ge=1, description="Words that stand in the train text fewer times are unknown."
    )
    lowercase: bool = Field(default=True, description="Whether Film and film are one word.")

    def fit(self, texts: Texts) -> FittedTokenizer:
        """Reads all train texts once; counts in at most TRAINING_BYTES of them, evenly taken."""
        sample = _Sample(texts())
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if self.lowercase else [])]
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
        trainer = trainers.WordLevelTrainer(
            vocab_size=self.vocabulary,
            min_frequency=self.minimum,
            special_tokens=[UNKNOWN],
            show_progress=False,
        )
        with readable_errors("training the tokenizer failed"):
            tokenizer.train_from_iterator(sample.groups(), trainer)
        size = tokenizer.get_vocab_size()
        if size < 2:
            raise DataError(
                f"data.encode.tokenizer: no word stands {self.minimum} times in the train text; "
                "set tokenizer.minimum: 1"
            )
        unknown = tokenizer.token_to_id(UNKNOWN)
        return FittedTokenizer(self.kind, tokenizer, size, end=None, unknown=unknown, notes=sample.notes())


class FileTokenizer(Section):
    """An existing tokenizer.json, for example of a model to be fine-tuned; used as it is."""

    kind: Literal["file"] = Field(default="file", description="An existing tokenizer.json.")
    path: str = Field(
        description="The tokenizer.json, the directory it lies in, the run whose model learned with it, or a "
        "model on the hub: hf://owner/name@commit."
    )
    end: str | None = Field(
        default=None, description="The token that ends a document; default the file's own."
    )

    def fit(self, texts: Texts) -> FittedTokenizer:
        """Reads no text."""
        path = self.file()
        tokenizer = read_tokenizer(path)
        tokenizer.no_truncation()  # settings of whoever saved it, which would silently drop or add tokens
        tokenizer.no_padding()
        if isinstance(tokenizer.model, models.BPE):
            tokenizer.model.dropout = None
        ids = tokenizer.get_vocab(with_added_tokens=True)
        begin = _begin(path, tokenizer)
        source = {"path": str(path), "hash": files.hash_file(path)}
        unknown = getattr(tokenizer.model, "unk_token", None)
        end, size = self._end(path, tokenizer), max(ids.values()) + 1
        fitted = FittedTokenizer(self.kind, tokenizer, size, end, ids.get(unknown or ""), source)
        fitted.begin, fitted.roles = begin, _roles(path.parent, tokenizer)
        return fitted

    def file(self) -> Path:
        """The tokenizer.json; ConfigError when there is none."""
        try:
            given = hub.local(self.path, weights=False)
        except ConfigError as error:
            raise ConfigError(f"data.encode.tokenizer.path: {error}") from None
        # of a run or a stage of one, its best checkpoint's, as of what `finetune` starts from
        places = [given / place / FILE for place in checkpoint.PLACES] if given.is_dir() else [given]
        for path in places:
            if path.is_file():
                return path
        raise ConfigError(f"data.encode.tokenizer.path: {hub.named(places[0])}: no such file")

    def files(self) -> list[Path]:
        """What `fit` reads: the tokenizer.json, and the files beside it that say which tokens have a role."""
        path = self.file()
        return [path, *special_tokens.files(path.parent)]

    def _end(self, path: Path, tokenizer: Tokenizer) -> int | None:
        if self.end is None:
            return special_tokens.end_of(path.parent, tokenizer)
        found = tokenizer.token_to_id(self.end)
        if found is None:
            raise ConfigError(f"data.encode.tokenizer.end: {path} has no token {self.end!r}")
        return found


TokenizerConfig = Annotated[
    BytesTokenizer | CharactersTokenizer | WordsTokenizer | BpeTokenizer | FileTokenizer,
    Field(discriminator="kind"),
]


def _roles(directory: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """What an encoder's tokenizer has besides begin and end, as far as those tokens exist."""
    named = special_tokens.read(directory, tokenizer)
    return {key: named[key] for key in ROLES if tokenizer.token_to_id(named.get(key, "")) is not None}


def _begin(path: Path, tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer's own settings put before every text, and nothing else with it: that of a
    language model. Where they add more (an encoder's [CLS] ... [SEP]) there is none."""
    with readable_errors(f"{path}: no usable tokenizer"):
        whole = tokenizer.encode("a", add_special_tokens=True).ids
        bare = tokenizer.encode("a", add_special_tokens=False).ids
    added = len(whole) - len(bare)
    return whole[0] if added == 1 and whole[1:] == bare else None


def reads_alike(data: Path, model: Path) -> bool:
    """Whether the tokenizers of two directories give a text the same ids; what the data has around a text is
    its own affair where the model's tokenizer puts nothing there."""
    ours, theirs = (FileTokenizer(path=str(place)).fit(lambda: iter(())) for place in (data, model))
    parts = [json.loads(one._bytes()) | {"post_processor": None} for one in (ours, theirs)]
    free = not theirs.tokenizer.num_special_tokens_to_add(is_pair=False)
    return parts[0] == parts[1] and (free or ours.around() == theirs.around())


def read_tokenizer(path: Path) -> Tokenizer:
    """Any tokenizer.json; DataError says what is wrong with one that cannot be used."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path}: {size:,} bytes; a tokenizer has at most {MAX_BYTES:,}")
        text = path.read_bytes().decode("utf-8")
        json.loads(text)  # its error names the place; the library's does not
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no tokenizer, not readable as JSON ({str(error)[:100]})") from None
    with readable_errors(f"{path}: no usable tokenizer"):
        tokenizer = Tokenizer.from_str(text)
        ids = sorted(tokenizer.get_vocab(with_added_tokens=True).values())
    if not ids:
        raise DataError(f"{path}: the tokenizer has no tokens")
    if len(set(ids)) < len(ids):
        raise DataError(f"{path}: two of its tokens have the same id")
    if ids[-1] >= 2 * len(ids) + 1024:
        raise DataError(f"{path}: token ids go up to {ids[-1]:,}, but there are {len(ids):,} tokens")
    return tokenizer


@contextlib.contextmanager
def readable_errors(what: str, unknown: Callable[[], str] | None = None) -> Iterator[None]:
    """Turns what the Rust library raises into a DataError; its PanicException is only a BaseException.

    unknown: says which word is no token, of a vocabulary of words, or of moves, that has none for such.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, LlmtoolError):
        raise
    except BaseException as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if "Missing [UNK]" in lines[0]:
            lines = [unknown() if unknown else "a word of it is no token of this model"]
        raise DataError(f"{what}: {lines[0][:200]}") from None


def unknown_word(tokenizer: Tokenizer, texts: Iterable[str]) -> str:
    """Says which is the first word that is no token, and what tokens are like."""
    known = tokenizer.get_vocab(with_added_tokens=True)
    words = (word for text in texts for word in text.split())
    first = next((repr(word[:60]) for word in words if word not in known), "a word of it")
    tokens = sorted(known, key=known.__getitem__)
    such = ", ".join(tokens[len(tokens) * part // 4] for part in (1, 2, 3))
    return f"{first} is no token of this model; its tokens are such as {such}, with blanks between them"


class _Sample:
    """Texts in groups of 64 Ki characters; over TRAINING_BYTES every other group goes, again and again."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._groups: list[list[str]] = []
        self._open: list[str] = []
        self._characters = self._index = self._bytes = self._total = 0
        self._stride = 1
        for text in texts:
            self._open.append(text)
            self._characters += len(text)
            if self._characters >= GROUP_CHARACTERS:
                self._close()
        if self._open:
            self._close()

    def _close(self) -> None:
        size = sum(utf8_length(text) for text in self._open)
        self._total += size
        if self._index % self._stride == 0:
            self._groups.append(self._open)
            self._bytes += size
        while self._bytes > TRAINING_BYTES and len(self._groups) > 1:
            self._groups = self._groups[::2]
            self._stride *= 2
            self._bytes = sum(utf8_length(text) for group in self._groups for text in group)
        self._index += 1
        self._open, self._characters = [], 0

    def groups(self) -> Iterator[list[str]]:
        yield from self._groups

    def notes(self) -> list[str]:
        if self._stride == 1:
            return []
        return [
            f"tokenizer: trained on {self._bytes:,} of {self._total:,} bytes of the train text, evenly taken"
        ]


def utf8_length(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte, in the order of the bytes.

    Radford et al. 2019 (GPT-2), https://github.com/openai/gpt-2: a printable Latin-1 byte is itself, the
    others follow from U+0100 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (0x100 + i for i in range(256))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _character_table(tokenizer: Tokenizer, unknown: int | None) -> np.ndarray:
    """(0x110000,) the id of every code point."""
    assert unknown is not None
    table = np.full(0x110000, unknown, dtype=np.uint32)
    for token, i in tokenizer.get_vocab(with_added_tokens=True).items():
        if len(token) == 1:
            table[ord(token)] = i
    return table
