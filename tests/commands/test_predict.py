"""predict: rows in, rows out, of every encoding; what cannot be used is marked where it stands."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmtool.cli import app
from llmtool.commands import PredictOptions, predict
from tests.conftest import REVIEWS, Ended, Run, people, reviews

VALUES = """\
data:
  source: {format: csv, path: homes.csv, header: [size, rooms, price], delimiter: ";"}
  clean: [{step: types, columns: {size: number, price: number}}, {step: range, column: size, max: 90},
          {step: replace, column: rooms, mapping: {five: "5"}}, {step: require, columns: [price]},
          {step: drop_duplicates}]
  encode: {as: features, target: price, target_kind: values}
model: {family: mlp, hidden: [8]}
train: {budget: {steps: 20}, batch: 16}
"""
CHATS = """\
data:
  source: {format: jsonl, path: chats.jsonl}
  encode: {as: chat, tokenizer: {kind: bytes}, template: plain}
model: {family: transformer, architecture: llama, depth: 1, heads: 2, width: 16, context: 128}
train: {budget: {steps: 3}, batch: 4}
"""


def table(text: str, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory, llmtool: Run) -> Path:
    directory = tmp_path_factory.mktemp("homes")
    rows = [f"{size};{size % 5 + 1};{size * 1000 + size % 7}" for size in range(20, 140)]
    (directory / "homes.csv").write_text("\n".join(rows) + "\n")
    (directory / "homes.yaml").write_text(VALUES)
    for command in ("train", "evaluate"):
        ended = llmtool(command, "homes.yaml", cwd=directory)
        assert ended.code == 0, ended.err
    return directory


@pytest.fixture(scope="session")
def opinions(tmp_path_factory: pytest.TempPathFactory, llmtool: Run) -> Path:
    directory = tmp_path_factory.mktemp("opinions")
    (directory / "reviews.csv").write_text(reviews())
    (directory / "reviews.yaml").write_text(REVIEWS)
    for command in ("train", "evaluate"):
        ended = llmtool(command, "reviews.yaml", cwd=directory)
        assert ended.code == 0, ended.err
    return directory


def scored(directory: Path, run: str) -> list[dict[str, str]]:
    return table((directory / "runs" / run / "evaluate" / "predictions.csv").read_text())


def test_a_table_says_what_evaluate_says_of_the_same_rows(finished: Path, llmtool: Run) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in (finished / "runs").rglob("*"))
    ended = llmtool("predict", "table.yaml", "--input", "people.csv", cwd=finished)
    assert ended.code == 0, ended.err
    assert "300 rows" in ended.err
    lines = people().splitlines()
    assert [line.rsplit(",", 5)[0] for line in ended.out.splitlines()] == lines  # as they were written
    found = table(ended.out)
    evaluated = scored(finished, "table")
    assert len(evaluated) > 50
    for row in evaluated:
        own = found[int(row["line"]) - 2]
        assert own["prediction"] == row["prediction"]
        for name in ("high", "low"):
            assert float(own[f"p_{name}"]) == pytest.approx(float(row[f"probability {name}"]), abs=1e-6)
        assert float(own["probability"]) == max(float(own["p_high"]), float(own["p_low"]))
    assert sorted((path, path.stat().st_mtime_ns) for path in (finished / "runs").rglob("*")) == before


def test_batches_do_not_matter(finished: Path, llmtool: Run) -> None:
    whole, single = (
        table(llmtool("predict", "table.yaml", "--input", "people.csv", *more, cwd=finished).out)
        for more in ([], ["--set", "evaluate.batch=7"])
    )
    for one, other in zip(whole, single, strict=True):
        assert float(one["p_low"]) == pytest.approx(float(other["p_low"]), abs=1e-5)


def test_values_come_in_their_own_units_and_clean_steps_hold(homes: Path, llmtool: Run) -> None:
    text = "30;3\n40;five\nx;1\n200;2\n;2\n30;3\n7;1;1;1\n"
    (homes / "new.csv").write_text(text)
    ended = llmtool("predict", "homes.yaml", "--input", "new.csv", cwd=homes)
    assert ended.code == 0, ended.err
    found = table(ended.out, ";")
    assert list(found[0]) == ["size", "rooms", "prediction", "error"]
    assert [row["error"] for row in found] == [
        "", "", "size is not a number", "size out of range", "", "",
        "4 fields where there are 2 columns (line 7)",
    ]  # fmt: skip
    assert (found[6]["size"], found[6]["rooms"]) == ("7", "1;1;1")
    assert found[1]["rooms"] == "five"  # as written, though cleaning read 5
    assert found[0] == found[5]
    assert 1_000 < float(found[0]["prediction"]) < 200_000
    assert "7 rows, 3 of them with an error" in ended.err
    assert "size is not a number (line 3)" in ended.err
    strict = llmtool("predict", "homes.yaml", "--input", "new.csv", "--strict", cwd=homes)
    assert (strict.code, strict.out) == (4, ended.out)
    assert "3 of 7 rows have an error" in strict.error
    known = llmtool("predict", "homes.yaml", "--input", "homes.csv", cwd=homes)
    predicted = table(known.out, ";")
    for row in scored(homes, "homes"):
        assert float(predicted[int(row["line"]) - 1]["prediction"]) == pytest.approx(
            float(row["prediction"]), rel=1e-6
        )


def test_texts(opinions: Path, llmtool: Run) -> None:
    found = table(llmtool("predict", "reviews.yaml", "--input", "reviews.csv", cwd=opinions).out)
    for row in scored(opinions, "reviews"):
        own = found[int(row["line"]) - 2]
        assert float(own["p_good"]) == pytest.approx(float(row["probability good"]), abs=1e-6)
    (opinions / "new.txt").write_text("a great film\n\nthe film was, dull\n")
    lines = llmtool("predict", "runs/reviews", "--input", "new.txt", cwd=opinions)
    rows = table(lines.out)
    assert [row["review"] for row in rows] == ["a great film", "", "the film was, dull"]
    assert [row["error"] for row in rows] == ["", "review is empty", ""]
    (opinions / "new.jsonl").write_text('{"review": "a great film", "n": 1.50}\n{"n": true}\nnot json\n')
    ended = llmtool(
        "predict", "reviews.yaml", "--input", "new.jsonl", "--output", "-", "--only", "predictions",
        cwd=opinions,
    )  # fmt: skip
    objects = [json.loads(line) for line in ended.out.splitlines()]
    assert list(objects[0]) == ["prediction", "probability", "p_bad", "p_good", "error"]
    assert objects[0]["p_good"] == pytest.approx(float(rows[0]["p_good"]), abs=1e-6)
    assert objects[1] == dict.fromkeys(objects[0]) | {"error": "review is missing"}
    assert objects[2]["error"].startswith("not JSON")


def test_a_language_model_says_how_likely_each_text_is(finished: Path, llmtool: Run) -> None:
    ended = llmtool("predict", "text.yaml", "--input", "story.txt", "--only", "predictions", cwd=finished)
    found = table(ended.out)
    assert len(found) == 60
    evaluated = scored(finished, "text")
    lines = {text: at for at, text in enumerate((finished / "story.txt").read_text().split("\n\n"))}
    starts = {2 * at + 1: at for at in lines.values()}
    sums: dict[int, list[float]] = {}
    for row in evaluated:  # stretches of documents, where there are few
        total = sums.setdefault(starts[int(row["line"])], [0.0, 0])
        total[0] += float(row["nats"])
        total[1] += int(row["tokens"])
    assert len(sums) > 10
    for at, (nats, tokens) in sums.items():
        assert float(found[at]["log_likelihood"]) == pytest.approx(-nats, rel=1e-6)
        assert int(found[at]["tokens"]) == tokens
    short = run_with(b"a\n\nthe king\n", "predict", "text.yaml", "--input", "-", cwd=finished)
    assert [row["tokens"] for row in table(short.out)] == ["1", "8"]  # what ends a text is a token


def test_conversations(tmp_path: Path, llmtool: Run) -> None:
    said = [[{"role": "user", "content": f"{n} and {n}"}, {"role": "assistant", "content": str(2 * n)}]
            for n in range(40)]  # fmt: skip
    lines = [json.dumps({"messages": messages}) for messages in said]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "chats.yaml").write_text(CHATS)
    ended = llmtool("train", "chats.yaml", cwd=tmp_path)
    assert ended.code == 0, ended.err
    broken = [lines[0], '{"messages": 3}', lines[1], json.dumps({"messages": said[2][:1]})]
    (tmp_path / "new.jsonl").write_text("\n".join(broken) + "\n")
    ended = llmtool("predict", "chats.yaml", "--input", "new.jsonl", cwd=tmp_path)
    assert ended.code == 0, ended.err
    found = [json.loads(line) for line in ended.out.splitlines()]
    assert [row["error"] is None for row in found] == [True, False, True, False]
    assert found[0]["log_likelihood"] < 0 < found[0]["tokens"] < 6


PICTURES = """\
data:
  source: {format: image_folder, path: pics}
  encode: {as: images}
