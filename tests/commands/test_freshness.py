"""A command whose inputs have not changed does nothing; one that runs again says what changed."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtool import __version__ as llmtool_version
from llmtool.commands import keys
from llmtool.core import environment, files
from tests.conftest import COMMANDS, Run

Tree = dict[str, tuple[int, int, str]]


def tree(directory: Path) -> Tree:
    """Every file below, with its times and what it holds; locks are touched by whoever looks for one."""
    found = {}
    for path in sorted(directory.rglob("*")):
        about = path.lstat()
        held = os.readlink(path) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else ""
        found[str(path.relative_to(directory))] = (about.st_mtime_ns, about.st_ino, held)
    return found


def changed(before: Tree, after: Tree) -> set[str]:
    """The stages in which anything differs."""
    paths = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    return {Path(path).parts[0] for path in paths} - {".lock", ".previous", ".cache"}


def run_all(llmtool: Run, cwd: Path, *more: str, config: str = "table.yaml") -> str:
    """Run all five commands; what they said on stderr."""
    said = ""
    for command in COMMANDS:
        ended = llmtool(command, config, *more, cwd=cwd)
        assert ended.code == 0, ended.err
        said += ended.err
    return said


@pytest.mark.parametrize("project", ["table", "text"])
def test_a_second_time_nothing_is_touched(copy: Path, llmtool: Run, project: str) -> None:
    before = tree(copy)
    assert run_all(llmtool, copy, config=f"{project}.yaml") == ""
    assert tree(copy) == before
    ended = llmtool("train", f"{project}.yaml", cwd=copy)
    assert f"train: nothing has changed; runs/{project}/train stands" in ended.out
    assert "accuracy" in llmtool("evaluate", f"{project}.yaml", cwd=copy).out  # figures are shown again


def test_a_touched_file_with_the_same_bytes_is_no_change(copy: Path, llmtool: Run) -> None:
    before = tree(copy / "runs")
    os.utime(copy / "people.csv")
    text = (copy / "table.yaml").read_text()
    (copy / "table.yaml").write_text(
        "# a comment\n" + text.replace("budget: {steps: 12}", "budget:  {steps: 12}")
    )
    run_all(llmtool, copy)
    assert tree(copy / "runs") == before


def test_a_changed_byte_of_the_input_reruns_everything_that_saw_it(copy: Path, llmtool: Run) -> None:
    text = (copy / "people.csv").read_text().splitlines()
    text[5] = text[5].replace(text[5].split(",")[0], "81", 1)
    (copy / "people.csv").write_text("\n".join(text) + "\n")
    before = tree(copy / "runs/table")
    ended = llmtool("train", "table.yaml", cwd=copy)  # must not train on rows that are not the file's
    assert ended.code == 4
    assert "runs/table/prepare is not the dataset of this file (people.csv: contents changed)" in ended.error
    assert "run `llmtool prepare table.yaml` first" in ended.error
    said = run_all(llmtool, copy)
    assert "prepare: people.csv: contents changed" in said
    assert "train: dataset: contents changed" in said
    assert changed(before, tree(copy / "runs/table")) == set(COMMANDS)
    assert (copy / "runs/table/.previous/train/best/model.safetensors").is_file()
    assert run_all(llmtool, copy) == ""


@pytest.mark.parametrize(
    ("override", "stages", "line"),
    [
        ("evaluate.require={test.accuracy: '>=0.2'}", {"evaluate"}, "require.test.accuracy: >=0.1 -> >=0.2"),
        ("finetune.budget.steps=4", {"finetune", "evaluate"}, "finetune.budget.steps: 3 -> 4"),
        ("train.optimizer={name: sgd, lr: 0.01}",
         {"describe", "train", "finetune", "evaluate"}, "train: train.optimizer.name: adamw -> sgd"),
        ("model.hidden=[9]",
         {"describe", "train", "finetune", "evaluate"}, "train: model.hidden: [8] -> [9]"),
        ("data.encode.scale=quantile", set(COMMANDS), "prepare: data.encode.scale: standard -> quantile"),
        ("seed=4", set(COMMANDS), "prepare: seed: 3 -> 4"),
    ],
)  # fmt: skip
def test_a_changed_key_reruns_just_what_reads_it(
    copy: Path, llmtool: Run, override: str, stages: set[str], line: str
) -> None:
    before = tree(copy / "runs/table")
    said = run_all(llmtool, copy, "--set", override)
    assert changed(before, tree(copy / "runs/table")) == stages
    assert line in said
    assert run_all(llmtool, copy, "--set", override) == ""


# --- bytes of inputs --------------------------------------------------------------------------------------

DICT = "{train: part/one.csv, test: part/two.csv}"
# What a file names -> (project, settings, the file in which a byte is flipped).
INPUTS: dict[str, tuple[str, dict[str, str], str]] = {
    "a table": ("table", {}, "people.csv"),
    "a text": ("text", {}, "story.txt"),
    "a packed table": ("table", {"data.source.path": "people.csv.gz"}, "people.csv.gz"),
    "one of a list": ("table", {"data.source.path": "[part/one.csv, part/two.csv]"}, "part/two.csv"),
    "one of a folder": ("table", {"data.source.path": "part"}, "part/one.csv"),
    "one of a glob": ("table", {"data.source.path": "'part/*.csv'"}, "part/two.csv"),
    "one of the splits": ("table", {"data.source.path": DICT, "data.split": "{by: files}"}, "part/two.csv"),
    "a tokenizer": ("text", {"data.encode.tokenizer": "{kind: file, path: tok}"}, "tok/tokenizer.json"),
    "its end token": (
        "text",
        {"data.encode.tokenizer": "{kind: file, path: tok}"},
        "tok/tokenizer_config.json",
    ),
    "an encoder": (
        "table",
        {"data.encode": "{as: features, target: income, like: runs/table/prepare}"},
        "runs/table/prepare/card.json",
    ),
    "a tokenizer of a dataset": (
        "text",
        {"data.encode": "{as: tokens, like: runs/text/prepare}"},
        "runs/text/prepare/card.json",
    ),
}


def flip(path: Path) -> None:
    """Change one byte in place, of JSON a blank and of a table a digit, without telling by size or time."""
    before = path.stat()
    data = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    old, new = {".json": (b"\n ", b"\n\t"), ".txt": (b"e", b"a")}.get(path.suffix, (b"4", b"5"))
    place = data.index(old, len(data) // 2)
    data[place : place + len(new)] = new
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def inputs(copy: Path) -> Path:
    """The finished directory with more files that a config may name."""
    head, *rows = (copy / "people.csv").read_text().splitlines()
    (copy / "part").mkdir()
    for name, part in (("one", rows[:200]), ("two", rows[200:])):
        (copy / f"part/{name}.csv").write_text("\n".join([head, *part]) + "\n")
    (copy / "people.csv.gz").write_bytes(gzip.compress((copy / "people.csv").read_bytes()))
    (copy / "tok").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(copy / "runs/text/prepare" / name, copy / "tok")
    return copy


@pytest.mark.parametrize("kind", INPUTS)
def test_a_flipped_byte_of_any_input_is_seen_and_named(inputs: Path, llmtool: Run, kind: str) -> None:
    project, sets, name = INPUTS[kind]
    command = [f"{project}.yaml", "--set", "run=runs/new"]
    for key, value in sets.items():
        command += ["--set", f"{key}={value}"]
    assert llmtool("prepare", *command, cwd=inputs).code == 0
    before = tree(inputs / "runs/new")
    assert "nothing has changed" in llmtool("prepare", *command, cwd=inputs).out
    assert tree(inputs / "runs/new") == before
    flip(inputs / name)
    refused = llmtool("train", *command, cwd=inputs)
    assert refused.code == 4
    assert f"runs/new/prepare is not the dataset of this file ({name}: contents changed)" in refused.error
    ended = llmtool("prepare", *command, cwd=inputs)
    assert ended.code == 0, ended.err
    assert ended.err == f"prepare: {name}: contents changed\n"


def test_a_file_that_joins_a_folder_is_an_input_too(inputs: Path, llmtool: Run) -> None:
    command = ["prepare", "table.yaml", "--set", "run=runs/new", "--set", "data.source.path=part"]
    assert llmtool(*command, cwd=inputs).code == 0
    (inputs / "part/one.csv").rename(inputs / "part/three.csv")
    said = llmtool(*command, cwd=inputs).err
    assert said == "prepare: part/three.csv: new\nprepare: part/one.csv: not read any more\n"


def test_a_renamed_source_trains_nothing_again_but_predictions_name_it(copy: Path, llmtool: Run) -> None:
    (copy / "people.csv").rename(copy / "persons.csv")
    before = tree(copy / "runs/table")
    said = run_all(llmtool, copy, "--set", "data.source.path=persons.csv")
    assert changed(before, tree(copy / "runs/table")) == {"prepare", "evaluate"}
    assert "evaluate: origin of the rows: contents changed" in said
    assert "persons.csv" in (copy / "runs/table/evaluate/predictions.csv").read_text()


def test_another_start_and_another_evaluation_to_compare_with(copy: Path, llmtool: Run) -> None:
    sets = ["--set", "run=runs/new", "--set", "evaluate.compare=runs/table"]
    sets += ["--set", "evaluate.of=runs/table/train"]
    for command in ("prepare", "finetune", "evaluate"):
        assert llmtool(command, "table.yaml", *sets, cwd=copy).code == 0
    before = tree(copy / "runs/new")
    for command in ("finetune", "evaluate"):
        assert llmtool(command, "table.yaml", *sets, cwd=copy).err == ""
    assert tree(copy / "runs/new") == before
    flip(copy / "runs/table/evaluate/report.json")
    ended = llmtool("evaluate", "table.yaml", *sets, cwd=copy)
    assert ended.err.startswith("evaluate: runs/table/evaluate/report.json: contents changed\n")
    predictions = copy / "runs/table/evaluate/predictions.csv"
    sound = predictions.read_bytes()
    flip(predictions)
    ended = llmtool("evaluate", "table.yaml", *sets, cwd=copy)
    assert ended.code == 2
    assert "predictions.csv is not the file that was written with report.json" in ended.error
    predictions.write_bytes(sound)
    # other weights where the start and the scored model were: both follow, and nothing else
    assert llmtool("train", "table.yaml", "--set", "train.budget.steps=14", cwd=copy).code == 0
    before = tree(copy / "runs/new")
    assert llmtool("prepare", "table.yaml", *sets, cwd=copy).err == ""
    assert "finetune: start: contents changed" in llmtool("finetune", "table.yaml", *sets, cwd=copy).err
    assert "evaluate: weights: contents changed" in llmtool("evaluate", "table.yaml", *sets, cwd=copy).err
    assert changed(before, tree(copy / "runs/new")) == {"finetune", "evaluate"}


# --- bytes of what a stage wrote --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.inputs.bin", "card.json"])
def test_a_damaged_dataset_is_used_by_nobody_and_made_again(copy: Path, llmtool: Run, name: str) -> None:
    path = copy / "runs/table/prepare" / name
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    for command in ("train", "finetune", "evaluate"):
        for more in ([], ["--force"]):
            ended = llmtool(command, "table.yaml", *more, cwd=copy)
            assert ended.code == 4
            assert f"{name}: contents changed" in ended.error
            assert "run `llmtool prepare table.yaml` first" in ended.error
    ended = llmtool("prepare", "table.yaml", cwd=copy)
    assert ended.err == f"prepare: runs/table/prepare/{name}: contents changed\n"
    assert path.read_bytes() == content
    assert run_all(llmtool, copy) == ""  # the same dataset: what was made of it stands


def test_a_damaged_dataset_of_an_earlier_version_is_not_used_either(
    copy: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "code_version", lambda: "9.9.9+0")
    path = copy / "runs/table/prepare/train.inputs.bin"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    ended = llmtool("train", "table.yaml", cwd=copy)
    assert ended.code == 4
    assert "train.inputs.bin: the content has changed since it was prepared" in ended.error


@pytest.mark.parametrize("name", ["model.safetensors", "state/optimizer.safetensors"])
def test_a_damaged_checkpoint_is_not_scored_nor_started_from(copy: Path, llmtool: Run, name: str) -> None:
    place = (copy / "runs/table/train/best").resolve() / name
    before = place.stat()
    data = bytearray(place.read_bytes())
    data[-1] ^= 1
    place.write_bytes(data)
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
    for command, more in (("finetune", ()), ("evaluate", ("--set", "evaluate.of=runs/table/train"))):
        ended = llmtool(command, "table.yaml", *more, cwd=copy)
        assert ended.code == 1
        assert f"{name}: the content changed since it was written" in ended.error


def test_an_adapter_is_no_better_than_its_base(copy: Path, llmtool: Run) -> None:
    """The scored model of the project is a LoRA adapter: its base is a part of it, also for a no-op."""
    base = (copy / "runs/table/train/best").resolve() / "model.safetensors"
    base.write_bytes(base.read_bytes()[:-1] + b"\0")
    ended = llmtool("evaluate", "table.yaml", cwd=copy)
    assert ended.code == 1
    assert "model.safetensors: the content changed since it was written" in ended.error


@pytest.mark.parametrize(
    ("stage", "name"),
    [("describe", "describe.json"), ("evaluate", "report.json"), ("evaluate", "predictions.csv")],
)
def test_a_damaged_result_is_made_again(copy: Path, llmtool: Run, stage: str, name: str) -> None:
    path = copy / "runs/table" / stage / name
    content = path.read_bytes()
    flip(path)
    ended = llmtool(stage, "table.yaml", cwd=copy)
    assert ended.err.startswith(f"{stage}: runs/table/{stage}/{name}: contents changed\n")
    assert path.read_bytes() == content


# --- code and machine -------------------------------------------------------------------------------------


def test_changed_code_runs_every_stage_again(
    copy: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a dataset that another version made is taken as it is, until `prepare` is asked for."""
    monkeypatch.setattr(keys, "code_version", lambda: "9.9.9+0123456789abcdef")
    before = tree(copy / "runs/table")
    assert "llmtool's code changed" in llmtool("train", "table.yaml", cwd=copy).err
    assert changed(before, tree(copy / "runs/table")) == {"train"}
    said = run_all(llmtool, copy)
    assert changed(before, tree(copy / "runs/table")) == set(COMMANDS)
    for stage in set(COMMANDS) - {"train"}:
        assert f"{stage}: llmtool's code changed ({llmtool_version} -> 9.9.9)" in said
    assert run_all(llmtool, copy) == ""


