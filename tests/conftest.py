"""What all tests share: no network, one thread, ways to run the command line, two tiny finished projects."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "120"}
for name in ("HF_HOME", "XDG_CACHE_HOME", "FORCE_COLOR"):
    os.environ.pop(name, None)

import numpy as np  # noqa: E402 (after the variables that it and torch read)
import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from llmtool.cli import app  # noqa: E402
from llmtool.core.contracts import Classes, NextToken, Tokens  # noqa: E402
from llmtool.models import pretrained  # noqa: E402
from llmtool.models.encoder import EncoderConfig  # noqa: E402
from llmtool.models.transformer import TransformerConfig  # noqa: E402

torch.set_num_threads(1)
SEED = int(os.environ.get("LLMTOOL_TEST_SEED", "0"))  # another finds tests that pass by luck
with contextlib.suppress(ModuleNotFoundError):  # `make gpu` goes without it
    from hypothesis import settings

    settings.register_profile("llmtool", deadline=None, derandomize=not SEED)
    settings.load_profile("llmtool")
COMMANDS = ("prepare", "describe", "train", "finetune", "evaluate")


def pytest_configure(config: pytest.Config) -> None:
    """No test may reach the network; sockets of this machine stay open."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] != "127.0.0.1":
            raise RuntimeError(f"a test wanted to reach {address}")
        connect(self, address)

    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of CUDA need a device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test draws the same numbers whichever ran before it in its process."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True, scope="session")
def _no_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing may depend on what lies in the user's home directory."""
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
    yield
    if before is not None:
        os.environ["HOME"] = before


# --- the command line ---


@dataclass
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout; fails when there is anything else."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The last line on stderr."""
        return self.err.splitlines()[-1].removeprefix("llmtool: ") if self.err else ""


Run = Callable[..., Ended]


def _environment() -> dict[str, str]:
    root = Path(__file__).parent.parent
    return {**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "default"}


@pytest.fixture(scope="session")
def llmtool() -> Run:
    """Run `llmtool <arguments>` in this process, in the directory `cwd`; whatever it raises is a failure."""

    def run(*arguments: object, cwd: Path) -> Ended:
        with contextlib.chdir(cwd):
            result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "internal error" not in result.stderr, result.stderr
        assert "Traceback" not in result.stderr, result.stderr
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run


def _hear() -> None:
    """A shell that runs pytest in the background has all that it starts ignore Ctrl-C; here it is heard."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Begin `llmtool <arguments>` as a process of its own, in the directory `cwd`."""

    def begin(*arguments: object, cwd: Path, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "llmtool", *map(str, arguments)]
        pipe = subprocess.PIPE
        more = {"preexec_fn": _hear, **more}
        return subprocess.Popen(
            command, cwd=cwd, stdout=pipe, stderr=pipe, text=True, env=_environment(), **more
        )

    return begin


@pytest.fixture(scope="session")
def process(start: Callable[..., subprocess.Popen[str]]) -> Run:
    """Run `llmtool <arguments>` as a process of its own, to its end."""

    def run(*arguments: object, cwd: Path) -> Ended:
        running = start(*arguments, cwd=cwd)
        out, err = running.communicate(timeout=120)
        assert "Traceback" not in err, err
        return Ended(running.returncode, out, err)

    return run


# --- two tiny projects ---

TABLE = """\
seed: 3
data:
  source: {format: csv, path: people.csv}
  split: {by: stratified, on: income, train: 0.7, validation: 0.15, test: 0.15}
  encode: {as: features, target: income}
model: {family: mlp, hidden: [8], dropout: 0.1}
train: {budget: {steps: 12}, batch: 16, log_every: 2, validate_every: 4}
finetune: {start: runs/table/train, method: {kind: lora, rank: 2}, budget: {steps: 3}, batch: 16}
evaluate: {require: {test.accuracy: ">=0.1"}}
"""
TEXT = """\
data:
  source: {format: text, path: story.txt, documents: blank}
  split: {by: random, train: 0.7, validation: 0.15, test: 0.15}
  encode: {as: tokens, tokenizer: {kind: characters}}
model: {family: transformer, architecture: llama, depth: 2, heads: 2, width: 16, context: 16, dropout: 0.1}
train: {budget: {steps: 12}, batch: 4, log_every: 2, validate_every: 4}
finetune: {start: runs/text/train, method: {kind: lora, rank: 2}, budget: {steps: 3}, batch: 4}
evaluate: {samples: {prompts: [the], tokens: 8}}
"""


