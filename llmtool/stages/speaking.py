"""What a language model is spoken to in: its tokenizer, its chat template where it has one, its ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmtool.data import templates
from llmtool.data.conversations import Message, prepared
from llmtool.data.prompts import PromptTokenizer
from llmtool.data.rendering import Renderer
from llmtool.data.templates import Template
from llmtool.data.tokenizers import FileTokenizer
from llmtool.evaluation.writer import Writer, ends
from llmtool.models.causal import Transformer


@dataclass(frozen=True)
class Speaker:
    """renderer: of a chat model; None where a text is a text."""

    tokenizer: PromptTokenizer
    ends: frozenset[int]
    renderer: Renderer | None

    def prompt(self, text: str) -> list[int]:
        """What the model goes on from: a user's turn of a chat model, else the text itself; perhaps nothing.

        Raises BadConversation where the template refuses it.
        """
        if self.renderer is not None:
            return self.conversation([{"role": "user", "content": text}])
        return self.tokenizer.encode([text])[0]

    def conversation(self, messages: list[Message], tools: Any = None) -> list[int]:
        """The ids after which a chat model is to answer, in the form that it has learned. messages, tools: as
        `conversations.asked` reads them. Raises BadConversation."""
        assert self.renderer is not None
        calls = self.renderer.template.uses("tool_calls")
        return self.renderer.prompt(prepared(messages, calls), tools)

    def shown(self, ids: list[int]) -> str:
        """Ids as a person reads them: of a chat the control tokens too, of a text not the one before it."""
        if self.renderer is None and ids[:1] == [self.tokenizer.begin]:
            ids = ids[1:]
        return self.tokenizer.tokenizer.decode(ids, skip_special_tokens=False)

    def writer(
        self, model: Transformer, device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> Writer:
        """Writes texts with the model."""
        return Writer(model, self.tokenizer, self.ends, device, autocast)


def of(card: Mapping[str, Any], directory: Path, model: Transformer, raw: bool = False) -> Speaker:
    """How a model of this card (its data's) is spoken to. directory: of the tokenizer's files. raw: without
    its chat template.

    ConfigError where there are none.
    """
    tokenizer, encoder = PromptTokenizer.read(directory), card["encoder"]
    renderer = None
    if not raw and (template := encoder.get("template")):
        fitted = FileTokenizer(kind="file", path=str(directory)).fit(lambda: iter(()))
        special = encoder.get("special") or templates.read_special(directory, fitted)
        made = Template(template["name"], template["text"], special)
        renderer = Renderer(made, fitted, stop=tuple(encoder.get("stop", ())))
    return Speaker(tokenizer, ends(model, tokenizer) | set(renderer.stop if renderer else ()), renderer)
