"""Encoded rows as a person knows them: columns in their own units, text as text."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from llmtool.core.contracts import Features, Images
from llmtool.data.batches import Batches, ChatBatches, FeatureBatches, TextBatches, chunk_of, unit_edges
from llmtool.data.columns import Column, column_from_state
from llmtool.data.image_batches import ImageBatches
from llmtool.data.layout import place_of
from llmtool.data.mixing import MixedBatches
from llmtool.data.store import Dataset, Split
from llmtool.data.tokenizers import FittedTokenizer


def columns_of(dataset: Dataset, split: str, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Column -> (n,) values of these rows (all of them when None).

    Of a table: float64, NaN where missing; words; dates as datetime64[D]. Of a text: `tokens`, the length of
    each unit (data.batches.unit_edges). Of pictures: nothing.
    """
    found = dataset.split(split)
    if isinstance(dataset.inputs, Images):
        return {}
    if not isinstance(dataset.inputs, Features):
        lengths = np.diff(unit_edges(found)).astype(np.float64)
        return {"tokens": lengths if rows is None else lengths[rows]}
    block = features_of(found)
    return _decoded(dataset.card, block if rows is None else block[rows])


def features_of(split: Split) -> np.ndarray:
    """(rows, F) float32, of a table, or of the columns beside texts."""
    return np.asarray(split.arrays["features" if "features" in split.arrays else "inputs"])


def blocks_of(card: Mapping[str, Any]) -> dict[str, slice]:
    """Column of a table, or beside a text -> where its features stand in a row."""
    return {column.name: place for column, place in _fitted(card)}


def _fitted(card: Mapping[str, Any]) -> list[tuple[Column, slice]]:
    """The columns, and where the features of each stand in a row."""
    encoder = card["encoder"].get("features", card["encoder"])  # of texts, that of the columns beside them
    columns = [column_from_state(state) for state in encoder["columns"]]
    ends = accumulate((len(column.features) for column in columns), initial=0)
    return [(column, slice(*place)) for column, place in zip(columns, pairwise(ends), strict=True)]


def _decoded(card: Mapping[str, Any], block: np.ndarray) -> dict[str, np.ndarray]:
    """Column -> (n,) values, of (n, F) features."""
    return {column.name: column.decode(block[:, place]) for column, place in _fitted(card)}


def decoded_batch(
    dataset: Dataset, split: str, batches: Batches, start: int, count: int
) -> list[dict[str, Any]]:
    """Rows start to start + count of a training order, as of `decoded_rows`; of a text: its `text`."""
    whole = batches.whole if isinstance(batches, MixedBatches) else batches
    if isinstance(whole, FeatureBatches | TextBatches | ImageBatches):
        rows: np.ndarray = batches.chosen(start, count)  # type: ignore[attr-defined]
        return decoded_rows(dataset, split, rows)
    tokenizer = FittedTokenizer.from_state(dataset.card["encoder"]["tokenizer"], dataset.directory)
    found = batches.batch(start, count)
    if isinstance(whole, ChatBatches):  # without the padding, which ends each row
        lengths: list[int] = batches.lengths(start, count)  # type: ignore[attr-defined]
        return [
            {"text": tokenizer.decode(ids[:n])} for ids, n in zip(found.inputs.tolist(), lengths, strict=True)
        ]
    return [{"text": tokenizer.decode(ids)} for ids in found.inputs.tolist()]


def decoded_rows(dataset: Dataset, split: str, rows: np.ndarray) -> list[dict[str, Any]]:
    """These rows of a table (or labelled texts, or names of pictures) as JSON-ready mappings, the target
    among them; numbers with seven digits."""
    if isinstance(dataset.inputs, Features):
        columns = columns_of(dataset, split, rows)
    elif isinstance(dataset.inputs, Images):
        found = dataset.split(split)
        columns = {"picture": np.array([place_of(found, row) for row in map(int, rows)], dtype=object)}
    else:
        columns = {"text": np.array(texts_of(dataset, split, rows), dtype=object)}
    targets = np.asarray(dataset.split(split).arrays["targets"])[rows]
    about = dataset.targets
    if about["kind"] == "classes":
        columns["target"] = np.array([str(name) for name in about["names"]], dtype=object)[targets]
    elif about["kind"] == "labels":
        labels = np.array([str(name) for name in about["names"]], dtype=object)
        columns["target"] = np.array([", ".join(labels[row > 0]) for row in targets], dtype=object)
    else:
        names = [str(name) for name in about["names"]]
        values = targets.reshape(len(rows), -1).T
        columns |= {f"target {name}": column for name, column in zip(names, values, strict=True)}
    return [{name: _plain(column[at]) for name, column in columns.items()} for at in range(len(rows))]


def cells_of(dataset: Dataset, split: str, row: int) -> dict[str, Any]:
    """Column -> the cell of one row of a table, or beside a text, without targets, as of `decoded_rows`."""
    block = features_of(dataset.split(split))[row : row + 1]
    return {name: _plain(cells[0]) for name, cells in _decoded(dataset.card, block).items()}


def texts_of(dataset: Dataset, split: str, rows: np.ndarray, around: bool = True) -> list[str]:
    """The texts of these rows of a labelled split, as far as they were kept; what chunks share stands twice.
    around: with the tokens that were put before and after them."""
    arrays, state = dataset.split(split).arrays, dataset.card["encoder"]
    tokenizer = FittedTokenizer.from_state(state["tokenizer"], dataset.directory)
    before, after = (0, 0) if around else (len(state["prefix"]), len(state["suffix"]))
    edges = np.concatenate([[0], np.asarray(arrays["documents"], np.int64)])
    tokens = np.asarray(arrays["tokens"])
    found = []
    for row in map(int, rows):
        start, end = int(edges[row]), int(edges[row + 1])
        length = chunk_of(dataset.card) or max(1, end - start)
        parts = [(at + before, min(at + length, end) - after) for at in range(start, end, length)]
        found.append([token for a, b in parts for token in tokens[a:b].tolist()])
    return tokenizer.decode_all(found)


def _plain(value: Any) -> Any:
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return value if isinstance(value, str) else value.item()
