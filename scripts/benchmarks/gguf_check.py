"""Our GGUF files in llama.cpp: next-token probabilities of every architecture, and a real model's text.

    pip install xllamacpp            # llama.cpp as a wheel; llmtool does not need it
    python scripts/benchmarks/gguf_check.py [CHECKPOINT]

Tiny models with random weights of every architecture, in four precisions of the file, are written by llmtool
and asked by llama.cpp for the probabilities of the next token after the same ids; the largest difference of a
log-probability among the likeliest tokens is told. CHECKPOINT: a Hugging Face directory with a
reference.json (text, greedy_ids, greedy_text), whose text llama.cpp must write too.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import xllamacpp
from common import ROOT
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from llmtool.core.contracts import NextToken, Tokens
from llmtool.data import gguf_vocabulary
from llmtool.data.gguf_vocabulary import Vocabulary
from llmtool.data.tokenizers import PATTERN, BytesTokenizer
from llmtool.models import gguf, pretrained
from llmtool.models.transformer import TransformerConfig

RESULT = Path(__file__).parent / "results/gguf_check.json"
VOCABULARY, LENGTH, LIKELIEST = 300, 40, 50
SMALL = {"depth": 2, "heads": 4, "width": 64, "context": 64, "feed_forward": 96}
LONG = {"kind": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.5] * 4, "original_context": 32}
# digits, scripts, blanks of all kinds, apostrophes, what is no letter
HARD = [
    "In 2024, 1234567 people paid $3.50!!", "ünïcode Straße ЖУК 漢字 かな 🙂👩‍👩‍👧",
    "a  b   c\td\n\n\ne \n f", "it's I'LL we'Ve", " leading", "trailing ",
    "x = {y: [1, 2]};\r\n\r\n", "", "e\u0301 \u00a0 \u200b end", "\u00bd \u2167 \u0663\u0664",
]  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "llama": {"key_value_heads": 2},
    "llama, biases, untied": {"attention_bias": True, "mlp_bias": True, "tie_embeddings": False},
    "llama, scaled as Llama 3": {
        "rope_scaling": {"kind": "llama3", "factor": 4.0, "original_context": 16}, "rope_theta": 500.0},
    "llama, linear scaling": {"rope_scaling": {"kind": "linear", "factor": 2.0}},
    "llama, yarn": {"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_context": 16}},
    "mistral": {"key_value_heads": 1, "window": 48},
    "qwen2": {"key_value_heads": 2},
    "qwen3": {"key_value_heads": 2, "head_width": 32},
    "gemma2": {"attention_soft_cap": 50.0, "logit_soft_cap": 30.0, "window": 8, "depth": 4, "head_width": 32},
    "gemma3_text": {
        "window": 8, "depth": 7, "head_width": 32, "key_value_heads": 2, "rope_theta_window": 500.0},
    "phi3": {"key_value_heads": 2},
    "phi3, part of a head, longrope": {"rope_scaling": LONG, "rotary_share": 0.5},
    "olmo2": {"key_value_heads": 2},
    "olmo2, untied": {"tie_embeddings": False},
    "smollm3": {"depth": 4},
    "gpt2": {},
}  # fmt: skip


def serve(path: Path, context: int) -> Any:
    """llama.cpp with a model."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = context, 1, False
    parameters.fit_params, parameters.verbosity, parameters.cpuparams.n_threads = False, 0, 1
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(parameters)


def some_words() -> Vocabulary:
    """A tokenizer of plain words: llama.cpp tells no probabilities of half characters."""
    tokens = [f"word{number}" for number in range(VOCABULARY)]
    kinds = [gguf_vocabulary.NORMAL] * (VOCABULARY - 1) + [gguf_vocabulary.CONTROL]
    return Vocabulary("gpt2", "gpt-2", tokens, kinds, [VOCABULARY - 1], None, add_begin=False)


