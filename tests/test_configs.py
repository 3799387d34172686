"""Every configuration that is shipped, through its commands, at two steps and on a handful of its data."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmtool import experiment
from tests import stand_ins
from tests.conftest import Run

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configurations beside a little of their data: of what the repository holds the beginning, of what
    `scripts/fetch.py` gets stand-ins of the same shape."""
    directory = tmp_path_factory.mktemp("configs")
    for path in CONFIGS:
        (directory / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, directory / path.relative_to(ROOT))
    data = directory / "configs/data"
    data.mkdir()
    digits = ("digits-images-idx3-ubyte.gz", "digits-labels-idx1-ubyte.gz")
    for file_name in ("iris.csv", "chats.jsonl", *digits):
        shutil.copy(ROOT / "configs/data" / file_name, data)
    with gzip.open(ROOT / "configs/data/adult.csv.gz", "rt") as file:
        rows = [next(file) for _ in range(3000)]
    with gzip.open(data / "adult.csv.gz", "wt") as file:
        file.writelines(rows)
    speeches = (ROOT / "configs/data/tinyshakespeare.txt").read_text().split("\n\n")
    kings = [speech for speech in speeches if speech.startswith("KING ")]
    (data / "tinyshakespeare.txt").write_text("\n\n".join(kings[:60] + speeches[:150]))
    for stand_in in stand_ins.SETS:
        stand_in(directory / "data" / stand_in.__name__)
    return directory


def test_there_are_stories_for_tables_text_and_pictures() -> None:
    folders = {path.parent.name for path in CONFIGS}
    assert {"tabular", "language", "images"} <= folders


def overrides(path: Path) -> list[str]:
    """Two steps, no requirement (nobody meets one after two), short samples, few games."""
    loaded = experiment.load(str(path)).experiment
    more = ["--set", "evaluate.require={}"]
    for section in ("train", "finetune"):
        if getattr(loaded, section) is not None:
            # to compile is not worth it for two steps
            keys = ("budget={steps: 2}", "validate_every=2", "compile=false")
            more += [word for key in keys for word in ("--set", f"{section}.{key}")]
    if loaded.evaluate.samples is not None:
        more += ["--set", "evaluate.samples.tokens=5"]
    if loaded.data.source.format == "othello_random":
        more += ["--set", "data.source.games=200"]
    if loaded.evaluate.probe is not None:
        more += ["--set", "evaluate.probe={games: 20, scored: 10, positions: 5}"]
    if any(suite.kind == "play" for suite in loaded.evaluate.suites):
        asked = [suite.fewer(2).model_dump(mode="json") for suite in loaded.evaluate.suites]
        more += ["--set", f"evaluate.suites={json.dumps(asked)}"]
    return more


def run(llmtool: Run, place: Path, path: Path, command: str) -> dict[str, object]:
    ended = llmtool(command, name(path), "--json", *overrides(path), cwd=place)
    assert ended.code == 0, ended.err
    return ended.json  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_configuration_runs(llmtool: Run, place: Path, path: Path) -> None:
    loaded = experiment.load(str(path)).experiment
    for start in {loaded.finetune.start if loaded.finetune else "", loaded.data.encode.like or ""} - {""}:
        if not start.startswith("runs/"):
            continue
        stem = Path(start).parent.name  # runs/<stem>/train
        base = next(other for other in CONFIGS if other.stem == stem)
        if base != path:
            run(llmtool, place, base, "train")
    commands = ["prepare", "describe"]
    commands += [section for section in ("train", "finetune") if getattr(loaded, section) is not None]
    for command in [*commands, "evaluate"]:
        document = run(llmtool, place, path, command)
        assert document["status"] == "done"
    root = place / loaded.run if loaded.run else place / "runs" / path.stem
    report = json.loads((root / "evaluate/report.json").read_text())
    assert report["metrics"]
    for requirement in loaded.evaluate.require:  # what a story asks for is a figure that there is
        split, _, figure = requirement.partition(".")
        assert figure in report["metrics"][split] or figure in report["undefined"][split], requirement


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_configuration_says_what_it_is_and_how_it_is_run(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    for word in re.findall(r"configs/[\w/]+\.yaml|scripts/[\w/]+\.py", text):
        assert (ROOT / word).exists(), word
    for command in re.findall(r"llmtool (\w+) ", text):
        assert command in ("prepare", "describe", "train", "finetune", "evaluate", "generate")


def test_the_conversations_are_what_their_script_writes() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/chats.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
