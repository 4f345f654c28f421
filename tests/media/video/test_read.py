"""Reading videos: exact times, upright pixels, right colours, damage; on files made here with
PyAV."""

import os
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from std_cli.errors import InputError, StdError
from std_cli.media.open_picture import MAX_PIXELS
from std_cli.media.video.clip import MAX_FRAME_PIXELS, Color
from std_cli.media.video.color import from_rgb, to_rgb
from std_cli.media.video.decode import video_stream
from std_cli.media.video.opening import open_clip, turn_of
from std_cli.media.video.read import _upright, read_frames

COEFFICIENTS = {
    1: (0.2126, 0.0722),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    9: (0.2627, 0.0593),
    7: (0.212, 0.087),
}


def bars(width=64, height=48):
    """Eight flat colours."""
    colours = np.array(
        [[r, g, b] for r in (30, 220) for g in (20, 200) for b in (40, 240)], np.uint8
    )
    return np.repeat(np.repeat(colours[None], height, 0), width // 8, 1)


def write(
    path,
    frames,
    codec="libx264",
    pts=None,
    base=Fraction(1, 600),
    color=None,
    pix_fmt="yuv444p",
    **options,
):
    """Frames (H, W, 3) with `pts` in ticks of `base`."""
    color = color or Color(1, 1, 1, 1)
    scale = (
        {"video_track_timescale": str(base.denominator)} if path.suffix in (".mp4", ".mov") else {}
    )
    scale |= {"movflags": options["movflags"]} if "movflags" in options else {}
    settings = options.get("codec_options", {"crf": "1", "bf": "2"} if codec == "libx264" else {})
    with av.open(f"file:{path}", "w", options=scale) as out:
        stream = out.add_stream(codec, rate=25, options=settings)
        stream.width, stream.height, stream.pix_fmt = (
            frames[0].shape[1],
            frames[0].shape[0],
            pix_fmt,
        )
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


# --- time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1234])
def test_variable_times_are_exact(tmp_path, offset):
    pts = [offset + t for t in (0, 20, 50, 51, 100, 160)]
    clip = open_clip(write(tmp_path / "a.mp4", grey(*range(0, 240, 40)), pts=pts))
    assert times(clip) == [Fraction(t, 600) for t in pts]
    assert clip.start == Fraction(offset, 600) and clip.frames == 6


def test_start_end_and_count(tmp_path):
    clip = open_clip(
        write(tmp_path / "a.mp4", grey(*range(0, 200, 2)), pts=[300 + 24 * i for i in range(100)])
    )
    whole = times(clip)
    begin = clip.start + 2
    assert times(clip, start=Fraction(2), end=Fraction(3)) == [
        t for t in whole if begin <= t < begin + 1
    ]
    assert times(clip, start=Fraction(2), max_frames=3) == [t for t in whole if t >= begin][:3]
    levels = [int(f.rgb.mean()) for f in read_frames(clip, start=Fraction(2), max_frames=3)]
    assert np.abs(np.array(levels) - [100, 102, 104]).max() <= 1


def test_resampling_shows_what_is_on_the_screen_then(tmp_path):
    clip = open_clip(
        write(
            tmp_path / "a.mp4", grey(0, 60, 120, 180), pts=[0, 60, 240, 300], base=Fraction(1, 600)
        )
    )
    up = list(read_frames(clip, fps=Fraction(20)))
    assert [f.pts for f in up[:4]] == [0, Fraction(1, 20), Fraction(1, 10), Fraction(3, 20)]
    assert [round(f.rgb.mean() / 60) for f in up[:11]] == [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 3]
    down = [round(f.rgb.mean() / 60) for f in read_frames(clip, fps=Fraction(5))]
    assert down[:3] == [0, 1, 2]


@pytest.mark.parametrize("start", [0, 10])
def test_resampling_begins_with_the_frame_that_is_on_the_screen(tmp_path, start):
    """However long it has been there: here from 5 to 15 seconds, and the last one for a second and
    a half."""
    pts = [0, 600, 1200, 1800, 2400, 3000, 9000, 9600, 10500]
    clip = open_clip(write(tmp_path / "a.mp4", grey(*range(0, 90, 10)), pts=pts))
    shown = [
        round(f.rgb.mean() / 10) for f in read_frames(clip, start=Fraction(start), fps=Fraction(1))
    ]
    assert shown[: 18 - start] == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 6, 7, 7][start:]


