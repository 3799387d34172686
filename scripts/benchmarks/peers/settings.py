"""The settings in which peers stand side by side, their text in every peer's form, how a driver is run."""

from __future__ import annotations

import argparse
import json
import pickle
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import common  # noqa: E402

SPECIAL = 2  # tokens that our characters have beside themselves: unknown, end

# rate, warmup: nanoGPT's for its CPU setting. warm: first steps that no figure counts. log: steps between two
# lines of a peer's log, at which it waits for the device.
CPU = {"device": "cpu", "precision": "fp32", "architecture": "gpt2", "rate": 1e-3, "warmup": 100, "log": 10}
CUDA = {"device": "cuda", "precision": "bf16", "rate": 6e-4, "warmup": 10, "log": 10}
LLAMA = {"architecture": "llama", "key_value_heads": 4, "feed_forward": 5632}
SETTINGS: dict[str, dict[str, Any]] = {
    # nanoGPT's published CPU setting (https://github.com/karpathy/nanoGPT#i-only-have-a-macbook)
    "cpu_small": CPU
    | {"depth": 4, "heads": 4, "width": 128, "context": 64, "batch": 12, "micro": 12}
    | {"steps": 320, "warm": 20},
    "cpu_large": CPU
    | {"depth": 6, "heads": 6, "width": 384, "context": 256, "batch": 8, "micro": 8}
    | {"steps": 45, "warm": 5},
    # GPT-2 124M, its vocabulary padded as nanoGPT pads it
    "cuda_gpt2": CUDA
    | {"architecture": "gpt2", "depth": 12, "heads": 12, "width": 768, "context": 1024, "vocabulary": 50_304}
    | {"batch": 32, "micro": 32, "steps": 70, "warm": 20},
    # the shape of TinyLlama 1.1B (https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0), context 4096
    "cuda_llama": CUDA
    | LLAMA
    | {"depth": 22, "heads": 32, "width": 2048, "context": 4096, "vocabulary": 32_000, "rate": 4e-4}
    | {"batch": 4, "micro": 4, "steps": 30, "warm": 10},
}
# a CUDA setting in small, for machines without such a device: it only shows that everything runs
MINIATURE = {"device": "cpu", "precision": "fp32", "depth": 2, "heads": 4, "width": 64, "context": 64}
MINIATURE |= {"vocabulary": 302, "batch": 4, "micro": 2, "steps": 6, "warm": 2}
MINIATURE_LLAMA = MINIATURE | {"key_value_heads": 2, "feed_forward": 192}


@dataclass(frozen=True)
class Program:
    """One of those that are compared. driver: a file here. python: the one that it runs under."""

    name: str
    driver: str
    python: str
    variant: str = ""
    source: str | None = None


def programs(names: list[str], options: argparse.Namespace) -> list[Program]:
    """The programs of these names; what a peer needs and the command line does not give is told of."""
    made = []
    for name in names:
        peer, _, variant = name.partition("+")
        driver = HERE / f"drive_{peer}.py"
        if not driver.is_file():
            raise SystemExit(f"{name}: no such peer ({', '.join(PEERS)})")
        if peer == "nanogpt" and options.nanogpt is None:
            print(f"{name}: left out, --nanogpt says where a checkout of it is")
        elif peer == "litgpt" and options.litgpt is None:
            print(f"{name}: left out, --litgpt says which Python has it")
        else:
            python = options.litgpt if peer == "litgpt" else sys.executable
            source = str(options.nanogpt.resolve()) if peer == "nanogpt" else None
            made.append(Program(name, driver.name, python, variant, source))
    return made


PEERS = [
    "llmtool", "llmtool+compile", "nanogpt", "nanogpt+compile", "litgpt", "transformers",
    "transformers+compile",
]  # fmt: skip


def add_peers(parser: argparse.ArgumentParser, default: list[str]) -> None:
    """The options that say which peers there are."""
    parser.add_argument("--peers", nargs="+", default=default, help=f"of {', '.join(PEERS)}")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--litgpt", help="a Python that has litgpt (it may be an environment of its own)")


