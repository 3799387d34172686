"""Raw files to a self-describing dataset on disk: the `data:` section and the unions of what stands in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from llmtool.core import files, hub
from llmtool.core.cluster import RayEngine
from llmtool.core.config import Section
from llmtool.core.files import HashFile
from llmtool.core.pool import LocalEngine
from llmtool.data.chat import ChatEncode
from llmtool.data.cleaning import (
    DropDuplicates,
    DropMissing,
    Filter,
    Join,
    Length,
    Normalize,
    Range,
    Replace,
    Require,
    Types,
)
from llmtool.data.contamination import Decontaminate
from llmtool.data.features import FeaturesEncode
from llmtool.data.formats import PICTURES, Pictures, Rows
from llmtool.data.games.moves import MovesEncode
from llmtool.data.image_sources import listing_hash
from llmtool.data.images import ImagesEncode
from llmtool.data.labelled import TextEncode
from llmtool.data.language import KeepLanguages
from llmtool.data.mixture import MixtureSource
from llmtool.data.mojibake import FixText
from llmtool.data.near_duplicates import DropNearDuplicates
from llmtool.data.personal import PersonalData
from llmtool.data.quality import C4Quality, GopherQuality
from llmtool.data.repetition import GopherRepetition
from llmtool.data.splitting import (
    ColumnSplit,
    FilesSplit,
    GroupedSplit,
    HashSplit,
    OrderSplit,
    RandomSplit,
    StratifiedSplit,
    TimeSplit,
)
from llmtool.data.tokens import TokensEncode

SourceConfig = Annotated[Rows | Pictures | MixtureSource, Field(discriminator="format")]
CleanStep = Annotated[
    DropMissing
    | Require
    | DropDuplicates
    | DropNearDuplicates
    | Decontaminate
    | Types
    | Range
    | Filter
    | Normalize
    | Replace
    | Join
    | Length
    | FixText
    | KeepLanguages
    | GopherQuality
    | GopherRepetition
    | C4Quality
    | PersonalData,
    Field(discriminator="step"),
]
SplitConfig = Annotated[
    RandomSplit
    | StratifiedSplit
    | GroupedSplit
    | TimeSplit
    | OrderSplit
    | HashSplit
    | ColumnSplit
    | FilesSplit,
    Field(discriminator="by"),
]
EncodeConfig = Annotated[
    FeaturesEncode | TokensEncode | TextEncode | ChatEncode | MovesEncode | ImagesEncode,
    Field(discriminator="as_"),
]
EngineConfig = Annotated[LocalEngine | RayEngine, Field(discriminator="name")]


class DataConfig(Section):
    """Where the rows come from and what becomes of them, in this order: source, clean, split, encode."""

    source: SourceConfig = Field(description="the files and their format")
    clean: list[CleanStep] = Field(
        default=[],
        description="steps that drop or change rows, in this order; none learns anything from them",
    )
    split: SplitConfig = Field(
        default=RandomSplit(by="random"),
        description="which rows train, validate and test; default: the files where source.path names them "
        "for each split, by order for whole texts, otherwise by chance; in shares of 0.8, 0.1 and 0.1",
    )
    encode: EncodeConfig = Field(description="how rows become arrays; fitted on the train rows only")
    leakage: Literal["report", "refuse"] = Field(
        default="report",
        description="what to do about rows or columns that tell of validation and test what only they should",
    )
    engine: EngineConfig = Field(
        default=LocalEngine(),
        description="where cleaning and tokenising are done; the dataset is the same wherever that is",
    )
    max_bad: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of the rows that may be quarantined before the data is refused",
    )

    @model_validator(mode="before")
    @classmethod
    def _choose_split(cls, data: Any) -> Any:
        source = data.get("source") if isinstance(data, dict) else None
        if isinstance(source, dict) and data.get("split") is None:
            parts = source.get("parts") if source.get("format") == "mixture" else None
            each = list(parts.values()) if isinstance(parts, dict) else [source]
            every = [part for part in each if isinstance(part, dict)] or [{}]
            whole = all(p.get("format") == "text" and p.get("documents", "file") == "file" for p in every)
            named = all(isinstance(part.get("path"), dict) for part in every)
            by = "files" if named else "order" if whole else "random"
            return {**data, "split": {"by": by}}
        return data

    @field_validator("engine", mode="before")
    @classmethod
    def _is_local(cls, engine: Any) -> Any:
        return {"name": "local", **engine} if isinstance(engine, dict) else engine

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.source.format in PICTURES and self.encode.as_ != "images":
            raise ValueError(f"source.format: {self.source.format} gives pictures: encode: {{as: images}}")
        if isinstance(self.source, MixtureSource) and self.encode.as_ == "images":
            raise ValueError("source.format: a mixture is of texts or tables, not of pictures")
        named = self.source.names_splits
        if named and self.split.by != "files":
            raise ValueError(
                f"source.path names files for each split; split by {self.split.by} cannot hold too"
            )
        if not named and self.split.by == "files":
            raise ValueError("split by files needs source.path to be a mapping: {train: ..., test: ...}")
        if self.encode.as_ == "moves" and self.source.one_unit_a_file:
            raise ValueError("source.documents: of a text of games each line is one: set documents: line")
        parts = getattr(self.source, "parts", {"": self.source}).values()
        others = named and any(set(part.path) > {"train"} for part in parts)
        for position, step in enumerate(self.clean):
            if isinstance(step, Decontaminate) and not step.against and not others:
                raise ValueError(f"clean.{position}.against: names no file, and source.path none for test")
        return self


def data_files(config: DataConfig) -> list[Path]:
    """Every file that preparing reads, in order. Raises DataError for one that is missing."""
    return [*config.source.files(), *_further(config), *_folders(config)]


def _further(config: DataConfig) -> list[Path]:
    """Files beside the source: of the encoding, and those that cleaning compares rows with."""
    found: list[Path] = getattr(config.encode, "files", lambda: [])()
    return found + [file for step in config.clean if isinstance(step, Decontaminate) for file in step.files()]


def _folders(config: DataConfig) -> list[Path]:
    """Folders of pictures that rows name."""
    found: list[Path] = getattr(config.encode, "folders", lambda: [])()
    return found


def data_hashes(config: DataConfig, hash_file: HashFile | None = None) -> dict[str, str]:
    """Each of these files with the hash of its bytes, each folder of pictures with that of its listing; of a
    rehearsal with size and time of change."""
    if config.source._sample is None:
        hash_file = hash_file or files.hash_file
        further = {hub.named(path): hash_file(path) for path in _further(config)}
        hashes = config.source.hashes(hash_file) | further
        return hashes | {str(folder): listing_hash(folder) for folder in _folders(config)}
    stats = {path: path.stat() for path in data_files(config)}
    return {str(path): f"{stat.st_size} bytes of {stat.st_mtime_ns}" for path, stat in stats.items()}
