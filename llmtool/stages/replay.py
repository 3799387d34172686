"""Makes a step again whose update was refused, from its bundle, and tries what the update would have done."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from llmtool.core import files
from llmtool.core.errors import ConfigError, DataError
from llmtool.stages.assemble import Assembled
from llmtool.stages.divergence import ROWS, read
from llmtool.stages.fit import Progress, at_checkpoint
from llmtool.stages.settings import few_threads, threads
from llmtool.training import TrainConfig
from llmtool.training.loop import Loop
from llmtool.training.replay import TINY, replay, row_losses, worst

SHOWN = 10  # rows


def again(
    assembled: Assembled, config: TrainConfig, bundle: str, progress: Progress, flops_per_row: float | None
) -> dict[str, Any]:
    """Make the step of a bundle again with this model, data and config; nothing is written.

    Returns step, says and why as the bundle has them; then and now: loss and norm; same: whether they are
    equal to the last bit (or both not finite); layers: parameter -> norm of its gradient; rows: the worst,
    each with its loss before and after the update; update: the mean of all rows' losses before and after it,
    None where the gradient is not finite. Raises ConfigError where the config makes another batch of it,
    DataError where the rows are not those of then.
    """
    about = read(bundle)
    if about["dataset"]["fingerprint"] != assembled.dataset.fingerprint:
        raise DataError(f"--replay {bundle}: {assembled.dataset.directory} has other rows than then")
    if about["seed"] != assembled.seed:
        raise ConfigError(f"seed: {assembled.seed}; the step was made with {about['seed']}")
    loop, settled = at_checkpoint(assembled, config, Path(bundle), progress, flops_per_row)
    if loop.plan.batch != about["batch"]:
        raise ConfigError(f"batch: {loop.plan.batch}; the step had {about['batch']} rows")
    step = about["step"] - 1
    with threads(few_threads(settled, flops_per_row, assembled.device)):
        made = replay(loop, step)
        after = _after(loop, step, about["progress"], made.count, made.norm)
    now = files.plain({"loss": made.loss, "norm": made.norm})
    then = {"loss": about["loss"], "norm": about["norm"]}
    kept = [json.loads(line) for line in files.read_lines(Path(bundle) / ROWS)]
    known = {row["at"]: row for row in kept}
    rows = [
        {**known[at], "loss": made.losses[at], "after": after[at] if after else None}
        for at in worst(made.losses)[:SHOWN]
    ]
    return files.plain(
        {
            "step": about["step"],
            "why": about["why"],
            "says": about["says"],
            "then": then,
            "now": now,
            "same": then == now,
            "layers": dict(sorted(made.norms.items(), key=_largest)),
            "rows": rows,
            "update": {"before": _mean(made.losses), "after": _mean(after)} if after else None,
        }
    )


def _after(loop: Loop, step: int, progress: float, count: float, norm: float) -> list[float] | None:
    """(batch,) the loss of each row after the update; None where there is no update to make."""
    if not math.isfinite(norm):
        return None
    divisor = loop.clipped(max(count, TINY), norm)
    loop.optimizers.set_rate(loop.schedule.factor(step, loop.plan.steps, progress))
    loop.optimizers.step(torch.tensor(divisor, dtype=torch.float32, device=loop.device))
    return row_losses(loop, step)


def _largest(entry: tuple[str, float]) -> float:
    return -entry[1] if math.isfinite(entry[1]) else -math.inf


def _mean(losses: list[float]) -> float:
    return sum(losses) / len(losses)
