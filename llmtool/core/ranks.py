"""The processes that work on one training: which of them this is, how they meet, what they tell each other.

A process that nobody told of others is alone: rank 0 of 1, and everything here costs it nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from llmtool.core.errors import ConfigError, LlmtoolError, first_line

Value = TypeVar("Value")

SIOCGIFADDR = 0x8915  # asks Linux for an interface's address
DEADLINE = 600.0  # seconds that a rank waits for the others, where nobody says otherwise
PORT = 29400  # at which they meet, where nobody says otherwise
STEP_PORTS = (20000, 12000)  # the same for steps of Slurm: the first, and how many


@dataclass(frozen=True)
class Ranks:
    """One process among `size`; `local` is its number on its own machine, which has `beside` of them."""

    rank: int = 0
    size: int = 1
    local: int = 0
    beside: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size} on {socket.gethostname()}"


ALONE = Ranks()
_here = ALONE
_ours = False  # whether it was `join` that had them meet
_deadline = timedelta(seconds=DEADLINE)
_host_group: Any = None
_alone: ContextVar[bool] = ContextVar("alone", default=False)
_through: ContextVar[Any] = ContextVar("through", default=None)


def here() -> Ranks:
    """Which of the processes that joined this is."""
    return ALONE if _alone.get() else _here


def told() -> Ranks | None:
    """What the environment says that a launcher made (torchrun, ours, srun); None: nothing, or one process.

    Slurm's own names stand for torch's only where srun started the process: a batch script has them too. The
    shell of salloc is a step of one task, in which SLURM_NTASKS is still that of the whole job.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if _by_srun():
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
    found = []
    for name, usual in zip(names, ("0", "1", "0", "1"), strict=True):
        text = os.environ.get(name, usual).split("(")[0].split(",")[0]  # Slurm: "2(x3)", "2,1"
        if not text.isdigit():
            raise ConfigError(f"{name}={os.environ[name]}: expected a number, as a launcher sets it")
        found.append(int(text))
    return Ranks(*found) if found[1] > 1 else None


def join(device: str, deadline: float = DEADLINE) -> Ranks:
    """Meet the other processes that the environment tells of; alone where it tells of none.

    Where they have met already, as in a worker of Ray Train, that stands, and is not ended by `leave`.
    device: "cpu" or "cuda", whose numbers they exchange. deadline: seconds to wait for the last one, here
    and in every exchange after. Raises LlmtoolError when they do not all come.
    """
    global _here, _deadline, _ours
    ranks = told()
    if ranks is None or _here is not ALONE:
        return _here
    appoint(ranks)
    _deadline = timedelta(seconds=deadline)
    _choose_interface(ranks)
    if device == "cuda":
        torch.cuda.set_device(ranks.local % torch.cuda.device_count())
    try:
        if _ours := not dist.is_initialized():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
                rank=ranks.rank,
                world_size=ranks.size,
                timeout=_deadline,
            )
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
        raise LlmtoolError(
            f"{ranks} did not meet the others at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: "
            f"{first_line(error)}"
        ) from None
    _here = ranks
    return ranks


def _by_srun() -> bool:
    """Whether srun, and no launcher below it, started this process."""
    return "RANK" not in os.environ and "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ


def appoint(ranks: Ranks) -> None:
    """Put address and port of the first rank into the environment, unless a launcher has.

    srun starts it on the first of its nodes, "n[01-02,7]", "n1,n2"; two steps on one machine must not meet.
    """
    address, port = "127.0.0.1" if ranks.beside == ranks.size else "", PORT
    if _by_srun():
        nodes = re.sub(r"\[(\d+)[^]]*\]", r"\1", os.environ.get("SLURM_STEP_NODELIST", ""))
        address = address or nodes.split(",")[0]
        number = 10 * int(os.environ.get("SLURM_JOB_ID", "0")) + int(os.environ["SLURM_STEP_ID"])
        port = STEP_PORTS[0] + number % STEP_PORTS[1]
    os.environ.setdefault("MASTER_PORT", str(port))
    os.environ.setdefault("MASTER_ADDR", address)


