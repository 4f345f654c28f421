"""Denoising of any number of frames in windows that overlap, in constant memory: the wavefront.

What is computed is the known averaging of overlapping windows at every step (MultiDiffusion,
Bar-Tal et al. 2023, arXiv 2302.08113, along time): a frame's prediction at step k is the weighted
mean over the windows that cover it, then one scheduler step takes its latent to k + 1. A window's
step k + 1 so waits only for the windows that overlap it, and what waits for nothing runs as one
batch, each window at its own timestep: a diagonal of (window, step). Frames are pushed in one by
one and come out finished, in order; those in between are all that is held.

Five cursors walk along the frames. Here windows of 8 frames start every 4, there are 2 steps, and
frame 21 of a shot that began with frame 0 has just been pushed:

    frame   0       4       8       12      16      20
            |-- window 0 ---|
                    |-- window 1 ---|
                            |-- window 2 ---|
                                    |-- window 3 ---|
    step    2 2 2 2 1 1 1 1 1 1 1 1 1 0 0 0 0 0 0 0 0 0 .
            |       |                 |             |   |
            _shot   _emitted          _settled      |   _pushed
                                                    _covered

    _shot     The first frame of the current shot; no window reaches back over it.
    _emitted  The frames before it are finished and out; from here to _pushed latents are held.
    _settled  The frames before it are in no window that is still to come, so their weighted mean
              is complete once their windows have predicted. (If frame 20 had been the last of the
              shot, its last window would be 13 to 20.)
    _covered  The end of the last window that is known; the next one is known at frame 23.
    _pushed   The next frame that is pushed.

One round of work follows each window that becomes known, and rounds continue after the last frame
until all is done. What a round holds depends on the frames and cuts alone, not on when they arrive:
a run that resumes from a saved state repeats the uninterrupted one bit for bit. The state may be
that of the middle of a round: its windows that have predicted wait for its others.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

Predict = Callable[[Tensor, list[int], list[range]], Tensor]
"""(latents (B, C, F, h, w), step of each of the B windows, numbers of the F frames of each) ->
predictions of the same shape."""
Step = Callable[[Tensor, Tensor, int], Tensor]
"""(predictions (N, C, h, w), latents (N, C, h, w), step k) -> the N frames' latents of step k + 1,
of which each follows from its own prediction and latent alone."""


def window_starts(frames: int, length: int, stride: int) -> list[int]:
    """Where the windows of a shot start: every `stride` frames, the last shifted back to end with
    the shot.

    A shot of at most `length` frames is one window.
    """
    if frames <= length:
        return [0]
    return [*range(0, frames - length, stride), frames - length]


def blend_weights(length: int, overlap: int) -> list[float]:
    """A trapezoid over a window's frames: rising over `overlap` frames, flat, falling; not yet
    normalised."""
    return [float(min(i + 1, length - i, max(overlap, 1))) for i in range(length)]


@dataclass(frozen=True)
class Finished:
    number: int
    """Of the frame."""
    latent: Tensor
    """(C, h, w)"""
    joint: bool
    """A window of this frame's shot starts or has ended here, between the frame before and this
    one."""


@dataclass
class _Frame:
    latent: Tensor
    step: int = 0
    windows: int = 0
    """Those that cover it and are known."""
    pending: int = 0
    """Of those, how many have not predicted this step yet."""
    weight: float = 0.0
    weighted: Tensor | None = None
    """Sum of weight x prediction of this step, and `weight` the sum of weights."""


@dataclass
class _Window:
    start: int
    length: int
    step: int = 0

    @property
    def frames(self) -> range:
        return range(self.start, self.start + self.length)


@dataclass
class Wavefront:
    """`push` the frames one by one, and `end` after the last; each is followed by `work`, which
    gives what is finished, in order."""

    length: int
    """Frames of a window, the motion adapter's."""
    stride: int
    """Frames from one window's start to the next's, 1 to `length`."""
    steps: int
    predict: Predict
    step: Step
    batch: int
    """At most so many windows go into one call of `predict`. Halved when memory runs out."""
    on_halved: Callable[[int], None] = lambda batch: None
    fill: bool = False
    """Every call of `predict` gets `batch` windows, the first again where fewer are ready: for a
    network that is compiled for one shape."""
    first: int = 0
    """Number of the frame that is pushed first; `predict` gets numbers that count from there."""
    _frames: dict[int, _Frame] = field(default_factory=dict)
    _windows: list[_Window] = field(default_factory=list)
    _joints: set[int] = field(default_factory=set)
    _shot: int = 0
    """First frame of the current shot."""
    _covered: int = 0
    """End of the current shot's last known window."""
    _settled: int = 0
    """Frames before this one are in no window that is still to come."""
    _pushed: int = 0
    _emitted: int = 0
    _due: bool = False
    """A round is to be done, or not done to its end."""
    _ended: bool = False

    def __post_init__(self) -> None:
        self._shot = self._covered = self._settled = self._pushed = self._emitted = self.first

    def push(self, latent: Tensor, cut: bool = False) -> None:
        """Take the next frame's noised latent (C, h, w); `cut`: a new shot starts with it."""
        known = len(self._windows)
        if cut:
            self._close_shot()
        self._frames[self._pushed] = _Frame(latent)
        self._pushed += 1
        # the first window starts with the shot, and every other one a stride after the one before
        start = (
            self._shot if self._covered == self._shot else self._covered - self.length + self.stride
        )
        if start + self.length == self._pushed:
            self._add(_Window(start, self.length))
            # should the shot end, its last window may start right after this one
            self._settled = start + 1
        self._due = self._due or len(self._windows) > known

    def end(self) -> None:
        """There are no more frames: `work` finishes those that are left."""
        self._close_shot()
        self._ended = True

    def work(self) -> Iterator[list[Finished]]:
        """Do what can be done now. Gives the frames that are finished, none at most times, after
        each call of `predict` and each round; `state` may be taken there."""
        while self._due or (self._ended and self._frames):
            self._due = True
            yield from self._round()

    @property
    def live(self) -> int:
        """Frames whose latents are held."""
        return len(self._frames)

    @property
    def emitted(self) -> int:
        """Number of the next frame that comes out."""
        return self._emitted

    @property
    def pushed(self) -> int:
        """Number of the next frame that is pushed."""
        return self._pushed

    @property
    def progress(self) -> float:
        """Number of the next frame that comes out, plus for each frame in flight the share of the
        steps that it has behind it."""
        return self._emitted + sum(f.step for f in self._frames.values()) / self.steps

    @property
    def lowest_step(self) -> int:
        """Steps that the oldest live frame has behind it."""
        return self._frames[self._emitted].step if self._frames else self.steps

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `load_state` needs: tensors, and what JSON can hold."""
        frames = {
            str(i): {k: v for k, v in vars(f).items() if not isinstance(v, Tensor)}
            for i, f in self._frames.items()
        }
        tensors = {
            f"{name}.{i}": t
            for i, f in self._frames.items()
            for name in ("latent", "weighted")
            if isinstance(t := getattr(f, name), Tensor)
        }
        counters = {name: getattr(self, name) for name in _COUNTERS}
        windows = [asdict(w) for w in self._windows]
        return tensors, {
            "frames": frames,
            "windows": windows,
            "joints": sorted(self._joints),
            **counters,
        }

    def load_state(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self._frames = {
            int(i): _Frame(
                **f
                | {n: tensors[f"{n}.{i}"] for n in ("latent", "weighted") if f"{n}.{i}" in tensors}
            )
            for i, f in rest["frames"].items()
        }
        self._windows = [_Window(**w) for w in rest["windows"]]
        self._joints = set(rest["joints"])
        for name in _COUNTERS:
            setattr(self, name, rest[name])

    def _close_shot(self) -> None:
        # frames behind the last window get one more, which is shifted back to end with the shot
        if self._covered < self._pushed:
            length = min(self.length, self._pushed - self._shot)
            self._add(_Window(self._pushed - length, length))
        self._shot = self._covered = self._settled = self._pushed

    def _add(self, window: _Window) -> None:
        self._windows.append(window)
        self._covered = window.start + window.length
        self._joints |= {window.start, self._covered}
        for i in window.frames:
            self._frames[i].windows += 1
            self._frames[i].pending += 1

    def _round(self) -> Iterator[list[Finished]]:
        """Predict for every window whose frames have all come to its step, advance the frames that
        are complete."""
        # in the middle of a round those that have predicted are a step ahead of their frames
        ready = [
            window
            for window in self._windows
            if all(self._frames[i].step == window.step for i in window.frames)
        ]
        for length in sorted({window.length for window in ready}, reverse=True):
            for _ in self._predict([window for window in ready if window.length == length]):
                yield []
        self._advance()
        self._windows = [window for window in self._windows if window.step < self.steps]
        self._due = False
        yield list(self._finished())

    def _advance(self) -> None:
        """Take the frames that are complete to their next step, all of a step at once."""
        complete: dict[int, list[tuple[_Frame, Tensor]]] = {}
        for number, frame in self._frames.items():
            # A frame must wait for windows that are not known yet, too: without their predictions
            # its mean would depend on when the frames behind it arrive.
            if frame.weighted is not None and frame.pending == 0 and number < self._settled:
                mean = frame.weighted / frame.weight
                complete.setdefault(frame.step, []).append((frame, mean))
        for step, frames in complete.items():
            predictions = torch.stack([mean for _, mean in frames])
            latents = torch.stack([frame.latent for frame, _ in frames])
            advanced = self.step(predictions, latents, step).unbind()
            for (frame, _), latent in zip(frames, advanced, strict=True):
                frame.latent = latent
                frame.step = step + 1
                frame.pending = frame.windows  # all of them predict the next step
                frame.weight = 0.0
                frame.weighted = None

    def _predict(self, windows: list[_Window]) -> Iterator[None]:
        """For windows of one length, in batches; stops after each."""
        weights = blend_weights(windows[0].length, self.length - self.stride)
        while windows:
            now = windows[: self.batch]
            more = now[:1] * (self.batch - len(now)) if self.fill else []
            latents = torch.stack(
                [
                    torch.stack([self._frames[i].latent for i in window.frames], 1)
                    for window in now + more
                ]
            )
            steps = [window.step for window in now + more]
            numbers = [window.frames for window in now + more]
            try:
                # (B, C, F, h, w)
                predictions = self.predict(latents, steps, numbers)[: len(now)]
            except torch.OutOfMemoryError:
                if len(latents) == 1:
                    raise
                # nothing was added to a frame yet, so the same windows are tried again, fewer at
                # once
                self.batch = len(latents) // 2
                self.on_halved(self.batch)
                continue
            windows = windows[len(now) :]
            for window, prediction in zip(now, predictions, strict=True):
                window.step += 1
                of_frames = zip(window.frames, weights, prediction.unbind(1), strict=True)
                for i, weight, predicted in of_frames:
                    frame = self._frames[i]
                    weighted = predicted * weight
                    # never in place: a state that was taken shares the tensors
                    frame.weighted = (
                        weighted if frame.weighted is None else frame.weighted + weighted
                    )
                    frame.weight += weight
                    frame.pending -= 1
            yield

    def _finished(self) -> Iterator[Finished]:
        while self._emitted in self._frames and self._frames[self._emitted].step == self.steps:
            number = self._emitted
            joint = number in self._joints
            self._joints.discard(number)
            self._emitted += 1
            yield Finished(number, self._frames.pop(number).latent, joint)


_COUNTERS = ("_shot", "_covered", "_settled", "_pushed", "_emitted", "_due", "_ended", "batch")
