"""Scores an assembled model: which splits, their evidence, where their rows came from, texts it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import torch

from llmtool.core import seeds
from llmtool.core.contracts import Images, InputSpec, NextToken, Tally, Tokens
from llmtool.core.devices import within_memory
from llmtool.core.environment import code_version
from llmtool.core.errors import ConfigError, DataError, MemoryLimitError
from llmtool.data.batches import unit_edges
from llmtool.data.conversations import BadConversation
from llmtool.data.layout import name_of
from llmtool.data.store import NAME_ENDS, Dataset, Split
from llmtool.evaluation import EvaluateConfig, SamplesConfig, kept, requirements
from llmtool.evaluation.loop import evaluate
from llmtool.evaluation.mirrored import Mirrored
from llmtool.evaluation.scorer import LOGIT_BYTES, TOKENS
from llmtool.evaluation.writer import Order
from llmtool.metrics.language import LanguageTally
from llmtool.models.generation import Sampling
from llmtool.models.transformer import Transformer
from llmtool.stages import speaking

if TYPE_CHECKING:
    from llmtool.stages.assemble import Assembled

T = TypeVar("T")

FEATURE_ROWS = 8192  # rows scored at once when `batch` is auto
PIXELS = {"cpu": 2**20, "cuda": 2**23}  # of pictures scored at once: one of 1024 pixels keeps 0.3 MB a layer


def score(
    assembled: Assembled, splits: Sequence[str], batch: int | Literal["auto"] = "auto", flip: bool = False
) -> dict[str, Tally]:
    """The evidence of each split, in the order given. DataError names a split without rows.

    flip: each picture is judged together with its mirror image; ConfigError for what is no picture.

    With `batch: auto` a batch that does not fit into the device's memory is halved; MemoryLimitError when a
    number was asked for, or one row does not fit.
    """
    return {split: _scored(assembled, split, batch, flip) for split in splits}


def score_or_recall(
    assembled: Assembled,
    splits: Sequence[str],
    config: EvaluateConfig,
    *,
    weights: str,
    cache: Path,
    again: bool = False,
) -> tuple[dict[str, Tally], list[str]]:
    """As `score`, keeping the evidence in `cache`; and the splits whose evidence was there already.

    That is taken only where the weights (their hash), the dataset and its rows, the device's kind, the
    precision, the batch, flip and our code are those it came from. again: score them all the same.
    """
    tallies: dict[str, Tally] = {}
    recalled = []
    key = {
        "weights": weights,
        "dataset": assembled.dataset.fingerprint,
        "device": assembled.device.type,
        "precision": assembled.precision.name,
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
        "batch": str(config.batch),
        "flip": str(config.flip),
        "code": code_version(),
    }
    for split in splits:
        path, key["rows"] = cache / f"{split}.safetensors", str(assembled.dataset.split(split).rows)
        found = None if again else kept.read_tally(path, key)
        if found is None:
            found = _scored(assembled, split, config.batch, config.flip)
            kept.write_tally(path, key, found)
        else:
            recalled.append(split)
        tallies[split] = found
    return tallies, recalled


def _scored(assembled: Assembled, split: str, batch: int | Literal["auto"], flip: bool) -> Tally:
    if flip and not isinstance(assembled.dataset.inputs, Images):
        raise ConfigError("evaluate.flip: mirrors pictures; this data has none")
    model = assembled.model
    if flip:
        model = Mirrored(model, classes=assembled.task_config.kind == "classification")
    data = assembled.dataset.split(split)
    batches = assembled.batches(split)
    size = auto_batch(assembled, batches.tokens_per_row) if batch == "auto" else batch
    precision, device = assembled.precision, assembled.device

    def scored(rows: int) -> Tally:
        return evaluate(
            assembled.task, model, batches.in_order(rows), device, lambda: precision.autocast(device)
        )

    try:
        tally, _ = in_parts(scored, size, f"scoring {split}", 1 if batch == "auto" else size)
    except DataError as error:
        raise DataError(f"{split}: {error}") from None
    with_extent(tally, data)
    return tally if batches.scored is None else tally.take(np.argsort(batches.scored))


def in_parts(scored: Callable[[int], T], rows: int, what: str, least: int = 1) -> tuple[T, int]:
    """What `scored` gives for so many rows at once, or half as many until they fit; and how many did.

    MemoryLimitError, which begins with `what`, where `least` rows do not fit.
    """
    while True:
        if (found := within_memory(scored, rows)) is not None:
            return found, rows
        if rows <= least:
            raise MemoryLimitError(f"{what}: {rows} rows at once do not fit; lower `batch`")
        rows = max(least, rows // 2)


def auto_batch(assembled: Assembled, tokens_per_row: int) -> int:
    """Rows scored at once where `batch` is auto: of texts and pictures as many as keep logits and layers
    small, of a table a fixed number."""
    device = "cuda" if assembled.device.type == "cuda" else "cpu"
    return rows_at_once(assembled.dataset.inputs, device, tokens_per_row)


def rows_at_once(inputs: InputSpec, device: str, tokens_per_row: int) -> int:
    """The same for these inputs on a device of that kind, cpu or cuda."""
    if isinstance(inputs, Images):
        return max(1, min(FEATURE_ROWS, PIXELS[device] // (inputs.height * inputs.width)))
    if not isinstance(inputs, Tokens):
        return FEATURE_ROWS
    rows = TOKENS[device] // tokens_per_row
    if inputs.length is None:  # a stream, whose every token is predicted
        rows = min(rows, LOGIT_BYTES[device] // (tokens_per_row * inputs.vocabulary * 4))  # float32 logits
    return max(1, rows)


def with_extent(tally: Tally, data: Split) -> None:
    """Give a language tally the extent of the text it scored: its units, and its length in bytes.

    That is the split's UTF-8 length times the share of its tokens that were scored: all but the first of each
    document. End-of-text tokens count in that share and have no bytes of their own: bits per byte carries the
    cost of saying where documents end, as it should.
    """
    if isinstance(tally, LanguageTally):
        tally.all_units = len(unit_edges(data)) - 1
        if data.meta.get("bytes") and data.meta.get("tokens"):
            tally.bytes = data.meta["bytes"] * tally.tokens / data.meta["tokens"]


def splits_to_score(config: EvaluateConfig, dataset: Dataset) -> list[str]:
    """The splits asked for; else validation and test, where they exist, and those that `require` names.

    Raises ConfigError for a split that the dataset does not have.
    """
    has = dataset.splits
    required = requirements.splits_of(config.require)
    wanted: list[str] = list(config.splits or [split for split in ("validation", "test") if split in has])
    wanted += [split for split in required if split not in wanted]
    if missing := [split for split in wanted if split not in has]:
        key = "evaluate.splits" if config.splits else "evaluate.require"
        raise ConfigError(f"{key}: the dataset has no split {missing[0]!r} (it has: {', '.join(has)})")
    if not wanted:
        raise ConfigError(
            f"evaluate: the dataset has neither validation nor test (it has: {', '.join(has)}); "
            "name what to score in evaluate.splits"
        )
    return wanted


def origin(dataset: Dataset, splits: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Split -> the columns `file` and `line` of each row (of a text: of the document each unit stands in;
    of a picture: `file` alone); no columns where that is not known."""
    result: dict[str, dict[str, np.ndarray]] = {}
    for name in splits:
        split = dataset.split(name)
        if "origin" in split.arrays:
            places = np.asarray(split.arrays["origin"])  # (n, 2) of rows, or of documents
            if "documents" in split.arrays:
                starts = unit_edges(split)[:-1]
                places = places[np.searchsorted(split.arrays["documents"], starts, side="right")]
            if NAME_ENDS in split.arrays:
                names = [name_of(split, row) for row in range(split.rows)]
                result[name] = {"file": np.array(names, dtype=object)}
                continue
            files = np.asarray(split.sources, dtype=object)
            result[name] = {"file": files[places[:, 0]], "line": places[:, 1]}
    return result


