"""Which texts blanks part into words, and that near duplicates are found where they do not."""

import numpy as np
import pytest

from llmtool.data.duplicates import near_documents
from llmtool.data.writing_systems import WORD, is_unspaced


@pytest.mark.parametrize(
    ("text", "unspaced"),
    [
        ("床前明月光，疑是地上霜。", True),
        ("これは日本語のテキストです", True),
        ("ภาษาไทยไม่มีช่องว่าง", True),
        ("한국어는 띄어쓰기가 있다", False),
        ("Привет, мир", False),
        ("A film about 東京, in plain English for the most part of it", False),
        ("", False),
        ("123 456", False),
    ],
)
def test_which_texts_blanks_part(text, unspaced):
    assert is_unspaced([text]) == unspaced


def test_each_character_or_word_is_one():
    assert WORD.findall("明月abc光 x1,é") == ["明", "月", "abc", "光", "x1", "é"]


def test_near_duplicates_of_chinese_texts_are_found():
    poem = "床前明月光疑是地上霜舉頭望明月低頭思故鄉白日依山盡黃河入海流欲窮千里目更上一層樓"
    other = "春眠不覺曉處處聞啼鳥夜來風雨聲花落知多少紅豆生南國春來發幾枝願君多采擷此物最相思"
    texts = [poem, other, poem[:-3] + "三重樓"]
    assert near_documents(texts, np.array([0, 0, 1])) == [(2, 0)]
