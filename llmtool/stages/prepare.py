"""Prepares data: source, clean, split, encode, with an account of what became of every row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from llmtool.core import files
from llmtool.core.errors import DataError
from llmtool.core.kept import Kept
from llmtool.data import DataConfig, audit, leakage
from llmtool.data.chat import ChatEncoder
from llmtool.data.cleaning import Cleaned, contents
from llmtool.data.dropped import FILE as EXAMPLES
from llmtool.data.dropped import Account
from llmtool.data.encoding import TOO_LONG, EncodedWriter, Encoder, RowError
from llmtool.data.images import ImagesEncoder
from llmtool.data.mixture import MixtureSource
from llmtool.data.readers import BadRow
from llmtool.data.reading import Reading
from llmtool.data.sources import SPLITS, Chunk
from llmtool.data.splitting import DROPPED, Assigned, RowTable
from llmtool.data.store import CARD, make_card
from llmtool.data.targets import LACKING, NOT_IN_TRAIN
from llmtool.data.templates import FILE as TEMPLATE_FILE
from llmtool.data.tokens import TokenEncoder
from llmtool.stages import mixture, sifting
from llmtool.stages.engine import Cleaner, opened
from llmtool.stages.leaks import LEAKAGE, leaks, text_columns
from llmtool.stages.likeness import like_model
from llmtool.stages.rereading import Progress, Rereading, Train
from llmtool.stages.rows import MoreColumnsError, Rows

LEDGER = "ledger.json"
QUARANTINE = "quarantine.jsonl"
HOPELESS = 10_000  # bad rows after which reading stops, if most rows are bad


@dataclass(frozen=True)
class PrepareResult:
    """card: what card.json holds. ledger: read = kept + dropped + quarantined. notes: for a person."""

    card: dict[str, Any]
    ledger: dict[str, Any]
    notes: list[str]


def prepare(
    data: DataConfig,
    seed: int,
    directory: Path,
    progress: Progress = lambda step, rows: None,
    hashes: Mapping[str, str] | None = None,
) -> PrepareResult:
    """Read, clean, split and encode into `directory`, which exists; card.json is written last.

    hashes: of every file that is read, for the card. A source that is not small is read two or three times
    (a large one that is cleaned once), and memory grows by about 100 bytes a row only. Raises DataError when
    too many rows are bad, nothing is left, or the source changes meanwhile; ConfigError for columns that do
    not exist. Of a large source, what is done is kept beside `directory` until all is, and the same call goes
    on from there.
    """
    with opened(data, seed, directory, hashes) as engine:
        try:
            result = _prepare(data, seed, directory, progress, hashes, engine, guess=engine is not None)
        except MoreColumnsError:
            result = _prepare(data, seed, directory, progress, hashes, engine)
        if engine is not None:
            engine.remove()
    return result


def _prepare(
    data: DataConfig,
    seed: int,
    directory: Path,
    progress: Progress,
    hashes: Mapping[str, str] | None,
    engine: Kept | None,
    guess: bool = False,
) -> PrepareResult:
    """The same. guess: whether later rows are thought to have the first ones' columns; MoreColumnsError
    where they do not."""
    before = data.source.stamps()
    encoder: Encoder = data.encode.build(seed)
    if isinstance(encoder, ImagesEncoder):
        like_model(encoder)
    rows = Rows(data.source)
    columns = rows.columns(guess)
    _sweep(directory)
    if not columns:
        _refuse_unread(data, rows, directory)
    cleaner = Cleaner(data.clean, columns, engine)
    scan = _scan(data, rows, encoder, columns, directory, progress, cleaner)
    code, assigned = _split(data, scan, seed)
    reading = Rereading(rows, cleaner, code, before, progress, engine)
    if isinstance(encoder, TokenEncoder):
        encoder.engine = engine
    encoder.fit(Train(reading))
    names = data.source.names()
    text: str | list[str] | None = encoder.columns(columns)[:1] if isinstance(encoder, ChatEncoder) else None
    text = text or text_columns(encoder)
    sample = leakage.Sample.of(code, len(columns), names, seed, text)
    kept, splits = _write(encoder, reading, scan, directory, sample)
    if isinstance(data.source, MixtureSource):
        mixture.mark(splits, directory, data.source)
    _refuse_bad(data, scan)
    scan.account.write(directory)
    ledger = _ledger(scan, assigned, kept) | scan.account.ledger() | scan.sifted.ledger
    if scan.mixed is not None:
        part = mixture.account(scan.mixed, code, scan.fates[0], scan.reasons, assigned.dropped)
        ledger["parts"] = part
    if isinstance(encoder, ChatEncoder):
        ledger |= audit.account(encoder, names, directory)
    found = leaks(data, encoder, sample, splits, directory)
    notes = [*data.source.notes(), *scan.sifted.notes, *assigned.notes, *encoder.notes, *found]
    card = make_card(
        data.encode.as_, encoder.inputs, encoder.targets, encoder.state(), splits, notes, names, hashes
    )
    card["reading"] = Reading.of(data).state()
    files.write_json(directory / LEDGER, ledger)
    for path in _written(directory):
        files.sync(path)
    files.write_json(directory / CARD, card)
    return PrepareResult(card, ledger, notes)


def _written(directory: Path) -> list[Path]:
    """The files of an encoded dataset."""
    patterns = [*(f"{split}.*.bin" for split in SPLITS), "tokenizer*.json", TEMPLATE_FILE, audit.FILE]
    return [path for pattern in patterns for path in sorted(directory.glob(pattern)) if not path.is_dir()]


def _sweep(directory: Path) -> None:
    """Take away what an earlier run left, the card first: without it, nothing here counts as a dataset."""
    with files.disk_errors(directory):
        for path in [
            *(directory / name for name in (CARD, LEDGER, QUARANTINE, LEAKAGE, EXAMPLES, *sifting.FILES)),
            *_written(directory),
        ]:
            if path.is_file() or path.is_symlink():
                files.fs.unlink(path)


# --- first reading: what becomes of each row --------------------------------------------------------------


@dataclass
class _Scan:
    """The fate of every row, and what the split needs to know of those that are left."""

    quarantine: Path
    named: str | None = None  # the column whose cell names a row better than file and line do
    mixed: mixture.Parts | None = None  # of a mixture
    read: int = 0
    # per chunk (rows,) int16: 0 is left, else reasons[fate - 1]
    fates: list[np.ndarray] = field(default_factory=list)
    reasons: list[tuple[str, str]] = field(default_factory=list)  # ("dropped" or "quarantined", why)
    # rows that no reader could make sense of, by reason
    unread: Counter[str] = field(default_factory=Counter)
    places: list[BadRow] = field(default_factory=list)  # the first bad rows
    bad: int = 0
    parts: list[dict[str, np.ndarray]] = field(default_factory=list)  # per chunk, of the rows left
    keys: dict[int, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    sifted: sifting.Sifted = field(default_factory=sifting.Sifted)
    account: Account = field(default_factory=Account)

    def fate(self, kind: str, reason: str) -> int:
        """The number of a reason."""
        if (kind, reason) not in self.reasons:
            self.reasons.append((kind, reason))
        return self.reasons.index((kind, reason)) + 1

    def note_bad(self, rows: list[BadRow]) -> None:
        """Count bad rows and write them down."""
        if rows:
            self.bad += len(rows)
            self.places += rows[: 3 - len(self.places)]
            keys = ("file", "line", "reason", "text")
            lines = [json.dumps({key: getattr(row, key) for key in keys}, ensure_ascii=False) for row in rows]
            files.append_line(self.quarantine, "\n".join(lines))


def _scan(
    data: DataConfig,
    rows: Rows,
    encoder: Encoder,
    columns: list[str],
    directory: Path,
    progress: Progress,
    cleaner: Cleaner,
) -> _Scan:
    content = encoder.columns(columns)
    paths = data.source.names()
    named, mixed = getattr(data.encode, "image", None), mixture.Parts.of(data.source)
    scan = _Scan(directory / QUARANTINE, named, mixed, account=Account(data.clean))
    files.write_bytes(scan.quarantine, b"")
    sifting.learn(data, columns)
    for chunk, cleaned in cleaner.first(rows.within(columns)):
        scan.read += len(chunk) + len(chunk.bad)
        if scan.mixed is not None:
            scan.mixed.note(chunk)
        scan.unread.update(row.reason for row in chunk.bad)
        scan.note_bad(chunk.bad)
        _look(data, encoder, content, paths, chunk, cleaned, scan)
        progress("reading", scan.read)
        if scan.bad > HOPELESS and scan.bad > scan.read / 2 and scan.bad > data.max_bad * scan.read:
            break
    _sift(data, rows, columns, scan, directory)
    scan.account.write(directory)
    _refuse_bad(data, scan)
    return scan


def _look(
    data: DataConfig,
    encoder: Encoder,
    content: list[str],
    paths: list[str],
    chunk: Chunk,
    cleaned: Cleaned,
    scan: _Scan,
) -> None:
    """Note the fate of a chunk's rows and what the split needs of those that are left."""
    fates = np.zeros(len(chunk), np.int16)
    start = int(chunk.frame.index[0]) if len(chunk) else 0
    scan.account.changed.update(cleaned.changed)
    for position, keys in cleaned.keys.items():
        keys = sifting.gathered(data.clean[position], keys, chunk)
        scan.keys.setdefault(position, []).append(keys)
    for kind, found in (("dropped", cleaned.dropped), ("quarantined", cleaned.bad)):
        for reason, ordinals in found.items():
            fates[ordinals - start] = scan.fate(kind, reason)
    frame = cleaned.frame
    seen = data.split.observe(frame, encoder, scan.names)
    here = frame.index.to_numpy() - start
    refused = encoder.refuse(frame)
    for kind, found in (
        ("dropped", refused.dropped),
        ("quarantined", refused.bad),
        ("dropped", seen.dropped),
        ("quarantined", seen.bad),
    ):
        for reason, mask in found.items():
            rows = here[mask]
            rows = rows[fates[rows] == 0]
            if len(rows):
                fates[rows] = scan.fate(kind, reason)
    left = fates[here] == 0
    frame, rows = frame.loc[left], here[left]
    alike = frame if refused.alike is None else refused.alike.loc[left]
    part = {"content": contents(alike, content), "ordinal": rows + start}
    if data.source.one_unit_a_file:
        part["unit"] = chunk.unit[rows]
    if data.split.by == "order" and data.source.in_bytes:
        part["size"] = np.array([len(text.encode()) for text in frame["text"].tolist()], np.int64)
    if chunk.split is not None:
        part["given"] = np.array([SPLITS.index(name) for name in chunk.split[rows]], np.int8)
    if seen.value is not None:
        part["value"] = seen.value[left]
    scan.parts.append(part)
    scan.fates.append(fates)
    _quarantine(scan, chunk, fates, paths, refused.details)


