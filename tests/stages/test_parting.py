"""FSDP: a model in parts learns what a whole one does, and its checkpoints go on with any number of ranks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import nn

from llmtool.core import checkpoint, files, joint, ranks
from llmtool.core.contracts import Classes, Features, NextToken, Tokens
from llmtool.core.errors import Interrupted, LlmtoolError
from llmtool.core.shards import in_parts, whole
from llmtool.models import peft_files, pretrained
from llmtool.models.adapters import LoRAConfig
from llmtool.models.mlp import MLPConfig
from llmtool.models.shards import cut_of
from llmtool.models.transformer import TransformerConfig
from llmtool.stages import fit as stage
from llmtool.training import TrainConfig
from llmtool.training.parallel import ParallelConfig
from tests.stages.test_fit import Toy
from tests.training.toys import table, tokens
from tests.two import run_ranks

LORA = LoRAConfig(kind="lora", rank=2, dropout=0.1)
STEPS = {"budget": {"steps": 20}, "log_every": 1, "checkpoint_every": 10, "validate_every": 5}
CASES: dict[str, dict[str, Any]] = {  # model/optimizer -> how it is trained
    "mlp/adamw": {"batch": 12, "micro_batch": 2, "clip": 0.1},
    "mlp/sgd": {"batch": 12, "optimizer": {"name": "sgd", "lr": 0.01}},
    "llama/adamw": {"batch": 12, "micro_batch": 2, "ema": 0.9, "activation_checkpointing": "all"},
    "llama/muon": {"batch": 12, "micro_batch": 2, "optimizer": {"name": "muon", "weight_decay": 0.01}},
    "lora/adamw": {"batch": 12, "micro_batch": 2, "ema": 0.9, "guard": {"action": "skip"}},
}
HELD = "llama/adamw"  # its checkpoints are in memory before they are written, as on a GPU
OFFLOADED = "llama/muon"  # on a CPU the same place, but by the same path
CHANGING = ("llama/adamw", "llama/muon")  # these with other numbers of ranks on the way


@dataclass
class Saved(Toy):
    """A toy whose weights are saved as those of every model are."""

    lora: bool = False

    def save(self, directory: Path) -> None:
        if self.lora:
            peft_files.save_adapter(self.model, directory, LORA, base="base")
        else:
            pretrained.save(self.model, directory)

    def save_together(self, directory: Path) -> list[Path]:
        if self.lora:
            ranks.agreeing(lambda: self.save(directory))
            return []
        return pretrained.save_together(self.model, directory)

    def restore(self, directory: Path) -> None:
        if self.lora:
            peft_files.load_adapter(self.model, directory)
        else:
            pretrained.restore(self.model, directory)

    goes_on_from = restore


class Silent:
    kill_at: int | None = None

    def row(self, row: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...


def toy(case: str) -> Saved:
    torch.manual_seed(0)
    kind = case.split("/")[0]
    if kind == "mlp":  # uneven among two and three: rows of a matrix that some ranks have fewer of, or none
        return Saved(MLPConfig(hidden=[16, 13]).build(Features(4), Classes(3)), table(50))
    shape = TransformerConfig(depth=2, heads=2, width=16, context=6, dropout=0.1)
    model: nn.Module = shape.build(Tokens(11, None), NextToken(11))
    if kind == "lora":
        LORA.apply(model, 1)
    return Saved(model, tokens(30), lora=kind == "lora")


def config_of(case: str) -> TrainConfig:
    kind = {"optimizer": {"name": case.split("/")[1]}}
    return TypeAdapter(TrainConfig).validate_python(STEPS | kind | CASES[case])


def trained(case: str, directory: Path, data: str = "fsdp", stop: int | None = None) -> dict[str, np.ndarray]:
    """Train (on), by a signal to the first rank until step `stop`; the weights that are then in memory."""
    record, holds = stage._Session.record, stage.Saver.holds

    def watched(self: Any, row: dict[str, Any]) -> None:
        record(self, row)
        if row["step"] == stop and "loss" in row and ranks.here().first:
            os.kill(os.getpid(), signal.SIGTERM)

    assembled: Any = toy(case)
    there = case == OFFLOADED and data == "fsdp"
    parallel = ParallelConfig(data=data, offload=there)  # type: ignore[arg-type]
    how = {"progress": Silent(), "resume": True, "parallel": parallel}
    stage._Session.record = watched  # type: ignore[method-assign]
    stage.Saver.holds = case == HELD  # type: ignore[assignment, method-assign]
    try:
        stage.fit(assembled, config_of(case), directory / case, **how)  # type: ignore[arg-type]
    except Interrupted:
        assert stop
    finally:
        stage._Session.record = record  # type: ignore[method-assign]
        stage.Saver.holds = holds  # type: ignore[method-assign]
    assert in_parts(assembled.model) == (data == "fsdp" and ranks.here().size > 1)
    if (made := cut_of(assembled.model)) is not None:
        made.rest()
    return {name: whole(each).numpy() for name, each in assembled.model.state_dict().items()}


def saved_again(case: str, directory: Path, data: str, name: str) -> None:
    """Read the last checkpoint, and write what was read to another."""
    parallel = ParallelConfig(data=data)  # type: ignore[arg-type]
    session = stage._Session(toy(case), config_of(case), directory / case, Silent(), parallel=parallel)  # type: ignore[arg-type]
    session.begin(True)
    if session.cut is not None:
        write = lambda place: session.saver.write_together(place, session.state, session.config)  # noqa: E731
        joint.begin(directory / case / "again", name, write)()
    elif ranks.here().first:
        write_alone = lambda place: session.saver.write(place, session.state, session.config)  # noqa: E731
        checkpoint.save(directory / case / "again", name, write_alone)


def everything(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whichever file it is in."""
    paths = sorted(directory.rglob("*.safetensors"))
    found = [(path.name.split("-")[0].split(".")[0], load_file(path)) for path in paths]
    return {f"{stem}/{name}": each for stem, tensors in found for name, each in tensors.items()}


