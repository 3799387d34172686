"""What a rehearsal says of the real run: four-bit bases fit where whole ones do not."""

import pytest

from llmtool.core.errors import MemoryLimitError
from llmtool.experiment import FinetuneConfig
from llmtool.models.accounting import HELD
from llmtool.models.adapters import LoRAConfig
from llmtool.stages.describe import Subject, cost_rows, describe
from llmtool.stages.forecast import DescribedRoom, Fitting, four_bits_save, refuse_memory
from llmtool.stages.room import fewest_recomputed
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


def fitting_of(config):
    return Fitting(config.model_copy(update={"activation_checkpointing": 0}), 1, 16, 1, 1, 0.0)


def test_a_model_that_fits_in_four_bits_alone_is_not_refused():
    model = transformer("llama")
    weights = described(model)["memory"]["weights"]
    keys = {"start": "x", "budget": {"steps": 1}, "batch": 1, "micro_batch": 1}
    whole, packed = (
        fitting_of(FinetuneConfig(**keys, method={"kind": "lora", "rank": 1, "quantise": kind}))
        for kind in ("none", "nf4")
    )
    description = described(model, device_bytes=weights)
    description["memory"]["activations_by_recomputed"] = [0, 0, 0]
    with pytest.raises(MemoryLimitError, match=r"does not fit in .*: a smaller model is needed"):
        refuse_memory(description, whole, "finetune")
    assert refuse_memory(description, packed, "finetune")["needed"] < weights / 2


def test_a_description_says_how_many_blocks_are_recomputed_where_all_do_not_fit():
    model = transformer("llama")
    roomy = described(model)["memory"]
    kept = roomy["activations_by_recomputed"]
    assert roomy["recomputed"] == 0
    assert roomy["activations"] == kept[0] > kept[1] > kept[2]
    tight = described(model, device_bytes=int((roomy["total"] - HELD["cpu"] * (kept[0] - kept[1])) / 0.9) + 2)
    assert tight["memory"]["recomputed"] == 1
    assert tight["memory"]["activations"] == kept[1]
    assert tight["memory"]["fits"]
    assert tight["flops"]["row_again"] > 0
    assert dict(cost_rows(tight))["  activations"].endswith(", 1 of 2 blocks recomputed")
    room = DescribedRoom(tight, "full", quantised=False)
    assert (room.blocks, fewest_recomputed(room, 1)) == (2, 1)
    assert room.needs(1, 1).total == tight["memory"]["total"]
    assert DescribedRoom(tight, "head", quantised=False).blocks == 0
