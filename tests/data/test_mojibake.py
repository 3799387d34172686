"""fix_text: what was decoded wrongly is repaired and counted, what is right stays byte for byte."""

import builtins
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from llmtool.core.errors import ConfigError
from llmtool.data import CleanStep
from llmtool.data.cleaning import Cleaned, clean
from llmtool.data.sources import frame

STEP: TypeAdapter[Any] = TypeAdapter(CleanStep)
RIGHT = [
    "naïve café — “quotes”",
    "床前明月光，疑是地上霜。",
    "Привет, мир!",
    "plain",
    "a\tb\r\nc",
    "ﬁne ＷＩＤＥ",
]


def run(texts: list[Any], **keys: Any) -> Cleaned:
    data = frame(["text"], [[text] for text in texts], np.arange(len(texts)))
    return clean([STEP.validate_python({"step": "fix_text", **keys})], data)


def test_mojibake_is_repaired_and_counted() -> None:
    wrong = [text.encode("utf-8").decode("windows-1252", "replace") for text in RIGHT[:1]]
    wrong += [RIGHT[1].encode("utf-8").decode("latin-1"), RIGHT[2].encode("utf-8").decode("latin-1")]
    result = run([*wrong[1:], *RIGHT, None])
    assert result.frame["text"].tolist() == [RIGHT[1], RIGHT[2], *RIGHT, None]
    assert result.changed == {"text: repaired (fix_text)": 2}
    assert "café" in run(wrong).frame["text"].iloc[0]
    assert run(["a\x07b\x1b[31mc"]).frame["text"].tolist() == ["abc"]


def test_entities_are_written_out_on_demand() -> None:
    assert run(["a &amp; b"]).changed == {}
    assert run(["a &amp; b"], html=True).frame["text"].tolist() == ["a & b"]


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["a", 5]).bad["text is no text"].tolist() == [1]
    with pytest.raises(ConfigError, match=r"data\.clean\.0: fix_text: no column 'body'"):
        run(["a"], columns=["body"])
    real = builtins.__import__

    def without(name: str, *rest: Any, **keys: Any) -> Any:
        if name == "ftfy":
            raise ImportError(name)
        return real(name, *rest, **keys)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ConfigError, match=r"data.clean.0: fix_text needs ftfy: pip install 'llmtool\[corpus\]'"
    ):
        run(["a"])
