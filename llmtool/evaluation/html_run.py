"""The sections of report.html on the run itself: what was asked, the data, the model, what it cost, where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from llmtool.core import console
from llmtool.evaluation.markup import bullets, section, table, text

TIMES = ("rows_per_second", "tokens_per_second")
MOST = 12  # classes, sources and notes that are listed

Run = Mapping[str, Any]  # what stages.report collects: root, results by stage, the files' contents or None


def asked(run: Run) -> str:
    """The experiment in a few lines."""
    rows = [[name, text(value)] for name, value in _asked(run) if value]
    return section("What was asked", table("", ["", ""], rows, words=(1,)))


def _asked(run: Run) -> Iterator[tuple[str, str]]:
    card = run["card"] or {}
    sources = [str(name) for name in card.get("sources", [])]
    yield "data", ", ".join(sources[:3]) + f" and {len(sources) - 3} more files" * (len(sources) > 3)
    yield "target", _target(card.get("targets") or {})
    for stage, experiment in (run.get("experiments") or {}).items():
        if stage == "train":
            yield "model", _settings(experiment.get("model"), "family")
        if isinstance(experiment.get(stage), Mapping):
            yield stage, _fit(experiment[stage])


def _target(targets: Mapping[str, Any]) -> str:
    if targets.get("kind") == "next_token":
        return f"the next of {targets['vocabulary']:,} tokens"
    names = [str(name) for name in targets.get("names", [])]
    if targets.get("kind") != "classes":
        return ", ".join(names)
    counts = targets.get("counts") or []
    total = sum(counts) or 1
    shares = [f"{name} ({100 * count / total:.3g} %)" for name, count in zip(names, counts, strict=False)]
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{targets.get('column', 'the class')}: {', '.join((shares or names)[:MOST])}{more}"


def _settings(found: Any, first: str) -> str:
    """A section of the file on one line: its tag, then its keys but for those that are off."""
    if not isinstance(found, Mapping):
        return ""
    keys = [f"{key.replace('_', ' ')} {_plain(value)}" for key, value in found.items()
            if key != first and value not in (None, False, 0, "none", [])]  # fmt: skip
    return ", ".join([str(found.get(first, "")), *keys])


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and value and isinstance(value[0], str):
        return ", ".join(f"{word} ({count})" for word, count in Counter(value).items())
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)


def _fit(fit: Mapping[str, Any]) -> str:
    budget = [
        f"{_plain(value)} {unit}" for unit, value in (fit.get("budget") or {}).items() if value is not None
    ]
    optimizer = fit.get("optimizer") or {}
    parts = [
        *budget,
        f"batch {fit.get('batch')}",
        f"{optimizer.get('name')} at lr {_plain(optimizer.get('lr'))}",
    ]
    if isinstance(fit.get("method"), Mapping):
        parts = [f"from {fit.get('start')}", _settings(fit["method"], "kind"), *parts]
    return ", ".join(parts)


def data(run: Run) -> str:
    """What became of the rows that were read, and what is to be known of them."""
    card, ledger = run["card"], run["ledger"]
    if not card:
        return ""
    rows = []
    if ledger:
        rows = [["read", f"{ledger['read']:,}"]]
        rows += [
            [f"kept for {text(split)}", f"{count:,}"] for split, count in ledger["kept"].items() if count
        ]
        for fate in ("changed", "dropped", "quarantined"):
            rows += [[f"{fate}: {text(why)}", f"{count:,}"] for why, count in ledger.get(fate, {}).items()]
    columns = (card.get("encoder") or {}).get("columns") or []
    size = ", ".join(f"{key} {value:,}" for key, value in card["inputs"].items() if isinstance(value, int))
    about = f"{len(columns)} columns as {card['encoding']}" if columns else card["encoding"]
    notes = [f"<li>{text(note)}</li>" for note in card["notes"][:MOST]]
    found = (run["leakage"] or {}).get("findings", [])  # those that warn stand on top of the page
    notes += [f"<li>{text(one['says'])}</li>" for one in found[:MOST] if not one["warning"]]
    return section(
        "Data", table("", ["", "rows"], rows), f"<p>{text(about)}: {text(size)}</p>", bullets(notes)
    )


def model(run: Run) -> str:
    """How large the model is; what it needs, where `describe` was run."""
    found, described = run.get("model") or {}, run["describe"] or {}
    total = (described.get("parameters") or {}).get("total") or found.get("parameters")
    rows = [["parameters", f"{total:,}"]] if total else []
    flops = described.get("flops") or {}
    if flops.get("forward"):
        rows.append([f"FLOPs of one {text(flops['unit'])}, forward", console.count(flops["forward"])])
        rows.append([f"FLOPs of one {text(flops['unit'])}, backward", console.count(flops["backward"])])
    memory = described.get("memory") or {}
    names = {
        "allocator": "held by the allocator",
        "total": "all in training, foreseen",
        "device_bytes": "of the device",
    }
    rows += [
        [f"memory: {text(names.get(key, key))}", console.bytes_(memory[key])]
        for key in ("weights", "gradients", "optimizer", "activations", "allocator", "total", "device_bytes")
        if memory.get(key)
    ]
    return section("Model", table("", ["", ""], rows))


def cost(run: Run) -> str:
    """The time of each stage, and the machine."""
    rows = []
    for stage, result in run["results"].items():
        speed = [(key, value) for key, value in (result.get("throughput") or {}).items() if key in TIMES]
        rate = "".join(f"{console.count(value)} {key.removesuffix('_per_second')}/s" for key, value in speed)
        steps = f"{result['steps']:,}" if "steps" in result else ""
        rows.append([text(stage), text(console.seconds(result.get("seconds") or 0.0)), steps, rate])
    machine: Mapping[str, Any] = next(
        (result["versions"] for result in run["results"].values() if result.get("versions")), {}
    )
    words = [f"{machine[key]} {key}" if key in ("cpus", "threads") else str(machine[key])
             for key in ("gpu", "cpus", "platform") if machine.get(key)]  # fmt: skip
    return section(
        "Cost",
        table("", ["stage", "time", "steps", "rate"], rows),
        f"<p class='soft'>{text(', '.join(words))}</p>",
    )


def profile(run: Run) -> str:
    """Where a step's time went, of each training that was recorded."""
    parts = []
    for stage, found in (run.get("profiles") or {}).items():
        step = found["step"] or 1.0
        for title, seconds in (("part of a step", found["parts"]), ("operator or kernel", found["top"])):
            rows = [[text(name), f"{1e3 * s:,.3f}", f"{100 * s / step:.1f} %"] for name, s in seconds.items()]
            parts.append(table(f"{stage}, {found['steps']} steps", [title, "ms", "share"], rows))
    return section("Where the time of a step goes", *parts)
