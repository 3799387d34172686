"""llmtool init: looks at data and writes the first YAML file for it, with every guess explained."""

from __future__ import annotations

import shlex
import typing
from pathlib import Path
from typing import Any

from llmtool.commands import InitOptions
from llmtool.core import console, files
from llmtool.core.errors import ConfigError
from llmtool.data.guessing import Task
from llmtool.data.surroundings import look
from llmtool.stages import drafting

STDOUT = "-"


def run(options: InitOptions) -> dict[str, Any]:
    """Run the command; returns what was guessed. An existing file is never written over."""
    tasks = typing.get_args(Task)
    asked = "multilabel" if options.task == "labels" else options.task  # as target_kind has it
    if asked is not None and asked not in tasks:
        raise ConfigError(f"--task {asked}: expected one of {', '.join(tasks)}")
    if asked == "language" and options.target is not None:
        raise ConfigError("--task language goes on with texts: there is no --target")
    output = Path(options.output)
    if options.output != STDOUT and (output.exists() or output.is_symlink()):
        raise ConfigError(
            f"{output} exists and is not written over: name another by --output, or - for stdout"
        )
    task = typing.cast(Task | None, asked)
    sight = look(options.path)
    text, guessed = drafting.draft(sight, options.path, options.output, _typed(options), options.target, task)
    if options.output == STDOUT:
        console.write(text)
        return {**guessed, "output": None, "text": text}
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent}: no such folder; make it first, or name another by --output")
    files.write_text(output, text)
    console.say(f"{output} is written: read it, change what is wrong, then")
    console.say(f"    llmtool train {shlex.quote(options.output)}")
    return {**guessed, "output": str(output)}


def _typed(options: InitOptions) -> str:
    """The command, for the file's first line."""
    words = ["llmtool", "init", options.path]
    words += ["--target", options.target] if options.target else []
    words += ["--task", options.task] if options.task else []
    return shlex.join(words)
