"""CUDA: what the training step reaches on this GPU, in parts that are saved one by one, in under 8 minutes.

    python scripts/benchmarks/gpu.py --save [--parts gpt2,llama] [--seconds 460] [--out FOLDER]

matrix       bf16 and fp8 products of 8192 x 8192 random matrices: what the others are a share of
gpt2         GPT-2 124M, context 1024, bf16: tokens/s, share of the matrix rate, time spent waiting for rows
llama        a Llama of 1 B parameters, context 4096, bf16, with its losses
fp8          the same in fp8, its losses beside
packed       documents of about 500 tokens in rows of 4096: flex attention, and a dense mask
graphs       6 layers x 384, context 256: kernels launched one by one, and recorded as CUDA graphs
shakespeare  tiny Shakespeare's characters: seconds until the validation loss is 1.4697 (nanoGPT: 3 minutes on
             an A100)

Each is `llmtool train` on made-up text of as many different characters as fill the model's vocabulary (a
multiple of 64, as matrix units want it), in which one character mostly follows from the one before it:
nothing is downloaded, and there is something to learn.
A part that does not end in its time is stopped, and what it had written counts. Speeds are medians of the
lines of metrics.jsonl, but for the first third. Floating-point operations of a token: 6 for each number in a
matrix, and attention's, of which half is masked.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import torch

TARGET = 1.4697  # https://github.com/karpathy/nanoGPT, README: validation loss in 3 minutes on an A100
FOLLOWS = 0.7  # chance that the next character is the usual one after this
CONFIG = """
run: {folder}/run
device: cuda
data:
  source: {{format: text, path: {folder}/text.txt, documents: {documents}}}
  split: {{by: order, train: {share}, validation: {rest}, test: 0}}
  encode: {{as: tokens, tokenizer: {{kind: characters}}}}
model: {model}
train: {train}
"""
GPT2 = {
    "family": "transformer",
    "architecture": "gpt2",
    "depth": 12,
    "heads": 12,
    "width": 768,
    "context": 1024,
}
LLAMA = {
    "family": "transformer", "architecture": "llama", "depth": 16, "heads": 32, "key_value_heads": 8,
    "width": 2048, "feed_forward": 8192, "context": 4096,
}  # fmt: skip
PACKED = GPT2 | {"architecture": "llama", "depth": 6, "context": 4096}
SMALL = {
    "family": "transformer",
    "architecture": "llama",
    "depth": 6,
    "heads": 6,
    "width": 384,
    "context": 256,
}
ADAMW = {"name": "adamw", "lr": 6e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}
MUON = {"name": "muon", "lr": 0.02, "adamw_lr": 6e-3}
SPECIAL = 2  # tokens that our characters have beside themselves: unknown, end
# flex attention switched off, which no key of a file does: everything else is the same command
DENSE = "from llmtool.models import flex; flex.off = 'a benchmark'; from llmtool.__main__ import main; main()"


@dataclass
class Story:
    """A data set with a model in a folder of its own. vocabulary: tokens of the model."""

    folder: Path
    model: dict[str, Any]
    characters: int = 4_000_000
    vocabulary: int = 50_304
    document: int | None = None  # characters of one, about; None: one text
    text: str | None = None  # in place of a made-up one
    share: float = 0.99

    def write(self, **train: Any) -> Path:
        """The file for `llmtool`, and its text."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "text.txt").exists():
            text = self.text or made_up(self.characters, self.vocabulary - SPECIAL, self.document)
            (self.folder / "text.txt").write_text(text, encoding="utf-8", newline="")
        path = self.folder / "gpu.yaml"
        filled = CONFIG.format(
            folder=self.folder,
            documents="blank" if self.document else "file",
            share=self.share,
            rest=round(1 - self.share, 6),
            model=json.dumps(self.model),
            train=json.dumps(train),
        )
        path.write_text(filled, encoding="utf-8")
        return path

    @property
    def flops_per_token(self) -> int:
        """Forward and backward."""
        m = self.model
        width, depth = m["width"], m["depth"]
        shared = m.get("key_value_heads", m["heads"]) / m["heads"]
        gpt2 = m["architecture"] == "gpt2"
        inner = m.get("feed_forward", 4 * width if gpt2 else math.ceil(width * 8 / 3 / 32) * 32)
        block = (2 + 2 * shared) * width * width + (2 if gpt2 else 3) * width * inner
        return int(6 * (depth * block + self.vocabulary * width) + 6 * depth * m["context"] * width)


