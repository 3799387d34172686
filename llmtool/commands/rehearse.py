"""`--rehearse`: the whole chain of a file on a sample, aside, and what the real run will take."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llmtool import experiment
from llmtool.commands import Options, Scratch, describe, evaluate, finetune, prepare, scratch, session, train
from llmtool.commands.killed import TooSlowError, until_killed
from llmtool.core import console, files
from llmtool.core.config import need_file
from llmtool.core.devices import is_out_of_memory, peak_flops, resolve_device, resolve_precision
from llmtool.core.errors import (
    ConfigError,
    ConfigErrors,
    DataError,
    LlmtoolError,
    MemoryLimitError,
    RequirementError,
)
from llmtool.core.run import refuse_place
from llmtool.experiment import Loaded
from llmtool.stages import forecast, subject
from llmtool.stages.describe import what_fits
from llmtool.stages.fitting import Proposal
from llmtool.stages.forecast import Fitting

CHARACTERS = 8_000_000  # of the source that are read; a source that is not larger is read whole
# seconds of a step up to which six of them are made, to be timed; else three
QUICK, STEPS, SLOW_STEPS = 0.3, 6, 3
TOKENS = 16  # of each text that a rehearsed evaluate has written
PATIENCE = 40.0  # seconds that the steps until the kill may take
COMMANDS = {"train": train, "finetune": finetune}


def run(options: Options, command: str) -> dict[str, Any]:
    """Rehearse the file; returns what --json prints. Raises the first stage's error, after all the others."""
    if Path(options.config).is_dir() or options.others:
        raise ConfigError("--rehearse needs a configuration file, one, and no directory")
    if options.force or options.resume:
        raise ConfigError("--rehearse begins anew and aside: --force and --resume mean nothing beside it")
    need_file(options.config)
    loaded = experiment.load(options.config, options.overrides)
    if command in COMMANDS:
        loaded.need(command, command)
    with tempfile.TemporaryDirectory(prefix="llmtool-rehearsal-") as place:
        name = Path(loaded.experiment.run).name or "run"
        rehearsal = _Rehearsal(options, loaded, Path(place) / name, command)
        rehearsal.go()
    document = {"rehearsal": rehearsal.document(), "seconds": round(rehearsal.seconds, 3)}
    rehearsal.show()
    if not rehearsal.failures:
        return document
    stage, first = rehearsal.failures[0]
    code = {"status": first.status, "exit_code": first.exit_code}
    error = type(first)(f"{stage} failed: {first}")
    error.result = {"command": command, **code, "error": str(error), **document}
    raise error from first


