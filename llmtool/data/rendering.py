"""A conversation as token ids, and which of them the assistant has written: those that a model learns.

What is learned of a turn is what the model has to write once it was asked: all that follows the template's
prompt for an answer, up to and with the token at which it stops. A control token that is spelled out in the
data is encoded as ordinary text. Those are tokens that tokenizer.json marks as special, and those that end a
turn; `<think>`, which most tokenizers do not mark, may stand in an answer.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from llmtool.core.errors import DataError
from llmtool.data.conversations import BadConversation, Message
from llmtool.data.templates import (
    FORGED,
    FORGED_END,
    GENERATED,
    GENERATED_END,
    RunawayError,
    Template,
    TemplateError,
)
from llmtool.data.tokenizers import FittedTokenizer, readable_errors

PLACE = "\0"  # stands for a forged control token, whose ids are put there afterwards
PROBE = "\0p"  # stands for a turn's content, to see where the template puts it
_MARKS = re.compile(re.escape(GENERATED) + "|" + re.escape(GENERATED_END))

Span = tuple[int, int]


class MaskError(DataError):
    """What the model is to learn of this row cannot be told, or it would not learn to stop: refused."""


@dataclass
class Rendered:
    """ids: (n,) token ids. trained: (n,) bool, those that are learned. rewritten: the template changes
    earlier turns, so that what is learned of them stands as it does in the whole conversation."""

    ids: np.ndarray
    trained: np.ndarray
    rewritten: bool = False


@dataclass
class _Encoded:
    """ids of a text, and where each begins and ends in it."""

    ids: list[int]
    begins: list[int]
    ends: list[int]


@dataclass
class Renderer:
    """Turns conversations into ids by one template and one tokenizer. stop: the tokens that end a turn."""

    template: Template
    tokenizer: FittedTokenizer
    train_on: str = "assistant"
    stop: tuple[int, ...] = ()
    _control: Tokenizer = field(init=False)  # special tokens in a text are such
    _plain: Tokenizer = field(init=False)  # and here they are not
    _spelled: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        with readable_errors("the tokenizer cannot be copied"):
            self._control, self._plain = (
                Tokenizer.from_str(self.tokenizer.tokenizer.to_str()) for _ in range(2)
            )
        self._control.add_special_tokens([AddedToken(PLACE, special=True, normalized=False)])
        self._plain.encode_special_tokens = True
        self._plain.add_tokens([AddedToken(PLACE, special=False, normalized=False)])
        self._place = self._control.token_to_id(PLACE)
        self._added = {
            i: token for i, token in self._control.get_added_tokens_decoder().items() if i != self._place
        }
        self.stop = self.stop or self._find_stop()
        self.stop_names = [str(self._control.id_to_token(i)) for i in self.stop]
        names = {token.content for token in self._added.values() if token.special} | set(self.stop_names)
        longest = sorted(names - {""}, key=lambda name: (-len(name), name))
        self._controls = {self._control.token_to_id(name): name for name in longest}
        self._spelled = re.compile("|".join(map(re.escape, longest)) or "(?!)")
        marked = re.escape(FORGED) + f"({self._spelled.pattern})" + re.escape(FORGED_END)
        self._forged = re.compile(f"{marked}|\0[()]|\0")

    # --- the token that ends a turn -----------------------------------------------------------------------

    def _find_stop(self) -> tuple[int, ...]:
        """The token that the template writes after an answer, and the tokenizer's end token.

        Raises MaskError where it writes none: a model would never learn to stop.
        """
        after = self._after_an_answer()
        end = self.tokenizer.end
        for token in self._encode(after).ids:
            if token in self._added or token == end:
                return tuple(dict.fromkeys([token, *([] if end is None else [end])]))
        known = "none" if end is None else repr(self._control.id_to_token(end))
        raise MaskError(
            f"{self.template} ends an answer with {after!r}, in which the tokenizer knows no token to stop "
            f"at (its end token: {known}): a model that learns from it would never stop"
        )

    def _after_an_answer(self) -> str:
        asked = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": PROBE}]
        problem = ""
        for messages in (asked, [{"role": "system", "content": "Be brief."}, *asked]):
            try:
                text = _MARKS.sub("", self.template.render(messages))
            except RunawayError as error:
                raise MaskError(f"{self.template}: {error}") from None
            except TemplateError as error:
                problem = problem or str(error)
                continue
            if PROBE in text:
                return text.rpartition(PROBE)[2]
            problem = problem or "what the assistant says is not in what it writes"
        raise MaskError(f"{self.template} fails on the simplest conversation: {problem}")

    # --- ids and mask -------------------------------------------------------------------------------------

    def render(self, messages: list[Message], tools: Any = None) -> Rendered:
        """Ids of a conversation and which are learned: none, where every turn that would be has the weight 0.

        Raises BadConversation where the template refuses it, MaskError where an assistant's turn does not end
        in a token to stop at, or its place in the text cannot be told.
        """
        given = messages, tools
        weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
        some_left_out = 0 in weights
        messages, tools = self._mark(messages), self._mark(tools)
        spans: list[Span] = []
        rewritten = False
        try:
            whole = self.template.render(messages, tools)
            text = _MARKS.sub("", whole)
            if self.train_on != "all" or some_left_out:
                spans, rewritten = self._spans(whole, messages, tools)
            encoded = self._encode(text)
            self._refuse_forged(encoded, given, (messages, tools))
        except RunawayError as error:
            raise MaskError(f"{self.template}: {error}") from None
        except TemplateError as error:
            raise BadConversation(f"the template refuses it: {str(error)[:100]}") from None
        if len(spans) > len(weights):  # several blocks of {% generation %} in a turn
            if some_left_out:
                raise MaskError(
                    f"{self.template} has several {{% generation %}} blocks for one assistant's turn, so "
                    "that it cannot be told which are those of the weight 0"
                )
            weights = [1] * len(spans)
        if self.train_on == "last":
            weights = [0] * (len(spans) - 1) + weights[-1:]
        trained = np.full(len(encoded.ids), self.train_on == "all")
        for span, weight in zip(spans, weights, strict=False):  # no spans: all is learned
            first, last = self._tokens(encoded, span, text)
            trained[first : last + 1] = weight
        if not trained[1:].any() and not some_left_out:
            raise MaskError("no token of this conversation would be learned")
        return Rendered(np.array(encoded.ids, np.int64), trained, rewritten)

    def prompt(self, messages: list[Message], tools: Any = None) -> list[int]:
        """The ids after which the model is to answer. Raises BadConversation."""
        given = messages, tools
        messages, tools = self._mark(messages), self._mark(tools)
        try:
            encoded = self._encode(_MARKS.sub("", self.template.render(messages, tools, prompt=True)))
            self._refuse_forged(encoded, given, (messages, tools), prompt=True)
        except TemplateError as error:
            raise BadConversation(f"the template refuses it: {error}") from None
        return encoded.ids

    def pieces(self, rendered: Rendered) -> list[tuple[str, bool]]:
        """The text of a conversation in stretches that are learned or are not."""
        borders = np.flatnonzero(np.diff(rendered.trained)) + 1
        parts = zip(np.split(rendered.ids, borders), np.split(rendered.trained, borders), strict=True)
        return [(self.tokenizer.decode(ids), bool(trained[0])) for ids, trained in parts]

    def _mark(self, value: Any, put: str = f"{FORGED}\\g<0>{FORGED_END}") -> Any:
        """The same with control tokens that are spelled out in it between marks, or `put` in their places."""
        if isinstance(value, str):
            return self._spelled.sub(put, value)
        if isinstance(value, dict):
            return {self._mark(key, put): self._mark(item, put) for key, item in value.items()}
        return [self._mark(item, put) for item in value] if isinstance(value, list) else value

    def _refuse_forged(
        self, encoded: _Encoded, given: tuple[Any, Any], marked: tuple[Any, Any], prompt: bool = False
    ) -> None:
        """BadConversation where a template's work on the text has brought a spelled control token to life:
        where there are other ones than in the same conversation with a harmless word in their places."""
        if given == marked:
            return
        messages, tools = (self._mark(part, "word") for part in given)
        expected = self._encode(_MARKS.sub("", self.template.render(messages, tools, prompt))).ids
        if [i for i in encoded.ids if i in self._controls] != [i for i in expected if i in self._controls]:
            raise BadConversation(
                "it spells a control token, which the template does not keep apart from its own"
            )

    def _encode(self, text: str) -> _Encoded:
        """Ids of what a template wrote: its control tokens are such, those between marks are text.

        Where a template took a mark apart, its halves still keep their neighbours from being joined.
        """
        forged: list[tuple[int, int, str]] = []  # where a mark begins and ends in the text; the token in it

        def remember(found: re.Match[str]) -> str:
            forged.append((found.start(), found.end(), found[1] or ""))
            return PLACE

        plain = self._forged.sub(remember, text) if PLACE in text else text
        with readable_errors("the tokenizer failed on a conversation"):
            encoding = self._control.encode(plain, add_special_tokens=False)
        ids = encoding.ids
        offsets = [self._named(token, span, plain) for token, span in zip(ids, encoding.offsets, strict=True)]
        if not forged:
            return _Encoded(ids, [begin for begin, _ in offsets], [end for _, end in offsets])
        return self._with_forged(ids, offsets, forged)

    def _named(self, token: int, span: Span, text: str) -> Span:
        """Where the name of a token stands: one that takes in the blanks beside it (rstrip, lstrip: Phi-3's
        do) reaches over what a turn begins or ends with, of which it is no part."""
        added, (begin, end) = self._added.get(token), span
        seen = text[begin:end]
        if added is None or not (added.lstrip or added.rstrip) or not seen.strip():
            return span
        return end - len(seen.lstrip()), begin + len(seen.rstrip())

    def _with_forged(
        self, ids: list[int], offsets: list[Span], forged: list[tuple[int, int, str]]
    ) -> _Encoded:
        """Ordinary ids in the places of forged tokens, and offsets as in the text with marks."""
        shifts, places = [0], []  # what a position in the plain text lacks to one in the marked text
        for begin, end, _ in forged:
            places.append(begin - shifts[-1])
            shifts.append(shifts[-1] + end - begin - len(PLACE))
        result = _Encoded([], [], [])
        waiting = iter(forged)
        for token, (begin, end) in zip(ids, offsets, strict=True):
            if token != self._place:
                span = tuple(at + shifts[bisect_right(places, at - 1)] for at in (begin, end))
                written = [token]
            else:
                first, last, name = next(waiting)
                span, written = (first, last), self._as_text(name)
            result.ids += written
            result.begins += [span[0]] * len(written)
            result.ends += [span[1]] * len(written)
        return result

    def _as_text(self, name: str) -> list[int]:
        if not name:
            return []
        # behind another token: no blank is put before it, as before a whole text
        ids = self._plain.encode(PLACE + name, add_special_tokens=False).ids[1:]
        if any(token in self._controls for token in ids):
            raise BadConversation(f"it spells {name}, which this tokenizer cannot write as text")
        return list(ids)

    def _tokens(self, encoded: _Encoded, span: Span, text: str) -> tuple[int, int]:
        """First and last token of a turn of the assistant, of which the last is one to stop at: of several in
        a row (Phi-3's template ends the text behind the last turn's end) the first."""
        first, last = bisect_right(encoded.ends, span[0]), bisect_left(encoded.begins, span[1]) - 1
        if first > last:
            raise MaskError(f"{self.template} writes nothing of an assistant's turn")
        while last > first and encoded.ids[last] not in self.stop and self._is_blank(encoded, last, text):
            last -= 1
        following = last + 1
        if encoded.ids[last] not in self.stop and self.template.marks and following < len(encoded.ids):
            last = (
                following if encoded.ids[following] in self.stop else last
            )  # a block that leaves its end out
        if encoded.ids[last] not in self.stop:
            shown = text[max(span[0], span[1] - 40) : span[1] + 20]
            names = " or ".join(self.stop_names)
            raise MaskError(
                f"an assistant's turn does not end in a token to stop at ({names}) but in {shown!r}; "
                f"{self.template} does not close it"
            )
        if self.template.marks:  # all that stands in a block is learned
            return first, last
        end = last
        while end > first and (encoded.ids[end] in self.stop or self._is_blank(encoded, end, text)):
            end -= 1
        return first, next(at for at in range(end, last + 1) if encoded.ids[at] in self.stop)

    def _is_blank(self, encoded: _Encoded, at: int, text: str) -> bool:
        return not text[encoded.begins[at] : encoded.ends[at]].strip()

    # --- where the assistant's turns stand -------------------------------------------------------------

    def _spans(self, whole: str, messages: list[Message], tools: Any) -> tuple[list[Span], bool]:
        """The stretches of the text (without the marks of `{% generation %}`) that the assistant has written,
        and whether earlier turns are rewritten."""
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        if self.template.marks:
            spans = self._generated(whole)
            if len(spans) < len(turns) or any(a >= b for a, b in spans):
                raise MaskError(
                    f"{self.template} has {{% generation %}}, but not around every assistant's turn"
                )
            return spans, False
        found = [self._after_its_prompt(whole, messages, tools, at) for at in turns]
        rewritten = None in found
        return [
            span or self._probed(whole, messages, tools, at) for span, at in zip(found, turns, strict=True)
        ], rewritten

    def _generated(self, whole: str) -> list[Span]:
        spans: list[Span] = []
        begin: int | None = None
        for count, mark in enumerate(_MARKS.finditer(whole)):
            place = mark.start() - count * len(GENERATED)
            opens = mark[0] == GENERATED
            if opens == (begin is not None):
                raise MaskError(f"{self.template}: its {{% generation %}} blocks stand in each other")
            if begin is not None:
                spans.append((begin, place))
            begin = place if opens else None
        return spans

    def _after_its_prompt(self, whole: str, messages: list[Message], tools: Any, at: int) -> Span | None:
        """From the end of what the model is asked with to the end of its turn; None where the conversation up
        to there is not what the whole one begins with."""
        try:
            head = self.template.render(messages[:at], tools, prompt=True)
            through = whole if at == len(messages) - 1 else self.template.render(messages[: at + 1], tools)
        except RunawayError:
            raise
        except TemplateError:  # a conversation may be refused that ends there, or begins with an answer
            return None
        fits = whole.startswith(head) and whole.startswith(through) and len(head) < len(through)
        return (len(head), len(through)) if fits else None

    def _probed(self, whole: str, messages: list[Message], tools: Any, at: int) -> Span:
        """Where the content of this turn stands in the whole conversation, found by putting another in its
        place; up to the first token to stop at after it, which must come before the next turn's content."""
        begin, end = self._content(whole, messages, tools, at)
        limit = self._content(whole, messages, tools, at + 1)[0] if at + 1 < len(messages) else len(whole)
        try:
            head = self.template.render(messages[:at], tools, prompt=True)
            begin = len(head) if whole.startswith(head) and len(head) <= begin else begin
        except TemplateError:
            pass
        stop = re.compile("|".join(map(re.escape, self.stop_names))).search(whole, end, limit)
        return begin, stop.end() if stop else limit

    def _content(self, whole: str, messages: list[Message], tools: Any, at: int) -> Span:
        probed = [*messages[:at], {**messages[at], "content": PROBE}, *messages[at + 1 :]]
        before, found, after = self.template.render(probed, tools).partition(PROBE)
        sound = found and PROBE not in after and len(before) + len(after) <= len(whole)
        if not (sound and whole.startswith(before) and whole.endswith(after)):
            raise MaskError(
                f"{self.template} rewrites the conversation so that it cannot be told what the assistant "
                "wrote; train_on: all learns all of it, or mark the turns in it with {% generation %}"
            )
        return len(before), len(whole) - len(after)
