"""How large report.html of a 100 000-step run is, how long it takes to write, and to open in Chromium.

    python scripts/benchmarks/report.py --save

The run is Adult, trained for a few steps and evaluated; its metrics.jsonl is then replaced by 100 000 rows of
the same make, a row for each step, with spikes and rows without a number. Opened means painted: two frames
after the page's load event, from the start of its navigation, in a window of 1100 x 900.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

STEPS = 100_000
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --window-size=1100,900 --remote-debugging-pipe about:blank"""
PAINTED = """new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(
JSON.stringify({ms: performance.now(), elements: document.querySelectorAll('*').length})))))"""


def metrics(steps: int) -> str:
    """Lines of a metrics.jsonl as long training writes them."""
    random = np.random.default_rng(0)
    losses = 3 / (1 + np.arange(steps) / 3000) + random.normal(0, 0.02, steps)
    losses[random.choice(steps, 20)] *= 10
    lines = []
    for step in range(1, steps + 1):
        loss: float | None = float(losses[step - 1]) if step % 10_007 else None
        clock = {
            "seconds": step / 50,
            "left": (steps - step) / 50,
            "rows_per_second": 25_000 + random.normal(),
        }
        row: dict[str, Any] = {
            "step": step,
            "loss": loss,
            "norm": 1.0,
            "lr": 3e-3 * (1 - step / steps),
            "time": clock,
        }
        lines.append(json.dumps(row))
        if step % (steps // 100) == 0:
            found = {"log_loss": float(losses[step - 1]) / 3 if loss else None, "accuracy": 0.85}
            lines.append(json.dumps({"step": step, "validation": found, "best": False}))
    return "\n".join(lines) + "\n"


class Browser:
    """A browser of its own, spoken to over two pipes (the DevTools protocol)."""

    def __init__(self, chromium: str, profile: str) -> None:
        (theirs, self.to), (self.back, back) = os.pipe(), os.pipe()
        # The browser reads from its descriptor 3 and writes to 4.
        command = f'exec "$0" "$@" 3<&{theirs} 4>&{back}'
        arguments = ["bash", "-c", command, chromium, *FLAGS.split(), f"--user-data-dir={profile}"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(arguments, pass_fds=(theirs, back), stdout=quiet, stderr=quiet)
        os.close(theirs)
        os.close(back)
        self.read, self.number, self.session = b"", 0, {}
        target = next(one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page")[
            "targetId"
        ]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        self.ask("Page.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters, **self.session}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        return self.wait(lambda said: said.get("id") == self.number)["result"]

    def wait(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next message of that kind; others are left out."""
        while True:
            while b"\0" not in self.read:
                got = os.read(self.back, 2**16)
                if not got:
                    raise SystemExit("the browser ended")
                self.read += got
            message, _, self.read = self.read.partition(b"\0")
            if wanted(said := json.loads(message)):
                return said

    def opened(self, page: Path) -> dict[str, float]:
        """Milliseconds until a page is painted, and how many elements it has."""
        self.ask("Page.navigate", url=f"file://{page}")
        self.wait(lambda said: said.get("method") == "Page.loadEventFired")
        found = self.ask("Runtime.evaluate", expression=PAINTED, awaitPromise=True)["result"]["value"]
        result: dict[str, float] = json.loads(found)
        return result

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()
        os.close(self.to)
        os.close(self.back)


def opened(chromium: str, page: Path) -> dict[str, float]:
    """The same in a browser that was started for it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(chromium, profile)
        try:
            return browser.opened(page)
        finally:
            browser.close()


def main() -> None:
    options = common.parser(__doc__ or "").parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no chromium on PATH")
    repeats = 2 if options.short else 5
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) / "adult"
        sets = {"run": root, "train.budget": "{steps: 20}", "evaluate.require": "{}"}
        for command in ("train", "evaluate"):
            common.timed(common.llmtool(command, "configs/tabular/adult.yaml", sets=sets))
        (root / "train" / "metrics.jsonl").write_text(metrics(STEPS))
        runs = [common.timed(common.llmtool("report", root)) for _ in range(repeats)]
        wall, cpu = [run.seconds for run in runs], [run.cpu_seconds for run in runs]
        page = root / "evaluate" / "report.html"
        sys.path.insert(0, str(common.ROOT))
        from llmtool.stages.report import write

        inside = []
        for _ in range(repeats):
            began = time.perf_counter()
            write(root)
            inside.append(time.perf_counter() - began)
        paints = [opened(chromium, page) for _ in range(repeats)]
        shown = subprocess.run([chromium, "--version"], capture_output=True, text=True, check=True)
        figures = {
            "steps": STEPS,
            "metrics_bytes": (root / "train" / "metrics.jsonl").stat().st_size,
            "page_bytes": page.stat().st_size,
            "elements": paints[0]["elements"],
            "command_seconds": common.spread(wall),
            "command_cpu_seconds": common.spread(cpu),
            "write_seconds": common.spread(inside),
            "painted_ms": common.spread([one["ms"] for one in paints]),
            "browser": shown.stdout.strip(),
        }
    painted = statistics.median(one["ms"] for one in paints)
    common.table(
        f"report.html of {STEPS:,} steps",
        ["kB", "llmtool report, s", "its processor time, s", "reading and writing alone, s", "painted, ms"],
        [[figures["page_bytes"] / 1000, *map(statistics.median, (wall, cpu, inside)), painted]],
    )
    common.save(options, "report", figures, common.versions("numpy"))


if __name__ == "__main__":
    main()
