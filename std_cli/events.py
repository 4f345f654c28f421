"""What a run reports while it works: dictionaries, JSON-ready, whose "event" says what each is.

Functions give them to `on_event`, `--json` prints each as one line, and `cli.console` shows them.
examples/automation.md lists them for users; a test compares that list with this module. Sizes in
memory and on disk are bytes, durations are seconds, widths and heights are pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from std_cli.errors import Kind

Settings = Mapping[str, Any]
"""Resolved settings by their names in `config`, as they are stored in a result."""


class RequestFacts(TypedDict):
    """What a request became, as its start reports it and its results keep it."""

    version: str
    model: str
    lora: str | None
    device: str
    dtype: str
    settings: Settings


class Place(TypedDict):
    """Which of the inputs."""

    input: str
    index: int
    """From 1."""
    total: int


class Thumbnail(TypedDict, total=False):
    """With --preview."""

    thumbnail: str
    """The picture file that shows the first frame of the newest shot."""


class ClipFacts(TypedDict):
    """What the result of a video will be."""

    frames: int | None
    """Estimated from the container; None if it does not say."""
    width: int
    height: int
    codec: str
    output: str


class Start(RequestFacts):
    """A run of pictures, of one video, or of a training begins; all is checked."""

    event: Literal["start"]


class PicturesStart(Start):
    """A run of pictures begins."""

    total: int
    """Pictures of this run."""


class VideoStart(Start, Place, ClipFacts):
    """The run of one video begins."""


class TrainingStart(Start):
    """A training begins."""

    steps: int
    """Updates in all."""
    samples: int
    trainable: int
    """Trainable parameters."""


class Notice(TypedDict):
    """Something that the user should know; the work continues."""

    event: Literal["notice"]
    message: str
    input: NotRequired[str]
    """The video that it is about, with its index and total."""
    index: NotRequired[int]
    total: NotRequired[int]


class Error(TypedDict):
    """A run ends here, or, with `input`, one of several inputs fails and the others continue."""

    event: Literal["error"]
    message: str
    kind: Kind
    """What failed, for programs: see `errors`."""
    code: int
    """The exit code of its kind."""
    input: NotRequired[str]


# --- progress ----------------------------------------------------------------------------------


class Loading(TypedDict):
    """A model is loaded."""

    event: Literal["progress"]
    stage: Literal["load"]
    model: str


class PictureProgress(Place):
    """A step of one picture is done."""

    event: Literal["progress"]
    stage: Literal["picture"]
    step: int
    """Steps done of this picture, from 0."""
    steps: int
    share: NotRequired[float]
    """Of the whole run, from 0 to 1, where its pictures differ in their steps."""


class VideoProgress(Place, Thumbnail):
    """Work on one video has advanced."""

    event: Literal["progress"]
    stage: Literal["video"]
    frame: int
    """Finished frames."""
    frames: int | None
    """Frames of the video, estimated; None if not known."""
    progress: float
    """Finished frames, with those at work in part."""
    fps: float
    """Finished frames per second of this run."""
    eta: float | None
    """Seconds left; None if not known."""
    shot: int
    step: int
    """Of the oldest frame at work."""
    steps: int


class SpreadProgress(TypedDict):
    """Work that is spread over several workers has advanced."""

    event: Literal["progress"]
    stage: Literal["spread"]
    unit: int
    """Finished units."""
    units: int
    workers: int
    """Workers that are ready or at work."""
    frame: float
    """Finished frames or pictures, with those at work in part."""
    frames: int
    fps: float
    """Frames or pictures per second of all workers together."""
    eta: float | None
    """Seconds left; None if not known."""
    lost: int
    """Workers that died."""
    retried: int
    """Units that were given to another worker after that."""


class Counting(TypedDict):
    """The shots of a video are counted for a plan."""

    event: Literal["progress"]
    stage: Literal["count"]
    input: str


class Reporting(TypedDict):
    """A finished video is read for the page of --report."""

    event: Literal["progress"]
    stage: Literal["report"]
    input: str


class Checking(TypedDict):
    """Something of this machine is examined."""

    event: Literal["progress"]
    stage: Literal["check"]
    what: str


class Measuring(Place):
    """A result of a comparison is measured; `input` is its name."""

    event: Literal["progress"]
    stage: Literal["measure"]


class Downloading(TypedDict):
    """Bytes of models have arrived."""

    event: Literal["progress"]
    stage: Literal["pull"]
    done: int
    total: int


class Copying(TypedDict):
    """Bytes of inputs have arrived from their storage."""

    event: Literal["progress"]
    stage: Literal["copy"]
    done: int
    total: int


class TrainingProgress(TypedDict):
    """An update of the training is done. Losses are means over the lanes of all processes."""

    event: Literal["progress"]
    stage: Literal["distill"]
    step: int
    """Updates done."""
    steps: int
    eta: float
    loss: float
    n: float
    """Mean index on the trajectory."""
    norm: float | None
    """Of the gradient; None where it overflowed in fp16 and the update was skipped."""
    lr: float
    bank: int
    """Trajectories held by all processes."""
    bank_histogram: list[int]
    """How many of them are in each eighth of the trajectory, from its end on."""
    memory: int
    """The most bytes that one process has used."""
    samples_per_second: float
    adversarial: NotRequired[float]
    """This and the next three: with a discriminator."""
    discriminator: NotRequired[float]
    penalty: NotRequired[float]
    d_norm: NotRequired[float | None]
    validation: NotRequired[float]
    """After a validation."""


Progress = (
    Loading
    | PictureProgress
    | VideoProgress
    | SpreadProgress
    | Reporting
    | Counting
    | Checking
    | Measuring
    | Downloading
    | Copying
    | TrainingProgress
)


# --- results -----------------------------------------------------------------------------------


class PictureResult(Place):
    """One picture is finished."""

    event: Literal["result"]
    output: str | None
    """None if it was not written."""
    width: int
    height: int
    seconds: float


class VideoFigures(Thumbnail):
    """Figures of a finished video."""

    frames: int
    """Frames of the result."""
    resumed: int
    """Frames that an earlier run had finished."""
    seconds: float
    fps: float
    seam_ratio: float | None
    flicker: float | None


class VideoResult(Place, VideoFigures):
    """One video is finished."""

    event: Literal["result"]
    output: str
    width: int
    height: int
    codec: str


class UnitResult(TypedDict):
    """A unit of a request that is made in units is done."""

    event: Literal["unit"]
    unit: str
    """Its id."""
    input: str
    number: int
    """Of the units that this process runs, from 1."""
    total: int
    frames: int
    """Frames, or pictures, that it has."""
    resumed: int
    """Of these, how many an earlier attempt had finished."""
    seconds: float


class SheetResult(TypedDict):
    """A contact sheet is finished."""

    event: Literal["result"]
    output: str
    width: int
    height: int
    seconds: float
    cells: int
    cached: int
    """Cells that were there already."""


class ComparisonResult(TypedDict):
    """A comparison is finished, and its report is written."""

    event: Literal["result"]
    output: str
    """The page."""
    cells: int
    cached: int
    """Cells that were there already."""
    failed: int
    skipped: list[str]
    """What could not be compared or measured; notices say why."""
    seconds: float


class TrainingResult(TypedDict):
    """A training is finished and its LoRA is written."""

    event: Literal["result"]
    input: str
    """The last checkpoint."""
    output: str
    """The LoRA."""
    steps: int
    seconds: float
    validation: NotRequired[float]
    weights: NotRequired[str]
    """Which weights were exported: student or average."""
    schedule: NotRequired[str]
    """The schedule that validated best."""
    compared: NotRequired[dict[str, dict[str, float]]]
    """The validation of every pair of weights and schedule, by weights, then by schedule."""


# --- plans, checks, models ---------------------------------------------------------------------


class PlannedInput(TypedDict):
    """What one input of a plan takes."""

    input: str
    output: str | None
    width: int
    height: int
    working: list[int]
    """(width, height) that the network sees."""
    frames: int | None
    shots: int | None
    windows: int | None
    evaluations: int | None
    """Of the UNet; None, like the three before, where it is not known."""
    seconds: NotRequired[float | None]
    """None without a probe."""
    disk: int | None
    """Of the result."""


class PlannedMemory(TypedDict):
    """Memory in bytes; parts are networks by name."""

    free: int
    """Of the device, like `total`."""
    total: int
    main_free: int
    """Of main memory."""
    weights: dict[str, int]
    activations: dict[str, int]
    modes: dict[str, int]
    """The most that is held at once, by --offload, for the modes that the device has."""
    parts: dict[str, dict[str, int]]
    """What is held at that moment, by mode and part."""
    loading: int
    """Main memory at most while the model is loaded."""


class PlannedDisk(TypedDict):
    """Disk space in bytes."""

    free: int
    needed: int | None
    """Work folder and result at most; None if not known."""
    where: str


class PlannedTime(TypedDict):
    """Measured durations: of one frame, window step and frame but for the first two."""

    seconds: float | None
    """In all, without reading and writing; None if not known."""
    load: float
    encode: float
    evaluation: float
    decode: float


class Picks(TypedDict):
    """Settings with which the request fits into memory."""

    device: str
    dtype: str
    offload: str
    batch: int
    size: list[int]
    flags: str
    """What to add to the command; empty if it fits as it is."""


SettingSource = Literal[
    "flag",
    "environment",
    "look",
    "folder",
    "user file",
    "given",
    "LoRA",
    "method",
    "model",
    "built in",
]
"""Where the value of a setting comes from; "given" is said of an option of a Python function."""


class ResolvedSetting(TypedDict):
    """The value of a setting, and where it comes from."""

    value: Any
    """As in `Settings`."""
    source: SettingSource
    where: str
    """The flag, the variable, the file; "" if it is built in."""


class PlannedSpread(TypedDict):
    """What a request takes on several devices."""

    devices: int
    units: int
    pieces: int
    """Those units that are pieces of a shot."""
    computed: int
    """Frames, or pictures, that are denoised, the frames of the halos included."""
    speedup: float
    """How many times as fast as one device, by the units' frames, without start and copying."""
    seconds: float | None
    """Until the last device is ready; None without a probe."""
    copied: int
    """Bytes of inputs that are copied where they are not on a disk that all workers have."""
    lost: int
    """Frames, or pictures, at most, that are computed again when a worker is lost."""
    lost_seconds: float | None
    """The time that these take; None without a probe."""


