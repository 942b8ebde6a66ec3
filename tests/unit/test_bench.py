"""What the benchmarks make of figures: the table, the chart, and what becomes of a part that fails."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench import aegra, chart
from tests.bench.figures import Figure, LeftOut
from tests.bench.report import Part, measured, number, results, table

SVG = "{http://www.w3.org/2000/svg}"
PANEL = "jobs a second, 8 in flight"
THEIRS = Figure(f"{PANEL}, bare & <plain>", [150.0, 140.0, 160.0], unit="/s", cpu_ms=6.1, panel=PANEL)
OURS = Figure(
    f"{PANEL}, the service", [290.0, 280.0, 300.0], "at least 1.4 x", True, "/s", True, 1.93, "bare", 3.5, PANEL, True
)


def test_the_table_has_median_range_ratio_cpu_and_goal_of_each_figure() -> None:
    lines = table([Part("throughput", 12.4, [THEIRS, OURS])]).splitlines()
    assert lines[1] == "throughput, 12 s"
    words = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert words[0] == ["median", "min - max", "ratio", "CPU a job", "goal"]
    assert words[2][1:] == ["150.0 /s", "140.0 - 160.0", "6.10 ms"]
    assert words[3][1:] == ["290.0 /s", "280.0 - 300.0", "1.93 x bare", "3.50 ms", "reached: at least 1.4 x"]


def test_a_part_that_fails_or_is_left_out_leaves_the_others_their_figures(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(quick: bool) -> list[Figure]:
        raise RuntimeError("no such thing\nand more")

    def left_out(quick: bool) -> list[Figure]:
        raise LeftOut("no engine answers")

    parts = [
        measured("bad", fails, quick=True),
        measured("absent", left_out, quick=True),
        measured("good", lambda quick: [OURS], quick=True),
    ]
    assert "no such thing" in capsys.readouterr().err
    lines = table(parts).splitlines()
    assert lines[1:5] == [
        "bad, 0 s",
        "  FAILED: RuntimeError: no such thing",
        "absent, 0 s",
        "  left out: no engine answers",
    ]
    assert OURS.name in lines[6]
    found = results(parts, quick=True)
    assert [each["name"] for each in found["figures"]] == [OURS.name]
    assert found["parts"]["bad"]["failed"] == "RuntimeError: no such thing"
    assert found["parts"]["absent"]["left_out"] == "no engine answers"


def test_the_chart_has_a_bar_for_each_figure_of_a_panel_on_one_scale() -> None:
    lonely = Figure("something else, ours", [1.0], panel="something else")
    svg = ElementTree.fromstring(chart.drawn(results([Part("throughput", 1, [THEIRS, OURS, lonely])], quick=True)))
    bars = [each for each in svg.iter(f"{SVG}rect") if each.get("class") != "page"]
    assert [each.get("class") for each in bars] == ["theirs", "ours"]
    theirs, ours = (float(each.attrib["width"]) for each in bars)
    assert ours / theirs == pytest.approx(290 / 150, rel=0.01)
    words = [each.text for each in svg.iter(f"{SVG}text")]
    assert words[:2] == [PANEL, "less is better"]
    assert {"bare & <plain>", "the service", "290.0 /s  (1.93 x bare)"} <= set(words)
    assert "prefers-color-scheme: dark" in (next(svg.iter(f"{SVG}style")).text or "")


def test_a_run_with_nothing_to_compare_still_has_a_chart() -> None:
    assert "nothing to compare" in chart.drawn(results([Part("graph", 1, [Figure("built", [1.0])])], quick=True))


@pytest.mark.parametrize(("value", "shown"), [(1234.5, "1234"), (286.04, "286.0"), (0.0123, "0.0123"), (9.876, "9.88")])
def test_numbers_are_shown_with_what_says_something(value: float, shown: str) -> None:
    assert number(value) == shown


def test_aegra_is_left_out_where_no_environment_can_be_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LeftOut, match="there is no uv"):
        aegra.installed()
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\nprintf 'error: no\n  network' >&2\nexit 2\n")
    uv.chmod(0o755)
    monkeypatch.setattr(aegra, "PLACE", tmp_path / "place")
    monkeypatch.setattr(aegra, "OLDEST", (3, 11))
    with pytest.raises(LeftOut, match=r"^Aegra cannot be installed: error: no network$"):
        aegra.installed()
    monkeypatch.setattr(aegra, "OLDEST", (9, 0))
    with pytest.raises(LeftOut, match="none on the PATH"):
        aegra.installed()
