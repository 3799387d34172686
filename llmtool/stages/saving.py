"""A training's checkpoints: the model, and beside it the optimizer and the place in the run; and back.

Of a model on a GPU training waits for the bytes to be in memory. That they are written, that the disk has
them, their hashes and the checkpoint's name are a thread's work, beside the next steps. On a CPU, whose
memory and cores are the training's own, it waits for all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from llmtool.core import checkpoint, files, joint, ranks, tensor_files, watch
from llmtool.core.errors import Cancelled, Interrupted, LlmtoolError
from llmtool.core.shards import Order, Reordered, orders_of
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
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"), init=False, repr=False
    )
    _under_way: Future[None] | None = field(default=None, init=False)
    _group: Any = field(default=None, init=False)  # through which the threads of all ranks meet

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS

    @property
    def holds(self) -> bool:
        """Whether a checkpoint is in memory, and training goes on before it is written."""
        return self.assembled.device.type == "cuda"

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model has the weights that are judged and saved."""
        return nullcontext() if self.average is None else self.average.inside()

    def save(self, state: State, config: TrainConfig) -> None:
        """Begin a checkpoint of this step; once it is there the links follow, and older ones go.

        Raises what went wrong with the one before.
        """
        self.wait()
        name, best = checkpoint.step_name(state.step), checkpoint.step_name(state.best_step)
        if self.cut is not None:
            self._group = self._group or ranks.another()
            write = lambda directory: self.write_together(directory, state, config)  # noqa: E731
            finish = joint.begin(self.checkpoints, name, write, self.holds)
        elif ranks.here().first:
            alone = lambda directory: self.write(directory, state, config)  # noqa: E731
            finish = checkpoint.begin(self.checkpoints, name, alone, self.holds)
        else:
            return
        self._under_way = self._thread.submit(self._finish, finish, name, best, config.keep)
        if not self.holds:
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint that is under way is there. Raises what went wrong with it."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            with watch.phase("save"):
                under_way.result()

    @contextmanager
    def settled(self) -> Iterator[None]:
        """However the block ends, no checkpoint is under way any more."""
        try:
            yield
        except (Interrupted, Cancelled):  # these say that it is there
            self.wait()
            raise
        except BaseException:
            with suppress(LlmtoolError):
                self.wait()
            raise
        self.wait()

    def _finish(self, finish: Callable[[], Path], name: str, best: str, keep: int) -> None:
        """The thread's part."""
        with ranks.alone() if self.cut is None else ranks.through(self._group):
            ranks.agreeing(self._sync_rows)
            finish()
            ranks.by_first(lambda: self._settle(name, best, keep))

    def _sync_rows(self) -> None:
        """Make the rows of metrics durable that a resumed run will not write again."""
        if ranks.here().first and (self.directory / METRICS).exists():
            files.sync(self.directory / METRICS)

    def _settle(self, name: str, best: str, keep: int) -> None:
        self._point(name, best)
        newest = [path.name for path in checkpoint.steps(self.checkpoints)[-keep:]]
        checkpoint.prune(self.checkpoints, {*newest, best})

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
            own += tensor_files.write(directory / STATE, stem, parts, self._orders[stem])[1]
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
        self.optimizers.restore(self._stored(found, OPTIMIZER))
        self.assembled.goes_on_from(found)
        if self.average is not None:
            self.average.begin()
        if any((found / STATE).glob(f"{WEIGHTS}*.safetensors")):
            average.restore(self.assembled.model, self._stored(found, WEIGHTS))
        return State(**saved["state"], seconds=saved["time"]["seconds"]), config

    def _stored(self, found: Path, stem: str) -> Reordered:
        return Reordered(tensor_files.Files(found / STATE, stem), self._orders[stem])

    @property
    def _orders(self) -> dict[str, dict[str, Order]]:
        """Of each stem, the tensors whose numbers ranks hold in another order."""
        orders = orders_of(self.assembled.model)
        return {OPTIMIZER: self.optimizers.as_parameters(orders), WEIGHTS: orders}

    def point(self, state: State) -> None:
        """`last` is the newest checkpoint, `best` the best one; the newest where none has been scored."""
        self._point(checkpoint.step_name(state.step), checkpoint.step_name(state.best_step))

    def _point(self, newest: str, best: str) -> None:
        last, judged = self.checkpoints / newest, self.checkpoints / best
        checkpoint.point(self.directory / "last", last)
        checkpoint.point(self.directory / "best", judged if judged.is_dir() else last)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    files.write_bytes(path, safetensors.torch.save(tensors))
