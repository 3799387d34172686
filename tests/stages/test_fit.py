"""The fit stage: resume without a changed bit, signals to a real process, checkpoints, `auto`."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from llmtool.core import checkpoint
from llmtool.core.contracts import Tokens
from llmtool.core.devices import PRECISIONS, Precision
from llmtool.core.errors import (
    Cancelled,
    ConfigError,
    DivergedError,
    Interrupted,
    LlmtoolError,
    MemoryLimitError,
)
from llmtool.core.seeds import seed_torch
from llmtool.stages.fit import FitResult, fit
from llmtool.stages.settings import out_of_memory, resolve
from llmtool.training import TrainConfig
from llmtool.training.throughput import Meter
from tests.training.toys import ToyBatches, ToyMLP, ToyTask, ToyTransformer, table, tokens


@dataclass
class Splits:
    splits: list[str]
    directory: str = "runs/toy/prepare"
    fingerprint: str = "xxh3:toy"
    inputs: Tokens = field(default_factory=lambda: Tokens(vocabulary=8))
    card: dict[str, Any] | None = None


@dataclass
class Toy:
    """The assembly of a toy model with its rows, for training and validation alike."""

    model: nn.Module
    data: ToyBatches
    names: list[str] = field(default_factory=lambda: ["train", "validation"])
    task: Any = field(default_factory=ToyTask)
    seed: int = 5
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = PRECISIONS["fp32"]
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def dataset(self) -> Splits:
        return Splits(self.names)

    def batches(self, split: str) -> ToyBatches:
        return self.data

    def decoded(self, start: int, count: int) -> list[dict[str, Any]]:
        return [{"inputs": row} for row in self.data.batch(start, count).inputs.tolist()]

    def save(self, directory: Path) -> None:
        save_model(self.model, str(directory / "model.safetensors"))

    def restore(self, directory: Path) -> None:
        load_model(self.model, str(directory / "model.safetensors"))

    goes_on_from = restore


class Watcher:
    """Progress that remembers, and can end the process's work at a step as a crash or a signal would."""

    kill_at: int | None = None

    def __init__(self, crash_at: int | None = None, signal_at: int | None = None) -> None:
        self.notes: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.crash_at, self.signal_at = crash_at, signal_at

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if row["step"] == self.crash_at:
            raise Crash
        if row["step"] == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Crash(Exception):
    """Stands for whatever ends a process without a word."""


def toy(kind: str) -> Toy:
    seed_torch(5, "initialise")
    return (
        Toy(ToyMLP(dropout=0.2), table(20))
        if kind == "mlp"
        else Toy(ToyTransformer(dropout=0.2, tied=True), tokens(20))
    )


OPTIMIZERS = {
    "adamw": {"name": "adamw", "lr": 0.01},
    "muon": {"name": "muon"},
    "sgd": {"name": "sgd", "lr": 0.05},
}


def config(**keys: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "budget": {"steps": 7},
        "batch": 6,  # of 20 rows: batches reach across the borders of epochs
        "micro_batch": 3,
        "optimizer": OPTIMIZERS["adamw"],
        "log_every": 2,
        "validate_every": 3,
        "checkpoint_every": 1,
        "compile": False,
    }
    return TypeAdapter(TrainConfig).validate_python({**base, **keys})


def run(kind: str, directory: Path, settings: TrainConfig, resume: bool = True, **watch: Any) -> FitResult:
    return fit(toy(kind), settings, directory, progress=Watcher(**watch), resume=resume)


