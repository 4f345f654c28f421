"""What came out of a run as one page for a browser: `--report FILE.html`.

The page needs nothing else: pictures are inside it, and its policy forbids every connection. Names
and texts come from files of anyone, so all of them are escaped.
"""

import base64
import hashlib
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from string import Template
from typing import Any, cast

from PIL import Image

from std_cli.config import ImageSettings, VideoSettings
from std_cli.errors import InputError, counted, printable
from std_cli.events import Event, OnEvent, PictureResult, VideoResult
from std_cli.media.pictures import read_picture
from std_cli.media.video.opening import open_clip
from std_cli.media.video.quality import Quality
from std_cli.media.video.read import read_frames
from std_cli.paths import replace_file, try_file, user_path
from std_cli.stylize.frames import source_frames
from std_cli.stylize.pictures import PictureJob
from std_cli.stylize.request import read_source
from std_cli.stylize.stages import KEPT_SIDE, resized
from std_cli.stylize.video_run import Job

SIDE = 960
"""Long side in pixels, at most, of a picture that is compared."""
SHOT_SIDE = 640
"""The same for the shots of a video."""
MOST_PICTURES = 200
"""Results that are shown with pictures; those after them by name."""
MOST_SHOTS = 48
"""Shots of a video that are shown."""
POINTS = 600
"""Points of a curve, at most."""
_WIDTH, _HEIGHT = 800, 160
"""Of the curve's drawing area."""
_SCRIPT = """
for (const slider of document.querySelectorAll(".compare input"))
  slider.oninput = () => slider.parentElement.style.setProperty("--at", slider.value + "%");
for (const button of document.querySelectorAll(".shots button"))
  button.onclick = () => {
    const shown = button.closest("section").querySelectorAll(".compare img");
    button.querySelectorAll("img").forEach((picture, i) => { shown[i].src = picture.src; });
  };
"""


@dataclass(frozen=True)
class Pair:
    """A source and its result, or a frame of them, in one size."""

    source: Image.Image
    result: Image.Image
    title: str


@dataclass
class Watched:
    """What is seen of a video when it is finished."""

    shots: list[Pair] = field(default_factory=list)
    """The first frame of each shot, MOST_SHOTS of them at most."""
    shot_times: list[float] = field(default_factory=list)
    """Seconds from the first frame, of all shots."""
    curves: list[list[tuple[float, float]]] = field(default_factory=list)
    """(seconds, flicker) of each frame but the first, by shot."""


@contextmanager
def reporting(
    given: str | Path | None,
    overwrite: bool,
    on_event: OnEvent,
    jobs: Sequence[PictureJob] | Sequence[Job],
    settings: ImageSettings,
) -> Iterator[OnEvent]:
    """Where a report is asked for, what receives the events of the run, passes them on, and writes
    the page at the end, also if the work fails after a first result.

    given: the page's path, or None. jobs: the inputs of the run, pictures or videos.
    settings: its settings. Raises InputError, before the work, for a page that cannot be written.
    """
    if given is None:
        yield on_event
        return
    path = user_path(given, "--report")
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--report {path}: a report is an .html file: give it such a name")
    try_file(path, overwrite)
    report = _Report(on_event, {job.index: job for job in jobs}, settings)
    try:
        yield report
    except Exception:  # whatever ends the run, what it made is shown; the error is raised again
        if report.entries:
            replace_file(path, report.page().encode("utf-8", "replace"), overwrite)
        raise
    replace_file(path, report.page().encode("utf-8", "replace"), overwrite)
    on_event({"event": "notice", "message": f"report: {path}"})


