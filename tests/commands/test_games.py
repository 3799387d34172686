"""Game records on the command line: trained, judged by the rules, bad records said in a sentence."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import Run

YAML = """\
data:
  source: {format: othello_random, games: 300, seed: 1}
  encode: {as: moves, game: othello}
model: {family: transformer, depth: 1, heads: 2, width: 16, context: 60}
train: {budget: {steps: 6}, batch: 16, select: {metric: legal, mode: max}}
evaluate:
  require: {test.legal: ">=0.01", test.legal_mass.low: ">0", suites.random.illegal: "<=1"}
  probe: {games: 20, scored: 10, positions: 5}
  suites: [{kind: play, game: othello, against: random, games: 4}]
device: cpu
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("games")
    (directory / "othello.yaml").write_text(YAML)
    return directory


def test_games_are_trained_on_and_judged(place: Path, llmtool: Run) -> None:
    described = llmtool("describe", "othello.yaml", "--json", cwd=place)
    assert described.code == 0, described.err
    trained = llmtool("train", "othello.yaml", "--json", cwd=place)
    assert trained.code == 0, trained.err
    ended = llmtool("evaluate", "othello.yaml", cwd=place)
    assert ended.code == 0, ended.err
    assert "1,000 draws by game" in ended.out
    report = json.loads((place / "runs/othello/evaluate/report.json").read_text())
    assert list(report["metrics"]["test"]) == ["loss", "perplexity", "match", "legal", "legal_mass"]
    assert report["suites"]["random"]["questions"] == 4
    assert "squares read out of the hidden states, test" in ended.out
    layers = report["probe"]["layers"]
    assert [one["layer"] for one in layers] == [0, 1]
    assert all(
        0 < low <= one["relative"] <= high for one in layers for low, high in [one["relative_interval"]]
    )
    assert len(report["probe"]["errors"]["absolute"]) == 64
    page = (place / "runs/othello/evaluate/report.html").read_text()
    assert "squares misread, percent: mine, theirs" in page
    moves = report["details"]["test"]["tokens"]
    assert f"legality of {moves:,} of {moves:,} positions of test" in ended.out
    assert {one["name"] for one in report["baselines"] if "legal" in one["metrics"]["test"]} >= {"trigram"}
    with (place / "runs/othello/evaluate/predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    legal = sum(int(row["legal"]) for row in rows) / sum(int(row["judged"]) for row in rows)
    assert legal == pytest.approx(report["metrics"]["test"]["legal"])


def test_the_rules_are_taught_whatever_the_micro_batch(place: Path, llmtool: Run) -> None:
    taught = "task={kind: language, rules: 1.0}"
    ended = llmtool("train", "othello.yaml", "--set", taught, "--verify", "invariance", cwd=place)
    assert ended.code == 0, ended.err


def test_a_model_of_games_writes_moves(place: Path, llmtool: Run) -> None:
    if not (place / "runs/othello/train").exists():
        assert llmtool("train", "othello.yaml", cwd=place).code == 0
    ended = llmtool("generate", "runs/othello/train", "--prompt", "f5 d6", "--tokens", "3", cwd=place)
    assert ended.code == 0, ended.err
    assert len(ended.out.split()) >= 3
    joined = llmtool("generate", "runs/othello/train", "--prompt", "f5d6", cwd=place)
    assert joined.code == 4
    such = "'f5d6' is no token of this model; its tokens are such as g2, "
    assert such in joined.err


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        (["data.source.games=0"], 2, "data.source.games"),
        (["data.encode.game=go"], 2, "othello"),
        (["model.context=32"], 2, "a game of train has 60 moves"),
        (["train.select.metric=legl"], 2, "is not a figure of this task"),
        (["evaluate.require={test.leagl: '>=0.5'}"], 2, "legal"),
        (["data.encode.moves=game"], 2, "no column 'game'"),
        (["data.split={by: stratified}"], 2, "games have none"),
    ],
)
def test_mistakes_are_said(place: Path, llmtool: Run, changes: list[str], code: int, says: str) -> None:
    options = [part for change in changes for part in ("--set", change)]
    ended = llmtool("train", "othello.yaml", *options, "--set", f"run=runs/{len(says)}", cwd=place)
    assert ended.code == code, ended.err
    assert says in ended.err
    assert "Traceback" not in ended.err


def test_a_model_of_texts_has_no_board(place: Path, llmtool: Run) -> None:
    (place / "text.yaml").write_text(
        YAML.replace("othello_random, games: 300, seed: 1", "text, path: text.txt")
        .replace("moves, game: othello", "tokens, tokenizer: {kind: bytes}")
        .replace('test.legal: ">=0.01", test.legal_mass.low: ">0", ', "")
        .replace("metric: legal, mode: max", "metric: loss, mode: min")
    )
    (place / "text.txt").write_text("\n".join(f"to be or not to be {n}" for n in range(900)))
    ended = llmtool("train", "text.yaml", cwd=place)
    assert ended.code == 2
    assert "evaluate.probe: is for models of games" in ended.err