REVIEWS = """\
seed: 3
data:
  source: {format: csv, path: reviews.csv}
  split: {by: stratified, train: 0.7, validation: 0.15, test: 0.15}
  encode: {as: text, text: review, target: sentiment, tokenizer: {kind: bpe, vocabulary: 300}, length: 24}
model: {family: encoder, depth: 1, heads: 2, width: 16, context: 24, dropout: 0.1}
train: {budget: {steps: 12}, batch: 16, log_every: 2, validate_every: 4}
finetune: {start: runs/reviews/train, method: {kind: lora, rank: 2}, budget: {steps: 3}, batch: 16}
evaluate: {require: {test.accuracy: ">=0.1"}}
"""


def people(rows: int = 300, seed: int = 1) -> str:
    """A table with numbers, gaps and categories, whose class can mostly be told."""
    chance = random.Random(seed)
    lines = ["age,hours,city,member,income"]
    for _ in range(rows):
        age, hours = chance.randint(18, 80), round(chance.gauss(40, 8), 1)
        shown = "" if chance.random() < 0.2 else str(hours)
        city, member = chance.choice(["Bern", "Basel", "Zug", ""]), chance.choice(["yes", "no"])
        income = "high" if age + hours + chance.gauss(0, 8) > 92 else "low"
        lines.append(f"{age},{shown},{city},{member},{income}")
    return "\n".join(lines) + "\n"


def story(documents: int = 60, seed: int = 1) -> str:
    """A few short documents, a blank line between them."""
    chance = random.Random(seed)
    words = [
        "the",
        "a",
        "king",
        "queen",
        "said",
        "went",
        "home",
        "away",
        "with",
        "red",
        "old",
        "young",
        "cat",
    ]
    return "\n\n".join(
        " ".join(chance.choices(words, k=chance.randint(5, 25))) + "." for _ in range(documents)
    )


def reviews(rows: int = 200, seed: int = 1) -> str:
    """Short texts, whose class stands in one of their words."""
    chance = random.Random(seed)
    words = ["the", "film", "was", "a", "story", "of", "two", "people", "in", "town"]
    lines = ["review,sentiment"]
    for _ in range(rows):
        sentiment = chance.choice(["good", "bad"])
        found = chance.choices(words, k=chance.randint(2, 20))
        found.insert(
            chance.randint(0, len(found)),
            chance.choice({"good": ["fine", "great"], "bad": ["dull", "poor"]}[sentiment]),
        )
        lines.append(f"{' '.join(found)},{sentiment}")
    return "\n".join(lines) + "\n"


def write_projects(directory: Path) -> None:
    """The files of both projects, nothing run yet."""
    for name, text in (
        ("people.csv", people()), ("story.txt", story()), ("table.yaml", TABLE), ("text.yaml", TEXT)
    ):  # fmt: skip
        (directory / name).write_text(text)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A directory with both projects, nothing run yet."""
    write_projects(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, llmtool: Run) -> Path:
    """A directory in which all five commands have run on both projects. Only to be read."""
    directory = tmp_path_factory.mktemp("finished")
    write_projects(directory)
    for project in ("table", "text"):
        for command in COMMANDS:
            ended = llmtool(command, f"{project}.yaml", cwd=directory)
            assert ended.code == 0, ended.err
    return directory


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished directory, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True))


# --- a model that others made ---

OTHERS = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz .\n"]


def others_encoder(directory: Path, rows: int = 60, head: Classes | None = None, context: int = 64) -> Path:
    """A small BERT with random weights and a tokenizer of the reviews' words, as transformers would leave it:
    the body alone, or with a head for two classes."""
    directory.mkdir(parents=True)
    torch.manual_seed(0)
    config = EncoderConfig(depth=2, heads=2, width=32, context=context, dropout=0.1)
    model = config.build(Tokens(rows), head or Classes(1))
    model.outputs, model.labels = head, ["bad", "good"] if head else None
    pretrained.save(model, directory)
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *sorted(set(re.findall(r"\w+", reviews())))]
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(words[:4])
    around = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=around)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "cls", "sep", "unk")}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    return directory


def others_model(directory: Path, vocabulary: int = 40, seed: int = 0) -> Path:
    """A small Llama with a tokenizer that begins every text with <s>, as transformers would leave them; the
    model has rows that the tokenizer has no tokens for."""
    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    config = TransformerConfig(architecture="llama", width=16, heads=2, depth=2, context=16)
    pretrained.save(config.build(Tokens(vocabulary), NextToken(vocabulary)), directory)
    ids = {token: number for number, token in enumerate(OTHERS)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return directory
