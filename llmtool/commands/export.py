"""llmtool export: a trained model for other programs, as safetensors, ONNX or GGUF."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmtool.commands import ExportOptions, session
from llmtool.core import checkpoint, console, files, lineage
from llmtool.core.config import suggest
from llmtool.core.environment import code_version
from llmtool.core.errors import ConfigError, LlmtoolError
from llmtool.core.freshness import Hashes, compare
from llmtool.core.run import RESULT, document
from llmtool.stages import checkpoints
from llmtool.stages import export as stage
from llmtool.stages.export import FORMATS, Export


def run(options: ExportOptions) -> dict[str, Any]:
    """Run the command; returns the content of result.json, which lies beside what was written."""
    to: Any = options.to
    if to not in FORMATS:
        raise ConfigError(
            f"--to {to}: no such format{suggest(to, list(FORMATS))} (choices: {', '.join(FORMATS)})"
        )
    stage.refuse_dtype(to, options.dtype)
    began, clock = datetime.now(UTC), time.monotonic()
    source, out = _places(options)
    hashes = Hashes()  # every file is read once to be checked
    weights = checkpoints.verify(source, hashes.hash)
    config = {"export": {"to": to, "dtype": options.dtype}}
    key = {"config": config, "inputs": {"weights": weights}, "code": code_version()}
    there = _stands(out)
    if there and not options.force:
        if not (changes := compare(there["key"], key)):
            console.say(f"export: nothing has changed; {out} stands (--force writes it again)")
            return there
        for change in changes[:5]:
            console.note(f"export: {change}")
    aside = _refuse_other_content(out, ours=there is not None, force=options.force)
    console.note(f"export: {source} is read and written as {to}" + (", then run" if to == "onnx" else ""))
    start = checkpoints.from_checkpoint(str(source), hashes.hash)
    result: dict[str, Any] = {}

    def write(directory: Path) -> None:
        export = stage.write(start, directory, to, options.dtype)
        result.update(_result(export, start, directory, out, document("export", None, began, 0.0, key)))
        result["seconds"] = round(time.monotonic() - clock, 3)
        files.write_json(directory / RESULT, result)
        _say(export, source, result)

    _place(out, aside, write)
    console.say(f"export: {out}")
    return result


def _places(options: ExportOptions) -> tuple[Path, Path]:
    """The checkpoint that is written, and the directory that it goes to."""
    _, root, model = session.model_of(options.config, options.overrides, options.of)
    source = checkpoints.find_checkpoint(model)
    if options.out is None and root is None:
        raise ConfigError(f"{options.config} is no run's directory: say with --out where the export goes")
    out = Path(options.out) if options.out is not None else Path(str(root)) / "export" / options.to
    if out.name in ("", ".."):
        raise ConfigError(f"--out {out}: give the export a directory of its own")
    return source, out


def _stands(out: Path) -> dict[str, Any] | None:
    """The result of the export that lies there whole; None where there is none."""
    try:
        found = files.read_json(out / RESULT)
        checkpoint.verify(out)
    except LlmtoolError:
        return None
    ours = isinstance(found, dict) and found.get("command") == "export" and isinstance(found.get("key"), dict)
    return found if ours else None


def _refuse_other_content(out: Path, ours: bool, force: bool) -> Path | None:
    """Where what lies at `out`, and is no export of ours, is moved; ConfigError unless that is asked for, and
    where the place that the new one is made in is taken."""
    new = _new(out)
    if os.path.lexists(new) and (_stands(new) or {}).get("path") != str(out):
        raise ConfigError(
            f"{out} cannot be written: {new}, where it is made, is there already; move that away, or name "
            "another --out"
        )
    if ours or not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return None
    if not force:
        raise ConfigError(
            f"{out} holds something else than a whole export; name another --out, "
            "or have it moved aside with --force"
        )
    aside = out.with_name(f"{out.name}.before")
    if os.path.lexists(aside):
        raise ConfigError(f"{out} cannot be moved aside: {aside} is there already")
    return aside


def _new(out: Path) -> Path:
    """Where an export is until it takes its place; one that was killed just before leaves it there, whole."""
    return out.with_name(f"{out.name}.new")


def _place(out: Path, aside: Path | None, write: Callable[[Path], None]) -> None:
    """Write beside `out`, then put it there: what was there stays until the new one is whole."""
    new = _new(out)
    files.make_directories(out.parent)
    files.remove_tree(new)  # of a session that was killed
    checkpoint.save(new.parent, new.name, write)
    if aside is not None:
        with files.disk_errors(out):
            files.fs.rename(out, aside)
        console.note(f"export: what lay there is in {aside} now")
    files.replace_directory(new, out)


def _result(
    export: Export, start: checkpoints.Start, directory: Path, out: Path, result: dict[str, Any]
) -> dict[str, Any]:
    """The document: what was written, of which weights."""
    names = sorted(path.name for path in directory.iterdir())
    content = files.hash_bytes(files.json_bytes({name: files.hash_file(directory / name) for name in names}))
    chain = lineage.extend("export", str(out), content, start.lineage)
    return {
        **result,
        "path": str(out),
        "of": str(start.directory),
        "files": {name: (directory / name).stat().st_size for name in names},
        "lineage": lineage.document(chain),
        **export.about,
    }


def _say(export: Export, source: Path, result: dict[str, Any]) -> None:
    sizes = [[name, f"{size:,}"] for name, size in result["files"].items()]
    console.table([f"{result['key']['config']['export']['to']} of {source}", "bytes"], sizes)
    for line in filter(None, export.said):
        console.say(line)
    for note in export.notes:
        console.note(f"export: {note}")
