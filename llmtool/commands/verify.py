"""`--verify`: proofs on the file's own model and data, made aside, with a print of what was compared."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llmtool import experiment
from llmtool.commands import Options, Scratch, finetune, prepare, session, train
from llmtool.commands.killed import until_killed
from llmtool.core import console, files
from llmtool.core.config import need_file
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.data.store import Dataset
from llmtool.experiment import Loaded
from llmtool.stages import verify
from llmtool.stages.settings import resolve
from llmtool.stages.verify import Compared, Way

STEPS = 8  # of each training, unless another number is given
ROWS = 1 << 14  # of validation scored on the way; of text: tokens
COMMANDS = {"train": train, "finetune": finetune}


def run(options: Options, command: str, what: str) -> dict[str, Any]:
    """Make the proof `what` (resume, resume:N or invariance) of train or finetune.

    Returns what --json prints; LlmtoolError, with the same, when something differs.
    """
    kind, colon, number = what.partition(":")
    steps = int(number) if number.isdecimal() else STEPS
    if kind not in ("resume", "invariance") or bool(colon) != number.isdecimal() or steps < 3:
        raise ConfigError(f"--verify {what}: expected resume, resume:N (steps, at least 3) or invariance")
    if options.force or options.resume:
        raise ConfigError("--verify works aside: --force and --resume mean nothing beside it")
    need_file(options.config)
    loaded = experiment.load(options.config, options.overrides)
    loaded.need(command, command)
    with tempfile.TemporaryDirectory(prefix="llmtool-verify-") as place, session.located(loaded, command):
        dataset = _dataset(loaded, options, Path(place))
        if kind == "resume":
            document = _resume(options, command, dataset, Path(place), steps)
        else:
            document = _invariance(loaded, command, dataset)
    result = {"verify": files.plain({"what": kind, **document})}
    if document["equal"]:
        return result
    name = "what" if kind == "resume" else "name"
    different = next(part[name] for part in document["parts"] if not part["equal"])
    code = {"status": LlmtoolError.status, "exit_code": LlmtoolError.exit_code}
    error = LlmtoolError(f"--verify {what}: not the same: {different}")
    error.result = {"command": command, **code, "error": str(error), **result}
    raise error


def _dataset(loaded: Loaded, options: Options, place: Path) -> str:
    """The run's dataset where it stands and is this file's, else one that is prepared aside."""
    if session.card_if_prepared(loaded) is not None:
        return str(Path(loaded.experiment.run) / "prepare")
    console.note("preparing aside: the run has no dataset of this file yet")
    with console.silent():
        prepare.run(replace(options, scratch=Scratch(str(place / "data"))))
    return str(place / "data" / "prepare")


# --- resume -----------------------------------------------------------------------------------------------


def _resume(options: Options, command: str, dataset: str, place: Path, steps: int) -> dict[str, Any]:
    """Train straight, and killed and resumed; compare everything that must be the same."""
    half = steps // 2
    kill_at = half + max(1, half // 2)
    keys = {"budget": {"steps": steps}, "log_every": 1, "validate_every": half, "checkpoint_every": half}
    one = Scratch(str(place / "straight"), dataset, rows=ROWS, fit={command: keys}, chain=False)
    other = replace(one, run=str(place / "resumed"))
    console.note(f"{steps} steps straight")
    with console.silent():
        COMMANDS[command].run(replace(options, scratch=one))
    console.note(f"{kill_at} steps, killed, and the rest")
    until_killed(replace(options, scratch=replace(other, kill_at=kill_at)), command)
    with console.silent():
        result = COMMANDS[command].run(replace(options, scratch=other))
    if not result["resumed_from"]:
        raise LlmtoolError("the killed training began anew, not from its checkpoint")
    parts = verify.compare_trainings(place / "straight" / command, place / "resumed" / command)
    console.say(
        f"{steps} steps straight, beside {kill_at} steps, SIGKILL, and on from the checkpoint of step "
        f"{result['resumed_from']}:"
    )
    console.table(["", "", "bytes", "straight", "resumed", ""], [_row(part) for part in parts])
    same = all(part.equal for part in parts)
    console.say("every bit is the same" if same else "NOT the same")
    return {
        "equal": same,
        "steps": steps,
        "killed_at": kill_at,
        "resumed_from": result["resumed_from"],
        "parts": [{**asdict(part), "equal": part.equal} for part in parts],
    }


def _row(part: Compared) -> list[Any]:
    unit = "rows" if part.what.startswith("rows") else "tensors" if "loop" not in part.what else "document"
    said = "equal"
    if not part.equal:
        said = f"differs first in {part.first}"
        said += "" if part.largest is None else f", by up to {part.largest:.3g}"
    return [part.what, f"{part.count} {unit}", part.bytes, *part.hashes, said]


# --- invariance -------------------------------------------------------------------------------------------


def _invariance(loaded: Loaded, command: str, dataset: str) -> dict[str, Any]:
    """Loss and gradient of the same rows, however they are split into micro-batches or packed into rows."""
    assembled = session.assembled(loaded, command, Dataset.open(dataset))
    config = getattr(loaded.experiment, command)
    rows = assembled.batches("train")
    resolved = resolve(config, rows, assembled.device, None)
    assert isinstance(resolved.batch, int)
    assert isinstance(resolved.micro_batch, int)
    parts = verify.micro_batches(assembled, resolved.batch, resolved.micro_batch)
    packed = verify.packing(assembled, min(resolved.micro_batch, 16)) if rows.tokens_per_row > 1 else []
    console.say(
        f"loss and gradient of the same {resolved.batch} rows in {assembled.precision.name}, dropout off; "
        f"differences relative to the first line, at most {parts[0].tolerance:g}:"
    )
    columns = ["micro-batches", "loss", "difference", "of the gradient", "most in", ""]
    console.table(columns, [_line(part) for part in parts])
    if packed:
        console.table(["packing", *columns[1:]], [_line(part) for part in packed])
    elif rows.tokens_per_row > 1:
        console.say("packing: no row of this data holds more than one document; nothing to compare")
    parts = [*parts, *packed]
    return {
        "equal": all(part.equal for part in parts),
        "batch": resolved.batch,
        "precision": assembled.precision.name,
        "parts": [{**asdict(part), "equal": part.equal} for part in parts],
    }


def _line(part: Way) -> list[Any]:
    verdict = "within" if part.equal else "TOO FAR"
    apart = [f"{part.loss_difference:.1e}", f"{part.gradient_difference:.1e}"]
    return [part.name, part.loss, *apart, part.worst, verdict]
