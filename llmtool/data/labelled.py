"""The `text` encoding: each text becomes one row of token ids, with a class or numbers to predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from llmtool.core.config import Section
from llmtool.core.contracts import Tokens
from llmtool.core.errors import ConfigError, DataError
from llmtool.data import beside
from llmtool.data.beside import BesideConfig
from llmtool.data.cells import MISSING
from llmtool.data.encoding import Chunks, Encoded, Refusals
from llmtool.data.features import FeatureEncoder, find_column
from llmtool.data.labelled_writer import TextWriter, encoded
from llmtool.data.statistics import Survey
from llmtool.data.store import Dataset
from llmtool.data.targets import (
    SEPARATOR,
    TARGET_KIND,
    Kind,
    Target,
    fit_target,
    refuse_target,
    target_from_state,
    target_stratum,
    without_target,
)
from llmtool.data.text_columns import names_of, texts_of
from llmtool.data.tokenizers import (
    BpeTokenizer,
    FileTokenizer,
    FittedTokenizer,
    TokenizerConfig,
)
from llmtool.data.tokens import files_of, problem_of

if TYPE_CHECKING:
    import pandas as pd

    from llmtool.data.sources import Chunk

Columns = str | Annotated[list[str], Field(min_length=1)]
Long = Literal["head", "tail", "head_tail", "chunks"]
LENGTH = 256
CHUNKS = 8
HEAD = 4  # head_tail keeps this part of a row for the beginning: 128 of 510 in the paper


class TextEncode(Section):
    """Rows of token ids for classes or values of texts: where the text is, how it is cut, what to predict."""

    gives: ClassVar[type] = Tokens
    as_: Literal["text"] = Field(
        default="text", alias="as", description="Token ids of one text a row, for its class or a number."
    )
    text: Columns = Field(
        default="text",
        description="The column that holds the text; several follow each other, a token between them.",
    )
    target: Columns | None = Field(
        default=None, description="The column to predict; a list of number columns predicts several at once."
    )
    target_kind: Kind = Field(default="auto", description=TARGET_KIND)
    label_separator: str = Field(default=",", min_length=1, description=SEPARATOR)
    tokenizer: TokenizerConfig = Field(
        default=BpeTokenizer(),
        description="How text is cut into tokens; of a pretrained model: {kind: file, path: its directory}.",
    )
    length: int = Field(
        default=LENGTH, ge=4, le=1_000_000,
        description="The most tokens of a text, those that a model wants around it included.",
    )  # fmt: skip
    long: Long = Field(
        default="head",
        description="What is kept of a longer text: its beginning, its end, or a quarter of the tokens from "
        "the beginning and the rest from the end; chunks: all of it, as rows of `length` tokens that overlap "
        "a little, whose vectors the model averages.",
    )
    features: BesideConfig | None = Field(
        default=None, description="Columns of the table that the model reads beside the text; {}: all others."
    )
    chunks: int = Field(
        default=CHUNKS, ge=2, le=4096, description="The most rows that long: chunks makes of a text."
    )
    like: str | None = Field(
        default=None,
        description="A prepared directory whose tokenizer and length are used again, with a target fitted "
        "anew.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self.model_fields_set - {"as_", "like", "text", "target", "target_kind", "label_separator"}
        if self.like is not None and given:
            raise ValueError(
                f"like takes the encoder as it is; {', '.join(sorted(given))} cannot stand beside it"
            )
        if self.like is None and self.target is None:
            raise ValueError("needs a target: the column to predict")
        targets, texts = names_of(self.target or []), names_of(self.text)
        if len(set(targets)) < len(targets):
            raise ValueError("a target stands twice")
        if len(set(texts)) < len(texts):
            raise ValueError("a column of text stands twice")
        if shared := set(texts) & set(targets):
            raise ValueError(f"column {min(shared)!r} stands in both text and target")
        refuse_target(targets, self.target_kind, "label_separator" in self.model_fields_set)
        if "chunks" in self.model_fields_set and self.long != "chunks":
            raise ValueError("chunks is read only with long: chunks")
        if self.features is not None:
            self.features.encode(texts, self.target)
        return self

    def files(self) -> list[Path]:
        """What preparing reads besides the source: the tokenizer's file, or those of `like`."""
        if self.like is not None:
            return files_of(Path(self.like))
        return self.tokenizer.files() if isinstance(self.tokenizer, FileTokenizer) else []

    def build(self, seed: int = 0) -> TextEncoder:
        """An encoder that has learned nothing yet; with `like`, one that lacks only its target."""
        return TextEncoder(self, seed) if self.like is None else _taken(self, self.like, seed)


