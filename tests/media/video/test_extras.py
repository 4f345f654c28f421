import errno
import struct
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from av.subtitles.subtitle import SubtitleSet

from std_cli.errors import StdError
from std_cli.media.video.extras import Extras, choose_extras
from std_cli.media.video.join import join
from std_cli.media.video.opening import open_clip
from std_cli.media.video.read import read_frames
from std_cli.media.video.streams import Carried, what_is
from std_cli.media.video.tags import moved_timecode
from std_cli.media.video.write import write_errors
from std_cli.stylize.videos import prepare_video
from tests.media.video.test_write import segments_of, target_for

HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, \
Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, \
Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
\0"""
LINES = ((100, 400, b"First"), (600, 300, b"Zw\xc3\xb6lf"))  # ms, ms, text


def source(path, *, text=None, channels=None, seconds=1, tags=None, packets=True, **options):
    """A video of 10 frames a second, with subtitles in the format `text` and sound in so many
    channels."""
    with av.open(str(path), "w", options=options) as file:
        codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
        video = file.add_stream(codec, rate=10, options={"crf": "40"})
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        file.metadata.update(tags or {})
        sound = subtitles = None
        if channels:
            sound = file.add_stream(
                "flac" if path.suffix == ".mkv" else "aac", rate=48000, layout=channels
            )
        if text:
            subtitles = file.add_stream(text)
            subtitles.codec_context.subtitle_header = HEADER
            subtitles.time_base = subtitles.codec_context.time_base = Fraction(1, 1000)
            subtitles.metadata["language"] = "eng"
        for i in range(10 * seconds):
            frame = av.VideoFrame.from_ndarray(
                np.full((64, 96, 3), 20 * (i % 10), np.uint8), "rgb24"
            )
            frame.pts, frame.time_base = i, Fraction(1, 10)
            file.mux(video.encode(frame))
        file.mux(video.encode())
        if sound and packets:
            form = sound.codec_context.format
            for i in range(0, 48000 * seconds, 4800):
                shape = (sound.codec_context.layout.nb_channels, 4800)
                shape = shape if form.is_planar else (1, shape[0] * shape[1])
                kind = {"fltp": np.float32, "s16": np.int16, "s32": np.int32}[form.name]
                frame = av.AudioFrame.from_ndarray(np.zeros(shape, kind), form.name, channels)
                frame.sample_rate, frame.pts, frame.time_base = 48000, i, Fraction(1, 48000)
                file.mux(sound.encode(frame))
            file.mux(sound.encode())
        for start, length, line in LINES if subtitles else ():
            event = b"0,0,Default,,0,0,0,," + line
            packet = subtitles.codec_context.encode_subtitle(
                SubtitleSet.create(event, 0, length, start)
            )
            packet.pts = packet.dts = start
            packet.time_base, packet.duration, packet.stream = Fraction(1, 1000), length, subtitles
            file.mux(packet)
    return path


def result_of(path, out, *, start=None, end=None, extras=None, **wanted):
    """(notices, the result) of a join without stylization."""
    clip = open_clip(path)
    target = target_for(out, clip)
    extras = choose_extras(clip, target, **wanted) if extras is None else extras
    frames = list(read_frames(clip, start=start, end=end))
    parts = segments_of(out.parent, target, [f.rgb for f in frames], [f.pts for f in frames])
    first, last = frames[0].pts, frames[-1].pts + frames[-1].duration
    span = {"begin": first, "until": last} if start is not None else {}
    said = join(parts, target, clip, out=out, extras=extras, shift=first, end=last, **span)
    return [*extras.notices, *said]


def shown(path):
    """[(start, end, text)] of the first subtitle stream, seconds."""
    found = []
    with av.open(str(path)) as file:
        stream = file.streams.subtitles[0]
        for packet in file.demux(stream):
            if not packet.size:
                continue
            begin = float(packet.pts * packet.time_base)
            end = begin + float((packet.duration or 0) * packet.time_base)
            events = [
                r.ass.split(b",", 8)[-1]
                for r in stream.codec_context.decode2(packet) or ()
                if r.ass
            ]
            found += [(round(begin, 2), round(end, 2), e.decode()) for e in events if e.strip()]
    return found


@pytest.mark.parametrize("into", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize(
    ("name", "text"),
    [("i.mkv", "subrip"), ("i.mkv", "ass"), ("i.mp4", "mov_text"), ("i.webm", "webvtt")],
)
def test_subtitles_of_text_get_into_every_container(tmp_path, name, text, into):
    path = source(tmp_path / name, text=text)
    notices = result_of(path, tmp_path / f"o.{into}")
    assert shown(tmp_path / f"o.{into}") == [(0.1, 0.5, "First"), (0.6, 0.9, "Zwölf")]
    kept = {
        "mp4": {"mov_text"},
        "mov": {"mov_text"},
        "mkv": {"subrip", "ass", "webvtt"},
        "webm": {"webvtt"},
    }[into]
    assert len(notices) == (text not in kept)
    assert all("converted" in notice for notice in notices)


@pytest.mark.parametrize("into", ["mkv", "mp4"])
def test_a_cut_keeps_what_is_on_screen(tmp_path, into):
    path = source(tmp_path / "i.mkv", text="subrip")
    result_of(path, tmp_path / f"o.{into}", start=Fraction(3, 10), end=Fraction(7, 10))
    assert shown(tmp_path / f"o.{into}") == [(0, 0.2, "First"), (0.3, 0.4, "Zwölf")]


def test_a_cut_keeps_what_came_on_screen_long_before(tmp_path):
    """Ten minutes: a subtitle that stands from the start, in a video with one frame a second."""
    path = tmp_path / "i.mkv"
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg4", rate=1)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        subtitles = file.add_stream("subrip")
        subtitles.codec_context.subtitle_header = HEADER
        subtitles.time_base = subtitles.codec_context.time_base = Fraction(1, 1000)
        event = SubtitleSet.create(b"0,0,Default,,0,0,0,,Long", 0, 599_000, 500)
        packet = subtitles.codec_context.encode_subtitle(event)
        packet.pts = packet.dts = 500
        packet.time_base, packet.duration, packet.stream = Fraction(1, 1000), 599_000, subtitles
        for i in range(600):
            frame = av.VideoFrame(32, 32, "yuv420p")
            frame.pts, frame.time_base = i, Fraction(1)
            file.mux(video.encode(frame))
            if i == 1:
                file.mux(packet)
        file.mux(video.encode())
    result_of(path, tmp_path / "o.mkv", start=Fraction(580), end=Fraction(583))
    assert shown(tmp_path / "o.mkv") == [(0, 3, "Long")]


def test_subtitles_can_be_left_out(tmp_path):
    path = source(tmp_path / "i.mkv", text="subrip")
    assert result_of(path, tmp_path / "o.mkv", subtitles=False) == []
    with av.open(str(tmp_path / "o.mkv")) as file:
        assert [s.type for s in file.streams] == ["video"]


@pytest.mark.parametrize("layout", ["7.1", "4.0", "quad", "5.1", "mono"])
@pytest.mark.parametrize("into", ["mkv", "mov", "webm"])
def test_channels_stay(tmp_path, layout, into):
    path = source(tmp_path / "i.mkv", channels=layout)
    notices = result_of(path, tmp_path / f"o.{into}")
    with av.open(str(tmp_path / f"o.{into}")) as file:
        found = file.streams.audio[0].codec_context.layout
        assert found.nb_channels == av.AudioLayout(layout).nb_channels
    mixed = [n for n in notices if "mixed" in n]
    assert found.name == layout or (mixed and layout in mixed[0] and found.name in mixed[0])


def test_sound_that_is_announced_and_never_comes(tmp_path):
    path = source(tmp_path / "i.ts", channels="stereo", packets=False)
    [notice] = result_of(path, tmp_path / "o.mp4")
    assert "none of its sound" in notice or "no sound was found" in notice
    assert len(list(read_frames(open_clip(tmp_path / "o.mp4")))) == 10


def test_a_stream_that_the_container_refuses_in_the_end_costs_that_stream(tmp_path):
    path = source(tmp_path / "i.mkv", text="ass", channels="stereo")
    with av.open(str(path)) as file:
        streams = tuple(
            Carried(s.index, what_is(s), "copy") for s in file.streams if s.type != "video"
        )
    # as if the trial had not refused ASS
    [notice] = result_of(path, tmp_path / "o.mp4", extras=Extras(streams))
    assert "ass" in notice and "left out" in notice
    with av.open(str(tmp_path / "o.mp4")) as file:
        assert [s.type for s in file.streams] == ["video", "audio"]
        assert sum(1 for p in file.demux(video=0) if p.size) == 10


def test_attachments_and_quicktime_tags(tmp_path):
    path = tmp_path / "i.mkv"
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        file.add_attachment("font.ttf", "application/x-truetype-font", b"not really a font")
        for i in range(5):
            frame = av.VideoFrame(96, 64, "yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            file.mux(video.encode(frame))
        file.mux(video.encode())
    assert result_of(path, tmp_path / "o.mkv") == []
    with av.open(str(tmp_path / "o.mkv")) as file:
        assert [s.type for s in file.streams] == ["video", "attachment"]
    [notice] = result_of(path, tmp_path / "o.mp4")
    assert "font.ttf" in notice and "left out" in notice

    tags = {
        "com.apple.quicktime.make": "Maker",
        "com.apple.quicktime.location.ISO6709": "+48.1+011.5/",
    }
    path = source(tmp_path / "i.mov", tags=tags, movflags="use_metadata_tags")
    for name in ("p.mov", "p.mp4"):
        assert result_of(path, tmp_path / name) == []
        with av.open(str(tmp_path / name)) as file:
            assert tags.items() <= file.metadata.items()


def test_timecode(tmp_path):
    path = source(tmp_path / "i.mov", tags={"timecode": "01:00:00:05"})
    for start, want in ((None, "01:00:00:05"), (Fraction(3, 10), "01:00:00:08")):
        result_of(path, tmp_path / "o.mov", start=start)
        with av.open(str(tmp_path / "o.mov")) as file:
            found = file.streams.video[0].metadata["timecode"]
            assert [int(n) for n in found.split(":")] == [int(n) for n in want.split(":")]


@pytest.mark.parametrize(
    ("timecode", "seconds", "rate", "want"),
    [
        ("00:00:59:29", Fraction(1, 30), Fraction(30), "00:01:00:00"),
        # 0 and 1 are left out
        ("00:00:59;29", Fraction(1001, 30000), Fraction(30000, 1001), "00:01:00;02"),
        # but not in a tenth minute
        ("00:09:59;29", Fraction(1001, 30000), Fraction(30000, 1001), "00:10:00;00"),
        ("23:59:59:24", Fraction(1, 25), Fraction(25), "00:00:00:00"),
    ],
)
def test_a_timecode_later(timecode, seconds, rate, want):
    assert moved_timecode(timecode, seconds, rate, rate) == want


def test_only_a_disk_is_blamed_on_the_disk(tmp_path):
    for error, remedy in (
        (OSError(errno.ENOSPC, "No space left on device"), "check the disk"),
        (OSError(errno.EACCES, "Permission denied"), "folder"),
        (av.FFmpegError(errno.EINVAL, "Invalid argument"), "another container"),
    ):
        with pytest.raises(StdError, match=remedy), write_errors(tmp_path / "o.mp4"):
            raise error
    with pytest.raises(ValueError, match="not of a container"), write_errors(tmp_path / "o.mp4"):
        raise ValueError("not of a container")


def joined(path, out, **changes):
    """The parts of a source, and how to join them into `out`, some of whose facts are changed."""
    clip = open_clip(path)
    target = target_for(out, clip)
    extras = choose_extras(clip, target)
    frames = list(read_frames(clip))
    parts = segments_of(out.parent, target, [f.rgb for f in frames], [f.pts for f in frames])
    target = replace(target, **changes)
    return parts, lambda: join(parts, target, clip, out=out, extras=extras)


def test_a_join_that_fails_says_which_side_failed(tmp_path):
    """A finished part, the source, the container that refuses the pictures themselves."""
    path = source(tmp_path / "i.mkv", text="subrip", channels="stereo")
    parts, go = joined(path, tmp_path / "a.mkv")
    whole = parts[1].read_bytes()
    parts[1].write_bytes(b"not a part any more")
    with pytest.raises(StdError, match=f"^the finished part {parts[1]} cannot be read .*resume$"):
        go()
    parts[1].write_bytes(whole)
    path.rename(tmp_path / "away.mkv")
    with pytest.raises(StdError, match=r"^.*i.mkv can no longer be read \(No such file"):
        go()
    (tmp_path / "away.mkv").rename(path)
    assert go() == []
    _, go = joined(path, tmp_path / "b.mkv", container="webm")  # it does not take H.264
    with pytest.raises(StdError, match=r"^cannot write .*b.mkv \(.*another container"):
        go()


def test_a_request_says_what_is_not_kept_before_the_run(tmp_path, reference):
    path = source(tmp_path / "i.mkv", text="subrip")
    options = dict(model="tiny", size=64, steps=1)
    request = prepare_video(path, reference, tmp_path / "o.mp4", **options)
    assert "mov_text" in request.jobs[0].extras.notices[0]
    request = prepare_video(path, reference, tmp_path / "o.mp4", subtitles="none", **options)
    assert request.jobs[0].extras.notices == ()


def test_the_projection_of_a_360_degree_video(tmp_path):
    """Written by hand: the boxes of Spherical Video V2 at the end of the sample entry."""
    from std_cli.media.video.projection import _box, _insert

    plain = source(tmp_path / "plain.mp4").read_bytes()
    equi = _box(b"equi", bytes(4), struct.pack(">4I", 0, 0, 0, 0))
    proj = _box(b"proj", _box(b"prhd", bytes(4), struct.pack(">3i", 0, 0, 0)), equi)
    (tmp_path / "i.mp4").write_bytes(
        _insert(plain, _box(b"sv3d", _box(b"svhd", bytes(4), b"x\0"), proj))
    )
    for name in ("o.mp4", "o.mkv"):
        assert result_of(tmp_path / "i.mp4", tmp_path / name) == []
        with av.open(str(tmp_path / name)) as file:
            frame = next(file.decode(video=0))
            assert any("SPHERICAL" in str(data.type) for data in frame.side_data)


@pytest.mark.parametrize(("mode", "want"), [(1, 2), (2, 1)], ids=["top and bottom", "side by side"])
def test_the_layout_of_a_3d_video(tmp_path, mode, want):
    """The box st3d at the end of the sample entry; FFmpeg counts side by side as 1."""
    from std_cli.media.video.projection import _box, _insert

    plain = source(tmp_path / "plain.mp4").read_bytes()
    box = _box(b"st3d", bytes(4), bytes([mode]))
    (tmp_path / "i.mp4").write_bytes(_insert(plain, box))
    for name in ("o.mp4", "o.mkv"):
        assert result_of(tmp_path / "i.mp4", tmp_path / name) == []
        with av.open(str(tmp_path / name)) as file:
            frame = next(file.decode(video=0))
            [layout] = [d for d in frame.side_data if "STEREO3D" in str(d.type)]
            assert struct.unpack_from("=i", bytes(layout)) == (want,)
    clip = open_clip(tmp_path / "i.mp4")
    for name, twice_as_wide in (("o.mp4", True), ("o.mov", False)):
        target = target_for(tmp_path / name, clip)
        [notice] = choose_extras(clip, target, twice_as_wide=twice_as_wide).notices
        assert "layout of 3D views" in notice and "not kept" in notice


def broadcast(path, kind):
    """MPEG-2 video in MPEG-TS, with a stream of data or of DVB subtitles next to it: a packet each
    half second."""
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg2video", rate=10)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        if kind == "dvb_subtitle":
            other = file.add_stream("dvbsub")
            # page composition and end of display set (ETSI EN 300 743, 7.2)
            payload = bytes.fromhex("0f10000100020508" + "0f8000010000")
        else:
            other = file.add_data_stream(kind)
            payload = b"\x06\x0e\x2b\x34" + b"any key, any value"
        other.time_base = Fraction(1, 90000)
        for i in range(20):
            frame = av.VideoFrame(96, 64, "yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            file.mux(video.encode(frame))
            if i % 5 == 0:
                packet = av.Packet(payload)
                packet.pts = packet.dts = 9000 * i
                packet.time_base, packet.stream = Fraction(1, 90000), other
                file.mux(packet)
        file.mux(video.encode())
    return path


@pytest.mark.parametrize("kind", ["klv", "scte_35", "timed_id3", "dvb_subtitle"])
@pytest.mark.parametrize("into", ["mkv", "mp4", "mov"])
def test_what_goes_with_a_broadcast_is_kept_or_named(tmp_path, kind, into):
    path = broadcast(tmp_path / "i.ts", kind)
    with av.open(str(path)) as file:
        [_, other] = file.streams
        name = other.name if other.type == "data" else other.codec_context.name
        sent = [bytes(p) for p in file.demux(other) if p.size]
    assert len(sent) == 4
    notices = result_of(path, tmp_path / f"o.{into}")
    with av.open(str(tmp_path / f"o.{into}")) as file:
        others = list(file.streams)[1:]
        came = [bytes(p) for p in file.demux(others) if p.size] if others else []
    if others:
        assert notices == [] and came == sent and (kind, into) == ("dvb_subtitle", "mkv")
    else:
        [notice] = notices
        assert name.replace("dvbsub", "dvb_subtitle") in notice and "left out" in notice


def test_ass_keeps_its_styles_and_fonts(tmp_path):
    plain = source(tmp_path / "plain.mkv", text="ass")
    path = tmp_path / "i.mkv"
    with av.open(str(plain)) as before, av.open(str(path), "w") as file:
        streams = {s.index: file.add_stream_from_template(s) for s in before.streams}
        file.add_attachment("Fancy.ttf", "font/ttf", b"not really a font")
        for packet in before.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                file.mux(packet)
    assert result_of(path, tmp_path / "o.mkv") == []
    with av.open(str(path)) as before, av.open(str(tmp_path / "o.mkv")) as file:
        headers = [f.streams.subtitles[0].codec_context.extradata for f in (before, file)]
        assert headers[0] == headers[1] and b"Style: Default,Arial" in headers[0]
        [font] = [s for s in file.streams if s.type == "attachment"]
        assert font.name == "Fancy.ttf" and font.data == b"not really a font"
    notices = result_of(path, tmp_path / "o.mp4")
    assert len(notices) == 2 and "Fancy.ttf" in "".join(notices) and "mov_text" in "".join(notices)


def test_closed_captions_are_named(tmp_path):
    """As user data of MPEG-2 pictures, ahead of their first slice (ATSC A/53 Part 4, 6.2)."""
    captions = b"\0\0\1\xb2GA94\x03\x41\xff\xfc\x94\x2c\xff"
    path = tmp_path / "i.ts"
    with av.open(str(path), "w") as file:
        video = file.add_stream("mpeg2video", rate=10)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        packets = []
        for i in range(10):
            frame = av.VideoFrame(96, 64, "yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            packets += video.encode(frame)
        for number, packet in enumerate([*packets, *video.encode()]):
            data = bytes(packet)
            if number >= 5:
                at = data.index(b"\0\0\1\1")
                data = data[:at] + captions + data[at:]
            new = av.Packet(data)
            new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
            new.is_keyframe, new.stream = packet.is_keyframe, video
            file.mux(new)
    for end, want in ((None, 1), (Fraction(3, 10), 0)):
        notices = []
        assert list(read_frames(open_clip(path), end=end, on_notice=notices.append))
        assert sum("closed captions" in notice for notice in notices) == len(notices) == want
