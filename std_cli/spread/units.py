"""Units: the parts of a request that are made apart from each other, on any device.

A unit of a video is a shot, since nothing has an influence across a cut, or a piece of a shot where
there are fewer units than devices. A piece denoises some frames more on each side, the halo, and
then its own frames are those of the whole shot, bit for bit, without any communication. A unit of
pictures is a list of files.

The units of a video follow from its frames, the settings and the number of devices; they are kept
in the plan file of its work folder, so that a run that is begun again has the same.
"""

import hashlib
import heapq
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, Literal, TypeVar

from std_cli.errors import Cancelled, InputError, StdError
from std_cli.events import OnEvent
from std_cli.paths import remove, replace_file
from std_cli.spread.devices import processors
from std_cli.spread.facts import threads_in_one_process
from std_cli.spread.ledger import Task
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.storage import pull_plan, push_plan
from std_cli.stylize import video_run
from std_cli.stylize.frames import Place, Stretch, checksum, source_frames
from std_cli.stylize.video_run import Job, Run
from std_cli.stylize.videos import VideoRequest, video_facts
from std_cli.stylize.work_folder import check_folder, check_same, folder_of, plan_of, write_run

Keeps = Literal["frames", "latents"]
T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Unit:
    """A part of the work; JSON-able."""

    id: str
    """Of the input's identity, the settings and the frames: what has the same id is the same."""
    input: str
    """As it was given."""
    output: str
    """What `name_of` says of its result."""
    shot: int = 0
    """From 1."""
    shot_first: int = 0
    """Number of the first frame of the shot."""
    first: int = 0
    """Number of the first frame."""
    end: int = 0
    """Number of the first frame that is not the unit's any more."""
    before: int = 0
    """Frames of the halo, on the left."""
    after: int = 0
    """The same, on the right."""
    pts: str = "0"
    """When the first frame is shown that is denoised, the halo included: a fraction of seconds."""
    checksum: int = 0
    """Of its pixels."""
    keeps: Keeps = "frames"
    """latents: another unit makes the frames of them, in which filters run along the shot."""
    of: tuple[str, ...] = ()
    """Ids of the units of whose latents this one makes its frames, in order."""
    threads: int | None = None
    """Those that the networks take on a processor, as in a run in one process; None on a GPU."""

    @property
    def frames(self) -> int:
        """How many frames are computed: how much work it is."""
        return self.end - self.first + self.before + self.after

    @property
    def stretch(self) -> Stretch:
        """The frames of a unit of a video."""
        return Stretch(
            self.shot,
            self.shot_first,
            self.first,
            self.end,
            self.first - self.before,
            self.end + self.after,
            Fraction(self.pts),
            self.checksum,
        )

    def json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "Unit":
        return cls(**kept | {"of": tuple(kept["of"])})

    def identity(self) -> dict[str, Any]:
        """What two machines that find the same unit agree on; JSON-able."""
        machines_own = ("output", "threads")
        return {name: value for name, value in self.json().items() if name not in machines_own}


@dataclass(frozen=True)
class Plan:
    """The units of one video, and what a reading of all its frames found."""

    job: Job
    record: dict[str, Any]
    """What the result follows from."""
    units: list[Unit]
    frames: int
    shots: int
    first_pts: Fraction
    end: Fraction
    """When the last frame ends; seconds on the clip's clock, as `first_pts`."""
    notices: list[str]
    """Of the reader."""
    shards: int | None = None
    """Into how many shards the units were to be shared out; None: they are not made in shards."""


def name_of(job: Job, request: VideoRequest) -> str:
    """By what a video of a request is known in all processes, from any working folder: the path or
    the URL of its result."""
    return request.scratch.in_urls(os.path.abspath(job.target.path))


# --- halo --------------------------------------------------------------------------------------


