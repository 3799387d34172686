"""Writes the tables of scaling.md: what a run would cost on 8, 512 and 16,384 GPUs, and where it would break.

    python scripts/benchmarks/scaling.py        rewrites them;  --check only says whether they are up to date

Every number comes from results/*.json (measured), from published.py (with its place), or from a function here
that computes it from those two and from the closed forms of rank_forms.py, which simulate_ranks.py checks.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from published import PUBLISHED, published
from rank_forms import MODELS, Layout, held, messages

HERE = Path(__file__).resolve().parent
PAGE, RESULTS = HERE / "scaling.md", HERE / "results"
GPUS = (8, 512, 16_384)
RECOMPUTED = {"8 B": False, "70 B": True}
LAYOUTS = {  # rows at once: what memory leaves room for, and what the batch leaves to each
    ("8 B", 8): Layout(8, 1, 1, rows=1, tokens=8192),
    ("8 B", 512): Layout(512, 1, 1, rows=1, tokens=8192),
    ("8 B", 16_384): Layout(2048, 1, 8, rows=1, tokens=8192),
    ("70 B", 8): Layout(8, 1, 1, rows=1, tokens=8192),
    ("70 B", 512): Layout(64, 1, 8, rows=2, tokens=8192),
    ("70 B", 16_384): Layout(2048, 1, 8, rows=1, tokens=8192),
}
NODE, TEXT, TRILLIONS = 8, 1e12, 15e12


class MissingError(Exception):
    """A result that has not been measured."""


@cache
def measured(name: str) -> Any:
    """The figures of results/<name>.json."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise MissingError(name)
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("short"):
        raise MissingError(name)
    return document["figures"]


def load(name: str) -> float:
    """Of the machine when the figures of a file were taken."""
    path = RESULTS / f"{name}.json"
    return float(json.loads(path.read_text(encoding="utf-8"))["device"]["load_at_end"])


# --- what is computed -------------------------------------------------------------------------------------


def bytes_per_token() -> float:
    """Of English text in our tokens."""
    found = measured("prepare_speed")
    return float(found["megabytes"] * 1e6 / found["llmtool"][0]["tokens"])


def texts() -> dict[str, float]:
    """The two amounts of text, in tokens."""
    return {"1 TB": TEXT / bytes_per_token(), "15 T tokens": TRILLIONS}


def rate(model: str) -> float:
    """FLOP/s of a GPU behind the published speed of such a model: their exchanges that wait are in it."""
    speed = published("8B on 128" if model == "8 B" else "70B on 256, async")
    return speed * MODELS[model].flops(8192, RECOMPUTED[model])


def gpu_hours(model: str, tokens: float) -> tuple[float, float]:
    """By the fastest published step of the same engines, and by all hours of the published run."""
    key = model.replace(" ", "")
    fastest = max(published(name) for name in PUBLISHED if name.startswith(f"{key} on"))
    return tokens / fastest / 3600, tokens / TRILLIONS * published(f"{key} hours")


@dataclass(frozen=True)
class Step:
    """Seconds of a micro-batch: `rows` and `hops` may pass beside computing, `tensor` may not."""

    compute: float
    rows: float
    hops: float
    tensor: float
    update: float  # of AdamW, once for all micro-batches

    @property
    def seconds(self) -> float:
        """All of it, where all that may be hidden is."""
        return max(self.compute, self.rows + self.hops) + self.tensor


