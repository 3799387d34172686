"""The chain from source files to figures: in every result, checked by describe, compared for two runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtool.core import files, lineage
from tests.conftest import COMMANDS, Run, write_projects


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def links(path: Path) -> list[tuple[str, str]]:
    """What stands in a result's lineage, each link with the hash of all before it."""
    document = read(path)["lineage"]
    assert lineage.read(document)[-1].hash == document["hash"]
    return [(link["what"], link["hash"]) for link in document["links"]]


def project(directory: Path, *changes: tuple[str, str], name: str = "table") -> None:
    """The table's project with changes of its text, trained from the start alone."""
    if not (directory / "table.yaml").exists():
        directory.mkdir(exist_ok=True)
        write_projects(directory)
    text = (directory / "table.yaml").read_text().replace("finetune:", "#")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (directory / f"{name}.yaml").write_text(text)


def done(
    llmtool: Run, cwd: Path, *commands: str, config: str = "table.yaml", more: tuple[str, ...] = ()
) -> None:
    for command in commands:
        ended = llmtool(command, config, *more, cwd=cwd)
        assert ended.code == 0, ended.err


def described(llmtool: Run, cwd: Path, *paths: str) -> dict[str, Any]:
    ended = llmtool("describe", *paths, "--json", cwd=cwd)
    assert ended.code == 0, ended.err
    return ended.json


def states(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(link["what"], link["now"]) for link in document["lineage"]["links"]]


# --- in every result --------------------------------------------------------------------------------------


@pytest.mark.parametrize("project_", ["table", "text"])
def test_every_result_has_the_chain_up_to_it(finished: Path, project_: str) -> None:
    root = finished / "runs" / project_
    chain = {stage: links(root / stage / "result.json") for stage in COMMANDS}
    data = chain["prepare"]
    assert [what for what, _ in data] == ["source", "encoder", "dataset"]
    assert chain["describe"] == [*data, ("model", chain["describe"][-1][1])]
    assert chain["train"] == [*data, ("checkpoint", chain["train"][-1][1])]
    assert chain["finetune"] == [*chain["train"], ("checkpoint", chain["finetune"][-1][1])]
    assert chain["evaluate"] == [*chain["finetune"], ("metrics", chain["evaluate"][-1][1])]
    report, result = (read(root / "evaluate" / name) for name in ("report.json", "result.json"))
    assert report["lineage"] == result["lineage"]
    (source, *_) = result["lineage"]["links"]
    assert source["content"] == files.hash_file(finished / source["where"])
    scored = result["lineage"]["links"][-2]
    assert scored["content"] == report["model"]["hash"] == result["fingerprints"]["weights"]
    assert scored["content"] == read(root / "finetune/result.json")["fingerprints"]["weights"]
    start = read(root / "finetune/result.json")["start"]
    assert start["hash"] == read(root / "train/result.json")["fingerprints"]["weights"]


