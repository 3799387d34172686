"""Guesses from rows: what each column holds, which is predicted, which are left out, how to split."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmtool.core import seeds
from llmtool.core.config import suggest
from llmtool.core.errors import ConfigError, DataError
from llmtool.data import conversations
from llmtool.data.cells import BLANK, MARKERS, MISSING, Cells
from llmtool.data.cleaning import TAG
from llmtool.data.header import is_number
from llmtool.data.lists import separator_of
from llmtool.data.statistics import ColumnStatistics
from llmtool.data.targets import ClassTarget, Kind, Target, fit_target

if TYPE_CHECKING:
    import pandas as pd

WORDS, LETTERS = 8, 60  # of a cell on average, from which a column holds texts
SHORT = 2  # words of a cell on average, from which it may hold titles and the like
MOST_CLASSES = 200  # more different values are no guess for a target
# Names of targets: those that say so, those that mostly are one, endings.
SAYS = ("target", "label", "labels", "class", "y", "outcome", "output_label")
OFTEN = (
    "sentiment", "survived", "species", "category", "topic", "income", "salary", "price", "saleprice",
    "quality", "rating", "stars", "score", "count", "churn", "diagnosis", "fraud", "spam", "result",
    "response", "answer", "type", "kind", "intent", "emotion", "variety",
)  # fmt: skip
ENDS = re.compile(r"(^|_)(price|value|target|label|cost|score)$")
_ID = re.compile(r"(.*[ _-])?(id|uid|uuid|guid|pid|index|key|hash|sha\w*|md5)|[a-z]+(Id|ID)", re.IGNORECASE)
_GROUP = re.compile(
    r"(user|patient|customer|client|subject|group|session|speaker|author|person)[ _-]?(id)?", re.IGNORECASE
)
_CHINESE = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
GAPS = 0.2  # share of rows without a value, from which a column is no guess for a target
NUMBER_WORDS = 0.5  # share of numbers from which the other words of a column may be marks of missing values
PREFERENCE = {"chosen", "rejected"}

Task = Literal["classification", "regression", "language", "multilabel"]
KINDS: dict[Task | None, Kind] = {
    "classification": "classes", "regression": "values", "language": "auto", None: "auto",
    "multilabel": "labels",
}  # fmt: skip


@dataclass
class Column:
    """A column of the sample. words: per cell on average; distinct: different values, at least."""

    name: str
    kind: str  # number, date, category, nothing, text
    rows: int
    missing: int
    distinct: int
    more: bool  # whether there are more different values than were counted
    words: float
    letters: float
    found: ColumnStatistics

    def values(self) -> str:
        """How many different ones there are, in words."""
        return f"{self.distinct:,}{' or more' * self.more} different values in {self.rows:,} rows"


@dataclass
class Guess:
    """What to do with rows. why: key -> what led to it. candidates: other columns that may be meant."""

    columns: list[Column]
    target: str | None = None
    fitted: Target | None = None
    texts: list[str] = field(default_factory=list)
    chat: conversations.Layout | None = None
    ignore: dict[str, str] = field(default_factory=dict)  # column -> why
    markers: list[str] = field(default_factory=list)
    clean: list[tuple[dict[str, Any], str]] = field(default_factory=list)  # step, why
    split: dict[str, Any] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    candidates: list[str] = field(default_factory=list)


def guess(
    frame: pd.DataFrame, target: str | None, task: Task | None, named: bool = True, form: str = ""
) -> Guess:
    """Guesses from rows. target, task: what the user says of them. named: whether columns have real names.

    ConfigError where there is nothing to predict, or the user names what is not there.
    """
    columns = [_column(name, frame[name], len(frame.columns)) for name in map(str, frame.columns)]
    made = Guess(columns)
    names = [column.name for column in columns]
    if target is not None and target not in names:
        known = ", ".join(names[:30])
        raise ConfigError(f"--target {target}: no such column{suggest(target, names)} (columns: {known})")
    if set(names) >= PREFERENCE and target is None:
        raise ConfigError(
            f"columns {', '.join(names)}: pairs of a chosen and a rejected answer; no task of this version "
            "learns from preferences"
        )
    if target is None and task in (None, "language") and (chat := _chat(frame, names, form)):
        made.chat = chat
        return made
    made.texts = [column.name for column in columns if column.kind == "text" and column.name != target]
    if task == "language":
        _only_text(made)
    else:
        _target(made, target, task, named)
    _leave_out(made, frame)
    _keep_one(made)
    _clean(made, frame)
    _split(made, frame)
    return made


def _column(name: str, cells: pd.Series, columns: int) -> Column:
    found = ColumnStatistics(name, MISSING, columns, seeds.derive(0, "init", name))
    read = Cells(cells)
    found.add(read, np.arange(len(cells)))
    present = max(1, found.rows - found.blank)
    kind: str = found.kind()
    sample = [text for text in read.text[:5000] if text]
    words = sum(len(text.split()) for text in sample) / max(1, len(sample))
    letters = found.length / present
    chinese = sum(bool(_CHINESE.search(text)) for text in sample) > len(sample) / 2
    long = words >= WORDS or letters >= LETTERS or (chinese and letters >= 12)
    if kind == "category" and long and found.distinct > min(50, present / 4):
        kind = "text"
    counts = (found.rows, found.missing, found.distinct, found.overflow)
    return Column(name, kind, *counts, words, letters, found)


def _chat(frame: pd.DataFrame, names: list[str], form: str) -> conversations.Layout | None:
    """How the rows hold conversations, where most can be read as such."""
    try:
        found = conversations.layout("auto", {}, names)
    except ConfigError:
        return None
    if form in ("csv", "tsv") and found.form not in ("alpaca", "prompt"):
        return None
    read = 0
    sample = frame.head(50).to_dict("records")
    for row in sample:
        try:
            conversations.read(row, found.columns, found.form)
            read += 1
        except conversations.BadConversation:
            continue
    return found if read > 0.8 * len(sample) else None


# --- the target -------------------------------------------------------------------------------------------


def _only_text(made: Guess) -> None:
    """A language model: the column with the longest texts."""
    texts = [column for column in made.columns if column.kind == "text"]
    if not texts:
        raise ConfigError(
            "--task language: no column holds texts ("
            + "; ".join(f"{column.name}: {column.kind}" for column in made.columns)
            + ")"
        )
    best = max(texts, key=lambda column: column.letters)
    made.texts = [best.name]
    made.why["text"] = f"the longest texts: {best.letters:,.0f} characters on average"


def _target(made: Guess, target: str | None, task: Task | None, named: bool) -> None:
    if target is not None:
        made.target, made.why["target"] = target, "named by --target"
    else:
        fit = {column.name: column for column in made.columns if _can_be_target(column, task)}
        choice = _by_name(made, fit) if named else None
        choice = choice or _by_place(made, fit)
        if choice is None:
            _no_target(made, task)
            return
        made.target, made.why["target"] = choice
        made.candidates = _candidates(made, fit)
    column = next(column for column in made.columns if column.name == made.target)
    try:
        made.fitted = _fitted(column, task)
    except DataError as error:
        raise ConfigError(f"{error}; choose another by --target") from None
    made.texts = [name for name in made.texts if name != made.target]
    if made.texts:  # titles and the like beside them
        made.texts = [
            column.name
            for column in made.columns
            if column.name in made.texts
            or (column.kind == "category" and column.words >= 3 and column.distinct > column.rows / 2)
        ]


def _fitted(column: Column, task: Task | None) -> Target:
    """The column as a target. DataError where it teaches nothing."""
    found = separator_of(column.found, task is not None) if task in (None, "multilabel") else None
    kind = KINDS[task] if found is None else "labels"
    return fit_target([column.found], kind, [], separator=found or ",")


def _can_be_target(column: Column, task: Task | None) -> bool:
    if column.kind in ("text", "nothing", "date") or _ID.fullmatch(column.name):
        return False
    if column.found.counts_rows and column.kind == "number":
        return False
    if column.found.blank > GAPS * column.rows:
        return False
    if task == "multilabel" and separator_of(column.found, asked=True) is None:
        return False
    try:
        fitted = _fitted(column, task)
    except DataError:
        return False
    return not isinstance(fitted, ClassTarget) or 2 <= len(fitted.names) <= MOST_CLASSES


def _plain(name: str) -> str:
    """A column's name in small letters, digits and single underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _by_name(made: Guess, fit: dict[str, Column]) -> tuple[str, str] | None:
    plain = {_plain(name): name for name in fit}
    for known in (SAYS, OFTEN):
        for word in known:
            if word in plain:
                return plain[word], f"guessed by its name; {fit[plain[word]].values()}"
    ends = [name for name in fit if ENDS.search(_plain(name))]
    if ends and not made.texts:
        return ends[-1], f"guessed by the end of its name; {fit[ends[-1]].values()}"
    return None


