"""What core/console.py puts on stdout and stderr, with and without a terminal, and for hostile text."""

import json
import os
import pty
import select
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Group
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from llmtool.core import console


@pytest.fixture(autouse=True)
def fresh():
    console.configure()
    yield
    console.configure()


HOSTILE = "[red]x[/red] :smile: \x1b[31mred\x1b[0m \x07 \u202eabc \x9b2J"
SHOWN = "[red]x[/red] :smile: \\x1b[31mred\\x1b[0m \\x07 \\u202eabc \\x9b2J"


def test_results_go_to_stdout_and_the_rest_to_stderr(capsys):
    console.say("a result")
    console.note("a note")
    console.warn("a warning")
    console.warn("one\ntwo")
    out, err = capsys.readouterr()
    assert out == "a result\n"
    assert err == "a note\nwarning: a warning\nwarning: one\nwarning: two\n"


def test_text_from_outside_is_shown_as_it_is(capsys):
    for speak in (console.say, console.note, console.warn):
        speak(HOSTILE)
    console.table([HOSTILE], [[HOSTILE], ["a\nb\tc"]], title=HOSTILE)
    with console.progress(10, "step") as display:
        display.update(1, word=HOSTILE)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert out.count(SHOWN) == 4
    assert err.count(SHOWN) == 3
    assert "a\\nb\\tc" in out


def test_long_lines_are_never_broken_where_there_is_no_terminal(capsys):
    console.say("word " * 200)
    console.warn("word " * 200)
    console.table(["name", "value"], [["x" * 200, 1]])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 + 3
    assert len(err.splitlines()) == 1
    assert all(line == line.rstrip() for line in out.splitlines())


def test_tables_align_numbers_and_leave_none_empty(capsys):
    console.table(
        ["name", "rows", "f1"],
        [["a", 1234567, 0.5], ["bc", 3, None], ["d", np.int64(7), np.float64(12.3456)]],
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "rows", "f1"]
    assert lines[2].split() == ["a", "1,234,567", "0.5000"]
    assert lines[3].split() == ["bc", "3"]
    assert lines[3].index("3") == lines[2].index("7 ")
    console.table(["empty"], [])
    assert "empty" in capsys.readouterr().out


def test_a_narrow_terminal_cuts_no_figure(capsys, monkeypatch):
    monkeypatch.setattr(console, "_is_terminal", lambda stream: True)
    monkeypatch.setenv("TERM", "dumb")
    rows = [["a long name of a row", 1234567, 0.25, 0.5, 123456.0]]
    for width, widest in ((80, 80), (20, 50)):
        monkeypatch.setenv("COLUMNS", str(width))
        console.table(["name", "rows", "f1", "recall", "seconds"], rows)
        console.show(Group(Text("some words that are wrapped on a narrow one"), two()))
        out = capsys.readouterr().out
        assert out.split().count("0.2500") == 2
        assert {"1,234,567", "0.5000", "123,456"} <= {*out.split()}
        assert "\u2026" not in out
        assert ("0.1000 to 0.4000" in out) == (width == 80)
        assert max(map(len, out.splitlines())) <= widest
        assert ("some words that are wrapped on a narrow" in out) == (width == 80)


def two():
    table = Table()
    table.add_column("figure", overflow="fold")
    table.add_column("test", no_wrap=True)
    table.add_column("95 %", no_wrap=True, style=console.LESSER)
    table.add_row("balanced_accuracy", "0.2500", "0.1000 to 0.4000")
    return table


def test_json_mode_puts_one_document_and_nothing_else_on_stdout(capsys):
    console.configure(json=True)
    console.say("no")
    console.table(["no"], [[1]])
    console.show(Tree("no"))
    console.note("a note")
    with console.progress(2, "step") as display:
        display.update(1)
    console.document({"f1": float("nan"), "n": np.int64(3), "text": "ü\ud800", "list": (1, 2)})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"f1": None, "n": 3, "text": "ü\ud800", "list": [1, 2]}
    assert out.isascii()
    assert "a note" in err
    assert "step 1/2" in err
    console.configure()
    console.document({"a": 1})
    assert capsys.readouterr().out == ""


def test_silent_keeps_warnings(capsys):
    with console.silent():
        console.say("no")
        console.note("no")
        with console.progress(2, "step") as display:
            display.update(1)
        console.warn("yes")
    assert capsys.readouterr() == ("", "warning: yes\n")


def test_plain_progress_is_one_line_per_update(capsys):
    with console.progress(2000, "step") as display:
        display.update(0, loss=2.5)
        display.update(
            1100, left=62, loss=1.23456, lr=3e-4, rate=12345.0, peak=0.3456, note="warm", nothing=None
        )
    with console.progress(None, "row") as display:
        display.update(5_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 0/2,000  loss 2.5000",
        "step 1,100/2,000  loss 1.2346  lr 3.0e-04  12.3k/s  34.6% of peak  note warm  1m02s left",
        "row 5,000,000",
    ]


def test_time_left_is_told_from_what_is_done(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    display = console.progress(100, "text")
    assert display._left(0) is None
    now[0] += 10
    assert display._left(10) == pytest.approx(90)
    assert display._left(100) is None


SCRIPT = """
import sys
from llmtool.core import console
console.configure()
console.warn("careful [red]")
with console.progress(100, "step") as display:
    for step in range(1, 101):
        display.update(step, loss=1 / step, word="[bold]x")
    console.note("in between")
    print("from a library", file=sys.stderr)
    console.say("a result meanwhile")
console.say("done")
"""


def run(script, **options):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, **options)


