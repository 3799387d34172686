"""Training in a process of its own that is killed between two steps, as by a power cut."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import llmtool
from llmtool.commands import Options, Scratch, finetune, train
from llmtool.core import console, files
from llmtool.core.errors import LlmtoolError, MemoryLimitError, of_code

CODE = "from llmtool.commands.killed import child; child()"


class TooSlowError(LlmtoolError):
    """The process was not killed by itself in the time it was given."""


def until_killed(options: Options, section: str, limit: float | None = None) -> list[dict[str, Any]]:
    """Run `train` or `finetune` in a process that kills itself (SIGKILL) at the step that the options name.

    limit: seconds after which it is given up. Returns the rows of metrics.jsonl that it left behind.
    Raises the error that ended it before that step, of the class and with the words it had there.
    """
    assert options.scratch is not None
    assert options.scratch.kill_at is not None
    package = str(Path(llmtool.__file__).parent.parent)
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    plain = replace(options, scratch=replace(options.scratch, samples=[]))
    order = json.dumps({"section": section, "options": asdict(plain)})
    with subprocess.Popen(  # noqa: S603 (our own interpreter, our own words)
        [sys.executable, "-c", CODE, order],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        errors="replace",
    ) as process:
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise TooSlowError(f"not at step {options.scratch.kill_at} after {limit:.0f} s") from None
        finally:
            process.kill()
    rows = _rows(Path(options.scratch.run) / section / "metrics.jsonl")
    if process.returncode == -signal.SIGKILL and rows and rows[-1]["step"] == options.scratch.kill_at:
        return rows
    raise _ended(process.returncode, out, err)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files.read_lines(path)] if path.is_file() else []


def _ended(code: int, out: str, err: str) -> LlmtoolError:
    """The error that a child's last words tell of."""
    if code == -signal.SIGKILL:
        return MemoryLimitError("the process was killed from outside, most likely because memory ran out")
    try:
        said = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        last = (err.strip().splitlines() or ["no word"])[-1]
        return LlmtoolError(f"the process ended with {code}: {last}")
    return of_code(said["exit_code"], said["error"])


def child() -> None:
    """What the process runs: the command, its end told in one line of JSON."""
    order = json.loads(sys.argv[1])
    fields = order["options"]
    options = Options(**{**fields, "scratch": Scratch(**fields["scratch"])})
    command = {"train": train, "finetune": finetune}[order["section"]]
    code, said = 0, "it ended before the step at which it was to be killed"
    try:
        with console.silent():
            command.run(options)
    except LlmtoolError as error:
        code, said = error.exit_code, str(error)
    except Exception as error:
        code, said = 1, f"internal error: {type(error).__name__}: {error}"
    print(json.dumps({"exit_code": code, "error": said}))
    sys.stdout.flush()
    os._exit(code or 1)
