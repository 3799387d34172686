"""Baselines: scikit-learn's own figures, the same again from the cache, and never silently missing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn import dummy, ensemble, linear_model, metrics
from sklearn.feature_extraction.text import TfidfVectorizer

from llmtool.core.contracts import Tally
from llmtool.data.decoding import texts_of
from llmtool.data.store import Dataset
from llmtool.evaluation import baselines as room
from llmtool.evaluation import design
from llmtool.evaluation.baselines import Baseline, BaselinesConfig, baselines, strongest
from tests.conftest import Run, reviews

VALUES = """\
data:
  source: {format: csv, path: values.csv}
  split: {by: random, train: 0.7, validation: 0.15, test: 0.15}
  encode: {as: features, target: y}
model: {family: mlp, hidden: [4]}
"""


def found(dataset: Dataset, cache: Path | None = None, **config: Any) -> dict[str, Baseline]:
    splits = ["validation", "test"]
    made = baselines(dataset, splits, BaselinesConfig(**config), positive=0, seed=0, cache=cache)
    return {one.name: one for one in made}


@pytest.fixture(scope="module")
def table(finished: Path) -> Dataset:
    return Dataset.open(finished / "runs/table/prepare")


@pytest.fixture(scope="module")
def text(finished: Path) -> Dataset:
    return Dataset.open(finished / "runs/text/prepare")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, llmtool: Run) -> Dataset:
    directory = tmp_path_factory.mktemp("values")
    random = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{1e6 + 3 * a + b * b:.3f}" for a, b in random.normal(size=(200, 2))]
    (directory / "values.csv").write_text("\n".join(["a,b,y", *rows]))
    (directory / "values.yaml").write_text(VALUES)
    assert llmtool("prepare", "values.yaml", cwd=directory).code == 0
    return Dataset.open(directory / "runs/values/prepare")


def arrays(dataset: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    part = dataset.split(split).arrays
    return np.asarray(part["inputs"]), np.asarray(part["targets"])


def test_classes_have_scikit_learns_figures(table: Dataset) -> None:
    made = found(table)
    assert list(made) == ["majority", "stratified", "logistic regression", "gradient boosting"]
    (inputs, targets), (rows, truth) = arrays(table, "train"), arrays(table, "test")
    models = {
        "majority": dummy.DummyClassifier(strategy="prior"),
        "logistic regression": linear_model.LogisticRegression(max_iter=100),
        "gradient boosting": ensemble.HistGradientBoostingClassifier(random_state=0),
    }
    for name, model in models.items():
        shares = model.fit(inputs, targets).predict_proba(rows)
        figures = made[name].tallies["test"].metrics()
        assert figures["accuracy"] == metrics.accuracy_score(truth, shares.argmax(axis=1))
        assert figures["log_loss"] == pytest.approx(metrics.log_loss(truth, shares), rel=1e-5)
        assert figures["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth == 0, shares[:, 0]))
    by_chance = float(np.square(np.bincount(targets) / len(targets)).sum())
    assert made["stratified"].tallies["test"].metrics()["accuracy"] == pytest.approx(by_chance, abs=0.25)


def test_values_have_scikit_learns_figures(values: Dataset) -> None:
    made = found(values)
    (inputs, targets), (rows, truth) = arrays(values, "train"), arrays(values, "test")
    inputs, targets, rows, truth = (part.astype(np.float64) for part in (inputs, targets, rows, truth))
    models = {
        "mean": dummy.DummyRegressor(),
        "median": dummy.DummyRegressor(strategy="median"),
        "ridge regression": linear_model.Ridge(),
    }
    for name, model in models.items():
        predicted = model.fit(inputs, targets.ravel()).predict(rows)
        rmse = made[name].tallies["test"].metrics()["rmse"]
        assert rmse == pytest.approx(metrics.root_mean_squared_error(truth, predicted), rel=1e-4), name
    best = strongest(list(made.values()), "test", "rmse")
    assert best is not None
    assert best.name in ("ridge regression", "gradient boosting")
    assert strongest(list(made.values()), "test", "rmse_log") is None


def test_logarithms_have_baselines(tmp_path: Path, llmtool: Run) -> None:
    random = np.random.default_rng(0)
    rows = [f"{a:.3f},{np.exp(3 + a):.3f}" for a in random.normal(size=100)]
    (tmp_path / "values.csv").write_text("\n".join(["a,y", *rows]))
    (tmp_path / "values.yaml").write_text(VALUES.replace("target: y", "target: y, target_scale: log"))
    assert llmtool("prepare", "values.yaml", cwd=tmp_path).code == 0
    dataset = Dataset.open(tmp_path / "runs/values/prepare")
    made = found(dataset)
    best = strongest(list(made.values()), "test", "rmse_log")
    assert best is not None
    truth, mean = np.log(arrays(dataset, "test")[1]), np.log(arrays(dataset, "train")[1].mean())
    shown = made["mean"].tallies["test"].metrics()["rmse_log"]
    assert shown == pytest.approx(np.sqrt(np.square(truth - mean).mean()), rel=1e-4)


def test_text_is_scored_on_the_models_own_targets(finished: Path, text: Dataset) -> None:
    made = found(text)
    assert list(made) == ["unigram", "trigram", "n-gram"]
    import json

    details = json.loads((finished / "runs/text/evaluate/report.json").read_text())["details"]
    for one in made.values():
        for split in ("validation", "test"):
            mine = one.tallies[split].details()
            assert (mine["tokens"], mine["bytes"]) == (details[split]["tokens"], details[split]["bytes"])
    losses = [one.tallies["test"].metrics()["loss"] for one in made.values()]
    assert losses[0] > losses[1] > losses[2]


def figures(made: dict[str, Baseline]) -> dict[str, Any]:
    def of(tally: Tally) -> Any:
        return tally.metrics()

    return {name: {split: of(tally) for split, tally in one.tallies.items()} for name, one in made.items()}


@pytest.mark.parametrize("kind", ["table", "values", "text"])
def test_the_cache_gives_the_same_again(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    dataset = request.getfixturevalue(kind)
    first, again = found(dataset, tmp_path), found(dataset, tmp_path)
    assert figures(first) == figures(again) == figures(found(dataset))
    assert [one.note for one in first.values()] == [one.note for one in again.values()]
    assert any(one.cached for one in again.values())
    assert not any(one.cached for one in first.values())


def test_a_foreign_or_damaged_cache_is_left_alone(table: Dataset, text: Dataset, tmp_path: Path) -> None:
    before = found(table, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    assert figures(found(table, tmp_path)) == figures(before)
    other = baselines(table, ["test"], BaselinesConfig(), positive=0, seed=1, cache=tmp_path)
    assert not any(one.cached for one in other)
    (tmp_path / "blocked").write_text("a file where a directory should be")
    assert figures(found(table, tmp_path / "blocked" / "inside")) == figures(before)


def test_nothing_is_missing_without_a_word(table: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = found(table, seconds=1e-9)
    assert "the limit of 1e-09 s was reached" in made["gradient boosting"].missing
    assert made["gradient boosting"].tallies == {}

    def broken() -> None:
        raise ValueError("Input X contains what it should not\nand more")

    monkeypatch.setattr(room, "_logistic", broken)
    made = found(table)
    assert made["logistic regression"].missing == "Input X contains what it should not"
    assert made["gradient boosting"].tallies
    assert list(found(table, kind="simple")) == ["majority", "stratified"]


def test_work_is_bounded_and_cuts_are_noted(table: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(design, "CELLS", 1)
    monkeypatch.setattr(room, "SOLVER", 1)
    rows = dataset_rows = table.split("train").rows
    assert rows < 1000  # the least that is learned from: nothing is cut here
    assert found(table)["logistic regression"].note == "stopped after 1 iterations, before converging"
    seen = design.of_features(_many(table), None, 2, 0)
    assert (len(seen.inputs), len(seen.targets)) == (1000, 1000)
    assert seen.note == f"learned from 1,000 of {5 * dataset_rows:,} rows"


def _many(dataset: Dataset) -> Any:
    split = dataset.split("train")
    wide = {name: np.concatenate([array] * 5) for name, array in split.arrays.items()}
    rows = type(split)(split.name, 5 * split.rows, wide, split.meta, split.sources)
    return SimpleNamespace(inputs=dataset.inputs, card=dataset.card, split=lambda name: rows)


TEXTS = """\
data:
  source: {format: csv, path: reviews.csv}
  split: {by: random, train: 0.7, validation: 0.15, test: 0.15}
  encode: {as: text, text: review, target: TARGET, tokenizer: {kind: bpe, vocabulary: 300}}
