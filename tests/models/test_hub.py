"""Names on the hub: what is refused before anything is fetched, and what is asked of the hub's library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.models import hub
from llmtool.stages import checkpoints

huggingface_hub = pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf://owner/name", "it has none"),
        ("hf://owner/name@main", "'main' may mean another model tomorrow"),
        (f"hf://owner/name@{COMMIT[:-1]}", "40 hexadecimal digits"),
        (f"hf://name@{COMMIT}", "hf://owner/name@revision"),
        (f"hf://../../etc@{COMMIT}", "hf://owner/name@revision"),
    ],
)
def test_only_a_pinned_name_is_fetched(address: str, said: str) -> None:
    with pytest.raises(ConfigError, match="hf://") as error:
        hub.snapshot(address)
    assert said in str(error.value)


def test_neither_code_nor_pickles_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **keys: Any) -> str:
        asked.update(keys, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert checkpoints.find_checkpoint(f"hf://owner/name.v1@{COMMIT}") == tmp_path
    assert (asked["name"], asked["revision"]) == ("owner/name.v1", COMMIT)
    assert not any(pattern.endswith(("py", "bin", "pt", "*")) for pattern in asked["allow_patterns"])


def test_what_cannot_be_had_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(LlmtoolError, match="could not be fetched") as error:  # no test reaches the network
        hub.snapshot(f"hf://owner/name@{COMMIT}")
    assert "\n" not in str(error.value)
