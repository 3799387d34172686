"""PGN files: tags, comments that look like tags, broken and foreign files."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtool.core.errors import DataError
from llmtool.data.games.pgn import LONGEST, PgnSource


def read(path: Path, **options: object) -> tuple[list[dict[str, object]], list[tuple[int, str]]]:
    chunks = list(PgnSource(format="pgn", path=str(path), **options).read())
    rows = [row for chunk in chunks for row in chunk.frame.to_dict("records")]
    return rows, [(bad.line, bad.reason) for chunk in chunks for bad in chunk.bad]


def test_games_with_tags_comments_and_no_blank_line_between(tmp_path: Path) -> None:
    path = tmp_path / "a.pgn"
    path.write_text(
        '[Event "A \\"great\\" day"]\n[White "Ann"]\n[Odd "x"]\n'
        '\n1. e4 {a comment\n[White "not a tag"]\n} e5 1-0\n'
        '[Event "B"]\n[WhiteElo "2100"]\n1. d4 d5 *\n\n\n[Event "no moves"]\n\n'
    )
    rows, bad = read(path)
    assert not bad
    assert [row["event"] for row in rows] == ['A "great" day', "B", "no moves"]
    assert rows[0]["white"] == "Ann"
    assert str(rows[0]["moves"]).endswith("} e5 1-0")
    assert (rows[1]["white_elo"], rows[1]["black"], rows[1]["moves"]) == ("2100", None, "1. d4 d5 *")
    assert rows[2]["moves"] is None


def test_a_comment_that_never_ends_costs_its_game_only(tmp_path: Path) -> None:
    path = tmp_path / "a.pgn"
    path.write_text('[Event "A"]\n\n1. e4 {for ever\n\n[Event "B"]\n\n1. d4 *\n')
    rows, bad = read(path)
    assert [row["event"] for row in rows] == ["B"]
    assert bad == [(1, "a comment begins with { and never ends")]


def test_moves_without_tags_are_a_game(tmp_path: Path) -> None:
    path = tmp_path / "a.pgn"
    path.write_text("1. e4 e5 2. Nf3 *\n")
    assert read(path)[0][0]["moves"] == "1. e4 e5 2. Nf3 *"


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    empty, long, latin = (tmp_path / name for name in ("empty.pgn", "long.pgn", "latin.pgn"))
    empty.write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.pgn: no game in it"):
        read(empty)
    line = "e4 e5 " * 10_000 + "\n"
    long.write_text('[Event "A"]\n' + line * (LONGEST // len(line) + 2) + '\n[Event "B"]\n\n1. d4 *\n')
    rows, bad = read(long)
    assert [row["event"] for row in rows] == ["B"]
    assert bad == [(1, "a game of more than 1,048,576 characters")]
    latin.write_bytes('[Event "A"]\n[White "Müller"]\n\n1. e4 *\n'.encode("latin-1"))
    assert read(latin)[1] == [(1, "not valid utf-8")]
    assert read(latin, encoding="latin-1")[0][0]["white"] == "Müller"


def test_a_game_from_another_position_or_by_other_rules_is_no_game_of_chess(tmp_path: Path) -> None:
    path = tmp_path / "a.pgn"
    first = "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1"
    path.write_text(
        f'[Event "A"]\n[Variant "Standard"]\n[FEN "{first}"]\n\n1. e4 *\n\n'
        '[Event "B"]\n[FEN "8/8/8/8/8/8/4P3/K6k w - - 0 1"]\n\n1. e4 *\n\n'
        '[Event "C"]\n[Variant "Atomic"]\n\n1. e4 *\n'
    )
    rows, bad = read(path)
    assert [row["event"] for row in rows] == ["A"]
    assert [reason for _, reason in bad] == [
        "begins from another position (its tag FEN)", "of another game (its tag Variant is 'Atomic')",
    ]  # fmt: skip