def final(directory: Path) -> dict[str, Any]:
    """Everything that must be equal: weights, optimizer, loop state, metrics; all but times."""
    last = directory / "last"
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    state = json.loads((last / "state" / "loop.json").read_text())
    return {
        "weights": {k: v.numpy().tobytes() for k, v in load_file(last / "model.safetensors").items()},
        "optimizer": {
            k: v.numpy().tobytes() for k, v in load_file(last / "state" / "optimizer.safetensors").items()
        },
        "state": {key: value for key, value in state.items() if key != "time"},
        "metrics": [{key: value for key, value in row.items() if key != "time"} for row in rows],
        "names": sorted(path.name for path in (directory / "checkpoints").iterdir()),
        "best": (directory / "best").resolve().name,
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_resume_changes_no_bit(kind: str, optimizer: str, tmp_path: Path) -> None:
    """Crashed after every step k (also with rows past the checkpoint), and twice in a row."""
    settings = config(optimizer=OPTIMIZERS[optimizer], log_every=1)
    run(kind, tmp_path / "straight", settings)
    straight = final(tmp_path / "straight")
    assert len(straight["metrics"]) == 7 + 3
    for every in (1, 3):
        spaced = settings.model_copy(update={"checkpoint_every": every})
        reference = straight
        if every != 1:
            run(kind, tmp_path / "spaced", spaced)
            reference = final(tmp_path / "spaced")
        for step in range(1, 8) if every == 1 else (2, 5):
            directory = tmp_path / f"killed-{every}-{step}"
            with pytest.raises(Crash):
                run(kind, directory, spaced, crash_at=step)
            if step < 5:
                with pytest.raises(Crash):
                    run(kind, directory, spaced, crash_at=step + 2)
            run(kind, directory, spaced)
            assert final(directory) == reference, f"killed at step {step}, checkpoints every {every}"


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_interrupted_between_lines_changes_no_bit(kind: str, tmp_path: Path) -> None:
    """A checkpoint in the middle of a log interval carries the sums of the unfinished line."""
    settings = config(log_every=4, validate_every=100, checkpoint_every=100, budget={"steps": 9})
    run(kind, tmp_path / "straight", settings)
    limited = settings.model_copy(update={"budget": settings.budget.model_copy(update={"time": "0.0001s"})})
    directory = tmp_path / "limited"
    for step in range(1, 9):  # one step a session
        with pytest.raises(Interrupted, match="time limit reached"):
            run(kind, directory, limited)
        assert (directory / "last").resolve().name == checkpoint.step_name(step)
    result = run(kind, directory, settings)
    assert result.resumed_from == 8
    straight, resumed = final(tmp_path / "straight"), final(directory)
    for key in ("weights", "optimizer", "state", "metrics", "best"):
        assert resumed[key] == straight[key]


def test_early_stopping_goes_on_counting_after_a_resume(tmp_path: Path) -> None:
    rising = {"name": "sgd", "lr": 3.0, "momentum": 0.0}
    settings = config(
        optimizer=rising, stop={"patience": 3}, validate_every=1, budget={"steps": 60}, log_every=1
    )
    straight = run("mlp", tmp_path / "straight", settings)
    assert straight.reason == "patience"
    assert straight.step == straight.best_step + 3
    directory = tmp_path / "killed"
    with pytest.raises(Crash):
        run("mlp", directory, settings, crash_at=straight.step - 1)
    resumed = run("mlp", directory, settings)
    assert (resumed.reason, resumed.step, resumed.best_step) == (
        "patience",
        straight.step,
        straight.best_step,
    )
    assert final(directory) == final(tmp_path / "straight")
    again = run("mlp", directory, settings)
    assert (again.step, again.best_value) == (straight.step, straight.best_value)


def test_a_torn_checkpoint_is_named_and_the_one_before_used(tmp_path: Path) -> None:
    settings = config()
    run("mlp", tmp_path / "straight", settings)
    directory = tmp_path / "torn"
    with pytest.raises(Crash):
        run("mlp", directory, settings, crash_at=6)
    newest = checkpoint.steps(directory / "checkpoints")[-1]
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 4
    weights.write_bytes(bytes(data))
    watcher = Watcher()
    result = fit(toy("mlp"), settings, directory, progress=watcher, resume=True)
    assert result.resumed_from == checkpoint.step_of(newest) - 1  # type: ignore[operator]
    assert any("model.safetensors" in note for note in watcher.notes)
    ours, straight = final(directory), final(tmp_path / "straight")
    assert [ours[k] for k in ("weights", "optimizer", "metrics")] == [
        straight[k] for k in ("weights", "optimizer", "metrics")
    ]


def test_without_resume_everything_starts_anew(tmp_path: Path) -> None:
    run("mlp", tmp_path, config(budget={"steps": 9}))
    result = run("mlp", tmp_path, config(), resume=False)
    assert result.resumed_from is None
    assert (tmp_path / "last").resolve().name == checkpoint.step_name(7)
    assert all(
        json.loads(line)["step"] <= 7 for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    )


def test_keep_and_links(tmp_path: Path) -> None:
    result = run("mlp", tmp_path, config(keep=1, budget={"steps": 12}, validate_every=4))
    names = {path.name for path in checkpoint.steps(tmp_path / "checkpoints")}
    assert names == {checkpoint.step_name(12), checkpoint.step_name(result.best_step)}
    assert result.last.resolve().name == checkpoint.step_name(12)
    assert result.best.resolve().name == checkpoint.step_name(result.best_step)
    checkpoint.verify(result.best)
    assert not os.path.isabs(os.readlink(result.best))


def test_without_validation_the_last_is_the_best(tmp_path: Path) -> None:
    part = toy("mlp")
    part.names = ["train"]
    result = fit(part, config(), tmp_path, progress=Watcher())
    assert (result.best_step, result.best_value, result.notes) == (7, None, [])
    assert result.best.resolve() == result.last.resolve()
    with pytest.raises(ConfigError, match="stop: needs validation"):
        fit(part, config(stop={"patience": 1}), tmp_path, progress=Watcher())


def test_a_misspelt_metric_is_refused_before_the_first_step(tmp_path: Path) -> None:
    watcher = Watcher()
    with pytest.raises(
        ConfigError, match=r"select\.metric: 'los' is not a figure of this task \(choices: loss\)"
    ):
        fit(toy("mlp"), config(select={"metric": "los", "mode": "min"}), tmp_path, progress=watcher)
    assert not watcher.rows


def test_divergence_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    part = toy("mlp")
    row = part.data._index(6 * 3 + 1, 1)[0]
    part.data.inputs[row] = math.nan
    part.names = ["train"]
    with pytest.raises(DivergedError, match=rf"^step \d: .*row {row} of train"):
        fit(part, config(), tmp_path, progress=Watcher())
    weights = load_file(tmp_path / "last" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert all(torch.equal(value, part.model.state_dict()[name]) for name, value in weights.items())


def test_other_state_is_refused(tmp_path: Path) -> None:
    run("mlp", tmp_path, config())
    with pytest.raises(LlmtoolError, match="another model or optimizer"):
        run("mlp", tmp_path, config(optimizer=OPTIMIZERS["sgd"]))


def test_written_beside_the_checkpoints(tmp_path: Path) -> None:
    settings = config(compile="auto", batch="auto", micro_batch="auto")
    fit(
        toy("mlp"),
        settings,
        tmp_path,
        progress=Watcher(),
        as_yaml=lambda c: f"batch: {c.batch}, compile: {c.compile}",
    )
    assert (tmp_path / "experiment.yaml").read_text() == "batch: 20, compile: False"
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["precision"] == "fp32"


# --- real processes ---

CHILD = """
    import sys, time
    from pathlib import Path
    from llmtool.core.errors import LlmtoolError
    from llmtool.stages.fit import fit
    from tests.stages.test_fit import Watcher, config, toy

    class Slow(Watcher):
        def row(self, row):
            print(row["step"], flush=True)
            time.sleep(0.05)

    try:
        settings = config(log_every=1, budget={"steps": 12})
        fit(toy(sys.argv[1]), settings, Path(sys.argv[2]), progress=Slow(), resume=True)
    except LlmtoolError as error:
        print(error, flush=True)
        sys.exit(error.exit_code)
"""


def start(kind: str, directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), kind, str(directory)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)


def test_killed_processes_resume_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL, SIGTERM, SIGINT one after another to one run; then it ends as if nothing had happened."""
    run("transformer", tmp_path / "straight", config(log_every=1, budget={"steps": 12}))
    directory = tmp_path / "killed"
    for number, until, code in ((signal.SIGKILL, 3, -9), (signal.SIGTERM, 6, 75), (signal.SIGINT, 9, 130)):
        process = start("transformer", directory)
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == str(until):
                process.send_signal(number)
                break
        rest = process.stdout.read()
        assert process.wait(60) == code, rest
        process.stdout.close()
    result = run("transformer", directory, config(log_every=1, budget={"steps": 12}))
    assert result.resumed_from in (9, 10)
    assert final(directory) == final(tmp_path / "straight")


# --- auto, compile, memory, clocks ---


def resolved(data: ToyBatches, device: str = "cpu", flops: float | None = None, **keys: Any) -> TrainConfig:
    settings = TypeAdapter(TrainConfig).validate_python(keys)
    return resolve(settings, data, torch.device(device), flops)


def test_auto_for_tables_and_tokens() -> None:
    small = resolved(table(20))
    assert (small.batch, small.micro_batch, small.validate_every, small.checkpoint_every) == (20, 20, 1, 1)
    assert (small.log_every, small.compile) == (1, False)
    assert resolved(table(30_000)).batch == 512
    assert resolved(table(30_000), budget={"epochs": 10.0}).validate_every == 59
    words = resolved(tokens(400), budget={"tokens": 24_000})
    assert (words.batch, words.validate_every) == (128, 3)
    assert resolved(tokens(400), device="cuda").compile is True
    texts = replace(tokens(400), scored=torch.arange(400).numpy())  # whose batches have many shapes
    assert resolved(texts, device="cuda").compile is False
    assert resolved(tokens(400), flops=1e12, budget={"steps": 5000}).compile is True
    timed = resolved(tokens(400), budget={"time": "5s"})
    assert (timed.validate_every, timed.checkpoint_every, timed.log_every) == ("auto", "auto", 20)


def test_refused_settings() -> None:
    with pytest.raises(ConfigError, match="this dataset has rows"):
        resolved(table(), budget={"tokens": 100})
    with pytest.raises(ValueError, match="must be a multiple of micro_batch"):
        config(batch=7, micro_batch=2)
    assert resolved(table(20), batch=64, micro_batch=32).batch == 20


def test_a_failing_compiler_is_said_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any, **keys: Any) -> Any:
        def call(*arguments: Any) -> Any:
            raise RuntimeError("no C++ compiler\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    result = run("mlp", tmp_path / "compiled", config(compile=True))
    assert result.config.compile is False
    assert result.notes == ["torch.compile failed, training goes on without it (no C++ compiler)"]
    monkeypatch.undo()
    run("mlp", tmp_path / "eager", config())
    assert final(tmp_path / "compiled") == final(tmp_path / "eager")


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_compiled_resume_changes_no_bit(tmp_path: Path) -> None:
    settings = config(compile=True, log_every=1)
    result = run("mlp", tmp_path / "straight", settings)
    if not result.config.compile:
        pytest.skip(result.notes[0])
    with pytest.raises(Crash):
        run("mlp", tmp_path / "killed", settings, crash_at=4)
    assert run("mlp", tmp_path / "killed", settings).resumed_from == 3
    assert final(tmp_path / "killed") == final(tmp_path / "straight")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_gives_advice(error: Exception) -> None:
    with (
        pytest.raises(MemoryLimitError, match=r"with 6 rows at once; finetune\.micro_batch: 3 needs less"),
        out_of_memory(lambda: 6, "finetune"),
    ):
        raise error
    with (
        pytest.raises(MemoryLimitError, match=r"with 1 row at once; a smaller model"),
        out_of_memory(lambda: 1),
    ):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory(lambda: 1):
        raise RuntimeError("shapes do not match")


def test_meter_leaves_out_first_steps_and_what_stands_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = Meter(rows=10, tokens_per_row=4, flops_per_row=8.0, peak=800.0)
    for seconds in (100.0, 50.0, 20.0, 1.0, 1.0):
        now[0] += seconds
        meter.step(work=0.75, waited=0.25)
    with meter.aside():
        now[0] += 500.0
    assert meter.line() == {"tokens_per_second": 40.0, "peak_share": 0.1, "waiting": 0.25}
    now[0] += 3.0
    meter.step(work=0.75)
    line = meter.line()
    assert line["tokens_per_second"] == pytest.approx(40 / 3)
    assert line["waiting"] == 0
    assert meter.line() == {}
    assert meter.summary() == {
        "tokens_per_second": pytest.approx(24),
        "peak_share": pytest.approx(0.06),
        "overhead": 0.55,
        "waiting": 0.1,
    }
    assert meter.left(6) == 10.0
    assert Meter(rows=1).left(5) is None
    assert Meter(rows=1).summary() == {}
    assert Cancelled.exit_code == 130