def lines(directory: Path) -> np.ndarray:
    """Loss and norm of each step, loss of each validation."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    figures = [[row["loss"], row["norm"]] if "loss" in row else [row["validation"]["loss"]] for row in rows]
    return np.concatenate(figures)


def all_cases(
    directory: Path, data: str = "fsdp", stop: int | None = None, cases: Sequence[str] = tuple(CASES)
) -> dict[str, dict[str, np.ndarray]]:
    return {case: trained(case, directory, data, stop) for case in cases}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained by one process."""
    directory = tmp_path_factory.mktemp("one")
    all_cases(directory)
    return directory


def same(one: Path, other: Path, cases: Sequence[str] = tuple(CASES)) -> None:
    for case in cases:
        np.testing.assert_allclose(lines(other / case), lines(one / case), rtol=1e-5, err_msg=case)
        expected, found = everything(one / case / "last"), everything(other / case / "last")
        assert expected.keys() == found.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=2e-6)


def in_files(memory: dict[str, np.ndarray], case: str, directory: Path) -> bool:
    """Whether the weights that were in memory are those in the files, bit for bit."""
    names = everything(directory)
    if "ema" in CASES[case]:
        names = {name.removeprefix("weights/"): each for name, each in names.items() if "weights/" in name}
    elif case.startswith("mlp") or case.startswith("llama"):
        names = {name.removeprefix("model/"): each for name, each in names.items() if "model/" in name}
    assert names
    return all(np.array_equal(memory[name], each.numpy()) for name, each in names.items() if name in memory)


def test_two_in_parts_are_as_one(one: Path, tmp_path: Path) -> None:
    """Loss, norm, weights and optimizer after 20 steps, accumulated, clipped, averaged and recomputed."""
    first, second = run_ranks(all_cases, 2, tmp_path)
    same(one, tmp_path)
    for case in CASES:
        last = tmp_path / case / "last"
        checkpoint.verify(last.resolve())
        assert in_files(first[case], case, last)
        assert in_files(second[case], case, last)
        if not case.startswith("lora"):  # an ordinary directory of Hugging Face's
            assert (last / "model-00002-of-00002.safetensors").is_file()
            pretrained.load(last)


def three(directory: Path) -> None:
    """Replicas until step 4; what they left read and written again both ways; on in parts until step 9."""
    all_cases(directory, "ddp", 4, CHANGING)
    for case in CHANGING:
        if ranks.here().first:
            shutil.copytree((directory / case / "last").resolve(), directory / case / "before")
        saved_again(case, directory, "ddp", "ddp")
        saved_again(case, directory, "fsdp", "fsdp")
    all_cases(directory, "fsdp", 9, CHANGING)


def test_other_numbers_of_ranks_go_on(one: Path, tmp_path: Path) -> None:
    """Three with the whole model, three with parts, one, two with parts: what is written is what was read,
    bit for bit, and the run is that of one process."""
    run_ranks(three, 3, tmp_path)
    for case in CHANGING:
        before = everything(tmp_path / case / "before")
        for name in ("ddp", "fsdp"):
            found = everything(tmp_path / case / "again" / name)
            assert before.keys() == found.keys()
            assert all(torch.equal(before[key], found[key]) for key in before)
        saved_again(case, tmp_path, "ddp", "one")
        left, found = everything(tmp_path / case / "last"), everything(tmp_path / case / "again" / "one")
        assert left.keys() == found.keys()
        assert all(torch.equal(left[key], found[key]) for key in left)
    all_cases(tmp_path, "ddp", 14, CHANGING)
    run_ranks(all_cases, 2, tmp_path, "fsdp", None, CHANGING)
    same(one, tmp_path, CHANGING)


def full_disk(directory: Path, operation: str, case: str) -> list[str]:
    """The second rank's disk is full: as it writes, or as its thread makes durable what is written. What each
    rank is told, and what it finds afterwards."""
    usual, said = getattr(files.fs, operation), []

    def full(path: Path, *other: Path) -> None:
        if ranks.here().rank == 1 and ".safetensors" in [path, *other][-1].suffixes:
            raise OSError(errno.ENOSPC, "no space")
        usual(path, *other)

    setattr(files.fs, operation, full)
    try:
        trained(case, directory)
    except LlmtoolError as error:
        said = [f"{type(error).__name__}: {error}"]
    finally:
        setattr(files.fs, operation, usual)
    ranks.gathered(None)
    return said + [path.name for path in (directory / case / "checkpoints").iterdir()]


@pytest.mark.parametrize(
    ("operation", "case"), [("rename", HELD), ("rename", "mlp/adamw"), ("sync", "mlp/adamw")]
)
def test_a_full_disk_on_one_rank(operation: str, case: str, tmp_path: Path) -> None:
    for said in run_ranks(full_disk, 2, tmp_path, operation, case):
        assert len(said) == 1  # no half checkpoint
        assert "RankFailedError: rank 1 of 2 on " in said[0]
        assert "no space left on the device" in said[0]