def test_a_start_far_from_a_key_frame(tmp_path):
    """MPEG-TS has no index: a seek lands behind the only key frame."""
    pts = [90000 + 3600 * i for i in range(60)]
    path = write(
        tmp_path / "a.ts",
        grey(*range(0, 240, 4)),
        pts=pts,
        base=Fraction(1, 90000),
        pix_fmt="yuv420p",
    )
    clip = open_clip(path)
    whole = list(read_frames(clip))
    later = list(read_frames(clip, start=Fraction(1)))
    assert len(whole) == 60 and [f.pts for f in later] == [f.pts for f in whole[25:]]
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(later, whole[25:], strict=True))


@pytest.mark.parametrize("name", ["a.avi", "a.h264"])
def test_times_where_the_container_has_none(tmp_path, name):
    """H.264 with B frames: AVI counts packets, a bare stream has no times at all."""
    levels = list(range(0, 200, 10))
    clip = open_clip(
        write(tmp_path / name, grey(*levels), pts=range(20), base=Fraction(1, 25),
        pix_fmt="yuv420p")
    )  # fmt: skip
    frames = list(read_frames(clip))
    assert [f.pts for f in frames] == [clip.start + Fraction(i, 25) for i in range(20)]
    assert np.abs([int(f.rgb[0, 0, 0]) for f in frames] - np.array(levels)).max() <= 2


def recording(path, first=133200):
    """Twenty frames of MPEG-TS from `first` on, ticks of 1/90000."""
    pts = [first + 3600 * i for i in range(20)]
    return write(
        path, grey(*range(0, 200, 10)), pts=pts, base=Fraction(1, 90000), pix_fmt="yuv420p"
    )


@pytest.mark.parametrize("seconds", [[10, 10], [10, 8, 500], [500, 3, 3]])
def test_a_clock_that_is_set_again_continues(tmp_path, seconds):
    parts = [recording(tmp_path / f"{i}.ts", 90000 * s) for i, s in enumerate(seconds)]
    (tmp_path / "all.ts").write_bytes(b"".join(p.read_bytes() for p in parts))
    clip, notices = open_clip(tmp_path / "all.ts"), []
    found = list(read_frames(clip, on_notice=notices.append))
    count = 20 * len(parts)
    assert [f.pts - clip.start for f in found] == [
        Fraction(i, 25) for i in range(count)
    ] and notices == []
    assert clip.frames == count and clip.duration == Fraction(count, 25)
    levels = [int(f.rgb.mean()) for f in found]
    assert np.abs(np.array(levels) - list(range(0, 200, 10)) * len(parts)).max() <= 3
    later = list(read_frames(clip, start=Fraction(1)))
    assert [f.pts for f in later] == [f.pts for f in found[25:]]


