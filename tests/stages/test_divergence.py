"""What is kept of an update that was not made: the guilty row first, and all to make the step again."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmtool.core import checkpoint, files
from llmtool.core.errors import ConfigError, DataError, DivergedError
from llmtool.stages import divergence, replay
from llmtool.stages.fit import fit
from tests.core.crashfs import fill_disk
from tests.stages.test_fit import Crash, Toy, Watcher, config, final, toy
from tests.training.toys import ToyMLP, table

COMMAND = "llmtool train toy.yaml"
CONSTANT = {"name": "constant", "warmup": 0}


def poisoned(value: float, seed: int = 0, rows: int = 300, target: int | None = None) -> tuple[Toy, int]:
    """A toy whose 41st step is the first (of 300 rows) to meet a row with a wild number; and the row."""
    torch.manual_seed(seed)
    data = table(rows)
    data.seed = seed
    row = data._index(6 * 40 + seed % 6, 1)[0]
    data.inputs[row, seed % 4] = value
    data.targets[row] = seed % 3 if target is None else target
    return Toy(ToyMLP(dropout=0.2), data, ["train"]), row


def settings(**keys: Any) -> Any:
    return config(
        **{"budget": {"steps": 45}, "checkpoint_every": 10, "log_every": 5, "schedule": CONSTANT, **keys}
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def diverge(part: Toy, directory: Path, **keys: Any) -> Path:
    """Train until the guard stops; returns the bundle."""
    with pytest.raises(DivergedError):
        fit(part, settings(**keys), directory, progress=Watcher(), command=COMMAND)
    (bundle,) = (directory / divergence.DIRECTORY).iterdir()
    return bundle


@pytest.mark.parametrize("value", [math.nan, 1e8])
def test_the_planted_row_is_named_first_every_time(value: float, tmp_path: Path) -> None:
    for seed in range(20):
        part, row = poisoned(value, seed)
        part.model = ToyMLP()  # dropout could hide the row from a step
        start = copy.deepcopy(part.model)
        fit(part, settings(budget={"steps": 40}), tmp_path / f"{seed}-before", progress=Watcher())
        hurts = int(part.model.eval()(part.data.inputs[row]).argmin())  # the class it is surest not to be
        part, row = poisoned(value, seed, target=hurts)
        part.model = start
        bundle = diverge(part, tmp_path / str(seed))
        assert bundle.name == "step-00000041"
        rows = lines(bundle / divergence.ROWS)
        assert len(rows) == 6
        assert rows[0]["row"] == f"row {row} of train", (seed, rows)
        assert rows[0]["inputs"] == files.plain(part.data.inputs[row].tolist())
        assert f"row {row} of train" in json.loads((bundle / divergence.BUNDLE).read_text())["says"]


def test_a_bundle_is_a_checkpoint_of_the_weights_before_the_update(tmp_path: Path) -> None:
    part, _ = poisoned(1e8)
    bundle = diverge(part, tmp_path)
    checkpoint.verify(bundle)
    weights = load_file(bundle / "model.safetensors")
    assert all(torch.equal(value, part.model.state_dict()[name]) for name, value in weights.items())
    about = json.loads((bundle / divergence.BUNDLE).read_text())
    assert about["replay"] == f"{COMMAND} --replay {bundle}"
    assert about["why"] == "jumped"
    assert about["loss"] == about["again"]["loss"] > about["limit"] > max(about["recent"])
    assert about["norm"] == about["again"]["norm"]
    assert len(about["recent"]) == 40
    assert len(set(about["seeds"])) == 2  # two micro-batches
    assert list(about["layers"].values()) == sorted(about["layers"].values(), reverse=True)
    last = lines(tmp_path / "metrics.jsonl")[-1]
    assert last["step"] == 41
    assert last["refused"]["bundle"] == str(bundle)
    assert last["refused"]["loss"] == about["loss"]


@pytest.mark.parametrize("value", [math.nan, 1e8])
def test_replay_gives_the_same_bits_and_tries_the_update(value: float, tmp_path: Path) -> None:
    part, row = poisoned(value)
    bundle = diverge(part, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other, _ = poisoned(value)
    found = replay.again(other, settings(), str(bundle), Watcher(), None)
    assert found["same"]
    assert found["step"] == 41
    assert found["rows"][0]["row"] == f"row {row} of train"
    if math.isnan(value):
        assert found["now"]["loss"] is None
        assert found["update"] is None
    else:
        assert found["now"]["loss"] == found["then"]["loss"]
        assert found["update"]["after"] != found["update"]["before"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_row_of_text_with_line_ends_of_unicode_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "one\u2028two\u2029three\x85four"
    monkeypatch.setattr(Toy, "decoded", lambda self, start, count: [{"text": text}] * count)
    bundle = diverge(poisoned(1e8)[0], tmp_path)
    found = replay.again(poisoned(1e8)[0], settings(), str(bundle), Watcher(), None)
    assert found["rows"][0]["text"] == text


def test_replay_refuses_another_batch_other_rows_and_other_places(tmp_path: Path) -> None:
    bundle = str(diverge(poisoned(1e8)[0], tmp_path))
    again = lambda part, keys: replay.again(part, settings(**keys), bundle, Watcher(), None)  # noqa: E731
    with pytest.raises(ConfigError, match="batch: 12; the step had 6 rows"):
        again(poisoned(1e8)[0], {"batch": 12})
    other = poisoned(1e8)[0]
    other.seed = 6
    with pytest.raises(ConfigError, match="seed: 6; the step was made with 5"):
        again(other, {})
    (Path(bundle) / divergence.ROWS).write_text("")
    with pytest.raises(checkpoint.TornError, match=r"rows\.jsonl"):
        again(poisoned(1e8)[0], {})
    with pytest.raises(ConfigError, match=r"--replay .*: no refused update here \(no bundle.json in it\)"):
        divergence.read(str(tmp_path))


def test_replay_refuses_a_dataset_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = str(diverge(poisoned(1e8)[0], tmp_path))
    part = poisoned(1e8)[0]
    monkeypatch.setattr(
        Toy,
        "dataset",
        property(lambda self: type("Other", (), {"fingerprint": "xxh3:other", "directory": "d"})),
    )
    with pytest.raises(DataError, match="has other rows than then"):
        replay.again(part, settings(), bundle, Watcher(), None)


def test_left_out_they_are_counted_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    part, row = poisoned(math.nan, rows=60)  # met in each epoch of ten steps
    watcher = Watcher()
    keys = {"budget": {"steps": 60}, "guard": {"action": "skip"}}
    result = fit(part, settings(**keys), tmp_path, progress=watcher, command=COMMAND)
    assert result.skipped == 6
    assert result.notes[-1] == "6 updates were left out (guard.action: skip); metrics.jsonl names each"
    refused = [line for line in lines(tmp_path / "metrics.jsonl") if "refused" in line]
    assert len(refused) == 6
    assert all(f"row {row} of train" in line["refused"]["says"] for line in refused)
    kept = sorted(path.name for path in (tmp_path / divergence.DIRECTORY).iterdir())
    assert kept == [checkpoint.step_name(line["step"]) for line in refused[-3:]]
    assert sum("left out, 6 so far" in note for note in watcher.notes) == 1
    assert all(torch.isfinite(p).all() for p in part.model.parameters())


@pytest.mark.parametrize("crash_at", [15, 25, 45])
def test_a_resumed_run_leaves_out_the_same_and_ends_in_the_same_bits(crash_at: int, tmp_path: Path) -> None:
    """What the guard remembers is part of the checkpoint: steps after it are judged as in a straight run."""
    keys: dict[str, Any] = {"budget": {"steps": 150}, "guard": {"action": "skip", "spread": 0.1}}
    keys["optimizer"] = {"name": "adamw", "lr": 1e-5}  # a loss that stays and trembles
    ends = {}
    for name in ("straight", "resumed"):
        if name == "resumed":
            with pytest.raises(Crash):
                fit(
                    poisoned(math.nan, rows=60)[0],
                    settings(**keys),
                    tmp_path / name,
                    progress=Watcher(crash_at=crash_at),
                    command=COMMAND,
                )
        part, _ = poisoned(math.nan, rows=60)
        result = fit(
            part, settings(**keys), tmp_path / name, progress=Watcher(), resume=True, command=COMMAND
        )
        ends[name] = final(tmp_path / name)
        found = [row["refused"] for row in ends[name]["metrics"] if "refused" in row]
        assert all(refused.pop("bundle") for refused in found)
        assert {refused["why"] for refused in found} == {"not finite", "jumped"}
    assert result.resumed_from == crash_at // 10 * 10
    assert ends["resumed"] == ends["straight"]


def test_a_full_disk_does_not_hide_why_training_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, row = poisoned(math.nan)
    watcher = Watcher()
    write = divergence.write

    def on_a_full_disk(*arguments: Any) -> Path:
        monkeypatch.setattr(files, "fs", fill_disk(tmp_path, 1))
        return write(*arguments)

    monkeypatch.setattr(divergence, "write", on_a_full_disk)
    with pytest.raises(DivergedError, match=rf"not finite at row {row} of train"):
        fit(part, settings(), tmp_path, progress=watcher, command=COMMAND)
    assert "nothing is kept of this step: " in watcher.notes[-1]
    assert "no space left on the device" in watcher.notes[-1]


def test_in_a_rehearsal_nothing_is_kept(tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as error:
        fit(poisoned(math.nan)[0], settings(), tmp_path, progress=Watcher())
    assert "--replay" not in str(error.value)
    assert not (tmp_path / divergence.DIRECTORY).exists()
    assert lines(tmp_path / "metrics.jsonl")[-1]["refused"]["bundle"] is None


def test_a_new_start_and_a_resume_take_away_what_lies_ahead(tmp_path: Path) -> None:
    diverge(poisoned(math.nan)[0], tmp_path)
    with pytest.raises(DivergedError):  # goes on from step 40 and meets it again
        fit(poisoned(math.nan)[0], settings(), tmp_path, progress=Watcher(), resume=True, command=COMMAND)
    assert len(list((tmp_path / divergence.DIRECTORY).iterdir())) == 1
    assert sum("refused" in line for line in lines(tmp_path / "metrics.jsonl")) == 1
    fit(toy("mlp"), config(), tmp_path, progress=Watcher(), command=COMMAND)
    assert not (tmp_path / divergence.DIRECTORY).exists()
