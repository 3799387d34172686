"""A table with decimal commas is the same data as its twin with points, for every command that reads it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from tests.conftest import Run

YAML = """\
run: runs/{name}
device: cpu
data:
  source: {{format: csv, path: {name}.csv{more}}}
  clean: [{{step: range, column: size, max: 15.5}}]
  encode: {{as: features, target: price, target_kind: values}}
model: {{family: mlp, hidden: [8]}}
train: {{budget: {{steps: 5}}, batch: 16}}
"""


def test_decimal_commas_are_read_by_every_command(tmp_path: Path, llmtool: Run) -> None:
    rows = [(f"{n / 8:.2f}", "ab"[n % 2], f"{n / 3 + 0.5:.1f}") for n in range(1, 129)]
    point = "size;town;price\n" + "".join(";".join(row) + "\n" for row in rows)
    comma = point.replace(".", ",")
    for name, text, more in (("point", point, ""), ("comma", comma, ", decimal: ','")):
        (tmp_path / f"{name}.csv").write_text(text)
        (tmp_path / f"{name}.yaml").write_text(YAML.format(name=name, more=more))
        ended = llmtool("train", f"{name}.yaml", cwd=tmp_path)
        assert ended.code == 0, ended.err
    for file in ("train.inputs.bin", "test.targets.bin", "validation.origin.bin"):
        twins = [(tmp_path / "runs" / name / "prepare" / file).read_bytes() for name in ("point", "comma")]
        assert twins[0] == twins[1]

    out = {}
    for name, text in (("point", point), ("comma", comma)):
        (tmp_path / "new.csv").write_text(text)
        out[name] = llmtool("predict", f"{name}.yaml", "--input", "new.csv", cwd=tmp_path).out
    assert out["comma"] == out["point"].replace(".", ",")  # as it was written, and the answers too
    (tmp_path / "new.csv").write_text("size;town\n2,5;a\n1.234;a\n")
    found = llmtool("predict", "runs/comma", "--input", "new.csv", cwd=tmp_path)
    errors = [row["error"] for row in csv.DictReader(io.StringIO(found.out), delimiter=";")]
    assert errors == ["", "size is not a number"]
    # What the model learned from decides, not what the file says since.
    (tmp_path / "comma.yaml").write_text(YAML.format(name="comma", more=""))
    again = llmtool("predict", "comma.yaml", "--input", "new.csv", cwd=tmp_path)
    assert again.out == found.out
    assert "data.source.decimal is ',' here" in again.err

    (tmp_path / "comma.yaml").write_text(YAML.format(name="new", more="").replace("new.csv", "comma.csv"))
    ended = llmtool("prepare", "comma.yaml", "--set", "data.clean=[]", cwd=tmp_path)
    assert ended.code == 4
    assert "set data.source.decimal: ','" in ended.error
