"""The lineage of a run: what its directory says was made of what, and whether all of that is still there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtool.core import checkpoint, files
from llmtool.core.contracts import Tally
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.core.lineage import Chain, Link, document, extend, read, short
from llmtool.core.run import RECORD, RESULT
from llmtool.data import remote, store
from llmtool.data.image_sources import LISTING, listing_hash
from llmtool.data.store import CARD, Dataset
from llmtool.data.tokenizers import FILE as TOKENIZER
from llmtool.evaluation import answers, compare
from llmtool.evaluation.differences import STAGES
from llmtool.evaluation.report import figures_hash, predictions_hash
from llmtool.stages import checkpoints, foreign

OK, CHANGED, OTHER, GONE, UNKNOWN = "ok", "changed", "other", "gone", "not checked"
ELSEWHERE = "lies elsewhere, where it is not looked at now; prepare asks whether it has changed"


def of_evaluation(
    directory: Path,
    tallies: Mapping[str, Tally],
    metrics: Mapping[str, Any],
    model: Chain,
    dataset: Chain,
    suites: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What report.json says of where its figures come from; predictions.csv and the answers of `suites` are
    written already."""
    predictions = {
        "file": files.hash_file(directory / compare.PREDICTIONS),
        "values": predictions_hash(tallies),
    }
    content = figures_hash(metrics, predictions["values"], suites)
    asked = {path: hash_ for one in suites.values() for path, hash_ in one["files"].items()}
    questions = [extend("questions", path, hash_) for path, hash_ in asked.items()]
    return {
        "predictions": predictions,
        "lineage": document(extend("metrics", str(directory), content, model, dataset, *questions)),
    }


# --- what a run says --------------------------------------------------------------------------------------


@dataclass
class Found:
    """chain: everything that was made, the last thing last. end: the hash that covers what belongs together.
    data: what the model learned from, or would. model, weights: the checkpoint that a run stands for, and its
    hash. notes: what is not there, or cannot be read. warnings: what must not be taken for something else."""

    chain: Chain = ()
    end: str | None = None
    data: Chain = ()
    model: Path | None = None
    weights: str | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def root_of(path: str) -> tuple[Path, str | None]:
    """The run that a path stands for, and the stage where it is one. ConfigError where no run is."""
    root, stage = Path(path), None
    if not root.is_dir():
        raise ConfigError(f"{path}: no such directory; give a run's, as in runs/iris")
    if root.name in STAGES and _is_stage(root):
        root, stage = root.parent, root.name
    if not any(_is_stage(root / name) for name in STAGES):
        raise ConfigError(f"{path}: no run here (no {RESULT} of {', '.join(STAGES)})")
    return root, stage


def _is_stage(directory: Path) -> bool:
    names = (RESULT, RECORD, CARD, compare.REPORT, "best")
    return any((directory / name).exists() for name in names)


def models(root: Path) -> dict[str, Path]:
    """Stage -> its model: what finetune made, where there is something, before what train made."""
    places = {stage: root / stage / "best" for stage in ("finetune", "train")}
    return {stage: path for stage, path in places.items() if (path / checkpoints.CARD_FILE).is_file()}


def of_run(root: Path, stage: str | None = None) -> Found:
    """The lineage of a run as its files tell it, or up to one of its stages. Never raises for what is not
    there or cannot be read: that is a note."""
    found = Found()
    if (root / "prepare" / CARD).is_file():
        found.chain = _tried(found, lambda: Dataset.open(root / "prepare").lineage)
    else:
        found.notes.append(f"{root / 'prepare'}: no dataset yet")
    own = models(root) if stage != "prepare" else {}
    made = [stage] if stage in ("train", "finetune") else list(own)
    found.model = next((own[name] for name in made if name in own), None)
    if found.model:
        directory = checkpoints.find_checkpoint(str(found.model))
        if chain := _tried(found, lambda: checkpoints.lineage(directory)):
            found.chain, found.weights = chain, chain[-1].content
    elif stage != "prepare":
        found.notes.append(f"{root / made[0] if made else root}: no model yet")
    found.end = found.chain[-1].hash if found.chain else None
    found.data = _data(found.chain)
    if stage in ("train", "finetune", "prepare") or not (root / "evaluate" / compare.REPORT).is_file():
        return found
    report = _tried(found, lambda: _report(root))
    if report:
        _add_figures(found, root, report)
    return found


def _data(chain: Chain) -> Chain:
    """The dataset that the last thing of a chain is, or was made from, after what it was itself made from."""
    links = {link.hash: link for link in chain}
    before = [links[hash_] for hash_ in chain[-1].made_from] if chain else []
    for link in reversed([*before, *chain[-1:]]):
        if link.what == "dataset":
            return (*(links[hash_] for hash_ in link.made_from), link)
    return ()


