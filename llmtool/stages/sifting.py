"""The cleaning steps that look over the whole source: which rows leave because of others, and of which."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmtool.core import files
from llmtool.core.errors import ConfigError
from llmtool.data import DataConfig
from llmtool.data.cleaning import DropDuplicates, clean
from llmtool.data.contamination import Decontaminate, EvaluationRuns, read_evaluation, take
from llmtool.data.dropped import Account
from llmtool.data.near_duplicates import DropNearDuplicates, Leaving, Read, leaving, report
from llmtool.data.sources import SPLITS, Chunk
from llmtool.data.splitting import labels
from llmtool.stages.rows import Rows, complete

REMOVED = "removed.jsonl"  # a line for each row that leaves because of another
CLUSTERS = "near_duplicates.json"
FILES = (REMOVED, CLUSTERS)

Keys = tuple[np.ndarray, np.ndarray]  # (n,) ordinals, (n, k) what these rows are compared by


@dataclass
class Sifted:
    """gone: reason -> ordinals of the rows that leave for it. ledger: what it says beside counts."""

    gone: dict[str, np.ndarray] = field(default_factory=dict)
    ledger: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave(self, reason: str, rows: np.ndarray) -> None:
        """More rows for a reason."""
        self.gone[reason] = np.concatenate([self.gone.get(reason, rows[:0]), rows])


# --- before and while the source is read --------------------------------------------------------------------


def learn(data: DataConfig, columns: list[str]) -> None:
    """Read what `decontaminate` looks for: evaluation files, and validation and test of the source itself."""
    for position, step in enumerate(data.clean):
        if isinstance(step, Decontaminate):
            found = read_evaluation(step)
            if step.column in columns:
                _own(data, columns, position, step.column, found)
            step.learn(found.close())


def _own(data: DataConfig, columns: list[str], position: int, column: str, found: EvaluationRuns) -> None:
    """Add the texts of validation and test, as the step would meet them."""
    for given in getattr(data.source, "parts", {"": data.source}).values():
        path = getattr(given, "path", None)
        named = [path[name] for name in SPLITS[1:] if name in path] if isinstance(path, dict) else []
        if not named:
            continue
        every = [one for part in named for one in ([part] if isinstance(part, str) else part)]
        source = given.model_copy(update={"path": every})
        for chunk in source.read():
            frame = clean(data.clean[:position], complete(chunk.frame, columns), again=True).frame
            chunk = chunk.take(chunk.frame.index.isin(frame.index))
            chunk.frame = frame
            take(found, chunk, source.names(), [column])


def gathered(step: Any, keys: Keys, chunk: Chunk) -> Keys:
    """What is kept of a chunk's keys until all rows were read.

    Of `decontaminate`: the rows in which something was found, as (run, file, line), of train only where files
    say which these are; and one other with text, as (-1, 0, 0).
    """
    ordinals, found = keys
    if not isinstance(step, Decontaminate) or not len(ordinals):
        return keys
    rows = ordinals - int(chunk.frame.index[0])
    hit = found[:, 0] >= 0
    if chunk.split is not None:
        hit &= chunk.split[rows] == SPLITS[0]
    runs = np.stack([found[hit, 0], chunk.file[rows[hit]], chunk.line[rows[hit]]], axis=1).astype(np.int64)
    other = ordinals[~hit][:1]
    return np.append(ordinals[hit], other), np.vstack([runs, *[[-1, 0, 0]] * len(other)])


# --- when all rows were read --------------------------------------------------------------------------------


@dataclass
class _Removed:
    """removed.jsonl: which row left because of which."""

    path: Path
    position: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, reason: str, file: str, line: int, **why: Any) -> None:
        """One row; `why` names the other."""
        row = {"step": f"data.clean.{self.position}", "reason": reason, "file": file, "line": line, **why}
        self.lines.append(json.dumps(row, ensure_ascii=False))
        if len(self.lines) >= 1000:
            self.write()

    def write(self) -> None:
        """What was held back."""
        if self.lines:
            files.append_line(self.path, "\n".join(self.lines))
        self.lines = []


def sift(
    data: DataConfig,
    keys: dict[int, list[Keys]],
    bad: np.ndarray,
    rows: Rows,
    columns: list[str],
    directory: Path,
) -> Sifted:
    """Decide, step after step, which rows leave; write down why.

    keys: position of a step -> those of each chunk. bad: (rows,) those that are quarantined, and stay so.
    Raises ConfigError for a column without text.
    """
    found = Sifted()
    account = Account(data.clean)

    def hide(text: str) -> str:
        return str(account.hidden({"text": text})["text"])

    gone = np.zeros(len(bad), bool)
    names = data.source.names()
    removed = _Removed(directory / REMOVED)
    clusters = []
    for position in sorted(keys):
        step: Any = data.clean[position]
        every = keys.pop(position)
        parts = [(ordinals[~gone[ordinals]], part[~gone[ordinals]]) for ordinals, part in every]
        removed.position = position
        if isinstance(step, DropDuplicates):
            away = _copies(parts)
            found.leave("duplicate", away[~bad[away]])
        elif not any(len(ordinals) for ordinals, _ in every):
            raise ConfigError(f"data.clean.{position}: {step.step}: no text in column {step.column!r}")
        elif isinstance(step, DropNearDuplicates):
            read = _again(data, rows, columns, position)
            with leaving(step, parts, read, directory, hide) as near:
                away = near.rows
                clusters.append({"step": f"data.clean.{position}", **report(step, near, names)})
                _near(near, bad, names, removed, found, clusters[-1])
        else:
            away = _contaminated(step, parts, bad, names, removed, found, hide)
        gone[away] = True
        removed.write()
    if clusters:
        files.write_json(directory / CLUSTERS, clusters)
    return found


def _copies(parts: Sequence[Keys]) -> np.ndarray:
    """Rows that an earlier one is equal to."""
    ordinals = np.concatenate([part[0] for part in parts])
    again = np.ones(len(ordinals), bool)
    again[np.unique(labels(np.concatenate([part[1] for part in parts])), return_index=True)[1]] = False
    return ordinals[again]


def _again(data: DataConfig, rows: Rows, columns: list[str], position: int) -> Read:
    """How rows are read once more as the step at this position met them."""

    def read(wanted: np.ndarray) -> Iterator[Chunk]:
        for chunk in rows:
            if not len(chunk):
                continue
            start = int(chunk.frame.index[0])
            first, last = np.searchsorted(wanted, [start, start + len(chunk)])
            if first < last:
                mask = np.zeros(len(chunk), bool)
                mask[wanted[first:last] - start] = True
                part = chunk.take(mask)
                part.frame = clean(data.clean[:position], complete(part.frame, columns), again=True).frame
                yield part
            if last == len(wanted):
                return

    return read


def _near(
    near: Leaving, bad: np.ndarray, names: list[str], removed: _Removed, found: Sifted, about: dict[str, Any]
) -> None:
    """Account for rows that are nearly the same as earlier ones. about: their clusters."""
    for row, of, index in zip(near.rows.tolist(), near.of.tolist(), near.index.tolist(), strict=True):
        if not bad[row]:
            (file, line), (other, there) = near.seen.place(row), near.seen.place(of)
            same = {"file": names[other], "line": there}
            removed.add("near-duplicate", names[file], line, of=same, jaccard=round(index, 4))
    found.leave("near-duplicate", near.rows[~bad[near.rows]])
    short = {name: about[name] for name in ("step", "texts", "compared", "removed", "clusters")}
    found.ledger.setdefault("near_duplicates", []).append(short)
    if about["removed"]:
        largest = about["largest"][0]["rows"]
        found.notes.append(
            f"{about['step']}: dropped {about['removed']:,} of {about['texts']:,} texts as nearly the same "
            f"as an earlier one, in clusters of up to {largest:,} rows (see {CLUSTERS}, {REMOVED})"
        )


def _contaminated(
    step: Decontaminate,
    parts: Sequence[Keys],
    bad: np.ndarray,
    names: list[str],
    removed: _Removed,
    found: Sifted,
    hide: Callable[[str], str],
) -> np.ndarray:
    """Account for rows in which evaluation text stands, and return them."""
    runs: EvaluationRuns = step.learned
    hits: Counter[str] = Counter()
    away = []
    for ordinals, part in parts:
        for row, (number, file, line) in zip(ordinals.tolist(), part.tolist(), strict=True):
            if number < 0:
                continue
            away.append(row)
            if not bad[row]:
                why = runs.says(number)
                hits[why["file"]] += 1
                against = {"file": why["file"], "line": why["line"]}
                removed.add("contaminated", names[file], line, against=against, ngram=hide(why["ngram"]))
    rows = np.array(away, np.int64)
    found.leave("contaminated", rows[~bad[rows]])
    place = f"data.clean.{removed.position}"
    about = {"step": place, "runs": len(runs.values), "rows": dict(hits.most_common())}
    found.ledger.setdefault("contaminated", []).append(about)
    if hits:
        listed = ", ".join(f"{file}: {count:,}" for file, count in hits.most_common(3))
        many = f"{hits.total():,} row{'s' * (hits.total() != 1)}"
        found.notes.append(
            f"{place}: dropped {many} for {step.ngram} words in a row that stand in evaluation text "
            f"({listed}; see {REMOVED})"
        )
    for file, short in runs.short.items():
        if short:
            found.notes.append(
                f"{place}: {short:,} of {runs.total[file]:,} texts of {file} have fewer than {step.ngram} "
                "words and were not looked for; a smaller `ngram` finds them"
            )
    step.learn(None)
    return rows
