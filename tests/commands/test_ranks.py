"""The same file gives the same training on one process and on two, and goes on with other numbers of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from llmtool.commands import Options, evaluate, finetune, train
from llmtool.core import ranks
from llmtool.core.errors import ConfigError, Interrupted, LlmtoolError
from llmtool.stages import fit
from tests.two import run_ranks

SETS = [
    "train.budget.steps=20", "train.log_every=1", "train.validate_every=5", "train.checkpoint_every=5",
    "train.ema=0.9",
]  # fmt: skip
MIXED = (
    "{format: mixture, parts: {tales: {format: text, path: story.txt, documents: blank}, "
    "people: {format: text, path: people.csv, documents: line}}}"
)
PROJECTS = {  # dropout is drawn by the place of a micro-batch: it is the same wherever that is computed
    "table": [*SETS, "train.batch=16", "train.micro_batch=4"],
    "text": [*SETS, "train.batch=4", "train.micro_batch=2", "train.optimizer.name=muon",
             f"data.source={MIXED}", "train.mixture={tales: 1, people: 1}"],
}  # fmt: skip


def trained(directory: Path, project: str, stops: dict[int, int] | None = None, *more: str) -> str:
    """Train in `directory`; stops: rank -> the step at which it alone gets a SIGTERM. How it ended."""
    record, at = fit._Session.record, (stops or {}).get(ranks.here().rank)

    def watched(self: Any, row: dict[str, Any]) -> None:
        record(self, row)
        if row["step"] == at and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    fit._Session.record = watched  # type: ignore[method-assign]
    try:
        with contextlib.chdir(directory):
            train.run(Options(f"{project}.yaml", [*PROJECTS[project], *more]))
        return "done"
    except Interrupted as error:
        return str(error)
    finally:
        fit._Session.record = record  # type: ignore[method-assign]


def both(directory: Path, *more: Any) -> dict[str, str]:
    """The same of both projects, in one process."""
    return {project: trained(directory, project, *more) for project in PROJECTS}


def seen(directory: Path, project: str) -> dict[int, list[float]]:
    """Loss, norm and rate of every step, loss on validation where there was one."""
    lines = (directory / "runs" / project / "train/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        (row["step"] if "loss" in row else -row["step"]): [row["loss"], row["norm"], row["lr"]]
        if "loss" in row
        else [value for name, value in row["validation"].items() if name.endswith("loss")]
        for row in rows
    }


def same(here: Path, there: Path) -> None:
    """One training beside the other: figures to 1e-5, weights and optimizer too."""
    for project in PROJECTS:
        one, two = seen(here, project), seen(there, project)
        assert one.keys() == two.keys()
        for step, figures in one.items():
            assert two[step] == pytest.approx(figures, rel=1e-5), (project, step)
        last = Path("runs") / project / "train/last"
        for path in sorted((here / last).rglob("*.safetensors")):
            expected = safetensors.torch.load_file(path)
            found = safetensors.torch.load_file(there / path.relative_to(here))
            torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-6)


@pytest.fixture(scope="module")
def straight(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both projects, trained by one process."""
    directory = Path(shutil.copytree(finished, tmp_path_factory.mktemp("one") / "run", symlinks=True))
    shutil.rmtree(directory / "runs/text/prepare")  # it is a mixture here
    for project in PROJECTS:
        shutil.rmtree(directory / "runs" / project / "train")
        assert trained(directory, project) == "done"
    return directory


def without_training(straight: Path, to: Path) -> Path:
    directory = Path(shutil.copytree(straight, to, symlinks=True))
    for project in PROJECTS:
        shutil.rmtree(directory / "runs" / project / "train")
    return directory


def test_two_are_as_one(straight: Path, tmp_path: Path) -> None:
    two = without_training(straight, tmp_path / "two")
    assert run_ranks(both, 2, two) == [{"table": "done", "text": "done"}] * 2
    same(straight, two)
    result = json.loads((two / "runs/table/train/result.json").read_text())
    assert result["status"] == "done"
    assert result["metrics"]["validation"]["log_loss"]


def in_parts(directory: Path) -> list[str]:
    """Both projects, each rank with a part of the model; then the text's model tuned so, by an update."""
    found = [trained(directory, "table", None, "parallel.data=fsdp")]
    found.append(trained(directory, "text", None, "parallel.data=fsdp", "train.optimizer.name=adamw"))
    tune = ["finetune.start=runs/text/train", "finetune.method.kind=lora", "finetune.budget.steps=4"]
    tune += ["finetune.batch=4", "parallel.data=fsdp", "train.optimizer.name=adamw", *SETS[1:2]]
    with contextlib.chdir(directory):
        finetune.run(Options("text.yaml", [*tune, *PROJECTS["text"][:-1]]))
    return found


def test_two_with_parts_of_the_model(straight: Path, tmp_path: Path) -> None:
    two = without_training(straight, tmp_path / "parts")
    shutil.rmtree(two / "runs/text/finetune", ignore_errors=True)
    assert run_ranks(in_parts, 2, two) == [["done", "done"]] * 2
    one = seen(straight, "table")
    found = seen(two, "table")
    assert one.keys() == found.keys()
    for step, figures in one.items():
        assert found[step] == pytest.approx(figures, rel=1e-5), step
    for stage in ("table/train", "text/train", "text/finetune"):
        result = json.loads((two / "runs" / stage / "result.json").read_text())
        assert result["status"] == "done"
        best = result["best"]
        assert result["metrics"]["validation"][best["metric"]] == pytest.approx(best["value"], rel=1e-6)
    assert (two / "runs/text/train/best/model-00002-of-00002.safetensors").is_file()
    with contextlib.chdir(two):  # by one process
        evaluate.run(Options("text.yaml", ["evaluate.of=runs/text/train", f"data.source={MIXED}"]))


