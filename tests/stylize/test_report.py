"""The page of --report, opened in a browser."""

import base64
import html
import io
import re

import numpy as np
import pytest
from PIL import Image

from std_cli import InputError, StdError, stylize_image, stylize_video
from std_cli.config import ImageSettings
from std_cli.stylize.pictures import PictureJob
from std_cli.stylize.report import _thinned, reporting
from tests.browser import CHROMIUM, Page
from tests.stylize.test_videos import make_clip

FAST = {"model": "tiny", "steps": 1, "size": 64}
HOSTILE = "<img src=x onerror=alert(1)>'\"&.png"
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def pictures_in(page):
    """The pictures of a page by kind, in order."""
    found = re.findall(r'<img class="(\w+)" alt="[^"]*" src="data:image/jpeg;base64,([^"]+)"', page)
    return [(kind, Image.open(io.BytesIO(base64.b64decode(data)))) for kind, data in found]


def near(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() < 12


@in_a_browser
def test_a_page_of_pictures(tmp_path, photo, reference):
    """Names that are markup are text; the line moves; nothing is asked for."""
    Image.new("RGB", (64, 64), (250, 0, 0)).save(tmp_path / HOSTILE)
    stylize_image(
        tmp_path / HOSTILE,
        reference,
        tmp_path / "out.png",
        report=tmp_path / "r.html",
        prompt="</table><script>alert(2)</script>",
        **FAST,
    )
    with Image.open(tmp_path / "out.png") as out:
        result = np.asarray(out.convert("RGB"))
    with Page(tmp_path / "r.html", tmp_path) as page:
        assert page.run("document.scripts.length") == 1
        assert page.run("document.querySelectorAll('img').length") == 2
        assert page.run("[...document.images].every(i => i.complete && i.naturalWidth == 64)")
        assert HOSTILE in page.run("document.querySelector('h2').textContent")
        assert "<script>alert(2)" in page.run("document.querySelector('table').textContent")
        box = page.run("(({x, y}) => [x, y])(document.querySelector('.compare img')"
                       ".getBoundingClientRect())")  # fmt: skip
        x, y = map(round, box)

        def shown():
            return np.asarray(page.picture())[y : y + 64, x : x + 64]

        half = shown()
        assert near(half[:, :28], np.full((64, 28, 3), (250, 0, 0)))
        assert near(half[:, 36:], result[:, 36:]) and not near(
            result, np.full_like(result, (250, 0, 0))
        )
        page.press(x + 60, y + 32)
        assert float(page.run("document.querySelector('.compare input').value")) > 80
        assert near(shown()[:, 36:48], np.full((64, 12, 3), (250, 0, 0)))
        assert page.problems == []
        assert page.requests == [(tmp_path / "r.html").as_uri()]


@in_a_browser
def test_a_page_of_a_video(tmp_path, reference):
    """Two shots: their first frames, which a press shows in the place to compare, and a curve."""
    clip = make_clip(tmp_path / "in.mp4", 12, sound=False, cut_at=6)
    [result] = stylize_video(
        clip, reference, tmp_path / "o.mkv", codec="ffv1", report=tmp_path / "r.html",
        motion="none", cuts="auto", **FAST,
    )  # fmt: skip
    text = (tmp_path / "r.html").read_text()
    for shown in (f"flicker {result['flicker']:g}", "12 frames", "in.mp4", "o.mkv", "seed"):
        assert shown in html.unescape(text)
    with Page(tmp_path / "r.html", tmp_path) as page:
        assert page.run("document.querySelectorAll('.shots button').length") == 2
        points = page.run("[...document.querySelectorAll('polyline')].map(l => l.points.length)")
        assert points == [5, 5]
        assert page.run("document.querySelectorAll('.cut').length") == 1
        sources = "[...document.querySelectorAll('.compare img')].map(i => i.src)"
        first = page.run(sources)
        page.run("document.querySelectorAll('.shots button')[1].click()")
        second = page.run(sources)
        assert first != second
        buttons = "[...document.querySelectorAll('.shots button')[1].querySelectorAll('img')]"
        assert second == page.run(f"{buttons}.map(i => i.src)")
        assert page.problems == [] and len(page.requests) == 1
    shots = pictures_in(text)
    assert [kind for kind, _ in shots] == ["result", "source"] * 3
    curve = [float(y) for y in re.findall(r",([\d.]+)", re.search(r'points="([^"]+)"', text)[1])]
    assert all(10 <= y <= 170 for y in curve)


def test_the_half_of_a_comparison_is_the_result(tmp_path, picture, reference):
    for mode in ("none", "side"):
        stylize_image(
            picture, reference, tmp_path / f"{mode}.png", compare=mode,
            report=tmp_path / f"{mode}.html", **FAST,
        )  # fmt: skip
    alone, side = (
        pictures_in((tmp_path / f"{mode}.html").read_text()) for mode in ("none", "side")
    )
    assert [kind for kind, _ in alone] == [kind for kind, _ in side] == ["result", "source"]
    for (_, a), (_, b) in zip(alone, side, strict=True):
        assert a.size == b.size and near(a, b)


def test_what_is_done_is_in_the_page_of_a_run_that_fails(tmp_path, picture):
    def event(name, **more):
        return {"event": name, "input": "a.png", "index": 1, "total": 2, **more}

    page = tmp_path / "r.html"
    jobs = [PictureJob(picture, "a.png", picture, "a.png", index=1)]
    result = event("result", output=str(picture), width=96, height=64, seconds=1.0)
    with (
        pytest.raises(StdError, match="full"),
        reporting(page, False, lambda event: None, jobs, ImageSettings()) as report,
    ):
        report(result)
        raise StdError("full")
    assert [kind for kind, _ in pictures_in(page.read_text())] == ["result", "source"]
    with (
        pytest.raises(StdError),
        reporting(tmp_path / "none.html", False, lambda event: None, jobs, ImageSettings()),
    ):
        raise StdError("before the first result")
    assert not (tmp_path / "none.html").exists()


def test_a_page_that_cannot_be_written_is_refused_first(tmp_path, picture, reference):
    (tmp_path / "there.html").write_text("mine")
    before = sorted(tmp_path.iterdir())
    for name, message in [
        ("r.txt", "--report"),
        ("there.html", "exists"),
        ("no/folder/r.html", "cannot write"),
    ]:
        with pytest.raises(InputError, match=message):
            stylize_image(picture, reference, tmp_path / "o.png", report=tmp_path / name, **FAST)
    with pytest.raises(InputError, match="written to files"):
        stylize_image(picture, reference, report=tmp_path / "r.html", **FAST)
    assert sorted(tmp_path.iterdir()) == before


def test_a_long_curve_is_thinned():
    assert _thinned([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)], 2) == [(0.5, 2.0), (2.0, 5.0)]
