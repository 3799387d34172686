"""Crashes, full disks, flipped bits, hostile manifests and SIGKILL against core/checkpoint.py."""

import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llmtool.core import checkpoint, files, joint, ranks
from llmtool.core.checkpoint import TornError
from llmtool.core.errors import LlmtoolError
from tests.core.crashfs import Crash, CrashFs


def content(number):
    return {"model.safetensors": bytes([number]) * 400, "state/loop.json": b'{"step": %d}' % number}


def writer(number, tick=lambda: None):
    def write(directory):
        (directory / "state").mkdir()
        for name, data in content(number).items():
            tick()
            (directory / name).write_bytes(data)

    return write


def read(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != checkpoint.MANIFEST
    }


def refuse(message):
    raise AssertionError(f"unexpected warning: {message}")


def test_save_verify_and_resume(tmp_path):
    parent = tmp_path / "run" / "checkpoints"
    for step in (5, 10, 100_000_000):
        made = checkpoint.save(parent, checkpoint.step_name(step), writer(step % 256))
        checkpoint.verify(made)
    assert checkpoint.newest_valid(parent, refuse).name == "step-100000000"  # by number, not by letter
    assert [checkpoint.step_of(path) for path in checkpoint.steps(parent)] == [5, 10, 100_000_000]
    with pytest.raises(LlmtoolError, match="exists; a checkpoint is never written into"):
        checkpoint.save(parent, "step-00000005", writer(7))
    assert read(parent / "step-00000005") == content(5)
    for name in ("", "../x", ".hidden"):
        with pytest.raises(LlmtoolError, match="cannot name a checkpoint"):
            checkpoint.save(parent, name, writer(1))
    removed = checkpoint.prune(parent, {"step-100000000"})
    assert [path.name for path in removed] == ["step-00000005", "step-00000010"]
    assert os.listdir(parent) == ["step-100000000"]
    assert checkpoint.newest_valid(tmp_path / "absent", refuse) is None


@pytest.mark.parametrize("mode", ["keep", "drop", "torn"])
def test_after_a_power_cut_at_any_operation_the_newest_is_exactly_the_old_or_the_new(
    tmp_path, monkeypatch, mode
):
    base = tmp_path / "base"
    checkpoint.save(base, "step-00000001", writer(1))
    found, at, finished = set(), 0, False
    while not finished:
        at += 1
        for seed in range(4 if mode == "torn" else 1):
            root = tmp_path / f"{at}-{seed}"
            shutil.copytree(base, root)
            disk = CrashFs(root, at)
            monkeypatch.setattr(files, "fs", disk)
            try:
                checkpoint.save(root, "step-00000002", writer(2, disk.tick))
                finished = True
            except Crash:
                disk.reboot(mode, 100 * at + seed)
            monkeypatch.setattr(files, "fs", files.Fs())
            warnings = []
            newest = checkpoint.newest_valid(root, warnings.append)
            assert newest.name in ("step-00000001", "step-00000002")
            assert read(newest) == content(checkpoint.step_of(newest))
            assert not warnings, "an interrupted save never leaves a torn checkpoint under a final name"
            assert not [name for name in os.listdir(root) if name.startswith(".")]
            found.add((newest.name, finished))
            if finished:
                assert newest.name == "step-00000002"
            else:  # the run goes on: the same save works now
                if newest.name == "step-00000001":
                    checkpoint.save(root, "step-00000002", writer(2))
                assert read(checkpoint.newest_valid(root, refuse)) == content(2)
    assert at > 12
    assert len(found) == (2 if mode == "drop" else 3)