def test_identical_runs_in_two_places_have_equal_chains(finished: Path, tmp_path: Path, llmtool: Run) -> None:
    for place, run in (("a", "one"), ("b/c", "two")):
        (tmp_path / place).mkdir(parents=True)
        write_projects(tmp_path / place)
        text = (tmp_path / place / "table.yaml").read_text().replace("runs/table", f"out/{run}")
        (tmp_path / place / "table.yaml").write_text(f"run: out/{run}\n{text}")
        done(llmtool, tmp_path / place, *COMMANDS)
    for stage in COMMANDS:
        one, two = (tmp_path / "a/out/one" / stage, tmp_path / "b/c/out/two" / stage)
        assert links(one / "result.json") == links(two / "result.json"), stage
        assert links(one / "result.json") == links(finished / "runs/table" / stage / "result.json"), stage


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (("people.csv", "people.csv"), "source"),
        (("target: income", "target: income, scale: quantile"), "encoder"),
        (("hidden: [8]", "hidden: [9]"), "checkpoint"),
        (("seed: 3", "seed: 4"), "encoder"),  # other rows train, and other weights begin
        (("train: {budget", "seed: 4\ntrain: {budget"), "checkpoint"),
        (("test.accuracy", "validation.accuracy"), None),
        (("require: {test.accuracy: \">=0.1\"}", "splits: [test]"), "metrics"),
    ],
)  # fmt: skip
def test_the_chain_changes_from_the_changed_link_on(
    tmp_path: Path, llmtool: Run, change: tuple[str, str], first: str | None
) -> None:
    fixed = ("seed: 3", "") if change[1].startswith("seed: 4\n") else ("seed: 3", "seed: 3")
    order = ("by: stratified, on: income", "by: order") if fixed[1] == "" else fixed
    chains = []
    for place, changes in (("a", (fixed, order)), ("b", (fixed, order, change))):
        project(tmp_path / place, *changes)
        if place == "b" and first == "source":
            text = (tmp_path / "b/people.csv").read_text().splitlines()
            text[7] = text[7].replace(text[7].split(",")[0], "81", 1)
            (tmp_path / "b/people.csv").write_text("\n".join(text) + "\n")
        done(llmtool, tmp_path / place, "train", "evaluate")
        chains.append(links(tmp_path / place / "runs/table/evaluate/result.json"))
    assert [what for what, _ in chains[0]] == ["source", "encoder", "dataset", "checkpoint", "metrics"]
    differ = [what for (what, old), (_, new) in zip(*chains, strict=True) if old != new]
    kinds = [what for what, _ in chains[0]]
    assert differ == ([] if first is None else kinds[kinds.index(first) :])


def test_weights_that_went_on_from_other_data_say_so(tmp_path: Path, llmtool: Run) -> None:
    project(tmp_path)
    done(llmtool, tmp_path, "train")
    old = links(tmp_path / "runs/table/train/result.json")
    lines = (tmp_path / "people.csv").read_text().splitlines()
    (tmp_path / "people.csv").write_text("\n".join(lines[:-1]) + "\n")
    done(llmtool, tmp_path, "prepare")
    longer = ("--set", "train.budget.steps=16", "--resume")
    done(llmtool, tmp_path, "train", more=longer)
    new = states(described(llmtool, tmp_path, "runs/table/train/last"))
    whole = ["source", "encoder", "dataset", "checkpoint"]
    assert [what for what, _ in new] == [*whole[:3], *whole, "checkpoint"]
    found = described(llmtool, tmp_path, "runs/table/train/last")["lineage"]["links"]
    assert [link["hash"] for link in found[3:7]] == [hash_ for _, hash_ in old]
    assert found[7]["of"] == [3, 7]
    done(llmtool, tmp_path, "train", more=("--set", "train.budget.steps=20", "--resume"))
    found = described(llmtool, tmp_path, "runs/table/train/last")["lineage"]["links"]
    assert found[7]["of"] == [3, 7]  # a session on the same data is no other beginning


# --- describe RUN -----------------------------------------------------------------------------------------


def test_describe_prints_the_model_then_the_chain(finished: Path, llmtool: Run) -> None:
    found = described(llmtool, finished, "runs/table")
    whole = read(finished / "runs/table/evaluate/result.json")["lineage"]
    assert found["lineage"]["hash"] == whole["hash"]
    assert [link["hash"] for link in found["lineage"]["links"]] == [link["hash"] for link in whole["links"]]
    assert {state for _, state in states(found)} == {"ok"}
    assert [link["of"] for link in found["lineage"]["links"]] == [[], [1], [1, 2], [3], [3, 4], [3, 5]]
    assert (found["notes"], found["warnings"]) == ([], [])
    assert found["description"]["data"]["splits"]["train"]["rows"] == 210
    out = llmtool("describe", "runs/table", cwd=finished).out
    assert out.index("parameters") < out.index("lineage")
    line = next(line for line in out.splitlines() if "metrics" in line)
    assert line.split()[:6] == ["6", "metrics", lineage.short(whole["hash"]), "3", "5", "runs/table/evaluate"]
    for stage, count in (("prepare", 3), ("train", 4), ("finetune", 5), ("evaluate", 6), ("describe", 6)):
        found = described(llmtool, finished, f"runs/table/{stage}")
        assert len(states(found)) == count, stage
        assert (found["description"] is None) == (stage == "prepare")
    bare = described(llmtool, finished, "runs/table/train/best")
    assert states(bare) == states(described(llmtool, finished, "runs/table/train"))