def test_an_empty_packet_is_no_end(tmp_path):
    path = write(
        tmp_path / "whole.mov",
        grey(*range(0, 90, 10)),
        "mjpeg",
        pix_fmt="yuvj420p",
        base=Fraction(1, 600),
    )
    with av.open(str(path)) as before, av.open(str(tmp_path / "a.mov"), "w") as out:
        new = out.add_stream_from_template(before.streams.video[0])
        for i, packet in enumerate(p for p in before.demux(video=0) if p.size):
            if i == 4:
                empty = av.Packet(b"")
                empty.pts, empty.dts, empty.duration = packet.pts, packet.dts, packet.duration
                empty.time_base, empty.stream = packet.time_base, new
                out.mux(empty)
            packet.pts, packet.dts = packet.pts + 24 * (i >= 4), packet.dts + 24 * (i >= 4)
            packet.stream = new
            out.mux(packet)
    assert len(times(open_clip(tmp_path / "a.mov"))) == 9


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "gif", "webp"])
def test_the_last_frame_has_its_duration(tmp_path, suffix):
    """Read, and written in `tests/test_video_write.py`."""
    path, durations = tmp_path / f"a.{suffix}", [100, 50, 100, 2000]
    if suffix in ("gif", "webp"):
        pictures = [Image.new("RGB", (40, 30), (200, 60 * i, 40)) for i in range(4)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations)
    else:
        with av.open(str(path), "w") as out:
            stream = out.add_stream("ffv1" if suffix == "mkv" else "mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            for i, rgb in enumerate(grey(0, 60, 120, 180)):
                frame = av.VideoFrame.from_ndarray(rgb).reformat(format="yuv420p")
                frame.pts, frame.time_base = sum(durations[:i]), Fraction(1, 1000)
                for packet in [*stream.encode(frame), *(stream.encode() if i == 3 else [])]:
                    packet.duration = round(durations[i] * Fraction(1, 1000) / packet.time_base)
                    out.mux(packet)
    assert [round(1000 * f.duration) for f in read_frames(open_clip(path))] == durations
    assert len(times(open_clip(path), fps=Fraction(10))) == 23  # at 0, 0.1, ... 2.2


def test_stopping_early_closes_the_file(tmp_path):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    path = write(tmp_path / "a.mp4", grey(1, 2, 3))
    frames = read_frames(open_clip(path))
    next(frames)

    def held():
        return sum(
            Path(f"/proc/self/fd/{fd}").resolve() == path.resolve()
            for fd in os.listdir("/proc/self/fd")
        )

    assert held() == 1
    frames.close()
    assert held() == 0


# --- geometry ----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_every_display_matrix(turns, mirrored):
    """x' = a x + c y, y' = b x + d y, in 16.16: against the same map done pixel by pixel."""
    a, b, c, d = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][turns]
    if mirrored:
        a, c = -a, -c
    matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 14], np.int32) * 65536

    class Data:
        type = "DISPLAYMATRIX"

        def __bytes__(self):
            return matrix.tobytes()

    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    y, x = np.mgrid[:2, :4]
    right, down = a * x + c * y, b * x + d * y
    right, down = right - right.min(), down - down.min()
    want = np.zeros((down.max() + 1, right.max() + 1, 3), np.uint8)
    want[down, right] = picture
    assert np.array_equal(_upright(picture, turn_of(SimpleNamespace(side_data=[Data()]))), want)


