"""Charts of a comparison as numbers: where lines, points and ticks are. `report.html` draws them as
SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from std_cli.comparison.statistics import Interval
from std_cli.comparison.table import Row, Table

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 76, 16, 14, 46
"""Margins of the drawing area, for ticks and titles."""
STYLE, STRUCTURE = ("csd", "clip-direction", "colour", "texture"), ("edges", "lpips")
"""Measures whose trade the scatter shows, the most telling first."""
MOST_SCATTERS = 4
SMALL = 0.01
"""Below it the ticks of an axis are in units of a power of ten."""
NARROW = 1e-3
"""Of the values: a scale is at least so wide, so that its ticks have few digits."""


@dataclass(frozen=True)
class Point:
    """A mean in a chart, in units of the drawing."""

    x: float
    y: float
    left: float
    """The ends of its intervals."""
    right: float
    top: float
    bottom: float
    text: str


@dataclass(frozen=True)
class Series:
    """The points of something that is compared."""

    name: str
    number: int
    """Its place in the table: its colour and marker."""
    runs: list[list[Point]]
    """Its points; those of a run are joined by a line."""
    constant: bool = False
    """It does not vary here: a line across."""

    @property
    def points(self) -> list[Point]:
        return [point for run in self.runs for point in run]

    @property
    def lines(self) -> list[str]:
        """Its runs as SVG's polyline takes them."""
        return [" ".join(f"{point.x:.1f},{point.y:.1f}" for point in run) for run in self.runs]


@dataclass(frozen=True)
class Tick:
    """A mark of an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart, ready to be drawn."""

    title: str
    x_title: str
    y_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[Series]
    width: int = WIDTH
    height: int = HEIGHT
    area: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    """Left, top, right, bottom of the drawing area."""


@dataclass
class Scale:
    """Values to units of the drawing."""

    low: float
    high: float
    first: float
    """Where `low` is."""
    last: float
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    def ends(self, interval: Interval) -> tuple[float, float]:
        """Where an interval begins and ends, inside the scale."""
        half = interval.half or 0.0
        low = max(self.low, interval.mean - half)
        first, last = sorted((self(low), self(min(self.high, interval.mean + half))))
        return first, last

    @property
    def power(self) -> int:
        """The power of ten in whose units the ticks are: 0, but for values that are very small."""
        most = max(abs(self.low), abs(self.high))
        return math.floor(math.log10(most) + 1e-9) if 0 < most < SMALL else 0

    @property
    def unit(self) -> str:
        """What the title of its axis says of that."""
        return f", times 1e{self.power}" if self.power else ""

    def marks(self) -> list[Tick]:
        """The ticks, in so many digits that they differ."""
        unit = 10.0**self.power
        step = (self.ticks[1] - self.ticks[0]) / unit if len(self.ticks) > 1 else 1
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return [Tick(self(value), f"{value / unit:.{digits}f}") for value in self.ticks]


def line_charts(table: Table) -> list[Chart]:
    """A chart of each measure over each setting that varies, at every combination of the others."""
    values = _values(table.rows)
    charts = []
    for axis, along in values.items():
        if len(along) < 2:
            continue
        others = {name: each for name, each in values.items() if name != axis}
        for fixed in product(*others.values()):
            held = dict(zip(others, fixed, strict=True))
            for measure in table.measures:
                if chart := _line_chart(table, measure, axis, along, held):
                    charts.append(chart)
    return charts


def scatters(table: Table) -> list[Chart]:
    """Style against structure: a point for each row, right and up being better."""
    pairs = [
        (structure, style)
        for style, structure in product(STYLE, STRUCTURE)
        if structure in table.measures and style in table.measures
    ]
    found = [_scatter(table, *pair) for pair in pairs[:MOST_SCATTERS]]
    return [chart for chart in found if chart is not None]


