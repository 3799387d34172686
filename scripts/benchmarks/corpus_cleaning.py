"""Near-duplicates and evaluation text planted into real texts: what the cleaning steps find, what they cost.

    python scripts/benchmarks/corpus_cleaning.py --save              some minutes on one core

Near copies are planted into film reviews (IMDb), stories (Russian) and poems (Chinese, no blanks): words
changed or dropped, sentences swapped; some are less alike than the threshold of 0.8. Recall and precision
are against the rows that leave where all pairs are compared, in plain Python. Into the reviews stretches of
questions of GSM8K are planted, of 8 to 30 words, in other case and punctuation. Memory is that of a process
which compares many short texts, in bytes a text beside what it held before. Speed is in
documents for each second of one processor.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np

sys.path.insert(0, str(common.ROOT))
sys.path.insert(0, str(common.ROOT / "scripts"))
from fetch import fetch

from llmtool.data.contamination import Decontaminate, read_evaluation
from llmtool.data.near_duplicates import DropNearDuplicates, bands, leaving
from llmtool.data.sources import Chunk, frame
from tests.data import planted

THRESHOLD, CHUNK = 0.8, 8192
NEAR = DropNearDuplicates(step="drop_near_duplicates", column="text", threshold=THRESHOLD)


def reviews() -> list[str]:
    """25,000 in English."""
    with gzip.open(fetch("imdb") / "train.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return [row["review"] for row in csv.DictReader(file)]


def stories() -> list[str]:
    """Some thousand in Russian."""
    found = []
    for path in sorted(fetch("tinystories_ru").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += [json.loads(line)["story"] for line in file]
    return found


def poems() -> list[str]:
    """Of at least 60 characters."""
    found = []
    for path in sorted(fetch("chinese_poetry").rglob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        found += [
            "".join(poem["paragraphs"])
            for poem in document
            if isinstance(poem, dict) and "paragraphs" in poem
        ]
    return [text for text in found if len(text) >= 60]


# --- near-duplicates ----------------------------------------------------------------------------------------


def chunks(texts: list[str]) -> Iterator[Chunk]:
    """As a source gives them."""
    for start in range(0, len(texts), CHUNK):
        part = np.arange(start, min(start + CHUNK, len(texts)))
        yield Chunk(frame(["text"], texts[start : start + CHUNK], part), part, part * 0, part + 1)


def ours(texts: list[str]) -> tuple[set[int], dict[str, float]]:
    """The rows that leave, and the seconds of the processor for sketching and for deciding."""
    began = time.process_time()
    parts = [NEAR.keys(chunk.frame) for chunk in chunks(texts)]
    between = time.process_time()

    def read(wanted: np.ndarray) -> Iterator[Chunk]:
        for chunk in chunks(texts):
            yield chunk.take(np.isin(chunk.frame.index, wanted))

    with tempfile.TemporaryDirectory() as name, leaving(NEAR, parts, read, Path(name)) as found:
        seconds = {"sketching": between - began, "deciding": time.process_time() - between}
        return set(found.rows.tolist()), seconds | {"pairs_compared": found.compared}


def every_pair(texts: list[str], word: str) -> dict[int, float]:
    """The rows that leave where each text is compared with all before it that stay, and the highest index."""
    having: dict[tuple[str, ...], list[int]] = {}
    sizes: dict[int, int] = {}
    away: dict[int, float] = {}
    for row, text in enumerate(texts):
        runs = planted.runs_of_words(text, NEAR.ngram, word)
        common_ = Counter(other for run in runs for other in having.get(run, ()))
        index = max((n / (len(runs) + sizes[other] - n) for other, n in common_.items()), default=0)
        if index >= THRESHOLD:
            away[row] = index
            continue
        sizes[row] = len(runs)
        for run in runs:
            having.setdefault(run, []).append(row)
    return away


def near_duplicates(texts: list[str], seeds: int, count: int, blank: str) -> dict[str, Any]:
    """Of `count` of the texts with a fifth as many copies."""
    total: Counter[str] = Counter()
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        some = [texts[row] for row in random.permutation(len(texts))[:count]]
        rows, of = planted.near_texts(random, some, len(some) // 5, 0.05 if blank else 0.03, blank)
        found, about = ours(rows)
        index = every_pair(rows, r"\w+" if blank else r"\w")
        expected, barely = set(index), {row for row in index if index[row] < THRESHOLD + 0.05}
        copies = {row for row, first in enumerate(of) if first >= 0}
        total.update(texts=len(rows), copies=len(copies), copies_alike=len(copies & expected),
                     alike=len(expected), found=len(found & expected), false=len(found - expected),
                     barely_alike=len(barely), barely_alike_found=len(found & barely),
                     pairs_compared=int(about["pairs_compared"]))  # fmt: skip
    figures: dict[str, Any] = dict(total)
    figures["recall"] = total["found"] / total["alike"]
    figures["precision"] = total["found"] / (total["found"] + total["false"])
    return figures


def speed(texts: list[str], runs: int) -> dict[str, Any]:
    """Of all the texts, as they are."""
    found: set[int] = set()
    rates: dict[str, list[float]] = {"sketching": [], "whole": []}
    for _ in range(runs):
        found, seconds = ours(texts)
        rates["sketching"].append(len(texts) / seconds["sketching"])
        rates["whole"].append(len(texts) / (seconds["sketching"] + seconds["deciding"]))
    return {
        "texts": len(texts),
        "characters": sum(map(len, texts)),
        "leave": len(found),
        "documents_per_processor_second": {name: common.spread(values) for name, values in rates.items()},
    }


MEMORY = r"""
import json, re, sys, tempfile
from pathlib import Path
import numpy as np
import corpus_cleaning as bench
count = int(sys.argv[1])
def texts(start):
    random = np.random.default_rng(start)
    words = random.integers(0, 1 << 16, (min(bench.CHUNK, count - start), 12))
    words[1::10] = words[0::10][: len(words[1::10])]          # a tenth are near copies
    words[1::10, 0] += 1
    return [" ".join(map(str, row)) for row in words.tolist()]
