"""Encoders in the parity table: the hidden state of every token, and logits where there is a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmtool.models import pretrained
from tests.models.parity.pair import Family, Pair, largest

VOCABULARY, LENGTH = 61, 24
LENGTHS = (24, 13, 10)  # of the rows that are filled up
DOCUMENTS = (10, 5, 9)  # in one row


def ids(rows: int = 3) -> Tensor:
    """(3, 24) ids, none of them that of padding, by which RoBERTa tells it."""
    return torch.randint(3, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def _both(pair: Pair, hidden: tuple[Tensor, Tensor], logits: tuple[Tensor, Tensor] | None) -> float:
    found = largest(*hidden)
    return found if logits is None or pair.ours.outputs is None else max(found, largest(*logits))


def _body(pair: Pair) -> Any:
    return getattr(pair.theirs, pair.theirs.base_model_prefix, pair.theirs)


@torch.no_grad()
def plain(pair: Pair) -> float:
    """Whole rows."""
    ours: Any = pair.ours
    logits = getattr(pair.theirs(ids()), "logits", None)
    hidden = (ours.hidden(ids()), _body(pair)(ids())[0])
    return _both(pair, hidden, None if logits is None else (ours(ids()), logits))


def _padded(pair: Pair, mask: Tensor, heads: bool) -> float:
    ours: Any = pair.ours
    padding = ours.config.padding
    inputs = torch.where(mask.bool(), ids(), padding)
    positions = (mask.cumsum(1) - 1).clamp(min=0) + ours.embed.offset
    hidden = _body(pair)(inputs, attention_mask=mask, position_ids=positions)[0]
    real, segments = mask.bool(), mask.int()
    logits = getattr(pair.theirs(inputs, attention_mask=mask), "logits", None) if heads else None
    both = (ours.hidden(inputs, segments)[real], hidden[real])
    return _both(pair, both, None if logits is None else (ours(inputs, segments), logits))


@torch.no_grad()
def padded_right(pair: Pair) -> float:
    """Rows of different lengths, filled up at their ends."""
    return _padded(pair, torch.tensor([[1] * n + [0] * (LENGTH - n) for n in LENGTHS]), heads=True)


@torch.no_grad()
def padded_left(pair: Pair) -> float:
    """Rows of different lengths, filled up at their beginnings; there theirs pools a place of padding."""
    return _padded(pair, torch.tensor([[0] * (LENGTH - n) + [1] * n for n in LENGTHS]), heads=False)


@torch.no_grad()
def packed(pair: Pair) -> float:
    """Several texts in one row of ours, each alone in theirs."""
    ours: Any = pair.ours
    row = ids(1)
    segments = torch.tensor([[number + 1 for number, n in enumerate(DOCUMENTS) for _ in range(n)]])
    alone = [_body(pair)(part)[0] for part in row.split(DOCUMENTS, dim=1)]
    return largest(ours.hidden(row, segments), torch.cat(alone, dim=1))


@torch.no_grad()
def saved(pair: Pair) -> float:
    """What we save of it, loaded by transformers."""
    import transformers

    directory = pair.directory / "ours"
    directory.mkdir(exist_ok=True)
    pretrained.save(pair.ours, directory)
    if pair.ours.outputs is None:
        auto: Any = transformers.AutoModel
        again = auto.from_pretrained(directory).eval()
        return largest(again(ids())[0], _body(pair)(ids())[0])
    auto = transformers.AutoModelForSequenceClassification
    again, info = auto.from_pretrained(directory, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return largest(again.eval()(ids()).logits, pair.theirs(ids()).logits)


CASES = {
    "plain": plain,
    "padded right": padded_right,
    "padded left": padded_left,
    "packed": packed,
    "saved": saved,
}
CLASSES, BODY = "AutoModelForSequenceClassification", "AutoModel"
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
DISTIL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 40,
}
ROBERTA = SIZES | {"max_position_embeddings": 42, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
MODERN = SIZES | {
    "num_hidden_layers": 5,
    "local_attention": 8,
    **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "cls_token_id": 2, "sep_token_id": 1},
}


def _family(name: str, model_type: str, auto: str, **config: Any) -> Family:
    more = {} if auto == BODY or "problem_type" in config else {"num_labels": 3}
    return Family(name, {"model_type": model_type, **more, **config}, auto, CASES)


ENCODERS = (
    _family("bert", "bert", CLASSES, **SIZES),
    _family("bert, gelu_new, one value", "bert", CLASSES, **SIZES, hidden_act="gelu_new", num_labels=1,
            problem_type="regression"),
    _family("bert, body (minilm)", "bert", BODY, **SIZES),
    _family("bert, masked words", "bert", "AutoModelForMaskedLM", **SIZES),
    _family("distilbert", "distilbert", CLASSES, **DISTIL),
    _family("distilbert, relu", "distilbert", CLASSES, **DISTIL, activation="relu"),
    _family("roberta", "roberta", CLASSES, **ROBERTA),
    _family("roberta, masked words", "roberta", "AutoModelForMaskedLM", **ROBERTA),
    _family("modernbert", "modernbert", CLASSES, **MODERN),
    _family("modernbert, mean", "modernbert", CLASSES, **MODERN, classifier_pooling="mean"),
    _family("modernbert, masked words", "modernbert", "AutoModelForMaskedLM", **MODERN),
)  # fmt: skip
