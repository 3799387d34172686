"""llmtool generate: texts that a trained model writes after prompts, shown while they come."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llmtool.commands import GenerateOptions, session
from llmtool.core import console, files, seeds
from llmtool.core.contracts import NextToken
from llmtool.core.devices import resolve_device, resolve_precision
from llmtool.core.errors import ConfigError, DataError, LlmtoolError
from llmtool.data import conversations, readers
from llmtool.data.conversations import BadConversation, Message
from llmtool.data.rows import form_of, nested, refuse, rows
from llmtool.evaluation.writer import Order, Writer, Written
from llmtool.experiment import Loaded
from llmtool.models.causal import Transformer
from llmtool.models.generation import Sampling
from llmtool.stages import checkpoints, speaking
from llmtool.stages.speaking import Speaker


@dataclass(frozen=True)
class Asked:
    """given: a prompt, or messages, and tools, as they stand in the row. messages, tools: of what only a chat
    model can be asked, as `conversations.asked` reads them; messages is None of a prompt alone."""

    given: dict[str, Any]
    messages: list[Message] | None = None
    tools: Any = None


def run(options: GenerateOptions) -> dict[str, Any]:
    """Run the command; returns its document: the model, the settings, and every text."""
    order, asked = _order(options), list(_asked(options))
    loaded, source = _model(options)
    start = checkpoints.from_checkpoint(source)
    if not isinstance(start.outputs, NextToken):
        raise ConfigError(f"{start.directory} is no language model: it writes no text")
    model = cast(Transformer, start.model)
    device = resolve_device(loaded.experiment.device if loaded else "auto")
    precision = resolve_precision(loaded.experiment.precision if loaded else "auto", device)
    precision.apply()
    if not model.caches:
        console.note("transformers runs this model, and every token reads the whole text before it again")
    speaker = speaking.of(start.card, start.tokenizer, model, raw=options.raw)
    if any(one.tools for one in asked) and speaker.renderer and not speaker.renderer.template.uses("tools"):
        console.note(f"{speaker.renderer.template} does not write the tools of the prompts")
    seed = options.seed if options.seed is not None else loaded.experiment.seed if loaded else 0
    prompts = [ids for one in asked for ids in [_ids(speaker, one, options.raw)] * options.count]
    copies = [copy for _ in asked for copy in range(options.count)]
    chances = [  # of what is asked alone, not of what stands beside it
        seeds.derive(seed, "generate", ",".join(map(str, ids)), copy)
        for ids, copy in zip(prompts, copies, strict=True)
    ]
    writer = speaker.writer(model.to(device), device, lambda: precision.autocast(device))
    began = time.monotonic()
    try:
        found = _written(writer, prompts, order, chances, stream=len(prompts) == 1 and options.out is None)
    except FloatingPointError as error:
        raise LlmtoolError(f"{start.directory}: {error}") from None
    numbered = zip(range(len(prompts)), prompts, found, strict=True)
    texts = [_record(asked[at // options.count], ids, text) for at, ids, text in numbered]
    _show(options, texts)
    return {
        "model": {"path": str(start.directory), "hash": start.hash},
        "seed": seed,
        "chat": speaker.renderer is not None,
        "texts": texts,
        "tokens": sum(len(text.ids) for text in found),
        "seconds": round(time.monotonic() - began, 3),
    }


def _written(
    writer: Writer, prompts: list[list[int]], order: Order, chances: list[int], stream: bool
) -> list[Written]:
    """The texts; stream: shown while they come."""
    if stream:
        found = writer.write(prompts, order, chances, told=lambda number, text: console.write(text))
        console.write("\n")
        return found
    done = 0
    with console.progress(len(prompts), "text") as display:

        def finished(count: int) -> None:
            nonlocal done
            done += count
            display.update(done)

        return writer.write(prompts, order, chances, done=finished)


def _order(options: GenerateOptions) -> Order:
    for name, value, right, form in (
        ("tokens", options.tokens, options.tokens > 0, "1 or more"),
        ("count", options.count, options.count > 0, "1 or more"),
        ("temperature", options.temperature, 0 <= options.temperature < float("inf"), "0 or more"),
        ("top-k", options.top_k, options.top_k is None or options.top_k > 0, "1 or more"),
        ("top-p", options.top_p, options.top_p is None or 0 < options.top_p <= 1, "above 0, at most 1"),
        ("min-p", options.min_p, options.min_p is None or 0 <= options.min_p <= 1, "between 0 and 1"),
        ("seed", options.seed, options.seed is None or options.seed >= 0, "0 or more"),
    ):
        if not right:
            raise ConfigError(f"--{name} {value}: must be {form}")
    if "" in options.stop:
        raise ConfigError("--stop: an empty text stands everywhere")
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p)
    return Order(options.tokens, sampling, tuple(options.stop))


def _asked(options: GenerateOptions) -> Iterator[Asked]:
    """The prompts of the command line, then those of the file."""
    if not options.prompt and options.prompts is None:
        raise ConfigError("what is the model to go on from? Give --prompt TEXT or --prompts FILE")
    yield from (Asked({"prompt": prompt}) for prompt in options.prompt)
    if options.prompts is None:
        return
    path, count = Path(options.prompts), 0
    for line, row in rows(path) if form_of(path) else _lines(path):
        try:
            found = _read(row)
        except BadConversation as error:
            raise refuse(path, line, str(error)) from None
        yield found
        count += 1
    if not count:
        raise DataError(f"{path}: there is no prompt in it")


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line of a text file that is not blank is a prompt."""
    (file,) = readers.expand(str(path), (".txt",))
    for number, text, whole in readers.lines(file, "utf-8", readers.LINE_LIMIT, strict=True):
        problem = readers.flaw(text, "utf-8") if whole else "a line that is too long"
        if problem:
            raise refuse(path, number, problem)
        if text.strip():
            yield number, {"prompt": text}


