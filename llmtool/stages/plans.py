"""What each kind of data wants of a first file: the encoding, the split, the task, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmtool.core.console import bytes_, count
from llmtool.core.contracts import (
    Classes,
    Features,
    Images,
    InputSpec,
    Labels,
    NextToken,
    OutputSpec,
    Tokens,
    Values,
)
from llmtool.core.errors import DataError
from llmtool.data import guessing
from llmtool.data.cells import BLANK, MISSING, Cells
from llmtool.data.cleaning import Types, contents
from llmtool.data.dates import is_local, orders_of
from llmtool.data.encoding import Given
from llmtool.data.features import FeaturesEncode
from llmtool.data.guessing import Guess, Task
from llmtool.data.looking import Sight
from llmtool.data.readers import PIECE
from llmtool.data.sources import Chunk
from llmtool.data.splitting import OrderSplit, RowTable
from llmtool.data.targets import LabelTarget, labels_in
from llmtool.models.choice import FEW_ROWS, Problem
from llmtool.stages.advise import UNEVEN

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 10  # rows
LITTLE = 100_000  # characters of one text
PIECE_AT_MOST = 1.1 * PIECE  # characters, of one where lines are of usual length
MOST_KEPT = 0.3  # of one text for validation, and for test
SAMPLED = 20_000  # rows from which the encoder's columns are counted


@dataclass
class Plan:
    """What a kind of data wants: the encoding with its comments, the split, the problem it makes.

    encode: keys of `data.encode`, each with its value and why. problem: what the model is chosen by. about: a
    sentence on the data. clean: steps of `data.clean`, each with why. select: `train.select`, with why.
    samples: `evaluate.samples`. notes: more sentences for the head of the file.
    """

    encode: list[tuple[str, Any, str]]
    split: dict[str, Any]
    split_why: str
    problem: Problem
    about: str
    task: dict[str, Any] = field(default_factory=dict)
    task_why: str = ""
    clean: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    select: tuple[dict[str, Any], str] | None = None
    samples: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def first_path(sight: Sight) -> str:
    """The source's path, the first of several."""
    path = sight.source["path"]
    while not isinstance(path, str):
        path = next(iter(path.values())) if isinstance(path, dict) else path[0]
    return str(path)


# --- what each kind of data wants -------------------------------------------------------------------------


def plan_of(sight: Sight, target: str | None, task: Task | None, device: str) -> Plan:
    """What this data wants. ConfigError where nothing can be learned from it as the user asks."""
    if sight.kind == "pictures":
        return _pictures(sight, device)
    if sight.kind == "games":
        return _games(sight, device)
    assert sight.frame is not None
    if sight.kind == "text":
        return _language(sight, ["text"], "", device)
    if sight.exact and sight.rows < FEWEST:
        raise DataError(
            f"{first_path(sight)}: {sight.rows} usable rows are too few to learn from and to judge by; "
            f"{FEWEST} are the least"
        )
    rows, steps, unclear = _with_iso_dates(sight.frame)
    sight = replace(sight, frame=rows)
    found = guessing.guess(rows, target, task, sight.named, sight.form)
    found.clean[:0] = [step for name, step in steps.items() if name not in found.ignore]
    for name in unclear.keys() & found.ignore.keys():
        found.ignore[name] += unclear[name]
    if sight.other is not None:
        guessing.other_spellings(found, sight.other)
    if found.chat is not None:
        return _chat(sight, found, device)
    if found.target is None:
        return _language(sight, found.texts, found.why["text"], device, found.clean)
    if found.texts:
        return _labelled(sight, found, device)
    return _table(sight, found, device)


def _with_iso_dates(
    rows: pd.DataFrame,
) -> tuple[pd.DataFrame, dict[str, tuple[dict[str, Any], str]], dict[str, str]]:
    """The rows with dates such as 17/3/2021 as ISO ones where one order fits; by column, the step that reads
    them so, with why; by column, what to say where both orders fit."""
    steps: dict[str, tuple[dict[str, Any], str]] = {}
    unclear: dict[str, str] = {}
    for name in map(str, rows.columns):
        if not is_local(_words(rows[name].head(1000))):
            continue
        orders = orders_of(_words(rows[name]))
        if len(orders) == 1:
            step: dict[str, Any] = {"step": "types", "columns": {name: "date"}, "dates": orders[0]}
            if marks := sorted((MISSING - BLANK).intersection(Cells(rows[name]).words)):
                step["missing"] = [*sorted(BLANK), *marks]
            rows = Types.model_validate(step).apply(rows)[0]
            steps[name] = step, f"{name}: no other order fits all of its dates"
        elif orders:
            both = " or ".join(orders)
            unclear[name] = f"; dates? A `types` step of data.clean says in which order: {both}"
    return rows, steps, unclear


