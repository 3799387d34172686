"""llmtool launch --slurm: a batch script that trains on several machines. It is printed, and nothing else."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from llmtool import experiment
from llmtool.commands import LaunchOptions, session
from llmtool.core import console
from llmtool.core.config import need_file
from llmtool.core.errors import ConfigError
from llmtool.experiment import Loaded
from llmtool.stages.settings import share_of
from llmtool.training.parallel import asked

# As `man sbatch` has it: minutes, h:m:s, days-hours
TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
# Seconds before the end of the time at which Slurm asks for a checkpoint (or up to 60 sooner, it says); of a
# short time a quarter, or it would be asked for before there is anything to save.
CHECKPOINT = 300
# Seconds that the others have to say why, after one has ended: by then it is known (watch.LOST). With srun's
# --kill-on-bad-exit they are told to end at once, and call themselves interrupted.
LAST_WORDS = 60


def run(options: LaunchOptions) -> dict[str, Any]:
    """Run the command; returns the script."""
    if not options.slurm:
        raise ConfigError("launch: for what? `--slurm` prints a batch script for sbatch")
    need_file(options.config)
    loaded = experiment.load(options.config, options.overrides)
    with session.located(loaded, options.stage or "train"):
        script = _script(options, loaded)
    console.write(script)
    return {"script": script}


def _script(options: LaunchOptions, loaded: Loaded) -> str:
    stage = options.stage or ("train" if loaded.experiment.train else "finetune")
    if stage not in session.TRAINING:
        raise ConfigError(f"--stage {stage}: expected train or finetune")
    loaded.need(stage, stage)
    kind, tasks = _tasks(options, loaded)
    size = loaded.experiment.parallel.replicas(options.nodes * tasks)
    batch = getattr(loaded.experiment, stage).batch
    if batch != "auto":
        share_of(batch, size, stage)
    if options.time is not None and not TIME.fullmatch(options.time):
        raise ConfigError(
            f"--time {options.time}: expected minutes, h:mm:ss or days-hours, as sbatch reads it"
        )
    words = {
        "job-name": re.sub(r"[^\w.-]+", "-", Path(options.config).stem).strip("-") or "llmtool",
        "nodes": options.nodes,
        "ntasks-per-node": tasks,
        **({"gpus-per-node": tasks} if kind == "cuda" else {}),
        **(_limit(options.time) if options.time else {}),
        **dict(map(_given, options.sbatch)),
    }
    command = [options.config, *(word for override in options.overrides for word in ("--set", override))]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{name}={value}" for name, value in words.items()),
            "# Submitted again, it goes on from the last checkpoint; exit code 75 says that it has to be.",
            "set -euo pipefail",
            "unset MASTER_ADDR MASTER_PORT  # whoever submits may have them; ranks meet on their first node",
            'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
            f"srun --nodes=1 --ntasks=1 {shlex.join(['llmtool', 'prepare', *command])}",
            f"srun --kill-on-bad-exit=0 --wait={LAST_WORDS} {shlex.join(['llmtool', stage, *command])}",
            "",
        ]
    )


def _tasks(options: LaunchOptions, loaded: Loaded) -> tuple[str, int]:
    """The kind of device, and the processes of a node."""
    kind, count = asked(loaded.experiment.devices)
    if kind is None:
        kind = "cpu" if loaded.experiment.device == "cpu" else "cuda"
    if options.gpus is not None and kind == "cpu":
        raise ConfigError(
            f"--gpus {options.gpus}: this file trains on the CPU; `devices: cpu:n` says its processes"
        )
    count = options.gpus or count
    if count is None:
        raise ConfigError("--gpus: how many has a node? (`devices: auto` does not say it)")
    return kind, count


def _limit(time: str) -> dict[str, str]:
    """The options of sbatch for a time as TIME has it; 0 is no limit."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts.insert(0, 0)  # minutes, minutes:seconds
    hours, minutes, seconds = [*parts, 0, 0][:3]
    seconds += 60 * (minutes + 60 * (hours + 24 * int(days or 0)))
    return {"time": time} | ({"signal": f"TERM@{min(CHECKPOINT, seconds // 4)}"} if seconds else {})


def _given(pair: str) -> tuple[str, str]:
    """An option of sbatch, "partition=gpu", as a line of a script may hold it."""
    name, equals, value = pair.partition("=")
    if not equals or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ConfigError(f"--sbatch {pair}: expected OPTION=VALUE, such as partition=gpu")
    if not value.isprintable() or '"' in value:
        raise ConfigError(f"--sbatch {pair}: this value cannot stand in a line of a batch script")
    return name, value if re.fullmatch(r"[\w@%+=:,./-]+", value) else f'"{value}"'