def _by_place(made: Guess, fit: dict[str, Column]) -> tuple[str, str] | None:
    """The only column of classes, else the last one that can be predicted, else the first."""
    few = [name for name, column in fit.items() if column.kind == "category"]
    others = [column for column in made.columns if column.name in fit and column.name not in few]
    if made.texts:
        few = [name for name, column in fit.items() if column.distinct <= 50 and not column.more]
        few = few or [name for name, column in fit.items() if separator_of(column.found)]
        if len(few) == 1:
            return few[0], f"the only column of few values beside the text: {fit[few[0]].values()}"
        return None
    if len(few) == 1 and len(others) > 2 and len(others) + len(few) == len(made.columns):
        return few[0], f"the only column of words beside numbers: {fit[few[0]].values()}"
    for column, place in ((made.columns[-1], "last"), (made.columns[0], "first")):
        if column.name in fit and len(made.columns) > 1:
            return column.name, f"guessed by its place, the {place} column; {column.values()}"
    return None


def _candidates(made: Guess, fit: dict[str, Column]) -> list[str]:
    """Other columns that a person may have meant: those with names of targets, the last and the first one."""
    ends, meant = (made.columns[-1].name, made.columns[0].name), []
    for name in fit:
        plain = _plain(name)
        if plain in (*SAYS, *OFTEN) or ENDS.search(plain) or name in ends:
            meant.append(name)
    return [name for name in meant if name != made.target][:5]


