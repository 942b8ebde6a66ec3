"""`python -m tests.bench.chart BENCH.JSON SVG`: a run's figures as bars, a panel for all that are to be compared.

Owns how it looks, on light and on dark pages. A panel has the figures that name it; one with a single bar says nothing,
and is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tests.bench.report import number

WIDTH, LEFT, RIGHT = 860, 250, 190
BAR, GAP, TITLE, BETWEEN, MARGIN = 16, 6, 26, 14, 20
STYLE = """
  svg { color-scheme: light dark; }
  .page { fill: #ffffff; stroke: #d0d7de; } text { fill: #1f2328; font: 13px system-ui, sans-serif; }
  .title { font-weight: 600; } .small { fill: #59636e; font-size: 12px; }
  .theirs { fill: #afb8c1; } .ours { fill: #0969da; } .range { stroke: #59636e; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #3d444d; } text { fill: #f0f6fc; } .small { fill: #9198a1; }
    .theirs { fill: #6e7681; } .ours { fill: #4493f8; } .range { stroke: #d1d7e0; }
  }
"""


def drawn(results: Mapping[str, Any]) -> str:
    """The whole SVG of a bench.json; a line that says so where there is nothing to draw."""
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for figure in results["figures"]:
        if figure["panel"]:
            panels.setdefault(figure["panel"], []).append(figure)
    body: list[str] = []
    y = MARGIN
    for title, figures in panels.items():
        if len(figures) > 1:
            body += _panel(title, figures, y)
            y += TITLE + len(figures) * (BAR + GAP) + BETWEEN
    machine = results["machine"]
    note = f"Medians; lines from lowest to highest. {machine['cpus']} cores for everything, Python {machine['python']}."
    body.append(_text(MARGIN, y + 6, note if body else "nothing to compare in this run", "small"))
    height = y + MARGIN + 4
    frame = f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">'
    described = f"<title>{escape('; '.join(panels) or 'nothing')}</title>"
    return "\n".join([head, described, f"<style>{STYLE}</style>", frame, *body, "</svg>"]) + "\n"


def _panel(title: str, figures: Sequence[Mapping[str, Any]], top: int) -> list[str]:
    most = max(max(each["runs"]) for each in figures) or 1
    scale = (WIDTH - LEFT - RIGHT) / most
    better = "more is better" if figures[0]["more_is_better"] else "less is better"
    found = [_text(MARGIN, top + 12, title, "title"), _text(WIDTH - MARGIN, top + 12, better, "small", "end")]
    for place, each in enumerate(figures):
        y = top + TITLE + place * (BAR + GAP)
        middle = y + BAR / 2
        low, high, end = (LEFT + value * scale for value in (min(each["runs"]), max(each["runs"]), each["median"]))
        kind = "ours" if each["ours"] else "theirs"
        label = each["name"].removeprefix(title).lstrip(", ")
        said = f"{number(each['median'])} {each['unit']}"
        if each["ratio"] is not None:
            said += f"  ({number(each['ratio'])} x {each['of']})"
        found += [
            _text(LEFT - 10, middle + 4, label, anchor="end"),
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{max(end - LEFT, 1):.1f}" height="{BAR}" rx="2"/>',
            f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
            _text(max(high, end) + 8, middle + 4, said),
        ]
    return found


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    own = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{own}>{escape(words)}</text>'


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(drawn(json.loads(Path(sys.argv[1]).read_text())))