def _words(cells: pd.Series) -> list[str]:
    return [word for word in Cells(cells).words if word not in MISSING]


def _split(sight: Sight, split: dict[str, Any], why: str) -> tuple[dict[str, Any], str]:
    """By the files where they are named for the splits."""
    path = sight.source["path"]
    if not isinstance(path, dict):
        return split, why
    missing = [name for name in ("validation", "test") if name not in path]
    shares = {"validation": 0.1} if "validation" in missing else {}
    said = "a tenth of train is set aside to choose the best checkpoint by" if shares else "as the files say"
    return {"by": "files", **shares}, said


def _shares(little: bool) -> dict[str, float]:
    """Of sequences: little data gives more of it to judge by."""
    kept = 0.1 if little else 0.05
    return {"train": 1 - 2 * kept, "validation": kept, "test": kept}


def _shares_of_one(letters: float) -> dict[str, float]:
    """Of one long text: validation and test get a piece of it at the least."""
    kept = math.ceil(20 * max(0.1 if letters < LITTLE else 0.05, PIECE_AT_MOST / max(letters, 1))) / 20
    return {"train": round(1 - 2 * kept, 2), "validation": kept, "test": kept}


def _share(split: dict[str, Any]) -> float:
    """Of the rows that are there to train on."""
    return float(split.get("train", 1 - split.get("validation", 0.0) if split["by"] == "files" else 0.8))


def _outputs(found: Guess) -> OutputSpec:
    assert found.fitted is not None
    spec = found.fitted.spec()
    if spec["kind"] == "values":
        return Values(1)
    return (Labels if spec["kind"] == "labels" else Classes)(len(spec["names"]))


def _goal(found: Guess) -> tuple[dict[str, Any], str, tuple[dict[str, Any], str] | None]:
    """The task, why, and which figure is to choose the best checkpoint where that is not the usual one."""
    assert found.fitted is not None
    spec = found.fitted.spec()
    if spec["kind"] == "values":
        return {"kind": "regression"}, f"{found.target} holds numbers of many values", None
    counts, names = spec["counts"], [str(name) for name in spec["names"]]
    listed = ", ".join(f"{name} {rows:,}" for name, rows in list(zip(names, counts, strict=True))[:6])
    listed += ", ..." if len(names) > 6 else ""
    if spec["kind"] == "labels":
        return {"kind": "multilabel"}, f"{len(names)} labels, any number of them a row: {listed}", None
    why = f"{len(names)} classes: {listed}"
    if max(counts) < UNEVEN * min(counts):
        return {"kind": "classification"}, why, None
    share = 100 * max(counts) / sum(counts)
    metric = "roc_auc" if len(names) == 2 else "f1"
    why += "; uneven: class_weights: balanced here would find more of the rare ones, at the cost of accuracy"
    seen = f"always saying {names[counts.index(max(counts))]!r} is right in {share:.0f} %"
    return (
        {"kind": "classification"},
        why,
        ({"metric": metric, "mode": "max"}, f"{seen}: accuracy says little"),
    )


def _target_line(found: Guess) -> tuple[str, Any, str]:
    why = found.why["target"]
    if found.candidates:
        why += f"; other candidates: {', '.join(found.candidates)} (init --target NAME)"
    return "target", found.target, why


def _kind_line(found: Guess) -> list[tuple[str, Any, str]]:
    """Where numbers are taken for classes, that is said and written."""
    assert found.fitted is not None
    column = next(column for column in found.columns if column.name == found.target)
    kind = found.fitted.spec()["kind"]
    if isinstance(found.fitted, LabelTarget):
        return _label_lines(found.fitted, column)
    if column.kind != "number":
        return []
    if kind == "classes":
        seen = f"{column.distinct} different whole numbers; values would make it a regression"
        return [("target_kind", "classes", seen)]
    return [("target_kind", "values", f"{column.values()}: a number to come near to")]


