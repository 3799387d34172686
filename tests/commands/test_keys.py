"""Every key of the language is changed: just the stages that read it get another freshness key, and what a
stage does not read changes no byte of what it writes.

A new key needs nothing here, unless none of OTHER_VALUES fits it (a failure names it then, and OTHERS is its
place), or another stage reads it than READERS says of its section.
"""

from __future__ import annotations

import contextlib
import copy as copying
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ValidationError

from llmtool import experiment
from llmtool.commands import keys, session
from llmtool.core import files
from llmtool.core.config import FORMS as TAGS
from llmtool.core.config import Document, Section
from llmtool.core.freshness import compare
from llmtool.data.store import CARD, Dataset
from llmtool.evaluation import requirements
from llmtool.experiment import Experiment, Loaded
from tests.conftest import COMMANDS, TABLE, TEXT, Run

Path_ = tuple[str | int, ...]
ALL = {"prepare", "train", "finetune", "evaluate"}

# Which stages read what; the longest name that a key begins with counts.
READERS: dict[str, set[str]] = {
    "run": {"describe"},  # its title
    "seed": ALL,
    "device": {"train", "finetune", "evaluate"},
    "precision": {"describe", "train", "finetune", "evaluate"},
    "deterministic": {"train", "finetune", "evaluate"},
    "devices": set(),  # the same result, to rounding
    "parallel": set(),
    "data": {"prepare"},
    "data.engine": set(),  # where it is done changes nothing
    "model": {"describe", "train"},
    "task": {"train", "finetune"},
    "task.kind": {"describe", "train", "finetune"},
    "train": {"train"},
    "train.budget": {"train", "describe"},
    "train.budget.time": set(),  # beside another budget: of one session
    "train.mixture": {"train", "describe"},
    "train.batch": {"train", "describe"},
    "train.micro_batch": {"train", "describe"},
    "train.ema": {"train", "describe"},
    "train.activation_checkpointing": {"train", "describe"},
    "train.optimizer.name": {"train", "describe"},
    "train.compile": {"train", "describe"},
    "train.validate_every": {"train", "describe"},
    "train.checkpoint_every": {"train", "describe"},
    "finetune": {"finetune"},
    "finetune.budget.time": set(),
    "evaluate": {"evaluate"},
}
# Before there is a dataset, describe guesses from these.
GUESSED = ("data.encode.as", "data.encode.like", "data.encode.tokenizer", "data.encode.template")
GUESSED += ("data.encode.game", "data.encode.like_model")


class Beside(dict[str, Any]):
    """What stands in the section then, beside what stands there already."""


OTHERS: dict[str, Any] = {
    "Experiment.precision": "bf16",
    "Source.path": "other.csv",
    "Budget.steps": Beside(steps=7, epochs=None),
    "Budget.epochs": Beside(steps=None, epochs=3),
    "Budget.tokens": Beside(steps=None, tokens=9),
    "_Fractions.train": Beside(train=0.7, validation=0.2, test=0.1),
    "_Fractions.validation": Beside(train=0.7, validation=0.2, test=0.1),
    "_Fractions.test": Beside(train=0.7, validation=0.1, test=0.2),
    "DecodedSource.encoding": "latin-1",
    "FeaturesEncode.label_separator": Beside(label_separator=";", target_kind="labels"),
    "ImagesEncode.label_separator": Beside(label_separator=";", target_kind="labels"),
    "TextEncode.label_separator": Beside(label_separator=";", target_kind="labels"),
    "ChatEncode.template": "my.jinja",
    "ChatEncode.columns": {"messages": "x"},
    "TextEncode.chunks": Beside(long="chunks", chunks=5),
    "ChatEncode.long": Beside(long="cut", length=64),
    "Decontaminate.against": ["a.jsonl"],
    "KeepLanguages.languages": ["de"],
    "Types.dates": Beside(columns={"a": "date"}, dates="day/month/year"),
    "Filter.drop": Beside(keep=None, drop=["x"]),
    "Filter.matches": Beside(keep=None, matches="x"),
    "Normalize.lower": Beside(lower=False, strip=True),
    "RegressionConfig.loss": Beside(loss="absolute", delta=None),
    "LoRAConfig.double_quantise": Beside(quantise="nf4", double_quantise=True),
    "TransformerConfig.layer_types": ["full_attention", "sliding_attention"],
    "ConvNetConfig.depths": [1] * 4,
    "ConvNeXtConfig.depths": [1] * 4,
    "ConvNeXtConfig.widths": [8] * 4,
    "LongScaling.short_factor": [3.0] * 4,
    "LongScaling.long_factor": [3.0] * 4,
    "Play.games": 20,
    "EvaluateConfig.require": {"test.accuracy": ">=0.5"},
    "ParallelConfig.deadline": "90s",
    "MixtureSource.parts": {name: {"format": "csv", "path": f"{name}.csv"} for name in ("a", "other")},
    "TrainConfig.mixture": {"a": 1, "b": 5},
}
OTHER_VALUES: list[Any] = [
    1, 2, 4, 32, 0.25, 0.5, 1.5, "x", "10m", ";", ["x"], [1], [0.5, 0.5], True, False, None,
    {"x": "y"}, {"x": "train"}, {"x": "number"}, {"x": 0.5},
    {"metric": "loss", "mode": "min"}, {"patience": 3},
]  # fmt: skip
# A tag with no other member that fits its file.
ALONE = {"TransformerConfig.family", "FilesSplit.by"}

