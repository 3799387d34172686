"""Tasks: sums that add over parts of a batch, targets that are ignored, configurations that do not fit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional as F

from llmtool.core import config
from llmtool.core.config import Section
from llmtool.core.contracts import IGNORE, Batch, Classes, Loss, NextToken, Task, Values
from llmtool.core.errors import ConfigError, ConfigErrors, DataError
from llmtool.tasks import TaskConfig, default_task
from llmtool.tasks.classification import ClassificationConfig, find_class, second
from llmtool.tasks.language import LanguageConfig
from llmtool.tasks.regression import RegressionConfig

CLASSES = {"targets": {"kind": "classes", "names": ["a", "b", "c"], "counts": [60, 30, 10]}}
VALUES = {"targets": {"kind": "values", "names": ["x", "y"], "mean": [1e6, 2.0], "scale": [10.0, 0.5]}}
TOKENS = {"targets": {"kind": "next_token", "vocabulary": 11}}
TASKS: list[tuple[Any, dict[str, Any]]] = [
    (ClassificationConfig(), CLASSES),
    (ClassificationConfig(class_weights="balanced"), CLASSES),
    (ClassificationConfig(class_weights=[1.0, 0.1, 5.0], label_smoothing=0.2), CLASSES),
    (RegressionConfig(), VALUES),
    (RegressionConfig(loss="absolute"), VALUES),
    (RegressionConfig(loss="huber", delta=0.3), VALUES),
    (LanguageConfig(), TOKENS),
]


class Linear(nn.Module):
    """A model of any family: a linear map of features, or of one-hot tokens."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.width, self.head = width, nn.Linear(width, outputs)

    def forward(self, inputs: Tensor, segments: Tensor | None = None) -> Tensor:
        return self.head(inputs if inputs.is_floating_point() else F.one_hot(inputs, self.width).float())


def case(card: dict[str, Any], rows: int = 12, ignore: float = 0.0) -> tuple[Linear, Batch]:
    """A seeded model and batch that fit the card; this share of the targets is ignored."""
    torch.manual_seed(rows)
    kind = card["targets"]["kind"]
    if kind == "next_token":
        targets = torch.randint(11, (rows, 5))
        model, inputs = Linear(11, 11), torch.randint(11, (rows, 5))
    else:
        model, inputs = Linear(4, 3 if kind == "classes" else 2), torch.randn(rows, 4)
        targets = (
            torch.randint(3, (rows,))
            if kind == "classes"
            else torch.randn(rows, 2) + torch.tensor([1e6, 2.0])
        )
    if ignore:
        targets[torch.rand(targets.shape) < ignore] = IGNORE
    return model, Batch(inputs, targets)


def part(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.inputs[rows], batch.targets[rows])


def gradient(task: Task, model: nn.Module, batches: list[Batch]) -> tuple[Tensor, list[Tensor]]:
    """Mean loss and its gradient, accumulated over parts."""
    model.zero_grad()
    losses: list[Loss] = []
    for batch in batches:
        losses.append(task.loss(model, batch))
        losses[-1].total.backward()
    count = torch.stack([loss.count.float() for loss in losses]).sum()
    total = torch.stack([loss.total.detach() for loss in losses]).sum()
    return total / count, [
        parameter.grad / count for parameter in model.parameters() if parameter.grad is not None
    ]


@pytest.mark.parametrize(("section", "card"), TASKS)
@pytest.mark.parametrize("ignore", [0.0, 0.7])
def test_the_loss_of_uneven_parts_is_the_loss_of_the_whole(
    section: Any, card: dict[str, Any], ignore: float
) -> None:
    task = section.build(card)
    model, batch = case(card, 12, ignore if card is not VALUES else 0.0)
    whole, wanted = gradient(task, model, [batch])
    for cuts in ([0, 6, 12], [0, 1, 12], [0, 5, 6, 11, 12]):
        parts = [part(batch, slice(a, b)) for a, b in pairwise(cuts)]
        mean, found = gradient(task, model, parts)
        torch.testing.assert_close(mean, whole, rtol=1e-6, atol=1e-6)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("section", "card"), [entry for entry in TASKS if entry[1] is not VALUES])