@pytest.mark.parametrize("mode", ["keep", "drop", "torn"])
def test_a_power_cut_while_pruning_or_pointing_loses_nothing_that_is_kept(tmp_path, monkeypatch, mode):
    base = tmp_path / "base"
    for step in (1, 2, 3):
        checkpoint.save(base, checkpoint.step_name(step), writer(step))
    checkpoint.point(base / "last", base / "step-00000002")
    at, finished = 0, False
    while not finished:
        at += 1
        root = tmp_path / str(at)
        shutil.copytree(base, root, symlinks=True)
        disk = CrashFs(root, at)
        monkeypatch.setattr(files, "fs", disk)
        try:
            checkpoint.point(root / "last", root / "step-00000003")
            checkpoint.prune(root, {"step-00000003"})
            finished = True
        except Crash:
            disk.reboot(mode, at)
        monkeypatch.setattr(files, "fs", files.Fs())
        for path in checkpoint.steps(root):
            checkpoint.verify(path)  # whole or gone, never half
        assert os.readlink(root / "last") in ("step-00000002", "step-00000003")
        checkpoint.verify((root / "last").resolve())
        assert checkpoint.newest_valid(root, refuse).name == "step-00000003"
    assert at > 15


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("stays", [False, True])
def test_a_failing_disk_is_named_and_the_old_checkpoint_stays_valid(tmp_path, monkeypatch, code, stays):
    base = tmp_path / "base"
    checkpoint.save(base, "step-00000001", writer(1))
    at, finished = 0, False
    while not finished:
        at += 1
        root = tmp_path / str(at)
        shutil.copytree(base, root)
        disk = CrashFs(root, at, code, repeat=stays)
        monkeypatch.setattr(files, "fs", disk)
        message = "saved"
        try:
            checkpoint.save(root, "step-00000002", writer(2, disk.tick))
            finished = True
        except LlmtoolError as error:
            message = f"{error} {error.exit_code}"
        expected = "no space left on the device" if code == errno.ENOSPC else "input/output error"
        assert finished or re.search(f"^{root}.*: {expected}.* 1$", message)
        monkeypatch.setattr(files, "fs", files.Fs())
        assert not [name for name in os.listdir(root) if name.startswith(".")], (
            "the disk is not filled with rubbish"
        )
        checkpoint.verify(root / "step-00000001")
        newest = checkpoint.newest_valid(root, refuse)
        assert read(newest) == content(checkpoint.step_of(newest))
    assert at > 12


def test_a_full_disk_reported_by_safetensors_is_named_too(tmp_path):
    def write(directory):
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # stands for a disk that is full
        try:
            save_file({"a": torch.zeros(1000)}, directory / "model.safetensors")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, handler)

    with pytest.raises(LlmtoolError, match="step-00000001: file too large"):
        checkpoint.save(tmp_path, "step-00000001", write)
    assert os.listdir(tmp_path) == []


class SafetensorError(Exception):
    """Stands for the library's error, which is no OSError."""


def test_the_number_inside_a_rust_error_is_understood(tmp_path):
    def write(directory):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(
        LlmtoolError, match=r"step-00000001: no space left on the device \([\d,]+ bytes free\)"
    ):
        checkpoint.save(tmp_path, "step-00000001", write)
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_caller_passes_and_leaves_nothing(tmp_path):
    def write(directory):
        (directory / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, "step-00000001", write)
    assert os.listdir(tmp_path) == []

    def link(directory):
        (directory / "weights").symlink_to("/etc/passwd")

    with pytest.raises(LlmtoolError, match="symbolic link"):
        checkpoint.save(tmp_path, "step-00000001", link)
    assert os.listdir(tmp_path) == []