def _label_lines(target: LabelTarget, column: guessing.Column) -> list[tuple[str, Any, str]]:
    separator = str(target.separator)
    lists = [word for word in column.found.words if len(labels_in(word, separator) or []) > 1]
    rows = sum(column.found.words[word] for word in lists)
    seen = f"cells hold one label or more, such as {', '.join(lists[:1]) or next(iter(column.found.words))}"
    seen += f" ({rows:,} of {column.rows:,} rows have several); classes would make each combination one"
    lines: list[tuple[str, Any, str]] = [("target_kind", "labels", seen)]
    return lines if separator == "," else [*lines, ("label_separator", separator, "parts the labels")]


def _table(sight: Sight, found: Guess, device: str) -> Plan:
    kinds = [column.kind for column in found.columns if column.name not in (found.target, *found.ignore)]
    listed = ", ".join(
        f"{kinds.count(kind)} {words}"
        for kind, words in (("number", "of numbers"), ("category", "of categories"), ("date", "of dates"))
        if kind in kinds
    )
    encode: list[tuple[str, Any, str]] = [("as", "features", f"a table: {listed}"), _target_line(found)]
    encode += _kind_line(found)
    if found.ignore:
        encode.append(("ignore", found.ignore, "columns that are left out"))
    gaps = [column for column in found.columns if column.missing and column.kind in ("number", "date")]
    gaps = [column for column in gaps if column.name not in (found.target, *found.ignore)]
    if gaps:
        most = max(gaps, key=lambda column: column.missing)
        seen = (
            f"{len(gaps)} columns of numbers have gaps, most {most.name}: {most.missing:,} of {most.rows:,}"
        )
        encode.append(("missing", "median", f"{seen}; a flag says where one was"))
    if found.markers:
        known = FeaturesEncode.model_fields["markers"].default
        encode.append(("markers", [*known, *found.markers], f"mean missing too: {found.why['markers']}"))
    scale = ("standard", "few rows: bins of numbers would be learned by heart")
    if sight.rows >= FEW_ROWS:
        scale = ("piecewise", "numbers in bins too: steps and thresholds are learned sooner")
    encode.append(("scale", *scale))
    split, why = _split(sight, found.split, found.why["split"])
    width, notes = _width(sight, encode)
    task, task_why, select = _goal(found)
    problem = Problem(Features(width), _outputs(found), round(sight.rows * _share(split)), device=device)
    about = f"{_opening(sight)}: {sight.about()} rows of {len(found.columns)} columns, {width} features."
    return Plan(encode, split, why, problem, about, task, task_why, found.clean, select, notes=notes)


def _width(sight: Sight, encode: list[tuple[str, Any, str]]) -> tuple[int, list[str]]:
    """How many features the columns make, as far as some rows can tell; and what the encoder says of them."""
    assert sight.frame is not None
    keys = {key: list(value) if isinstance(value, dict) else value for key, value, _ in encode}
    encoder = FeaturesEncode.model_validate(keys).build()
    encoder.columns(list(sight.frame.columns))
    rows = sight.frame.sample(min(len(sight.frame), SAMPLED), random_state=0).sort_index()
    order = np.arange(len(rows), dtype=np.int64)
    chunk = Chunk(rows, order, np.zeros(len(rows), np.int32), order + 1)
    encoder.fit(Given([chunk]))
    notes = [note for note in encoder.notes if "is left out" in note]
    return int(encoder.inputs["width"]), [f"prepare will say: {note}." for note in notes[:5]]


def _labelled(sight: Sight, found: Guess, device: str) -> Plan:
    assert sight.frame is not None
    seen = guessing.lengths(sight.frame, found.texts)
    outputs = _outputs(found)
    split, why = _split(sight, found.split, found.why["split"])
    rows = round(sight.rows * _share(split))
    half = "" if seen["chinese"] < 0.3 else " (of Chinese and Japanese each sign is one)"
    at_most = f"95 % of the texts have at most {seen['words']:,.0f} words{half}, "
    at_most += f"the mean is {seen['mean_words']:,.0f}"
    length = int(max(64, 2 ** math.ceil(math.log2(max(1.0, 2 * seen["words"])))))
    texts: str | list[str] = found.texts if len(found.texts) > 1 else found.texts[0]
    column = next(column for column in found.columns if column.name == found.texts[-1])
    texts_why = f"texts of {column.letters:,.0f} characters on average, {column.values()}"
    texts_why = "; ".join(filter(None, [found.why.get("text"), texts_why]))
    encode: list[tuple[str, Any, str]] = [
        ("as", "text", "a text and what is to be said of it"),
        ("text", texts, texts_why),
        _target_line(found),
        *_kind_line(found),
        ("tokenizer", {"kind": "words"}, "the family counts words and runs of words"),
        ("length", length, f"{at_most}; counting words costs little, so next to none is cut"),
    ]
    task, task_why, select = _goal(found)
    problem = Problem(Tokens(20_000, length), outputs, rows, round(rows * seen["mean_words"]), device=device)
    other = [column.name for column in found.columns if column.name not in (found.target, *found.texts)]
    about = f"{_opening(sight)}: {sight.about()} texts with {found.target} to be predicted."
    notes = [f"Columns that are not read: {', '.join(other[:10])}."] if other else []
    notes.append("A pretrained encoder is mostly better: `finetune` from one, with its tokenizer.")
    return Plan(encode, split, why, problem, about, task, task_why, found.clean, select, notes=notes)


