"""A training of several processes: started here or joined where a launcher made them, and ended as one.

On one machine the command looks at the file, prepares the data, starts itself once for each device by
PyTorch's elastic launcher and gives back what the first rank says. A rank joins the others, compares its
file with theirs, does the work, and ends with them: core/watch.py finds out why. The first rank tells of it;
where it cannot any more, the process that started it does, or the second, where that was torchrun or srun.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import llmtool
from llmtool import experiment
from llmtool.commands import Options, keys, session
from llmtool.core import console, files, ranks, streams, watch
from llmtool.core.config import need_file
from llmtool.core.environment import code_version, processors
from llmtool.core.errors import Cancelled, ConfigError, DataError, Interrupted, LlmtoolError, of_code
from llmtool.core.freshness import compare
from llmtool.core.ranks import Ranks
from llmtool.core.run import RESULT, Run, failed_result
from llmtool.core.standing import trace
from llmtool.core.watch import Failure, Watch
from llmtool.data.store import Dataset
from llmtool.experiment import Loaded
from llmtool.stages.checkpoints import fingerprint
from llmtool.training.parallel import asked, found, kind_of

LAST_WORDS = "LLMTOOL_LAST_WORDS"  # where ranks that were started here leave how they ended
RANKS = "ranks"  # the directory of a run in which each rank's output goes to a file
PATIENCE = 7 * 86400.0  # seconds that an exchange may take; the watchdog knows better what is too long

Work = Callable[[Options], dict[str, Any]]


def run(work: Work, options: Options, command: str) -> dict[str, Any]:
    """Do the work of `train` or `finetune` in as many processes as the file's `devices` says, or as this one
    of those that a launcher made. Returns the content of result.json."""
    if options.scratch:  # a rehearsal or a proof
        return work(options)
    if (told := ranks.told()) is not None:
        need_file(options.config)
        return _Rank(told, options, command).run(work)
    if "WORLD_SIZE" not in os.environ:  # a launcher of one process means one
        with session.command(options, command) as loaded:
            kind, count = found(loaded.experiment.devices, loaded.experiment.device)
            loaded.experiment.parallel.replicas(count)
            if count > 1:
                need_file(options.config)
            if count > 1 and not _stands(loaded, options, command):
                return _together(loaded, options, command, kind, count)
    return work(options)


def same_data(dataset: Dataset) -> None:
    """DataError unless the dataset of every rank is that of the first, at all of them."""
    if (other := ranks.first_other(dataset.fingerprint)) is not None:
        raise DataError(
            f"{other.where} has another version of the data than rank 0 ({other.has}, not {other.first}): "
            "let all read one directory, or prepare it on each machine"
        )


# --- the process that starts the others ---------------------------------------------------------------------


def _stands(loaded: Loaded, options: Options, command: str) -> bool:
    """Whether the training is done already, so that there is nothing to start. It prepares the data."""
    dataset = session.prepared(loaded, options)
    if options.force or (loaded.experiment.model in (None, "auto") and command == "train"):
        return False
    inputs = {"dataset": dataset.fingerprint}
    if command == "finetune":
        inputs["start"] = fingerprint(Path(session.model_to_start(loaded)))
    return Run.judge(loaded.experiment.run, command, keys.fit(loaded, command, inputs)).fresh


def _together(loaded: Loaded, options: Options, command: str, kind: str, count: int) -> dict[str, Any]:
    """Start the ranks, wait for their end; what the first one says of it. Raises what ended them."""
    heard: list[signal.Signals] = []
    failures: dict[int, ProcessFailure] = {}
    with tempfile.TemporaryDirectory(prefix="llmtool-") as place, _environment(Path(place), kind, count):
        logging.disable(logging.CRITICAL)  # the launcher's own account of what we tell
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=place),
            signals_to_handle="SIGTERM,SIGINT",
            # for the checkpoint, after a signal
            shutdown_timeout=int(loaded.experiment.parallel.seconds) + 1,
        )
        try:
            elastic_launch(config, sys.executable)(*_arguments(options, command))
        except ChildFailedError as error:
            failures = error.failures
        except SignalException as error:
            heard.append(error.sigval)
        except (RendezvousError, RuntimeError, OSError) as error:
            raise LlmtoolError(f"devices: {count} processes could not be started: {error}") from None
        finally:
            logging.disable(logging.NOTSET)
        words = {rank: said for rank in range(count) if (said := _read(Path(place), rank)) is not None}
    return _ended(loaded, command, count, words, failures, heard)


def _arguments(options: Options, command: str) -> list[str]:
    """The command line of a rank, after the interpreter: this very command."""
    given = ["-m", "llmtool", command, options.config]
    given += [word for override in options.overrides for word in ("--set", override)]
    flags = {"--force": options.force, "--resume": options.resume, "--profile": options.profile}
    flags |= {"--json": console.is_json(), "--debug": "--debug" in sys.argv}
    return given + [flag for flag, is_set in flags.items() if is_set]


@contextlib.contextmanager
def _environment(place: Path, kind: str, count: int) -> Iterator[None]:
    """What the ranks' environment has beside ours; signals and variables are as they were afterwards."""
    before = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    package = str(Path(llmtool.__file__).parent.parent)
    os.environ |= {
        LAST_WORDS: str(place),
        "OMP_NUM_THREADS": before.get("OMP_NUM_THREADS", str(max(1, processors() // count))),
        "PYTHONPATH": os.pathsep.join([package, *filter(None, [before.get("PYTHONPATH")])]),
        **({"CUDA_VISIBLE_DEVICES": ""} if kind == "cpu" else {}),
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        for number, handler in handlers.items():
            with contextlib.suppress(ValueError):  # not the main thread: none was changed
                signal.signal(number, handler)


def _read(place: Path, rank: int) -> dict[str, Any] | None:
    with contextlib.suppress(LlmtoolError):
        return dict(files.read_json(place / f"rank-{rank}.json"))
    return None


def _ended(
    loaded: Loaded,
    command: str,
    count: int,
    words: dict[int, dict[str, Any]],
    failures: dict[int, ProcessFailure],
    heard: list[signal.Signals],
) -> dict[str, Any]:
    """What result.json says, or the error that ended the ranks. words: of each rank its last; failures: of
    those that ended badly, how; heard: the signal that this process was sent."""
    first = words.get(0)
    if first is not None and first["code"] == 0:
        if first.get("lost"):
            streams.lose(first["lost"])
        return dict(first["result"])
    if first is None and not failures and not heard:  # it had no place for its last words
        return _written(loaded.experiment.run, command)
    failure = Failure(**first["failure"]) if first is not None else None
    if failure is None and heard:
        by = "cancelled" if heard[0] == signal.SIGINT else "interrupted by SIGTERM"
        ended = Cancelled if heard[0] == signal.SIGINT else Interrupted
        raise ended(f"{by}; run the same command again")
    stopped = (Interrupted.exit_code, Cancelled.exit_code)
    if failure is None or failure.why == "gone" or (failure.code in stopped and not heard):
        failure = _earliest(count, words, failures) or failure
    assert failure is not None
    error = of_code(failure.code, str(failure))
    result = (first or {}).get("result") or {}
    about = {"status": error.status, "exit_code": error.exit_code, "error": str(error)}
    about |= {"rank": asdict(failure)}
    there = _written(loaded.experiment.run, command)
    if any(there.get(name) != value for name, value in about.items()):
        failed_result(loaded.experiment.run, command, error, **{**result, **about})
        there = _written(loaded.experiment.run, command)
    error.result = {**there, **about, "command": command}
    raise error


def _written(root: str | None, command: str) -> dict[str, Any]:
    """The command's result.json, empty where there is none."""
    with contextlib.suppress(LlmtoolError):
        return dict(files.read_json(Path(root or "", command, RESULT)))
    return {}


def _earliest(
    count: int, words: dict[int, dict[str, Any]], failures: dict[int, ProcessFailure]
) -> Failure | None:
    """How the rank that ended first did so: by its own words, or as the system tells of it."""
    if not failures:
        return None
    one = min(failures.values(), key=lambda failure: failure.timestamp)
    if said := words.get(one.local_rank):
        return Failure(**said["failure"])
    verdicts = [Failure(**said["failure"]) for said in words.values()]
    if late := [each for each in verdicts if (each.rank, each.why) == (one.local_rank, "late")]:
        return late[0]  # why it was killed
    by = one.exitcode
    how = f"was killed by {signal.Signals(-by).name}" if by < 0 else f"ended with {by} and no word"
    seen = [other["seen"].get(str(one.local_rank)) for other in words.values() if "seen" in other]
    phase, step = next((place for place in seen if place), ("start", None))
    return Failure(one.local_rank, count, socket.gethostname(), phase, step, "gone", how)


# --- one of the ranks ---------------------------------------------------------------------------------------


class _Rank:
    """This process as one of several that train together."""

    def __init__(self, me: Ranks, options: Options, command: str) -> None:
        self.me, self.options, self.command = me, options, command
        self.root = experiment.run_of(options.config, options.overrides)
        self.log = self._log_file()
        self.started_here = os.environ.get(LAST_WORDS)
        self.met_before = ranks.here() is not ranks.ALONE
        self.handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self.result: dict[str, Any] = {}
        self.former = _written(self.root, command)  # result.json as it was
        self.aloud = _redirect(self.log) if not me.first and self.log is not None else None
        ranks.appoint(me)
        self.watch = Watch(me, self.log, self._cut_off)

    def run(self, work: Work) -> dict[str, Any]:
        """Do the work with the others. Where this process was started here it ends in here."""
        try:
            with watch.phase("start"):
                self._meet()
            with watch.phase(self.command):
                result = work(self.options)
            if (verdict := self.watch.finish()) is not None:
                raise of_code(verdict.code, str(verdict))
        except BaseException as error:
            self._hear(False)
            if not self.watch.claim():
                threading.Event().wait()  # the watchdog ends this process
            self._fail(error)
        if self.started_here:
            self._leave({"code": 0, "result": result, "lost": streams.lost()})
        self._part()
        return result

    def _meet(self) -> None:
        """Join the others; ConfigError where their files or programs are not the same."""
        loaded = experiment.load(self.options.config, self.options.overrides)
        given = loaded.experiment
        self.watch.deadline = given.parallel.seconds
        kind, number = asked(given.devices)
        if kind == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that `device: auto` is the CPU
        ranks.join(kind_of(given.devices, given.device), PATIENCE)  # how many is the launcher's affair
        given.parallel.replicas(self.me.size)
        if self.me.first and number not in (None, self.me.beside):
            console.note(f"devices: {given.devices}: the launcher has made {self.me.beside}, which counts")
        _same_file(loaded)

    def _fail(self, error: BaseException) -> NoReturn:
        """End with the others; the first rank says why."""
        failure = self.watch.cause(error)
        if not isinstance(error, LlmtoolError | KeyboardInterrupt):
            trace(self.log, error)
        self.result = getattr(error, "result", {})
        if self.me.first or self._stands_in(failure):
            self._record(failure)
            self.watch.told()
        elif isinstance(error, watch.ALL_ALIKE):
            # the first may still be writing, and is ended with the others
            self.watch.wait_told(self.watch.deadline)
        if self.started_here:
            self._leave(self._words(failure))
        self.watch.close()
        self._part()
        self._hear(True)
        told = of_code(failure.code, str(failure))
        told.result = self.result
        raise told from error

    def _cut_off(self, failure: Failure) -> None:
        """The end as the watchdog's thread makes it, while the main thread hangs."""
        tells = self.me.first or self._stands_in(failure)
        if tells:
            self._record(failure, beside=True)
            self.watch.told()
        if self.started_here:
            self._leave(self._words(failure))
        else:  # those that do not tell write it to their logs
            print(f"llmtool: {console.clean(str(failure))}", file=sys.stderr, flush=True)
            if self.me.first and console.is_json():
                print(json.dumps(self.result, default=str), flush=True)

    def _stands_in(self, failure: Failure) -> bool:
        """Whether this rank tells of the end: the first is lost (one that is late and speaks tells itself),
        and nobody of ours started them. It is the second, or where the first's machine is lost the first of
        the next machine. What it prints is heard from now on."""
        unheard = failure.why == "gone" or (failure.why == "late" and failure.log is None)
        who = self.me.beside if self.watch.apart else 1
        if failure.rank != 0 or not unheard or self.me.rank != who or self.started_here:
            return False
        if self.aloud is not None:
            os.dup2(self.aloud, 2)
        return True

    def _record(self, failure: Failure, beside: bool = False) -> None:
        """Write why all ended into result.json. What the first rank said there stands: it sees more than one
        that has lost it."""
        there = _written(self.root, self.command)
        if not self.me.first and there != self.former and "rank" in there:
            self.result = there
            return
        error = of_code(failure.code, str(failure))
        about = {"status": failure.status, "exit_code": failure.code, "error": str(error)}
        said = {**self.result, **about, "rank": asdict(failure)}
        if self.root:
            failed_result(self.root, self.command, error, beside=beside, **said)
        self.result = _written(self.root, self.command) or {"command": self.command, **said}

    def _words(self, failure: Failure) -> dict[str, Any]:
        """How this rank ends, and where it last saw others."""
        seen = self.watch.places()
        return {"code": failure.code, "failure": asdict(failure), "seen": seen, "result": self.result}

    def _part(self) -> None:
        """Break the connections that were made here, so that nobody waits for this rank."""
        if not self.met_before:
            with contextlib.suppress(Exception):
                ranks.leave()

    def _hear(self, signals: bool) -> None:
        """Whether signals mean anything: not while this rank ends, which its launcher answers with one."""
        with contextlib.suppress(ValueError):  # not the main thread
            for number, handler in self.handlers.items():
                signal.signal(number, handler if signals else signal.SIG_IGN)

    def _leave(self, words: dict[str, Any]) -> None:
        """Leave the last words where the process that started this one looks for them, and end."""
        with contextlib.suppress(LlmtoolError):
            files.write_json(Path(str(self.started_here), f"rank-{self.me.rank}.json"), files.plain(words))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(words["code"])

    def _log_file(self) -> Path | None:
        if not self.root:
            return None
        directory = Path(self.root, RANKS, self.command)
        with contextlib.suppress(LlmtoolError, OSError):
            files.make_directories(directory)
            path = directory / f"rank-{self.me.rank}.log"
            path.unlink(missing_ok=True)  # of an earlier session
            return path
        return None


def _same_file(loaded: Loaded) -> None:
    """ConfigError unless every rank reads the same file with the same program, at all of them."""
    mine = {"config": loaded.experiment.model_dump(mode="json", by_alias=True), "code": code_version()}
    if (other := ranks.first_other(files.hash_bytes(files.json_bytes(mine)))) is None:
        return
    both = ranks.gathered(mine if ranks.here().rank in (0, other.rank) else None)
    changes = "; ".join(compare(both[0] or {}, both[other.rank] or {})[:3])
    raise ConfigError(f"{other.where} has another configuration than rank 0: {changes}")


def _redirect(log: Path) -> int:
    """What this process prints goes to the file from now on, whoever in it prints. Returns its stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    aloud = os.dup(2)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    console.configure(json=console.is_json())  # it is no terminal any more
    return aloud
