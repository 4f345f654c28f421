"""Which encoders work on this machine: each is opened once, on a small picture."""

from fractions import Fraction
from pathlib import Path

from std_cli.errors import InputError
from std_cli.media.video.clip import Clip, Color
from std_cli.media.video.target import CONTAINERS, ENCODERS, choose_target


def try_encoders() -> dict[str, str]:
    """{FFmpeg's name: "" if it works, else why not} of all encoders that --codec knows."""
    square = Fraction(1)
    color = Color(matrix=1, range=1, primaries=1, transfer=1)
    clip = Clip(Path("clip"), "video", 256, 256, square, Fraction(1, 25), Fraction(25), 25,
    Fraction(0), square, color,
                None, 0)  # fmt: skip
    suffixes = {
        codec: suffix for suffix, (_, codecs) in reversed(CONTAINERS.items()) for codec in codecs
    }
    found = {}
    for name, encoder in ENCODERS.items():
        path = Path(f"result{suffixes[encoder.codec]}")
        try:
            choose_target(
                path,
                clip,
                codec=name,
                crf=None,
                preset=None,
                size=(256, 256),
                sar=square,
                rate=None,
                made=True,
            )
            found[name] = ""
        except InputError as e:
            found[name] = str(e)
    return found
