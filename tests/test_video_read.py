"""Reading videos: exact times, upright pixels, right colours, damage; on files made here with PyAV."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from std_cli.errors import InputError, StdError
from std_cli.video.clip import Color
from std_cli.video.color import from_rgb, to_rgb
from std_cli.video.read import open_clip, read_frames

COEFFICIENTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593), 7: (0.212, 0.087)}


def bars(width=64, height=48):
    """Eight flat colours."""
    colours = np.array([[r, g, b] for r in (30, 220) for g in (20, 200) for b in (40, 240)], np.uint8)
    return np.repeat(np.repeat(colours[None], height, 0), width // 8, 1)


def write(path, frames, codec="libx264", pts=None, base=Fraction(1, 600), color=None, pix_fmt="yuv444p", **options):
    """Frames (H, W, 3) with `pts` in ticks of `base`."""
    color = color or Color(1, 1, 1, 1)
    scale = {"video_track_timescale": str(base.denominator)} if path.suffix in (".mp4", ".mov") else {}
    with av.open(f"file:{path}", "w", options=scale) as out:
        stream = out.add_stream(codec, rate=25, options={"crf": "1", "bf": "2"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], pix_fmt
        context = stream.codec_context
        context.time_base = base
        context.colorspace, context.color_range = color.matrix, color.range
        context.color_primaries, context.color_trc = color.primaries, color.transfer
        if "rotation" in options:
            stream.set_display_rotation(options["rotation"])
        if "sar" in options:
            stream.sample_aspect_ratio = context.sample_aspect_ratio = options["sar"]
        for i, pixels in enumerate(frames):
            frame = from_rgb(pixels, pix_fmt, color) if isinstance(pixels, np.ndarray) else pixels
            frame.pts, frame.time_base = (pts[i] if pts else 24 * i), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def grey(*levels, size=(48, 64)):
    return [np.full((*size, 3), level, np.uint8) for level in levels]


def times(clip, **options):
    return [f.pts for f in read_frames(clip, **options)]


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1234])
def test_variable_times_are_exact(tmp_path, offset):
    pts = [offset + t for t in (0, 20, 50, 51, 100, 160)]
    clip = open_clip(write(tmp_path / "a.mp4", grey(*range(0, 240, 40)), pts=pts))
    assert times(clip) == [Fraction(t, 600) for t in pts]
    assert clip.start == Fraction(offset, 600) and clip.frames == 6


def test_start_end_and_count(tmp_path):
    clip = open_clip(write(tmp_path / "a.mp4", grey(*range(0, 200, 2)), pts=[300 + 24 * i for i in range(100)]))
    whole = times(clip)
    begin = clip.start + 2
    assert times(clip, start=Fraction(2), end=Fraction(3)) == [t for t in whole if begin <= t < begin + 1]
    assert times(clip, start=Fraction(2), max_frames=3) == [t for t in whole if t >= begin][:3]
    levels = [int(f.rgb.mean()) for f in read_frames(clip, start=Fraction(2), max_frames=3)]
    assert np.abs(np.array(levels) - [100, 102, 104]).max() <= 1


def test_resampling_shows_what_is_on_the_screen_then(tmp_path):
    clip = open_clip(write(tmp_path / "a.mp4", grey(0, 60, 120, 180), pts=[0, 60, 240, 300], base=Fraction(1, 600)))
    up = list(read_frames(clip, fps=Fraction(20)))
    assert [f.pts for f in up[:4]] == [0, Fraction(1, 20), Fraction(1, 10), Fraction(3, 20)]
    assert [round(f.rgb.mean() / 60) for f in up[:11]] == [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 3]
    down = [round(f.rgb.mean() / 60) for f in read_frames(clip, fps=Fraction(5))]
    assert down[:3] == [0, 1, 2]


# --- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotated_clips_come_upright(tmp_path, rotation):
    picture = grey(20, size=(48, 64))[0].copy()
    picture[:24, :32] = (220, 40, 30)  # red at the top left
    clip = open_clip(write(tmp_path / "a.mp4", [picture], rotation=rotation))
    [frame] = read_frames(clip)
    # a display rotation of 90 shows the picture turned by 90 degrees anticlockwise
    want = np.rot90(picture, rotation // 90)
    assert (clip.width, clip.height) == (want.shape[1], want.shape[0])
    assert np.abs(frame.rgb.astype(int) - want).mean() < 3


def test_pixels_that_are_not_square(tmp_path):
    clip = open_clip(write(tmp_path / "a.mp4", grey(90), sar=Fraction(4, 3)))
    assert (clip.width, clip.height, clip.sample_aspect_ratio) == (64, 48, Fraction(4, 3))
    assert clip.display_size == (85, 48)


def test_odd_sizes(tmp_path):
    clip = open_clip(write(tmp_path / "a.mp4", grey(90, size=(35, 51))))
    [frame] = read_frames(clip)
    assert frame.rgb.shape == (35, 51, 3)


# --- colour ----------------------------------------------------------------------------------------------------------


def reference_rgb(yuv, matrix, full, depth=8):
    """ITU-T H.273 in floats: (..., 3) codes -> RGB 0 to 255."""
    kr, kb = COEFFICIENTS[matrix]
    codes = yuv.astype(float) / 2 ** (depth - 8)
    y, c = (codes[..., 0] / 255, (codes[..., 1:] - 128) / 255) if full else (
        (codes[..., 0] - 16) / 219, (codes[..., 1:] - 128) / 224
    )  # fmt: skip
    cb, cr = c[..., 0], c[..., 1]
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    return 255 * np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], -1).clip(0, 1)


@pytest.mark.parametrize("matrix", list(COEFFICIENTS))
@pytest.mark.parametrize("full", [False, True])
def test_matrices_and_ranges_are_right_both_ways(matrix, full):
    color, rgb = Color(matrix, 2 if full else 1, 1, 1), bars()
    frame = from_rgb(rgb, "yuv444p", color)
    yuv = np.moveaxis(frame.to_ndarray(), 0, -1)
    assert np.abs(reference_rgb(yuv, matrix, full) - rgb).max() <= 2
    assert np.abs(to_rgb(frame, color) - reference_rgb(yuv, matrix, full)).max() <= 1.5


def test_ten_bits(tmp_path):
    color = Color(9, 1, 9, 1)
    frame = from_rgb(bars(), "yuv444p10le", color)
    yuv = np.stack([np.frombuffer(p, np.uint16).reshape(48, -1)[:, :64] for p in frame.planes], -1)
    assert np.abs(to_rgb(frame, color) - reference_rgb(yuv, 9, False, 10)).max() <= 1.5


def test_untagged_is_601_when_small_and_709_when_large():
    for size, matrix in (((48, 64), 6), ((720, 1280), 1)):
        rgb = np.repeat(np.repeat(bars(64, 48)[:1, ::8], size[0], 0), size[1] // 8, 1)
        tagged = from_rgb(rgb, "yuv444p", Color(matrix, 1, 1, 1))
        assert np.abs(to_rgb(tagged, Color()).astype(int) - rgb).max() <= 2


def test_rgb_and_grey_sources(tmp_path):
    for pix_fmt in ("rgb24", "gray"):
        path = write(tmp_path / f"{pix_fmt}.mov", [bars()], "png", pix_fmt=pix_fmt, color=Color(2, 2, 2, 2))
        [frame] = read_frames(open_clip(path))
        want = bars() if pix_fmt == "rgb24" else np.repeat((bars() @ [0.299, 0.587, 0.114])[..., None], 3, 2)
        assert np.abs(frame.rgb - want).max() <= 2


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_tone_mapped(tmp_path, transfer, name):
    """A grey ramp stays grey and monotonic; diffuse white (203 cd/m2: 58% of PQ's code, 75% of HLG's) is bright."""
    codes = np.linspace(0, 1023, 64).round().astype(np.uint16)
    ramp = np.repeat(codes[None], 48, 0)
    rgb = np.repeat(((ramp >> 2)[..., None]).astype(np.uint8), 3, 2)
    path = write(tmp_path / "hdr.mp4", [rgb], color=Color(9, 2, 9, transfer), pix_fmt="yuv444p10le")
    notices, clip = [], open_clip(path)
    [frame] = read_frames(clip, on_notice=notices.append)
    assert clip.hdr == name and clip.color == Color(1, 1, 1, 1)
    assert notices == [f"hdr.mp4 is HDR ({name}): it is tone-mapped to SDR"]
    row = frame.rgb[24].astype(int)
    assert np.abs(row - row.mean(-1, keepdims=True)).max() <= 4
    grey_row = row.mean(-1)
    assert (np.diff(grey_row) >= -2).all() and grey_row[0] <= 3 and grey_row[-1] >= 250
    white = grey_row[round((0.58 if name == "PQ" else 0.75) * 63)]
    assert 190 <= white <= 245


# --- damage and refusals ---------------------------------------------------------------------------------------------


def flip(path, packets):
    """Overwrite the payload of some packets of a file with noise."""
    with av.open(str(path)) as file:
        spans = [(p.pos, p.size) for p in file.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for i in packets:
        pos, size = spans[i]
        data[pos + size // 2 : pos + size] = b"\xff" * (size - size // 2)  # its start may belong to the container
    path.write_bytes(data)


def test_a_few_damaged_frames_are_replaced_and_counted(tmp_path):
    path = write(
        tmp_path / "a.mov",
        grey(*range(0, 200, 10)),
        "png",
        pix_fmt="rgb24",
        color=Color(0, 2, 1, 1),
        base=Fraction(1, 1000),
    )
    flip(path, [5, 6])
    notices = []
    frames = list(read_frames(open_clip(path), on_notice=notices.append))
    assert [f.pts for f in frames] == [Fraction(24 * i, 1000) for i in range(20)]
    assert [int(f.rgb[0, 0, 0]) for f in frames[3:9]] == [30, 40, 40, 40, 70, 80]
    assert notices == ["2 frames of a.mov could not be decoded: the one before was used"]


def test_too_many_damaged_frames_are_an_error(tmp_path):
    path = write(
        tmp_path / "a.mov",
        grey(*range(0, 200, 5)),
        "png",
        pix_fmt="rgb24",
        color=Color(0, 2, 1, 1),
        base=Fraction(1, 1000),
    )
    flip(path, range(3, 35))
    with pytest.raises(StdError, match="more than 25 frames in a row"):
        list(read_frames(open_clip(path)))


def test_a_file_that_breaks_off_gives_what_it_has(tmp_path):
    path = write(tmp_path / "a.mkv", grey(*range(0, 200, 2)), "ffv1", pix_fmt="bgr0", base=Fraction(1, 1000))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 20 < len(list(read_frames(open_clip(path)))) < 80


def no_video(path):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


def test_what_is_no_video_is_refused_in_one_line(tmp_path):
    no_video(tmp_path / "sound.m4a")
    whole = write(tmp_path / "whole.mp4", grey(1, 2, 3))
    (tmp_path / "header.mp4").write_bytes(whole.read_bytes()[:700])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.txt").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    (tmp_path / "bad.gif").write_bytes(b"GIF89a")
    (tmp_path / "none").mkdir()
    for name, what in {
        "absent.mp4": "no such video", "sound.m4a": "no video stream", "header.mp4": "cannot be read",
        "empty.mp4": "empty", "text.mp4": "cannot be read", "list.m3u8": "cannot be read", "list.txt": "cannot be read",
        "bad.gif": "cannot be read", "none": "no pictures", "http://localhost/a.mp4": "no such video",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=what) as error:
            open_clip(tmp_path / name)
        assert "\n" not in str(error.value)


def test_names_that_are_not_ascii_or_look_like_protocols(tmp_path):
    for name in ("Käse 映画.mp4", "concat:a|b.mp4"):
        clip = open_clip(write(tmp_path / "a.mp4", grey(5)).rename(tmp_path / name))
        assert len(times(clip)) == 1


# --- animations and folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_keep_their_durations(tmp_path, suffix):
    frames = [Image.new("RGBA", (40, 30), (200, 20 * i, 40, 255)) for i in range(3)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[100, 250, 40], lossless=True)
    clip = open_clip(path)
    found = list(read_frames(clip))
    assert [f.pts for f in found] == [0, Fraction(1, 10), Fraction(35, 100)]
    assert clip.duration == Fraction(39, 100) and clip.frames == 3
    assert np.abs(found[2].rgb[5, 5].astype(int) - (200, 40, 40)).max() <= 8


def test_what_is_transparent_shows_white(tmp_path):
    Image.new("RGBA", (40, 30), (0, 0, 0, 0)).save(tmp_path / "a.gif")
    [frame] = read_frames(open_clip(tmp_path / "a.gif"))
    assert frame.rgb.min() == 255


def test_a_folder_is_read_in_natural_order(tmp_path):
    for i in (1, 2, 10):
        Image.new("RGB", (40, 30), (10 * i, 0, 0)).save(tmp_path / f"f{i}.png")
    clip = open_clip(tmp_path)
    found = list(read_frames(clip))
    assert [int(f.rgb[0, 0, 0]) for f in found] == [10, 20, 100]
    assert [f.pts for f in found] == [0, Fraction(1, 25), Fraction(2, 25)]
    Image.new("RGB", (41, 30)).save(tmp_path / "f3.png")
    with pytest.raises(InputError, match="41x30"):
        list(read_frames(open_clip(tmp_path)))
