"""Memory that runs out in a run: fewer rows at once, nothing else changes, and a resumed run keeps to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmtool.core import checkpoint
from llmtool.core.contracts import Batch, Loss
from llmtool.core.errors import MemoryLimitError
from llmtool.core.seeds import seed_torch
from llmtool.stages.fit import FitResult, fit
from llmtool.stages.lowering import AtOnce
from llmtool.training import TrainConfig
from llmtool.training.loop import Loop
from tests.stages.test_fit import OPTIMIZERS, Crash, Toy, Watcher, config, final
from tests.training.toys import ToyMLP, ToyTask, ToyTransformer, table, tokens

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


class Tight(ToyTask):
    """A task on a device where more than `most` rows do not fit, from its so many-th use on.

    place: forward, backward or scoring.
    """

    def __init__(self, most: int, place: str = "forward", after: int = 0) -> None:
        self.most, self.place, self.after, self.uses = most, place, after, 0

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        loss = super().loss(model, batch)
        if not torch.is_grad_enabled():
            return loss
        self.uses += 1
        if len(batch) > self.most and self.uses > self.after:
            if self.place == "forward":
                raise FULL
            if self.place == "backward":
                loss.total.register_hook(_raise)
        return loss

    def measure(self, model: nn.Module, batch: Batch) -> Any:
        if self.place == "scoring" and len(batch) > self.most:
            raise FULL
        return super().measure(model, batch)


def _raise(gradient: torch.Tensor) -> None:
    raise FULL


def toy(kind: str, task: ToyTask | None = None) -> Toy:
    seed_torch(5, "initialise")
    task = task or ToyTask()
    if kind == "norms":
        model = ToyMLP(dropout=0.2)
        norm = nn.BatchNorm1d(8)
        norm.num_batches_tracked = None  # as ours, which has no use for it
        model.layers.insert(1, norm)
        return Toy(model, table(20), task=task)
    if kind == "mlp":
        return Toy(ToyMLP(dropout=0.2), table(20), task=task)
    return Toy(ToyTransformer(dropout=0.2, tied=True), tokens(20), task=task)


def train(part: Toy, directory: Path, settings: TrainConfig, **keys: Any) -> FitResult:
    watch = Watcher(keys.pop("crash_at", None))
    return fit(part, settings, directory, progress=watch, resume=True, **keys)


def outcome(directory: Path) -> dict[str, Any]:
    """All that must be equal; how many rows were asked for at first is told apart."""
    found = final(directory)
    found["state"].pop("rows")
    return found


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("place", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["transformer", "norms"])
def test_what_never_fitted_is_a_run_that_began_with_fewer(
    kind: str, place: str, optimizer: str, tmp_path: Path
) -> None:
    settings = config(optimizer=OPTIMIZERS[optimizer], batch=12, micro_batch=12, ema=0.9)
    result = train(toy(kind, Tight(3, place)), tmp_path / "lowered", settings)
    train(toy(kind), tmp_path / "small", settings.model_copy(update={"micro_batch": 3}))
    assert outcome(tmp_path / "lowered") == outcome(tmp_path / "small")
    sizes = [(12, 6), (6, 4), (4, 3)]
    assert result.lowered == [{"step": 1, "from": a, "to": b} for a, b in sizes]
    assert result.config.micro_batch == 3
    assert len(result.notes) == 3
    assert result.notes[0].startswith(
        "step 1 does not fit into memory with 12 rows at once: from here on 6 ("
    )
    told = "its figures are those of train.micro_batch: 6, not of 12" if kind == "norms" else "stays 12 rows"
    assert told in result.notes[0]


@pytest.mark.parametrize(("kind", "place"), [("mlp", "forward"), ("transformer", "backward")])
def test_in_the_middle_of_a_run(kind: str, place: str, tmp_path: Path) -> None:
    """The steps before are as they were, those after are of fewer rows: as if the file had been changed."""
    settings = config(batch=12, micro_batch=6, log_every=1)  # two parts a step
    parts = toy(kind, Tight(3, place, after=7))  # the second part of step 4: half its gradient is there
    result = train(parts, tmp_path / "lowered", settings)
    assert result.lowered == [{"step": 4, "from": 6, "to": 4}, {"step": 4, "from": 4, "to": 3}]
    with pytest.raises(Crash):
        train(toy(kind), tmp_path / "changed", settings, crash_at=4)  # the last checkpoint is of step 3
    train(toy(kind), tmp_path / "changed", settings.model_copy(update={"micro_batch": 3}))
    assert outcome(tmp_path / "lowered") == outcome(tmp_path / "changed")


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_resumed_run_goes_on_with_what_it_had(step: int, tmp_path: Path) -> None:
    """Killed before and after its memory ran out in step 4: every bit as in one that was never stopped."""
    settings = config(batch=12, micro_batch=6, log_every=1)
    train(toy("transformer", Tight(3, after=7)), tmp_path / "straight", settings)
    killed = tmp_path / "killed"
    with pytest.raises(Crash):
        train(toy("transformer", Tight(3, after=7)), killed, settings, crash_at=step)
    saved = max(0, step - 1)
    result = train(toy("transformer", Tight(3, after=7 - 2 * saved if saved < 4 else 0)), killed, settings)
    assert result.resumed_from == saved
    assert final(killed) == final(tmp_path / "straight")
    assert result.lowered == [{"step": 4, "from": 6, "to": 4}, {"step": 4, "from": 4, "to": 3}]


def test_the_written_experiment_says_what_is_used(tmp_path: Path) -> None:
    as_yaml: Callable[[TrainConfig], str] = lambda resolved: f"{resolved.batch} {resolved.micro_batch}"  # noqa: E731
    settings = config(batch=12, micro_batch="auto")
    train(toy("mlp", Tight(4)), tmp_path, settings, as_yaml=as_yaml)
    assert (tmp_path / "experiment.yaml").read_text() == "12 4"
    train(toy("mlp"), tmp_path, settings, as_yaml=as_yaml)  # done: it has nothing to do, and keeps it
    assert (tmp_path / "experiment.yaml").read_text() == "12 4"
    kept = json.loads((tmp_path / "last" / "state" / "loop.json").read_text())["rows"]
    assert (kept["asked"], kept["batch"], kept["micro_batch"]) == (
        {"batch": 12, "micro_batch": "auto"},
        12,
        4,
    )


def test_a_file_that_asks_for_others_gets_them(tmp_path: Path) -> None:
    settings = config(batch=12, micro_batch=12)
    first, kept = AtOnce.of(settings), AtOnce.of(settings)
    lowered, _ = first.fewer(settings, ToyMLP(), 1, "train")
    saved = first.document(lowered)
    assert kept.resumed(saved, settings).micro_batch == 6
    other = settings.model_copy(update={"micro_batch": 4})
    kept = AtOnce.of(other)
    assert kept.resumed(saved, other).micro_batch == 4
    assert kept.lowered == [{"step": 1, "from": 12, "to": 6}]  # what happened stays told
    assert AtOnce.of(settings).resumed(None, settings) is settings  # a checkpoint of an earlier version


@pytest.mark.parametrize(("kind", "least"), [("mlp", "1 row"), ("norms", "2 rows")])
def test_it_ends_where_no_fewer_rows_can_be(kind: str, least: str, tmp_path: Path) -> None:
    with pytest.raises(MemoryLimitError, match=f"^out of memory with {least} at once; a smaller") as error:
        train(toy(kind, Tight(0)), tmp_path, config())
    assert error.value.exit_code == 6
    assert not (tmp_path / "last").exists()


def test_any_other_error_ends_the_run(tmp_path: Path) -> None:
    class Broken(ToyTask):
        def loss(self, model: nn.Module, batch: Batch) -> Loss:
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        train(toy("mlp", Broken()), tmp_path, config())


# --- in the update itself ---


@pytest.fixture
def update_fails(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Memory runs out in the update of a step with more than 3 rows: before anything moved, or after."""
    plan: dict[str, Any] = {"step": None, "moved": False}
    original = Loop._step

    def step(self: Loop, number: int, *rest: Any) -> None:
        fails = number == plan["step"] and self.plan.micro_batch > 3
        if fails and not plan["moved"]:
            raise FULL
        original(self, number, *rest)
        if fails:
            raise FULL

    monkeypatch.setattr(Loop, "_step", step)
    return plan


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_update_that_has_moved_nothing_is_made_again(
    optimizer: str, tmp_path: Path, update_fails: dict[str, Any]
) -> None:
    settings = config(optimizer=OPTIMIZERS[optimizer], batch=12, micro_batch=12)
    update_fails["step"] = 0
    result = train(toy("mlp"), tmp_path / "lowered", settings)
    assert [row["to"] for row in result.lowered] == [6, 4, 3]
    train(toy("mlp"), tmp_path / "small", settings.model_copy(update={"micro_batch": 3}))
    assert outcome(tmp_path / "lowered") == outcome(tmp_path / "small")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_update_that_was_half_made_goes_back_to_the_checkpoint(
    optimizer: str, tmp_path: Path, update_fails: dict[str, Any]
) -> None:
    keys = {"checkpoint_every": 2, "validate_every": 7}
    settings = config(optimizer=OPTIMIZERS[optimizer], batch=12, micro_batch=6, **keys)
    update_fails |= {"step": 3, "moved": True}  # the checkpoint before it is of step 2
    result = train(toy("mlp"), tmp_path / "lowered", settings)
    assert [row["to"] for row in result.lowered] == [4, 3]
    assert "goes on from step 2" in result.notes
    update_fails["step"] = None
    with pytest.raises(Crash):
        train(toy("mlp"), tmp_path / "changed", settings.model_copy(update={"log_every": 1}), crash_at=3)
    train(toy("mlp"), tmp_path / "changed", settings.model_copy(update={"micro_batch": 3}))
    for part in ("weights", "optimizer", "best"):
        assert outcome(tmp_path / "lowered")[part] == outcome(tmp_path / "changed")[part]


