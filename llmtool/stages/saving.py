"""A training's checkpoints: the model, and beside it the optimizer and the place in the run; and back."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from llmtool.core import checkpoint, files, joint, ranks, tensor_files
from llmtool.models.shards import Cut
from llmtool.stages.assemble import Assembled
from llmtool.stages.checkpoints import STATE
from llmtool.stages.history import CHECKPOINTS, METRICS
from llmtool.stages.lowering import AtOnce
from llmtool.training import TrainConfig, average
from llmtool.training.average import Average, moving
from llmtool.training.loop import State
from llmtool.training.optimizers import Optimizers

# stems of safetensors files, of which there are several where ranks hold the model in parts; of WEIGHTS as
# trained, where those of the model are their average
OPTIMIZER, WEIGHTS = "optimizer", "weights"
LOOP = "loop.json"


@dataclass
class Saver:
    """Writes checkpoints of a training into `directory`, and reads them.

    Of several ranks one writes, or, where they hold the model in parts (`cut`), each some of the tensors.
    """

    directory: Path
    assembled: Assembled
    optimizers: Optimizers
    average: Average | None
    at_once: AtOnce
    cut: Cut | None = None

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model has the weights that are judged and saved."""
        return nullcontext() if self.average is None else self.average.inside()

    def save(self, state: State, config: TrainConfig) -> None:
        """A checkpoint of this step; the links follow, older ones go."""
        first, name = ranks.here().first, checkpoint.step_name(state.step)
        if first and (self.directory / METRICS).exists():
            files.sync(self.directory / METRICS)  # the rows a resumed run will not write again
        if self.cut is not None:
            write = lambda directory: self.write_together(directory, state, config)  # noqa: E731
            joint.save(self.checkpoints, name, write)
            ranks.by_first(lambda: self._settle(state, config))  # others read what `best` leads to
        elif first:
            checkpoint.save(self.checkpoints, name, lambda directory: self.write(directory, state, config))
            self._settle(state, config)

    def _settle(self, state: State, config: TrainConfig) -> None:
        self.point(state)
        newest = [path.name for path in checkpoint.steps(self.checkpoints)[-config.keep :]]
        checkpoint.prune(self.checkpoints, {*newest, checkpoint.step_name(state.best_step)})

    def write(self, directory: Path, state: State, config: TrainConfig) -> None:
        """The files of a checkpoint."""
        with self.averaged():
            self.assembled.save(directory)
        self._write_loop(directory, state, config)
        if self.average is not None:
            weights = {name: tensor.contiguous() for name, tensor in moving(self.assembled.model).items()}
            _write(directory / STATE / f"{WEIGHTS}.safetensors", weights)
        _write(directory / STATE / f"{OPTIMIZER}.safetensors", self.optimizers.state())

    def write_together(self, directory: Path, state: State, config: TrainConfig) -> list[Path]:
        """The same by all ranks; returns what this one wrote of the tensors."""
        assert self.cut is not None
        self.cut.rest()
        with self.averaged():
            own = self.assembled.save_together(directory)
        first = ranks.here().first
        ranks.agreeing(lambda: self._write_loop(directory, state, config) if first else None)
        state_of = {OPTIMIZER: self.optimizers.live()}
        if self.average is not None:
            state_of[WEIGHTS] = moving(self.assembled.model)
        for stem, tensors in state_of.items():
            parts = {name: [tensor] for name, tensor in tensors.items()}
            own += tensor_files.write(directory / STATE, stem, parts)[1]
        return own

    def _write_loop(self, directory: Path, state: State, config: TrainConfig) -> None:
        """The place in the run, the first file of the checkpoint's `state`."""
        (directory / STATE).mkdir()
        fields = asdict(state)
        seconds = fields.pop("seconds")
        about = {
            "format": 1,
            "state": fields,
            "compile": config.compile,
            "rows": self.at_once.document(config),
            "time": {"seconds": seconds},
        }
        files.write_json(directory / STATE / LOOP, about)

    def restore(self, found: Path, config: TrainConfig) -> tuple[State, TrainConfig]:
        """Weights and optimizer from a checkpoint; the place in the run, and the config it goes on by."""
        saved = files.read_json(found / STATE / LOOP)
        config = self.at_once.resumed(saved.get("rows"), config)
        config = config.model_copy(update={"compile": saved["compile"]})  # kernels differ in the last bits
        self.optimizers.restore(tensor_files.Files(found / STATE, OPTIMIZER))
        self.assembled.goes_on_from(found)
        if self.average is not None:
            self.average.begin()
        if any((found / STATE).glob(f"{WEIGHTS}*.safetensors")):
            average.restore(self.assembled.model, tensor_files.Files(found / STATE, WEIGHTS))
        return State(**saved["state"], seconds=saved["time"]["seconds"]), config

    def point(self, state: State) -> None:
        """`last` is the newest checkpoint, `best` the best one; the newest where none has been scored."""
        last = self.checkpoints / checkpoint.step_name(state.step)
        best = self.checkpoints / checkpoint.step_name(state.best_step)
        checkpoint.point(self.directory / "last", last)
        checkpoint.point(self.directory / "best", best if best.is_dir() else last)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    files.write_bytes(path, safetensors.torch.save(tensors))
