"""One file per command: load the experiment, open the run, call the stages in order, show the result."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Options:
    """What the command line says beside the configuration file."""

    config: str
    overrides: list[str] = field(default_factory=list)
    force: bool = False
    resume: bool = False
