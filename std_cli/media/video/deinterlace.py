"""Interlaced frames, whose odd and even lines were taken at two moments, made whole by FFmpeg's
filter bwdif."""

from collections.abc import Generator
from fractions import Fraction
from typing import Any

import av

from std_cli.config import Deinterlace


class Deinterlacer:
    """Decoded frames with their times in ticks, through the filter from the first interlaced one
    on.

    Their count and their times stay. The filter sees one frame before and one after each, so it
    holds one back.
    """

    def __init__(self, how: Deinterlace, base: Fraction) -> None:
        """how: "auto" for the frames that are flagged, "on" for all; base: seconds of a tick."""
        self.how, self.base = how, base
        self.graph: av.filter.Graph | None = None
        self.form: tuple[int, int, str] | None = None
        self.interlaced = 0

    def __call__(
        self, frames: Generator[Any, None, None]
    ) -> Generator[tuple[Any, int | None], None, None]:
        if self.how == "off":
            yield from frames
            return
        for frame, ticks in frames:
            flagged = bool(frame.interlaced_frame)
            self.interlaced += flagged or self.how == "on"
            form = frame.width, frame.height, frame.format.name
            if self.graph is not None and (form != self.form or ticks is None):
                yield from self._end()
            if ticks is None or (self.graph is None and not flagged and self.how == "auto"):
                yield frame, ticks
                continue
            if self.graph is None:
                self.graph, self.form = self._build(frame), form
            frame.pts, frame.time_base = ticks, self.base
            self.graph.push(frame)
            yield from self._ready()
        if self.graph is not None:
            yield from self._end()

    def _build(self, frame: Any) -> av.filter.Graph:
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=self.base
        )
        chosen = "interlaced" if self.how == "auto" else "all"
        bwdif = graph.add("bwdif", f"mode=send_frame:parity=auto:deint={chosen}")
        graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
        return graph

    def _ready(self) -> Generator[tuple[Any, int], None, None]:
        assert self.graph is not None
        while True:
            try:
                frame: Any = self.graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            ticks = round(frame.pts * frame.time_base / self.base)
            if frame.duration:  # the filter counts in half ticks
                frame.duration = round(frame.duration * frame.time_base / self.base)
            yield frame, ticks

    def _end(self) -> Generator[tuple[Any, int], None, None]:
        assert self.graph is not None
        self.graph.push(None)
        yield from self._ready()
        self.graph = None
