"""What a rehearsal says of the real run: four-bit bases fit where whole ones do not."""

import pytest

from llmtool.core.errors import MemoryLimitError
from llmtool.models.adapters import LoRAConfig
from llmtool.stages.describe import Subject, describe
from llmtool.stages.forecast import Fitting, four_bits_save, refuse_memory
from llmtool.training import TrainConfig
from tests.models.small import transformer


def described(model, device_bytes=None):
    return describe(Subject("a", model.config, model, None, 1, "fp32", "adamw", device_bytes=device_bytes))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_four_bits_save_what_quantising_saves(architecture):
    pytest.importorskip("bitsandbytes")
    whole, packed = transformer(architecture), transformer(architecture)
    expected = four_bits_save(described(whole)["structure"])
    LoRAConfig(rank=1, quantise="nf4").quantise_base(packed, next(packed.parameters()).device)
    saved = described(whole)["memory"]["weights"] - described(packed)["memory"]["weights"]
    assert saved == pytest.approx(expected, rel=0.03)  # biases are counted in and stay whole
    assert described(packed)["parameters"]["total"] == described(whole)["parameters"]["total"]


def test_a_model_that_fits_in_four_bits_alone_is_not_refused():
    model = transformer("llama")
    weights = described(model)["memory"]["weights"]
    config = TrainConfig(budget={"steps": 1}, batch=1, micro_batch=1)
    fit = Fitting(config, 1, 16, 1, 1, 0.0)
    description = described(model, device_bytes=weights)
    description["memory"]["activations"] = 0
    with pytest.raises(MemoryLimitError, match="the device has"):
        refuse_memory(description, fit, "finetune", "lora")
    assert refuse_memory(description, fit, "finetune", "lora", quantised=True)["needed"] < weights / 2
