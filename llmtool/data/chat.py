"""The `chat` encoding: conversations become token ids by a chat template, with a mask of what is learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from tokenizers import AddedToken

from llmtool.core import checkpoint, files
from llmtool.core.config import Section
from llmtool.core.contracts import Tokens
from llmtool.core.errors import ConfigError, DataError
from llmtool.data import templates
from llmtool.data.chat_writer import ChatWriter, Counted, encoded
from llmtool.data.conversations import BadConversation, Layout, Message, Part, layout, prepared, read
from llmtool.data.encoding import Chunks, Encoded, Refusals
from llmtool.data.rendering import Rendered, Renderer
from llmtool.data.shortening import cut, split
from llmtool.data.special_tokens import CONFIG
from llmtool.data.store import CARD
from llmtool.data.templates import Template
from llmtool.data.tokenizers import (
    FILE,
    BpeTokenizer,
    FileTokenizer,
    FittedTokenizer,
    TokenizerConfig,
)

if TYPE_CHECKING:
    import pandas as pd

    from llmtool.data.sources import Chunk

CHECKPOINT = "llmtool.json"  # what a checkpoint says of itself; it holds the card of its data


class ChatEncode(Section):
    """Conversations for a language model: which column holds them, and the template that writes them out."""

    gives: ClassVar[type] = Tokens
    as_: Literal["chat"] = Field(
        default="chat", alias="as", description="Conversations as token ids, for instruction tuning."
    )
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt"] = Field(
        default="auto",
        description="How a row holds a conversation: messages (role, content), sharegpt (from, value), "
        "alpaca (instruction, input, output), prompt (and completion); auto: by the columns.",
    )
    columns: dict[Part, str] = Field(
        default={}, description="Part of the format: the column it stands in, where that has another name."
    )
    tokenizer: TokenizerConfig = Field(default=BpeTokenizer(), description="How text is cut into tokens.")
    template: str = Field(
        default="auto",
        min_length=1,
        description="auto: the model's own, from the directory of the tokenizer; or chatml, llama3, plain, "
        "or a .jinja file.",
    )
    train_on: Literal["assistant", "last", "all"] = Field(
        default="assistant",
        description="What is learned: the assistant's turns, the last of them, or every token.",
    )
    length: int | None = Field(
        default=None,
        ge=8,
        description="Most tokens of a conversation; what is longer is treated as `long` says.",
    )
    long: Literal["refuse", "cut", "split"] = Field(
        default="refuse",
        description="A longer one: refuse the data, cut it after the last answer that fits, or split it "
        "between exchanges, each part with the system prompt.",
    )
    packing: bool = Field(
        default=True,
        description="Whole conversations share the rows of a batch, kept apart by a mask; false: one a row.",
    )
    like: str | None = Field(
        default=None,
        description="Prepared chat data, or a checkpoint, whose tokenizer and template are used again.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self.model_fields_set & {"tokenizer", "template"}
        if self.like is not None and given:
            raise ValueError(
                f"like takes tokenizer and template as they are; {', '.join(sorted(given))} cannot stand "
                "beside it"
            )
        if self.long != "refuse" and self.length is None:
            raise ValueError(f"long: {self.long} needs length, the most tokens of a conversation")
        return self

    def files(self) -> list[Path]:
        """What preparing reads besides the source: the files of tokenizer and template, or of `like`."""
        if self.like is not None:
            place = find_like(self.like)
            return [place, *(path for name in (FILE, CONFIG) if (path := place.parent / name).is_file())]
        found = []
        if (directory := self._directory()) is not None:
            assert isinstance(self.tokenizer, FileTokenizer)
            template = directory / templates.FILE
            found = [*self.tokenizer.files(), *([template] if template.is_file() else [])]
        if self.template not in ("auto", *templates.BUILT_IN):
            found.append(templates.file_of(self.template))
        return found

    def build(self, seed: int = 0) -> ChatEncoder:
        """An encoder that has learned nothing yet, but knows its template; with `like`, its tokenizer too."""
        if self.like is not None:
            return _taken(self, self.like)
        name, text = templates.find(self.template, self._directory())
        return ChatEncoder(self, name, text)

    def added_tokens(self) -> tuple[str, ...]:
        """The control tokens that the template needs of a tokenizer that is fitted here."""
        fitted = not isinstance(self.tokenizer, FileTokenizer)
        return templates.NEEDS.get(self.template, ()) if fitted else ()

    def _directory(self) -> Path | None:
        """Where the tokenizer's files lie, if it is one of a model."""
        return self.tokenizer.file().parent if isinstance(self.tokenizer, FileTokenizer) else None


def find_like(like: str) -> Path:
    """The card that `like` stands for: of prepared data, or of a checkpoint, its run or a stage of it."""
    for path in (Path(like) / CARD, *(Path(like) / place / CHECKPOINT for place in checkpoint.PLACES)):
        if path.is_file():
            return path
    raise ConfigError(
        f"data.encode.like: {like}: neither prepared data (no {CARD}) nor a checkpoint (no {CHECKPOINT})"
    )


