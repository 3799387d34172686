"""Models for pictures in the parity table: logits of classes, and the features of bodies without a head."""

from __future__ import annotations

import json
import shutil
from typing import Any

import torch
from torch import Tensor

from llmtool.models import pretrained
from tests.models.parity.pair import Family, Pair, largest

SIDE, PATCH, CLASSES = 16, 4, 3


def pictures(height: int = SIDE, width: int = SIDE) -> Tensor:
    """(3, 3, height, width), the same each time."""
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(pair: Pair) -> float:
    """Pictures of the size that the checkpoint was made for."""
    return largest(pair.ours(pictures()), pair.theirs(pictures()).logits)


@torch.no_grad()
def other_size(pair: Pair) -> float:
    """Larger, and not square: positions are interpolated where there are any."""
    asked = {"interpolate_pos_encoding": True} if pair.theirs.config.model_type in ("vit", "deit") else {}
    inputs = pictures(24, 32)
    return largest(pair.ours(inputs), pair.theirs(inputs, **asked).logits)


@torch.no_grad()
def features(pair: Pair) -> float:
    """What the body gives for each patch or pixel, and what it makes of the picture."""
    found = getattr(pair.theirs, pair.theirs.base_model_prefix)(pictures())
    ours: Any = pair.ours
    return largest(ours.hidden(pictures()), found.last_hidden_state)


@torch.no_grad()
def body(pair: Pair) -> float:
    """A directory of the body alone, whose names begin otherwise: what a head would read."""
    directory = pair.directory / "body"
    directory.mkdir(exist_ok=True)
    theirs = getattr(pair.theirs, pair.theirs.base_model_prefix)
    theirs.save_pretrained(directory)
    ours: Any = pretrained.load(directory).eval()
    assert ours.outputs is None
    found = theirs(pictures())
    if pair.theirs.config.model_type in ("vit", "deit"):  # their pooler is for other heads
        return largest(ours(pictures()), found.last_hidden_state[:, 0])
    if pair.theirs.config.model_type.startswith("dinov2"):
        patches = found.last_hidden_state[:, 1 + getattr(pair.theirs.config, "num_register_tokens", 0) :]
        return largest(ours(pictures()), torch.cat((found.pooler_output, patches.mean(dim=1)), dim=1))
    return largest(ours(pictures()), found.pooler_output.flatten(1))


@torch.no_grad()
def short(pair: Pair) -> float:
    """A configuration that leaves out what transformers takes to be so anyway."""
    directory = pair.directory / "short"
    directory.mkdir(exist_ok=True)
    shutil.copy(pair.directory / "model.safetensors", directory)
    data, usual = pair.theirs.config.to_dict(), type(pair.theirs.config)().to_dict()
    kept = {key: value for key, value in data.items() if usual.get(key, ...) != value}
    kept |= {"model_type": data["model_type"], "architectures": [type(pair.theirs).__name__]}
    (directory / "config.json").write_text(json.dumps(kept))
    return largest(pretrained.load(directory).eval()(pictures()), pair.theirs(pictures()).logits)


@torch.no_grad()
def saved(pair: Pair) -> float:
    """What we save of it, loaded by transformers."""
    import transformers

    directory = pair.directory / "ours"
    directory.mkdir(exist_ok=True)
    pretrained.save(pair.ours, directory)
    auto = transformers.AutoModelForImageClassification
    again, info = auto.from_pretrained(directory, output_loading_info=True)
    assert type(again) is type(pair.theirs)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return largest(again.eval()(pictures()).logits, pair.theirs(pictures()).logits)


@torch.no_grad()
def training(pair: Pair) -> float:
    """Norms over the batch: the logits in training, and in evaluation after it."""
    try:
        found = largest(pair.ours.train()(pictures()), pair.theirs.train()(pictures()).logits)
    finally:
        pair.ours.eval(), pair.theirs.eval()
    return max(found, logits(pair))


CASES = {"logits": logits, "features": features, "other size": other_size, "body alone": body}
CASES |= {"short config": short, "saved": saved}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"image_size": SIDE, "patch_size": PATCH, "num_labels": CLASSES}
STAGES = {"embedding_size": 4, "hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "num_labels": CLASSES}


def _family(name: str, config: dict[str, Any], auto: str = "AutoModelForImageClassification") -> Family:
    cases = CASES | ({"training": training} if config["model_type"] == "resnet" else {})
    return Family(name, config, auto, cases)


VISION = (
    _family("vit", {"model_type": "vit", **SIZES, "intermediate_size": 24}),
    _family(
        "deit", {"model_type": "deit", **SIZES, "intermediate_size": 24}, "DeiTForImageClassification"
    ),
    _family(
        "deit, two heads",
        {"model_type": "deit", **SIZES, "intermediate_size": 24},
        "DeiTForImageClassificationWithTeacher",
    ),
    _family("dinov2", {"model_type": "dinov2", **SIZES, "layerscale_value": 0.5}),
    _family("dinov2, giant", {"model_type": "dinov2", **SIZES, "use_swiglu_ffn": True}),
    _family(
        "dinov2, registers", {"model_type": "dinov2_with_registers", **SIZES, "num_register_tokens": 3}
    ),
    _family("resnet, basic", {"model_type": "resnet", **STAGES, "layer_type": "basic"}),
    _family("resnet, bottleneck", {"model_type": "resnet", **STAGES}),
    _family(
        "convnext",
        {"model_type": "convnext", "hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "num_stages": 3,
         "num_labels": CLASSES, "layer_norm_eps": 1e-5},
    ),
)  # fmt: skip
