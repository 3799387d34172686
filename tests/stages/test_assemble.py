"""Adapting a start: every method resumes without a changed bit, and is scored later as it was in training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer

from llmtool import experiment
from llmtool.core import config
from llmtool.core.contracts import Classes, Images
from llmtool.core.errors import LlmtoolError
from llmtool.data.store import Dataset
from llmtool.experiment import Experiment
from llmtool.models import pretrained
from llmtool.models.quantised import NF4Linear
from llmtool.models.vit import ViTConfig
from llmtool.stages import assemble, checkpoints, score
from llmtool.stages.assemble import Assembled
from llmtool.stages.fit import fit
from tests.conftest import TABLE, TEXT, Run, reviews

METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "freeze": {"kind": "freeze", "blocks": 1},
    "head": {"kind": "head"},
    "lora": {"kind": "lora", "rank": 2, "dropout": 0.2},
    "rank stabilised": {"kind": "lora", "rank": 2, "scaling": "rank_stabilised"},
    "dora": {"kind": "lora", "rank": 2, "dora": True, "dropout": 0.2},
    "pissa": {"kind": "lora", "rank": 2, "init": "pissa"},
    "lora plus": {"kind": "lora", "rank": 2, "lora_plus_ratio": 16.0},
    "qlora": {"kind": "lora", "rank": 2, "quantise": "nf4"},
    "double qlora with dora": {
        "kind": "lora", "rank": 2, "quantise": "nf4", "double_quantise": True, "dora": True
    },
}  # fmt: skip


class Killed(Exception):
    """A process that is gone between one line of metrics and the next."""


class Watch:
    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at = kill_at

    def row(self, row: dict[str, Any]) -> None:
        if row["step"] == self.kill_at:
            raise Killed

    def note(self, text: str) -> None:
        pass


def experiment_of(project: str, method: dict[str, Any]) -> Experiment:
    document = config.parse({"table": TABLE, "text": TEXT}[project], "a.yaml").data
    document["finetune"] |= {
        "method": method,
        "budget": {"steps": 11},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "log_every": 1,
        "checkpoint_every": 4,
        "validate_every": 11,
    }
    return Experiment.model_validate(document | {"run": f"runs/{project}", "device": "cpu"})


def assembled_of(made: Experiment, project: str) -> Assembled:
    """As `llmtool finetune` does it."""
    assert made.finetune is not None
    start = checkpoints.from_checkpoint(made.finetune.start)
    assemble.quantise(made, start, made.finetune.method)
    assembled, _ = assemble.from_start(made, Dataset.open(f"runs/{project}/prepare"), start)
    assemble.adapt(assembled, start, made.finetune.method)
    return assembled


def run(made: Experiment, project: str, place: Path, watch: Watch, resume: bool = False) -> Assembled:
    assembled = assembled_of(made, project)
    assert made.finetune is not None
    fit(assembled, made.finetune, place, progress=watch, resume=resume)
    return assembled


def bits(place: Path) -> dict[str, bytes]:
    last = (place / "last").resolve()
    return {str(path.relative_to(last)): path.read_bytes() for path in sorted(last.rglob("*.safetensors"))}


@pytest.mark.parametrize(
    ("project", "method"),
    [("text", method) for method in METHODS] + [("table", method) for method in ("dora", "pissa", "qlora")],
)
def test_every_method_resumes_without_a_changed_bit(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str, method: str
) -> None:
    monkeypatch.chdir(finished)
    made = experiment_of(project, METHODS[method])
    run(made, project, tmp_path / "straight", Watch())
    with pytest.raises(Killed):
        run(made, project, tmp_path / "killed", Watch(kill_at=7))
    torch.rand(3)  # the stream of the process is another one
    run(made, project, tmp_path / "killed", Watch(), resume=True)
    straight, resumed = bits(tmp_path / "straight"), bits(tmp_path / "killed")
    assert len(straight) == 2
    assert straight == resumed
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("straight", "killed")
    ]
    losses = [[row["loss"] for row in them if "loss" in row] for them in rows]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("project", ["table", "text"])
@pytest.mark.parametrize("name", ["dora", "pissa", "double qlora with dora"])
def test_a_saved_adapter_scores_as_it_did_in_training(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str, name: str
) -> None:
    monkeypatch.chdir(finished)
    made = experiment_of(project, METHODS[name])
    assembled = run(made, project, tmp_path, Watch())
    figure = assembled.task.metric
    wanted = score.score(assembled, ["validation"])["validation"].metrics()[figure]
    start = checkpoints.from_checkpoint(str(tmp_path / "last"))
    loaded = assemble.as_scored(made, assembled.dataset, start)
    found = score.score(loaded, ["validation"])["validation"].metrics()
    assert found[figure] == pytest.approx(wanted, abs=1e-5)
    merged = assemble.save_merged(assembled, tmp_path)
    start = checkpoints.from_checkpoint(str(merged))
    loaded = assemble.as_scored(made, assembled.dataset, start)
    assert start.base is None
    found = score.score(loaded, ["validation"])["validation"].metrics()
    assert found[figure] == pytest.approx(wanted, abs=1e-5)


def test_a_base_of_a_relative_name_is_found_above_the_adapter(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From whatever directory; and where it is gone, the error says where it was looked for."""
    project = tmp_path / "project"
    shutil.copytree(finished, project, symlinks=True)
    monkeypatch.chdir(project)
    run(experiment_of("text", METHODS["lora"]), "text", Path("runs/tuned"), Watch())
    card = json.loads(Path("runs/tuned/last", checkpoints.CARD_FILE).read_text())
    assert not Path(card["base"]["path"]).is_absolute()
    monkeypatch.chdir(tmp_path)
    start = checkpoints.from_checkpoint(str(project / "runs/tuned/last"))
    assert start.base == (project / card["base"]["path"]).resolve()
    (project / card["base"]["path"]).resolve().rename(tmp_path / "away")
    with pytest.raises(LlmtoolError, match="neither here nor in a directory above the adapter"):
        checkpoints.from_checkpoint(str(project / "runs/tuned/last"))