def _no_target(made: Guess, task: Task | None) -> None:
    """Texts without a target are for a language model; anything else has nothing to predict."""
    if made.texts and task is None:
        few = [column.name for column in made.columns if column.kind != "text" and 2 <= column.distinct <= 50]
        _only_text(made)
        if few:
            made.why["text"] += f"; to predict one of {', '.join(few[:6])} instead: --target"
        return
    listed = "; ".join(f"{column.name}: {_why_not(column)}" for column in made.columns[:30])
    hint = "name it by --target" if len(made.columns) > 1 else "a single column is nothing to predict from"
    if task == "multilabel":
        hint += "; of columns of 0 and 1: data.encode: {target: [these columns], target_kind: labels}"
    raise ConfigError(f"no column to predict was found ({listed}); {hint}")


def _why_not(column: Column) -> str:
    if column.kind in ("text", "date", "nothing"):
        return {"text": "texts", "date": "dates", "nothing": "empty"}[column.kind]
    if column.distinct <= 1:
        return "one value only"
    return f"{column.kind}, {column.distinct:,}{'+' * column.more} different values"


# --- the rest ---------------------------------------------------------------------------------------------


def _leave_out(made: Guess, frame: pd.DataFrame) -> None:
    """Identifiers, and columns that give the answer away; markers of missing values."""
    for column in made.columns:
        if column.name in (made.target, *made.texts):
            continue
        marked = _marker(made, column)
        present = column.rows - column.missing
        unique = column.more or column.distinct > 0.95 * present
        numbered = column.kind == "number" and column.found.whole and unique and present >= 20
        if numbered and (_ID.fullmatch(column.name) or column.found.counts_rows):
            made.ignore[column.name] = f"an identifier: {column.values()}"
        elif _names_rows(column) and not marked:
            made.ignore[column.name] = f"names or texts: {column.values()}"
        elif column.distinct <= 1 and not column.missing and not column.more:
            made.ignore[column.name] = "the same value in every row"
        elif column.kind == "nothing":
            made.ignore[column.name] = "empty"
    if made.fitted is not None and made.fitted.spec()["kind"] == "values" and not made.texts:
        _leaks(made, frame)


