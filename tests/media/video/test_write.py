"""Writing videos: times, colours, no second encoding, and what is copied from the source."""

import itertools
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from std_cli.errors import InputError, StdError
from std_cli.media.video.clip import Clip, Color
from std_cli.media.video.extras import choose_extras
from std_cli.media.video.join import join, read_comment
from std_cli.media.video.opening import open_clip
from std_cli.media.video.read import read_frames
from std_cli.media.video.target import CONTAINERS, choose_target, common_time_base
from std_cli.media.video.write import SegmentWriter
from tests.media.video.test_read import bars, write

BASE = Fraction(1, 600)
PTS = [Fraction(t, 600) for t in (0, 20, 50, 51, 100, 160, 180, 204, 230, 251, 280, 300)]


def a_clip(path="none.mp4", size=(64, 48), **changed):
    known = Clip(
        path,
        "video",
        *size,
        Fraction(1),
        BASE,
        Fraction(25),
        12,
        Fraction(0),
        Fraction(1, 2),
        Color(1, 1, 1, 1),
        None,
        0,
    )
    return replace(known, **changed)


def target_for(path, clip=None, size=None, sar=Fraction(1), **options):
    clip = clip or a_clip()
    how = {"codec": None, "crf": None, "preset": None, "rate": None} | options
    return choose_target(path, clip, size=size or (clip.width, clip.height), sar=sar, **how)


def pictures(count=12, size=(64, 48)):
    wide = np.random.default_rng(0).integers(0, 256, (6, 24, 3), dtype=np.uint8)
    wide = np.asarray(
        Image.fromarray(wide).resize((size[0] + 24, size[1]), Image.Resampling.BICUBIC)
    )
    return [np.ascontiguousarray(wide[:, 2 * i : 2 * i + size[0]]) for i in range(count)]


def segments_of(tmp_path, target, frames, pts=PTS, each=5):
    paths = []
    for n, start in enumerate(range(0, len(frames), each)):
        with SegmentWriter(tmp_path / f"s{n}", target) as writer:
            for rgb, t in list(zip(frames, pts, strict=False))[start : start + each]:
                writer.write(rgb, t)
        paths.append(tmp_path / f"s{n}")
    return paths


def decoded(path):
    with av.open(str(path)) as file:
        return [(f.pts * f.time_base, f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]


def packets(path, kind="audio"):
    with av.open(str(path)) as file:
        return [(p.pts * p.time_base, bytes(p)) for p in file.demux(**{kind: 0}) if p.size]


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """Half a second of video with sound, subtitles, chapters and tags."""
    path = tmp_path_factory.mktemp("rich") / "rich.mkv"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = out.add_stream("aac", rate=16000, layout="mono")
        audio.metadata["language"] = "deu"
        out.metadata["title"] = "Käse"
        chapters = [(0, 200, "one"), (200, 500, "two")]
        out.set_chapters([
            {"id": i, "start": a, "end": b, "time_base": Fraction(1, 1000),
            "metadata": {"title": t}}
            for i, (a, b, t) in enumerate(chapters)
        ])  # fmt: skip
        for rgb in pictures():
            out.mux(video.encode(av.VideoFrame.from_ndarray(rgb)))
        out.mux(video.encode())
        for start in range(0, 8000, 1000):
            tone = np.sin(np.arange(start, start + 1000) / 9).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            out.mux(audio.encode(frame))
        out.mux(audio.encode())
    return path


def join_all(paths, target, clip, *, out, audio=True, **more):
    """Join the segments with all that the source has in addition; the notices of both."""
    extras = choose_extras(clip, target, audio=audio)
    return [*extras.notices, *join(paths, target, clip, out=out, extras=extras, **more)]


@pytest.mark.parametrize(
    ("name", "codec", "worst"),
    [
        ("o.mp4", "h264", 12), ("o.mp4", "hevc", 16), ("o.mkv", "vp9", 30), ("o.mov", "prores", 8),
        ("o.mkv", "ffv1", 0), ("o.mov", "h264", 12), ("o.webm", "vp9", 30),
    ],
)  # fmt: skip
def test_joined_segments_are_the_frames_at_their_times_encoded_once(tmp_path, name, codec, worst):
    frames = pictures()
    target = target_for(tmp_path / name, codec=codec)
    paths = segments_of(tmp_path, target, frames)
    out = tmp_path / f"joined{target.path.suffix}"
    assert join_all(paths, target, a_clip(kind="animation"), out=out) == []
    joined, parts = decoded(out), [f for p in paths for f in decoded(p)]
    tick = Fraction(1, 1000) if target.container in ("matroska", "webm") else 0
    assert all(abs(t - want) <= tick for (t, _), want in zip(joined, PTS, strict=True))
    assert [t for t, _ in parts] == PTS
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(joined, parts, strict=True))
    ours = [f.rgb for f in read_frames(open_clip(out))]
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(ours, frames, strict=True)) <= worst
    with av.open(str(out)) as file:
        found = [(p.dts, p.pts) for p in file.demux(video=0) if p.size]
    assert all(a[0] < b[0] for a, b in itertools.pairwise(found)) and all(d <= p for d, p in found)