def step(model: str, gpus: int) -> Step:
    """Of a model's layout on so many GPUs, by bytes over links and hops of rings."""
    sizes, layout = MODELS[model], LAYOUTS[model, gpus]
    flops = layout.here * sizes.flops(layout.tokens, RECOMPUTED[model]) / layout.tensor
    beside = max(
        1, NODE // layout.tensor
    )  # ranks of a ring over rows that share a machine, each with its link
    within = layout.among <= beside
    link = published("nvlink") if within else min(published("nvlink"), beside * published("network"))
    between = 0 if within else -(-layout.among // beside)
    hop = (layout.among - 1 - between) * published("nvlink hop") + between * published("network hop")
    rows = hops = tensor = 0.0
    for each in messages(sizes, layout, RECOMPUTED[model]):
        if each.group == "rows":
            rows += each.sent / link
            hops += each.calls * hop
        else:
            around = 2 * (each.ranks - 1) * published("nvlink hop")
            tensor += each.sent / published("nvlink") + each.calls * around
    moved = 28 * sizes.parameters / layout.ranks  # weights, gradients, two moments read, all but one written
    return Step(flops / rate(model), rows, hops, tensor, moved / published("copies"))


def tokens_per_gpu(model: str, gpus: int) -> float:
    """Tokens a second and GPU of the step."""
    layout = LAYOUTS[model, gpus]
    return layout.rows * layout.tokens * layout.data / step(model, gpus).seconds / gpus


def rank_bytes(model: str, gpus: int) -> int:
    """What a rank keeps with AdamW, gradients too, activations and what is whole for a moment not."""
    there = held(MODELS[model], LAYOUTS[model, gpus])
    return there["weights"] + there["gradients"] + there["adamw"]


def checkpoint_bytes(model: str) -> float:
    """Weights and AdamW's two moments."""
    return 12.0 * MODELS[model].parameters


def tensors(model: str) -> int:
    """Of the weights; the optimizer has twice as many."""
    return 9 * MODELS[model].depth + 3


def writer() -> float:
    """Bytes a second of one writer of a checkpoint, the best of a few: written, hashed, synced."""
    return max(one["written"] for one in checkpoints())


def handed() -> float:
    """The same until training goes on, while the disk works."""
    return max(one["handed"] for one in checkpoints())


def checkpoints() -> list[dict[str, float]]:
    """The measured ones."""
    found: list[dict[str, float]] = measured("rank_costs")["checkpoint"]
    return found


def saving(model: str, gpus: int) -> float:
    """Seconds of a checkpoint: all writers together, and no sooner than the largest tensor's."""
    sizes = MODELS[model]
    speed = min(min(gpus, tensors(model)) * writer(), published("storage"))
    return max(checkpoint_bytes(model) / speed, 4 * sizes.vocabulary * sizes.width / writer())


def waiting(model: str, gpus: int) -> float:
    """Seconds of them for which training waits."""
    sizes = MODELS[model]
    together = checkpoint_bytes(model) / (min(gpus, tensors(model)) * handed())
    return max(together, 4 * sizes.vocabulary * sizes.width / handed())


def verifying(model: str) -> float:
    """Seconds until the first rank has hashed a checkpoint, as it does before a run goes on."""
    return checkpoint_bytes(model) / max(one["verified"] for one in checkpoints())


def between_failures(gpus: int) -> float:
    """Hours."""
    return 54 * 24 * 16_384 / published("failures") / gpus


def lost(model: str, gpus: int) -> tuple[float, float]:
    """Minutes between checkpoints that lose least (Young, https://doi.org/10.1145/361147.361115), and the
    share of time that saving, work done again and starting again then take."""
    mean, wait = 3600 * between_failures(gpus), waiting(model, gpus)
    interval = max(math.sqrt(2 * wait * mean), saving(model, gpus))  # the next waits for the one before
    again = saving(model, gpus) + verifying(model) + checkpoint_bytes(model) / published("storage")
    return interval / 60, wait / interval + (interval / 2 + again) / mean


def hop() -> float:
    """Seconds of one hop of gloo's ring over loopback."""
    return float(min(found["hop"] for found in measured("rank_costs")["ranks"].values()))


def clock(gpus: int) -> float:
    """Seconds of the exchange of the time and the signals: gloo's ring."""
    return 2 * (gpus - 1) * hop()


def sockets(gpus: int) -> float:
    """Of one process, once all have met: as many for each other rank, and a few more."""
    found = measured("rank_costs")["ranks"]
    (few, there), *_, (many, most) = ((int(count), one["sockets"]) for count, one in found.items())
    return float(there + (most - there) / (many - few) * (gpus - few))


def pieces(model: str, gpus: int) -> float:
    """Bytes that every rank is told before a sharded save: of each tensor, who has what."""
    return 3 * tensors(model) * gpus * float(measured("rank_costs")["piece_bytes"])


def prepared() -> dict[str, float]:
    """Of `prepare` on text: core-hours for a terabyte, hours of the parent process for one, at most."""
    found = measured("prepare_speed")
    one, cores = found["llmtool"][0], 2
    per_byte = one["cores_busy"] * one["seconds"] / (found["megabytes"] * 1e6)
    # seconds = serial + (work - serial) / cores; the tokenizer learns once, whatever the text's size
    serial = (cores * one["seconds"] - one["cores_busy"] * one["seconds"]) / (cores - 1)
    parent = max(0.0, serial - one["stages"]["fitting"] - one["stages"]["start"]) / (found["megabytes"] * 1e6)
    return {"core-hours": per_byte * 1e12 / 3600, "parent": parent * 1e12 / 3600}


# --- tables -----------------------------------------------------------------------------------------------


def short(value: float) -> str:
    """Three digits, or all of a whole number's."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    if abs(value) >= 100:
        digits = max(0, math.floor(math.log10(abs(value))) - 2)
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}".rstrip("0").rstrip(".") or "0"


def time_of(hours: float) -> str:
    """Seconds to years."""
    for size, name in ((1 / 60, "s"), (1, "min"), (48, "h"), (24 * 700, "days")):
        if hours < size:
            unit = {"s": 3600, "min": 60, "h": 1, "days": 1 / 24}[name]
            return f"{short(hours * unit)} {name}"
    return f"{short(hours / 24 / 365)} years"


def spread(low: float, high: float, show: Callable[[float], str] = short) -> str:
    """From the one to the other."""
    low, high = sorted((low, high))
    return show(low) if show(low) == show(high) else f"{show(low)} to {show(high)}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def inputs() -> str:
    """What the other tables stand on."""
    found = measured("prepare_speed")
    one = found["llmtool"][0]
    cpu = f"rank_costs.json, 2 cores with other work (load {load('rank_costs'):.0f}): no less than that"
    ours = [
        (bytes_per_token(), "bytes of English text in a token, BPE", "prepare_speed.json"),
        (found["megabytes"] * 1e6 / one["seconds"], "bytes/s prepared on 2 cores", "prepare_speed.json"),
        (hop(), "seconds of a hop of gloo's ring, loopback", cpu.replace("less", "more")),
        (writer(), "bytes/s of a checkpoint by one writer", cpu),
        (handed(), "the same until training goes on", cpu),
        (checkpoint_bytes("70 B") / verifying("70 B"), "bytes/s of a checkpoint verified", cpu),
    ]
    rows = [[_number(value), "m", what, where] for value, what, where in ours]
    for value, what, where in PUBLISHED.values():
        rows.append([_number(value), "e" if "by us" in where else "p", what, where])
    return table(["value", "", "what", "where"], rows)


def _number(value: float) -> str:
    if value == int(value) and value < 1e5:
        return f"{int(value):,}"
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{short(value / size)} {name}"
    return f"{short(value * 1e6)} µ" if value < 1e-3 else short(value)


def memory() -> str:
    """One of 512 ranks, as simulated."""
    rows = []
    for name, one in measured("simulate_ranks").items():
        there, saved = one["held"], one["saved"]
        base = there["weights"] + there["gradients"] + one["whole"]
        totals = [base + there["adamw"] + saved[kind] for kind in ("plain", "recomputed")]
        parts = [
            there["weights"],
            there["gradients"],
            there["adamw"],
            there["muon"],
            one["whole"],
        ]
        layout = f"{name}; {one['layout']['tokens']:,} tokens"
        rows.append([layout, *(short(size / 1e9) for size in [*parts, *saved.values(), *totals])])
    columns = ["layout, a row at once", "weights", "gradients", "AdamW", "Muon", "whole at once"]
    return table([*columns, "saved", "saved, all recomputed", "sum, AdamW", "sum, recomputed"], rows)


def sent() -> str:
    """What it sends in a step."""
    names = {"rows": "data x context", "tensor": "tensor", "context": "context"}
    rows = []
    for name, one in measured("simulate_ranks").items():
        for each in one["messages"]["recomputed"]:
            if each["ranks"] > 1:
                kind = f"{each['kind']}, {names[each['group']]} ({each['ranks']})"
                plain = next(
                    m["sent"]
                    for m in one["messages"]["plain"]
                    if (m["kind"], m["group"]) == (each["kind"], each["group"])
                )
                rows.append([name, kind, str(each["calls"]), short(plain / 1e9), short(each["sent"] / 1e9)])
    return table(["layout", "collective (ranks)", "calls", "GB", "GB, all recomputed"], rows)


def costs() -> str:
    """GPU hours, energy, money."""
    rows = []
    for model in MODELS:
        for text, tokens in texts().items():
            hours = gpu_hours(model, tokens)
            energy = [
                one * published(f"kW, {which}") * published(f"PUE, {which}") / 1e3
                for one, which in zip(sorted(hours), ("least", "most"), strict=True)
            ]
            money = [
                one * published(f"$, {which}")
                for one, which in zip(sorted(hours), ("least", "most"), strict=True)
            ]
            rows.append(
                [
                    f"{model}, {text}", f"{short(tokens / 1e9)} G", spread(*hours), spread(*energy),
                    spread(*(one / 1e6 for one in money)),
                ]
            )  # fmt: skip
    return table(["model, text", "tokens", "GPU hours (p, x)", "MWh (x)", "million $ (x)"], rows)


def hours() -> str:
    """Wall time on 8, 512 and 16,384 GPUs."""
    rows = []
    for model in MODELS:
        for text, tokens in texts().items():
            row = [f"{model}, {text}"]
            for gpus in GPUS:
                if rank_bytes(model, gpus) > 80e9:
                    row.append(f"does not fit: {short(rank_bytes(model, gpus) / 1e9)} GB a rank")
                    continue
                best = gpu_hours(model, tokens)[0] / gpus
                ours = tokens / tokens_per_gpu(model, gpus) / gpus / 3600 / (1 - lost(model, gpus)[1])
                row.append(f"{time_of(best)}; {time_of(ours)}")
            rows.append(row)
    return table(["model, text", *(f"{gpus:,} GPUs (x)" for gpus in GPUS)], rows)


def steps() -> str:
    """Where the time of a step goes."""
    rows = []
    for (model, gpus), layout in LAYOUTS.items():
        if rank_bytes(model, gpus) > 80e9:
            continue
        one = step(model, gpus)
        micro = published("batch") / (layout.data * layout.rows * layout.tokens)
        rows.append(
            [
                f"{model}, {gpus:,}", f"{layout.data} x {layout.context} x {layout.tensor}, {layout.rows}",
                short(micro), *map(short, astuple(one)),
                short(one.seconds), f"{100 * one.compute / one.seconds:.0f} %",
                short(tokens_per_gpu(model, gpus)),
            ]
        )  # fmt: skip
    columns = ["model, GPUs", "data x context x tensor, rows", "micro-batches", "computes", "FSDP's bytes"]
    return table(
        [*columns, "FSDP's hops", "tensor's sums", "update", "seconds", "computing", "tokens/s a GPU (x)"],
        rows,
    )


def growth() -> str:
    """What grows with the number of ranks, and what a rank has less of."""
    model = "70 B"
    found: list[tuple[str, Callable[[int], str]]] = [
        ("sockets of a process that has met the others (m, x)", lambda n: short(sockets(n))),
        ("the clock's exchange (m, x)", lambda n: time_of(clock(n) / 3600)),
        ("told to every rank before a save (m, x)", lambda n: f"{short(pieces(model, n) / 1e6)} MB"),
        ("a checkpoint, seconds (m, x)", lambda n: short(saving(model, n))),
        ("training waits for it, seconds (m, x)", lambda n: short(waiting(model, n))),
        ("verified by the first rank, seconds (m, x)", lambda n: short(verifying(model))),
        ("between failures (p, x)", lambda n: time_of(between_failures(n))),
        ("minutes between checkpoints; time lost (x)", lambda n: _lost(model, n)),
        ("tokens of a batch for a rank's group of 8 (p, x)", lambda n: f"{published('batch') * 8 / n:,.0f}"),
        ("matrices that Muon gives a rank (x)", lambda n: short(7 * MODELS[model].depth / n)),
    ]
    return table(["70 B", *(f"{n:,}" for n in GPUS)], [[name, *map(show, GPUS)] for name, show in found])


def _lost(model: str, gpus: int) -> str:
    minutes, share = lost(model, gpus)
    return f"{short(minutes)}; {100 * share:.1f} %"


def breaks() -> str:
    """From how many ranks on each of them is in the way."""
    model = "70 B"
    sizes = MODELS[model]
    computes = step(model, 16_384)
    per_hop = computes.hops / (LAYOUTS[model, 16_384].among - 1)
    batch = published("batch")
    limits = [
        ("sockets reach the usual limit of open files", _filled()),
        ("the clock's exchange is as long as a step", computes.seconds / (2 * hop()) + 1),
        ("what ranks tell each other before a save is 1 GB at each", 1e9 / pieces(model, 1)),
        ("there are more ranks than tensors to write", float(tensors(model))),
        ("Muon has fewer matrices than ranks", 7.0 * sizes.depth),
        ("a matrix has fewer rows than FSDP cuts it among: parts are padded", float(_padded(model))),
        ("FSDP's hops alone take as long as computing", 8 * (computes.compute / per_hop + 1)),
        ("a batch has one row of 8,192 tokens for each group of 8", 8 * batch / 8192),
    ]
    rows = [[what, f"{limit:,.0f}"] for what, limit in sorted(limits, key=lambda one: one[1])]
    return table(["70 B: what", "from so many ranks on (x)"], rows)


def _filled() -> float:
    """Ranks whose sockets are as many as a process may open."""
    return 1 + (published("open files") - sockets(1)) / (sockets(2) - sockets(1))


def _padded(model: str) -> int:
    """GPUs, in groups of 8 tensor ranks, from which the keys' matrices have no row for each."""
    return 8 * min(rows for rows, _ in MODELS[model].matrices(8))


def preparing() -> str:
    """prepare at scale, by what two cores do."""
    one, cores = prepared(), published("cores")
    rows = []
    for text, tokens in texts().items():
        size = tokens * bytes_per_token() / 1e12
        work, parent = size * one["core-hours"], size * one["parent"]
        machines = [time_of(work / cores / n) for n in (1, 64)]
        rows.append([text, f"{short(size)} TB", short(work), *machines, time_of(parent)])
    return table(
        [
            "text",
            "size",
            "core-hours (m, x)",
            "1 machine (x)",
            "64 machines (x)",
            "its parent, at most (m, x)",
        ],
        rows,
    )


TABLES = (inputs, memory, sent, costs, hours, steps, growth, breaks, preparing)


def updated(page: str) -> str:
    """The page with its tables as they are now. MissingError where a result is missing."""
    for make in TABLES:
        name = make.__name__
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise SystemExit(f"{PAGE.name}: expected one place for the table {name}")
        text = make()
        page = pattern.sub(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page)
    return page


def main() -> int:
    """Rewrite the page, or compare it."""
    page = PAGE.read_text(encoding="utf-8")
    new = updated(page)
    if "--check" in sys.argv[1:]:
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
