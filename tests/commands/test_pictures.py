"""Pictures through the commands: prepared, learned from, scored; a model of others tuned on them."""

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtool.models import preprocessing
from tests.conftest import Run
from tests.photos import bomb, folder
from tests.stages.test_foreign import pictures_model

Break = Callable[[Path], Any]
PHOTOS = """
run: runs/photos
device: cpu
data:
  source: {format: image_folder, path: {train: photos/train, test: photos/test}}
  split: {by: files, validation: 0.25}
  encode: {as: images}
model: {family: convnet, stem: small, stem_width: 8, widths: [8], depths: [1]}
train: {budget: {steps: 30}, batch: 12, optimizer: {name: adamw, lr: 0.02}}
finetune: {start: runs/photos/train, budget: {steps: 4}, batch: 12, optimizer: {name: adamw, lr: 0.001}}
evaluate: {splits: [validation, test]}
"""


def write(directory: Path, text: str = PHOTOS) -> Path:
    folder(directory / "photos" / "train", 16)
    folder(directory / "photos" / "test", 6, first=50)
    (directory / "photos.yaml").write_text(text)
    return directory


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, llmtool: Run) -> Path:
    """A directory in which all commands have run. Only to be read."""
    directory = write(tmp_path_factory.mktemp("photos"))
    for command in ("prepare", "describe", "train", "finetune", "evaluate"):
        ended = llmtool(command, "photos.yaml", cwd=directory)
        assert ended.code == 0, ended.err
    return directory


def test_the_chain_learns_colours_and_names_files(done: Path, llmtool: Run) -> None:
    report = json.loads((done / "runs/photos/evaluate/report.json").read_text())
    names = [one["name"] for one in report["baselines"]]
    assert names == ["majority", "stratified", "logistic regression"]
    result = json.loads((done / "runs/photos/evaluate/result.json").read_text())
    assert result["metrics"]["test"]["accuracy"] > 0.9
    lines = (done / "runs/photos/evaluate/predictions.csv").read_text().splitlines()
    assert lines[0].startswith('"split","file","target"')
    assert all("photos/test/" in line for line in lines if line.startswith('"test"'))
    assert "32 pixels" not in json.dumps(report["examples"])
    assert "photos/" in json.dumps(report["examples"])
    ended = llmtool("report", "runs/photos", cwd=done)
    assert ended.code == 0, ended.err


def test_nothing_is_done_twice_and_a_changed_picture_is_noticed(
    done: Path, tmp_path: Path, llmtool: Run
) -> None:
    copy = Path(shutil.copytree(done, tmp_path / "copy", symlinks=True))
    ended = llmtool("prepare", "photos.yaml", cwd=copy)
    assert ended.code == 0
    assert "nothing has changed" in ended.out + ended.err
    assert "changed" not in llmtool("describe", "runs/photos", cwd=copy).out
    picture = copy / "photos/train/cat/0.png"
    os.utime(picture, ns=(1, 1))
    described = llmtool("describe", "runs/photos", cwd=copy)
    assert "has files of other names, sizes or times now" in described.out + described.err
    ended = llmtool("prepare", "photos.yaml", cwd=copy)
    assert ended.code == 0
    assert "nothing has changed" not in ended.out + ended.err


def test_the_checkpoint_says_how_its_pictures_were_made(done: Path) -> None:
    recipe = json.loads((done / "runs/photos/train/best" / preprocessing.FILE).read_text())
    card = json.loads((done / "runs/photos/prepare/card.json").read_text())
    assert [value * 255 for value in recipe["image_mean"]] == pytest.approx(card["inputs"]["mean"])
    assert preprocessing.size_in(recipe) == (8, 8)


def test_a_rehearsal_goes_through(done: Path, llmtool: Run) -> None:
    ended = llmtool("train", "photos.yaml", "--rehearse", "--json", cwd=done)
    assert ended.code == 0, ended.err
    assert {step["status"] for step in ended.json["rehearsal"]["steps"]} == {"ok"}