SUITES: list[dict[str, Any]] = [
    {"kind": "multiple_choice", "path": "a.jsonl", "name": "choice"},
    {"kind": "exact_match", "path": "a.jsonl", "name": "match", "shots": 2, "examples": "b.jsonl"},
    {"kind": "last_word", "path": "a.jsonl", "name": "word"},
    {"kind": "perplexity", "path": "a.txt", "name": "text"},
    {"kind": "play", "game": "othello", "against": "random", "name": "games"},
]
TRAIN: dict[str, Any] = {
    "budget": {"steps": 4},
    "batch": 16,
    "optimizer": {"name": "adamw"},
    "schedule": {"name": "cosine"},
    "select": {"metric": "loss", "mode": "min"},
    "stop": {"patience": 2},
}
CLEAN: list[dict[str, Any]] = [
    {"step": "require", "columns": ["a"]},
    {"step": "drop_missing"},
    {"step": "drop_duplicates"},
    {"step": "drop_near_duplicates", "column": "a"},
    {"step": "decontaminate", "column": "a", "against": ["b.jsonl"]},
    {"step": "fix_text", "columns": ["a"]},
    {"step": "keep_languages", "column": "a", "languages": ["en"]},
    {"step": "gopher_quality", "column": "a"},
    {"step": "gopher_repetition", "column": "a"},
    {"step": "c4_quality", "column": "a"},
    {"step": "personal_data", "columns": ["a"]},
    {"step": "types", "columns": {"a": "number"}},
    {"step": "range", "column": "a", "min": 0},
    {"step": "filter", "column": "a", "keep": ["b"]},
    {"step": "normalize", "columns": ["a"], "lower": True},
    {"step": "replace", "column": "a", "mapping": {"a": "b"}},
    {"step": "join", "columns": ["a"]},
    {"step": "length", "column": "a", "max": 9},
]
TABLE_FILE: dict[str, Any] = {
    "run": "runs/a",
    "device": "cpu",
    "precision": "fp32",
    "data": {
        "source": {"format": "csv", "path": "a.csv"},
        "clean": CLEAN,
        "split": {"by": "random"},
        "encode": {"as": "features", "target": "y"},
    },
    "model": {"family": "mlp"},
    "task": {"kind": "classification"},
    "train": TRAIN,
    "finetune": {**copying.deepcopy(TRAIN), "start": "old", "method": {"kind": "lora"}},
    "evaluate": {"samples": {"tokens": 5}, "suites": SUITES, "explain": {}, "probe": {"games": 100}},
}
TEXT_FILE = copying.deepcopy(TABLE_FILE) | {
    "model": {"family": "transformer", "width": 16, "heads": 2, "depth": 2, "context": 16},
    "task": {"kind": "language"},
}
TEXT_FILE["data"] |= {
    "source": {"format": "text", "path": "a.txt"},
    "encode": {"as": "tokens", "tokenizer": {"kind": "bpe"}},
}
LABELLED_FILE = copying.deepcopy(TABLE_FILE) | {"model": {"family": "encoder"}}
LABELLED_FILE["data"] |= {"encode": {"as": "text", "target": "y"}}
PICTURES_FILE = copying.deepcopy(TABLE_FILE) | {"model": {"family": "convnet"}}
PICTURES_FILE["train"] |= {"augment": {"randaugment": {}}}
PICTURES_FILE["data"] |= {"source": {"format": "image_folder", "path": "pics"}, "encode": {"as": "images"}}
PICTURE_FILES = ("image_folder", "idx", "cifar")
WITHOUT_MODEL = {key: value for key, value in TABLE_FILE.items() if key != "model"}
FRACTIONS = [{"by": by} for by in ("stratified", "hash", "order")]
FRACTIONS += [{"by": by, "on": "a"} for by in ("grouped", "time")]
# Section -> its other forms, so that each member of each union is met.
FORMS: dict[str, list[dict[str, Any]]] = {
    "data.source": [
        *({"format": name, "path": f"a.{name}"} for name in ("tsv", "jsonl", "json", "parquet", "text")),
        {"format": "wthor", "path": "a.csv"},
        {"format": "pgn", "path": "a.csv"},
        {"format": "othello_random", "games": 100},
        {"format": "image_folder", "path": "pics"},
        {"format": "idx", "path": "a-images-idx3-ubyte"},
        {"format": "cifar", "path": "a.bin"},
    ],
    "data.split": [*FRACTIONS, {"by": "column", "on": "a"}],
    "data.encode": [
        {"as": "features", "like": "old"},
        {"as": "features", "target": "y", "scale": "piecewise", "bins": 8},
        {"as": "tokens", "tokenizer": {"kind": "bytes"}},
        {"as": "tokens", "tokenizer": {"kind": "characters"}},
        {"as": "tokens", "tokenizer": {"kind": "file", "path": "tok.json"}},
        {"as": "tokens", "tokenizer": {"kind": "bpe"}},
        {"as": "tokens", "like": "old"},
        {"as": "chat", "tokenizer": {"kind": "bytes"}, "template": "chatml"},
        {"as": "chat", "like": "old"},
        {"as": "text", "target": "y", "features": {}},
        {"as": "text", "like": "old"},
        {"as": "text", "target": "y", "tokenizer": {"kind": "words"}},
        {"as": "moves", "game": "othello"},
        {"as": "images"},
        {"as": "images", "like": "old"},
        {"as": "images", "like_model": "old"},
    ],
    "data.encode.tokenizer": [{"kind": "bytes"}, {"kind": "bpe"}],
    "task": [
        {"kind": "multilabel"},
        {"kind": "regression", "loss": "huber", "delta": 2.0},
        {"kind": "language"},
    ],
    "model": [
        {"family": "tabm"},
        {"family": "mlp"},
        {"family": "convnet"},
        {"family": "convnext"},
        {"family": "vit"},
        {"family": "vit", "architecture": "dinov2"},
        {"family": "encoder"},
        {"family": "bag"},
        {"family": "encoder", "architecture": "roberta"},
        {"family": "encoder", "architecture": "modernbert"},
        {**TEXT_FILE["model"], "architecture": "gemma3_text", "window": 8},
        {**TEXT_FILE["model"], "architecture": "phi3"},
        {**TEXT_FILE["model"], "architecture": "smollm3"},
    ],
    "train.optimizer": [{"name": "sgd"}, {"name": "muon"}],
    "train.schedule": [{"name": "constant"}, {"name": "linear"}, {"name": "wsd"}],
    "train.budget": [{"epochs": 2}, {"time": "5m"}],
    "finetune.optimizer": [{"name": "sgd"}],
    "finetune.schedule": [{"name": "linear"}],
    "finetune.method": [{"kind": "full"}, {"kind": "freeze", "blocks": 1}, {"kind": "head"}],
    "data.clean": CLEAN,
    "data.engine": [{"name": "ray"}, {"name": "local"}],
    "model.rope_scaling": [
        {"kind": "linear", "factor": 2.0},
        {"kind": "dynamic", "factor": 2.0},
        {"kind": "llama3", "factor": 2.0},
        {"kind": "yarn", "factor": 2.0},
        {"kind": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ],
    "evaluate.suites": [{**suite, "name": "other"} for suite in SUITES],
}

# --- changing one key -------------------------------------------------------------------------------------


def at(document: Any, path: Path_) -> Any:
    for part in path:
        document = document[part]
    return document


def with_value(document: dict[str, Any], path: Path_, value: Any) -> dict[str, Any]:
    """A copy of the document in which this key has that value; missing sections are made."""
    changed = copying.deepcopy(document)
    place: Any = changed
    for part in path[:-1]:
        place = place[part] if isinstance(place, list) or place.get(part) else place.setdefault(part, {})
    if isinstance(value, Beside):
        place |= value
    else:
        place[path[-1]] = value
    return changed


def load(document: dict[str, Any]) -> Experiment | None:
    with contextlib.suppress(ValidationError):
        return Experiment.model_validate(document)
    return None


def leaves(section: Section, path: Path_ = ()) -> Iterator[tuple[Path_, str]]:
    """Every key of an experiment that is no section, as (path, class.field)."""
    for name, field in type(section).model_fields.items():
        value, here = getattr(section, name), (*path, field.alias or name)
        if isinstance(value, Section):
            yield from leaves(value, here)
        elif isinstance(value, list) and value and isinstance(value[0], Section):
            for index, item in enumerate(value):
                yield from leaves(item, (*here, index))
        else:
            yield here, owner(type(section), name)


def owner(section: type[BaseModel], name: str) -> str:
    """The class that brings the field, so that a shared key counts once."""
    for base in reversed(section.__mro__):
        if name in getattr(base, "__annotations__", {}):
            return f"{base.__name__}.{name}"
    raise AssertionError(name)


def literals(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [choice for part in typing.get_args(annotation) for choice in literals(part)]


def values(base: Experiment, path: Path_, name: str) -> Iterator[Any]:
    """What else may stand at this key, likeliest first; not all of it is valid."""
    section: Any = base
    for part in path[:-1]:
        section = section[part] if isinstance(part, int) else getattr(section, str(part))
    field_name = name.split(".")[1]
    value = getattr(section, field_name)
    if name in OTHERS:
        yield value + "x" if name == "Source.path" and isinstance(value, str) else OTHERS[name]
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, 2 * value)
    elif isinstance(value, float):
        yield value / 2
    elif isinstance(value, str):
        yield value + "x"
    elif isinstance(value, list):
        yield from ([*value, "x"], value[:-1])
    choices = literals(type(section).model_fields[field_name].annotation)
    yield from choices
    yield from [[choice] for choice in choices]
    yield from OTHER_VALUES


def others(
    document: dict[str, Any], base: Experiment, path: Path_, name: str
) -> Iterator[tuple[dict[str, Any], Experiment]]:
    """Valid documents in which just this key is another; of a tag, in which its section has another form."""
    seen = base.model_dump(mode="json", by_alias=True)
    candidates = [(path, value) for value in values(base, path, name)]
    spot = ".".join(str(part) for part in path[:-1] if not isinstance(part, int))
    if path[-1] in TAGS:
        now = at(seen, path)
        candidates += [(path[:-1], form) for form in FORMS.get(spot, []) if form.get(path[-1]) != now]
    for where, value in candidates:
        changed = with_value(document, where, value)
        made = load(changed)
        if made is not None and made.model_dump(mode="json", by_alias=True) != seen:
            yield changed, made


def documents() -> Iterator[tuple[str, dict[str, Any], str]]:
    """A name, a document, and the section of it whose keys are to be changed ("": all)."""
    yield "table", TABLE_FILE, ""
    yield "text", TEXT_FILE, ""
    yield "pictures", PICTURES_FILE, ""
    yield "without a model", WITHOUT_MODEL, "data.encode"
    by_files = with_value(TABLE_FILE, ("data", "split"), {"by": "files", "validation": 0.1})
    yield (
        "files",
        with_value(by_files, ("data", "source", "path"), {"train": "a.csv", "test": "b.csv"}),
        "data",
    )
    parts = {name: {"format": "csv", "path": f"{name}.csv"} for name in ("a", "b")}
    mixed = with_value(TABLE_FILE, ("data", "source"), {"format": "mixture", "parts": parts})
    yield "mixture", mixed, "data.source"
    yield "weights", with_value(mixed, ("train", "mixture"), {"a": 1, "b": 1}), "train.mixture"
    for spot, forms in FORMS.items():
        for number, form in enumerate(forms):
            if spot in ("data.clean", "evaluate.suites"):
                continue
            base = TEXT_FILE if spot.endswith("tokenizer") else TABLE_FILE
            if spot.startswith("model"):
                base = LABELLED_FILE if form.get("family") == "encoder" else TEXT_FILE
            base = TABLE_FILE if form.get("family") in ("tabm", "mlp") else base
            if form.get("family") in ("convnet", "convnext", "vit") or form.get("format") in PICTURE_FILES:
                base = PICTURES_FILE
            base = WITHOUT_MODEL if spot == "data.encode" else base
            yield f"{spot} {number}", with_value(base, tuple(spot.split(".")), form), spot


# --- which keys follow ------------------------------------------------------------------------------------

CARD_DATA = {"fingerprint": "d", "notes": [], "splits": {}, "sources": []}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with all the files that the documents name; no GPU."""
    kinds = ("csv", "tsv", "jsonl", "json", "parquet", "text")
    names = [*(f"{stem}.{kind}" for stem in ("a", "b") for kind in kinds), "my.jinja", "a.bin"]
    names += ["a-images-idx3-ubyte", "a-labels-idx1-ubyte"]
    for name in [*names, "a.txt", "other.csv", "tok.json", "old/tokenizer.json", "oldx/tokenizer.json"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        (tmp_path / f"{name}x").write_text(name)
    for folder in ("old", "oldx", "x", "pics", "picsx"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "preprocessor_config.json").write_text(folder)
        (tmp_path / folder / CARD).write_text(folder)
        (tmp_path / folder / "tokenizer.json").write_text(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def stage_keys(made: Experiment) -> dict[str, keys.Key]:
    """The key of every stage, with inputs that stay the same but for those that the file itself names."""
    loaded = Loaded(made, Document("a.yaml", {}, {}))
    dataset: Any = SimpleNamespace(fingerprint="d", card=CARD_DATA)
    inputs = {"dataset": "d", "start": "s"}
    return {
        "prepare": keys.prepare(loaded, files.hash_file),
        "describe": keys.describe(loaded, CARD_DATA, None),
        "describe before": keys.describe(loaded, None, None),
        "train": keys.fit(loaded, "train", inputs),
        "finetune": keys.fit(loaded, "finetune", inputs),
        "evaluate": keys.evaluate(loaded, dataset, "w", None, files.hash_file),
    }


def readers(path: Path_, document: dict[str, Any]) -> set[str]:
    """The stages that should follow a change of this key; "describe before" is describe without a dataset."""
    name = ".".join(map(str, path))
    known = [known for known in READERS if name == known or name.startswith(f"{known}.")]
    found = set(READERS[max(known, key=len)])
    if "describe" in found or name.startswith(GUESSED):
        found.add("describe before")
    if path[1:] == ("budget", "time") and not {"steps", "epochs"} & at(document, path[:-1]).keys():
        found |= {str(path[0])} | ({"describe", "describe before"} if path[0] == "train" else set())
    return found


@pytest.mark.usefixtures("place")
def test_a_changed_key_is_seen_by_just_the_stages_that_read_it() -> None:
    met = set()
    wrong = []
    for title, document, section in documents():
        base = load(document)
        assert base is not None, title
        before = stage_keys(base)
        for path, name in leaves(base):
            if not ".".join(map(str, path)).startswith(section):
                continue
            changed = next(others(document, base, path, name), None)
            if changed is None:
                continue
            met.add(name)
            now = stage_keys(changed[1])
            found = {stage: compare(before[stage], now[stage]) for stage in now}
            follow = {stage for stage, lines in found.items() if lines}
            expected = readers(path, document)
            if follow != expected:
                wrong.append(f"{title}: {path}: {sorted(follow)}, expected {sorted(expected)}: {found}")
    assert not wrong, "\n".join(wrong)
    unmet = {name for name, _ in schema(Experiment)} - met - ALONE
    assert not unmet, f"no document, or no other value in OTHERS, for {sorted(unmet)}"


def schema(section: Any) -> Iterator[tuple[str, Any]]:
    """Every key of the language that is no section, as class.field, through all members of all unions."""
    for name, field in section.model_fields.items():
        inner = [
            part for part in flat(field.annotation) if isinstance(part, type) and issubclass(part, Section)
        ]
        for part in inner:
            yield from schema(part)
        if not inner:
            yield owner(section, name), field


def flat(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from flat(part)


@pytest.mark.usefixtures("place")
def test_sections_that_come_and_go_are_changes_too() -> None:
    base = load(TABLE_FILE)
    assert base is not None
    before = stage_keys(base)
    for path, expected in (
        (("train", "select"), {"train"}),
        (("train", "stop"), {"train"}),
        (("finetune", "select"), {"finetune"}),
        (("evaluate", "samples"), {"evaluate"}),
        (("evaluate", "explain"), {"evaluate"}),
        (("task",), {"describe", "describe before", "train", "finetune"}),
        (("data", "clean"), {"prepare"}),
    ):
        made = load(with_value(TABLE_FILE, path, [] if path[-1] == "clean" else None))
        assert made is not None
        now = stage_keys(made)
        assert {stage for stage in now if compare(before[stage], now[stage])} == expected, path


# --- what a stage does not read changes nothing that it writes --------------------------------------------

# Said of the whole file, or of the time: result.json, and what training notes of its surroundings.
ASIDE = {"result.json", ".record.json", "experiment.yaml", "environment.json", "report.html"}
TIMED = {"loop.json", "manifest.json"}


def written(directory: Path) -> dict[str, Any]:
    """What a stage wrote, but for what tells the time."""
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in ASIDE | TIMED:
            data: Any = path.read_bytes()
            if path.name == "metrics.jsonl":
                rows = [json.loads(line) for line in data.splitlines()]
                data = [{key: value for key, value in row.items() if key != "time"} for row in rows]
            found[str(path.relative_to(directory))] = data
    return found


def bulks(document: dict[str, Any], stage: str) -> Iterator[dict[str, Any]]:
    """Documents in which keys that the stage does not read are others: as many at a time as go together."""
    base = load(document)
    assert base is not None
    left = [
        (path, name)
        for path, name in leaves(base)
        if stage not in readers(path, document)
        and path != ("run",)  # a place, which is spoken of
        and path not in (("parallel", "tensor"), ("parallel", "context"))  # which need several processes
    ]
    left = [(path, name) for path, name in left if next(others(document, base, path, name), None)]
    assert len(left) > 30
    while left:
        changed, made, later = document, base, []
        for path, name in left:
            try:
                changed, made = next(others(changed, made, path, name))
            except (StopIteration, AttributeError, KeyError):  # it does not go with what is changed already
                later.append((path, name))
        assert len(later) < len(left)
        left = later
        yield changed


@pytest.mark.parametrize("stage", COMMANDS)
@pytest.mark.parametrize("project", ["table", "text"])
def test_what_a_stage_does_not_read_changes_no_byte(
    copy: Path, llmtool: Run, monkeypatch: pytest.MonkeyPatch, project: str, stage: str
) -> None:
    root = copy / "runs" / project
    monkeypatch.chdir(copy)
    dataset = Dataset.open(f"runs/{project}/prepare")
    monkeypatch.setattr(session, "prepared", lambda loaded, options: dataset)  # although `data` is another
    monkeypatch.setattr(session, "card_if_prepared", lambda loaded: dataset.card)
    monkeypatch.setattr(requirements, "refuse_unknown", lambda *asked: None)  # a look ahead, in no work
    document = experiment.config.parse({"table": TABLE, "text": TEXT}[project], "a.yaml").data
    document |= {
        "run": f"runs/{project}",
        "task": {"kind": {"table": "classification", "text": "language"}[project]},
    }
    for section in {"train", "finetune"} - {stage}:  # keys that are to be changed must be there
        document[section] |= {key: TRAIN[key] for key in ("select", "stop", "schedule")}
        document[section]["optimizer"] = {"name": "adamw"}
    before = written(root / stage)
    for changed in bulks(document, stage):
        (copy / "bulk.yaml").write_text(json.dumps(changed))
        ended = llmtool(stage, "bulk.yaml", "--force", cwd=copy)
        assert ended.code == 0, ended.err
        now = written(root / stage)
        assert now.keys() == before.keys()
        assert [name for name in now if now[name] != before[name]] == []
