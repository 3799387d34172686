"""Several sources as one, each a part with a name: read one after the other, and known by it ever after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from llmtool.core.errors import ConfigError
from llmtool.core.files import HashFile
from llmtool.data.formats import Rows
from llmtool.data.sampling import sampled
from llmtool.data.sources import Chunk, RowSource

Part = Annotated[Rows, Field(discriminator="format")]
PartName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=40)]


class MixtureSource(RowSource):
    """Sources of the same kind of rows. All are prepared once, each row a single time; how much of what is
    learned comes from which is said where that is done: train.mixture."""

    format: Literal["mixture"]
    parts: dict[PartName, Part] = Field(
        min_length=2,
        description="name of each part: its source (format, path, ...); each is split by itself, and figures "
        "are given of each",
    )

    @model_validator(mode="after")
    def _alike(self) -> Self:
        named = [name for name, source in self.parts.items() if source.names_splits]
        if named and len(named) < len(self.parts):
            other = next(name for name in self.parts if name not in named)
            raise ValueError(
                f"parts.{other}.path: {named[0]} names files for each split; all parts do, or none does"
            )
        return self

    @property
    def sources(self) -> Mapping[str, RowSource]:
        """What is read of each part: all of it, or what a rehearsal takes."""
        return self.parts if self._sample is None else self._sample.sources

    def files(self) -> list[Path]:
        """Every file of every part. ConfigError for one that stands in two."""
        seen: dict[Path, str] = {}
        found = []
        for name, source in self.sources.items():
            for file in source.files():
                if (other := seen.setdefault(file.resolve(), name)) != name:
                    raise ConfigError(
                        f"data.source.parts.{name}.path: {file} is read in the part {other} too"
                    )
                found.append(file)
        return found

    def names(self) -> list[str]:
        """Of all parts' files."""
        return [name for source in self.sources.values() for name in source.names()]

    def part_of_files(self) -> np.ndarray:
        """(files,) int64 number of the part that each of `names` belongs to."""
        counts = [len(source.names()) for source in self.sources.values()]
        return np.repeat(np.arange(len(counts)), counts)

    def stamps(self) -> list[tuple[str, int, int]]:
        """Of all parts."""
        return [stamp for source in self.sources.values() for stamp in source.stamps()]

    def hashes(self, hash_file: HashFile) -> dict[str, str]:
        """Of all parts."""
        self.files()
        return {
            path: found for part in self.sources.values() for path, found in part.hashes(hash_file).items()
        }

    def notes(self) -> list[str]:
        """Of all parts."""
        return [f"{name}: {note}" for name, source in self.sources.items() for note in source.notes()]

    def read(self, rows: int = 8192) -> Iterator[Chunk]:
        """The parts' chunks, in order; ordinals, units and files are counted on. A chunk is of one part."""
        row = file = 0
        for number, source in enumerate(self.sources.values()):
            first = row
            for chunk in source.read(rows):
                row += len(chunk)
                yield replace(
                    chunk,
                    frame=chunk.frame.set_axis(chunk.frame.index + first, axis=0),
                    unit=chunk.unit + first,
                    file=chunk.file + file,
                    part=number,
                )
            file += len(source.names())

    def sample(self, characters: int) -> SampleOfParts:
        """As much of each part."""
        parts = {name: sampled(part, characters // len(self.parts)) for name, part in self.parts.items()}
        return SampleOfParts(parts)

    @property
    def one_unit_a_file(self) -> bool:
        """Whether rows of some part are pieces of one document; of other parts a row is its own."""
        return any(source.one_unit_a_file for source in self.parts.values())

    @property
    def in_bytes(self) -> bool:
        """Whether every part counts by the bytes of its text."""
        return all(source.in_bytes for source in self.parts.values())

    @property
    def names_splits(self) -> bool:
        """Whether the parts name files for each split."""
        return all(source.names_splits for source in self.parts.values())

    @property
    def grows_columns(self) -> bool:
        """Whether any part's columns are known at its end only."""
        return any(source.grows_columns for source in self.parts.values())

    def columns(self) -> list[str]:
        """Those of every part, by first appearance."""
        return list(dict.fromkeys(name for part in self.sources.values() for name in part.columns()))


class SampleOfParts:
    """What a rehearsal reads of each part."""

    def __init__(self, sources: Mapping[str, Any]) -> None:
        self.sources = sources
        self._samples = [source._sample for source in sources.values()]
        self.whole = all(sample.whole for sample in self._samples)
        self.bytes = sum(sample.bytes for sample in self._samples)

    def share(self, split: str | None = None) -> float:
        """Which part of a split (None: of all) is read, by bytes; by parts where nobody knows these."""
        weights = np.array([sample.bytes for sample in self._samples], np.float64)
        weights = weights if weights.any() else np.ones(len(weights))
        return float(np.average([sample.share(split) for sample in self._samples], weights=weights))