def _add_figures(found: Found, root: Path, report: Mapping[str, Any]) -> None:
    place = root / "evaluate" / compare.REPORT
    if said := other_weights(root, report):
        found.warnings.append(said)
    if "lineage" not in report:
        found.notes.append(f"{place}: says nothing of its lineage; an older llmtool wrote it")
        return
    try:
        figures = read(report["lineage"])
    except ValueError as error:
        found.notes.append(f"{place}: {error}")
        return
    if not said and figures:
        found.end = figures[-1].hash
    links = {link.hash: link for link in (*found.chain, *figures)}
    found.chain = tuple(links.values())


def _tried(found: Found, work: Any) -> Any:
    """What `work` gives; () and a note where something is broken."""
    try:
        return work()
    except (LlmtoolError, OSError, KeyError, TypeError, AttributeError) as error:
        said = str(error) if isinstance(error, LlmtoolError | OSError) else f"not whole ({error})"
        found.notes.append(said)
        return ()


def _report(root: Path) -> dict[str, Any]:
    report = files.read_json(root / "evaluate" / compare.REPORT)
    if not isinstance(report, dict) or not isinstance(report.get("metrics"), dict):
        raise LlmtoolError(f"{root / 'evaluate' / compare.REPORT}: not the report of an evaluation")
    return report


def other_weights(root: Path, report: Mapping[str, Any]) -> str:
    """A sentence where the figures of a run's evaluation are not those of the run's model; else nothing."""
    model = report.get("model")
    own = models(root)
    if not own:
        return ""
    if not isinstance(model, dict) or not all(isinstance(model.get(key), str) for key in ("hash", "path")):
        return f"the figures in {root / 'evaluate'} do not say of which weights they are; run evaluate again"
    scored, place = model["hash"], model["path"]
    found = Found()
    hashes = {
        stage: _tried(found, lambda path=path: checkpoints.fingerprint(path)) for stage, path in own.items()
    }
    latest = next(iter(own))
    merged = root / latest / "merged"
    if (merged / checkpoints.CARD_FILE).is_file():
        hashes["merged"] = _tried(found, lambda: checkpoints.fingerprint(merged))
    if scored in (hashes[latest], hashes.get("merged")):
        return ""
    figures = f"the figures in {root / 'evaluate'} are of"
    if scored == hashes.get("train"):
        return f"{figures} the weights that train made, not of finetune's"
    if not Path(place).resolve().is_relative_to(root.resolve()):
        return f"{figures} the weights in {place}, not of the model of {latest}"
    stage = next((name for name in own if name in Path(place).parts), latest)
    return f"{figures} other weights ({short(scored)}): {stage} has run since; run evaluate again"


# --- whether it is still so -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Now:
    """How a link is found now. where: its place, perhaps another one than it was made in."""

    state: str
    where: str
    says: str = ""


def check(chain: Chain, root: Path | None = None) -> list[Now]:
    """Each link as it is now: files are read and hashed again. root: of the run that is looked at, which may
    lie elsewhere than where it was made."""
    base = _base(chain, root) if root else Path()
    return [_now(link, chain, root, base) for link in chain]


def _base(chain: Chain, root: Path) -> Path:
    """The directory that the places of this run's links are relative to: not always the present one."""
    beside = root.resolve().parent
    for link in chain:
        place = Path(link.where)
        if link.what == "dataset" and place.name == "prepare" and not place.is_absolute():
            parts = place.parent.parent.parts
            if beside.parts[len(beside.parts) - len(parts) :] == parts:
                return Path(*beside.parts[: len(beside.parts) - len(parts)])
    return Path()


def _now(link: Link, chain: Chain, root: Path | None, base: Path) -> Now:
    """As it is in the run that is looked at, which may be a copy; else, where it was made."""
    if link.what == "sources":
        return _sources(link, chain, root, base)
    if remote.is_url(link.where):
        return Now(UNKNOWN, link.where, ELSEWHERE)
    look = LOOKS.get(link.what, _source)
    first = None
    made = [Path(link.where), base / link.where]
    for place in dict.fromkeys([*_in_run(link, root), *made]):
        if place.exists():
            now = _looked(look, link, place)
            if now.state == OK:
                return now
            first = first or (now if place in made else None)
    return first if first else Now(GONE, link.where, "not there any more")


def _in_run(link: Link, root: Path | None) -> list[Path]:
    """Where this run has things of the link's kind."""
    if root is None:
        return []
    names = {"encoder": [f"prepare/{CARD}"], "dataset": ["prepare"], "metrics": ["evaluate"]}
    step = Path(link.where).name
    names["checkpoint"] = [
        f"{stage}/{name}"
        for stage in ("train", "finetune")
        for name in (f"checkpoints/{step}", "best", "merged")
    ]
    return [root / name for name in names.get(link.what, [])]


