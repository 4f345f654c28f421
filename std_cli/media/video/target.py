"""What a result is written as: container, codec, encoder and their options, chosen and tried."""

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.codeccontext import VideoCodecContext

from std_cli.errors import InputError
from std_cli.media.video.clip import Clip, Color
from std_cli.media.video.color import LIMITED, matrix_of

# else SVT-AV1 prints its settings; read when it is first opened
os.environ.setdefault("SVT_LOG", "1")


@dataclass(frozen=True)
class Encoder:
    codec: str
    """As the user names it."""
    pix_fmt: str
    odd: str | None
    """Pixel format for sizes that are odd; None if it has none."""
    options: dict[str, str]
    quality: str = ""
    """Its option for --crf, "" if it has none."""
    crf: tuple[int, int] = (0, 0)
    """Range of that."""
    preset: str = ""
    presets: tuple[str, ...] = ()
    alpha: str = ""
    """Pixel format for transparent pictures, "" if it has none."""


_X26 = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
)


_NVENC = dict(
    quality="cq", crf=(0, 51), preset="preset", presets=tuple(f"p{i}" for i in range(1, 8))
)


_P420, _P444 = "yuv420p", "yuv444p"


_APPLE = {"flags": "+qscale", "global_quality": str(65 * 118)}  # 65 of 100, in FFmpeg's units


