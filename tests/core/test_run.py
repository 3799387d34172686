"""Freshness, changes, locks, crashes and results of core/run.py."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmtool.core import files
from llmtool.core import run as run_module
from llmtool.core.errors import ConfigError, DivergedError, LlmtoolError, RequirementError
from llmtool.core.run import Run, failed_result, outcome
from tests.core.crashfs import Crash, CrashFs, fill_disk

KEY = {
    "config": {"seed": 7, "train": {"optimizer": {"name": "adamw", "lr": 0.001}, "clip": None}},
    "inputs": {"data/iris.csv": "xxh3:1", "data/more.csv": "xxh3:2"},
    "code": "0.1.0+aaaa",
}


def changed(**config):
    key = copy.deepcopy(KEY)
    key["config"].update(config)
    return key


def work(root, key=KEY, stage="prepare", text="work", **options):
    """What a command does."""
    with Run.open(root, stage, key, **options) as run:
        if run.fresh:
            return run
        if run.state == "changed":
            run.start_over()
        (run.directory / "card.json").write_text(text)
        run.finish(metrics={"rows": 3}, config="a.yaml")
    return run


def fail(root, error, key=KEY, stage="train", text="half", **options):
    """A command that ends with an exception in the middle of its work."""
    with Run.open(root, stage, key, **options) as run:
        if run.state == "changed":
            run.start_over()
        (run.directory / "card.json").write_text(text)
        run.finish(metrics={"f1": float("nan")})
        run.finish(metrics={"loss": 2.0}, rows=5)
        raise error


def snapshot(root):
    return {
        str(path.relative_to(root)): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(Path(root).rglob("*"))
    }


def result(root, stage="prepare"):
    return json.loads((Path(root) / stage / "result.json").read_text())


def test_done_work_is_fresh_and_nothing_at_all_is_touched(tmp_path):
    root = tmp_path / "runs" / "iris"
    first = work(root)
    assert first.state == "new"
    document = result(root)
    assert document["format"] == 1
    assert document["command"] == "prepare"
    assert (document["status"], document["exit_code"], document["error"]) == ("done", 0, None)
    assert (document["metrics"], document["config"]) == ({"rows": 3}, "a.yaml")
    assert document["fingerprints"] == KEY["inputs"]
    assert document["key"] == KEY
    assert document["versions"]["packages"]["torch"]
    assert document["seconds"] >= 0
    before, lock = snapshot(tmp_path), (root / ".lock").stat()
    second = work(root, text="never written")
    assert second.fresh
    assert second.state == "fresh"
    assert second.changes == []
    assert second.result == document
    assert snapshot(tmp_path) == before
    assert (root / ".lock").stat().st_mtime_ns == lock.st_mtime_ns


def test_a_fresh_stage_needs_no_lock_and_no_write_permission(tmp_path, monkeypatch):
    work(tmp_path)
    with Run.open(tmp_path, "train", KEY) as train:
        monkeypatch.setattr(files, "fs", fill_disk(tmp_path, 1))
        assert work(tmp_path).fresh
        monkeypatch.setattr(files, "fs", files.Fs())
        train.finish()


def test_each_change_is_named(tmp_path):
    work(tmp_path)
    key = changed(seed=8)
    key["config"]["train"] = {"optimizer": {"name": "adamw", "lr": 0.0003}, "warmup": True}
    key["inputs"] = {"data/iris.csv": "xxh3:9", "data/new.csv": "xxh3:3"}
    key["code"] = "0.1.1+bbbb"
    with Run.open(tmp_path, "prepare", key) as run:
        assert run.state == "changed"
        assert not run.fresh
        assert run.changes == [
            "seed: 7 -> 8",
            "train.optimizer.lr: 0.001 -> 0.0003",
            "train.warmup: (not set) -> true",
            "train.clip: null -> (not set)",
            "data/iris.csv: contents changed",
            "data/new.csv: new",
            "data/more.csv: not read any more",
            "llmtool's code changed (0.1.0 -> 0.1.1)",
        ]
        assert (run.directory / "card.json").read_text() == "work"  # until start_over
        run.start_over()
        assert [path.name for path in run.directory.iterdir()] == [".record.json"]
        run.finish()
    assert (tmp_path / ".previous" / "prepare" / "card.json").read_text() == "work"
    assert result(tmp_path)["key"] == key


def test_keys_of_paths_and_numpy_survive_the_round_trip(tmp_path):
    key = {"config": {"path": Path("a/b"), "lr": np.float64(0.1), "sizes": (1, 2)}, "inputs": {}, "code": "1"}
    work(tmp_path, key)
    assert work(tmp_path, key).fresh


def test_force_and_missing_outputs_do_the_work_again(tmp_path):
    work(tmp_path)
    forced = work(tmp_path, force=True)
    assert (forced.state, forced.changes) == ("changed", ["--force"])
    (tmp_path / "prepare" / "card.json").unlink()
    again = work(tmp_path)
    assert (again.state, again.changes) == ("changed", [f"{tmp_path}/prepare/card.json: missing"])
    (tmp_path / "prepare" / "card.json").unlink()
    assert work(tmp_path, resumable=True).state == "unfinished"
    assert work(tmp_path, force=True, stage="train").state == "new"


@pytest.mark.parametrize("damage", [b"worm", b"wor", b"works", None])
def test_an_output_that_is_not_as_it_was_written_is_made_again(tmp_path, damage):
    work(tmp_path)
    path = tmp_path / "prepare" / "card.json"
    stat = path.stat()
    path.write_bytes(damage) if damage else path.unlink()
    if damage:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = work(tmp_path)
    assert again.state == "changed"
    assert again.changes == [f"{path}: {'contents changed' if damage else 'missing'}"]
    assert path.read_text() == "work"
    assert work(tmp_path).fresh


def test_a_run_that_was_copied_or_moved_is_as_fresh_as_before(tmp_path):
    work(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)  # with new times
    assert work(tmp_path / "b").fresh
    (tmp_path / "a").rename(tmp_path / "c")
    assert work(tmp_path / "c").fresh
    (tmp_path / "c" / "prepare" / "page.html").write_text("drawn from the results, and may be drawn again")
    assert work(tmp_path / "c").fresh


def test_a_record_of_an_earlier_version_names_its_outputs_only(tmp_path):
    work(tmp_path)
    path = tmp_path / "prepare" / ".record.json"
    record = json.loads(path.read_text())
    del record["seen"]
    path.write_text(json.dumps(record | {"outputs": ["card.json", "result.json"]}))
    assert work(tmp_path).fresh
    (tmp_path / "prepare" / "card.json").unlink()
    assert work(tmp_path).changes == [f"{tmp_path}/prepare/card.json: missing"]


def test_a_failure_is_written_with_its_status_and_its_figures(tmp_path):
    for error, status, code in [
        (DivergedError("the loss is nan at step 3"), "diverged", 5),
        (RequirementError("test.f1 is 0.5"), "requirement_unmet", 3),
        (KeyboardInterrupt(), "cancelled", 130),
        (ZeroDivisionError("a bug"), "failed", 1),
    ]:
        with pytest.raises(type(error)):
            fail(tmp_path, error, resumable=True)
        document = result(tmp_path, "train")
        assert (document["status"], document["exit_code"]) == (status, code)
        assert document["error"] == (str(error) or "cancelled")
        assert (document["metrics"], document["rows"]) == ({"f1": None, "loss": 2.0}, 5)
        assert (tmp_path / "train" / "card.json").exists()
    assert outcome(None) == ("done", 0)


def test_unfinished_work_is_resumed_or_begun_anew(tmp_path):
    with pytest.raises(DivergedError):
        fail(tmp_path, DivergedError("nan"), text="1", resumable=True)
    with Run.open(tmp_path, "train", KEY, resumable=True) as run:
        assert run.state == "unfinished"
        assert run.changes == ["the last train did not finish (diverged)"]
        assert (run.directory / "card.json").read_text() == "1"
        run.finish()
    assert work(tmp_path, stage="train", resumable=True).fresh
    with pytest.raises(DivergedError):
        fail(tmp_path, DivergedError("nan"), text="1", force=True)
    with Run.open(tmp_path, "train", KEY) as run:  # a stage that cannot resume
        assert run.state == "changed"
        run.start_over()
        assert not (run.directory / "card.json").exists()
        run.finish()
    assert (tmp_path / ".previous" / "train.unfinished" / "card.json").read_text() == "1"
    with Run.open(tmp_path, "train", changed(seed=9), resumable=True) as run:
        assert run.state == "changed"
        run.start_over()
        run.finish()
    assert (tmp_path / ".previous" / "train.unfinished" / "card.json").read_text() == "1"


def test_finished_work_is_not_pushed_out_of_previous_by_failed_attempts(tmp_path):
    work(tmp_path, text="three days")
    for seed in (8, 9, 10):
        with pytest.raises(LlmtoolError):
            fail(tmp_path, LlmtoolError("failed"), changed(seed=seed), "prepare")
    assert (tmp_path / ".previous" / "prepare" / "card.json").read_text() == "three days"
    forced = Run.open(tmp_path, "prepare", KEY, force=True)
    assert forced.state == "changed"
    forced._release()
    back = work(tmp_path)  # the old config again: its work is taken back
    assert back.fresh
    assert (back.directory / "card.json").read_text() == "three days"
    assert result(tmp_path)["status"] == "done"
    assert not (tmp_path / ".previous" / "prepare").exists()
    assert (tmp_path / ".previous" / "prepare.unfinished" / "card.json").read_text() == "half"


def test_judge_only_looks_and_keep_goes_on_under_a_new_key(tmp_path):
    assert Run.judge(tmp_path, "train", KEY).state == "new"
    assert os.listdir(tmp_path) == []
    work(tmp_path, stage="train", text="step 100")
    before = snapshot(tmp_path)
    assert Run.judge(tmp_path, "train", KEY).fresh
    assert Run.judge(tmp_path, "train", changed(seed=8)).changes == ["seed: 7 -> 8"]
    assert snapshot(tmp_path) == before
    with Run.open(tmp_path, "train", changed(seed=8), resumable=True) as run:
        assert run.state == "changed"
        run.keep()
        assert (run.directory / "card.json").read_text() == "step 100"
        run.finish()
    assert Run.judge(tmp_path, "train", changed(seed=8)).fresh


def test_a_mistyped_config_costs_no_finished_work(tmp_path):
    work(tmp_path)
    times = {name: (tmp_path / "prepare" / name).stat().st_mtime_ns for name in ("result.json", "card.json")}
    failed_result(tmp_path, "prepare", ConfigError("a.yaml:3:1: no such key"), config="a.yaml")
    document = result(tmp_path)
    assert (document["status"], document["exit_code"]) == ("config_error", 2)
    assert document["error"] == "a.yaml:3:1: no such key"
    with pytest.raises(ConfigError), Run.open(tmp_path, "prepare", changed(seed=8)):
        raise ConfigError("the model does not fit the data")  # before start_over
    assert result(tmp_path)["status"] == "config_error"
    assert (tmp_path / "prepare" / "card.json").read_text() == "work"
    assert work(tmp_path).fresh
    assert result(tmp_path)["status"] == "done"
    assert abs((tmp_path / "prepare" / "result.json").stat().st_mtime_ns - times["result.json"]) < 1e9
    assert (tmp_path / "prepare" / "card.json").stat().st_mtime_ns == times["card.json"]


def test_make_deleting_the_target_of_a_failed_rule_keeps_the_way_to_resume(tmp_path):
    with pytest.raises(LlmtoolError), Run.open(tmp_path, "train", KEY, resumable=True):
        raise LlmtoolError("interrupted")
    (tmp_path / "train" / "result.json").unlink()
    assert work(tmp_path, stage="train", resumable=True).state == "unfinished"
    document = result(tmp_path, "train")
    (tmp_path / "train" / "result.json").unlink()
    assert work(tmp_path, stage="train", resumable=True).fresh
    assert result(tmp_path, "train") == document


def test_failed_result_before_any_run_and_where_nothing_may_be_written(tmp_path):
    failed_result(tmp_path / "new", "train", ConfigError("bad"))
    assert result(tmp_path / "new", "train")["exit_code"] == 2
    assert work(tmp_path / "new", stage="train").state == "new"
    (tmp_path / "file").write_text("mine")
    failed_result(tmp_path / "file", "train", ConfigError("bad"))
    failed_result("", "train", ConfigError("bad"))
    failed_result("a\0b", "train", ConfigError("bad"))
    (tmp_path / "home" / "train").mkdir(parents=True)
    (tmp_path / "home" / "train" / "thesis.txt").write_text("mine")
    failed_result(tmp_path / "home", "train", ConfigError("bad"))
    assert os.listdir(tmp_path / "home" / "train") == ["thesis.txt"]
    with Run.open(tmp_path / "busy", "train", KEY) as run:
        failed_result(tmp_path / "busy", "train", ConfigError("bad"))
        assert not (run.directory / "result.json").exists()
        run.finish()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"format": 1}', b'{"format": 1, "key": {}}'])
def test_a_record_that_cannot_be_read_is_work_to_do_again(tmp_path, damage):
    work(tmp_path)
    (tmp_path / "prepare" / ".record.json").write_bytes(damage)
    again = work(tmp_path, text="again")
    assert again.state == "changed"
    assert again.changes == [".record.json cannot be read"]
    assert (tmp_path / ".previous" / "prepare.unfinished" / "card.json").read_text() == "work"


def test_places_that_cannot_hold_a_run_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("absent")
    (tmp_path / "user" / "prepare").mkdir(parents=True)
    (tmp_path / "user" / "prepare" / "thesis.txt").write_text("mine")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "prepare").write_text("a file")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "prepare").symlink_to(tmp_path / "user" / "prepare")
    names = ["file", "file/below", "loop", "loop/below", "nowhere", "user", "odd", "linked", "x" * 300]
    for root in [*(tmp_path / name for name in names), "", " ", "a\0b"]:
        with pytest.raises(ConfigError, match="run: "):
            Run.open(root, "prepare", KEY)
    assert (tmp_path / "user" / "prepare" / "thesis.txt").read_text() == "mine"
    (tmp_path / "disk").mkdir()
    (tmp_path / "short").symlink_to("disk")
    work(tmp_path / "short")
    assert (tmp_path / "disk" / "prepare" / "result.json").exists()


HOLDER = """
import sys, time
from llmtool.core.run import Run
assert "torch" not in sys.modules and "rich" not in sys.modules
with Run.open(sys.argv[1], "train", {"config": {}}, resumable=True) as run:
    (run.directory / "work").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
    run.finish()
