"""Texts as numbers: a hash for each word and for each run of words, by which texts are compared."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
import xxhash

from llmtool.core import seeds
from llmtool.data.writing_systems import WORD

_VOCABULARY = 1 << 18  # words whose hash is remembered, in some 40 MB
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's bits are lost
_hashes: dict[str, int] = {}
# Of ASCII, what stands in no word becomes a blank: four times as fast as the pattern.
_BLANKED = "".join(sign if sign.isalnum() or sign == "_" else " " for sign in map(chr, range(128)))


def bare_words(text: str) -> list[str]:
    """Its words. Case and punctuation are not looked at; in scripts without blanks each character is one."""
    text = text.casefold()
    return text.translate(_BLANKED).split() if text.isascii() else WORD.findall(text)


def spoken(cell: object) -> str:
    """The text of a cell: of a list or mapping (sources give its JSON) all texts in it; "" for a number."""
    if not isinstance(cell, str):
        return ""
    if cell.startswith(("[", "{")):
        try:
            return "\n".join(_strings(json.loads(cell)))
        except (ValueError, RecursionError):
            return cell
    return cell


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def numbered(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """(words,) uint64, a hash of each word of each text, one text after the other, the same in every process;
    (texts,) int64, how many each has."""
    found, counts = array("Q"), array("q")
    for text in texts:
        words = bare_words(text)
        try:
            hashes = list(map(_hashes.__getitem__, words))
        except KeyError:
            hashes = _learned(words)
        found.fromlist(hashes)
        counts.append(len(words))
    return np.array(found, np.uint64), np.array(counts, np.int64)


def _learned(words: list[str]) -> list[int]:
    """The same for words of which some are new."""
    if len(_hashes) > _VOCABULARY:
        _hashes.clear()
    for word in words:
        if word not in _hashes:
            _hashes[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
    return list(map(_hashes.__getitem__, words))


def runs(words: np.ndarray, counts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(runs,) uint64, a hash of each run of `length` words in a text; (texts,) int64, how many each has.

    words, counts: as `numbered` gives them. A text of fewer words has none.
    """
    many = np.maximum(counts - length + 1, 0)
    total = len(words) - length + 1
    if total <= 0:
        return np.zeros(0, np.uint64), many
    values = words[:total].copy()
    for step in range(1, length):
        values *= _BASE
        values += words[step : step + total]
    inside = np.ones(len(words), bool)
    ends = np.cumsum(counts)
    for step in range(1, length):
        inside[ends[counts >= step] - step] = False  # a run that begins here reaches into the next text
    return mixed(values[inside[:total]]), many


def padded(words: np.ndarray, counts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The same with texts of fewer words (not of none) filled up to `length`, so that they are one run."""
    short = (counts > 0) & (counts < length)
    if not short.any():
        return words, counts
    fill = np.where(short, length - counts, 0)
    return np.insert(words, np.repeat(np.cumsum(counts), fill), np.uint64(0)), counts + fill


def mixed(values: np.ndarray) -> np.ndarray:
    """The next numbers of SplitMix64 after these (core.seeds.scrambled); 0 does not stay 0."""
    return seeds.scrambled(values + np.uint64(0x9E3779B97F4A7C15))
