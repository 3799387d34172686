"""The README's own commands, files and Makefile, run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that looks like a fresh clone as far as the commands can tell, in which the README's
    commands have been run in their order."""
    directory = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "configs", directory / "configs")
    for command in commands():
        done = shell(command, directory)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    return directory


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.startswith("llmtool ")]


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_file_shown_is_the_file_there() -> None:
    shown = blocks("yaml")[0].partition("\n")[2]
    there = (ROOT / "configs/tabular/iris.yaml").read_text().partition("\n")[2]
    assert shown == there


def test_the_five_commands_come_first() -> None:
    names = [command.split()[1] for command in commands()]
    assert names[:5] == ["prepare", "describe", "train", "finetune", "evaluate"]


def test_the_run_directory_is_as_drawn(clone: Path) -> None:
    (tree,) = [block for block in blocks("text") if block.startswith("runs/iris/")]
    for line in tree.splitlines()[1:]:
        stage, *names = line.split()
        for name in names if names[0] != "the" else []:
            pattern = re.sub(r"step-\d+", "step-*", name).rstrip("/")
            assert list((clone / "runs/iris" / stage).glob(pattern)), (stage, name)


def test_the_makefile_runs_once(clone: Path) -> None:
    (clone / "Makefile").write_text(blocks("make")[0])
    first = shell("make", clone)
    assert first.returncode == 0, first.stderr
    again = shell("make", clone)
    assert again.returncode == 0, again.stderr
    assert "Nothing to be done" in again.stdout


def test_the_example_error_is_what_the_command_says(clone: Path) -> None:
    (said,) = [block for block in blocks("text") if block.startswith("llmtool: ")]
    text = "data: {source: {format: csv, path: x}, encode: {as: features, target: y}}\nmodel: {family: mlp}\n"
    text += "train:\n  budget: {steps: 1}\n\n\n\n\n  optimizer: {name: adamw, wieght_decay: 0.1}\n"
    (clone / "my.yaml").write_text(text)
    done = shell("llmtool train my.yaml", clone)
    assert done.returncode == 2
    wanted = re.escape(said.strip()).replace(re.escape("my.yaml:9:14"), r"my\.yaml:\d+:\d+")
    assert re.match(wanted.replace(r"\.\.\.", ".*"), done.stderr.strip()), done.stderr
