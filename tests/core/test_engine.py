"""Engines: results in order from one process and from several, what is kept, and who died."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmtool.core import cluster
from llmtool.core.cluster import RayEngine
from llmtool.core.engine import Engine, Failed, Packed
from llmtool.core.errors import ConfigError, DataError, LlmtoolError, MemoryLimitError
from llmtool.core.kept import Kept
from llmtool.core.pool import LocalEngine, Pool
from tests.conftest import Run


def square(number: int) -> Packed:
    """The first of each three takes its time, so that results are not ready in order."""
    time.sleep(0.02 * (number % 3 == 0))
    return {"of": number}, {"square": np.array([number**2])}


def more(number: int) -> Packed:
    return {"of": number + 1}, {}


def fail(number: int) -> Packed:
    if number >= 3:
        raise DataError(f"thing {number} is bad")
    return {"of": number}, {}


def die(how: int) -> Packed:
    if how < 0:
        os.kill(os.getpid(), -how)
    os._exit(how)


class Unsendable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("only one argument")


def odd(number: int) -> Packed:
    raise Unsendable(1, 2)


@pytest.mark.parametrize("make", [Engine, lambda: Pool(2, __name__)], ids=["here", "two processes"])
def test_results_come_in_order(make: Callable[[], Engine]) -> None:
    taken: list[int] = []

    def things(last: int) -> Any:
        for number in range(last):
            taken.append(number)
            yield number

    with make() as engine:
        found = [(thing, document["of"], arrays["square"][0]) for thing, (document, arrays)
                 in engine.map(square, things(20))]  # fmt: skip
        assert found == [(number, number, number**2) for number in range(20)]
        taken.clear()
        results = engine.map(square, things(1000))
        next(results)
        assert len(taken) <= 2 * engine.ahead + 2  # memory is bounded: nothing is read far ahead
        results.close()  # type: ignore[attr-defined]
        inner = (document["of"] for _, (document, _) in engine.map(more, range(10)))
        assert [document["of"] for _, (document, _) in engine.map(square, inner)] == list(range(1, 11))
        seen = []
        with pytest.raises(DataError, match=r"^thing 3 is bad$"):  # the first, whichever was ready first
            seen += [document for _, (document, _) in engine.map(fail, [0, 1, 2, 3, 4, 5])]
        with pytest.raises((RuntimeError, Unsendable), match="only one argument"):
            engine.submit(odd, 1).result()
        assert engine.submit(square, 7).result()[0] == {"of": 7}  # it works on after an error


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        (-signal.SIGKILL, MemoryLimitError, r"worker \d of 2 \(process \d+\) was killed .* part-7.*memory"),
        (-signal.SIGSEGV, LlmtoolError, r"worker \d of 2 \(process \d+\) was ended by SIGSEGV .* part-7"),
        (3, LlmtoolError, r"worker \d of 2 \(process \d+\) ended .* part-7 \(exit code 3\)"),
    ],
)
def test_a_worker_that_dies_is_named(how: int, kind: type[Exception], message: str) -> None:
    with Pool(2, __name__) as engine:
        engine.submit(square, 3)
        with pytest.raises(kind, match=message):
            engine.submit(die, how, "part-7").result()
        processes = [member.process for member in engine._members]
    assert not any(process.is_alive() for process in processes)


def test_what_is_kept_is_not_done_again(tmp_path: Path) -> None:
    done: list[int] = []

    def work(number: int) -> Packed:
        done.append(number)
        return {"name": f"é\ud800{number}", "cells": [None, 0.1, True]}, {
            "wide": np.arange(6, dtype=np.uint16).reshape(2, 3), "none": np.zeros((0, 2), np.uint64)
        }  # fmt: skip

    def all_of(key: str) -> list[Packed]:
        with Kept(Engine(), tmp_path / "parts", key) as engine:
            return [packed for _, packed in engine.map(work, range(3), lambda number: f"part-{number}")]

    first = all_of("a")
    again = all_of("a")
    assert done == [0, 1, 2]
    for (one, arrays), (other, others) in zip(first, again, strict=True):
        assert one == other
        assert list(arrays) == list(others)
        for name in arrays:
            assert arrays[name].dtype == others[name].dtype
            np.testing.assert_array_equal(arrays[name], others[name])
    rotten = sorted((tmp_path / "parts/a").iterdir())[1]
    rotten.write_bytes(rotten.read_bytes()[:-1] + b"?")
    (tmp_path / "parts/a/.tmp-1").write_bytes(b"half")
    all_of("a")
    assert done == [0, 1, 2, 1]
    assert len(list((tmp_path / "parts/a").iterdir())) == 3
    all_of("b")  # something that results depend on has changed
    assert done[4:] == [0, 1, 2]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["b"]


def test_the_configuration_of_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(LocalEngine(workers=1).open("os")) is Engine
    assert LocalEngine(workers=3).count() == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    assert LocalEngine().count() == 5
    with pytest.raises(ConfigError, match=r"data\.engine\.address: 'elsewhere' is neither auto"):
        RayEngine(name="ray", address="elsewhere").check()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'llmtool\[ray\]'"):
        RayEngine(name="ray").check()


def test_an_address_where_nobody_answers(fresh: Path, process: Run) -> None:
    pytest.importorskip("ray")
    began = time.monotonic()
    said = ["--set", "data.engine.name=ray", "--set", "data.engine.address=127.0.0.1:9"]
    ended = process("prepare", "table.yaml", *said, cwd=fresh)
    assert ended.code == 2
    assert "data.engine.address: no Ray cluster answers at 127.0.0.1:9 (connection refused)" in ended.err
    assert time.monotonic() - began < 60  # most of it is loading libraries


MUTE = """
import socket
from llmtool.core import cluster
from llmtool.core.errors import ConfigError
cluster.ANSWER = 2
with socket.socket() as mute:
    mute.bind(("127.0.0.1", 0))
    mute.listen()
    try:
        cluster.RayEngine(name="ray", address=f"127.0.0.1:{mute.getsockname()[1]}").open("os")
    except ConfigError as error:
        print(error)