def test_ignored_targets_are_never_scored(section: Any, card: dict[str, Any]) -> None:
    task = section.build(card)
    model, batch = case(card, 12, 0.5)
    ignored = batch.targets == IGNORE
    assert ignored.any()
    if batch.inputs.is_floating_point():
        other = batch.inputs.clone()
        other[ignored] = 1e3
    else:  # a linear model sees one token at a time, so the inputs of ignored positions are free
        other = torch.where(ignored, (batch.inputs + 1) % 11, batch.inputs)
    changed = Batch(other, batch.targets)
    one, two = task.loss(model, batch), task.loss(model, changed)
    torch.testing.assert_close(one.total, two.total)
    assert one.count == two.count
    with torch.no_grad():
        assert task.measure(model, batch).metrics() == pytest.approx(task.measure(model, changed).metrics())
    if card is TOKENS:
        assert one.count == (~ignored).sum()


@pytest.mark.parametrize(("section", "card"), [entry for entry in TASKS if entry[1] is not VALUES])
def test_a_batch_of_ignored_targets_is_zero_with_a_graph(section: Any, card: dict[str, Any]) -> None:
    task = section.build(card)
    model, batch = case(card)
    batch.targets.fill_(IGNORE)
    loss = task.loss(model, batch)
    assert loss.total.item() == 0
    assert loss.count.item() == 0
    loss.total.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()
    with torch.no_grad():
        assert task.measure(model, batch).metrics() == {}


@pytest.mark.parametrize(("section", "card"), TASKS)
def test_logits_of_low_precision_are_float32_at_the_loss(section: Any, card: dict[str, Any]) -> None:
    task = section.build(card)
    model, batch = case(card)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task.loss(model, batch)
    assert loss.total.dtype == torch.float32
    assert loss.total.isfinite()


@pytest.mark.parametrize(("section", "card"), TASKS)
def test_tallies_of_batches_add(section: Any, card: dict[str, Any]) -> None:
    task = section.build(card)
    model, batch = case(card, 12)
    with torch.no_grad():
        whole = task.measure(model, batch).metrics()
        parts = [task.measure(model, part(batch, slice(a, b))) for a, b in ((7, 12), (0, 1), (1, 7))]
    parts[0].add(parts[1])
    parts[0].add(parts[2])
    assert parts[0].metrics() == pytest.approx(whole, rel=1e-6)
    assert task.metric in whole
    assert task.mode == "min"


def test_weighted_and_smoothed_loss_is_torchs() -> None:
    model, batch = case(CLASSES, 12, 0.3)
    weights = torch.tensor([1.0, 0.1, 5.0])
    loss = (
        ClassificationConfig(class_weights=weights.tolist(), label_smoothing=0.2)
        .build(CLASSES)
        .loss(model, batch)
    )
    wanted = F.cross_entropy(model(batch.inputs), batch.targets, weights, label_smoothing=0.2)
    torch.testing.assert_close(loss.total / loss.count, wanted)


def test_balanced_weights_are_scikit_learns() -> None:
    task = ClassificationConfig(class_weights="balanced").build(CLASSES)
    torch.testing.assert_close(task._weights, torch.tensor([100 / 180, 100 / 90, 100 / 30]))
    named = ClassificationConfig(class_weights={"c": 3.0}).build(CLASSES)
    assert named._weights.tolist() == [1, 1, 3]


def test_unweighted_loss_is_the_mean_and_the_measured_log_loss() -> None:
    task = ClassificationConfig().build(CLASSES)
    model, batch = case(CLASSES, 40)
    loss = task.loss(model, batch)
    mean = (loss.total / loss.count).item()
    assert loss.count == 40
    with torch.no_grad():
        assert task.measure(model, batch).metrics()["log_loss"] == pytest.approx(mean, rel=1e-6)