class Plan(TypedDict):
    """What a request would take."""

    event: Literal["plan"]
    task: Literal["image", "video"]
    model: str
    downloaded: bool
    lora: str | None
    motion: str | None
    device: str
    device_name: str
    dtype: str
    steps: int
    guided: bool
    """Whether steps, or the first of them, take two evaluations (CFG above 1)."""
    window: int
    overlap: int
    inputs: list[PlannedInput]
    frames: int | None
    """Of all inputs, like the next three; None where one is not known."""
    shots: int | None
    windows: int | None
    evaluations: int | None
    memory: PlannedMemory
    disk: PlannedDisk
    time: PlannedTime | None
    fits: bool
    picks: Picks | None
    """None if nothing fits."""
    settings: dict[str, ResolvedSetting]
    """All of them, by name."""
    notes: list[str]
    spread: NotRequired[PlannedSpread]
    """Of a video with --devices."""


class Device(TypedDict):
    """A device that a run could take."""

    device: str
    name: str
    free: int
    total: int


class Cache(TypedDict):
    """The cache of the Hub."""

    path: str
    free: int
    writable: bool
    models: dict[str, bool]
    """Whether each model of the tasks is here."""
    missing: list[str]
    """Models that pictures and videos need and that are not here."""


class Hub(TypedDict):
    """The Hub, as it is set and as it answers."""

    endpoint: str
    offline: bool
    error: str | None
    """Empty if it answers; None if it was not asked."""


