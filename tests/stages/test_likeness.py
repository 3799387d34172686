"""What a model's pictures were made like: read from its directory, kept to, and written again."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llmtool.core.contracts import Classes, Images
from llmtool.core.errors import ConfigError
from llmtool.data.images import ImagesEncode, ImagesEncoder
from llmtool.data.pictures import Recipe, decode
from llmtool.models import preprocessing, pretrained
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.vit import ViTConfig
from llmtool.stages.likeness import document, like_model, preparation, refuse_other_pictures, say_how_prepared
from tests.photos import file_of, noise

PATH = Path("preprocessor_config.json")
SCALE: dict[str, Any] = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
BYTES = ([127.5, 102.0, 76.5], [51.0, 63.75, 76.5])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"size": {"height": 8, "width": 8}}, Recipe(3, 8, 8, "squash")),
        ({"size": 8, "resample": 3}, Recipe(3, 8, 8, "squash", None, 3)),
        ({"size": {"shortest_edge": 10}, "do_center_crop": True}, Recipe(3, 8, 8, "crop", 10)),
        ({"size": {"shortest_edge": 8}}, Recipe(3, 8, 8, "crop")),
        ({"size": {"shortest_edge": 8}, "crop_pct": 0.5}, Recipe(3, 8, 8, "crop", 16)),
        ({"do_center_crop": True, "do_resize": False}, Recipe(3, 8, 8, "crop")),
    ],
)
def test_a_file_says_how_pictures_are_fitted(data: dict, expected: Recipe) -> None:
    assert preparation(data, 3, 8, 8, PATH) == expected


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("edge", [None, 12])
def test_what_is_written_is_read_as_the_same(fit: Any, edge: int | None) -> None:
    recipe = Recipe(3, 8, 8, fit, edge if fit == "crop" else None, 3)
    written = document(recipe, *BYTES)
    assert preparation(written, 3, 8, 8, PATH) == recipe
    how = preprocessing.standardisation(written, PATH)
    np.testing.assert_allclose(np.array(how.mean) / how.factor, BYTES[0])
    np.testing.assert_allclose(np.array(how.deviation) / how.factor, BYTES[1])
    assert preprocessing.size_in(written) == (8, 8)


@pytest.mark.parametrize(
    "recipe", [Recipe(3, 8, 8, "squash"), Recipe(3, 8, 8), Recipe(3, 8, 6, "crop", 10, 3)]
)
@pytest.mark.parametrize("shape", [(20, 31), (33, 12), (8, 8)])
def test_transformers_makes_the_same_pixels_of_what_is_written(
    tmp_path: Path, recipe: Recipe, shape: Any
) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / PATH).write_text(json.dumps(document(recipe, *BYTES)))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    values = noise(1, *shape)
    theirs = processor(Image.fromarray(values), return_tensors="np")["pixel_values"][0]
    mean, deviation = (np.array(part)[:, None, None] for part in BYTES)
    ours = (decode(file_of(values), recipe).values - mean) / deviation
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def saved(directory: Path, recipe: dict[str, Any] | None, size: int = 8) -> Path:
    model = ConvNetConfig(widths=[8], stem="small", stem_width=4).build(Images(3, size, size), Classes(2))
    vars(model)["preprocessing"] = recipe
    directory.mkdir()
    pretrained.save(model, directory)
    return directory


def encoder(directory: Path) -> ImagesEncoder:
    return ImagesEncode.model_validate({"as": "images", "like_model": str(directory)}).build()


def test_an_encoder_takes_what_the_model_says(tmp_path: Path) -> None:
    made = encoder(saved(tmp_path / "m", {**SCALE, "size": {"height": 8, "width": 8}}))
    like_model(made)
    assert made.recipe == Recipe(3, 8, 8, "squash")
    assert made.scale is not None
    np.testing.assert_allclose(made.scale, BYTES)


def test_one_mean_is_that_of_every_channel(tmp_path: Path) -> None:
    made = encoder(saved(tmp_path / "m", {"image_mean": [0.5], "image_std": [0.25]}))
    like_model(made)
    assert made.scale == ([127.5] * 3, [63.75] * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "config.json").unlink(), "no model here"),
        (lambda path: (path / PATH).unlink(), "is not there, so nothing says how its pictures"),
        (lambda path: (path / PATH).write_text(json.dumps(SCALE | {"resample": "x"})), "resample: expected"),
        (lambda path: (path / PATH).write_text(json.dumps({"image_mean": [1, 1], "image_std": [1, 1]})),
         "has 2 means; the model takes 3 channels"),
        (lambda path: (path / PATH).write_text("{"), "preprocessor_config.json"),
    ],
)  # fmt: skip
def test_what_does_not_say_it_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    directory = saved(tmp_path / "m", SCALE)
    change(directory)
    with pytest.raises(ConfigError, match=message):
        like_model(encoder(directory))


# --- a start and its data ---

INPUTS = {"kind": "images", "channels": 3, "height": 8, "width": 8, "mean": BYTES[0], "std": BYTES[1]}


def sides(model: Any, mine: Any = None, its: Any = None) -> tuple[Any, Any]:
    dataset = SimpleNamespace(card={"inputs": INPUTS | (mine or {})})
    card = {"inputs": INPUTS | (its or {}), "encoder": {}}
    return dataset, SimpleNamespace(card=card, model=model, directory=Path("base"))


def test_the_same_pictures_pass_and_others_are_refused() -> None:
    vit = ViTConfig(patch=4, width=8, heads=1, depth=1).build(Images(3, 8, 8), Classes(2))
    refuse_other_pictures(*sides(vit, {"height": 12}))
    rounded = [value + 1e-5 for value in BYTES[0]]
    refuse_other_pictures(*sides(vit, {"mean": rounded}))
    for change, message in (
        ({"height": 10}, "pictures of 10 x 8 pixels do not divide into the patches of 4"),
        ({"channels": 1, "mean": [1.0], "std": [1.0]}, "the pictures have 1, base takes 3"),
        ({"std": [1.0, 1.0, 1.0]}, r"set data\.encode\.like_model: base"),
    ):
        with pytest.raises(ConfigError, match=message):
            refuse_other_pictures(*sides(vit, change))


def test_a_start_that_does_not_say_how_takes_any() -> None:
    dataset, start = sides(ConvNetConfig().build(Images(3, 8, 8), Classes(2)))
    start.card = {"inputs": {"kind": "images", "channels": 3, "height": 224, "width": 224},
                  "encoder": {"standardisation": None}}  # fmt: skip
    refuse_other_pictures(dataset, start)


def test_a_file_that_says_the_same_stays_and_another_is_written() -> None:
    card = {"inputs": INPUTS, "encoder": {"recipe": Recipe(3, 8, 8, "squash").state()}}
    model = ConvNetConfig(widths=[8], stem_width=4).build(Images(3, 224, 224), Classes(2))
    before = {**SCALE, "size": 8, "feature_extractor_type": "ViTFeatureExtractor"}
    vars(model)["preprocessing"] = before
    say_how_prepared(model, card)
    assert vars(model)["preprocessing"] is before
    assert model.inputs == Images(3, 8, 8)
    say_how_prepared(model, card | {"inputs": INPUTS | {"std": [9.0, 9.0, 9.0]}})
    assert vars(model)["preprocessing"]["image_std"] == pytest.approx([9 / 255] * 3)
