"""What people and programs see: results (or one JSON document) on stdout, progress and problems on stderr.

Text from outside (data, file names, errors) is shown as it is: no markup, no terminal escapes, no character
the terminal cannot take. Where stderr is no terminal, everything is plain lines.
"""

from __future__ import annotations

import contextlib
import json
import math
import numbers
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from llmtool.core import files, streams

LESSER = "dim"  # the style of a table's columns that a narrow terminal does without
PLAIN_WIDTH = 400  # columns where there is no terminal to be wide; tables take what they need


@dataclass
class _Settings:
    json: bool = False
    quiet: bool = False
    stderr: Console = field(default_factory=lambda: _console(stderr=True))


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    terminal = _is_terminal(stream)
    return Console(
        file=_Guarded(stderr),  # type: ignore[arg-type]
        force_terminal=terminal,
        no_color=None if terminal else True,
        width=None if terminal else PLAIN_WIDTH,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )


def _is_terminal(stream: TextIO) -> bool:
    # not rich's own test, which FORCE_COLOR sways: a live display in the log of a CI job helps nobody
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    except ValueError:  # closed
        return False


class _Guarded:
    """stdout or stderr as it is at each write; a reader that went away (`| head`) stops nothing, nor does a
    full disk: `streams.lost` tells of it."""

    def __init__(self, stderr: bool) -> None:
        self._stderr = stderr

    @property
    def _stream(self) -> TextIO:
        stream = sys.stderr if self._stderr else sys.stdout
        return getattr(stream, "rich_proxied_file", stream)  # a live display stands in front of stderr

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        safe = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        with self._survive():
            self._stream.write(safe)
        return len(text)

    def flush(self) -> None:
        with self._survive():
            self._stream.flush()

    @contextlib.contextmanager
    def _survive(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            streams.mute(self._stream)
        except (OSError, ValueError) as error:
            if not self._stderr:  # a result that could not be written is a failure; a progress line is not
                streams.lose(streams.unwritable(error))


_settings = _Settings()


def configure(json: bool = False) -> None:
    """Set what is shown. json: stdout carries one document alone."""
    global _settings
    _settings = _Settings(json)


def is_json() -> bool:
    """Whether stdout carries one document."""
    return _settings.json


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Inside, nothing is shown but warnings."""
    global _settings
    before, _settings = _settings, _Settings(json=True, quiet=True)
    try:
        yield
    finally:
        _settings = before


# --- text ---------------------------------------------------------------------------------------------------


def clean(text: Any, lines: bool = True) -> str:
    """`text` with control characters, terminal escapes and marks of reading direction written out.

    lines: whether line breaks and tabs stay.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        character if character in kept or not _hidden(ord(character)) else _escape(ord(character))
        for character in str(text)
    )


_SHORT = {"\n": "\\n", "\t": "\\t"}


def _hidden(code: int) -> bool:
    control = code < 0x20 or 0x7F <= code < 0xA0
    # bidirectional marks can make a name read as another one, https://trojansource.codes
    return (
        control
        or 0x202A <= code <= 0x202E
        or 0x2066 <= code <= 0x2069
        or code in (0x200E, 0x200F, 0x2028, 0x2029)
    )


def _escape(code: int) -> str:
    if chr(code) in _SHORT:
        return _SHORT[chr(code)]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def say(text: str) -> None:
    """A line of the result, on stdout."""
    show(Text(clean(text)))


def write(text: str) -> None:
    """A piece of the result on stdout, as it comes: no line of its own."""
    if not _settings.json:
        stream = _Guarded(stderr=False)
        stream.write(clean(text))
        stream.flush()


def note(text: str) -> None:
    """A line about what is going on, on stderr."""
    if not _settings.quiet:
        _line(Text(clean(text), style="dim"))


def warn(text: str) -> None:
    """Something that the user should know but that stops nothing, on stderr."""
    for line in clean(text).splitlines():
        _line(Text.assemble(("warning: ", "bold yellow"), line))


def _line(text: Text) -> None:
    _settings.stderr.print(text, soft_wrap=True)


def show(renderable: RenderableType) -> None:
    """Anything rich can draw (a tree, a table), on stdout; its text must be `Text` or cleaned."""
    if _settings.json:
        return
    console = _console(stderr=False)
    if console.is_terminal:
        for part in renderable.renderables if isinstance(renderable, Group) else [renderable]:
            console = _console(stderr=False)  # as wide as this part needs
            shown = _fitted(part, console) if isinstance(part, Table) else part
            console.print(shown, soft_wrap=isinstance(renderable, Text))
        return
    with console.capture() as captured:
        console.print(renderable, soft_wrap=isinstance(renderable, Text))
    lines = [line.rstrip() for line in captured.get().splitlines()]  # no trailing blanks in files and logs
    console.file.write("\n".join([*lines, ""]))
    console.file.flush()