def setting_of(name: str, short: bool) -> dict[str, Any]:
    """The setting by its name; in short few steps, and a miniature of it where there is no CUDA device."""
    import torch

    setting = dict(SETTINGS[name])
    if setting["device"] == "cuda" and not torch.cuda.is_available():
        if not short:
            raise SystemExit(f"{name}: no CUDA device here; --short tries the same code in small")
        return setting | (MINIATURE_LLAMA if setting["architecture"] == "llama" else MINIATURE)
    if short and setting["device"] == "cpu":
        setting |= {"steps": 6, "warm": 2}
    return setting


# --- text ---------------------------------------------------------------------------------------------------


def shakespeare() -> dict[str, str]:
    """Tiny Shakespeare: the first 90 % of its characters train, the rest validates, as nanoGPT splits it."""
    text = (common.ROOT / "configs/data/tinyshakespeare.txt").read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    return {"train": text[:cut], "val": text[cut:]}


def made_up(vocabulary: int, characters: int = 6_000_000) -> dict[str, str]:
    """A text of as many different characters, the n-th as often as 1 / (n + 10): what a model learns of it
    is how often each stands, which is enough to see that it learns."""
    points = (chr(point) for point in range(0x100, 0x30000))
    alphabet = [one for one in points if one.isprintable() and not one.isspace()][: vocabulary - SPECIAL]
    assert len(alphabet) == vocabulary - SPECIAL, "not so many characters can be printed"
    chance = random.Random(0)
    weights = [1 / (n + 10) for n in range(len(alphabet))]
    drawn = chance.choices(alphabet, weights, k=characters)
    cut = int(characters * 0.95)
    return {"train": "".join(alphabet + drawn[:cut]), "val": "".join(drawn[cut:])}


def write_text(folder: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """The setting's text in every program's form, ours as characters and the peers' as their ids; the
    setting, with its vocabulary."""
    wanted = setting.get("vocabulary")
    text = made_up(wanted, 6_000_000 if wanted > 1000 else 200_000) if wanted else shakespeare()
    characters = sorted(set(text["train"]) | set(text["val"]))
    table = np.zeros(0x110000, dtype=np.uint16)
    table[[ord(one) for one in characters]] = np.arange(len(characters))
    for split, part in text.items():
        (folder / f"{split}.txt").write_text(part, encoding="utf-8", newline="")
        table[np.frombuffer(part.encode("utf-32-le"), dtype="<u4")].tofile(folder / f"{split}.bin")
    vocabulary = len(characters) + SPECIAL
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocabulary}))  # nanoGPT reads it
    return setting | {"vocabulary": vocabulary}


# --- running ------------------------------------------------------------------------------------------------


def drive(program: Program, setting: dict[str, Any], data: Path) -> dict[str, Any]:
    """One run of a program in a process of its own: what its driver answers."""
    with tempfile.TemporaryDirectory() as out:
        job = {"setting": setting, "data": str(data), "out": out, "variant": program.variant}
        job |= {"program": program.source, "began": time.perf_counter()}
        command = [program.python, str(HERE / program.driver), json.dumps(job)]
        done = common.timed(command, env={"PYTHONPATH": common.search_path()})
    return json.loads(done.output.strip().splitlines()[-1])


def peers_versions(options: argparse.Namespace, used: list[Program]) -> dict[str, str]:
    """Versions of all that took part; of nanoGPT its commit."""
    found = common.versions("llmtool", "torch")
    peers = {program.driver for program in used}
    if "drive_transformers.py" in peers:
        found |= common.versions("transformers", "accelerate")
    if "drive_litgpt.py" in peers:
        theirs = common.versions("litgpt", "lightning", "torch", python=options.litgpt)
        found |= theirs | {"torch": found["torch"], "torch of litgpt": theirs["torch"]}
    if "drive_nanogpt.py" in peers:
        words = ["git", "-C", str(options.nanogpt), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
        found["nanoGPT"] = commit or "not a git checkout"
    return found