def samples(assembled: Assembled, config: SamplesConfig) -> list[dict[str, Any]]:
    """Continuations of the prompts, each a function of the run's seed and the numbers of prompt and text.

    ConfigError where the model does not write text.
    """
    if not isinstance(assembled.task_config.outputs(assembled.dataset.card["targets"]), NextToken):
        raise ConfigError("evaluate.samples: is for language models; this model writes no text")
    dataset, model, precision = assembled.dataset, cast(Transformer, assembled.model), assembled.precision
    speaker = speaking.of(dataset.card, dataset.directory, model)
    numbers = [(at, copy) for at in range(len(config.prompts)) for copy in range(config.count)]
    try:
        given = [speaker.prompt(prompt) for prompt in config.prompts]
    except BadConversation as error:
        raise ConfigError(f"evaluate.samples: {error}") from None
    prompts = [
        given[at] or [first_token(dataset, seeds.derive(assembled.seed, "document", at, copy))]
        for at, copy in numbers
    ]
    order = Order(config.tokens, Sampling(config.temperature, config.top_k, config.top_p, config.min_p))
    chances = [seeds.derive(assembled.seed, "sample", *number) for number in numbers]
    writer = speaker.writer(model, assembled.device, lambda: precision.autocast(assembled.device))
    missing = ""
    try:
        written = [found.text for found in writer.write(prompts, order, chances)]
    except FloatingPointError as error:
        written, missing = [""] * len(numbers), str(error)
    return [
        {"prompt": config.prompts[at], "text": speaker.shown(ids) + text, "missing": missing}
        for (at, _), ids, text in zip(numbers, prompts, written, strict=True)
    ]


def first_token(dataset: Dataset, seed: int) -> int:
    """The first token of one of the train documents.

    Documents are kept apart in training, so a model never learns what follows an end-of-text token.
    """
    train = dataset.split("train")
    ends = train.arrays["documents"]  # (d,)
    document = seed % len(ends)
    return int(train.arrays["tokens"][0 if document == 0 else ends[document - 1]])
