"""llmtool finetune: an existing model adapted to the run's data, scored before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmtool.commands import Options, keys, launching, profiled, session
from llmtool.core import console, files, ranks, watch
from llmtool.core.contracts import Tally
from llmtool.core.errors import DataError
from llmtool.core.freshness import Hashes
from llmtool.core.run import Run, hashes_of
from llmtool.data.store import Dataset
from llmtool.evaluation import answers, report
from llmtool.experiment import FinetuneConfig, Loaded
from llmtool.metrics import bootstrap
from llmtool.models import adapters, shards
from llmtool.stages import assemble, checkpoints, export, judge, score, suites
from llmtool.stages.assemble import Assembled
from llmtool.stages.checkpoints import Start

Tallies = dict[str, Tally]
Asked = Mapping[str, suites.Answered]


def run(options: Options) -> dict[str, Any]:
    """Run the command, on as many devices as there are; returns the content of result.json."""
    return launching.run(_run, options, "finetune")


def _run(options: Options) -> dict[str, Any]:
    with session.command(options, "finetune") as loaded:
        config = loaded.experiment.finetune
        assert config is not None
        directory = session.model_to_start(loaded)
        dataset = session.prepared(loaded, options)
        launching.same_data(dataset)
        hashes = hashes_of(loaded.experiment.run, "finetune")
        weights = checkpoints.verify(Path(directory), hashes.hash)
        key = keys.fit(loaded, "finetune", {"dataset": dataset.fingerprint, "start": weights})
        with session.stage(loaded, "finetune", key, options, resumable=True, hashes=hashes) as run:
            if not run.fresh:
                start = checkpoints.from_checkpoint(directory, hashes.hash)
                _finetune(run, loaded, config, dataset, start, options, hashes)
            else:
                profiled.stands(options, run)
    return run.result


def _finetune(
    run: Run,
    loaded: Loaded,
    config: FinetuneConfig,
    dataset: Dataset,
    start: Start,
    options: Options,
    hashes: Hashes,
) -> None:
    experiment, base = loaded.experiment, _base(run, start, config)
    if rounded := assemble.quantise(experiment, start, config.method):
        console.note(rounded)
    old = _old_data(start, dataset)
    first = ranks.here().first  # which alone scores and asks
    before = _before(loaded, old, start) if old and first else {}
    assembled, said = assemble.from_start(experiment, dataset, start)
    if said:
        console.say(said)
    cache, seed = run.root / judge.CACHE, experiment.seed
    asked: Asked = {}
    if first:
        with watch.phase("score", patient=True):  # the others wait
            before |= _validation("new", assembled)
            asked = session.asked(
                loaded, assembled, start, weights=_asked_weights(start, config),
                cache=cache / "suites of the start", hashes=hashes,
            )  # fmt: skip
    assemble.adapt(assembled, start, config.method, base)
    result = session.fit(run, loaded, assembled, config, options)
    assembled.model = shards.mend(assembled.model, assembled.device, keep=first)
    if not first:
        return
    assembled.restore(result.best)
    after = _validation("new", assembled)
    if old and not said:
        after |= _validation("old", assemble.on(assembled, old))
    answered = session.asked(
        loaded, assembled, start, weights=checkpoints.fingerprint(result.best),
        cache=cache / "suites", hashes=hashes,
    )  # fmt: skip
    changes = {name: bootstrap.paired(after[name], before[name], seed) for name in after if name in before}
    as_json = {name: {key: asdict(change) for key, change in of.items()} for name, of in changes.items()}
    merged = _merge(run, assembled, config)
    found, was = _figures(after), _figures(before)
    of_suites = _suites(asked, answered, seed)
    session.finish_fit(
        run, loaded, assembled, result, {"validation": found["new"]} if "new" in found else {},
        before=was, after=found, changes=as_json, head=said, merged=merged,
        start={"path": str(start.directory), "hash": start.hash}, suites=of_suites,
        **({"seen": result.seen} if result.seen else {}),
    )  # fmt: skip
    _show(old_path := start.dataset["path"] if start.dataset else "", was, after, found, changes, bool(old))
    if of_suites:
        lines = answers.before_after(of_suites["before"], of_suites["after"], of_suites["changes"])
        console.table(["suite", "figure", "before", "after", "change"], lines)
    if old and said:
        console.say(f"{old_path} cannot be scored any more: the head is not the one that it was read with")
    session.say_fit(result)
    profiled.say(result.profile)
    if merged:
        console.say(f"merged model: {merged}")


def _base(run: Run, start: Start, config: FinetuneConfig) -> Path:
    """Where the model lies that a new adapter is beside; the other ranks wait while it is written."""
    with watch.phase("save", patient=True):
        return ranks.by_first(lambda: export.whole(start, config.method, run.directory))


def _before(loaded: Loaded, old: Dataset, start: Start) -> Tallies:
    """What the start says of the data it learned from; the other ranks wait meanwhile."""
    with watch.phase("score", patient=True):
        return _validation("old", assemble.as_scored(loaded.experiment, old, start))


def _show(
    old_path: str,
    was: dict[str, dict[str, float]],
    after: Tallies,
    found: dict[str, dict[str, float]],
    changes: Mapping[str, Any],
    has_old: bool,
) -> None:
    """Figures before and after, of this data and of what the start learned from."""
    titles = {"new": "this data:" if has_old else "", "old": f"{old_path}:"}
    shown = [name for name in ("new", "old") if name in after]
    pairs = {titles[name]: (was.get(name), found[name]) for name in shown}
    console.show(report.before_after(pairs, {titles[name]: changes.get(name, {}) for name in shown}))


def _old_data(start: Start, dataset: Dataset) -> Dataset | None:
    """The data the start learned from, where it is other data and still there; not where it asked for answers
    of another kind (of a language model that becomes a classifier), which end with the old head."""
    if start.dataset is None or start.dataset["fingerprint"] == dataset.fingerprint:
        return None
    if start.card["targets"]["kind"] != dataset.targets["kind"]:
        return None
    try:
        old = Dataset.open(start.dataset["path"])
        if dataset.limit is None:  # a rehearsal reads a little of it
            old.verify()
    except DataError:
        old = None
    if old is None or old.fingerprint != start.dataset["fingerprint"]:
        console.note(
            f"{start.dataset['path']} is gone or has changed: no scores on what the start learned from"
        )
        return None
    return old.first(dataset.limit)


def _validation(name: str, assembled: Assembled) -> Tallies:
    """The evidence of the validation split under this name; nothing where there is no such split."""
    if "validation" not in assembled.dataset.splits:
        return {}
    return {name: score.score(assembled, ["validation"])["validation"]}


def _asked_weights(start: Start, config: FinetuneConfig) -> str:
    """What answers before training: the start's weights, or what four bits keep of them."""
    kept = config.method.base_form() if isinstance(config.method, adapters.LoRAConfig) else {}
    return f"{start.hash} {kept}" if kept else start.hash


def _suites(before: Asked, after: Asked, seed: int) -> dict[str, Any] | None:
    """What result.json says of the suites before and after; None where there are none."""
    if not after:
        return None
    said = {"before": suites.document(before, seed), "after": suites.document(after, seed)}
    return {**said, "changes": suites.changes(before, after, seed)}


def _figures(tallies: Tallies) -> dict[str, dict[str, float]]:
    return {name: tally.metrics() for name, tally in tallies.items()}


def _merge(run: Run, assembled: Assembled, config: FinetuneConfig) -> str | None:
    """Where the adapter was merged into its base, if the file asks for it."""
    if not isinstance(config.method, adapters.LoRAConfig) or not config.method.merge:
        return None
    merged = run.directory / "merged"
    files.remove_tree(merged)  # of a session that ended just after writing it
    return str(assemble.save_merged(assembled, run.directory))