def test_half_made_without_a_checkpoint_ends(tmp_path: Path, update_fails: dict[str, Any]) -> None:
    update_fails |= {"step": 0, "moved": True}
    with pytest.raises(
        MemoryLimitError, match=r"before a checkpoint: begin again with train\.micro_batch: 6"
    ):
        train(toy("mlp"), tmp_path, config(batch=12, micro_batch=12))


# --- scoring, compiling ---


def test_scoring_takes_fewer_rows_too(tmp_path: Path) -> None:
    settings = config(select={"metric": "loss", "mode": "min"})  # tried on the first rows before training
    result = train(toy("mlp", Tight(7, "scoring")), tmp_path / "lowered", settings)
    assert [note.split(" (")[0] for note in result.notes] == [
        "validation does not fit into memory with 4096 rows at once: 4 from here on"
    ]
    train(toy("mlp"), tmp_path / "whole", settings)
    whole, lowered = (json_rows(tmp_path / name) for name in ("whole", "lowered"))
    for one, other in zip(whole, lowered, strict=True):
        assert one["step"] == other["step"]
        if "validation" in one:
            assert one["validation"]["loss"] == pytest.approx(other["validation"]["loss"], rel=1e-6)
    rows = json.loads((tmp_path / "lowered" / "last" / "state" / "loop.json").read_text())["rows"]
    assert rows["scoring"] == 4