def test_a_vision_transformer_of_others_is_tuned_on_a_folder(tmp_path: Path, llmtool: Run) -> None:
    write(tmp_path)
    pictures_model(tmp_path / "base")
    sets = ["--set", "finetune.start=base", "--set", "run=runs/tuned"]
    ended = llmtool("finetune", "photos.yaml", *sets, cwd=tmp_path)
    assert ended.code == 2
    assert "set data.encode.like_model: base" in ended.error
    sets += ["--set", "data.encode={as: images, like_model: base}", "--set", "run=runs/like"]
    ended = llmtool("finetune", "photos.yaml", *sets, cwd=tmp_path)
    assert ended.code == 0, ended.err
    card = json.loads((tmp_path / "runs/like/prepare/card.json").read_text())
    assert card["inputs"]["mean"] == pytest.approx([127.5] * 3)
    ended = llmtool("evaluate", "photos.yaml", *sets, cwd=tmp_path)
    assert ended.code == 0, ended.err
    written = json.loads((tmp_path / "runs/like/finetune/best" / preprocessing.FILE).read_text())
    assert written == json.loads((tmp_path / "base" / preprocessing.FILE).read_text())
    ended = llmtool("evaluate", "photos.yaml", *sets, "--set", "evaluate.of=base", cwd=tmp_path)
    assert ended.code == 0, ended.err  # the classes are those that it came with


def _file(old: str, new: str) -> Break:
    return lambda at: (at / "photos.yaml").write_text(PHOTOS.replace(old, new))


def _picture(data: bytes) -> Break:
    return lambda at: (at / "photos/train/cat/0.png").write_bytes(data)


BROKEN: list[tuple[Break, int, str]] = [
    (lambda at: (at / "photos/train/owl").mkdir(), 4, r"photos/train/owl: this class folder has no picture"),
    (_picture(bomb()), 4, r"photos/train/cat/0.png: more than 50,000,000 pixels \(data.encode.max_pixels\)"),
    (_picture(b"<svg/>"), 4, r"cat/0.png: not a JPEG, PNG or WebP picture but an SVG"),
    (lambda at: [shutil.rmtree(at / "photos/train" / name) for name in ("cat", "dog")], 4,
     "every train row is of one class, 'hen'"),
    (lambda at: shutil.rmtree(at / "photos/test"), 4, "photos/test: no such folder"),
    (_file("as: images", "as: images, imge: x"), 2, 'imge: unknown key; did you mean "image"'),
    (_file("as: images", "as: features, target: y"), 2, "image_folder gives pictures"),
    (_file("as: images", "as: images, image: file"), 2, "data.encode.image.*'file'"),
    (_file("as: images", "as: images, like_model: none"), 2, "like_model: none: no preprocessor"),
    (_file("as: images", "as: images, like: none"), 2, "data.encode.like: none: no prepared dataset here"),
    (lambda at: _with_idx(at, b"\0\0\x0d\x03" + bytes(20)), 4, "x-images-idx3-ubyte: not an IDX file"),
    (lambda at: _with_idx(at, struct.pack(">IIII", 0x803, 9, 4, 4) + bytes(20)), 4,
     "36 bytes, and its header says 9 x 4 x 4"),
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken[2][:30])
def test_what_is_broken_ends_with_its_place(tmp_path: Path, llmtool: Run, broken: Any) -> None:
    spoil, code, message = broken
    write(tmp_path)
    spoil(tmp_path)
    ended = llmtool("train", "photos.yaml", cwd=tmp_path)
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert re.search(message, ended.error), ended.error


def _with_idx(directory: Path, images: bytes) -> None:
    (directory / "x-images-idx3-ubyte").write_bytes(images)
    (directory / "x-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 9) + bytes(9))
    source = "{format: idx, path: x-images-idx3-ubyte}"
    text = PHOTOS.replace("{format: image_folder, path: {train: photos/train, test: photos/test}}", source)
    (directory / "photos.yaml").write_text(
        text.replace("split: {by: files, validation: 0.25}", "split: {by: random}")
    )
