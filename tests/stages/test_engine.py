"""The engines of prepare: the same bytes from every one of them, and from a run that was killed anywhere."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmtool.core.errors import DataError
from llmtool.core.kept import Kept
from llmtool.core.pool import Pool
from llmtool.data import DataConfig, sources, tokens
from llmtool.stages import engine as stage
from llmtool.stages.prepare import prepare
from tests.conftest import story

ROOT = Path(__file__).parent.parent.parent
CLEAN = [
    {"step": "normalize", "columns": ["text"], "collapse_space": True},
    {"step": "length", "column": "text", "min": 30, "max": 4000},
    {"step": "types", "columns": {"id": "integer"}},
    {"step": "drop_duplicates", "columns": ["text"]},
]
JSONL: dict[str, Any] = {
    "source": {"format": "jsonl", "path": "corpus.jsonl"},
    "clean": CLEAN,
    "encode": {"as": "tokens", "tokenizer": {"kind": "bpe", "vocabulary": 400}},
    "max_bad": 0.2,
}
CORPUS = JSONL | {
    "clean": [
        {"step": "fix_text", "columns": ["text"]},
        {"step": "personal_data", "columns": ["text"]},
        {"step": "decontaminate", "column": "text", "against": ["asked.txt"], "ngram": 5},
        {"step": "drop_near_duplicates", "column": "text"},
    ]
}
WHOLE = {  # documents that go on from chunk to chunk
    "source": {"format": "text", "path": ["a.txt", "b.txt"]},
    "clean": [{"step": "replace", "column": "text", "mapping": {"x": "y"}}],
    "split": {"by": "order"},
    "encode": {"as": "tokens", "tokenizer": {"kind": "characters"}},
}
TABLE: dict[str, Any] = {
    "source": {"format": "jsonl", "path": "corpus.jsonl"},
    "clean": [*CLEAN[1:3], {"step": "drop_missing", "columns": ["kind"]}],
    "split": {"by": "stratified"},
    "encode": {"as": "text", "target": "kind", "tokenizer": {"kind": "words", "minimum": 1}, "length": 16},
    "max_bad": 0.2,
}
FEATURES: dict[str, Any] = {
    "source": {"format": "jsonl", "path": "corpus.jsonl"},
    "clean": [CLEAN[1], {"step": "drop_duplicates", "columns": ["text"]}],
    "encode": {"as": "features", "target": "kind", "columns": ["size", "day", "tone"], "scale": "piecewise"},
    "max_bad": 0.2,
}
BARE = {key: value for key, value in FEATURES.items() if key != "clean"}  # nothing is kept of what was read
CHAT: dict[str, Any] = {
    "source": {"format": "jsonl", "path": "chat.jsonl"},
    "clean": [{"step": "require", "columns": ["messages"]}],
    "encode": {
        "as": "chat",
        "tokenizer": {"kind": "bytes"},
        "template": "plain",
        "length": 200,
        "long": "split",
    },
    "max_bad": 0.2,
}
MIXED: dict[str, Any] = {
    "source": {"format": "mixture", "parts": {"rows": JSONL["source"], "texts": WHOLE["source"]}},
    "clean": [CLEAN[0], CLEAN[3]],
    "encode": {"as": "tokens", "tokenizer": {"kind": "characters"}},
    "max_bad": 0.2,
}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of which every one is many chunks and batches, and counts as large."""
    chance = random.Random(3)
    texts = story(90, seed=5).split("\n\n")
    rows = [{"id": at, "text": f"{text}\n\u00e9 {at}", "kind": chance.choice("ab")}
            for at, text in enumerate(texts)]  # fmt: skip
    rows += rows[3:9]
    rows[5]["text"] += " Write to jane.roe@example.com or +41 44 668 18 00. It was cafÃ© noir."
    (tmp_path / "asked.txt").write_text(texts[40])
    rows[11]["id"], rows[12]["text"], rows[70]["late"] = "none", "short", [1, None]
    for at, row in enumerate(rows):
        day = None if at % 11 == 0 else f"2024-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
        row |= {"size": chance.gauss(5, 2), "day": day, "tone": chance.choice(["low", "high", "?"])}
    rows[30]["size"] = rows[31]["size"] = "much"
    lines = [json.dumps(row) for row in rows]
    lines[20:20] = ["{broken", ""]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    talks = [
        [{"role": role, "content": text[:70]} for role in ("user", "assistant")] * (1 + at % 5)
        for at, text in enumerate(texts)
    ]
    talks[17], talks[33] = [{"role": "nobody", "content": "x"}], talks[33][:1]
    lines = [json.dumps({"messages": talk if at % 29 else None}) for at, talk in enumerate(talks)]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines) + "\n")
    for seed, name in enumerate(("a.txt", "b.txt")):
        (tmp_path / name).write_text(story(120, seed))
    read = sources.Source.read
    monkeypatch.setattr(sources.Source, "read", lambda self, rows=7: read(self, min(rows, 7)))
    monkeypatch.setattr(tokens, "BATCH", 700)
    monkeypatch.setattr(stage, "LARGE", 100)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(config: dict[str, Any], name: str, **engine: Any) -> dict[str, bytes]:
    """Every file that prepare leaves."""
    directory = Path(name) / "prepare"
    directory.mkdir(parents=True, exist_ok=True)
    prepare(DataConfig.model_validate(config | ({"engine": engine} if engine else {})), 0, directory)
    assert [path.name for path in directory.parent.iterdir()] == ["prepare"]
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]