def test_a_run_that_is_only_prepared(fresh: Path, llmtool: Run) -> None:
    done(llmtool, fresh, "prepare")
    found = described(llmtool, fresh, "runs/table")
    assert states(found) == [("source", "ok"), ("encoder", "ok"), ("dataset", "ok")]
    assert found["description"] is None
    assert found["notes"] == ["runs/table: no model yet"]
    assert "note: runs/table: no model yet" in llmtool("describe", "runs/table", cwd=fresh).out


def test_what_is_not_as_it_was_is_named(copy: Path, llmtool: Run) -> None:
    (copy / "people.csv").write_text((copy / "people.csv").read_text() + "1,1.0,a,no,low\n")
    array = copy / "runs/table/prepare/test.inputs.bin"
    array.write_bytes(array.read_bytes()[::-1])
    weights = copy / "runs/table/train/best/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    predictions = copy / "runs/table/evaluate/predictions.csv"
    predictions.write_text(predictions.read_text().replace("high", "low", 1))
    ended = llmtool("describe", "runs/table", cwd=copy)
    assert ended.code == 0
    for line in (
        "1 source: has other bytes now",
        "3 dataset: runs/table/prepare/test.inputs.bin: the content has changed",
        "4 checkpoint: runs/table/train/checkpoints/step-00000012/model.safetensors: the content changed",
        "6 metrics: runs/table/evaluate/predictions.csv: the content has changed since it was written",
    ):
        assert line in ended.out
    assert states(described(llmtool, copy, "runs/table")) == [
        ("source", "changed"), ("encoder", "ok"), ("dataset", "changed"), ("checkpoint", "changed"),
        ("checkpoint", "ok"), ("metrics", "changed"),
    ]  # fmt: skip
    report = read(copy / "runs/text/evaluate/report.json")
    report["metrics"]["test"]["loss"] = 0.01
    files.write_json(copy / "runs/text/evaluate/report.json", report)
    assert "report.json: its figures are not those that were written" in llmtool(
        "describe", "runs/text", cwd=copy
    ).out.replace("\n", " ")


def test_a_run_that_was_moved_and_one_seen_from_elsewhere(copy: Path, tmp_path: Path, llmtool: Run) -> None:
    shutil.move(copy / "runs/table", copy / "runs/moved")
    found = described(llmtool, copy, "runs/moved")
    assert {state for _, state in states(found)} == {"ok"}
    assert found["lineage"]["links"][3]["where"] == "runs/moved/train/checkpoints/step-00000012"
    found = described(llmtool, tmp_path, str(copy / "runs/moved"))
    assert {state for _, state in states(found)} == {"ok"}  # the source lies where the run says, beside runs/
    shutil.move(copy / "runs/moved", tmp_path / "alone")
    found = described(llmtool, tmp_path, "alone")
    assert states(found)[:3] == [("source", "gone"), ("encoder", "ok"), ("dataset", "ok")]


def test_the_chain_survives_the_run_it_began_in(copy: Path, llmtool: Run) -> None:
    """A model that was tuned from another run's knows what that was made from, when the run is gone."""
    encode = "{as: features, target: income, like: runs/table/prepare}"
    data = f"{{source: {{format: csv, path: some.csv}}, encode: {encode}}}"
    budget = "budget: {steps: 2}, batch: 16"
    (copy / "tune.yaml").write_text(
        f"data: {data}\nfinetune: {{start: runs/table/train, method: {{kind: head}}, {budget}}}\n"
    )
    lines = (copy / "people.csv").read_text().splitlines()
    (copy / "some.csv").write_text("\n".join(lines[:200]) + "\n")
    start = links(copy / "runs/table/train/result.json")
    done(llmtool, copy, "finetune", config="tune.yaml")
    whole = links(copy / "runs/tune/finetune/result.json")
    assert set(start) < set(whole)
    shutil.rmtree(copy / "runs/table")
    shutil.copytree(copy / "runs/tune/finetune/best", copy / "taken")
    found = described(llmtool, copy, "taken")
    assert [(link["what"], link["hash"]) for link in found["lineage"]["links"]] == whole
    gone = [link for link in found["lineage"]["links"] if link["now"] == "gone"]
    assert [link["what"] for link in gone] == ["encoder", "dataset", "checkpoint", "encoder's file 2"]
    assert found["lineage"]["links"][0]["now"] == "ok"  # people.csv is still there


