"""Scripts that put no blank between words: which characters are theirs, and how much of a text is."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Chinese characters, Japanese syllables; Thai, Lao, Burmese, Khmer. Tokenizers know them by name.
RANGES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
RANGES += "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
WORD = re.compile(rf"[{RANGES}]|[^\W{RANGES}]+")  # each of their characters, or a word of another script
_LETTER = re.compile(r"[^\W\d_]")
UNSPACED = re.compile(f"[{RANGES}]")
MOSTLY = 0.25  # share of the letters: a fourth of them are already most of the words


def is_unspaced(texts: Iterable[str]) -> bool:
    """Whether blanks do not tell the words of these texts apart."""
    letters = unspaced = 0
    for text in texts:
        letters += len(_LETTER.findall(text))
        unspaced += len(UNSPACED.findall(text))
    return unspaced > MOSTLY * max(1, letters)
