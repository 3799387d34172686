"""Why a scored model said so: which columns it leans on, and what made the difference in a few rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmtool.core.contracts import Batch, Features, Images, InputSpec, Tally, Tokens
from llmtool.core.errors import ConfigError
from llmtool.data import batches as rows_of
from llmtool.data import decoding
from llmtool.data.batches import Batches
from llmtool.data.store import Dataset
from llmtool.data.tokenizers import FittedTokenizer
from llmtool.evaluation import EvaluateConfig, attribution, png
from llmtool.evaluation.attribution import Attribution, ExplainConfig
from llmtool.evaluation.loop import eval_mode
from llmtool.metrics.classification import ClassificationTally
from llmtool.metrics.labels import LabelTally
from llmtool.metrics.regression import RegressionTally
from llmtool.stages.assemble import Assembled
from llmtool.stages.importance import importance
from llmtool.stages.score import origin

FILE = "explain.json"
MEAN_ROWS = 10_000  # train rows whose mean a table's rows are compared with
BLUR = 1 / 8  # deviation of the blur, as a share of a picture's shorter side
FITS = {Features: ("mean",), Images: ("mean", "black", "blur"), Tokens: ("padding",)}


def refuse(assembled: Assembled, config: EvaluateConfig, splits: list[str]) -> None:
    """ConfigError where `evaluate.explain` asks for what this model or this data does not have."""
    asked = config.explain
    if asked is None:
        return
    if assembled.targets["kind"] not in ("classes", "labels", "values"):
        raise ConfigError("evaluate.explain: is for classes, labels and values of rows; this model has none")
    if asked.split is not None and asked.split not in splits:
        raise ConfigError(
            f"evaluate.explain.split: {asked.split} is not scored (scored: {', '.join(splits)})"
        )
    kinds = FITS[type(assembled.dataset.inputs)]
    if asked.baseline not in ("auto", *kinds):
        known = ", ".join(["auto", *kinds])
        raise ConfigError(
            f"evaluate.explain.baseline: {asked.baseline} is not for this data (choices: {known})"
        )
    split = asked.split or splits[-1]
    there = assembled.dataset.split(split).rows
    if asked.rows and not all(1 <= number <= there for number in asked.rows):
        raise ConfigError(f"evaluate.explain.rows: {split} has the rows 1 to {there:,}")


def explain(assembled: Assembled, tallies: Mapping[str, Tally], config: EvaluateConfig) -> dict[str, Any]:
    """The content of explain.json, of one split. Scores and gradients are of float32, in eval mode."""
    asked = config.explain
    assert asked is not None
    split = asked.split or list(tallies)[-1]
    tally, batches = tallies[split], assembled.batches(split)
    document: dict[str, Any] = {"format": 1, "split": split, "importance": None, "examples": []}
    chosen = (
        [(number - 1, "asked for") for number in asked.rows] if asked.rows else _chosen(tally, asked.examples)
    )
    model, notes = assembled.model, []
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    with eval_mode(model):
        model.requires_grad_(False)
        try:
            if asked.repeats and _has_columns(assembled.dataset.inputs):
                document["importance"] = importance(assembled, split, config)
            explainer = _explainer(assembled, asked, batches)
            if explainer is None:
                notes.append(
                    "no row is explained: that needs a vector for each token, which a bag of n-grams has not"
                )
                chosen = []
            document["examples"] = [
                _example(assembled, split, tally, batches, row, why, explainer, asked) for row, why in chosen
            ]
        finally:
            for parameter, wanted in zip(model.parameters(), frozen, strict=True):
                parameter.requires_grad_(wanted)
    return document | {"notes": notes}


def _has_columns(inputs: InputSpec) -> bool:
    return isinstance(inputs, Features) or (isinstance(inputs, Tokens) and inputs.features > 0)


# --- which rows ---


def _chosen(tally: Tally, count: int) -> list[tuple[int, str]]:
    """Of classes the surest right and wrong rows and the least sure ones; of values those that are least and
    most off."""
    if isinstance(tally, ClassificationTally | LabelTally):
        if isinstance(tally, ClassificationTally):
            sure = tally.judgement().probabilities.max(axis=1)
            right = tally.judgement().predicted == tally.judgement().targets
        else:  # by the label that a row has most of
            sure, strongest = tally.seen().shares.max(axis=1), tally.seen().shares.argmax(axis=1)
            right = tally.seen().targets[np.arange(len(strongest)), strongest]
        groups = [
            ("surest right", -np.where(right, sure, -1), right),
            ("surest wrong", -np.where(right, -1, sure), ~right),
            ("least sure", sure, np.ones(len(sure), dtype=bool)),
        ]
    elif isinstance(tally, RegressionTally):
        predictions, targets = tally.pairs()
        off = np.abs((predictions - targets) / np.where(tally.scale == 0, 1.0, tally.scale)).max(axis=1)
        every = np.ones(len(off), dtype=bool)
        groups = [("furthest off", -off, every), ("closest", off, every)]
    else:
        return []
    found: dict[int, str] = {}
    for why, order, there in groups:
        rows = [int(row) for row in np.argsort(order, kind="stable")[:count] if there[row]]
        for row in rows:
            found.setdefault(row, why)
    return list(found.items())


# --- how an answer follows from floats ---


class _Explainer:
    """How a row of one kind of data becomes floats, what its baseline is, what is said of its parts."""

    def __init__(self, assembled: Assembled, asked: ExplainConfig) -> None:
        self.assembled, self.asked, self.model = assembled, asked, assembled.model
        self.compared = ""

    def row(self, raw: Batch, batch: Batch) -> Tensor:
        """What the gradients are taken by. raw, batch: the row before and after it went to the device."""
        return batch.inputs[0].float()

    def baseline(self, row: Tensor, batch: Batch) -> Tensor:
        """What the row is compared with."""
        raise NotImplementedError

    def outputs(self, path: Tensor, batch: Batch) -> Tensor:
        """(S, ...) rows -> (S, C)."""
        return self.model(path, None).float()

    def parts(self, row: int, split: str, raw: Batch, found: Attribution) -> dict[str, Any]:
        """What the attribution says, for the document."""
        raise NotImplementedError


class _Table(_Explainer):
    """Features; those of a column are added up."""

    def __init__(self, assembled: Assembled, asked: ExplainConfig) -> None:
        super().__init__(assembled, asked)
        self.mean = _mean(assembled)
        self.compared = "mean of the train rows"

    def baseline(self, row: Tensor, batch: Batch) -> Tensor:
        """The mean of the train rows: of a category, how often each comes."""
        return self.mean

    def parts(self, row: int, split: str, raw: Batch, found: Attribution) -> dict[str, Any]:
        """A part for each column, with its cell."""
        return {"parts": _cells(self.assembled.dataset, split, row, found.values)}


def _mean(assembled: Assembled) -> Tensor:
    """(F,) of the features of the train rows."""
    inputs = decoding.features_of(assembled.dataset.split("train"))
    step = max(1, len(inputs) // MEAN_ROWS)
    mean = np.asarray(inputs[::step], np.float64).mean(axis=0)
    return torch.from_numpy(mean.astype(np.float32)).to(assembled.device)


def _cells(dataset: Dataset, split: str, row: int, attributed: np.ndarray) -> list[dict[str, Any]]:
    """A part for each column of a row, with its cell, the weightiest first. attributed: (F,) by feature."""
    cells, features = decoding.cells_of(dataset, split, row), dataset.card["inputs"].get("names", [])
    parts = []
    for name, block in decoding.blocks_of(dataset.card).items():
        values = attributed[block]
        inside = dict(zip(features[block], values.tolist(), strict=True)) if len(values) > 1 else {}
        inside = {feature: value for feature, value in inside.items() if value}
        part = {"name": name, "value": cells.get(name), "attribution": float(values.sum())}
        parts.append(part | ({"features": inside} if inside else {}))
    return sorted(parts, key=lambda part: -abs(part["attribution"]))


class _Text(_Explainer):
    """Tokens, by the vectors that stand for them; those around a text are the baseline's too. Columns beside
    the text lie on the same path, which begins at their mean."""

    def __init__(self, assembled: Assembled, asked: ExplainConfig, embedding: nn.Embedding) -> None:
        super().__init__(assembled, asked)
        self.embedding, state = embedding, assembled.dataset.card["encoder"]
        self.before, self.after = len(state["prefix"]), len(state["suffix"])
        self.tokenizer = FittedTokenizer.from_state(state["tokenizer"], assembled.dataset.directory)
        named = [self.tokenizer.tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>", "<|padding|>")]
        # 0: what rows are padded with
        self.padding = next((number for number in named if number is not None), 0)
        self.compared = f"padding ({self.tokenizer.tokenizer.id_to_token(self.padding)})"
        self.mean = None
        if _has_columns(assembled.dataset.inputs):
            self.mean = _mean(assembled)
            self.compared += " and the mean of the train rows' columns"

    def row(self, raw: Batch, batch: Batch) -> Tensor:
        """(T * D,) vectors of the tokens, or (K * T * D,) of a text in chunks, then the features."""
        return self._joined(batch.inputs[0], None if batch.features is None else batch.features[0])

    def baseline(self, row: Tensor, batch: Batch) -> Tensor:
        """The same with the vector of padding for each token of the text itself, and the columns' mean."""
        ids = torch.full_like(batch.inputs[0], self.padding)
        end = ids.shape[-1] - self.after
        for around in (slice(None, self.before), slice(end, None)):  # each chunk of a text has them
            ids[..., around] = batch.inputs[0][..., around]
        return self._joined(ids, self.mean)

    def _joined(self, ids: Tensor, features: Tensor | None) -> Tensor:
        vectors = self.embedding(ids).detach().float().flatten()
        return vectors if features is None else torch.cat([vectors, features.float()])

    @property
    def columns(self) -> int:
        """How many of a row's numbers are features."""
        return 0 if self.mean is None else len(self.mean)

    def outputs(self, path: Tensor, batch: Batch) -> Tensor:
        """(S, ...) rows -> (S, C)."""
        vectors, features = path.split([path.shape[1] - self.columns, self.columns], dim=1)
        vectors = vectors.unflatten(1, (*batch.inputs.shape[1:], -1))  # (S, T, D), or (S, K, T, D)
        every = [
            None if part is None else part.expand(len(path), *part.shape[1:])
            for part in (batch.inputs, batch.segments)
        ]
        with attribution.embedded(self.embedding, vectors.flatten(0, -3)):
            return self.model(*every, *([features] if self.columns else [])).float()

    def parts(self, row: int, split: str, raw: Batch, found: Attribution) -> dict[str, Any]:
        """A part for each token, in the order of the text; then one for each column, with its cell."""
        ids = raw.inputs[0].flatten().tolist()
        names = self.tokenizer.decode_all([[number] for number in ids])
        vectors, features = np.split(found.values, [len(found.values) - self.columns])
        values = vectors.reshape(len(ids), -1).sum(axis=1).tolist()  # (T * D,) -> (T,)
        parts = [{"name": name, "attribution": value} for name, value in zip(names, values, strict=True)]
        if self.columns:
            parts += _cells(self.assembled.dataset, split, row, features)
        return {"parts": parts}