def _fitted(table: Table, console: Console) -> Table:
    """A table whose figures (columns that do not wrap) and words stay whole on a narrow terminal: first its
    columns of lesser weight go, then the console becomes wider, and lines run over the edge."""
    wide = console.options.update_width(PLAIN_WIDTH)
    for column in table.columns:
        if column.no_wrap:
            cells = [column.header, *column.cells]
            column.min_width = max(Measurement.get(console, wide, cell).maximum for cell in cells)
    if Measurement.get(console, wide, table).minimum > console.width:
        kept = [column for column in table.columns if column.style != LESSER]
        table.columns = [replace(column, _index=index) for index, column in enumerate(kept)]
        console.width = max(console.width, Measurement.get(console, wide, table).minimum)
    return table


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """A table on stdout. Numbers are formatted and stand on the right; None is an empty cell."""
    cells = [list(row) for row in rows]
    drawn = Table(
        title=Text(clean(title), style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for index, name in enumerate(columns):
        values = [row[index] for row in cells if row[index] is not None]
        right = bool(values) and all(_is_number(value) for value in values)
        side: Literal["left", "right"] = "right" if right else "left"
        drawn.add_column(Text(clean(name)), justify=side, no_wrap=right, overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(_cell(value)) for value in row))
    show(drawn)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)  # numpy's too


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if _is_number(value):
        return number(value)
    return clean(value, lines=False)


def document(value: Any) -> None:
    """With `--json`, the command's one document, on stdout; otherwise nothing."""
    if _settings.json:
        stream = _Guarded(stderr=False)
        stream.write(json.dumps(files.plain(value), indent=2, allow_nan=False) + "\n")
        stream.flush()


# --- progress -----------------------------------------------------------------------------------------------


class ProgressDisplay:
    """A context manager that shows how far the work is: a live bar on a terminal, else plain lines."""

    def __init__(self, total: float | None, unit: str) -> None:
        self.total, self.unit = total, unit
        self._clock = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._clock = time.monotonic()
        if not _settings.quiet and _settings.stderr.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[line]}", markup=False),
                console=_settings.stderr,
                auto_refresh=False,  # no thread beside the training loop
                redirect_stdout=False,  # results do not go where progress goes
            )
            self._task = self._bar.add_task(self._done(0), total=self.total, line="")
            self._bar.start()
        return self

    @property
    def live(self) -> bool:
        """Whether updates redraw one bar; if not, each is a line that stays."""
        return self._bar is not None

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, done: float, left: float | None = None, **fields: float | str | None) -> None:
        """Show where the work stands; the caller decides how often.

        done: units done, of `total`. left: seconds to go where the caller knows better than done / total
        tells.
        fields: shown in their order; text as it is, numbers formatted, None left out. `lr` (3.0e-04), `peak`
        (a share of 1, as a percentage) and `rate` (a second) have forms of their own.
        """
        if _settings.quiet:
            return
        parts = [_field(name, value) for name, value in fields.items() if value is not None]
        left = self._left(done) if left is None else left
        if left is not None:
            parts.append(f"{seconds(left)} left")
        line = "  ".join(parts)
        if self._bar is None or self._task is None:
            _line(Text(clean(f"{self._done(done)}  {line}".rstrip())))
            return
        self._bar.update(
            self._task, completed=done, description=self._done(done), line=Text(clean(line)).plain
        )
        self._bar.refresh()

    def _done(self, done: float) -> str:
        return f"{self.unit} {done:,.0f}" + (f"/{self.total:,.0f}" if self.total is not None else "")

    def _left(self, done: float) -> float | None:
        if self.total is None or done <= 0 or done >= self.total:
            return None
        return max(0.0, (time.monotonic() - self._clock) / done * (self.total - done))


def progress(total: float | None, unit: str) -> ProgressDisplay:
    """A display of `total` units ("step")."""
    return ProgressDisplay(total, unit)


def _field(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return f"{name} {value}"
    if name == "lr":
        return f"lr {value:.1e}"
    if name == "peak":
        return f"{100 * value:.3g}% of peak"
    if name == "rate":
        return f"{count(value)}/s"
    return f"{name} {number(value)}"


# --- numbers ------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A figure for a table: whole numbers in full, others to about four digits: 1,234,567  0.8532  12.35."""
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e9:
        return f"{value:.3g}" if abs(value) < 1e-3 else f"{value:.4g}"
    digits = 4 if abs(value) < 10 else max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def count(value: float) -> str:
    """A number of things to three digits: 999, 1.23k, 12.3M, 7.00B, 1.50T."""
    return _scaled(value, 1000, ["", "k", "M", "B", "T"])


def bytes_(value: float) -> str:
    """A number of bytes: 999 B, 1.4 GB (of 1000 each step, as disks are sold)."""
    if abs(value) < 1000:
        return f"{value:.0f} B"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        value /= 1000
        if abs(value) < 999.5 or unit == "PB":
            break
    return f"{value:.1f} {unit}" if abs(value) < 99.95 else f"{value:,.0f} {unit}"


def _scaled(value: float, step: int, units: list[str]) -> str:
    if abs(value) < 999.5 and float(value).is_integer():
        return f"{value:.0f}"
    index = 0
    while abs(value) >= 999.5 and index < len(units) - 1:
        value /= step
        index += 1
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{digits}f}{units[index]}"


def seconds(value: float) -> str:
    """A duration: 0.35ms, 12ms, 5.2s, 1m02s, 1h02m, 3d04h."""
    if 0 < value < 0.00995:
        return f"{value * 1000:.2g}ms"
    if value < 0.9995:
        return f"{value * 1000:.0f}ms"
    if value < 59.95:
        return f"{value:.1f}s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(value / 60) if whole % 60 else whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(value / 3600)
    return f"{hours // 24}d{hours % 24:02d}h"