def difference(keys: dict[str, Any], kind: gguf.Kind, directory: Path) -> float:
    """The largest difference of a log-probability of the likeliest tokens after LENGTH ids."""
    torch.manual_seed(0)
    model = TransformerConfig(**SMALL | keys).build(Tokens(VOCABULARY), NextToken(VOCABULARY)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too: what is left out shows
            parameter += 0.2 * torch.randn(parameter.shape)
    ids = torch.randint(256, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()
    path = directory / "model.gguf"
    gguf.write(model, path, some_words(), kind, "check", {})
    server = serve(path, SMALL["context"])
    answer = server.handle_completions(
        {"prompt": ids, "n_predict": 1, "n_probs": LIKELIEST, "temperature": 0, "cache_prompt": False}
    )  # fmt: skip
    found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    with torch.no_grad():
        ours = model(torch.tensor([ids]))[0, -1].double().log_softmax(-1)
    assert len(found) >= LIKELIEST, len(found)
    return max(abs(float(ours[entry["id"]]) - entry["logprob"]) for entry in found)


def text_of(directory: Path, kind: gguf.Kind, place: Path) -> dict[str, Any]:
    """What llama.cpp writes from a real model's GGUF, beside its reference."""
    reference = json.loads((directory / "reference.json").read_text())
    model: Any = pretrained.load(directory)
    end = json.loads((directory / "config.json").read_text())["eos_token_id"]
    words = gguf_vocabulary.read(directory, model.inputs.vocabulary, [end], None)
    gguf.write(model, place / "model.gguf", words, kind, directory.name, {})
    server = serve(place / "model.gguf", model.context)
    prompt = len(pretrained_ids(directory, reference["text"]))
    answer = server.handle_completions(
        {"prompt": reference["text"], "n_predict": len(reference["greedy_ids"]) - prompt, "temperature": 0,
         "n_probs": 1}
    )  # fmt: skip
    choice = answer["choices"][0]
    ids = [entry["id"] for entry in choice["logprobs"]["content"]]
    text = reference["text"] + choice["text"]
    return {"text": text, "same ids": ids == reference["greedy_ids"][prompt:],
            "same text": text == reference["greedy_text"]}  # fmt: skip


def tokenizers_of(place: Path) -> Iterator[tuple[str, Path]]:
    """Tokenizers of every kind that has a form, each in a directory: one for each pattern's name."""
    texts = (ROOT / "configs/data/tinyshakespeare.txt").read_text()[:200_000]

    def save(name: str, step: pre_tokenizers.PreTokenizer, ignore: bool) -> tuple[str, Path]:
        tokenizer = Tokenizer(models.BPE(ignore_merges=ignore))
        tokenizer.pre_tokenizer, tokenizer.decoder = step, decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=1000, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator([texts], trainer)
        (place / name).mkdir()
        tokenizer.save(str(place / name / "tokenizer.json"))
        return name, place / name

    def split(pattern: str) -> pre_tokenizers.PreTokenizer:
        bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bare])

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    yield save("gpt-2", whole, False)
    yield save("dbrx", split(PATTERN), False)
    yield save("llama-bpe", split(PATTERN), True)
    yield save("qwen2", split(gguf_vocabulary.DIGITS), False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    yield save("smollm", pre_tokenizers.Sequence([digits, whole]), False)
    (place / "bytes").mkdir()
    BytesTokenizer().fit(lambda: iter(())).save(place / "bytes")
    yield "bytes", place / "bytes"


def cut_alike(directory: Path, end: int, place: Path) -> dict[str, Any]:
    """Texts cut by llama.cpp and by the tokenizer itself."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    model = TransformerConfig(**SMALL).build(Tokens(size), NextToken(size))
    words = gguf_vocabulary.read(directory, size, [end], None)
    gguf.write(model, place / "model.gguf", words, "fp32", "check", {})
    server = serve(place / "model.gguf", SMALL["context"])
    lines = (ROOT / "configs/data/tinyshakespeare.txt").read_text()[300_000:340_000].split("\n\n")
    texts = [*HARD, *lines]
    wrong = []
    for text in texts:
        body = json.dumps({"content": text, "add_special": True, "parse_special": False}).encode()
        asked = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked) as answer:
            if json.load(answer)["tokens"] != tokenizer.encode(text).ids:
                wrong.append(text)
    return {"pattern": words.pre, "texts": len(texts), "otherwise": wrong}


def pretrained_ids(directory: Path, text: str) -> list[int]:
    """The ids of a text by the tokenizer beside the model."""
    return Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids


def _allowed(case: str) -> float:
    """llama.cpp takes GELU from a table of fp16 numbers on a CPU."""
    return 5e-3 if case.startswith(("gemma", "gpt2")) else 5e-5


def main() -> None:
    """Run all cases; RESULT is written, and the exit code is 1 where one is wrong."""
    result: dict[str, Any] = {"llama.cpp": f"xllamacpp {xllamacpp.__version__}", "cases": {}}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for case, keys in CASES.items():
            architecture = {"architecture": case.partition(",")[0]}
            kinds: tuple[gguf.Kind, ...] = ("fp32", "fp16", "bf16", "q8_0")
            found = {kind: difference(architecture | keys, kind, place) for kind in kinds}
            result["cases"][case] = found
            print(f"{case:32}", *(f"{kind} {value:.2g}  " for kind, value in found.items()), flush=True)
        result["tokenizers"] = {}
        ours = [(name, path, Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab_size() - 1)
                for name, path in tokenizers_of(place)]  # fmt: skip
        for name, path, end in [*ours, *((path.parent.name, path, 2) for path in map(Path, sys.argv[1:]))]:
            result["tokenizers"][name] = cut_alike(path, end, place)
            print(name, result["tokenizers"][name], flush=True)
        for checkpoint in map(Path, sys.argv[1:]):
            result["text"] = {kind: text_of(checkpoint, kind, place) for kind in ("fp32", "fp16", "q8_0")}
            print(result["text"])
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    wrong = [case for case, found in result["cases"].items() if not found["fp32"] < _allowed(case)]
    wrong += [name for name, found in result["tokenizers"].items() if found["otherwise"]]
    wrong += [kind for kind, found in result.get("text", {}).items() if not found["same text"]]
    print("all as expected" if not wrong else f"wrong: {wrong}", flush=True)
    os._exit(1 if wrong else 0)  # llama.cpp's servers do not end by themselves


if __name__ == "__main__":
    main()
