"""Names of columns: that they can be used, and in what those of two files differ."""

from __future__ import annotations


def check_names(names: list[str], place: str) -> None:
    """ValueError for an empty name, or one that stands twice; place: what messages begin with."""
    empty = [position for position, name in enumerate(names, 1) if not name.strip()]
    if empty or not names:
        raise ValueError(f"{place}: column {empty[0] if empty else 1} has no name")
    twice = [name for position, name in enumerate(names) if name in names[:position]]
    if twice:
        raise ValueError(f"{place}: the column {twice[0]!r} stands twice")


def difference(expected: list[str], found: list[str]) -> str:
    """In words, how the columns of a file differ from those of the first."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    parts = [f"no {', '.join(map(repr, missing[:3]))}"] if missing else []
    parts += [f"{', '.join(map(repr, extra[:3]))} besides"] if extra else []
    return "; ".join(parts) or "the same names in another order"
