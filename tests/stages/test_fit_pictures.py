"""The fit stage on pictures: changed, mixed, with averaged weights, resumed without a changed bit."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from llmtool.core.contracts import Batch, Classes, Images
from llmtool.core.devices import PRECISIONS, Precision
from llmtool.core.errors import ConfigError, DivergedError
from llmtool.core.seeds import seed_torch
from llmtool.models.convnet import ConvNetConfig
from llmtool.stages.fit import FitResult, at_checkpoint, fit
from llmtool.tasks.classification import ClassificationTask
from llmtool.tasks.multilabel import MultilabelTask
from llmtool.training.average import moving
from llmtool.training.replay import replay
from tests.stages.test_fit import Crash, Splits, Watcher, config
from tests.training.toys import ToyBatches, ToyTask

AUGMENT = {
    "crop": 1,
    "flip": True,
    "colour": 0.3,
    "randaugment": {},
    "erase": 0.3,
    "mixup": 0.3,
    "cutmix": 1.0,
}
SHAPE = Images(3, 8, 8)


class Pictures(ToyBatches):
    """Bytes, as data.image_batches gives them."""

    def batch(self, start: int, count: int) -> Batch:
        found = super().batch(start, count)
        return Batch(found.inputs, found.targets, scale=(torch.full((3,), 120.0), torch.full((3,), 70.0)))

    def in_order(self, size: int, first: int = 0, every: int = 1) -> Any:
        for start in range(first * size, self.rows, every * size):
            part = slice(start, start + size)
            yield Batch(self.inputs[part], self.targets[part], scale=self.batch(0, 1).scale)


@dataclass
class Shown:
    """The assembly of a small convnet with its pictures, for training and validation alike."""

    model: nn.Module
    data: Pictures
    task: Any = field(default_factory=lambda: ClassificationTask(["a", "b", "c"], 1, None, 0.1))
    seed: int = 5
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = PRECISIONS["fp32"]
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def dataset(self) -> Any:
        return Splits(["train", "validation"], inputs=SHAPE)  # type: ignore[arg-type]

    def batches(self, split: str) -> Pictures:
        return self.data

    def decoded(self, start: int, count: int) -> list[dict[str, Any]]:
        return [{} for _ in range(count)]

    def save(self, directory: Path) -> None:
        save_model(self.model, str(directory / "model.safetensors"))

    def restore(self, directory: Path) -> None:
        load_model(self.model, str(directory / "model.safetensors"))

    goes_on_from = restore


def shown(dropped: float = 0.0) -> Shown:
    seed_torch(5, "initialise")
    model = ConvNetConfig(stem="small", stem_width=4, widths=[4, 8], depths=[1, 1]).build(SHAPE, Classes(3))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (20, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Shown(model, Pictures(inputs, torch.randint(0, 3, (20,), generator=generator)))


def run(directory: Path, assembled: Shown | None = None, **keys: Any) -> FitResult:
    watch = {key: keys.pop(key) for key in ("crash_at",) if key in keys}
    settings = config(**{"log_every": 1, **keys})
    made = assembled or shown()
    return fit(made, settings, directory, progress=Watcher(**watch), resume=True, command="x")  # type: ignore[arg-type]


def kept(directory: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    tensors = {
        f"{path.name} {name}": tensor.numpy().tobytes()
        for path in sorted((directory / "last").rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    return {"rows": [{k: v for k, v in row.items() if k != "time"} for row in rows], "tensors": tensors}


def test_resume_changes_no_bit(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"augment": AUGMENT, "ema": 0.9}
    run(tmp_path / "straight", **keys)
    straight = kept(tmp_path / "straight")
    assert any(name.startswith("weights.safetensors") for name in straight["tensors"])
    for step in (1, 4, 6):
        directory = tmp_path / f"killed-{step}"
        with pytest.raises(Crash):
            run(directory, **keys, crash_at=step)
        run(directory, **keys)
        assert kept(directory) == straight, step


def test_the_micro_batch_changes_nothing(tmp_path: Path) -> None:
    """Norms over the batch apart, of which a frozen one takes no part in it."""
    lines = []
    for size in (6, 3, 2, 1):
        assembled = shown()
        for name, parameter in assembled.model.named_parameters():
            if "norm" in name:
                parameter.requires_grad_(False)
        run(tmp_path / str(size), assembled, augment=AUGMENT, micro_batch=size)
        rows = kept(tmp_path / str(size))["rows"]
        lines.append([row["loss"] for row in rows if "loss" in row])
    assert len(lines[0]) == 7
    for other in lines[1:]:
        assert other == pytest.approx(lines[0], rel=1e-5)


def test_what_is_saved_and_judged_is_the_average(tmp_path: Path) -> None:
    """Beside a run without: the same training, whose weights after each step make the average by hand."""
    for directory, ema in (("plain", None), ("averaged", 0.5)):
        assembled = shown()
        run(tmp_path / directory, assembled, ema=ema, keep=10, validate_every=1)
    names = list(moving(shown().model))
    of = lambda run, step, file: load_file(  # noqa: E731
        tmp_path / run / "checkpoints" / f"step-{step:08}" / file
    )
    average = {name: tensor.clone() for name, tensor in moving(shown().model).items()}
    for step in range(1, 8):
        trained = of("plain", step, "model.safetensors")
        live = of("averaged", step, "state/weights.safetensors")
        assert all(torch.equal(trained[name], live[name]) for name in names)
        weight = 1 - min(0.5, step / (9 + step))
        average = {name: tensor.lerp(trained[name], weight) for name, tensor in average.items()}
        saved = of("averaged", step, "model.safetensors")
        for name in names:
            torch.testing.assert_close(saved[name], average[name], msg=name)
    losses = [
        [row["validation"]["log_loss"] for row in kept(tmp_path / name)["rows"] if "validation" in row]
        for name in ("plain", "averaged")
    ]
    assert losses[0] != losses[1]


def test_a_step_is_replayed_as_it_was(tmp_path: Path) -> None:
    settings = config(augment=AUGMENT, ema=0.9, log_every=1)
    run(tmp_path, augment=AUGMENT, ema=0.9, keep=10)
    wanted = [row["loss"] for row in kept(tmp_path)["rows"] if "loss" in row]
    assembled: Any = shown()
    saved = tmp_path / "checkpoints" / "step-00000004"
    loop, _ = at_checkpoint(assembled, settings, saved, Watcher(), None)
    before = {name: tensor.clone() for name, tensor in moving(assembled.model).items()}
    made = replay(loop, 4)
    assert made.loss == wanted[4]
    assert len(made.losses) == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in moving(assembled.model).items())


def test_a_skipped_step_moves_no_statistics(tmp_path: Path) -> None:
    assembled = shown()
    assembled.model.head.weight.data[0, 0] = math.inf  # every loss is infinite
    begin = {name: tensor.clone() for name, tensor in moving(assembled.model).items()}
    with pytest.raises(DivergedError):
        run(tmp_path, assembled, augment={"crop": 1}, ema=0.9, guard={"action": "skip", "most": 3})
    for name, tensor in moving(assembled.model).items():
        assert torch.equal(tensor, begin[name]), name


def test_mixing_is_for_classes_and_labels(tmp_path: Path) -> None:
    assembled = shown()
    assembled.task = MultilabelTask(["a", "b", "c"], None, [0.5] * 3)
    assembled.data.targets = torch.nn.functional.one_hot(assembled.data.targets, 3).to(torch.uint8)
    run(tmp_path / "labels", assembled, augment={"mixup": 0.2}, select=None)
    assembled = shown()
    assembled.task = ToyTask()
    with pytest.raises(ConfigError, match=r"augment: mixup and cutmix mix classes"):
        run(tmp_path, assembled, augment={"mixup": 0.2})
