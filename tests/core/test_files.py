"""Atomic writes, hashes and disk errors of core/files.py, with a disk that crashes, fills up and breaks."""

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from llmtool.core import files
from llmtool.core.errors import LlmtoolError
from tests.core.crashfs import Crash, CrashFs, fill_disk

MODES = ["keep", "drop", "torn"]


def survivors(tmp_path, monkeypatch, prepare, action, modes=MODES):
    """Crash `action(root)` at every operation in every mode; yields the root as it is after each reboot."""
    at = 0
    while True:
        at += 1
        for seed, mode in enumerate(modes * 3 if "torn" in modes else modes):
            root = tmp_path / f"{at}-{seed}"
            root.mkdir()
            prepare(root)
            disk = CrashFs(root, at)
            monkeypatch.setattr(files, "fs", disk)
            try:
                action(root)
                finished = True
            except Crash:
                finished = False
                disk.reboot(mode, seed * 1000 + at)
            monkeypatch.setattr(files, "fs", files.Fs())
            yield root, finished
        if finished:
            assert at > 3
            return


def test_a_crash_in_write_json_leaves_the_old_or_the_new_document(tmp_path, monkeypatch):
    def prepare(root):
        files.write_json(root / "a.json", {"value": "old" * 50})

    seen = set()
    for root, finished in survivors(
        tmp_path, monkeypatch, prepare, lambda root: files.write_json(root / "a.json", {"value": "new" * 70})
    ):
        value = files.read_json(root / "a.json")["value"]
        assert value in ("old" * 50, "new" * 70)
        assert value == "new" * 70 or not finished
        seen.add(value)
        files.sweep(root)
        assert [path.name for path in root.iterdir()] == ["a.json"]
    assert len(seen) == 2


def test_a_crash_in_replace_directory_leaves_the_old_the_new_or_the_old_beside_it(tmp_path, monkeypatch):
    def prepare(root):
        for name in ("new", "final"):
            (root / name / "inner").mkdir(parents=True)
            (root / name / "inner" / "data").write_bytes(name.encode() * 1000)

    for root, finished in survivors(
        tmp_path, monkeypatch, prepare, lambda root: files.replace_directory(root / "new", root / "final")
    ):
        data = root / "final" / "inner" / "data"
        if not finished and not (root / "final").exists():
            continue
        assert data.read_bytes() in (b"final" * 1000, b"new" * 1000)
        assert not finished or (data.read_bytes() == b"new" * 1000 and len(list(root.iterdir())) == 1)


def test_a_crash_in_remove_tree_leaves_all_or_nothing_under_the_name(tmp_path, monkeypatch):
    def prepare(root):
        (root / "tree" / "a" / "b").mkdir(parents=True)
        (root / "tree" / "a" / "one").write_text("1")
        (root / "tree" / "a" / "b" / "two").write_text("2")
        (root / "tree" / "link").symlink_to("a")

    for root, finished in survivors(
        tmp_path, monkeypatch, prepare, lambda root: files.remove_tree(root / "tree")
    ):
        if (root / "tree").exists():
            assert not finished
            assert (root / "tree" / "a" / "b" / "two").read_text() == "2"
            assert (root / "tree" / "link").is_symlink()
        files.sweep(root)
        assert not [path for path in root.iterdir() if path.name != "tree"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES])
def test_a_failing_disk_gives_one_clear_error_and_keeps_the_old_file(tmp_path, monkeypatch, code):
    root = tmp_path / "root"
    root.mkdir()
    files.write_text(root / "a", "old")
    for at in range(1, 5):
        monkeypatch.setattr(files, "fs", CrashFs(root, at, code))
        with pytest.raises(LlmtoolError) as caught:
            files.write_text(root / "a", "brand new")
        assert str(root / "a") in str(caught.value)
        assert "\n" not in str(caught.value)
        if code == errno.ENOSPC:
            assert "9 bytes needed" in str(caught.value)
            assert "bytes free" in str(caught.value)
        assert os.listdir(root) == ["a"]
        assert (root / "a").read_text() == ("old" if at < 4 else "brand new")
        files.fs.error = None
    monkeypatch.setattr(files, "fs", fill_disk(root, 1))
    with pytest.raises(LlmtoolError, match="no space left"):
        files.make_directories(root / "x" / "y")


def test_append_line_is_whole_or_not_there(tmp_path, monkeypatch):
    log = tmp_path / "metrics.jsonl"
    files.append_line(log, {"step": 1, "loss": math.nan})
    files.append_line(log, "plain \udcff text")
    assert log.read_text().splitlines() == ['{"step": 1, "loss": null}', "plain \\udcff text"]

    real = os.write
    calls = []

    def half(descriptor, data):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "full")
        return real(descriptor, bytes(data)[:5])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(LlmtoolError, match="no space left"):
        files.append_line(log, "this line does not fit")
    monkeypatch.undo()
    assert len(log.read_text().splitlines()) == 2