"""


@pytest.mark.parametrize("target", ["sentiment", "stars"])
def test_labelled_texts_have_scikit_learns_figures(target: str, tmp_path: Path, llmtool: Run) -> None:
    lines = reviews().splitlines()
    stars = [f"{line},{4.5 if line.endswith('good') else 1.5 + len(line) % 2}" for line in lines[1:]]
    (tmp_path / "reviews.csv").write_text("\n".join([f"{lines[0]},stars", *stars]))
    (tmp_path / "a.yaml").write_text(TEXTS.replace("TARGET", target))
    more = [] if target == "sentiment" else ["--set", "data.encode.target_kind=values"]
    assert llmtool("prepare", "a.yaml", *more, cwd=tmp_path).code == 0
    dataset = Dataset.open(tmp_path / "runs/a/prepare")
    made = found(dataset)
    texts = {
        name: texts_of(dataset, name, np.arange(dataset.split(name).rows), around=False)
        for name in ("train", "test")
    }
    targets = {name: np.asarray(dataset.split(name).arrays["targets"]) for name in texts}
    assert set(texts["test"]) <= {line.split(",")[0] for line in lines}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    inputs = words.fit_transform(texts["train"])
    if target == "sentiment":
        assert list(made) == ["majority", "stratified", "TF-IDF, logistic regression"]
        theirs = linear_model.LogisticRegression().fit(inputs, targets["train"])
        figures = made["TF-IDF, logistic regression"].tallies["test"].metrics()
        wanted = theirs.score(words.transform(texts["test"]), targets["test"])
        assert figures["accuracy"] == pytest.approx(wanted)
        assert wanted > 0.8  # the class stands in one word
    else:
        assert list(made) == ["mean", "median", "TF-IDF, ridge regression"]
        ridge = linear_model.Ridge().fit(inputs, targets["train"])
        figures = made["TF-IDF, ridge regression"].tallies["test"].metrics()
        wanted = metrics.root_mean_squared_error(
            targets["test"], ridge.predict(words.transform(texts["test"]))
        )
        assert figures["rmse"] == pytest.approx(wanted, rel=1e-4)
        assert wanted < made["mean"].tallies["test"].metrics()["rmse"]


def test_words_of_one_letter_count(tmp_path: Path, llmtool: Run) -> None:
    grades = [f"pupil{n} got {'A5FC'[n % 4]},{'yes' if n % 4 < 2 else 'no'}" for n in range(120)]
    (tmp_path / "reviews.csv").write_text("\n".join(["review,passed", *grades]))
    (tmp_path / "a.yaml").write_text(TEXTS.replace("TARGET", "passed"))
    assert llmtool("prepare", "a.yaml", cwd=tmp_path).code == 0
    made = found(Dataset.open(tmp_path / "runs/a/prepare"))
    assert made["TF-IDF, logistic regression"].tallies["test"].metrics()["accuracy"] == 1


BESIDE = """\
data:
  source: {format: csv, path: churn.csv}
  split: {by: random, train: 0.7, validation: 0.15, test: 0.15}
  encode: {as: text, text: review, target: churn, features: {ignore: [old]}, tokenizer: {kind: words}}