def made_up(characters: int, different: int, document: int | None) -> str:
    """Text in which a character has one that usually follows it, of so many ones with line breaks."""
    codes = (code for code in range(0x100, 0x30000) if not 0xD800 <= code < 0xE000)
    alphabet = [c for c in map(chr, codes) if c.isprintable() and not c.isspace()][: different - 1]
    chance = random.Random(0)
    follows = alphabet[:]
    chance.shuffle(follows)
    usual = dict(zip(alphabet, follows, strict=True))
    drawn = chance.choices(alphabet, k=characters - len(alphabet))
    found, now = alphabet[:], alphabet[-1]
    for other in drawn:
        now = usual[now] if chance.random() < FOLLOWS else other
        found.append(now)
    text = "".join(found)
    if document is None:  # a line is where a text may be cut into its splits
        return "\n".join(text[at : at + 1000] for at in range(0, len(text), 1000))
    edges, at = [0], 0
    while at < len(text):
        at += 2 + int(chance.expovariate(1 / document))
        edges.append(at)
    return "\n\n".join(text[a:b] for a, b in itertools.pairwise(edges))


# --- a training ---------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """What is left of the time for everything."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)


def train(
    story: Story, clock: Clock, most: float, precision: str = "bf16", dense: bool = False, **keys: Any
) -> dict[str, Any]:
    """One training of at most so many seconds; its figures by its own metrics, whether or not it ended."""
    config = story.write(**keys)
    shutil.rmtree(story.folder / "run/train", ignore_errors=True)  # of one that fails, nothing else is read
    command = common.llmtool("train", config, "--set", f"precision={precision}")
    if dense:
        command[1:3] = ["-c", DENSE]
    began = time.perf_counter()
    limit = max(1.0, min(most, clock.left))
    try:
        done = subprocess.run(
            command, cwd=common.ROOT, capture_output=True, text=True, timeout=limit, check=False
        )
        ended, said = done.returncode == 0, (done.stdout + done.stderr).splitlines()[-8:]
    except subprocess.TimeoutExpired:
        ended, said = False, [f"stopped after {limit:.0f} s"]
    figures: dict[str, Any] = {"wall_seconds": time.perf_counter() - began, "ended": ended}
    if not ended:
        figures["said"] = said
        print("\n".join(said), file=sys.stderr)
    return figures | read_metrics(story, keys.get("log_every", 1))


