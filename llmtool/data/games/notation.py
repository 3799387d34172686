"""Records of chess as text: which words are moves, among numbers, comments, variations and results."""

from __future__ import annotations

import re

UCI = re.compile(r"[a-h][1-8][a-h][1-8][qrbnQRBN]?")
SAN = re.compile(r"([KQRBN])?([a-h])?([1-8])?[x:]?([a-h][1-8])(?:=?\(?([QRBN])\)?)?(?:e\.?p\.?)?")
CASTLING = re.compile(r"([O0o]-[O0o])(-[O0o])?")
RESULTS = {"1-0", "0-1", "1/2-1/2", "*"}
_WORD = re.compile(
    r"\{[^}]*\}?"  # a comment
    r"|;[^\n]*"  # a comment to the end of the line
    r"|^%[^\n]*"  # what the export format lets programs put into files
    r"|\$\d+"  # an annotation by number
    r"|[()]"  # a variation begins or ends
    r"|\d+\.(?:\.\.)?|\.{2,3}"  # the number of a move
    r"|[^\s{}();$]+",  # a move or a result
    re.MULTILINE,
)
_MARKS = "+#!?"
_NUMBERED = re.compile(r"\d+\.+|\d+|\.+")


def is_move(word: str) -> bool:
    """Whether a word looks like a move, in UCI's or in algebraic notation."""
    return any(pattern.fullmatch(word) for pattern in (UCI, CASTLING, SAN))


def words(text: str) -> list[str]:
    """The moves of the main line as they are written, without their marks of check and of worth."""
    found, depth = [], 0
    for word in _WORD.findall(text):
        if word in ("(", ")"):
            depth = max(0, depth + (1 if word == "(" else -1))
        elif not depth and word[0] not in "{;%$" and word not in RESULTS:
            move = _without_number(word).rstrip(_MARKS)
            if move and move not in ("e.p.", "ep"):
                found.append(move)
    return found


def _without_number(word: str) -> str:
    """`12.Nf3` without its number; `0-0` is no number."""
    if CASTLING.fullmatch(word.rstrip(_MARKS)):
        return word
    number = _NUMBERED.match(word)
    return word[number.end() :] if number else word
