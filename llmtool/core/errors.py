"""The errors a user can meet; each class carries the exit code that its command ends with.

    LlmtoolError            1   anything that failed for a reason we can name
      ConfigError           2   the YAML file or the command line is wrong
        ConfigErrors        2   several of them, found in one reading
      RequirementError      3   a figure that `require:` asks for was not reached
      DataError             4   the data is refused
      DivergedError         5   the loss or the gradient is not finite
      MemoryLimitError      6   the device ran out of memory
      Interrupted          75   stopped by SIGTERM or a time limit; the same command goes on from there
      Cancelled           130   stopped by Ctrl-C, after a checkpoint

`assert` is for our own invariants only; whatever a user can cause raises one of these.
"""


class LlmtoolError(Exception):
    """Ends the command with one message and `exit_code`, never with a traceback."""

    exit_code = 1
    status = "failed"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.result: dict[str, object] = {}  # the content of result.json, once the command has written it


class ConfigError(LlmtoolError):
    """The configuration or the command line is wrong; the message names the place."""

    exit_code = 2
    status = "config_error"


class ConfigErrors(ConfigError):
    """All errors of one configuration, one a line."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class RequirementError(LlmtoolError):
    """A `require:` entry is not met; the message says which, with the figure reached."""

    exit_code = 3
    status = "requirement_unmet"


class DataError(LlmtoolError):
    """The data cannot be used; the message names file, line and reason."""

    exit_code = 4
    status = "data_refused"


class DivergedError(LlmtoolError):
    """The loss or gradient is not finite; the update that would have used it was not made."""

    exit_code = 5
    status = "diverged"


class MemoryLimitError(LlmtoolError):
    """The device ran out of memory."""

    exit_code = 6
    status = "out_of_memory"


class Interrupted(LlmtoolError):
    """Stopped on request with a checkpoint on disk; running the same command again goes on from it."""

    exit_code = 75
    status = "interrupted"


class Terminated(KeyboardInterrupt):
    """SIGTERM outside of training, raised wherever the program stands; ends as Interrupted does."""


class Cancelled(LlmtoolError):
    """Stopped by Ctrl-C; what was being trained has a checkpoint on disk."""

    exit_code = 130
    status = "cancelled"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, in 200 characters at most; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def of_code(code: int, message: str) -> LlmtoolError:
    """The error with that exit code, of a process that has told us of it."""
    kinds = (
        ConfigError,
        RequirementError,
        DataError,
        DivergedError,
        MemoryLimitError,
        Interrupted,
        Cancelled,
    )
    return next((kind for kind in kinds if kind.exit_code == code), LlmtoolError)(message)
