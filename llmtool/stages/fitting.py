"""What to change so that a training fits into a device's memory: a search, the cheapest changes first."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llmtool.core.console import bytes_
from llmtool.models.accounting import Memory
from llmtool.training.parts import divisor, most_that_fits

# What a change does to the result, the least first.
SAME, ROUNDING, LEARNING, ANOTHER = (
    "the same result",
    "other rounding",
    "it learns otherwise",
    "another model",
)
KINDS = (SAME, ROUNDING, LEARNING, ANOTHER)
SHORTEST, FLATTEST = 16, 1  # context and depth below which nothing is proposed


@dataclass(frozen=True)
class Setup:
    """What decides how much memory a step of training needs.

    section: train or finetune. rows: at once, a part of `batch`. recomputed: blocks that are computed again
    for the backward pass. context, depth: of a model whose file names them; None: nothing to be changed.
    """

    section: str
    batch: int
    rows: int
    recomputed: int = 0
    precision: str = "fp32"
    ema: bool = False
    optimizer: str = "adamw"
    method: str = "full"
    context: int | None = None
    depth: int | None = None


@dataclass(frozen=True)
class Choices:
    """What there is to choose from.

    blocks: how many can be recomputed. halved: whether bf16 can be had. norms: whether the model's norms are
    over the rows that go through at once, so that fewer are another training. lora: whether it can be had.
    """

    blocks: int = 0
    halved: bool = False
    norms: bool = False
    lora: bool = False


@dataclass(frozen=True)
class Speed:
    """What a step costs in time: FLOPs of a row forward and backward, FLOP/s of the device by precision, and
    seconds that every part of a batch takes beside its FLOPs."""

    forward: float
    backward: float
    rates: dict[str, float]
    overhead: float

    def seconds(self, setup: Setup, blocks: int) -> float:
        """Of an optimizer step, about."""
        backward = self.backward / 2 if setup.method == "lora" else self.backward  # frozen: no weight's part
        again = self.forward * setup.recomputed / blocks if blocks else 0.0
        rate = self.rates.get(setup.precision) or max(self.rates.values())
        return (
            setup.batch * (self.forward + backward + again) / rate + self.overhead * setup.batch / setup.rows
        )


@dataclass(frozen=True)
class Proposal:
    """A change after which the training fits.

    set: the options to give, each behind its own --set. needs: bytes. slower: how many times as long a step
    takes, about, by its FLOPs. result: what becomes of the result (one of KINDS). says: all of it in words.
    """

    set: list[str]
    needs: int
    slower: float
    result: str
    says: str

    @property
    def options(self) -> str:
        """As they are to be pasted behind a command."""
        return shlex.join([word for each in self.set for word in ("--set", each)])


Needs = Callable[[Setup], Memory]


def propose(setup: Setup, needs: Needs, device_bytes: int, choices: Choices, speed: Speed) -> list[Proposal]:
    """Changes with which the training fits, the cheapest first; empty where it fits, or nothing helps.

    First what gives the same result: fewer rows at once, blocks that are recomputed, or both. Then what
    changes more, one thing at a time, each with as much of the former as it takes; where no single one is
    enough, one more after the other.
    """
    if needs(setup).fits(device_bytes):
        return []
    search = _Search(setup, needs, device_bytes, choices, speed)
    exact = sorted(map(search.proposal, search.exact(setup)), key=lambda one: one.slower)
    single = [made for change in search.changes() if (made := search.fitted(change)) is not None]
    if not exact and not single:
        together = setup
        for change in search.changes():
            together = _onto(together, setup, change)
            if (made := search.fitted(together)) is not None:
                single.append(made)
                break
    return sorted([*exact, *single], key=lambda one: KINDS.index(one.result))


def least(setup: Setup, choices: Choices) -> Setup:
    """The same training with as little memory as it can have: the fewest rows, every block recomputed."""
    return replace(setup, rows=divisor(setup.batch, 2 if choices.norms else 1), recomputed=choices.blocks)


class _Search:
    def __init__(self, setup: Setup, needs: Needs, device_bytes: int, choices: Choices, speed: Speed) -> None:
        self.setup, self.choices, self.speed = setup, choices, speed
        self._needs, self._device_bytes = needs, device_bytes
        self._known: dict[Setup, Memory] = {}

    def needs(self, setup: Setup) -> Memory:
        """What it needs, asked once."""
        if setup not in self._known:
            self._known[setup] = self._needs(setup)
        return self._known[setup]

    def fits(self, setup: Setup) -> bool:
        return self.needs(setup).fits(self._device_bytes)

    def exact(self, setup: Setup) -> list[Setup]:
        """The smallest changes that leave the result as it is: of the rows, of the blocks, of both."""
        found = []
        if (fewer := self._fewer_rows(setup)) is not None:
            found.append(fewer)
        if (again := self._more_recomputed(setup)) is not None:
            found.append(again)
        if not found and self.fits(least(setup, self.choices)):
            every = self._fewer_rows(replace(setup, recomputed=self.choices.blocks))
            both = None if every is None else self._more_recomputed(replace(setup, rows=every.rows))
            found.append(both or every or least(setup, self.choices))
        return found

    def _fewer_rows(self, setup: Setup) -> Setup | None:
        """The most rows below its own that fit."""
        end = 2 if self.choices.norms else 1
        rows = most_that_fits(
            setup.batch, setup.rows - 1, lambda rows: self.fits(replace(setup, rows=rows)), end
        )
        return None if rows is None else replace(setup, rows=rows)

    def _more_recomputed(self, setup: Setup) -> Setup | None:
        each = (replace(setup, recomputed=n) for n in range(setup.recomputed + 1, self.choices.blocks + 1))
        return next((one for one in each if self.fits(one)), None)

    def fitted(self, setup: Setup) -> Proposal | None:
        """The setup as it is or with the cheapest exact change that makes it fit."""
        made = [setup] if self.fits(setup) else self.exact(setup)
        return min(map(self.proposal, made), key=lambda one: one.slower) if made else None

    def changes(self) -> Iterator[Setup]:
        """The setup with one thing changed that changes the result, the most harmless first."""
        setup = self.setup
        if self.choices.halved and setup.precision in ("fp32", "tf32"):
            yield replace(setup, precision="bf16")
        if setup.ema:
            yield replace(setup, ema=False)
        if setup.optimizer == "adamw":
            yield replace(setup, optimizer="muon")
        if setup.optimizer != "sgd":
            yield replace(setup, optimizer="sgd")
        if self.choices.lora:
            yield replace(setup, method="lora")
        for name, end in (("context", SHORTEST), ("depth", FLATTEST)):
            size = getattr(setup, name)
            while size is not None and size // 2 >= end:
                size //= 2
                smaller_one: Setup = replace(setup, **{name: size})
                yield smaller_one
                if self.fits(least(smaller_one, self.choices)):
                    break

    def proposal(self, setup: Setup) -> Proposal:
        """What makes this setup of the given one."""
        before, sets, words, result = self.setup, [], [], SAME
        section = setup.section
        for name, value, said, kind in _written(setup, self.choices):
            if getattr(before, name) != getattr(setup, name):
                key = f"{section}.{value}" if not value.startswith(("precision", "model")) else value
                sets.append(key)
                words.append(said)
                result = max(result, kind, key=KINDS.index)
        slower = self.speed.seconds(setup, self.choices.blocks) / self.speed.seconds(
            before, self.choices.blocks
        )
        needed = self.needs(setup).total
        takes = f"{slower:.2f} times as long" if slower >= 1.005 else "no longer"
        says = f"{' and '.join(words)} (needs {bytes_(needed)}; a step takes {takes} by its FLOPs; {result})"
        return Proposal(sets, needed, round(slower, 3), result, says)


def _written(setup: Setup, choices: Choices) -> Iterator[tuple[str, str, str, str]]:
    """Each part of a setup: its name, the key and value that give it, in words, what it does to a result."""
    every = setup.recomputed == choices.blocks
    blocks = "all" if every else str(setup.recomputed)
    yield (
        "rows",
        f"micro_batch={setup.rows}",
        f"micro-batch {setup.rows}",
        LEARNING if choices.norms else SAME,
    )
    yield (
        "recomputed",
        f"activation_checkpointing={blocks}",
        f"{blocks} blocks recomputed" if not every else "every block recomputed",
        SAME,
    )
    yield "precision", f"precision={setup.precision}", f"precision {setup.precision}", ROUNDING
    yield "ema", "ema=null", "no average of the weights", LEARNING
    yield "optimizer", f"optimizer={{name: {setup.optimizer}}}", f"optimizer {setup.optimizer}", LEARNING
    yield "method", f"method={{kind: {setup.method}}}", f"{setup.method} instead of every weight", LEARNING
    yield "context", f"model.context={setup.context}", f"context {setup.context}", ANOTHER
    yield "depth", f"model.depth={setup.depth}", f"depth {setup.depth}", ANOTHER


def _onto(together: Setup, base: Setup, change: Setup) -> Setup:
    """`together` with what `change` has otherwise than `base`."""
    was, now = asdict(base), asdict(change)
    return replace(together, **{name: value for name, value in now.items() if value != was[name]})


def says(proposals: Sequence[Proposal], needed: int, device_bytes: int) -> str:
    """One line: that it does not fit, and the smallest change that does."""
    line = f"does not fit in {bytes_(device_bytes)} (needs {bytes_(needed)}, and a tenth is kept free)"
    if not proposals:
        return f"{line}: a smaller model is needed, or a device with more memory"
    first = proposals[0]
    return f"{line}; smallest change that does: {first.says}: {first.options}"


def document(proposals: Sequence[Proposal]) -> list[dict[str, Any]]:
    """As JSON has them."""
    return [asdict(one) | {"options": one.options} for one in proposals]
