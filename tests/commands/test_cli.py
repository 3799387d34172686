"""The command line itself: help, versions, what it prints when something of ours breaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmtool import __version__
from llmtool.cli import app, main
from llmtool.commands import train
from llmtool.core import config, streams
from llmtool.core.errors import DataError
from tests.conftest import COMMANDS, Run


def test_help_names_the_commands_and_the_exit_codes() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    for command in COMMANDS:
        assert command in shown
        page = CliRunner().invoke(app, [command, "--help"])
        assert page.exit_code == 0
        assert "--set" in page.stdout
        assert ("--resume" in page.stdout) == (command in ("train", "finetune"))
    for code in ("3 requirement unmet", "4 data", "75 interrupted"):
        assert code in " ".join(shown.split())
    assert __version__ in CliRunner().invoke(app, ["--version"]).stdout


def test_help_and_version_load_nothing_heavy() -> None:
    program = (
        "import sys; from llmtool.cli import app; app(['--help'], standalone_mode=False); "
        "print(sorted({'torch', 'numpy', 'pandas', 'sklearn', 'pydantic', 'yaml'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_error_of_our_own_is_one_line_and_the_traceback_on_request(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(train, "_train", broken)
    monkeypatch.chdir(fresh)
    result = CliRunner().invoke(app, ["train", "table.yaml", "--json"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "llmtool: internal error: ZeroDivisionError: a bug (--debug shows where)"
    )
    assert json.loads(result.stdout)["error"] == "ZeroDivisionError: a bug"
    written = json.loads((fresh / "runs/table/train/result.json").read_text())
    assert (written["status"], written["exit_code"]) == ("failed", 1)
    result = CliRunner().invoke(app, ["train", "table.yaml", "--debug"])
    assert "Traceback" in result.stderr
    assert 'raise ZeroDivisionError("a bug")' in result.stderr


def test_what_comes_from_outside_cannot_write_to_the_terminal(fresh: Path, llmtool: Run) -> None:
    ended = llmtool("train", "\x1b[31mred\x07.yaml", cwd=fresh)
    assert ended.code == 2
    assert "\x1b" not in ended.err
    assert "\\x1b[31mred\\x07.yaml: no such file" in ended.err
    (fresh / "people.csv").write_text("a,\x1b[31mb,income\n" + "1,2,x\n3,4,y\n" * 30)
    for command in ("prepare", "describe", "train"):
        ended = llmtool(command, "table.yaml", cwd=fresh)
        assert "\x1b" not in ended.err + ended.out
    ended = llmtool("prepare", "table.yaml", "--set", "data.encode.target=nope", cwd=fresh)
    assert ended.code == 2
    assert "\x1b" not in ended.err


@pytest.mark.parametrize("stage", ["train", "prepare"])
def test_a_run_that_is_someone_elses_is_left_alone(fresh: Path, llmtool: Run, stage: str) -> None:
    (fresh / "runs/table" / stage).mkdir(parents=True)
    (fresh / "runs/table" / stage / "thesis.doc").write_text("years of work")
    ended = llmtool(stage, "table.yaml", cwd=fresh)
    assert ended.code == 2
    assert f"runs/table/{stage} holds files that are not llmtool's; choose another `run:`" in ended.error
    assert [path.name for path in (fresh / "runs/table" / stage).iterdir()] == ["thesis.doc"]


def test_without_a_name_the_run_is_called_as_the_file(fresh: Path, llmtool: Run) -> None:
    (fresh / "deep").mkdir()
    (fresh / "deep/my story.yaml").write_text((fresh / "table.yaml").read_text())
    assert llmtool("prepare", "deep/my story.yaml", cwd=fresh).code == 0
    assert (fresh / "runs/my story/prepare/card.json").is_file()


def test_describe_before_there_is_data_and_after(fresh: Path, llmtool: Run) -> None:
    (fresh / "people.csv").rename(fresh / "later.csv")
    ended = llmtool("describe", "table.yaml", cwd=fresh)
    assert ended.code == 0
    assert "people.csv: no such file" in ended.err
    (fresh / "later.csv").rename(fresh / "people.csv")
    before = llmtool("describe", "table.yaml", "--json", cwd=fresh).json
    assert llmtool("prepare", "table.yaml", cwd=fresh).code == 0
    after = llmtool("describe", "table.yaml", "--json", cwd=fresh).json
    assert after["parameters"]["total"] > 0
    assert before["fingerprints"] != after["fingerprints"]
    card = (fresh / "runs/table/describe/model_card.md").read_text()
    assert card.startswith("#")


def test_describe_of_a_file_that_only_tunes_describes_what_it_starts_from(copy: Path, llmtool: Run) -> None:
    text = "\n".join(
        line
        for line in (copy / "table.yaml").read_text().splitlines()
        if not line.startswith(("model", "train"))
    )
    (copy / "tune.yaml").write_text(text + "\n")
    document = llmtool("describe", "tune.yaml", "--json", cwd=copy).json
    there = json.loads((copy / "runs/table/describe/describe.json").read_text())
    assert document["parameters"]["total"] == there["parameters"]["total"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout_fails_the_command_and_not_the_work(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fresh)
    for arguments, code in (
        ("train table.yaml", 1),
        ("train table.yaml", 1),  # which stands by then
        ("evaluate table.yaml --set evaluate.require={test.accuracy: '>=1.1'}", 3),
        ("predict table.yaml --input people.csv", 1),
    ):
        words = arguments.split(" ", 3)
        with monkeypatch.context() as patched, open("/dev/full", "w") as full:
            patched.setattr(streams, "_lost", None)
            patched.setattr(sys, "argv", ["llmtool", *words])
            patched.setattr(sys, "stdout", full)
            with pytest.raises(SystemExit) as ended:
                main()
        err = capsys.readouterr().err
        why = "llmtool: standard output cannot be written: No space left on device"
        assert (ended.value.code, err.count(why)) == (code, 1), err
        assert "internal error" not in err
    written = json.loads((fresh / "runs/table/train/result.json").read_text())
    assert (written["status"], written["exit_code"]) == ("done", 0)


def test_an_error_where_the_work_stands_is_not_told_as_done(
    copy: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise DataError("a profile that is none")

    monkeypatch.setattr(train.profiled, "stands", broken)
    ended = llmtool("train", "table.yaml", "--json", cwd=copy)
    assert ended.code == 4
    said = ended.json
    assert (said["status"], said["exit_code"], said["error"]) == ("data_refused", 4, ended.error)
    assert said["fingerprints"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("arguments", "code"), [("--help", 1), ("--version", 1), ("init people.csv --json", 1), ("fly --json", 2)]
)
def test_what_the_command_line_itself_prints_is_told_of_too(
    arguments: str, code: int, fresh: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(fresh)
    monkeypatch.setattr(streams, "_lost", None)
    monkeypatch.setattr(sys, "argv", ["llmtool", *arguments.split()])
    with monkeypatch.context() as patched, open("/dev/full", "w", buffering=1) as full:
        patched.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "llmtool: standard output cannot be written: No space left on device"


def test_closed_streams_are_the_null_device(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fresh)
    with monkeypatch.context() as patched:
        for name in ("stdin", "stdout", "stderr"):
            patched.setattr(sys, name, None)  # as Python has it after `<&- >&- 2>&-`
        patched.setattr(sys, "argv", ["llmtool", "prepare", "table.yaml"])
        with pytest.raises(SystemExit) as ended:
            main()
        for name in ("stdin", "stdout", "stderr"):
            getattr(sys, name).close()
    assert ended.value.code == 0
    assert capsys.readouterr() == ("", "")
    assert json.loads((fresh / "runs/table/prepare/result.json").read_text())["status"] == "done"


def test_a_configuration_from_standard_input(
    fresh: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "_piped", lambda path: text.encode())
    text = (fresh / "table.yaml").read_text()
    ended = llmtool("prepare", "-", cwd=fresh)
    assert ended.code == 2
    assert ended.error == "-: no file whose name the run could have: say where it goes with `run:`"
    assert not (fresh / "runs").exists()
    assert llmtool("prepare", "-", "--set", "run=runs/piped", cwd=fresh).code == 0
    assert (fresh / "runs/piped/prepare/card.json").is_file()
    for arguments in (("--set", "devices=cpu:2"), ("--verify", "resume"), ("--rehearse",)):
        ended = llmtool("train", "/dev/stdin", "--set", "run=runs/piped", *arguments, cwd=fresh)
        assert ended.code == 2
        assert ended.error.startswith("/dev/stdin: other processes read the configuration too")
