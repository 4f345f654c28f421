"""The settings of a run, and the only place where a default is written.

A setting's value is what the user gave, else a baseline's (`zoo.toml`), else the model's own
default (`std.json` in its folder), else the default here.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from std_cli.errors import InputError, printable, quote, wrong_values
from std_cli.paths import user_path
from std_cli.schedule import MAX_CFG, MAX_STEPS
from std_cli.weights.zoo import MethodName, method_defaults

StyleBlocks = Literal["style", "all"]
ScheduleChoice = Literal["auto", "quickstart", "aligned"]
Offload = Literal["none", "model", "group", "sequential"]
Audio = Literal["copy", "none"]
Subtitles = Literal["copy", "none"]
Deinterlace = Literal["auto", "off", "on"]
Compare = Literal["none", "side", "wipe"]
Task = Literal["i2i", "v2v"]
Dtype = Literal["auto", "fp16", "bf16", "fp32"]
IpAdapter = Literal["plus", "plain"]

LARGEST = 10**9
"""Bound of numbers without a closer one: beyond it sums overflow in libraries, or never end."""
CELL_SIDE = 256
"""Pixels of the long side of a cell in a contact sheet."""
LONGEST_PROMPT = 2000
"""Characters. A model reads 77 tokens; the prompts must fit into the 64 KiB that a jpg has for
them."""
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Number = Annotated[float, Field(le=LARGEST, allow_inf_nan=False)]
Seconds = Annotated[Fraction, Field(ge=0, le=LARGEST)]


_DEVICE = r"^(auto|cpu|mps|cuda(:\d+)?)$"


def _known_device(text: str) -> str:
    if not re.match(_DEVICE, text):
        raise ValueError("must be auto, cpu, mps, cuda or cuda:N")
    return text


Device = Annotated[
    str, AfterValidator(_known_device), Field(json_schema_extra={"pattern": _DEVICE})
]


Panel = Literal[
    "Input and output",
    "Comparison",
    "Style",
    "Sampling",
    "Motion and time",
    "Encoding",
    "Model",
    "Machine",
    "Messages",
]
"""The groups of options in the help, in their order there."""


@dataclass(frozen=True)
class Flag:
    """How the command line shows a setting; the flag itself is the field's name."""

    short: str | None = None
    metavar: str | None = None
    """What stands for the value: by default FLOAT, INT, TEXT, or the values that there are."""
    panel: Panel = "Sampling"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ImageDefaults(Frozen):
    """Settings of picture stylization that a model may have its own defaults for."""

    prompt: Annotated[str, Flag("-p", panel="Style"), Field(max_length=LONGEST_PROMPT)] = (
        "a picture in the style of the reference, high quality"
    )
    """What to paint, in addition to the style that the reference gives."""
    negative_prompt: Annotated[str, Flag("-n", panel="Style"), Field(max_length=LONGEST_PROMPT)] = (
        "low quality, blurry, deformed, watermark"
    )
    """What to keep away from."""
    eta: float = Field(0.75, gt=0, le=1)
    """Partial noise level: how far from the input the run starts (diffusers' strength)."""
    steps: int = Field(8, ge=1, le=MAX_STEPS)
    """Denoising steps that really run (NFE)."""
    cfg: float = Field(6.0, ge=0, le=MAX_CFG)
    """Classifier-free guidance scale; 1 and less run without guidance."""
    style_scale: Annotated[float, Flag(panel="Style")] = Field(1.0, ge=0, le=5)
    """Strength of the style reference in the network; 0 leaves it out."""
    style_blocks: Annotated[StyleBlocks, Flag(panel="Style")] = "style"
    """Where the reference acts: in SDXL's style block alone, or in all blocks."""
    palette: Annotated[float, Flag(panel="Style")] = Field(0.0, ge=0, le=1)
    """How much the result takes of the reference's mix of colours, by a linear map; 0 is none."""

    @field_validator("eta", "cfg", "style_scale", "palette")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        return value


