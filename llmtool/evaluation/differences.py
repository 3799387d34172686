"""What differs between runs - config keys, data, code, versions, figures - by what they left behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmtool.core.lineage import short
from llmtool.evaluation.report import interval, is_average, number

Run = Mapping[str, Any]  # what stages.report collects
Different = dict[str, list[str]]  # what differs -> its value in each run
STAGES = ("prepare", "describe", "train", "finetune", "evaluate")
OF_THE_RUN = "(run)"  # stands for a run's own directory in a value
NONE, GIVEN = "-", "given"
MADE = ("encoder", "dataset")
COUNTED = {"config": "config key", "versions": "version"}


def differences(runs: Sequence[Run]) -> dict[str, Different]:
    """Section -> what differs in it: `config`, `data`, `start`, `code`, `versions`, in this order."""
    return {"config": keys(runs), "data": data(runs), "start": start(runs), **_versions(runs)}


def explanation(differs: Mapping[str, Different], same_result: bool | None) -> str:
    """One sentence on what is the same and what is not: "the same data, code and versions; 2 config keys
    differ". same_result: whether weights and figures are equal; None: not known."""
    same = [section for section, found in differs.items() if not found and section != "start"]
    counts = []
    for section, found in differs.items():
        if section not in COUNTED and found:
            counts.append(f"the {section}")
        elif found:
            counts.append(f"{len(found)} {COUNTED[section]}{'s' if len(found) > 1 else ''}")
    parts = [f"the same {_listed(same)}"] if same else []
    if counts:
        one = len(counts) == 1 and not (counts[0][:1].isdigit() and counts[0][:2] != "1 ")
        parts.append(f"{_listed(counts)} differ{'s' if one else ''}")
    if not counts and same_result:
        return "nothing differs: config, data, code, versions and figures are the same"
    if same_result is not None:
        parts.append("the result is the same" if same_result else "" if counts else "yet the result differs")
    return "; ".join(part for part in parts if part)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# --- config -----------------------------------------------------------------------------------------------


def keys(runs: Sequence[Run]) -> Different:
    """The keys of the resolved configs of all stages that are not the same in all runs; a section that some
    do not have is one line."""
    found = [_configuration(run) for run in runs]
    sections = [{key.partition(".")[0] for key in one} for one in found]
    partly = set().union(*sections) - sections[0].intersection(*sections)
    whole = [dict.fromkeys(sorted(partly & one), GIVEN) for one in sections]
    rest = [{k: v for k, v in one.items() if k.partition(".")[0] not in partly} for one in found]
    return _different(rest) | _different(whole)


def _configuration(run: Run) -> dict[str, Any]:
    """Dotted key -> value. What each stage's work belongs to; of training with every `auto` resolved."""
    found: dict[str, Any] = {}
    experiments: Mapping[str, Any] = run.get("experiments") or {}
    for config in experiments.values():
        found |= dict(flat(config))
    for stage in ("evaluate", "prepare", "train", "finetune"):  # what made the model has the last word
        config = (run["results"].get(stage, {}).get("key") or {}).get("config") or {}
        found = _replaced(found, {key: value for key, value in config.items() if key not in experiments})
    for stage, config in experiments.items():
        if isinstance(config.get(stage), Mapping):
            found = _replaced(found, {stage: config[stage]})
    return {
        key: _own(value, run["root"]) for key, value in found.items() if key != "run" and value is not None
    }


