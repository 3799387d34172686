"""preprocessor_config.json: read, refused, handed on with the weights."""

import json

import numpy
import pytest
import torch

from llmtool.core.contracts import Classes, Images
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.models import preprocessing, pretrained
from llmtool.models.convnet import ConvNetConfig
from llmtool.models.preprocessing import Standardisation

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def write(directory, **keys):
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps(keys))
    return path


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (IMAGENET, Standardisation(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        (IMAGENET | {"do_normalize": False}, Standardisation(1 / 255, (0.0,), (1.0,))),
        (
            IMAGENET | {"do_rescale": False},
            Standardisation(1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ),
        ({"rescale_factor": 0.5}, Standardisation(0.5, (0.0,), (1.0,))),
    ],
)
def test_standardisation(keys, expected, tmp_path):
    path = write(tmp_path, **keys)
    assert preprocessing.standardisation(preprocessing.read(path), path) == expected


def test_it_is_what_transformers_does_to_a_picture(tmp_path):
    transformers = pytest.importorskip("transformers")
    image = pytest.importorskip("PIL.Image")
    pixels = numpy.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
    processor = transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}, **IMAGENET)
    processor.save_pretrained(tmp_path)
    path = tmp_path / preprocessing.FILE
    theirs = processor(image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    how = preprocessing.standardisation(preprocessing.read(path), path)
    values = torch.from_numpy(pixels).permute(2, 0, 1) * how.factor
    mean, deviation = (torch.tensor(part).reshape(-1, 1, 1) for part in (how.mean, how.deviation))
    torch.testing.assert_close((values - mean) / deviation, theirs, atol=1e-6, rtol=0)
    assert preprocessing.size_of(path) == (8, 8)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"size": 224}, (224, 224)),
        ({"size": {"height": 30, "width": 40}}, (30, 40)),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
         (224, 224)),
        ({"size": {"shortest_edge": 256}, "crop_size": 224}, (256, 256)),
        ({"size": {"longest_edge": 9}}, None),
        ({"size": 10**9}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_sizes(keys, expected, tmp_path):
    assert preprocessing.size_of(write(tmp_path, **keys)) == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image_mean": [0.5, "a"]}, "image_mean: expected a list of numbers"),
        (
            {"image_mean": [0.5], "image_std": [0.5, 0.5]},
            "image_std: expected a number above 0 for each of image_mean's 1",
        ),
        ({"image_mean": [0.5], "image_std": [0.0]}, "image_std: expected"),
        ({"do_normalize": True}, "image_mean: expected a list of numbers (got None)"),
        ({"rescale_factor": -1}, "rescale_factor: expected a number above 0"),
        ({"rescale_factor": None}, "rescale_factor: expected a number above 0"),
    ],
)
def test_refused(keys, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        preprocessing.read(write(tmp_path, **keys))
    assert message in str(error.value)


def test_what_is_no_mapping_is_refused(tmp_path):
    path = tmp_path / preprocessing.FILE
    assert preprocessing.read(path) is None
    path.write_text("[1]")
    with pytest.raises(LlmtoolError, match="expected a mapping"):
        preprocessing.read(path)


def test_it_goes_where_the_weights_go(tmp_path):
    model = ConvNetConfig(widths=[8], stem_width=4).build(Images(3, 16, 16), Classes(2))
    pretrained.save(model, tmp_path)
    assert not (tmp_path / preprocessing.FILE).exists()
    keys = IMAGENET | {"size": {"shortest_edge": 16}, "resample": 3}
    write(tmp_path, **keys)
    (tmp_path / "again").mkdir()
    pretrained.save(pretrained.load(tmp_path), tmp_path / "again")
    assert json.loads((tmp_path / "again" / preprocessing.FILE).read_text()) == keys
