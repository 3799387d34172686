"""A checkpoint's own tokenizer, as prompts are encoded for it and what it writes is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from llmtool.core.errors import ConfigError
from llmtool.data import special_tokens
from llmtool.data.tokenizers import FILE, read_tokenizer, readable_errors, unknown_word


@dataclass(frozen=True)
class PromptTokenizer:
    """begin, end: the ids of the tokens that begin and end a text, None where the checkpoint names none.

    A control token that a text spells out becomes that token, as transformers has it: prompts and the texts
    of suites are the user's own, other than training data, and figures are to agree with others' tools.
    """

    tokenizer: Tokenizer
    begin: int | None
    end: int | None

    @classmethod
    def read(cls, directory: Path) -> PromptTokenizer:
        """The tokenizer in a checkpoint directory. ConfigError where there is none, DataError for a broken
        one."""
        path = directory / FILE
        if not path.is_file():
            raise ConfigError(f"{directory}: no {FILE} in it: this model reads no text")
        tokenizer = read_tokenizer(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = False
        begin = special_tokens.begin_of(directory, tokenizer)
        return cls(tokenizer, begin, special_tokens.end_of(directory, tokenizer))

    @property
    def prefix(self) -> int:
        """What stands before a text of which every token is scored: the begin, else the end of another text.

        ConfigError where the checkpoint has neither.
        """
        found = self.end if self.begin is None else self.begin
        if found is None:
            raise ConfigError("the model's tokenizer names no token that begins or ends a text")
        return found

    def encode(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """The ids of each text; special: with the tokens that this tokenizer puts around one."""
        with readable_errors("the tokenizer failed on a text", lambda: unknown_word(self.tokenizer, texts)):
            found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)
        return [encoding.ids for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, without control tokens; bytes that are no UTF-8 become U+FFFD."""
        with readable_errors("the tokenizer failed on these tokens"):
            return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