def test_every_flipped_bit_is_found_and_named(tmp_path):
    made = checkpoint.save(
        tmp_path, "step-00000001", lambda d: save_file({"w": torch.randn(50, 40)}, d / "model.safetensors")
    )
    draw = random.Random(0)
    data = (made / "model.safetensors").read_bytes()
    for position in draw.sample(range(len(data) * 8), 200):
        torn = bytearray(data)
        torn[position // 8] ^= 1 << position % 8
        (made / "model.safetensors").write_bytes(torn)
        with pytest.raises(TornError, match=r"model\.safetensors: the content changed"):
            checkpoint.verify(made)
    for length in draw.sample(range(len(data)), 50):
        (made / "model.safetensors").write_bytes(data[:length])
        with pytest.raises(TornError, match=r"model\.safetensors: [\d,]+ bytes, written were"):
            checkpoint.verify(made)
    (made / "model.safetensors").write_bytes(data)
    manifest = (made / "manifest.json").read_bytes()
    for position in draw.sample(range(len(manifest) * 8), 400):
        torn = bytearray(manifest)
        torn[position // 8] ^= 1 << position % 8
        (made / "manifest.json").write_bytes(torn)
        with pytest.raises(TornError):
            checkpoint.verify(made)
    for length in [0, 1, *draw.sample(range(len(manifest)), 50), len(manifest) - 1]:
        (made / "manifest.json").write_bytes(manifest[:length])
        with pytest.raises(TornError):
            checkpoint.verify(made)
    (made / "manifest.json").write_bytes(manifest)
    checkpoint.verify(made)


def test_the_newest_valid_one_wins_and_torn_ones_are_moved_aside(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, checkpoint.step_name(step), writer(step))
    (tmp_path / "step-00000004" / "manifest.json").unlink()
    (tmp_path / "step-00000003" / "model.safetensors").write_bytes(b"\3" * 399 + b"\2")
    (tmp_path / "step-00000004.torn").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".tmp-left-by-a-crash").mkdir()
    (tmp_path / ".tmp-left-by-a-crash" / "model.safetensors").write_text("half")
    checkpoint.point(tmp_path / "step-99999999", tmp_path / "step-00000001")  # a link is no checkpoint
    warnings = []
    assert checkpoint.newest_valid(tmp_path, warnings.append).name == "step-00000002"
    assert len(warnings) == 2
    assert "step-00000004/manifest.json: missing" in warnings[0]
    assert "step-00000004.torn-2" in warnings[0]
    assert "step-00000003/model.safetensors: the content changed" in warnings[1]
    names = {
        "step-00000001",
        "step-00000002",
        "step-00000003.torn",
        "step-00000004.torn",
        "step-00000004.torn-2",
    }
    assert set(os.listdir(tmp_path)) == names | {"notes.txt", "step-99999999"}
    assert checkpoint.newest_valid(tmp_path, refuse).name == "step-00000002"


def test_a_disk_that_cannot_read_moves_nothing(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, "step-00000001", writer(1))
    checkpoint.save(tmp_path, "step-00000002", writer(2))
    real = files.hash_file

    def broken(path):
        if "step-00000002" in str(path):
            raise LlmtoolError(f"{path}: input/output error")
        return real(path)

    monkeypatch.setattr(files, "hash_file", broken)
    warnings = []
    assert checkpoint.newest_valid(tmp_path, warnings.append).name == "step-00000001"
    assert "cannot be read" in warnings[0]
    assert (tmp_path / "step-00000002").is_dir()


def edit(made, change):
    document = files.read_json(made / "manifest.json")
    change(document)
    files.write_json(made / "manifest.json", document)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "./a", "a//b", "..", "", "a\0b"]
)
def test_names_that_leave_the_directory_are_refused_before_anything_is_opened(tmp_path, monkeypatch, name):
    made = checkpoint.save(tmp_path, "step-00000001", writer(1))
    (tmp_path / "secret").write_text("x")
    edit(made, lambda d: d["files"].update({name: {"size": 1, "hash": files.hash_bytes(b"x")}}))
    monkeypatch.setattr(files, "hash_file", lambda path: pytest.fail("opened"))
    with pytest.raises(TornError, match="is not the name of a file inside the checkpoint"):
        checkpoint.verify(made)


def test_hostile_and_broken_manifests(tmp_path):
    made = checkpoint.save(tmp_path, "step-00000001", writer(1))
    good = (made / "manifest.json").read_bytes()
    changes = [
        lambda d: d.update(format=2),
        lambda d: d.update(more=1),
        lambda d: d.pop("files"),
        lambda d: d.update(files=[]),
        lambda d: d["files"].pop("model.safetensors"),
        lambda d: d["files"]["model.safetensors"].update(size=True),
        lambda d: d["files"]["model.safetensors"].update(size=400.0),
        lambda d: d["files"]["model.safetensors"].update(hash="xxh3:0"),
        lambda d: d["files"].update({"extra": {"size": 0, "hash": ""}}),
    ]
    for change in changes:
        edit(made, change)
        with pytest.raises(TornError):
            checkpoint.verify(made)
        (made / "manifest.json").write_bytes(good)
    for raw in (b"", b"null", b"[" * 100_000, b"\xff\xfe", good + b" ", good.replace(b'"size"', b'"size" ')):
        (made / "manifest.json").write_bytes(raw)
        with pytest.raises(TornError, match=r"manifest\.json"):
            checkpoint.verify(made)
    (made / "manifest.json").write_bytes(good)
    checkpoint.verify(made)


