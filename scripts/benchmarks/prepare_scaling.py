"""prepare on 1 and 2 workers beside datasets.map and datatrove, and its peak memory as the corpus grows.

    python scripts/benchmarks/prepare_scaling.py --peers /tmp/peers/venv-data/bin/python --save

The corpus: paragraphs of `--text` (plain text, or JSON lines with `text`), turned and put together anew for
each document, with its own number in it; so nothing is a copy. The steps are the same everywhere: NFC, runs
of blanks become one, documents under 200 characters go, tokens of one tokenizer (BPE of 8192, trained on
20 MB before any clock starts). One worker is one processor: the process and its threads are bound to it.
`llmtool` also accounts for every row, looks for copies, splits and hashes; datasets.map writes Arrow files,
datatrove its .ds files. Seconds are of whole processes; memory is the proportional set (PSS) of all of them,
at its highest.

`--peers` is a Python that has datasets and datatrove (pip install datasets datatrove[io,processing]).
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import prepare_speed

MEGABYTE = 1_000_000
LEAST = 200  # characters of a document that stays
CLEAN = [
    {"step": "normalize", "columns": ["text"], "unicode": "NFC", "collapse_space": True},
    {"step": "length", "column": "text", "min": LEAST},
]
DATASETS = """
import re, sys, unicodedata
from datasets import load_dataset
from tokenizers import Tokenizer
corpus, tokenizer, out, workers, least = sys.argv[1:6]
space = re.compile(r"\\s+")
made = Tokenizer.from_file(tokenizer)
def clean(rows):
    return {"text": [space.sub(" ", unicodedata.normalize("NFC", text)) for text in rows["text"]]}
def encode(rows):
    return {"ids": [one.ids for one in made.encode_batch_fast(rows["text"], add_special_tokens=False)]}
if __name__ == "__main__":
    processes = int(workers) if int(workers) > 1 else None
    rows = load_dataset("json", data_files=corpus, split="train", cache_dir=out + "/cache")
    rows = rows.map(clean, batched=True, num_proc=processes)
    rows = rows.filter(lambda row: len(row["text"]) >= int(least), num_proc=processes)
    rows = rows.map(encode, batched=True, num_proc=processes, remove_columns=rows.column_names)
    rows.save_to_disk(out + "/rows", num_proc=processes)
    print(len(rows))
"""
DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.formatters.base import BaseFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
corpus, tokenizer, out, workers, least = sys.argv[1:6]
class Clean(BaseFormatter):  # it travels to other processes without what stands around it
    name = "clean"
    def format(self, text):
        import re, unicodedata
        return re.sub(r"\\s+", " ", unicodedata.normalize("NFC", text))
if __name__ == "__main__":
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(corpus, glob_pattern="*.jsonl"),
            Clean(),
            LambdaFilter(lambda document, least=int(least): len(document.text) >= least),
            DocumentTokenizer(out + "/tokens", tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>",
                              shuffle_documents=False, save_filename="rows"),
        ],
        tasks=int(workers), workers=int(workers), logging_dir=out + "/logs",
    ).run()
"""


class Watch(prepare_speed.Watch):
    """Proportional instead of resident memory: pages that processes share count once."""

    def run(self) -> None:
        """Until `running` is false."""
        while self.running:
            found = 0
            for pid in prepare_speed._family(self.pid):
                try:
                    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                        if line.startswith("Pss:"):
                            found += int(line.split()[1]) * 1024
                except (OSError, IndexError):
                    continue  # it has just ended
            self.peak = max(self.peak, found)
            time.sleep(0.25)


def paragraphs(path: Path) -> list[str]:
    """The paragraphs of a text, or of each `text` of JSON lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        text = "\n\n".join(json.loads(line)["text"] for line in text.splitlines() if line.strip())
    found = [part.strip() for part in text.split("\n\n")]
    return [part for part in found if part]


def documents(parts: list[str], size: int) -> Iterator[str]:
    """JSON lines of `size` bytes in all: 1 to 24 paragraphs each, turned, with the document's number."""
    chance, number, left = random.Random(0), 0, size
    while left > 0:
        words = " ".join(chance.choices(parts, k=chance.randint(1, 24))).split(" ")
        at = chance.randrange(len(words))
        text = " ".join([*words[at:], f"({number})", *words[:at]])
        line = json.dumps({"id": number, "text": text}, ensure_ascii=False) + "\n"
        number, left = number + 1, left - len(line.encode())
        yield line


def write_corpus(directory: Path, parts: list[str], size: int, files: int) -> Path:
    """The corpus in so many files: datatrove gives each worker files of its own."""
    directory.mkdir(parents=True)
    made = [(directory / f"{number}.jsonl").open("w", encoding="utf-8") for number in range(files)]
    for number, line in enumerate(documents(parts, size)):
        made[number % files].write(line)
    for file in made:
        file.close()
    return directory


def config(run: Path, corpus: Path, tokenizer: dict[str, Any], workers: int) -> Path:
    """Our YAML."""
    path = run.with_suffix(".yaml")
    data = {
        "source": {"format": "jsonl", "path": str(corpus)},
        "clean": CLEAN,
        "split": {"by": "random", "train": 0.99, "validation": 0.01},
        "engine": {"workers": workers},
        "encode": {"as": "tokens", "tokenizer": tokenizer},
    }
    path.write_text(json.dumps({"run": str(run), "data": data}), encoding="utf-8")
    return path


