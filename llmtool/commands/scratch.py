"""The experiment that a rehearsal or a proof runs in place of the file's: the same, but aside and shorter."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmtool.commands import Scratch
from llmtool.data import PICTURES
from llmtool.data.sampling import sampled
from llmtool.experiment import Experiment, Loaded
from llmtool.training import Budget

FEWER = 50  # a table that names pictures is read so many times less: each has to be decoded
QUESTIONS = 4  # of each suite that a rehearsal asks
MORE_BAD = 1.5  # a part of the rows may by chance have so many times the bad ones of the whole


def derive(loaded: Loaded, scratch: Scratch) -> Loaded:
    """The experiment with the results, the amount of data and the steps of `scratch`; places stay the file's.

    Whatever the file says of its own run (`finetune.start: runs/iris/train`) is meant of the scratch run,
    where the file has the section that makes it. Raises DataError for a source without files.
    """
    old = loaded.experiment
    updates: dict[str, Any] = {"run": scratch.run}
    if scratch.characters is not None:
        tables = old.data.encode.as_ == "images" and old.data.source.format not in PICTURES
        source = sampled(old.data.source, scratch.characters // (FEWER if tables else 1))
        data: dict[str, Any] = {"source": source}
        scratch.samples.append(source._sample)
        if not scratch.samples[-1].whole:
            data["max_bad"] = min(1.0, MORE_BAD * old.data.max_bad)
        updates["data"] = old.data.model_copy(update=data)
    for name, keys in scratch.fit.items():
        if (section := getattr(old, name)) is not None:
            budget = {"budget": Budget(**keys["budget"])} if "budget" in keys else {}
            updates[name] = section.model_copy(update={**keys, **budget})
    if not scratch.chain:
        return replace(loaded, experiment=old.model_copy(update=updates))
    if (tuned := updates.get("finetune", old.finetune)) is not None:
        updates["finetune"] = tuned.model_copy(update={"start": moved(old.start, old, scratch.run)})
    updates["evaluate"] = old.evaluate.model_copy(update=_evaluate(old, scratch))
    return replace(loaded, experiment=old.model_copy(update=updates))


def _evaluate(old: Experiment, scratch: Scratch) -> dict[str, Any]:
    updates: dict[str, Any] = {}
    of, samples = old.evaluate.of, old.evaluate.samples
    if of is None and old.train is None and old.finetune is None:  # the model of an earlier file of this run
        train = Path(old.run) / "train"
        of = str(train) if (train / "best").exists() else None
    if of is not None:
        updates["of"] = moved(of, old, scratch.run)
    if samples is not None and scratch.sample_tokens is not None:
        fewer = min(samples.tokens, scratch.sample_tokens)
        updates["samples"] = samples.model_copy(update={"tokens": fewer, "count": 1})
    updates["suites"] = [suite.fewer(QUESTIONS) for suite in old.evaluate.suites]
    return updates


def moved(path: str, old: Experiment, run: str) -> str:
    """A place inside the file's own run as the same place inside `run`, where the file has what makes it."""
    inside = os.path.relpath(os.path.realpath(path), os.path.realpath(old.run)).split(os.sep)
    stage = "train" if inside == ["."] else inside[0]
    if stage not in ("train", "finetune") or getattr(old, stage) is None:
        return path
    whole = inside == ["."] or inside[1:2] in (["checkpoints"], ["best"], ["last"])
    return str(Path(run, *([] if inside == ["."] else [stage] if whole else inside)))