def _quarantine(
    scan: _Scan, chunk: Chunk, fates: np.ndarray, paths: list[str], details: Mapping[int, str]
) -> None:
    """Write down the rows of this chunk that cleaning or splitting found bad, and some that they dropped."""
    if not fates.any():
        return
    scan.account.add(chunk, fates, scan.reasons, paths)
    bad = []
    for row in np.flatnonzero(fates):
        kind, reason = scan.reasons[fates[row] - 1]
        if kind == "quarantined":
            cells = scan.account.hidden(chunk.frame.iloc[row].to_dict())
            text = json.dumps(cells, ensure_ascii=False, default=str)
            if detail := details.get(int(chunk.frame.index[row])):
                reason = f"{reason}: {detail}"
            where = paths[chunk.file[row]], int(chunk.line[row])
            if scan.named and cells.get(scan.named):
                where = str(cells[scan.named]), 0
            bad.append(BadRow(*where, reason, text))
    scan.note_bad(bad)


def _sift(data: DataConfig, rows: Rows, columns: list[str], scan: _Scan, directory: Path) -> None:
    """Let the steps decide that look over the whole source."""
    if not scan.keys:
        return
    fates = np.concatenate([*scan.fates, np.zeros(0, np.int16)])
    bad = np.array([False, *(kind != "dropped" for kind, _ in scan.reasons)])  # these stay where they are
    scan.sifted = sifting.sift(data, scan.keys, bad[fates], rows, columns, directory)
    for reason, ordinals in scan.sifted.gone.items():
        if len(ordinals):
            fates[ordinals] = scan.fate("dropped", reason)
    scan.fates, scan.keys = [fates], {}


