"""model: auto, or no model: chosen by the prepared data, written down, chosen anew with other data."""

import shutil

import pytest
import torch

from llmtool import experiment
from llmtool.commands import Options, rehearse, session
from llmtool.core import files


def table_file(rows: int) -> str:
    lines = ["width,colour,kind"]
    lines += [f"{n % 17},{'red' if n % 3 else 'blue'},{'a' if n % 17 > 8 else 'b'}" for n in range(rows)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def auto(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(table_file(120))
    (tmp_path / "auto.yaml").write_text(
        "data:\n  source: {format: csv, path: t.csv}\n  encode: {as: features, target: kind}\n"
        "model: auto\ntrain:\n  budget: {steps: 2}\n"
    )
    return tmp_path


def test_the_choice_is_written_down(llmtool, auto):
    ended = llmtool("train", "auto.yaml", cwd=auto)
    assert ended.code == 0, ended.err
    assert "model: auto is {family: mlp, hidden: [64, 64]}" in ended.err
    result = files.read_json(auto / "runs/auto/train/result.json")
    assert result["chosen"]["model"] == {"family": "mlp", "hidden": [64, 64]}
    assert "training rows" in result["chosen"]["why"]
    written = (auto / "runs/auto/train/experiment.yaml").read_text()
    assert "family: mlp" in written
    assert "model: auto" not in written
    again = llmtool("train", "auto.yaml", cwd=auto)
    assert "nothing has changed" in again.out
    described = llmtool("describe", "auto.yaml", cwd=auto)
    assert "chosen for this data: " in described.out
    assert "mlp (this one)" in described.out
    scored = llmtool("evaluate", "auto.yaml", cwd=auto)
    assert scored.code == 0, scored.err
    assert "which is scored as it is" not in scored.err
    missing = llmtool("train", "auto.yaml", "--set", "model=null", cwd=auto)  # no model is the same as auto
    assert "nothing has changed" in missing.out


def test_other_data_is_chosen_for_anew(llmtool, auto):
    assert llmtool("train", "auto.yaml", cwd=auto).code == 0
    (auto / "t.csv").write_text(table_file(3000))
    assert llmtool("prepare", "auto.yaml", cwd=auto).code == 0
    ended = llmtool("train", "auto.yaml", cwd=auto)
    assert ended.code == 0, ended.err
    chosen = files.read_json(auto / "runs/auto/train/result.json")["chosen"]["model"]
    assert chosen != {"family": "mlp", "hidden": [64, 64]}
    assert "model." in ended.err  # says what changed


def test_before_the_data_is_there(llmtool, auto):
    ended = llmtool("describe", "auto.yaml", cwd=auto)
    assert ended.code == 0, ended.err
    assert "the model is chosen once the data is prepared" in ended.out
    card = (auto / "runs/auto/describe/model_card.md").read_text()
    assert "The model is chosen once the data is prepared." in card
    assert "which families take these inputs" in ended.out


def test_a_rehearsal_chooses_for_the_whole_data(llmtool, auto):
    ended = llmtool("train", "auto.yaml", "--rehearse", "--json", cwd=auto)
    assert ended.code == 0, ended.err
    assert any("model: auto is mlp" in note for note in ended.json["rehearsal"]["notes"])


def test_a_rehearsal_trains_as_the_chosen_family_wants_it(llmtool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"text number {n} is {'good' if n % 2 else 'bad'},{n % 2}" for n in range(120)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "bag.yaml").write_text(
        "data:\n  source: {format: csv, path: t.csv}\n"
        "  encode: {as: text, text: text, target: label, tokenizer: {kind: words}, length: 16}\n"
        "model: auto\ntrain: {optimizer: {name: adamw, lr: 0.5}}\n"
    )
    assert llmtool("prepare", "bag.yaml", cwd=tmp_path).code == 0
    loaded = experiment.load("bag.yaml")
    rehearsal = rehearse._Rehearsal(Options("bag.yaml"), loaded, tmp_path / "aside", "train")
    rehearsal.card = files.read_json(tmp_path / "runs/bag/prepare/card.json")
    rehearsal.choose()
    real, _ = session.with_model(loaded, rehearsal.card)
    tried = experiment.load("bag.yaml", rehearsal.options.overrides).experiment
    assert (tried.model, tried.train) == (real.experiment.model, real.experiment.train)
    assert tried.train.optimizer.lr == 0.5
    assert tried.train.optimizer.weight_decay == 0  # of the bag's own adamw, as with `family: bag`
    assert tried.train.schedule.name == "linear"


def test_a_choice_for_the_other_kind_of_device_stands(llmtool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.txt").write_text("".join(f"the line {n} of a long text\n" for n in range(1500)))
    (tmp_path / "text.yaml").write_text(
        "data:\n  source: {format: text, path: long.txt}\n  encode: {as: tokens, tokenizer: {kind: bytes}}\n"
        "model: auto\ntrain:\n  budget: {steps: 1}\n  batch: 1\n"
    )
    assert llmtool("train", "text.yaml", cwd=tmp_path).code == 0
    loaded = experiment.load("text.yaml")
    card = files.read_json(tmp_path / "runs/text/prepare/card.json")
    here, _ = session.with_model(loaded, card)
    monkeypatch.setattr(session, "resolve_device", lambda name: torch.device("cuda"))
    there, choice = session.with_model(loaded, card)
    assert there.experiment.model == here.experiment.model
    shutil.rmtree(tmp_path / "runs/text/train")  # no training that stands
    new, choice = session.with_model(loaded, card)
    assert new.experiment.model != here.experiment.model
    assert choice.model["context"] == 256


@pytest.mark.parametrize(
    ("model", "words"),
    [("audio", "expected auto, or a"), ("[]", "a section"), ("{family: auto}", "'auto' is not a choice")],
)
def test_what_is_no_model(llmtool, auto, model, words):
    ended = llmtool("train", "auto.yaml", "--set", f"model={model}", cwd=auto)
    assert ended.code == 2
    assert words in ended.err
    assert "Traceback" not in ended.err