def test_av1_goes_through_without_a_decoder(tmp_path):
    target = target_for(tmp_path / "o.mp4", codec="av1")
    paths = segments_of(tmp_path, target, pictures())
    join_all(paths, target, a_clip(kind="animation"), out=tmp_path / "o.mp4")
    assert [t for t, _ in packets(tmp_path / "o.mp4", "video")] == PTS


def test_a_colour_bar_round_trip_without_stylization(tmp_path):
    """Within 2/255 a channel, away from the bars' edges where chroma is shared."""
    inside = np.arange(256) % 32
    columns = (inside >= 8) & (inside < 24)
    for color in (
        Color(1, 1, 1, 1),
        Color(6, 1, 6, 6),
        Color(5, 2, 5, 1),
        Color(9, 1, 9, 1),
        Color(2, 0, 2, 2),
    ):
        source = write(tmp_path / "bars.mp4", [bars(256)] * 3, color=color, pix_fmt="yuv420p")
        clip = open_clip(source)
        assert clip.color == color
        frames = list(read_frames(clip))
        target = target_for(tmp_path / "o.mp4", clip, crf=0)
        [path] = segments_of(tmp_path, target, [f.rgb for f in frames], [f.pts for f in frames])
        join_all([path], target, clip, out=tmp_path / "o.mp4")
        again = open_clip(tmp_path / "o.mp4")
        assert again.color == clip.color, "tags are kept"
        for a, b in zip(frames, read_frames(again), strict=True):
            assert np.abs(a.rgb.astype(int) - b.rgb)[:, columns].max() <= 2
            assert np.abs(a.rgb.astype(int) - bars(256))[:, columns].max() <= 3


@pytest.mark.parametrize("name", ["o.mkv", "o.mp4", "o.mov"])
def test_sound_chapters_and_tags_are_copied(tmp_path, rich, name):
    clip = open_clip(rich)
    target = target_for(tmp_path / name, clip)
    frames = list(read_frames(clip))
    paths = segments_of(tmp_path, target, [f.rgb for f in frames], [f.pts for f in frames])
    notices = join_all(paths, target, clip, out=tmp_path / name, comment='{"std": {"prompt": "é"}}')
    assert notices == []
    assert [b for _, b in packets(tmp_path / name)] == [b for _, b in packets(rich)]
    assert all(
        abs(a - b) <= Fraction(1, 500)
        for (a, _), (b, _) in zip(packets(tmp_path / name), packets(rich), strict=True)
    )
    with av.open(str(tmp_path / name)) as file:
        tags = {k.lower(): v for k, v in file.metadata.items()}
        assert tags["title"] == "Käse"
        if name != "o.mov":  # QuickTime's own codes have no deu
            assert file.streams.audio[0].metadata["language"] == "deu"
        assert [c["metadata"]["title"] for c in file.chapters()] == ["one", "two"]
    assert read_comment(tmp_path / name) == {"prompt": "é"}
    assert read_comment(rich) is None


