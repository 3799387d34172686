"""The benchmark on a GPU, in what needs none: its text fills the vocabulary, no old figures are read."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from llmtool.data.tokenizers import CharactersTokenizer

BENCHMARKS = Path(__file__).parent.parent / "scripts/benchmarks"


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    """gpu.py, whose name is its own only for the time of these tests."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("gpu")
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in ("gpu", "common"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("document", [None, 50])
def test_the_text_fills_the_vocabulary(gpu: ModuleType, tmp_path: Path, document: int | None) -> None:
    story = gpu.Story(tmp_path, gpu.SMALL, characters=5000, vocabulary=128, document=document)
    story.write(batch=4)
    text = (tmp_path / "text.txt").read_text(encoding="utf-8")
    assert CharactersTokenizer().fit(lambda: iter([text])).vocabulary == 128


def test_a_training_that_fails_has_no_figures_of_the_one_before(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = gpu.Story(tmp_path, gpu.SMALL, characters=5000, vocabulary=128)
    code = 0

    def run(command: list[str], **ignored: object) -> SimpleNamespace:
        if code == 0:
            (tmp_path / "run/train").mkdir(parents=True)
            row = {"step": 1, "loss": 2.0, "time": {"tokens_per_second": 9.0, "waiting": 0.1}}
            (tmp_path / "run/train/metrics.jsonl").write_text(json.dumps(row) + "\n")
        return SimpleNamespace(returncode=code, stdout="", stderr="no such units")

    monkeypatch.setattr(subprocess, "run", run)
    good = gpu.train(story, gpu.Clock(60), 60)
    assert (good["ended"], good["tokens_per_second"], good["losses"]) == (True, 9.0, [[1, 2.0]])
    code = 1
    bad = gpu.train(story, gpu.Clock(60), 60, "fp8")
    assert (bad["ended"], bad["losses"], bad["said"]) == (False, [], ["no such units"])
    assert "tokens_per_second" not in bad
