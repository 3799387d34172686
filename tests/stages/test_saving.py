"""On a GPU a thread writes checkpoints: training goes on meanwhile, and what goes wrong there is not lost."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from llmtool.core import checkpoint, files
from llmtool.core.errors import Interrupted, LlmtoolError
from llmtool.stages.fit import fit
from llmtool.stages.saving import Saver
from tests.stages.test_fit import Crash, Watcher, config, toy

SETTINGS: dict[str, Any] = {"budget": {"steps": 8}, "checkpoint_every": 4, "log_every": 1}


class Disk(files.Fs):
    """A disk that takes the bytes of a checkpoint, but has them for good only when it is let; or fails."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.error: int | None = None

    def sync(self, path: Path) -> None:
        if path.name == checkpoint.MANIFEST:  # a checkpoint's directory, in the thread
            assert self.let.wait(60)
            if self.error is not None:
                raise OSError(self.error, "")
        super().sync(path)


@pytest.fixture(autouse=True)
def _hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(Saver, "holds", True)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    slow = Disk()
    monkeypatch.setattr(files, "fs", slow)
    return slow


class Looking(Watcher):
    """Looks at the checkpoints at each row, and lets the disk work at one of them."""

    def __init__(self, directory: Path, disk: Disk, step: int, **keys: Any) -> None:
        super().__init__(**keys)
        self.directory, self.disk, self.step = directory / "checkpoints", disk, step
        self.seen: dict[int, list[str]] = {}

    def row(self, row: dict[str, Any]) -> None:
        self.seen[row["step"]] = [path.name for path in checkpoint.steps(self.directory)]
        if row["step"] == self.step:
            self.disk.let.set()
        super().row(row)


def train(directory: Path, watcher: Watcher) -> Any:
    part = toy("mlp")
    part.names = ["train"]
    return fit(part, config(**SETTINGS), directory, progress=watcher, resume=True)


def test_training_goes_on_before_the_disk_has_it(tmp_path: Path, disk: Disk) -> None:
    watcher = Looking(tmp_path, disk, 7)
    result = train(tmp_path, watcher)
    assert watcher.seen[5] == watcher.seen[7] == []
    assert watcher.rows[-1]["step"] == 8
    assert [path.name for path in checkpoint.steps(tmp_path / "checkpoints")] == [
        "step-00000004", "step-00000008"
    ]  # fmt: skip
    assert result.last.resolve().name == "step-00000008"
    for path in (tmp_path / "checkpoints").iterdir():
        checkpoint.verify(path)


def test_it_is_of_its_own_step(tmp_path: Path, disk: Disk) -> None:
    """Whatever is learned before the disk has it: a run that goes on from it is as one that did not stop."""
    straight = tmp_path / "straight"
    disk.let.set()
    train(straight, Watcher())
    disk.let.clear()
    with pytest.raises(Crash):
        train(tmp_path / "crashed", Looking(tmp_path, disk, 6, crash_at=6))
    train(tmp_path / "crashed", Watcher())
    for name in ("model.safetensors", "state/optimizer.safetensors"):
        assert (tmp_path / "crashed/last" / name).read_bytes() == (straight / "last" / name).read_bytes()


def test_a_full_disk_is_told_of_by_the_next_one(tmp_path: Path, disk: Disk) -> None:
    disk.let.set()
    disk.error = errno.ENOSPC
    watcher = Looking(tmp_path, disk, 1)
    with pytest.raises(LlmtoolError, match="no space left on the device"):
        train(tmp_path, watcher)
    assert watcher.rows[-1]["step"] == 8, "the checkpoint of step 8 was the first to wait"
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_interrupted_says_that_it_is_there_only_if_it_is(tmp_path: Path, disk: Disk) -> None:
    disk.let.set()
    with pytest.raises(Interrupted):
        train(tmp_path, Watcher(signal_at=2))
    assert [path.name for path in checkpoint.steps(tmp_path / "checkpoints")] == ["step-00000002"]
    disk.error = errno.ENOSPC
    with pytest.raises(LlmtoolError, match="no space left") as raised:
        train(tmp_path, Watcher(signal_at=3))
    assert not isinstance(raised.value, Interrupted)
    assert (tmp_path / "last").resolve().name == "step-00000002"


def test_another_error_is_not_hidden_by_it(tmp_path: Path, disk: Disk) -> None:
    disk.let.set()
    disk.error = errno.EIO
    with pytest.raises(Crash):
        train(tmp_path, Watcher(crash_at=5))
    assert list((tmp_path / "checkpoints").iterdir()) == []