def chunks():
    for start in range(0, count, bench.CHUNK):
        part = np.arange(start, min(start + bench.CHUNK, count))
        yield bench.Chunk(bench.frame(["text"], texts(start), part), part, part * 0, part + 1)
def peak():
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
step = bench.NEAR.model_copy(update={"threshold": float(sys.argv[2]), "ngram": 3})
one = next(chunks())
step.keys(one.frame)
before = peak()
parts = [step.keys(chunk.frame) for chunk in chunks()]
held, size = peak(), sum(part.nbytes for pair in parts for part in pair)
def read(wanted):
    for chunk in chunks():
        yield chunk.take(np.isin(chunk.frame.index, wanted))
with tempfile.TemporaryDirectory() as name, bench.leaving(step, parts, read, Path(name)) as found:
    leave = len(found.rows)
print(json.dumps({"texts": count, "keys": size / count, "held": (held - before) / count,
                  "at_most": (peak() - before) / count, "leave": leave}))
"""


def memory(count: int, threshold: float) -> dict[str, float]:
    """Bytes a text: of the keys, held after sketching, at the peak of deciding."""
    here = Path(__file__).resolve().parent
    code = f"import sys; sys.path[:0] = {[str(here), str(common.ROOT)]!r}\n{MEMORY}"
    command = [sys.executable, "-c", code, str(count), str(threshold)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {**json.loads(done.stdout), "bands": bands(threshold)[0]}


# --- evaluation text ----------------------------------------------------------------------------------------


def contamination(texts: list[str], seeds: int, count: int) -> dict[str, Any]:
    """A tenth of the texts get a stretch of a question, which has 8 to 30 words."""
    path = fetch("gsm8k") / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    questions = [row["question"].split() for row in rows if len(row["question"].split()) >= 30]
    step = Decontaminate(step="decontaminate", column="text", against=[str(path)])
    step.learn(read_evaluation(step).close())
    known = {
        run
        for row in rows
        for text in row.values()
        for run in planted.runs_of_words(text, step.ngram)
        if len(run) == step.ngram
    }
    total: Counter[str] = Counter()
    rates = []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        some = [texts[row] for row in random.permutation(len(texts))[:count]]
        for row in random.choice(count, count // 10, replace=False).tolist():
            words, length = questions[int(random.integers(len(questions)))], int(random.integers(8, 31))
            start = int(random.integers(len(words) - length + 1))
            stretch = re.sub(r"[.,?!;:]", " - ", " ".join(words[start : start + length]).upper())
            middle = some[row].split()
            at = int(random.integers(len(middle) + 1))
            some[row] = " ".join([*middle[:at], stretch, *middle[at:]])
        began = time.process_time()
        found: set[int] = set()
        for chunk in chunks(some):
            ordinals, numbers = step.keys(chunk.frame)
            found |= set(ordinals[numbers[:, 0] >= 0].tolist())
        rates.append(count / (time.process_time() - began))
        expected = {row for row, text in enumerate(some) if planted.runs_of_words(text, step.ngram) & known}
        total.update(texts=count, planted=count // 10, alike=len(expected),
                     found=len(found & expected), false=len(found - expected))  # fmt: skip
    return {
        **total,
        "evaluation_runs": len(step.learned.values),
        "recall": total["found"] / total["alike"],
        "precision": total["found"] / (total["found"] + total["false"]),
        "documents_per_processor_second": common.spread(rates),
    }


def main() -> None:
    """Everything, shown and saved."""
    options = common.parser(__doc__).parse_args()
    seeds, count = (1, 500) if options.short else (3, 3000)
    corpora = {
        "reviews, English": (reviews(), " "),
        "stories, Russian": (stories(), " "),
        "poems, Chinese": (poems(), ""),
    }
    english = corpora["reviews, English"][0]
    near = {name: near_duplicates(texts, seeds, count, blank) for name, (texts, blank) in corpora.items()}
    rows = [
        [name, f["texts"], f["copies_alike"], f["alike"], f["recall"], f["precision"]]
        for name, f in near.items()
    ]
    columns = ["near-duplicates", "texts", "copies at 0.8", "leave, all pairs", "recall", "precision"]
    common.table(f"{seeds} seeds", columns, rows)
    fast = speed(english[:2000] if options.short else english, 1 if options.short else 3)
    rates = fast["documents_per_processor_second"]
    print(f"{fast['texts']:,} reviews: {common.show(rates['whole'], 0)} documents/s, {fast['leave']} leave")
    one = memory(20_000 if options.short else 300_000, THRESHOLD)
    print(f"{one['bands']} bands: {one['keys']:.0f} bytes a text, {one['at_most']:.0f} at the peak")
    evaluation = contamination(english, seeds, count)
    print(f"evaluation text: recall {evaluation['recall']:.4f}, precision {evaluation['precision']:.4f}, "
          f"{common.show(evaluation['documents_per_processor_second'], 0)} documents/s")  # fmt: skip
    figures = {
        "threshold": THRESHOLD, "ngram": NEAR.ngram, "seeds": list(range(seeds)), "near_duplicates": near,
        "speed": fast, "memory": one, "contamination": evaluation,
    }  # fmt: skip
    common.save(options, "corpus_cleaning", figures, common.versions("rensa", "numpy", "xxhash"))


if __name__ == "__main__":
    main()
