"""How the pictures that a model was trained with were made: from its directory to the encoding's recipe."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from llmtool.core import hub
from llmtool.core.errors import ConfigError
from llmtool.data.images import ImagesEncoder, Scale
from llmtool.data.pictures import Recipe
from llmtool.data.store import Dataset, input_spec
from llmtool.models import preprocessing
from llmtool.models.convnet import ConvNet
from llmtool.models.convnext import ConvNeXt
from llmtool.stages import foreign
from llmtool.stages.checkpoints import Start

NEAR = 1e-3  # units of a byte: numbers that went through a file of shares of 255


def like_model(encoder: ImagesEncoder) -> None:
    """Tell the encoder size, fit and standardisation of `data.encode.like_model`, where that is given.

    ConfigError for a directory that holds no model for pictures, or does not say how they are standardised.
    """
    named = encoder.config.like_model
    if named is None:
        return
    directory = hub.local(named, weights=False)
    path = directory / preprocessing.FILE
    if not foreign.is_foreign(directory):
        raise ConfigError(f"data.encode.like_model: {named}: no model here (no config.json in it)")
    with foreign.unusable():
        card: dict[str, Any] = foreign.task_and_card(directory)[1]
        if card["inputs"]["kind"] != "images":
            raise ConfigError(f"data.encode.like_model: {directory} takes {card['encoding']}, no pictures")
        data = preprocessing.read(path)
        if data is None:
            raise ConfigError(
                f"data.encode.like_model: {path} is not there, so nothing says how its pictures were "
                "standardised"
            )
        inputs = card["inputs"]
        recipe = preparation(data, inputs["channels"], inputs["height"], inputs["width"], path)
        encoder.take(recipe, known_scale(card))


def known_scale(card: dict[str, Any]) -> Scale | None:
    """The standardisation of a card, ours or that of a model of others; None where it does not say."""
    inputs = card["inputs"]
    if "mean" in inputs:
        return inputs["mean"], inputs["std"]
    return scale_of(card["encoder"].get("standardisation"), inputs["channels"])


def refuse_other_pictures(dataset: Dataset, start: Start) -> None:
    """ConfigError where the dataset's pictures mean another thing to this model than its own did: channels,
    standardisation; or do not divide into its patches."""
    ours, theirs = dataset.card["inputs"], start.card["inputs"]
    use = f"set data.encode.like_model: {start.directory}"
    if ours["channels"] != theirs["channels"]:
        raise ConfigError(
            f"data.encode.channels: the pictures have {ours['channels']}, {start.directory} takes "
            f"{theirs['channels']}; {use}"
        )
    known = known_scale(start.card)
    if known is not None and not _near(known, ours):
        raise ConfigError(
            f"data.encode: the pictures are standardised by mean {ours['mean']} and deviation {ours['std']}, "
            f"{start.directory} learned from mean {_short(known[0])} and deviation {_short(known[1])}; {use}"
        )
    patch = getattr(getattr(start.model, "config", None), "patch", None)
    if isinstance(patch, int) and (ours["height"] % patch or ours["width"] % patch):
        raise ConfigError(
            f"data.encode.size: pictures of {ours['height']} x {ours['width']} pixels do not divide into the "
            f"patches of {patch} that {start.directory} takes; {use}"
        )


def _short(values: list[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _near(scale: Scale | None, inputs: dict[str, Any]) -> bool:
    return scale is not None and all(
        math.isclose(a, b, rel_tol=1e-4, abs_tol=NEAR)
        for one, other in zip(scale, (inputs["mean"], inputs["std"]), strict=True)
        for a, b in zip(one, other, strict=True)
    )


def say_how_prepared(model: nn.Module, card: dict[str, Any]) -> None:
    """Have the saved model's preprocessor_config.json say how its pictures were made, so that others' tools
    make them so; a file that it came with and that says the same stays. A convolutional net takes the size of
    its pictures for its own."""
    any_model: Any = model
    inputs = card["inputs"]
    if isinstance(model, ConvNet | ConvNeXt):
        any_model.inputs = input_spec(inputs)
    recipe = Recipe(**card["encoder"]["recipe"])
    before = vars(model).get("preprocessing")
    if before is not None:
        path = Path(preprocessing.FILE)
        how = asdict(preprocessing.standardisation(before, path))
        same = scale_of(how, recipe.channels)
        made = preparation(before, recipe.channels, recipe.height, recipe.width, path)
        size = preprocessing.size_in(before)
        if made == recipe and size in (None, (recipe.height, recipe.width)) and _near(same, inputs):
            return
    vars(model)["preprocessing"] = document(recipe, inputs["mean"], inputs["std"])


def document(recipe: Recipe, mean: list[float], deviation: list[float]) -> dict[str, Any]:
    """preprocessor_config.json of a recipe, for those of transformers' classes that know its fit. None of
    them pads as `pad` does: the file then leaves the size to whoever prepares the pictures."""
    size = {"height": recipe.height, "width": recipe.width}
    found: dict[str, Any] = {
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [value / 255 for value in mean], "image_std": [value / 255 for value in deviation],
        "resample": recipe.resample, "do_resize": recipe.fit != "pad",
    }  # fmt: skip
    if recipe.fit != "crop":
        return found | {"image_processor_type": "ViTImageProcessor", "size": size}
    edge = recipe.edge or max(recipe.height, recipe.width)
    return found | {
        "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": edge}, "do_center_crop": True,
        "crop_size": size, "do_convert_rgb": recipe.channels == 3,
    }  # fmt: skip


def scale_of(how: dict[str, Any] | None, channels: int) -> Scale | None:
    """Mean and deviation in units of a byte, of (v * factor - mean) / deviation; None: not known."""
    if how is None:
        return None
    factor = how["factor"]
    both = [[value / factor for value in how[key]] for key in ("mean", "deviation")]
    mean, deviation = (part * channels if len(part) == 1 else part for part in both)
    if len(mean) != channels:
        raise ConfigError(f"{preprocessing.FILE} has {len(mean)} means; the model takes {channels} channels")
    return mean, deviation


def preparation(data: dict[str, Any], channels: int, height: int, width: int, path: Path) -> Recipe:
    """How preprocessor_config.json fits pictures to the model's size.

    A size of one edge is that of the shorter side, of which do_center_crop cuts the middle; crop_pct is
    timm's and ConvNeXt's name for the part of it that is kept.
    """
    size = data.get("size")
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    resample = data.get("resample", 2)
    if type(resample) is not int or not 0 <= resample <= 5:
        raise ConfigError(
            f"{path}: resample: expected a filter of Pillow's, 0 to 5 (got {str(resample)[:100]})"
        )
    if not data.get("do_resize", True):
        edge = None
    share = data.get("crop_pct")
    if isinstance(share, int | float) and 0 < share < 1 and edge is not None and edge < 384:
        edge = int(edge / share)
    if edge == height == width:
        edge = None  # a square that is covered is the same
    if data.get("do_center_crop") or (isinstance(size, dict) and "shortest_edge" in size):
        return Recipe(
            channels, height, width, "crop", edge if type(edge) is int and edge > 0 else None, resample
        )
    return Recipe(channels, height, width, "squash", None, resample)