def test_a_size_that_changes_within_a_clip_is_scaled_and_told(tmp_path):
    """Two MPEG-TS files, joined as recorders do."""
    for name, first, size in (("a.ts", 0, (48, 64)), ("b.ts", 3, (96, 128))):
        pts = [3600 * (first + i + 50) for i in range(3)]
        write(
            tmp_path / name,
            grey(50, 60, 70, size=size),
            pts=pts,
            base=Fraction(1, 90000),
            pix_fmt="yuv420p",
        )
    (tmp_path / "c.ts").write_bytes(
        (tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes()
    )
    notices = []
    frames = list(read_frames(open_clip(tmp_path / "c.ts"), on_notice=notices.append))
    assert {f.rgb.shape for f in frames} == {(48, 64, 3)} and len(frames) >= 4
    assert any("another size" in notice for notice in notices)


@pytest.mark.parametrize("order", ["tff", "bff"])
@pytest.mark.parametrize("marked", [range(12), range(4, 12)], ids=["all", "in part"])
def test_interlaced_frames_lose_their_combs_and_keep_their_times(tmp_path, order, marked):
    """A bar that moves by 4 pixels a field: its two positions lie in alternate lines."""
    path, base = tmp_path / "a.mkv", Fraction(1, 1000)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(
            "mpeg2video", rate=25, options={"flags": "+ildct+ilme", "qmin": "1", "b": "4000000"}
        )
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.gop_size = 1
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=128, height=96, format=av.VideoFormat("yuv420p"), time_base=Fraction(1, 25)
        )
        marks = graph.add("setfield", "prog" if not marked else order)
        graph.link_nodes(source, marks, graph.add("buffersink")).configure()
        for i in range(12):
            rgb = np.full((96, 128, 3), 60, np.uint8)
            for field in (0, 1):
                x = 10 + 8 * i + 4 * (field if i in marked else 0)
                lines = field if order == "tff" else 1 - field
                rgb[lines::2, x : x + 16] = 200
            frame = av.VideoFrame.from_ndarray(rgb).reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            if i in marked:
                graph.push(frame)
                frame = graph.vpull()
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    clip = open_clip(path)

    def combs(frames):
        """Of each: how far lines are from the mean of their neighbours, where the frame above is
        deinterlaced."""
        lines = [f.rgb[:, :, 0].astype(int) for f in frames]
        return np.mean([np.abs(2 * p[1:-1] - p[:-2] - p[2:]).mean() for p in lines])

    notices: list[str] = []
    plain, smooth = (
        list(read_frames(clip, deinterlace="off")),
        list(read_frames(clip, on_notice=notices.append)),
    )
    assert [f.pts for f in smooth] == [f.pts for f in plain] and len(plain) == 12
    assert [f.duration for f in smooth] == [f.duration for f in plain] and base < plain[0].duration
    assert combs(smooth) < combs(plain) / 3
    assert len(notices) == 1 and "is interlaced" in notices[0]


def test_pixels_that_are_not_square(tmp_path):
    clip = open_clip(write(tmp_path / "a.mp4", grey(90), sar=Fraction(4, 3)))
    assert (clip.width, clip.height, clip.sample_aspect_ratio) == (64, 48, Fraction(4, 3))
    assert clip.display_size == (85, 48)


def test_odd_sizes(tmp_path):
    clip = open_clip(write(tmp_path / "a.mp4", grey(90, size=(35, 51))))
    [frame] = read_frames(clip)
    assert frame.rgb.shape == (35, 51, 3)


# --- colour ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("a.mp4", "libx264", "yuv420p", {"qp": "0"}),
        ("a.mp4", "libx264", "yuv422p", {"qp": "0"}),
        ("a.mkv", "ffv1", "yuv420p", {}),
        ("a.webm", "libvpx-vp9", "yuv420p", {"lossless": "1"}),
    ],
)
def test_subsampled_chroma_stays_in_place(tmp_path, name, codec, pix_fmt, options):
    """There and back within 2, where half a pixel of shift in the chroma makes 5."""
    y, x = np.mgrid[:96, :128]
    cb = 30 * np.sin(x / 10) + 15 * np.sin(y / 7)
    grey_level = 255 * 94 / 219
    blue = grey_level + 2 * (1 - 0.0722) * cb * 255 / 224
    green = grey_level - 0.0722 * (blue - grey_level) / 0.7152
    rgb = np.stack([np.full_like(blue, grey_level), green, blue], -1).round().astype(np.uint8)
    path = write(
        tmp_path / name,
        [rgb],
        codec,
        pix_fmt=pix_fmt,
        base=Fraction(1, 1000),
        codec_options=options,
    )
    [frame] = read_frames(open_clip(path))
    assert np.abs(frame.rgb.astype(int) - rgb)[6:-6, 6:-6].max() <= 2


def test_limited_grey():
    levels = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    rgb = to_rgb(av.VideoFrame.from_ndarray(levels, "gray"), Color(2, 1, 2, 2))
    assert np.abs(rgb[0, :, 0] - ((np.arange(256) - 16) * 255 / 219).clip(0, 255)).max() <= 0.5


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
        path = write(
            tmp_path / f"{pix_fmt}.mov", [bars()], "png", pix_fmt=pix_fmt, color=Color(2, 2, 2, 2)
        )
        [frame] = read_frames(open_clip(path))
        want = (
            bars()
            if pix_fmt == "rgb24"
            else np.repeat((bars() @ [0.299, 0.587, 0.114])[..., None], 3, 2)
        )
        assert np.abs(frame.rgb - want).max() <= 2


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_tone_mapped(tmp_path, transfer, name):
    """A grey ramp stays grey and monotonic; diffuse white (203 cd/m2: 58% of PQ's code, 75% of
    HLG's) is bright."""
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


