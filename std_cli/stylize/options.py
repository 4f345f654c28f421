"""The options of the Python functions, typed: those of `config`'s settings, as a caller gives them.

None stands for "not given". A test compares names and types with the fields of the settings.
"""

import inspect
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, TypedDict, TypeVar, get_type_hints

from std_cli.config import (
    Audio,
    Compare,
    Deinterlace,
    Dtype,
    IpAdapter,
    Offload,
    ScheduleChoice,
    StyleBlocks,
    Subtitles,
    VideoSettings,
)
from std_cli.weights.zoo import MethodName

F = TypeVar("F", bound=Callable[..., Any])
Seconds = str | float | Fraction | None
"""1.5, Fraction(3, 2), "1.5s" or "0:01.5"."""


class ModelOptions(TypedDict, total=False):
    """What is loaded: another value loads other weights."""

    model: str | None
    ip_adapter: IpAdapter | None
    method: MethodName | None
    lora: str | None
    allow_partial: bool | None
    device: str | None
    dtype: Dtype | None
    offload: Offload | None
    compile: bool | None


class LoadOptions(ModelOptions, total=False):
    """What is loaded, for pictures and for videos."""

    motion: str | None


class LookOptions(TypedDict, total=False):
    """What a picture or a video shall look like."""

    prompt: str | None
    negative_prompt: str | None
    eta: float | None
    steps: int | None
    cfg: float | None
    cfg_steps: int | None
    cfg_every: int | None
    style_scale: float | None
    style_blocks: StyleBlocks | None
    palette: float | None
    keep_colors: bool | None
    size: str | int | tuple[int, int] | None
    seed: int | None
    schedule: ScheduleChoice | None
    output_size: str | tuple[int, int] | Literal["source", "model"] | None
    compare: Compare | None
    labels: bool | None


class ClipOptions(LookOptions, total=False):
    """What a video shall look like, and what becomes of its time, sound and format."""

    start: Seconds
    end: Seconds
    max_frames: int | None
    fps: str | int | float | Fraction | None
    overlap: int | None
    steady: float | None
    batch: int | None
    cuts: str | None
    codec: str | None
    crf: int | None
    preset: str | None
    audio: Audio | None
    subtitles: Subtitles | None
    deinterlace: Deinterlace | None
    preview: Seconds


class ImageOptions(ModelOptions, LookOptions, total=False):
    """Every option of `stylize_image` and `stylize_images`."""


class VideoOptions(LoadOptions, ClipOptions, total=False):
    """Every option of `stylize_video`."""


def with_options(options: type) -> Callable[[F], F]:
    """Let `help` and notebooks list the options of a function that takes them as `**options`.

    Type checkers see them by `Unpack[options]`.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=VideoSettings.model_fields[name].default,
                annotation=annotation,
            )
            for name, annotation in get_type_hints(options).items()
        ]
        function.__signature__ = signature.replace(parameters=own + more)  # type: ignore[attr-defined]
        return function

    return decorate