model: {family: convnet, stem: small, depths: [1], widths: [8]}
train: {budget: {steps: 6}, batch: 16}
evaluate: {explain: {examples: 1}, baselines: {kind: simple}}
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, llmtool: Run) -> Path:
    image = pytest.importorskip("PIL.Image")
    directory = tmp_path_factory.mktemp("photos")
    for at in range(60):
        colour = ("red", (200, 40, 40)) if at % 2 else ("blue", (40, 40, 200))
        folder = directory / "pics" / colour[0]
        folder.mkdir(parents=True, exist_ok=True)
        made = image.new("RGB", (8, 8), colour[1])
        made.putpixel((at % 8, at // 8), (255, 255, 255))
        made.save(folder / f"{at:02}.png")
    (directory / "photos.yaml").write_text(PICTURES)
    for command in ("train", "evaluate"):
        ended = llmtool(command, "photos.yaml", cwd=directory)
        assert ended.code == 0, ended.err
    return directory


def test_pictures_of_a_folder_of_a_list_and_of_a_table(photos: Path, llmtool: Run) -> None:
    ended = llmtool("predict", "photos.yaml", "--input", "pics", cwd=photos)
    assert ended.code == 0, ended.err
    found = {row["image"]: row for row in table(ended.out)}
    assert len(found) == 60
    assert list(found) == sorted(found)
    evaluated = scored(photos, "photos")
    assert len(evaluated) == 12
    for row in evaluated:
        own = found[row["file"]]
        assert float(own["p_red"]) == pytest.approx(float(row["probability red"]), abs=1e-6)
    (photos / "list.txt").write_text("pics/red/01.png\nno.png\n")
    rows = table(llmtool("predict", "runs/photos", "--input", "list.txt", cwd=photos).out)
    assert float(rows[0]["p_red"]) == pytest.approx(float(found["pics/red/01.png"]["p_red"]), abs=1e-6)
    assert "no such file" in rows[1]["error"]
    (photos / "bad.png").write_bytes((photos / "pics/red/01.png").read_bytes()[:60])
    (photos / "new.csv").write_text("id,image\n7,bad.png\n8,pics/red/01.png\n9,\n")
    rows = table(llmtool("predict", "photos.yaml", "--input", "new.csv", cwd=photos).out)
    assert [row["id"] for row in rows] == ["7", "8", "9"]
    assert [row["error"] == "" for row in rows] == [False, True, False]
    single = llmtool("predict", "photos.yaml", "--input", "pics/red/01.png", cwd=photos)
    assert table(single.out)[0]["prediction"] == rows[1]["prediction"]
    (photos / "empty").mkdir(exist_ok=True)
    assert (
        "no pictures in this folder"
        in llmtool("predict", "photos.yaml", "--input", "empty", cwd=photos).error
    )


def test_pictures_are_explained_by_pixel(photos: Path, llmtool: Run) -> None:
    document = photos / "runs/photos/evaluate/explain.json"
    for baseline in ("mean", "black", "blur"):
        more = () if baseline == "mean" else ("--set", f"evaluate.explain.baseline={baseline}")
        assert llmtool("evaluate", "photos.yaml", *more, cwd=photos).code == 0
        found = json.loads(document.read_text())
        assert len(found["examples"]) >= 2
        for one in found["examples"]:
            assert len(one["pixels"]) == len(one["pixels"][0]) == 8
            total = sum(sum(line) for line in one["pixels"])
            assert total == pytest.approx(one["output"] - one["output_of_that"], rel=0.02, abs=0.02)
            assert one["picture"].startswith("data:image/png;base64,")
    page = (photos / "runs/photos/evaluate/report.html").read_text()
    assert page.count("<img src='data:image/png") == 2 * len(found["examples"])


GAMES = """\
data:
  source: {format: othello_random, games: 80, seed: 1}
  encode: {as: moves, game: othello}
model: {family: transformer, depth: 1, width: 16, heads: 2, context: 60}
train: {budget: {steps: 3}, batch: 8}
"""


def test_games_have_a_likelihood_and_a_next_move(tmp_path: Path, llmtool: Run) -> None:
    (tmp_path / "games.yaml").write_text(GAMES)
    for command in ("train", "evaluate"):
        ended = llmtool(command, "games.yaml", "--set", "evaluate.baselines.kind=simple", cwd=tmp_path)
        assert ended.code == 0, ended.err
    (tmp_path / "new.txt").write_text("f5 d6\nf5 f5\n\nf5 d6 c3\nhello\n")
    ended = llmtool("predict", "games.yaml", "--input", "new.txt", cwd=tmp_path)
    assert ended.code == 0, ended.err
    found = table(ended.out)
    assert [row["error"] == "" for row in found] == [True, False, False, True, False]
    assert "an illegal move: move 2" in found[1]["error"]
    assert [row["tokens"] for row in found if not row["error"]] == ["2", "3"]
    for row in found:
        assert (row["prediction"] == "") == (row["error"] != "")
    whole = "f5 d6 c3 d3 c4"
    asked = llmtool(
        "generate", "runs/games/train", "--prompt", whole, "--tokens", 1, "--temperature", 0, cwd=tmp_path
    )
    (tmp_path / "one.csv").write_text(f"moves\n{whole}\n")
    (one,) = table(llmtool("predict", "games.yaml", "--input", "one.csv", cwd=tmp_path).out)
    assert one["prediction"] == asked.out.strip()
    assert 1 / 61 < float(one["probability"]) < 1


def run_with(given: bytes, *arguments: object, cwd: Path) -> Ended:
    """As `llmtool`, with something on standard input."""
    before = Path.cwd()
    os.chdir(cwd)
    try:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=given)
    finally:
        os.chdir(before)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "internal error" not in result.stderr, result.stderr
    return Ended(result.exit_code, result.stdout, result.stderr)


# --- where rows come from and go to ---


def test_standard_input_and_output_hold_rows_alone(finished: Path, llmtool: Run) -> None:
    given = (finished / "people.csv").read_bytes()
    piped = run_with(given, "predict", "table.yaml", "--input", "-", cwd=finished)
    assert piped.out == llmtool("predict", "table.yaml", "--input", "people.csv", cwd=finished).out
    tabs = given.replace(b",", b";")
    found = run_with(tabs, "predict", "runs/table", "--input", "-", cwd=finished)
    assert table(found.out, ";") == table(piped.out)
    empty = run_with(b"", "predict", "table.yaml", "--input", "-", cwd=finished)
    assert (empty.code, empty.error) == (4, "standard input: is empty")
    header = run_with(b"age,hours,city,member\n", "predict", "table.yaml", "--input", "-", cwd=finished)
    assert (header.code, header.out) == (
        0, "age,hours,city,member,prediction,probability,p_high,p_low,error\n"
    )  # fmt: skip
    packed = run_with(gzip.compress(given), "predict", "table.yaml", "--input", "-", cwd=finished)
    assert packed.code == 4
    assert "this is gzip data" in packed.error


@pytest.mark.parametrize(
    ("form", "rows"),
    [
        ("csv", "age,hours,city,member\n30,40,Bern,yes\n"),
        ("jsonl", '{"age": "1"}\n{"age": "30", "hours": "40", "city": "Bern", "member": "yes"}\n'),
    ],
)
def test_a_row_is_answered_while_the_next_is_waited_for(
    finished: Path, monkeypatch: pytest.MonkeyPatch, form: str, rows: str
) -> None:
    (asked, ask), (answers, answered) = os.pipe(), os.pipe()
    came = []

    def converse() -> None:
        with open(ask, "wb", buffering=0) as questions:
            questions.write(rows.encode())
            came.append(select.select([answers], [], [], 30)[0] == [answers])

    monkeypatch.chdir(finished)
    with open(asked) as stdin, open(answers) as said, open(answered, "w") as stdout:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        other = threading.Thread(target=converse)
        other.start()
        document = predict.run(PredictOptions("table.yaml", "-", format=form))
        other.join()
        stdout.close()
        lines = said.read().splitlines()
    assert came == [True]
    assert (document["rows"], document["errors"]) == ((1, 0) if form == "csv" else (2, 0))
    assert len(lines) == 2


def test_every_format_out_holds_the_same(copy: Path, llmtool: Run) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frames = []
    for name in ("o.csv", "o.tsv", "o.jsonl", "o.parquet", "o.csv.gz", "o.jsonl.gz"):
        ended = llmtool("predict", "table.yaml", "--input", "people.csv", "--output", name, cwd=copy)
        assert (ended.code, ended.out) == (0, ""), ended.err
        again = llmtool("predict", "table.yaml", "--input", "people.csv", "--output", name, cwd=copy)
        assert again.code == 2
        assert "--force" in again.error
        if ".jsonl" in name:
            frames.append(pandas.read_json(copy / name, lines=True, dtype={"hours": str, "age": str}))
        elif ".parquet" in name:
            frames.append(pandas.read_parquet(copy / name))
        else:
            separator = "\t" if name == "o.tsv" else ","
            frames.append(pandas.read_csv(copy / name, sep=separator, dtype={"age": str, "hours": str}))
    for frame in frames:
        assert frame["age"].tolist() == frames[0]["age"].tolist()
        assert frame["p_low"].tolist() == pytest.approx(frames[0]["p_low"].tolist(), rel=1e-12)
    for name in ("o.parquet", "o.jsonl.gz"):  # and each can be read
        more = ("--output", "again.csv", "--force")
        refused = llmtool("predict", "table.yaml", "--input", name, *more, cwd=copy)
        assert refused.code == 2  # a second prediction would stand beside the first
        assert "'prediction' already" in refused.error
        ended = llmtool("predict", "table.yaml", "--input", name, *more, "--only", "predictions", cwd=copy)
        assert ended.code == 0, ended.err
        assert pandas.read_csv(copy / "again.csv")["p_low"].tolist() == frames[0]["p_low"].tolist()


def test_a_checkpoint_alone_is_enough(copy: Path, tmp_path: Path, llmtool: Run, homes: Path) -> None:
    moved = tmp_path / "alone"
    checkpoint = (copy / "runs" / "table" / "train" / "best").resolve()
    checkpoint.rename(moved)
    (tmp_path / "new.csv").write_text(people())
    ended = llmtool("predict", "alone", "--input", "new.csv", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert len(table(ended.out)) == 300
    (tmp_path / "homes.csv").write_text("40;five\n200;2\n")  # it knows delimiter, names and cleaning
    found = table(llmtool("predict", homes / "runs/homes", "--input", "homes.csv", cwd=tmp_path).out, ";")
    assert [row["error"] for row in found] == ["", "size out of range"]


def test_the_document_says_what_was_done(copy: Path, llmtool: Run) -> None:
    given = ("predict", "table.yaml", "--input", "people.csv", "--json")
    assert "--output FILE" in llmtool(*given, cwd=copy).json["error"]
    found = llmtool(*given, "--output", "o.csv", "--of", "runs/table/train", cwd=copy).json
    assert found["model"]["path"].startswith("runs/table/train/")
    assert (found["rows"], found["errors"], found["exit_code"]) == (300, 0, 0)


# --- ugly input ---


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--input", "no.csv"], 4, "no.csv: no such file"),
        (["--input", "runs"], 4, "a folder"),
        (["--input", "*.csv"], 4, "files match; give one"),
        (["--input", "people.dat", "--format", "cvs"], 2, "did you mean"),
        (["--input", "people.csv", "--only", "answers"], 2, "--only predictions"),
        (["--input", "people.csv", "--output", "o.xls"], 2, "ends in none of"),
        (["--input", "people.csv", "--output", "no/o.csv"], 2, "no directory no"),
        (["--input", "people.csv", "--output", "runs.csv"], 2, "a directory"),
        (
            ["--input", "people.csv", "--output", "s3://k:geheim@b/o.csv"],
            2,
            "--output s3://b/o.csv: answers are",
        ),
        (["--input", "file:///etc/passwd", "--format", "csv"], 2, "file:// is not read"),
        (["--input", "people.csv", "--output", "people.csv", "--force"], 2, "would be replaced"),
        (["--input", "-", "--format", "parquet"], 2, "cannot be read from standard input"),
        (["--input", "narrow.csv"], 4, "no column 'hours'"),
        (["--input", "latin.csv"], 0, "not valid utf-8 (line 3)"),
        (["--input", "utf16.csv"], 4, "encoding: utf-16"),
        (["--input", "twice.csv"], 4, "stands twice"),
        (["--input", "people.csv", "--of", "runs/none"], 2, "no checkpoint here"),
    ],
)
def test_what_cannot_be_is_said(copy: Path, llmtool: Run, arguments: list[str], code: int, said: str) -> None:
    (copy / "runs.csv").mkdir()
    (copy / "narrow.csv").write_text("age,hour,city,member\n1,2,3,4\n")
    (copy / "latin.csv").write_bytes("age,hours,city,member\n1,2,Zug,no\n1,2,Zürich,no\n".encode("latin-1"))
    (copy / "utf16.csv").write_bytes(people().encode("utf-16"))
    (copy / "twice.csv").write_text("age,hours,age\n1,2,3\n")
    ended = llmtool("predict", "table.yaml", *arguments, cwd=copy)
    assert ended.code == code, ended.err
    assert said in ended.err
    assert not (copy / "o.csv").exists()