def test_the_code_is_every_source_byte(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = Path(shutil.copytree(Path(environment.llmtool.__file__).parent, tmp_path / "llmtool"))
    monkeypatch.setattr(environment.llmtool, "__file__", str(package / "__init__.py"))
    code_version = environment.code_version.__wrapped__
    before = code_version()
    assert code_version() == before
    path = package / "training/loop.py"
    path.write_bytes(path.read_bytes().replace(b"step", b"stop", 1))
    assert code_version() != before


def test_work_of_another_place_stands_and_says_where_it_was_made(copy: Path, llmtool: Run) -> None:
    """A run made on a GPU, or with another torch, and looked at elsewhere must not train for days again."""
    for stage in COMMANDS:
        for name in (".record.json", "result.json"):
            path = copy / "runs/table" / stage / name
            record = json.loads(path.read_text())
            versions = (record.get("result") or record)["versions"]
            versions |= {"gpu": "NVIDIA H100", "packages": {**versions["packages"], "torch": "1.0.0"}}
            files.write_json(path, record)
    before = tree(copy / "runs/table")
    said = run_all(llmtool, copy)
    assert tree(copy / "runs/table") == before
    here = importlib.metadata.version("torch")
    for stage in COMMANDS:
        made = f"{stage} was made with torch 1.0.0 (here {here}); it stands (--force runs it again)"
        assert made in said
        place = f"{stage} was made on cuda, and `device: auto` is cpu here"
        assert (place in said) == (stage in ("train", "finetune", "evaluate")) or torch.cuda.is_available()


def test_force_runs_again_and_gives_the_same(copy: Path, llmtool: Run) -> None:
    for command, file in (("prepare", "train.inputs.bin"), ("train", "best/model.safetensors")):
        path = copy / "runs/table" / command / file
        before, bytes_before = path.stat().st_ino, path.read_bytes()
        ended = llmtool(command, "table.yaml", "--force", cwd=copy)
        assert ended.code == 0
        assert f"{command}: --force" in ended.err
        assert path.stat().st_ino != before
        assert path.read_bytes() == bytes_before
        assert (copy / "runs/table/.previous" / command / file).read_bytes() == bytes_before
    assert llmtool("evaluate", "table.yaml", cwd=copy).err == ""  # the same weights: still fresh
    ended = llmtool("train", "table.yaml", "--force", "--resume", cwd=copy)
    assert ended.code == 2
    assert "give one of them" in ended.error


def test_a_mistake_costs_no_finished_work(copy: Path, llmtool: Run) -> None:
    """A wrong option writes a failed result.json; the right one brings the old one back, with its time."""
    path = copy / "runs/table/train/result.json"
    before, content = path.stat().st_mtime_ns, path.read_bytes()
    assert llmtool("train", "table.yaml", "--set", "train.batch=0", cwd=copy).code == 2
    assert json.loads(path.read_text())["exit_code"] == 2
    assert llmtool("train", "table.yaml", cwd=copy).code == 0
    assert path.read_bytes() == content
    assert (
        before - 1e9 < path.stat().st_mtime_ns <= before
    )  # no newer: nothing after it in a chain runs again
    path.unlink()  # as Make does with the target of a rule that failed
    assert llmtool("train", "table.yaml", cwd=copy).err == ""
    assert path.read_bytes() == content
    assert before - 1e9 < path.stat().st_mtime_ns <= before
    # tried with other settings, which fail, and gone back to the old ones: the finished run is still there
    assert llmtool("train", "table.yaml", "--set", "train.select={metric: f9, mode: max}", cwd=copy).code == 2
    assert llmtool("train", "table.yaml", cwd=copy).err == ""
    assert path.read_bytes() == content


def test_after_an_unmet_requirement_the_met_one_is_still_good(copy: Path, llmtool: Run) -> None:
    path = copy / "runs/table/evaluate/result.json"
    content = path.read_bytes()
    unmet = ["--set", "evaluate.require={test.accuracy: '>1'}"]
    for _ in range(2):  # what is not met is asked again each time
        ended = llmtool("evaluate", "table.yaml", *unmet, cwd=copy)
        assert ended.code == 3
        assert "test.accuracy is " in ended.error
    path.unlink()
    ended = llmtool("evaluate", "table.yaml", cwd=copy)
    assert ended.code == 0
    assert "nothing has changed" in ended.out
    assert path.read_bytes() == content


def test_a_missing_output_is_made_again(copy: Path, llmtool: Run) -> None:
    (copy / "runs/table/evaluate/report.json").unlink()
    ended = llmtool("evaluate", "table.yaml", cwd=copy)
    assert "report.json: missing" in ended.err
    assert (copy / "runs/table/evaluate/report.json").is_file()
    (copy / "runs/table/prepare/card.json").unlink()
    ended = llmtool("train", "table.yaml", cwd=copy)
    assert ended.code == 0
    assert (copy / "runs/table/prepare/card.json").is_file()


def rows(path: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in json.loads(line).items() if key != "time"}
        for line in path.read_text().splitlines()
    ]


