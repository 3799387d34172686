"""Decontamination: which runs of words are looked for, where they are found, and what cannot be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from llmtool.core.errors import ConfigError, DataError
from llmtool.data import CleanStep, DataConfig
from llmtool.data.cleaning import clean, on_new_rows
from llmtool.data.contamination import read_evaluation
from llmtool.data.sources import frame
from tests.data import planted

STEP: TypeAdapter[Any] = TypeAdapter(CleanStep)
QUESTION = "How many of the twelve apples that Anna picked did she keep for herself?"


def step(*against: Path | str, **keys: Any) -> Any:
    made = {"step": "decontaminate", "column": "text", "against": list(map(str, against)), **keys}
    return STEP.validate_python(made)


def hits(about: Any, texts: list[Any]) -> dict[int, dict[str, Any]]:
    """Row -> what was found in it."""
    about.learn(read_evaluation(about).close())
    data = frame(["text"], [[text] for text in texts], np.arange(len(texts)))
    ordinals, found = clean([about], data).keys[0]
    pairs = zip(ordinals.tolist(), found[:, 0].tolist(), strict=True)
    return {row: about.learned.says(number) for row, number in pairs if number >= 0}


def test_a_run_of_words_in_common_is_found_with_its_place(tmp_path: Path) -> None:
    rows = [{"id": 1, "question": "Short one?"}, {"id": 2, "question": QUESTION, "answer": {"text": "a b c"}}]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, rows)))
    words = QUESTION.split()
    texts = [
        f"Seen on the web: «{QUESTION.upper()}» - answers below",
        f"and {' '.join(words[1:])} said nobody",  # the last thirteen of its words
        " ".join([*words[:7], "red", *words[7:]]),
        " ".join(words[:6]),
        None,
        "",
        "many of the twelve\n\napples that Anna picked,\tdid she keep for herself; well",
    ]
    found = hits(step(questions), texts)
    assert sorted(found) == [0, 1, 6]
    assert {one["file"] for one in found.values()} == {str(questions)}
    assert {one["line"] for one in found.values()} == {2}
    assert found[1]["ngram"] == "many of the twelve apples that anna picked did she keep for herself"
    assert found[0]["ngram"] == "how many of the twelve apples that anna picked did she keep for"
    assert sorted(hits(step(questions, ngram=7), texts)) == [0, 1, 2, 6]
    assert sorted(hits(step(questions, ngram=3), ["so a b, c"])) == [0]
    assert read_evaluation(step(questions)).short == {str(questions): 2}


def test_every_format_of_evaluation_files(tmp_path: Path) -> None:
    chinese = "床前明月光疑是地上霜举头望明月"
    (tmp_path / "a.csv").write_text(f'id,q\n1,"{QUESTION}"\n')
    (tmp_path / "b.json").write_text(
        json.dumps([{"messages": [{"role": "user", "content": f"Hm.\n{QUESTION}"}]}])
    )
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(f"One.\n\nTwo:\n{QUESTION}\n\n{chinese}".encode()))
    for name, line in (("a.csv", 2), ("b.json", 1), ("c.txt.gz", 3)):
        found = hits(step(tmp_path / name), ["nothing", QUESTION])
        assert list(found) == [1]
        assert (found[1]["file"], found[1]["line"]) == (str(tmp_path / name), line)
    whole = read_evaluation(step(tmp_path)).close()  # a folder
    assert set(whole.total) == {str(tmp_path / name) for name in ("a.csv", "b.json", "c.txt.gz")}
    found = hits(step(str(tmp_path / "*.gz")), [f"李白：{chinese}，低头思故乡。"])
    assert found[0]["ngram"] == chinese[:13]


def test_runs_agree_with_plain_python() -> None:
    """Texts over few words, so that much is shared; each against each other's sets of runs."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(list("abcd"), int(size))) for size in random.integers(0, 40, 300)]
    about = step("unused", ngram=6)
    found = read_evaluation(step("unused", ngram=6).model_copy(update={"against": []}))
    found.add(texts[:30], [("eval", row) for row in range(30)])
    about.learn(found.close())
    known = set().union(*(planted.runs_of_words(text, 6) for text in texts[:30] if len(text.split()) >= 6))
    ordinals, numbers = about.keys(frame(["text"], [[text] for text in texts], np.arange(300)))
    expected = {
        row for row, text in enumerate(texts)
        if len(text.split()) >= 6 and planted.runs_of_words(text, 6) & known
    }  # fmt: skip
    assert set(ordinals[numbers[:, 0] >= 0].tolist()) == expected
    assert set(range(30)) - expected == {row for row in range(30) if len(texts[row].split()) < 6}
    assert 50 < len(expected) < 250
    for row, number in zip(ordinals.tolist(), numbers[:, 0].tolist(), strict=True):
        if number >= 0:  # the first run of the row that is known, and the first text that has it
            says = about.learned.says(number)
            words = texts[row].split()
            first = next(at for at in range(len(words)) if tuple(words[at : at + 6]) in known)
            assert says["ngram"].split() == words[first : first + 6]
            assert says["line"] == min(at for at in range(30) if says["ngram"] in texts[at])


def test_wrong_settings_and_files_are_errors_that_say_where(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="ngram"):
        step("a.txt", ngram=0)
    with pytest.raises(ValidationError, match="names no file"):
        step("")
    with pytest.raises(ValidationError, match="are read from this machine"):
        step("https://example.org/test.jsonl")
    with pytest.raises(DataError, match=r"decontaminate: against: .*none\.jsonl: no such file"):
        step(tmp_path / "none.jsonl").files()
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"a": "b"}\n{"a": \n')
    with pytest.raises(DataError, match=r"decontaminate: against: .*broken\.jsonl, line 2: not JSON"):
        read_evaluation(step(broken))
    good = tmp_path / "good.txt"
    good.write_text("some text")
    about = step(good)
    about.learn(read_evaluation(about).close())
    with pytest.raises(
        ConfigError, match=r"data\.clean\.0: decontaminate: no column 'text' \(columns: body\)"
    ):
        clean([about], frame(["body"], [["x"]], np.arange(1)))
    source = {"format": "jsonl", "path": "a.jsonl"}
    data = {
        "source": source,
        "encode": {"as": "tokens"},
        "clean": [{"step": "decontaminate", "column": "text"}],
    }
    with pytest.raises(
        ValidationError, match=r"clean\.0\.against: names no file, and source\.path none for test"
    ):
        DataConfig.model_validate(data)
    DataConfig.model_validate(data | {"source": source | {"path": {"train": "a.jsonl", "test": "b.jsonl"}}})
    part = source | {"path": {"train": "c.jsonl", "test": "d.jsonl"}}
    mixture = {"format": "mixture", "parts": {"one": part, "two": source | {"path": {"train": "e.jsonl"}}}}
    DataConfig.model_validate(data | {"source": mixture})


def test_new_rows_are_not_compared() -> None:
    assert on_new_rows([step("a.txt")], ["text"], [], ["text"]) == ([], [])