"""


def beside(kind: str, directory: Path, llmtool: Run) -> Dataset:
    """Whether someone goes takes two columns at once, which no line parts; the words say nothing."""
    lines = ["review,age,plan,churn,old"]
    for n, age in enumerate(np.random.default_rng(0).integers(18, 80, 300)):
        lines.append(f"user {n},{age},{('free', 'pro')[n % 2]},{int((age > 50) != n % 2)},{int(age > 60)}")
    (directory / "churn.csv").write_text("\n".join(lines))
    (directory / "a.yaml").write_text(BESIDE)
    more = ["--set", f"data.encode.target_kind={kind}"]
    if kind == "labels":
        more += ["--set", "data.encode.target=[churn, old]", "--set", "data.encode.features={}"]
    ended = llmtool("prepare", "a.yaml", *more, cwd=directory)
    assert ended.code == 0, ended.err
    return Dataset.open(directory / "runs/a/prepare")


@pytest.mark.parametrize("kind", ["classes", "values", "labels"])
def test_columns_beside_a_text_have_baselines_too(kind: str, tmp_path: Path, llmtool: Run) -> None:
    made = found(beside(kind, tmp_path, llmtool))
    linear = "ridge regression" if kind == "values" else "logistic regression"
    names = [f"TF-IDF, {linear}", f"columns, {linear}", f"TF-IDF and columns, {linear}"]
    trees = [] if kind == "labels" else ["columns, gradient boosting"]  # as of a table's labels
    assert [name for name in made if "," in name] == names + trees
    assert not any(one.missing or one.note for one in made.values())
    said = "of words, rare ones weighing more, and on the columns beside the text"
    assert said in made[names[2]].about
    if trees:
        best = strongest(list(made.values()), "test", "accuracy" if kind == "classes" else "rmse")
        assert best is not None
        assert best.name == trees[0]


def test_they_have_scikit_learns_figures(tmp_path: Path, llmtool: Run) -> None:
    dataset = beside("classes", tmp_path, llmtool)
    made, seen = found(dataset), {name: dataset.split(name) for name in ("train", "test")}
    texts = {name: texts_of(dataset, name, np.arange(part.rows), around=False) for name, part in seen.items()}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    words.fit(texts["train"])
    columns = {name: np.asarray(part.arrays["features"]) for name, part in seen.items()}
    both = {name: np.hstack([words.transform(texts[name]).toarray(), columns[name]]) for name in seen}
    truth = {name: np.asarray(part.arrays["targets"]) for name, part in seen.items()}
    for name, inputs in (("columns", columns), ("TF-IDF and columns", both)):
        theirs = linear_model.LogisticRegression(max_iter=100).fit(inputs["train"], truth["train"])
        wanted = metrics.log_loss(truth["test"], theirs.predict_proba(inputs["test"]))
        figures = made[f"{name}, logistic regression"].tallies["test"].metrics()
        assert figures["log_loss"] == pytest.approx(wanted, rel=1e-3)
