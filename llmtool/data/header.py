"""The names of a table's columns, as its first line or its schema gives them."""

from __future__ import annotations

import itertools

from llmtool.core.errors import DataError

INDEX = "index"  # what a first column without a name is called: pandas writes the row's label there


def check_names(names: list[str], place: str) -> None:
    """ValueError for an empty name, or one that stands twice; place: what messages begin with."""
    empty = [position for position, name in enumerate(names, 1) if not name.strip()]
    if empty or not names:
        raise ValueError(f"{place}: column {empty[0] if empty else 1} has no name; give it one there")
    twice = [name for position, name in enumerate(names) if name in names[:position]]
    if twice:
        raise ValueError(f"{place}: the column {twice[0]!r} stands twice; give one of the two another name")


def names_of(fields: list[str], place: str) -> tuple[list[str], int, list[str]]:
    """The columns' names in the fields of a first line, how many fields at its end name none, and notes.

    A line may end in delimiters, behind which there is no column. A first column without a name gets one.
    DataError for any other without a name, or a name that stands twice; place: what messages begin with.
    """
    names, notes = list(fields), []
    while len(names) > 1 and not names[-1].strip():
        names.pop()
    beyond = len(fields) - len(names)
    if beyond == 1:
        notes.append("each line ends in a delimiter: the empty column behind it is left out")
    elif beyond:
        notes.append(f"each line ends in {beyond} delimiters: the empty columns behind them are left out")
    if len(names) > 1 and not names[0].strip():
        spare = (f"{INDEX}.{number}" for number in itertools.count(2))
        names[0] = next(name for name in itertools.chain([INDEX], spare) if name not in names)
        notes.append(f"the first column has no name: it is called {names[0]!r}")
    refuse_names(names, place)
    return names, beyond, notes


def refuse_names(names: list[str], place: str) -> None:
    """DataError where `check_names` has something to say."""
    try:
        check_names(names, place)
    except ValueError as error:
        raise DataError(str(error)) from None


def misfit(fields: list[str], width: int, beyond: int) -> str:
    """Why a row of these fields is none of `width` columns and `beyond` empty fields, or ""."""
    if len(fields) != width + beyond:
        count = f"{len(fields)} field{'s' * (len(fields) != 1)}"
        return f"{count} where there are {width + beyond} columns"
    if beyond and "".join(fields[width:]).strip():
        return f"a value in column {width + 1}, which the first line does not name"
    return ""


def difference(expected: list[str], found: list[str]) -> str:
    """In words, how the columns of a file differ from those of the first."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    parts = [f"no {', '.join(map(repr, missing[:3]))}"] if missing else []
    parts += [f"{', '.join(map(repr, extra[:3]))} besides"] if extra else []
    return "; ".join(parts) or "the same names in another order"


def names_columns(records: list[list[str]]) -> tuple[bool, str]:
    """Whether the first record names the columns, and what tells."""
    if all(record and not record[-1] for record in records):  # a delimiter ends each line
        records = [record[:-1] for record in records]
    first, rest = records[0], records[1:]
    columns = [[record[at] for record in rest if len(record) == len(first)] for at in range(len(first))]
    if first and not first[0] and _counts(columns[0]):
        return True, "the first line names the columns, but for one that counts the rows"
    numbers = [cell for cell in first if is_number(cell)]
    if numbers:
        return False, f"no names: the first line holds {numbers[0][:20]!r}, a number, as the others do"
    for name, column in zip(first, columns, strict=True):
        if name and column and sum(map(is_number, column)) > 0.9 * len(column):
            return True, f"the first line names the columns: {name[:30]!r} stands over numbers"
        if name in column:
            return False, f"no names: {name[:30]!r} of the first line stands in other lines too"
    if len(set(first)) < len(first) or not all(first):
        return False, "no names: a cell of the first line is empty, or stands there twice"
    if max(map(len, first)) > 60:
        return False, "no names: the first line holds a long text"
    return True, "the first line stands in no other: it names the columns"


def _counts(column: list[str]) -> bool:
    """Whether the cells are 0, 1, 2, ... or 1, 2, 3, ..., as an index of rows."""
    return bool(column) and any(
        column == [str(number) for number in range(start, start + len(column))] for start in (0, 1)
    )


def is_number(cell: str) -> bool:
    """Whether Python reads a number in it."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