def _choose_interface(ranks: Ranks) -> None:
    """Have gloo listen where other machines can reach it. It takes the address that this machine's name has,
    which may be a loopback one (127.0.1.1, as Debian writes it into /etc/hosts), or none."""
    if ranks.beside == ranks.size or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with contextlib.suppress(OSError):
        if not socket.gethostbyname(socket.gethostname()).startswith("127."):
            return
    for address in (os.environ["MASTER_ADDR"], "192.0.2.1"):  # by the default route, where that is ourselves
        if (name := _interface(address)) not in (None, "lo"):
            os.environ["GLOO_SOCKET_IFNAME"] = str(name)
            return


def _interface(address: str) -> str | None:
    """The network interface by which packets to the address leave (Linux); nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                asked = fcntl.ioctl(probe, SIOCGIFADDR, name.encode().ljust(40, b"\0"))
                if asked[20:24] == own:
                    return name
    return None


def leave() -> None:
    """Part from the others. Nobody waits: what one rank still does is its own matter."""
    global _here, _host_group
    if _here is not ALONE and _ours and dist.is_initialized():
        dist.destroy_process_group()
    _here, _host_group = ALONE, None


class FirstFailedError(LlmtoolError):
    """The first rank, on which this one waited, has ended with an error; the message is its own."""


class RankFailedError(LlmtoolError):
    """One of the ranks has failed; all of them raise it, and the message says which and why."""


def agree(error: Exception | None) -> None:
    """Raise RankFailedError at all ranks where any of them gives an error."""
    said = gathered(None if error is None else f"{here()}: {str(error) or type(error).__name__}")
    wrong = next((text for text in said if text is not None), None)
    if error is not None and here() is ALONE:
        raise error
    if wrong is not None:
        raise RankFailedError(wrong) from error


def agreeing(work: Callable[[], Value]) -> Value:
    """What `work` gives, which each rank does by itself; where it fails at one, all raise RankFailedError."""
    value, error = None, None
    try:
        value = work()
    except Exception as failed:
        error = failed
    agree(error)
    return value  # type: ignore[return-value]


def shared(value: Value) -> Value:
    """What the first rank gives; the others' own value does not matter."""
    if here() is ALONE:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, group=on_host(), device=torch.device("cpu"))
    return box[0]


def by_first(work: Callable[[], Value]) -> Value:
    """What `work` gives, which only the first rank does; the others wait for it.

    An error there is raised there, and at the others a FirstFailedError.
    """
    if here() is ALONE:
        return work()
    if not here().first:
        told: tuple[Any, str | None] = shared((None, None))
        if told[1] is not None:
            raise FirstFailedError(f"rank 0: {told[1]}")
        return told[0]
    try:
        with alone():
            value = work()
    except BaseException as error:
        shared((None, str(error)))
        raise
    shared((value, None))
    return value


@contextmanager
def alone() -> Iterator[None]:
    """Within it, and in this thread, this rank does what the others have no part in: it waits for none."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def gathered(value: Value) -> list[Value]:
    """What every rank gives, in their order, at all of them; tensors in it lie in the host's memory.

    One on a device would come as one on the sender's, which need not be the receiver's or exist there.
    """
    if here() is ALONE:
        return [value]
    found: list[Any] = [None] * here().size
    dist.all_gather_object(found, value, group=on_host())
    return found


@dataclass(frozen=True)
class Other:
    """The first rank that has another value than rank 0: where it is, what it has, what rank 0 has."""

    rank: int
    where: str  # "rank 1 of 2 on n2"
    has: Any
    first: Any


def first_other(value: Any) -> Other | None:
    """At all ranks alike: who has another value than rank 0; None where all have the same."""
    all_ = gathered((socket.gethostname(), value))
    for rank, (host, has) in enumerate(all_):
        if has != all_[0][1]:
            return Other(rank, f"rank {rank} of {len(all_)} on {host}", has, all_[0][1])
    return None


def on_host() -> Any:
    """The group of all ranks for what lies in the host's memory; None, torch's default, where that is it."""
    global _host_group
    if (group := _through.get()) is not None:
        return group
    if dist.get_backend() != "gloo" and _host_group is None:
        _host_group = another()
    return _host_group


def another() -> Any:
    """One more group of all ranks on the host (None for one alone); all of them ask at the same point."""
    return None if here() is ALONE else dist.new_group(backend="gloo", timeout=_deadline)


@contextmanager
def through(group: Any) -> Iterator[None]:
    """Within it, and in this thread, ranks tell each other things through this group: so that a thread can,
    whatever the others of this process exchange meanwhile."""
    token = _through.set(group)
    try:
        yield
    finally:
        _through.reset(token)
