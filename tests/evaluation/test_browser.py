"""report.html in a browser: on a phone and on a desk, in light and dark, alone."""

from __future__ import annotations

import html as entities
import json
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from llmtool.evaluation import html
from llmtool.stages.report import collect
from tests.evaluation.test_html import everything, rows, run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars
--disable-background-networking --disable-component-update --disable-sync --virtual-time-budget=5000"""
PAPER = {"light": (251, 250, 248), "dark": (21, 23, 26)}
WIDTHS = (360, 1100)
# Test-only copies of the pages measure themselves, in frames as wide as a phone and a desk, and tell the page
# around them. Cut: labels of a chart that stand beyond its edge.
PROBE = """<script>addEventListener('load',()=>{const e=document.documentElement;
const cut=[...document.querySelectorAll('svg text')].filter(t=>{const b=t.getBBox(),
v=t.ownerSVGElement.viewBox.baseVal;return b.x<-1||b.x+b.width>v.width+1||b.y+b.height>v.height+1});
parent.postMessage({place:location.pathname.split('/').pop()+' '+innerWidth,wide:e.scrollWidth,
height:e.scrollHeight,dark:matchMedia('(prefers-color-scheme: dark)').matches,
paper:getComputedStyle(document.body).backgroundColor,ink:getComputedStyle(document.body).color,
titles:[...document.querySelectorAll('h2')].map(h=>h.textContent),
charts:document.querySelectorAll('svg').length,cut:cut.map(t=>t.textContent),
fetched:performance.getEntriesByType('resource').length},'*')})</script>"""
AROUND = """<!doctype html><title>nothing</title><script>const found={};onmessage=m=>{
found[m.data.place]=m.data;document.title=JSON.stringify(found)}</script>"""
FRAME = "<iframe style='width:{}px;height:640px;border:0' src='{}'></iframe>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to open report.html in")


@pytest.fixture(scope="module")
def pages(finished: Path) -> dict[str, str]:
    """A page of every kind: with everything, of a table, of a text, of a training alone, side by side."""
    table, text = (collect(finished / f"runs/{name}") for name in ("table", "text"))
    for one, name in (
        (table, "runs/table"),
        (text, "runs/a-run-whose-name-is-longer-than-charts-have-room-for"),
    ):
        one["root"] = name
    return {
        "everything.html": html.page({**everything(), "metrics": {"train": rows(100_000)}}),
        "table.html": html.page(table),
        "text.html": html.page(text),
        "bare.html": html.page(run(metrics={"train": rows(1)[:1]})),
        "both.html": html.side_by_side([table, text, everything()], ["runs/a beside runs/b: better"]),
    }


def browser(tmp_path: Path, theme: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the browser in a new profile; no name can be looked up."""
    scheme = f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}"
    own = [scheme, f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = [str(CHROMIUM), *FLAGS.split(), *own, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def measured(tmp_path: Path, theme: str, pages: dict[str, str]) -> dict[str, Any]:
    """What each page says of itself in each width; the pages may run the probe, and nothing else."""
    policy = "default-src 'none'; script-src 'unsafe-inline'"
    for name, page in pages.items():
        assert page.count("default-src 'none'") == 1
        probed = page.replace("</head>", PROBE + "</head>").replace("default-src 'none'", policy)
        (tmp_path / name).write_text(probed)
    frames = [FRAME.format(width, name) for name in pages for width in WIDTHS]
    (tmp_path / "around.html").write_text(AROUND + "".join(frames))
    done = browser(tmp_path, theme, "--dump-dom", f"file://{tmp_path / 'around.html'}")
    assert "Refused" not in done.stderr
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    found: dict[str, Any] = json.loads(entities.unescape(title[1]))
    return found


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_fits_its_window_and_follows_the_theme(
    tmp_path: Path, pages: dict[str, str], theme: str
) -> None:
    found = measured(tmp_path, theme, pages)
    assert set(found) == {f"{name} {width}" for name in pages for width in WIDTHS}
    for place, one in found.items():
        assert one["wide"] <= int(place.split()[1]), (place, one)
        assert one["cut"] == [], place
        assert one["fetched"] == 0, place
        assert one["dark"] is (theme == "dark")
        assert one["paper"] == f"rgb{PAPER[theme]}"
        assert one["ink"] != one["paper"]
    whole = found["everything.html 360"]
    assert whole["height"] > 3000
    assert whole["charts"] == 6
    assert {"Figures", "Training", "Calibration", "Lineage"} <= set(whole["titles"])
    assert "Slices" in found["table.html 1100"]["titles"]
    assert "What it writes" in found["text.html 360"]["titles"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_is_painted(tmp_path: Path, pages: dict[str, str], theme: str) -> None:
    """The page as it is, without a probe: painted on its paper, with more than paper on it."""
    (tmp_path / "page.html").write_text(pages["table.html"])
    picture = tmp_path / "page.png"
    where = f"file://{tmp_path / 'page.html'}"
    browser(tmp_path, theme, f"--screenshot={picture}", "--window-size=500,900", where)
    width, height, pixels, corner = png(picture.read_bytes())
    assert (width, height) == (500, 900)
    assert corner == PAPER[theme]
    assert len(set(pixels)) > 100  # text, lines and fills: a blank page has next to nothing


def png(data: bytes) -> tuple[int, int, bytes, tuple[int, ...]]:
    """Width, height, filtered lines, and the first pixel, which no filter changes."""
    parts, at = b"", 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IDAT":
            parts += data[at + 8 : at + 8 + length]
        at += length + 12
    width, height = struct.unpack(">II", data[16:24])
    lines = zlib.decompress(parts)
    return width, height, lines, tuple(lines[1:4])
