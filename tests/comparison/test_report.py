"""The report's page, opened in a browser, and the charts in it."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import std_cli
from std_cli.comparison import report
from std_cli.comparison.cells import Variant
from std_cli.comparison.charts import _places, _scale, line_charts, scatters
from std_cli.comparison.measures import MEASURES
from std_cli.comparison.report import _failures, _marker, _verdicts, _where
from std_cli.comparison.statistics import Estimate, Interval
from std_cli.comparison.table import Entry, Row, Table, Verdict
from std_cli.comparison.thumbnails import MOST_BYTES, SIDE, thumbnail
from tests.browser import CHROMIUM, Page
from tests.comparison.pictures import FAST, draw, peer

LONG = f"Ünïcödé 日本 with spaces and more words than anyone needs {'w' * 40}"
HOSTILE = "<img src=x onerror=alert(1)>'\"&"
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the folder, the table) of a comparison whose names are markup."""
    folder = draw(tmp_path_factory.mktemp("report"))
    (folder / "photos" / "coffee.png").rename(folder / "photos" / f"{HOSTILE}.png")
    (folder / "photos" / "astronaut.png").rename(folder / "photos" / f"{LONG}.png")
    peer(folder / "other", folder)
    table = std_cli.compare(
        folder / "photos", folder / "styles", folder / "r", methods=["std"],
        contenders={HOSTILE: {"style_scale": 0.5}}, vary={"cfg": [1, 4]}, seeds=2,
        against={"peer": folder / "other"}, prompt="</pre><script>alert(2)</script>", **FAST,
    )  # fmt: skip
    return folder / "r", table


@in_a_browser
def test_the_page(made, tmp_path):
    folder, table = made
    with Page(folder / "report.html", tmp_path) as page:
        assert page.run("document.scripts.length") == 1
        every = "[...document.querySelectorAll('#table %s')].map(%s)"
        names = page.run(every % ("tbody th", "h => h.textContent"))
        assert names == ["std", "std", HOSTILE, HOSTILE, "peer"]
        assert "<script>alert(2)" in page.run("document.querySelectorAll('pre')[1].textContent")

        # sorted by figures, both ways, and what has none comes last
        heads = page.run(every % ("thead button", "b => b.textContent"))
        column = next(i for i, head in enumerate(heads) if head.startswith("evaluations"))
        button = f"document.querySelectorAll('#table th button')[{column}]"
        shown = every % ("tbody tr", f"r => r.cells[{column}].textContent")
        page.run(f"{button}.click()")
        assert page.run(shown) == ["1", "1", "2", "2", "–"]
        page.run(f"{button}.click()")
        assert page.run(shown) == ["2", "2", "1", "1", "–"]
        assert page.run(f"{button}.parentElement.ariaSort") == "descending"

        # one group at a time, by what is chosen
        visible = "[...document.querySelectorAll('.group:not([hidden])')].map(g => g.dataset.group)"
        assert page.run(visible) == ["0 0 0"]
        page.run("(s => { s.value = '1'; s.onchange(); })(document.querySelectorAll('select')[1])")
        assert page.run(visible) == ["0 1 0"]
        assert page.run("document.querySelectorAll('.group').length") == 8
        assert page.run("document.querySelectorAll('.group:not([hidden]) .pair').length") == 5
        assert page.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")

        # the line: by the keyboard, for all pictures of the group; and in the zoom
        slider = "document.querySelector('.group:not([hidden]) .pair input')"
        page.run(f"{slider}.focus()")
        for _ in range(3):
            for kind in ("keyDown", "keyUp"):
                page._send("Input.dispatchKeyEvent", type=kind, key="ArrowRight",
                           code="ArrowRight", windowsVirtualKeyCode=39)  # fmt: skip
        assert page.run("document.querySelector('#grid').style.getPropertyValue('--at')") == "3%"
        assert page.run(f"getComputedStyle({slider}.closest('.pair').querySelector('.source'))"
                        ".clipPath") == "inset(0px 97% 0px 0px)"  # fmt: skip
        page.run("document.querySelector('.group:not([hidden]) .zoom').click()")
        assert page.run("document.querySelector('dialog').open")
        about = page.run("document.querySelector('#zoomed-text').textContent")
        assert re.match(r"cfg 1: colour [\d.]+, texture", about), about
        width = page.run("document.querySelector('#zoomed .pair').getBoundingClientRect().width")
        assert width > 400 and page.run("document.activeElement.id") == "close"
        page.run("document.querySelector('#close').click()")
        assert not page.run("document.querySelector('dialog').open")

        # links lead to the files next to the page; nothing is asked for
        links = page.run("[...document.querySelectorAll('figcaption a')].map(a => a.href)")
        assert len(links) == 2 * 2 * (2 * 4 + 2)
        assert page.problems == []
        assert page.requests == [(folder / "report.html").as_uri()]
        for width in (320, 360, 900):
            page._send("Emulation.setDeviceMetricsOverride", width=width, height=800,
                       deviceScaleFactor=1, mobile=False)  # fmt: skip
            assert page.run("document.documentElement.scrollWidth") <= width + 1  # it is rounded up
            outside = page.run(
                "[...document.querySelectorAll('h3, p, figure, select, .facts, .legend > span')]"
                ".filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML)"
            )
            assert outside == []
        page._send("Emulation.setDeviceMetricsOverride", width=1200, height=800,
                   deviceScaleFactor=1, mobile=False)  # fmt: skip
        [room, needed] = page.run(
            "(t => [t.parentElement.clientWidth, t.scrollWidth])(document.querySelector('#table'))"
        )
        assert len(table.measures) == 3 and needed <= room


