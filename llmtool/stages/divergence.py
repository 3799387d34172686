"""What is kept of an update that was not made: the step's rows, figures, weights; how to make it again.

<stage>/divergence/step-00000120/   a checkpoint like any other: the weights before update 120
    bundle.json   what was seen: loss, gradient norm by parameter, the losses before, seeds, the command
    rows.jsonl    the rows of that step, the worst first: where they stand, their loss, what they hold
    state/        the optimizer
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmtool.core import checkpoint, files
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.data.batches import Batches
from llmtool.stages.assemble import Assembled
from llmtool.training.loop import Plan, State
from llmtool.training.replay import Refused, worst

DIRECTORY, BUNDLE, ROWS = "divergence", "bundle.json", "rows.jsonl"
KEPT = 3  # newest bundles; each holds a whole model
DECODED = 256  # rows of a bundle whose contents are written out


def write(
    parent: Path,
    update: Refused,
    plan: Plan,
    state: State,
    assembled: Assembled,
    train: Batches,
    save: Callable[[Path], None],
    command: str,
) -> Path:
    """Write the bundle of an update into `parent`, older ones go; returns where it is.

    save: writes weights and optimizer. command: the one that trains, as it was given. LlmtoolError where the
    disk is full or broken.
    """
    name = checkpoint.step_name(update.step)
    place = parent / name
    files.remove_tree(place)  # of an earlier session, which went through this step too
    first = (update.step - 1) * plan.batch
    about = {
        "format": 1,
        "says": update.says,
        "replay": f"{command} --replay {place}",
        "step": update.step,
        "why": update.why,
        "loss": update.loss,
        "norm": update.norm,
        "limit": update.limit,
        "recent": update.recent,
        "again": {"loss": update.again.loss, "norm": update.again.norm},
        "layers": dict(sorted(update.again.norms.items(), key=lambda one: -one[1])),
        "batch": plan.batch,
        "micro_batch": plan.micro_batch,
        "first": first,
        "seed": plan.seed,
        "seeds": update.again.seeds,
        "progress": state.step / plan.steps if plan.steps else state.seconds / (plan.seconds or 1.0),
        "dataset": {"path": str(assembled.dataset.directory), "fingerprint": assembled.dataset.fingerprint},
        "device": str(assembled.device),
        "precision": assembled.precision.name,
    }
    rows = [
        json.dumps(files.plain(row), ensure_ascii=False) for row in _rows(update, first, assembled, train)
    ]

    def fill(directory: Path) -> None:
        save(directory)
        files.write_json(directory / BUNDLE, about)
        files.write_text(directory / ROWS, "\n".join([*rows, ""]))

    checkpoint.save(parent, name, fill)
    checkpoint.prune(parent, {path.name for path in checkpoint.steps(parent)[-KEPT:]})
    return place


def read(directory: str) -> dict[str, Any]:
    """What a bundle says; every file is checked. ConfigError where there is none."""
    path = Path(directory)
    if not (path / BUNDLE).is_file():
        raise ConfigError(f"--replay {directory}: no refused update here (no {BUNDLE} in it)")
    checkpoint.verify(path)
    about: dict[str, Any] = files.read_json(path / BUNDLE)
    if not isinstance(about, dict) or about.get("format") != 1:
        raise LlmtoolError(f"{path / BUNDLE}: not a bundle of this version")
    return about


def forget_after(parent: Path, step: int) -> None:
    """Remove the bundles of updates that a run which goes on from `step` has still before it."""
    kept = {path.name for path in checkpoint.steps(parent) if (checkpoint.step_of(path) or 0) <= step}
    checkpoint.prune(parent, kept)


def _rows(update: Refused, first: int, assembled: Assembled, train: Batches) -> list[dict[str, Any]]:
    losses, found = update.again.losses, []
    for rank, at in enumerate(worst(losses)):
        row = {"row": train.where(first + at, 1)[0], "at": at, "loss": losses[at]}
        found.append(row | (assembled.decoded(first + at, 1)[0] if rank < DECODED else {}))
    return found