# --- figures of other weights -----------------------------------------------------------------------------


def test_figures_of_other_weights_are_never_shown_as_this_models(tmp_path: Path, llmtool: Run) -> None:
    """As https://github.com/Lightning-AI/litgpt/pull/1357: evaluate gave an earlier checkpoint's figures."""
    project(tmp_path, ("by: stratified, on: income", "by: order"))
    done(llmtool, tmp_path, "train", "evaluate")
    result, page = (tmp_path / "runs/table/evaluate" / name for name in ("result.json", "report.html"))
    first = read(result)
    for command in ("describe", "report"):
        assert "other weights" not in llmtool(command, "runs/table", cwd=tmp_path).out
    other = ("--set", "model.hidden=[9]")  # at the very same path as before
    done(llmtool, tmp_path, "train", more=other)
    warning = "the figures in runs/table/evaluate are of other weights ("
    for command in ("describe", "report"):
        ended = llmtool(command, "runs/table", cwd=tmp_path)
        assert f"careful: {warning}" in ended.out
        assert "train has run since" in ended.out
    assert f"<p class='unmet'>{warning}" in page.read_text()
    found = described(llmtool, tmp_path, "runs/table")
    assert states(found)[-3:] == [("checkpoint", "ok"), ("checkpoint", "other"), ("metrics", "ok")]
    assert found["warnings"][0].startswith(warning)
    assert found["lineage"]["hash"] == read(tmp_path / "runs/table/train/result.json")["lineage"]["hash"]
    assert llmtool("report", "runs/table", "--json", cwd=tmp_path).json["runs"][0]["warnings"]
    done(llmtool, tmp_path, "evaluate", more=other)
    second = read(result)
    assert second["fingerprints"]["weights"] != first["fingerprints"]["weights"]
    assert second["lineage"]["hash"] != first["lineage"]["hash"]
    assert second["metrics"] != first["metrics"]
    assert "other weights" not in page.read_text()
    found = described(llmtool, tmp_path, "runs/table")
    assert found["warnings"] == []
    assert found["lineage"]["hash"] == second["lineage"]["hash"]


def test_swapped_weights_are_refused_not_scored(tmp_path: Path, llmtool: Run) -> None:
    project(tmp_path)
    done(llmtool, tmp_path, "train", "evaluate")
    before = read(tmp_path / "runs/table/evaluate/report.json")
    weights = tmp_path / "runs/table/train/best/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(bytes(data))
    ended = llmtool("evaluate", "table.yaml", cwd=tmp_path)
    assert ended.code == 1
    assert "model.safetensors: the content changed since it was written (hash differs)" in ended.error
    assert read(tmp_path / "runs/table/evaluate/report.json") == before
    assert states(described(llmtool, tmp_path, "runs/table"))[3:] == [
        ("checkpoint", "changed"),
        ("metrics", "ok"),
    ]


def test_an_evaluation_of_another_model_says_whose_figures_they_are(copy: Path, llmtool: Run) -> None:
    of = ("--set", "evaluate.of=runs/table/train")
    done(llmtool, copy, "evaluate", more=of)
    ended = llmtool("describe", "runs/table", cwd=copy)
    assert "are of the weights that train made, not of finetune's" in ended.out
    found = described(llmtool, copy, "runs/table")
    assert states(found)[-2:] == [("checkpoint", "ok"), ("metrics", "ok")]
    (copy / "judge.yaml").write_text((copy / "table.yaml").read_text().split("model:")[0])
    done(llmtool, copy, "evaluate", config="judge.yaml", more=of)
    found = described(llmtool, copy, "runs/judge")  # a run without a model of its own
    assert found["warnings"] == []
    assert [what for what, _ in states(found)] == ["source", "encoder", "dataset", "checkpoint", "metrics"]
    assert found["lineage"]["links"][3]["where"] == "runs/table/train/checkpoints/step-00000012"


# --- two runs ---------------------------------------------------------------------------------------------