def test_regression_learns_standardised_and_measures_in_units() -> None:
    task = RegressionConfig().build(VALUES)
    model, batch = case(VALUES)
    nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([1.0, -2.0]))
        found = task.measure(model, batch)
    prediction = torch.tensor([[1e6 + 10, 2 - 1.0]], dtype=torch.float64)
    error = (prediction - batch.targets.double()).abs()
    assert found.metrics()["mae"] == pytest.approx(error.mean().item(), rel=1e-9)
    loss = task.loss(model, batch)
    standardised = (batch.targets.double() - torch.tensor([1e6, 2.0])) / torch.tensor([10.0, 0.5])
    wanted = ((torch.tensor([1.0, -2.0]) - standardised) ** 2).sum()
    assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert loss.count == 24


def test_huber_is_half_the_square_inside_and_straight_outside() -> None:
    card = {"targets": {"kind": "values", "mean": [0.0], "scale": [1.0], "names": ["x"]}}
    task = RegressionConfig(loss="huber", delta=2.0).build(card)
    model = Linear(1, 1)
    nn.init.ones_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    loss = task.loss(model, Batch(torch.tensor([[1.0], [5.0]]), torch.zeros(2, 1)))
    assert loss.total.item() == pytest.approx(0.5 + 2 * (5 - 1))


def test_language_figures_are_those_of_torch() -> None:
    task = LanguageConfig().build(TOKENS)
    model, batch = case(TOKENS, 8, 0.4)
    with torch.no_grad():
        tally = task.measure(model, batch)
        logits = model(batch.inputs).reshape(-1, 11)
    targets = batch.targets.reshape(-1)
    assert tally.metrics()["loss"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-6)
    scored = targets != IGNORE
    accuracy = (logits.argmax(1) == targets)[scored].float().mean().item()
    assert tally.metrics()["token_accuracy"] == pytest.approx(accuracy)


# --- configurations -----------------------------------------------------------------------------------------


def test_outputs_and_defaults() -> None:
    assert ClassificationConfig().outputs(CLASSES["targets"]) == Classes(3)
    assert RegressionConfig().outputs(VALUES["targets"]) == Values(2)
    assert LanguageConfig().outputs(TOKENS["targets"]) == NextToken(11)
    for card, kind in ((CLASSES, "classification"), (VALUES, "regression"), (TOKENS, "language")):
        assert default_task(card["targets"]).kind == kind


@pytest.mark.parametrize("card", [CLASSES, VALUES, TOKENS])
def test_a_task_that_does_not_fit_the_target_says_what_to_change(card: dict[str, Any]) -> None:
    fitting = default_task(card["targets"])
    for member in get_args(get_args(TaskConfig)[0]):
        if member is not type(fitting):
            for call in (lambda m=member: m().outputs(card["targets"]), lambda m=member: m().build(card)):
                with pytest.raises(ConfigError, match=r"task.kind: .* needs .*set "):
                    call()


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="one class \\(a\\)"):
        ClassificationConfig().outputs({"kind": "classes", "names": ["a"]})


@pytest.mark.parametrize(
    ("names", "index"),
    [(["no", "yes"], 1), (["yes", "no"], 0), (["0", "1"], 1), (["10", "9"], 0), ([">50K", "<=50K"], 0)],
)
def test_the_positive_class_is_the_second_in_sorted_order(names: list[str], index: int) -> None:
    assert second(names) == index
    card = {"targets": {"kind": "classes", "names": names, "counts": [1, 1]}}
    assert ClassificationConfig().build(card).positive == index
    other = names[1 - index]
    assert ClassificationConfig(positive=other).build(card).positive == 1 - index


def test_classes_are_found_as_yaml_writes_them() -> None:
    assert find_class(1, ["0", "1"], "k") == 1
    assert find_class(1, ["0.0", "1.0"], "k") == 1
    assert find_class(True, ["false", "true"], "k") == 1
    assert find_class(True, ["False", "True"], "k") == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"positive": "a"}, "task.positive is for two classes; the target has 3"),
        ({"positive": "aa"}, r"task.positive: 'aa' is not a class of the target.*\(classes: a, b, c\)"),
        ({"class_weights": [1.0, 2.0]}, r"2 weights for 3 classes \(a, b, c\)"),
        ({"class_weights": {"d": 2.0}}, "task.class_weights: 'd' is not a class"),
    ],
)
def test_classes_that_are_not_in_the_data_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassificationConfig(**keys).build(CLASSES)