def _refuse_bad(data: DataConfig, scan: _Scan) -> None:
    if scan.bad <= data.max_bad * scan.read:
        return
    places = "; ".join(
        f"{row.file}{f', line {row.line}' * (row.line > 0)}: {row.reason}" for row in scan.places
    )
    share = 100 * scan.bad / scan.read
    raise DataError(
        f"{scan.bad:,} of {scan.read:,} rows are bad "
        f"({share:.3g} %; data.max_bad allows {100 * data.max_bad:.3g} %): "
        f"{places}{'; ...' if scan.bad > len(scan.places) else ''} (all of them: {scan.quarantine})"
    )


def _refuse_unread(data: DataConfig, rows: Rows, directory: Path) -> None:
    """Refuse a source without columns because none of its rows can be read: then that is what is wrong."""
    scan = _Scan(directory / QUARANTINE)
    files.write_bytes(scan.quarantine, b"")
    for chunk in rows:
        scan.read += len(chunk) + len(chunk.bad)
        scan.note_bad(chunk.bad)
        if scan.bad > HOPELESS:
            break
    _refuse_bad(data, scan)
    if scan.bad:
        raise DataError(f"none of {scan.read:,} rows can be read (why: {scan.quarantine})")


# --- split, and the later readings ------------------------------------------------------------------------