@in_a_browser
def test_the_keyboard_is_enough(made, tmp_path):
    folder, _ = made
    with Page(folder / "report.html", tmp_path) as page:

        def press(key, code, **more):
            for kind in ("keyDown", "keyUp"):
                page._send("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                           windowsVirtualKeyCode=code, **more)  # fmt: skip

        at = "(e => e.className || e.id || e.tagName + ' ' + e.textContent)(document.activeElement)"
        reached = []
        for _ in range(60):
            press("Tab", 9)
            reached.append(page.run(at))
            if reached[-1] == "BUTTON edges ▲":
                press("Enter", 13, text="\r")
                assert page.run("document.activeElement.parentElement.ariaSort") == "ascending"
            if reached[-1] == "zoom":
                break
        assert reached[0] == "wide" and reached.count("BUTTON compared") == 1
        assert sum(name.startswith("SELECT") for name in reached) == 3
        press("Enter", 13, text="\r")
        assert page.run("document.querySelector('dialog').open")
        press("Escape", 27)
        assert not page.run("document.querySelector('dialog').open") and page.run(at) == "zoom"


def test_the_method_none_is_not_taken_for_nothing(made):
    """ "none" is the name of a method, and may be what is best."""
    _, table = made
    verdicts = [Verdict("edges", {"cfg": cfg}, best) for cfg, best in (("1", "none"), ("4", None))]
    [(measure, lines)] = _verdicts(replace(table, verdicts=verdicts))
    assert (measure, lines) == (
        "edges",
        [
            "best is \u201cnone\u201d at cfg 1",
            "nothing is better than all others by more than the noise at cfg 4",
        ],
    )


def test_what_is_best_everywhere_is_said_once():
    assert _where([""], True) == ""
    assert _where(["cfg 1"], True) == " at cfg 1"
    assert _where(["cfg 1", "cfg 2"], True) == " at each of the 2 combinations of what varies"
    assert _where(["cfg 1", "cfg 2"], False) == " at cfg 1; cfg 2"


def test_what_failed_is_one_line_for_each_reason(made):
    _, table = made
    cells = [replace(cell) for cell in table.cells]
    for cell in (*cells[:3], cells[-1]):
        cell.failure = "out of memory <b>"
    failed = replace(table, cells=cells)
    label = cells[0].variant.label
    which = ", ".join(f"{cell.sample} seed {cell.seed}" for cell in cells[:3])
    assert _failures(failed) == [
        (label, "out of memory <b>", which), ("peer", "out of memory <b>", cells[-1].sample),
    ]  # fmt: skip
    text = "".join(report.page(failed))
    assert "failed: out of memory &lt;b&gt;" in text and "<b>and" not in text
    assert text.count('<figcaption class="bad">') == 3 + 2  # another tool's is there for each seed


def test_markers_differ_where_colours_are_the_same():
    assert len({(number % 8, _marker(number)) for number in range(32)}) == 32


@in_a_browser
def test_the_pictures_are_the_results(made, tmp_path):
    folder, table = made
    text = (folder / "report.html").read_text()
    assert len(re.findall(r'<img alt="[^"]*" src="data:image/jpeg', text)) == 8 * 4 + 8
    cell = table.cells[0]
    with Image.open(cell.path) as result, Image.open(cell.thumbnail) as small:
        assert np.abs(np.asarray(result, int) - np.asarray(small, int)).mean() < 8


def test_a_small_copy_has_its_limits():
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    data = thumbnail(Image.fromarray(noise))
    assert len(data) <= MOST_BYTES
    assert max(Image.open(io.BytesIO(data)).size) <= SIDE


def test_the_lines_go_through_the_means(made):
    _, table = made
    charts = line_charts(table)
    assert [chart.title for chart in charts] == [f"{name} over cfg" for name in table.measures]
    edges = next(chart for chart in charts if chart.title.startswith("edges"))
    assert [(s.name, len(s.points), s.constant) for s in edges.series] == [
        ("std", 2, False), (HOSTILE, 2, False), ("peer", 2, True),
    ]  # fmt: skip
    low, high = edges.y_ticks[0], edges.y_ticks[-1]
    share = (float(high.text) - float(low.text)) / (high.at - low.at)
    for row, point in zip(table.rows[:2], edges.series[0].points, strict=True):
        found = row.entries["edges"].estimate
        assert float(low.text) + (point.y - low.at) * share == pytest.approx(found.mean, abs=1e-3)
        half = (point.bottom - point.top) / 2 * abs(share)
        assert half == pytest.approx(found.over_samples.half, abs=1e-3)


def test_right_and_up_are_better_in_the_scatter(made):
    _, table = made
    chart = next(c for c in scatters(table) if c.title.startswith("colour against edges"))
    figures = {
        row.variant.label: tuple(row.entries[n].estimate.mean for n in ("edges", "colour"))
        for row in table.rows
    }
    points = {p.text.split(":")[0]: p for s in chart.series for p in s.points}
    most = max(figures, key=lambda label: figures[label][0])
    nearest = min(figures, key=lambda label: figures[label][1])
    assert points[most].x == max(point.x for point in points.values())
    assert points[nearest].y == min(point.y for point in points.values())


def test_lines_of_the_scatter_join_what_differs_in_one_setting():
    """Of two settings that vary a line runs along the one with more values, here the steps."""
    figures = {"edges": entry(0.5), "colour": entry(9.0)}
    rows = [
        Row(Variant("std", {"steps": steps, "cfg": cfg}, {}), 1, 0, figures, {}, False)
        for steps in "248"
        for cfg in "13"
    ]
    [chart] = scatters(Table({n: MEASURES[n]() for n in figures}, "std", rows, [], [], []))
    joined = [[point.text.split(":")[0] for point in run] for run in chart.series[0].runs]
    assert joined == [[f"std, steps {s}, cfg {c}" for s in "248"] for c in "13"]
    assert [line.count(",") for line in chart.series[0].lines] == [3, 3]


def entry(mean):
    return Entry(Estimate(Interval(mean, 0.1, 4), Interval(mean, None, 1)), None)


def test_ticks_are_round_and_words_are_side_by_side():
    scale = _scale([Interval(0.412, 0.05, 4), Interval(0.6, None, 4)], 300, 0)
    assert [tick.text for tick in scale.marks()] == ["0.35", "0.40", "0.45", "0.50", "0.55", "0.60"]
    assert scale(0.35) == pytest.approx(300) and scale(0.6) == pytest.approx(0)
    tiny = _scale([Interval(0.000178, None, 1), Interval(0.0000278, None, 1)], 300, 0)
    assert [tick.text for tick in tiny.marks()] == ["0.0", "0.5", "1.0", "1.5", "2.0"]
    assert tiny.unit == ", times 1e-4" and scale.unit == ""
    for same in (0.0, 0.5, 33.6):  # a single value is in the middle
        around = _scale([Interval(same, None, 1)], 300, 0)
        assert around(same) == pytest.approx(150, abs=40)
        assert max(len(tick.text) for tick in around.marks()) <= 6
    wide = _scale([Interval(0.5, 4.0, 2)], 300, 0, (-1.0, 1.0))  # of two samples
    assert (wide.low, wide.high) == (-1, 1) and wide.ends(Interval(0.5, 4.0, 2)) == (0, 300)
    assert wide.ends(Interval(0.5, 0.25, 2)) == (wide(0.75), wide(0.25))
    beyond = _scale([Interval(1.4, 4.0, 2)], 300, 0, (-1.0, 1.0))
    assert beyond.low == -1 and 1.4 <= beyond.high < 2
    assert _places(["2", "8"]) == {"2": 2, "8": 8} and _places(["a", "b"]) == {"a": 0, "b": 1}