def _replaced(found: dict[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    names = {name.partition(".")[0] for name in sections}
    return {k: v for k, v in found.items() if k.partition(".")[0] not in names} | dict(flat(dict(sections)))


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested sections as dotted keys; an empty section is a value."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _own(value: Any, root: str) -> Any:
    """A place inside the run as the same place of any run."""
    if isinstance(value, str) and (value == root or value.startswith(f"{root}/")):
        return OF_THE_RUN + value[len(root) :]
    return value


# --- data -------------------------------------------------------------------------------------------------


def data(runs: Sequence[Run]) -> Different:
    """Source files, encoder and dataset by their hashes, and the rows of each split."""
    links = [run.get("data") or [] for run in runs]
    sources = [{link["where"]: link["content"] for link in found if not link["from"]} for found in links]
    files = [{f"file {name}": short(content) for name, content in one.items()} for one in sources]
    alike = len({tuple(one.values()) for one in sources}) == 1  # the same bytes under other names
    made = [
        {link["what"]: short(link["content"]) for link in found if link["what"] in MADE} for found in links
    ]
    rows = [_rows(run["card"] or {}, found) for run, found in zip(runs, links, strict=True)]
    return ({} if alike else _different(files)) | _different(made) | (_different(rows) if all(rows) else {})


def _rows(card: Mapping[str, Any], links: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Rows of each split, where the card is still that of the data."""
    if not links or links[-1]["content"] != card.get("fingerprint"):
        return {}
    return {f"rows of {name}": f"{meta['rows']:,}" for name, meta in card["splits"].items()}


def start(runs: Sequence[Run]) -> Different:
    """The weights that finetune started from, where all runs have such."""
    found = [str((run["results"].get("finetune", {}).get("start") or {}).get("hash", "")) for run in runs]
    return _different([{"weights": short(hash_)} for hash_ in found]) if all(found) else {}


# --- code and versions ------------------------------------------------------------------------------------


def _versions(runs: Sequence[Run]) -> dict[str, Different]:
    """`code` and `versions`, stage by stage; what differs in the same way in all stages stands once."""
    found: dict[str, dict[str, list[str]]] = {}
    for stage in STAGES:
        about = [_environment(run, stage) for run in runs]
        if all(about):
            for name, values in _different(about).items():
                found.setdefault(name, {})[stage] = values
    lines: Different = {}
    for name, stages in found.items():
        if len({tuple(values) for values in stages.values()}) == 1:
            lines[name] = next(iter(stages.values()))
        else:
            lines |= {f"{name} ({stage})": values for stage, values in stages.items()}
    code = {name: values for name, values in lines.items() if name.startswith("llmtool")}
    return {"code": code, "versions": {name: lines[name] for name in lines if name not in code}}


def _environment(run: Run, stage: str) -> dict[str, Any]:
    versions = run["results"].get(stage, {}).get("versions")
    if not isinstance(versions, Mapping):
        return {}
    versions = {**versions, **versions.get("packages", {})}
    versions |= {key: value for key, value in (run.get("environments") or {}).get(stage, {}).items()
                 if key in ("device", "precision")}  # fmt: skip
    return {k: v for k, v in flat(versions) if not k.startswith("packages") and v not in (None, {})}


# --- figures ----------------------------------------------------------------------------------------------


def weights(runs: Sequence[Run]) -> list[str]:
    """The hash of each run's model, short; "-" where it has none."""
    hashes = [run.get("weights") for run in runs]
    return [short(hash_) if hash_ else NONE for hash_ in hashes]


def figures(runs: Sequence[Run], intervals: bool = False) -> list[list[str]]:
    """A line for each figure of each split: its name, its value in each run, with its interval or else, of
    two runs, followed by the second less the first."""
    found = [measured(run) for run in runs]
    rows = []
    for split in dict.fromkeys(split for metrics, _ in found for split in metrics):
        names = dict.fromkeys(name for metrics, _ in found for name in metrics.get(split) or {})
        for name in names:
            if is_average(name):
                continue
            values = [(metrics.get(split) or {}).get(name) for metrics, _ in found]
            cells = [f"{split} {name}"]
            for value, (_, sure) in zip(values, found, strict=True):
                bounds = (sure.get(split) or {}).get(name) if intervals else None
                cells.append(f"{number(value)} ({interval(bounds)})" if bounds else number(value))
            if len(runs) == 2 and not intervals:
                cells.append(_change(values))
            rows.append(cells)
    return rows


def measured(run: Run) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Metrics and intervals by split, then by suite: of the evaluation; of training, where there is none."""
    if report := run["report"]:
        asked = {f"suites.{name}": suite for name, suite in (report.get("suites") or {}).items()}
        metrics = {name: suite["metrics"] for name, suite in asked.items()}
        sure = {name: suite["intervals"] for name, suite in asked.items()}
        return report["metrics"] | metrics, (report.get("intervals") or {}) | sure
    for stage in ("finetune", "train"):
        if found := run["results"].get(stage, {}).get("metrics"):
            return found, {}
    return {}, {}


def _change(values: Sequence[Any]) -> str:
    first, second = values
    if not all(isinstance(value, int | float) for value in values):
        return ""
    return "=" if first == second else f"{'+' * (second > first)}{number(second - first)}"


def _different(runs: Sequence[Mapping[str, Any]]) -> Different:
    """The names whose values are not the same in all runs, in the order they come up."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: values for name, values in _written(names, runs) if len(set(values)) > 1}


def _written(names: Mapping[str, None], runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    for name in names:
        yield name, [str(run[name]) if name in run else NONE for run in runs]