def _keep_one(made: Guess) -> None:
    """Where no input would be left, the column with the most words is read as a text, if it has any."""
    if made.target is None or {column.name for column in made.columns} - {made.target, *made.ignore}:
        return
    named = [column for column in made.columns if column.name in made.ignore and _names_rows(column)]
    best = max(named, key=lambda column: column.words, default=None)
    if best is not None and best.words >= SHORT:
        del made.ignore[best.name]
        made.texts, made.why["text"] = [best.name], "the only column left to learn from"
        return
    listed = "; ".join(f"{name}: {why}" for name, why in list(made.ignore.items())[:30])
    text = f"; its cells can be read as texts: data.encode: {{as: text, text: {best.name}}}" if best else ""
    raise ConfigError(f"no column is left to predict {made.target} from ({listed}){text}")


def _names_rows(column: Column) -> bool:
    """Whether most rows have words of their own."""
    present = column.rows - column.missing
    return column.kind in ("category", "text") and column.distinct >= 20 and column.distinct > present / 2


def _marker(made: Guess, column: Column) -> bool:
    """Words among numbers that stand for a missing one: few different ones, often. Whether there are any."""
    found = column.found
    if column.kind != "category" or not found.wrong or found.overflow:
        return False
    words = [word for word in found.words if not is_number(word) and word not in MARKERS]
    if found.numbers.count > NUMBER_WORDS * column.rows and 0 < len(words) <= 2:
        made.markers += [word for word in words if word not in made.markers]
        made.why["markers"] = (
            f"{column.name}: {', '.join(map(repr, words))} among {found.numbers.count:,} numbers"
        )
        return True
    return False


def _leaks(made: Guess, frame: pd.DataFrame) -> None:
    """Two columns whose sum is the target, or one that is it: they are known only when the answer is."""
    assert made.target is not None
    known = (made.target, *made.ignore)
    numbers = [c.name for c in made.columns if c.kind == "number" and c.name not in known]
    values = {name: Cells(frame[name]).numbers(MISSING).values for name in [*numbers[:60], made.target]}
    target = values.pop(made.target)
    scale = max(float(np.nanstd(target)), 1e-12)

    def answers(numbers: np.ndarray) -> bool:
        off = np.abs(numbers - target)
        return bool(np.nanmax(off, initial=0) < 1e-6 * scale and np.isfinite(off).mean() > 0.9)

    for at, (name, mine) in enumerate(values.items()):
        if answers(mine):
            made.ignore[name] = f"the same as {made.target}: it gives the answer away"
        for other in list(values)[at + 1 :]:
            if answers(mine + values[other]):
                why = f"{name} + {other} = {made.target} in every row: it gives the answer away"
                made.ignore |= {name: why, other: why}


def _clean(made: Guess, frame: pd.DataFrame) -> None:
    for name in made.texts:
        cells = [str(cell) for cell in frame[name].head(2000).tolist() if cell]
        tagged = sum(bool(TAG.search(cell)) for cell in cells)
        if tagged > 0.05 * len(cells):
            step = {"step": "normalize", "columns": [name], "strip_tags": True}
            made.clean.append((step, f"{tagged:,} of {len(cells):,} texts hold HTML tags such as <br />"))
    copies = int(frame.duplicated().sum()) if made.texts else 0  # of tables equal rows may be different cases
    if copies > 0:
        seen = f"{copies:,} of {len(frame):,} rows are copies of others"
        made.clean.append(({"step": "drop_duplicates"}, seen))