def _values(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The values of each setting that varies, in the order given."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, value in row.variant.varied.items():
            found.setdefault(name, [])
            if value not in found[name]:
                found[name].append(value)
    return found


def _line_chart(
    table: Table, measure: str, axis: str, along: list[str], held: Mapping[str, str]
) -> Chart | None:
    places = _places(along)
    x = Scale(min(places.values()), max(places.values()), LEFT + 12, WIDTH - RIGHT - 12)
    shown = [
        row
        for row in table.rows
        if row.entries[measure].estimate is not None
        and all(row.variant.varied.get(name, value) == value for name, value in held.items())
    ]
    if not shown:
        return None
    y = _scale_of(table, measure, shown, HEIGHT - BOTTOM, TOP)
    series = []
    for name, number in contenders(table).items():
        own = [row for row in shown if row.variant.contender == name]
        points: list[Point] = []
        constant = any(axis not in row.variant.varied for row in own)
        for row in own:
            at = [row.variant.varied[axis]] if axis in row.variant.varied else [along[0], along[-1]]
            points += [_point(row, measure, x(places[value]), y) for value in at]
        if points:
            points.sort(key=lambda point: point.x)
            series.append(Series(name, number, [points], constant))
    where = ", ".join(f"{_flag(name)} {value}" for name, value in held.items())
    title = f"{measure} over {_flag(axis)}{f' at {where}' if where else ''}"
    ticks = [Tick(x(places[value]), value) for value in along]
    direction = table.measures[measure].direction
    better = f" ({direction} is better)" if direction != "none" else ""
    y_title = f"{measure}{y.unit}{better}"
    return Chart(title, _flag(axis), y_title, ticks, y.marks(), series)


def _scatter(table: Table, structure: str, style: str) -> Chart | None:
    shown = [
        row
        for row in table.rows
        if row.entries[structure].estimate is not None and row.entries[style].estimate is not None
    ]
    if not shown:
        return None
    x = _scale_of(table, structure, shown, LEFT + 8, WIDTH - RIGHT - 8)
    y = _scale_of(table, style, shown, HEIGHT - BOTTOM - 8, TOP + 8)
    for scale, measure in ((x, structure), (y, style)):
        if table.measures[measure].direction == "lower":
            scale.first, scale.last = scale.last, scale.first
    values = _values(shown)
    axis = max(values, key=lambda name: len(values[name]), default="")
    series = []
    for name, number in contenders(table).items():
        # along what has most values, so that the line of each combination of the rest is seen
        runs: dict[tuple[str, ...], list[Point]] = {}
        for row in shown:
            if row.variant.contender == name:
                held = tuple(v for setting, v in row.variant.varied.items() if setting != axis)
                point = _scatter_point(row, structure, style, x, y)
                runs.setdefault(held, []).append(point)
        if runs:
            series.append(Series(name, number, list(runs.values())))
    return Chart(
        f"{style} against {structure}: right and up are better",
        f"{structure}{x.unit}, better to the right →",
        f"{style}{y.unit}, better upwards →",
        x.marks(),
        y.marks(),
        series,
    )


def _scatter_point(row: Row, structure: str, style: str, x: Scale, y: Scale) -> Point:
    across, along = _interval(row, structure), _interval(row, style)
    point = _point(row, style, x(across.mean), y)
    left, right = x.ends(across)
    text = f"{row.variant.label}: {structure} {_shown(across)}, {style} {_shown(along)}"
    return Point(point.x, point.y, left, right, point.top, point.bottom, text)


def contenders(table: Table) -> dict[str, int]:
    """What is compared, numbered from 0."""
    names = dict.fromkeys(row.variant.contender for row in table.rows)
    return {name: number for number, name in enumerate(names)}


def _point(row: Row, measure: str, x: float, y: Scale) -> Point:
    interval = _interval(row, measure)
    top, bottom = y.ends(interval)
    text = f"{row.variant.label}: {measure} {_shown(interval)}"
    return Point(x, y(interval.mean), x, x, top, bottom, text)


def _interval(row: Row, measure: str) -> Interval:
    found = row.entries[measure].estimate
    assert found is not None
    return found.over_samples


def _shown(interval: Interval) -> str:
    half = f" ± {interval.half:.3g}" if interval.half is not None else ""
    return f"{interval.mean:.4g}{half}"


def _places(along: list[str]) -> dict[str, float]:
    """Where values are on their axis: numbers at their places, all else side by side."""
    try:
        numbers = {value: float(value) for value in along}
    except ValueError:
        return {value: float(number) for number, value in enumerate(along)}
    distinct = len(set(numbers.values())) == len(along)
    return numbers if distinct else {value: float(i) for i, value in enumerate(along)}


def _scale_of(table: Table, measure: str, rows: Sequence[Row], first: float, last: float) -> Scale:
    """The scale of a measure's intervals in these rows."""
    intervals = [_interval(row, measure) for row in rows]
    return _scale(intervals, first, last, table.measures[measure].range)


def _scale(
    intervals: Sequence[Interval],
    first: float,
    last: float,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Scale:
    """A scale that holds all means, and all of the intervals that is inside the limits, with ticks
    at round numbers."""
    means = [each.mean for each in intervals]
    low = min(each.mean - (each.half or 0.0) for each in intervals)
    high = max(each.mean + (each.half or 0.0) for each in intervals)
    low, high = max(low, min(limits[0], *means)), min(high, max(limits[1], *means))
    if low == high == 0:
        low, high = -0.5, 0.5
    elif (room := NARROW * max(abs(low), abs(high)) - (high - low)) > 0:
        low, high = low - room / 2, high + room / 2
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    count = round((high - low) / step)
    return Scale(low, high, first, last, [low + i * step for i in range(count + 1)])


def _flag(name: str) -> str:
    return name.replace("_", "-")
