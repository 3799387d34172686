"""What evaluate wrote is read back as the same evidence, and compared; what does not fit is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtool.core import files
from llmtool.core.contracts import Tally
from llmtool.core.errors import ConfigError
from llmtool.evaluation.compare import compare, saved, sentence
from llmtool.evaluation.report import report, write_predictions
from llmtool.metrics.bootstrap import Difference
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.games import GamesTally
from llmtool.metrics.language import LanguageTally
from llmtool.metrics.regression import RegressionTally
from llmtool.metrics.target_scale import LogScale


def classified(noise: float = 1.0, seed: int = 0) -> ClassificationTally:
    targets = np.arange(300) % 3
    logits = 2 * np.eye(3)[targets] + np.random.default_rng(seed).normal(0, noise, (300, 3))
    names = ["=cmd()", "b, c", "-1"]
    return ClassificationTally(torch.from_numpy(logits), torch.from_numpy(targets), names)


def two_classes(seed: int = 0) -> ClassificationTally:
    logits = torch.randn(50, 2, generator=torch.Generator().manual_seed(seed))
    return ClassificationTally(logits, torch.arange(50) % 2, ["yes", "no"], positive=0)


def regressed(seed: int = 0) -> RegressionTally:
    random = np.random.default_rng(seed)
    targets = 1e7 + random.normal(0, 2, (40, 2))
    predictions = (targets - 1e7) / 2 + random.normal(0, 0.1, (40, 2))
    pair = torch.from_numpy(predictions), torch.from_numpy(targets)
    return RegressionTally(*pair, ["price", "=size"], [1e7, 1e7], [2.0, 2.0])


def read(seed: int = 0) -> LanguageTally:
    random = np.random.default_rng(seed)
    sums = [random.uniform(50, 60, 30), np.full(30, 25), np.full(30, 9)]
    return LanguageTally(*map(torch.from_numpy, sums), 3000.0)


def played(seed: int = 0) -> GamesTally:
    random = np.random.default_rng(seed)
    sums = [random.uniform(50, 60, 30), np.full(30, 25), np.full(30, 9)]
    sums += [random.integers(20, 25, 30), random.uniform(15, 20, 30), np.full(30, 25)]
    return GamesTally(*(torch.from_numpy(part).double() for part in sums))


def evaluated(directory: Path, tally: Tally, fingerprint: str = "data", **fields: Any) -> str:
    files.make_directories(directory / "evaluate")
    document = report(
        {"test": tally}, model={}, dataset={"fingerprint": fingerprint}, rows={"test": tally.units}
    )
    path = directory / "evaluate" / "predictions.csv"
    write_predictions(path, {"test": tally})
    document["predictions"] = {"file": files.hash_file(path)}
    files.write_json(directory / "evaluate" / "report.json", document | fields)
    return str(directory)


def logarithms(seed: int = 0) -> RegressionTally:
    targets = np.exp(np.random.default_rng(seed).normal(3, 1, (40, 1)))
    scale = LogScale(offset=[0.0], mean=[3.0], scale=[1.0])
    noisy = np.log(targets) - 3 + np.random.default_rng(seed + 1).normal(0, 0.1, (40, 1))
    return RegressionTally(torch.from_numpy(noisy), torch.from_numpy(targets), ["y"], [0.0], [1.0], scale)


TALLIES = {"classes": classified, "two": two_classes, "values": regressed, "text": read, "games": played}


@pytest.mark.parametrize("kind", TALLIES)
def test_the_evidence_read_back_gives_the_same_figures(tmp_path: Path, kind: str) -> None:
    tally: Any = TALLIES[kind]()
    found = saved(evaluated(tmp_path, tally)).tallies["test"]
    assert type(found) is type(tally)
    assert found.metrics().keys() == tally.metrics().keys()
    for name, value in tally.metrics().items():
        assert found.metrics()[name] == pytest.approx(value, rel=1e-5), name
    compared = compare({"test": tally}, "data", saved(str(tmp_path)), next(iter(tally.metrics())), 0)
    for figures in compared["splits"]["test"].values():
        assert figures["difference"] == pytest.approx(0, abs=1e-5)


def test_two_runs_compared(tmp_path: Path) -> None:
    other = saved(evaluated(tmp_path, classified(noise=2.5, seed=1)))
    found = compare({"test": classified()}, "data", other, "accuracy", 0)
    accuracy = found["splits"]["test"]["accuracy"]
    assert accuracy["difference"] == pytest.approx(accuracy["here"] - accuracy["there"])
    assert accuracy["interval"][0] > 0
    assert accuracy["p"] < 1e-6
    assert found["splits"]["test"]["log_loss"]["p"] is None
    assert found["splits"]["test"]["log_loss"]["says"].startswith("better by ")
    assert found["says"] == [f"test accuracy: {accuracy['says']}"]
    assert " points, interval " in accuracy["says"]


def test_errors_of_logarithms_are_compared(tmp_path: Path) -> None:
    found = compare({"test": logarithms()}, "data", saved(evaluated(tmp_path, logarithms())), "rmse_log", 0)
    figures = found["splits"]["test"]["rmse_log"]
    assert figures["here"] == pytest.approx(figures["there"], rel=1e-4) == pytest.approx(0.1, rel=0.5)


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    other = saved(evaluated(tmp_path / "a", classified(), fingerprint="other data"))
    found = compare({"test": classified()}, "data", other, "accuracy", 0)
    assert found["splits"] == {}
    assert "it was scored on another dataset (other data)" in found["says"][0]
    other = saved(evaluated(tmp_path / "b", regressed()))
    found = compare({"test": classified(), "validation": classified()}, "data", other, "accuracy", 0)
    assert [line.partition(":")[0] for line in found["says"]] == ["test", "validation"]
    assert "another kind of target" in found["says"][0]
    assert "did not score it" in found["says"][1]


def test_an_evaluation_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no evaluation here"):
        saved(str(tmp_path))
    path = Path(evaluated(tmp_path, classified())) / "evaluate" / "predictions.csv"
    whole = path.read_text()
    for text in (whole[:-7], whole.replace("-1", "-2", 1), whole.replace("\n", "\r\n"), whole + "\n", ""):
        path.write_text(text, newline="")
        with pytest.raises(ConfigError, match="is not the file that was written"):
            saved(str(tmp_path))
    for damage in (
        {"predictions": None},
        {"predictions": {}},
        {"details": 3},
        {"dataset": {}},
    ):
        evaluated(tmp_path, classified(), **damage)
        with pytest.raises(ConfigError, match="not a whole evaluation of this version"):
            saved(str(tmp_path))
    path.unlink()
    with pytest.raises(ConfigError, match="run evaluate there again"):
        saved(str(tmp_path))


def test_sentences() -> None:
    assert sentence("accuracy", Difference(0.008, 0.002, 0.014), 0.01) == (
        "better by 0.80 points, interval 0.20 to 1.40, McNemar p 0.01"
    )
    assert sentence("rmse", Difference(2.0, 1.0, 3.0)).startswith("worse by 2")
    assert sentence("log_loss", Difference(-0.02, -0.03, -0.01)).startswith(
        "better by 0.0200, interval 0.0100 to"
    )
    assert sentence("f1", Difference(0.01, -0.01, 0.03)) == (
        "no clear difference: +1.00 points, interval -1.00 to 3.00"
    )
    assert sentence("f1", Difference(0.01, None, None, "too few")) == "+1.00 points, no interval: too few"
    assert sentence("f1", Difference(0.0, 0.0, 0.0)) == "no difference at all"
