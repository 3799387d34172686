"""What a trained model says of rows that no dataset holds: they are encoded as its own training rows were."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import torch

from llmtool.core import files
from llmtool.core.config import suggest
from llmtool.core.contracts import Tally
from llmtool.core.devices import (
    DeviceName,
    PrecisionName,
    resolve_device,
    resolve_precision,
    set_up,
)
from llmtool.core.errors import ConfigError, DataError
from llmtool.data.batches import unit_edges
from llmtool.data.cleaning import clean, on_new_rows
from llmtool.data.encoding import Encoder, RowError
from llmtool.data.games.moves import START, MovesEncoder
from llmtool.data.images import ImagesEncoder
from llmtool.data.incoming import ROWS, Stretch
from llmtool.data.reading import ENCODERS, Reading, restore_encoder
from llmtool.data.sources import Chunk
from llmtool.data.store import Dataset, Split
from llmtool.data.targets import stand_in
from llmtool.evaluation.loop import eval_mode
from llmtool.evaluation.report import PROBABILITY
from llmtool.metrics.labels import LabelTally
from llmtool.metrics.language import LARGEST, LanguageTally
from llmtool.models.causal import Transformer
from llmtool.stages.assemble import Assembled
from llmtool.stages.checkpoints import Start
from llmtool.stages.score import score

if TYPE_CHECKING:
    import pandas as pd

SPLIT = "rows"  # what the rows at hand are called while they are arrays
PICTURES = 512  # of a stretch
GAMES = 64  # that go through a model together
NOT_FINITE = "the model's output is not a finite number"
Batch = int | Literal["auto"]


@dataclass(frozen=True)
class Answers:
    """columns: name -> a cell for each row, None where there is an error. errors: why, else None."""

    columns: dict[str, list[Any]]
    errors: list[str | None]


class _Every(list[str]):
    """The columns of data that has any column."""

    def __contains__(self, name: object) -> bool:
        return True


def can_restore(card: Mapping[str, Any]) -> bool:
    """Whether a card holds a whole encoder, and not only the tokenizer of a model that others made."""
    state = card["encoder"]
    own = state.keys() - {"as", "tokenizer", "template", "standardisation"}
    return state.get("as") in ENCODERS and len(own) > 0


class Predictor:
    """A model, and the encoder that turns rows into what it takes; rows become arrays in a directory of their
    own, which goes with it (`with`).

    card: with the encoder, perhaps that of another dataset than the model's own. directory: of its tokenizer.
    reading: how rows are cleaned. flip: as evaluate has it. root: the folder that the paths of pictures begin
    from. Raises ConfigError where the model has no head for a task.
    """

    def __init__(
        self, start: Start, card: Mapping[str, Any], directory: Path, reading: Reading | None, *,
        device: DeviceName = "auto", precision: PrecisionName = "auto", deterministic: bool = False,
        batch: Batch = "auto", flip: bool = False, root: str | None = None,
    ) -> None:  # fmt: skip
        if start.task is None:
            raise ConfigError(
                f"{start.directory} has no head for a task yet: `llmtool finetune` gives it one"
            )
        self.encoder: Encoder = restore_encoder(card, directory)
        if isinstance(self.encoder, ImagesEncoder):
            self.encoder.config = self.encoder.config.model_copy(update={"root": root})
        if isinstance(self.encoder, MovesEncoder):  # what comes next is asked of games that go on
            self.encoder.config = self.encoder.config.model_copy(update={"unfinished": "keep"})
        self.stand_ins = stand_in(self.encoder.targets)
        self.inputs = [name for name in self.encoder.columns(_Every()) if name not in self.stand_ins]
        self.steps = [] if reading is None else reading.clean
        self.notes: list[str] = []
        self._batch, self._flip, self._ready = batch, flip, False
        self._place = tempfile.TemporaryDirectory(prefix="llmtool-predict-")
        where = resolve_device(device)
        how = resolve_precision(precision, where)
        set_up(where, how, deterministic)
        targets = start.card["targets"]
        self._card = {**card, "targets": targets, "sources": [], "splits": {}}
        dataset = Dataset(Path(self._place.name), self._card, "")
        task = start.task.build(self._card)
        self._assembled = Assembled(
            start.model.to(where), start.task, task, dataset, targets, 0, where, how
        )  # fmt: skip
        self.names = columns_of(targets)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.cleanup()

    @property
    def rows(self) -> int:
        """Rows that are encoded at once, at most: of pictures, whose arrays are large, fewer."""
        return PICTURES if isinstance(self.encoder, ImagesEncoder) else ROWS

    @property
    def numbers(self) -> list[str]:
        """The columns of answers that hold numbers."""
        words = self._card["targets"]["kind"] != "values"
        return [name for name in self.names if not (words and name == "prediction")]

    def check(self, name: str, available: Sequence[str]) -> None:
        """DataError, naming the input, where it lacks a column that the model reads; settles what cleaning
        can do."""
        if missing := [column for column in self.inputs if column not in available]:
            near = suggest(missing[0], list(available))
            known = ", ".join(available[:30]) + (", ..." if len(available) > 30 else "")
            listed = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise DataError(f"{name}: no column {listed}{near} (columns: {known})")
        self.steps, notes = on_new_rows(self.steps, self.inputs, list(self.stand_ins), available)
        self.notes += notes
        self._ready = True

    def knows_columns(self, available: Sequence[str]) -> bool:
        """Whether `check` finds all columns that the model reads among these, and leaves no cleaning out."""
        _, left_out = on_new_rows(self.steps, self.inputs, list(self.stand_ins), available)
        return not left_out and set(self.inputs) <= set(available)

    def predict(self, stretch: Stretch) -> Answers:
        """The answers to these rows, in their order, with a reason for each row that gets none."""
        assert self._ready or not len(stretch.frame), "check() comes first"
        errors: list[str | None] = [stretch.bad.get(place) for place in range(len(stretch))]
        columns: dict[str, list[Any]] = {name: [None] * len(stretch) for name in self.names}
        frame = self._good(stretch.frame, errors) if len(stretch.frame) else stretch.frame
        if len(frame) and (encoded := self._encoded(frame, errors)) is not None:
            dataset, split = encoded
            assembled = replace(self._assembled, dataset=dataset)
            tally = score(assembled, [SPLIT], self._batch, self._flip)[SPLIT]
            found, places = answers_of(tally, split)
            if isinstance(self.encoder, MovesEncoder):
                found |= next_moves(assembled, self.encoder, split)
            self._take(found, places, columns, errors)
            self._forget()
        return Answers(columns, errors)

    def _good(self, frame: pd.DataFrame, errors: list[str | None]) -> pd.DataFrame:
        """The rows, cleaned, that neither cleaning nor the encoder refuses at sight."""
        absent = [name for name in self.inputs if name not in frame.columns]  # keys of JSON that come later
        frame = frame.assign(**dict.fromkeys(absent, None), **self.stand_ins).astype(object)
        cleaned = clean(self.steps, frame)
        for found in (cleaned.dropped, cleaned.bad):
            for reason, places in found.items():
                for place in places.tolist():
                    errors[place] = reason
        frame = cleaned.frame
        good = np.ones(len(frame), dtype=bool)
        refused = self.encoder.refuse(frame)
        for reason, mask in (refused.dropped | refused.bad).items():
            for place in frame.index.to_numpy()[mask & good].tolist():
                detail = refused.details.get(place)
                errors[place] = f"{reason}: {detail}" if detail else reason
            good &= ~mask
        return frame if good.all() else frame.loc[good]

    def _encoded(self, frame: pd.DataFrame, errors: list[str | None]) -> tuple[Dataset, Split] | None:
        """The rows as a split; those that the encoder refuses get their reason. None where none is left."""
        while len(frame):
            places = frame.index.to_numpy(np.int64)
            chunk = Chunk(frame, places, np.zeros(len(frame), np.int32), places)
            writer = self.encoder.writer(Path(self._place.name), SPLIT)
            try:
                reasons = writer.add(chunk)
                meta = writer.close()
            except RowError as error:  # it would end `prepare`; its line is the row's place here
                errors[error.line] = str(error)
                frame = frame.drop(index=error.line)
                continue
            for place, reason in reasons.items():
                errors[place] = reason
            if not meta["rows"]:
                return None
            dataset = Dataset(Path(self._place.name), {**self._card, "splits": {SPLIT: meta}}, "")
            return dataset, dataset.split(SPLIT)
        return None

    def _take(
        self,
        found: Mapping[str, np.ndarray],
        places: np.ndarray,
        columns: dict[str, list[Any]],
        errors: list[str | None],
    ) -> None:
        """Put the answers where their rows are."""
        good = np.ones(len(places), dtype=bool)
        for name, cells in found.items():
            if cells.dtype.kind == "f" and name != "probability":  # which a game that is over has none of
                good &= np.isfinite(cells)
        for name, cells in found.items():
            column = columns[name]
            digits = 9 if name == "probability" or name.startswith("p_") else 12
            values = cells[good].tolist()
            if cells.dtype.kind == "f":  # as predictions.csv of evaluate has them
                values = [float(f"{value:.{digits}g}") if value == value else None for value in values]
            for place, value in zip(places[good].tolist(), values, strict=True):
                column[place] = value
        for place in places[~good].tolist():
            errors[place] = NOT_FINITE
        answered = set(places.tolist())
        for place, error in enumerate(errors):
            if error is None and place not in answered:
                errors[place] = "nothing in it that the model could judge"

    def _forget(self) -> None:
        """Take the arrays away: what is still mapped keeps its bytes, and the next rows get files anew."""
        with files.disk_errors(Path(self._place.name)):
            for path in Path(self._place.name).glob(f"{SPLIT}.*"):
                path.unlink()


def columns_of(targets: Mapping[str, Any]) -> list[str]:
    """The names of the columns that hold a model's answers."""
    names = [str(name) for name in targets.get("names", [])]
    if targets["kind"] == "classes":
        return ["prediction", "probability", *(f"p_{name}" for name in names)]
    if targets["kind"] == "labels":
        return [*(f"prediction_{name}" for name in names), *(f"p_{name}" for name in names)]
    if targets["kind"] == "values":
        return ["prediction"] if len(names) == 1 else [f"prediction_{name}" for name in names]
    of_text = ["log_likelihood", "tokens", "perplexity"]
    return [*of_text, "prediction", "probability"] if "game" in targets else of_text


