"""What the work of each stage depends on: the slice of the file that it reads, its inputs, and our code.

Three things are in no key. The place of a run, but for `describe`, whose model card bears it: a run may be
renamed. Where the work of preparing is done: that
gives the same bytes. The machine, but for `describe`, which speaks of it: `device: auto` asks for whatever
there is, and a training of days must not begin again because somebody looks at it on a laptop; the result
says where it was made, and the command says where that differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtool.core import files
from llmtool.core.devices import memory_bytes, resolve_device, resolve_precision
from llmtool.core.environment import code_version
from llmtool.core.errors import ConfigError
from llmtool.core.files import HashFile
from llmtool.data import data_hashes
from llmtool.data.store import CARD, Dataset, origin
from llmtool.evaluation import compare
from llmtool.experiment import Loaded
from llmtool.stages.checkpoints import fingerprint

COMPUTE = ("seed", "device", "precision", "deterministic")  # what decides numbers beside one's own section
READS = {
    "prepare": ("seed", "data"),
    "train": (*COMPUTE, "model", "task", "train"),
    "finetune": (*COMPUTE, "task", "finetune"),
    "evaluate": (*COMPUTE, "evaluate"),
}
COSTS = (  # what a prediction reads of `train` or `finetune`
    "micro_batch", "batch", "optimizer.name", "budget", "mixture", "ema", "compile", "validate_every",
    "checkpoint_every", "activation_checkpointing",
)  # fmt: skip

Key = dict[str, Any]


def prepare(loaded: Loaded, hash_file: HashFile) -> Key:
    """The key of `prepare`. Raises DataError or ConfigError where there is nothing to prepare.

    It has what only refuses (`max_bad`, `leakage: refuse`) too: that a dataset was accepted then does not say
    that it is accepted now.
    """
    data = loaded.experiment.data
    if (
        (like := data.encode.like) is not None
        and data.encode.as_ != "chat"
        and not (Path(like) / CARD).is_file()
    ):
        inner = Path(like) / "prepare"
        hint = f"; did you mean {inner}?" if (inner / CARD).is_file() else ""
        raise ConfigError(f"data.encode.like: {like}: no prepared dataset here (no {CARD} in it){hint}")
    if (model := getattr(data.encode, "like_model", None)) is not None:
        for path in data.encode.files():
            if not path.is_file():
                raise ConfigError(f"data.encode.like_model: {model}: no {path.name} in it")
    reads = loaded.slice(*READS["prepare"])
    reads["data"] = {name: value for name, value in reads["data"].items() if name != "engine"}
    return _key(reads, data_hashes(data, hash_file))


def describe(
    loaded: Loaded,
    card: dict[str, Any] | None,
    start: Path | None,
    asked: dict[str, Any] | None = None,
) -> Key:
    """The key of `describe`; of the settings of a training it has those that decide its memory and time.

    card: of the prepared dataset; None: there is none yet, and what will go in is guessed from the encoding.
    start: the checkpoint that is described, in a file without `model:`. asked: the devices for which memory
    and time are predicted, as plain data.
    """
    experiment = loaded.experiment
    said = {} if not asked else {"asked": asked}
    machine = _machine(experiment.device, experiment.precision)
    if start is not None:
        reads = ["finetune.start", "finetune.through", *(f"finetune.{name}" for name in ("method", *COSTS))]
        inputs = {"start": fingerprint(start)}
        if card is not None:
            inputs["dataset"] = card["fingerprint"]
        return _without_sessions(_key(loaded.slice(*reads) | machine | said, inputs), "finetune")
    reads = ["run", "model", "task.kind"]
    section = "train" if experiment.train else "finetune"
    if (experiment.train or experiment.finetune) is not None:
        reads += [f"{section}.{name}" for name in COSTS]
        if section == "finetune":
            reads.append("finetune.method")
    if card is not None:
        notes = files.hash_bytes(files.json_bytes(card.get("notes")))
        inputs = {"dataset": card["fingerprint"], "notes of the dataset": notes}
    else:
        reads += [
            f"data.encode.{name}" for name in ("as_", "like", "like_model", "tokenizer", "template", "game")
        ]
        inputs = {str(path): files.hash_file(path) for path in experiment.data.encode.files()}
    return _without_sessions(_key(loaded.slice(*reads) | machine | said, inputs), section)


def fit(loaded: Loaded, section: str, inputs: dict[str, str]) -> Key:
    """The key of `train` or `finetune`; inputs: the dataset, and what finetune starts from.

    The suites that finetune asks before and after are not in it: nothing is trained again for a new question.
    """
    return _without_sessions(_key(loaded.slice(*READS[section]), inputs), section)


def _without_sessions(key: Key, section: str) -> Key:
    """The key without the wall time of a session: how often training paused changes nothing."""
    budget = (key["config"].get(section) or {}).get("budget") or {}
    if any(budget.get(unit) is not None for unit in ("steps", "epochs", "tokens")):
        budget["time"] = None
    return key


def evaluate(
    loaded: Loaded,
    dataset: Dataset,
    weights: str,
    other: Path | None,
    hash_file: HashFile,
) -> Key:
    """The key of `evaluate`. weights: the fingerprint of what is scored. other: the evaluation that it is
    compared with. Predictions name the file and line of each row, which training does not read."""
    inputs = {"dataset": dataset.fingerprint, "origin of the rows": origin(dataset.card), "weights": weights}
    for path in [path for suite in loaded.experiment.evaluate.suites for path in suite.files()]:
        if not path.is_file():
            raise ConfigError(f"evaluate.suites: {path}: no such file")
        inputs[str(path)] = hash_file(path)
    if other is not None:
        paths = [other / name for name in (compare.REPORT, compare.PREDICTIONS)]
        inputs |= {str(path): hash_file(path) for path in paths}
    return _key(loaded.slice(*READS["evaluate"]), inputs)


def _key(config: dict[str, Any], inputs: dict[str, str]) -> Key:
    return {"config": config, "inputs": inputs, "code": code_version()}


def _machine(device_name: Any, precision_name: Any) -> dict[str, Any]:
    """What `auto` means here, and how much memory a model must fit into."""
    device = resolve_device(device_name)
    precision = resolve_precision(precision_name, device)
    return {"device": device.type, "precision": precision.name, "memory": memory_bytes(device)}
