"""keep_languages: which language a text is in, and what is said of a code that is none."""

import builtins
from typing import Any

import numpy as np
import pytest
from py3langid import langid
from pydantic import TypeAdapter, ValidationError

from llmtool.core.errors import ConfigError
from llmtool.data import CleanStep
from llmtool.data import language as module
from llmtool.data.cleaning import Cleaned, clean
from llmtool.data.language import NAMES, NONE, PART_OF, nearest
from llmtool.data.sources import frame

STEP: TypeAdapter[Any] = TypeAdapter(CleanStep)
TEXTS = {
    "en": "The committee will meet again on Thursday, when the new members are to be introduced to all.",
    "zh": "委员会将于星期四再次开会，届时将向其他人介绍新成员，并讨论明年的预算和工作计划。",
    "ru": "Комитет снова соберётся в четверг, когда новых членов представят всем остальным участникам.",
    "de": "Der Ausschuss tritt am Donnerstag wieder zusammen, dann werden die neuen Mitglieder vorgestellt.",
    "fr": "Le comité se réunira de nouveau jeudi, et les nouveaux membres seront présentés aux autres.",
    "ja": "委員会は木曜日に再び開かれ、新しいメンバーがほかの人たちに紹介される予定です。",
}


def run(texts: list[Any], **keys: Any) -> Cleaned:
    data = frame(["text"], [[text] for text in texts], np.arange(len(texts)))
    return clean([STEP.validate_python({"step": "keep_languages", **keys})], data)


def test_texts_of_the_languages_stay_and_the_others_are_counted_by_language() -> None:
    result = run([*TEXTS.values(), "", None, "  \n"], languages=["en", "zh"])
    assert result.frame["text"].tolist() == [TEXTS["en"], TEXTS["zh"]]
    assert {reason: rows.tolist() for reason, rows in result.dropped.items()} == {
        "text: Russian (keep_languages)": [2],
        "text: German (keep_languages)": [3],
        "text: French (keep_languages)": [4],
        "text: Japanese (keep_languages)": [5],
        "text: no language (keep_languages)": [6, 7, 8],
    }
    result = run(list(TEXTS.values()), languages=["en"], min_probability=1.0)
    assert "text: language not sure (keep_languages.min_probability)" in result.dropped


def test_a_language_keeps_those_that_are_part_of_it() -> None:
    poem = "床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。"
    assert module._identifier()(poem)[0] in {
        "zh",
        *(part for part, whole in PART_OF.items() if whole == "zh"),
    }
    assert len(run([poem], languages=["zh"], min_probability=0).frame) == 1


def test_the_codes_are_those_of_the_model() -> None:
    model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    assert set(model.labels) == {*NAMES, NONE}
    assert set(PART_OF) | set(PART_OF.values()) <= set(NAMES)


@pytest.mark.parametrize(
    ("word", "code"), [("english", "en"), ("zh-CN", "zh"), ("eng", "en"), ("Germn", "de"), ("Chinese", "zh")]
)
def test_an_unknown_code_is_refused_with_the_nearest_one(word: str, code: str) -> None:
    with pytest.raises(
        ValidationError, match=rf"'{word}' is no language known here; did you mean \"{code}\""
    ):
        STEP.validate_python({"step": "keep_languages", "languages": ["en", word]})
    assert "(known: ace, af" in nearest("qqqqqqqq")
    with pytest.raises(ValidationError):
        STEP.validate_python({"step": "keep_languages", "languages": []})


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run([3, TEXTS["en"]], languages=["en"]).bad["text is no text"].tolist() == [0]
    with pytest.raises(ConfigError, match=r"data\.clean\.0: keep_languages: no column 'tex'"):
        run(["a"], languages=["en"], column="tex")
    real = builtins.__import__

    def without(name: str, *rest: Any, **keys: Any) -> Any:
        if name == "py3langid":
            raise ImportError(name)
        return real(name, *rest, **keys)

    module._identifier.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ConfigError, match=r"data.clean.0: keep_languages needs py3langid: pip install 'llmtool\[corpus\]'"
    ):
        run(["a b"], languages=["en"])
