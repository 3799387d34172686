"""The peers' benchmark: one text for all, and one clock."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from llmtool.data.tokenizers import CharactersTokenizer

PEERS = Path(__file__).parent.parent / "scripts/benchmarks/peers"
NAMES = ("settings", "measure", "common")


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[ModuleType, ModuleType]]:
    """settings.py and measure.py, whose names are theirs only for the time of these tests."""
    sys.path.insert(0, str(PEERS))
    try:
        yield importlib.import_module("settings"), importlib.import_module("measure")
    finally:
        sys.path[:] = [path for path in sys.path if path not in (str(PEERS), str(PEERS.parent))]
        for name in NAMES:
            sys.modules.pop(name, None)


def test_peers_read_the_ids_that_prepare_writes(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    setting = modules[0].write_text(tmp_path, {"vocabulary": 60, "context": 8})
    text = (tmp_path / "train.txt").read_text(encoding="utf-8")
    fitted = CharactersTokenizer().fit(lambda: iter([text]))
    assert setting["vocabulary"] == fitted.vocabulary == 60
    assert pickle.loads((tmp_path / "meta.pkl").read_bytes()) == {"vocab_size": 60}
    for split in ("train", "val"):
        part = (tmp_path / f"{split}.txt").read_text(encoding="utf-8")
        ids = np.fromfile(tmp_path / f"{split}.bin", dtype=np.uint16)
        assert np.array_equal(ids, fitted.ids(fitted.encode([part]))[0]), split


def job(modules: tuple[ModuleType, ModuleType], data: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    setting = {"device": "cpu", "context": 4, "batch": 2, "micro": 1, "steps": 5, "warm": 2, "vocabulary": 10}
    given = {"setting": setting, "data": str(data), "out": str(data), "variant": "", "began": 90.0}
    monkeypatch.setattr(sys, "argv", ["driver", json.dumps(given)])
    return modules[1].Job()


def test_first_steps_are_in_no_figure(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = modules[1]
    marks = measure.Marks(job(modules, tmp_path, monkeypatch))
    ends = iter([100.0, 110.0, 112.0, 113.0, 116.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(ends))
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    handle = measure.register_optimizer_step_post_hook(marks.step)  # as hook() does, to be taken off again
    try:
        for _ in range(5):
            weight.grad = torch.ones(1)
            optimizer.step()
    finally:
        handle.remove()
    found = marks.figures()
    assert found["tokens_per_second"] == pytest.approx(2 * 4 * 3 / 6.0)
    assert found["step_seconds"] == pytest.approx(2.0)
    assert found["median_step_seconds"] == 2.0
    assert (found["seconds_to_first_step"], found["seconds_to_end"]) == (10.0, 26.0)
    assert found["peak_bytes"] > 1e6


def test_every_peer_is_scored_on_the_same_windows(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (np.arange(11) % 10).astype(np.uint16).tofile(tmp_path / "val.bin")
    seen: list[list[int]] = []

    def sure_of_the_next(ids: torch.Tensor) -> torch.Tensor:
        seen.extend(ids.tolist())
        return 50.0 * torch.nn.functional.one_hot((ids + 1) % 10, 10)

    found = modules[1].validation_loss(job(modules, tmp_path, monkeypatch), sure_of_the_next)
    assert found == pytest.approx(0.0, abs=1e-6)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]]  # what is left of a window is scored for none


def test_a_peer_that_fails_leaves_the_others_measured(
    modules: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("peers_run", PEERS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    run, program = importlib.util.module_from_spec(spec), modules[0].Program
    spec.loader.exec_module(run)
    asked: list[str] = []

    def drive(program: Any, setting: dict[str, Any], data: Path) -> dict[str, float]:
        asked.append(program.name)
        if program.name == "transformers":
            raise SystemExit("out of memory")
        return dict.fromkeys((*run.KEPT, "seconds_to_first_step"), 2.0)

    monkeypatch.setattr(run, "drive", drive)
    monkeypatch.setattr(run, "write_text", lambda place, setting: setting)
    used = [program(name, "drive.py", "python") for name in ("llmtool", "transformers", "litgpt")]
    found = run.measured("cpu_small", used, 2, short=True)
    assert asked == ["llmtool", "transformers", "litgpt", "llmtool", "litgpt"]
    assert found["failed"] == {"transformers": "out of memory"}
    assert found["ratios"].keys() == {"litgpt"}
    run.show("cpu_small", found)
    with pytest.raises(SystemExit, match="llmtool failed"):
        run.measured("cpu_small", used[1:2], 1, short=True)
