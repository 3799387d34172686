"""The curves of a run as TensorBoard events (extra `tensorboard`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtool.core import console, files
from llmtool.core.errors import ConfigError

OURS = ".llmtool"  # how the names of our files end


def write(directory: Path, metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Write the rows of metrics.jsonl, by stage, as scalars below `directory`, one folder a stage. What this
    wrote there before goes: a board would show both.

    Raises ConfigError where the package is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise ConfigError(
            "--tensorboard needs the package tensorboard: pip install llmtool[tensorboard]"
        ) from None
    for stage, rows in metrics.items():
        files.make_directories(directory / stage)
        there = set((directory / stage).glob("events.out.tfevents.*"))
        former = {path for path in there if path.name.endswith(OURS)}
        if there - former:
            console.note(f"{directory / stage}: has events of others too, which a board shows beside these")
        writer = EventFileWriter(str(directory / stage), filename_suffix=OURS)
        for row in rows:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in _scalars(row)]
            seconds = float(row.get("time", {}).get("seconds") or 0.0)
            writer.add_event(Event(step=row["step"], wall_time=seconds, summary=Summary(value=values)))
        writer.close()
        for path in former:
            files.remove_tree(path)
    return directory


def _scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield f"{prefix}{name}", float(value)