def answers_of(tally: Tally, split: Split) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same columns with a cell for each row of the split, and (n,) the places of these rows."""
    # (n,) of rows, or of documents; a row's line, as the encoder was told it, is its place
    places = np.asarray(split.arrays["origin"], np.int64)[:, 1]
    if isinstance(tally, LanguageTally):
        return _of_text(tally, split, places)
    found = {name: cells for name, cells in tally.predictions().items() if not name.startswith("target")}
    classes = [cells for name, cells in found.items() if name.startswith(PROBABILITY)]
    answers = {}
    for name, cells in found.items():
        if name.startswith(PROBABILITY):
            answers[f"p_{name.removeprefix(PROBABILITY)}"] = cells
        else:
            answers[name.replace("prediction ", "prediction_", 1)] = cells
    several = isinstance(tally, LabelTally)
    return answers | ({"probability": np.max(classes, axis=0)} if classes and not several else {}), places


def _of_text(
    tally: LanguageTally, split: Split, places: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Sums by row: the tally's units are documents, or stretches of them where there are few, and a row of
    chats may hold several. Rows in which nothing is scored are left out."""
    ends = np.asarray(split.arrays["documents"], np.int64)
    document = np.searchsorted(ends, unit_edges(split)[:-1], side="right")
    rows, row = np.unique(places, return_inverse=True)
    row = row[np.minimum(document, len(places) - 1)]  # a unit without tokens may lie behind the last
    nats, tokens = (np.bincount(row, part, len(rows)) for part in tally.sums()[:2])
    scored = tokens > 0
    nats, tokens = nats[scored], tokens[scored]
    perplexity = np.exp(np.minimum(nats / tokens, LARGEST))
    return (
        {"log_likelihood": -nats, "tokens": tokens.astype(np.int64), "perplexity": perplexity},
        rows[scored],
    )