def test_extra_files_links_and_devices_are_refused(tmp_path):
    made = checkpoint.save(tmp_path, "step-00000001", writer(1))
    (made / "state" / "extra.bin").write_text("")
    with pytest.raises(TornError, match=r"state/extra\.bin: not in manifest"):
        checkpoint.verify(made)
    (made / "state" / "extra.bin").unlink()
    os.mkfifo(made / "pipe")
    with pytest.raises(TornError, match="pipe: not a regular file"):
        checkpoint.verify(made)
    (made / "pipe").unlink()
    shutil.move(made / "model.safetensors", tmp_path / "shard")
    (made / "model.safetensors").symlink_to(tmp_path / "shard")
    with pytest.raises(TornError, match=r"model\.safetensors: a symbolic link"):
        checkpoint.verify(made)
    (made / "model.safetensors").unlink()
    with pytest.raises(TornError, match=r"model\.safetensors: missing"):
        checkpoint.verify(made)
    with pytest.raises(LlmtoolError, match="no such checkpoint"):
        checkpoint.verify(tmp_path / "absent")


def test_links_are_relative_and_replaced_at_once(tmp_path):
    made = checkpoint.save(tmp_path / "train" / "checkpoints", "step-00000001", writer(1))
    best = tmp_path / "train" / "best"
    checkpoint.point(best, made)
    checkpoint.point(best, made)
    assert os.readlink(best) == "checkpoints/step-00000001"
    (tmp_path / "train").rename(tmp_path / "moved")
    checkpoint.verify(tmp_path / "moved" / "best")
    (tmp_path / "moved" / "last").mkdir()
    with pytest.raises(LlmtoolError, match="exists and is not a symbolic link"):
        checkpoint.point(tmp_path / "moved" / "last", tmp_path / "moved" / "checkpoints" / "step-00000001")


CHILD = """
import sys
from pathlib import Path
from llmtool.core import checkpoint
assert "torch" not in sys.modules, "a checkpoint needs no torch"
parent = Path(sys.argv[1])
def refuse(message): raise SystemExit("torn: " + message)
newest = checkpoint.newest_valid(parent, refuse)
step = checkpoint.step_of(newest) if newest else 0
print("ready", flush=True)
while True:
    step += 1
    def write(directory):
        for name in ("weights", "optimizer"):
            with open(directory / name, "wb", buffering=0) as file:
                for _ in range(20):
                    file.write(step.to_bytes(8, "little") * 2000)
    checkpoint.save(parent, checkpoint.step_name(step), write)
    checkpoint.point(parent / "last", parent / checkpoint.step_name(step))
    checkpoint.prune(parent, {checkpoint.step_name(step), checkpoint.step_name(step - 1)})
"""


def test_a_saver_killed_at_random_moments_always_goes_on_by_itself(tmp_path):
    draw = random.Random(1)
    reached = []
    for _ in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.02, 0.12))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        newest = checkpoint.newest_valid(tmp_path, refuse)
        if newest is None:
            continue
        for path in checkpoint.steps(tmp_path):
            checkpoint.verify(path)
            for name in ("weights", "optimizer"):
                values = np.frombuffer((path / name).read_bytes(), "<u8")
                assert len(values) == 40_000
                assert (values == checkpoint.step_of(path)).all()
        reached.append(checkpoint.step_of(newest))
    assert reached == sorted(reached)
    assert reached[-1] > 3


def test_a_rank_that_sees_another_checkpoint_is_refused(tmp_path, monkeypatch):
    """As where machines have disks of their own: what one reads is not what the first has written."""
    for name in ("here", "there"):
        checkpoint.save(tmp_path / name, "step-00000007", writer(len(name)))
    found, other = (tmp_path / name / "step-00000007" for name in ("here", "there"))
    seen = files.hash_bytes((found / checkpoint.MANIFEST).read_bytes())
    monkeypatch.setattr(ranks, "gathered", lambda mine: [("a", seen), ("b", mine[1])])
    joint.refuse_others(found)
    for path, said in ((other, "has another version of"), (tmp_path / "nowhere", "does not have")):
        with pytest.raises(LlmtoolError, match=f"^rank 1 of 2 on b {said} rank 0's .*share the run's"):
            joint.refuse_others(path)
