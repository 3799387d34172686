"""Text that comes token by token: whole characters as soon as they are certain, and where it is to end."""

from __future__ import annotations

from collections.abc import Sequence

from llmtool.data.prompts import PromptTokenizer

ANCHOR = 8  # tokens of the prompt that are decoded with the first new ones
PENDING = 32  # tokens that are waited for until bytes that are no UTF-8 are taken as they are
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """What a model writes, as text.

    after: the tokens before it. Whether a text begins with a blank can hang on them; without them it is
    decoded as a text of its own. stop: texts before which it ends, however the tokens cut them.
    """

    def __init__(
        self, tokenizer: PromptTokenizer, stop: Sequence[str] = (), after: Sequence[int] = ()
    ) -> None:
        self._tokenizer, self._stop = tokenizer, [part for part in stop if part]
        self._ids = list(after[-ANCHOR:])
        self._anchor, self._read = 0, len(self._ids)  # decoded again each time; what was taken over
        self.text = ""  # all that is certain, without the text that ended it
        self.given = 0  # characters of it that `feed` has returned
        self.stopped = False

    def feed(self, token: int) -> str:
        """Take a token; returns the text that is certain now: whole characters that begin no stop text."""
        self._ids.append(token)
        whole = self._tokenizer.decode(self._ids[self._anchor :])
        if whole.endswith(UNKNOWN) and len(self._ids) - self._read < PENDING:
            return ""  # perhaps the beginning of a character
        self._take(whole)
        return self._certain(final=False)

    def finish(self) -> str:
        """No token comes any more; returns what was held back."""
        if not self.stopped and self._read < len(self._ids):
            self._take(self._tokenizer.decode(self._ids[self._anchor :]))
        return self._certain(final=True)

    def _take(self, whole: str) -> None:
        before = self._tokenizer.decode(self._ids[self._anchor : self._read])
        searched = max(0, len(self.text) - max(map(len, self._stop), default=0))
        self.text += whole[len(before) :]
        if len(whole) > len(before):  # a control token has no text, and could not keep the next one's blank
            self._anchor = self._read
        self._read = len(self._ids)
        ends = [at for part in self._stop if (at := self.text.find(part, searched)) >= 0]
        if ends:
            self.text, self.stopped = self.text[: min(ends)], True

    def _certain(self, final: bool) -> str:
        end = len(self.text)
        if not (final or self.stopped):
            end -= max((_overlap(self.text, part) for part in self._stop), default=0)
        new = self.text[self.given : end]
        self.given = max(self.given, end)
        return new


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop text."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
