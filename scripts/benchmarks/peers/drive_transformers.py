"""Runs transformers' Trainer on a setting of `run.py`, with a new model of transformers' own."""

from __future__ import annotations

from typing import Any

import torch
from measure import Job, Marks, answer, validation_loss
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)


def build(job: Job) -> Any:
    """A model with new weights."""
    s = job.setting
    torch.manual_seed(0)
    if s["architecture"] == "gpt2":
        sizes = {"n_layer": s["depth"], "n_head": s["heads"], "n_embd": s["width"]}
        none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=s["vocabulary"], n_positions=s["context"], **sizes, **none)
        )
    sizes = {"num_hidden_layers": s["depth"], "num_attention_heads": s["heads"], "hidden_size": s["width"]}
    sizes |= {"num_key_value_heads": s["key_value_heads"], "intermediate_size": s["feed_forward"]}
    sizes |= {"vocab_size": s["vocabulary"], "max_position_embeddings": s["context"]}
    return LlamaForCausalLM(LlamaConfig(use_cache=False, tie_word_embeddings=False, **sizes))


class Rows(torch.utils.data.Dataset):
    """Windows as the Trainer takes them; the model shifts the labels itself: the last token has no target."""

    def __init__(self, job: Job) -> None:
        self.windows = job.windows()

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.windows[index][:-1]
        return {"input_ids": ids, "labels": ids}


def main() -> None:
    """Train, then score."""
    job = Job()
    s, cuda = job.setting, job.device == "cuda"
    marks = Marks(job)
    marks.hook()
    arguments = TrainingArguments(
        output_dir=str(job.out),
        max_steps=s["steps"],
        per_device_train_batch_size=s["micro"],
        gradient_accumulation_steps=job.accumulate,
        learning_rate=s["rate"],
        lr_scheduler_type="cosine",
        warmup_steps=s["warmup"],
        weight_decay=0.1,
        adam_beta2=0.99,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=s["precision"] == "bf16",
        use_cpu=not cuda,
        torch_compile=job.variant == "compile",
        dataloader_pin_memory=cuda,
        dataloader_drop_last=True,
        logging_steps=s["log"],
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model=build(job), args=arguments, train_dataset=Rows(job))
    trainer.train()
    model = trainer.model.eval()
    lower = torch.autocast(job.device, torch.bfloat16, enabled=s["precision"] == "bf16")

    def logits(ids: Any) -> Any:
        with lower:
            return model(input_ids=ids).logits

    answer({**marks.figures(), "loss": validation_loss(job, logits)})


if __name__ == "__main__":
    main()
