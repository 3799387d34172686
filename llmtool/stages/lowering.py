"""How many rows a training takes at once: as its file asks, as a resumed run has it, or as memory allows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from llmtool.core.errors import MemoryLimitError
from llmtool.models.layers import statistics
from llmtool.stages.settings import no_memory
from llmtool.training import TrainConfig
from llmtool.training.parts import smaller


@dataclass
class AtOnce:
    """What a session knows of it.

    asked: `batch` and `micro_batch` as the file has them. lowered: where a micro-batch did not fit: at which
    step (from 1), from how many rows, to how many. scoring: rows scored at once, where the usual number did
    not fit.
    """

    asked: dict[str, Any]
    lowered: list[dict[str, int]] = field(default_factory=list)
    scoring: int | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> AtOnce:
        """Of a session that begins."""
        return cls({"batch": config.batch, "micro_batch": config.micro_batch})

    def document(self, config: TrainConfig) -> dict[str, Any]:
        """What a checkpoint keeps of it. config: resolved."""
        return {**asdict(self), "batch": config.batch, "micro_batch": config.micro_batch}

    def resumed(self, saved: dict[str, Any] | None, config: TrainConfig) -> TrainConfig:
        """The config with the rows of the earlier session, unless the file asks for others by now.

        saved: a `document`; None in checkpoints that have none.
        """
        if saved is None:
            return config
        self.lowered = [*saved["lowered"]]
        if saved["asked"] != self.asked:
            return config
        self.scoring = saved["scoring"]
        return config.model_copy(update={key: saved[key] for key in ("batch", "micro_batch")})

    def fewer(
        self, config: TrainConfig, model: nn.Module, step: int, section: str
    ) -> tuple[TrainConfig, str]:
        """The config with the next smaller part of the batch, and a sentence on that; step: from 1.

        MemoryLimitError where there is none.
        """
        batch, rows = config.batch, config.micro_batch
        assert isinstance(batch, int)
        assert isinstance(rows, int)
        norms = bool(statistics(model))  # a single row has no deviation that such a norm could divide by
        fewer = smaller(batch, rows, 2 if norms else 1)
        if fewer is None:
            raise no_memory(rows, section, least=True)
        self.lowered.append({"step": step, "from": rows, "to": fewer})
        said = f"step {step} does not fit into memory with {rows} rows at once: from here on {fewer} ("
        said += (
            f"the norms of this model are over these rows: its figures are those of {section}.micro_batch: "
            f"{fewer}, not of {rows})"
            if norms
            else f"the batch stays {batch} rows: but for rounding, and what dropout draws, nothing changes)"
        )
        return config.model_copy(update={"micro_batch": fewer}), said


def half_made(rows: int, section: str) -> MemoryLimitError:
    """The error of an update that was half made, where there is no checkpoint to go back to."""
    return MemoryLimitError(
        "out of memory in the middle of one of the first updates, before a checkpoint: begin again with "
        f"{section}.micro_batch: {max(1, rows // 2)}"
    )
