"""Runs nanoGPT's train.py, as it stands in a checkout of it, on a setting of `run.py`."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from measure import Job, Marks, answer, validation_loss


def options(job: Job) -> dict[str, Any]:
    """train.py's own keys. It makes one step more than `max_iters`, and validates once before the first."""
    s = job.setting
    return {
        "dataset": job.data.resolve(),
        "out_dir": job.out.resolve(),
        "device": job.device,
        "dtype": "bfloat16" if s["precision"] == "bf16" else "float32",
        "compile": job.variant == "compile",
        "eval_iters": 1,
        "eval_interval": 10**9,
        "log_interval": s["log"],
        "gradient_accumulation_steps": job.accumulate,
        "batch_size": s["micro"],
        "block_size": s["context"],
        "n_layer": s["depth"],
        "n_head": s["heads"],
        "n_embd": s["width"],
        "bias": True,
        "dropout": 0.0,
        "learning_rate": s["rate"],
        "min_lr": s["rate"] / 10,
        "max_iters": s["steps"] - 1,
        "lr_decay_iters": s["steps"],
        "warmup_iters": s["warmup"],
        "beta2": 0.99,
    }


def main() -> None:
    """Train, then score."""
    job = Job()
    assert job.program is not None
    assert job.setting["architecture"] == "gpt2", "nanoGPT has GPT-2's blocks only"
    marks = Marks(job)
    marks.hook()
    sys.path.insert(0, job.program)
    sys.argv = ["train.py", *(f"--{key}={value}" for key, value in options(job).items())]
    os.chdir(job.program)
    made = runpy.run_path("train.py")
    model, context = made["raw_model"], made["ctx"]
    model = getattr(model, "_orig_mod", model).eval()

    def logits(ids: Any) -> Any:
        with context:
            return model(ids, ids)[0]  # without targets it gives the last position only

    answer({**marks.figures(), "loss": validation_loss(job, logits)})


if __name__ == "__main__":
    main()