def read_metrics(story: Story, log_every: int) -> dict[str, Any]:
    """Speed, losses and the share of waiting from what a run has written so far."""
    path = story.folder / "run/train/metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines = [row for row in rows if "loss" in row and "tokens_per_second" in row["time"]]
    figures: dict[str, Any] = {
        "losses": [[row["step"], row["loss"]] for row in rows if "loss" in row],
        "validation": [
            [row["step"], row["time"]["seconds"], row["validation"].get("loss")]
            for row in rows
            if "validation" in row
        ],
    }
    late = lines[len(lines) // 3 :]
    if late:
        figures["tokens_per_second"] = statistics.median(row["time"]["tokens_per_second"] for row in late)
        figures["waiting"] = statistics.fmean(row["time"]["waiting"] for row in late)
    result = story.folder / "run/train/result.json"
    if result.exists():
        read = common.read_json(result)
        figures["notes"] = read.get("notes")
        figures["compile"] = ((read.get("config") or {}).get("fit") or {}).get("compile")
    return figures


# --- the parts ----------------------------------------------------------------------------------------------

Figures = dict[str, Any]


def matrix(folder: Path, clock: Clock, so_far: Figures, short: bool) -> Figures:
    """FLOP/s, the best of five rounds each."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found = {"bf16": _rate(lambda: a @ b)}
    if torch.cuda.get_device_capability() >= (8, 9):
        small, other = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        one = torch.ones((), device="cuda")
        multiply = lambda: torch._scaled_mm(  # noqa: E731
            small, other, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        found["fp8"] = _rate(multiply)
    return {"flops_per_second": found}


def _rate(multiply: Callable[[], Any]) -> float:
    rates = []
    for _ in range(6):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(20):
            multiply()
        torch.cuda.synchronize()
        rates.append(20 * 2 * 8192**3 / (time.perf_counter() - began))
    return max(rates[1:])


def gpt2(folder: Path, clock: Clock, so_far: Figures, short: bool) -> Figures:
    """GPT-2 124M."""
    steps = 20 if short else 80
    story = Story(folder / "gpt2", GPT2)
    return _shared(story, so_far, train(story, clock, 90, **_plan(steps, 64, 32, ADAMW)))


def llama(folder: Path, clock: Clock, so_far: Figures, short: bool, precision: str = "bf16") -> Figures:
    """A Llama of 1 B parameters."""
    steps = 12 if short else 40
    story = Story(folder / "llama", LLAMA, vocabulary=32_000, characters=2_500_000)
    keys = _plan(steps, 8, 4, ADAMW | {"lr": 3e-4})
    return _shared(story, so_far, train(story, clock, 110, precision, **keys))


def fp8(folder: Path, clock: Clock, so_far: Figures, short: bool) -> Figures:
    """The same in eight bits, beside it."""
    found = llama(folder, clock, so_far, short, "fp8")
    before = so_far.get("llama", {})
    if "tokens_per_second" in found and "tokens_per_second" in before:
        found["ratio_to_bf16"] = found["tokens_per_second"] / before["tokens_per_second"]
        theirs = dict(before["losses"])
        found["loss_difference"] = [
            [step, loss - theirs[step]] for step, loss in found["losses"] if step in theirs
        ]
    return found


def packed(folder: Path, clock: Clock, so_far: Figures, short: bool) -> Figures:
    """Documents in rows, with and without flex attention."""
    story = Story(folder / "packed", PACKED, characters=2_500_000, vocabulary=8_000, document=500)
    keys = _plan(15 if short else 40, 8, 8, ADAMW)
    return _both({"flex": {}, "dense": {"dense": True}}, story, clock, 50, so_far, keys)


def graphs(folder: Path, clock: Clock, so_far: Figures, short: bool) -> Figures:
    """A small model, launched one by one and recorded."""
    story = Story(folder / "graphs", SMALL, vocabulary=64, characters=1_000_000)
    keys = _plan(60 if short else 300, 64, 64, ADAMW)
    ways = {"recorded": {"compile": "graphs"}, "launched": {"compile": True}}
    return _both(ways, story, clock, 40, so_far, keys)


def shakespeare(folder: Path, clock: Clock, so_far: Figures, short: bool) -> Figures:
    """Seconds until the target, of training alone and of the whole command."""
    text = (common.ROOT / "configs/data/tinyshakespeare.txt").read_text(encoding="utf-8")
    model = SMALL | {"dropout": 0.2}
    story = Story(folder / "shakespeare", model, vocabulary=65 + SPECIAL, text=text, share=0.9)
    steps = 100 if short else 1000
    keys = _plan(steps, 64, 64, MUON) | {"validate_every": max(10, steps // 20)}
    found = train(story, clock, 80, **keys)
    reached = [seconds for _, seconds, loss in found["validation"] if loss is not None and loss <= TARGET]
    started = found["wall_seconds"] - max((s for _, s, _ in found["validation"]), default=0.0)
    found["target"] = TARGET
    found["seconds_of_training"] = reached[0] if reached else None
    found["seconds_of_the_command"] = reached[0] + started if reached else None
    return found


def _plan(steps: int, batch: int, micro: int, optimizer: Figures) -> Figures:
    return {
        "budget": {"steps": steps},
        "batch": batch,
        "micro_batch": micro,
        "optimizer": optimizer,
        "validate_every": steps,
        "checkpoint_every": steps,
        "log_every": max(1, steps // 20),
    }


def _both(
    ways: dict[str, Figures], story: Story, clock: Clock, most: float, so_far: Figures, keys: Figures
) -> Figures:
    found: Figures = {
        name: _shared(story, so_far, train(story, clock, most, **keys, **way)) for name, way in ways.items()
    }
    first, second = (found[name].get("tokens_per_second") for name in ways)
    if first and second:
        found["ratio"] = first / second
    return found


def _shared(story: Story, so_far: Figures, found: Figures) -> Figures:
    """With the share of the matrix rate, where both are known."""
    rate = so_far.get("matrix", {}).get("flops_per_second", {}).get("bf16")
    if rate and "tokens_per_second" in found:
        found["flops_per_token"] = story.flops_per_token
        found["share_of_matrix_rate"] = found["tokens_per_second"] * story.flops_per_token / rate
    return found


PARTS = {part.__name__: part for part in (matrix, gpt2, llama, fp8, graphs, shakespeare, packed)}


def main() -> None:
    """Measure, or say why not."""
    parser = common.parser(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them: " + ", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=460, help="for all parts together")
    parser.add_argument("--out", type=Path, help="a folder in which the figures are kept too")
    options = parser.parse_args()
    chosen = options.parts.split(",")
    if unknown := sorted({*chosen} - {*PARTS}):
        parser.error(f"--parts: no {', '.join(unknown)} (choices: {', '.join(PARTS)})")
    if not torch.cuda.is_available():
        print("gpu.py: no CUDA device here; nothing measured")
        return
    figures: Figures = {}
    clock = Clock(options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            began = time.monotonic()
            if clock.left < 15:
                figures[name] = {"left_out": f"{clock.left:.0f} s were left"}
            else:
                figures[name] = PARTS[name](Path(folder), clock, figures, options.short)
            figures[name]["part_seconds"] = time.monotonic() - began
            keep(options, figures)
    show(figures)


def keep(options: Any, figures: Figures) -> None:
    """Write down what there is so far: a run that is cut off leaves the parts before."""
    common.save(options, "gpu", figures, common.versions("torch"))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if options.save:
            shutil.copy(common.RESULTS / "gpu.json", options.out / "gpu.json")


def show(figures: Figures) -> None:
    """A line for each training."""
    rows = []
    for part, found in figures.items():
        several = {name: way for name, way in found.items() if isinstance(way, dict) and "ended" in way}
        for name, way in (several or {"": found}).items():
            if "ended" not in way:
                continue
            speed, share, waiting = (
                way.get(key) for key in ("tokens_per_second", "share_of_matrix_rate", "waiting")
            )
            rows.append([
                f"{part} {name}".strip(),
                f"{speed:,.0f}" if speed else "-",
                f"{share:.1%}" if share else "-",
                f"{waiting:.2%}" if waiting is not None else "-",
                f"{way['losses'][-1][1]:.3f}" if way["losses"] else "-",
                "yes" if way["ended"] else "no",
            ])  # fmt: skip
    columns = ["", "tokens/s", "of the matrix rate", "waiting", "last loss", "ended"]
    rates = figures.get("matrix", {}).get("flops_per_second", {})
    title = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in rates.items())
    common.table(title or "matrix rate not measured", columns, rows)
    reached = figures.get("shakespeare", {})
    if "target" in reached:
        seconds = reached["seconds_of_training"]
        said = f"{seconds:.1f} s of training" if seconds else "not reached"
        print(f"tiny Shakespeare to {reached['target']}: {said}")


if __name__ == "__main__":
    main()