def _taken(config: TextEncode, like: str, seed: int) -> TextEncoder:
    """The encoder of the dataset prepared at `like`, without its target."""
    try:
        card = Dataset.open(like).card
        if card["encoder"].get("as") != "text":
            raise ConfigError(f"data.encode.like: {like} holds {card['encoding']}, not text with a target")
        taken = TextEncoder.from_state(card["encoder"], Path(like))
    except DataError as error:
        raise ConfigError(f"data.encode.like: {error}") from None
    given = {name: getattr(config, name) for name in config.model_fields_set - {"like"}}
    taken.config = taken.config.model_copy(update={"target_kind": "auto"} | given)
    taken.target, taken.seed = None, seed
    if taken.features is not None:
        assert taken.config.target is not None
        taken.features = beside.taken(taken.features.state(), taken.config.target, Path(like))
    return taken


class TextEncoder:
    """Fits tokenizer and target on the train rows, then writes rows of token ids with their targets.

    prefix, suffix: ids put around each text: what the tokenizer's file says its model wants ([CLS] and [SEP]
    of BERT), else the tokenizer's end token in front, whose vector then stands for the text. separator: of
    several columns, the id between them, [SEP] or that end token; of a tokenizer without, a blank is.
    features: encodes the columns of the table that stand beside the text.
    """

    def __init__(self, config: TextEncode, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.tokenizer: FittedTokenizer | None = None
        self.prefix: list[int] = []
        self.suffix: list[int] = []
        self.separator: list[int] = []
        self.features: FeatureEncoder | None = None
        if config.features is not None:
            self.features = config.features.encode(names_of(config.text), config.target).build(seed)
        self.target: Target | None = None
        self.notes: list[str] = []
        self._saved: Path | None = None

    @property
    def target_names(self) -> list[str]:
        """The columns to be predicted."""
        assert self.config.target is not None
        return names_of(self.config.target)

    def columns(self, available: list[str]) -> list[str]:
        """The text's columns and the target's; ConfigError names one that the data lacks."""
        texts = names_of(self.config.text)
        for key, names in (("text", texts), ("target", self.target_names)):
            for name in names:
                find_column(name, available, key)
        try:
            more = [] if self.features is None else self.features.columns(available)
        except ConfigError as error:
            raise ConfigError(str(error).replace("data.encode.", "data.encode.features.", 1)) from None
        return list(dict.fromkeys([*texts, *more, *self.target_names]))

    def refuse(self, frame: pd.DataFrame) -> Refusals:
        """Rows without a target. Those without a text are bad rows, which the writer refuses."""
        return Refusals(without_target(frame, self.target_names, self.config.target_kind, self.notes))

    def stratum(self, frame: pd.DataFrame) -> pd.Series:
        """The class of each row as text."""
        return target_stratum(frame, self.target_names)

    # --- fitting

    def fit(self, chunks: Chunks) -> None:
        """Train the tokenizer, unless it was taken over, and see what the target is."""
        found = Survey(self.target_names, MISSING, self.seed).over(chunks)
        kind, separator = self.config.target_kind, self.config.label_separator
        self.target = fit_target(found, kind, self.notes, separator=separator)
        if self.features is not None:
            self.features.fit(chunks)
            self.notes += [note for note in self.features.notes if note not in self.notes]
        if self.tokenizer is not None:
            return
        self.tokenizer = self.config.tokenizer.fit(lambda: self._texts(chunks))
        self.notes += self.tokenizer.notes
        self.prefix, self.suffix = self.tokenizer.around()
        self.tokenizer.say_around()
        if not isinstance(self.config.text, str) and len(self.config.text) > 1:
            self.separator = [*self.prefix[:1], *self.suffix[-1:]][-1:]
            token = repr(self.tokenizer.decode(self.separator)) if self.separator else "a blank"
            self.notes.append(f"columns {' + '.join(self.config.text)} are kept apart by {token}")
        if len(self.prefix) + len(self.suffix) >= self.config.length:
            raise ConfigError(
                f"data.encode.length: {self.config.length} tokens leave no room beside the "
                f"{len(self.prefix) + len(self.suffix)} that the tokenizer puts around a text"
            )

    def _texts(self, chunks: Chunks) -> Iterator[str]:
        for chunk in chunks:
            yield from (text for text in texts_of(chunk.frame, self.config.text) if not problem_of(text))

    # --- after fitting

    @property
    def fitted(self) -> FittedTokenizer:
        assert self.tokenizer is not None, "fit() comes first"
        return self.tokenizer

    @property
    def inputs(self) -> dict[str, Any]:
        """{"kind": "tokens", "vocabulary": V, "length": the most tokens of a row}."""
        found = {"kind": "tokens", "vocabulary": self.fitted.vocabulary, "length": self.config.length}
        if self.features is None:
            return found
        names = self.features.features
        return found | {"features": len(names), "names": names}

    @property
    def targets(self) -> dict[str, Any]:
        """Classes with names and counts, or values with names, mean and scale."""
        assert self.target is not None, "fit() comes first"
        return self.target.spec()

    def encode(self, texts: Sequence[str | list[str]]) -> tuple[list[np.ndarray], np.ndarray]:
        """The ids of each text (or of its columns, with the separator between them), cut to the length, and
        (texts,) how many tokens each had before; 0 where a text gives none. Of long: chunks, the ids of one
        chunk after the other; all but a single one are of the whole length."""
        columns = [[text] if isinstance(text, str) else text for text in texts]
        if not self.separator:
            columns = [[" ".join(filter(None, row))] for row in columns]
        ids, found = self.fitted.ids(self.fitted.encode([text for row in columns for text in row]))
        each = iter(np.split(ids, np.cumsum(found)[:-1]))
        parts = [self._joined([next(each) for _ in row]) for row in columns]
        lengths = np.array([len(part) for part in parts])
        rows = [
            np.concatenate([part for kept in self._kept(part) for part in (self.prefix, kept, self.suffix)])
            for part in parts
        ]
        return rows, np.where(lengths > 0, lengths + self._around, 0)

    def _joined(self, parts: list[np.ndarray]) -> np.ndarray:
        """The columns of a text as one; nothing where all are empty."""
        if not any(map(len, parts)):
            return parts[0]
        between = np.array(self.separator)
        return np.concatenate([piece for part in parts for piece in (between, part)][1:])

    def _kept(self, ids: np.ndarray) -> list[np.ndarray]:
        """What is kept of a text's ids: one part, or its chunks."""
        config = self.config
        return (
            chunked(ids, self.room, config.chunks)
            if config.long == "chunks"
            else [cut(ids, self.room, config.long)]
        )

    @property
    def _around(self) -> int:
        return len(self.prefix) + len(self.suffix)

    @property
    def room(self) -> int:
        """The most tokens of a text in a row or a chunk, beside those around it."""
        return self.config.length - self._around

    def left_out(self, lengths: np.ndarray) -> np.ndarray:
        """(texts,) how many tokens of texts of so many, as `encode` counts them, are in no row or chunk."""
        most = self.room * (self.config.chunks if self.config.long == "chunks" else 1)
        return np.maximum(lengths - self._around - most, 0)

    @property
    def dtype(self) -> str:
        """The type of the ids."""
        return "<u2" if self.fitted.vocabulary < 1 << 16 else "<u4"

    def encoded(self, chunk: Chunk) -> Encoded:
        """Rows with a text and a target, as a writer appends them."""
        return encoded(self, chunk)

    def writer(self, directory: Path, split: str) -> TextWriter:
        """Writes `{split}.tokens.bin`, `.documents.bin`, `.targets.bin`, `.origin.bin` and the tokenizer."""
        if self._saved != directory:
            self.fitted.save(directory)
            self._saved = directory
        return TextWriter(self, directory, split)

    def state(self) -> dict[str, Any]:
        """What tokenizer.json beside the card does not hold. `rows`: what changes no token's meaning."""
        assert self.target is not None, "fit() comes first"
        config = self.config
        return {
            "as": "text",
            "tokenizer": self.fitted.state(),
            "prefix": self.prefix,
            "suffix": self.suffix,
            **({"separator": self.separator} if self.separator else {}),
            **({} if self.features is None else {"features": self.features.state()}),
            "rows": {"text": config.text, "length": config.length, "long": config.long}
            | ({"chunks": config.chunks} if config.long == "chunks" else {}),
            "target": config.target,
            "fitted_target": self.target.state(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], directory: Path) -> TextEncoder:
        """The encoder whose `state()` this is, with tokenizer.json from `directory`."""
        try:
            encoder = cls(TextEncode(target=state["target"], **state["rows"]))
            encoder.tokenizer = FittedTokenizer.from_state(state["tokenizer"], directory)
            encoder.prefix, encoder.suffix = list(state["prefix"]), list(state["suffix"])
            encoder.separator = list(state.get("separator", []))
            if "features" in state:
                encoder.features = FeatureEncoder.from_state(state["features"], directory)
            encoder.target = target_from_state(state["fitted_target"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{directory}: the card's encoder is incomplete ({error!r}); prepare it again"
            ) from None
        return encoder


def cut(ids: np.ndarray, room: int, long: Long) -> np.ndarray:
    """At most `room` of a text's ids. Head and tail of long texts: https://arxiv.org/abs/1905.05583."""
    if len(ids) <= room:
        return ids
    head = {"head": room, "tail": 0, "head_tail": room // HEAD}[long]
    return np.concatenate([ids[:head], ids[len(ids) - (room - head) :]])


def chunked(ids: np.ndarray, room: int, most: int) -> list[np.ndarray]:
    """A text's ids as the fewest parts of `room` ids that cover it, spread evenly, so that they overlap by
    as little as they can; of a text that takes more than `most`, so many from its beginning to its end."""
    if len(ids) <= room:
        return [ids]
    count = min(-(-len(ids) // room), most)
    starts = np.linspace(0, len(ids) - room, count).round().astype(int)
    return [ids[start : start + room] for start in starts]