class ImageSettings(ImageDefaults):
    """Every setting of a picture stylization, resolved."""

    keep_colors: Annotated[bool, Flag(panel="Style")] = False
    """Keep the input's colours: the result gives the light alone, and --palette acts on that."""
    size: Annotated[tuple[int, int] | int | None, Flag(metavar="WxH|N")] = None
    """Working size: width and height, or the long side; the model's own if not given."""
    cfg_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    """Guide only the first N steps, the others take half the time; all of them if not given."""
    cfg_every: int = Field(1, ge=1, le=MAX_STEPS)
    """Predict without the conditions in every Nth step, and reuse that for guidance in between."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of all noise; every picture of a run starts from the same."""
    schedule: ScheduleChoice = "auto"
    """Timesteps: as published (quickstart), from where STD trains (aligned), or what the LoRA says
    (auto)."""
    model: Annotated[str, Flag("-m", "NAME", "Model")] = "sdxl"
    """sdxl, dreamshaper, tiny, a diffusers folder, a .safetensors checkpoint, or a Hub id."""
    ip_adapter: Annotated[IpAdapter, Flag(panel="Model")] = "plus"
    """How a model without an IP-Adapter of its own sees the reference: in its parts (plus) or as a
    whole (plain)."""
    method: Annotated[MethodName, Flag(panel="Model")] = "std"
    """std, or a baseline to compare with, each with its LoRA, scheduler, --steps and --cfg; or
    none, SDXL without a LoRA."""
    lora: Annotated[str, Flag(metavar="NAME[:SCALE]", panel="Model")] = "auto"
    """auto (STD's nearest in eta, a baseline's nearest in steps), none, a file or a Hub id, with an
    optional :SCALE."""
    allow_partial: Annotated[bool, Flag(panel="Model")] = False
    """Accept a LoRA that has layers which the model lacks, without those."""
    device: Annotated[Device, Flag(metavar="DEVICE", panel="Machine")] = "auto"
    """auto, cuda, cuda:N, mps or cpu."""
    dtype: Annotated[Dtype, Flag(panel="Machine")] = "auto"
    """Precision of the network; auto is fp16 on a GPU, and on a CPU bf16 if that has instructions
    for it (AVX512-BF16, AMX), else fp32."""
    offload: Annotated[Offload, Flag(panel="Machine")] = "none"
    """Keep the weights in main memory and move to the GPU whole models (model), layers while others
    compute (group), or layers (sequential)."""
    compile: Annotated[bool, Flag(panel="Machine")] = False
    """Compile the UNet: minutes once, then faster steps."""

    output_size: Annotated[
        tuple[int, int] | Literal["source", "model"], Flag(metavar="SIZE", panel="Input and output")
    ] = "source"
    """Size of the result: the source's, the working size, or WxH."""
    compare: Annotated[Compare, Flag(panel="Input and output")] = "none"
    """Write the source into the result: to the left of it (side), or up to a line (wipe), which
    moves over a video."""
    labels: Annotated[bool, Flag(panel="Input and output")] = False
    """With --compare: write "source" and "result" into the pictures."""

    @property
    def guided_steps(self) -> int:
        """The first steps, which have guidance."""
        if self.cfg <= 1:
            return 0
        return self.steps if self.cfg_steps is None else self.cfg_steps

    @property
    def unconditional_steps(self) -> range:
        """The steps that take two evaluations of the network, with the conditions and without."""
        return range(0, self.guided_steps, self.cfg_every)

    @field_validator("size", mode="before")
    @classmethod
    def _size_as_written(cls, value: object) -> object:
        return parse_size(value) if isinstance(value, str) else value

    @field_validator("output_size", mode="before")
    @classmethod
    def _output_size_as_written(cls, value: object) -> object:
        return parse_output_size(value) if isinstance(value, str) else value

    @field_validator("output_size")
    @classmethod
    def _sides(cls, value: tuple[int, int] | str) -> tuple[int, int] | str:
        if isinstance(value, tuple) and not all(16 <= side <= 16384 for side in value):
            raise ValueError("each side must be from 16 to 16384 pixels")
        return value

    @field_validator("size")
    @classmethod
    def _positive(cls, value: tuple[int, int] | int | None) -> tuple[int, int] | int | None:
        for side in value if isinstance(value, tuple) else (value,):
            if side is not None and not 8 <= side <= 8192:
                raise ValueError("each side must be from 8 to 8192 pixels")
        return value

    @model_validator(mode="after")
    def _schedules_are_stds(self) -> Self:
        if self.method != "std" and self.schedule != "auto":
            raise ValueError(
                f"--schedule {self.schedule} is STD's: leave it out with --method {self.method}"
            )
        return self

    @model_validator(mode="after")
    def _labels_need_a_comparison(self) -> Self:
        if self.labels and self.compare == "none":
            raise ValueError("--labels: add --compare side or --compare wipe, or leave it out")
        return self

    @model_validator(mode="after")
    def _offload_needs_a_gpu(self) -> Self:
        if self.offload != "none" and self.device == "cpu":
            raise ValueError("--offload moves weights to a GPU: leave it out with --device cpu")
        return self