def test_on_a_terminal_there_is_a_live_bar(monkeypatch):
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=side, env=environment
    )
    os.close(side)
    seen = b""
    while True:
        try:
            assert select.select([main], [], [], 30)[0], "the child hangs"
            block = os.read(main, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not block:
            break
        seen += block
    os.close(main)
    out, _ = child.communicate(timeout=60)
    text = seen.decode()
    assert child.returncode == 0
    assert out == b"a result meanwhile\ndone\n"
    assert "\x1b[" in text
    assert "━" in text
    assert "step 100/100" in text
    assert "word [bold]x" in text
    assert "careful [red]" in text
    assert "in between" in text
    assert "from a library" in text


def test_in_a_ci_log_there_is_none_even_with_forced_colours():
    done = run(SCRIPT, env={**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"})
    assert done.returncode == 0
    assert b"\x1b" not in done.stderr
    assert done.stderr.count(b"\n") == 103


def test_any_encoding_of_the_terminal_will_do():
    script = "from llmtool.core import console\nconsole.say('Gr\\u00fc\\u00dfe \\ud800')\n"
    script += "console.table(['\\u00fc'], [['\\u4e2d']])\nconsole.warn('\\u4e2d')"
    done = run(script, env={**os.environ, "PYTHONIOENCODING": "ascii:strict"})
    assert done.returncode == 0, done.stderr
    assert b"Gr\\xfc\\xdfe \\ud800" in done.stdout
    assert b"\\u4e2d" in done.stdout
    assert b"warning: \\u4e2d" in done.stderr


def test_a_reader_that_went_away_stops_nothing():
    script = (
        "import sys\nfrom llmtool.core import console\n"
        "for i in range(20000): console.say('x' * 100); console.note('y' * 100)\n"
        "open(sys.argv[1], 'w').write('finished')\n"
    )
    for stream in ("stdout", "stderr"):
        reader, writer = os.pipe()
        other = {"stdout": "stderr", "stderr": "stdout"}[stream]
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                script.replace("20000", "2000"),
                "/dev/stderr" if stream == "stdout" else "/dev/stdout",
            ],
            **{stream: writer, other: subprocess.PIPE},
        )
        os.close(writer)
        os.close(reader)
        out, err = child.communicate(timeout=60)
        said = (err if stream == "stdout" else out).decode()
        assert child.returncode == 0, said
        assert "finished" in said
        assert "Exception ignored" not in said
        assert "Traceback" not in said


def test_a_result_that_cannot_be_written_is_told_of_and_ends_nothing():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        child = subprocess.run(
            [
                sys.executable,
                "-c",
                "from llmtool.core import console, streams\n"
                "for _ in range(2000): console.say('x' * 100)\n"
                "console.note(f'the work goes on: {streams.lost()}')",
            ],
            stdout=full,
            stderr=-1,
            timeout=60,
        )
    reason = "standard output cannot be written: No space left on device"
    assert (child.returncode, child.stderr.decode()) == (0, f"the work goes on: {reason}\n")


def test_cleaned_text_keeps_lines_unless_told_otherwise():
    assert console.clean("a\nb\tc\x07") == "a\nb\tc\\x07"
    assert console.clean("a\nb\tc\x07", lines=False) == "a\\nb\\tc\\x07"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (999, "999"), (1000, "1.00k"), (1234, "1.23k"), (12_345_678, "12.3M"), (999_499, "999k"),
        (999_999, "1.00M"), (7e9, "7.00B"), (1.5e12, "1.50T"), (2e15, "2,000T"), (-12_345, "-12.3k"),
        (12.34, "12.3"), (0.5, "0.50"), (99.96, "100"), (9.999, "10.0"),
    ],
)  # fmt: skip
def test_counts(value, text):
    assert console.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0ms"), (0.00035, "0.35ms"), (0.0094, "9.4ms"), (0.00996, "10ms"),
        (0.0123, "12ms"), (0.9994, "999ms"), (0.9996, "1.0s"), (5.2, "5.2s"), (59.94, "59.9s"),
        (59.96, "1m00s"), (62, "1m02s"), (3599.4, "59m59s"), (3599.6, "1h00m"), (3723, "1h02m"),
        (7199, "2h00m"), (86399, "1d00h"), (90_000, "1d01h"), (273_600, "3d04h"),
    ],
)  # fmt: skip
def test_durations(value, text):
    assert console.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1.4e9, "1.4 GB"), (99.96e6, "100 MB"),
        (999_600, "1.0 MB"), (141e9, "141 GB"), (5e18, "5,000 PB"),
    ],
)  # fmt: skip
def test_bytes(value, text):
    assert console.bytes_(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1234567, "1,234,567"), (0.0, "0"), (0.85316, "0.8532"), (1.0, "1.0000"),
        (12.345678, "12.35"), (1234.5678, "1,235"), (0.001234, "0.0012"), (1.234e-5, "1.23e-05"),
        (-0.5, "-0.5000"),
        (float("nan"), "nan"), (float("-inf"), "-inf"), (1.23456e12, "1.235e+12"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert console.number(value) == text