def test_an_adapter_right_below_the_root_of_the_disk_has_a_base_too(tmp_path: Path) -> None:
    assert checkpoints._base(Path("/model"), str(tmp_path)) == tmp_path
    assert checkpoints._base(Path("/model"), "no/such/base") == Path("no/such/base")


def test_a_base_in_four_bits_is_another_model(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same adapter beside the whole base has another fingerprint: it computes something else."""
    monkeypatch.chdir(finished)
    made = experiment_of("text", METHODS["qlora"])
    assembled = run(made, "text", tmp_path, Watch())
    last = (tmp_path / "last").resolve()
    card = json.loads((last / checkpoints.CARD_FILE).read_text())
    assert card["base"]["quantise"] == "nf4"
    before = checkpoints.fingerprint(last)
    del card["base"]["quantise"], card["base"]["double"]
    (last / checkpoints.CARD_FILE).write_text(json.dumps(card))
    assert checkpoints.fingerprint(last) != before
    assert any(isinstance(module, NF4Linear) for module in assembled.model.modules())


def test_the_experiment_says_its_own_method_back() -> None:
    """experiment.yaml of a run can be run again, with every default written out."""
    for method in METHODS.values():
        made = experiment_of("text", method)
        again = config.parse(experiment.resolved(made), "b.yaml").data
        assert Experiment.model_validate(again) == made


# --- from a language model to classes of texts ---

LANGUAGE = """\
seed: 1
data:
  source: {format: csv, path: reviews.csv}
  encode: {as: tokens, text: review, tokenizer: {kind: bpe, vocabulary: 300}}
model: {family: transformer, depth: 1, heads: 2, width: 32, context: 24}
train: {budget: {steps: 60}, batch: 8, optimizer: {name: adamw, lr: 5e-3}}
"""
SENTIMENT = """\
seed: 1
data:
  source: {format: csv, path: reviews.csv}
  encode: {as: text, text: review, target: sentiment, length: 24, tokenizer: {kind: file, path: runs/lm}}
finetune:
  start: runs/lm
  pooling: mean
  budget: {epochs: 8}
  batch: 16
  optimizer: {name: adamw, lr: 5e-3}
evaluate: {baselines: {kind: simple}}
"""


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory, llmtool: Run) -> Path:
    """A small language model of reviews."""
    directory = tmp_path_factory.mktemp("language")
    (directory / "reviews.csv").write_text(reviews())
    (directory / "lm.yaml").write_text(LANGUAGE)
    (directory / "a.yaml").write_text(SENTIMENT)
    ended = llmtool("train", "lm.yaml", cwd=directory)
    assert ended.code == 0, ended.err
    return directory


@pytest.mark.parametrize("method", ["{kind: full}", "{kind: lora, rank: 2, merge: true}"])
def test_a_language_model_learns_classes_of_texts(method: str, language: Path, llmtool: Run) -> None:
    more = ["--set", f"finetune.method={method}", "--set", f"run=runs/{method[7:11]}"]
    ended = llmtool("finetune", "a.yaml", "--json", *more, cwd=language)
    assert ended.code == 0, ended.err
    assert ended.json["head"] == "the head is new: next token became 2 classes (bad, good)"
    best = language / ended.json["checkpoint"]
    encoder = json.loads((best / "llmtool.json").read_text())["card"]["encoder"]
    theirs = Tokenizer.from_file(str(best / "tokenizer.json")).encode("a film")
    assert theirs.ids[0] == encoder["prefix"][0] == encoder["tokenizer"]["end"]
    if "lora" in method:  # the adapter, written for others, says what the merged model says
        merged = best.parent / "merged/config.json"
        exported = llmtool("export", best, "--to", "safetensors", "--out", "out", cwd=language)
        assert exported.code == 0, exported.err
        told = json.loads((language / "out/config.json").read_text())
        assert told == json.loads(merged.read_text())
        assert told["id2label"] == {"0": "bad", "1": "good"}
        assert told["pad_token_id"] == encoder["tokenizer"]["end"]
    scored = llmtool("evaluate", "a.yaml", "--json", *more, cwd=language)
    assert scored.code == 0, scored.err
    assert scored.json["metrics"]["test"]["accuracy"] > (0.6 if "lora" in method else 0.9)
    best = ended.json["metrics"]["validation"]
    assert scored.json["metrics"]["validation"]["log_loss"] == pytest.approx(best["log_loss"])
    again = ["--set", f"finetune.start=runs/{method[7:11]}/finetune", "--set", "run=runs/more"]
    if "lora" in method:
        again[1] = again[1].replace("/finetune", "/finetune/merged")
    ended = llmtool(
        "finetune", "a.yaml", "--json", *again, "--set", "finetune.budget={epochs: 1}", cwd=language
    )
    assert (ended.code, ended.json["head"]) == (0, None), ended.err


def test_a_model_for_pictures_says_its_classes_and_how_they_are_made() -> None:
    model = ViTConfig(depth=1, width=16, heads=2, patch=4).build(Images(3, 8, 8), Classes(2))
    size = {"channels": 3, "height": 8, "width": 8}
    inputs = {"kind": "images", **size, "mean": [127.5] * 3, "std": [63.75] * 3}
    encoder, targets = {"recipe": {**size, "fit": "squash"}}, {"kind": "classes", "names": ["a", 7]}
    assemble.say_to_others(model, {"inputs": inputs, "encoder": encoder, "targets": targets})
    assert pretrained.file_config(model)["id2label"] == {"0": "a", "1": "7"}
    assert vars(model)["preprocessing"]["image_std"] == [0.25] * 3


def test_a_classifier_of_texts_from_the_start(language: Path, llmtool: Run) -> None:
    text = (language / "lm.yaml").read_text()
    encode = "{as: text, text: review, target: sentiment, length: 6, long: chunks, chunks: 4, "
    encode += "tokenizer: {kind: bpe, vocabulary: 300}}"
    lines = [line if "encode" not in line else f"  encode: {encode}" for line in text.splitlines()]
    (language / "scratch.yaml").write_text("\n".join(lines) + "\n")
    for command in ("train", "describe", "train --verify invariance", "evaluate"):
        more = ["--set", "evaluate.explain={examples: 6}"]
        ended = llmtool(*command.split(), "scratch.yaml", "--json", *more, cwd=language)
        assert ended.code == 0, ended.err
    told = json.loads((language / "runs/scratch/evaluate/explain.json").read_text())["examples"]
    sizes = [len(example["parts"]) for example in told if len(example["parts"]) > 6]
    assert sizes  # texts of several chunks are among them, with the tokens of each
    assert all(size % 6 == 0 for size in sizes)
    test = ended.json["metrics"]["test"]
    assert test["accuracy"] > 0.9  # the class stands in one word
    split = json.loads((language / "runs/scratch/prepare/card.json").read_text())["splits"]["test"]
    assert split["chunks"] > split["rows"]
    predicted = pd.read_csv(language / "runs/scratch/evaluate/predictions.csv")
    assert (predicted["split"] == "test").sum() == split["rows"]  # a text is one prediction, not a chunk
    ended = llmtool("generate", "runs/scratch", "--prompt", "the", cwd=language)
    assert (ended.code, "language model" in ended.error) == (2, True), ended.error


# --- columns of a table beside a text ---

MIXED = """\
seed: 1
data:
  source: {format: csv, path: mixed.csv}
  encode:
    as: text
    text: [title, body]
    target: kind
    length: 24
    tokenizer: {kind: bpe, vocabulary: 280}
    features: {}
model: {family: encoder, depth: 1, heads: 2, width: 32, context: 24}
train: {budget: {epochs: 12}, batch: 16, optimizer: {name: adamw, lr: 5e-3}}
finetune:
  start: runs/mixed/train
  method: {kind: lora, rank: 2, merge: true}
  budget: {epochs: 2}
  optimizer: {name: adamw, lr: 1e-3}
evaluate: {baselines: {kind: simple}, explain: {examples: 2}}
"""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, llmtool: Run) -> Path:
    """Rows whose class is in a word of the body, and in a number beside it."""
    directory = tmp_path_factory.mktemp("mixed")
    lines = ["title,body,age,place,kind"]
    for number in range(400):
        word, age = ("good", "bad")[number % 2], "" if number % 10 == 0 else (number * 7) % 90
        kind = f"{word} {'old' if age != '' and age > 40 else 'new'}"
        lines.append(f"{'film' if number % 3 else ''},a {word} one,{age},{'uvw'[number % 3]},{kind}")
    (directory / "mixed.csv").write_text("\n".join(lines) + "\n")
    (directory / "mixed.yaml").write_text(MIXED)
    ended = llmtool("train", "mixed.yaml", "--json", cwd=directory)
    assert ended.code == 0, ended.err
    return directory


def test_text_and_table_are_read_together(mixed: Path, llmtool: Run) -> None:
    for command in ("describe", "finetune", "evaluate"):
        ended = llmtool(command, "mixed.yaml", "--json", cwd=mixed)
        assert ended.code == 0, ended.err
    assert ended.json["metrics"]["test"]["accuracy"] > 0.8  # neither alone gives more than 0.6
    accuracy = ended.json["metrics"]["test"]["accuracy"]
    told = json.loads((mixed / "runs/mixed/evaluate/explain.json").read_text())
    worth = {one["column"]: one for one in told["importance"]["columns"]}
    assert (set(worth), told["importance"]["value"]) == ({"age", "place"}, pytest.approx(accuracy))
    assert worth["age"]["low"] > 0.1 > abs(worth["place"]["mean"])
    for example in told["examples"]:
        assert example["complete"]
        cells = [part for part in example["parts"] if "value" in part]
        assert {part["name"] for part in cells} == {"age", "place"}
        total = sum(part["attribution"] for part in example["parts"])
        assert total == pytest.approx(example["output"] - example["output_of_that"], abs=0.05)
    assert any(abs(part["attribution"]) > 0.1 for part in cells)
    page = (mixed / "runs/mixed/evaluate/report.html").read_text()
    assert "<p class='marked'><span" in page
    assert "<td>place</td>" in page
    config = json.loads((mixed / "runs/mixed/train/best/config.json").read_text())
    assert (config["llmtool_features"], config["architectures"]) == (5, ["BertModel"])
    start = checkpoints.from_checkpoint(str(mixed / "runs/mixed/finetune/merged"))
    assert start.model.inputs.features == 5
    ended = llmtool("export", "runs/mixed/train", "--to", "onnx", "--out", "onnx", cwd=mixed)
    assert ended.code == 2, ended.err


def test_columns_are_added_to_a_model_that_read_texts_alone(mixed: Path, llmtool: Run) -> None:
    alone = ["--set", "data.encode.features=null", "--set", "run=runs/alone"]
    assert llmtool("train", "mixed.yaml", *alone, cwd=mixed).code == 0
    for method, run in (("{kind: full}", "full"), ("{kind: lora, rank: 2}", "lora")):
        more = ["--set", f"run=runs/{run}", "--set", "finetune.start=runs/alone"]
        more += ["--set", f"finetune.method={method}"]
        more += ["--set", "data.encode.tokenizer={kind: file, path: runs/alone}"]
        ended = llmtool("finetune", "mixed.yaml", "--json", *more, cwd=mixed)
        assert ended.code == 0, ended.err
        scored = llmtool("evaluate", "mixed.yaml", "--json", *more, cwd=mixed)
        assert scored.code == 0, scored.err
        after = ended.json["metrics"]["validation"]["log_loss"]
        assert scored.json["metrics"]["validation"]["log_loss"] == pytest.approx(after)
    ended = llmtool("evaluate", "mixed.yaml", "--set", "evaluate.of=runs/alone", cwd=mixed)
    assert (ended.code, "reads texts alone" in ended.error) == (2, True), ended.error
    ended = llmtool(
        "finetune", "mixed.yaml", "--set", "data.encode.features={columns: [age]}", "--set", "run=runs/c",
        "--set", "data.encode.tokenizer={kind: file, path: runs/mixed}", cwd=mixed,
    )  # fmt: skip
    assert (ended.code, "other columns of a table" in ended.error) == (2, True), ended.error
    decoder = "model={family: transformer, depth: 1, heads: 2, width: 32, context: 24}"
    ended = llmtool("train", "mixed.yaml", "--set", decoder, "--set", "run=runs/d", cwd=mixed)
    assert (ended.code, "reads texts alone" in ended.error) == (2, True), ended.error


def test_tuned_thresholds_are_those_of_the_checkpoint(tmp_path: Path, llmtool: Run) -> None:
    """Of the best one, not of the last validation: train's figures and evaluate's are the same."""
    lines = [f"{n},{(n * 7) % 60 > 30:d},{(n * 11) % 60 > 40:d}" for n in range(120)]
    (tmp_path / "labels.csv").write_text("\n".join(["n,odd,even", *lines]) + "\n")
    (tmp_path / "labels.yaml").write_text(
        "data:\n  source: {format: csv, path: labels.csv}\n"
        "  encode: {as: features, target: [odd, even], target_kind: labels}\n"
        "model: {family: mlp, hidden: [8]}\ntask: {kind: multilabel, thresholds: tuned}\n"
        "train: {budget: {epochs: 12}, batch: 32, optimizer: {name: adamw, lr: 0.3}}\n"
        "evaluate: {splits: [validation], baselines: {kind: simple}}\n"
    )
    said, scored = (
        llmtool(command, "labels.yaml", "--json", cwd=tmp_path) for command in ("train", "evaluate")
    )
    assert (said.code, scored.code) == (0, 0), said.err + scored.err
    assert said.json["metrics"]["validation"] == scored.json["metrics"]["validation"]