def next_moves(assembled: Assembled, encoder: MovesEncoder, split: Split) -> dict[str, np.ndarray]:
    """The likeliest move after each game, and its probability; none where the rules end the game."""
    model, device = cast(Transformer, assembled.model), assembled.device
    ends = np.asarray(split.arrays["documents"], np.int64)
    games = [game.tolist() for game in np.split(np.asarray(split.arrays["tokens"], np.int64), ends[:-1])]
    names = [START, *encoder.rules.vocabulary()]
    over = encoder.rules.ended([[names[number] for number in game[1:]] for game in games])
    moves, sure = np.full(len(games), None, object), np.full(len(games), np.nan)
    waiting = [at for at, ended in enumerate(over) if not ended]
    with eval_mode(model), torch.no_grad(), assembled.precision.autocast(device):
        for start in range(0, len(waiting), GAMES):
            some = waiting[start : start + GAMES]
            seen = [games[at][-model.context :] for at in some]
            inputs = torch.zeros(len(seen), max(map(len, seen)), dtype=torch.int64)
            for row, game in enumerate(seen):
                inputs[row, : len(game)] = torch.tensor(game)  # a causal model sees nothing behind it
            last = torch.tensor([len(game) - 1 for game in seen])
            hidden = model.hidden(inputs.to(device))[torch.arange(len(seen)), last]  # (B, D)
            found = model.logits(hidden).float().softmax(dim=1).cpu()  # (B, V)
            found[:, 0] = 0  # what begins a game is no move
            likeliest = found.max(dim=1)
            for at, best in zip(some, likeliest.indices.tolist(), strict=True):
                moves[at] = names[best]
            sure[some] = likeliest.values.double().numpy()
    return {"prediction": moves, "probability": sure}