def _looked(look: Any, link: Link, place: Path) -> Now:
    try:
        state, says = look(link, place)
    except (LlmtoolError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        state, says = CHANGED, str(error)
    return Now(state, link.where if state != OK else str(place), says)


def _source(link: Link, place: Path) -> tuple[str, str]:
    if link.content.startswith(LISTING):
        same = listing_hash(place) == link.content
        return (OK, "") if same else (CHANGED, "has files of other names, sizes or times now")
    if not link.content.startswith("xxh3:"):
        return UNKNOWN, "of a rehearsal, which hashes no files"
    same = files.hash_file(place) == link.content
    return (OK, "") if same else (CHANGED, "has other bytes now")


def _sources(link: Link, chain: Chain, root: Path | None, base: Path) -> Now:
    """Many files as one link: the card of the dataset that was made from them names them."""
    made = [Path(each.where) for each in chain if each.what == "dataset" and link.hash in each.made_from]
    for place in [*made, *(base / path for path in made), *([root / "prepare"] if root else [])]:
        try:
            card = Dataset.open(place).card
        except LlmtoolError:
            continue
        if link not in store.lineage(card, place):
            continue
        here = {name: content for name, content in card["files"].items() if not remote.is_url(name)}
        wrong = [name for name, content in here.items() if not _same(name, base, content)]
        if wrong:
            return Now(CHANGED, link.where, f"{len(wrong):,} of them changed or gone: {wrong[0]}")
        return Now(UNKNOWN, link.where, ELSEWHERE) if len(here) < len(card["files"]) else Now(OK, link.where)
    return Now(UNKNOWN, link.where, "the dataset that names them is gone")


def _same(name: str, base: Path, content: str) -> bool:
    places = [place for place in (Path(name), base / name) if place.exists()]
    if content.startswith(LISTING):
        return any(listing_hash(place) == content for place in places if place.is_dir())
    places = [place for place in places if place.is_file()]
    return any(files.hash_file(place) == content for place in places)


def _dataset(link: Link, place: Path) -> tuple[str, str]:
    dataset = Dataset.open(place.parent if place.name == CARD else place)
    found = dataset.lineage
    if link.what == "encoder":
        if store.encoder_hash(dataset.card) != link.content:
            return OTHER, f"{place} holds another encoder now"
        tokenizer = dataset.card["encoder"].get("tokenizer")
        if tokenizer and files.hash_file(dataset.directory / TOKENIZER) != tokenizer["hash"]:
            return CHANGED, f"{dataset.directory / TOKENIZER}: the content has changed since"
        return OK, ""
    if dataset.fingerprint != link.content:
        return OTHER, f"{place} holds another dataset now ({short(found[-1].content)}): prepare has run since"
    dataset.verify()
    return OK, ""


def _checkpoint(link: Link, place: Path) -> tuple[str, str]:
    directory = checkpoints.find_checkpoint(str(place))
    card = directory / checkpoints.CARD_FILE
    if not card.is_file():  # another's: its files are all there is
        if checkpoints.fingerprint(directory) == link.content:
            return OK, ""
        beneath = ", or those of the model under it," if foreign.base_of(directory) else ""
        return OTHER, f"{place}: its files{beneath} have changed since"
    if files.hash_file(card) != checkpoint.hashes(directory).get(checkpoints.CARD_FILE):
        return CHANGED, f"{card}: the content changed since it was written (hash differs)"
    if checkpoints.fingerprint(directory) != link.content:
        return OTHER, f"other weights are there now ({short(checkpoints.lineage(directory)[-1].hash)})"
    checkpoint.verify(directory)
    return OK, ""


def _metrics(link: Link, place: Path) -> tuple[str, str]:
    report = files.read_json(place / compare.REPORT)
    suites = report.get("suites", {})
    if figures_hash(report["metrics"], report["predictions"]["values"], suites) != link.content:
        return CHANGED, f"{place / compare.REPORT}: its figures are not those that were written"
    if files.hash_file(place / compare.PREDICTIONS) != report["predictions"]["file"]:
        return CHANGED, f"{place / compare.PREDICTIONS}: the content has changed since it was written"
    for name, one in suites.items():
        if files.hash_file(answers.place(place, name)) != one["answers"]:
            return CHANGED, f"{answers.place(place, name)}: the content has changed since it was written"
    return OK, ""


LOOKS = {"encoder": _dataset, "dataset": _dataset, "checkpoint": _checkpoint, "metrics": _metrics}


# --- for people and programs ------------------------------------------------------------------------------


def rows(chain: Chain) -> list[dict[str, Any]]:
    """The links as plain data, each with its `number` and the numbers of those it was made from (`of`)."""
    numbers = {link.hash: number for number, link in enumerate(chain, 1)}
    entries = document(chain)["links"]
    return [
        {
            "number": number,
            **entry,
            "of": sorted(numbers[hash_] for hash_ in entry["from"] if hash_ in numbers),
        }
        for number, entry in enumerate(entries, 1)
    ]