class PackLora(Frozen):
    """A LoRA inside a pack."""

    model_config = ConfigDict(strict=True)

    file: str = Field(max_length=255)
    """Its path inside the pack's folder."""
    task: Task
    eta: float = Field(gt=0, le=1)
    """Partial noise level that it is trained for."""


class Pack(Frozen):
    """A model folder's `std.json`: what suits it."""

    # the file may come from anywhere: 1024 is no "1024", and true no 1
    model_config = ConfigDict(strict=True)

    base_resolution: int = Field(1024, ge=64, le=8192)
    """Working size without --size, pixels."""
    video_resolution: int | None = Field(None, ge=64, le=8192)
    """That of videos; base_resolution if not given."""
    size_by: Literal["area", "long_side"] = "area"
    """Whether these are the square root of the area, or the long side."""
    i2i: dict[str, Any] = {}
    """Defaults for pictures: any of the fields of ImageDefaults."""
    v2v: dict[str, Any] = {}
    """Defaults for videos, which have those for pictures where this says nothing."""
    motion: Literal["auto", "none"] = "auto"
    """What its videos use without --motion. No file or Hub id: a model may come from anywhere."""
    steady: float | None = Field(None, ge=0, le=0.95)
    """What its videos use without --steady."""
    motion_window: int = Field(8, ge=1, le=64)
    """Frames that the model's own motion adapter denoises at once."""
    loras: list[PackLora] = []
    """The pack's own STD LoRAs: {file, task, eta}."""
    distill: dict[str, Any] = {}
    """What suits training on this model, {section: {key: value}}, and under "i2i" or "v2v" what
    does for one task."""