class _Picture(_Explainer):
    """Pixels; those of the channels are added up."""

    def __init__(self, assembled: Assembled, asked: ExplainConfig) -> None:
        super().__init__(assembled, asked)
        self.kind = "mean" if asked.baseline == "auto" else asked.baseline
        self.compared = {"mean": "the mean colour", "black": "black", "blur": "itself, blurred"}[self.kind]
        inputs = assembled.dataset.card["inputs"]
        self.mean, self.deviation = (torch.tensor(inputs[name]).view(-1, 1, 1) for name in ("mean", "std"))

    def baseline(self, row: Tensor, batch: Batch) -> Tensor:
        """Of the picture's own size, standardised as it is."""
        if self.kind == "mean":
            return torch.zeros_like(row)
        if self.kind == "black":
            return (-self.mean / self.deviation).to(row).expand_as(row).clone()
        return _blurred(row)

    def parts(self, row: int, split: str, raw: Batch, found: Attribution) -> dict[str, Any]:
        """The picture, what each pixel adds, and both together to be looked at."""
        planes = raw.inputs[0].float().numpy()
        pixels = found.values.sum(axis=0)  # (c, h, w) -> (h, w)
        return {
            "pixels": np.vectorize(lambda value: float(f"{value:.4g}"))(pixels).tolist(),
            "picture": png.data_uri(png.picture(planes)),
            "heat": png.data_uri(png.heat(planes, pixels)),
        }


