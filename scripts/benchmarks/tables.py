"""Tables: llmtool's default stories beside scikit-learn's baselines, on the same rows.

    python scripts/fetch.py adult california_housing bank_marketing letter_recognition
    python scripts/benchmarks/tables.py --save

Adult has its official test file and letters its last 4,000 rows; California and bank are split anew for
each seed. A tenth of the training rows is validation; the baselines, which need none, train on those rows
too.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, roc_auc_score, root_mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

sys.path.insert(0, str(common.ROOT / "scripts"))
from fetch import fetch

SEEDS = range(3)


@dataclass(frozen=True)
class Story:
    """One table: its YAML and target, and its train and test rows for a seed."""

    config: str
    target: str
    metric: str  # roc_auc, accuracy or rmse
    rows: Callable[[int], tuple[pd.DataFrame, pd.DataFrame]]
    separator: str = ","
    header: bool = True


def adult(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The official files."""
    folder = fetch("adult")
    train, test = (
        pd.read_csv(
            folder / f"adult-{part}.csv.gz",
            names=common.ADULT,
            skipinitialspace=True,
            dtype=str,
            na_filter=False,
        )
        for part in ("train", "test")
    )
    return train, test


def letters(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The first 16,000 and the last 4,000 rows, as Frey and Slate split them."""
    frame = pd.read_csv(fetch("letter_recognition") / "LetterRecognition.csv", dtype=str, na_filter=False)
    return frame[:16000], frame[16000:]


def california(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A fifth of the rows for the test."""
    frame = pd.read_csv(fetch("california_housing") / "housing.csv", dtype=str, na_filter=False)
    return tuple(train_test_split(frame, test_size=0.2, random_state=seed))


def bank(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A fifth of the rows for the test, with as many yes as in the rest."""
    frame = pd.read_csv(fetch("bank_marketing") / "bank-additional.csv", sep=";", dtype=str, na_filter=False)
    return tuple(train_test_split(frame, test_size=0.2, random_state=seed, stratify=frame.y))


STORIES = {
    "adult": Story("adult", "income", "roc_auc", adult, header=False),
    "california": Story("california", "median_house_value", "rmse", california),
    "bank": Story("bank", "y", "roc_auc", bank, separator=";"),
    "letters": Story("letters", "lettr", "accuracy", letters),
}


# --- the baselines ----------------------------------------------------------------------------------------


def baselines(story: Story, train: pd.DataFrame, test: pd.DataFrame, seed: int) -> dict[str, float]:
    """The story's metric of a linear model and of gradient boosting, scikit-learn's defaults."""
    train, test = (_typed(frame, train, story.target) for frame in (train, test))
    inputs, target = train.drop(columns=story.target), train[story.target]
    regression = story.metric == "rmse"
    numbers = make_column_selector(dtype_include="number")
    words = make_column_selector(dtype_exclude="number")
    ordinal = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan
    )
    linear = make_pipeline(
        make_column_transformer(
            (_filled(StandardScaler()), numbers),
            (OneHotEncoder(handle_unknown="ignore", min_frequency=2), words),
        ),
        Ridge() if regression else LogisticRegression(max_iter=2000),
    )
    count = len(numbers(inputs))
    categorical = [position >= count for position in range(inputs.shape[1])]
    kind = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
    boosted = make_pipeline(
        make_column_transformer(("passthrough", numbers), (ordinal, words)),
        kind(categorical_features=categorical, random_state=seed),
    )
    return {
        name: _score(story, model.fit(inputs, target), test)
        for name, model in (("linear", linear), ("boosting", boosted))
    }


def _filled(scaler: Any) -> Any:
    from sklearn.impute import SimpleImputer

    return make_pipeline(SimpleImputer(strategy="median"), scaler)


def _typed(frame: pd.DataFrame, like: pd.DataFrame, target: str) -> pd.DataFrame:
    """Numbers as numbers, gaps and `?` as missing; Adult's test labels lose their full stop."""
    typed = frame.copy()
    for name in frame.columns:
        if pd.to_numeric(like[name].replace("", np.nan), errors="coerce").notna().mean() > 0.9:
            typed[name] = pd.to_numeric(frame[name].replace("", np.nan), errors="coerce")
        else:
            typed[name] = frame[name].str.rstrip(".").astype(object)
    return typed


def _score(story: Story, model: Any, test: pd.DataFrame) -> float:
    inputs, target = test.drop(columns=story.target), test[story.target]
    if story.metric == "rmse":
        return float(root_mean_squared_error(target, model.predict(inputs)))
    if story.metric == "accuracy":
        return float(accuracy_score(target, model.predict(inputs)))
    return float(roc_auc_score(target == model.classes_[1], model.predict_proba(inputs)[:, 1]))


# --- ours -------------------------------------------------------------------------------------------------


def ours(
    story: Story, train: pd.DataFrame, test: pd.DataFrame, seed: int, short: bool
) -> tuple[float, float]:
    """The story's metric on the test rows, and the seconds of `llmtool train` and `evaluate` together."""
    labels = None if story.metric == "rmse" else train[story.target]
    fit, validation = train_test_split(train, test_size=0.1, random_state=seed, stratify=labels)
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, frame in (("train", fit), ("validation", validation), ("test", test)):
            paths[name] = f"{folder}/{name}.csv"
            frame.to_csv(paths[name], sep=story.separator, header=story.header, index=False)
        run = Path(folder) / "run"
        mapping = "{" + ", ".join(f"{name}: {path}" for name, path in paths.items()) + "}"
        sets = {
            "run": run,
            "seed": seed,
            "data.source.path": mapping,
            "data.split": "null",
            "evaluate.require": "{}",
        }
        if story.config == "adult":
            sets["data.clean"] = (
                '[{step: replace, column: income, mapping: {"<=50K.": "<=50K", ">50K.": ">50K"}}]'
            )
        if short:
            sets["train.budget"] = "{epochs: 1}"
        config = f"configs/tabular/{story.config}.yaml"
        seconds = sum(
            common.timed(common.llmtool(command, config, sets=sets)).seconds
            for command in ("train", "evaluate")
        )
        return common.scores(run, "evaluate", "test")[story.metric], seconds


def main() -> None:
    """Run every story and show it."""
    parser = common.parser(__doc__)
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(STORIES)}; default: all")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    rows = []
    for name in options.names or STORIES:
        story = STORIES[name]
        found: dict[str, list[float]] = {"linear": [], "boosting": [], "llmtool": [], "seconds": []}
        for seed in list(SEEDS)[: 1 if options.short else None]:
            train, test = story.rows(seed)
            for kind, value in baselines(story, train, test, seed).items():
                found[kind].append(value)
            score, seconds = ours(story, train, test, seed, options.short)
            found["llmtool"].append(score)
            found["seconds"].append(seconds)
        spreads = {kind: common.spread(values) for kind, values in found.items()}
        figures[name] = {"metric": story.metric, **spreads}
        digits = 0 if story.metric == "rmse" else 4
        rows.append(
            [name, story.metric]
            + [common.show(spreads[kind], digits) for kind in ("linear", "boosting", "llmtool")]
            + [common.show(spreads["seconds"], 1)]
        )
    common.table("Tables, test rows", ["table", "metric", "linear", "boosting", "llmtool", "seconds"], rows)
    common.save(options, "tables", figures, common.versions("llmtool", "torch", "scikit-learn", "pandas"))


if __name__ == "__main__":
    main()