@pytest.mark.parametrize("project", ["table", "text"])
def test_resume_goes_on_although_the_budget_grew(copy: Path, llmtool: Run, project: str) -> None:
    """With a constant rate 12 steps and then 8 more are the same as 20."""
    common = ["train", f"{project}.yaml", "--set", "train.schedule={name: constant, warmup: 0}"]
    longer = [*common, "--set", "train.budget.steps=20", "--set", "train.checkpoint_every=5"]
    assert llmtool(*common, "--set", "train.checkpoint_every=5", cwd=copy).code == 0
    ended = llmtool(*longer, "--resume", cwd=copy)
    assert ended.code == 0, ended.err
    assert "train.budget.steps: 12 -> 20" in ended.err
    assert "goes on from step 12" in ended.err
    root = copy / "runs" / project
    resumed = (root / "train/last/model.safetensors").read_bytes()
    assert llmtool(*longer, "--force", cwd=copy).code == 0
    assert (root / "train/last/model.safetensors").read_bytes() == resumed
    old, new = (root / stage / "train/metrics.jsonl" for stage in (".previous", "."))
    assert [row["loss"] for row in rows(new) if "loss" in row] == [
        r["loss"] for r in rows(old) if "loss" in r
    ]


def test_without_resume_a_changed_budget_starts_over(copy: Path, llmtool: Run) -> None:
    ended = llmtool("train", "table.yaml", "--set", "train.budget.steps=14", cwd=copy)
    assert ended.code == 0
    assert "goes on" not in ended.err
    assert rows(copy / "runs/table/train/metrics.jsonl")[0]["step"] == 2
    assert (copy / "runs/table/.previous/train/result.json").is_file()
