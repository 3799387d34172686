"""A training's checkpoints: the model, and beside it the optimizer and the place in the run; and back."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch

from llmtool.core import checkpoint, files, ranks
from llmtool.stages.assemble import Assembled
from llmtool.stages.checkpoints import STATE
from llmtool.stages.history import CHECKPOINTS, METRICS
from llmtool.stages.lowering import AtOnce
from llmtool.training import TrainConfig, average
from llmtool.training.average import Average, moving
from llmtool.training.loop import State
from llmtool.training.optimizers import Optimizers

OPTIMIZER, LOOP = "optimizer.safetensors", "loop.json"
WEIGHTS = "weights.safetensors"  # as trained, where those of the model are their average


@dataclass
class Saver:
    """Writes checkpoints of a training into `directory`, and reads them. Of several ranks one writes."""

    directory: Path
    assembled: Assembled
    optimizers: Optimizers
    average: Average | None
    at_once: AtOnce

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model has the weights that are judged and saved."""
        return nullcontext() if self.average is None else self.average.inside()

    def save(self, state: State, config: TrainConfig) -> None:
        """A checkpoint of this step; the links follow, older ones go."""
        if not ranks.here().first:
            return
        if (self.directory / METRICS).exists():
            files.sync(self.directory / METRICS)  # the rows a resumed run will not write again
        checkpoint.save(
            self.checkpoints,
            checkpoint.step_name(state.step),
            lambda directory: self.write(directory, state, config),
        )
        self.point(state)
        newest = [path.name for path in checkpoint.steps(self.checkpoints)[-config.keep :]]
        checkpoint.prune(self.checkpoints, {*newest, checkpoint.step_name(state.best_step)})

    def write(self, directory: Path, state: State, config: TrainConfig) -> None:
        """The files of a checkpoint."""
        with self.averaged():
            self.assembled.save(directory)
        (directory / STATE).mkdir()
        if self.average is not None:
            weights = {name: tensor.contiguous() for name, tensor in moving(self.assembled.model).items()}
            files.write_bytes(directory / STATE / WEIGHTS, safetensors.torch.save(weights))
        files.write_bytes(directory / STATE / OPTIMIZER, safetensors.torch.save(self.optimizers.state()))
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
        self.optimizers.restore(safetensors.torch.load_file(found / STATE / OPTIMIZER))
        self.assembled.goes_on_from(found)
        if self.average is not None:
            self.average.begin()
        if (path := found / STATE / WEIGHTS).is_file():
            average.restore(self.assembled.model, safetensors.torch.load_file(path))
        return State(**saved["state"], seconds=saved["time"]["seconds"]), config

    def point(self, state: State) -> None:
        """`last` is the newest checkpoint, `best` the best one; the newest where none has been scored."""
        last = self.checkpoints / checkpoint.step_name(state.step)
        best = self.checkpoints / checkpoint.step_name(state.best_step)
        checkpoint.point(self.directory / "last", last)
        checkpoint.point(self.directory / "best", best if best.is_dir() else last)