def test_two_then_one_then_two(straight: Path, tmp_path: Path) -> None:
    """A signal to any one of them ends all at the same step; whoever goes on goes on with the same."""
    directory = without_training(straight, tmp_path / "changing")
    # received after step 6, told to the others in step 7, known to all in 8
    said = "interrupted by SIGTERM; the same command goes on from the checkpoint"
    assert run_ranks(both, 2, directory, {1: 6}) == [{"table": said, "text": said}] * 2
    for project in PROJECTS:
        assert (directory / "runs" / project / "train/last").resolve().name == "step-00000008"
        assert trained(directory, project, {0: 12}) == said
    assert run_ranks(both, 2, directory) == [{"table": "done", "text": "done"}] * 2
    same(straight, directory)


# dropout would draw for the tokens that a rank has; documents are packed, which ranks must know of each other
PACKED = ("model.dropout=0", "train.optimizer.name=adamw", "train.micro_batch=4")


WAYS = {
    "tokens": ["context=2"],
    "both": ["context=2", "data=fsdp"],
    "blocks": ["tensor=2"],
}  # on two ranks
ALL = {
    "all": ["context=2", "tensor=2"],
    "parts": ["tensor=2", "data=fsdp"],
    "muon_blocks": ["tensor=2"],
    "muon_parts": ["context=2", "tensor=2", "data=fsdp"],
    "gpt2_muon_parts": ["tensor=2", "data=fsdp"],  # several matrices in one, of which ranks hold other rows
}  # on four
ONE = ["text", "muon", "gpt2_muon"]  # by one process: what the names that begin so are compared with


def packed(directory: Path, name: str, *parallel: str, steps: int = 20) -> str:
    """The text in `runs/name`, by Muon or of GPT-2's architecture where the name says so."""
    more = [f"run=runs/{name}", *PACKED, f"train.budget.steps={steps}"]
    more += [f"parallel.{key}" for key in parallel]
    if "muon" in name:
        more.append("train.optimizer.name=muon")
    if "gpt2" in name:
        more.append("model.architecture=gpt2")
    return trained(directory, "text", None, *more)


def by_tokens(directory: Path) -> list[str]:
    """Each rank with half of the tokens of every row, or of the heads of every block."""
    return [packed(directory, name, *how) for name, how in WAYS.items()]


def by_all(directory: Path) -> list[str]:
    """The same in several ways at once, on four ranks; what cannot be is refused."""
    more = ("parallel.tensor=2", "run=runs/wrong", *PACKED, "model.heads=1")
    with pytest.raises(ConfigError, match=r": parallel\.tensor: "):
        trained(directory, "text", None, *more)
    return [packed(directory, name, *how) for name, how in ALL.items()]


def going_on(directory: Path) -> str:
    return packed(directory, "gpt2_muon_parts", *ALL["gpt2_muon_parts"], steps=24)


def test_two_with_parts_of_rows_or_blocks(straight: Path, tmp_path: Path) -> None:
    two = without_training(straight, tmp_path / "tokens")
    assert [packed(two, name) for name in ONE] == ["done"] * len(ONE)
    assert run_ranks(by_tokens, 2, two) == [["done"] * len(WAYS)] * 2
    assert run_ranks(by_all, 4, two) == [["done"] * len(ALL)] * 4
    for name in [*WAYS, *ALL]:
        like = next((one for one in ONE if name.startswith(one)), "text")
        one, found = seen(two, like), seen(two, name)
        assert one.keys() == found.keys()
        for step, figures in one.items():
            assert found[step] == pytest.approx(figures, rel=1e-5), (name, step)
    for name in ("all", "muon_parts", "gpt2_muon_parts"):  # by one process
        with contextlib.chdir(two):
            again = evaluate.run(
                Options("text.yaml", [f"evaluate.of=runs/{name}/train", f"data.source={MIXED}", *PACKED])
            )
        result = json.loads((two / "runs" / name / "train/result.json").read_text())
        expected = result["metrics"]["validation"]["loss"]
        assert again["metrics"]["validation"]["loss"] == pytest.approx(expected, rel=1e-5)
        assert packed(two, name, steps=22) == "done"
    shutil.copytree(two / "runs/gpt2_muon_parts", two / "runs/gpt2_muon_alone", symlinks=True)
    assert packed(two, "gpt2_muon_alone", steps=24) == "done"
    assert run_ranks(going_on, 4, two) == ["done"] * 4
    alone, found = seen(two, "gpt2_muon_alone"), seen(two, "gpt2_muon_parts")
    assert len(found) == len(alone) > 24
    for step, figures in alone.items():
        assert found[step] == pytest.approx(figures, rel=1e-5), step


def uneven(directory: Path) -> str:
    try:
        trained(directory, "table", None, "train.batch=15", "train.micro_batch=5")
    except LlmtoolError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def test_a_batch_that_cannot_be_cut(straight: Path, tmp_path: Path) -> None:
    directory = without_training(straight, tmp_path / "uneven")
    for said in run_ranks(uneven, 2, directory):
        assert "train.batch: 15 rows cannot be cut among 2 ranks equally (nearest: 14 or 16)" in said
