"""Cuts on photographs that move, fade, shake and flash, and given as times."""

import re
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from skimage import data

from std_cli.config import parse_time, video_settings
from std_cli.errors import InputError
from std_cli.media.video.cuts import CutDetector, GivenCuts, read_cuts

PHOTOS = [
    Image.fromarray(p()).resize((512, 512))
    for p in (data.astronaut, data.chelsea, data.coffee, data.rocket)
]


def crop(photo, x=96, y=150, zoom=1.0):
    box = (x, y, x + int(320 / zoom), y + int(180 / zoom))
    return np.asarray(photo.crop(box).resize((320, 180))).astype(float)


def shot(photo, kind, count, r):
    speed = r.uniform(1, 9)
    for i in range(count):
        if kind == "pan":
            yield crop(photo, x=int(i * speed))
        elif kind == "zoom":
            yield crop(photo, zoom=1 + i * speed / 100)
        elif kind == "noise":
            yield crop(photo) + r.normal(0, 25, (180, 320, 3))
        elif kind == "shake":
            yield crop(photo, *r.integers(0, 24, 2))
        elif kind == "light":
            yield crop(photo) * (0.5 + 0.5 * abs(np.sin(i / 4)))
        elif kind == "flash":
            yield crop(photo) + 150 * (i == count // 2)
        else:
            yield crop(photo) * max(0.0, 1 - i / count)


KINDS = ("pan", "zoom", "noise", "shake", "light", "flash", "fade")


def found(frames, rate=25):
    detector = CutDetector()
    return [i for i, f in enumerate(frames) if detector(f, Fraction(i, rate))]


@pytest.mark.parametrize("kind", KINDS)
def test_no_cut_is_found_within_a_shot(kind):
    for seed, photo in enumerate(PHOTOS):
        r = np.random.default_rng(seed)
        assert found([f.clip(0, 255).astype(np.uint8) for f in shot(photo, kind, 20, r)]) == []


def test_hard_cuts_are_found():
    """Precision and recall over 16 clips of five shots; a shot that has faded to black may hide its
    end."""
    right = wrong = missed = 0
    for seed in range(16):
        r, frames, cuts = np.random.default_rng(seed), [], set()
        for n in range(5):
            cuts |= {len(frames)} - {0}
            frames += shot(PHOTOS[(n + seed) % 4], r.choice(KINDS), 20, r)
        hits = set(found([f.clip(0, 255).astype(np.uint8) for f in frames]))
        right, wrong, missed = (
            right + len(hits & cuts),
            wrong + len(hits - cuts),
            missed + len(cuts - hits),
        )
    assert right / (right + wrong) >= 0.98 and right / (right + missed) >= 0.95


def test_given_cuts_belong_to_the_first_frame_at_or_after_them(tmp_path):
    path = tmp_path / "cuts.txt"
    path.write_text("# by hand\n0.5\n00:00:01.04, scene 3\n\n0\n")
    cuts = GivenCuts(read_cuts(path), Fraction(10))
    frame = np.zeros((8, 8, 3), np.uint8)
    assert [i for i in range(50) if cuts(frame, 10 + Fraction(i, 25))] == [13, 26]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5s", Fraction(3, 2)),
        ("250ms", Fraction(1, 4)),
        ("1:30", 90),
        ("01:00:00.5", Fraction(7201, 2)),
    ],
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1:75", "1:2:3:4", "nan", "1e5"])
def test_what_is_no_time_is_refused_by_its_flag(text):
    with pytest.raises(InputError, match=f"--start {re.escape(text)}: "):
        video_settings({"start": text})


def test_a_bad_file_of_cuts_names_the_line(tmp_path):
    (tmp_path / "c.txt").write_text("1\n2\nthree\n")
    with pytest.raises(InputError, match="line 3: three"):
        read_cuts(tmp_path / "c.txt")
    with pytest.raises(InputError, match="--cuts"):
        read_cuts(tmp_path / "absent.txt")