def _language(
    sight: Sight,
    texts: list[str],
    why: str,
    device: str,
    clean: list[tuple[dict[str, Any], str]] | None = None,
) -> Plan:
    assert sight.frame is not None
    seen = guessing.lengths(sight.frame, texts)
    one = sight.rows == 1
    letters = sight.rows * seen["mean_letters"] if not one else float(sight.frame[texts[0]].str.len().sum())
    if one and sight.size > letters * 4:
        letters = float(sight.size)
    different = seen["different"]
    if seen["chinese"] > 0.3 or (different <= 256 and letters < 20_000_000):
        vocabulary = int(different) + 2
        tokenizer: dict[str, Any] = {"kind": "characters"}
        said = f"{vocabulary - 2:,} different characters in the sample"
        said += ", each a word by itself" if seen["chinese"] > 0.3 else ": few enough to be the tokens"
        tokens = letters
    else:
        vocabulary = 1024 if letters < 3e6 else 4096 if letters < 3e7 else 16384
        tokenizer = {"kind": "bpe", "vocabulary": vocabulary}
        said = (
            f"pieces of words; about {count(letters)} characters of text can fill a vocabulary of this size"
        )
        tokens = letters / 3
    split: dict[str, Any] = {"by": "random", **_shares(sight.rows < 200)}
    split_why = "texts by chance"
    if one:
        split = {"by": "order", **_shares_of_one(letters)}
        split_why = "the end of the text is kept to judge by"
    split, split_why = _split(sight, split, split_why)
    if split.get("validation", 0) > MOST_KEPT:
        raise DataError(
            f"{first_path(sight)}: about {count(letters)} characters: too little to learn from and to judge "
            f"by (some {count(PIECE_AT_MOST / MOST_KEPT)} are the least)"
        )
    if one and sight.exact and split["by"] == "order":
        _refuse_repeats(sight, split)
    rows = max(1, round(sight.rows * _share(split)))
    tokens = round(tokens * _share(split))
    problem = Problem(Tokens(vocabulary), NextToken(vocabulary), rows, tokens, device=device)
    encode: list[tuple[str, Any, str]] = [
        ("as", "tokens", "text without a target: a model that goes on with it")
    ]
    if sight.kind != "text":
        encode.append(("text", texts[0], why))
    encode.append(("tokenizer", tokenizer, said))
    texts_seen = "one text" if one else f"{sight.about()} texts"
    about = f"{_opening(sight)}: {texts_seen}, about {count(letters)} characters, "
    about += f"{count(tokens)} tokens to train on."
    first = str(sight.frame[texts[0]].iloc[0]).split()
    samples = {"prompts": [" ".join(first[:3])[:40] or "A"], "tokens": 100}
    return Plan(encode, split, split_why, problem, about, clean=clean or [], samples=samples)


def _refuse_repeats(sight: Sight, split: dict[str, Any]) -> None:
    """DataError where all pieces of the end of a text stand before it too: nothing is left to judge by."""
    assert sight.frame is not None
    pieces = sight.frame["text"]
    size = np.array([len(piece.encode()) for piece in pieces], np.int64)
    try:
        OrderSplit.model_validate(split).assign(RowTable(contents(sight.frame, ["text"]), None, size), 0)
    except DataError:
        raise DataError(
            f"{first_path(sight)}: the text repeats itself ({pieces.nunique():,} of its {len(pieces):,} "
            f"pieces of about {PIECE:,} characters are different): nothing new is left to judge by"
        ) from None