class VideoSettings(ImageSettings):
    """Every setting of a video stylization, resolved."""

    motion: Annotated[str, Flag(metavar="NAME", panel="Motion and time")] = "auto"
    """Motion adapter: auto, none (frame by frame), hotshot, animatediff, a diffusers folder or a
    Hub id."""
    start: Annotated[Seconds | None, Flag(metavar="T", panel="Motion and time")] = None
    """Begin here: seconds, or MM:SS, or HH:MM:SS.mmm from the first frame."""
    end: Annotated[Seconds | None, Flag(metavar="T", panel="Motion and time")] = None
    """Stop before here, as --start counts."""
    max_frames: Annotated[Count | None, Flag(panel="Motion and time")] = Field(None, ge=1)
    """Stop after so many frames."""
    fps: Annotated[Fraction | None, Flag(metavar="N", panel="Motion and time")] = Field(
        None, gt=0, le=1000
    )
    """Resample to this rate, such as 12 or 30000/1001; without it every frame keeps its own time.
    For a folder of pictures, the rate that they have (25 if not given)."""
    overlap: Annotated[Count | None, Flag(panel="Motion and time")] = Field(None, ge=0)
    """Frames that neighbouring motion windows share; half a window if not given."""
    steady: Annotated[float, Flag(panel="Motion and time")] = Field(0.75, ge=0, le=0.95)
    """How much of each frame is taken from the one before, moved as the source moved, against
    flicker; 0 is none."""
    batch: Annotated[int | None, Flag(panel="Machine")] = Field(None, ge=1, le=256)
    """Windows denoised at once; chosen by the GPU's memory if not given."""
    cuts: Annotated[str, Flag(metavar="auto|off|FILE", panel="Motion and time")] = "auto"
    """Where shots change: auto, off, or a file of times."""
    codec: Annotated[str | None, Flag(metavar="NAME", panel="Encoding")] = None
    """h264, hevc, av1, vp9, prores, ffv1, png (a folder), gif, webp, or FFmpeg's name of a hardware
    encoder; by the output's suffix if not given."""
    crf: Annotated[int | None, Flag(panel="Encoding")] = Field(None, ge=0, le=255)
    """Quality of the encoder, lower is better; its own good default if not given."""
    preset: Annotated[str | None, Flag(metavar="NAME", panel="Encoding")] = None
    """Speed of the encoder, in its own words, such as slow or veryfast."""
    audio: Annotated[Audio, Flag(panel="Encoding")] = "copy"
    """Copy the sound, or leave it out."""
    subtitles: Annotated[Subtitles, Flag(panel="Encoding")] = "copy"
    """Copy the subtitles, converted where the container holds another kind of text, or leave them
    out."""
    deinterlace: Annotated[Deinterlace, Flag(panel="Motion and time")] = "auto"
    """Deinterlace the frames that are marked as interlaced (auto), none (off), or all (on)."""
    preview: Annotated[Seconds | None, Flag(metavar="SECONDS", panel="Motion and time")] = Field(
        None, gt=0
    )
    """Stylize only the first so many seconds of each shot, into NAME_preview, with a thumbnail
    (.jpg) next to it."""

    @field_validator("start", "end", "preview", mode="before")
    @classmethod
    def _time_as_written(cls, value: object) -> object:
        return parse_time(value) if isinstance(value, str) else value

    @field_validator("start", "end", "fps", "preview", mode="before")
    @classmethod
    def _decimal_as_written(cls, value: object) -> object:
        """1.8 is 9/5, as "1.8" is, and not the binary fraction next to it."""
        return Fraction(repr(value)) if isinstance(value, float) and math.isfinite(value) else value

    @model_validator(mode="after")
    def _end_after_start(self) -> Self:
        if self.end is not None and self.end <= (self.start or 0):
            raise ValueError(
                f"--end {float(self.end):g} is not after --start {float(self.start or 0):g}"
            )
        return self


S = TypeVar("S", bound=ImageSettings)


def image_settings(
    given: dict[str, Any], pack: dict[str, Any] | None = None, pack_name: str = "std.json"
) -> ImageSettings:
    """Join what the user gave (None: not given) with the model's defaults and ours.

    Raises InputError with every problem in one line, in the spelling of the flags.
    """
    return settings_of(ImageSettings, given, pack, pack_name)


def video_settings(
    given: dict[str, Any], pack: dict[str, Any] | None = None, pack_name: str = "std.json"
) -> VideoSettings:
    """As `image_settings`; the model's defaults for videos go before those for pictures."""
    return settings_of(VideoSettings, given, pack, pack_name)


def layers(
    kind: type[ImageSettings],
    given: dict[str, Any],
    pack: dict[str, Any] | None,
    pack_name: str = "std.json",
) -> dict[Literal["model", "method", "given"], dict[str, Any]]:
    """What each gives that goes before the defaults here; the later ones go before the earlier."""
    tasks = ("i2i", "v2v") if issubclass(kind, VideoSettings) else ("i2i",)
    model: dict[str, Any] = {}
    method: dict[str, Any] = {}
    if pack:
        own = check_pack(pack, pack_name)
        for task in tasks:
            model |= ImageDefaults(**getattr(own, task)).model_dump(exclude_unset=True)
        if "v2v" in tasks:
            model["motion"] = own.motion
            if own.steady is not None:
                model["steady"] = own.steady
    if given.get("method") in get_args(MethodName):
        steps = given.get("steps")
        method = method_defaults(given["method"], steps if isinstance(steps, int) else None)
    return {
        "model": model,
        "method": method,
        "given": {name: value for name, value in given.items() if value is not None},
    }