@pytest.mark.parametrize("transfer", [16, 18])
def test_tone_mapping_is_what_its_formulas_say(transfer):
    """Random colours, each worked out alone in float64."""
    rgb16 = np.random.default_rng(0).integers(0, 65536, (8, 16, 3), dtype=np.uint16)
    rgb16[0, :4] = [[0] * 3, [65535] * 3, [0, 0, 65535], [38000] * 3]
    frame = av.VideoFrame.from_ndarray(rgb16, "rgb48le").reformat(format="gbrp16le")
    got = to_rgb(frame, Color(9, 1, 9, transfer))
    for code, found in zip(rgb16.reshape(-1, 3), got.reshape(-1, 3), strict=True):
        v = code / 65535
        if transfer == 16:
            root = v ** (32 / 2523)
            nits = 10000 * (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (
                8192 / 1305
            )
        else:
            scene = np.where(
                v <= 0.5, v**2 / 3, (np.exp((v - 0.55991073) / 0.17883277) + 0.28466892) / 12
            )
            nits = 1000 * scene * (scene @ [0.2627, 0.6780, 0.0593]) ** 0.2
        to_709 = [
            [1.6605, -0.5876, -0.0728],
            [-0.1246, 1.1329, -0.0083],
            [-0.0182, -0.1006, 1.1187],
        ]
        light = np.array(to_709) @ (nits / 203)
        peak = max(light.max(), 1e-6)
        over = min(peak, 1000 / 203) - 0.5
        r = 0.5 * (1000 / 203 - 0.5) / (1000 / 203 - 1)
        light *= (peak if over <= 0 else 0.5 + over * r / (over + r)) / peak
        assert np.abs(found - 255 * light.clip(0, 1) ** (1 / 2.4)).max() <= 1


# --- damage and refusals -----------------------------------------------------------------------


def flip(path, packets):
    """Overwrite the payload of some packets of a file with noise."""
    with av.open(str(path)) as file:
        spans = [(p.pos, p.size) for p in file.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for i in packets:
        pos, size = spans[i]
        # its start may belong to the container
        data[pos + size // 2 : pos + size] = b"\xff" * (size - size // 2)
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


@pytest.mark.parametrize("threads", [1, 16])
@pytest.mark.parametrize("bad", [[0, 1], [5, 17], [12], [18, 19]])
def test_damage_is_the_same_whatever_the_cores(tmp_path, monkeypatch, threads, bad):
    """Wherever it is, the last frames included; only those before the first good one are left
    out."""

    def with_threads(container, name):
        stream = video_stream(container, name)
        stream.codec_context.thread_count = threads
        return stream

    monkeypatch.setattr("std_cli.media.video.read.video_stream", with_threads)
    levels = list(range(0, 200, 10))
    color = Color(0, 2, 1, 1)
    path = write(
        tmp_path / "a.mov",
        grey(*levels),
        "png",
        pix_fmt="rgb24",
        color=color,
        base=Fraction(1, 1000),
    )
    flip(path, bad)
    notices = []
    frames = list(read_frames(open_clip(path), on_notice=notices.append))
    want, good = [], None
    for i, level in enumerate(levels):
        good = level if i not in bad else good
        if good is not None:
            want.append((Fraction(24 * i, 1000), good))
    assert [(f.pts, int(f.rgb[0, 0, 0])) for f in frames] == want
    assert len(notices) == 1 and notices[0].startswith(f"{len(bad)} frame")


def test_damage_is_told_where_the_reading_stops_before_the_end(tmp_path):
    color = Color(0, 2, 1, 1)
    path = write(
        tmp_path / "a.mov",
        grey(*range(20)),
        "png",
        pix_fmt="rgb24",
        color=color,
        base=Fraction(1, 1000),
    )
    flip(path, [5])
    notices = []
    assert len(list(read_frames(open_clip(path), max_frames=10, on_notice=notices.append))) == 10
    assert notices == ["1 frame of a.mov could not be decoded: the one before was used"]


def test_nothing_that_can_be_decoded_is_refused(tmp_path):
    color = Color(0, 2, 1, 1)
    path = write(
        tmp_path / "a.mov",
        grey(*range(40)),
        "png",
        pix_fmt="rgb24",
        color=color,
        base=Fraction(1, 1000),
    )
    flip(path, range(40))
    with pytest.raises(InputError, match="no frame that can be decoded"):
        open_clip(path)


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
    path = write(
        tmp_path / "a.mkv", grey(*range(0, 200, 2)), "ffv1", pix_fmt="bgr0", base=Fraction(1, 1000)
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    notices = []
    assert 20 < len(list(read_frames(open_clip(path), on_notice=notices.append))) < 80
    assert len(notices) == 1 and "breaks off after" in notices[0]


def test_an_mp4_that_breaks_off_is_as_long_as_what_it_has(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (50, 48, 64, 3), dtype=np.uint8)
    path = write(tmp_path / "a.mp4", noise, movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    notices, clip = [], open_clip(path)
    frames = list(read_frames(clip, on_notice=notices.append))
    assert 20 < len(frames) < 40 and abs(len(frames) - clip.frames) <= 1
    assert abs(clip.duration - len(frames) * Fraction(1, 25)) <= Fraction(2, 25)
    assert "a.mp4 breaks off after" in notices[-1]
    # no repeats up to the declared end
    assert len(list(read_frames(clip, fps=Fraction(25)))) <= len(frames) + 1


def no_video(path):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


def cover_only(path):
    """Sound and a picture that is marked as its cover."""
    with av.open(str(path), "w") as out:
        sound = out.add_stream("aac", rate=16000, layout="mono")
        cover = out.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        packets = cover.encode(av.VideoFrame(16, 16, "yuvj420p")) + cover.encode()
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        out.mux(packets)
        out.mux(sound.encode(frame))
        out.mux(sound.encode())


def no_frames(path):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()


def test_what_is_no_video_is_refused_in_one_line(tmp_path):
    no_video(tmp_path / "sound.m4a")
    cover_only(tmp_path / "cover.mp4")
    no_frames(tmp_path / "no frames.mkv")
    moving = [Image.effect_noise((64, 48), 50 + i) for i in range(4)]
    moving[0].save(tmp_path / "cut.gif", save_all=True, append_images=moving[1:])
    (tmp_path / "cut.gif").write_bytes((tmp_path / "cut.gif").read_bytes()[:-3000])
    whole = write(tmp_path / "whole.mp4", grey(1, 2, 3))
    (tmp_path / "header.mp4").write_bytes(whole.read_bytes()[:700])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.txt").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    (tmp_path / "bad.gif").write_bytes(b"GIF89a")
    (tmp_path / "none").mkdir()
    for name, what in {
        "absent.mp4": "no such video", "sound.m4a": "no video stream", "header.mp4": "cannot be "
                                                                                     "read",
        "empty.mp4": "empty", "text.mp4": "cannot be "
                                          "read", "list.m3u8": "cannot be "
                                                               "read", "list.txt": "cannot be read",
        "cover.mp4": "no video stream", "no frames.mkv": "no frame", "cut.gif": "damaged",
        "bad.gif": "damaged|not a picture", "none": "no pictures",
        "http://localhost/a.mp4": "no such video",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=what) as error:
            open_clip(tmp_path / name)
        assert "\n" not in str(error.value)


def test_names_that_are_not_ascii_or_look_like_protocols(tmp_path):
    for name in ("Käse 映画.mp4", "concat:a|b.mp4"):
        clip = open_clip(write(tmp_path / "a.mp4", grey(5)).rename(tmp_path / name))
        assert len(times(clip)) == 1


# --- animations and folders --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_keep_their_durations(tmp_path, suffix):
    frames = [Image.new("RGBA", (40, 30), (200, 20 * i, 40, 255)) for i in range(3)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=[100, 250, 40], lossless=True
    )
    clip = open_clip(path)
    found = list(read_frames(clip))
    assert [f.pts for f in found] == [0, Fraction(1, 10), Fraction(35, 100)]
    assert clip.duration == Fraction(39, 100) and clip.frames == 3
    assert np.abs(found[2].rgb[5, 5].astype(int) - (200, 40, 40)).max() <= 8


def test_the_hidden_picture_of_an_apng_is_no_frame(tmp_path):
    pictures = [Image.new("RGB", (40, 30), (80 * i, 0, 0)) for i in range(4)]
    how = {"save_all": True, "append_images": pictures[1:], "default_image": True, "duration": 100}
    pictures[0].save(tmp_path / "a.png", **how)
    assert [int(f.rgb[0, 0, 0]) for f in read_frames(open_clip(tmp_path / "a.png"))] == [
        80,
        160,
        240,
    ]


@pytest.mark.parametrize("side", [9000, 14000, 60000])
@pytest.mark.parametrize("of", ["canvas", "second frame"])
def test_an_animation_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, side, of):
    """Below Pillow's warning, above it, above its error: the limit that is named is one of ours."""
    first, second = Image.new("L", (40, 30), 10), Image.new("L", (40, 30), 90)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    data = bytearray((tmp_path / "a.gif").read_bytes())
    size = (40).to_bytes(2, "little") + (30).to_bytes(2, "little")
    at = 6 if of == "canvas" else data.rindex(size)
    data[at : at + 4] = side.to_bytes(2, "little") * 2
    (tmp_path / "a.gif").write_bytes(data)
    limits = f"{MAX_FRAME_PIXELS} for animations|{MAX_PIXELS}"
    match = rf"has {side * side} pixels, more than the limit of ({limits}); scale it down$"
    with pytest.raises(InputError, match=match):
        open_clip(tmp_path / "a.gif")


def test_transparent_video_shows_white_or_keeps_its_alpha(tmp_path):
    rgba = np.zeros((48, 64, 4), np.uint8)
    rgba[:, 32:] = 200, 30, 40, 255
    for name, codec in (("a.mov", "png"), ("b.mov", "qtrle"), ("c.mkv", "ffv1")):
        pix_fmt = {"png": "rgba", "qtrle": "argb", "ffv1": "bgra"}[codec]
        with av.open(str(tmp_path / name), "w") as out:
            stream = out.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
            out.mux(
                stream.encode(av.VideoFrame.from_ndarray(rgba, "rgba").reformat(format=pix_fmt))
            )
            out.mux(stream.encode())
        clip = open_clip(tmp_path / name)
        [white], [kept] = list(read_frames(clip)), list(read_frames(clip, keep_alpha=True))
        assert clip.alpha and white.alpha is None and np.array_equal(kept.alpha, rgba[..., 3]), name
        assert (
            white.rgb[:, :32].min() == 255
            and np.abs(white.rgb[0, 40].astype(int) - (200, 30, 40)).max() <= 2
        )


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
    assert open_clip(tmp_path, fps=Fraction(10)).duration == Fraction(3, 10)
    Image.new("RGBA", (40, 30), (0, 0, 0, 0)).save(tmp_path / "f11.png")
    assert list(read_frames(open_clip(tmp_path)))[3].rgb.min() == 255  # transparent
    Image.new("RGB", (41, 30)).save(tmp_path / "f3.png")
    with pytest.raises(InputError, match="41x30"):
        open_clip(tmp_path)
    (tmp_path / "f3.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="f3.png"):
        open_clip(tmp_path)
    (tmp_path / "f3.png").unlink()
    notices = open_clip(tmp_path).notices
    assert len(notices) == 1 and "lacks 7 numbers of its sequence (3 to 9)" in notices[0]