def test_two_runs_with_one_key_changed(tmp_path: Path, llmtool: Run) -> None:
    project(tmp_path)
    project(tmp_path, ("hidden: [8]", "hidden: [9]"), name="other")
    for config in ("table.yaml", "other.yaml"):
        done(llmtool, tmp_path, "train", "evaluate", config=config)
    ended = llmtool("describe", "runs/table", "runs/other", cwd=tmp_path)
    assert ended.code == 0
    head = "runs/table and runs/other: the same data, code and versions; 1 config key differs"
    assert ended.out.splitlines()[0] == head
    assert "runs/other beside runs/table: test accuracy:" in ended.out
    found = described(llmtool, tmp_path, "runs/table", "runs/other/train")
    assert found["runs"] == ["runs/table", "runs/other"]
    assert found["differs"] == {
        "config": {"model.hidden": ["[8]", "[9]"]}, "data": {}, "start": {}, "code": {}, "versions": {},
    }  # fmt: skip
    metrics = [
        read(tmp_path / "runs" / name / "evaluate/report.json")["metrics"] for name in ("table", "other")
    ]
    for figure in found["metrics"]:
        assert figure["values"] == [one[figure["split"]][figure["name"]] for one in metrics]
    assert {figure["split"] for figure in found["metrics"]} == {"validation", "test"}
    assert found["weights"]["runs/table"] != found["weights"]["runs/other"]
    lines = llmtool("report", "runs/table", "runs/other", cwd=tmp_path).out.splitlines()
    assert any(line.split()[:3] == ["config:", "model.hidden", "[8]"] for line in lines)


def test_nothing_differs(copy: Path, tmp_path: Path, llmtool: Run) -> None:
    for place in ("a", "b"):
        project(tmp_path / place)
        done(llmtool, tmp_path / place, "train", "evaluate")
    ended = llmtool("describe", "a/runs/table", "b/runs/table", cwd=tmp_path)
    assert "nothing differs: config, data, code, versions and figures are the same" in ended.out
    found = described(llmtool, tmp_path, "a/runs/table", "b/runs/table")
    assert not any(found["differs"].values())
    assert all(figure["values"][0] == figure["values"][1] for figure in found["metrics"])


def test_other_data_code_and_versions_are_told_apart(tmp_path: Path, llmtool: Run) -> None:
    project(tmp_path)
    project(tmp_path, ("people.csv", "fewer.csv"), name="other")
    (tmp_path / "fewer.csv").write_text(
        "\n".join((tmp_path / "people.csv").read_text().splitlines()[:250]) + "\n"
    )
    for config in ("table.yaml", "other.yaml"):
        done(llmtool, tmp_path, "train", config=config)
    found = described(llmtool, tmp_path, "runs/table", "runs/other")
    assert found["differs"]["config"] == {"data.source.path": ["people.csv", "fewer.csv"]}
    names = ["file people.csv", "file fewer.csv", "encoder", "dataset", "rows of train", "rows of validation"]
    assert list(found["differs"]["data"]) == [*names, "rows of test"]
    assert found["differs"]["data"]["rows of train"] == ["210", "174"]
    assert found["says"].startswith("the same code and versions; 1 config key and the data differ")
    # figures of training stand where there is no evaluation, and the sentence says what is missing
    assert {figure["split"] for figure in found["metrics"]} == {"validation"}
    assert found["paired"] == ["runs/table: no evaluation here (no report.json in it or in evaluate/); "
                               "run evaluate there"]  # fmt: skip
    for stage in ("prepare", "train"):
        path = tmp_path / "runs/other" / stage / "result.json"
        result = read(path)
        result["versions"] |= {"llmtool": "0.0.9+0", "python": "3.1"}
        if stage == "train":
            result["versions"]["packages"]["torch"] = "1.0"
        files.write_json(path, result)
    found = described(llmtool, tmp_path, "runs/table", "runs/other")
    assert found["differs"]["code"]["llmtool"][1] == "0.0.9+0"
    assert [values[1] for values in found["differs"]["versions"].values()] == ["3.1", "1.0"]
    assert "the data, the code and 2 versions differ" in found["says"].replace("1 config key, ", "")