ENCODERS = {
    # x264's macroblock tree now and then differs from run to run (measured at 320 x 180), and a run
    # that resumes must give the same bits as one that was not interrupted
    "libx264": Encoder("h264", _P420, _P444, {"crf": "18", "x264-params": "mbtree=0"}, "crf", (0,
    51), "preset", _X26),
    "libx265": Encoder(
        "hevc", _P420, _P444, {"crf": "20", "x265-params": "log-level=error:frame-threads=2"},
        "crf", (0, 51),
        "preset", _X26,
    ),
    "libsvtav1": Encoder(
        "av1", _P420, _P420, {"crf": "28", "preset": "8"}, "crf", (0, 63), "preset", tuple(map(str,
        range(14)))
    ),
    "libvpx-vp9": Encoder(
        "vp9", _P420, _P420, {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4"}, "crf",
        (0, 63), "cpu-used",
        tuple(map(str, range(9))), alpha="yuva420p",
    ),
    "prores_ks": Encoder("prores", "yuv422p10le", "yuv444p10le", {"profile": "hq"},
    alpha="yuva444p10le"),
    "ffv1": Encoder("ffv1", "bgr0", "bgr0", {"level": "3"}, alpha="bgra"),
    "png": Encoder("png", "rgb24", "rgb24", {}, alpha="rgba"),
    "h264_nvenc": Encoder("h264", _P420, _P444, {"rc": "vbr", "cq": "19"}, **_NVENC),  # type: ignore[arg-type]
    "hevc_nvenc": Encoder("hevc", _P420, _P444, {"rc": "vbr", "cq": "21"}, **_NVENC),  # type: ignore[arg-type]
    "av1_nvenc": Encoder("av1", _P420, None, {"rc": "vbr", "cq": "28"}, **_NVENC),  # type: ignore[arg-type]
    "h264_videotoolbox": Encoder("h264", _P420, None, _APPLE),
    "hevc_videotoolbox": Encoder("hevc", _P420, None, _APPLE),
    "prores_videotoolbox": Encoder("prores", "yuv422p10le", None, {"profile": "hq"}),
}  # fmt: skip


SOFTWARE = {
    "h264": "libx264",
    "hevc": "libx265",
    "av1": "libsvtav1",
    "vp9": "libvpx-vp9",
    "prores": "prores_ks",
}
SOFTWARE |= {"ffv1": "ffv1", "png": "png", "gif": "ffv1", "webp": "ffv1"}


CONTAINERS = {  # suffix -> FFmpeg's name, codecs that it holds, the default first
    ".mp4": ("mp4", ("h264", "hevc", "av1", "vp9")),
    ".m4v": ("mp4", ("h264", "hevc")),
    ".mov": ("mov", ("h264", "hevc", "prores")),
    ".mkv": ("matroska", ("h264", "hevc", "av1", "vp9", "prores", "ffv1")),
    ".webm": ("webm", ("vp9", "av1")),
    ".gif": ("gif", ("gif",)),
    ".webp": ("webp", ("webp",)),
    "": ("folder", ("png",)),
}


MAX_TICKS = 2**31 - 1  # a second's, in mp4


# not as many as there are cores: x264's bits depend on it, and a run may resume on another machine
_THREADS = 4


@dataclass(frozen=True)
class Target:
    """How a result is written."""

    path: Path
    """A file, or for png a folder."""
    codec: str
    encoder: str
    """FFmpeg's name."""
    container: str
    """FFmpeg's name, or "folder"."""
    pix_fmt: str
    width: int
    height: int
    sample_aspect_ratio: Fraction
    time_base: Fraction
    frame_rate: Fraction
    """Nominal: what encoders calculate with."""
    color: Color
    options: dict[str, str]

    @property
    def alpha(self) -> bool:
        """Whether it has transparency."""
        return self.pix_fmt in {encoder.alpha for encoder in ENCODERS.values()}

    @property
    def holds_sound(self) -> bool:
        return self.container not in ("folder", "gif", "webp")


def choose_target(
    path: Path,
    clip: Clip,
    *,
    codec: str | None,
    crf: int | None,
    preset: str | None,
    size: tuple[int, int],
    sar: Fraction,
    rate: Fraction | None,
    made: bool = False,
    alpha: bool = False,
) -> Target:
    """Decide how to write, trying the encoder. `rate`: of the result, if not the clip's own times.
    `made`: the folder of `path` will be there when it is written. `alpha`: keep transparency if the
    encoder has it.

    Raises InputError for what cannot be written so.
    """
    suffix = path.suffix.lower()
    if codec == "png":
        suffix = ""
    if suffix not in CONTAINERS:
        known = ", ".join(filter(None, CONTAINERS))
        raise InputError(
            f"-o {path}: {suffix} cannot be written; use one of {known}, or --codec png for a "
            f"folder"
        )
    container, codecs = CONTAINERS[suffix]
    name = codec or codecs[0]
    encoder = name if name in ENCODERS else SOFTWARE.get(name)
    if encoder is None:
        raise InputError(
            f"--codec {name}: not known; use one of {', '.join({**SOFTWARE, **ENCODERS})}"
        )
    e = ENCODERS[encoder]
    kind = name if name in ("gif", "webp") else e.codec
    if kind not in codecs:
        fits = [s or "a folder" for s, (_, held) in CONTAINERS.items() if kind in held]
        raise InputError(
            f"{suffix or 'a folder'} cannot hold {kind}; write it to {' or '.join(fits)}"
        )
    options = dict(e.options)
    if crf is not None:
        if not e.quality:
            raise InputError(f"--crf {crf}: {encoder} has no such setting; leave it out")
        if not e.crf[0] <= crf <= e.crf[1]:
            raise InputError(f"--crf {crf}: {encoder} takes {e.crf[0]} (best) to {e.crf[1]}")
        options[e.quality] = str(crf)
    if preset is not None:
        if preset not in e.presets:
            takes = f"takes {', '.join(e.presets)}" if e.presets else "has none: leave it out"
            raise InputError(f"--preset {preset}: {encoder} {takes}")
        options[e.preset] = preset
    width, height = size
    pix_fmt = e.odd if width % 2 or height % 2 else e.pix_fmt
    # of the containers of VP9 only Matroska and WebM have a place for alpha
    if alpha and e.alpha and not (e.codec == "vp9" and container == "mp4"):
        pix_fmt = e.alpha
        options |= {"profile": "4444"} if e.codec == "prores" else {}
    if pix_fmt is None:
        raise InputError(
            f"{encoder} takes no odd sides, {width}x{height}; use --output-size with even ones, "
            f"or h264"
        )
    if not made and not path.parent.is_dir():
        raise InputError(f"-o {path}: its folder does not exist; make it, or choose another")
    color = clip.color
    if color.matrix == 2 and matrix_of(color, clip.width, clip.height) != matrix_of(
        color, width, height
    ):
        color = Color(
            matrix_of(color, clip.width, clip.height), color.range, color.primaries, color.transfer
        )
    if pix_fmt in ("bgr0", "rgb24", "bgra", "rgba"):
        color = Color(0, 2, color.primaries, color.transfer)
    elif color.matrix in (0, 8, 14):  # RGB and what is not written here
        color = Color(
            matrix_of(Color(), width, height),
            color.range or LIMITED,
            color.primaries,
            color.transfer,
        )
    base = clip.time_base if rate is None else common_time_base(1 / rate, clip.start)
    nominal = rate or clip.frame_rate or Fraction(25)
    target = Target(
        path, kind, encoder, container, pix_fmt, width, height, sar, base, nominal, color, options
    )
    _try(target)
    return target


def common_time_base(*times: Fraction) -> Fraction:
    """The coarsest 1 / n in which all times are whole; a millionth where that is too fine for a
    container."""
    n = math.lcm(*(t.denominator for t in times))
    return Fraction(1, n if n <= MAX_TICKS else 1_000_000)


def _try(target: Target) -> None:
    """Open the encoder once: what it lacks, a GPU for one, is found before any work."""
    name = target.encoder
    try:
        context: Any = av.CodecContext.create(name, "w")
        set_up(context, target)
        context.open()
    except av.codec.codec.UnknownCodecError:
        raise InputError(
            f"the encoder {name} cannot be used here: this build of PyAV has none; choose "
            f"another --codec, such as h264"
        ) from None
    except (av.FFmpegError, ValueError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        needs = (
            ", it needs an NVIDIA GPU that encodes, and its driver"
            if name.endswith("_nvenc")
            else ""
        )
        raise InputError(
            f"the encoder {name} cannot be used here ({reason}){needs}; choose another --codec, "
            f"such as h264"
        ) from None


def set_up(context: VideoCodecContext, target: Target) -> None:
    t = target
    context.width, context.height, context.pix_fmt = t.width, t.height, t.pix_fmt
    context.time_base, context.framerate = t.time_base, t.frame_rate
    context.sample_aspect_ratio = t.sample_aspect_ratio
    context.colorspace, context.color_range = t.color.matrix, t.color.range
    context.color_primaries, context.color_trc = t.color.primaries, t.color.transfer
    context.options = dict(t.options)
    context.thread_count = _THREADS


def decoding_delay(target: Target) -> int:
    """By how many frames decoding runs ahead of showing, at most."""
    if target.codec not in ("h264", "hevc"):
        return 0
    return 2 if target.encoder.startswith("lib") else 4  # hardware may nest its B frames deeper


def early_times(target: Target, first: int, step: int) -> list[int]:
    """Times (ticks) before the first frame's, at which the packets that run ahead are decoded.

    `step`: at most the time to the second frame, else mp4's edit list begins where that one would,
    and FFmpeg reads all times as earlier.
    """
    return [first - n * step for n in range(decoding_delay(target), 0, -1)]


def exact_clock(target: Target, *rates: int) -> dict[str, str]:
    """Options of mp4 and mov for exact times: their edit lists, else in milliseconds, hold where
    each stream begins."""
    ticks = target.time_base.denominator
    all_ticks = math.lcm(ticks, *rates)
    whole = all_ticks if all_ticks <= MAX_TICKS else ticks
    return {"video_track_timescale": str(ticks), "movie_timescale": str(whole)}
