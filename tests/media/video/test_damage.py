"""Damaged files of every container: what was lost is reported once, truthfully, and what is whole
gives no notice.

The files are made here. Each is cut off, or has a tenth of its bytes overwritten.
"""

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from std_cli.errors import InputError
from std_cli.media.video.opening import open_clip
from std_cli.media.video.read import read_frames

COUNT = 60
FILES = {
    "a.ts": ("mpeg2video", "mp2"),
    "b.ts": ("libx264", "aac"),
    "a.mpg": ("mpeg1video", None),
    "a.flv": ("flv", "libmp3lame"),
    "b.flv": ("libx264", "aac"),
    "a.avi": ("mpeg4", "libmp3lame"),
    "b.avi": ("mjpeg", None),
    "a.mkv": ("libx264", "aac"),
    "a.wmv": ("msmpeg4", None),
}


def film(path, codec, sound, first=0):
    """Sixty frames of noise, 25 a second from frame number `first` on, with silence as its
    sound."""
    noise = np.random.default_rng(0)
    options = {"strict": "unofficial", "g": "10", "b": "1000000"}
    if codec == "libx264":
        options = {"g": "10", "bf": "2", "crf": "30"}
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=25, options=options)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        rate = 44100 if path.suffix == ".flv" else 48000
        audio = out.add_stream(sound, rate=rate, layout="stereo") if sound else None
        for i in range(COUNT):
            rgb = noise.integers(0, 64, (48, 64, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb).reformat(format="yuv420p")
            frame.pts, frame.time_base = first + i, Fraction(1, 25)
            out.mux(video.encode(frame))
            if audio:
                out.mux(audio.encode(silence(audio, i * rate // 25, rate // 25)))
        out.mux(video.encode())
        if audio:
            out.mux(audio.encode())
    return path


def silence(stream, start, samples):
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * samples), np.int16), "s16", "stereo")
    frame.sample_rate, frame.pts, frame.time_base = stream.rate, start, Fraction(1, stream.rate)
    return frame


def read(path):
    """(the clip, its frames, its notices)."""
    clip, notices = open_clip(path), []
    frames = list(read_frames(clip, on_notice=notices.append))
    assert all("\n" not in notice and "Errno" not in notice for notice in notices)
    assert all(a.pts + a.duration == b.pts for a, b in pairwise(frames))
    return clip, frames, notices


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_gives_no_notice(tmp_path, name):
    _, frames, notices = read(film(tmp_path / name, *FILES[name]))
    assert len(frames) == COUNT and notices == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_breaks_off(tmp_path, name):
    path = film(tmp_path / name, *FILES[name])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    _, frames, notices = read(path)
    assert COUNT // 3 < len(frames) < COUNT * 3 // 4
    end = frames[-1].pts + frames[-1].duration - frames[0].pts
    broken = [notice for notice in notices if "breaks off" in notice]
    if path.suffix in (".ts", ".mpg"):  # nothing in these files says how long they were
        assert broken == []
    else:
        assert len(broken) == 1 and f"breaks off after {float(end):.3f}" in broken[0]
    if path.suffix == ".avi":
        assert f"{len(frames)} of 6" in broken[0] and "frames came" in broken[0]
    if path.suffix in (".flv", ".mkv", ".avi"):
        assert " of 2.4" in broken[0]
    rest = [notice for notice in notices if notice not in broken]
    assert len(rest) <= 1 and all("1 frame of" in notice for notice in rest)  # it was cut in two


@pytest.mark.parametrize("name", FILES)
def test_a_part_of_a_file_that_is_overwritten(tmp_path, name):
    path = film(tmp_path / name, *FILES[name])
    data = bytearray(path.read_bytes())
    begin, end = len(data) * 4 // 10, len(data) * 5 // 10
    data[begin:end] = b"\xff" * (end - begin)
    path.write_bytes(data)
    _, frames, notices = read(path)
    assert len(frames) < COUNT
    if path.suffix == ".avi":  # it has no times, only a count
        [lost] = [notice for notice in notices if "is not whole" in notice]
        assert f"{len(frames)} of the 60 frames" in lost
    else:
        [lost] = [notice for notice in notices if "has gaps" in notice]
        assert frames[-1].pts + frames[-1].duration - frames[0].pts == Fraction(COUNT, 25)
        missing = int(lost.split("about ")[1].split()[0])
        assert abs(missing - (COUNT - len(frames))) <= 1


def test_an_animation_that_breaks_off_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.gif"), "w") as out:
        stream = out.add_stream("gif", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
        for i in range(20):
            rgb = np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb).reformat(format="rgb8")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    whole = (tmp_path / "a.gif").read_bytes()
    assert len(list(read_frames(open_clip(tmp_path / "a.gif")))) == 20
    (tmp_path / "cut.gif").write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(InputError, match="damaged") as error:
        open_clip(tmp_path / "cut.gif")
    assert "\n" not in str(error.value)


def test_a_clock_of_33_bits_that_runs_over(tmp_path):
    """MPEG-TS counts 2^33 ticks of 1/90000 s, 26.5 hours, and then begins again."""
    first = 2**33 * 25 // 90000 - COUNT // 2  # the clock runs over in the middle
    clip, frames, notices = read(film(tmp_path / "a.ts", "libx264", "aac", first))
    assert [f.pts - clip.start for f in frames] == [Fraction(i, 25) for i in range(COUNT)]
    assert notices == [] and clip.duration == Fraction(COUNT, 25)


@pytest.mark.parametrize("skipped", [0, 1, 5])
def test_an_edit_list_that_begins_behind_a_key_frame(tmp_path, skipped):
    """The frames before it are decoded, for others need them, and not shown."""
    path = film(tmp_path / "a.mp4", "libx264", None)
    whole = list(read_frames(open_clip(path)))
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # behind version, flags and count
    with av.open(str(path)) as file:
        tick = file.streams.video[0].time_base
    media_time = int.from_bytes(data[entry + 4 : entry + 8], "big")
    media_time += int(Fraction(skipped, 25) / tick)
    data[entry + 4 : entry + 8] = media_time.to_bytes(4, "big")
    path.write_bytes(data)
    clip, frames, notices = read(path)
    assert notices == [] and clip.start == 0 == frames[0].pts
    assert len(frames) == COUNT - skipped
    for frame, want in zip(frames, whole[skipped:], strict=True):
        assert np.array_equal(frame.rgb, want.rgb)
        assert frame.pts == want.pts - Fraction(skipped, 25)
