"""What every measure has, and the sample that it is taken of."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from std_cli.media.measures import resized
from std_cli.media.video.clip import Pixels
from std_cli.weights.cache import files_here
from std_cli.weights.zoo import find_entry

Direction = Literal["higher", "lower", "none"]
Domain = Literal["picture", "clip"]
FRAMES = 8
"""Of a clip, the frames of which a measure of pictures is taken, at most."""


@dataclass(frozen=True)
class Moment:
    """A picture, or one frame of a clip: what came in and what was made of it, of one size."""

    content: Pixels
    result: Pixels
    shot: int = 0
    joint: bool = False
    """A window of frames begins here, or the one before has ended."""


@dataclass(frozen=True)
class Sample:
    """One stylization. Pictures are RGB, (H, W, 3) uint8; a picture is a sequence of one frame."""

    content: Sequence[Pixels]
    """The frames that came in, of any size; as many as `result` has."""
    style: Pixels
    """The reference, of any size."""
    result: Sequence[Pixels]
    prompt: str = ""
    """What the result should show, in words; "" if nothing was said."""
    times: Sequence[float] = (0.0,)
    """Seconds of each frame of a clip."""
    shots: Sequence[int] = ()
    """The number of the shot that each frame is in; none: it is one shot."""
    joints: Collection[int] = ()
    """The frames at which a stitching window begins, or the one before has ended."""

    @property
    def domain(self) -> Domain:
        return "picture" if len(self.result) == 1 else "clip"

    def moment(self, number: int) -> Moment:
        """Frame `number`, with its content brought to the size of its result."""
        result = self.result[number]
        height, width = result.shape[:2]
        return Moment(
            resized(self.content[number], width, height),
            result,
            self.shots[number] if self.shots else 0,
            number in self.joints,
        )


class Measure(ABC):
    """One figure of a stylization. `compute` takes it of a sample, frame after frame: it calls
    `begin`, `accumulate` for every frame, and `finalize`. One sample at a time.
    """

    name: ClassVar[str]
    direction: ClassVar[Direction]
    """Which figures are better; "none": neither."""
    range: ClassVar[tuple[float, float]]
    source: str
    """The paper, or the page."""
    weights: tuple[str, ...] = ()
    """Names of the models that it needs, as `std models` has them."""
    domain: ClassVar[Domain]
    """What it is taken of. A measure of pictures is also taken of clips, as a mean over frames."""

    def __init__(self, device: str = "cpu") -> None:
        """device: where its network runs, as torch names it."""
        self.device = device

    @property
    def licence(self) -> str:
        """Of its weights; "" if it has none."""
        return ", ".join(dict.fromkeys(find_entry(name).licence for name in self.weights))

    @property
    def made_with(self) -> dict[str, str]:
        """What identifies its weights: {name: the commit on the Hub, or the SHA-256}."""
        entries = [find_entry(name) for name in self.weights]
        return {entry.name: entry.sha256 or entry.revision for entry in entries}

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of its models that are not here."""
        return tuple(name for name in self.weights if not files_here(name))

    def available(self) -> str | None:
        """Why it cannot be taken at all, with what to do about it; None if it can."""
        missing = self.missing
        if not missing:
            return None
        verb = "is" if len(missing) == 1 else "are"
        return (
            f"{' and '.join(missing)} {verb} not downloaded: run std models pull "
            f"{' '.join(missing)}"
        )

    def lacks(self, sample: Sample) -> str | None:
        """Why it cannot be taken of this sample; None if it can."""
        if self.domain == "clip" and sample.domain == "picture":
            return "it is a measure of clips"
        return None

    def compute(self, sample: Sample) -> float | None:
        """The figure; None where there is nothing to measure."""
        self.begin(sample)
        for number in self.frames(sample):
            self.accumulate(sample.moment(number))
        return self.finalize()

    def frames(self, sample: Sample) -> Iterator[int]:
        """The frames that are measured: all, or of a measure of pictures at most FRAMES."""
        count = len(sample.result)
        if self.domain == "clip" or count <= FRAMES:
            yield from range(count)
        else:
            yield from (round(i * (count - 1) / (FRAMES - 1)) for i in range(FRAMES))

    @abstractmethod
    def begin(self, sample: Sample) -> None:
        """Take what all frames of a sample share: its reference, its prompt."""

    @abstractmethod
    def accumulate(self, moment: Moment) -> None:
        """Take the next frame."""

    @abstractmethod
    def finalize(self) -> float | None:
        """The figure of the frames since `begin`."""


class PictureMeasure(Measure):
    """A figure of each frame alone; a clip's is their mean."""

    domain = "picture"

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self._sample: Sample
        self._values: list[float] = []

    def begin(self, sample: Sample) -> None:
        self._sample = sample
        self._values = []

    def accumulate(self, moment: Moment) -> None:
        self._values.append(self.of(moment, self._sample))

    def finalize(self) -> float | None:
        return sum(self._values) / len(self._values) if self._values else None

    @abstractmethod
    def of(self, moment: Moment, sample: Sample) -> float:
        """The figure of one frame of a sample."""