class SelfTest(TypedDict):
    """A small picture, stylized with the model in the package."""

    seconds: float
    error: str
    """Empty if it works."""


class Problem(TypedDict):
    """What is wrong with this machine, and what to do."""

    what: str
    remedy: str
    breaks: bool
    """Whether a run fails because of it."""


class Doctor(TypedDict):
    """What of this machine would break a run."""

    event: Literal["doctor"]
    versions: dict[str, str | None]
    """By package; None if it is missing."""
    devices: list[Device]
    driver: str | None
    encoders: dict[str, str]
    """Why each video encoder cannot be used; empty if it can."""
    cache: Cache | None
    hub: Hub | None
    self_test: SelfTest | None
    problems: list[Problem]


class Config(TypedDict):
    """The settings that a command without other options would take."""

    event: Literal["config"]
    files: list[str]
    """The files of defaults that are there; a later one goes before an earlier."""
    user_file: str
    """Where the user's own file is, or would be."""
    looks: dict[str, str]
    """Where each is defined, by name."""
    settings: dict[str, ResolvedSetting]
    """By name; with "style" if one is named."""


class Version(TypedDict):
    """The version of std."""

    event: Literal["version"]
    version: str
    versions: NotRequired[dict[str, str | None]]
    """By package; None if it is missing. With --verbose, like the devices."""
    devices: NotRequired[list[Device]]


class Model(TypedDict):
    """A model of the table."""

    event: Literal["model"]
    name: str
    title: str
    kind: str
    repo: str
    """Empty if it is not on the Hub."""
    revision: str
    gb: float
    licence: str
    checked: bool
    """Whether repository, files and commit were verified at the source."""
    note: str
    here: bool
    path: str | None
    """None if it is not here."""
    needed_by: Sequence[str]
    """Tasks."""


