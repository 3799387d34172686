"""Asks a language model the questions of evaluation suites, or recalls what it answered before."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from llmtool.core import files
from llmtool.core.environment import code_version
from llmtool.core.errors import ConfigError, DataError
from llmtool.core.files import HashFile
from llmtool.data.conversations import BadConversation
from llmtool.evaluation import answers, kept
from llmtool.evaluation.compare import Saved
from llmtool.evaluation.scorer import Scorer
from llmtool.evaluation.suites import SuiteConfig
from llmtool.metrics.suites import SuiteTally
from llmtool.models.causal import Transformer
from llmtool.stages import speaking
from llmtool.stages.assemble import Assembled
from llmtool.stages.checkpoints import Start
from llmtool.stages.speaking import Speaker

Tick = Callable[[str, int], None]  # told of a suite's questions as they are done


@dataclass
class Answered:
    """A suite's answers. files: each file of it and its hash. cut: texts longer than the model's context.
    recalled: whether the same weights had answered before."""

    config: SuiteConfig
    tally: SuiteTally
    files: dict[str, str]
    cut: int
    seconds: float
    recalled: bool


def ask(
    assembled: Assembled,
    suites: Sequence[SuiteConfig],
    start: Start,
    *,
    weights: str,
    cache: Path,
    hash_file: HashFile = files.hash_file,
    again: bool = False,
    tick: Tick = lambda name, count: None,
) -> dict[str, Answered]:
    """The answers to each suite, by its name; kept in `cache` for the same weights (their hash).

    start: the checkpoint that the model is, or began as: its tokenizer, and its chat template unless the
    data has one. again: ask all the same. The model writes text: `assemble.refuse_unknown_figures` comes
    first. ConfigError for one without the template that a suite asks for, DataError for a file that is no
    suite's: before any is asked.
    """
    if not suites:
        return {}
    questions = {suite.name: suite.questions() for suite in suites}
    speakers = {chat: _speaker(assembled, start, chat) for chat in {suite.through for suite in suites}}
    found = {}
    for suite in suites:
        began = time.monotonic()
        hashes = {str(path): hash_file(path) for path in suite.files()}
        speaker = speakers[suite.through]
        key = {
            "weights": weights,
            "suite": json.dumps([suite.model_dump(exclude={"path", "name", "examples"}), *hashes.values()]),
            "device": assembled.device.type,
            "precision": assembled.precision.name,
            "deterministic": str(torch.are_deterministic_algorithms_enabled()),
            "code": code_version(),
            "template": "" if speaker.renderer is None else speaker.renderer.template.hash,
        }
        place = cache / f"{suite.name}.safetensors"
        recalled = None if again else _recalled(place, key, suite.kind)
        if recalled is None:
            try:
                tally, cut = _asked(assembled, suite, questions[suite.name], speaker, tick)
            except ConfigError as error:
                raise ConfigError(f"evaluate.suites: {suite.name}: {error}") from None
            except BadConversation as error:
                raise DataError(f"{suite.name}: a question: {error}") from None
            text = files.json_bytes(tally.records)
            kept.write(place, key, {"records": np.frombuffer(text, dtype=np.uint8)}, {"cut": cut})
        else:
            tally, cut = recalled
        seconds = time.monotonic() - began
        found[suite.name] = Answered(suite, tally, hashes, cut, seconds, recalled is not None)
    return found


def _speaker(assembled: Assembled, start: Start, chat: Literal["auto"] | bool) -> Speaker:
    """How the model is asked. The data's template goes before the start's: before and after fine-tuning the
    same questions are asked."""
    cards = [card for card in (assembled.dataset.card, start.card) if card["encoder"].get("template")]
    if chat is True and not cards:
        raise ConfigError(
            f"evaluate.suites: `chat: true`, but {start.directory} has no chat template; `auto` asks without"
        )
    model = cast(Transformer, assembled.model)
    return speaking.of(cards[0] if cards else start.card, start.tokenizer, model, raw=chat is False)


def _recalled(place: Path, key: Mapping[str, str], kind: str) -> tuple[SuiteTally, int] | None:
    found = kept.read(place, key)
    if found is None:
        return None
    try:
        return SuiteTally(kind, json.loads(found[0]["records"].tobytes())), int(found[1]["cut"])
    except (ValueError, KeyError, TypeError):
        return None


def _asked(
    assembled: Assembled, suite: SuiteConfig, questions: list[Any], speaker: Speaker, tick: Tick
) -> tuple[SuiteTally, int]:
    precision, device = assembled.precision, assembled.device
    model, chat = cast(Transformer, assembled.model), speaker.renderer is not None
    scorer = Scorer(model, speaker.tokenizer, device, lambda: precision.autocast(device))
    if chat:
        scorer.chat, scorer.stops = speaker.prompt, speaker.ends
    tally = suite.answers(questions, scorer, lambda count: tick(suite.name, count))
    return tally, scorer.cut


def document(found: Mapping[str, Answered], seed: int) -> dict[str, dict[str, Any]]:
    """What a report says of the answers: each suite's figures and intervals, its settings and files."""
    return {
        name: {
            **answers.judged(one.tally, seed),
            "settings": one.config.model_dump(mode="json", exclude={"kind", "path", "name", "examples"}),
            "files": one.files,
            "cut": one.cut,
        }
        for name, one in found.items()
    }


def write(
    directory: Path, found: Mapping[str, Answered], seed: int, other: Saved | None = None
) -> dict[str, dict[str, Any]]:
    """Write the answers into an evaluation's directory; returns what its report says of them.

    other: the evaluation to compare with.
    """
    said = document(found, seed)
    for name, one in found.items():
        said[name]["answers"] = answers.write(directory, name, one.tally)
    if other is not None:
        tallies = {name: one.tally for name, one in found.items()}
        theirs = other.report.get("suites", {})
        beside = answers.compared(said, tallies, theirs, other.suites, str(other.directory), seed)
        for name, comparison in beside.items():
            said[name]["comparison"] = comparison
    return said


def changes(
    before: Mapping[str, Answered], after: Mapping[str, Answered], seed: int
) -> dict[str, dict[str, Any]]:
    """Suite -> figure -> its change, question by question."""
    return {name: answers.changes(one.tally, before[name].tally, seed) for name, one in after.items()}