def measured(command: list[Any], one: bool) -> dict[str, float]:
    """Seconds, and peak memory in MiB. one: on one processor."""
    allowed = os.sched_getaffinity(0)
    watched, prepare_speed.Watch = prepare_speed.Watch, Watch  # type: ignore[misc]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        os.sched_setaffinity(0, {min(allowed)} if one else allowed)
        found = prepare_speed.watched([str(word) for word in command])
    finally:
        os.sched_setaffinity(0, allowed)
        prepare_speed.Watch = watched  # type: ignore[misc]
    return {"seconds": found["seconds"], "peak_mib": found["peak_mib"]}


def ours(place: Path, corpus: Path, tokenizer: Path, workers: int) -> dict[str, Any]:
    """A whole prepare: its figures, and the fingerprint of what came out."""
    run = place / f"run{workers}"
    given = {"kind": "file", "path": str(tokenizer)}
    command = common.llmtool("prepare", config(run, corpus, given, workers), "--force")
    found: dict[str, Any] = measured(command, workers == 1)
    card = common.read_json(run / "prepare/card.json")
    found["tokens"] = sum(split["tokens"] for split in card["splits"].values())
    found["documents"] = common.read_json(run / "prepare/ledger.json")["read"]
    return found | {"fingerprint": card["fingerprint"]}


def speed(options: Any, place: Path, parts: list[str], tokenizer: Path) -> dict[str, Any]:
    """Every program with 1 and 2 workers, in turn."""
    size = options.size * MEGABYTE
    corpus = write_corpus(place / "speed", parts, size, files=2)
    found: dict[str, list[dict[str, Any]]] = {}
    peers = {"datasets.map": (DATASETS, f"{corpus}/*.jsonl"), "datatrove": (DATATROVE, str(corpus))}
    for _ in range(options.runs):
        for workers in (1, 2):
            mine = ours(place, corpus, tokenizer, workers)
            found.setdefault(f"llmtool, {workers}", []).append(mine)
            for name, (code, files) in peers.items() if options.peers else ():
                with tempfile.TemporaryDirectory(dir=place) as out:
                    words = [options.peers, "-c", code, files, tokenizer, out, workers, LEAST]
                    theirs = measured(words, workers == 1)
                same = {"tokens": mine["tokens"], "documents": mine["documents"]}
                found.setdefault(f"{name}, {workers}", []).append(theirs | same)
    prints = {run["fingerprint"] for name, runs in found.items() if name[0] == "l" for run in runs}
    assert len(prints) == 1, f"1 and 2 workers made different datasets: {prints}"
    rows, figures = [], dict[str, Any]()
    for name, runs in found.items():
        seconds = common.spread([run["seconds"] for run in runs])
        tokens, count = runs[0]["tokens"], runs[0]["documents"]
        peak = max(run["peak_mib"] for run in runs)
        rates = [count / seconds["mean"], tokens / seconds["mean"]]
        rows.append([name, common.show(seconds, 1), *(f"{rate:,.0f}" for rate in rates), f"{peak:,.0f}"])
        figures[name] = {"seconds": seconds, "documents_per_second": rates[0], "tokens_per_second": rates[1],
                         "peak_mib": peak, "documents": count, "tokens": tokens}  # fmt: skip
    common.table(
        f"{options.size} MB of JSON lines", ["program, workers", "s", "doc/s", "tokens/s", "MiB"], rows
    )
    one, two = ([run["seconds"] for run in found[f"llmtool, {workers}"]] for workers in (1, 2))
    figures["two_workers_over_one"] = common.ratios(one, two)
    print(f"2 workers / 1: {common.show(figures['two_workers_over_one'])} times as fast (goal 1.8)")
    return figures


def memory(options: Any, place: Path, parts: list[str], tokenizer: Path) -> list[dict[str, Any]]:
    """Peak memory with two workers, as the corpus grows."""
    found = []
    for size in options.sizes:
        corpus = write_corpus(place / f"memory{size}", parts, size * MEGABYTE, files=1)
        mine = ours(place, corpus, tokenizer, 2)
        (corpus / "0.jsonl").unlink()
        kept = {key: mine[key] for key in ("seconds", "peak_mib", "documents")}
        found.append({"megabytes": size, **kept})
    rows = [[f"{one['megabytes']:,} MB", f"{one['documents']:,}", f"{one['seconds']:.0f}",
             f"{one['peak_mib']:,.0f}"] for one in found]  # fmt: skip
    common.table("2 workers, peak memory", ["corpus", "documents", "s", "MiB"], rows)
    return found


def main() -> None:
    """Speed, then memory."""
    parser = common.parser(__doc__)
    parser.add_argument("--text", type=Path, default=common.ROOT / "configs/data/tinyshakespeare.txt")
    parser.add_argument("--size", type=int, default=200, help="million bytes, of the comparison of speed")
    parser.add_argument("--sizes", type=int, nargs="*", default=[100, 500, 2000], help="the same, of memory")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", help="a Python with datasets and datatrove")
    options = parser.parse_args()
    if options.short:
        options.size, options.sizes, options.runs = 40, [40, 80], 1
    with tempfile.TemporaryDirectory() as name:
        place, parts = Path(name), paragraphs(options.text)
        first = write_corpus(place / "first", parts, 20 * MEGABYTE, files=1)
        bpe = {"kind": "bpe", "vocabulary": 8192}
        common.timed(common.llmtool("prepare", config(place / "trained", first, bpe, 1)))
        tokenizer = place / "trained/prepare/tokenizer.json"
        figures: dict[str, Any] = {"megabytes": options.size, "text": options.text.name}
        figures["speed"] = speed(options, place, parts, tokenizer)
        figures["memory"] = memory(options, place, parts, tokenizer)
    packages = common.versions("llmtool", "tokenizers")
    if options.peers:
        packages |= common.versions("datasets", "datatrove", python=options.peers)
    common.save(options, "prepare_scaling", figures, packages)


if __name__ == "__main__":
    sys.exit(main())
