"""All five commands on a tiny table and a tiny text: what they write, and that it is what it claims to be."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from llmtool import experiment
from llmtool.stages import checkpoints
from tests.conftest import COMMANDS, Ended, Run

RUN_FILES = {
    "prepare": {"card.json", "leakage.json", "ledger.json", "quarantine.jsonl", "result.json"},
    "describe": {"describe.json", "model_card.md", "result.json"},
    "train": {"experiment.yaml", "environment.json", "metrics.jsonl", "checkpoints", "best", "last"},
    "evaluate": {"report.json", "report.html", "predictions.csv", "result.json"},
}  # fmt: skip
RUN_FILES["train"] |= {"result.json"}
RUN_FILES["finetune"] = RUN_FILES["train"]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("project", ["table", "text"])
def test_the_run_directory_is_what_the_architecture_says(finished: Path, project: str) -> None:
    root = finished / "runs" / project
    assert {path.name for path in root.iterdir()} == {*COMMANDS, ".lock", ".cache"}
    for stage, names in RUN_FILES.items():
        found = {path.name for path in (root / stage).iterdir()} - {".record.json"}
        if stage == "prepare":
            arrays = {name for name in found if name.endswith(".bin")}
            assert {name.split(".")[0] for name in arrays} == {"train", "validation", "test"}
            found -= arrays
            names = names | ({"tokenizer.json", "tokenizer_config.json"} if project == "text" else set())
        assert found == names, stage
        result = read(root / stage / "result.json")
        assert (result["command"], result["status"], result["exit_code"]) == (stage, "done", 0)
        assert result["error"] is None
        assert result["versions"]["packages"]["torch"]


@pytest.mark.parametrize("project", ["table", "text"])
def test_the_ledger_balances_and_the_figures_travel(finished: Path, project: str) -> None:
    root = finished / "runs" / project
    ledger, card = read(root / "prepare/ledger.json"), read(root / "prepare/card.json")
    gone = sum(ledger["dropped"].values()) + sum(ledger["quarantined"].values())
    assert ledger["read"] == sum(ledger["kept"].values()) + gone == (300 if project == "table" else 60)
    fingerprint = card["fingerprint"]
    for stage in ("prepare", "train", "finetune", "evaluate"):
        assert read(root / stage / "result.json")["fingerprints"]["dataset"] == fingerprint
    rows = [json.loads(line) for line in (root / "train/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in rows if "validation" in row] == [4, 8, 12]
    train = read(root / "train/result.json")
    assert train["steps"] == 12
    best = next(r for r in rows if "validation" in r and r["step"] == train["best"]["step"])
    assert train["best"]["value"] == best["validation"][train["best"]["metric"]]
    for name, value in best["validation"].items():  # bits per byte are left to the scoring at the end
        assert train["metrics"]["validation"][name] == pytest.approx(value)


def test_checkpoints_hold_what_they_say(finished: Path) -> None:
    for project, weights in (("table", "model.safetensors"), ("text", "model.safetensors")):
        root = finished / "runs" / project
        for link in ("best", "last"):
            assert (root / "train" / link).is_symlink()
            assert not Path((root / "train" / link).readlink()).is_absolute()
        checkpoint = (root / "train/last").resolve()
        assert checkpoint.name == "step-00000012"
        listed = set(read(checkpoint / "manifest.json")["files"])
        found = {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file()}
        assert listed == found - {"manifest.json"}
        assert {"config.json", weights, "state/optimizer.safetensors", "state/loop.json"} <= listed
        adapter = (root / "finetune/last").resolve()
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in adapter.iterdir()}


@pytest.mark.parametrize("project", ["table", "text"])
def test_experiment_yaml_loads_again_and_gives_the_same_run(copy: Path, llmtool: Run, project: str) -> None:
    resolved = copy / "runs" / project / "train/experiment.yaml"
    again = copy / "again.yaml"
    again.write_text(resolved.read_text().replace(f"run: runs/{project}\n", "run: runs/again\n"))
    loaded = experiment.load(str(again)).experiment
    assert loaded.train is not None
    assert isinstance(loaded.train.batch, int)
    assert isinstance(loaded.train.micro_batch, int)
    ended = llmtool("train", "again.yaml", cwd=copy)
    assert ended.code == 0, ended.err
    first, second = (copy / "runs" / name / "train/last/model.safetensors" for name in (project, "again"))
    assert first.read_bytes() == second.read_bytes()


def test_experiment_yaml_of_a_finetune_with_like_loads_again(copy: Path, llmtool: Run) -> None:
    for project, target in (("table", "target: income, "), ("text", "")):
        encode = {"table": "features", "text": "tokens"}[project]
        text = f"encode: {{as: {encode}, {target}like: runs/{project}/prepare}}"
        text = re.sub("encode: .*", text, (copy / f"{project}.yaml").read_text())
        text = re.sub("^(model|train): .*\n", "", text, flags=re.MULTILINE)
        (copy / "like.yaml").write_text(f"run: runs/like_{project}\n{text}")
        ended = llmtool("finetune", "like.yaml", cwd=copy)
        assert ended.code == 0, ended.err
        again = experiment.load(str(copy / f"runs/like_{project}/finetune/experiment.yaml")).experiment
        assert again.data == experiment.load(str(copy / "like.yaml")).experiment.data


def test_experiment_yaml_keeps_text_that_looks_like_a_number(fresh: Path) -> None:
    names = [
        "1e5",
        "08",
        "010",
        "0x1F",
        "no",
        "null",
        "~",
        "1.5",
        "",
        " a",
        "a: b",
        "#",
        "9" * 5000,
        "Zürich\n",
    ]
    loaded = experiment.load(str(fresh / "table.yaml"))
    encode = loaded.experiment.data.encode.model_copy(update={"ignore": names})
    data = loaded.experiment.data.model_copy(update={"encode": encode})
    text = experiment.resolved(loaded.experiment.model_copy(update={"data": data}))
    (fresh / "again.yaml").write_text(text)
    assert experiment.load(str(fresh / "again.yaml")).experiment.data.encode.ignore == names


@pytest.mark.parametrize("project", ["table", "text"])
def test_train_alone_does_the_whole_job(fresh: Path, finished: Path, llmtool: Run, project: str) -> None:
    ended = llmtool("train", f"{project}.yaml", cwd=fresh)
    assert ended.code == 0, ended.err
    root = fresh / "runs" / project
    assert (root / "prepare/card.json").is_file()
    there = finished / "runs" / project
    weights = "train/best/model.safetensors"
    assert (root / weights).read_bytes() == (there / weights).read_bytes()
    assert f"best checkpoint: runs/{project}/train/best" in ended.out


@pytest.mark.parametrize("project", ["table", "text"])
def test_json_is_one_document_and_nothing_else(fresh: Path, llmtool: Run, project: str) -> None:
    name = f"{project}.yaml"
    for command in COMMANDS:
        document = llmtool(command, name, "--json", cwd=fresh).json
        assert (document["command"], document["status"], document["exit_code"]) == (command, "done", 0)
        assert document == read(fresh / "runs" / project / command / "result.json")
        again = llmtool(command, name, "--json", cwd=fresh).json
        assert again == document
    for command in COMMANDS:
        ended = llmtool(command, name, "--json", "--set", "seed=-1", cwd=fresh)
        assert ended.code == ended.json["exit_code"] == 2
        assert ended.json["error"] in ended.err
        assert read(fresh / "runs" / project / command / "result.json")["status"] == "config_error"
        ended = llmtool(command, "none.yaml", "--json", cwd=fresh)
        assert ended.json == {
            "command": command, "status": "config_error", "exit_code": 2, "error": "none.yaml: no such file",
        }  # fmt: skip


def test_json_of_a_stage_that_fails_before_its_own(fresh: Path, llmtool: Run) -> None:
    """`train` that cannot prepare says so in train's own result.json, as `train`."""
    (fresh / "people.csv").write_text("income\n")
    ended = llmtool("train", "table.yaml", "--json", cwd=fresh)
    assert ended.code == 4
    assert ended.json["command"] == "train"
    assert ended.json["status"] == "data_refused"
    for stage in ("prepare", "train"):
        result = read(fresh / "runs/table" / stage / "result.json")
        assert (result["command"], result["exit_code"]) == (stage, 4)
    (fresh / "people.csv").unlink()
    assert llmtool("train", "table.yaml", cwd=fresh).code == 4
    assert read(fresh / "runs/table/train/result.json")["error"] == "people.csv: no such file"


