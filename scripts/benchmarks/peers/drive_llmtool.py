"""Runs `llmtool train` on a setting of `run.py`, or on a file of ours, in this process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import yaml
from measure import Job, Marks, answer, validation_loss

from llmtool.commands import Options, prepare, train
from llmtool.training.loop import Loop


def experiment(job: Job) -> dict[str, Any]:
    """The setting as a YAML file of ours."""
    s = job.setting
    keys = ("architecture", "depth", "heads", "width", "context", "key_value_heads", "feed_forward")
    model = {"family": "transformer", **{key: s[key] for key in keys if key in s}}
    model["tie_embeddings"] = s["architecture"] == "gpt2"
    optimizer = {"name": "adamw", "lr": s["rate"], "betas": [0.9, 0.99], "weight_decay": 0.1}
    fit = {"budget": {"steps": s["steps"]}, "batch": s["batch"], "micro_batch": s["micro"], "clip": 1.0}
    fit |= {"schedule": {"name": "cosine", "warmup": s["warmup"], "final": 0.1}, "optimizer": optimizer}
    fit |= {f"{what}_every": s["steps"] for what in ("validate", "checkpoint")}
    fit |= {"log_every": s["log"], "compile": job.variant == "compile"}
    return {"precision": s["precision"], "model": model, "train": fit}


def source(job: Job) -> dict[str, Any]:
    """The same text as the peers', from its two files."""
    paths = {"train": str(job.data / "train.txt"), "validation": str(job.data / "val.txt")}
    encode = {"as": "tokens", "tokenizer": {"kind": "characters"}}
    return {"source": {"format": "text", "path": paths, "documents": "file"}, "encode": encode}


def watched(marks: Marks, seen: list[dict[str, float]]) -> list[Any]:
    """Have the loop mark its steps and its validations; the list comes to hold its model."""
    update, whole, models = Loop._update, Loop.run, []

    def marked(self: Loop, *arguments: Any) -> Any:
        found = update(self, *arguments)
        marks.step()
        return found

    def run(self: Loop, state: Any) -> str:
        models.append(self.model)
        record = self.verbs.record

        def told(row: dict[str, Any]) -> None:
            record(row)
            if "validation" in row:
                seconds = time.perf_counter() - marks.job.began
                seen.append({"step": row["step"], "loss": row["validation"]["loss"], "seconds": seconds})

        self.verbs.record = told
        return whole(self, state)

    Loop._update, Loop.run = marked, run
    return models


def main() -> None:
    """Prepare, train, score."""
    job = Job()
    setting = job.setting
    if (file := setting.get("file")) is not None:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        content["train"] |= {"budget": {"steps": setting["steps"]}, "validate_every": setting["validate"]}
        content["model"] |= setting["model"]
        content["train"] |= setting["train"]
        content["precision"] = setting["precision"]
    else:
        content = experiment(job)
    content |= {"run": str(job.out / "run"), "device": job.device, "data": source(job)}
    config = job.out / "experiment.yaml"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    seen: list[dict[str, float]] = []
    marks = Marks(job)
    models = watched(marks, seen)
    prepare.run(Options(str(config)))
    if job.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result = train.run(Options(str(config)))
    model = models[-1].eval()
    lower = torch.autocast(job.device, torch.bfloat16, enabled=content.get("precision") == "bf16")

    def logits(ids: Any) -> Any:
        with lower:
            return model(ids)

    found = {**marks.figures(), "loss": validation_loss(job, logits), "validations": seen}
    answer({**found, "throughput": result["throughput"], "notes": result["notes"]})


if __name__ == "__main__":
    main()