def json_rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_a_compiled_step_is_compiled_again_for_fewer_rows(tmp_path: Path) -> None:
    """Out of memory while the graph is tried, and again in the middle of the run."""
    settings = config(compile=True, batch=12, micro_batch=12, log_every=1)
    part = toy("mlp")
    fails: dict[int, int] = {12: 0, 6: 4}  # so many rows at once do not fit after so many uses
    original = part.task.loss
    part.task.loss = lambda model, batch: _Failing.apply_to(original(model, batch), fails, len(batch))
    result = train(part, tmp_path / "lowered", settings)
    if not result.config.compile:
        pytest.skip(result.notes[-1])
    assert [(row["from"], row["to"]) for row in result.lowered] == [(12, 6), (6, 4)]
    assert result.lowered[0]["step"] == 1
    straight = toy("mlp")
    straight.task.loss = lambda model, batch: _Failing.apply_to(original(model, batch), {}, len(batch))
    first = result.lowered[1]["step"]
    with pytest.raises(Crash):
        train(straight, tmp_path / "changed", settings.model_copy(update={"micro_batch": 6}), crash_at=first)
    straight = toy("mlp")
    straight.task.loss = part.task.loss
    train(straight, tmp_path / "changed", settings.model_copy(update={"micro_batch": 4}))
    assert outcome(tmp_path / "lowered") == outcome(tmp_path / "changed")
    assert checkpoint.steps(tmp_path / "lowered" / "checkpoints")


class _Failing(torch.autograd.Function):
    """Nothing, but for a backward pass that does not fit; outside of what the compiler sees."""

    @staticmethod
    def apply_to(loss: Loss, fails: dict[int, int], rows: int) -> Loss:
        if rows in fails:
            loss.total.register_hook(lambda gradient: _count_down(fails, rows))
        return loss


@torch._dynamo.disable
def _count_down(fails: dict[int, int], rows: int) -> None:
    fails[rows] -= 1
    if fails[rows] < 0:
        raise FULL