def check_settings(
    kind: type[ImageSettings], given: dict[str, Any], where: str, spell: Callable[[str], str]
) -> dict[str, Any]:
    """Some settings, checked, as they are kept: "1/2" becomes Fraction(1, 2).

    where: what errors begin with; spell: how they name a setting. Raises InputError with every
    problem in one line.
    """
    try:
        checked = kind(**given)
    except ValidationError as e:
        raise InputError(where + _problems(e, spell)) from None
    return {name: getattr(checked, name) for name in given}


def check_pack(content: dict[str, Any], name: str) -> Pack:
    """The checked contents of a std.json. Raises InputError with every problem; `name`: of the
    file."""
    try:
        pack = Pack(**content)
        for task in (pack.i2i, pack.v2v):
            ImageDefaults.model_validate(task, strict=True)
    except (ValidationError, TypeError) as e:
        found = _problems(e) if isinstance(e, ValidationError) else "its keys are no names"
        raise InputError(f"{name}: {found}: correct the file") from None
    return pack


def settings_of(
    kind: type[S], given: dict[str, Any], pack: dict[str, Any] | None, pack_name: str = "std.json"
) -> S:
    """What `image_settings` and `video_settings` are for their kinds."""
    joined: dict[str, Any] = {}
    for values in layers(kind, given, pack, pack_name).values():
        joined |= values
    try:
        return kind(**joined)
    except ValidationError as e:
        raise InputError(_problems(e, _flag)) from None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _problems(error: ValidationError, spell: Callable[[str], str] = str) -> str:
    """Every problem in one line. Texts that are given on the command line are shown as they are."""
    found = []
    for name, value, message in wrong_values(error):
        shown = quote(value) if spell is str or not isinstance(value, str) else printable(value, 80)
        found.append(f"{spell(name)} {shown}: {message}" if name else message)
    return "; ".join(found)


def parse_output_size(text: str) -> tuple[int, int] | str:
    """ "source" and "model" as they are; "768x512" -> (768, 512). Raises ValueError."""
    if text in ("source", "model"):
        return text
    parts = text.lower().split("x")
    if len(parts) == 2 and all(p.isascii() and p.isdigit() and len(p) < 6 for p in parts):
        return int(parts[0]), int(parts[1])
    raise ValueError("give source, model, or WIDTHxHEIGHT, such as 1280x720")


def parse_size(text: str) -> tuple[int, int] | int:
    """ "768x512" -> (768, 512); "640" -> 640, the long side. Raises ValueError."""
    parts = text.lower().split("x")
    if len(parts) <= 2 and all(p.isascii() and p.isdigit() and len(p) < 6 for p in parts):
        sides = [int(p) for p in parts]
        return (sides[0], sides[1]) if len(sides) == 2 else sides[0]
    raise ValueError("give WIDTHxHEIGHT, such as 768x512, or the long side, such as 768")


def parse_time(text: str) -> Fraction:
    """ "90", "1.5s", "250ms", "1:30", "00:01:30.5" -> seconds. Raises ValueError."""
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)(s|ms)?", text.strip())
    if not match or (match[4] == "ms" and match[2]):
        raise ValueError("not a time; write 90, 1.5s, 1:30 or 00:01:30.5")
    seconds = Fraction(match[3]) / (1000 if match[4] == "ms" else 1)
    if match[2] and seconds >= 60:
        raise ValueError("seconds after minutes go up to 59; write 90, 1.5s, 1:30 or 00:01:30.5")
    return seconds + 60 * int(match[2] or 0) + 3600 * int(match[1] or 0)


def parse_style(text: str) -> tuple[Path, float]:
    """ "ref.png:0.5" -> (ref.png, 0.5); the weight is 1 if not given. A real file wins. Raises
    InputError."""
    path = user_path(text, "--style")
    name, colon, weight = text.rpartition(":")
    if path.exists() or not colon or len(name) < 2:  # a single letter is a Windows drive
        return path, 1.0
    try:
        value = float(weight)
    except ValueError:
        return path, 1.0
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"--style {text}: a weight is a number above 0, such as {name}:0.5")
    return user_path(name, "--style"), value
