"""Quality rules of Gopher and C4: each on a text that breaks it alone, beside one that it leaves."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from llmtool.core.errors import ConfigError
from llmtool.data import CleanStep
from llmtool.data.cleaning import Cleaned, clean
from llmtool.data.corpus import words_of
from llmtool.data.repetition import duplicates, ngrams
from llmtool.data.sources import frame

STEP: TypeAdapter[Any] = TypeAdapter(CleanStep)

PROSE = (
    "The harbour lay under fog that morning, and nobody at the quay expected the ferry to arrive on time. "
    "An old man with a wicker basket had been waiting since dawn; he told us of storms his father survived, "
    "of lamps on distant reefs, and of a girl who could hear whales through the hull of any boat."
)


def run(step: dict, *texts: Any, column: str = "text") -> Cleaned:
    data = frame([column], [[text] for text in texts], np.arange(len(texts)))
    return clean([STEP.validate_python(step)], data)


def reasons(step: dict, *texts: Any) -> list[str | None]:
    """Why each text leaves."""
    result = run(step, *texts)
    found: list[str | None] = [None] * len(texts)
    for reason, rows in result.dropped.items():
        for row in rows.tolist():
            found[row] = reason
    return found


def test_gopher_keeps_prose_and_names_the_rule_that_a_text_breaks() -> None:
    words = PROSE.split()
    lines = [" ".join(words[n : n + 6]) for n in range(0, len(words), 6)]
    broken = {
        "min_words": " ".join(words[:49]),
        "min_mean_word_length": PROSE + " a b c d e f" * 40,
        "max_mean_word_length": PROSE + " extraordinarily" * 120,
        "max_symbols": PROSE + " #" * 10,
        "max_bullet_lines": "\n".join(f"- {line}" for line in lines),
        "max_ellipsis_lines": "\n".join(line + ("..." if n % 2 else " …") for n, line in enumerate(lines)),
        "min_alphabetic_words": PROSE + " 1234" * 20,
        "min_stop_words": "river mountain forest valley meadow " * 12,
    }
    step = {"step": "gopher_quality", "max_symbols": 0.1}
    loose = step | {"max_symbols": 1.0}  # so that ellipses are judged by lines
    for key, text in broken.items():
        (found,) = reasons(loose if key == "max_ellipsis_lines" else step, text)
        assert found is not None, key
        assert f"(gopher_quality.{key})" in found, (key, found)
        assert found.startswith("text: ")
        off = {**(loose if key == "max_ellipsis_lines" else step), key: None}
        assert reasons(off, text) == [None], key  # and no other
    assert reasons({"step": "gopher_quality", "max_words": 60}, PROSE + " " + PROSE)[0] is not None
    assert reasons(step, PROSE, None, "") == [
        None,
        *["text: fewer than 50 words (gopher_quality.min_words)"] * 2,
    ]


def test_gopher_thresholds_stand_where_the_paper_has_them() -> None:
    step = STEP.validate_python({"step": "gopher_quality"})
    assert (step.min_words, step.max_words, step.max_symbols) == (50, 100_000, 0.1)
    tenth = " ".join(["of", "the", *["word"] * 48])
    assert reasons({"step": "gopher_quality"}, tenth + " #" * 5) == [None]  # 5 / 55 words
    assert reasons({"step": "gopher_quality"}, tenth + " #" * 6)[0] is not None  # 6 / 56


def test_scripts_without_blanks_have_a_word_a_character() -> None:
    assert words_of("我们 go 家。") == ["我", "们", "go", "家", "。"]
    poem = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少" * 3
    step = {"step": "gopher_quality", "stop_words": ["不", "来"]}
    assert reasons(step, poem) == [None]
    assert (
        reasons({"step": "gopher_quality"}, poem)[0]
        == "text: fewer than 2 stop words (gopher_quality.min_stop_words)"
    )


def test_repetition_is_named_by_its_rule() -> None:
    step = {"step": "gopher_repetition"}
    lines = [f"line number {n} of a list that goes on about {n * n} things" for n in range(40)]
    menu = "\n".join(["home"] * 40 + lines)
    assert reasons(step, PROSE, "\n".join(lines[:1]), "", None) == [None] * 4
    off = dict.fromkeys(("max_top_ngrams", "max_duplicate_ngrams"))
    assert (
        reasons(step | off, menu)[0]
        == "text: too many duplicate lines (gopher_repetition.max_duplicate_lines)"
    )
    twice = "\n".join(lines[:14] + lines[:4])
    found = reasons(step | off, twice)[0]
    assert (
        found
        == "text: too many characters in duplicate lines (gopher_repetition.max_duplicate_line_characters)"
    )
    paragraphs = "\n\n".join(["An advertisement,\nthis one."] * 5 + [PROSE] * 1)
    rule = {"max_duplicate_lines": None, "max_duplicate_line_characters": None} | off
    assert "max_duplicate_paragraphs" in str(reasons(step | rule, paragraphs)[0])
    text = " ".join(f"buy now {word}" for word in PROSE.split())
    assert (
        reasons(step, text)[0]
        == "text: the most frequent 2-gram too often (gopher_repetition.max_top_ngrams)"
    )
    spun = PROSE + " " + " ".join(PROSE.split()[:12])
    found = reasons(step, spun)[0]
    assert found is not None
    assert "too many duplicate" in found
    assert "grams (gopher_repetition.max_duplicate_ngrams)" in found
    assert reasons(step | off, spun) == [None]


def slow_ngrams(words: list[str], n: int) -> tuple[float, float]:
    """The same by hand."""
    grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
    counts = {gram: grams.count(gram) for gram in grams}
    most = max(counts.values())
    best = max((gram for gram in counts if counts[gram] == most), key=lambda gram: sum(map(len, gram)))
    top, again, seen = set(), set(), set()
    for at, gram in enumerate(grams):
        places = range(at, at + n)
        top |= set(places) if gram == best else set()
        again |= set(places) if gram in seen else set()
        seen.add(gram)
    whole = sum(map(len, words))
    return sum(len(words[at]) for at in top) / whole, sum(len(words[at]) for at in again) / whole


@pytest.mark.parametrize("seed", range(8))
def test_ngram_shares_are_those_counted_by_hand(seed: int) -> None:
    chance = np.random.default_rng(seed)
    words = [["a", "bb", "ccc", "dddd"][n] for n in chance.integers(0, 2 + seed % 3, 40)]
    found = {n: shares for n, *shares in ngrams(words)}
    assert found
    for n, (top, again) in found.items():
        expected_top, expected_again = slow_ngrams(words, n)
        assert again == pytest.approx(expected_again)
        assert top == pytest.approx(expected_top)
    assert duplicates(["a", "bb", "a", "bb", "bb"]) == (3 / 5, 5 / 8)


def test_c4_cuts_lines_and_drops_pages() -> None:
    page = (
        "Home | About\nThis is a sentence of several words.\nToo short.\n"
        "Another one with a citation[1] ends here!\n"
        "Please enable Javascript to see this page.\nWe have a privacy policy that you should read.\n"
        "And this, at last, is the third."
    )
    step = {"step": "c4_quality"}
    result = run(
        step, page, "Lorem ipsum dolor sit amet. A b c d. E f g.", "if (x) { return 1; }", "One line."
    )
    assert result.frame["text"].tolist() == [
        "This is a sentence of several words.\nAnother one with a citation ends here!\n"
        "And this, at last, is the third."
    ]
    assert {reason: rows.tolist() for reason, rows in result.dropped.items()} == {
        "text: lorem ipsum (c4_quality.drop_lorem_ipsum)": [1],
        "text: a curly bracket (c4_quality.drop_braces)": [2],
        "text: fewer than 3 sentences (c4_quality.min_sentences)": [3],
    }
    keys = ("end_marks", "min_line_words", "cut_citations", "cut_javascript", "cut_policy")
    assert {
        what.split("c4_quality.")[1].rstrip(")"): count for what, count in result.changed.items()
    } == dict.fromkeys(keys, 1)
    plain = run({**step, **dict.fromkeys(("cut_javascript", "cut_policy", "cut_citations"), False)}, page)
    assert "Javascript" in plain.frame["text"].iloc[0]
    assert "citation[1]" in plain.frame["text"].iloc[0]
    chinese = "今天天气很好。我们去公园散步！你想一起来吗？\n目录 首页"
    result = run(step | {"end_marks": ["。", "！", "？"]}, chinese)
    assert result.frame["text"].tolist() == ["今天天气很好。我们去公园散步！你想一起来吗？"]
    untouched = "First sentence is right here.  Second one is also here. Third."
    assert run(step, untouched).frame["text"].tolist() == [untouched]


@pytest.mark.parametrize("name", ["gopher_quality", "gopher_repetition", "c4_quality"])
def test_bad_input_names_the_step_and_the_place(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data.clean.0: {name}: no column 'txt'; did you mean \"text\""):
        run({"step": name, "column": "txt"}, PROSE)
    result = run({"step": name}, PROSE, 7, ["a"])
    assert {reason: rows.tolist() for reason, rows in result.bad.items()} == {"text is no text": [1, 2]}
    with pytest.raises(ValidationError):
        STEP.validate_python({"step": name, "column": 3})


def test_shares_and_their_number_are_checked() -> None:
    for wrong in ([0.1], [0.1, 0.1, 2.0], [0.1] * 4):
        with pytest.raises(ValidationError):
            STEP.validate_python({"step": "gopher_repetition", "max_top_ngrams": wrong})


HOSTILE = {
    "marks": "." * 1_000_000,
    "brackets": "[" * 1_000_000,
    "digits": "1" * 1_000_000,
    "one letter": "a " * 500_000,
    "lines": "\n" * 1_000_000,
    "blanks": "\n" + " " * 999_999,
    "mixed marks": '."' * 500_000,
    "chinese": "春" * 1_000_000,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_megabyte_made_to_hurt_ends(text: str) -> None:
    for name in ("gopher_quality", "gopher_repetition", "c4_quality"):
        step = STEP.validate_python({"step": name})
        step.apply(pd.DataFrame({"text": pd.Series([text], dtype=object)}))
