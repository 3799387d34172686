"""llmtool predict: what a trained model says of new rows: as many rows out as in, in the same order."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from llmtool import experiment
from llmtool.commands import PredictOptions, session, shown
from llmtool.core import console, files, streams
from llmtool.core.errors import ConfigError, DataError, LlmtoolError
from llmtool.core.urls import shown as shown_url
from llmtool.data import incoming, outgoing, remote
from llmtool.data.csv_source import CsvSource
from llmtool.data.incoming import STANDARD, Stretch
from llmtool.data.reading import Reading
from llmtool.data.sources import Source, TextSource
from llmtool.data.store import CARD, Dataset
from llmtool.experiment import Loaded
from llmtool.stages import assemble, checkpoints
from llmtool.stages.predict import PICTURES, Answers, Predictor, can_restore

ERROR = "error"
PLAIN = {str, int, float, bool, type(None)}  # cells that stand as they are
TOLD = 3  # rows whose error is told on stderr


@dataclass
class Count:
    """Rows so far, and those with an error: their number, and the first of them in words."""

    rows: int = 0
    wrong: int = 0
    told: list[str] = field(default_factory=list)

    def add(self, stretch: Stretch, errors: Sequence[str | None]) -> None:
        """Take in some rows."""
        self.rows += len(stretch)
        for line, error in zip(stretch.lines, errors, strict=True):
            if error is not None:
                self.wrong += 1
                if len(self.told) < TOLD:
                    self.told.append(error if f"(line {line:,})" in error else f"{error} (line {line:,})")


def run(options: PredictOptions) -> dict[str, Any]:
    """Run the command; returns its document: the model, the rows, how many have an error. Writes nothing into
    a run."""
    _check(options)
    if session.without_file(options.config, options.overrides, options.of):
        return _predict(options, None, session.of_directory(options.config)[1], own=True)
    loaded = experiment.load(options.config, options.overrides)
    with session.located(loaded, "evaluate"):
        stage, found = (None, options.of) if options.of else session.scored(loaded)
        return _predict(options, loaded, found, own=stage is not None)


def _check(options: PredictOptions) -> None:
    """What of the command line cannot be; before anything is read."""
    if options.only not in (None, "predictions"):
        raise ConfigError(f"--only {options.only}: there is `--only predictions`")
    if options.output == STANDARD:
        if console.is_json():
            raise ConfigError(
                "--json prints a document on stdout, where the rows would go: give --output FILE"
            )
        return
    if remote.is_url(options.output):
        raise ConfigError(
            f"--output {shown_url(options.output)}: answers are written to a file of this machine"
        )
    out = Path(options.output)
    outgoing.output_form(out)
    if out.is_dir():
        raise ConfigError(f"--output {out}: a directory")
    if not out.parent.is_dir():
        raise ConfigError(f"--output {out}: there is no directory {out.parent}")
    given = Path(options.input)
    if options.input != STANDARD and out.exists() and given.exists() and out.samefile(given):
        raise ConfigError(f"--output {out}: the input; its rows would be replaced")
    if os.path.lexists(out) and not options.force:
        raise ConfigError(f"--output {out} is there already; --force replaces it")


def _predict(options: PredictOptions, loaded: Loaded | None, of: str, own: bool) -> dict[str, Any]:
    """own: the model is that of the run, and knows best how its rows are encoded."""
    start = checkpoints.from_checkpoint(of)
    card, directory = _card(None if loaded is None or own else Path(loaded.experiment.run), start)
    reading = _as_trained(Reading.of(loaded.experiment.data), card, start) if loaded else _reading(start)
    settings = _settings(loaded)
    pictures = _pictures(options, card)
    if pictures is not None:
        settings["root"] = None  # their paths are whole
    with Predictor(start, card, directory, reading, **settings) as predictor:
        if pictures is not None:
            count = _write(options, predictor, None, lambda take: deque(map(take, pictures), maxlen=0))
        else:
            source = incoming.source_of(options.input, options.format, reading.source if reading else None)
            path = incoming.opened(options.input, source, sys.stdin.buffer)
            source = incoming.settled(source, path, list(predictor.stand_ins))
            early = _early(options, predictor, source)
            give = partial(incoming.read, source, path, rows=predictor.rows, early=early)
            count = _write(options, predictor, source, give)
    for note in [*predictor.notes, *count.told]:
        console.note(f"predict: {note}")
    wrong = f", {count.wrong:,} of them with an error instead of an answer" if count.wrong else ""
    rows = f"{count.rows:,} row{'s' * (count.rows != 1)}"
    console.note(f"predict: {rows}{wrong}" + _to(options))
    if count.wrong and options.strict:
        raise DataError(f"--strict: {count.wrong:,} of {count.rows:,} rows have an error: {count.told[0]}")
    model = {"path": str(start.directory), "hash": start.hash}
    return {"model": model, "rows": count.rows, "errors": count.wrong, "output": options.output}


def _settings(loaded: Loaded | None) -> dict[str, Any]:
    """What of the file says how rows are predicted."""
    if loaded is None:
        return {}
    asked = loaded.experiment
    settings = {name: getattr(asked, name) for name in ("device", "precision", "deterministic")}
    settings |= {"batch": asked.evaluate.batch, "flip": asked.evaluate.flip}
    return settings | {"root": getattr(asked.data.encode, "root", None)}


def _pictures(options: PredictOptions, card: dict[str, Any]) -> Iterator[Stretch] | None:
    """Of a model for pictures the input may be a folder of them, or a single one."""
    if card["encoding"] != "images" or options.format is not None:
        return None
    column = str(card["encoder"].get("rows", {}).get("image", "image"))
    return incoming.pictures_of(options.input, column, PICTURES)


def _to(options: PredictOptions) -> str:
    return "" if options.output == STANDARD else f": {options.output}"


def _card(root: Path | None, start: checkpoints.Start) -> tuple[dict[str, Any], Path]:
    """The card whose encoder reads the rows, and where its tokenizer lies: that of the run's dataset, for the
    model of another run (its columns may have other names), else the one that the model carries."""
    prepared = root / "prepare" if root is not None else None
    if prepared is not None and (prepared / CARD).is_file():
        card: dict[str, Any] = files.read_json(prepared / CARD)
        assemble.refuse_other_encoding(Dataset(prepared, card, ""), start)
        return card, prepared
    if can_restore(start.card):
        return start.card, start.directory
    raise ConfigError(
        f"{start.directory} carries no encoder: nothing says which column it reads and how. Prepare a "
        "dataset with it (data.encode in a configuration file, `llmtool prepare`), and predict with that file"
    )


def _reading(start: checkpoints.Start) -> Reading | None:
    """How the rows that the model learned from were read and cleaned, as its checkpoint says."""
    state = checkpoints.about_checkpoint(start.directory).reading
    if state is None:
        console.note(
            f"{start.directory} does not say how its data was read and cleaned (an older version wrote it): "
            "rows are read as their format has it, and not cleaned"
        )
        return None
    return Reading.from_state(state, start.directory)


def _early(
    options: PredictOptions, predictor: Predictor, source: Source
) -> Callable[[list[str]], bool] | None:
    """Whether rows are answered before many have come, by the columns known so far: to a file they need not
    be, and of JSON any row may bring the column that is looked for."""
    if options.output != STANDARD:
        return None
    return predictor.knows_columns if source.grows_columns else lambda columns: True


def _as_trained(reading: Reading, card: dict[str, Any], start: checkpoints.Start) -> Reading:
    """The reading of a file, with the decimal mark of the rows that its encoder learned from: of others,
    categories would be other words."""
    state = card.get("reading") or checkpoints.about_checkpoint(start.directory).reading
    if state is None or not isinstance(reading.source, CsvSource):
        return reading
    decimal = state["source"].get("decimal", ".")
    if decimal != reading.source.decimal:
        console.note(
            f"predict: data.source.decimal is {decimal!r} here, as it was when the data was prepared"
        )
    return replace(reading, source=reading.source.model_copy(update={"decimal": decimal}))


def _write(
    options: PredictOptions,
    predictor: Predictor,
    source: Source | None,
    give: Callable[[Callable[[Stretch], None]], Any],
) -> Count:
    """Predict and write what `give` gives, a stretch at a time."""
    count = Count()
    form, delimiter, decimal = _form(options, source)
    numbers = predictor.numbers
    with _stream(options) as stream, console.progress(None, "row") as display:
        pace = shown.Pace(display)
        packed = options.output.lower().endswith(".gz")
        writer = outgoing.writer(stream, form, numbers, delimiter, packed, decimal)
        checked = False

        def take(stretch: Stretch) -> None:
            nonlocal checked
            frame = stretch.frame
            if isinstance(source, TextSource) and len(predictor.inputs) == 1:
                stretch.frame = frame = frame.set_axis(predictor.inputs, axis=1)
            if not checked and (names := [str(name) for name in frame.columns]):
                _check_columns(options, predictor, names)
                checked = True
            plain = stretch if source is None else replace(stretch, frame=source.plain(frame))
            found = predictor.predict(plain)
            count.add(stretch, found.errors)
            writer.write(_columns(options, stretch, found))
            stream.flush()
            pace("predicting", count.rows)

        give(take)
        writer.close()
    return count


def _check_columns(options: PredictOptions, predictor: Predictor, names: list[str]) -> None:
    given = "standard input" if options.input == STANDARD else options.input
    predictor.check(given, names)
    taken = [name for name in [*predictor.names, ERROR] if name in names]
    if taken and options.only is None:
        raise ConfigError(
            f"{given} has a column {taken[0]!r} already; leave the input's out with --only predictions"
        )


def _columns(options: PredictOptions, stretch: Stretch, found: Answers) -> dict[str, list[Any]]:
    """The input's columns as they were written, unless they are not wanted, and the answers."""
    columns: dict[str, list[Any]] = {}
    if options.only is None:
        places = stretch.frame.index.tolist() if stretch.bad else None
        for name in stretch.frame.columns:
            cells = stretch.frame[name].tolist()
            if not set(map(type, cells)) <= PLAIN:
                cells = [cell if type(cell) in PLAIN else str(cell) for cell in cells]
            if places is not None:
                whole: list[Any] = [None] * len(stretch)
                for place, cell in zip(places, cells, strict=True):
                    whole[place] = cell
                for place, row in stretch.kept.items():
                    whole[place] = row.get(name)
                cells = whole
            columns[str(name)] = cells
    return columns | found.columns | {ERROR: list(found.errors)}


def _form(options: PredictOptions, source: Source | None) -> tuple[str, str, str]:
    """The format of the output, and the delimiter and decimal mark of one that is CSV: those of the input,
    where it can be."""
    given = "" if source is None else str(source.format)  # type: ignore[attr-defined]
    delimiter = source.delimiter if isinstance(source, CsvSource) and given == "csv" else ","
    decimal = source.decimal if isinstance(source, CsvSource) else "."
    if options.output != STANDARD:
        return outgoing.output_form(Path(options.output)), delimiter, decimal
    form = {"tsv": "tsv", "jsonl": "jsonl", "json": "jsonl"}.get(given, "csv")
    return form, delimiter, decimal


@contextmanager
def _stream(options: PredictOptions) -> Iterator[BinaryIO]:
    if options.output != STANDARD:
        with files.stream(Path(options.output)) as file:
            yield file
        return
    try:
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise streams.ReaderGoneError from None
    except OSError as error:
        streams.mute(sys.stdout)
        raise LlmtoolError(streams.unwritable(error)) from None