class _File(Section):
    task: TaskConfig


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{kind: clasification}", 'did you mean "classification"'),
        ("{kind: classification, class_weights: balance}", "task.class_weights: "),
        ("{kind: classification, class_weights: [1, -1]}", "task.class_weights.1: "),
        ("{kind: classification, class_weights: {a: 0}}", "task.class_weights.a: "),
        ("{kind: classification, label_smoothing: 1}", "task.label_smoothing: "),
        ("{kind: regression, delta: 1.0}", "delta is for loss: huber"),
        ("{kind: regression, loss: huber, delta: .inf}", "task.delta: "),
        ("{kind: language, label_smoothing: 0.1}", "unknown key"),
    ],
)
def test_wrong_keys_are_named_with_their_place(text: str, message: str) -> None:
    with pytest.raises(ConfigErrors) as error:
        config.validate(config.parse(f"task: {text}", "t.yaml"), _File)
    assert message in str(error.value)
    assert "t.yaml:1:" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("section", "card"), TASKS)
def test_a_section_survives_its_own_json(section: Any, card: dict[str, Any]) -> None:
    tasks: TypeAdapter[Any] = TypeAdapter(TaskConfig)
    assert tasks.validate_python(section.model_dump(mode="json", by_alias=True)) == section


def test_every_key_is_described() -> None:
    for member in get_args(get_args(TaskConfig)[0]):
        assert all(field.description for field in member.model_fields.values())


@pytest.mark.parametrize("weights", [None, [1.0, 0.1, 5.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_two_targets_in_shares_are_the_entropy_of_their_mixture(
    weights: list[float] | None, smoothing: float
) -> None:
    """By hand, from probabilities: -sum of q * w * log p, q the smoothed mixture of two one-hot rows."""
    task = ClassificationConfig(class_weights=weights or "none", label_smoothing=smoothing).build(CLASSES)
    model, batch = case(CLASSES)
    others, share = batch.targets.roll(1), torch.linspace(0, 1, 12)
    batch.targets[3], others[5] = IGNORE, IGNORE
    mixed = Batch(batch.inputs, batch.targets, mixed=(others, share))
    found = task.loss(model, mixed)
    log = model(batch.inputs).log_softmax(dim=1)
    w = torch.tensor(weights or [1.0, 1.0, 1.0])
    total, count = 0.0, 0.0
    for row in range(12):
        for target, part in ((int(batch.targets[row]), share[row]), (int(others[row]), 1 - share[row])):
            if target != IGNORE:
                q = F.one_hot(torch.tensor(target), 3) * (1 - smoothing) + smoothing / 3
                total, count = total - part * (q * w * log[row]).sum(), count + part * w[target]
    torch.testing.assert_close(found.total, torch.as_tensor(total))
    torch.testing.assert_close(found.count, torch.as_tensor(count))
    alone = Batch(batch.inputs, batch.targets, mixed=(others, torch.ones(12)))
    plain = task.loss(model, batch)
    torch.testing.assert_close(task.loss(model, alone).total, plain.total)
    torch.testing.assert_close(task.loss(model, alone).count, plain.count.float())


def test_a_number_learned_as_its_logarithm_is_judged_in_its_own_units():
    transform = {"kind": "log", "offset": [0.0], "mean": [12.0], "scale": [0.4]}
    card = {"targets": {"kind": "values", "names": ["price"], "mean": [1e5], "scale": [1e4]}}
    card["targets"]["transform"] = transform
    task = RegressionConfig().build(card)
    assert (task.metric, task.mode) == ("rmse_log", "min")
    model, inputs = nn.Linear(3, 1), torch.randn(8, 3)
    own = nn.Module()
    own.forward = lambda inputs, segments=None: model(inputs)
    prices = torch.rand(8, 1) * 1e5 + 5e4
    loss = task.loss(own, Batch(inputs, prices))
    wanted = (model(inputs) - (prices.double().log() - 12) / 0.4).square().sum()
    torch.testing.assert_close(loss.total, wanted.float())
    with torch.no_grad():
        found = task.measure(own, Batch(inputs, prices)).pairs()[0]
        torch.testing.assert_close(torch.from_numpy(found), torch.exp(model(inputs).double() * 0.4 + 12))