def test_two_finetunes_from_other_starts(copy: Path, llmtool: Run) -> None:
    shutil.copytree(copy / "runs/table", copy / "runs/copy")
    text = (copy / "table.yaml").read_text().replace("runs/table/train", "runs/other/train")
    (copy / "other.yaml").write_text(text.replace("hidden: [8]", "hidden: [9]"))
    done(llmtool, copy, "train", "finetune", config="other.yaml")
    found = described(llmtool, copy, "runs/table", "runs/other")
    assert found["differs"]["config"] == {"model.hidden": ["[8]", "[9]"]}  # (run)/train in both
    assert list(found["differs"]["start"]) == ["weights"]
    same = described(llmtool, copy, "runs/table", "runs/copy")
    assert same["differs"]["start"] == {}


# --- ugly input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere: no such file"),
        (["."], ".: no run here (no result.json of prepare, describe,"),
        (["runs"], "runs: no run here"),
        (["runs/table", "nowhere"], "nowhere: no such directory; describe takes one CONFIG.YAML, or"),
        (["runs/table", "table.yaml"], "table.yaml: is a file; describe takes one CONFIG.YAML, or"),
        (["table.yaml", "runs/table"], "table.yaml: is a file; describe takes one CONFIG.YAML, or"),
        (["runs/table", "runs/text", "runs/table"], "one or two runs; these are 3"),
        (["runs/table", "runs/table/train"], "runs/table and runs/table/train are the same run"),
        (["runs/table", "--set", "seed=1"], "--set changes a configuration file"),
        (["runs/table", "runs/text", "--set", "seed=1"], "--set changes a configuration file"),
        (["runs/table", "--force"], "--force runs a stage again; a directory is described as it is"),
        (["runs/table", "--rehearse"], "--rehearse needs a configuration file, one, and no directory"),
        (["table.yaml", "text.yaml", "--rehearse"], "--rehearse needs a configuration file, one"),
        (["runs/table", "runs"], "runs: no run here"),
    ],
)
def test_what_cannot_be_described_is_said(
    finished: Path, llmtool: Run, arguments: list[str], says: str
) -> None:
    ended = llmtool("describe", *arguments, cwd=finished)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.error


BROKEN = [b"{", b'{"key": 7, "versions": [], "status": "done", "metrics": {"test": 1}}']


@pytest.mark.parametrize("content", BROKEN)
def test_damaged_files_are_notes_and_no_crash(copy: Path, llmtool: Run, content: bytes) -> None:
    """Every JSON file of a run is damaged in turn; what is left is told all the same."""
    root = copy / "runs/table"
    paths = list(root.glob("*/*.json"))
    inner = [path for stage in ("train", "finetune") for path in (root / stage / "best").glob("*.json")]
    assert len(paths) > 8
    assert len(inner) > 5
    for path in (*paths, *inner):
        before = path.read_bytes()
        path.write_bytes(content)
        ended = llmtool("describe", "runs/table", cwd=copy)
        assert ended.code == 0, (path, ended.err)
        if path in paths:
            assert llmtool("describe", "runs/table", "runs/text", cwd=copy).code == 0, path
            assert llmtool("report", "runs/table", cwd=copy).code == 0, path
        path.write_bytes(before)


def test_missing_pieces_are_notes(copy: Path, llmtool: Run) -> None:
    for name in ("evaluate/predictions.csv", "prepare/card.json", "finetune/best/adapter_config.json"):
        (copy / "runs/table" / name).unlink()
    ended = llmtool("describe", "runs/table", cwd=copy)
    assert ended.code == 0, ended.err
    assert "note: runs/table/prepare: no dataset yet" in ended.out
    assert "adapter_config.json: no such file" in ended.out
    assert llmtool("describe", "runs/table", "runs/text", cwd=copy).code == 0
    shutil.rmtree(copy / "runs/table/prepare")
    shutil.rmtree(copy / "runs/table/evaluate")
    shutil.rmtree(copy / "runs/table/finetune")
    found = described(llmtool, copy, "runs/table")
    assert states(found) == [("source", "ok"), ("encoder", "gone"), ("dataset", "gone"), ("checkpoint", "ok")]