def _split(data: DataConfig, scan: _Scan, seed: int) -> tuple[np.ndarray, Assigned]:
    """(parsed rows,) int8 split code of every row, DROPPED for those that left; and what splitting says."""
    fates = np.concatenate([*scan.fates, np.zeros(0, np.int16)])
    scan.fates = [fates]

    def gather(name: str) -> np.ndarray | None:
        parts = [part.pop(name) for part in scan.parts if name in part]
        whole = np.concatenate(parts) if parts else None
        return whole if whole is None or left.all() else whole[left]

    ordinals = np.concatenate([part.pop("ordinal") for part in scan.parts])
    left = fates[ordinals] == 0
    ordinals = ordinals[left]
    if not len(ordinals):
        raise DataError(
            f"no row is left of {scan.read:,}: {_listed(_counts_of(scan, fates)) or 'none was read'}"
        )
    content, size = gather("content"), gather("size")
    assert content is not None
    size = np.broadcast_to(np.int64(1), len(content)) if size is None else size
    rows = RowTable(content, gather("unit"), size, gather("given"), gather("value"), list(scan.names))
    if scan.mixed is not None:
        rows.part, rows.parts = scan.mixed.of_rows()[ordinals], scan.mixed.names
    assigned = data.split.assign(rows, seed)
    if scan.mixed is not None and rows.part is not None:
        assigned.notes += scan.mixed.absent(rows.part, assigned.split)
    assert all((assigned.split[mask] == DROPPED).all() for mask in assigned.dropped.values())
    code = np.full(len(fates), DROPPED, np.int8)
    code[ordinals] = assigned.split
    return code, assigned