def test_lines_of_a_log_end_at_line_feeds_alone(tmp_path):
    log = tmp_path / "a.jsonl"
    rows = [{"text": "one\u2028two\u2029three\x85four\x0b\x0c\x1c"}, {"text": "Zürich"}]
    for row in rows:
        files.append_line(log, row)
    assert [json.loads(line) for line in files.read_lines(log)] == rows
    log.write_bytes(log.read_bytes() + b'{"text": "Z\xc3')
    assert files.read_lines(log)[2] == '{"text": "Z\ufffd'
    with pytest.raises(LlmtoolError, match=r"b\.jsonl: no such file"):
        files.read_lines(tmp_path / "b.jsonl")


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3]))
    files.write_bytes(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_json_takes_what_the_project_has_and_refuses_the_rest(tmp_path):
    value = {
        "order": 1,
        "nan": math.nan,
        "float32": np.float32(0.5),
        "infinite": np.float32(np.inf),
        "int": np.int64(3),
        "array": np.array([1.0, np.nan]),
        "tensor": torch.tensor(2.5),
        "path": Path("a/b"),
        "tuple": (True, None),
        "text": "Grüße \ud800",
        7: "key",
    }
    files.write_json(tmp_path / "a.json", value)
    back = files.read_json(tmp_path / "a.json")
    assert list(back)[:3] == ["order", "nan", "float32"]
    assert back["nan"] is None
    assert back["infinite"] is None
    assert back["array"] == [1.0, None]
    assert (back["float32"], back["int"], back["tensor"], back["path"]) == (0.5, 3, 2.5, "a/b")
    assert back["text"] == "Grüße \ud800"
    assert "Grüße" in (tmp_path / "a.json").read_bytes().decode()
    with pytest.raises(TypeError, match="object is not JSON"):
        files.write_json(tmp_path / "b.json", {"x": object()})
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[NaN]", b"\xff", b"[" * 100_000, b"{} {}"])
def test_read_json_names_the_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(LlmtoolError, match=r"a\.json: not a JSON document"):
        files.read_json(tmp_path / "a.json")


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(LlmtoolError, match="pipe: not a regular file"):
        files.hash_file(tmp_path / "pipe")
    with pytest.raises(LlmtoolError, match="not a regular file"):
        files.read_json(Path("/dev/zero"))
    with pytest.raises(LlmtoolError, match="not a regular file"):
        files.hash_file(tmp_path)
    with pytest.raises(LlmtoolError, match="loop"):
        files.hash_file(tmp_path / "loop")
    with pytest.raises(LlmtoolError, match="no such file"):
        files.hash_file(tmp_path / "absent")


def test_writes_do_not_follow_links(tmp_path):
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / "link").symlink_to("precious")
    with pytest.raises(LlmtoolError, match="symbolic link"):
        files.append_line(tmp_path / "link", "x")
    files.write_text(tmp_path / "link", "new")
    assert target.read_text() == "mine"
    assert not (tmp_path / "link").is_symlink()
    (tmp_path / "folder").symlink_to(tmp_path)
    files.remove_tree(tmp_path / "folder")
    assert target.read_text() == "mine"


def test_hashes(tmp_path):
    for size in (0, 1, files.HASH_BLOCK - 1, files.HASH_BLOCK, 2 * files.HASH_BLOCK + 7):
        data = np.random.default_rng(size).bytes(size)
        (tmp_path / "a").write_bytes(data)
        assert files.hash_file(tmp_path / "a") == files.hash_bytes(data)
    assert files.hash_bytes(b"") == "xxh3:99aa06d3014798d86001c324468d497f"  # xxHash's published value


def test_make_directories_refuses_a_file_on_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LlmtoolError):
        files.make_directories(tmp_path / "file" / "a")
    with pytest.raises(LlmtoolError, match="not a directory"):
        files.make_directories(tmp_path / "file")
    files.make_directories(tmp_path / "a" / "b")
    files.make_directories(tmp_path / "a" / "b")


def test_two_processes_make_the_same_directories(tmp_path, monkeypatch):
    class Late(files.Fs):
        def make_directory(self, path):
            path.mkdir()  # the other one, a moment before
            super().make_directory(path)

    monkeypatch.setattr(files, "fs", Late())
    files.make_directories(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_failed_replacement_puts_the_old_directory_back(tmp_path, monkeypatch):
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text(name)
    real = files.Fs.rename

    class Second(files.Fs):
        def rename(self, source, target):
            if source.name == "new":
                raise OSError(errno.EIO, "broken")
            real(self, source, target)

    monkeypatch.setattr(files, "fs", Second())
    with pytest.raises(LlmtoolError, match="input/output error"):
        files.replace_directory(tmp_path / "new", tmp_path / "final")
    assert (tmp_path / "final" / "data").read_text() == "final"
    assert json.dumps(sorted(os.listdir(tmp_path))) == '["final", "new"]'


def test_a_stream_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "out"
    with files.stream(target) as file:
        file.write(b"one")
        assert not target.exists()
        file.write(b" two")
    assert target.read_bytes() == b"one two"

    def broken_off(error):
        with files.stream(target) as file:
            file.write(b"half")
            raise error

    for error in (KeyboardInterrupt(), ValueError("no")):
        with pytest.raises(type(error)):
            broken_off(error)
    assert target.read_bytes() == b"one two"
    assert os.listdir(tmp_path) == ["out"]

    class Full(files.Fs):
        def sync(self, path):
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files, "fs", Full())
    with pytest.raises(LlmtoolError, match="no space left"), files.stream(target) as file:
        file.write(b"more")
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(LlmtoolError, match="no such file"), files.stream(tmp_path / "no" / "out"):
        raise AssertionError
