"""What the card of the data says of the problem, and what each family that suits it would cost here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from llmtool.core.console import bytes_, count, number, seconds
from llmtool.core.contracts import Images, InputSpec, OutputSpec, Tokens
from llmtool.core.devices import Precision, peak_flops
from llmtool.core.errors import ConfigError
from llmtool.data.store import input_spec
from llmtool.models.accounting import FLOAT
from llmtool.models.choice import RULES, Choice, Problem, choices
from llmtool.stages.settings import CPU_RATE, CPU_TOKENS, CUDA_TOKENS, REACHED
from llmtool.tasks import TaskConfig, default_task

BYTES = 16  # an optimizer step moves so many for each weight: weight, gradient, two moments, to and fro
BANDWIDTH = 5e9  # bytes a second that a CPU core moves, about
STEP = {"cpu": 2e-3, "cuda": 1e-3}  # seconds that a training step takes, however small the model, about
UNEVEN = 3  # times as many rows of one class as of another, from which accuracy says little
CUT = 0.1  # share of the texts
STATE = 4  # of each weight: itself, its gradient, and AdamW's two moments


def problem_of(card: dict[str, Any], outputs: OutputSpec | None, device: torch.device) -> Problem:
    """The problem that prepared data with this card poses. outputs: None: what its target suggests."""
    outputs = outputs or default_task(card["targets"]).outputs(card["targets"])
    train = card["splits"].get("train", {})
    game = card.get("encoding") == "moves"
    whole = game or "trained" in train  # of conversations what is learned of each stands beside it
    rows = train.get("documents", train.get("rows", 0))
    kind = "cuda" if device.type == "cuda" else "cpu"
    return Problem(
        input_spec(card["inputs"]),
        outputs,
        rows,
        train.get("tokens", 0),
        train.get("longest", 0),
        whole,
        kind,
        game,
    )


def choose(card: dict[str, Any], task: TaskConfig | None, device: torch.device, share: float = 1.0) -> Choice:
    """The first choice for prepared data. share: the part of the whole data that the card is of.

    ConfigError where no family takes it.
    """
    outputs = None if task is None else task.outputs(card["targets"])
    problem = problem_of(card, outputs, device)
    whole = replace(problem, rows=round(problem.rows / share), tokens=round(problem.tokens / share))
    found = choices(whole)
    if not found:
        takes, gives = (type(spec).__name__.lower() for spec in (problem.inputs, problem.outputs))
        raise ConfigError(f"model: auto: no family of this version takes {takes} and gives {gives}")
    return found[0]


def advise(
    problem: Problem, device: torch.device, precision: Precision, own: str = ""
) -> list[dict[str, Any]]:
    """Every family that takes the problem, the first choice first: why, why not, what it costs.

    own: the family of the model at hand.
    """
    rate = rate_of(device, precision)
    return [
        {
            "family": choice.family,
            "first": number == 0,
            "chosen": choice.family == own,
            "why": choice.why,
            "against": choice.against,
            "works": RULES[choice.family].works,
            "model": choice.model,
            "costs": costs(choice, problem, device.type, rate),
        }
        for number, choice in enumerate(choices(problem))
    ]


def rate_of(device: torch.device, precision: Precision) -> float:
    """FLOP/s that training reaches, about; of a CPU by its cores, not timed: it stays the same."""
    if device.type == "cuda":
        return REACHED * peak_flops(device, precision)[0]
    return CPU_RATE * torch.get_num_threads()


def costs(choice: Choice, problem: Problem, device: str, rate: float) -> dict[str, Any]:
    """Parameters, FLOPs of a row forward and backward, bytes of weights and optimizer state, seconds of an
    epoch: estimates of the size that the choice proposes, nothing is run."""
    model = built(choice, problem.inputs, problem.outputs)
    tokens = _tokens(model, problem)
    rows = problem.rows
    if isinstance(problem.inputs, Tokens) and problem.inputs.length is None:
        rows = max(1, problem.tokens // tokens)  # windows of the text
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = int(model.flops(tokens))
    batch = (
        max(1, (CUDA_TOKENS if device == "cuda" else CPU_TOKENS) // tokens) if tokens > 1 else _batch(rows)
    )
    steps = -(-rows // batch)
    state = parameters * BYTES / BANDWIDTH if device == "cpu" else 0.0
    return {
        "parameters": parameters,
        "flops_per_row": flops,
        "state_bytes": STATE * FLOAT * parameters,
        "epoch_seconds": round(rows * flops / rate + steps * (STEP[device] + state), 3),
    }


def built(choice: Choice, inputs: InputSpec, outputs: OutputSpec) -> Any:
    """The model of a choice without memory for its weights."""
    with torch.device("meta"):
        return choice.config().build(inputs, outputs)


def _tokens(model: Any, problem: Problem) -> int:
    """Tokens of a row as training sees it: of labelled texts the mean, else the context; 1 of others."""
    if not isinstance(problem.inputs, Tokens):
        return 1
    if problem.inputs.length is not None:
        mean = problem.tokens // max(problem.rows, 1)
        return max(1, min(mean or problem.inputs.length, problem.inputs.length))
    return int(model.context)


def _batch(rows: int) -> int:
    return min(1024, max(32, rows // 64))


def baseline(card: dict[str, Any]) -> str:
    """What a model of this data must be better than, in words; `evaluate` has the figures."""
    targets, kind = card["targets"], card["inputs"]["kind"]
    if targets["kind"] == "next_token":
        return "n-grams counted in the same training tokens, which `llmtool evaluate` does"
    learned = "ridge regression" if targets["kind"] == "values" else "logistic regression"
    learned += {"tokens": " on TF-IDF", "images": " on small pictures"}.get(kind, "")
    if targets["kind"] == "labels":
        learned += " of each label"
    elif kind == "features":
        learned += ", gradient-boosted trees"
    return f"{_simplest(targets)}, {learned}: `llmtool evaluate` fits these to the same rows"


def _simplest(targets: dict[str, Any]) -> str:
    """What needs no inputs."""
    if targets["kind"] == "values":
        spread = ", ".join(number(scale) for scale in targets.get("scale", [])[:3])
        return f"always saying the mean (an error of {spread or 'one deviation'})"
    if targets["kind"] == "labels":
        return "for every row the share of the training rows that have a label"
    counts = targets.get("counts") or []
    share = ""
    if sum(counts):
        name = targets["names"][counts.index(max(counts))]
        share = f" ({name}: {100 * max(counts) / sum(counts):.3g} % of the training rows)"
    return f"always saying the most frequent class{share}"


def hints(card: dict[str, Any], problem: Problem) -> list[str]:
    """What else this data asks for."""
    found = []
    counts = [rows for rows in card["targets"].get("counts") or [] if rows]
    if counts and max(counts) > UNEVEN * min(counts):
        what, judge, key = "classes", "f1 or roc_auc (train.select), not by accuracy", "class_weights"
        if card["targets"]["kind"] == "labels":
            what, key = "labels", "positive_weights"
            judge = "f1 or mean_average_precision (train.select), not by hamming_loss"
        found.append(
            f"uneven {what}, from {min(counts):,} to {max(counts):,} training rows: judge by {judge}; "
            f"task.{key}: balanced finds more of the rare ones"
        )
    train = card["splits"]["train"]
    if train.get("cut", 0) > CUT * train["rows"]:
        found.append(
            f"{train['cut']:,} of {train['rows']:,} training texts are longer than data.encode.length and "
            "were cut; a larger length costs time and shows the model more"
        )
    if isinstance(problem.inputs, Tokens | Images) and not problem.game:
        found.append("a pretrained model, where there is one: `finetune` instead of `train`, mostly better")
    return found


# --- for people -------------------------------------------------------------------------------------------

Rows = list[list[str]]
WHY = ["family", "why", "against it"]
COSTS = ["model:", "parameters", "FLOPs a row", "weights and optimizer", "an epoch, about"]


def reasons(advice: dict[str, Any]) -> Rows:
    """A line for each family under WHY."""
    return [
        [family["family"] + " (this one)" * family["chosen"], family["why"], family["against"]]
        for family in advice["families"]
    ]


def prices(advice: dict[str, Any]) -> Rows:
    """A line for each family under COSTS."""
    return [
        [
            _settings(family),
            count(family["costs"]["parameters"]),
            count(family["costs"]["flops_per_row"]),
            bytes_(family["costs"]["state_bytes"]),
            seconds(family["costs"]["epoch_seconds"]),
        ]
        for family in advice["families"]
    ]


def _settings(family: dict[str, Any]) -> str:
    """A model section as it stands in YAML."""
    settings = "".join(f", {key}: {value}" for key, value in family["model"].items())
    return f"{{family: {family['family']}{settings}}}"