class _Rehearsal:
    """The stages of one rehearsal in their order, and what came of each."""

    def __init__(self, options: Options, loaded: Loaded, place: Path, command: str) -> None:
        self.loaded, self.place, self.command = loaded, place, command
        self.options = replace(
            options, scratch=Scratch(str(place), characters=CHARACTERS, sample_tokens=TOKENS)
        )
        self.steps: list[dict[str, Any]] = []
        self.failures: list[tuple[str, LlmtoolError]] = []
        self.notes: list[str] = []
        self.forecast: dict[str, Any] = {}
        self.began, self.seconds = time.monotonic(), 0.0
        self.sample: Any = None  # data.sampling.Sample
        self.card: dict[str, Any] = {}
        self.described: dict[str, Any] = {}
        self.fittings: dict[str, Fitting] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}  # section -> metrics until it was killed

    def go(self) -> None:
        """Every stage, each unless one that it builds on failed."""
        sections = [name for name in COMMANDS if getattr(self.loaded.experiment, name) is not None]
        self.step("run directory", self.look)
        self.step("prepare", self.prepare)
        if sections or self.loaded.experiment.model is not None:
            self.step("describe", self.describe, "prepare")
        heavy = ""
        for section in sections:
            self.step(f"{section}: plan", partial(self.plan, section), "describe")
        if self.described:
            heavy = forecast.too_heavy(self.described, self.rate())
        made: list[str] = []
        for section in sections:
            after = [f"{section}: plan", *(["train"] if self.builds_on_train(section) else [])]
            if heavy:
                self.leave_out(section, heavy)
                continue
            self.step(section, partial(self.until_killed, section), *after)
            self.step(f"{section}: resume", partial(self.resume, section), section)
            made.append(section)
        if (made or self.scores_another()) and not heavy:
            self.step("evaluate", self.evaluate, "prepare", *(f"{name}: resume" for name in made[-1:]))
        self.step("disk", self.disk, "prepare")
        self.seconds = time.monotonic() - self.began

    # --- stages -------------------------------------------------------------------------------------------

    def look(self) -> None:
        """The real run's directory, which is only looked at."""
        refuse_place(self.loaded.experiment.run, ["prepare", "describe", *COMMANDS, "evaluate"])

    def prepare(self) -> str:
        assert self.options.scratch is not None
        try:
            prepare.run(self.options)
        finally:
            self.sample = (self.options.scratch.samples or [None])[-1]
        self.card = files.read_json(self.place / "prepare" / "card.json")
        self.choose()
        rows = sum(meta["rows"] for meta in self.card["splits"].values())
        share = self.share(None)
        return f"{rows:,} rows" + ("" if share == 1 else f" of {100 * share:.2g} % of the source")

    def choose(self) -> None:
        """Where the file leaves the model to us: the one that the whole data will get, not its sample."""
        if not self.loaded.experiment.train:
            return
        loaded, choice = session.with_model(self.loaded, self.card, self.share("train"))
        if choice is not None:
            self.loaded = loaded
            chosen = {name: getattr(loaded.experiment, name) for name in ("model", "train")}
            written = [
                f"{name}={json.dumps(section.model_dump(mode='json', by_alias=True, exclude_unset=True))}"
                for name, section in chosen.items()
            ]
            self.options = replace(self.options, overrides=[*self.options.overrides, *written])
            self.notes.append(f"model: auto is {choice.family}: {choice.why}")

    def describe(self) -> str:
        describe.run(self.options)
        self.described = files.read_json(self.place / "describe" / "describe.json")
        return f"{console.count(self.described['parameters']['total'])} parameters"

    def plan(self, section: str) -> str:
        """What the section really is, whether it fits into memory, and how much of it can be rehearsed."""
        config, options = getattr(self.loaded.experiment, section), self.options.scratch
        assert options is not None
        if section == "finetune" and not self.builds_on_train(section):
            with session.located(self.loaded, section):
                session.model_to_start(self.loaded)
        with session.located(self.loaded, section):
            fit = forecast.fitting(config, self.card, self.share("train"), self.described, self.rate())
        self.fittings[section] = fit
        steps = STEPS if fit.expected < QUICK else SLOW_STEPS
        if fit.rehearsed < fit.batch:
            self.notes.append(
                f"{section}: rehearsed with {fit.rehearsed} of {fit.batch} rows a step; a whole one would "
                f"take about {console.seconds(fit.expected)} here"
            )
        if fit.config.compile:
            self.notes.append(
                f"{section}: torch.compile is left out, which takes up to a minute and may be faster"
            )
        keys = {
            "budget": {"steps": steps}, "batch": fit.rehearsed,
            "micro_batch": min(fit.micro_batch, fit.rehearsed), "log_every": 1, "validate_every": steps,
            "checkpoint_every": steps - 1, "compile": False,
            "activation_checkpointing": fit.config.activation_checkpointing,
        }  # fmt: skip
        self.options = replace(
            self.options,
            scratch=replace(
                options,
                fit={**options.fit, section: keys},
                rows=forecast.affordable_rows(self.described, self.rate()),
            ),
        )
        memory = forecast.refuse_memory(self.described, fit, section, partial(self.what_fits, fit))
        self.forecast.setdefault("memory", {})[section] = memory
        return f"about {console.bytes_(memory['needed'])} for {fit.micro_batch:,} rows at once"

    def what_fits(self, fit: Fitting, less: int) -> list[Proposal]:
        """Changes with which a section fits into memory."""
        given, flops = self.loaded.experiment, self.described["flops"]
        if given.model is None and given.train is None:
            about = subject.of_checkpoint(Path(session.model_to_start(self.loaded)))
        else:
            about = subject.of_experiment(given, self.card)
        each = (flops["row_forward"], flops["row_backward"])
        return what_fits(about, fit.config, fit.batch, fit.micro_batch, each, less)

    def until_killed(self, section: str) -> str:
        assert self.options.scratch is not None
        steps = self.options.scratch.fit[section]["budget"]["steps"]
        options = replace(self.options, scratch=replace(self.options.scratch, kill_at=steps))
        self.rows[section] = until_killed(options, section, PATIENCE)
        return f"{steps} steps, saved at {steps - 1}, killed (SIGKILL) at {steps}"

    def resume(self, section: str) -> str:
        assert self.options.scratch is not None
        saved = self.options.scratch.fit[section]["budget"]["steps"] - 1
        result = COMMANDS[section].run(self.options)
        if result["resumed_from"] != saved:
            raise LlmtoolError(
                f"it went on from step {result['resumed_from']}, not from the saved step {saved}"
            )
        return f"from step {saved}"

    def evaluate(self) -> str:
        asked = len(self.loaded.experiment.evaluate.require)
        try:
            result = evaluate.run(self.options)
        except RequirementError as error:
            result = error.result
        said = [f"{len(figures)} figures of {split}" for split, figures in result["metrics"].items()]
        return ", ".join([*said, f"{asked} required ones exist"] if asked else said)

    def disk(self) -> str:
        sizes = {}
        for section, fit in self.fittings.items():
            if section not in self.rows:
                memory = self.described["memory"]
                size = memory["weights"] + memory["optimizer"]
            else:
                size = forecast.size_of((self.place / section / "last").resolve())
            written = self.time_of(section)["checkpoints"]
            sizes[section] = (size, written, fit.config.keep)
        dataset = round(forecast.size_of(self.place / "prepare") / self.share(None))
        found = forecast.refuse_disk(Path(self.loaded.experiment.run), dataset, sizes)
        self.forecast["disk"] = found
        return f"about {console.bytes_(found['needed'])}, {console.bytes_(found['free'])} are free"

    # --- what stages need -----------------------------------------------------------------------------------

    def share(self, split: str | None) -> float:
        return float(self.sample.share(split)) if self.sample is not None else 1.0

    def rate(self) -> float:
        """FLOP/s of the device."""
        device = resolve_device(self.loaded.experiment.device)
        return peak_flops(device, resolve_precision(self.loaded.experiment.precision, device))[0]

    def builds_on_train(self, section: str) -> bool:
        given = self.loaded.experiment
        if section != "finetune" or given.train is None or given.finetune is None:
            return False
        return scratch.moved(given.start, given, str(self.place)) != given.start

    def scores_another(self) -> bool:
        there = (Path(self.loaded.experiment.run) / "train" / "best").exists()
        return there or self.loaded.experiment.evaluate.of is not None or self.command == "evaluate"

    def time_of(self, section: str) -> dict[str, Any]:
        fit = self.fittings[section]
        if section in self.rows:
            measured = forecast.clock(self.rows[section], self.rows[section][-1]["step"] - 1)
        else:
            measured = (fit.expected * fit.rehearsed / fit.batch, 0.0)
        rows = forecast.rows_of(self.card, "validation", self.share("validation"), fit.tokens_per_row)
        found = forecast.time_of(fit, measured, self.described, rows)
        return {**found, "measured": section in self.rows}

    # --- keeping account ------------------------------------------------------------------------------------

    def step(self, name: str, work: Callable[[], str | None], *after: str) -> None:
        """Do one stage's work, unless one that it builds on did not come to its end."""
        ended = {step["name"]: step["status"] for step in self.steps}
        if missing := [other for other in after if ended.get(other) != "ok"]:
            return self.leave_out(name, f"needs {missing[0]}")
        console.note(f"rehearsing: {name}")
        began, said, status = time.monotonic(), "", "ok"
        try:
            with console.silent():
                said = work() or ""
        except TooSlowError as error:
            status, said = "left out", str(error)
        except Exception as error:
            status, told = "failed", self.told(error)
            self.failures.append((name, told))
            said = str(told)
        self.steps.append(
            {"name": name, "status": status, "seconds": round(time.monotonic() - began, 3), "said": said}
        )

    def leave_out(self, name: str, why: str) -> None:
        self.steps.append({"name": name, "status": "left out", "seconds": 0.0, "said": why})

    def told(self, error: Exception) -> LlmtoolError:
        """The error as the real run would tell it, and that it was met on a sample, where it was one."""
        said, kind = str(error), LlmtoolError
        if is_out_of_memory(error):
            kind = MemoryLimitError
        elif isinstance(error, LlmtoolError):
            kind = ConfigError if isinstance(error, ConfigErrors) else type(error)
        else:
            said = f"internal error: {type(error).__name__}: {error}"
        said = said.replace(str(self.place), self.loaded.experiment.run)
        if self.share(None) < 1 and issubclass(kind, ConfigError | DataError):
            said += f" (on a sample: {100 * self.share(None):.2g} % of the source were read)"
        told = kind(said)
        told.__cause__ = error
        return told

    def document(self) -> dict[str, Any]:
        """What was done and what is to be expected, as plain data."""
        parts: dict[str, Any] = {}
        prepared = next((step for step in self.steps if step["name"] == "prepare"), None)
        if prepared and prepared["status"] == "ok":
            parts["prepare"] = {"seconds": prepared["seconds"] / self.share(None)}
        parts |= {name: self.time_of(name) for name in self.fittings}
        peak = max(
            resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        sample = None
        if self.sample is not None:
            sample = {"share": self.share(None), "source_bytes": self.sample.bytes}
        return files.plain(
            {
                "steps": self.steps,
                "sample": sample,
                "notes": self.notes,
                "forecast": {**self.forecast, "time": parts, "process_bytes": peak * 1024},
            }
        )

    def show(self) -> None:
        """The same for a person."""
        rows = [
            [step["name"], step["status"], console.seconds(step["seconds"]), step["said"]]
            for step in self.steps
        ]
        console.table(["rehearsed", "", "time", ""], rows)
        for note in self.notes:
            console.say(f"note: {note}")
        console.say(f"rehearsed in {console.seconds(self.seconds)}; the real run, on this machine:")
        found = self.document()["forecast"]
        for name, about in found["time"].items():
            console.say(f"  {name}: {_spoken(about)}")
        for name, about in found.get("memory", {}).items():
            there = f" of {console.bytes_(about['device_bytes'])}" if about["device_bytes"] else ""
            console.say(f"  memory of {name}: about {console.bytes_(about['needed'])}{there}")
        if "disk" in found:
            console.say(f"  disk: about {console.bytes_(found['disk']['needed'])}")


def _spoken(about: dict[str, Any]) -> str:
    text = f"about {console.seconds(about['seconds'])}"
    if about.get("steps"):
        text += f", {about['steps']:,} steps of {console.seconds(about['step_seconds'])}"
    if about.get("measured") is False:
        text += " (by its FLOPs; not measured)"
    return text
