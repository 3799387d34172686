"""What pages are made of: the style, escaped text, sections, tables and cards."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from llmtool.core import console

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#1d1f23;--soft:#676b73;--rule:#e3e1dc;
--accent:#1f6f8b;--second:#c8772e;--third:#6a8f3c;--fourth:#8a5a9e;--fifth:#b23a48;--good:#2e7d4f;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--paper:#15171a;--card:#1d2024;--ink:#e7e6e3;--soft:#9aa0a8;--rule:#33373d;
--accent:#5fb3cf;--second:#e5a05f;--third:#a3c677;--fourth:#c39ad6;--fifth:#e77a85;--good:#6fc38f;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.5rem 1rem 4rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:.2rem 0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
h3{font-size:1rem;margin:1.2rem 0 .4rem}p{margin:.4rem 0}
.soft,figcaption{color:var(--soft)}.soft{font-size:.9rem}.above{margin:1rem 0 0}
.cards{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));margin:1rem 0}
.card{background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:.8rem 1rem}
.card b{display:block;font-size:1.6rem;font-weight:600;font-variant-numeric:tabular-nums;line-height:1.3}
.met{color:var(--good)}.unmet{color:var(--bad);font-weight:600}
.wide{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}
td.text,th.text{text-align:left;white-space:normal;min-width:12rem}
thead th{color:var(--soft);font-weight:500}tr.strong td{font-weight:600}
figure{margin:.8rem 0;background:var(--card);border:1px solid var(--rule);border-radius:.6rem;
padding:.6rem .8rem}
figure.small{max-width:22rem}figure.medium{max-width:36rem}figcaption{font-size:.88rem;margin-bottom:.3rem}
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif;fill:var(--soft)}
svg .grid{stroke:var(--rule)}svg .even{stroke:var(--soft);stroke-dasharray:4 4}
svg .whisker{stroke-width:3;stroke-linecap:round;opacity:.55}
.key{margin-left:.8rem;display:inline-block}
.key i{display:inline-block;width:.8em;height:.25em;margin-right:.3em;vertical-align:middle}
.two{display:grid;gap:0 .8rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr))}
pre{background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:.8rem 1rem;
overflow-x:auto;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap}
.marked{line-height:2}.marked span{padding:.1rem .05rem;border-radius:.2rem;white-space:pre-wrap}
.seen{display:flex;gap:.8rem;flex-wrap:wrap}.seen img{width:12rem;
image-rendering:pixelated;border-radius:.3rem}
details{margin:.5rem 0}summary{cursor:pointer;color:var(--soft)}ul{padding-left:1.2rem;margin:.4rem 0}
@media print{body{background:#fff}.wide{overflow:visible}}
"""
WORDY = ("what it is", "value")


def document(title: str, head: str, body: str) -> str:
    """A page of its own."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{text(title)} - llmtool</title><style>{STYLE}</style></head>"
        f"<body><main>{head}{body}</main></body></html>\n"
    )


def text(value: Any) -> str:
    """Any value as text of the page: escaped, control characters written out."""
    return escape(console.clean(str(value), lines=False))


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it; nothing where there is nothing."""
    inside = "".join(parts)
    return f"<section><h2>{title}</h2>{inside}</section>" if inside else ""


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    strong: Sequence[int] = (),
    words: Sequence[int] = (),
) -> str:
    """A table that scrolls by itself on a narrow screen. Cells are HTML already.

    strong: numbers of rows. words: numbers of columns that hold text, which wraps.
    """
    if not rows:
        return ""
    wordy = {at for at in range(1, len(columns)) if columns[at] in WORDY or at in words}
    of = lambda at: " class='text'" if at in wordy else ""  # noqa: E731
    head = "".join(f"<th scope='col'{of(at)}>{name}</th>" for at, name in enumerate(columns))
    lines = ""
    for number_, row in enumerate(rows):
        cells = "".join(f"<td{of(at)}>{cell}</td>" for at, cell in enumerate(row))
        lines += f"<tr{' class=strong' * (number_ in strong)}>{cells}</tr>"
    title = f"<p class='soft above'>{caption}</p>" if caption else ""
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f"{title}<div class='wide'><table>{head}<tbody>{lines}</tbody></table></div>"


def card(name: str, value: str, below: str) -> str:
    """A figure in large, with its name above and a remark below."""
    small = "<span class='soft'>{}</span>"
    inside = f"{small.format(text(name))}<b>{text(value)}</b>{small.format(text(below))}"
    return f"<div class='card'>{inside}</div>"


def bullets(lines: Sequence[str]) -> str:
    """A list of `<li>`; nothing for none."""
    return f"<ul>{''.join(lines)}</ul>" if lines else ""