def test_bad_rows_stand_where_they_stood(copy: Path, llmtool: Run) -> None:
    rows = [
        b"30,40,Bern,yes", b"30,4\x000,Bern,yes", b"30,40,B\xfcrn,yes",
        b"30,40," + b"x" * (2 << 20) + b",yes", b"30,1e99,Bern,yes", b"30,,,",
        b'30,"40,Bern,yes', b'50,40,"new\nline, ""so""",no',
    ]  # fmt: skip
    (copy / "ugly.csv").write_bytes(b"age,hours,city,member\n" + b"\n".join(rows) + b"\n")
    ended = llmtool("predict", "table.yaml", "--input", "ugly.csv", cwd=copy)
    assert ended.code == 0, ended.err
    found = table(ended.out)
    assert [row["error"] for row in found] == [
        "", "a NUL character (line 3)", "not valid utf-8 (line 4)",
        "a line of more than 1,048,576 characters (line 5)", "hours is infinite or beyond 3.4e38", "",
        "text after a closing quote (line 8)", "",
    ]  # fmt: skip
    assert len(found) == len(rows)
    assert found[7]["city"] == 'new\nline, "so"'
    assert [row["prediction"] != "" for row in found] == [row["error"] == "" for row in found]
    assert [(row["age"], row["hours"], row["city"]) for row in found[:4]] == [  # what could be read stays
        ("30", "40", "Bern"), ("30", "", "Bern"), ("30", "40", ""), ("", "", ""),
    ]  # fmt: skip


