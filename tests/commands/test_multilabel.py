"""Several labels a row, from a file to predictions, through the command line."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from tests.conftest import Run, others_encoder

BAG = """\
data:
  source: {format: csv, path: texts.csv, encoding: gb18030}
  split: {by: files, validation: 0.3}
  encode: {as: text, target: tags, target_kind: labels, label_separator: 、, tokenizer: {kind: words}}
model: {family: bag, buckets: 1024}
task: {kind: multilabel, thresholds: tuned, positive_weights: balanced}
train: {budget: {epochs: 8}, batch: 8, optimizer: {name: adamw, lr: 0.05}}
"""
TABLE = """\
data:
  source: {format: csv, path: table.csv}
  split: {by: random, train: 0.6, validation: 0.2, test: 0.2}
  encode: {as: features, target: [warm, bright], target_kind: labels}
model: {family: FAMILY}
task: {kind: multilabel}
train: {budget: {steps: 60}, batch: 16, optimizer: {name: adamw, lr: 0.02}}
"""
SIGNS = {"花": "春", "雪": "冬", "月": "夜"}


def write_texts(directory: Path) -> None:
    """Chinese texts without blanks, whose signs say what their labels are; a label that train lacks."""
    chance = random.Random(0)
    for name, rows in (("train.csv", 150), ("test.csv", 60)):
        with (directory / name).open("w", encoding="gb18030", newline="") as file:
            table = csv.writer(file)
            table.writerow(["text", "tags"])
            for number in range(rows):
                signs = [sign for sign in SIGNS if chance.random() < 0.5]
                text = "".join(chance.sample([*"山水人天地風雲日江城", *signs], 10 + len(signs)))
                table.writerow([f"{text}{number % 10}", "、".join(SIGNS[sign] for sign in signs)])
            if name == "test.csv":
                table.writerow(["山水花", "秋"])
                table.writerow(["", "春"])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_chinese_texts_with_labels(llmtool: Run, tmp_path: Path) -> None:
    write_texts(tmp_path)
    (tmp_path / "a.yaml").write_text(
        BAG.replace("path: texts.csv", "path: {train: train.csv, test: test.csv}")
    )
    for command in ("prepare", "describe", "train", "evaluate"):
        ended = llmtool(command, "a.yaml", "--set", "data.max_bad=0.1", cwd=tmp_path)
        assert ended.code == 0, ended.err
    ledger = json.loads((tmp_path / "runs/a/prepare/ledger.json").read_text())
    assert "target class not in train" in json.dumps(ledger)
    assert "text is empty" in json.dumps(ledger)
    report = json.loads((tmp_path / "runs/a/evaluate/report.json").read_text())
    assert report["metrics"]["test"]["subset_accuracy"] > 0.9
    assert [one["name"] for one in report["baselines"]] == ["frequencies", "TF-IDF, logistic regression"]
    assert "each character" in report["baselines"][1]["about"]
    assert report["baselines"][1]["metrics"]["test"]["f1"] > 0.8  # it would see one word a text
    predicted = [
        row for row in rows_of(tmp_path / "runs/a/evaluate/predictions.csv") if row["split"] == "test"
    ]
    assert len(predicted) == 60
    assert {"target 春", "prediction 春", "probability 春"} <= set(predicted[0])
    card = json.loads(next((tmp_path / "runs/a/train/best").glob("llmtool.json")).read_text())
    thresholds = card["card"]["targets"]["thresholds"]
    assert [entry["threshold"] for entry in report["details"]["test"]["per_class"]] == thresholds
    (tmp_path / "new.csv").write_text("text\n山花月\n山\n", encoding="gb18030")
    ended = llmtool("predict", "a.yaml", "--input", "new.csv", "--output", "out.csv", cwd=tmp_path)
    assert ended.code == 0, ended.err
    first, second = rows_of(tmp_path / "out.csv")
    assert [first[f"prediction_{label}"] for label in "春冬夜"] == ["1", "0", "1"]
    assert 0 <= float(second["p_春"]) < 0.5


@pytest.mark.parametrize("family", ["mlp", "tabm"])
def test_a_table_with_columns_of_labels(family: str, llmtool: Run, tmp_path: Path) -> None:
    chance = random.Random(0)
    lines = ["x,y,warm,bright"]
    for _ in range(200):
        x, y = chance.gauss(0, 1), chance.gauss(0, 1)
        lines.append(f"{x:.3f},{y:.3f},{int(x > 0)},{'yes' if x + y > 0 else 'no'}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    (tmp_path / "a.yaml").write_text(TABLE.replace("FAMILY", family))
    for command in ("train", "evaluate"):
        ended = llmtool(command, "a.yaml", cwd=tmp_path)
        assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "runs/a/evaluate/report.json").read_text())
    assert report["metrics"]["test"]["f1"] > 0.85
    assert report["against"]["baseline"] == "logistic regression"
    more = ["--set", "evaluate.compare=runs/a", "--set", "run=runs/b", "--set", "evaluate.of=runs/a/train"]
    ended = llmtool("evaluate", "a.yaml", *more, cwd=tmp_path)
    assert ended.code == 0, ended.err


def test_pictures_with_labels(llmtool: Run, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    chance = random.Random(0)
    rows = ["image,tags"]
    for number in range(90):
        red, large = chance.random() < 0.5, chance.random() < 0.5
        made = image.new("RGB", (12, 12), (0, 0, 60))
        made.paste((250, 20, 20) if red else (20, 220, 20), (1, 1, 10 if large else 4, 10 if large else 4))
        made.save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'|'.join(['red'] * red + ['large'] * large)}")
    (tmp_path / "a.csv").write_text("\n".join(rows))
    (tmp_path / "a.yaml").write_text(
        "data:\n  source: {format: csv, path: a.csv}\n"
        "  encode: {as: images, target: tags, target_kind: labels, label_separator: '|'}\n"
        "model: {family: convnet, stem: small, stem_width: 4, widths: [8], depths: [1]}\n"
        "train: {budget: {epochs: 6}, batch: 16}\n"
    )
    for command in ("train", "evaluate"):
        ended = llmtool(command, "a.yaml", cwd=tmp_path)
        assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "runs/a/evaluate/report.json").read_text())
    assert report["metrics"]["test"]["roc_auc"] > 0.9
    assert [entry["class"] for entry in report["details"]["test"]["per_class"]] == ["large", "red"]


def test_an_encoder_of_others_gets_labels(llmtool: Run, tmp_path: Path) -> None:
    others_encoder(tmp_path / "theirs")
    (tmp_path / "a.csv").write_text(
        "review,tags\n"
        + "".join(f"a {'fine' if n % 2 else 'dull'} film {'good ' * n},{n % 2};x{n % 3}\n" for n in range(60))
    )
    (tmp_path / "a.yaml").write_text(
        "data:\n  source: {format: csv, path: a.csv}\n"
        "  encode: {as: text, text: review, target: tags, target_kind: labels, label_separator: ;, "
        "length: 16, tokenizer: {kind: file, path: theirs}}\n"
        "finetune: {start: theirs, budget: {steps: 4}, batch: 8, optimizer: {name: adamw}}\n"
        "task: {kind: multilabel}\n"
    )
    ended = llmtool("finetune", "a.yaml", cwd=tmp_path)
    assert ended.code == 0, ended.err
    best = tmp_path / "runs/a/finetune/best"
    config = json.loads((best / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == ["0", "1", "x0", "x1", "x2"]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(best)
    assert theirs.config.num_labels == 5


@pytest.mark.parametrize(
    ("header", "code", "says"),
    [
        ("target: tags}", 4, "different values|one class"),
        ("target: tags, target_kind: labels, label_separator: ''}", 2, "label_separator"),
        ("target: [tags, n], target_kind: labels}", 4, "a column of labels holds 0 and 1"),
        ("target: tagz, target_kind: labels}", 2, "did you mean"),
    ],
)
def test_mistakes_have_their_place(header: str, code: int, says: str, llmtool: Run, tmp_path: Path) -> None:
    lines = [f"{n},some text {n},t{n}" for n in range(40)]
    (tmp_path / "a.csv").write_text("n,text,tags\n" + "\n".join(lines))
    (tmp_path / "a.yaml").write_text(
        f"data:\n  source: {{format: csv, path: a.csv}}\n  encode: {{as: text, {header}\n"
    )
    ended = llmtool("prepare", "a.yaml", cwd=tmp_path)
    assert ended.code == code, ended.err
    assert pytest.importorskip("re").search(says, ended.err), ended.err


def test_a_text_column_of_numbers_is_refused(llmtool: Run, tmp_path: Path) -> None:
    rows = [json.dumps({"text": n / 7, "y": "ab"[n % 2]}) for n in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "a.yaml").write_text(
        "data:\n  source: {format: jsonl, path: a.jsonl}\n  encode: {as: text, target: y}\n"
    )
    ended = llmtool("prepare", "a.yaml", cwd=tmp_path)
    assert ended.code == 4
    assert "text is" in ended.err
