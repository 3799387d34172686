"""The `images` encoding: each picture becomes bytes of one size, with a class or numbers to predict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from llmtool.core import hub
from llmtool.core.config import Section
from llmtool.core.contracts import Images
from llmtool.core.errors import ConfigError, DataError
from llmtool.data import pictures
from llmtool.data.cells import MISSING
from llmtool.data.encoding import Chunks, Refusals
from llmtool.data.features import find_column
from llmtool.data.image_sources import stored_pixels
from llmtool.data.image_writer import ImagesWriter
from llmtool.data.pictures import MAX_PIXELS, MOST_PIXELS, BadPicture, Fit, Pixels, Recipe, Stored
from llmtool.data.statistics import ColumnStatistics, Survey
from llmtool.data.store import CARD, Dataset
from llmtool.data.targets import (
    SEPARATOR,
    TARGET_KIND,
    ClassTarget,
    Kind,
    Target,
    fit_target,
    refuse_target,
    target_from_state,
    target_stratum,
    without_target,
)

if TYPE_CHECKING:
    import pandas as pd

PREPROCESSOR = "preprocessor_config.json"
MOST_SIDE = 4096
LOOKED = 512  # pictures whose header is looked at, to tell size and channels
AUTO_SIDE = 224  # the largest side that `auto` takes for pictures of different sizes
LARGE = 20_000_000_000  # bytes of arrays from which a person is told of the other store

Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]


class ImagesEncode(Section):
    """Pictures of one size, as bytes: where they are, how they are fitted, what to predict."""

    gives: ClassVar[type] = Images
    as_: Literal["images"] = Field(
        default="images", alias="as", description="Pictures of one size, for their class or a number."
    )
    image: str = Field(default="image", description="The column that holds the path of each picture.")
    root: str | None = Field(
        default=None,
        description="The folder that the paths begin from; default: the working directory. Where it is "
        "given, pictures in it that change are noticed.",
    )
    target: str | Annotated[list[str], Field(min_length=1)] = Field(
        default="label",
        description="The column to predict; a list of columns predicts several numbers, or labels, at once.",
    )
    target_kind: Kind = Field(default="auto", description=TARGET_KIND)
    label_separator: str = Field(default=",", min_length=1, description=SEPARATOR)
    size: Literal["auto"] | Side | Annotated[list[Side], Field(min_length=2, max_length=2)] = Field(
        default="auto",
        description="Pixels of a side, or [height, width]; auto: that of the pictures where they have one, "
        f"else the shorter side of most, at most {AUTO_SIDE}.",
    )
    channels: Literal["auto", 1, 3] = Field(
        default="auto", description="3 for colours, 1 for grey; auto: 1 where no picture has colours."
    )
    fit: Fit = Field(
        default="crop",
        description="Of a picture of another shape: crop keeps its middle, squash bends it, pad leaves "
        "black.",
    )
    store: Literal["arrays", "encoded"] = Field(
        default="arrays",
        description="arrays: pixels of that size, read at the speed of memory; encoded: the files as they "
        "are, smaller, and decoded again for each batch.",
    )
    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        le=MOST_PIXELS,
        description="A picture whose header says more is quarantined and not decoded.",
    )
    like: str | None = Field(
        default=None,
        description="A prepared directory whose size, fit and standardisation are used again, with a target "
        "fitted anew.",
    )
    like_model: str | None = Field(
        default=None,
        description="The directory of a model, or its name on the hub, whose preprocessor_config.json says "
        "size, fit and standardisation: what a start was trained with.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        taken = [name for name in ("like", "like_model") if getattr(self, name) is not None]
        set_here = self.model_fields_set & {"size", "channels", "fit"}
        if taken and set_here:
            raise ValueError(f"{taken[0]} says {', '.join(sorted(set_here))} already")
        if len(taken) > 1:
            raise ValueError("like and like_model cannot both stand here")
        targets = self.targets
        if len(set(targets)) < len(targets):
            raise ValueError("a target stands twice")
        if self.image in targets:
            raise ValueError(f"column {self.image!r} stands in both image and target")
        refuse_target(targets, self.target_kind, "label_separator" in self.model_fields_set)
        return self

    @property
    def targets(self) -> list[str]:
        """The columns to be predicted."""
        return [self.target] if isinstance(self.target, str) else list(self.target)

    def files(self) -> list[Path]:
        """What preparing reads besides the source and the pictures: the card of `like`, or the file of
        `like_model`."""
        if self.like is not None:
            return [Path(self.like) / CARD]
        return [] if self.like_model is None else [hub.local(self.like_model, weights=False) / PREPROCESSOR]

    def folders(self) -> list[Path]:
        """Whose files are noticed when they change."""
        return [] if self.root is None else [Path(self.root)]

    def build(self, seed: int = 0) -> ImagesEncoder:
        """An encoder that has learned nothing yet; with `like`, one that lacks only its target.

        Of `like_model` the stage, which knows models, tells it (`ImagesEncoder.take`).
        """
        encoder = ImagesEncoder(self, seed)
        if self.like is not None:
            _take(encoder, self.like)
        return encoder


def _take(encoder: ImagesEncoder, like: str) -> None:
    """Recipe and standardisation of the dataset prepared at `like`."""
    try:
        card = Dataset.open(like).card
        if card["encoder"].get("as") != "images":
            raise ConfigError(f"data.encode.like: {like} holds {card['encoding']}, no images")
        before = ImagesEncoder.from_state(card["encoder"], Path(like))
    except DataError as error:
        raise ConfigError(f"data.encode.like: {error}") from None
    assert before.recipe is not None
    encoder.take(before.recipe, before.scale)


Scale = tuple[list[float], list[float]]  # mean and deviation of each channel, in units of a byte


class ImagesEncoder:
    """Learns size, channels and target from the train rows, and from their pixels, while these are written,
    the mean and deviation of each channel."""

    encoded = None  # threads of the writer decode

    def __init__(self, config: ImagesEncode, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.recipe: Recipe | None = None
        self.scale: Scale | None = None
        self.target: Target | None = None
        self.notes: list[str] = []
        # Of each split (n,) uint64 hashes of pixels, in the rows' order.
        self.seen: dict[str, list[np.ndarray]] = {}

    def take(self, recipe: Recipe, scale: Scale | None) -> None:
        """Use these instead of learning them; scale None: learn that still."""
        self.recipe, self.scale = recipe, scale

    @property
    def target_names(self) -> list[str]:
        """The columns to be predicted."""
        return self.config.targets

    def columns(self, available: list[str]) -> list[str]:
        """The column of paths and the target's; ConfigError names one that the data lacks."""
        for key, names in (("image", [self.config.image]), ("target", self.target_names)):
            for name in names:
                find_column(name, available, key)
        return [self.config.image, *self.target_names]

    def refuse(self, frame: pd.DataFrame) -> Refusals:
        """Rows without a target. Those without a picture are bad rows, which the writer refuses."""
        return Refusals(without_target(frame, self.target_names, self.config.target_kind, self.notes))

    def stratum(self, frame: pd.DataFrame) -> pd.Series:
        """The class of each row as text."""
        return target_stratum(frame, self.target_names)

    # --- fitting

    def fit(self, chunks: Chunks) -> None:
        """See what the target is and, in the headers of some pictures, how large they are."""
        survey, looked = Survey(self.target_names, MISSING, self.seed), list[Any]()

        def surveyed() -> Iterator[list[ColumnStatistics]]:
            for chunk in chunks:
                looked.extend(_spread(chunk.frame[self.config.image].tolist(), 64))
                yield survey(chunk)

        found = survey.merged(surveyed())
        kind, separator = self.config.target_kind, self.config.label_separator
        self.target = fit_target(found, kind, self.notes, separator=separator)
        if self.recipe is None:
            self.recipe = self._recipe(_spread(looked, LOOKED), found[0].rows)

    def _recipe(self, cells: list[Any], rows: int) -> Recipe:
        """Size and channels as the file says, or as the headers of these pictures say."""
        config = self.config
        sizes, grey, why = list[tuple[int, int]](), True, ""
        if config.size == "auto" or config.channels == "auto":
            with ThreadPoolExecutor(pictures.workers()) as pool:
                for size, is_grey, reason in pool.map(self._look, cells):
                    grey = grey and is_grey
                    why = why or reason
                    if not reason:
                        sizes.append(size)
            if not sizes:
                raise DataError(f"none of the {len(cells):,} pictures looked at can be read: {why}")
        height, width = self._size(sizes)
        channels = (1 if grey else 3) if config.channels == "auto" else config.channels
        room = rows * channels * height * width
        if config.store == "arrays" and room > LARGE:
            self.notes.append(
                f"train takes {room / 1e9:,.0f} GB of disk as arrays; store: encoded takes what its files do"
            )
        return Recipe(channels, height, width, config.fit)

    def _size(self, sizes: list[tuple[int, int]]) -> tuple[int, int]:
        given = self.config.size
        if isinstance(given, int):
            return given, given
        if isinstance(given, list):
            return given[0], given[1]
        if len(set(sizes)) == 1 and max(sizes[0]) <= MOST_SIDE:
            return sizes[0]
        shorter = sorted(min(size) for size in sizes)
        side = min(AUTO_SIDE, shorter[len(shorter) // 2])
        smallest, largest = min(sizes, key=math.prod), max(sizes, key=math.prod)
        self.notes.append(
            f"pictures differ in size (from {smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]} "
            f"pixels, height x width); size: auto takes {side} x {side}"
        )
        return side, side

    def _look(self, cell: Any) -> tuple[tuple[int, int], bool, str]:
        """(height, width) and whether it is grey, from a header; or why there is none."""
        try:
            if isinstance(cell, Stored):
                shape = stored_pixels(cell).shape
                return (shape[1], shape[2]), shape[0] == 1, ""
            image = pictures.opened(self.bytes_of(cell), self.config.max_pixels)
            return pictures.turned_size(image), pictures.is_grey(image), ""
        except BadPicture as error:
            return (0, 0), True, f"{cell}: {error}"

    # --- pictures

    def bytes_of(self, cell: Any) -> bytes:
        """The file that a cell names. BadPicture where there is none."""
        text = cell.strip() if isinstance(cell, str) else ""
        if not text or "\0" in text:
            raise BadPicture(f"{self.config.image} is missing")
        return pictures.read(Path(self.config.root or "", text))

    def pixels(self, cell: Any) -> tuple[Pixels, bytes | None]:
        """The picture that a cell names, fitted, and the bytes of its file; None for one of an IDX or CIFAR
        file. BadPicture says why there is none."""
        assert self.recipe is not None, "fit() comes first"
        if isinstance(cell, Stored):
            return pictures.from_array(stored_pixels(cell), self.recipe), None
        data = self.bytes_of(cell)
        return pictures.decode(data, self.recipe, self.config.max_pixels), data

    # --- after fitting

    @property
    def inputs(self) -> dict[str, Any]:
        """After the train rows are written: kind, channels, height, width; mean and std of each channel in
        units of a byte."""
        assert self.recipe is not None, "fit() comes first"
        assert self.scale is not None, "the train rows come first"
        shape = {"channels": self.recipe.channels, "height": self.recipe.height, "width": self.recipe.width}
        return {"kind": "images", **shape, "mean": self.scale[0], "std": self.scale[1]}

    @property
    def targets(self) -> dict[str, Any]:
        """Classes with names and counts, or values with names, mean and scale."""
        assert self.target is not None, "fit() comes first"
        return self.target.spec()

    def writer(self, directory: Path, split: str) -> ImagesWriter:
        """Writes `{split}.images.bin` (or `.encoded.bin`), `.targets.bin`, and where each row came from."""
        return ImagesWriter(self, directory, split)

    def state(self) -> dict[str, Any]:
        """All that was learned."""
        assert self.recipe is not None, "fit() comes first"
        assert self.scale is not None, "the train rows come first"
        assert self.target is not None
        config = self.config
        return {
            "as": "images",
            "recipe": self.recipe.state(),
            "mean": self.scale[0],
            "std": self.scale[1],
            "rows": {"image": config.image, "store": config.store, "max_pixels": config.max_pixels},
            "target": config.target,
            "fitted_target": self.target.state(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], directory: Path) -> ImagesEncoder:
        """The encoder whose `state()` this is."""
        try:
            encoder = cls(ImagesEncode(target=state["target"], **state["rows"]))
            encoder.take(Recipe(**state["recipe"]), (list(state["mean"]), list(state["std"])))
            encoder.target = target_from_state(state["fitted_target"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{directory}: the card's encoder is incomplete ({error!r}); prepare it again"
            ) from None
        return encoder

    def settle(
        self, split: str, counts: np.ndarray | None, histogram: np.ndarray, said: Counter[str]
    ) -> None:
        """Take in what a writer saw of a split when it ends.

        counts: (C,) rows of each class. histogram: (c, 256) how often each channel has each value.
        """
        for what, count in said.items():
            if not (what == pictures.GREYED and self.config.channels == 1):
                self.notes.append(f"{split}: {count:,} picture{'s' * (count != 1)}: {what}")
        if split != "train":
            return
        if self.scale is None:
            self.scale = _moments(histogram)
        if counts is not None and isinstance(self.target, ClassTarget):
            self.target = self.target.counted(counts.tolist())


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many of them, at equal distances."""
    if len(items) <= most:
        return items
    return [items[at * len(items) // most] for at in range(most)]


def _moments(histogram: np.ndarray) -> Scale:
    """Mean and deviation of each channel; a channel that never changes is divided by 1."""
    values = np.arange(256, dtype=np.float64)
    count = histogram.sum(axis=1)
    mean = histogram @ values / count
    deviation = np.sqrt(np.maximum(histogram @ values**2 / count - mean**2, 0))
    rounded = np.round(deviation, 4)
    return np.round(mean, 4).tolist(), np.where(rounded > 0, rounded, 1.0).tolist()
