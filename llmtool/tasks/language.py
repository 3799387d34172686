"""Language modelling: the next token at every position, of texts and of game records."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from llmtool.core.config import Section
from llmtool.core.contracts import IGNORE, Batch, Loss, NextToken
from llmtool.core.errors import ConfigError
from llmtool.data.games.legality import Legality
from llmtool.metrics.games import GamesTally
from llmtool.metrics.language import LanguageTally
from llmtool.models.causal import Transformer
from llmtool.models.chunked import output_of


class LanguageConfig(Section):
    """The next token of a text, at every position; learned by cross entropy."""

    kind: Literal["language"] = Field("language", description="the next token of a text")
    rules: float = Field(
        0.0,
        ge=0,
        description="of games: teach what the rules allow too; the weight, beside that of the move that was "
        "played, of -log of the probability of all legal moves together",
    )

    def outputs(self, targets: dict[str, Any]) -> NextToken:
        """One logit for each token of the vocabulary. ConfigError where the data is not text as tokens."""
        self._refuse(targets)
        return NextToken(int(targets["vocabulary"]))

    def build(self, card: dict[str, Any]) -> LanguageTask:
        """The task for a dataset's card. ConfigError as of `outputs`, and for the rules of a text."""
        self._refuse(card["targets"])
        if "game" in card["targets"]:
            return GamesTask(Legality.of(card), self.rules)
        if self.rules:
            raise ConfigError("task.rules: is for records of games (data.encode.as: moves); leave it out")
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
        targets = batch.targets.flatten()
        if (output := output_of(model, len(targets))) is not None:
            total = output.cross_entropy(_hidden(model, batch), targets)
        else:
            logits, targets = self._flat(model, batch)
            total = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        return Loss(total, (targets != IGNORE).sum())

    def measure(self, model: nn.Module, batch: Batch) -> LanguageTally:
        """Nats, tokens and hits of the scored positions, summed in float64 over each segment of each row."""
        targets = batch.targets.flatten()
        if (output := output_of(model, len(targets))) is not None:
            nats, first = output.judged(_hidden(model, batch), targets)
        else:
            logits, targets = self._flat(model, batch)
            nats = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
            first = logits.argmax(dim=-1)
        found = torch.stack([nats.double(), (targets != IGNORE).double(), (first == targets).double()])
        found = found.view(3, *batch.targets.shape)  # (3, B, T)
        if batch.segments is None or batch.units is None:
            sums = found.sum(dim=2, keepdim=True)
        else:  # segment 0 is padding
            sums = found.new_zeros(3, len(batch), batch.units.shape[1] + 1)
            sums = sums.scatter_add_(2, batch.segments.long().expand_as(found), found)[:, :, 1:]
        units = None if batch.units is None else batch.units.flatten()
        nats, tokens, correct = sums.flatten(1)
        return LanguageTally(nats, tokens, correct, units=units)

    @staticmethod
    def _flat(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(batch.inputs, batch.segments)  # (B, T, V), in the precision of the model
        return logits.flatten(0, 1).float(), batch.targets.flatten()  # (B * T, V), (B * T,)


def _hidden(model: nn.Module, batch: Batch) -> Tensor:
    """(B * T, D), what the output layer reads."""
    assert isinstance(model, Transformer)
    return model.hidden(batch.inputs, batch.segments).flatten(0, 1)


class GamesTask(LanguageTask):
    """The next move; learned as any next token, judged by the rules too.

    rules: weight in the loss of -log of the probability of all legal moves together, which has its minimum
    where the cross entropy alone has it: with every move in proportion to how often it is played.
    """

    def __init__(self, legality: Legality, rules: float = 0.0) -> None:
        self.legality, self.rules = legality, rules

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """As of any next token, and of the rules where the batch says what they allow."""
        if batch.allowed is None:
            return super().loss(model, batch)
        logits, targets = self._flat(model, batch)
        nats = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        scored = targets != IGNORE
        known = batch.allowed.flatten(0, 1) | ~scored[:, None]  # (B * T, A)
        legal = logits[:, : known.shape[1]].masked_fill(~known, -torch.inf).logsumexp(dim=1)
        barred = (logits.logsumexp(dim=1) - legal) * scored
        return Loss(nats + self.rules * barred.sum(), scored.sum())

    def measure(self, model: nn.Module, batch: Batch) -> GamesTally:
        """Sums of each game: nats, moves, first choices; of the judged games legal choices and legal mass.

        A row is a game (batch.segments is None).
        """
        assert batch.segments is None, "games are not packed"
        logits, targets = self._flat(model, batch)  # (B * T, V), (B * T,)
        shape, scored = batch.targets.shape, targets != IGNORE
        first = logits.argmax(dim=-1)
        nats = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none").double()
        units = None if batch.units is None else batch.units[:, 0]
        judged = np.ones(len(batch), dtype=bool) if units is None else self.legality.judged(units.numpy())
        rows = torch.from_numpy(np.flatnonzero(judged)).to(logits.device)
        legal, mass, looked = logits.new_zeros(3, len(batch)).double()
        if len(rows):
            played = batch.inputs[rows].cpu().numpy()
            allowed = torch.from_numpy(self.legality.after(played)).to(logits.device)  # (J, T, V)
            here = scored.view(shape)[rows]
            chosen = allowed.gather(2, first.view(shape)[rows][..., None])[..., 0]
            shares = logits.view(*shape, -1)[rows][..., : allowed.shape[2]].softmax(dim=-1)
            legal[rows] = (chosen & here).double().sum(dim=1)
            mass[rows] = ((shares * allowed).sum(dim=-1) * here).double().sum(dim=1)
            looked[rows] = here.double().sum(dim=1)
        surprise, moves, right = (
            part.view(shape).double().sum(dim=1) for part in (nats, scored, first == targets)
        )
        return GamesTally(surprise, moves, right, legal, mass, looked, units=units)
