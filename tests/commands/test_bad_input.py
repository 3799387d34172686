"""Point 10: whatever is wrong with data or file ends in one clear line with its place, or is counted."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Run, people, story

GOOD = people()
LINES = GOOD.splitlines()
HEAD, ROWS = LINES[0], LINES[1:]
Data = bytes | str


def lines(*more: str, head: str = HEAD, rows: list[str] = ROWS) -> str:
    return "\n".join([head, *rows, *more]) + "\n"


def write(path: Path, data: Data) -> None:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def refused(llmtool: Run, cwd: Path, *arguments: str, code: int, line: str) -> None:
    """The command ends with `code` and one line that matches; its result.json, where there is one, agrees."""
    ended = llmtool(*arguments, cwd=cwd)
    complaints = [text for text in ended.err.splitlines() if text.startswith("llmtool: ")]
    assert ended.code == code, ended.err
    assert len(complaints) == 1, ended.err
    assert re.search(line, complaints[0]), complaints[0]
    run = "runs/new" if "run=runs/new" in arguments else f"runs/{Path(arguments[1]).stem}"
    result = cwd / run / arguments[0] / "result.json"
    assert not result.exists() or json.loads(result.read_text())["exit_code"] == code


# --- tables ---

REFUSED: dict[str, tuple[Data, int, str]] = {
    "empty": ("", 4, r"people\.csv: the file is empty"),
    "header only": (HEAD + "\n", 4, r"people\.csv: no rows"),
    "binary": (bytes(range(256)) * 40, 4, r"people\.csv: not text"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(2000), 4, r"people\.csv: this is a PNG picture"),
    "wrong encoding": (GOOD.replace("Zug", "Z\u00fcrich").encode("latin-1"), 4,
                       r"people\.csv, line \d+: not valid utf-8.*quarantine\.jsonl"),
    "UTF-16": (GOOD.encode("utf-16"), 4, r"people\.csv: .*encoding: utf-16"),
    "ragged": (lines(*["1,2,3,4,5,6,7"] * 30), 4,
               r"30 of 330 rows are bad .*people\.csv, line 302: 7 fields where there are 5 columns"),
    "short rows": (lines(*["1,2"] * 30), 4, r"people\.csv, line 302: 2 fields where there are 5 columns"),
    "NUL": (GOOD.replace("Bern", "Be\0rn"), 4, r"people\.csv: not text \(NUL"),
    "gzip without its name": (gzip.compress(GOOD.encode()), 4, r"people\.csv: this is gzip data"),
    "duplicate header": (GOOD.replace("hours", "age", 1), 4,
                         r"people\.csv, line 1: the column 'age' stands twice"),
    "one class": (GOOD.replace("high", "low"), 4, r"target 'income': every train row is of one class, 'low'"),
    "no target": (lines(head="age,hours,city,member,incom"), 2,
                  r"table\.yaml:5:\d+: data\.encode\.target: .* no column 'income'; did you mean \"incom\""),
    "one row": (lines(rows=ROWS[:1]), 4, r"nothing is left for"),
    "three rows": (lines(rows=ROWS[:3]), 4, r"nothing is left for|every train row is of one class"),
    "all missing target": (re.sub(r"(high|low)", "", GOOD), 4,
                           r"no row is left of 300: 300 income \(target\) is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_tables_that_are_refused(fresh: Path, llmtool: Run, case: str) -> None:
    data, code, line = REFUSED[case]
    write(fresh / "people.csv", data)
    (fresh / "table.yaml").write_text(
        (fresh / "table.yaml").read_text().replace("{by: stratified, on: income,", "{by: random,")
    )
    refused(llmtool, fresh, "train", "table.yaml", code=code, line=line)


ACCEPTED: dict[str, tuple[Data, dict[str, int], dict[str, int], str]] = {
    "BOM": ("\ufeff" + GOOD, {}, {}, ""),
    "CRLF": (GOOD.replace("\n", "\r\n"), {}, {}, ""),
    "CR": (GOOD.replace("\n", "\r"), {}, {}, ""),
    "no last line end": (GOOD.rstrip(), {}, {}, ""),
    "semicolons": (GOOD.replace(",", ";"), {}, {}, ""),
    "one ragged row": (lines("1,2,3,4,5,6,7"), {}, {"7 fields where there are 5 columns": 1}, ""),
    "an unclosed quote": (lines('50,40,"Bern,yes,low'), {}, {"a quote that is not closed": 1}, ""),
    "one row of wrong encoding": (lines().encode() + "50,40,Z\u00fcg,yes,low\n".encode("latin-1"), {},
                                  {"not valid utf-8": 1}, ""),
    "a class with one row": (lines("50,40,Bern,yes,middle"), {}, {}, "'middle'"),
    "a constant column": ("\n".join([f"{HEAD},k", *(f"{row},5" for row in ROWS)]), {}, {}, "'k' is left out"),
    "a missing column": ("\n".join([f"{HEAD},k", *(f"{row}," for row in ROWS)]), {}, {}, "'k' is left out"),
    "nan and inf": (lines("nan,40,Bern,yes,low", "1e999,40,Bern,yes,low", "50,-inf,Bern,yes,high"), {},
                    {"age is infinite or beyond 3.4e38": 1, "hours is infinite or beyond 3.4e38": 1}, ""),
    "huge numbers": (lines("1e300,40,Bern,yes,low", "-1e39,40,Bern,yes,low"), {},
                     {"age is infinite or beyond 3.4e38": 2}, ""),
    "empty lines": (GOOD.replace("\n", "\n\n"), {}, {}, ""),
    "a missing target": (lines("50,40,Bern,yes,"), {"income (target) is missing": 1}, {}, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_tables_that_are_read_with_every_row_accounted_for(fresh: Path, llmtool: Run, case: str) -> None:
    data, dropped, quarantined, note = ACCEPTED[case]
    write(fresh / "people.csv", data)
    ended = llmtool("prepare", "table.yaml", "--json", cwd=fresh)
    assert ended.code == 0, ended.err
    ledger = ended.json["ledger"]
    assert ledger["dropped"] == dropped
    assert ledger["quarantined"] == quarantined
    whole = sum(ledger["kept"].values()) + sum(dropped.values()) + sum(quarantined.values())
    rows = len(
        [line for line in re.split(rb"[\r\n]+", data if isinstance(data, bytes) else data.encode()) if line]
    )
    assert ledger["read"] == whole == rows - 1
    assert note in " ".join(ended.json["notes"])
    bad = (fresh / "runs/table/prepare/quarantine.jsonl").read_text().splitlines()
    assert len(bad) == sum(quarantined.values())
    for line in bad:
        assert {"file", "line", "reason"} <= set(json.loads(line))
    assert llmtool("train", "table.yaml", cwd=fresh).code == 0


def test_sources_that_are_not_there(fresh: Path, llmtool: Run) -> None:
    (fresh / "folder").mkdir()
    (fresh / "folder/notes.md").write_text("hi")
    whole = gzip.compress(GOOD.encode())
    (fresh / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    (fresh / "not.csv.gz").write_text(GOOD)
    os.mkfifo(fresh / "pipe.csv")
    for path, line in {
        "none.csv": r"none\.csv: no such file",
        "folder": r"folder: this folder has no file that ends in \.csv",
        "folder/*.csv": r"folder/\*\.csv: no file matches",
        "pipe.csv": r"pipe\.csv: not a regular file",
        "cut.csv.gz": r"cut\.csv\.gz: the compressed file ends in the middle",
        "not.csv.gz": r"not\.csv\.gz: .*not gzip data",
        "[people.csv, people.csv]": r"people\.csv is named twice",
    }.items():
        for command in ("prepare", "train"):
            code = 2 if "twice" in line else 4
            refused(
                llmtool,
                fresh,
                command,
                "table.yaml",
                "--set",
                f"data.source.path={path}",
                code=code,
                line=line,
            )


@pytest.mark.parametrize(
    ("override", "code", "line"),
    [
        ("data.clean=[{step: filter, column: city, keep: [Paris]}]", 4,
         r"no row is left of 300: 300 city filtered"),
        ("data.clean=[{step: require, columns: [citty]}]", 2,
         r"data\.clean\.0: require: no column 'citty'; did you mean \"city\""),
        ("data.clean=[{step: drop_near_duplicates, column: citty}]", 2,
         r"data\.clean\.0: drop_near_duplicates: no column 'citty'; did you mean \"city\""),
        ("data.clean=[{step: drop_near_duplicates, column: city, threshold: 2}]", 2,
         r"data\.clean\.0\S*threshold"),
        ("data.clean=[{step: decontaminate, column: city, against: [none.txt]}]", 4,
         r"decontaminate: against: none\.txt: no such file"),
        ("data.split.on=incom", 2, r"no column 'incom'; did you mean \"income\""),
        ("data.encode.ignore=[hour]", 2, r"data\.encode\.ignore: .*'hour'; did you mean \"hours\""),
        ("data.encode.like=runs/none", 2, r"data\.encode\.like: runs/none: no prepared dataset here"),
        ("task.kind=regression", 2, r"task\.kind: regression needs numbers as target"),
        ("task={kind: language}", 2, r"task\.kind: language needs text"),
        ("task={kind: classification, class_weights: {hihg: 2}}", 2, r"did you mean \"high\""),
        ("train.select={metric: f2, mode: max}", 2, r"train\.select\.metric: 'f2' is not a figure"),
        ("train.budget={tokens: 5}", 2, r"train\.budget\.tokens counts tokens"),
        ("train.optimizer={name: sgd, lr: -1}", 2, r"train\.optimizer\.lr: .*greater than 0"),
        ("train=null", 2, r"table\.yaml: `llmtool train` needs the section `train:`"),
        ("model={family: transformer, architecture: gpt2, depth: 1, heads: 1, width: 8, context: 8}", 2,
         r"model\.family: 'transformer' takes tokens; data\.encode gives features"),
        ("run=people.csv", 2, r"run: people\.csv is not a directory"),
        ("run=people.csv/deeper", 2, r"run: .*not a directory"),
        ("device=cuda", 2, r"device: cuda was asked for"),
        ("device=gpu", 2, r"device: 'gpu' is not a choice"),
        ("garbage", 2, r"--set garbage: expected section\.key=value"),
        ("=1", 2, r"expected section\.key=value"),
        ("train.batch=[", 2, r"--set train\.batch=\["),
        ("train.bacth=3", 2, r"--set train\.bacth=3: train\.bacth: unknown key; did you mean \"batch\""),
        ("data.clean.7.step=x", 2, r"data\.clean"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(fresh: Path, llmtool: Run, override: str, code: int, line: str) -> None:
    if override == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    text = (fresh / "table.yaml").read_text().replace("{by: stratified, on: income,", "{by: stratified,")
    (fresh / "table.yaml").write_text(text)
    refused(llmtool, fresh, "train", "table.yaml", "--set", override, code=code, line=line)


def test_more_than_there_is(fresh: Path, llmtool: Run) -> None:
    """A batch larger than the data is the data; more blocks to freeze than there are is an error."""
    ended = llmtool("train", "table.yaml", "--json", "--set", "train.batch=100000", cwd=fresh)
    assert ended.code == 0
    kept = json.loads((fresh / "runs/table/prepare/ledger.json").read_text())["kept"]["train"]
    assert ended.json["config"]["fit"]["batch"] == kept
    for method, line in {
        "{kind: freeze, blocks: 5}": r"finetune\.method\.blocks: 5 of the model's 1 blocks",
        "{kind: lora, targets: [q_proj]}": r"finetune\.method\.targets: .* no linear layer 'q_proj'",
        "{kind: lora, rank: 0}": r"finetune\.method\.rank",
        "{kind: lora, rank: 9, init: pissa}": r"finetune\.method\.rank: 9 is more than the 8 singular",
        "{kind: lora, init: pissa, dora: true}": r"finetune\.method: init: pissa and dora: true",
        "{kind: full, quantise: nf4}": r"finetune\.method: quantise needs kind: lora",
        "{kind: loar}": r"finetune\.method\.kind: 'loar' is not a choice; did you mean \"lora\"",
    }.items():
        override = f"finetune.method={method}"
        refused(llmtool, fresh, "finetune", "table.yaml", "--set", override, code=2, line=line)
    overrides = ["--set", "finetune.method={kind: lora, lora_plus_ratio: 16}"]
    overrides += ["--set", "finetune.optimizer={name: muon}"]
    line = r"finetune\.method: method\.lora_plus_ratio: muon makes every update of one size"
    refused(llmtool, fresh, "finetune", "table.yaml", *overrides, code=2, line=line)


def test_starts_that_are_no_model(copy: Path, llmtool: Run) -> None:
    new = ["finetune", "table.yaml", "--set", "run=runs/new", "--set"]
    for start in ("runs/none", "runs/table/prepare", "people.csv", "."):
        line = rf"finetune\.start: {re.escape(start)}: no checkpoint here"
        refused(llmtool, copy, *new, f"finetune.start={start}", code=2, line=line)
    line = "takes tokens; this file's data is encoded as features"
    refused(llmtool, copy, *new, "finetune.start=runs/text/train", code=2, line=line)


CARDS = ["", "[]", "{}", "x", '{"task": 1, "card": 2, "dataset": 3, "base": 4}', "null"]


@pytest.mark.parametrize("card", CARDS)
def test_a_forged_card_is_an_error_and_no_traceback(copy: Path, llmtool: Run, card: str) -> None:
    directory = copy / "forged"
    directory.mkdir()
    (directory / "llmtool.json").write_text(card)
    (directory / "manifest.json").write_text('{"format": 1, "files": {}}')
    for command, arguments in {
        "describe": ["forged"],
        "evaluate": ["table.yaml", "--set", "evaluate.of=forged"],
        "finetune": ["table.yaml", "--set", "finetune.start=forged"],
    }.items():
        ended = llmtool(command, *arguments, cwd=copy)
        assert ended.code in (1, 2), ended.err
        assert "forged" in ended.error


# --- texts ---


@pytest.mark.parametrize(
    ("data", "override", "code", "line"),
    [
        ("", "seed=0", 4, r"story\.txt: the file is empty"),
        ("\n\n \n", "seed=0", 4, r"story\.txt|no row is left|nothing is left"),
        (bytes(range(256)) * 40, "seed=0", 4, r"story\.txt: not text"),
        (story().encode("utf-16"), "seed=0", 4, r"story\.txt: .*encoding: utf-16"),
        (story(), "model.context=9999", 4, r"too short: the model's context needs 10000 tokens in a row"),
        (story(2), "seed=0", 4, r"nothing is left for"),
        (story(), "model={family: mlp}", 2, r"'mlp' takes features; data\.encode gives tokens"),
        (story(), "model.heads=3", 2, r"width 16 is not a multiple of heads 3"),
        (story(), "task={kind: classification}", 2, r"task\.kind: classification needs classes as target"),
        (story(), "data.encode.tokenizer={kind: file, path: none.json}", 2, r"none\.json"),
        (story(), "data.encode.like=runs/none", 2, r"data\.encode\.like"),
    ],
)
def test_texts_that_are_refused(
    fresh: Path, llmtool: Run, data: Data, override: str, code: int, line: str
) -> None:
    write(fresh / "story.txt", data)
    refused(llmtool, fresh, "train", "text.yaml", "--set", override, code=code, line=line)


def test_texts_with_odd_line_ends_and_marks_are_read(fresh: Path, llmtool: Run) -> None:
    found: list[Any] = []
    for data in (story(), "\ufeff" + story(), story().replace("\n", "\r\n"), story() + "\n" * 9):
        write(fresh / "story.txt", data)
        ended = llmtool("prepare", "text.yaml", "--json", cwd=fresh)
        assert ended.code == 0, ended.err
        found.append((ended.json["ledger"], (fresh / "runs/text/prepare/train.tokens.bin").read_bytes()))
    assert found[1:] == found[:1] * 3


def test_names_that_mean_nothing_survive_in_text(fresh: Path, llmtool: Run) -> None:
    """pandas would read them as missing."""
    words = ["NA", "None", "null", "nan", "N/A", "", "-inf", "#N/A"]
    (fresh / "t.csv").write_text("text\n" + "\n".join(f'"{word} {i}"' for i in range(30) for word in words))
    (fresh / "words.csv").write_text("text\n" + "\n".join(word or '""' for _ in range(3) for word in words))
    for name, kept in (("t.csv", 240), ("words.csv", 21)):
        (fresh / "c.yaml").write_text(
            f"data: {{source: {{format: csv, path: {name}, delimiter: ','}}, split: {{by: random, train: 1, "
            "validation: 0, test: 0}, encode: {as: tokens, text: text, tokenizer: {kind: characters}}}\n"
        )
        ended = llmtool("prepare", "c.yaml", "--json", cwd=fresh)
        assert ended.code == 0, ended.err
        assert ended.json["ledger"]["kept"]["train"] == kept, ended.json["ledger"]


# --- files that are no configuration ---


def test_files_that_are_no_configuration(fresh: Path, llmtool: Run) -> None:
    (fresh / "folder.yaml").mkdir()
    os.mkfifo(fresh / "pipe.yaml")
    cases: dict[str, tuple[Data | None, str]] = {
        "none.yaml": (None, r"none\.yaml: no such file"),
        "folder.yaml": (None, r"folder\.yaml: is a directory"),
        "pipe.yaml": (None, r"pipe\.yaml: not a regular file"),
        "empty.yaml": ("", r"empty\.yaml: the file is empty"),
        "list.yaml": ("- a\n- b\n", r"list\.yaml:1:1: expected a mapping"),
        "binary.yaml": (b"\xff\xfe\x00" * 50, r"binary\.yaml: not UTF-8 text"),
        "nul.yaml": ("run: \0", r"nul\.yaml: .*#x0000"),
        "tab.yaml": ("data:\n\tsource: 1\n", r"tab\.yaml:2:1: "),
        "open.yaml": ("data: {source: [", r"open\.yaml:\d+:\d+: "),
        "twice.yaml": ("seed: 1\nseed: 2\n", r"twice\.yaml:2:1: seed: this key stands twice"),
        "alias.yaml": ("a: &a [1]\nb: *a\n", r"alias\.yaml:1:4: anchors and aliases"),
        "tag.yaml": ("a: !!python/object:os.system x\n", r"tag\.yaml:1:4: tags are not supported"),
        "deep.yaml": ("a: " + "[" * 9000 + "]" * 9000, r"deep\.yaml:1:\d+: nested more than"),
        "huge.yaml": ("#" * 1_100_000, r"huge\.yaml: 1,100,000 bytes"),
    }
    for name, (data, line) in cases.items():
        if data is not None:
            write(fresh / name, data)
        for command in ("train", "prepare"):
            refused(llmtool, fresh, command, name, code=2, line=line)
    assert not (fresh / "runs/none").exists()