def card_of(like: str) -> dict[str, Any]:
    """The card itself: encoding, inputs and encoder of the data, or of what the checkpoint learned from."""
    path = find_like(like)
    about = files.read_json(path)
    card = about.get("card") if path.name == CHECKPOINT and isinstance(about, dict) else about
    if not isinstance(card, dict) or not isinstance(card.get("encoder"), dict):
        raise ConfigError(f"data.encode.like: {path}: no card of this version")
    return card


def _taken(config: ChatEncode, like: str) -> ChatEncoder:
    card = card_of(like)
    if card["encoder"].get("as") != "chat":
        raise ConfigError(
            f"data.encode.like: {like} holds {card.get('encoding')}, which has no chat template; take its "
            f"tokenizer ({{kind: file, path: {find_like(like).parent}}}) and name a template"
        )
    try:
        taken = ChatEncoder.from_state(card["encoder"], find_like(like).parent)
    except DataError as error:
        raise ConfigError(f"data.encode.like: {error}") from None
    taken.config, taken.layout = config, None
    assert taken.renderer is not None
    taken.renderer.train_on = config.train_on
    return taken


class ChatEncoder:
    """Reads conversations, renders them once, and writes ids with the mask of what is learned."""

    def __init__(self, config: ChatEncode, template: str, text: str) -> None:
        self.config, self.template_name, self.template_text = config, template, text
        self.layout: Layout | None = None
        self.renderer: Renderer | None = None
        self.notes: list[str] = []
        self.counted = Counted()  # of all splits
        self._special: dict[str, str] = {}
        self._saved: Path | None = None

    def columns(self, available: list[str]) -> list[str]:
        """The columns of the format; ConfigError when they are not there."""
        if self.layout is None:
            self.layout = layout(self.config.format, self.config.columns, available)
        return list(self.layout.columns.values())

    def refuse(self, frame: pd.DataFrame) -> Refusals:
        """None here: what is wrong with a conversation is found when it is rendered."""
        self._look(frame)
        return Refusals()

    def _look(self, frame: pd.DataFrame) -> None:
        """Tell from the first conversation what its form is called."""
        known = self.layout
        if known is not None and known.found and known.form == "messages" and len(frame):
            first = str(frame[known.columns["messages"]].iloc[0])[:2000]
            if '"from"' in first and '"role"' not in first:
                self.layout = replace(known, form="sharegpt")

    def stratum(self, frame: pd.DataFrame) -> pd.Series:
        """Conversations have no target: ConfigError."""
        raise ConfigError(
            "data.split.by: stratified needs a target, conversations have none; name a column with `on`"
        )

    def texts(self, frame: pd.DataFrame) -> list[str]:
        """What is said in each row, without roles; "" where it holds no conversation."""
        found = []
        for row in self.rows(frame):
            try:
                found.append("\n".join(message["content"] for message in self._read(row)[0]))
            except BadConversation:
                found.append("")
        return found

    def fit(self, chunks: Chunks) -> None:
        """Train the tokenizer on what is said, unless it was taken over; find the token that ends a turn."""
        if self.renderer is not None:
            return
        added = self.config.added_tokens()
        tokenizer = self.config.tokenizer.fit(lambda: self._said(chunks))
        if added:
            tokenizer.tokenizer.add_special_tokens(
                [AddedToken(name, special=True, normalized=False) for name in added]
            )
            tokenizer.vocabulary = tokenizer.tokenizer.get_vocab_size(with_added_tokens=True)
        self.notes += tokenizer.notes
        self._ready(tokenizer, templates.read_special(self.config._directory(), tokenizer))
        template = self.fitted.template
        if template.uses("strftime_now"):
            self.notes.append(f"{template} writes the date: that of today stands in this data")
        if self.layout is not None and "tools" in self.layout.columns and not template.uses("tools"):
            self.notes.append(
                f"{template} does not write the tools that column {self.layout.columns['tools']!r} has"
            )

    def _ready(self, tokenizer: FittedTokenizer, special: dict[str, str], stop: tuple[int, ...] = ()) -> None:
        self._special = special
        template = Template(self.template_name, self.template_text, special)
        self.renderer = Renderer(template, tokenizer, self.config.train_on, stop)

    def _said(self, chunks: Chunks) -> Iterator[str]:
        rows = 0
        for chunk in chunks:
            rows += len(chunk.frame)
            for row in self.rows(chunk.frame):
                try:
                    messages, _ = self._read(row)
                except BadConversation:
                    continue
                yield from (message["content"] for message in messages)
        if rows == 0:
            raise DataError("the train split has no rows; nothing can be learned from it")

    def rows(self, frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
        """Of each row, the cells of the format's columns."""
        assert self.layout is not None, "columns() comes first"
        names = list(self.layout.columns.values())
        for cells in zip(*(frame[name].tolist() for name in names), strict=True):
            yield dict(zip(names, cells, strict=True))

    def _read(self, row: dict[str, Any]) -> tuple[list[Message], Any]:
        assert self.layout is not None
        return read(row, self.layout.columns, self.layout.form)

    @property
    def fitted(self) -> Renderer:
        assert self.renderer is not None, "fit() comes first"
        return self.renderer

    @property
    def tokenizer(self) -> FittedTokenizer:
        """The tokenizer, after fit."""
        return self.fitted.tokenizer

    @property
    def inputs(self) -> dict[str, Any]:
        """{"kind": "tokens", "vocabulary": V}."""
        return {"kind": "tokens", "vocabulary": self.tokenizer.vocabulary}

    @property
    def targets(self) -> dict[str, Any]:
        """{"kind": "next_token", "vocabulary": V}."""
        return {"kind": "next_token", "vocabulary": self.tokenizer.vocabulary}

    def conversations(self, row: dict[str, Any], counted: Counted) -> list[Rendered]:
        """A row as one conversation, or the parts that it is cut or split into; none where it was too long.
        What is to be said of it goes into `counted`.

        Raises BadConversation and MaskError.
        """
        messages, tools = self._read(row)
        messages = prepared(messages, calls=self.fitted.template.uses("tool_calls"))
        whole = self.fitted.render(messages, tools)
        if not whole.trained[1:].any():
            raise BadConversation("no answer that is to be learned: those that would be have the weight 0")
        counted.rewritten += whole.rewritten
        limit = self.config.length
        if limit is None or len(whole.ids) <= limit:
            return [whole]
        counted.lengths["longer"] += 1
        counted.lengths["longest"] = max(counted.lengths["longest"], len(whole.ids))
        if self.config.long == "refuse":
            return []
        if self.config.long == "cut":
            parts = cut(self.fitted, messages, tools, limit)
        else:
            parts, left_out = split(self.fitted, messages, tools, limit)
            counted.lengths["exchanges left out"] += left_out
        parts = [part for part in parts if part.trained[1:].any()]
        if parts:
            counted.lengths[self.config.long] += 1
            counted.lengths["parts"] += len(parts)
        return parts

    def encoded(self, chunk: Chunk) -> Encoded:
        """Rows that hold conversations, rendered, as a writer appends them."""
        return encoded(self, chunk)

    def writer(self, directory: Path, split: str) -> ChatWriter:
        """Writes `{split}.tokens.bin`, `.documents.bin`, `.trained.bin` and `.origin.bin`; tokenizer and
        template once."""
        if self._saved != directory:
            self.tokenizer.save(directory)
            config = files.read_json(directory / CONFIG)
            files.write_json(directory / CONFIG, {**config, **self._special})
            files.write_bytes(directory / templates.FILE, self.template_text.encode("utf-8"))
            self._saved = directory
        return ChatWriter(self, directory, split)

    def state(self) -> dict[str, Any]:
        """What tokenizer.json beside the card does not hold."""
        template = self.fitted.template
        assert self.layout is not None
        return {
            "as": "chat",
            "format": {"form": self.layout.form, "columns": self.layout.columns, "found": self.layout.found},
            "train_on": self.config.train_on,
            "length": self.config.length,
            "long": self.config.long,
            "packing": self.config.packing,
            "tokenizer": self.tokenizer.state(),
            "special": self._special,
            "stop": list(self.fitted.stop),
            "template": {"name": template.name, "hash": template.hash, "text": template.text},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], directory: Path) -> ChatEncoder:
        """The encoder whose `state()` this is, with tokenizer.json from `directory`."""
        try:
            template = state["template"]
            encoder = cls(
                ChatEncode(train_on=state["train_on"]), str(template["name"]), str(template["text"])
            )
            tokenizer = FittedTokenizer.from_state(state["tokenizer"], directory)
            encoder._ready(tokenizer, dict(state["special"]), tuple(map(int, state["stop"])))
            form = state["format"]
            encoder.layout = Layout(form["form"], dict(form["columns"]), bool(form["found"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{directory}: the card's encoder is incomplete ({error!r}); prepare it again"
            ) from None
        if encoder.fitted.template.hash != template["hash"]:
            raise DataError(f"{directory}: the chat template in the card is not the one that its hash names")
        return encoder

    def say(self) -> None:
        """Notes on the whole, once every row is written."""
        assert self.layout is not None
        template = self.fitted.template
        how = "found by its columns" if self.layout.found else "as the file says"
        stop = " or ".join(self.fitted.stop_names)
        self.notes.insert(
            0, f"conversations: {self.layout.describe()}, {how}; {template}; a turn ends in {stop}"
        )
        counted = self.counted
        if counted.rewritten:
            self.notes.append(
                f"in {counted.rewritten:,} conversations {template} rewrites earlier turns; they are learned "
                "as they stand in the whole conversation (train_on: last learns the last turn only)"
            )
        if counted.lengths["longer"]:
            done = ", ".join(
                f"{key} {count:,}"
                for key, count in counted.lengths.items()
                if key not in ("longer", "longest")
            )
            self.notes.append(
                f"{counted.lengths['longer']:,} conversations are longer than {self.config.length:,} tokens "
                f"(the longest {counted.lengths['longest']:,}): {done or 'all dropped'}"
            )