def halo(window: int, stride: int, steps: int) -> int:
    """How many frames on each side of a frame have an influence on its result.

    Windows of `window` frames start every `stride`; a frame's next latent follows from all frames
    of the windows that cover it. What is that far away at the first step, d_1 = window - stride,
    at step k reaches to the end of the windows that cover the frame d_{k-1} away:
    d_k = (ceil(d_{k-1} / stride) - 1) * stride + window. Without an overlap it is 0.
    """
    distance = window - stride
    for _ in range(steps - 1 if distance else 0):
        distance = (-(-distance // stride) - 1) * stride + window
    return distance


def computed(
    first: int, end: int, length: int, window: int, stride: int, steps: int
) -> tuple[int, int]:
    """(begin, stop) of the frames that are computed so that `first` to `end` of a shot of `length`
    frames are those of the whole shot; numbers within the shot.

    They begin with a window of the whole shot, so at a multiple of `stride`, and end with one, or
    with the shot: the last window of the shot may start in between two others, and so what it
    overlaps is influenced from farther away.
    """
    around = halo(window, stride, steps)
    begin = max(0, first - around) // stride * stride
    windows = max(0, -(-(end + around - window) // stride))
    stop = windows * stride + window
    return begin, stop if stop <= length - window else length


# --- units of videos ---------------------------------------------------------------------------


@dataclass
class _Shot:
    number: int
    first: int
    length: int
    marks: dict[int, tuple[Fraction, int]]
    """(time, checksum) of the frames that a unit may begin with, by number within the shot."""
    pieces: int = 1

    def bounds(self, pieces: int) -> list[tuple[int, int]]:
        """(first, end) of each piece within the shot: whole segments, so that these are the whole
        shot's."""
        at = [self.most * i // pieces * video_run.SEGMENT for i in range(pieces)]
        return list(zip(at, [*at[1:], self.length], strict=True))

    @property
    def most(self) -> int:
        """The most pieces that it can have."""
        return -(-self.length // video_run.SEGMENT)


@dataclass
class _Read:
    """What a reading of all frames of a video found."""

    shots: list[_Shot]
    first_pts: Fraction
    end: Fraction
    notices: list[str]

    @property
    def frames(self) -> int:
        last = self.shots[-1]
        return last.first + last.length


def find_units(
    request: VideoRequest,
    parts: int,
    saved: SavedRequest | None,
    on_event: OnEvent,
    *,
    resume: bool = True,
    shards: bool = False,
    on_failure: Callable[[Job, StdError], None] | None = None,
) -> list[Plan]:
    """The units of all videos of a request, so many that each of `parts` devices has one.

    Cuts are found first, while all frames are read once, of several videos at the same time; or the
    plan file of an earlier call is read. saved: kept in the plan files, which are written by this;
    None: nothing is written. resume: whether plan files are read; else what units have made is
    removed. shards: `parts` are shards. on_failure: called for a video that cannot be read, in
    place of the error.

    Raises InputError for a request that was begun otherwise, or that cannot be made in units.
    """
    if request.s.preview is not None:
        raise InputError(
            "--preview is made at once, by one process: leave out --shard, --devices and --cluster"
        )
    facts = video_facts(request)
    plans: list[Plan] = []
    unread: list[tuple[Job, dict[str, Any]]] = []
    fail = on_failure or _raise
    for job in request.jobs:
        stride = request.window - request.overlap
        try:
            run = Run(job, facts, request.s, request.mix, request.window, stride, on_event)
            record = run.record()
            if resume:
                pull_plan(job.target.path, request.scratch)
            if resume and (kept := read_plan(job, record, request)) is not None:
                plans.append(kept)
            else:
                unread.append((job, record))
        except StdError as e:
            fail(job, e)
    of_job = _read_all([job for job, _ in unread], request, on_event, fail)
    read = [(job, record, of_job[job.index]) for job, record in unread if job.index in of_job]
    _split([shot for _, _, found in read for shot in found.shots], parts, len_units(plans))
    for job, record, found in read:
        plan = _plan(job, record, found, request, parts if shards else None)
        if saved is not None:
            write_plan(plan, saved, resume)
            push_plan(job.target.path, request.scratch, resume)
        plans.append(plan)
    return sorted(plans, key=lambda plan: plan.job.index)


def len_units(plans: Iterable[Plan]) -> int:
    """How many units there are that wait for no other."""
    return sum(1 for plan in plans for unit in plan.units if not unit.of)


def _raise(job: Job, error: StdError) -> None:
    raise error


def _read_all(
    jobs: Sequence[Job],
    request: VideoRequest,
    on_event: OnEvent,
    fail: Callable[[Job, StdError], None],
) -> dict[int, _Read]:
    """Read all frames of videos, of several at the same time: FFmpeg, which has nearly all of the
    work, lets other threads run. By `Job.index`; those that cannot be read are given to `fail`."""
    for job in jobs:
        on_event({"event": "progress", "stage": "count", "input": job.name})
    found: dict[int, _Read] = {}
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, min(len(jobs), processors()))) as pool:
        reading = [(job, pool.submit(_read, job, request, stop.is_set)) for job in jobs]
        try:
            for job, future in reading:
                try:
                    found[job.index] = future.result()
                except StdError as e:
                    fail(job, e)
        finally:
            stop.set()  # after an error, or Ctrl-C: the pool waits for its threads
    return found


def _read(job: Job, request: VideoRequest, stop: Callable[[], bool]) -> _Read:
    """Read all frames of a video. Raises StdError if there are none; Cancelled as soon as it is to
    `stop`."""
    stride = request.window - request.overlap
    notices: list[str] = []
    shots: list[_Shot] = []
    place: Place | None = None
    first_pts = Fraction(0)
    for frame in source_frames(
        job.clip, request.s, job.cuts, keep_alpha=job.target.alpha, on_notice=notices.append
    ):
        if stop():
            raise Cancelled("the run was stopped")
        place = frame.place
        if not shots:
            first_pts = place.pts
        if place.cut:
            shots.append(_Shot(place.shot, place.index, 0, {}))
        within = place.index - shots[-1].first
        if within % stride == 0:
            shots[-1].marks[within] = place.pts, checksum(frame.rgb)
        shots[-1].length += 1
    if place is None:
        raise StdError(f"{job.source.name}: no frames between --start and --end: widen them")
    return _Read(shots, first_pts, place.pts + place.duration, notices)


def _split(shots: Sequence[_Shot], parts: int, others: int) -> None:
    """Divide the longest shots into pieces, until there is a unit for each of `parts` devices."""
    for _ in range(parts - others - len(shots)):
        longest = max(
            (shot for shot in shots if shot.pieces < shot.most),
            key=lambda shot: shot.length / shot.pieces,
            default=None,
        )
        if longest is None:
            return
        longest.pieces += 1


def _plan(
    job: Job, record: dict[str, Any], found: _Read, request: VideoRequest, shards: int | None
) -> Plan:
    units: list[Unit] = []
    for shot in found.shots:
        pieces = [_piece(job, shot, *bounds, request) for bounds in shot.bounds(shot.pieces)]
        if len(pieces) == 1 or not (request.s.steady or request.mix is not None):
            units += [_identified(piece, record) for piece in pieces]
            continue
        pieces = [_identified(replace(piece, keeps="latents"), record) for piece in pieces]
        whole = _piece(job, shot, 0, shot.length, request)
        ids = tuple(piece.id for piece in pieces)
        units += [*pieces, _identified(replace(whole, of=ids), record)]
    return Plan(
        job, record, units, found.frames, len(found.shots), found.first_pts, found.end,
        found.notices, shards,
    )  # fmt: skip


def _piece(job: Job, shot: _Shot, first: int, end: int, request: VideoRequest) -> Unit:
    stride = request.window - request.overlap
    begin, stop = computed(first, end, shot.length, request.window, stride, request.s.steps)
    pts, pixels = shot.marks[begin]
    return Unit(
        id="",
        input=request.scratch.in_urls(job.name),
        output=name_of(job, request),
        shot=shot.number,
        shot_first=shot.first,
        first=shot.first + first,
        end=shot.first + end,
        before=first - begin,
        after=stop - end,
        pts=str(pts),
        checksum=pixels,
        threads=threads_in_one_process(request),
    )


def _identified(unit: Unit, record: dict[str, Any]) -> Unit:
    """The unit with its id, which begins with what a person looks for."""
    text = json.dumps([record, unit.identity()], sort_keys=True)
    digits = hashlib.sha256(text.encode()).hexdigest()[:12]
    what = "-latents" if unit.keeps == "latents" else ""
    return replace(unit, id=f"shot{unit.shot:05d}-{unit.first:07d}{what}-{digits}")


# --- the plan file -----------------------------------------------------------------------------


def write_plan(plan: Plan, saved: SavedRequest, resume: bool) -> None:
    """Keep a plan in the work folder of its output; written whole or not at all.

    Several processes that find the units of one request write the same.
    """
    output = plan.job.target.path
    folder = folder_of(output)
    check_folder(folder)
    folder.mkdir(exist_ok=True)
    if not resume:
        for name in (plan_of(output), folder / "units", folder / "attempts"):
            remove(name)
    write_run(folder, plan.record, {})
    kept = {
        "request": saved.json(),
        "input": plan.units[0].input,
        "record": plan.record,
        "frames": plan.frames,
        "shots": plan.shots,
        "first_pts": str(plan.first_pts),
        "end": str(plan.end),
        "notices": plan.notices,
        "shards": plan.shards,
        "units": [unit.json() for unit in plan.units],
    }
    replace_file(plan_of(output), json.dumps(kept, indent=1).encode())


def read_plan(job: Job, record: dict[str, Any], request: VideoRequest) -> Plan | None:
    """The kept plan of a video; None if there is none.

    Raises InputError for one of another request, or one that is damaged.
    """
    file = plan_of(job.target.path)
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise _damaged(file) from None
    try:
        check_same(job.target.path, kept["record"], json.loads(json.dumps(record)))
        return Plan(
            job,
            record,
            [replace(Unit.from_json(unit), output=name_of(job, request)) for unit in kept["units"]],
            kept["frames"],
            kept["shots"],
            Fraction(kept["first_pts"]),
            Fraction(kept["end"]),
            kept["notices"],
            kept["shards"],
        )
    except (KeyError, TypeError, ValueError):
        raise _damaged(file) from None


def _damaged(file: Any) -> InputError:
    return InputError(f"{file} is damaged: give --no-resume to start over")


# --- who makes which ---------------------------------------------------------------------------


def longest_first(units: Iterable[T]) -> list[T]:
    """What is begun last then ends last. Equal ones stay in order."""
    return sorted(units, key=lambda unit: -unit.frames)


def rounds(units: Sequence[Unit]) -> list[list[Unit]]:
    """The units that wait for no other, then those that are made of their latents; each list
    longest first."""
    both = [[u for u in units if not u.of], [u for u in units if u.of]]
    return [longest_first(each) for each in both if each]


def shared_out(units: Sequence[T], parts: int) -> list[list[T]]:
    """The units of each part: the longest first, each to the part that has the least work.

    Which part makes a unit follows from the units and their number alone, whatever is done already.
    """
    shares: list[list[T]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    for unit in longest_first(units):
        load, part = heapq.heappop(loads)
        shares[part].append(unit)
        heapq.heappush(loads, (load + unit.frames, part))
    return shares