def _write(
    encoder: Encoder, reading: Rereading, scan: _Scan, directory: Path, sample: leakage.Sample
) -> tuple[Counter[str], dict[str, dict[str, Any]]]:
    """Encode every split; returns the rows kept by split, and the meta of each split."""
    kept: Counter[str] = Counter()
    present = [code for code in range(len(SPLITS)) if (reading.code == code).any()]
    writers = {code: encoder.writer(directory, SPLITS[code]) for code in present}
    with _named(sample.paths):
        for stretch in reading.encodings(encoder.encoded, sample.wanted):
            sample.add(stretch.looked, stretch.codes)
            for part in stretch.parts:
                writer = writers[part.code]
                if part.encoded is None:
                    reasons = writer.add(part.chunk)
                else:
                    reasons = cast(EncodedWriter, writer).write(part.encoded)
                kept[SPLITS[part.code]] += part.rows - len(reasons)
                _refuse(scan, part.chunk, reasons, sample.paths)
    with _named(sample.paths):
        splits = {SPLITS[code]: writer.close() for code, writer in writers.items()}
    for name in splits:
        if not kept[name]:
            left = _counts_of(scan, scan.fates[0])
            raise DataError(f"nothing is left for {name}: {_listed(left)}")
    return kept, splits


@contextmanager
def _named(paths: list[str]) -> Iterator[None]:
    """Puts file and line of the row for which an encoder refuses the data in front of its error."""
    try:
        yield
    except RowError as error:
        raise DataError(f"{paths[error.file]}, line {error.line}: {error}") from None


def _refuse(scan: _Scan, chunk: Chunk, reasons: dict[int, str], paths: list[str]) -> None:
    """Account for rows the encoder cannot take: cells it cannot read are bad; an unknown class, a missing
    target, or a conversation that is too long, is not."""
    if not reasons:
        return
    import pandas as pd

    fates = np.zeros(len(chunk.frame), np.int16)
    for row, (ordinal, reason) in zip(
        chunk.frame.index.get_indexer(pd.Index(list(reasons))), reasons.items(), strict=True
    ):
        dropped = reason in (NOT_IN_TRAIN, TOO_LONG) or reason.endswith(LACKING)
        kind = "dropped" if dropped else "quarantined"
        fates[row] = scan.fates[0][ordinal] = scan.fate(kind, reason)
    _quarantine(scan, chunk, fates, paths, {})


# --- the account ------------------------------------------------------------------------------------------


def _counts_of(scan: _Scan, fates: np.ndarray, only: str | None = None) -> Counter[str]:
    counts = np.bincount(fates, minlength=len(scan.reasons) + 1)[1:]
    found: Counter[str] = Counter()
    for (kind, reason), count in zip(scan.reasons, counts, strict=True):
        if count and only in (None, kind):
            found[reason] += int(count)
    return found


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common(5))


def _ledger(scan: _Scan, assigned: Assigned, kept: Counter[str]) -> dict[str, Any]:
    """Rows read = kept + dropped + quarantined."""
    fates = scan.fates[0]
    dropped = _counts_of(scan, fates, "dropped")
    dropped.update({reason: int(mask.sum()) for reason, mask in assigned.dropped.items() if mask.any()})
    quarantined = _counts_of(scan, fates, "quarantined") + scan.unread
    total = kept.total() + dropped.total() + quarantined.total()
    assert total == scan.read, f"the ledger does not balance: {scan.read} read, {total} accounted for"
    assert quarantined.total() == scan.bad
    return {
        "read": scan.read,
        "kept": {name: kept.get(name, 0) for name in SPLITS},
        "dropped": dict(dropped.most_common()),
        "quarantined": dict(quarantined.most_common()),
    }