class _Report:
    """Collects what the page shows while events pass through."""

    def __init__(
        self,
        on_event: OnEvent,
        jobs: Mapping[int, PictureJob | Job],
        settings: ImageSettings,
    ) -> None:
        self.on_event, self.jobs, self.settings = on_event, jobs, settings
        self.entries: list[str] = []
        self.facts: Mapping[str, Any] = {}
        self.done = 0

    def __call__(self, event: Event) -> None:
        self.on_event(event)
        self.done += event["event"] == "result"
        if event["event"] == "start":
            self.facts = event
        elif event["event"] == "error" and "input" in event:
            text = f"{event['input']}: {event['message']}"
            self.entries.append(f'<section><h2 class="failed">{_text(text)}</h2></section>')
        elif event["event"] == "result":
            job = self.jobs[cast(PictureResult | VideoResult, event)["index"]]
            self.entries.append(
                self._video(job, cast(VideoResult, event))
                if isinstance(job, Job)
                else self._picture(job, cast(PictureResult, event))
            )

    def page(self) -> str:
        """The whole page."""
        facts, settings = self.facts, dict(self.facts.get("settings", {}))
        if not settings and self.settings is not None:  # the run was finished by an earlier process
            settings = self.settings.model_dump(mode="json")
        lora = f" + {facts['lora']}" if facts.get("lora") else ""
        made = f"std {facts['version']}: {facts['model']}{lora}" if facts else "std"
        where = f" on {facts['device']} in {facts['dtype']}" if facts else ""
        return Template(_template()).substitute(
            title=_text(f"{made}{where}"),
            summary=_text(
                f"{counted(self.done, 'result')}, seed {settings.get('seed', 'unknown')}"
            ),
            entries="\n".join(self.entries),
            settings="\n".join(_row(name, value) for name, value in settings.items()),
            script=_SCRIPT,
            script_hash=_policy_hash(_SCRIPT),
        )

    def _picture(self, job: PictureJob, event: PictureResult) -> str:
        facts = [f"{event['width']} x {event['height']}", f"{event['seconds']:.1f} s"]
        head = _head(event["input"], event["output"], facts)
        if len(self.entries) >= MOST_PICTURES or job.target is None:
            return f"<section>{head}</section>"
        result = read_picture(job.target, side=SIDE).on_white()
        if self.settings.compare == "side":
            result = result.crop((result.width // 2, 0, result.width, result.height))
        source = read_source(job.source, side=SIDE).on_white()
        shown = _pair(source, result, SIDE, "")
        return f"<section>{head}{_compare(shown)}</section>"

    def _video(self, job: Job, event: VideoResult) -> str:
        self.on_event({"event": "progress", "stage": "report", "input": event["input"]})
        settings = self.settings
        assert isinstance(settings, VideoSettings)
        facts = [
            f"{event['width']} x {event['height']}",
            counted(event["frames"], "frame"),
            f"{event['seconds']:.1f} s",
            f"seam ratio {_figure(event['seam_ratio'])}",
            f"flicker {_figure(event['flicker'])}",
        ]
        watched = watch(job, settings, job.target.path)
        parts = [_head(event["input"], event["output"], facts)]
        if watched.shots:
            parts += [_compare(watched.shots[0]), _shots(watched)]
        if settings.compare == "wipe":
            parts.append("<p>The source is in the frames (--compare wipe): no curve.</p>")
        elif any(watched.curves):
            parts.append(_curve(watched))
        return f"<section>{''.join(parts)}</section>"


def watch(job: Job, settings: VideoSettings, output: Path) -> Watched:
    """Read a finished video with its source, frame by frame: its shots, and the flicker over time.

    Of a result with --compare side the right half is taken; of one with --compare wipe there is no
    figure.
    """
    watched, quality, compare = Watched(), Quality(), settings.compare
    result_clip = open_clip(output)
    width, height = result_clip.display_size
    size = (width // 2 if compare == "side" else width, height)
    begin: Fraction | None = None
    sources = source_frames(job.clip, settings, job.cuts)
    results = read_frames(result_clip)
    with closing(sources), closing(results):
        for before, after in zip(sources, results, strict=False):
            place = before.place
            begin = place.pts if begin is None else begin
            seconds = float(place.pts - begin)
            rgb = after.rgb[:, after.rgb.shape[1] // 2 :] if compare == "side" else after.rgb
            if place.cut:
                watched.shot_times.append(seconds)
                watched.curves.append([])
                if len(watched.shots) < MOST_SHOTS:
                    pictures = Image.fromarray(before.rgb), Image.fromarray(rgb).resize(size)
                    watched.shots.append(_pair(*pictures, SHOT_SIDE, f"{seconds:.2f} s"))
            if compare != "wipe":
                scale = min(1.0, KEPT_SIDE / max(size))
                small = (max(8, round(size[0] * scale)), max(8, round(size[1] * scale)))
                pixels = resized(before.rgb, small), resized(rgb, small)
                flicker = quality.add(*pixels, joint=False, shot=place.shot)
                if flicker is not None:
                    watched.curves[-1].append((seconds, flicker))
    return watched


# --- parts of the page -------------------------------------------------------------------------


def _template() -> str:
    return Path(__file__).with_name("report.html").read_text(encoding="utf-8")


def _text(text: str) -> str:
    return html.escape(printable(text))


def _policy_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _row(name: str, value: Any) -> str:
    def shown(part: Any) -> str:
        if isinstance(part, list):
            return ", ".join(map(shown, part))
        if isinstance(part, Mapping):
            return " ".join(shown(inner) for inner in part.values())
        if isinstance(part, bool):
            return "yes" if part else "no"
        return "-" if part in (None, "") else str(part)

    title = name.replace("_", "-")
    return f"<tr><td>{_text(title)}</td><td>{_text(shown(value))}</td></tr>"


def _head(input: str, output: str | None, facts: list[str]) -> str:
    title = f"{input} → {output}" if output else input
    return f"<h2>{_text(title)}</h2><p>{_text(', '.join(facts))}</p>"


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:g}"


def _pair(source: Image.Image, result: Image.Image, side: int, title: str) -> Pair:
    scale = min(1.0, side / max(result.size))
    size = (max(1, round(result.width * scale)), max(1, round(result.height * scale)))
    how = Image.Resampling.LANCZOS
    return Pair(source.resize(size, how), result.resize(size, how), title)


def _image(picture: Image.Image, kind: str, text: str) -> str:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return f'<img class="{kind}" alt="{_text(text)}" src="data:image/jpeg;base64,{data}">'


def _compare(pair: Pair) -> str:
    """The result under the source, of which a slider shows the part at its left."""
    pictures = _image(pair.result, "result", "result") + _image(pair.source, "source", "source")
    slider = '<input type="range" min="0" max="100" value="50" step="0.5" aria-label="line">'
    return (
        f'<figure><div class="compare">{pictures}<div class="line"></div>{slider}</div>'
        "<figcaption>source | result: move the line</figcaption></figure>"
    )


def _shots(watched: Watched) -> str:
    buttons = [
        f'<button type="button">{_image(pair.result, "result", "result")}'
        f"{_image(pair.source, 'source', 'source')}shot {number}, {_text(pair.title)}</button>"
        for number, pair in enumerate(watched.shots, 1)
    ]
    more = len(watched.shot_times) - len(watched.shots)
    rest = f"<p>and {counted(more, 'more shot')}</p>" if more else ""
    return f'<div class="shots">{"".join(buttons)}</div>{rest}'


def _curve(watched: Watched) -> str:
    """Flicker over time as an SVG: a line for each shot, and a thin one at each cut."""
    points = [point for curve in watched.curves for point in curve]
    most = max(level for _, level in points) or 1.0
    end = max(seconds for seconds, _ in points) or 1.0

    def x(seconds: float) -> str:
        return f"{40 + seconds / end * _WIDTH:.1f}"

    def y(level: float) -> str:
        return f"{10 + (1 - level / most) * _HEIGHT:.1f}"

    share = max(1, -(-len(points) // POINTS))
    lines = []
    for curve in watched.curves:
        drawn = " ".join(f"{x(seconds)},{y(level)}" for seconds, level in _thinned(curve, share))
        lines.append(f'<polyline points="{drawn}"/>' if drawn else "")
    cuts = [
        f'<line class="cut" x1="{x(seconds)}" x2="{x(seconds)}" y1="10" y2="{10 + _HEIGHT}"/>'
        for seconds in watched.shot_times[1:]
        if seconds <= end
    ]
    bottom = 10 + _HEIGHT
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH + 60} {_HEIGHT + 40}" role="img" '
        'aria-label="flicker over time">'
        f'<rect class="frame" x="40" y="10" width="{_WIDTH}" height="{_HEIGHT}"/>'
        f"{''.join(cuts)}{''.join(lines)}"
        f'<text x="34" y="20" text-anchor="end">{most:.1f}</text>'
        f'<text x="34" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="40" y="{bottom + 18}">0 s</text>'
        f'<text x="{40 + _WIDTH}" y="{bottom + 18}" text-anchor="end">{end:.2f} s</text></svg>'
        "<figcaption>flicker over time: the mean difference between a frame and the one before, "
        "moved as the source moved, in levels of 255; grey lines are cuts</figcaption></figure>"
    )


def _thinned(curve: list[tuple[float, float]], share: int) -> list[tuple[float, float]]:
    """Means of `share` points each."""
    groups = [curve[i : i + share] for i in range(0, len(curve), share)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
