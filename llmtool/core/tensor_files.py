"""Safetensors files that ranks write together, each tensor whole in one of them, and that are read in pieces.

A tensor has one writer, who alone gathers it: no rank holds more than one whole tensor beside its parts.
The format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed as dist
from torch import Tensor

from llmtool.core import files, ranks
from llmtool.core.errors import LlmtoolError
from llmtool.core.shards import Order, Piece, Stored, is_part, local, piece, unsorted

TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip

NO_ORDERS: Mapping[str, Order] = {}
Parts = Sequence[Tensor]  # what makes a tensor of a file: one of a model, or several one below another


# --- writing ------------------------------------------------------------------------------------------------


def write(
    directory: Path, stem: str, tensors: Mapping[str, Parts], orders: Mapping[str, Order] = NO_ORDERS
) -> tuple[dict[str, str], list[Path]]:
    """Write tensors, of which ranks hold parts, into `directory`, which they share.

    orders: of those whose numbers they hold in another one. Returns tensor -> its file, and what this rank
    wrote: a file or none.

    All ranks call it with the same names. The files are `stem.safetensors`, or `stem-0000i-of-0000n` where
    several ranks write, about equally many bytes each; where there are no tensors the first rank writes a
    file without any. A rank whose disk fails gathers on, so that the others come to an end; then all raise
    ranks.RankFailedError, which names it.
    """
    plan = _Plan.of(stem, tensors)
    entries = [plan.entries[name] for name in plan.of_rank(ranks.here().rank)]
    path = directory / plan.file(ranks.here().rank)
    out = _file(path, entries)
    error: Exception | None = None
    empty = not tensors and ranks.here().first
    if empty:
        try:
            next(out, None)
        except Exception as failed:
            error = failed
    for at, names in enumerate(plan.rounds):
        whole = _gathered(plan, names)
        if whole is None or error is not None:
            continue
        try:
            if at == 0:
                next(out)
            order = orders.get(names[ranks.here().rank] or "")
            out.send(whole if order is None else unsorted(whole, order))
        except StopIteration:
            pass
        except Exception as failed:
            error = failed
    ranks.agree(error)
    return {name: plan.file(plan.writer[name]) for name in tensors}, [path] if entries or empty else []


def _file(path: Path, entries: list[_Entry]) -> Generator[None, Tensor, None]:
    """Writes the tensors that it is sent, which are these in this order; ends when all are there."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.bytes
        header[entry.name] = {
            "dtype": TYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with files.stream(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in entries:
            tensor = yield
            if tensor.numel():
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


@dataclass(frozen=True)
class _Entry:
    """A tensor of a file, and for each of its parts which rank has which piece; no pieces: all have all."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Parts
    pieces: list[list[tuple[int, Piece]]]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class _Plan:
    """Who writes what, and when."""

    stem: str
    entries: dict[str, _Entry]
    writer: dict[str, int]

    @classmethod
    def of(cls, stem: str, tensors: Mapping[str, Parts]) -> _Plan:
        cut = [part for parts in tensors.values() for part in parts if is_part(part)]
        there = iter(zip(*ranks.gathered([piece(part) for part in cut]), strict=True))
        entries = {}
        for name, parts in tensors.items():
            pieces = [_once(next(there)) if is_part(part) else [] for part in parts]
            shape = (sum(len(p) for p in parts), *parts[0].shape[1:]) if len(parts) > 1 else parts[0].shape
            entries[name] = _Entry(name, tuple(shape), parts[0].dtype, parts, pieces)
        load, writer = [0] * ranks.here().size, {}
        for entry in sorted(entries.values(), key=lambda entry: -entry.bytes):
            writer[entry.name] = load.index(min(load))
            load[writer[entry.name]] += entry.bytes
        return cls(stem, entries, writer)

    def of_rank(self, rank: int) -> list[str]:
        """Its tensors, in the order of its file: the widest numbers first, so that all are aligned."""
        names = [name for name in self.entries if self.writer[name] == rank]
        return sorted(names, key=lambda name: -self.entries[name].dtype.itemsize)

    @property
    def rounds(self) -> Iterator[tuple[str | None, ...]]:
        """What is gathered at once: the next tensor of each writer."""
        return zip_longest(*(self.of_rank(rank) for rank in range(ranks.here().size)))

    def file(self, rank: int) -> str:
        """The name of a writer's file."""
        writers = sorted(set(self.writer.values()))
        if len(writers) == 1 or rank not in writers:
            return f"{self.stem}.safetensors"
        return f"{self.stem}-{writers.index(rank) + 1:05}-of-{len(writers):05}.safetensors"


def _once(pieces: Sequence[Piece]) -> list[tuple[int, Piece]]:
    """The ranks whose pieces make the whole, each piece once."""
    first: dict[Piece, int] = {}
    for rank, there in enumerate(pieces):
        if not there.empty:
            first.setdefault(there, rank)
    return [(rank, there) for there, rank in first.items()]


def _gathered(plan: _Plan, names: Sequence[str | None]) -> Tensor | None:
    """The tensor of this round that this rank is to write, on the host; None where there is none."""
    mine, under_way, tag = None, _UnderWay(), 0
    for name in names:
        if name is None:
            continue
        entry, writer = plan.entries[name], plan.writer[name]
        whole, above = None, 0
        if writer == ranks.here().rank:
            mine = whole = torch.empty(entry.shape, dtype=entry.dtype)
        for part, pieces in zip(entry.parts, entry.pieces, strict=True):
            tag += 1
            into = whole
            if whole is not None and len(entry.parts) > 1:  # one below another
                into = whole[above : above + len(part)]
                above += len(part)
            if into is not None and not pieces:
                into.copy_(part.detach())
            for rank, there in pieces:
                under_way.bring(part, (rank, there), writer, into, tag)
    under_way.end()
    return mine


class _UnderWay:
    """Pieces that go from rank to rank."""

    def __init__(self) -> None:
        self.group = ranks.on_host() if ranks.here().size > 1 else None
        self.sent: list[tuple[Any, Tensor]] = []
        self.received: list[tuple[Any, Tensor, Tensor]] = []  # and where each belongs

    def bring(
        self, part: Tensor, source: tuple[int, Piece], writer: int, into: Tensor | None, tag: int
    ) -> None:
        """Begin to bring a piece of `part`, which a rank has, to its writer, who has room for the whole."""
        (rank, there), here = source, ranks.here().rank
        if into is not None and rank == here:
            into[there.slices].copy_(local(part))
        elif into is not None:
            buffer = torch.empty(there.shape, dtype=into.dtype)
            work = dist.irecv(buffer, rank, group=self.group, tag=tag)
            self.received.append((work, buffer, into[there.slices]))
        elif rank == here:
            piece = local(part).detach().to("cpu").contiguous()
            self.sent.append((dist.isend(piece, writer, group=self.group, tag=tag), piece))

    def end(self) -> None:
        """Wait until all are there."""
        for work, buffer, place in self.received:
            work.wait()
            place.copy_(buffer)
        for work, _ in self.sent:
            work.wait()


# --- reading ------------------------------------------------------------------------------------------------


class Files(Stored):
    """The tensors of `stem.safetensors`, or of `stem-0000i-of-0000n.safetensors`, in a directory."""

    def __init__(self, directory: Path, stem: str) -> None:
        self._at: dict[str, Any] = {}
        for path in _found(directory, stem):
            try:
                file = safetensors.safe_open(path, framework="pt")
                names = list(file.keys())
            except (safetensors.SafetensorError, OSError) as error:
                raise LlmtoolError(f"{path}: not a whole safetensors file ({error})") from None
            if twice := self._at.keys() & names:
                raise LlmtoolError(f"{path}: {sorted(twice)[0]} is in another file of {directory} too")
            self._at |= dict.fromkeys(names, file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, name: str) -> Tensor:
        return self._at[name].get_tensor(name)

    def like(self, name: str) -> Tensor:
        """One of the same shape and type, on the meta device."""
        there = self._at[name].get_slice(name)
        dtype = next(dtype for dtype, known in TYPES.items() if known == there.get_dtype())
        return torch.empty(there.get_shape(), dtype=dtype, device="meta")

    def read(self, name: str, wanted: Piece) -> Tensor:
        """A piece of it, on the host."""
        if wanted.empty:
            return torch.empty(wanted.shape, dtype=self.like(name).dtype)
        if not wanted.shape:
            return self[name]
        return self._at[name].get_slice(name)[wanted.slices]


def _found(directory: Path, stem: str) -> list[Path]:
    whole = directory / f"{stem}.safetensors"
    if whole.is_file():
        return [whole]
    pattern = re.compile(rf"{re.escape(stem)}-(\d{{5}})-of-(\d{{5}})\.safetensors", re.ASCII)
    with files.disk_errors(directory):
        found = sorted(path for path in directory.iterdir() if pattern.fullmatch(path.name))
    if not found:
        raise LlmtoolError(f"{whole}: no such file")
    matched = pattern.fullmatch(found[0].name)
    assert matched is not None
    number = int(matched[2])
    expected = [f"{stem}-{at:05}-of-{number:05}.safetensors" for at in range(1, number + 1)]
    if [path.name for path in found] != expected:
        raise LlmtoolError(f"{directory}: {stem}: {len(found)} files are there, {number} were written")
    return found