def test_a_part_of_the_clip_has_that_part_of_the_sound(tmp_path, rich):
    clip = open_clip(rich)
    target = target_for(tmp_path / "o.mkv", clip)
    frames = list(read_frames(clip, start=Fraction(1, 5), end=Fraction(2, 5)))
    paths = segments_of(tmp_path, target, [f.rgb for f in frames], [f.pts for f in frames])
    begin = frames[0].pts
    join_all(
        paths,
        target,
        clip,
        out=tmp_path / "o.mkv",
        begin=begin,
        until=begin + Fraction(1, 5),
        shift=begin - clip.start,
    )
    sound = {b: t for t, b in packets(rich)}
    kept = packets(tmp_path / "o.mkv")
    assert 2 <= len(kept) <= 4
    assert all(
        abs(sound[b] - begin - t) <= Fraction(2, 1000)
        and begin <= sound[b] < begin + Fraction(1, 5)
        for t, b in kept
    )
    assert decoded(tmp_path / "o.mkv")[0][0] == clip.start
    with av.open(str(tmp_path / "o.mkv")) as file:
        assert [(c["start"] * c["time_base"], c["metadata"]["title"]) for c in file.chapters()] == [
            (0, "two")
        ]


def test_sound_that_the_container_cannot_hold_is_encoded_anew_and_said(tmp_path, rich):
    clip = open_clip(rich)
    target = target_for(tmp_path / "o.webm", clip)
    paths = segments_of(tmp_path, target, pictures())
    [notice] = join_all(paths, target, clip, out=tmp_path / "o.webm")
    assert "aac" in notice and "libopus" in notice
    with av.open(str(tmp_path / "o.webm")) as file:
        samples = sum(f.samples for f in file.decode(audio=0))
    assert abs(samples - 24000) < 2000  # half a second at 48 kHz
    assert join_all(paths, target, clip, out=tmp_path / "p.webm", audio=False) == []
    with av.open(str(tmp_path / "p.webm")) as file:
        assert not file.streams.audio


def test_shapes_of_pixels_are_kept(tmp_path):
    for name, codec in (
        ("o.mp4", "h264"),
        ("o.mkv", "hevc"),
        ("o.mp4", "vp9"),
        ("o.mov", "prores"),
    ):
        target = target_for(tmp_path / name, codec=codec, sar=Fraction(4, 3))
        paths = segments_of(tmp_path, target, pictures(3))
        join_all(paths, target, a_clip(kind="animation"), out=tmp_path / name)
        assert open_clip(tmp_path / name).sample_aspect_ratio == Fraction(4, 3)


def test_odd_sizes_are_written_as_they_are(tmp_path):
    clip = a_clip(size=(63, 47))
    for codec in ("h264", "hevc", "av1", "vp9", "ffv1", "prores"):
        name = "o.mov" if codec == "prores" else "o.mkv"
        target = target_for(tmp_path / name, clip, codec=codec)
        [path] = segments_of(tmp_path, target, pictures(2, (63, 47)))
        assert decoded(path)[0][1].shape == (47, 63, 3), codec
    with pytest.raises(InputError, match="av1_nvenc takes no odd sides, 63x47"):
        target_for(tmp_path / "o.mp4", clip, codec="av1_nvenc")


@pytest.mark.parametrize("name", ["o.gif", "o.webp"])
def test_animations(tmp_path, name):
    target = target_for(tmp_path / name)
    times = [Fraction(i, 20) for i in (0, 1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13)]
    paths = segments_of(tmp_path, target, pictures(), times)
    assert join_all(paths, target, a_clip(kind="animation"), out=tmp_path / name) == []
    clip = open_clip(tmp_path / name)
    found = list(read_frames(clip))
    assert len(found) == 12

    assert all(abs(f.pts - t) <= Fraction(1, 50) for f, t in zip(found, times, strict=True))
    assert np.abs(found[4].rgb.astype(int) - pictures()[4]).mean() < 25


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("o.mov", "prores"), ("o.mkv", "ffv1"), ("o", "png"), ("o.gif", None), ("o.webp", None),
        ("o.webm", "vp9"), ("o.mkv", "vp9"),
    ],
)  # fmt: skip
def test_alpha_is_kept(tmp_path, name, codec):
    target = target_for(tmp_path / name, a_clip(alpha=True), codec=codec, alpha=True)
    alpha = np.zeros((48, 64), np.uint8)
    alpha[:, 32:] = 255
    times = [Fraction(i, 10) for i in (0, 1, 2)]
    with SegmentWriter(tmp_path / "s", target) as writer:
        for rgb, t in zip(pictures(), times, strict=False):
            writer.write(rgb, t, alpha)
    join_all(
        [tmp_path / "s"], target, a_clip(kind="animation"), out=tmp_path / name, end=Fraction(7, 10)
    )
    clip = open_clip(tmp_path / name)
    found = list(read_frames(clip, keep_alpha=True))
    assert clip.alpha and len(found) == 3
    for frame, rgb in zip(found, pictures(), strict=False):
        assert frame.alpha[:, :30].max() <= 2 and frame.alpha[:, 34:].min() >= 253
        assert np.abs(frame.rgb.astype(int) - rgb)[:, 34:].mean() < 25
    assert codec == "png" or found[-1].duration == Fraction(1, 2)


