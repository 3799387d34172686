"""One file per command: load the experiment, open the run, call the stages in order, show the result."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scratch:
    """How a command works that runs aside, for a rehearsal or a proof: with its results in another directory.

    fit: section ("train", "finetune") -> keys of it that are set, as plain data.
    """

    run: str
    dataset: str | None = None  # a prepared dataset that is taken as it is
    characters: int | None = None  # of the source, read at most; None: all
    rows: int | None = None  # of each split, scored at most; of text: tokens
    sample_tokens: int | None = None  # of a text that evaluate has written
    fit: dict[str, dict[str, Any]] = field(default_factory=dict)
    chain: bool = True  # whether what the file says of its own run is meant of this one
    kill_at: int | None = None  # the step after which, before it is saved, the process kills itself
    # filled: the data.sampling.Sample of each command's source
    samples: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """What the command line says beside the configuration file.

    Of `describe`: others: further paths; on: devices to predict for; devices: a file of them.
    """

    config: str
    overrides: list[str] = field(default_factory=list)
    force: bool = False
    resume: bool = False
    scratch: Scratch | None = None
    others: tuple[str, ...] = ()
    profile: bool = False  # of a training: record a few steps
    on: tuple[str, ...] = ()
    devices: str | None = None


@dataclass(frozen=True)
class InitOptions:
    """What the command line of `llmtool init` says. path: of the data. output: the file; "-" for stdout."""

    path: str
    output: str = "config.yaml"
    target: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class ReportOptions:
    """What the command line of `llmtool report` says."""

    runs: list[str]
    html: str | None = None
    tensorboard: str | None = None


@dataclass(frozen=True)
class ExportOptions:
    """What the command line of `llmtool export` says. config: a file or a directory."""

    config: str
    to: str
    overrides: list[str] = field(default_factory=list)
    out: str | None = None
    of: str | None = None
    dtype: str = "fp32"
    force: bool = False


@dataclass(frozen=True)
class GenerateOptions:
    """What the command line of `llmtool generate` says. config: a file or a directory."""

    config: str
    overrides: list[str] = field(default_factory=list)
    prompt: list[str] = field(default_factory=list)
    prompts: str | None = None  # a file of them
    of: str | None = None
    out: str | None = None
    tokens: int = 200
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    stop: list[str] = field(default_factory=list)
    seed: int | None = None
    count: int = 1
    raw: bool = False


@dataclass(frozen=True)
class PredictOptions:
    """What the command line of `llmtool predict` says. config: a file or a directory."""

    config: str
    input: str
    output: str = "-"
    overrides: list[str] = field(default_factory=list)
    of: str | None = None
    format: str | None = None  # of the input
    only: str | None = None
    strict: bool = False
    force: bool = False


@dataclass(frozen=True)
class LaunchOptions:
    """What the command line of `llmtool launch` says. stage: what is run; None: what the file has."""

    config: str
    overrides: list[str] = field(default_factory=list)
    slurm: bool = False
    stage: str | None = None
    nodes: int = 1
    gpus: int | None = None  # of each node
    time: str | None = None
    sbatch: list[str] = field(default_factory=list)  # further options of sbatch, "partition=gpu"