def test_names_of_classes_may_hold_anything(tmp_path: Path, llmtool: Run) -> None:
    names = ["a, b", 'say "hi"', "two\nlines", "=1+1"]
    rows = [["x", "y"], *([n, names[n % 4]] for n in range(80))]
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    (tmp_path / "d.csv").write_text(text.getvalue(), newline="")
    (tmp_path / "e.yaml").write_text(
        "data: {source: {format: csv, path: d.csv}, encode: {as: features, target: y}}\n"
        "model: {family: mlp, hidden: [4]}\ntrain: {budget: {steps: 2}}\n"
    )
    assert llmtool("train", "e.yaml", cwd=tmp_path).code == 0
    found = table(llmtool("predict", "e.yaml", "--input", "d.csv", cwd=tmp_path).out)
    assert {f"p_{name}" for name in names} < set(found[0])
    assert {row["prediction"] for row in found} <= set(names)
    assert found[2]["y"] == "two\nlines"


def test_a_model_of_others_needs_a_file_that_says_what_it_reads(tmp_path: Path, llmtool: Run) -> None:
    from llmtool.core.contracts import Classes
    from tests.conftest import others_encoder

    others_encoder(tmp_path / "base", head=Classes(2))
    (tmp_path / "reviews.csv").write_text(reviews())
    alone = llmtool("predict", "base", "--input", "reviews.csv", cwd=tmp_path)
    assert alone.code == 2
    assert "carries no encoder" in alone.error
    (tmp_path / "of.yaml").write_text(
        "data: {source: {format: csv, path: reviews.csv}, "
        "encode: {as: text, text: review, target: sentiment, "
        "tokenizer: {kind: file, path: base}, length: 24}}\nevaluate: {of: base, splits: [test]}\n"
    )
    assert llmtool("evaluate", "of.yaml", cwd=tmp_path).code == 0
    ended = llmtool("predict", "of.yaml", "--input", "reviews.csv", cwd=tmp_path)
    assert ended.code == 0, ended.err
    found = table(ended.out)
    for row in scored(tmp_path, "of"):
        own = found[int(row["line"]) - 2]
        assert float(own["p_good"]) == pytest.approx(float(row["probability good"]), abs=1e-6)


# --- ends ---


def test_ctrl_c_leaves_no_file(copy: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    running = start(
        "predict", "table.yaml", "--input", "-", "--output", "o.csv", cwd=copy, stdin=subprocess.PIPE
    )
    assert running.stdin is not None
    running.stdin.write(people(9000))
    running.stdin.flush()
    deadline = time.monotonic() + 60
    while not list(copy.glob(".tmp-*")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert not list(copy.glob(".tmp-*"))
    assert not (copy / "o.csv").exists()


def test_a_reader_that_goes_has_had_enough(copy: Path) -> None:
    (copy / "many.csv").write_text(people(20_000))
    command = [sys.executable, "-m", "llmtool", "predict", "table.yaml", "--input", "many.csv"]
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=copy, stdout=pipe, stderr=pipe, env=environment) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().startswith(b"age,")
        running.stdout.close()
        said = running.stderr.read().decode()
    assert "rror" not in said
    assert "Traceback" not in said
    assert running.returncode == 0