def _read(row: dict[str, Any]) -> Asked:
    """What a row asks; a prompt with a list of tools is a user's turn. Raises BadConversation."""
    prompt, messages, tools = row.get("prompt"), nested(row.get("messages")), nested(row.get("tools"))
    given = {"prompt": prompt} if isinstance(prompt, str) else {"messages": messages}
    if isinstance(prompt, str):
        if not isinstance(tools, list):  # some other column
            return Asked(given)
        messages = [{"role": "user", "content": prompt}]
    if not isinstance(messages, list) or not messages:
        raise BadConversation("neither a text `prompt` nor `messages` with role and content")
    return Asked(given | ({"tools": tools} if tools else {}), *conversations.asked(messages, tools))


def _model(options: GenerateOptions) -> tuple[Loaded | None, str]:
    """The file, where one is given, and the checkpoint that writes."""
    loaded, _, source = session.model_of(options.config, options.overrides, options.of)
    return loaded, source


def _ids(speaker: Speaker, asked: Asked, raw: bool) -> list[int]:
    try:
        if asked.messages is None:
            return speaker.prompt(asked.given["prompt"]) or [speaker.tokenizer.prefix]
        if speaker.renderer is None:
            why = "--raw leaves its template out" if raw else "this one has no chat template"
            raise ConfigError(f"`messages` and `tools` are for chat models; {why}")
        return speaker.conversation(asked.messages, asked.tools)
    except BadConversation as error:
        raise DataError(f"{_said(asked.given)[:60]!r}: {error}") from None


def _record(asked: Asked, ids: list[int], text: Written) -> dict[str, Any]:
    about = {"ended": text.ended, "tokens": len(text.ids), "prompt_tokens": len(ids)}
    return {**asked.given, "text": text.text, **about}


def _show(options: GenerateOptions, texts: list[dict[str, Any]]) -> None:
    """Several texts, or where they went; a single one was shown while it came."""
    if options.out is not None:
        lines = (json.dumps(files.plain(text), ensure_ascii=False) for text in texts)
        files.write_text(Path(options.out), "".join(f"{line}\n" for line in lines))
        console.say(f"{len(texts):,} texts: {options.out}")
    elif len(texts) > 1:
        for text in texts:
            console.say(f"--- after {_said(text)!r}")
            console.say(text["text"])


def _said(given: dict[str, Any]) -> str:
    return str(given["prompt"] if "prompt" in given else given["messages"][-1].get("content") or "")