def test_json_of_a_checkpoint_that_is_described(finished: Path, llmtool: Run) -> None:
    for path in ("runs/table", "runs/table/train", "runs/text/train/checkpoints/step-00000012"):
        document = llmtool("describe", path, "--json", cwd=finished).json
        assert document["status"] == "done"
        assert document["description"]["parameters"]["total"] > 50
    assert llmtool("describe", "runs/text/finetune", cwd=finished).code == 0
    assert llmtool("describe", "runs", cwd=finished).code == 2
    assert llmtool("describe", "runs/table", "--set", "seed=1", cwd=finished).code == 2


# --- what evaluate says ---


def predictions(directory: Path) -> list[dict[str, str]]:
    with (directory / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_predictions_name_their_rows_and_give_the_figures(finished: Path) -> None:
    root = finished / "runs/table"
    report, rows = read(root / "evaluate/report.json"), predictions(root / "evaluate")
    source = (finished / "people.csv").read_text().splitlines()
    for split in ("validation", "test"):
        part = [row for row in rows if row["split"] == split]
        assert len(part) == report["rows"][split] == read(root / "prepare/ledger.json")["kept"][split]
        lines = [source[int(row["line"]) - 1].rsplit(",", 1)[1] for row in part]
        assert [row["target"] for row in part] == lines
        assert {row["file"] for row in part} == {"people.csv"}
        truth = np.array([row["target"] for row in part])
        said = np.array([row["prediction"] for row in part])
        chance = np.array([[float(row[f"probability {name}"]) for name in ("high", "low")] for row in part])
        positive = report["details"][split]["positive"]
        of_positive = chance[:, ["high", "low"].index(positive)]
        figures = report["metrics"][split]
        expected = {
            "accuracy": metrics.accuracy_score(truth, said),
            "balanced_accuracy": metrics.balanced_accuracy_score(truth, said),
            "precision": metrics.precision_score(truth, said, pos_label=positive, zero_division=0),
            "recall": metrics.recall_score(truth, said, pos_label=positive),
            "f1": metrics.f1_score(truth, said, pos_label=positive),
            "f1_macro": metrics.f1_score(truth, said, average="macro"),
            "roc_auc": metrics.roc_auc_score(truth == positive, of_positive),
            "pr_auc": metrics.average_precision_score(truth == positive, of_positive),
            "log_loss": metrics.log_loss(truth, chance, labels=["high", "low"]),
        }
        for name, value in expected.items():
            assert figures[name] == pytest.approx(value, abs=1e-6), name
        matrix = metrics.confusion_matrix(truth, said, labels=["high", "low"])
        assert report["details"][split]["confusion"]["matrix"] == matrix.tolist()


def test_regression_from_end_to_end(fresh: Path, llmtool: Run) -> None:
    overrides = ["--set", "data.encode.target=hours", "--set", "data.split={by: random}"]
    overrides += ["--set", "evaluate.require={test.rmse: '>=0'}", "--set", "finetune=null"]
    assert llmtool("train", "table.yaml", *overrides, cwd=fresh).code == 0
    ended = llmtool("evaluate", "table.yaml", *overrides, cwd=fresh)
    assert ended.code == 0, ended.err
    report, rows = read(fresh / "runs/table/evaluate/report.json"), predictions(fresh / "runs/table/evaluate")
    part = [row for row in rows if row["split"] == "test"]
    truth = [float(row["target"]) for row in part]
    said = [float(row["prediction"]) for row in part]
    figures = report["metrics"]["test"]
    assert figures["mae"] == pytest.approx(metrics.mean_absolute_error(truth, said), rel=1e-5)
    assert figures["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth, said), rel=1e-5)
    assert figures["r2"] == pytest.approx(metrics.r2_score(truth, said), abs=1e-5)
    ledger = read(fresh / "runs/table/prepare/ledger.json")
    without = sum(line.split(",")[1] == "" for line in (fresh / "people.csv").read_text().splitlines())
    assert ledger["dropped"] == {"hours (target) is missing": without}


@pytest.mark.parametrize(
    ("require", "code", "line"),
    [
        ("{test.accuracy: '>=0'}", 0, ""),
        ("{test.accuracy: '>=0', validation.f1: '>1'}", 3, "validation.f1 is "),
        ("{test.acuracy: '>=0'}", 2, "did you mean \"accuracy\""),
        ("{tset.accuracy: '>=0'}", 2, "did you mean \"test\""),
        ("{test.accuracy: 0.5}", 2, "evaluate.require.test.accuracy"),
    ],
)  # fmt: skip
def test_requirements(copy: Path, llmtool: Run, require: str, code: int, line: str) -> None:
    ended = llmtool("evaluate", "table.yaml", "--set", f"evaluate.require={require}", cwd=copy)
    assert ended.code == code
    assert line in ended.error
    assert "test.accuracy is" not in ended.error  # what is met is no complaint
    result = read(copy / "runs/table/evaluate/result.json")
    assert result["exit_code"] == code
    if code == 3:
        assert result["status"] == "requirement_unmet"
        assert result["metrics"]["test"]["accuracy"] >= 0  # the figures are there all the same
        assert [entry["met"] for entry in result["requirements"]] == [True, False]


def test_evaluate_of_a_run_a_stage_or_a_checkpoint(copy: Path, llmtool: Run) -> None:
    reports = {}
    for of in ("runs/table", "runs/table/train", "runs/table/train/best", "runs/table/finetune"):
        assert llmtool("evaluate", "table.yaml", "--set", f"evaluate.of={of}", cwd=copy).code == 0
        reports[of] = read(copy / "runs/table/evaluate/report.json")
    assert reports["runs/table"] == reports["runs/table/finetune"]  # of both, what it fine-tuned
    assert reports["runs/table/train"] == reports["runs/table/train/best"]
    assert reports["runs/table/train"]["metrics"] != reports["runs/table"]["metrics"]
    gone = "runs/table/train/checkpoints/step-00000001"
    for of in (gone, "runs", "people.csv", "runs/table/prepare"):
        ended = llmtool("evaluate", "table.yaml", "--set", f"evaluate.of={of}", cwd=copy)
        assert ended.code == 2
        assert f"evaluate.of: {of}: no checkpoint here" in ended.error


def test_a_run_that_only_fine_tuned_is_a_start_and_a_file_goes_on_from_its_own_training(
    copy: Path, llmtool: Run
) -> None:
    own = ["finetune", "table.yaml", "--set", "finetune.start=runs/table", "--json"]
    ended = llmtool(*own, cwd=copy)  # not from what it fine-tuned itself
    assert ended.code == 0, ended.err
    assert ended.json["fingerprints"] == read(copy / "runs/table/finetune/result.json")["fingerprints"]
    full = ["finetune", "table.yaml", "--set", "finetune.method={kind: full}", "--json"]
    assert llmtool(*full, "--set", "run=runs/tuned", cwd=copy).code == 0
    assert not (copy / "runs/tuned/train").exists()
    ended = llmtool(*full, "--set", "run=runs/more", "--set", "finetune.start=runs/tuned", cwd=copy)
    assert ended.code == 0, ended.err
    before = ended.json["lineage"]["links"][-2]
    assert before["what"] == "checkpoint"
    assert "runs/tuned/finetune/checkpoints" in before["where"]


def test_evaluate_says_when_the_model_is_not_what_the_file_asks_for(copy: Path, llmtool: Run) -> None:
    text = (copy / "table.yaml").read_text()
    (copy / "table.yaml").write_text(text.replace("rank: 2}", "rank: 3}"))
    ended = llmtool("evaluate", "table.yaml", cwd=copy)
    assert ended.code == 0
    assert "runs/table/finetune, which is scored as it is: finetune.method.rank: 2 -> 3" in ended.err


def test_evaluate_before_train_says_what_to_do(fresh: Path, llmtool: Run) -> None:
    ended = llmtool("evaluate", "table.yaml", cwd=fresh)
    assert ended.code == 2
    assert "run `llmtool train table.yaml` first" in ended.error


# --- finetune ---


def tune(copy: Path, llmtool: Run, text: str, *more: str) -> tuple[Ended, dict[str, Any]]:
    (copy / "tune.yaml").write_text(text)
    ended = llmtool("finetune", "tune.yaml", *more, cwd=copy)
    result = read(copy / "runs/tune/finetune/result.json")
    return ended, result


OTHER = """\
data:
  source: {{format: csv, path: {path}}}
  encode: {{as: features, target: {target}, like: runs/table/prepare}}
finetune: {{start: runs/table/train, method: {method}, budget: {{steps: 4}}, batch: 16}}
"""


@pytest.mark.parametrize(
    "method", ["{kind: full}", "{kind: freeze, blocks: 1}", "{kind: head}", "{kind: lora}"]
)
def test_finetune_on_other_rows(copy: Path, llmtool: Run, method: str) -> None:
    lines = (copy / "people.csv").read_text().splitlines()
    (copy / "some.csv").write_text("\n".join([lines[0], *(x for x in lines if ",yes," in x)]) + "\n")
    ended, result = tune(copy, llmtool, OTHER.format(path="some.csv", target="income", method=method))
    assert ended.code == 0, ended.err
    assert result["head"] is None
    for when in ("before", "after"):
        assert set(result[when]) == {"old", "new"}
        assert result[when]["new"]["log_loss"] > 0
    old = read(copy / "runs/table/train/result.json")["metrics"]["validation"]
    assert result["before"]["old"] == pytest.approx(old)
    assert result["after"]["new"] != result["before"]["new"]
    assert result["metrics"]["validation"] == result["after"]["new"]
    assert "this data: accuracy" in ended.out
    assert "runs/table/prepare: accuracy" in ended.out
    before = checkpoints.from_checkpoint(str(copy / "runs/table/train")).model.state_dict()
    start_text = (copy / "runs/tune/finetune/best/llmtool.json").read_text()
    assert "runs/tune/prepare" in start_text
    assert llmtool("evaluate", "tune.yaml", cwd=copy).code == 0
    if method == "{kind: head}":
        after = checkpoints.from_checkpoint(str(copy / "runs/tune/finetune")).model.state_dict()
        same = {name for name in before if torch.equal(before[name], after[name])}
        assert same == {name for name in before if not name.startswith("head")}


def test_finetune_on_other_classes_replaces_the_head_and_says_so(copy: Path, llmtool: Run) -> None:
    lines = (copy / "people.csv").read_text().splitlines()
    jobs = [
        f"{line.rsplit(',', 1)[0]},{('cook', 'smith', 'clerk')[i % 3]}" for i, line in enumerate(lines[1:])
    ]
    (copy / "jobs.csv").write_text("\n".join(["age,hours,city,member,job", *jobs]) + "\n")
    text = OTHER.format(path="jobs.csv", target="job", method="{kind: lora, rank: 2, merge: true}")
    ended, result = tune(copy, llmtool, text)
    assert ended.code == 0, ended.err
    assert "2 classes (high, low) became 3 classes (clerk, cook, smith)" in result["head"]
    assert result["head"] in ended.out
    assert set(result["before"]) == {"old", "new"}
    assert set(result["after"]) == {"new"}
    assert result["merged"] == "runs/tune/finetune/merged"
    reports = []
    for of in ("runs/tune/finetune", "runs/tune/finetune/merged"):
        assert llmtool("evaluate", "tune.yaml", "--set", f"evaluate.of={of}", cwd=copy).code == 0
        rows = predictions(copy / "runs/tune/evaluate")
        reports.append([[float(v) for k, v in row.items() if k.startswith("probability")] for row in rows])
    assert np.allclose(*reports, atol=1e-6)
    # the old model cannot be scored on the new classes
    ended = llmtool("evaluate", "tune.yaml", "--set", "evaluate.of=runs/table/train", cwd=copy)
    assert ended.code == 2
    assert "gives 2 classes (high, low); runs/tune/prepare has 3 classes" in ended.error
    # an adapter is adapted again beside its merged model, which lies in the run and moves with it
    third = ("--set", "finetune.start=runs/tune/finetune", "--set", "run=runs/third")
    ended = llmtool("finetune", "tune.yaml", *third, "--json", cwd=copy)
    assert ended.code == 0, ended.err
    assert ended.json["before"]["new"] == pytest.approx(result["after"]["new"])
    (copy / "runs/third").rename(copy / "runs/moved")
    moved = ("--set", "run=runs/moved", "--set", "evaluate.of=runs/moved/finetune")
    ended = llmtool("evaluate", "tune.yaml", *moved, "--json", cwd=copy)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("method", ["{kind: full}", "{kind: lora, rank: 2, merge: true}"])
def test_finetune_of_a_language_model(copy: Path, llmtool: Run, method: str) -> None:
    words = (copy / "story.txt").read_text().split("\n\n")
    (copy / "kings.txt").write_text("\n\n".join(w for w in words if "king" in w))
    ended, result = tune(
        copy,
        llmtool,
        "data:\n  source: {format: text, path: kings.txt, documents: blank}\n"
        "  encode: {as: tokens, like: runs/text/prepare}\n"
        f"finetune: {{start: runs/text/train, method: {method}, budget: {{steps: 4}}, batch: 4}}\n",
    )
    assert ended.code == 0, ended.err
    assert {*result["before"]} == {*result["after"]} == {"old", "new"}
    assert result["after"]["new"]["loss"] < result["before"]["new"]["loss"]
    if "merge" in method:
        with contextlib.chdir(copy):  # the base of an adapter is named as the configuration names it
            adapter = checkpoints.from_checkpoint("runs/tune/finetune").model
            merged = checkpoints.from_checkpoint("runs/tune/finetune/merged").model
        ids = torch.arange(12).reshape(2, 6)
        torch.testing.assert_close(merged.eval()(ids), adapter.eval()(ids))


def test_finetune_of_data_encoded_otherwise_names_the_key_to_set(copy: Path, llmtool: Run) -> None:
    text = OTHER.format(path="people.csv", target="income", method="{kind: full}")
    text = text.replace("like: runs/table/prepare", "scale: quantile")
    (copy / "tune.yaml").write_text(text)
    ended = llmtool("finetune", "tune.yaml", cwd=copy)
    assert ended.code == 2
    assert "set data.encode.like: runs/table/prepare" in ended.error


@pytest.mark.parametrize("damaged", [False, True])
def test_finetune_when_the_old_data_is_gone(copy: Path, llmtool: Run, damaged: bool) -> None:
    (copy / "some.csv").write_text("\n".join((copy / "people.csv").read_text().splitlines()[:200]))
    (copy / "tune.yaml").write_text(OTHER.format(path="some.csv", target="income", method="{kind: full}"))
    assert llmtool("prepare", "tune.yaml", cwd=copy).code == 0
    path = copy / "runs/table/prepare/validation.inputs.bin"
    if damaged:
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
    else:
        path.unlink()
    ended = llmtool("finetune", "tune.yaml", cwd=copy)
    assert ended.code == 0, ended.err
    assert "runs/table/prepare is gone or has changed: no scores on what the start learned from" in ended.err


# --- for others' tools ---


def test_a_checkpoint_is_a_hugging_face_model_directory(finished: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory = (finished / "runs/text/train/best").resolve()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    text = "the old king."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == text
    ours = checkpoints.from_checkpoint(str(directory)).model.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    assert tokenizer.eos_token_id is not None
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id
