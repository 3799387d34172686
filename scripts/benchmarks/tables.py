"""Tables: llmtool's stories beside scikit-learn's baselines, on the same rows.

    python scripts/fetch.py adult ames_housing bank_marketing bike_share california_housing letter_recognition
    python scripts/fetch.py titanic wine_quality
    python scripts/benchmarks/tables.py --save                        all, some 40 minutes on two quiet cores
    python scripts/benchmarks/tables.py bike ames --folds 2           some, the first folds

Adult has its official test file and letters its last 4,000 rows, with three seeds; the others go through five
folds (shuffled with seed 0, with the shares of the classes), each fold once the test rows. A tenth of the
training rows is validation, by which llmtool's checkpoint is chosen; the baselines, which need none, train on
those rows too. The linear model and the boosting have scikit-learn's default settings, and see what the
story sees: columns that it ignores are left out, the time of the bicycles is split into hour, weekday, month
and year, prices of houses are learned as logarithms. A training row that stands in the test rows too is
taken out, for all three: wines and letters have many.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
import yaml
from sklearn.compose import TransformedTargetRegressor, make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score, root_mean_squared_error
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

sys.path.insert(0, str(common.ROOT / "scripts"))
from fetch import fetch

SEEDS, FOLDS = 3, 5
REGRESSION = ("rmse", "r2", "rmse_log")
DIGITS = {"rmse": 0}
WINE = [
    "fixed_acidity", "volatile_acidity", "citric_acid", "residual_sugar", "chlorides", "free_sulfur_dioxide",
    "total_sulfur_dioxide", "density", "ph", "sulphates", "alcohol", "quality",
]  # fmt: skip
Rows = tuple[pd.DataFrame, pd.DataFrame]


@dataclass(frozen=True)
class Story:
    """One table: its target and figure; its rows for the test of each repetition, and how many there are."""

    target: str
    metric: str  # roc_auc, accuracy, rmse, r2 or rmse_log
    rows: Callable[[int], Rows]
    repeated: int = FOLDS
    separator: str = ","
    header: bool = True


def adult(seed: int) -> Rows:
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


def letters(seed: int) -> Rows:
    """The first 16,000 and the last 4,000 rows, as Frey and Slate split them."""
    frame = _table("letter_recognition", "LetterRecognition.csv")
    return frame[:16000], frame[16000:]


def folds(name: str, file: str, target: str | None, **keys: Any) -> Callable[[int], Rows]:
    """The fold-th of five folds; target: the classes whose shares each fold keeps, None for a number."""

    def rows(fold: int) -> Rows:
        frame = _table(name, file, **keys)
        kind = KFold if target is None else StratifiedKFold
        labels = None if target is None else frame[target]
        parts = list(kind(FOLDS, shuffle=True, random_state=0).split(frame, labels))
        train, test = parts[fold]
        return frame.iloc[train], frame.iloc[test]

    return rows


def without_copies(train: pd.DataFrame, test: pd.DataFrame, encode: dict[str, Any]) -> pd.DataFrame:
    """The training rows but for those that stand in the test rows, in the columns that are used."""
    names = [name for name in train.columns if name not in encode.get("ignore", [])]
    known = set(map(tuple, test[names].to_numpy()))
    return train[[tuple(row) not in known for row in train[names].to_numpy()]]


def _table(name: str, file: str, **keys: Any) -> pd.DataFrame:
    path = (common.ROOT / "configs/data" if name == "iris" else fetch(name)) / file
    return pd.read_csv(path, dtype=str, na_filter=False, encoding="utf-8-sig", **keys)


BANK = folds("bank_marketing", "bank-additional.csv", "y", sep=";")
STORIES = {
    "adult": Story("income", "roc_auc", adult, SEEDS, header=False),
    "adult_tabm": Story("income", "roc_auc", adult, SEEDS, header=False),
    "ames": Story("SalePrice", "rmse_log", folds("ames_housing", "AmesHousing.csv", None)),
    "bank": Story("y", "roc_auc", BANK, separator=";"),
    "bank_duration": Story("y", "roc_auc", BANK, separator=";"),
    "bike": Story("count", "r2", folds("bike_share", "bikeshare.csv", None)),
    "california": Story("median_house_value", "rmse", folds("california_housing", "housing.csv", None)),
    "iris": Story("species", "accuracy", folds("iris", "iris.csv", "species")),
    "letters": Story("lettr", "accuracy", letters, SEEDS),
    "titanic": Story("Survived", "accuracy", folds("titanic", "train.csv", "Survived")),
    "wine_red": Story(
        "quality",
        "accuracy",
        folds("wine_quality", "winequality-red.csv", "quality", names=WINE),
        header=False,
    ),
    "wine_white": Story(
        "quality",
        "accuracy",
        folds("wine_quality", "winequality-white.csv", "quality", names=WINE),
        header=False,
    ),
}


def config_of(name: str) -> tuple[Path, dict[str, Any]]:
    """A story's file and what it says."""
    path = common.ROOT / f"configs/tabular/{name}.yaml"
    return path, yaml.safe_load(path.read_text(encoding="utf-8"))


