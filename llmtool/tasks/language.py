"""Language modelling: the next token at every position."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from llmtool.core.config import Section
from llmtool.core.contracts import IGNORE, Batch, Loss, NextToken
from llmtool.core.errors import ConfigError
from llmtool.metrics.language import LanguageTally


class LanguageConfig(Section):
    """The next token of a text, at every position; learned by cross entropy."""

    kind: Literal["language"] = Field("language", description="the next token of a text")

    def outputs(self, targets: dict[str, Any]) -> NextToken:
        """One logit for each token of the vocabulary. ConfigError where the data is not text as tokens."""
        self._refuse(targets)
        return NextToken(int(targets["vocabulary"]))

    def build(self, card: dict[str, Any]) -> LanguageTask:
        """The task for a dataset's card."""
        self._refuse(card["targets"])
        return LanguageTask()

    def _refuse(self, targets: dict[str, Any]) -> None:
        if targets["kind"] != "next_token":
            raise ConfigError(
                "task.kind: language needs text encoded as tokens; this data is a table with a target column "
                "(set data.encode.as: tokens, or leave task out)"
            )


class LanguageTask:
    """Cross entropy of the next token; positions whose target is IGNORE are never scored."""

    metric = "loss"
    mode = "min"

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Sum of the scored positions' cross entropies (nats); the count is how many they are."""
        logits, targets = self._flat(model, batch)
        total = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        return Loss(total, (targets != IGNORE).sum())

    def measure(self, model: nn.Module, batch: Batch) -> LanguageTally:
        """Nats, tokens and hits of the scored positions, summed in float64."""
        logits, targets = self._flat(model, batch)
        nats = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none").double().sum()
        return LanguageTally(nats, (targets != IGNORE).sum(), (logits.argmax(dim=-1) == targets).sum())

    @staticmethod
    def _flat(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(batch.inputs, batch.segments)  # (B, T, V), in the precision of the model
        return logits.flatten(0, 1).float(), batch.targets.flatten()  # (B * T, V), (B * T,)
