"""One map for a shot: right at once, without flicker, and blind to fades."""

import numpy as np
import pytest
from PIL import Image
from skimage import data

from std_cli.media.palette import color_map, mix_of, moments, with_palette
from std_cli.media.video.clip import Seen
from std_cli.media.video.palette import Palette

PHOTO = np.asarray(Image.fromarray(data.astronaut()).resize((96, 64))).astype(np.float32)
REFERENCE = mix_of(moments(np.asarray(Image.fromarray(data.coffee()).resize((96, 64)))))
COVER = np.full((64, 96), 255, np.uint8)


def seen(shot=1):
    return Seen(np.zeros((64, 96, 3), np.uint8), COVER, shot, 0.04)


def mapped(frames, shots=None):
    palette = Palette(REFERENCE, 1.0)
    shots = shots or [1] * len(frames)
    return [palette(seen(shot), frame) for frame, shot in zip(frames, shots, strict=True)]


def ideal(frame):
    """By the map of the frame in full light."""
    return color_map(mix_of(moments(PHOTO.astype(np.uint8))), REFERENCE, 1.0)(frame)


def light(frames):
    return np.array([frame.mean() for frame in frames])


def test_the_first_frame_of_a_shot_is_right_at_once():
    frames = [PHOTO, PHOTO, 255 - PHOTO, 255 - PHOTO]
    out = mapped(frames, [1, 1, 2, 2])
    for frame, made in zip(frames, out, strict=True):
        assert np.abs(made - with_palette(frame, REFERENCE, 1.0, COVER)).max() < 0.1


def test_what_changes_within_a_shot_changes_the_map_slowly():
    """A figure covers half of the picture: the other half hardly moves in a frame, and arrives
    within some seconds."""
    covered = PHOTO.copy()
    covered[:, 48:] = (30, 160, 60)
    frames = [PHOTO] * 10 + [covered] * 200
    out = mapped(frames)
    untouched = light([frame[:, :48] for frame in out])
    assert np.abs(np.diff(untouched)).max() < 2
    settled = with_palette(covered, REFERENCE, 1.0, COVER)[:, :48].mean()
    assert abs(untouched[-1] - settled) < 0.25 * abs(untouched[0] - settled)


def test_jitter_of_the_frames_does_not_move_the_map():
    rng = np.random.default_rng(0)
    frames = [
        (PHOTO * rng.normal(1, 0.02) + rng.normal(0, 2, PHOTO.shape))
        .clip(0, 255)
        .astype(np.float32)
        for _ in range(40)
    ]
    together, alone = (
        light(mapped(frames)),
        light([with_palette(f, REFERENCE, 1.0, COVER) for f in frames]),
    )
    assert np.diff(alone).std() < 0.2  # each by itself: all have the reference's light
    fixed = light([ideal(frame) for frame in frames])
    assert np.abs(np.diff(together) - np.diff(fixed)).max() < 0.6


def test_a_fade_out_stays_one():
    frames = [PHOTO * max(0.0, 1 - max(0, i - 25) / 25) for i in range(200)]
    out, fixed = light(mapped(frames)), light([ideal(frame) for frame in frames])
    assert (out - fixed).max() < 12
    assert np.abs(np.diff(out[51:])).max() < 0.01  # black, for six seconds


def test_a_fade_in_neither_flashes_nor_begins_bright():
    frames = [PHOTO * min(1.0, i / 25) for i in range(100)]
    out, fixed = light(mapped(frames)), light([ideal(frame) for frame in frames])
    assert out[0] < 1
    assert out.max() < fixed[-1] + 25 and abs(out[-1] - fixed[-1]) < 3
    assert np.diff(out).max() < 4 * np.diff(fixed).max()


@pytest.mark.parametrize("level", [0, 90, 255])
def test_flat_frames_stay_as_they_are(level):
    flat = np.full_like(PHOTO, level)
    for made in mapped([flat] * 5):
        assert np.abs(made - flat).max() < 1e-3
    hidden = Seen(np.zeros((64, 96, 3), np.uint8), np.zeros_like(COVER), 1, 0.04)
    assert Palette(REFERENCE, 1.0)(hidden, PHOTO) is PHOTO


def test_it_continues_from_its_state():
    frames = [PHOTO * (1 - i / 20) for i in range(8)]
    whole, palette, parts = mapped(frames), Palette(REFERENCE, 1.0), []
    for frame in frames:
        parts.append(palette(seen(), frame))
        palette = Palette.from_state(REFERENCE, 1.0, palette.state())
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert np.array_equal(palette(seen(2), PHOTO), mapped([PHOTO])[0])