def other_spellings(made: Guess, other: pd.DataFrame) -> None:
    """Classes that the test file spells with a full stop behind them (Adult's does): a step that mends it."""
    if made.target is None or not isinstance(made.fitted, ClassTarget):
        return
    known = set(made.fitted.names)
    found = Counter(Cells(other[made.target]).text)
    mapping = {word: word.rstrip(".") for word in found if word not in known and word.rstrip(".") in known}
    if mapping:
        step = {"step": "replace", "column": made.target, "mapping": mapping}
        made.clean.append((step, "the test file spells the classes otherwise"))


def _split(made: Guess, frame: pd.DataFrame) -> None:
    rows = len(frame)
    if made.target is None:
        return
    shares = {"train": 0.7, "validation": 0.15, "test": 0.15} if rows < 1000 else {}
    shares = shares or {"train": 0.8, "validation": 0.1, "test": 0.1}
    small = "; with few rows larger shares to judge by" if rows < 1000 else ""
    for column in made.columns:
        if column.kind == "date" and _ordered(frame[column.name]):
            made.split = {"by": "time", "on": column.name, **shares}
            made.why["split"] = (
                f"{column.name} orders the rows: what is to come is predicted from what was; by chance, "
                "rows would know their neighbours"
            )
            return
    for column in made.columns:
        if _GROUP.fullmatch(column.name) and 20 < column.distinct < 0.7 * rows and column.name != made.target:
            made.split = {"by": "grouped", "on": column.name, **shares}
            made.why["split"] = f"{column.name} stands in several rows each: rows of one stay together"
            made.ignore.setdefault(column.name, "it names whom a row is of; others will come")
            return
    if isinstance(made.fitted, ClassTarget):
        counts = made.fitted.counts
        uneven = max(counts) > 1.5 * min(counts)
        seen = "classes are even"
        if uneven:
            seen = f"classes are uneven, {min(counts):,} to {max(counts):,} rows"
        made.split = {"by": "stratified", **shares}
        made.why["split"] = f"{seen}: each in the same shares{small}"
    else:
        made.split = {"by": "random", **shares}
        made.why["split"] = f"no column orders or groups the rows{small}"


def _ordered(cells: pd.Series) -> bool:
    """Whether the dates of the rows never go back (but for one in a hundred)."""
    dates = Cells(cells).dates(BLANK).values
    dates = dates[np.isfinite(dates)]
    if len(dates) < 3 or dates[0] == dates[-1]:
        return False
    return bool((np.diff(dates) >= 0).mean() > 0.99)


def lengths(frame: pd.DataFrame, names: list[str]) -> dict[str, float]:
    """Of the texts of some rows: words and characters of the 95th percentile, different characters, the share
    of Chinese and Japanese ones; `words` counts each of these as one."""
    sample = frame.sample(min(len(frame), 5000), random_state=0) if len(frame) else frame
    texts = [" ".join(str(cell) for cell in row if cell) for row in sample[names].itertuples(index=False)]
    letters = [len(text) for text in texts] or [0]
    whole = "".join(texts)
    chinese = len(_CHINESE.findall(whole))
    words = [len(text.split()) + len(_CHINESE.findall(text)) for text in texts] or [0]
    return {
        "words": float(np.percentile(words, 95)),
        "mean_words": float(np.mean(words)),
        "letters": float(np.percentile(letters, 95)),
        "mean_letters": float(np.mean(letters)),
        "different": float(len(set(whole))),
        "chinese": chinese / max(1, len(whole)),
    }


def turns(frame: pd.DataFrame, found: conversations.Layout) -> tuple[float, float]:
    """Characters of the 95th percentile and of the mean of conversations."""
    sizes = []
    for row in frame.head(2000).to_dict("records"):
        try:
            messages, tools = conversations.read(row, found.columns, found.form)
        except conversations.BadConversation:
            continue
        sizes.append(len(json.dumps(messages, ensure_ascii=False)) + len(json.dumps(tools or "")))
    return (float(np.percentile(sizes, 95)), float(np.mean(sizes))) if sizes else (0.0, 0.0)
