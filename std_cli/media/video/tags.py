"""What a container says of a video and of its streams: tags, languages, chapters, timecode."""

import json
import re
from fractions import Fraction
from typing import Any

from av.container import InputContainer
from av.stream import Stream

from std_cli.media.video.clip import Span

_TECHNICAL = (
    "major_brand",
    "minor_version",
    "compatible_brands",
    "encoder",
    "duration",
    "timecode",
)
# of a stream: what counts it, as mkvmerge writes that, or describes its encoding
_STALE = (
    "duration",
    "number_of_frames",
    "number_of_bytes",
    "bps",
    "encoder",
    "timecode",
    "rotate",
    "alpha_mode",
    "source_id",
)
# ISO 639-2's second codes where FFmpeg's QuickTime writer knows only the first ("ger" for "deu"),
# or the reverse
_QUICKTIME = {
    "deu": "ger", "nld": "dut", "ell": "gre", "isl": "ice", "zho": "chi", "sqi": "alb",
    "hye": "arm", "kat": "geo",
    "bod": "tib", "mya": "bur", "msa": "may", "cym": "wel", "eus": "baq", "fas": "per",
    "fre": "fra", "rum": "ron",
    "cze": "ces", "slo": "slk", "mkd": "mac",
}  # fmt: skip


def file_tags(before: InputContainer, commented: bool) -> dict[str, str]:
    """The tags of a source that its result has, too; `commented`: its comment is replaced by our
    own."""
    tags = {k: v for k, v in before.metadata.items() if k.lower() not in _TECHNICAL}
    if commented:
        old = next((v for k, v in tags.items() if k.lower() == "comment"), None)
        tags = {k: v for k, v in tags.items() if k.lower() != "comment"}
        if old and request_in(old) is None and "description" not in map(str.lower, tags):
            tags["description"] = old
    return tags


def request_in(comment: str) -> dict[str, Any] | None:
    """The request that a comment of ours stores; None in another one."""
    try:
        found = json.loads(comment)["std"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def stream_tags(stream: Stream, container: str) -> dict[str, str]:
    """The tags of one stream as `container` (FFmpeg's name) takes them."""
    tags = {
        key: value
        for key, value in stream.metadata.items()
        if key.lower().split("-")[0] not in _STALE and not key.lower().startswith("_statistics")
    }
    if "name" in tags and "title" not in tags:  # how FFmpeg reads an mp4's title of a track
        tags["title"] = tags.pop("name")
    if container == "mov" and "language" in tags:
        tags["language"] = _QUICKTIME.get(tags["language"], tags["language"])
    return tags


def reverse_domain(tags: dict[str, str]) -> bool:
    """Whether there are keys as QuickTime and Android write them, com.apple.quicktime.make for one.

    Only the metadata atom "mdta" of mp4 and mov holds them:
    https://developer.apple.com/documentation/quicktime-file-format/metadata_item_keys_atom
    """
    return any(key.lower().startswith(("com.apple.", "com.android.")) for key in tags)


def chapters_in(before: InputContainer, span: Span) -> list[Any]:
    """The source's chapters, cut to the span."""
    chapters = []
    for chapter in before.chapters():
        base = chapter["time_base"] or Fraction(1, 1000)
        start, end = chapter["start"] * base, chapter["end"] * base
        start = start if span.begin is None else max(start, span.begin)
        end = end if span.until is None else min(end, span.until)
        if start < end:
            ticks = {
                "start": round((start - span.shift) / base),
                "end": round((end - span.shift) / base),
            }
            chapters.append(chapter | ticks)
    return chapters


def timecode_of(before: InputContainer, stream: Stream) -> str | None:
    """The timecode of the first frame, from the stream of pictures, the file, or a track of its
    own."""
    for metadata in (stream.metadata, before.metadata, *(s.metadata for s in before.streams)):
        for key, value in metadata.items():
            if key.lower() == "timecode":
                return str(value)
    return None


def moved_timecode(
    timecode: str, seconds: Fraction, rate: Fraction, new_rate: Fraction
) -> str | None:
    """The timecode `seconds` later, as a video of `new_rate` frames a second counts it; None if it
    is not one.

    SMPTE ST 12-1: with drop frame (";") the numbers 0 and 1 are left out in every minute but each
    tenth, at 29.97 frames a second, and 0 to 3 at 59.94.
    """
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d)([:;.])(\d+)", timecode.strip())
    if match is None:
        return None
    hours, minutes, secs, frames = (int(match[i]) for i in (1, 2, 3, 5))
    drop = match[4] != ":"
    base = round(rate)
    drop = drop and base % 30 == 0 and base != rate
    dropped = base // 15 if drop else 0
    whole = 60 * hours + minutes
    count = (
        (60 * whole + secs) * base
        + frames
        - dropped * (whole - whole // 10)
        + round(seconds * rate)
    )
    per_minute, per_ten = 60 * base - dropped, 600 * base - 9 * dropped
    tens, rest = divmod(count % (144 * per_ten), per_ten)
    extra = 0 if rest < 60 * base else 1 + (rest - 60 * base) // per_minute
    label = tens * 600 * base + rest + dropped * extra
    frames, label = label % base, label // base
    if new_rate != rate:
        drop = drop and new_rate in (Fraction(30000, 1001), Fraction(60000, 1001))
        frames = frames * round(new_rate) // base
    parts = f"{label // 3600:02d}:{label // 60 % 60:02d}:{label % 60:02d}"
    return f"{parts}{';' if drop else ':'}{frames:02d}"
