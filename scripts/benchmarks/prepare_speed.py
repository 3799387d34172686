"""prepare on a large text: peak memory, busy processors, tokens per second beside tokenizers' encode_batch.

    python scripts/benchmarks/prepare_speed.py --size 1000 --save      a text of 1000 MB (about 10 minutes)

The text is Tiny Shakespeare's lines, shuffled anew (seeded) for each copy, in one file. `llmtool prepare`
trains a BPE of 8192 and encodes everything. Beside it the `tokenizers` library alone loads the tokenizer
that came out and encodes the same file from memory-sized batches on all processors: its tokens per second
are the bar for our encode stage.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import common

PEER = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
tokens, seconds = 0, 0.0
with open(sys.argv[2], encoding="utf-8") as file:
    while lines := file.readlines(1 << 23):
        texts = ["".join(lines[i : i + 50]) for i in range(0, len(lines), 50)]   # documents of about 2 KiB
        began = time.perf_counter()
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        tokens += sum(len(encoding.ids) for encoding in found)
        seconds += time.perf_counter() - began
print(json.dumps({"tokens": tokens, "seconds": seconds}))
"""

# The whole command, with a clock on what `prepare` tells its progress display.
OURS = """
import json, sys, time
from pathlib import Path
from llmtool import cli
from llmtool.stages import prepare as stage
clocks, whole = {}, stage.prepare
def clocked(data, seed, directory, progress):
    last, current = time.perf_counter(), "start"
    def tell(step, rows):
        nonlocal last, current
        now = time.perf_counter()
        clocks[current] = clocks.get(current, 0.0) + now - last
        last, current = now, step
        progress(step, rows)
    try:
        return whole(data, seed, directory, tell)
    finally:
        tell("end", 0)
stage.prepare = clocked
target, sys.argv = Path(sys.argv[1]), ["llmtool", *sys.argv[2:]]
try:
    cli.main()
finally:
    target.write_text(json.dumps(clocks))
"""


def write_text(path: Path, megabytes: int) -> None:
    """`megabytes` million bytes of shuffled lines."""
    lines = (
        (common.ROOT / "configs/data/tinyshakespeare.txt")
        .read_text(encoding="utf-8")
        .splitlines(keepends=True)
    )
    chance, left = random.Random(0), megabytes * 1_000_000
    with path.open("w", encoding="utf-8", newline="") as file:
        while left > 0:
            chance.shuffle(lines)
            left -= file.write("".join(lines)[:left])


class Watch(threading.Thread):
    """Reads /proc every 50 ms: resident memory and processor time of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.cpu = pid, 0, 0.0
        self.running = True

    def run(self) -> None:
        """Until `running` is false."""
        page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
        seen: dict[int, float] = {}
        while self.running:
            memory = 0
            for pid in _family(self.pid):
                try:
                    memory += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    seen[pid] = (int(fields[11]) + int(fields[12])) / tick
                except (OSError, IndexError):
                    continue  # it has just ended
            self.peak, self.cpu = max(self.peak, memory), sum(seen.values())
            time.sleep(0.05)


def _family(pid: int) -> list[int]:
    found = [pid]
    for member in found:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def watched(command: list[str]) -> dict[str, float]:
    """Run it; wall seconds, peak resident bytes of the tree, processor seconds."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=common.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    watch = Watch(process.pid)
    watch.start()
    output = process.communicate()[0]
    watch.running = False
    watch.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output[-3000:]}")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_mib": watch.peak / 2**20, "cores_busy": watch.cpu / seconds}


def main() -> None:
    """Prepare, encode with the library alone, compare."""
    parser = common.parser(__doc__)
    parser.add_argument("--size", type=int, default=1000, help="million bytes of text")
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    size = 20 if options.short else options.size
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        text, run = Path(name) / "text.txt", Path(name) / "run"
        write_text(text, size)
        config = Path(name) / "large.yaml"
        config.write_text(
            f"run: {run}\ndata:\n  source: {{format: text, path: {text}, documents: file}}\n"
            "  split: {by: order, train: 0.99, validation: 0.01}\n"
            "  encode: {as: tokens, tokenizer: {kind: bpe, vocabulary: 8192}}\n",
            encoding="utf-8",
        )
        for _ in range(options.runs):
            clocks = Path(name) / "clocks.json"
            found: dict[str, Any] = watched(
                [sys.executable, "-c", OURS, *map(str, (clocks, "prepare", config, "--force"))]
            )
            card = common.read_json(run / "prepare/card.json")
            found["tokens"] = sum(split.get("tokens", 0) for split in card["splits"].values())
            found["stages"] = common.read_json(clocks)
            found["encode_tokens_per_second"] = found["tokens"] / found["stages"]["encoding"]
            ours.append({**found, "whole_tokens_per_second": found["tokens"] / found["seconds"]})
            peer = common.timed([sys.executable, "-c", PEER, run / "prepare/tokenizer.json", text])
            alone = json.loads(peer.output)
            theirs.append({**alone, "tokens_per_second": alone["tokens"] / alone["seconds"]})
    rows = []
    for mine, peer_run in zip(ours, theirs, strict=True):
        rows.append(
            [
                f"{size} MB",
                f"{mine['seconds']:.1f}",
                f"{mine['peak_mib']:.0f}",
                f"{mine['cores_busy']:.2f}",
                f"{mine['whole_tokens_per_second']:,.0f}",
                f"{mine['encode_tokens_per_second']:,.0f}",
                f"{peer_run['tokens_per_second']:,.0f}",
            ]
        )
    columns = [
        "text",
        "seconds",
        "peak MiB",
        "cores busy",
        "tokens/s, whole",
        "tokens/s, encode",
        "tokenizers alone",
    ]
    common.table("prepare, BPE 8192", columns, rows)
    figures: dict[str, Any] = {"megabytes": size, "llmtool": ours, "tokenizers": theirs}
    speeds = [run["encode_tokens_per_second"] for run in ours]
    figures["speed_ratio"] = common.ratios(speeds, [run["tokens_per_second"] for run in theirs])
    print(f"encode stage / tokenizers: {common.show(figures['speed_ratio'])} (at least 1 is the goal)")
    common.save(options, "prepare_speed", figures, common.versions("llmtool", "tokenizers"))


if __name__ == "__main__":
    main()