def test_every_engine_makes_the_same_bytes(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, config in enumerate((JSONL, CORPUS, WHOLE, TABLE, MIXED, FEATURES, BARE, CHAT)):
        one = made(config, f"one{number}", workers=1)
        assert not differing(one, made(config, f"two{number}", workers=2))
        with monkeypatch.context() as small:
            small.setattr(stage, "LARGE", 1 << 30)
            small.setattr(Pool, "_start", None)
            assert not differing(one, made(config, f"small{number}", workers=2))
        ledger = json.loads(one["ledger.json"])
        assert ledger["quarantined"] or config is WHOLE
        assert config is not CORPUS or ledger["dropped"].keys() >= {"near-duplicate", "contaminated"}
        assert ("train.inputs.bin" if config in (FEATURES, BARE) else "train.tokens.bin") in one


@pytest.mark.parametrize("config", [TABLE, WHOLE, CHAT], ids=["table", "whole", "chat"])
def test_a_part_that_is_lost_meanwhile_is_read_again(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    whole = made(config, "whole", workers=2)
    raw, asked = Kept.raw, []

    def torn(self: Kept, name: str) -> bytes | None:
        asked.append(name)
        return None if name.endswith("-000001") else raw(self, name)

    monkeypatch.setattr(Kept, "raw", torn)
    assert not differing(whole, made(config, "torn", workers=2))
    assert any(name.endswith("-000001") for name in asked)


class Killed(BaseException):
    """The power is gone."""


def test_killed_anywhere_it_goes_on_and_ends_in_the_same_bytes(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(JSONL, "whole", workers=1)
    save, done, until = Kept.save, list[str](), [0]

    def counted(self: Kept, name: str, result: Any) -> None:
        if len(done) == until[0]:
            raise Killed
        done.append(name)
        save(self, name, result)

    monkeypatch.setattr(Kept, "save", counted)
    until[0] = sys.maxsize
    made(JSONL, "counted", workers=1)
    parts = list(done)
    assert len(parts) > 20
    assert len(set(parts)) == len(parts)
    for cut in (0, 1, 5, len(parts) // 2, len(parts) - 1):
        done.clear()
        until[0] = cut
        with pytest.raises(Killed):
            made(JSONL, f"cut{cut}", workers=1)
        assert len(list(Path(f"cut{cut}/.parts").rglob("*.part"))) == cut
        before, until[0] = list(done), sys.maxsize
        assert not differing(whole, made(JSONL, f"cut{cut}", workers=1))
        assert sorted(done) == sorted(parts)  # each once
        assert done[:cut] == before


def test_what_was_done_of_other_data_is_not_used(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "LARGE", 0)
    with monkeypatch.context() as broken:
        broken.setattr("llmtool.stages.prepare._write", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(JSONL, "run", workers=1)
    assert list(Path("run/.parts").rglob("*.part"))
    text = Path("corpus.jsonl").read_text()
    Path("corpus.jsonl").write_text(text.replace("king", "pope"))
    assert not differing(made(JSONL, "other", workers=1), made(JSONL, "run", workers=1))


def test_a_small_table_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "__init__", None)
    monkeypatch.setattr(Kept, "__init__", None)
    rows = "".join(f"{n},{n % 7},{'red' if n % 3 else 'blue'}\n" for n in range(150))
    (tmp_path / "a.csv").write_text("a,b,y\n" + rows)
    config = {"source": {"format": "csv", "path": str(tmp_path / "a.csv")},
              "encode": {"as": "features", "target": "y"}}  # fmt: skip
    assert made(config, str(tmp_path / "run"), workers=8)


def test_an_error_in_a_worker_is_the_same_error(corpus: Path) -> None:
    config = JSONL | {"max_bad": 0.0}
    said = []
    for workers in (1, 2):
        with pytest.raises(DataError) as caught:
            made(config, f"bad{workers}", workers=workers)
        said.append(str(caught.value).replace(f"bad{workers}", "bad"))
    assert said[0] == said[1]
    assert "corpus.jsonl, line 12: id is not an integer" in said[0]


def test_an_encoder_in_a_worker_names_the_row(corpus: Path) -> None:
    config = CHAT | {"encode": CHAT["encode"] | {"long": "refuse"}}
    said = []
    for workers in (1, 2):
        with pytest.raises(DataError) as caught:
            made(config, f"long{workers}", workers=workers)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert re.match(r"chat\.jsonl, line \d+: longer than data\.encode\.length: 200 tokens", said[0])


# --- as a process of its own: Ray, and a kill that no handler sees ---

CHILD = """
import sys
from llmtool.data import sources, tokens
from llmtool.stages import engine
read = sources.Source.read
sources.Source.read = lambda self, rows=7: read(self, min(rows, 7))
tokens.BATCH, engine.LARGE = 700, 100
if sys.argv.pop() == "die":
    import os, signal
    from llmtool.core.kept import Kept
    save, left = Kept.save, [12]
    def until(self, name, result):
        save(self, name, result)
        left[0] -= 1
        left[0] or os.kill(os.getpid(), signal.SIGKILL)
    Kept.save = until
from llmtool.cli import main
main()
"""


def child(cwd: Path, *arguments: str, last: str = "live") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, *arguments, last]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


@pytest.fixture
def written(corpus: Path) -> Path:
    """A configuration on disk, and its dataset in `whole`."""
    made(JSONL, "whole", workers=1)
    (corpus / "c.yaml").write_text(json.dumps({"run": "run", "data": JSONL}))
    return corpus


def same(directory: Path) -> None:
    """The dataset in `run` is the one in `whole`; its card names the hashes of its inputs besides."""
    for path in (directory / "whole/prepare").iterdir():
        other = directory / "run/prepare" / path.name
        if path.name == "card.json":
            cards = [json.loads(one.read_text()) | {"files": {}} for one in (path, other)]
            assert cards[0] == cards[1]
        else:
            assert path.read_bytes() == other.read_bytes(), path.name


def test_a_kill_that_no_handler_sees(written: Path) -> None:
    ended = child(written, "prepare", "c.yaml", "--set", "data.engine.workers=2", last="die")
    assert ended.returncode == -9, ended.stderr
    parts = {path.name for path in (written / "run/.parts").rglob("*.part")}
    assert len(parts) == 12
    ended = child(written, "prepare", "c.yaml", "--set", "data.engine.workers=2")
    assert ended.returncode == 0, ended.stderr
    same(written)


def test_ray_makes_the_same_bytes(written: Path) -> None:
    pytest.importorskip("ray")
    ended = child(written, "prepare", "c.yaml", "--set", "data.engine.name=ray")
    assert ended.returncode == 0, ended.stderr
    same(written)
    assert not (written / "run/.parts").exists()


def test_processes_that_clean_and_tokenise_do_without_torch() -> None:
    """It would take each of them a second and a half to import."""
    code = f"import sys, {stage.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
