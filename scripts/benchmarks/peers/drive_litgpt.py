"""Runs litgpt's pretraining on a setting of `run.py`; it compiles the model, as it always does.

litgpt has no learned positions: for a setting with GPT-2's blocks it gets the same block with rotary ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from litgpt import Config, pretrain
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from measure import Job, Marks, answer, validation_loss
from torch.utils.data import DataLoader


def shape(job: Job) -> Config:
    """The model of the setting in litgpt's words."""
    s = job.setting
    sizes = {"n_layer": s["depth"], "n_head": s["heads"], "n_embd": s["width"], "block_size": s["context"]}
    sizes |= {"vocab_size": s["vocabulary"], "padded_vocab_size": s["vocabulary"], "rotary_percentage": 1.0}
    if s["architecture"] == "gpt2":
        return Config(name="gpt2 with rotary positions", parallel_residual=False, **sizes)
    llama = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "bias": False}
    sizes |= {"n_query_groups": s["key_value_heads"], "intermediate_size": s["feed_forward"]}
    return Config(name="llama", parallel_residual=False, **llama, **sizes)


class Text(DataModule):
    """The setting's text."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int = -1) -> None:
        """litgpt says how large a micro-batch is."""
        self.batch = batch_size

    def train_dataloader(self) -> Any:
        """Shuffled windows."""
        return DataLoader(self.job.windows(), self.batch, shuffle=True, drop_last=True)

    def val_dataloader(self) -> Any:
        """Windows in order; litgpt looks at two batches before it begins."""
        return DataLoader(self.job.windows("val"), self.batch)


def main() -> None:
    """Train, then score."""
    job = Job()
    s = job.setting
    marks, kept = Marks(job), []
    marks.hook()
    whole = pretrain.fit

    def fit(*given: Any, **named: Any) -> None:
        kept.append(named["state"]["model"])
        whole(*given, **named)

    # what follows training, a checkpoint, is in no figure; it would read the options of litgpt's command
    pretrain.fit, pretrain.save_checkpoint = fit, lambda *given, **named: None
    pretrain.capture_hparams = dict
    pretrain.setup(
        model_name="a model of its own",
        model_config=shape(job),
        out_dir=Path(job.out),
        precision="bf16-mixed" if s["precision"] == "bf16" else "32-true",
        data=Text(job),
        train=TrainArgs(
            save_interval=None,
            log_interval=s["log"],
            global_batch_size=s["batch"],
            micro_batch_size=s["micro"],
            max_tokens=s["steps"] * s["batch"] * s["context"],
            max_norm=1.0,
            min_lr=s["rate"] / 10,
            lr_warmup_steps=s["warmup"],
            tie_embeddings=s["architecture"] == "gpt2",
        ),
        eval=EvalArgs(interval=10**9, max_iters=1, initial_validation=False, final_validation=False),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": s["rate"], "betas": [0.9, 0.99], "weight_decay": 0.1},
        },
        devices=1,
        logger_name="csv",
    )
    model = kept[0].eval()
    with torch.no_grad():
        answer({**marks.figures(), "loss": validation_loss(job, model)})


if __name__ == "__main__":
    main()
