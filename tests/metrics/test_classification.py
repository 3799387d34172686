"""Classification figures against scikit-learn, on random and on adversarial rows."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch.nn import functional as F

from llmtool.core.contracts import IGNORE
from llmtool.metrics import classification
from llmtool.metrics.classification import ClassificationTally, ranking_areas


def tally(logits: np.ndarray, targets: np.ndarray, positive: int = 1) -> ClassificationTally:
    names = [f"c{index}" for index in range(logits.shape[1])]
    return ClassificationTally(
        torch.tensor(logits, dtype=torch.float32), torch.tensor(targets), names, positive
    )


def expected(
    logits: np.ndarray, targets: np.ndarray, probabilities: np.ndarray, positive: int
) -> dict[str, float]:
    """The same figures by scikit-learn; those it refuses are left out."""
    classes = list(range(logits.shape[1]))
    predicted = logits.astype(np.float32).argmax(1)
    result = {"accuracy": sk.accuracy_score(targets, predicted)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result["balanced_accuracy"] = sk.balanced_accuracy_score(targets, predicted)
        for average in ("macro", "micro", "weighted"):
            found = sk.precision_recall_fscore_support(targets, predicted, average=average, zero_division=0)
            result |= {
                f"{n}_{average}": v for n, v in zip(("precision", "recall", "f1"), found, strict=False)
            }
    if len(classes) == 2:
        if (predicted == positive).any():
            result["precision"] = sk.precision_score(targets, predicted, pos_label=positive)
        if (targets == positive).any():
            result["recall"] = sk.recall_score(targets, predicted, pos_label=positive)
        if (targets == positive).any() or (predicted == positive).any():
            result["f1"] = sk.f1_score(targets, predicted, pos_label=positive)
    else:
        result |= {name: result[f"{name}_macro"] for name in ("precision", "recall", "f1")}
    if set(targets) == set(classes):
        truth = np.eye(len(classes))[targets]
        of = [positive] if len(classes) == 2 else classes
        result["roc_auc"] = np.mean([sk.roc_auc_score(truth[:, c], probabilities[:, c]) for c in of])
        result["pr_auc"] = np.mean([sk.average_precision_score(truth[:, c], probabilities[:, c]) for c in of])
    if len(classes) > 5:
        result["top_5_accuracy"] = sk.top_k_accuracy_score(targets, logits, k=5, labels=classes)
    result["log_loss"] = -np.log(probabilities[np.arange(len(targets)), targets]).mean()
    return result


def compare(logits: np.ndarray, targets: np.ndarray, positive: int = 1) -> None:
    judged = tally(logits, targets, positive)
    probabilities = np.stack(list(judged.predictions().values())[2:], axis=1).astype(np.float64)
    softmax = torch.tensor(logits, dtype=torch.float32).double().softmax(1).numpy()
    np.testing.assert_allclose(probabilities, softmax, rtol=1e-14)
    wanted = expected(logits, targets, probabilities, positive)
    found = judged.metrics()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-12, rel=1e-12), name
    assert not found.keys() & judged.undefined.keys()
    json.dumps([found, judged.undefined, judged.details()], allow_nan=False)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("rows", [5, 400])
def test_random_rows_as_scikit_learn(classes: int, rows: int) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        compare(random.normal(size=(rows, classes)) * 3, random.integers(classes, size=rows), seed % 2)


@pytest.mark.parametrize("classes", [2, 4])
def test_ties_as_scikit_learn(classes: int) -> None:
    for seed in range(30):
        random = np.random.default_rng(seed)
        compare(random.integers(0, 3, size=(60, classes)), random.integers(classes, size=60), seed % 2)


@given(
    st.integers(2, 4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2)), min_size=1, max_size=30),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_any_rows_as_scikit_learn(classes: int, rows: list[tuple[int, int]], data: st.DataObject) -> None:
    targets = np.array([target % classes for target, _ in rows])
    others = data.draw(st.lists(st.integers(-2, 2), min_size=classes, max_size=classes))
    logits = np.array(
        [[value if c == target else others[c] for c in range(classes)] for target, value in rows]
    )
    compare(logits, targets)


def test_five_guesses_take_the_first_of_equals() -> None:
    """As the prediction does; of seven equal ones the first five are guessed."""
    judged = tally(np.zeros((7, 7)), np.arange(7))
    assert judged.metrics()["top_5_accuracy"] == pytest.approx(5 / 7)
    assert judged.metrics()["accuracy"] == pytest.approx(1 / 7)
    weights = np.array([[1, 0, 0, 0, 0, 0, 1], [0, 2, 0, 0, 0, 0, 1]])
    assert judged.resampled(weights)["top_5_accuracy"] == pytest.approx([1 / 2, 2 / 3])
    assert "top_5_accuracy" not in tally(np.zeros((5, 5)), np.arange(5)).metrics()


def test_all_scores_equal() -> None:
    compare(np.zeros((10, 2)), np.array([0, 1] * 5))
    judged = tally(np.zeros((10, 2)), np.array([0, 1] * 5))
    assert judged.metrics()["roc_auc"] == 0.5
    assert judged.undefined == {"precision": "class 'c1' was never predicted"}


def test_agrees_with_multiclass_scikit_learn_call() -> None:
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(200, 5)), random.integers(5, size=200)
    probabilities = torch.tensor(logits, dtype=torch.float32).double().softmax(1).numpy()
    wanted = sk.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro")
    assert tally(logits, targets).metrics()["roc_auc"] == pytest.approx(wanted, abs=1e-12)
    assert tally(logits, targets).metrics()["log_loss"] == pytest.approx(
        sk.log_loss(targets, probabilities), abs=1e-12
    )


def test_one_class_in_the_split_has_no_areas() -> None:
    judged = tally(np.random.default_rng(0).normal(size=(9, 2)), np.ones(9, np.int64))
    assert judged.undefined["roc_auc"] == judged.undefined["pr_auc"] == "only class 'c1' occurs"
    assert {"accuracy", "balanced_accuracy", "recall", "log_loss"} <= judged.metrics().keys()
    assert not any(np.isnan(value) for value in judged.metrics().values())


def test_a_class_without_rows_is_named() -> None:
    judged = tally(np.random.default_rng(0).normal(size=(20, 3)), np.array([0, 2] * 10))
    assert judged.undefined["roc_auc"] == "no rows of class 'c1'"
    entry = judged.details()["per_class"][1]
    assert entry["support"] == 0
    assert entry["recall"] is None
    assert entry["roc_auc"] is None


def test_binary_figures_of_an_absent_positive_class_are_undefined() -> None:
    judged = tally(np.array([[2.0, 0], [3, 1]]), np.array([0, 0]))
    assert {"precision", "recall", "f1", "roc_auc", "pr_auc"} == judged.undefined.keys()
    assert judged.undefined["f1"] == "class 'c1' has no rows and no predictions"
    assert judged.metrics()["accuracy"] == 1


def test_no_rows_at_all() -> None:
    judged = tally(np.zeros((0, 3)), np.zeros(0, np.int64))
    assert judged.metrics() == {}
    assert set(judged.undefined.values()) == {"there are no rows"}
    assert judged.details()["confusion"]["matrix"] == [[0] * 3] * 3
    assert len(judged.predictions()["target"]) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_give_no_figures(bad: float) -> None:
    logits = np.zeros((4, 2))
    logits[2, 1] = bad
    judged = tally(logits, np.array([0, 1, 0, 1]))
    assert judged.metrics() == {}
    assert set(judged.undefined.values()) == {"the model's outputs are not finite in 1 rows"}
    assert judged.details() == {}


def test_overconfident_logits_keep_log_loss_and_ranking() -> None:
    logits = np.array([[0.0, 900], [0, 800], [0, 700], [900, 0]])
    found = tally(logits, np.array([1, 1, 0, 0])).metrics()
    assert found["log_loss"] == pytest.approx((700 + 0) / 4)
    assert found["roc_auc"] == 0.75  # 900, 800 and 700 are the same probability, 1: two ties of four pairs
    assert np.isfinite(found["pr_auc"])


def test_batches_add_to_the_whole_in_any_order() -> None:
    random = np.random.default_rng(1)
    logits, targets = random.normal(size=(100, 3)), random.integers(3, size=100)
    whole = tally(logits, targets)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        cuts = [slice(0, 7), slice(7, 8), slice(8, 60), slice(60, 100)]
        parts = [tally(logits[cuts[i]], targets[cuts[i]]) for i in order]
        sum_of = parts[0]
        for part in parts[1:]:
            sum_of.add(part)
            sum_of.metrics()  # figures between two batches do not disturb the sum
        assert sum_of.metrics() == pytest.approx(whole.metrics(), abs=1e-13)
        assert sum_of.details()["confusion"] == whole.details()["confusion"]


def test_much_evidence_moves_to_the_host_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    logits, targets = random.normal(size=(40, 3)), random.integers(3, size=40)
    monkeypatch.setattr(classification, "MOST_PENDING", 30)
    parts = tally(logits[:4], targets[:4])
    for at in range(4, 40, 4):
        parts.add(tally(logits[at : at + 4], targets[at : at + 4]))
    assert len(parts._logits) < 10
    assert parts.metrics() == tally(logits, targets).metrics()


def test_a_buffer_used_again_does_not_change_the_tally() -> None:
    logits, targets = torch.eye(2), torch.tensor([0, 1])
    judged = ClassificationTally(logits, targets, ["a", "b"])
    logits.zero_()
    targets.zero_()
    assert judged.metrics()["accuracy"] == 1
    assert judged.predictions()["target"].tolist() == ["a", "b"]


def test_ignored_rows_are_never_scored() -> None:
    random = np.random.default_rng(2)
    logits, targets = random.normal(size=(30, 3)), random.integers(3, size=30)
    kept = random.random(30) < 0.5
    masked = np.where(kept, targets, IGNORE)
    assert tally(logits, masked).metrics() == tally(logits[kept], targets[kept]).metrics()
    assert len(tally(logits, masked).predictions()["target"]) == kept.sum()


def test_details_and_predictions_carry_names() -> None:
    logits = torch.tensor([[2.0, 1, 0], [0, 2, 1], [2, 1, 0]])
    judged = ClassificationTally(logits, torch.tensor([0, 1, 2]), ["cat", "dog", "eel"])
    details = judged.details()
    assert details["confusion"] == {
        "names": ["cat", "dog", "eel"],
        "matrix": [[1, 0, 0], [0, 1, 0], [1, 0, 0]],
    }
    assert [entry["class"] for entry in details["per_class"]] == ["cat", "dog", "eel"]
    assert details["per_class"][2]["precision"] is None
    assert details["per_class"][0]["precision"] == 0.5
    columns = judged.predictions()
    assert list(columns) == ["target", "prediction", "probability cat", "probability dog", "probability eel"]
    assert columns["prediction"].tolist() == ["cat", "dog", "cat"]
    np.testing.assert_allclose(columns["probability dog"], F.softmax(logits.double(), 1)[:, 1], atol=1e-15)


def test_many_classes_name_the_most_frequent_mistakes() -> None:
    targets = np.repeat(np.arange(101), 2)
    logits = np.eye(101)[np.where(targets == 7, 9, targets)]
    details = tally(logits, targets).details()
    assert "confusion" not in details
    assert details["most_confused"] == [{"target": "c7", "prediction": "c9", "rows": 2}]


def test_areas_of_many_rows_are_exact_integers() -> None:
    random = np.random.default_rng(3)
    scores, positive = random.integers(50, size=20_000).astype(float), random.random(20_000) < 0.01
    area, precision = ranking_areas(scores, positive)
    pairs = np.sign(scores[positive][:, None] - scores[~positive][None, :])
    assert area == (pairs.sum() / 2 + pairs.size / 2) / pairs.size
    assert precision == pytest.approx(sk.average_precision_score(positive, scores), abs=1e-12)
