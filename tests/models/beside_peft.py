"""Methods of low-rank updates, PEFT's model of each, and the gradients of both."""

import pytest
import torch
import torch.nn.functional as F

from llmtool.models import lora, pretrained
from llmtool.models.adapters import LoRAConfig
from tests.models.small import ids

METHODS = {
    "lora": LoRAConfig(rank=3, alpha=7.5),
    "rank stabilised": LoRAConfig(rank=3, alpha=7.5, scaling="rank_stabilised"),
    "dora": LoRAConfig(rank=3, dora=True),
    "dora rank stabilised": LoRAConfig(rank=3, dora=True, scaling="rank_stabilised"),
    "pissa": LoRAConfig(rank=3, init="pissa"),
    "pissa rank stabilised": LoRAConfig(rank=3, init="pissa", scaling="rank_stabilised"),
}
METHOD = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
ARCHITECTURE = pytest.mark.parametrize("architecture", ["gpt2", "llama"])  # weights (in, out) and (out, in)


def theirs_of(model, method, directory, dropout=0.0):
    """PEFT's own model of this method beside the same base, new."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    pretrained.save(model, directory)
    base = transformers.AutoModelForCausalLM.from_pretrained(directory)
    config = peft.LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=dropout,
        use_rslora=method.scaling == "rank_stabilised",
        use_dora=method.dora,
        init_lora_weights="pissa" if method.init == "pissa" else True,
        target_modules="all-linear",
        fan_in_fan_out=model.config.architecture == "gpt2",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(base, config)


def take(theirs, model):
    """Give our updates the values of PEFT's."""
    for name, update in lora.updates(model):
        layer = theirs.base_model.model.get_submodule(name)
        with torch.no_grad():
            update.lora_A.weight.copy_(layer.lora_A["default"].weight)
            update.lora_B.weight.copy_(layer.lora_B["default"].weight)
            if update.lora_magnitude_vector is not None:
                update.lora_magnitude_vector.copy_(layer.lora_magnitude_vector["default"].weight)


def gradients(model):
    """By the names that PEFT stores them under."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gone = [("base_model.model.", ""), (".default", ""), ("vector.weight", "vector")]
    for old, new in gone:
        found = {name.replace(old, new): gradient for name, gradient in found.items()}
    return found


def losses(model, theirs, **kwargs):
    """Loss and gradients of both on one batch."""
    targets = torch.roll(ids(), -1, dims=1)
    results = []
    for logits, one in ((model(ids()), model), (theirs(ids()).logits, theirs)):
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        results.append((loss.detach(), gradients(one)))
    return results
