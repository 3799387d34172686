"""Tokens a second of generation: keys and values kept, not kept, and transformers' generate, in turn.

    python scripts/benchmarks/generation.py [--model DIRECTORY] [--save] [--short]

The model is a llama of 42 million parameters with random weights (depth 8, width 512, 32,000 tokens), the
same for both; greedy, no end token. Prompts of unequal lengths are filled up on the left. --model: a Hugging
Face directory with a reference.json (`text`, `greedy_ids`): its greedy tokens are compared with both first.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from common import parser, ratios, save, show, spread, table, versions

from llmtool.core.contracts import NextToken, Tokens
from llmtool.models import pretrained
from llmtool.models.generation import generate
from llmtool.models.transformer import TransformerConfig

VOCABULARY, CONTEXT = 32_000, 1024
SETTINGS = {"one prompt of 32": [32], "8 prompts of 16 to 128": [128, 100, 90, 77, 64, 48, 30, 16]}


def main() -> None:
    """Build the model, check that all give the same tokens, time them in turn."""
    made: argparse.ArgumentParser = parser(__doc__ or "")
    made.add_argument("--model", help="a directory with reference.json")
    options = made.parse_args()
    figures: dict[str, Any] = {}
    if options.model:
        figures["reference"] = reference(Path(options.model))
    sizes = {"depth": 2, "width": 64} if options.short else {"depth": 8, "width": 512}
    tokens, repeats = (16, 2) if options.short else (48, 5)
    config = TransformerConfig(architecture="llama", heads=8, context=CONTEXT, **sizes)
    torch.manual_seed(0)
    ours: Any = config.build(Tokens(VOCABULARY), NextToken(VOCABULARY)).eval()
    with tempfile.TemporaryDirectory() as folder:
        pretrained.save(ours, Path(folder))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = []
    for name, lengths in SETTINGS.items():
        found = measured(ours, theirs, lengths, tokens, repeats)
        figures[name] = found
        rows += [[name, who, show(found[who], 1)] for who in ("kept", "not kept", "transformers")]
        rows.append([name, "kept / transformers", show(found["kept / transformers"], 2)])
    table("tokens a second", ["prompts", "who", "tokens/s"], rows)
    if options.model:
        sys.argv[1:] = ["--model", Path(options.model).resolve().parent.name, "--save"]
    save(options, "generation", figures, versions("torch", "transformers"))


def measured(ours: Any, theirs: Any, lengths: list[int], tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of each, in turn; all must write the same."""
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, VOCABULARY, (n,), generator=draw).tolist() for n in lengths]
    longest = max(lengths)
    inputs = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    ways: dict[str, Callable[[], list[list[int]]]] = {
        "kept": lambda: generate(ours, prompts, tokens),
        "transformers": lambda: theirs.generate(
            inputs,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[:, longest:].tolist(),
        "not kept": lambda: not_kept(ours, prompts, tokens),
    }
    texts = {name: way() for name, way in ways.items()}
    kept = texts["kept"]
    same = {name: sum(a == b for a, b in zip(text, kept, strict=True)) for name, text in texts.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, way in ways.items():
            if name == "not kept" and repeat >= 2:  # it takes by far the longest
                continue
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    rates = {name: [len(prompts) * tokens / one for one in took] for name, took in seconds.items()}
    return {
        **{name: spread(rate) for name, rate in rates.items()},
        "kept / transformers": ratios(rates["kept"], rates["transformers"]),
        "kept / not kept": ratios(rates["kept"][: len(rates["not kept"])], rates["not kept"]),
        "texts": len(prompts),
        "texts equal to ours": same,
        "tokens": tokens,
    }


@torch.no_grad()
def not_kept(model: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Every token from the whole text before it, one prompt after the other."""
    written = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(tokens):
            ids.append(int(model.logits(model.hidden(torch.tensor([ids]))[:, -1]).argmax()))
        written.append(ids[len(prompt) :])
    return written


def reference(directory: Path) -> dict[str, Any]:
    """Whether greedy tokens are those that stand beside a checkpoint, and transformers'."""
    known = json.loads((directory / "reference.json").read_text(encoding="utf-8"))["greedy_ids"]
    ours: Any = pretrained.load(directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    text = json.loads((directory / "reference.json").read_text(encoding="utf-8"))["text"]
    ids = tokenizer(text)["input_ids"]
    new = len(known) - len(ids)
    mine = ids + generate(ours, [ids], new)[0]
    given = torch.tensor([ids])
    other = theirs.generate(given, max_new_tokens=new, do_sample=False, pad_token_id=0)[0].tolist()
    longer = generate(ours, [ids], 400)[0]
    beyond = theirs.generate(given, max_new_tokens=400, do_sample=False, pad_token_id=0,
                             eos_token_id=None)[0].tolist()[len(ids) :]  # fmt: skip
    found = {"tokens": len(known), "ours": mine == known, "transformers": other == known,
             "400 tokens equal to transformers": longer == beyond}  # fmt: skip
    print(found)
    return found


if __name__ == "__main__":
    main()
