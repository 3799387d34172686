"""Work on a Ray cluster (https://docs.ray.io): one that runs, or one that is started on this machine."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import socket
import subprocess
import sys
from typing import Any, Literal

from pydantic import Field

from llmtool.core import console
from llmtool.core.config import Section
from llmtool.core.engine import THREADS, Engine, Failed, Packed, Work, attempt
from llmtool.core.environment import code_version
from llmtool.core.errors import ConfigError, LlmtoolError, MemoryLimitError

REACH = 5.0  # seconds in which an address has to answer
ANSWER = 60.0  # seconds in which a process has to have joined what answers there
JOIN = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"
NONE = "could not find any running ray instance"  # Ray's words for it
RETRIES = 2  # of work whose process or machine is lost


class RayEngine(Section):
    """The machines of a Ray cluster; this one reads the source and writes the dataset."""

    name: Literal["ray"] = Field(description="The machines of a Ray cluster.")
    address: str = Field(
        default="auto",
        min_length=1,
        description="Of a running cluster, host:port or ray://host:port; auto: the one that runs here, or "
        "one that is started on this machine.",
    )

    def count(self) -> int:
        """The number of workers is the cluster's matter."""
        return 2

    def check(self) -> None:
        """ConfigError where Ray is not installed, or nobody answers at the address."""
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("data.engine.name: ray: `pip install 'llmtool[ray]'`")
        if self.address == "auto":
            return
        host, _, port = self.address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(
                f"data.engine.address: {self.address!r} is neither auto nor host:port nor ray://host:port"
            )
        try:
            socket.create_connection((host, int(port)), timeout=REACH).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"data.engine.address: no Ray cluster answers at {self.address} ({reason.lower()})"
            ) from None

    def open(self, module: str) -> Engine:
        """The engine, connected. ConfigError where that fails."""
        self.check()
        return RayCluster(self.address)


class _Remote:
    def __init__(self, engine: RayCluster, reference: Any, name: str) -> None:
        self._engine, self._reference, self._name = engine, reference, name

    def result(self) -> Packed:
        return self._engine.get(self._reference, self._name)


class RayCluster(Engine):
    """Tasks of a Ray cluster, one for each thing."""

    apart = True

    def __init__(self, address: str) -> None:
        super().__init__()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # no task here uses a GPU
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(ray, address)
        self._run = ray.remote(num_cpus=1, max_retries=RETRIES)(_run)
        self.ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._works: list[tuple[Work, Any]] = []

    def submit(self, work: Work, thing: Any, name: str = "") -> _Remote:
        """Give the thing to the cluster, which chooses where."""
        put = next((put for one, put in self._works if one is work), None)
        if put is None:
            put = self._ray.put(work)
            self._works.append((work, put))
        return _Remote(self, self._run.remote(put, thing, versions()), name)

    def get(self, reference: Any, name: str) -> Packed:
        """The result; a worker or machine that is lost for good is named."""
        errors = self._ray.exceptions
        try:
            found: Packed | Failed = self._ray.get(reference)
        except errors.OutOfMemoryError as error:
            raise MemoryLimitError(f"Ray: memory ran out at work on {name}: {_line(error)}") from None
        except errors.RayTaskError as error:  # it did not come to the work: what that raises is Failed
            raise LlmtoolError(_not_begun(str(error), name)) from None
        except errors.RayError as error:
            raise LlmtoolError(f"Ray: a worker was lost at work on {name}: {_line(error)}") from None
        if isinstance(found, Failed):
            raise found.error
        return found

    def close(self) -> None:
        """Part from the cluster; one that was started here ends."""
        self._works = []
        if self._ours:
            self._ray.shutdown()
        super().close()


def _connect(ray: Any, address: str) -> None:
    """Join the cluster, or start one. Ray itself would try for many minutes where something else answers, or
    where a cluster that was killed left its address behind: so another process, which can be ended, is first.
    """
    said: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    problem = _problem(address)
    if not problem:
        ray.init(address=address, **said)
    elif address == "auto":
        if NONE not in problem.lower():
            why = f"the Ray cluster that runs here could not be joined ({problem})"
            console.note(f"data.engine: {why}; one is started on this machine alone")
        ray.init(address="local", include_dashboard=False, **said)
    else:
        raise ConfigError(f"data.engine.address: no Ray cluster answers at {address} ({problem})")


def _problem(address: str) -> str:
    """Why a process of this machine cannot join the cluster; "" where it can."""
    command = [sys.executable, "-c", JOIN, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER)  # noqa: S603 (our words)
    except subprocess.TimeoutExpired:
        return f"something else does: it could not be joined in {ANSWER:.0f} s"
    lines = done.stderr.strip().splitlines() or ["no word"]
    return " ".join(lines[-1].split())[:300] if done.returncode else ""


@functools.cache
def versions() -> str:
    """Of what makes the bytes of a dataset."""
    packages = ("numpy", "pandas", "tokenizers")
    return ", ".join(
        [f"llmtool {code_version()}", *(f"{name} {importlib.metadata.version(name)}" for name in packages)]
    )


def _run(work: Work, thing: Any, asked: str) -> Packed | Failed:
    if (here := versions()) != asked:
        said = (
            f"data.engine: {socket.gethostname()} of the Ray cluster has {here}; this machine has {asked}: "
        )
        return Failed(ConfigError(f"{said}install the same on all of them"))
    os.environ[THREADS] = "false"
    return attempt(work, thing)


def _not_begun(said: str, name: str) -> str:
    """What is told of work that a machine could not begin, of Ray's account: its processes, a traceback."""
    where = re.search(r"\bip=([^,)\s]+)", said)
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    return (
        f"Ray: {where[1] if where else 'a machine'} could not begin the work on {name} ({lines[-1][:300]}): "
        f"install {versions()} on every machine of the cluster"
    )


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[0].split())[:300] if lines else type(error).__name__