class Pulled(TypedDict):
    """A model is in the cache."""

    event: Literal["pulled"]
    name: str
    path: str
    bytes: int
    """Downloaded; 0 if it was here."""


class Verified(TypedDict):
    """The files of a model were compared with their hashes."""

    event: Literal["verified"]
    name: str
    files: int
    problems: list[str]


class Removed(TypedDict):
    """A model was deleted from the cache."""

    event: Literal["removed"]
    name: str
    bytes: int
    """Freed."""


class Converted(TypedDict):
    """Weights were written in another form."""

    event: Literal["converted"]
    file: str
    output: str
    kind: str
    notices: list[str]


class Record(TypedDict):
    """What std stored in one of its results."""

    event: Literal["record"]
    file: str
    record: Settings
    """As `read_settings` gives it."""


class CheckpointFacts(TypedDict):
    """What a whole model is for."""

    family: str | None
    fits: list[str]
    """What takes the file."""
    problem: str | None
    """Why --model, or --lora, refuses the file."""


class LoraFacts(CheckpointFacts):
    """What a LoRA holds."""

    layout: str
    methods: dict[str, int]
    """How many layers there are of each, as of the next but one and two."""
    modules: int
    """Layers of the UNet."""
    ranks: dict[str, int]
    alphas: dict[str, int]
    """Empty if each is its layer's rank."""
    text_encoder: int
    """Layers of the text encoders, which are left out."""
    notices: list[str]
    """What --lora leaves out."""


class Inspected(TypedDict):
    """What a weights file is, by its header; the last ones are those of `LoraFacts`."""

    event: Literal["inspected"]
    file: str
    kind: str
    tensors: int
    parameters: int
    metadata: dict[str, str]
    """200 keys of 4,096 characters at most."""
    metadata_cut: dict[str, int]
    """The true length of each value that is cut; "..." counts the keys that are left out."""
    family: str | None
    fits: list[str]
    problem: NotRequired[str | None]
    layout: NotRequired[str]
    methods: NotRequired[dict[str, int]]
    modules: NotRequired[int]
    ranks: NotRequired[dict[str, int]]
    alphas: NotRequired[dict[str, int]]
    text_encoder: NotRequired[int]
    notices: NotRequired[list[str]]


class PlannedComparison(TypedDict):
    """What a comparison would take."""

    event: Literal["comparison"]
    output: str
    """The folder of the report."""
    cells: int
    cached: int
    """Cells that are there already."""
    compared: dict[str, int]
    """The cells of each that is compared."""
    measures: list[str]
    skipped: dict[str, str]
    """What cannot be compared or measured here, with the reason."""
    evaluations: int | None
    """Of the cells that are to be made."""
    seconds: float | None
    """The time that these take, by a measured step; None if none was measured, or they need
    none."""
    disk: PlannedDisk
    notes: list[str]


class Check(TypedDict):
    """What a training would take, and what is known of its data."""

    event: Literal["check"]
    pictures: int
    clips: int
    captioned: float
    """The share of the samples that have a caption."""
    skipped: dict[str, int]
    """Files left out, by reason."""
    sizes: Sequence[tuple[int, int]] | None
    """(width, height) of the smallest, the median and the largest file of a sample by area; None if
    none can be read."""
    cannot_be_read: dict[str, str]
    """Files of the sample that cannot be used, with the reason."""
    device: str
    trainable_parameters: int
    updates: int
    memory_estimate_gib: dict[str, float]
    """The most bytes of tensors held at once, by part, estimated."""
    peak_memory_gib: float | None
    """The same, measured; None if it did not fit."""
    peak_resident_gib: float | None
    """Of the whole process; None on CUDA, and where the system does not say it."""
    seconds_per_update: float | None
    validation_hours: float | None
    hours: float | None


Event = (
    PicturesStart
    | VideoStart
    | TrainingStart
    | Notice
    | Error
    | Progress
    | PictureResult
    | VideoResult
    | UnitResult
    | SheetResult
    | ComparisonResult
    | TrainingResult
    | Plan
    | Doctor
    | Config
    | Version
    | Model
    | Pulled
    | Verified
    | Removed
    | Converted
    | Inspected
    | Record
    | Check
    | PlannedComparison
)
OnEvent = Callable[[Event], None]
"""What a caller gives to be informed; it may raise to stop the work."""