# --- the baselines ----------------------------------------------------------------------------------------


def baselines(name: str, train: pd.DataFrame, test: pd.DataFrame, seed: int) -> dict[str, float]:
    """The story's metric of a linear model and of gradient boosting, scikit-learn's defaults."""
    story, encode = STORIES[name], config_of(name)[1]["data"]["encode"]
    train, test = (_typed(_seen(frame, encode), _seen(train, encode)) for frame in (train, test))
    inputs, target = train.drop(columns=story.target), train[story.target]
    regression = story.metric in REGRESSION
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
    logarithm = "log" if encode.get("target_scale") == "log" and story.metric == "rmse_log" else None
    count = len(numbers(inputs))
    categorical = [position >= count for position in range(inputs.shape[1])]
    kind = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
    boosted = make_pipeline(
        make_column_transformer(("passthrough", numbers), (ordinal, words)),
        kind(categorical_features=categorical, random_state=seed),
    )
    models = {"linear": linear, "boosting": boosted}
    if logarithm:
        models = {
            kind: TransformedTargetRegressor(model, func=np.log, inverse_func=np.exp)
            for kind, model in models.items()
        }
    return {kind: _score(story, model.fit(inputs, target), test) for kind, model in models.items()}


def _seen(frame: pd.DataFrame, encode: dict[str, Any]) -> pd.DataFrame:
    """The columns that the story uses; of a time its parts."""
    seen = frame.drop(columns=encode.get("ignore", []))
    if "datetime" in seen:
        moments = pd.to_datetime(seen.pop("datetime")).dt
        for part, values in (
            ("hour", moments.hour),
            ("weekday", moments.day_of_week),
            ("month", moments.month),
            ("year", moments.year),
        ):
            seen[part] = values.astype(str)
    return seen


def _filled(scaler: Any) -> Any:
    from sklearn.impute import SimpleImputer

    return make_pipeline(SimpleImputer(strategy="median"), scaler)


def _typed(frame: pd.DataFrame, like: pd.DataFrame) -> pd.DataFrame:
    """Numbers as numbers, gaps, `?` and, among numbers, `NA` as missing; Adult's test labels lose their full
    stop."""
    typed = frame.copy()
    for name in frame.columns:
        present = like[name].replace(["", "NA", "?"], np.nan)
        if pd.to_numeric(present, errors="coerce").notna().sum() > 0.9 * present.notna().sum():
            typed[name] = pd.to_numeric(frame[name], errors="coerce")
        else:
            typed[name] = frame[name].str.rstrip(".").astype(object)
    return typed


