"""What `describe` describes: the model an experiment would build, or the one in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmtool.core.contracts import InputSpec, NextToken, OutputSpec, Tokens
from llmtool.core.devices import memory_bytes, resolve_device, resolve_precision
from llmtool.core.errors import DataError
from llmtool.data.store import Dataset, input_spec
from llmtool.experiment import Experiment
from llmtool.models import pretrained
from llmtool.models.forms import huggingface
from llmtool.stages.checkpoints import about_checkpoint
from llmtool.stages.describe import Subject, expected_inputs
from llmtool.tasks import default_task

ROWS = 32  # of a forward pass, where the file leaves the batch to `auto` and the data is not known


def of_experiment(experiment: Experiment, card: dict[str, Any] | None, auto: str = "") -> Subject:
    """The model that `train` would build, on the meta device; card: of the data, if it is prepared.

    auto: why this model was chosen, where the file leaves that open; before the data is prepared none is.
    """
    device = resolve_device(experiment.device)
    precision = resolve_precision(experiment.precision, device)
    fit = experiment.train or experiment.finetune
    config, assumed = (None if experiment.model == "auto" else experiment.model), []
    if card is not None:
        inputs: InputSpec | None = input_spec(card["inputs"])
        outputs: OutputSpec | None = (experiment.task or default_task(card["targets"])).outputs(
            card["targets"]
        )
    else:
        inputs, note = expected_inputs(experiment.data.encode)
        assumed = [note] if note else []
        outputs = (
            NextToken(inputs.vocabulary) if isinstance(inputs, Tokens) and inputs.length is None else None
        )
    model: nn.Module | None = None
    if config is not None and inputs is not None and outputs is not None:
        with torch.device("meta"):
            model = config.build(inputs, outputs)
    batch = next((b for b in (fit.micro_batch, fit.batch) if b != "auto"), ROWS) if fit else ROWS
    return Subject(
        name=experiment.run,
        config=config,
        model=model,
        card=card,
        rows=batch,
        precision=precision.name,
        optimizer=fit.optimizer.name if fit else "adamw",
        device=device.type,
        checkpointing=fit.activation_checkpointing if fit else "auto",
        fit=fit,
        device_bytes=memory_bytes(device),
        assumed=assumed,
        auto=auto,
    )


def of_checkpoint(directory: Path) -> Subject:
    """The model of a checkpoint directory, from its two cards alone: no weights are read. What is said of its
    data needs the dataset it learned from where it was, as it was."""
    about = about_checkpoint(directory)
    with huggingface.through((about.base or {}).get("through")):
        model: Any = pretrained.skeleton(Path(about.base["path"]) if about.base else directory)
    device = resolve_device("auto")
    return Subject(
        name=str(directory),
        config=model.config,
        model=model,
        card=about.card | {"notes": [], "splits": _splits(about.dataset)},
        rows=ROWS,
        precision=resolve_precision("auto", device).name,
        optimizer="adamw",
        device=device.type,
        device_bytes=memory_bytes(device),
    )


def _splits(dataset: dict[str, str] | None) -> dict[str, Any]:
    if dataset is None:
        return {}
    try:
        found = Dataset.open(dataset["path"])
    except (DataError, KeyError, TypeError):
        return {}
    return found.card["splits"] if found.fingerprint == dataset.get("fingerprint") else {}