def _chat(sight: Sight, found: Guess, device: str) -> Plan:
    assert sight.frame is not None
    assert found.chat is not None
    most, mean = guessing.turns(sight.frame, found.chat)
    share = guessing.lengths(sight.frame, list(found.chat.columns.values()))["chinese"]
    per_token = 3.0 * (1 - share) + 1.0 * share
    length = int(min(2048, max(64, 64 * math.ceil(most / per_token / 64))))
    vocabulary = 4096
    split, why = _split(sight, {"by": "random", **_shares(sight.rows < 200)}, "by chance")
    rows = round(sight.rows * _share(split))
    encode: list[tuple[str, Any, str]] = [
        ("as", "chat", f"rows hold conversations: {found.chat.describe()}"),
        ("tokenizer", {"kind": "bpe", "vocabulary": vocabulary},
         "learned here; with a start, the start's own"),
        ("template", "chatml", "with a start, its own: leave this key out"),
        ("length", length, f"95 % of the conversations have at most {most:,.0f} characters, "
         f"{per_token:.2g} a token or so"),
        ("long", "cut", "longer ones end after the last answer that fits"),
    ]  # fmt: skip
    problem = Problem(
        Tokens(vocabulary), NextToken(vocabulary), rows, round(rows * mean / per_token), length, True, device
    )
    about = f"{_opening(sight)}: {sight.about()} conversations."
    note = (
        "From the start a model learns the form of these answers and little more: to have it know the "
        "language, take `finetune` (start: a model in Hugging Face's layout, tokenizer: {kind: file, path: "
        "the same})."
    )
    return Plan(encode, split, why, problem, about, notes=[note])


def _games(sight: Sight, device: str) -> Plan:
    length = {"othello": 61, "chess": 256}[sight.game]
    usual = {"othello": 60, "chess": 80}[sight.game]
    moves = {"othello": 61, "chess": 2000}[sight.game]
    split, why = _split(sight, {"by": "random", **_shares(sight.rows < 200)}, "games by chance")
    rows = max(1, round(sight.rows * _share(split)))
    encode: list[tuple[str, Any, str]] = [
        ("as", "moves", "records of games: every move is a token"),
        ("game", sight.game, "whose rules the records are held against"),
    ]
    if sight.form == "text":
        encode.append(("moves", "text", "each line is a game"))
    if sight.game == "chess":
        encode.append(("length", length, "half-moves that are kept of a longer game"))
    problem = Problem(Tokens(moves), NextToken(moves), rows, rows * usual, length, True, device, game=True)
    about = f"{_opening(sight)}: {sight.about()} games of {sight.game}."
    task, task_why = {"kind": "language", "rules": 1.0}, "which moves are legal is taught beside those played"
    return Plan(encode, split, why, problem, about, task, task_why)


def _pictures(sight: Sight, device: str) -> Plan:
    seen = sight.pictures
    classes, size = int(seen["classes"]), (int(seen["height"]), int(seen["width"]))
    encode: list[tuple[str, Any, str]] = [
        ("as", "images", f"pictures of {classes} classes, by their folders")
    ]
    if sight.form != "image_folder":
        encode[0] = ("as", "images", f"pictures with a number from 0 to {classes - 1} for each")
    inputs: InputSpec
    if seen.get("alike", True):
        inputs = Images(int(seen["channels"]), *size)
        shape = f"{size[0]} x {size[1]} pixels, {'grey' if seen['channels'] == 1 else 'colours'}"
    else:
        side = 64 if device == "cpu" else 160
        inputs = Images(3, side, side)
        shape = "of different sizes"
        encode.append(
            ("size", side, f"pictures have different sizes, such as {size[0]} x {size[1]}; larger shows "
             "more and costs its square"))  # fmt: skip
    usual = {"by": "stratified", "train": 0.8, "validation": 0.1, "test": 0.1}
    split, why = _split(sight, usual, "each class in the same shares")
    rows = round(sight.rows * _share(split))
    counts = seen.get("counts") or []
    task_why = f"{classes} classes"
    if counts:
        fewest, most = min(counts), max(counts)
        task_why += (
            f" of {fewest:,} pictures each" if fewest == most else f" of {fewest:,} to {most:,} pictures"
        )
    problem = Problem(inputs, Classes(classes), rows, device=device)
    about = f"{_opening(sight)}: {sight.about()} pictures, {shape}."
    return Plan(encode, split, why, problem, about, {"kind": "classification"}, task_why)


def _opening(sight: Sight) -> str:
    size = f" ({bytes_(sight.size)})" if sight.size else ""
    return f"{first_path(sight)}{size}"