"""


def test_an_address_where_something_else_answers() -> None:
    pytest.importorskip("ray")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    command = [sys.executable, "-c", MUTE]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
    assert "something else does: it could not be joined in 2 s" in ended.stdout


def test_a_machine_of_the_cluster_with_another_llmtool_is_refused() -> None:
    here = cluster.versions()
    assert cluster._run(more, 1, here) == ({"of": 2}, {})
    refused = cluster._run(more, 1, here.replace("llmtool ", "llmtool 0."))
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, ConfigError)
    assert str(refused.error).startswith(
        f"data.engine: {socket.gethostname()} of the Ray cluster has {here}; "
    )


def test_a_machine_of_the_cluster_that_cannot_begin_is_named() -> None:
    said = """\x1b[36mray::_run()\x1b[39m (pid=102, ip=10.0.0.2)
  At least one of the input arguments for this task could not be computed:
ModuleNotFoundError: No module named 'llmtool'"""
    assert cluster._not_begun(said, "clean-1").startswith(
        "Ray: 10.0.0.2 could not begin the work on clean-1 (ModuleNotFoundError: No module named 'llmtool'): "
        f"install {cluster.versions()} on every machine"
    )


@pytest.mark.parametrize(
    ("problem", "noted"),
    [
        ("RuntimeError: Version mismatch: The cluster was started with: Ray: 2.40.0", True),
        ("ConnectionError: Could not find any running Ray instance.", False),
    ],
)
def test_a_cluster_that_runs_here_and_cannot_be_joined_is_noted(
    problem: str, noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    began: list[dict[str, Any]] = []
    monkeypatch.setattr(cluster, "_problem", lambda address: problem)
    monkeypatch.setattr(cluster.console, "note", notes.append)
    cluster._connect(SimpleNamespace(init=lambda **given: began.append(given)), "auto")
    assert began[0]["address"] == "local"
    assert [problem in note for note in notes] == [True] * noted
