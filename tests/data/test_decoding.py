"""Encoded rows come back as the columns a person knows, whatever the scaling was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmtool.data import DataConfig
from llmtool.data.decoding import columns_of, decoded_rows
from llmtool.data.store import Dataset
from llmtool.stages.prepare import prepare

ROWS = [
    f"{n},{n * n / 10},{'red' if n % 3 else 'blue'},2024-{1 + n % 12:02}-{1 + n % 28:02},"
    f"{'' if n % 5 == 0 else n % 7},{'yes' if n % 2 else 'no'}"
    for n in range(1, 121)
]


@pytest.mark.parametrize("scale", ["standard", "quantile", "piecewise", "none"])
def test_columns_come_back_in_their_own_units(tmp_path: Path, scale: str) -> None:
    (tmp_path / "a.csv").write_text("\n".join(["n,square,colour,day,gaps,y", *ROWS]))
    encode = {"as": "features", "target": "y", "scale": scale, "numbers": ["n", "gaps"]}
    source = {"format": "csv", "path": str(tmp_path / "a.csv")}
    (tmp_path / "out").mkdir()
    prepare(DataConfig.model_validate({"source": source, "encode": encode}), 0, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    found = columns_of(dataset, "train")
    lines = np.asarray(dataset.split("train").arrays["origin"])[:, 1]
    truth = [ROWS[line - 2].split(",") for line in lines]
    assert set(found) == {"n", "square", "colour", "day", "gaps"}
    assert found["n"] == pytest.approx([float(row[0]) for row in truth], rel=1e-4, abs=0.02)
    assert found["square"] == pytest.approx([float(row[1]) for row in truth], rel=1e-3, abs=0.05)
    assert found["colour"].tolist() == [row[2] for row in truth]
    assert found["day"].astype(str).tolist() == [row[3] for row in truth]
    assert np.isnan(found["gaps"]).tolist() == [row[4] == "" for row in truth]
    rows = decoded_rows(dataset, "train", np.array([3, 0]))
    assert rows[1]["target"] == truth[0][5]
    assert rows[0]["day"] == truth[3][3]
    assert rows[0]["gaps"] == pytest.approx(float(truth[3][4])) if truth[3][4] else rows[0]["gaps"] is None


def test_of_a_text_the_length_of_each_part_is_known(finished: Path) -> None:
    dataset = Dataset.open(finished / "runs/text/prepare")
    lengths = columns_of(dataset, "train")["tokens"]
    assert lengths.sum() == len(dataset.split("train").arrays["tokens"])
