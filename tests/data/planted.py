"""Data with planted leaks, for the tests and for scripts/benchmarks/leakage.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from llmtool.data.leakage import Column, Table

Random = np.random.Generator


def table(columns: dict[str, np.ndarray], code: np.ndarray) -> Table:
    made = {
        name: Column.of(pd.Series([str(v) for v in values], dtype=object)) for name, values in columns.items()
    }
    return Table(made, code, [f"data.csv:{row + 2}" for row in range(len(code))])


def people(random: Random, rows: int = 1500) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """An honest table whose class `y` three columns tell in part; and the split of each row."""
    age = random.integers(18, 90, rows)
    income = random.lognormal(10, 0.5, rows).round(2)
    city = random.choice(["Bern", "Basel", "Zug", "Genf"], rows)
    y = np.where(age / 30 + np.log(income) + random.normal(0, 1, rows) > 12, "yes", "no")
    code = random.choice([0, 0, 0, 1, 2], rows)
    return {"age": age, "income": income, "city": city, "y": y}, code


# Of the table and its target, a column that gives the target away.
LEAKS: dict[str, Callable[[Random, np.ndarray], np.ndarray]] = {
    "a copy": lambda random, y: y,
    "a recoding": lambda random, y: np.where(y == "yes", 17, 4),
    "a noisy number": lambda random, y: (y == "yes") + random.normal(0, 0.1, len(y)).round(4),
    "a word for each": lambda random, y: np.char.add(y.astype(str), random.choice(["a", "b", "c"], len(y))),
    "rarely wrong": lambda random, y: np.where(random.random(len(y)) < 0.004, "no", y),
    "a payout, 0 for no": lambda random, y: np.where(y == "yes", random.lognormal(5, 1, len(y)).round(2), 0),
    "missing for no": lambda random, y: np.where(y == "yes", random.integers(1, 9, len(y)).astype(str), ""),
    "rows sorted by it": lambda random, y: np.argsort(np.argsort(y == "yes", kind="stable")),
}
VALUES: dict[str, Callable[[Random, np.ndarray], np.ndarray]] = {
    "a copy": lambda random, y: y,
    "another unit": lambda random, y: (y * 1.609 + 3).round(3),
    "a logarithm": lambda random, y: np.log(y).round(5),
    "a noisy copy": lambda random, y: (y * random.normal(1, 0.01, len(y))).round(3),
    "in bins": lambda random, y: np.searchsorted(np.quantile(y, np.linspace(0, 1, 50)), y),
    "backwards": lambda random, y: (-(y**0.5)).round(4),
}

WORDS = np.array([f"w{number}" for number in range(2000)])


def document(random: Random, words: int) -> list[str]:
    chances = 1 / np.arange(1, len(WORDS) + 1)
    return list(random.choice(WORDS, words, p=chances / chances.sum()))


def edited(random: Random, words: list[str], share: float) -> list[str]:
    """A copy with this share of its words replaced, dropped or doubled."""
    found: list[str] = []
    for word in words:
        if random.random() >= share:
            found.append(word)
        else:
            found += [[str(random.choice(WORDS))], [], [word, word]][int(random.integers(3))]
    return found


def documents(
    random: Random, count: int, planted: int, share: float
) -> tuple[list[str], np.ndarray, list[int]]:
    """Texts, the split of each, and which of them are edited copies of a train document."""
    texts = [document(random, int(random.integers(60, 250))) for _ in range(count)]
    code = random.choice([0, 0, 0, 0, 1, 2], count)
    train = np.flatnonzero(code == 0)
    copies = random.choice(np.flatnonzero(code > 0), planted, replace=False)
    for row in copies:
        texts[row] = edited(random, texts[int(random.choice(train))], share)
    return [" ".join(words) for words in texts], code, sorted(copies.tolist())


def near_rows(random: Random, rows: int, planted: int) -> tuple[Table, list[int]]:
    """A table, and the rows of validation and test that are copies of train rows but for one changed cell."""
    columns, code = people(random, rows)
    columns = {name: values.astype(object) for name, values in columns.items()}
    columns["name"] = np.array([f"Person {number}" for number in random.integers(10**9, size=rows)], object)
    train = np.flatnonzero(code == 0)
    copies = random.choice(np.flatnonzero(code > 0), planted, replace=False)
    for row in copies:
        source = int(random.choice(train))
        for values in columns.values():
            values[row] = values[source]
        name = str(random.choice(["income", "name", "city"]))
        if name == "income":
            columns[name][row] = float(columns[name][source]) * (1 + 1e-5)
        else:
            columns[name][row] = str(
                random.choice([str.upper, "{}.".format, " {}".format])(columns[name][source])
            )
    return table(columns, code), sorted(copies.tolist())


def runs_of_words(text: str, length: int = 5, word: str = r"\w+") -> set[tuple[str, ...]]:
    """The set that near-duplicates are compared by, in plain Python; a short text is one run."""
    words = re.findall(word, text.casefold())
    return {tuple(words[at : at + length]) for at in range(max(1, len(words) - length + 1))}


def jaccard(one: str, other: str, length: int = 5) -> float:
    first, second = runs_of_words(one, length), runs_of_words(other, length)
    return len(first & second) / len(first | second)


def near_copy(random: Random, text: str, vocabulary: Sequence[str], share: float, blank: str = " ") -> str:
    """The text with this share of its words changed or dropped, or with sentences swapped. blank: what stands
    between two words."""
    kind = int(random.integers(3))
    if kind == 2:
        sentences = re.split(r"(?<=[.!?:;])\s+|(?<=[。！？；，])", text)
        for _ in range(max(1, round(share * len(sentences)))):
            one, other = random.integers(len(sentences), size=2)
            sentences[one], sentences[other] = sentences[other], sentences[one]
        return blank.join(sentences)
    found = []
    for word in text.split() if blank else text:
        if random.random() >= share:
            found.append(word)
        elif kind == 0:
            found.append(str(random.choice(vocabulary)))
    return blank.join(found)


def near_texts(
    random: Random, texts: list[str], copies: int, most: float = 0.05, blank: str = " "
) -> tuple[list[str], list[int]]:
    """The texts with near copies of some among them, each after its original; and of each the row of its
    original, -1 for an original."""
    vocabulary = sorted({word for text in texts[:200] for word in (text.split() if blank else text)})
    made = [
        (int(of), near_copy(random, texts[of], vocabulary, random.random() * most, blank))
        for of in random.integers(len(texts), size=copies)
    ]
    rows = [((float(number), 0.0), text, -1) for number, text in enumerate(texts)]
    for of, text in made:
        rows.append(((float(random.integers(of, len(texts))), random.random() + 0.1), text, of))
    rows.sort(key=lambda row: row[0])
    place = {int(number): at for at, ((number, after), _, _) in enumerate(rows) if after == 0.0}
    return [text for _, text, _ in rows], [-1 if of < 0 else place[of] for _, _, of in rows]