def _blurred(row: Tensor) -> Tensor:
    """(c, h, w) through a Gaussian of an eighth of its shorter side, edges repeated."""
    sigma = max(1.0, BLUR * min(row.shape[1:]))
    half = int(min(3 * sigma, min(row.shape[1:]) - 1))
    at = torch.arange(-half, half + 1, device=row.device, dtype=row.dtype)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    planes = row[:, None]  # (c, 1, h, w)
    for pad, shape in (((half, half, 0, 0), (1, 1, 1, -1)), ((0, 0, half, half), (1, 1, -1, 1))):
        planes = F.conv2d(F.pad(planes, pad, mode="replicate"), kernel.view(shape))
    return planes[:, 0]


def _explainer(assembled: Assembled, asked: ExplainConfig, batches: Batches) -> _Explainer | None:
    """None for a model of texts without a vector for each token."""
    if isinstance(assembled.dataset.inputs, Features):
        return _Table(assembled, asked)
    if isinstance(assembled.dataset.inputs, Images):
        return _Picture(assembled, asked)
    model: Any = assembled.model
    some = rows_of.gather(batches, np.array([0])).to(assembled.device)
    embedding = attribution.token_embedding(model, list(model.embeddings), some.inputs, *some.arguments[1:])
    return None if embedding is None else _Text(assembled, asked, embedding)


