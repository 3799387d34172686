"""Which tokens of a tokenizer have a role - that begins a text, ends it, pads it - by the files beside it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

CONFIG, MAP, MODEL = "tokenizer_config.json", "special_tokens_map.json", "config.json"
MAX_BYTES = 200_000_000  # of each file of a tokenizer
_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "<|end▁of▁sentence|>", "[SEP]")


def read(directory: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """The tokens that a model's directory gives a role: eos_token and so on.

    As transformers reads them: special_tokens_map.json goes before tokenizer_config.json, unless the latter
    lists its added tokens too. What begins or ends a text is, where neither names it, the control token whose
    id the model's config.json has.
    """
    found = _named(directory)
    model, added = said_in(directory / MODEL), tokenizer.get_added_tokens_decoder()
    for key in _missing(found):
        ids = model.get(f"{key}_id")
        first = ids[0] if isinstance(ids, list) and ids else ids  # of the several ends of chat models
        if isinstance(first, int) and first in added and added[first].special:
            found[key] = added[first].content
    return found


def files(directory: Path) -> list[Path]:
    """What `read` looks into, as far as it is there."""
    names = [CONFIG]
    if _has_map(said_in(directory / CONFIG)):
        names.append(MAP)
    if _missing(_named(directory)):
        names.append(MODEL)
    return [directory / name for name in names if (directory / name).is_file()]


def begin_of(directory: Path, tokenizer: Tokenizer) -> int | None:
    """The id of the token that begins a text, where one is named."""
    return tokenizer.token_to_id(read(directory, tokenizer).get("bos_token", ""))


def end_of(directory: Path, tokenizer: Tokenizer) -> int | None:
    """The id of the token that ends a text: the one that is named, else the first with a usual name."""
    ids = map(tokenizer.token_to_id, [read(directory, tokenizer).get("eos_token", ""), *_ENDS])
    return next((number for number in ids if number is not None), None)


def _named(directory: Path) -> dict[str, str]:
    """What the tokenizer's own files say, without the model's."""
    config = said_in(directory / CONFIG)
    if _has_map(config):
        config |= said_in(directory / MAP)
    found = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found[key] = text
    return found


def _has_map(config: dict[str, Any]) -> bool:
    return "added_tokens_decoder" not in config


def _missing(named: dict[str, str]) -> list[str]:
    return [key for key in ("bos_token", "eos_token") if key not in named]


def said_in(path: Path) -> dict[str, Any]:
    """A file that may be missing or broken, in which case it says nothing."""
    content: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= MAX_BYTES:
            content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