"""


def test_one_writer_at_a_time_and_a_killed_one_is_no_obstacle(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(LlmtoolError, match=f"process {child.pid} on .* is working on this run") as caught:
            Run.open(tmp_path, "prepare", KEY)
        assert caught.value.exit_code == 1
        assert not (tmp_path / "prepare").exists()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    with Run.open(tmp_path, "train", {"config": {}}, resumable=True) as run:
        assert run.state == "unfinished"
        assert run.changes == ["the last train did not finish (killed, or the machine went down)"]
        assert (run.directory / "work").exists()
        run.finish()


def test_a_full_disk_does_not_hide_the_error_that_ended_the_command(tmp_path, monkeypatch):
    def on_a_full_disk(error):
        with Run.open(tmp_path, "train", KEY) as run:
            if run.state == "changed":
                run.start_over()
            monkeypatch.setattr(files, "fs", fill_disk(tmp_path, 1))
            run.finish()
            if error:
                raise error

    with pytest.raises(DivergedError, match="nan"):
        on_a_full_disk(DivergedError("nan"))
    monkeypatch.setattr(files, "fs", files.Fs())
    with pytest.raises(LlmtoolError, match="no space left"):
        on_a_full_disk(None)
    monkeypatch.setattr(files, "fs", files.Fs())
    assert work(tmp_path, stage="train").state == "changed"  # and the lock was let go


@pytest.mark.parametrize("mode", ["keep", "drop", "torn"])
def test_after_a_power_cut_at_any_operation_the_stage_is_old_new_or_to_do(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(run_module, "environment", dict)
    at, finished, states = 0, False, set()
    while not finished:
        at += 1
        root = tmp_path / str(at)
        work(root, text="old")
        disk = CrashFs(root, at)
        monkeypatch.setattr(files, "fs", disk)
        try:
            work(root, changed(seed=8), text="new")
            finished = True
        except Crash:
            disk.reboot(mode, at)
        monkeypatch.setattr(files, "fs", files.Fs())
        text = {KEY["config"]["seed"]: "old", 8: "new"}
        for key in (KEY, changed(seed=8)):
            run = Run.open(root, "prepare", key)
            if run.fresh:  # what claims to be done is whole
                assert (run.directory / "card.json").read_text() == text[key["config"]["seed"]]
                assert result(root)["key"] == key
            states.add(run.state)
            run._release()
            if run.state == "new":
                break
        if finished:
            assert run.fresh
        assert work(root, changed(seed=8), text="new").directory.joinpath("card.json").read_text() == "new"
        old = [path for path in root.rglob("card.json") if path.read_text() == "old"]
        assert old, "the old work is still somewhere"
    assert states >= {"fresh", "changed"}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody may write")
def test_a_place_where_no_directory_can_be_is_the_configs_fault():
    with pytest.raises(ConfigError, match=r"^run: /proc/nowhere: "):
        Run.open("/proc/nowhere", "prepare", {})