def _example(
    assembled: Assembled, split: str, tally: Tally, batches: Batches, row: int, why: str,
    explainer: _Explainer | None, asked: ExplainConfig,
) -> dict[str, Any]:  # fmt: skip
    """One row: what was said of it, and what each of its parts adds to that."""
    assert explainer is not None
    raw = rows_of.gather(batches, np.array([row]))
    batch = raw.to(assembled.device)
    about, of, scale, shift = _answer(tally, row)
    inside: Callable[[Tensor], Tensor] = lambda path: of(explainer.outputs(path, batch))  # noqa: E731
    where = explainer.row(raw, batch)
    found = attribution.explain(inside, where, explainer.baseline(where, batch), asked.tolerance)
    if scale != 1.0 or shift:
        found = Attribution(
            found.values * scale, found.output * scale + shift, found.base * scale + shift,
            found.error * scale, found.steps,
        )  # fmt: skip
    known = origin(assembled.dataset, [split]).get(split) or {}
    place = (
        ":".join(str(known[name][row]) for name in ("file", "line") if name in known) or f"row {row + 1:,}"
    )
    return {
        "row": row + 1,
        "where": place,
        "why": why,
        **about,
        "output": found.output,
        "compared_with": explainer.compared,
        "output_of_that": found.base,
        "completeness_error": found.error,
        "complete": abs(found.error) <= asked.tolerance * max(abs(scale), abs(found.output - found.base)),
        "steps": found.steps,
        **explainer.parts(row, split, raw, found),
    }


def _answer(tally: Tally, row: int) -> tuple[dict[str, Any], Callable[[Tensor], Tensor], float, float]:
    """What was said of a row; how the number that is explained follows from the outputs, and its unit."""
    if isinstance(tally, ClassificationTally):
        seen = tally.judgement()
        index = int(seen.predicted[row])
        said = {
            "target": tally.names[seen.targets[row]],
            "prediction": tally.names[index],
            "probability": float(seen.probabilities[row, index]),
            "explained": f"log-odds of {tally.names[index]}",
        }
        return said, lambda outputs: attribution.log_odds(outputs, index), 1.0, 0.0
    if isinstance(tally, LabelTally):
        label = int(tally.seen().shares[row].argmax())
        has, given = tally.seen().targets[row], tally.seen().given[row]
        said = {
            "target": ", ".join(np.array(tally.names, object)[has]) or "no label",
            "prediction": ", ".join(np.array(tally.names, object)[given]) or "no label",
            "probability": float(tally.seen().shares[row, label]),
            "explained": f"log-odds of {tally.names[label]}",
        }
        return said, lambda outputs: outputs[:, label], 1.0, 0.0  # a label's logit is just that
    assert isinstance(tally, RegressionTally)
    predictions, targets = tally.pairs()
    scale = np.where(tally.scale == 0, 1.0, tally.scale)
    at = int((np.abs(predictions[row] - targets[row]) / scale).argmax())
    said = {
        "target": float(targets[row, at]),
        "prediction": float(predictions[row, at]),
        "explained": tally.names[at],
    }
    if tally.transform is not None:  # no straight line leads back to its own unit
        said["explained"] += ", on the scale that it is learned on"
        return said, lambda outputs: outputs[:, at], 1.0, 0.0
    return said, lambda outputs: outputs[:, at], float(tally.scale[at]), float(tally.mean[at])