@pytest.mark.parametrize("name", ["o.mp4", "o.mov", "o.mkv", "o.webm", "o.gif", "o.webp"])
def test_the_last_frame_keeps_its_duration(tmp_path, name):
    target = target_for(tmp_path / name)
    times = [Fraction(t, 600) for t in (60, 120, 150, 210)]  # from 0.1 s on
    paths = segments_of(tmp_path, target, pictures(4), times, each=3)
    out = tmp_path / f"joined{target.path.suffix}"
    join_all(paths, target, a_clip(kind="animation"), out=out, shift=times[0], end=times[-1] + 2)
    found = list(read_frames(open_clip(out)))
    assert [round(f.pts, 2) for f in found] == [
        0,
        Fraction(1, 10),
        Fraction(15, 100),
        Fraction(1, 4),
    ]
    assert abs(found[-1].duration - 2) <= Fraction(1, 500)


def test_a_folder_of_pictures(tmp_path):
    target = target_for(tmp_path / "out", codec="png")
    paths = segments_of(tmp_path, target, pictures())
    join_all(paths, target, a_clip(kind="animation"), out=tmp_path / "out", comment="{}")
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == [*(f"{i:06d}.png" for i in range(1, 13)), "frames.csv", "std.json"]
    with Image.open(tmp_path / "out" / "000005.png") as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), pictures()[4])
    assert (tmp_path / "out" / "frames.csv").read_text().splitlines()[
        4
    ] == "000004.png,0.085000,17/200"


def test_a_segment_that_fails_leaves_nothing(tmp_path):
    target = target_for(tmp_path / "o.mp4")
    with pytest.raises(KeyboardInterrupt), SegmentWriter(tmp_path / "s", target) as writer:
        writer.write(pictures()[0], PTS[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StdError, match="cannot write"):
        segments_of(tmp_path / "absent", target, pictures(2))


def test_encoding_repeats_bit_for_bit(tmp_path):
    """What an interrupted run relies on; sizes at which x264's macroblock tree did not."""
    clip = a_clip(size=(320, 180))
    target = target_for(tmp_path / "o.mp4", clip)
    found = set()
    for _ in range(8):
        [path] = segments_of(tmp_path, target, pictures(8, (320, 180)), each=8)
        found.add(b"".join(b for _, b in packets(path, "video")))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("o.webm", {"codec": "prores"}, "cannot hold prores; write it to .mov or .mkv"),
        ("o.mp4", {"codec": "ffv1"}, "cannot hold ffv1; write it to .mkv"),
        ("o.xyz", {}, ".xyz cannot be written"),
        ("o.mp4", {"codec": "theora"}, "--codec theora: not known"),
        ("o.mp4", {"crf": 52}, "--crf 52: libx264 takes 0"),
        ("o.mov", {"codec": "prores", "crf": 5}, "prores_ks has no such setting"),
        ("o.mp4", {"preset": "warp"}, "--preset warp: libx264 takes ultrafast"),
        ("o.mp4", {"codec": "h264_nvenc"}, "h264_nvenc cannot be used here"),
        ("o.mp4", {"codec": "h264_videotoolbox"}, "h264_videotoolbox cannot be used here"),
        ("absent/o.mp4", {}, "its folder does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_told_before_any_work(tmp_path, name, options, message):
    with pytest.raises(InputError, match=message):
        target_for(tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_every_container_has_a_codec_that_opens(tmp_path):
    for suffix, (container, codecs) in CONTAINERS.items():
        for codec in codecs:
            assert target_for(tmp_path / f"o{suffix}", codec=codec).container == container


def test_common_time_base():
    assert common_time_base(Fraction(1, 25), Fraction(1, 30)) == Fraction(1, 150)
    assert common_time_base(Fraction(1001, 30000)) == Fraction(1, 30000)
    assert common_time_base(Fraction(1, 2**31 + 11)) == Fraction(1, 10**6)