def _score(story: Story, model: Any, test: pd.DataFrame) -> float:
    inputs, target = test.drop(columns=story.target), test[story.target]
    if story.metric == "rmse":
        return float(root_mean_squared_error(target, model.predict(inputs)))
    if story.metric == "r2":
        return float(r2_score(target, model.predict(inputs)))
    if story.metric == "rmse_log":
        return float(root_mean_squared_error(np.log(target), np.log(model.predict(inputs))))
    if story.metric == "accuracy":
        return float(accuracy_score(target, model.predict(inputs)))
    return float(roc_auc_score(target == model.classes_[1], model.predict_proba(inputs)[:, 1]))


# --- ours -------------------------------------------------------------------------------------------------


def ours(
    name: str, train: pd.DataFrame, test: pd.DataFrame, seed: int, short: bool
) -> tuple[float, float, float]:
    """The story's metric on the test rows, and seconds and processor seconds of `train` and `evaluate`."""
    story, (config, said) = STORIES[name], config_of(name)
    labels = None if story.metric in REGRESSION else train[story.target]
    if labels is not None and labels.value_counts().min() < 10:
        labels = None  # too few of a class to keep its share
    fit, validation = train_test_split(train, test_size=0.1, random_state=seed, stratify=labels)
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for split, frame in (("train", fit), ("validation", validation), ("test", test)):
            paths[split] = f"{folder}/{split}.csv"
            frame.to_csv(paths[split], sep=story.separator, header=story.header, index=False)
        run = Path(folder) / "run"
        mapping = "{" + ", ".join(f"{split}: {path}" for split, path in paths.items()) + "}"
        sets = {
            "run": run,
            "seed": seed,
            "data.source.path": mapping,
            "data.split": "null",
            "evaluate.require": "{}",
        }
        if "clean" in said["data"]:  # but for what drops rows, which all shall have
            kept = [step for step in said["data"]["clean"] if step["step"] == "replace"]
            sets["data.clean"] = json.dumps(kept)
        if short:
            sets["train.budget"] = "{epochs: 1}"
        took = [common.timed(common.llmtool(command, config, sets=sets)) for command in ("train", "evaluate")]
        score = common.scores(run, "evaluate", "test")[story.metric]
    return score, sum(each.seconds for each in took), sum(each.cpu_seconds for each in took)


def main() -> None:
    """Run every story and show it."""
    parser = common.parser(__doc__)
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(STORIES)}; default: all")
    parser.add_argument("--folds", type=int, help="so many of the folds or seeds; default: all")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    rows = []
    for name in options.names or STORIES:
        story = STORIES[name]
        kinds = ("linear", "boosting", "llmtool", "seconds", "cpu_seconds")
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        most = 1 if options.short else options.folds or story.repeated
        for number in range(min(most, story.repeated)):
            train, test = story.rows(number)
            train = without_copies(train, test, config_of(name)[1]["data"]["encode"])
            for kind, value in baselines(name, train, test, number).items():
                found[kind].append(value)
            for kind, value in zip(kinds[2:], ours(name, train, test, number, options.short), strict=True):
                found[kind].append(value)
            print(name, number, *(f"{kind} {values[-1]:.4f}" for kind, values in found.items()), flush=True)
        spreads = {kind: common.spread(values) for kind, values in found.items()}
        pairs = zip(found["llmtool"], found["boosting"], strict=True)
        spreads["less boosting"] = common.spread([ours - theirs for ours, theirs in pairs])
        figures[name] = {"metric": story.metric, **spreads}
        digits = DIGITS.get(story.metric, 4)
        rows.append(
            [name, story.metric]
            + [common.show(spreads[k], digits) for k in ("linear", "boosting", "llmtool", "less boosting")]
            + [common.show(spreads["seconds"], 1)]
        )
    columns = ["table", "metric", "linear", "boosting", "llmtool", "llmtool - boosting", "seconds"]
    common.table("Tables, test rows", columns, rows)
    common.save(options, "tables", figures, common.versions("llmtool", "torch", "scikit-learn", "pandas"))


if __name__ == "__main__":
    main()
